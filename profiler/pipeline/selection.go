package pipeline

import (
	"errors"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/profiler/workload"
)

// Select is the part of Keep that needs to know no more than a cgroup: what it
// leaves out, the kernel side leaves out before anything is walked. What it lets
// through is asked about by Keep.
type Select struct {
	Pod     func(*workload.Pod) bool // whether it is wanted; nil: all are
	Outside bool                     // whether processes in no pod are
	// Cgroup says whether processes in a cgroup can be wanted, as far as its path
	// tells, and if not, whether none below it can be either. nil: all can.
	Cgroup func(path string) (wanted, below bool)
}

// verdicts is the kernel side as a selection needs it.
type verdicts interface {
	SetVerdict(bpf.Cgroup, bpf.Verdict) error
	DeleteVerdict(bpf.Cgroup) error
	Select(unified, old bool, share float64) error
}

// cgroups are the hierarchies as a selection needs them.
type cgroups interface {
	ID(workload.Place) (uint64, error)
	Hybrid() bool
	PodParents() []workload.Place
	PodsIn(parent workload.Place) map[string]workload.Place
}

// selection keeps the kernel's table of cgroups true. It learns of cgroups in two
// ways: of pods' by looking where the kubelet makes them, once the pod is known; of
// all others by the first sample of a process in them. What is not in the table is
// sampled, and left out by Settings.Keep where it is not wanted.
type selection struct {
	kernel verdicts
	groups cgroups
	pods   *workload.Pods
	failed func(error)

	active atomic.Bool // there are verdicts

	mu    sync.Mutex
	met   map[workload.Place]*metPlace
	fresh chan struct{} // holds one: there are new ones

	// Of the service's loop.
	set       Select
	parents   []workload.Place // of pods' cgroups
	scanned   time.Time        // when these were looked for
	waiting   map[string]time.Time
	installed map[bpf.Cgroup]bpf.Verdict
	rest      float64   // share of what no verdict is on
	full      bool      // it was said that the table is
	crowded   time.Time // when there was no room in met last, by meet
	timer     *time.Timer
	due       time.Time // of timer
}

// metPlace is the cgroup of a process that was sampled.
type metPlace struct {
	id         uint64 // 0: not looked at yet
	containers []workload.Identity
}

// Times. A kubelet makes the cgroup of a pod some tenths of a second after it has
// heard of it, as the agent has, and starts containers a second or more later.
const (
	settleTime = 100 * time.Millisecond // changes come in bursts
	lookAgain  = 250 * time.Millisecond
	lookFor    = time.Minute
	scanEvery  = 10 * time.Second
)

// maxMet bounds the cgroups that are remembered, beside those of pods.
const maxMet = 2048

func newSelection(kernel verdicts, groups cgroups, pods *workload.Pods, set Select, failed func(error)) *selection {
	x := &selection{
		kernel: kernel, groups: groups, pods: pods, set: set, failed: failed,
		met: map[workload.Place]*metPlace{}, fresh: make(chan struct{}, 1),
		waiting: map[string]time.Time{}, timer: time.NewTimer(time.Hour),
	}
	x.timer.Stop()
	return x
}

// meet tells of the cgroup of a process that was sampled. One that is made anew
// under an old path, as a unit's is at each start, is another cgroup.
func (x *selection) meet(p workload.Place) {
	x.mu.Lock()
	known, room := x.met[p], len(x.met) < maxMet
	var id uint64
	if known != nil {
		id = known.id
	}
	crowded := known == nil && !room
	if crowded { // those that are gone make room
		if now := time.Now(); now.Sub(x.crowded) >= scanEvery {
			x.crowded = now
			x.poke()
		}
	}
	x.mu.Unlock()
	if crowded || known != nil && !x.active.Load() {
		return
	}
	if now, err := x.groups.ID(p); err != nil || known != nil && now == id {
		return // it is gone already, or not to be seen; or nothing is new
	}
	containers := workload.Containers(p.Path)
	x.mu.Lock()
	x.met[p] = &metPlace{containers: containers}
	x.mu.Unlock()
	x.poke()
}

// poke has the table made anew.
func (x *selection) poke() {
	select {
	case x.fresh <- struct{}{}:
	default: // it is known already
	}
}

// changed is closed when something else is known of pods.
func (x *selection) changed() <-chan struct{} {
	if x.pods == nil {
		return nil
	}
	return x.pods.Changed()
}

// soon has the timer fire.
func (x *selection) soon(d time.Duration) {
	if at := time.Now().Add(d); x.due.IsZero() || at.Before(x.due) {
		x.due = at
		x.timer.Reset(d)
	}
}

// frequencies are how often samples are taken, a second and CPU. A sample's record says
// which share of such was taken, so that its profile has the rate that it had.
type frequencies struct {
	hz     int // at which events fire: the highest
	rest   int // of what has none of its own
	all    int // that somebody wants of everything; 0: nobody
	raised []raised
}

