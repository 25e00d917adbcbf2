package component

func pyroscope() Component {
	return Component{
		Name:      "pyroscope",
		Title:     "profiles",
		Chart:     "kalypso-pyroscope",
		Release:   "kalypso-pyroscope",
		Namespace: "pyroscope",
		Needs:     []string{"minio"},
		Serves: []Service{
			{Name: "pyroscope", Ports: []int{4040}},
		},
		Secrets: []Secret{objectStoreSecret()},
	}
}
