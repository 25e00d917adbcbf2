package component_test

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/kalypso-dev/kalypso/charts"
	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/helm"
)

// TestUpstream holds the catalogue against the real charts, packaged in the
// folder KALYPSO_UPSTREAM_CHARTS: what a component is said to serve is a Service
// with these ports, and the custom resources are of the groups that it names.
func TestUpstream(t *testing.T) {
	dir := os.Getenv("KALYPSO_UPSTREAM_CHARTS")
	if dir == "" {
		t.Skip("KALYPSO_UPSTREAM_CHARTS names no folder of packaged charts")
	}
	archives, err := helm.OpenArchives(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range component.All() {
		t.Run(c.Name, func(t *testing.T) {
			fsys, err := charts.Open(c.Chart)
			if err != nil {
				t.Fatal(err)
			}
			chart, err := helm.Open(fsys)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range chart.Dependencies(nil) {
				if !helm.Packaged(dir, d) {
					t.Skipf("%s is not in %s", d, dir)
				}
			}
			m, err := helm.Render(chart, archives, helm.Release{Name: c.Release, Namespace: c.Namespace}, nil)
			if err != nil {
				t.Fatal(err)
			}
			services, groups := map[string]bool{}, map[string]bool{}
			for _, o := range slices.Concat(m.CRDs, m.Objects) {
				var spec struct {
					Spec struct {
						Group string
						Ports []struct{ Port int }
					}
				}
				if err := yaml.Unmarshal([]byte(o.YAML), &spec); err != nil && o.Kind == "Service" {
					t.Fatal(err)
				}
				switch o.Kind {
				case "Service":
					for _, p := range spec.Spec.Ports {
						services[fmt.Sprintf("%s:%d", o.Name, p.Port)] = true
					}
				case "CustomResourceDefinition":
					groups[spec.Spec.Group] = true
				}
			}
			for _, s := range c.Serves {
				for _, port := range s.Ports {
					if name := fmt.Sprintf("%s:%d", s.Name, port); !services[name] {
						t.Errorf("%s is not a Service and port of %v", name, services)
					}
				}
			}
			want := map[string]bool{}
			for _, g := range c.Groups {
				want[g] = true
			}
			if diff := cmp.Diff(groups, want); diff != "" {
				t.Errorf("API groups (-got +want):\n%s", diff)
			}
		})
	}
}
