package verify

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/kalypso-dev/kalypso/deploy/component"
)

// stores are the components that proofs are about, by the proof's ID.
var stores = map[string]string{
	"metrics": "mimir", "logs": "loki", "traces": "tempo", "profiles": "pyroscope", "grafana": "grafana", "mesh": "istiod",
}

// ComponentOf is what a proof is about.
func ComponentOf(id string) string { return stores[id] }

// Installed gives those of the components that are there: those with a release of
// Helm, and those whose Service is there, however it was made. A component whose
// release is there and whose Service is not is one that nobody can call, which its
// proof has to find out.
func Installed(ctx context.Context, client kubernetes.Interface, components []component.Component) ([]component.Component, error) {
	var there []component.Component
	for _, c := range components {
		is, err := released(ctx, client, c)
		if err == nil && !is && len(c.Serves) > 0 {
			is, err = served(ctx, client, c)
		}
		if err != nil {
			return nil, err
		}
		if is {
			there = append(there, c)
		}
	}
	return there, nil
}

// released says whether Helm has a release, by the labels of the Secrets that it
// keeps it in. Who may not see Secrets goes by Services.
func released(ctx context.Context, client kubernetes.Interface, c component.Component) (bool, error) {
	list, err := client.CoreV1().Secrets(c.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "owner=helm,name=" + c.Release, Limit: 1})
	if apierrors.IsForbidden(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("see releases in namespace %s: %w", c.Namespace, err)
	}
	return len(list.Items) > 0, nil
}

func served(ctx context.Context, client kubernetes.Interface, c component.Component) (bool, error) {
	_, err := client.CoreV1().Services(c.Namespace).Get(ctx, c.Serves[0].Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("see Service %s in namespace %s: %w", c.Serves[0].Name, c.Namespace, err)
	}
	return true, nil
}
