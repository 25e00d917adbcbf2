package component

func otelOperator() Component {
	return Component{
		Name:      "otel-operator",
		Title:     "OpenTelemetry operator: instruments applications, runs collectors of your own",
		Chart:     "kalypso-otel-operator",
		Release:   "kalypso-otel-operator",
		Namespace: "otel-system",
		Needs:     []string{"cert-manager"},
		Serves: []Service{
			{Name: "opentelemetry-operator-webhook", Ports: []int{443}},
		},
		Groups: []string{"opentelemetry.io"},
	}
}