// raised is a rate that somebody wants of some cgroups for a while.
type raised struct {
	hz int
	of func(cgroup string) bool
}

// atMost are the rates where events cannot fire more often.
func (r frequencies) atMost(hz int) frequencies {
	r.hz, r.rest, r.all = min(r.hz, hz), min(r.rest, hz), min(r.all, hz)
	r.raised = slices.Clone(r.raised)
	for i := range r.raised {
		r.raised[i].hz = min(r.raised[i].hz, hz)
	}
	return r
}

// of is the share that makes a rate.
func (r frequencies) of(rate int) float64 { return float64(min(rate, r.hz)) / float64(r.hz) }

// asked is the rate that is wanted of a cgroup, 0: nobody wants one.
func (r frequencies) asked(cgroup string) (hz int) {
	for _, a := range r.raised {
		if a.hz > hz && a.of(cgroup) {
			hz = a.hz
		}
	}
	return hz
}

// plan is what the table is to be.
type plan struct {
	frequencies
	verdicts map[workload.Place]bpf.Verdict
	table    map[bpf.Cgroup]bpf.Verdict // the same, by the kernel's numbers
}

// nothingBelow leaves out a cgroup and all below it.
var nothingBelow = bpf.Verdict{Below: true}

// rate is how often samples of a pod are taken: 0 is never.
func (x *selection) rate(p *workload.Pod, r frequencies) int {
	if x.set.Pod != nil && !x.set.Pod(p) {
		return 0
	}
	if own := p.Frequency(); own > 0 && own < r.rest {
		return max(own, min(r.all, r.rest))
	}
	return r.rest
}

// plan says what the table is to be at these rates.
func (x *selection) plan(r frequencies, now time.Time) *plan {
	x.due = time.Time{}
	p := &plan{frequencies: r, verdicts: map[workload.Place]bpf.Verdict{}}
	pods := map[string]int{}
	some := !x.set.Outside || x.set.Cgroup != nil || len(r.raised) > 0
	for _, pod := range x.pods.List() {
		pods[pod.UID] = x.rate(pod, r)
		some = some || pods[pod.UID] != r.rest
	}
	if some {
		x.fill(p, pods, now)
	}
	p.table = x.resolve(p)
	return p
}

// fill says it of every cgroup that is known.
func (x *selection) fill(p *plan, pods map[string]int, now time.Time) {
	if x.pods != nil && now.Sub(x.scanned) > scanEvery && (x.scanned.IsZero() || x.waits(now)) {
		x.parents, x.scanned = x.groups.PodParents(), now
	}
	there := map[string]bool{}
	for _, parent := range x.parents {
		// A pod that is not known yet is sampled. Where it is in a container of
		// version 1, it is in its runtime's cgroup of the unified hierarchy.
		if _, out := x.excluded(parent); !out && parent.Old && x.groups.Hybrid() {
			p.verdicts[parent] = bpf.Verdict{Share: p.of(p.rest), Below: true}
		}
		for uid, place := range x.groups.PodsIn(parent) {
			if rate, ok := pods[uid]; ok {
				there[uid] = true
				x.judge(p, place, place, rate)
			}
		}
	}
	x.mu.Lock()
	met := make(map[workload.Place][]workload.Identity, len(x.met))
	for place, m := range x.met {
		met[place] = m.containers
	}
	x.mu.Unlock()
	for place, containers := range met {
		if c, ok := x.pods.FindIn(containers); ok {
			// One that came meanwhile is a change that is heard of.
			if rate, ok := pods[c.Pod.UID]; ok {
				there[c.Pod.UID] = true
				x.judge(p, place, place.PodPlace(c.Pod.UID), rate)
			}
			continue
		}
		if at, out := x.excluded(place); out {
			p.verdicts[at] = nothingBelow
			continue
		}
		pod := slices.ContainsFunc(containers, func(c workload.Identity) bool { return c.PodUID != "" })
		if !x.set.Outside && !pod || !x.fits(place) {
			x.leaveOut(p, place)
		} else if hz := p.asked(place.Path); hz > 0 {
			p.verdicts[place] = bpf.Verdict{Share: p.of(max(hz, p.rest)), Below: true}
		}
	}
	x.wait(p.frequencies, pods, there, now)
}

// judge says it of a place in a pod, and of the pod.
func (x *selection) judge(p *plan, place, pod workload.Place, rate int) {
	if at, out := x.excluded(place); out {
		p.verdicts[at] = nothingBelow
		return
	}
	for _, at := range []workload.Place{pod, place} {
		switch hz := p.asked(at.Path); {
		case rate > 0 && at != pod && !x.fits(at):
			x.leaveOut(p, at)
		case rate > 0 && hz > 0: // somebody asks for it: more than its own rate, too
			p.verdicts[at] = bpf.Verdict{Share: p.of(max(hz, rate)), Below: true}
		case at == pod:
			p.verdicts[at] = bpf.Verdict{Share: p.of(rate), Below: true}
		}
	}
}

