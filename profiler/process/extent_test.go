package process

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestExtents(t *testing.T) {
	x := newExtents(10, 0)
	take := func(n uint32, want extent, ok bool) {
		t.Helper()
		got, have := x.take(n)
		if got != want || have != ok {
			t.Fatalf("take(%d) = %v, %v; want %v, %v", n, got, have, want, ok)
		}
	}
	take(0, extent{}, true)
	take(11, extent{}, false)
	take(4, extent{0, 4}, true)
	take(6, extent{4, 6}, true)
	take(1, extent{}, false)
	x.give(extent{0, 4})
	x.give(extent{}) // of take(0)
	take(2, extent{0, 2}, true)
	take(3, extent{}, false) // 2 are left
	x.give(extent{4, 6})
	take(8, extent{2, 8}, true) // neighbours were merged
	x.give(extent{0, 2})
	x.give(extent{2, 8})
	x.reap(time.Now())
	if diff := cmp.Diff(x.free, []extent{{0, 10}}, cmp.AllowUnexported(extent{})); diff != "" || x.used != 0 {
		t.Errorf("all given back, %d used (-got +want):\n%s", x.used, diff)
	}
}

func TestExtentsGrace(t *testing.T) {
	const grace = 30 * time.Millisecond
	x := newExtents(4, grace)
	first, _ := x.take(2)
	start := time.Now()
	x.give(first)
	if got, ok := x.take(2); !ok || got.first != 2 {
		t.Errorf("got %v, %v: entries that were just given back must rest while there are others", got, ok)
	}
	if got, ok := x.take(1); ok || x.resting() != 2 {
		t.Errorf("got %v, %v and %d rest: entries that were just given back must rest", got, ok, x.resting())
	}
	for {
		got, ok := x.take(2)
		waited := time.Since(start)
		if ok && (got != first || waited < grace || x.resting() != 0) {
			t.Errorf("entries %v came round again after %v, want %v after %v at least", got, waited, first, grace)
		}
		if ok || waited > 10*time.Second {
			if !ok {
				t.Error("entries do not come round again")
			}
			return
		}
	}
}

// TestExtentsModel does what a table does, at random, beside a slice that says
// of each entry who has it.
func TestExtentsModel(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	const size = 200
	x := newExtents(size, 0)
	owner := [size]int{}
	var held []extent
	free := func() (longest uint32) {
		run := uint32(0)
		for _, o := range owner {
			if run++; o != 0 {
				run = 0
			}
			longest = max(longest, run)
		}
		return longest
	}
	for step := 1; step < 20000; step++ {
		if rnd.IntN(2) == 0 || len(held) == 0 {
			n := 1 + rnd.Uint32N(30)
			e, ok := x.take(n)
			if ok != (free() >= n) {
				t.Fatalf("step %d: take(%d) = %v, and %d in a row are free", step, n, ok, free())
			}
			if !ok {
				continue
			}
			for i := range e.count {
				if owner[e.first+i] != 0 {
					t.Fatalf("step %d: entry %d was handed out twice", step, e.first+i)
				}
				owner[e.first+i] = step
			}
			held = append(held, e)
		} else {
			i := rnd.IntN(len(held))
			e := held[i]
			held = append(held[:i], held[i+1:]...)
			x.give(e)
			for i := range e.count {
				owner[e.first+i] = 0
			}
		}
		used := uint32(0)
		for _, e := range held {
			used += e.count
		}
		if x.used != used {
			t.Fatalf("step %d: %d used, want %d", step, x.used, used)
		}
		for i := 1; i < len(x.free); i++ {
			if a, b := x.free[i-1], x.free[i]; a.first+a.count >= b.first {
				t.Fatalf("step %d: free runs %v and %v are not sorted and merged", step, a, b)
			}
		}
	}
}
