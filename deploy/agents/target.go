// Package agents asks the agents of a cluster, together, about a part of it: a
// Deployment, a namespace, a node, a process. It finds which pods that is, on
// which nodes they are, and the agent of each; asks all at once, and adds up what
// they answer.
//
// It knows how agents are reached (Reacher) and asked (profiler/api), and nothing
// of how profiles are made and shown.
package agents

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/kalypso-dev/kalypso/profiler"
)

// Kind is the sort of thing that a target is.
type Kind string

// The kinds, as they are typed.
const (
	Cluster     Kind = "cluster"
	Deployment  Kind = "deploy"
	StatefulSet Kind = "sts"
	DaemonSet   Kind = "ds"
	Job         Kind = "job"
	Pod         Kind = "pod"
	Namespace   Kind = "ns"
	Node        Kind = "node"
	Process     Kind = "pid"
)

// Target is what is asked about.
type Target struct {
	Kind      Kind
	Name      string
	Namespace string       // of what is in one
	PID       profiler.PID // of a Process, in the node's own numbers; Name is the node
}

// String is the target as it is typed.
func (t Target) String() string {
	switch t.Kind {
	case Cluster:
		return "the cluster"
	case Process:
		return fmt.Sprintf("pid:%d@%s", t.PID, t.Name)
	}
	return string(t.Kind) + "/" + t.Name
}

// Forms are the ways to write a target.
const Forms = "deploy/NAME, sts/NAME, ds/NAME, job/NAME, pod/NAME, ns/NAME, node/NAME, pid:N@NODE"

// kindOf takes kubectl's words.
func kindOf(word string) (Kind, bool) {
	switch strings.ToLower(word) {
	case "deploy", "deployment", "deployments":
		return Deployment, true
	case "sts", "statefulset", "statefulsets":
		return StatefulSet, true
	case "ds", "daemonset", "daemonsets":
		return DaemonSet, true
	case "job", "jobs":
		return Job, true
	case "po", "pod", "pods":
		return Pod, true
	case "ns", "namespace", "namespaces":
		return Namespace, true
	case "no", "node", "nodes":
		return Node, true
	}
	return "", false
}

// ParseTarget reads a target; an empty one is the whole cluster. What is in a
// namespace is in the one that is given.
func ParseTarget(text, namespace string) (Target, error) {
	if text == "" {
		return Target{Kind: Cluster}, nil
	}
	fault := func(why string) error {
		return &profiler.Fault{What: fmt.Sprintf("there is no target %q", text), Why: errors.New(why), Fix: "targets are " + Forms + "; none is the whole cluster"}
	}
	if rest, ok := strings.CutPrefix(text, "pid:"); ok {
		number, node, ok := strings.Cut(rest, "@")
		if !ok || node == "" {
			return Target{}, fault("a process is one of a node: pid:4242@NODE")
		}
		n, err := strconv.ParseUint(number, 10, 64)
		if err != nil || n == 0 || n > math.MaxInt32 {
			return Target{}, fault("a PID is a whole number above 0")
		}
		return Target{Kind: Process, Name: node, PID: profiler.PID(n)}, nil
	}
	word, name, ok := strings.Cut(text, "/")
	if !ok || name == "" {
		return Target{}, fault("a target is a kind and a name")
	}
	kind, ok := kindOf(word)
	if !ok {
		return Target{}, fault(fmt.Sprintf("there is no kind %q", word))
	}
	t := Target{Kind: kind, Name: name}
	if kind != Namespace && kind != Node {
		t.Namespace = namespace
	}
	return t, nil
}

// Scope is a target as it is now: its pods, and the nodes that they are on.
type Scope struct {
	Target
	Pods  []corev1.Pod // none of a node, a process, and the cluster
	Nodes []string     // in order
	// Labels are the attributes that agents know the target's processes by; none
	// is all of a node.
	Labels []profiler.Attribute
}

