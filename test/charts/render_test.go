// Package charts holds the Helm charts to their promises: they render, and twice
// the same; their pins, endpoints and limits are those that are written down; and
// none of the faults that an earlier attempt at this stack had is back.
//
// Upstream charts are not in the repository. Without them each dependency is a
// stand-in of the same name whose only object shows the values that reached it.
// With KALYPSO_UPSTREAM_CHARTS=DIR, a folder of NAME-VERSION.tgz, the same charts
// are rendered as they are installed.
package charts

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"

	"github.com/kalypso-dev/kalypso/charts"
)

// upstreamVariable names the folder of packaged upstream charts.
const upstreamVariable = "KALYPSO_UPSTREAM_CHARTS"

// kubeVersion is what charts are rendered for. Left out, the SDK takes itself
// for Kubernetes 1.20, and charts refuse or write objects of old versions.
const kubeVersion = "v1.37.2"

// A release is one chart as it is installed.
type release struct {
	name, namespace, chart string
	profile                string // "": the chart's own values, which is the profile default
}

// The stack in the order of its installation.
var stack = []release{
	{name: "cert-manager", namespace: "cert-manager", chart: "kalypso-cert-manager"},
	{name: "kalypso-otel-operator", namespace: "otel-system", chart: "kalypso-otel-operator"},
	{name: "istio-base", namespace: "istio-system", chart: "kalypso-istio-base"},
	{name: "istiod", namespace: "istio-system", chart: "kalypso-istiod"},
	{name: "kalypso-gateway", namespace: "istio-ingress", chart: "kalypso-istio-gateway"},
	{name: "kalypso-minio", namespace: "minio", chart: "kalypso-minio"},
	{name: "kalypso-mimir", namespace: "mimir", chart: "kalypso-mimir"},
	{name: "kalypso-tempo", namespace: "tempo", chart: "kalypso-tempo"},
	{name: "kalypso-loki", namespace: "loki", chart: "kalypso-loki"},
	{name: "kalypso-pyroscope", namespace: "pyroscope", chart: "kalypso-pyroscope"},
	{name: "kalypso-grafana", namespace: "grafana", chart: "kalypso-grafana"},
	{name: "kalypso-collector", namespace: "otel-system", chart: "kalypso-collector"},
	{name: "kalypso-cluster-collector", namespace: "otel-system", chart: "kalypso-cluster-collector"},
	{name: "kalypso-agent", namespace: "kalypso", chart: "kalypso-agent"},
}

// everything that can be installed: the stack, and what installs it.
func everything() []release {
	return append(slices.Clone(stack), release{name: infraChart, namespace: "kalypso-infra", chart: infraChart})
}

var profiles = []string{"small", "", "ha"}

// eachProfile runs f for every chart with every profile that it has.
func eachProfile(t *testing.T, f func(t *testing.T, r release)) {
	for _, r := range everything() {
		for _, profile := range profiles {
			r.profile = profile
			if profile != "" && !hasFile(t, r.chart, "profiles/"+profile+".yaml") {
				continue
			}
			name := profile
			if name == "" {
				name = "default"
			}
			t.Run(r.chart+"/"+name, func(t *testing.T) { f(t, r) })
		}
	}
}

