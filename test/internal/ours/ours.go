// Package ours renders charts of ours that depend on no others, for tests that
// put them on a cluster without kalypsoctl.
package ours

import (
	"fmt"
	"strings"
	"testing"

	"github.com/kalypso-dev/kalypso/charts"
	"github.com/kalypso-dev/kalypso/deploy/helm"
)

// Render gives the objects of a chart in a namespace, with its release named as
// the chart.
func Render(t *testing.T, name, namespace string, values helm.Values) *helm.Manifests {
	t.Helper()
	fsys, err := charts.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	chart, err := helm.Open(fsys)
	if err != nil {
		t.Fatal(err)
	}
	m, err := helm.Render(chart, nil, helm.Release{Name: name, Namespace: namespace}, values)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// YAML is a namespace with these labels ("{}" for none) and the objects, to be
// applied.
func YAML(namespace, labels string, m *helm.Manifests) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: %s}\n", namespace, labels)
	for _, o := range m.Objects {
		fmt.Fprintf(&b, "---\n%s", o.YAML)
	}
	return b.String()
}
