// Package ctl is the contract of kalypsoctl's command line: what is typed, what
// is printed, and the exit code. Each testdata/*.txtar runs the program itself,
// built once, in a directory of its own. $CHARTS is a folder of packaged charts
// that stand in for the upstream ones: same names and versions, little in them.
// $PROFILES has two pprof files, old.pb.gz and new.pb.gz. $REGISTRY is a registry
// that has every image it is asked for.
//
// "go test ./test/ctl -update" rewrites the expected output inside the scripts;
// read the diff.
package ctl

import (
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/rogpeppe/go-internal/testscript"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chartutil"

	"github.com/kalypso-dev/kalypso/charts"
	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/test/internal/script"
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(script.Main(m, "kalypsoctl", "../../cmd/kalypsoctl", func() error {
		if err := profiles(profilesDir()); err != nil {
			return err
		}
		return standIns(chartsDir())
	}))
}

var update = flag.Bool("update", false, "rewrite the expected output in testdata/*.txtar")

func chartsDir() string { return filepath.Join(script.Dir(), "charts") }

func TestScripts(t *testing.T) {
	registry := newRegistry(t)
	params := script.Params(*update)
	setup := params.Setup
	params.Setup = func(env *testscript.Env) error {
		env.Setenv("CHARTS", chartsDir())
		env.Setenv("PROFILES", profilesDir())
		env.Setenv("REGISTRY", registry)
		return setup(env)
	}
	testscript.Run(t, params)
}

// standIns packages a chart in place of each that ours depend on.
func standIns(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for _, c := range component.All() {
		fsys, err := charts.Open(c.Chart)
		if err != nil {
			return err
		}
		ours, err := helm.Open(fsys)
		if err != nil {
			return fmt.Errorf("open %s: %w", c.Chart, err)
		}
		for _, d := range ours.Dependencies(nil) {
			if _, err := chartutil.Save(standIn(d), dir); err != nil {
				return fmt.Errorf("package a stand-in for %s: %w", d, err)
			}
		}
	}
	return nil
}

func standIn(d helm.Dependency) *chart.Chart {
	file := func(name, text string) *chart.File { return &chart.File{Name: name, Data: []byte(text)} }
	return &chart.Chart{
		Metadata: &chart.Metadata{APIVersion: chart.APIVersionV2, Name: d.Name, Version: d.Version},
		Raw:      []*chart.File{file("values.yaml", "replicas: 1\nhub: example.org\npod: {hostNetwork: false, annotations: {}}\n")},
		Values:   map[string]any{"replicas": 1, "hub": "example.org", "pod": map[string]any{"hostNetwork": false, "annotations": map[string]any{}}},
		Files:    []*chart.File{file("crds/crd.yaml", "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: "+d.Name+"s.example.org}\n")},
		Templates: []*chart.File{
			file("templates/objects.yaml", `apiVersion: v1
kind: Service
metadata: {name: {{ .Release.Name }}, namespace: {{ .Release.Namespace }}}
spec: {replicas: {{ .Values.replicas | default 1 }}, kube: {{ .Capabilities.KubeVersion.Version }}}
---
apiVersion: v1
kind: Pod
metadata: {name: {{ .Release.Name }}:0}
spec: {containers: [{image: "{{ .Values.hub }}/{{ .Chart.Name }}:{{ .Chart.Version }}"}]}
`),
			file("templates/hook.yaml", `apiVersion: batch/v1
kind: Job
metadata: {name: ready, annotations: {helm.sh/hook: post-install}}
spec: {template: {spec: {containers: [{image: "{{ .Values.hub }}/hook:1"}]}}}
`),
		},
	}
}

// newRegistry serves one small image under all names.
func newRegistry(t *testing.T) string {
	t.Helper()
	img, err := random.Image(512, 1)
	if err != nil {
		t.Fatal(err)
	}
	all := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, rest, found := strings.Cut(r.URL.Path, "/manifests/"); found && r.Method != http.MethodPut && !strings.HasPrefix(rest, "sha256:") {
			r.URL.Path = "/v2/any/manifests/1"
		} else if _, rest, found := strings.Cut(r.URL.Path, "/blobs/"); found && r.Method == http.MethodGet {
			r.URL.Path = "/v2/any/blobs/" + rest
		}
		all.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	host := strings.TrimPrefix(s.URL, "http://")
	ref, err := name.ParseReference(host + "/any:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	return host
}
