package component

// istioGateway needs istiod at work, not only its objects: the image of its pod
// is "auto", which istiod's webhook replaces as the pod is made.
func istioGateway() Component {
	return Component{
		Name:      "istio-gateway",
		Title:     "the way into the mesh",
		Chart:     "kalypso-istio-gateway",
		Release:   "kalypso-gateway",
		Namespace: "istio-ingress",
		Needs:     []string{"istiod"},
		Serves: []Service{
			{Name: "kalypso-gateway", Ports: []int{15021, 80, 443}},
		},
	}
}
