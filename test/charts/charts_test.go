package charts

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"

	"github.com/kalypso-dev/kalypso/charts"
)

// A pin is the upstream chart that one of ours wraps.
type pin struct {
	name, version, repository, app string
}

const (
	jetstack         = "https://charts.jetstack.io"
	openTelemetry    = "https://open-telemetry.github.io/opentelemetry-helm-charts"
	istio            = "https://istio-release.storage.googleapis.com/charts"
	grafana          = "https://grafana.github.io/helm-charts"
	grafanaCommunity = "https://grafana-community.github.io/helm-charts"
)

// pins were rendered together and accepted by an API server. Change them here and
// in Chart.yaml, and render with the real charts.
var pins = map[string]pin{
	"kalypso-cert-manager":      {"cert-manager", "v1.21.1", jetstack, "v1.21.1"},
	"kalypso-otel-operator":     {"opentelemetry-operator", "0.122.0", openTelemetry, "0.158.0"},
	"kalypso-collector":         {"opentelemetry-collector", "0.170.0", openTelemetry, "0.158.0"},
	"kalypso-cluster-collector": {"opentelemetry-collector", "0.170.0", openTelemetry, "0.158.0"},
	"kalypso-istio-base":        {"base", "1.30.3", istio, "1.30.3"},
	"kalypso-istiod":            {"istiod", "1.30.3", istio, "1.30.3"},
	"kalypso-istio-gateway":     {"gateway", "1.30.3", istio, "1.30.3"},
	"kalypso-mimir":             {"mimir-distributed", "6.0.6", grafana, "3.0.4"},
	"kalypso-tempo":             {"tempo", "2.2.4", grafanaCommunity, "2.10.8"},
	"kalypso-loki":              {"loki", "18.11.0", grafanaCommunity, "3.7.6"},
	"kalypso-pyroscope":         {"pyroscope", "2.2.1", grafana, "2.2.1"},
	"kalypso-grafana":           {"grafana", "12.11.1", grafanaCommunity, "13.2.0"},
}

