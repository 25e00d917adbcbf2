package component

func collector() Component {
	return Component{
		Name:       "collector",
		Title:      "a collector on every node: OTLP, logs, metrics of pods and nodes",
		Chart:      "kalypso-collector",
		Release:    "kalypso-collector",
		Namespace:  "otel-system",
		Needs:      []string{"mimir", "tempo", "loki", "pyroscope"},
		Privileged: true,
		Serves: []Service{
			{Name: "kalypso-collector", Ports: []int{4317, 4318}},
		},
	}
}
