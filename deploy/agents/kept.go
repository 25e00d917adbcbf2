package agents

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kalypso-dev/kalypso/deploy/kube"
)

// Kept reaches pods as Forwarded does, for who asks them again and again: a way stays
// open until it ends by itself, as it does with its pod, until there is no answer on
// it, or until Close. A node that went away ends nothing: TCP waits for it.
type Kept struct {
	open func(context.Context, *corev1.Pod, int) (way, error)

	mu   sync.Mutex
	ways map[types.UID]way // by pod
}

type way struct {
	address string
	ended   <-chan struct{}
	close   func()
}

// Keep opens ways in a cluster.
func Keep(c *kube.Cluster) *Kept {
	return &Kept{ways: map[types.UID]way{}, open: func(ctx context.Context, pod *corev1.Pod, port int) (way, error) {
		f, err := c.ForwardPod(ctx, pod.Namespace, pod.Name, port, 0)
		if err != nil {
			return way{}, err
		}
		return way{f.Addr, f.Ended, f.Close}, nil
	}}
}

// Reach implements Reacher.
func (k *Kept) Reach(ctx context.Context, pod *corev1.Pod, port int) (string, func(bool), error) {
	k.mu.Lock()
	w, ok := k.ways[pod.UID]
	k.mu.Unlock()
	if ok {
		select {
		case <-w.ended:
			ok = false
		default:
		}
	}
	if !ok {
		var err error
		if w, err = k.open(ctx, pod, port); err != nil {
			return "", nil, err
		}
		k.mu.Lock()
		k.ways[pod.UID] = w
		k.mu.Unlock()
	}
	return w.address, func(answered bool) {
		if !answered {
			k.mu.Lock()
			delete(k.ways, pod.UID)
			k.mu.Unlock()
			w.close()
		}
	}, nil
}

// Close ends all ways.
func (k *Kept) Close() {
	for _, w := range k.ways {
		w.close()
	}
}
