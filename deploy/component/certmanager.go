package component

// certManager comes first: the webhooks of the OpenTelemetry operator have
// their certificate from it.
func certManager() Component {
	return Component{
		Name:      "cert-manager",
		Title:     "certificates for webhooks",
		Chart:     "kalypso-cert-manager",
		Release:   "cert-manager",
		Namespace: "cert-manager",
		Serves: []Service{
			{Name: "cert-manager-webhook", Ports: []int{443}},
		},
		Groups: []string{"acme.cert-manager.io", "cert-manager.io"},
		Trial: `apiVersion: cert-manager.io/v1
kind: Issuer
metadata: {name: kalypso-trial}
spec: {selfSigned: {}}
`,
	}
}
