package component

func loki() Component {
	return Component{
		Name:      "loki",
		Title:     "logs",
		Chart:     "kalypso-loki",
		Release:   "kalypso-loki",
		Namespace: "loki",
		Needs:     []string{"minio"},
		Serves: []Service{
			{Name: "loki-gateway", Ports: []int{80}},
		},
		Secrets: []Secret{objectStoreSecret()},
	}
}
