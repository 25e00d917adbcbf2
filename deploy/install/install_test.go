package install

import (
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/profiler"
)

func step(name string) *Step {
	for _, c := range component.All() {
		if c.Name == name {
			return &Step{Part: Part{Component: c}}
		}
	}
	panic("no component " + name)
}

func TestOwner(t *testing.T) {
	theirs := func(labels, annotations map[string]string) *metav1.PartialObjectMetadata {
		return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: annotations}}
	}
	byHelm := map[string]string{managedBy: "Helm"}
	for name, test := range map[string]struct {
		object *metav1.PartialObjectMetadata
		want   string
	}{
		"what is not there is nobody's":         {nil, ""},
		"our release's":                         {theirs(byHelm, map[string]string{releaseName: "cert-manager", releaseSpace: "cert-manager"}), ""},
		"our release's, with its label removed": {theirs(nil, map[string]string{releaseName: "cert-manager", releaseSpace: "cert-manager"}), "others made"},
		"another release's":                     {theirs(byHelm, map[string]string{releaseName: "cm", releaseSpace: "infra"}), "belongs to release cm of namespace infra"},
		"the same name elsewhere":               {theirs(byHelm, map[string]string{releaseName: "cert-manager", releaseSpace: "infra"}), "belongs to release cert-manager of namespace infra"},
		"made by kubectl":                       {theirs(nil, nil), "others made"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := owner(test.object, step("cert-manager")); got != test.want {
				t.Errorf("owner is %q, want %q", got, test.want)
			}
		})
	}
}

func TestRefuse(t *testing.T) {
	s := &Stack{Adopt: []string{"loki"}}
	foreign := map[string][]string{"cert-manager": {"a"}, "loki": {"b"}, "minio": {"c", "d"}, "tempo": nil}
	err := s.refuse([]*Step{step("cert-manager"), step("loki"), step("minio"), step("tempo")}, foreign)
	var fault *profiler.Fault
	if !errors.As(err, &fault) {
		t.Fatalf("the error is %v", err)
	}
	if want := "cannot install 2 components: things are there that kalypsoctl did not make"; fault.What != want {
		t.Errorf("what is %q", fault.What)
	}
	if want := "cert-manager: a\n       minio: c\n       minio: d"; fault.Why.Error() != want {
		t.Errorf("why is %q", fault.Why)
	}
	if !strings.HasPrefix(fault.Fix, "--adopt cert-manager,minio ") {
		t.Errorf("fix is %q", fault.Fix)
	}
	if err := s.refuse([]*Step{step("loki"), step("tempo")}, foreign); err != nil {
		t.Errorf("what is adopted is refused: %v", err)
	}
}

func TestSendFault(t *testing.T) {
	for name, test := range map[string]struct {
		text, what, fix string
	}{
		"a hook's job": {
			"failed post-install: 1 error occurred:\n\t* job cert-manager-startupapicheck failed: BackoffLimitExceeded\n\n",
			"a hook of cert-manager failed", "kubectl -n cert-manager logs job/cert-manager-startupapicheck ",
		},
		"a webhook": {
			`Internal error occurred: failed calling webhook "webhook.cert-manager.io": no endpoints available for service "cert-manager-webhook"`,
			"a webhook does not let the objects of cert-manager in", "kubectl get validatingwebhookconfigurations",
		},
		"others' things": {
			`Unable to continue with install: Service "x" in namespace "y" exists and cannot be imported into the current release: invalid ownership metadata`,
			"cannot install cert-manager: something is there that kalypsoctl did not make", "--adopt cert-manager ",
		},
		"rights": {
			`clusterroles.rbac.authorization.k8s.io is forbidden: User "u" cannot create resource`,
			"you may not install cert-manager", "kalypsoctl preflight --only rbac ",
		},
		"anything else": {"it rains", "cannot install cert-manager", "kalypsoctl install "},
	} {
		t.Run(name, func(t *testing.T) {
			var fault *profiler.Fault
			if err := sendFault(step("cert-manager"), errors.New(test.text)); !errors.As(err, &fault) {
				t.Fatalf("the error is %v", err)
			}
			if fault.What != test.what || !strings.HasPrefix(fault.Fix, test.fix) {
				t.Errorf("the fault is %q, fix %q", fault.What, fault.Fix)
			}
			if strings.Contains(fault.Why.Error(), "\n") {
				t.Errorf("why has lines: %q", fault.Why)
			}
		})
	}
}

func TestByproducts(t *testing.T) {
	meta := func(name string, labels, annotations map[string]string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: name, Labels: labels, Annotations: annotations}
	}
	owned := meta("x", nil, nil)
	owned.OwnerReferences = []metav1.OwnerReference{{Name: "y"}}
	for name, test := range map[string]struct {
		resource string
		object   metav1.ObjectMeta
		want     bool
	}{
		"Kubernetes' own":                 {"configmaps", meta("kube-root-ca.crt", nil, nil), true},
		"istiod's, in every namespace":    {"configmaps", meta("istio-ca-root-cert", nil, nil), true},
		"the operator's certificate":      {"secrets", meta("c", nil, map[string]string{"cert-manager.io/certificate-name": "opentelemetry-operator-serving-cert"}), true},
		"somebody's certificate":          {"secrets", meta("c", nil, map[string]string{"cert-manager.io/certificate-name": "c"}), false},
		"somebody's, for Istio":           {"secrets", meta("istio-ingressgateway-certs", nil, nil), false},
		"the account that each has":       {"serviceaccounts", meta("default", nil, nil), true},
		"a custom resource":               {"instrumentations", meta("x", nil, nil), false},
		"our credentials":                 {"secrets", meta("kalypso-s3", map[string]string{managedBy: manager}, nil), true},
		"a Secret of somebody":            {"secrets", meta("tls", nil, nil), false},
		"a pod of somebody":               {"pods", meta("istio-test", nil, nil), false},
		"what goes with its owner":        {"pods", owned, true},
		"a ConfigMap of somebody":         {"configmaps", meta("settings", nil, nil), false},
		"a release that Helm keeps there": {"secrets", meta("sh.helm.release.v1.x.v1", map[string]string{"owner": "helm"}, nil), false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := byproduct(test.resource, &metav1.PartialObjectMetadata{ObjectMeta: test.object}); got != test.want {
				t.Errorf("byproduct is %v", got)
			}
		})
	}
}

