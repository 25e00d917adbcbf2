package component_test

import (
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/kalypso-dev/kalypso/charts"
	"github.com/kalypso-dev/kalypso/deploy/component"
)

// TestCatalogueIsConsistent: names are known, and each thing has one owner.
func TestCatalogueIsConsistent(t *testing.T) {
	all := component.All()
	names := component.Names(all)
	owner := map[string]string{} // of a chart, a release in its namespace, an API group, a host
	own := func(what, name string) {
		t.Helper()
		if before := owner[what]; before != "" {
			t.Errorf("%s belongs to %s and to %s", what, before, name)
		}
		owner[what] = name
	}
	for _, c := range all {
		if c.Title == "" || c.Release == "" || c.Namespace == "" {
			t.Errorf("%s lacks a title, a release or a namespace: %+v", c.Name, c)
		}
		own("component "+c.Name, c.Name)
		own("chart "+c.Chart, c.Name)
		own("release "+c.Namespace+"/"+c.Release, c.Name)
		for _, g := range c.Groups {
			own("API group "+g, c.Name)
		}
		for _, s := range c.Serves {
			own("host "+c.Host(s), c.Name)
			if len(s.Ports) == 0 {
				t.Errorf("%s serves %s on no port", c.Name, s.Name)
			}
		}
		for _, need := range c.Needs {
			if !slices.Contains(names, need) {
				t.Errorf("%s needs %s, which is no component", c.Name, need)
			}
		}
	}
}

// TestEveryChartIsAComponent, but for the one that installs the others.
func TestEveryChartIsAComponent(t *testing.T) {
	var have []string
	for _, c := range component.All() {
		have = append(have, c.Chart)
	}
	slices.Sort(have)
	want := slices.DeleteFunc(charts.Names(), func(name string) bool { return name == "kalypso-infra" })
	if !slices.Equal(have, want) {
		t.Errorf("the catalogue has the charts %v, the folder has %v", have, want)
	}
}

// TestChartsSayWhereTheyGo: the first lines of a chart's values tell its reader
// the namespace and the release.
func TestChartsSayWhereTheyGo(t *testing.T) {
	head := regexp.MustCompile(`^# Namespace (\S+), release ([a-z0-9-]+)`)
	for _, c := range component.All() {
		fsys, err := charts.Open(c.Chart)
		if err != nil {
			t.Fatal(err)
		}
		data, err := fs.ReadFile(fsys, "values.yaml")
		if err != nil {
			t.Fatal(err)
		}
		m := head.FindStringSubmatch(string(data))
		if m == nil || m[1] != c.Namespace || m[2] != c.Release {
			t.Errorf("the values of %s begin with %q; it goes to namespace %s as release %s", c.Chart, m, c.Namespace, c.Release)
		}
	}
}

// host is an address inside the cluster, with its port.
var host = regexp.MustCompile(`([a-z0-9-]+)\.([a-z0-9-]+)\.svc\.cluster\.local:([0-9]+)`)

// TestAddressesAreServed: what a chart of ours calls is a Service and a port of
// a component that is installed before, or of its own.
func TestAddressesAreServed(t *testing.T) {
	served := map[string]bool{}
	for _, c := range component.All() {
		for _, s := range c.Serves {
			for _, port := range s.Ports {
				served[fmt.Sprintf("%s:%d", c.Host(s), port)] = true
			}
		}
	}
	found := 0
	for _, c := range component.All() {
		for path, text := range files(t, c.Chart) {
			for _, address := range host.FindAllString(text, -1) {
				found++
				if !served[address] {
					t.Errorf("%s/%s calls %s, which no component serves", c.Chart, path, address)
				}
			}
		}
	}
	if found == 0 {
		t.Error("no chart calls anything: this test sees nothing")
	}
}

// TestNoSecretIsUndeclared: a Secret of ours that a chart names is one that the
// component declares, and the other way round.
func TestNoSecretIsUndeclared(t *testing.T) {
	named := regexp.MustCompile(`kalypso-(s3|grafana-admin)\b`)
	for _, c := range component.All() {
		found := map[string]bool{}
		for _, text := range files(t, c.Chart) {
			for _, name := range named.FindAllString(text, -1) {
				found[name] = true
			}
		}
		for _, s := range c.Secrets {
			if !found[s.Name] {
				t.Errorf("%s declares the Secret %s, which its chart does not name", c.Name, s.Name)
			}
			delete(found, s.Name)
		}
		for name := range found {
			t.Errorf("the chart of %s names the Secret %s, which the component does not declare", c.Name, name)
		}
	}
}

// files are the values and templates of a chart, without comments.
func files(t *testing.T, chart string) map[string]string {
	t.Helper()
	fsys, err := charts.Open(chart)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	err = fs.WalkDir(fsys, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".yaml") && !strings.HasSuffix(path, ".tpl") {
			return err
		}
		data, err := fs.ReadFile(fsys, path)
		if err != nil {
			return err
		}
		var kept []string
		for line := range strings.Lines(string(data)) {
			if !strings.HasPrefix(strings.TrimSpace(line), "#") {
				kept = append(kept, line)
			}
		}
		out[path] = strings.Join(kept, "")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
