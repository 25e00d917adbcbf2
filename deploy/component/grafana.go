package component

func grafana() Component {
	return Component{
		Name:      "grafana",
		Title:     "dashboards, with every store as a data source",
		Chart:     "kalypso-grafana",
		Release:   "kalypso-grafana",
		Namespace: "grafana",
		Needs:     []string{"mimir", "tempo", "loki", "pyroscope"},
		Serves: []Service{
			{Name: "kalypso-grafana", Ports: []int{80}},
		},
		Secrets: []Secret{
			{Name: "kalypso-grafana-admin", Keys: []string{"admin-user", "admin-password"}},
		},
	}
}
