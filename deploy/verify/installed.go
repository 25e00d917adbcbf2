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

// Installed gives those of the components whose Service is there: what others
// could call. It needs no right but to see Services.
func Installed(ctx context.Context, client kubernetes.Interface, components []component.Component) ([]component.Component, error) {
	var there []component.Component
	for _, c := range components {
		if len(c.Serves) == 0 {
			continue
		}
		_, err := client.CoreV1().Services(c.Namespace).Get(ctx, c.Serves[0].Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return nil, fmt.Errorf("see Service %s in namespace %s: %w", c.Serves[0].Name, c.Namespace, err)
		default:
			there = append(there, c)
		}
	}
	return there, nil
}
