package helm

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"

	"github.com/kalypso-dev/kalypso/profiler"
)

// upstream is the chart that wrapper depends on.
func upstream() fstest.MapFS {
	return fstest.MapFS{
		"Chart.yaml":  text("apiVersion: v2\nname: web\nversion: 1.2.3\n"),
		"values.yaml": text("replicas: 1\nimage: example.org/web:1\n"),
		"crds/crd.yaml": text(`apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: pages.example.org}
spec: {validation: {image: a word of a schema}}
---
# nothing but a comment
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: sites.example.org}
`),
		"templates/objects.yaml": text(`apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: {{ .Release.Namespace }}, annotations: {kube: "{{ .Capabilities.KubeVersion.Version }}"}}
spec:
  replicas: {{ .Values.replicas }}
  template: {spec: {containers: [{name: web, image: "{{ .Values.image }}", args: ["--helper-image=example.org/helper:1", "--image-pull=no"]}]}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web}
`),
		"templates/hooks.yaml": text(`apiVersion: batch/v1
kind: Job
metadata: {name: ready, annotations: {helm.sh/hook: "post-install,post-upgrade"}}
spec: {template: {spec: {containers: [{image: example.org/ready:1}]}}}
---
apiVersion: v1
kind: Pod
metadata: {name: try, annotations: {helm.sh/hook: test}}
spec: {containers: [{image: busybox:latest}]}
`),
		"templates/NOTES.txt": text("notes of upstream"),
	}
}

// wrapper is a chart as ours are.
func wrapper() fstest.MapFS {
	return fstest.MapFS{
		"Chart.yaml": text(`apiVersion: v2
name: kalypso-web
version: 0.1.0
dependencies:
  - {name: web, version: 1.2.3, repository: https://example.org/charts, condition: web.enabled}
`),
		"values.yaml":           text("web: {enabled: true, replicas: 2}\nown: true\n"),
		"profiles/small.yaml":   text("web: {replicas: 1}\n"),
		"values.schema.json":    text(`{"type": "object", "additionalProperties": false, "properties": {"global": {}, "own": {"type": "boolean"}, "web": {"type": "object"}}}`),
		"templates/own.yaml":    text("{{ if .Values.own }}\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: own}\n{{ end }}"),
		"templates/_helper.tpl": text(`{{ define "unused" }}x{{ end }}`),
		"templates/NOTES.txt":   text("{{ .Release.Name }} is in {{ .Release.Namespace }}\n"),
	}
}

func text(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }

func open(t *testing.T, fsys fs.FS) *Chart {
	t.Helper()
	c, err := Open(fsys)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// pack makes a packaged chart of files.
func pack(t *testing.T, fsys fs.FS, dir string) string {
	t.Helper()
	c := open(t, fsys)
	loaded, err := loader.LoadFiles(c.files)
	if err != nil {
		t.Fatal(err)
	}
	path, err := chartutil.Save(loaded, dir)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// packaged is a folder that has upstream.
func packaged(t *testing.T) *Archives {
	t.Helper()
	dir := t.TempDir()
	pack(t, upstream(), dir)
	return archives(t, dir)
}

func archives(t *testing.T, dir string) *Archives {
	t.Helper()
	a, err := OpenArchives(dir)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

var here = Release{Name: "kalypso-web", Namespace: "web"}

// named lists objects as KIND/NAME.
func named(objects []Object) string {
	var out []string
	for _, o := range objects {
		out = append(out, strings.Trim(o.Kind+"/"+o.Name+" "+strings.Join(o.Events, ","), " "))
	}
	return strings.Join(out, " · ")
}

func TestRender(t *testing.T) {
	m, err := Render(open(t, wrapper()), packaged(t), here, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, got, want string }{
		{"objects are in Helm's order of kinds, and of a file without any nothing is left", named(m.Objects), "ServiceAccount/web · ConfigMap/own · Deployment/web"},
		{"hooks are apart, and those of tests are left out", named(m.Hooks), "Job/ready post-install,post-upgrade"},
		{"custom resources are apart, in the order of their file", named(m.CRDs), "CustomResourceDefinition/pages.example.org · CustomResourceDefinition/sites.example.org"},
		{"notes are those of our chart", m.Notes, "kalypso-web is in web"},
		{"an object knows its namespace and its template", m.Objects[2].Namespace + " " + m.Objects[2].Template, "web kalypso-web/charts/web/templates/objects.yaml"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, tt.got, tt.want)
		}
	}
	deployment := m.Objects[2].YAML
	if !strings.Contains(deployment, "replicas: 2\n") || !strings.Contains(deployment, `kube: "`+DefaultKubeVersion+`"`) {
		t.Errorf("the wrapper's values and the version of Kubernetes are not in it:\n%s", deployment)
	}
}

// TestRenderTwice: the same bytes, which is what makes a difference mean
// something; and the values given are as they were.
func TestRenderTwice(t *testing.T) {
	c, a := open(t, wrapper()), packaged(t)
	values := Values{"web": Values{"replicas": 3}}
	first, err := Render(c, a, here, values)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Render(c, a, here, values)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, second); diff != "" {
		t.Errorf("(-first +second):\n%s", diff)
	}
	if diff := cmp.Diff(values, Values{"web": Values{"replicas": 3}}); diff != "" {
		t.Errorf("the values were changed:\n%s", diff)
	}
}

func TestRenderRefuses(t *testing.T) {
	broken := wrapper()
	broken["templates/own.yaml"] = text(`{{ fail "own is\nwrong" }}`)
	needsNew := wrapper()
	needsNew["Chart.yaml"] = text("apiVersion: v2\nname: kalypso-web\nversion: 0.1.0\nkubeVersion: '>=1.99'\n")
	tests := []struct {
		name    string
		chart   fstest.MapFS
		release Release
		values  Values
		schema  bool
		want    string
	}{
		{"what the schema does not have", wrapper(), here, Values{"wob": 1}, true, "additional properties 'wob' not allowed"},
		{"what the schema has another type for", wrapper(), here, Values{"own": "yes"}, true, "got string, want boolean"},
		{"what a template refuses, on one line", broken, here, nil, false, "own is wrong"},
		{"a Kubernetes that the chart is too new for", needsNew, here, nil, false, "kalypso-web needs Kubernetes >=1.99"},
		{"what is no version of Kubernetes", wrapper(), Release{Name: "a", Namespace: "b", KubeVersion: "new"}, nil, false, `there can be no Kubernetes "new"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Render(open(t, tt.chart), packaged(t), tt.release, tt.values)
			var wrong *ValuesError
			if err == nil || !strings.Contains(err.Error(), tt.want) || errors.As(err, &wrong) != tt.schema {
				t.Errorf("error %v, want %q; of values: %v", err, tt.want, tt.schema)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %v", err)
			}
		})
	}
}

// TestSwitchedOff: what a condition switches off is not asked for.
func TestSwitchedOff(t *testing.T) {
	c := open(t, wrapper())
	off := Values{"web": Values{"enabled": false}}
	if got := c.Dependencies(off); len(got) != 0 {
		t.Errorf("depends on %v", got)
	}
	want := []Dependency{{"web", "1.2.3", "https://example.org/charts"}}
	if diff := cmp.Diff(c.Dependencies(nil), want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	m, err := Render(c, archives(t, t.TempDir()), here, off)
	if err != nil {
		t.Fatal(err)
	}
	if got := named(m.Objects); got != "ConfigMap/own" {
		t.Errorf("got %s", got)
	}
}

func TestArchivesRefuse(t *testing.T) {
	tests := []struct {
		name   string
		change func(t *testing.T, dir, path string)
		want   string
	}{
		{"a chart that is not there", func(t *testing.T, _, path string) { remove(t, path) },
			"chart web 1.2.3 is not in DIR"},
		{"another version, which is named", func(t *testing.T, dir, path string) {
			if err := os.Rename(path, filepath.Join(dir, "web-1.2.4.tgz")); err != nil {
				t.Fatal(err)
			}
		}, "chart web 1.2.3 is not in DIR: web-1.2.4.tgz is, and this kalypsoctl goes with 1.2.3"},
		{"a chart of another name", func(t *testing.T, dir, path string) {
			other := upstream()
			other["Chart.yaml"] = text("apiVersion: v2\nname: mail\nversion: 1.2.3\n")
			if err := os.Rename(pack(t, other, dir), path); err != nil {
				t.Fatal(err)
			}
		}, "DIR/web-1.2.3.tgz is not the chart web 1.2.3: it holds the chart mail 1.2.3"},
		{"a file that was cut", func(t *testing.T, _, path string) {
			if err := os.Truncate(path, 100); err != nil {
				t.Fatal(err)
			}
		}, "DIR/web-1.2.3.tgz is not the chart web 1.2.3: unexpected EOF"},
		{"a chart that was pinned to another digest", func(t *testing.T, dir, _ string) {
			write(t, filepath.Join(dir, LockFile), "charts:\n- {name: web, version: 1.2.3, repository: x, sha256: 00ff}\n")
		}, "DIR/web-1.2.3.tgz is not the chart that was pinned: its SHA-256 is "},
		{"a lock that cannot be read", func(t *testing.T, dir, _ string) {
			write(t, filepath.Join(dir, LockFile), "chart: []\n")
		}, "cannot read DIR/charts.lock: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			tt.change(t, dir, pack(t, upstream(), dir))
			a, err := OpenArchives(dir)
			if err == nil {
				_, err = Render(open(t, wrapper()), a, here, nil)
			}
			var fault *profiler.Fault
			if !errors.As(err, &fault) || !strings.HasPrefix(strings.ReplaceAll(err.Error(), dir, "DIR"), tt.want) || fault.Fix == "" {
				t.Errorf("error %v, want %s", err, tt.want)
			}
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestMerge(t *testing.T) {
	tests := []struct {
		name   string
		layers []Values
		want   Values
	}{
		{"nothing is nothing", nil, Values{}},
		{"the later wins", []Values{{"a": 1, "b": 1}, {"a": 2}}, Values{"a": 2, "b": 1}},
		{"mappings are merged", []Values{{"a": Values{"x": 1, "y": 1}}, {"a": Values{"y": 2}}}, Values{"a": Values{"x": 1, "y": 2}}},
		{"lists are replaced", []Values{{"a": []any{1, 2}}, {"a": []any{3}}}, Values{"a": []any{3}}},
		{"a mapping replaces a value, and a value a mapping", []Values{{"a": 1, "b": Values{"x": 1}}, {"a": Values{"x": 1}, "b": 1}}, Values{"a": Values{"x": 1}, "b": 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(Merge(tt.layers...), tt.want); diff != "" {
				t.Errorf("(-got +want):\n%s", diff)
			}
		})
	}
	t.Run("what was merged is left as it was", func(t *testing.T) {
		below := Values{"a": Values{"x": 1}}
		Merge(below, Values{"a": Values{"x": 2}})["a"].(Values)["x"] = 3
		if diff := cmp.Diff(below, Values{"a": Values{"x": 1}}); diff != "" {
			t.Errorf("(-got +want):\n%s", diff)
		}
	})
}

func TestProfile(t *testing.T) {
	c := open(t, wrapper())
	small, err := c.Profile("small")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(small, Values{"web": map[string]any{"replicas": 1.0}}); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	if v, err := c.Profile("ha"); v != nil || err != nil {
		t.Errorf("a profile that the chart does not differ in: %v, %v", v, err)
	}
}

func TestImages(t *testing.T) {
	object := func(kind, yaml string) Object { return Object{Kind: kind, YAML: yaml} }
	objects := []Object{
		object("Pod", "spec: {initContainers: [{image: b:1}], containers: [{image: a:1}, {image: b:1}, {image: auto}]}"),
		object("Deployment", "spec: {template: {spec: {containers: [{args: [--solver-image=c:1, -sidecar-image=d:1, --image-pull=no]}]}}}"),
		object("OpenTelemetryCollector", "spec: {image: e:1}"),
		object("CustomResourceDefinition", "spec: {image: a word}"),
		object("ConfigMap", "data: {image: a setting}"),
		object("ConfigMap", `data: {values: '{"global": {"hub": "f.io/istio", "tag": "1", "proxy": {"image": "proxyv2"}}}'}`),
	}
	got, err := Images(objects)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, []string{"a:1", "b:1", "c:1", "d:1", "e:1", "f.io/istio/proxyv2:1"}); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}

func TestUnknowns(t *testing.T) {
	fsys := upstream()
	fsys["values.yaml"] = text("replicas: 1\nimage: example.org/web:1\nservice: {port: 80, annotations: {a: b}}\nweb: {config: {workers: 4}}\nglobal: {hub: a}\n# hostNetwork: true\n")
	fsys["templates/more.yaml"] = text("{{ .Values.service.scheme }}{{ index .Values \"paused\" }}{{ toYaml .Values.web.config }}")
	dir := t.TempDir()
	pack(t, fsys, dir)
	tests := []struct {
		name, set string
		want      string // the way to what is unknown; + where it is sure
	}{
		{"what the chart has", "web.replicas=2", ""},
		{"what nothing in the chart reads", "web.replicaz=2", "web.replicaz+"},
		{"below the first level it is not sure", "web.service.prot=1", "web.service.prot"},
		{"what only a template reads", "web.service.scheme=tls", ""},
		{"what a template reads by its name", "web.paused=true", ""},
		{"what a comment of the values tells of", "web.hostNetwork=true", ""},
		{"a word of prose is no value", "web.but=1", "web.but+"},
		{"settings that are handed on", "web.web.config.threads=2", ""},
		{"annotations", "web.service.annotations.c=d", ""},
		{"values of all charts", "web.global.any=1", ""},
		{"values of our own chart", "own=false", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			given := Values{}
			if err := ParseSet(tt.set, given); err != nil {
				t.Fatal(err)
			}
			found, err := open(t, wrapper()).Unknowns(archives(t, dir), nil, given)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, u := range found {
				got += strings.Join(u.Keys, ".")
				if u.Sure {
					got += "+"
				}
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
