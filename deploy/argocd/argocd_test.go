package argocd

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"sigs.k8s.io/yaml"

	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/plan"
)

var options = Options{
	Repo: "https://example.org/us/cluster.git", Revision: "main", Path: "stack",
	ChartRepo: "https://example.org/kalypso.git", ChartRevision: "v1.2.3", Namespace: "argocd",
}

func waves(t *testing.T) []plan.Wave {
	t.Helper()
	w, err := plan.Waves(component.All())
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// decode reads YAML into JSON's types.
func decode(t *testing.T, text string) map[string]any {
	t.Helper()
	var tree map[string]any
	if err := yaml.UnmarshalStrict([]byte(text), &tree); err != nil {
		t.Fatal(err)
	}
	return tree
}

// checkSchema holds every file against the schema of its kind, which allows no
// field that it does not know.
func checkSchema(t *testing.T, files Files) {
	t.Helper()
	data, err := os.ReadFile("testdata/schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var schemas map[string]any
	if err := json.Unmarshal(data, &schemas); err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("schema.json", schemas); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		tree := decode(t, text)
		schema, err := compiler.Compile("schema.json#/$defs/" + tree["kind"].(string))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(tree); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestApplicationSet(t *testing.T) {
	all := waves(t)
	files, err := ApplicationSet(options, all)
	if err != nil {
		t.Fatal(err)
	}
	checkSchema(t, files)
	if got := slices.Sorted(maps.Keys(files)); !slices.Equal(got, []string{"applicationset.yaml", "appproject.yaml"}) {
		t.Errorf("files %v", got)
	}
	var set struct {
		Spec applicationSetSpec `json:"spec"`
	}
	if err := yaml.Unmarshal([]byte(files["applicationset.yaml"]), &set); err != nil {
		t.Fatal(err)
	}
	// Every component is in the step of its wave, and no step is empty.
	inStep := map[string]int{}
	for i, s := range set.Spec.Strategy.RollingSync.Steps {
		for _, value := range s.MatchExpressions[0].Values {
			inStep[value] = i
		}
	}
	got := make([]plan.Wave, len(inStep))
	byName := map[string]component.Component{}
	for _, c := range component.All() {
		byName[c.Name] = c
	}
	for _, e := range set.Spec.Generators[0].List.Elements {
		step, ok := inStep[e.Wave]
		if !ok {
			t.Fatalf("%s is in wave %s, which no step has", e.Name, e.Wave)
		}
		got[step] = append(got[step], byName[e.Name])
	}
	if diff := cmp.Diff(got, all); diff != "" {
		t.Errorf("the steps are not the waves (-got +want):\n%s", diff)
	}
	sources := set.Spec.Template.Spec.Sources
	if len(sources) != 2 || sources[1].Ref != "values" || sources[0].Helm.ValueFiles[0] != "$values/stack/values/{{.name}}.yaml" || sources[0].Path != "charts/{{.chart}}" {
		t.Errorf("the chart and its values are not from two repositories: %+v", sources)
	}
	// With automated sync Argo CD refuses RollingSync.
	if set.Spec.Template.Spec.SyncPolicy.Automated != nil {
		t.Error("the Applications sync by themselves")
	}
}

func TestAppOfApps(t *testing.T) {
	files, err := AppOfApps(options, waves(t))
	if err != nil {
		t.Fatal(err)
	}
	checkSchema(t, files)
	want := []string{"application.yaml", "appproject.yaml"}
	for _, name := range component.Names(component.All()) {
		want = append(want, "apps/"+name+".yaml")
	}
	slices.Sort(want)
	if diff := cmp.Diff(slices.Sorted(maps.Keys(files)), want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	loki := decode(t, files["apps/loki.yaml"])
	if diff := cmp.Diff(loki["metadata"], any(map[string]any{
		"name": "kalypso-loki", "namespace": "argocd",
		"labels":      map[string]any{waveLabel: "2"},
		"annotations": map[string]any{waveOfApp: "2"},
		"finalizers":  []any{finalizer},
	})); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	parent := decode(t, files["application.yaml"])["spec"].(map[string]any)["source"]
	if diff := cmp.Diff(parent, any(map[string]any{"repoURL": options.Repo, "targetRevision": "main", "path": "stack/apps"})); diff != "" {
		t.Errorf("the parent reads (-got +want):\n%s", diff)
	}
	for name, text := range files {
		if strings.Contains(text, "{{") {
			t.Errorf("%s has a template left:\n%s", name, text)
		}
	}
}

// TestProject: the stack's namespaces and the two repositories, nothing else.
func TestProject(t *testing.T) {
	files, err := ApplicationSet(options, waves(t))
	if err != nil {
		t.Fatal(err)
	}
	spec := decode(t, files["appproject.yaml"])["spec"].(map[string]any)
	if diff := cmp.Diff(spec["sourceRepos"], any([]any{options.ChartRepo, options.Repo})); diff != "" {
		t.Errorf("repositories (-got +want):\n%s", diff)
	}
	var got []string
	for _, d := range spec["destinations"].([]any) {
		got = append(got, d.(map[string]any)["namespace"].(string))
	}
	want := []string{"argocd"}
	for _, c := range component.All() {
		want = append(want, c.Namespace)
	}
	slices.Sort(want)
	if diff := cmp.Diff(got, slices.Compact(want)); diff != "" {
		t.Errorf("namespaces (-got +want):\n%s", diff)
	}
}
