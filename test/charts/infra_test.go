package charts

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const infraChart = "kalypso-infra"

func infraObjects(t *testing.T, values map[string]any) []object {
	t.Helper()
	r := release{name: infraChart, namespace: "ops", chart: infraChart}
	manifest, err := render(load(t, infraChart), r, values)
	if err != nil {
		t.Fatal(err)
	}
	manifest, _, _ = strings.Cut(manifest, "\x00")
	objects := decode(t, manifest, r)
	checkObjects(t, objects)
	return objects
}

// infraJob is the one Job that installs.
func infraJob(t *testing.T, values map[string]any) object {
	t.Helper()
	for _, o := range infraObjects(t, values) {
		if o.kind == "Job" {
			return o
		}
	}
	t.Fatal("there is no Job")
	return object{}
}

func TestInfraInstallsWithItsSettings(t *testing.T) {
	values := map[string]any{"profile": "small", "args": []any{"--adopt=minio"},
		"settings": map[string]any{"istio-gateway": map[string]any{"enabled": false}}}
	objects := infraObjects(t, values)
	settings := parseYAML(t, text(find(t, objects, "ConfigMap", infraChart).fields, "data", "kalypso.yaml"))
	if diff := cmp.Diff(settings, values["settings"]); diff != "" {
		t.Errorf("settings (-got +want):\n%s", diff)
	}
	spec := podSpec(infraJob(t, values))
	install := list(spec, "containers")[0]
	for _, want := range []any{"install", "--yes", "--reset-values", "--profile=small", "--file=/etc/kalypso/kalypso.yaml", "--charts=/charts", "--adopt=minio"} {
		if !slices.Contains(list(install, "args"), want) {
			t.Errorf("it does not say %v: %v", want, list(install, "args"))
		}
	}
	if image := text(install, "image"); image != "ghcr.io/kalypso-dev/kalypsoctl:"+ours(t) {
		t.Errorf("its image is %s", image)
	}
	if at(spec, "securityContext", "runAsNonRoot") != true || at(install, "securityContext", "readOnlyRootFilesystem") != true {
		t.Errorf("its pod is %v", spec)
	}
}

// Upstream charts come from the network, or from a volume and then from nowhere
// else.
func TestInfraTakesChartsFromAVolume(t *testing.T) {
	spec := podSpec(infraJob(t, map[string]any{}))
	if first := list(spec, "initContainers"); len(first) != 1 || !slices.Equal(list(first[0], "args")[:2], []any{"charts", "pull"}) {
		t.Errorf("charts are fetched by %v", first)
	}
	spec = podSpec(infraJob(t, map[string]any{"charts": map[string]any{"volume": map[string]any{"hostPath": map[string]any{"path": "/srv/charts"}}}}))
	if first := list(spec, "initContainers"); len(first) != 0 {
		t.Errorf("there is a volume, and %v", first)
	}
	if !slices.ContainsFunc(list(spec, "volumes"), func(v any) bool {
		return text(v, "name") == "charts" && text(v, "hostPath", "path") == "/srv/charts"
	}) {
		t.Errorf("its volumes are %v", list(spec, "volumes"))
	}
}

// The same values are the same Job, which does not run again; others are another,
// because a Job cannot be changed.
func TestInfraRunsAgainForChanges(t *testing.T) {
	before := infraJob(t, map[string]any{}).name
	if infraJob(t, map[string]any{}).name != before {
		t.Error("the same values make another Job")
	}
	for what, values := range map[string]map[string]any{
		"a profile":  {"profile": "small"},
		"a setting":  {"settings": map[string]any{"loki": map[string]any{"enabled": false}}},
		"an image":   {"image": map[string]any{"tag": "9.9.9"}},
		"a flag":     {"args": []any{"--skip=loki"}},
		"a variable": {"env": []any{map[string]any{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}}},
	} {
		if infraJob(t, values).name == before {
			t.Errorf("%s: the Job has the same name, and would be refused", what)
		}
	}
}

// Whoever installs roles has to have all rights that are in them. The binding goes
// with the release, and can be somebody else's.
func TestInfraRights(t *testing.T) {
	objects := infraObjects(t, map[string]any{})
	binding := find(t, objects, "ClusterRoleBinding", "ops-"+infraChart)
	if text(binding.fields, "roleRef", "name") != "cluster-admin" {
		t.Errorf("it is bound to %v", at(binding.fields, "roleRef"))
	}
	want := []any{map[string]any{"kind": "ServiceAccount", "name": infraChart, "namespace": "ops"}}
	if diff := cmp.Diff(list(binding.fields, "subjects"), want); diff != "" {
		t.Errorf("who is bound (-got +want):\n%s", diff)
	}
	own := infraObjects(t, map[string]any{"rbac": map[string]any{"create": false}, "serviceAccount": map[string]any{"create": false, "name": "installer"}})
	for _, o := range own {
		if o.kind != "Job" && o.kind != "ConfigMap" {
			t.Errorf("there is %v, and the account is somebody else's", o)
		}
		if o.kind == "Job" && podSpec(o)["serviceAccountName"] != "installer" {
			t.Errorf("it runs as %v", podSpec(o)["serviceAccountName"])
		}
	}
}
