package preflight

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/kalypso-dev/kalypso/deploy/check"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/profiler"
)

func TestEveryCheckHasAPage(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range append(New(Config{}).Checks(), Doctor()) {
		page, err := os.ReadFile("../../docs/checks/cluster/" + c.ID + ".md")
		if err != nil {
			t.Errorf("%s has no page: %v", c.ID, err)
			continue
		}
		want := map[check.Severity]string{check.Required: "**Required**", check.Limit: "**Limit**"}[c.Severity]
		if !strings.HasPrefix(string(page), "# "+c.ID+"\n\n"+want) {
			t.Errorf("the page of %s does not begin with its name and severity", c.ID)
		}
		if seen[c.ID] || c.Title == "" || c.Effect == "" || c.Run == nil && c.ID != "doctor" {
			t.Errorf("%s: there twice, or not whole", c.ID)
		}
		seen[c.ID] = true
	}
	pages, err := filepath.Glob("../../docs/checks/cluster/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("%d pages: %v", len(pages), err)
	}
	for _, p := range pages {
		if id := strings.TrimSuffix(filepath.Base(p), ".md"); !seen[id] {
			t.Errorf("%s is the page of no check", p)
		}
	}
}

const objects = `apiVersion: apps/v1
kind: StatefulSet
metadata: {name: ingester}
spec:
  replicas: 2
  template:
    spec:
      initContainers: [{name: init, resources: {requests: {memory: 100Mi}}}]
      containers:
        - {name: a, resources: {requests: {memory: 1Gi, cpu: 250m}}}
        - {name: b, resources: {requests: {memory: 512Mi}}}
  volumeClaimTemplates:
    - {spec: {resources: {requests: {storage: 5Gi}}}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  template:
    spec:
      hostPID: true
      containers: [{name: a, resources: {requests: {memory: 256Mi, cpu: 100m}}}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: buckets}
spec: {template: {spec: {containers: [{name: a, resources: {requests: {memory: 10Gi}}}]}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {storageClassName: fast, resources: {requests: {storage: 1Gi}}}
`

func demandIn(t *testing.T) *demand {
	t.Helper()
	var all []helm.Object
	for _, text := range strings.Split(objects, "---\n") {
		kind, rest, _ := strings.Cut(strings.SplitN(text, "kind: ", 2)[1], "\n")
		name := strings.TrimSuffix(strings.SplitN(rest, "name: ", 2)[1], "}")
		name, _, _ = strings.Cut(name, "}")
		all = append(all, helm.Object{Kind: kind, Name: name, YAML: text})
	}
	d, err := demandOf(all)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDemand(t *testing.T) {
	d := demandIn(t)
	var got []string
	for _, w := range d.pods {
		got = append(got, w.name+" "+w.ask.Memory.String()+" "+w.ask.CPU.String())
	}
	if diff := cmp.Diff(got, []string{"ingester 1536Mi 250m", "agent 256Mi 100m"}); diff != "" {
		t.Errorf("pods; Jobs end and are left out (-got +want):\n%s", diff)
	}
	if got, want := d.volumes(), int64(11<<30); got != want {
		t.Errorf("volumes %d, want %d", got, want)
	}
	if d.agentTemplate() == nil {
		t.Error("the pod with hostPID is not found")
	}
}

func node(name, memory string, requested map[string]string) *kube.Node {
	n := &kube.Node{Node: &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, Requested: map[string]kube.Room{}}
	n.Allocatable = kube.Room{CPU: resource.MustParse("4"), Memory: resource.MustParse(memory)}
	for namespace, memory := range requested {
		n.Requested[namespace] = kube.Room{Memory: resource.MustParse(memory)}
	}
	return n
}

func TestPack(t *testing.T) {
	tests := []struct {
		name     string
		nodes    []*kube.Node
		ours     map[string]bool
		homeless []string
		missing  string
	}{
		{"everything fits", []*kube.Node{node("a", "4Gi", nil)}, nil, nil, "0"},
		{"what others have requested is not free", []*kube.Node{node("a", "4Gi", map[string]string{"other": "1Gi"})}, nil, []string{"ingester (1.5 GiB)"}, "1536Mi"},
		{"what an earlier installation requested is", []*kube.Node{node("a", "4Gi", map[string]string{"mimir": "3Gi"})}, map[string]bool{"mimir": true}, nil, "0"},
		{"a sum that fits is not enough", []*kube.Node{node("a", "1500Mi", nil), node("b", "1500Mi", nil), node("c", "1500Mi", nil)}, nil, []string{"ingester (1.5 GiB)", "ingester (1.5 GiB)"}, "3Gi"},
		{"a DaemonSet wants room on every node", []*kube.Node{node("a", "4Gi", nil), node("b", "100Mi", nil)}, nil, []string{"agent (256 MiB)"}, "256Mi"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := pack(demandIn(t), tt.nodes, tt.ours, memoryKind())
			if diff := cmp.Diff(got.homeless, tt.homeless); diff != "" {
				t.Errorf("without a node (-got +want):\n%s", diff)
			}
			want := resource.MustParse(tt.missing)
			if got.missing != want.Value() {
				t.Errorf("missing %d, want %s", got.missing, tt.missing)
			}
		})
	}
}

