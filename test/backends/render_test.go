package backends

import (
	"fmt"
	"os"
	"regexp"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/kalypso-dev/kalypso/charts"
	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/helm"
)

// upstreamVariable names a folder of packaged upstream charts.
const upstreamVariable = "KALYPSO_UPSTREAM_CHARTS"

// configuration is an entry of a ConfigMap that the chart of a component
// renders.
func configuration(t *testing.T, name, configMap, key string) string {
	t.Helper()
	dir := os.Getenv(upstreamVariable)
	if dir == "" {
		t.Skipf("%s names no folder of packaged upstream charts", upstreamVariable)
	}
	archives, err := helm.OpenArchives(dir)
	if err != nil {
		t.Fatal(err)
	}
	c := catalogued(t, name)
	fsys, err := charts.Open(c.Chart)
	if err != nil {
		t.Fatal(err)
	}
	chart, err := helm.Open(fsys)
	if err != nil {
		t.Fatal(err)
	}
	m, err := helm.Render(chart, archives, helm.Release{Name: c.Release, Namespace: c.Namespace}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range m.Objects {
		if o.Kind != "ConfigMap" || o.Name != configMap {
			continue
		}
		var object struct{ Data map[string]string }
		if err := yaml.Unmarshal([]byte(o.YAML), &object); err != nil {
			t.Fatal(err)
		}
		if object.Data[key] == "" {
			t.Fatalf("ConfigMap %s has no %s", configMap, key)
		}
		return object.Data[key]
	}
	t.Fatalf("the chart of %s renders no ConfigMap %s", name, configMap)
	return ""
}

func catalogued(t *testing.T, name string) component.Component {
	t.Helper()
	for _, c := range component.All() {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("there is no component %s", name)
	return component.Component{}
}

// host is an address inside the cluster.
var host = regexp.MustCompile(`([a-z0-9-]+\.[a-z0-9-]+)\.svc\.cluster\.local:([0-9]+)`)

// local replaces the cluster's addresses by the test's. One that the test does
// not have is an error of the chart, or of the test.
func (n network) local(t *testing.T, text string) string {
	t.Helper()
	return host.ReplaceAllStringFunc(text, func(address string) string {
		m := host.FindStringSubmatch(address)
		addr, ok := n[m[1]+":"+m[2]]
		if !ok {
			t.Fatalf("%s is called, which is none of %v", address, n)
		}
		return addr
	})
}

// network is where the Services of the cluster are on this machine, by
// SERVICE.NAMESPACE:PORT.
type network map[string]string

func (n network) address(namespace, service string, port int) (string, error) {
	addr, ok := n[fmt.Sprintf("%s.%s:%d", service, namespace, port)]
	if !ok {
		return "", fmt.Errorf("there is no Service %s in namespace %s with port %d", service, namespace, port)
	}
	return addr, nil
}
