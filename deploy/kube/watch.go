package kube

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/kalypso-dev/kalypso/profiler"
)

// watched keeps what matters of some namespaces as the API server has it.
type watched struct {
	cluster    *Cluster
	namespaces map[string]*namespace
	changed    chan struct{} // holds one word when something did
	cancel     context.CancelFunc

	mu   sync.Mutex
	last error // of the watches: nil once they work again
}

// namespace is one namespace, by informers.
type namespace struct {
	factory  informers.SharedInformerFactory
	required []cache.SharedIndexInformer
	helpful  []cache.SharedIndexInformer // only tell why
}

// kinds that are watched, and what they need beside themselves to tell reasons.
const (
	deployment  = "Deployment"
	statefulSet = "StatefulSet"
	daemonSet   = "DaemonSet"
	job         = "Job"
	pod         = "Pod"
	claim       = "PersistentVolumeClaim"
)

// watch begins to watch what the objects need, and waits until all of it has
// been heard once.
func (c *Cluster) watch(ctx context.Context, objects []Ref) (*watched, error) {
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w := &watched{cluster: c, namespaces: map[string]*namespace{}, changed: make(chan struct{}, 1), cancel: cancel}
	kinds := map[string][]string{}
	for _, o := range objects {
		switch o.Kind {
		case deployment, statefulSet, daemonSet, job, pod, claim:
			if !slices.Contains(kinds[o.Namespace], o.Kind) {
				kinds[o.Namespace] = append(kinds[o.Namespace], o.Kind)
			}
		}
	}
	for name, needed := range kinds {
		w.namespaces[name] = w.open(name, needed)
	}
	for _, n := range w.namespaces {
		n.factory.StartWithContext(inner)
	}
	for name, n := range w.namespaces {
		for _, informer := range n.required {
			if err := w.heard(ctx, name, informer); err != nil {
				w.stop()
				return nil, err
			}
		}
	}
	w.heardWhy(ctx)
	return w, nil
}

// open makes the informers of a namespace.
func (w *watched) open(name string, kinds []string) *namespace {
	f := informers.NewSharedInformerFactoryWithOptions(w.cluster.Client, 0, informers.WithNamespace(name), informers.WithTransform(dropManagedFields))
	n := &namespace{factory: f}
	n.required = append(n.required, f.Core().V1().Pods().Informer())
	for _, kind := range kinds {
		switch kind {
		case deployment:
			n.required = append(n.required, f.Apps().V1().Deployments().Informer(), f.Apps().V1().ReplicaSets().Informer())
		case statefulSet:
			n.required = append(n.required, f.Apps().V1().StatefulSets().Informer())
		case daemonSet:
			n.required = append(n.required, f.Apps().V1().DaemonSets().Informer())
		case job:
			n.required = append(n.required, f.Batch().V1().Jobs().Informer())
		}
	}
	// Claims and events only help to tell why; without the right to see them
	// everything else still works.
	claims, events := f.Core().V1().PersistentVolumeClaims().Informer(), f.Core().V1().Events().Informer()
	n.helpful = append(n.helpful, events)
	if slices.Contains(kinds, claim) {
		n.required = append(n.required, claims)
	} else {
		n.helpful = append(n.helpful, claims)
	}
	for _, informer := range slices.Concat(n.required, n.helpful) {
		_, _ = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { w.wake() },
			UpdateFunc: func(any, any) { w.wake() },
			DeleteFunc: func(any) { w.wake() },
		})
		required := slices.Contains(n.required, informer)
		_ = informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
			if required {
				w.failed(err)
			}
		})
	}
	return n
}

// dropManagedFields is half the size of most objects.
func dropManagedFields(o any) (any, error) {
	if meta, ok := o.(interface{ SetManagedFields([]metaFields) }); ok {
		meta.SetManagedFields(nil)
	}
	return o, nil
}

func (w *watched) wake() {
	w.failed(nil)
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

func (w *watched) failed(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = err
}

func (w *watched) lastError() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

// heardEvery is how often it is looked whether an informer has its first list;
// client-go tells only those who ask.
const heardEvery = 10 * time.Millisecond

// heard waits for the first list of an informer.
func (w *watched) heard(ctx context.Context, namespace string, informer cache.SharedIndexInformer) error {
	tick := time.NewTicker(heardEvery)
	defer tick.Stop()
	for !informer.HasSynced() {
		err := w.lastError()
		if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
			return forbidden("see what runs in namespace "+namespace, err)
		}
		select {
		case <-ctx.Done():
			if err == nil {
				err = ended(ctx)
			}
			return &profiler.Fault{What: "the API server does not tell what is in namespace " + namespace, Why: oneLine(err), Fix: "kubectl get --raw /readyz?verbose     tells how the server is"}
		case <-tick.C:
		}
	}
	return nil
}