func TestStorage(t *testing.T) {
	class := func(name string, isDefault bool) *storagev1.StorageClass {
		c := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: "rancher.io/local-path"}
		if isDefault {
			c.Annotations = map[string]string{defaultClass: "true"}
		}
		return c
	}
	made := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv", Annotations: map[string]string{"pv.kubernetes.io/provisioned-by": "kubernetes.io/host-path"}}}
	tests := []struct {
		name    string
		objects []runtime.Object
		claims  []volume
		state   check.State
		detail  string
		fix     string
	}{
		{"a default", []runtime.Object{class("local-path", true)}, nil, check.Passed, "default class local-path", ""},
		{"two defaults", []runtime.Object{class("a", true), class("b", true)}, nil, check.Passed, "2 default classes (a, b): the newest is taken", ""},
		{"a class that is not the default", []runtime.Object{class("local-path", false)}, nil, check.Failed, "no storage class is the default (there is local-path), and 1 claim wants one",
			`kubectl patch storageclass local-path -p '{"metadata":{"annotations":{"storageclass.kubernetes.io/is-default-class":"true"}}}'`},
		{"no class, and something that makes volumes", []runtime.Object{made}, nil, check.Failed, "there is no storage class", `"provisioner":"kubernetes.io/host-path"}' | kubectl apply -f -`},
		{"a driver is known before any volume is there", []runtime.Object{&storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: "csi.example.org"}}}, nil, check.Failed, "there is no storage class", `"provisioner":"csi.example.org"}'`},
		{"nothing at all", nil, nil, check.Failed, "there is no storage class, and 1 claim wants one", "kubectl apply -f https://raw.githubusercontent.com/rancher/local-path-provisioner/"},
		{"a class that is named and not there", []runtime.Object{class("local-path", true)}, []volume{{name: "data", class: new("fast"), count: 1}}, check.Failed, "data asks for storage class fast, which is not there", "kubectl get storageclass"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.claims == nil {
				tt.claims = []volume{{name: "data", size: resource.MustParse("1Gi"), count: 1}}
			}
			p := &Preflight{Config: Config{Cluster: &kube.Cluster{Client: fake.NewClientset(tt.objects...)}}, demand: &demand{claims: tt.claims}}
			got := p.storage(context.Background())
			if got.State != tt.state || !strings.Contains(got.Detail, tt.detail) || !strings.Contains(got.Fix, tt.fix) {
				t.Errorf("%v %q, fix %q\nwant %v %q, fix %q", got.State, got.Detail, got.Fix, tt.state, tt.detail, tt.fix)
			}
		})
	}
}

func TestOlderThan(t *testing.T) {
	for version, want := range map[string]bool{"5.14.0-503.el9": true, "5.15.0-122-generic": false, "4.19.0": true, "6.8.0-64-generic": false, "5.4": true} {
		if got := olderThan(kernelVersion.FindStringSubmatch(version), oldestKernel); got != want {
			t.Errorf("%s: %v", version, got)
		}
	}
}

func TestRightsAreTold(t *testing.T) {
	got := joined([]right{
		{group: "apps", resource: "deployments", namespace: "tempo", verbs: "create"},
		{resource: "secrets", namespace: "tempo", verbs: "create"},
		{resource: "secrets", namespace: "loki", verbs: "create"},
		{group: "apps", resource: "deployments", namespace: "loki", verbs: "create"},
		{resource: "secrets", namespace: "minio", verbs: "create"},
		{resource: "secrets", verbs: "list"},
		{resource: "nodes", verbs: "list"},
		{resource: "secrets", namespace: "tempo", verbs: "list"},
	})
	want := []string{
		"create in loki tempo: deployments.apps secrets",
		"create in minio: secrets",
		"list cluster-wide: nodes secrets",
		"list in tempo: secrets",
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}

func TestUnseen(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"what to do is told": {
			fmt.Errorf("render loki: %w", &profiler.Fault{What: "chart loki 1.0.0 is not in charts", Fix: "kalypsoctl charts pull -d charts"}),
			"not known: render loki: chart loki 1.0.0 is not in charts\nkalypsoctl charts pull -d charts",
		},
		"a time limit is said in words": {
			fmt.Errorf("read Secret: %w", context.DeadlineExceeded), "not known: no answer in time: read Secret: context deadline exceeded",
		},
		"others are as they are": {errors.New("gone"), "not known: gone"},
	} {
		if got := unseen(c.err); got.State != check.Skipped || got.Detail != c.want {
			t.Errorf("%s: %+v, want %q", name, got, c.want)
		}
	}
}
