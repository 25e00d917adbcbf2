package process

import (
	"slices"
	"time"
)

const (
	// grace is how long freed entries stay untouched: a walk on another CPU may
	// still be reading them. A walk takes well under a millisecond and cannot
	// be preempted.
	grace = 10 * time.Millisecond
	// mappingGrace is longer: a child forked just before holds on to the
	// parent's entries until the news of the fork is read.
	mappingGrace = time.Second
)

// extents hands out runs of table entries, first fit.
type extents struct {
	free  []extent // sorted, merged
	dying []dyingExtent
	used  uint32
	grace time.Duration
}

type extent struct{ first, count uint32 }

type dyingExtent struct {
	extent
	at time.Time
}

func newExtents(count uint32, grace time.Duration) *extents {
	return &extents{free: []extent{{0, count}}, grace: grace}
}

// take gives n entries in a row, or false. It does not wait for freed ones.
func (x *extents) take(n uint32) (extent, bool) {
	if n == 0 {
		return extent{}, true
	}
	x.reap(time.Now())
	for i, e := range x.free {
		if e.count < n {
			continue
		}
		if x.free[i].first, x.free[i].count = e.first+n, e.count-n; e.count == n {
			x.free = slices.Delete(x.free, i, i+1)
		}
		x.used += n
		return extent{e.first, n}, true
	}
	return extent{}, false
}

// resting is the number of freed entries in their grace period.
func (x *extents) resting() (n uint32) {
	for _, e := range x.dying {
		n += e.count
	}
	return n
}

// give returns entries; they are handed out again after the grace period.
func (x *extents) give(e extent) {
	if e.count == 0 {
		return
	}
	x.used -= e.count
	x.dying = append(x.dying, dyingExtent{e, time.Now()})
}

func (x *extents) reap(now time.Time) {
	n := 0
	for n < len(x.dying) && now.Sub(x.dying[n].at) >= x.grace {
		x.insert(x.dying[n].extent)
		n++
	}
	x.dying = slices.Delete(x.dying, 0, n)
}

func (x *extents) insert(e extent) {
	i, _ := slices.BinarySearchFunc(x.free, e, func(a, b extent) int { return int(int64(a.first) - int64(b.first)) })
	if i > 0 && x.free[i-1].first+x.free[i-1].count == e.first {
		i--
		x.free[i].count += e.count
	} else {
		x.free = slices.Insert(x.free, i, e)
	}
	if i+1 < len(x.free) && x.free[i].first+x.free[i].count == x.free[i+1].first {
		x.free[i].count += x.free[i+1].count
		x.free = slices.Delete(x.free, i+1, i+2)
	}
}
