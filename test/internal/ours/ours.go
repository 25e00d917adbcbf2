// Package ours renders charts of ours that depend on no others, and makes our
// images, for tests that put them on a cluster.
package ours

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
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

// Tag is that of images which charts ask for where nothing else is said.
const Tag = "0.1.0"

// Images makes the images of both programs for this machine, as make images does,
// and gives the path of a program's archive.
func Images(t *testing.T) (archive func(program string) string) {
	t.Helper()
	binaries, out := t.TempDir(), t.TempDir()
	platform := filepath.Join(binaries, "linux-"+runtime.GOARCH)
	for name, pkg := range map[string]string{"kalypso-agent": "../../cmd/agent", "kalypsoctl": "../../cmd/kalypsoctl"} {
		Run(t, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-X main.version=v0.0.0-test", "-o", filepath.Join(platform, name), pkg)
	}
	Run(t, "go", "run", "-trimpath", "../../docker/images", "-arch", runtime.GOARCH, "-tag", Tag, "-binaries", binaries, "-o", out)
	return func(program string) string {
		return filepath.Join(out, fmt.Sprintf("%s-%s-linux-%s.tar", program, Tag, runtime.GOARCH))
	}
}

// Run runs a command that builds something, without cgo.
func Run(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}
