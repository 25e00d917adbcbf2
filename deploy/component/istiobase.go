package component

func istioBase() Component {
	return Component{
		Name:      "istio-base",
		Title:     "Istio's custom resources",
		Chart:     "kalypso-istio-base",
		Release:   "istio-base",
		Namespace: "istio-system",
		Groups:    []string{"extensions.istio.io", "networking.istio.io", "security.istio.io", "telemetry.istio.io"},
	}
}
