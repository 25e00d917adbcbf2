package workload

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

const (
	uidA = "5cd8b7a1-0c2d-4e5f-8a9b-1c2d3e4f5a6b"
	uidB = "6ce9b7a1-0c2d-4e5f-8a9b-1c2d3e4f5a6b"
)

// id is a container's ID, and path the cgroup of it.
func id(n int) string                        { return fmt.Sprintf("%064x", n) }
func group(uid string, container int) string { return "/kubepods/pod" + uid + "/" + id(container) }

func newPod(uid, name string, containers ...int) *Pod {
	p := &Pod{UID: uid, Namespace: "shop", Name: name}
	for _, n := range containers {
		p.Containers = append(p.Containers, PodContainer{ID: id(n), Name: fmt.Sprint("c", n)})
	}
	return p
}

func TestFind(t *testing.T) {
	now := time.Now()
	pods := NewPods()
	pods.Set(newPod(uidA, "a", 1), now)
	for _, tt := range []struct{ name, cgroup, wantPod, wantContainer string }{
		{"a container", group(uidA, 1), "a", "c1"},
		{"the container's own groups", group(uidA, 1) + "/init.scope", "a", "c1"},
		{"a container that is not told of yet", group(uidA, 2), "a", ""},
		{"the pod's own group", "/kubepods/pod" + uidA, "a", ""},
		{"a pod of another node", group(uidB, 3), "", ""},
		{"a container with another pod's UID in its path", group(uidB, 1), "", ""},
		{"a container in the container", group(uidA, 1) + "/docker/" + id(9), "a", "c1"},
		{"a pod in the container", group(uidA, 1) + "/kubepods/pod" + uidB + "/" + id(9), "a", "c1"},
		{"a container by its ID alone", "/docker/" + id(1), "a", "c1"},
		{"a container in no pod", "/docker/" + id(7), "", ""},
		{"a unit", "/system.slice/nginx.service", "", ""},
		{"nothing", "", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, ok := pods.Find(tt.cgroup)
			if ok != (tt.wantPod != "") || ok && (c.Pod.Name != tt.wantPod || c.Name != tt.wantContainer) {
				t.Errorf("%v %+v", ok, c)
			}
		})
	}
	if _, ok := (*Pods)(nil).Find(group(uidA, 1)); ok {
		t.Error("a container is found where nobody is asked")
	}
}

// A pod that ends is known for some minutes, and then no more; so are containers
// that its status does not tell of any more.
func TestGonePodsAreKnownForMinutes(t *testing.T) {
	now := time.Now()
	pods := NewPods()
	pods.Replace([]*Pod{newPod(uidA, "a", 1), newPod(uidB, "b", 5)}, now)
	for n := 2; n < 5; n++ { // restarts: the last two are told of
		pods.Set(newPod(uidA, "a", n, n-1), now)
	}
	for n := 1; n < 5; n++ {
		if c, ok := pods.Find(group(uidA, n)); !ok || c.Name != fmt.Sprint("c", n) {
			t.Errorf("container %d of 4 is %+v", n, c)
		}
	}
	pods.Replace([]*Pod{newPod(uidB, "b", 5)}, now)
	if there, gone := pods.Len(); there != 1 || gone != 1 {
		t.Errorf("%d pods are there and %d gone, want 1 and 1", there, gone)
	}
	pods.Set(newPod(uidB, "b", 6), now.Add(keepGone))
	if c, ok := pods.Find(group(uidA, 1)); !ok || c.Pod.Name != "a" {
		t.Errorf("after %s: %+v", keepGone, c)
	}
	pods.Remove(uidB, now.Add(keepGone+time.Second))
	if c, ok := pods.Find(group(uidA, 1)); ok {
		t.Errorf("a pod is known for ever: %+v", c)
	}
	if c, ok := pods.Find(group(uidB, 6)); !ok || c.Name != "c6" {
		t.Errorf("a pod that has just ended is %+v", c)
	}
	if len(pods.byContainer) != 2 {
		t.Errorf("%d containers are kept of one pod with 2", len(pods.byContainer))
	}
	pods.Set(newPod(uidB, "b", 6), now.Add(keepGone+2*time.Second))
	if there, gone := pods.Len(); there != 1 || gone != 0 {
		t.Errorf("a pod that is told of again: %d there, %d gone", there, gone)
	}
}

func TestPodsAreBounded(t *testing.T) {
	now := time.Now()
	pods := NewPods()
	uid := func(n int) string { return fmt.Sprintf("00000000-0000-0000-0000-%012x", n) }
	for n := range maxPods + 100 {
		pods.Set(newPod(uid(n), "p", n), now)
		if n < 200 {
			pods.Remove(uid(n), now.Add(time.Duration(n)))
		}
	}
	if there, gone := pods.Len(); there+gone != maxPods || gone != 100 {
		t.Errorf("%d pods are there and %d gone, want %d in all and 100 gone", there, gone, maxPods)
	}
	if _, ok := pods.Find(group(uid(99), 99)); ok {
		t.Error("the pod that is gone longest is still known")
	}
	if len(pods.byContainer) != maxPods {
		t.Errorf("%d containers are kept of %d pods", len(pods.byContainer), maxPods)
	}
	for n := range 1000 { // a crash loop
		pods.Set(newPod(uidA, "a", n+1e6), now)
	}
	if got := len(pods.pods[uidA].pod.Containers); got != maxContainers {
		t.Errorf("%d containers of one pod are kept, want %d", got, maxContainers)
	}
	if _, ok := pods.byContainer[id(1e6)]; ok || len(pods.byContainer) > maxPods+maxContainers {
		t.Error("a container that was forgotten is still found")
	}
}

// A change of what is not kept changes nothing, so that a window has one profile
// of a container.
func TestUnchangedPods(t *testing.T) {
	pods := NewPods()
	pods.Set(newPod(uidA, "a", 1), time.Now())
	before, _ := pods.Find(group(uidA, 1))
	pods.Set(newPod(uidA, "a", 1), time.Now())
	if after, _ := pods.Find(group(uidA, 1)); after != before {
		t.Error("the same pod is another one")
	}
	changed := pods.Changed()
	renamed := newPod(uidA, "a", 1)
	renamed.Labels = map[string]string{nameLabel: strings.Repeat("b", 3)}
	pods.Set(renamed, time.Now())
	select {
	case <-changed:
	default:
		t.Error("who waits is not woken")
	}
	if after, _ := pods.Find(group(uidA, 1)); after == before || after.Pod.Labels[nameLabel] != "bbb" {
		t.Errorf("a new label is not there: %+v", after.Pod)
	}
}
