package install

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/kalypso-dev/kalypso/deploy/kube"
)

// A namespace that does not go is given a minute, and is a fault of its own kind.
func TestANamespaceThatDoesNotGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "tempo"}, Status: corev1.NamespaceStatus{Phase: corev1.NamespaceTerminating}}
		ns.Spec.Finalizers = []corev1.FinalizerName{"example.org/held"}
		s := &Stack{Cluster: &kube.Cluster{Client: fake.NewClientset(ns)}, Timeout: time.Hour}
		began, said := time.Now(), 0
		err := s.ensureNamespace(t.Context(), step("tempo"), func(Event) { said++ })
		if !errors.Is(err, ErrTerminating) || !strings.Contains(err.Error(), "example.org/held") {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took < terminatingLimit || took > terminatingLimit+2*againAfter || said == 0 {
			t.Errorf("it took %s, and was told %d times", took, said)
		}
	})
}