// whyLimit is how long reasons are waited for, which one may not be allowed to
// see.
const whyLimit = time.Second

// heardWhy waits for the first list of what only tells why, for a while.
func (w *watched) heardWhy(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, whyLimit)
	defer cancel()
	tick := time.NewTicker(heardEvery)
	defer tick.Stop()
	for _, n := range w.namespaces {
		for _, informer := range n.helpful {
			for !informer.HasSynced() {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
			}
		}
	}
}

// forbidden is the error of missing rights.
func forbidden(what string, err error) error {
	return &profiler.Fault{What: "you may not " + what, Why: oneLine(err), Fix: "kalypsoctl preflight --only rbac     lists the rights that are missing", Kind: ErrForbidden}
}

// stop ends the watches and waits for them.
func (w *watched) stop() {
	w.cancel()
	for _, n := range w.namespaces {
		n.factory.Shutdown()
	}
}

// look gives the state of each object, in their order.
func (w *watched) look(ctx context.Context, objects []Ref) ([]State, error) {
	states := make([]State, 0, len(objects))
	views := map[string]*view{}
	for _, o := range objects {
		n := w.namespaces[o.Namespace]
		if n == nil || !isWatched(o.Kind) {
			s, err := w.cluster.ask(ctx, o)
			if err != nil {
				return nil, err
			}
			states = append(states, s)
			continue
		}
		v := views[o.Namespace]
		if v == nil {
			v = n.view(time.Now())
			views[o.Namespace] = v
		}
		states = append(states, v.state(o))
	}
	return states, nil
}

func isWatched(kind string) bool {
	switch kind {
	case deployment, statefulSet, daemonSet, job, pod, claim:
		return true
	}
	return false
}

// view is a namespace at one moment.
type view struct {
	now          time.Time
	pods         []*corev1.Pod
	events       []*corev1.Event
	claims       []*corev1.PersistentVolumeClaim
	deployments  []*appsv1.Deployment
	replicaSets  []*appsv1.ReplicaSet
	statefulSets []*appsv1.StatefulSet
	daemonSets   []*appsv1.DaemonSet
	jobs         []*batchv1.Job
}

// view takes what the informers have. Those that were not asked for are empty.
func (n *namespace) view(now time.Time) *view {
	v := &view{now: now}
	all := labels.Everything()
	core, apps := n.factory.Core().V1(), n.factory.Apps().V1()
	v.pods, _ = core.Pods().Lister().List(all)
	v.events, _ = core.Events().Lister().List(all)
	v.claims, _ = core.PersistentVolumeClaims().Lister().List(all)
	v.deployments, _ = apps.Deployments().Lister().List(all)
	v.replicaSets, _ = apps.ReplicaSets().Lister().List(all)
	v.statefulSets, _ = apps.StatefulSets().Lister().List(all)
	v.daemonSets, _ = apps.DaemonSets().Lister().List(all)
	v.jobs, _ = n.factory.Batch().V1().Jobs().Lister().List(all)
	slices.SortFunc(v.pods, func(a, b *corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(v.events, func(a, b *corev1.Event) int { return EventTime(b).Compare(EventTime(a)) }) // newest first
	return v
}

// EventTime is when an event last happened.
func EventTime(e *corev1.Event) time.Time {
	switch {
	case e.Series != nil && !e.Series.LastObservedTime.IsZero():
		return e.Series.LastObservedTime.Time
	case !e.LastTimestamp.IsZero():
		return e.LastTimestamp.Time
	case !e.EventTime.IsZero():
		return e.EventTime.Time
	}
	return e.CreationTimestamp.Time
}

// event gives the newest event about an object with one of these reasons.
func (v *view) event(kind, name string, reasons ...string) *corev1.Event {
	for _, e := range v.events {
		if e.InvolvedObject.Kind == kind && e.InvolvedObject.Name == name && slices.Contains(reasons, e.Reason) {
			return e
		}
	}
	return nil
}

// missing is the state of an object that is not there.
func missing(o Ref) State {
	return State{Ref: o, Reason: fmt.Sprintf("there is no %s %s", o.Kind, o.Name)}
}
