package charts

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const storeChart = "kalypso-minio"

func storeObjects(t *testing.T, values map[string]any) []object {
	t.Helper()
	r := release{name: storeChart, namespace: "minio", chart: storeChart}
	manifest, err := render(load(t, storeChart), r, values)
	if err != nil {
		t.Fatal(err)
	}
	manifest, _, _ = strings.Cut(manifest, "\x00")
	return decode(t, manifest, r)
}

func TestObjectStoreKinds(t *testing.T) {
	for kind, environment := range map[string]map[string]string{
		"minio":  {"MINIO_ROOT_USER": "rootUser", "MINIO_ROOT_PASSWORD": "rootPassword"},
		"rustfs": {"RUSTFS_ACCESS_KEY": "rootUser", "RUSTFS_SECRET_KEY": "rootPassword"},
	} {
		t.Run(kind, func(t *testing.T) {
			objects := storeObjects(t, map[string]any{"objectStore": map[string]any{"kind": kind}, "existingSecret": "mine"})
			if got := served(find(t, objects, "Service", storeChart)); !slices.Contains(got, endpoint{storeChart, "minio", 9000}) {
				t.Errorf("it serves %v", got)
			}
			o := find(t, objects, "StatefulSet", storeChart)
			c := list(podSpec(o), "containers")[0]
			got := map[string]string{}
			for _, e := range list(c, "env") {
				if ref := at(e, "valueFrom", "secretKeyRef"); ref != nil {
					got[text(e, "name")] = text(ref, "key")
					if text(ref, "name") != "mine" {
						t.Errorf("%s is of the Secret %s", text(e, "name"), text(ref, "name"))
					}
				}
			}
			if diff := cmp.Diff(got, environment); diff != "" {
				t.Errorf("credentials (-got +want):\n%s", diff)
			}
			if !strings.Contains(text(c, "image"), kind) {
				t.Errorf("its image is %s", text(c, "image"))
			}
			checkObjects(t, objects)
			for label, value := range at(o.fields, "spec", "selector", "matchLabels").(map[string]any) {
				if text(o.fields, "spec", "template", "metadata", "labels", label) != value {
					t.Errorf("the StatefulSet selects %s=%v, which its pods do not have", label, value)
				}
			}
		})
	}
	if objects := storeObjects(t, nest([]string{"objectStore", "kind"}, "external")); len(objects) != 0 {
		t.Errorf("an external store installs %v", objects)
	}
}

// Data outlives the release: it lies in a claim of the StatefulSet's, which Helm
// does not own.
func TestObjectStoreKeepsData(t *testing.T) {
	objects := storeObjects(t, map[string]any{"persistence": map[string]any{"size": "7Gi", "storageClassName": "fast"}})
	claims := list(find(t, objects, "StatefulSet", storeChart).fields, "spec", "volumeClaimTemplates")
	if len(claims) != 1 || text(claims[0], "spec", "resources", "requests", "storage") != "7Gi" || text(claims[0], "spec", "storageClassName") != "fast" {
		t.Errorf("its claims are %v", claims)
	}
	for _, o := range objects {
		if o.kind == "PersistentVolumeClaim" {
			t.Errorf("%v goes with the release", o)
		}
	}
}

// buckets that a configuration names, by chart. TestBucketsAreMade holds the Job
// against this very list.
var buckets = map[string][]string{
	"kalypso-mimir":     {"mimir-alertmanager", "mimir-blocks", "mimir-ruler"},
	"kalypso-tempo":     {"tempo-traces"},
	"kalypso-loki":      {"loki-admin", "loki-chunks", "loki-ruler"},
	"kalypso-pyroscope": {"pyroscope-data"},
}

func TestBuckets(t *testing.T) {
	for chart, want := range buckets {
		values := standInValues(t, chart, "")
		found := map[string]bool{}
		var walk func(v any, key string)
		walk = func(v any, key string) {
			m, _ := v.(map[string]any)
			for k, e := range m {
				if s, ok := e.(string); ok && (k == "bucket" || k == "bucket_name" || key == "bucketNames") {
					found[s] = true
				}
				walk(e, k)
			}
		}
		walk(values, "")
		if diff := cmp.Diff(slices.Sorted(maps.Keys(found)), want); diff != "" {
			t.Errorf("buckets of %s (-got +want):\n%s", chart, diff)
		}
	}
}

// bucketsJob is the Job that makes buckets, or none.
func bucketsJob(t *testing.T, values map[string]any) (job object, there bool) {
	t.Helper()
	for _, o := range storeObjects(t, values) {
		if o.kind == "Job" {
			checkObjects(t, []object{o})
			return o, true
		}
	}
	return object{}, false
}

