package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kalypso-dev/kalypso/deploy/kube"
)

// lookAgain is the time between two looks at nodes that are not ready.
const lookAgain = 2 * time.Second

// ready waits until the server of a context answers and all its nodes are
// ready: whoever uses the context next finds a cluster.
func ready(name string) func(context.Context) error {
	return func(ctx context.Context) error {
		tick := time.NewTicker(lookAgain)
		defer tick.Stop()
		for {
			err := nodesReady(ctx, name)
			if err == nil {
				return nil
			}
			select {
			case <-ctx.Done():
				if errors.Is(ctx.Err(), context.DeadlineExceeded) {
					return fmt.Errorf("%w: %w", ctx.Err(), err)
				}
				return ctx.Err()
			case <-tick.C:
			}
		}
	}
}

func nodesReady(ctx context.Context, name string) error {
	c, err := kube.Open(ctx, kube.Config{Context: name})
	if err != nil {
		return err
	}
	nodes, err := c.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list the nodes: %w", err)
	}
	if len(nodes.Items) == 0 {
		return errors.New("there is no node")
	}
	for i := range nodes.Items {
		if why := notReady(&nodes.Items[i]); why != "" {
			return fmt.Errorf("node %s is not ready: %s", nodes.Items[i].Name, why)
		}
	}
	return nil
}

func notReady(node *corev1.Node) string {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			if c.Status == corev1.ConditionTrue {
				return ""
			}
			return c.Message
		}
	}
	return "it has not said so"
}
