package component

func istiod() Component {
	return Component{
		Name:      "istiod",
		Title:     "Istio's control plane",
		Chart:     "kalypso-istiod",
		Release:   "istiod",
		Namespace: "istio-system",
		Needs:     []string{"istio-base"},
		Serves: []Service{
			{Name: "istiod", Ports: []int{15010, 15012, 443, 15014}},
		},
	}
}
