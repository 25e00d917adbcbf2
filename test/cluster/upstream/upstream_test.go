package upstream

import (
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/kalypso-dev/kalypso/charts"
	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/helm"
)

// What the catalogue says that a component serves and brings is what its stand-in
// makes, in every profile, so that an install with stand-ins is one of the stack.
func TestStandInsServeWhatTheCatalogueSays(t *testing.T) {
	dir := t.TempDir()
	if err := Package(dir); err != nil {
		t.Fatal(err)
	}
	archives, err := helm.OpenArchives(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range component.All() {
		for _, profile := range []string{"small", "default", "ha"} {
			t.Run(c.Name+"/"+profile, func(t *testing.T) {
				serves, groups := offers(t, archives, c, profile)
				for _, s := range c.Serves {
					for _, port := range s.Ports {
						if !serves[s.Name][port] {
							t.Errorf("no Service %s with the port %d: %v", s.Name, port, serves)
						}
					}
				}
				for _, group := range c.Groups {
					if !groups[group] {
						t.Errorf("no custom resource of %s", group)
					}
				}
			})
		}
	}
}

// offers are the ports of each Service and the API groups of custom resources.
func offers(t *testing.T, archives *helm.Archives, c component.Component, profile string) (serves map[string]map[int]bool, groups map[string]bool) {
	t.Helper()
	fsys, err := charts.Open(c.Chart)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := helm.Open(fsys)
	if err != nil {
		t.Fatal(err)
	}
	values, err := ours.Profile(profile)
	if err != nil {
		t.Fatal(err)
	}
	manifests, err := helm.Render(ours, archives, helm.Release{Name: c.Release, Namespace: c.Namespace}, values)
	if err != nil {
		t.Fatal(err)
	}
	serves, groups = map[string]map[int]bool{}, map[string]bool{}
	for _, o := range manifests.Objects {
		var object struct {
			Kind     string
			Metadata struct{ Name string }
			Spec     struct {
				Group string
				Ports []struct{ Port int }
			}
		}
		if err := yaml.Unmarshal([]byte(o.YAML), &object); err != nil {
			t.Fatalf("%s: %v", o.Template, err)
		}
		switch object.Kind {
		case "Service":
			ports := map[int]bool{}
			for _, p := range object.Spec.Ports {
				ports[p.Port] = true
			}
			serves[object.Metadata.Name] = ports
		case "CustomResourceDefinition":
			groups[object.Spec.Group] = true
		}
	}
	return serves, groups
}
