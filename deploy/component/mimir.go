package component

func mimir() Component {
	return Component{
		Name:      "mimir",
		Title:     "metrics",
		Chart:     "kalypso-mimir",
		Release:   "kalypso-mimir",
		Namespace: "mimir",
		Needs:     []string{"minio"},
		Serves: []Service{
			{Name: "mimir-gateway", Ports: []int{80}},
		},
		Secrets: []Secret{objectStoreSecret()},
	}
}
