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
	Select(unified, old bool) error
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
	rates     map[string]int // of pods by UID that have one of their own; a new map with each change
	said      bool           // that the table is full
	crowded   time.Time      // when there was no room in met last, by meet
	owed      bool           // naming is behind: the table changes with the next segment
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
	tryAgain   = time.Second // where naming is behind
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

// plan is what the table is to be.
type plan struct {
	verdicts map[workload.Place]verdict
	rates    map[string]int
	again    map[string]bool // pods whose rate is another one than before
}

// nothingBelow leaves out a cgroup and all below it.
var nothingBelow = verdict{bpf.Verdict{Below: true}, ""}

// share is what is to be taken of a pod: all, none, or what makes its own rate.
type share struct {
	share float64
	rate  int // 0: everybody's
}

func (x *selection) share(p *workload.Pod, hz int) share {
	if x.set.Pod != nil && !x.set.Pod(p) {
		return share{}
	}
	if own := p.Frequency(); own > 0 && own < hz {
		return share{float64(own) / float64(hz), own}
	}
	return share{share: 1}
}

// plan says what the table is to be at a sampling rate.
func (x *selection) plan(hz int, now time.Time) *plan {
	x.due = time.Time{}
	p := &plan{map[workload.Place]verdict{}, map[string]int{}, map[string]bool{}}
	shares := map[string]share{}
	some := !x.set.Outside || x.set.Cgroup != nil
	for _, pod := range x.pods.List() {
		s := x.share(pod, hz)
		shares[pod.UID] = s
		some = some || s.share < 1
	}
	if some {
		x.fill(p, shares, now)
	}
	for uid, rate := range x.rates {
		s, known := shares[uid]
		switch {
		case p.rates[uid] != 0:
		case known && s.rate == rate: // its cgroup is gone; samples of it may be in the window still
			p.rates[uid] = rate
		case known:
			p.again[uid] = true
		}
	}
	for uid, rate := range p.rates {
		if x.rates[uid] != rate {
			p.again[uid] = true
		}
	}
	return p
}

// fill says it of every cgroup that is known.
func (x *selection) fill(p *plan, shares map[string]share, now time.Time) {
	if x.pods != nil && now.Sub(x.scanned) > scanEvery && (x.scanned.IsZero() || x.waits(now)) {
		x.parents, x.scanned = x.groups.PodParents(), now
	}
	there := map[string]bool{}
	for _, parent := range x.parents {
		// A pod that is not known yet is sampled. Where it is in a container of
		// version 1, it is in its runtime's cgroup of the unified hierarchy.
		if _, out := x.excluded(parent); !out && parent.Old && x.groups.Hybrid() {
			p.verdicts[parent] = verdict{bpf.Verdict{Share: 1, Below: true}, ""}
		}
		for uid, place := range x.groups.PodsIn(parent) {
			if s, ok := shares[uid]; ok {
				there[uid] = true
				x.judge(p, place, place, uid, s)
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
			if s, ok := shares[c.Pod.UID]; ok {
				there[c.Pod.UID] = true
				x.judge(p, place, place.PodPlace(c.Pod.UID), c.Pod.UID, s)
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
		}
	}
	x.wait(shares, there, now)
}

// judge says it of a place in a pod, and of the pod.
func (x *selection) judge(p *plan, place, pod workload.Place, uid string, s share) {
	if at, out := x.excluded(place); out {
		p.verdicts[at] = nothingBelow
		return
	}
	v := verdict{bpf.Verdict{Share: s.share, Below: true}, ""}
	if s.rate > 0 {
		p.rates[uid] = s.rate
		v.uid = uid
	}
	p.verdicts[pod] = v
	if s.share > 0 && place != pod && !x.fits(place) {
		x.leaveOut(p, place)
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
		p.verdicts[place] = verdict{}
	}
}

// wait has pods looked for again whose cgroup is not there yet. Zero is the time
// of those that were there.
func (x *selection) wait(shares map[string]share, there map[string]bool, now time.Time) {
	for uid := range x.waiting {
		if _, known := shares[uid]; !known {
			delete(x.waiting, uid)
		}
	}
	for uid, s := range shares {
		since, ok := x.waiting[uid]
		switch {
		case there[uid]:
			x.waiting[uid] = time.Time{}
		case s.share == 1:
		case !ok:
			x.waiting[uid] = now
			x.soon(lookAgain)
		case now.Sub(since) < lookFor:
			x.soon(lookAgain)
		}
	}
}

// verdict is one that is to be installed, and the pod whose rate it makes.
type verdict struct {
	bpf.Verdict
	uid string
}

// resolve finds the kernel's numbers of cgroups. Where all is wanted, there is
// nothing to say.
func (x *selection) resolve(p *plan) map[bpf.Cgroup]verdict {
	some := false
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
	all := map[bpf.Cgroup]verdict{}
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

// install makes the table what it is to be. What does not fit is sampled, and left
// out afterwards.
func (x *selection) install(p *plan) {
	want := x.resolve(p)
	var failed error
	var unified, old bool
	for c := range x.installed {
		if _, ok := want[c]; !ok {
			failed = errors.Join(failed, x.kernel.DeleteVerdict(c))
		}
	}
	installed := make(map[bpf.Cgroup]bpf.Verdict, len(want))
	for c, v := range want {
		if before, ok := x.installed[c]; !ok || before != v.Verdict {
			if err := x.kernel.SetVerdict(c, v.Verdict); err != nil {
				if !errors.Is(err, bpf.ErrVerdictsFull) || !x.said {
					failed = errors.Join(failed, err)
				}
				x.said = true
				delete(p.rates, v.uid) // it is sampled as others are
				continue
			}
		}
		installed[c] = v.Verdict
		old, unified = old || c.Old, unified || !c.Old
	}
	x.installed, x.rates, x.owed = installed, p.rates, false
	failed = errors.Join(failed, x.kernel.Select(unified, old))
	x.active.Store(len(installed) > 0)
	if failed != nil {
		x.failed(failed)
	}
}

// leftOut is how many cgroups are not sampled as others are.
func (x *selection) leftOut() (n int) {
	for _, v := range x.installed {
		if v.Share < 1 {
			n++
		}
	}
	return n
}
