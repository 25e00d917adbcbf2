package component

func tempo() Component {
	return Component{
		Name:      "tempo",
		Title:     "traces",
		Chart:     "kalypso-tempo",
		Release:   "kalypso-tempo",
		Namespace: "tempo",
		Needs:     []string{"minio"},
		Serves: []Service{
			{Name: "tempo", Ports: []int{3200, 4317, 4318}},
		},
		Secrets: []Secret{objectStoreSecret()},
	}
}