// excluded gives the outermost cgroup of which nothing is wanted.
func (x *selection) excluded(place workload.Place) (at workload.Place, out bool) {
	if x.set.Cgroup == nil {
		return at, false
	}
	for _, at := range place.Up() {
		if wanted, below := x.set.Cgroup(at.Path); !wanted && below {
			return at, true
		}
	}
	return at, false
}

// fits says whether processes right in a cgroup can be wanted by its path.
func (x *selection) fits(place workload.Place) bool {
	if x.set.Cgroup == nil {
		return true
	}
	wanted, _ := x.set.Cgroup(place.Path)
	return wanted
}

// leaveOut leaves out the processes right in a cgroup. Where there are two
// hierarchies, a process's cgroup of the unified one does not say that it is in no
// container of the other, which may be wanted: such are left out afterwards.
func (x *selection) leaveOut(p *plan, place workload.Place) {
	if place.Old || !x.groups.Hybrid() {
		p.verdicts[place] = bpf.Verdict{}
	}
}

// wait has pods looked for again whose cgroup is not there yet. Zero is the time
// of those that were there.
func (x *selection) wait(r frequencies, pods map[string]int, there map[string]bool, now time.Time) {
	for uid := range x.waiting {
		if _, known := pods[uid]; !known {
			delete(x.waiting, uid)
		}
	}
	for uid, rate := range pods {
		since, ok := x.waiting[uid]
		switch {
		case there[uid]:
			x.waiting[uid] = time.Time{}
		case rate == r.rest && len(r.raised) == 0:
		case !ok:
			x.waiting[uid] = now
			x.soon(lookAgain)
		case now.Sub(since) < lookFor:
			x.soon(lookAgain)
		}
	}
}

// resolve finds the kernel's numbers of cgroups. Where all is wanted, there is
// nothing to say.
func (x *selection) resolve(p *plan) map[bpf.Cgroup]bpf.Verdict {
	some := p.rest < p.hz
	for _, v := range p.verdicts {
		some = some || v.Share < 1
	}
	x.mu.Lock()
	crowded := len(x.met) >= maxMet
	x.mu.Unlock()
	if some || crowded {
		x.look()
	}
	if !some {
		return nil
	}
	all := map[bpf.Cgroup]bpf.Verdict{}
	for place, v := range p.verdicts {
		if id, err := x.groups.ID(place); err == nil {
			all[bpf.Cgroup{ID: id, Old: place.Old}] = v
		}
	}
	return all
}

// waits says whether a cgroup is still looked for.
func (x *selection) waits(now time.Time) bool {
	for _, since := range x.waiting {
		if now.Sub(since) < lookFor {
			return true
		}
	}
	return false
}

// look notes the numbers of cgroups that were met, and forgets those that are gone.
func (x *selection) look() {
	x.mu.Lock()
	places := slices.Collect(maps.Keys(x.met))
	x.mu.Unlock()
	for _, place := range places { // the sampler does not wait for the file system
		id, err := x.groups.ID(place)
		x.mu.Lock()
		if errors.Is(err, fs.ErrNotExist) {
			delete(x.met, place)
		} else {
			x.met[place].id = id
		}
		x.mu.Unlock()
	}
}

// install makes the table what it is to be, at once. What does not fit is sampled,
// and left out afterwards.
func (x *selection) install(p *plan) {
	want := p.table
	var failed error
	var unified, old bool
	for c := range x.installed {
		if _, ok := want[c]; !ok {
			failed = errors.Join(failed, x.kernel.DeleteVerdict(c))
		}
	}
	installed := make(map[bpf.Cgroup]bpf.Verdict, len(want))
	for c, v := range want {
		if before, ok := x.installed[c]; !ok || before != v {
			if err := x.kernel.SetVerdict(c, v); err != nil { // it is sampled as others are
				full := errors.Is(err, bpf.ErrVerdictsFull)
				if !full || !x.full {
					failed = errors.Join(failed, err)
				}
				x.full = x.full || full
				continue
			}
		}
		installed[c] = v
		old, unified = old || c.Old, unified || !c.Old
	}
	x.installed, x.rest = installed, p.of(p.rest)
	failed = errors.Join(failed, x.kernel.Select(unified, old, x.rest))
	x.active.Store(len(installed) > 0)
	if failed != nil {
		x.failed(failed)
	}
}

// leftOut is how many cgroups are not sampled as others are.
func (x *selection) leftOut() (n int) {
	for _, v := range x.installed {
		if v.Share != x.rest {
			n++
		}
	}
	return n
}
