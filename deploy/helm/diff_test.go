package helm_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/deploy/helm"
)

func configMap(name, yaml string) helm.Object {
	return helm.Object{APIVersion: "v1", Kind: "ConfigMap", Name: name, YAML: yaml}
}

func secret(yaml string) helm.Object {
	return helm.Object{APIVersion: "v1", Kind: "Secret", Name: "s", YAML: yaml}
}

func workload(yaml string) helm.Object {
	return helm.Object{APIVersion: "apps/v1", Kind: "Deployment", Name: "d", YAML: yaml}
}

func TestDiff(t *testing.T) {
	for name, test := range map[string]struct {
		before, after []helm.Object
		want          []string // name, a mark, the text
	}{
		"the same in other words is no difference": {
			before: []helm.Object{configMap("a", "kind: ConfigMap\ndata: {x: v}\n")},
			after:  []helm.Object{configMap("a", "data:\n  x: \"v\"\nkind: ConfigMap\n")},
		},
		"a value": {
			before: []helm.Object{configMap("a", "data: {x: one}\n")},
			after:  []helm.Object{configMap("a", "data: {x: two}\n")},
			want:   []string{"a changes\n@@ -1,2 +1,2 @@\n data:\n-  x: one\n+  x: two\n"},
		},
		"new and gone": {
			before: []helm.Object{configMap("a", "data: {x: one}\n")},
			after:  []helm.Object{configMap("b", "data: {x: one}\n")},
			want:   []string{"b new\n", "a gone\n"},
		},
		"what a Secret holds is hidden, that it changes is not": {
			before: []helm.Object{secret("kind: Secret\ndata: {same: c2FtZQ==, other: b25l}\n")},
			after:  []helm.Object{secret("kind: Secret\ndata: {same: c2FtZQ==, other: dHdv, more: bW9yZQ==}\n")},
			want:   []string{"s changes\n@@ -1,4 +1,5 @@\n data:\n-  other: (hidden)\n+  more: (hidden)\n+  other: (hidden, another)\n   same: (hidden)\n kind: Secret\n"},
		},
		"a version's label is a difference with nothing to show": {
			before: []helm.Object{configMap("a", "metadata: {labels: {helm.sh/chart: c-1, app: a}}\n")},
			after:  []helm.Object{configMap("a", "metadata: {labels: {helm.sh/chart: c-2, app: a}}\n")},
			want:   []string{"a changes\n"},
		},
		"a checksum of configuration restarts pods": {
			before: []helm.Object{workload("spec: {template: {metadata: {annotations: {checksum/config: aaa}}}}\n")},
			after:  []helm.Object{workload("spec: {template: {metadata: {annotations: {checksum/config: bbb}}}}\n")},
			want:   []string{"d changes, pods restart\n"},
		},
		"more replicas restart none": {
			before: []helm.Object{workload("spec: {replicas: 1, template: {spec: {x: v}}}\n")},
			after:  []helm.Object{workload("spec: {replicas: 2, template: {spec: {x: v}}}\n")},
			want:   []string{"d changes\n@@ -1,5 +1,5 @@\n spec:\n-  replicas: 1\n+  replicas: 2\n   template:\n     spec:\n       x: v\n"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			differences, err := helm.Diff(test.before, test.after)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, d := range differences {
				text := d.Name
				switch {
				case d.Before == "":
					text += " new\n"
				case d.After == "":
					text += " gone\n"
				case d.Pods:
					text += " changes, pods restart\n" + d.Text()
				default:
					text += " changes\n" + d.Text()
				}
				got = append(got, text)
			}
			if diff := cmp.Diff(got, test.want); diff != "" {
				t.Errorf("differences (-got +want):\n%s", diff)
			}
			for _, value := range []string{"c2FtZQ", "b25l", "dHdv", "bW9yZQ"} {
				if strings.Contains(strings.Join(got, ""), value) {
					t.Errorf("the value %s of a Secret is shown", value)
				}
			}
		})
	}
}

func TestEqualValues(t *testing.T) {
	for name, test := range map[string]struct {
		a, b helm.Values
		want bool
	}{
		"none and empty":              {nil, helm.Values{}, true},
		"order is none":               {helm.Values{"a": 1, "b": helm.Values{"c": true}}, helm.Values{"b": helm.Values{"c": true}, "a": 1}, true},
		"numbers as JSON brings them": {helm.Values{"a": int64(2)}, helm.Values{"a": 2.0}, true},
		"another value":               {helm.Values{"a": 1}, helm.Values{"a": 2}, false},
		"null is a value":             {helm.Values{"a": nil}, helm.Values{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := helm.Equal(test.a, test.b); got != test.want {
				t.Errorf("equal is %v", got)
			}
		})
	}
}

func TestKept(t *testing.T) {
	kept := configMap("a", "metadata: {annotations: {helm.sh/resource-policy: keep}}\n")
	gone := configMap("a", "metadata: {annotations: {other: keep}}\n")
	if !kept.Kept() || gone.Kept() {
		t.Errorf("kept: %v and %v", kept.Kept(), gone.Kept())
	}
	if crd := (helm.Object{Kind: "CustomResourceDefinition"}); !crd.Kept() {
		t.Error("a CRD goes with its release, and every object of its kind")
	}
}