func open(t *testing.T, name string) fs.FS {
	t.Helper()
	files, err := charts.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func hasFile(t *testing.T, name, path string) bool {
	t.Helper()
	_, err := fs.Stat(open(t, name), path)
	return err == nil
}

func readFile(t *testing.T, name, path string) []byte {
	t.Helper()
	data, err := fs.ReadFile(open(t, name), path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// load reads one of our charts, without its dependencies.
func load(t *testing.T, name string) *chart.Chart {
	t.Helper()
	files := open(t, name)
	var buffered []*loader.BufferedFile
	err := fs.WalkDir(files, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(files, path)
		buffered = append(buffered, &loader.BufferedFile{Name: path, Data: data})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := loader.LoadFiles(buffered)
	if err != nil {
		t.Fatalf("load %s: %v", name, err)
	}
	return c
}

// withStandIns adds a stand-in for each dependency.
func withStandIns(t *testing.T, c *chart.Chart) *chart.Chart {
	t.Helper()
	for _, d := range c.Metadata.Dependencies {
		standIn, err := loader.LoadFiles([]*loader.BufferedFile{
			{Name: "Chart.yaml", Data: fmt.Appendf(nil, "apiVersion: v2\nname: %s\nversion: %s\n", d.Name, d.Version)},
			{Name: "templates/values.yaml", Data: []byte(`apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ .Chart.Name }}
  namespace: {{ .Release.Namespace }}
data:
  values.yaml: |
    {{- toYaml .Values | nindent 4 }}
`)},
		})
		if err != nil {
			t.Fatal(err)
		}
		c.AddDependency(standIn)
	}
	return c
}

// withUpstream adds the real dependencies. A folder that lacks one is no fault of
// the chart: the test is skipped, and says which file it wants.
func withUpstream(t *testing.T, c *chart.Chart) *chart.Chart {
	t.Helper()
	dir := os.Getenv(upstreamVariable)
	if dir == "" {
		t.Skipf("%s names no folder of packaged upstream charts", upstreamVariable)
	}
	for _, d := range c.Metadata.Dependencies {
		path := filepath.Join(dir, d.Name+"-"+d.Version+".tgz")
		upstream, err := loader.Load(path)
		if errors.Is(err, fs.ErrNotExist) {
			t.Skipf("%s does not have %s", dir, filepath.Base(path))
		}
		if err != nil {
			t.Fatalf("load %s: %v", path, err)
		}
		c.AddDependency(upstream)
	}
	return c
}

// values of a profile, over the chart's own.
func profileValues(t *testing.T, r release) map[string]any {
	t.Helper()
	if r.profile == "" {
		return map[string]any{}
	}
	values, err := chartutil.ReadValues(readFile(t, r.chart, "profiles/"+r.profile+".yaml"))
	if err != nil {
		t.Fatalf("profile %s of %s: %v", r.profile, r.chart, err)
	}
	return values
}

// render is what "helm template" writes: objects, hooks and notes.
func render(c *chart.Chart, r release, values map[string]any) (string, error) {
	version, err := chartutil.ParseKubeVersion(kubeVersion)
	if err != nil {
		return "", err
	}
	install := action.NewInstall(&action.Configuration{Log: func(string, ...any) {}})
	install.ReleaseName, install.Namespace = r.name, r.namespace
	install.DryRun, install.ClientOnly, install.IncludeCRDs = true, true, true
	install.KubeVersion = version
	out, err := install.Run(c, values)
	if err != nil {
		return "", err
	}
	var text strings.Builder
	text.WriteString(out.Manifest)
	for _, h := range out.Hooks {
		fmt.Fprintf(&text, "---\n# Source: %s\n%s\n", h.Path, h.Manifest)
	}
	return text.String() + "\x00" + out.Info.Notes, nil
}

// rendered gives the objects of a release, having made sure that a second
// render, from the files on, is the same to the byte.
func rendered(t *testing.T, r release, with func(*testing.T, *chart.Chart) *chart.Chart) []object {
	t.Helper()
	var texts [2]string
	for i := range texts {
		var err error
		if texts[i], err = render(with(t, load(t, r.chart)), r, profileValues(t, r)); err != nil {
			t.Fatalf("render %s: %v", r.chart, err)
		}
	}
	if texts[0] != texts[1] {
		t.Errorf("two renders differ, first at:\n%s", firstDifference(texts[0], texts[1]))
	}
	manifest, notes, _ := strings.Cut(texts[0], "\x00")
	if strings.TrimSpace(notes) == "" {
		t.Error("it has no notes")
	}
	return decode(t, manifest, r)
}

func firstDifference(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return fmt.Sprintf("line %d\n-%s\n+%s", i+1, x[i], y[i])
		}
	}
	return fmt.Sprintf("the end: %d and %d lines", len(x), len(y))
}

// An object of a render.
type object struct {
	fields    map[string]any
	kind      string
	name      string
	namespace string
	release   release
}

func (o object) String() string { return o.kind + " " + o.namespace + "/" + o.name }

func decode(t *testing.T, manifest string, r release) []object {
	t.Helper()
	var objects []object
	for decoder := yaml.NewDecoder(strings.NewReader(manifest)); ; {
		var fields map[string]any
		err := decoder.Decode(&fields)
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			t.Fatalf("decode the objects of %s: %v", r.chart, err)
		}
		if fields == nil {
			continue
		}
		o := object{fields: fields, kind: text(fields, "kind"), name: text(fields, "metadata", "name"),
			namespace: text(fields, "metadata", "namespace"), release: r}
		if o.namespace == "" {
			o.namespace = r.namespace
		}
		objects = append(objects, o)
	}
}

// at walks down maps by keys; nil where one is missing.
func at(v any, path ...string) any {
	for _, key := range path {
		m, _ := v.(map[string]any)
		v = m[key]
	}
	return v
}

func text(v any, path ...string) string {
	s, _ := at(v, path...).(string)
	return s
}

func list(v any, path ...string) []any {
	l, _ := at(v, path...).([]any)
	return l
}

// find gives the one object of a kind and name.
func find(t *testing.T, objects []object, kind, name string) object {
	t.Helper()
	for _, o := range objects {
		if o.kind == kind && o.name == name {
			return o
		}
	}
	t.Fatalf("there is no %s %s among %v", kind, name, objects)
	return object{}
}

// standInValues are the values that reached the dependency of a wrapper.
func standInValues(t *testing.T, chartName, profile string) map[string]any {
	t.Helper()
	for _, r := range stack {
		if r.chart != chartName {
			continue
		}
		r.profile = profile
		c := load(t, chartName)
		shown := find(t, rendered(t, r, withStandIns), "ConfigMap", c.Metadata.Dependencies[0].Name)
		return parseYAML(t, text(shown.fields, "data", "values.yaml"))
	}
	t.Fatalf("there is no chart %s", chartName)
	return nil
}

func parseYAML(t *testing.T, s string) map[string]any {
	t.Helper()
	var out map[string]any
	if err := yaml.NewDecoder(bytes.NewReader([]byte(s))).Decode(&out); err != nil {
		t.Fatalf("parse YAML: %v\n%s", err, s)
	}
	return out
}

// podSpec of an object that makes pods.
func podSpec(o object) map[string]any {
	path := []string{"spec", "template", "spec"}
	switch o.kind {
	case "Pod":
		path = []string{"spec"}
	case "CronJob":
		path = []string{"spec", "jobTemplate", "spec", "template", "spec"}
	}
	spec, _ := at(o.fields, path...).(map[string]any)
	if spec["containers"] == nil { // a custom resource with a field of the same name
		return nil
	}
	return spec
}

// containers of an object, those that run first included.
func containers(o object) []map[string]any {
	var out []map[string]any
	for _, field := range []string{"initContainers", "containers"} {
		for _, c := range list(podSpec(o), field) {
			if m, ok := c.(map[string]any); ok {
				out = append(out, m)
			}
		}
	}
	return out
}