// ours is the version of our charts, programs and images.
func ours(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("../../VERSION")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func TestChartYAML(t *testing.T) {
	for _, name := range charts.Names() {
		t.Run(name, func(t *testing.T) {
			m := load(t, name).Metadata
			if m.Name != name || m.Type != "application" || m.Version != ours(t) {
				t.Errorf("name %q, type %q, version %q", m.Name, m.Type, m.Version)
			}
			want, wraps := pins[name]
			if !wraps {
				if m.AppVersion != ours(t) {
					t.Errorf("its application is ours, of version %q", m.AppVersion)
				}
				if len(m.Dependencies) != 0 {
					t.Errorf("it depends on %v, which the table of pins does not have", m.Dependencies[0])
				}
				return
			}
			if len(m.Dependencies) != 1 {
				t.Fatalf("it has %d dependencies, want 1", len(m.Dependencies))
			}
			d := m.Dependencies[0]
			got := pin{d.Name, d.Version, d.Repository, m.AppVersion}
			if diff := cmp.Diff(got, want, cmp.AllowUnexported(pin{})); diff != "" {
				t.Errorf("pin (-got +want):\n%s", diff)
			}
			if d.Condition != d.Name+".enabled" {
				t.Errorf("condition %q, want %s.enabled", d.Condition, d.Name)
			}
		})
	}
}

// Every chart is in the stack or installs it, and there is no other.
func TestNames(t *testing.T) {
	var want []string
	for _, r := range everything() {
		want = append(want, r.chart)
	}
	slices.Sort(want)
	if diff := cmp.Diff(charts.Names(), want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	for _, name := range []string{"", ".", "kalypso", "kalypso-mimir/templates", "../charts", "charts.go"} {
		if _, err := charts.Open(name); err == nil {
			t.Errorf("Open(%q) gave a chart", name)
		}
	}
}

// Charts without faults that "helm lint" knows, dependencies in place.
func TestLint(t *testing.T) {
	version, err := chartutil.ParseKubeVersion(kubeVersion)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range everything() {
		t.Run(r.chart, func(t *testing.T) {
			dir := t.TempDir()
			if err := chartutil.SaveDir(withStandIns(t, load(t, r.chart)), dir); err != nil {
				t.Fatal(err)
			}
			result := lint.AllWithKubeVersion(filepath.Join(dir, r.chart), nil, r.namespace, version)
			for _, m := range result.Messages {
				if m.Severity >= support.WarningSev {
					t.Error(m)
				}
			}
		})
	}
}

func TestRenderTwice(t *testing.T) {
	eachProfile(t, func(t *testing.T, r release) {
		objects := rendered(t, r, withStandIns)
		if len(objects) == 0 {
			t.Error("it has no objects")
		}
		checkObjects(t, objects)
	})
}

// checkObjects is what holds for whatever is installed.
func checkObjects(t *testing.T, objects []object) {
	t.Helper()
	for _, o := range objects {
		if err := unknownField(o); err != nil {
			t.Errorf("%v: %v", o, err)
		}
		for _, c := range containers(o) {
			if why := forbiddenImage(text(c, "image")); why != "" {
				t.Errorf("%v runs %s: %s", o, text(c, "image"), why)
			}
			if missing := missingResources(c); len(missing) > 0 {
				t.Errorf("%v: container %s has no %s", o, text(c, "name"), strings.Join(missing, ", "))
			}
		}
		for _, found := range literalCredentials(o) {
			t.Errorf("%v holds a credential: %s", o, found)
		}
	}
}

// What is not known is refused, so that a misspelled value is no value that
// silently does nothing.
func TestSchema(t *testing.T) {
	for _, r := range everything() {
		t.Run(r.chart, func(t *testing.T) {
			c := load(t, r.chart)
			switchPath := []string{"enabled"}
			if p, ok := pins[r.chart]; ok {
				switchPath = []string{p.name, "enabled"}
			}
			for name, values := range map[string]map[string]any{
				"unknown key":          {"no-such-key": 1},
				"a switch of no truth": nest(switchPath, "maybe"),
			} {
				if _, err := render(withStandIns(t, load(t, r.chart)), r, values); err == nil {
					t.Errorf("%s is accepted", name)
				}
			}
			if len(c.Schema) == 0 {
				t.Error("it has no schema")
			}
		})
	}
	for name, test := range map[string]struct {
		chart  string
		values map[string]any
	}{
		"a kind of object store that is none":   {"kalypso-minio", nest([]string{"objectStore", "kind"}, "gcs")},
		"an unknown key further down":           {"kalypso-minio", nest([]string{"persistence", "sizes"}, "1Gi")},
		"a name that no bucket can have":        {"kalypso-minio", nest([]string{"buckets", "names"}, []any{"Not_A_Bucket"})},
		"a store without a scheme":              {"kalypso-minio", nest([]string{"objectStore", "external", "endpoint"}, "s3.example.org:443")},
		"an image without a fixed tag":          {"kalypso-minio", nest([]string{"objectStore", "minio", "image", "tag"}, "latest")},
		"a setting of the agent that is ours":   {"kalypso-agent", nest([]string{"config", "listen"}, "127.0.0.1:1")},
		"a spool on a path that is not one":     {"kalypso-agent", nest([]string{"spool", "hostPath"}, "/")},
		"a label that the agent could not read": {"kalypso-agent", nest([]string{"labels", "1st team"}, "a")},
	} {
		r := release{name: "test", namespace: "test", chart: test.chart}
		if _, err := render(load(t, test.chart), r, test.values); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// nest makes a value of a path of keys.
func nest(path []string, v any) map[string]any {
	for _, key := range slices.Backward(path[1:]) {
		v = map[string]any{key: v}
	}
	return map[string]any{path[0]: v}
}

// A chart that is switched off installs nothing.
func TestDisabled(t *testing.T) {
	for _, r := range everything() {
		t.Run(r.chart, func(t *testing.T) {
			path := []string{"enabled"}
			if p, ok := pins[r.chart]; ok {
				path = []string{p.name, "enabled"}
			}
			text, err := render(withStandIns(t, load(t, r.chart)), r, nest(path, false))
			if err != nil {
				t.Fatal(err)
			}
			manifest, _, _ := strings.Cut(text, "\x00")
			if objects := decode(t, manifest, r); len(objects) > 0 {
				t.Errorf("it installs %v", objects)
			}
		})
	}
}

// eachValuesFile runs f for values.yaml and the profiles of every chart.
func eachValuesFile(t *testing.T, f func(t *testing.T, name, path string, data []byte)) {
	for _, name := range charts.Names() {
		paths, err := fs.Glob(open(t, name), "profiles/*.yaml")
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range append(paths, "values.yaml") {
			t.Run(name+"/"+path, func(t *testing.T) { f(t, name, path, readFile(t, name, path)) })
		}
	}
}

// Helm takes null in a wrapper's values for "remove" or for nothing, depending on
// the version and on how deep it stands.
func TestNoNulls(t *testing.T) {
	eachValuesFile(t, func(t *testing.T, _, _ string, data []byte) {
		var root yaml.Node
		if err := yaml.Unmarshal(data, &root); err != nil {
			t.Fatal(err)
		}
		var walk func(n *yaml.Node)
		walk = func(n *yaml.Node) {
			if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
				t.Errorf("line %d: null", n.Line)
			}
			for _, child := range n.Content {
				walk(child)
			}
		}
		walk(&root)
	})
}

// Only these three are profiles; another file would be offered by nobody.
func TestProfileNames(t *testing.T) {
	eachValuesFile(t, func(t *testing.T, _, path string, _ []byte) {
		if !slices.Contains([]string{"values.yaml", "profiles/small.yaml", "profiles/ha.yaml"}, path) {
			t.Errorf("%s is no profile", path)
		}
	})
}

// impure are functions of templates whose answer depends on more than values.
var impure = regexp.MustCompile(`\b(lookup|rand[A-Z]\w*|genCA\w*|gen\w*Cert\w*|genPrivateKey|uuidv4|now|getHostByName|htpasswd|bcrypt)\b|\.Capabilities`)

func TestTemplatesArePure(t *testing.T) {
	for _, name := range charts.Names() {
		for _, f := range load(t, name).Templates {
			for i, line := range strings.Split(string(f.Data), "\n") {
				for _, action := range regexp.MustCompile(`{{.*?}}`).FindAllString(line, -1) {
					if found := impure.FindString(action); found != "" {
						t.Errorf("%s/%s:%d uses %s", name, f.Name, i+1, found)
					}
				}
			}
		}
	}
}

// names are the endpoints that parts of the stack know of each other.
var names = map[endpoint]string{
	{"kalypso-minio", "minio", 9000}:           "kalypso-minio",
	{"mimir-gateway", "mimir", 80}:             "kalypso-mimir",
	{"tempo", "tempo", 3200}:                   "kalypso-tempo",
	{"tempo", "tempo", 4317}:                   "kalypso-tempo",
	{"tempo", "tempo", 4318}:                   "kalypso-tempo",
	{"loki-gateway", "loki", 80}:               "kalypso-loki",
	{"pyroscope", "pyroscope", 4040}:           "kalypso-pyroscope",
	{"kalypso-grafana", "grafana", 80}:         "kalypso-grafana",
	{"kalypso-collector", "otel-system", 4317}: "kalypso-collector",
	{"kalypso-collector", "otel-system", 4318}: "kalypso-collector",
}

// What our values call each other is in the table of names; that upstream charts
// make these Services is TestUpstreamEndpoints.
func TestEndpoints(t *testing.T) {
	used := map[endpoint]bool{}
	eachProfile(t, func(t *testing.T, r release) {
		for _, o := range rendered(t, r, withStandIns) {
			for _, e := range endpoints(o) {
				used[e] = true
				if names[e] == "" {
					t.Errorf("%v calls %v, which no chart of the stack is to serve", o, e)
				}
			}
		}
	})
	for _, e := range []endpoint{{"kalypso-minio", "minio", 9000}, {"mimir-gateway", "mimir", 80}, {"tempo", "tempo", 3200},
		{"loki-gateway", "loki", 80}, {"pyroscope", "pyroscope", 4040}} {
		if !used[e] {
			t.Errorf("nobody calls %v", e)
		}
	}
}

// Nothing is vendored, and no second description of the stack lies about.
func TestNothingVendored(t *testing.T) {
	for _, name := range charts.Names() {
		for _, path := range []string{"charts", "Chart.lock", "crds"} {
			if hasFile(t, name, path) {
				t.Errorf("%s has %s", name, path)
			}
		}
		for _, path := range []string{"values.yaml", "values.schema.json", "templates/NOTES.txt"} {
			if !hasFile(t, name, path) {
				t.Errorf("%s has no %s", name, path)
			}
		}
	}
	if _, err := os.Stat("../../kustomization.yaml"); err == nil {
		t.Error("there is a kustomization.yaml")
	}
}

// A profile changes what is there: a key of its own would be a misspelled one,
// as long as the schema of upstream does not tell.
func TestProfilesChangeKnownComponents(t *testing.T) {
	for name, p := range pins {
		for _, profile := range []string{"small", "ha"} {
			path := "profiles/" + profile + ".yaml"
			if !hasFile(t, name, path) {
				continue
			}
			own := parseYAML(t, string(readFile(t, name, "values.yaml")))[p.name].(map[string]any)
			changed, ok := parseYAML(t, string(readFile(t, name, path)))[p.name].(map[string]any)
			if !ok {
				t.Errorf("%s/%s has nothing under %s", name, path, p.name)
			}
			for _, key := range slices.Sorted(maps.Keys(changed)) {
				known := own[key] != nil || slices.Contains([]string{"replicaCount", "podDisruptionBudget", "pdb"}, key)
				if !known {
					t.Errorf("%s/%s: %s.%s is not in values.yaml", name, path, p.name, key)
				}
			}
		}
	}
}