// TestOwns: what a release leaves is told by its label, and belongs to what was
// asked for, not to whatever else the catalogue has.
func TestOwns(t *testing.T) {
	var r Removal
	for _, c := range component.All() {
		if c.Name == "tempo" {
			r.named = append(r.named, c)
		}
	}
	claim := func(release string) *metav1.ObjectMeta {
		return &metav1.ObjectMeta{Name: "x", Labels: map[string]string{"app.kubernetes.io/instance": release}}
	}
	for name, test := range map[string]struct {
		namespace string
		object    *metav1.ObjectMeta
		want      bool
	}{
		"a volume of the release":           {"tempo", claim(r.named[0].Release), true},
		"one without a label":               {"tempo", &metav1.ObjectMeta{Name: "user-data"}, false},
		"one of another release":            {"tempo", claim("kalypso-minio"), false},
		"a namespace that nobody asked for": {"minio", claim("kalypso-minio"), false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := r.owns(test.namespace, test.object); got != test.want {
				t.Errorf("owns is %v", got)
			}
		})
	}
}

func TestTerminating(t *testing.T) {
	ns := &corev1.Namespace{Status: corev1.NamespaceStatus{Conditions: []corev1.NamespaceCondition{
		{Type: corev1.NamespaceDeletionDiscoveryFailure, Status: corev1.ConditionFalse, Message: "all discovered"},
		{Type: corev1.NamespaceFinalizersRemaining, Status: corev1.ConditionTrue, Message: "Some content in the namespace has finalizers remaining: example.org/held in 1 resource instances"},
	}}}
	if got := terminating(ns); got != "Some content in the namespace has finalizers remaining: example.org/held in 1 resource instances" {
		t.Errorf("it says %q", got)
	}
	if got := terminating(&corev1.Namespace{Spec: corev1.NamespaceSpec{Finalizers: []corev1.FinalizerName{"kubernetes"}}}); got != "finalizer kubernetes is not done" {
		t.Errorf("without conditions it says %q", got)
	}
}

// A trial has to be an object, of the group that the component brings.
func TestTrials(t *testing.T) {
	for _, c := range component.All() {
		if c.Trial == "" {
			continue
		}
		group := ""
		for _, g := range c.Groups {
			if strings.Contains(c.Trial, "apiVersion: "+g+"/") {
				group = g
			}
		}
		if group == "" {
			t.Errorf("the trial of %s is of none of its groups %v:\n%s", c.Name, c.Groups, c.Trial)
		}
	}
}

// TestChangedForever: what Kubernetes would refuse after half of a release is
// sent is found in the plan.
func TestChangedForever(t *testing.T) {
	set := func(size, image, replicas string) helm.Object {
		return helm.Object{Kind: "StatefulSet", Name: "x", YAML: `
spec:
  serviceName: x
  replicas: ` + replicas + `
  template: {spec: {containers: [{name: x, image: "` + image + `"}]}}
  volumeClaimTemplates: [{metadata: {name: data}, spec: {resources: {requests: {storage: ` + size + `}}}}]
`}
	}
	for name, test := range map[string]struct {
		before, after helm.Object
		want          string
	}{
		"another size of volume":        {set("2Gi", "a", "1"), set("10Gi", "a", "1"), "volumeClaimTemplates"},
		"another image, more replicas":  {set("2Gi", "a", "1"), set("2Gi", "b", "3"), ""},
		"a name that its pods go by":    {set("2Gi", "a", "1"), helm.Object{YAML: "spec: {serviceName: y}"}, "volumeClaimTemplates"},
		"nothing of a kind can be read": {helm.Object{YAML: "spec: {}"}, helm.Object{YAML: "spec: {}"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := changedForever(test.before, test.after); err != nil || got != test.want {
				t.Errorf("got %q, %v, want %q", got, err, test.want)
			}
		})
	}
}

// TestCheckStore: a store that is somebody else's has to be named by those that
// keep their data in it.
func TestCheckStore(t *testing.T) {
	uses := func(name, host string) *Step {
		s := step(name)
		s.Manifests = &helm.Manifests{Objects: []helm.Object{{Kind: "ConfigMap", YAML: "data: {endpoint: " + host + ":9000}"}}}
		return s
	}
	steps := []*Step{uses("mimir", "kalypso-minio.minio.svc.cluster.local"), uses("loki", "s3.example.org")}
	var fault *profiler.Fault
	if err := (&Stack{Store: true}).checkStore(steps); !errors.As(err, &fault) || !strings.HasPrefix(fault.What, "mimir would store in kalypso-minio.minio.svc") {
		t.Errorf("got %v", err)
	}
	if err := (&Stack{Store: true}).checkStore(steps[1:]); err != nil {
		t.Errorf("what names another store is refused: %v", err)
	}
	if err := (&Stack{}).checkStore(steps); err != nil {
		t.Errorf("our own store is refused: %v", err)
	}
}
