package verify

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/kalypso-dev/kalypso/deploy/component"
)

func TestInstalledIsWhatHasAReleaseOrItsService(t *testing.T) {
	service := func(namespace, name string) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	}
	// Its Service has the wrong name, or is gone: the proof has to say so.
	nameless := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{
		Namespace: "tempo", Name: "sh.helm.release.v1.tempo.v1", Labels: map[string]string{"owner": "helm", "name": release("tempo")},
	}}
	client := fake.NewClientset(nameless, service("loki", "loki-gateway"), service("mimir", "loki-gateway"), service("otel-system", "kalypso-collector"))
	got, err := Installed(t.Context(), client, component.All())
	if diff := cmp.Diff(component.Names(got), []string{"tempo", "loki", "collector"}); err != nil || diff != "" {
		t.Errorf("%v, (-got +want):\n%s", err, diff)
	}
	client.PrependReactor("list", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, "", nil)
	})
	got, err = Installed(t.Context(), client, component.All())
	if diff := cmp.Diff(component.Names(got), []string{"loki", "collector"}); err != nil || diff != "" {
		t.Errorf("who may see no Secret: %v, (-got +want):\n%s", err, diff)
	}
	client.PrependReactor("get", "services", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "services"}, "x", nil)
	})
	if got, err := Installed(t.Context(), client, component.All()); err == nil {
		t.Errorf("who may not look finds %v", component.Names(got))
	}
}

func TestEachProofIsAboutAComponent(t *testing.T) {
	for _, id := range IDs() {
		if !slices.Contains(component.Names(component.All()), ComponentOf(id)) {
			t.Errorf("%s is about %q", id, ComponentOf(id))
		}
	}
}

// release is the name of a component's release.
func release(name string) string {
	for _, c := range component.All() {
		if c.Name == name {
			return c.Release
		}
	}
	return ""
}