// The buckets that backends store in are made in the store that they call,
// whichever it is, with its key and with no rights.
func TestBucketsAreMade(t *testing.T) {
	var want []string
	for _, names := range buckets {
		want = append(want, names...)
	}
	slices.Sort(want)
	external := map[string]any{"kind": "external", "external": map[string]any{"endpoint": "https://s3.example.org", "region": "eu-west-1"}}
	for kind, test := range map[string]struct {
		store map[string]any
		args  []string
	}{
		"minio":    {map[string]any{"kind": "minio"}, []string{"--endpoint=http://kalypso-minio.minio.svc.cluster.local:9000"}},
		"rustfs":   {map[string]any{"kind": "rustfs"}, []string{"--endpoint=http://kalypso-minio.minio.svc.cluster.local:9000"}},
		"external": {external, []string{"--endpoint=https://s3.example.org", "--region=eu-west-1"}},
	} {
		t.Run(kind, func(t *testing.T) {
			job, ok := bucketsJob(t, map[string]any{"objectStore": test.store, "existingSecret": "mine"})
			if !ok {
				t.Fatal("there is no Job")
			}
			c := containers(job)[0]
			var args []string
			for _, a := range list(c, "args") {
				args = append(args, a.(string))
			}
			if args[0] != "buckets" || !slices.Equal(args[1:1+len(test.args)], test.args) {
				t.Errorf("its arguments are %v", args)
			}
			names := slices.Sorted(slices.Values(args[1+len(test.args):]))
			if diff := cmp.Diff(names, want); diff != "" {
				t.Errorf("buckets (-got +want):\n%s", diff)
			}
			keys := map[string]string{}
			for _, e := range list(c, "env") {
				keys[text(e, "name")] = text(e, "valueFrom", "secretKeyRef", "name") + "/" + text(e, "valueFrom", "secretKeyRef", "key")
			}
			if diff := cmp.Diff(keys, map[string]string{"AWS_ACCESS_KEY_ID": "mine/rootUser", "AWS_SECRET_ACCESS_KEY": "mine/rootPassword"}); diff != "" {
				t.Errorf("environment (-got +want):\n%s", diff)
			}
			if image := text(c, "image"); image != "ghcr.io/kalypso-dev/kalypsoctl:"+ours(t) {
				t.Errorf("its image is %s", image)
			}
			spec := podSpec(job)
			if spec["automountServiceAccountToken"] != false || at(spec, "securityContext", "runAsNonRoot") != true || at(c, "securityContext", "readOnlyRootFilesystem") != true {
				t.Errorf("it may do more than it needs: %v, %v", spec, c)
			}
		})
	}
	for name, values := range map[string]map[string]any{
		"an external store without a URL": {"objectStore": map[string]any{"kind": "external"}},
		"buckets of somebody else":        {"buckets": map[string]any{"enabled": false}},
		"a chart that is off":             {"enabled": false},
	} {
		if _, ok := bucketsJob(t, values); ok {
			t.Errorf("%s: there is a Job", name)
		}
	}
}

// A Job cannot be changed, a hook would run late and only for who waits, and one
// that takes itself away is run again by Argo CD. And its pods are no server.
func TestBucketsJobCanBeAppliedAgain(t *testing.T) {
	name := func(values map[string]any) string {
		job, _ := bucketsJob(t, values)
		return job.name
	}
	before := name(map[string]any{})
	for what, values := range map[string]map[string]any{
		"another bucket":    {"buckets": map[string]any{"names": []any{"one"}}},
		"another image":     {"buckets": map[string]any{"image": map[string]any{"tag": "9.9.9"}}},
		"another Secret":    {"existingSecret": "mine"},
		"another node":      {"nodeSelector": map[string]any{"a": "b"}},
		"another pull rule": {"imagePullPolicy": "Always"},
	} {
		if name(values) == before {
			t.Errorf("%s: the Job has the same name, and would be refused", what)
		}
	}
	if name(map[string]any{"persistence": map[string]any{"size": "1Gi"}}) != before {
		t.Error("a larger volume makes another Job")
	}
	job, _ := bucketsJob(t, map[string]any{})
	if at(job.fields, "metadata", "annotations") != nil || at(job.fields, "spec", "ttlSecondsAfterFinished") != nil {
		t.Errorf("it is a hook or goes by itself: %v", job.fields)
	}
	selected := at(find(t, storeObjects(t, map[string]any{}), "Service", storeChart).fields, "spec", "selector").(map[string]any)
	labels, _ := at(job.fields, "spec", "template", "metadata", "labels").(map[string]any)
	if !slices.ContainsFunc(slices.Collect(maps.Keys(selected)), func(key string) bool { return labels[key] != selected[key] }) {
		t.Errorf("the Service selects the pods of the Job: %v", labels)
	}
}

// Keys come from the environment, which comes from one Secret.
func TestBackendsTakeKeysFromTheSecret(t *testing.T) {
	for chart := range buckets {
		values := standInValues(t, chart, "")
		keys, secret := map[string]bool{}, false
		var walk func(v any)
		walk = func(v any) {
			switch v := v.(type) {
			case map[string]any:
				if text(v, "secretRef", "name") == "kalypso-s3" {
					secret = true
				}
				for _, e := range v {
					walk(e)
				}
			case []any:
				for _, e := range v {
					walk(e)
				}
			case string:
				if strings.HasPrefix(v, "${AWS_") {
					keys[v] = true
				}
			}
		}
		walk(values)
		if diff := cmp.Diff(slices.Sorted(maps.Keys(keys)), []string{"${AWS_ACCESS_KEY_ID}", "${AWS_SECRET_ACCESS_KEY}"}); diff != "" || !secret {
			t.Errorf("%s: environment from the Secret: %v; variables (-got +want):\n%s", chart, secret, diff)
		}
	}
}