// Title is the target with how much of the cluster it is.
func (s *Scope) Title() string {
	nodes := plural(len(s.Nodes), "node")
	switch s.Kind {
	case Cluster:
		return nodes
	case Node, Process:
		return s.String()
	}
	return fmt.Sprintf("%s (%s on %s)", s.String(), plural(len(s.Pods), "pod"), nodes)
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// Find looks a target up. A target without running pods is a fault.
func Find(ctx context.Context, client kubernetes.Interface, t Target) (*Scope, error) {
	return find(ctx, client, t, false)
}

// FindPast looks a target up as it may have been: pods that it had were on any
// node, and there may be none of it left.
func FindPast(ctx context.Context, client kubernetes.Interface, t Target) (*Scope, error) {
	return find(ctx, client, t, true)
}

func find(ctx context.Context, client kubernetes.Interface, t Target, past bool) (*Scope, error) {
	s := &Scope{Target: t}
	switch t.Kind {
	case Cluster:
		return s, s.placeAnywhere(ctx, client)
	case Node, Process:
		if _, err := client.CoreV1().Nodes().Get(ctx, t.Name, metav1.GetOptions{}); err != nil {
			return nil, s.missing(err, "kubectl get nodes")
		}
		s.Nodes = []string{t.Name}
		return s, nil
	}
	if err := s.findPods(ctx, client); err != nil {
		return nil, err
	}
	if past && s.known() {
		return s, s.placeAnywhere(ctx, client)
	}
	return s, s.place()
}

// known says that agents know the target's processes by more than its namespace.
func (s *Scope) known() bool { return s.Kind == Namespace || len(s.Labels) > 1 }

// placeAnywhere takes every node.
func (s *Scope) placeAnywhere(ctx context.Context, client kubernetes.Interface) error {
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return asked("list the nodes", err)
	}
	for i := range nodes.Items {
		s.Nodes = append(s.Nodes, nodes.Items[i].Name)
	}
	slices.Sort(s.Nodes)
	return nil
}

// findPods finds the target's pods, and what agents know them by.
func (s *Scope) findPods(ctx context.Context, client kubernetes.Interface) error {
	ns := s.Namespace
	var selector *metav1.LabelSelector
	var err error
	attribute := ""
	switch s.Kind {
	case Namespace:
		ns = s.Name
		_, err = client.CoreV1().Namespaces().Get(ctx, s.Name, metav1.GetOptions{})
	case Pod:
		p, err := client.CoreV1().Pods(ns).Get(ctx, s.Name, metav1.GetOptions{})
		if err != nil {
			return s.missing(err, s.elsewhere(ctx, client))
		}
		s.Pods = []corev1.Pod{*p}
		s.Labels = podLabels(ns, s.Pods)
		return nil
	case Deployment:
		attribute = "k8s.deployment.name"
		o, e := client.AppsV1().Deployments(ns).Get(ctx, s.Name, metav1.GetOptions{})
		if err = e; err == nil {
			selector = o.Spec.Selector
		}
	case StatefulSet:
		attribute = "k8s.statefulset.name"
		o, e := client.AppsV1().StatefulSets(ns).Get(ctx, s.Name, metav1.GetOptions{})
		if err = e; err == nil {
			selector = o.Spec.Selector
		}
	case DaemonSet:
		attribute = "k8s.daemonset.name"
		o, e := client.AppsV1().DaemonSets(ns).Get(ctx, s.Name, metav1.GetOptions{})
		if err = e; err == nil {
			selector = o.Spec.Selector
		}
	case Job:
		o, e := client.BatchV1().Jobs(ns).Get(ctx, s.Name, metav1.GetOptions{})
		if err = e; err == nil {
			selector = o.Spec.Selector
		}
	}
	if err != nil {
		return s.missing(err, s.elsewhere(ctx, client))
	}
	var options metav1.ListOptions
	if selector != nil {
		chosen, err := metav1.LabelSelectorAsSelector(selector)
		if err != nil {
			return fmt.Errorf("read the selector of %s: %w", s, err)
		}
		options.LabelSelector = chosen.String()
	}
	pods, err := client.CoreV1().Pods(ns).List(ctx, options)
	if err != nil {
		return asked("list the pods of "+s.String(), err)
	}
	s.Pods = slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool {
		return p.Spec.NodeName == "" || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	})
	switch {
	case s.Kind == Namespace:
		s.Labels = []profiler.Attribute{{Key: "k8s.namespace.name", Value: ns}}
	case attribute != "": // pods that come meanwhile are of it, too
		s.Labels = []profiler.Attribute{{Key: "k8s.namespace.name", Value: ns}, {Key: attribute, Value: s.Name}}
	default:
		s.Labels = podLabels(ns, s.Pods)
	}
	return nil
}

