package kube

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	helpers "k8s.io/component-helpers/resource"
)

// Room is an amount of what pods ask for.
type Room struct {
	CPU    resource.Quantity
	Memory resource.Quantity
}

// Add adds another amount, n times.
func (r *Room) Add(o Room, n int64) {
	cpu, memory := o.CPU.MilliValue()*n, o.Memory.Value()*n
	r.CPU.Add(*resource.NewMilliQuantity(cpu, resource.DecimalSI))
	r.Memory.Add(*resource.NewQuantity(memory, resource.BinarySI))
}

// Less is the amount without another one.
func (r Room) Less(o Room) Room {
	left := Room{CPU: r.CPU.DeepCopy(), Memory: r.Memory.DeepCopy()}
	left.CPU.Sub(o.CPU)
	left.Memory.Sub(o.Memory)
	return left
}

// Requests is what a pod asks for.
func Requests(p *corev1.Pod) Room {
	r := helpers.PodRequests(p, helpers.PodResourcesOptions{})
	return Room{CPU: r[corev1.ResourceCPU], Memory: r[corev1.ResourceMemory]}
}

// Node is a node that takes pods.
type Node struct {
	*corev1.Node
	Allocatable Room
	Requested   map[string]Room // of its pods, by namespace
}

// Free is what nobody has asked for.
func (n *Node) Free() Room {
	left := n.Allocatable.Less(Room{})
	for _, r := range n.Requested {
		left = left.Less(r)
	}
	return left
}

// Nodes gives the nodes that take pods, and what is asked of them.
func (c *Cluster) Nodes(ctx context.Context) ([]*Node, error) {
	nodes, err := c.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, readFault("list the nodes", err)
	}
	pods, err := c.Client.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "status.phase!=Succeeded,status.phase!=Failed"})
	if err != nil {
		return nil, readFault("list the pods of all namespaces", err)
	}
	var out []*Node
	for i := range nodes.Items {
		n := &nodes.Items[i]
		if !takesPods(n) {
			continue
		}
		node := &Node{Node: n, Requested: map[string]Room{}, Allocatable: Room{CPU: n.Status.Allocatable[corev1.ResourceCPU], Memory: n.Status.Allocatable[corev1.ResourceMemory]}}
		for j := range pods.Items {
			if p := &pods.Items[j]; p.Spec.NodeName == n.Name {
				sum := node.Requested[p.Namespace]
				sum.Add(Requests(p), 1)
				node.Requested[p.Namespace] = sum
			}
		}
		out = append(out, node)
	}
	return out, nil
}

// takesPods says whether the scheduler may give a node an ordinary pod.
func takesPods(n *corev1.Node) bool {
	if n.Spec.Unschedulable {
		return false
	}
	for _, t := range n.Spec.Taints {
		if t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute {
			return false
		}
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// readFault is the error of a question that the server did not answer.
func readFault(what string, err error) error {
	if apierrors.IsForbidden(err) {
		return forbidden(what, err)
	}
	return fmt.Errorf("%s: %w", what, oneLine(err))
}

// gap tells how much is missing for a pod that no node takes.
func (c *Cluster) gap(ctx context.Context, namespace, name string) string {
	p, err := c.Client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return ""
	}
	nodes, err := c.Nodes(ctx)
	if err != nil || len(nodes) == 0 {
		return ""
	}
	return largestGap(Requests(p), nodes)
}

// largestGap compares what is asked for with the node that has most of it free.
func largestGap(asks Room, nodes []*Node) string {
	memory, cpu := nodes[0], nodes[0]
	for _, n := range nodes[1:] {
		if free, most := n.Free(), memory.Free(); free.Memory.Cmp(most.Memory) > 0 {
			memory = n
		}
		if free, most := n.Free(), cpu.Free(); free.CPU.Cmp(most.CPU) > 0 {
			cpu = n
		}
	}
	if free := memory.Free().Memory; asks.Memory.Cmp(free) > 0 {
		return fmt.Sprintf("it asks for %s of memory, and the node with most of it free, %s, has %s of %s", Bytes(asks.Memory), memory.Name, Bytes(free), Bytes(memory.Allocatable.Memory))
	}
	if free := cpu.Free().CPU; asks.CPU.Cmp(free) > 0 {
		return fmt.Sprintf("it asks for %s CPU, and the node with most of it free, %s, has %s of %s", asks.CPU.String(), cpu.Name, free.String(), cpu.Allocatable.CPU.String())
	}
	return ""
}
