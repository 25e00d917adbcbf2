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

// buckets that a configuration names, by chart. Whoever creates buckets needs this
// very list.
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
