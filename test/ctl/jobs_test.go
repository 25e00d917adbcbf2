package ctl

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/kalypso-dev/kalypso/charts"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/test/internal/script"
)

// What charts have kalypsoctl do in pods, it can do: each verb and flag is one of
// this version. Charts that wrap others run none of ours.
func TestArgumentsInCharts(t *testing.T) {
	program := filepath.Join(script.Dir(), "kalypsoctl")
	verbs := map[string]bool{}
	for _, name := range charts.Names() {
		for _, args := range arguments(t, name) {
			verbs[args[0]] = true
			// The last flag is read last: all others have been understood then.
			out, err := exec.Command(program, append(slices.Clone(args), "--help")...).CombinedOutput()
			if err != nil {
				t.Errorf("%s runs kalypsoctl %s: %v\n%s", name, strings.Join(args, " "), err, out)
			}
		}
	}
	for _, want := range []string{"buckets", "charts", "install"} {
		if !verbs[want] {
			t.Errorf("no chart runs kalypsoctl %s", want)
		}
	}
}

// arguments of the containers of a chart that run kalypsoctl.
func arguments(t *testing.T, name string) [][]string {
	t.Helper()
	fsys, err := charts.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	chart, err := helm.Open(fsys)
	if err != nil {
		t.Fatal(err)
	}
	if len(chart.Dependencies(nil)) > 0 {
		return nil
	}
	archives, err := helm.OpenArchives(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	m, err := helm.Render(chart, archives, helm.Release{Name: name, Namespace: "test"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	type container struct {
		Image string
		Args  []string
	}
	var found [][]string
	for _, o := range m.Objects {
		var pods struct {
			Spec struct {
				Template struct {
					Spec struct{ InitContainers, Containers []container }
				}
			}
		}
		if err := yaml.Unmarshal([]byte(o.YAML), &pods); err != nil {
			continue // something else than pods has a field of this name
		}
		for _, c := range slices.Concat(pods.Spec.Template.Spec.InitContainers, pods.Spec.Template.Spec.Containers) {
			if strings.Contains(c.Image, "/kalypsoctl:") {
				found = append(found, c.Args)
			}
		}
	}
	return found
}
