package component

func clusterCollector() Component {
	return Component{
		Name:      "cluster-collector",
		Title:     "one collector for the cluster: its metrics and events",
		Chart:     "kalypso-cluster-collector",
		Release:   "kalypso-cluster-collector",
		Namespace: "otel-system",
		Needs:     []string{"mimir", "loki"},
	}
}
