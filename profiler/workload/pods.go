package workload

import (
	"reflect"
	"slices"
	"sync"
	"time"
)

// keepGone is how long a pod is known after its end: samples of it may be in a
// window that is still open, and a window takes up to ten minutes.
const keepGone = 12 * time.Minute

// Limits of what is known. The kubelet runs 110 pods unless it is told otherwise;
// a pod that fails again and again has a new container each time.
const (
	maxPods       = 4096
	maxContainers = 64 // of one pod
)

// Pods are the pods of one node: those that run, and for some minutes those that
// did. Whoever learns of pods tells it; whoever meets a container asks it.
type Pods struct {
	mu          sync.Mutex
	pods        map[string]*podEntry // by UID
	byContainer map[string]Container
	changed     chan struct{} // closed with the next change
	wanted      chan struct{}
	learning    bool
}

type podEntry struct {
	pod  *Pod
	gone time.Time // zero: it is there
}

// NewPods knows no pods.
func NewPods() *Pods {
	return &Pods{
		pods: map[string]*podEntry{}, byContainer: map[string]Container{},
		changed: make(chan struct{}), wanted: make(chan struct{}, 1),
	}
}

// Find gives the container that a cgroup path lies in, the innermost of those that
// are known. Where the pod is known and the container is not yet, its name is
// empty: Kubernetes tells of a container about a second after its start.
func (p *Pods) Find(cgroup string) (Container, bool) {
	if p == nil {
		return Container{}, false
	}
	return p.FindIn(Containers(cgroup))
}

// FindIn gives the innermost container that is known.
func (p *Pods) FindIn(all []Identity) (Container, bool) {
	if p == nil {
		return Container{}, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range slices.Backward(all) {
		if c, ok := p.find(id); ok {
			return c, true
		}
	}
	return Container{}, false
}

func (p *Pods) find(id Identity) (Container, bool) {
	if c, ok := p.byContainer[id.ContainerID]; ok && (id.PodUID == "" || c.Pod.UID == id.PodUID) {
		return c, true
	}
	if e := p.pods[id.PodUID]; e != nil {
		return Container{PodContainer{ID: id.ContainerID}, e.pod}, true
	}
	return Container{}, false
}

// List gives all pods that are known, those that are gone among them.
func (p *Pods) List() []*Pod {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]*Pod, 0, len(p.pods))
	for _, e := range p.pods {
		list = append(list, e.pod)
	}
	return list
}

// Changed gives a channel that is closed when something else is known.
func (p *Pods) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

// Want says that a container was met which is not known; Wanted hears of it.
func (p *Pods) Want() {
	select {
	case p.wanted <- struct{}{}:
	default: // it is known already
	}
}

// Wanted gives a value after Want.
func (p *Pods) Wanted() <-chan struct{} { return p.wanted }

// Set tells of a pod as it is now.
func (p *Pods) Set(pod *Pod, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.set(pod)
	p.finish(now)
}

// Remove tells that a pod is gone.
func (p *Pods) Remove(uid string, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.pods[uid]; e != nil && e.gone.IsZero() {
		e.gone = now
	}
	p.finish(now)
}

// Replace tells of all pods that there are.
func (p *Pods) Replace(pods []*Pod, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	there := map[string]bool{}
	for _, pod := range pods {
		there[pod.UID] = true
		p.set(pod)
	}
	for uid, e := range p.pods {
		if !there[uid] && e.gone.IsZero() {
			e.gone = now
		}
	}
	p.finish(now)
}

// SetLearning tells whether it is heard of pods now, and Learning gives that.
func (p *Pods) SetLearning(yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.learning = yes
}

// Learning is false of no Pods at all.
func (p *Pods) Learning() bool {
	if p == nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.learning
}

// Len is how many pods are there, and how many more are still known.
func (p *Pods) Len() (there, gone int) {
	if p == nil {
		return 0, 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.pods {
		if e.gone.IsZero() {
			there++
		} else {
			gone++
		}
	}
	return there, gone
}

// set puts a pod in the place of what was known of it. The containers that it
// had before stay its own: its status tells of the last two of a name only.
func (p *Pods) set(pod *Pod) {
	if e := p.pods[pod.UID]; e != nil {
		for _, c := range e.pod.Containers {
			if !slices.ContainsFunc(pod.Containers, func(n PodContainer) bool { return n.ID == c.ID }) {
				pod.Containers = append(pod.Containers, c)
			}
		}
		for _, c := range pod.Containers[min(len(pod.Containers), maxContainers):] {
			delete(p.byContainer, c.ID)
		}
	}
	pod.Containers = pod.Containers[:min(len(pod.Containers), maxContainers)]
	if e := p.pods[pod.UID]; e != nil && reflect.DeepEqual(e.pod, pod) {
		e.gone = time.Time{} // most of what a status tells is not kept
		return
	}
	p.pods[pod.UID] = &podEntry{pod: pod}
	for _, c := range pod.Containers {
		p.byContainer[c.ID] = Container{c, pod}
	}
}

// finish forgets what ended long ago, or first where there is too much, and wakes
// who waits.
func (p *Pods) finish(now time.Time) {
	for uid, e := range p.pods {
		if !e.gone.IsZero() && now.Sub(e.gone) > keepGone {
			p.forget(uid)
		}
	}
	for len(p.pods) > maxPods {
		p.forget(p.oldest())
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

// oldest is the pod that is gone longest, or any if none is gone.
func (p *Pods) oldest() string {
	var oldest string
	for uid, e := range p.pods {
		if o := p.pods[oldest]; o == nil || !e.gone.IsZero() && (o.gone.IsZero() || e.gone.Before(o.gone)) {
			oldest = uid
		}
	}
	return oldest
}

func (p *Pods) forget(uid string) {
	for _, c := range p.pods[uid].pod.Containers {
		delete(p.byContainer, c.ID)
	}
	delete(p.pods, uid)
}