// podLabels are what agents know pods of a namespace by.
func podLabels(namespace string, pods []corev1.Pod) []profiler.Attribute {
	labels := []profiler.Attribute{{Key: "k8s.namespace.name", Value: namespace}}
	for i := range pods {
		labels = append(labels, profiler.Attribute{Key: "k8s.pod.name", Value: pods[i].Name})
	}
	return labels
}

// place finds the nodes of the target's pods.
func (s *Scope) place() error {
	for i := range s.Pods {
		if node := s.Pods[i].Spec.NodeName; node != "" && !slices.Contains(s.Nodes, node) {
			s.Nodes = append(s.Nodes, node)
		}
	}
	slices.Sort(s.Nodes)
	if len(s.Nodes) > 0 {
		return nil
	}
	fix := s.lister()
	if s.Kind != Namespace {
		fix = fmt.Sprintf("kubectl -n %s describe %s %s", s.Namespace, s.Kind, s.Name)
	}
	return &profiler.Fault{What: s.String() + " has no running pods", Why: errors.New("there is nothing to profile"), Fix: fix}
}

// elsewhere is where there is one of that name, or the command that lists all.
func (s *Scope) elsewhere(ctx context.Context, client kubernetes.Interface) string {
	if s.Kind == Namespace {
		return "kubectl get ns"
	}
	namespaces, err := client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{Limit: 100})
	for i := range present(namespaces, err).Items {
		if ns := namespaces.Items[i].Name; ns != s.Namespace && slices.Contains(Names(ctx, client, string(s.Kind), ns), s.Name) {
			return fmt.Sprintf("-n %s     has one", ns)
		}
	}
	return s.lister()
}

// lister is the command that lists what the target is one of.
func (s *Scope) lister() string {
	if s.Kind == Namespace {
		return "kubectl get pods -n " + s.Name
	}
	return "kubectl get " + string(s.Kind) + " -A     and name its namespace with -n"
}

func (s *Scope) missing(err error, fix string) error {
	if !apierrors.IsNotFound(err) {
		return asked("see "+s.String(), err)
	}
	what := fmt.Sprintf("there is no %s", s.String())
	switch s.Kind {
	case Process:
		what = "there is no node " + s.Name
	case Namespace, Node:
	default:
		what += " in namespace " + s.Namespace
	}
	return &profiler.Fault{What: what, Fix: fix}
}

// asked explains an answer of the API server.
func asked(what string, err error) error {
	if apierrors.IsForbidden(err) {
		return &profiler.Fault{What: "you may not " + what, Why: err, Fix: "ask who runs the cluster for the rights of view, and for pods/portforward in the namespace of the agents"}
	}
	return fmt.Errorf("%s: %w", what, err)
}

// Names are those of a kind that are there, for completion: without any where the
// cluster does not tell.
func Names(ctx context.Context, client kubernetes.Interface, word, namespace string) (names []string) {
	kind, _ := kindOf(word)
	options := metav1.ListOptions{Limit: 500}
	add := func(o metav1.Object) { names = append(names, o.GetName()) }
	switch kind {
	case Deployment:
		list, err := client.AppsV1().Deployments(namespace).List(ctx, options)
		for i := range present(list, err).Items {
			add(&list.Items[i])
		}
	case StatefulSet:
		list, err := client.AppsV1().StatefulSets(namespace).List(ctx, options)
		for i := range present(list, err).Items {
			add(&list.Items[i])
		}
	case DaemonSet:
		list, err := client.AppsV1().DaemonSets(namespace).List(ctx, options)
		for i := range present(list, err).Items {
			add(&list.Items[i])
		}
	case Job:
		list, err := client.BatchV1().Jobs(namespace).List(ctx, options)
		for i := range present(list, err).Items {
			add(&list.Items[i])
		}
	case Pod:
		list, err := client.CoreV1().Pods(namespace).List(ctx, options)
		for i := range present(list, err).Items {
			add(&list.Items[i])
		}
	case Namespace:
		list, err := client.CoreV1().Namespaces().List(ctx, options)
		for i := range present(list, err).Items {
			add(&list.Items[i])
		}
	case Node:
		list, err := client.CoreV1().Nodes().List(ctx, options)
		for i := range present(list, err).Items {
			add(&list.Items[i])
		}
	}
	return names
}

// present is a list, empty where there was an error.
func present[T any](list *T, err error) *T {
	if err != nil || list == nil {
		return new(T)
	}
	return list
}
