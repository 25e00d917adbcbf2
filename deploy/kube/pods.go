package kube

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Workload says whether objects of a kind make pods.
func Workload(kind string) bool {
	switch kind {
	case deployment, statefulSet, daemonSet, job:
		return true
	}
	return false
}

// Pods gives the pods of workloads, by name. Workloads that are not there, and
// objects that are none, have no pods.
func (c *Cluster) Pods(ctx context.Context, workloads []Ref) ([]*corev1.Pod, error) {
	seen := map[string]bool{}
	var out []*corev1.Pod
	for _, w := range workloads {
		if !Workload(w.Kind) {
			continue
		}
		o, err := c.get(ctx, w)
		if apierrors.IsNotFound(err) || meta.IsNoMatchError(err) {
			continue
		}
		if err != nil {
			return nil, readFault("see "+w.String(), err)
		}
		selector, err := selectorOf(o)
		if err != nil {
			return nil, fmt.Errorf("read the selector of %s: %w", w, err)
		}
		pods, err := c.Client.CoreV1().Pods(w.Namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			return nil, readFault("list the pods of "+w.String(), err)
		}
		for i := range pods.Items {
			p := &pods.Items[i]
			if key := p.Namespace + "/" + p.Name; !seen[key] {
				seen[key] = true
				out = append(out, p)
			}
		}
	}
	slices.SortFunc(out, func(a, b *corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func selectorOf(o *unstructured.Unstructured) (string, error) {
	var w struct {
		Spec struct {
			Selector *metav1.LabelSelector `json:"selector"`
		} `json:"spec"`
	}
	into(o, &w)
	s, err := metav1.LabelSelectorAsSelector(w.Spec.Selector)
	if err != nil {
		return "", err
	}
	return s.String(), nil
}
