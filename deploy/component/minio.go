package component

// minio keeps its name whichever server runs behind it: others reach the object
// store as kalypso-minio.minio:9000.
func minio() Component {
	return Component{
		Name:      "minio",
		Title:     "object store (S3) and its buckets",
		Chart:     "kalypso-minio",
		Release:   "kalypso-minio",
		Namespace: "minio",
		Serves: []Service{
			{Name: "kalypso-minio", Ports: []int{9000}},
		},
		Secrets: []Secret{
			{Name: "kalypso-s3", Keys: []string{"rootUser", "rootPassword"}},
		},
	}
}
