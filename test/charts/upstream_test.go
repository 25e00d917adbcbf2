package charts

import (
	"os"
	"slices"
	"testing"
)

// upstream renders one of our charts with the real dependencies.
func upstream(t *testing.T, chart, profile string) []object {
	t.Helper()
	for _, r := range stack {
		if r.chart == chart {
			r.profile = profile
			return rendered(t, r, withUpstream)
		}
	}
	t.Fatalf("there is no chart %s", chart)
	return nil
}

func TestUpstream(t *testing.T) {
	eachProfile(t, func(t *testing.T, r release) {
		checkObjects(t, rendered(t, r, withUpstream))
	})
}

// Whatever calls a Service calls one that some chart makes, with a port that it
// has. Of charts that are not in the folder the table of names is believed.
func TestUpstreamEndpoints(t *testing.T) {
	if os.Getenv(upstreamVariable) == "" {
		t.Skipf("%s names no folder of packaged upstream charts", upstreamVariable)
	}
	for _, profile := range profiles {
		name := profile
		if name == "" {
			name = "default"
		}
		t.Run(name, func(t *testing.T) {
			serves, installed := map[endpoint]bool{}, map[string]bool{}
			var all []object
			for _, r := range stack {
				r.profile = profile
				if profile != "" && !hasFile(t, r.chart, "profiles/"+profile+".yaml") {
					r.profile = ""
				}
				t.Run(r.chart, func(t *testing.T) {
					all = append(all, rendered(t, r, withUpstream)...)
					installed[r.chart] = true
				})
			}
			for _, o := range all {
				for _, e := range served(o) {
					serves[e] = true
				}
			}
			for e, chart := range names {
				if installed[chart] && !serves[e] {
					t.Errorf("%s does not serve %v", chart, e)
				}
			}
			for _, o := range all {
				for _, e := range endpoints(o) {
					if !serves[e] && (names[e] == "" || installed[names[e]]) {
						t.Errorf("%v calls %v, which nothing serves", o, e)
					}
				}
			}
		})
	}
}

// mayReadSecrets are the charts whose work is with Secrets of any namespace:
// certificates lie in them.
var mayReadSecrets = map[string]bool{"kalypso-cert-manager": true, "kalypso-istiod": true, "kalypso-istio-base": true}

// Nothing else reads every Secret of the cluster, and nothing may use nodes/proxy,
// which is the right to run commands in pods.
func TestUpstreamClusterRights(t *testing.T) {
	eachProfile(t, func(t *testing.T, r release) {
		for _, o := range rendered(t, r, withUpstream) {
			if o.kind != "ClusterRole" {
				continue
			}
			for _, rule := range list(o.fields, "rules") {
				for _, resource := range list(rule, "resources") {
					everything := resource == "*" && slices.Contains(list(rule, "apiGroups"), any("*"))
					if (resource == "secrets" || everything) && !mayReadSecrets[r.chart] {
						t.Errorf("%v may use %v: %v", o, resource, at(rule, "verbs"))
					}
					if resource == "nodes/proxy" {
						t.Errorf("%v may use nodes/proxy", o)
					}
				}
			}
		}
	})
}
