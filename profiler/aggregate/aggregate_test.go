package aggregate

import (
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/sampler"
	"github.com/kalypso-dev/kalypso/profiler/unwind"
)

// heard is what a window told about processes.
type heard struct{ first, runTime []profiler.PID }

func newTestCollector() (*Collector, *heard) {
	h := &heard{}
	return NewCollector(Config{
		FirstSeen: func(p sampler.Process, _ string) { h.first = append(h.first, p.PID) },
		RunTime:   func(p profiler.PID) { h.runTime = append(h.runTime, p) },
	}), h
}

func stack(pid profiler.PID, hash uint64, user ...uint64) *sampler.Stack {
	s := &sampler.Stack{Key: sampler.Key{Hash: hash, PID: pid}, Process: sampler.Process{PID: pid}, Thread: 9, Stop: profiler.StopRoot, Kernel: []uint64{hash}, User: user}
	copy(s.Comm[:], "comm")
	copy(s.Name[:], "thread")
	return s
}

func entries(t *testing.T, c *Collector) (map[uint64]*Entry, uint64) {
	t.Helper()
	list, lost := c.w.Entries()
	byHash := map[uint64]*Entry{}
	for _, e := range list {
		byHash[e.Kernel[0]] = e
	}
	if len(byHash) != len(list) {
		t.Errorf("%d entries for %d stacks", len(list), len(byHash))
	}
	return byHash, lost
}

func TestWindow(t *testing.T) {
	c, _ := newTestCollector()
	file := unwind.Word(3, 0x100, true)
	c.Add(stack(1, 10, file), 1)
	c.Add(stack(1, 10, file), 1)
	c.Count(sampler.Key{Hash: 10, PID: 1}, 5)
	c.Add(stack(1, 11, file, file), 1)
	c.Count(sampler.Key{Hash: 10, PID: 2}, 3) // another process: its stack comes later
	c.Add(stack(2, 10), 1)
	list, lost := c.w.Entries()
	if lost != 0 || len(list) != 3 {
		t.Errorf("%d entries, %d lost; want 3, 0", len(list), lost)
	}
	counts := map[profiler.PID][]uint64{}
	for _, e := range list {
		counts[e.Process.PID] = append(counts[e.Process.PID], e.Count)
		if e.Comm != "comm" || e.Thread != "" || e.TID != 0 || e.Stop != profiler.StopRoot {
			t.Errorf("entry %+v", e)
		}
	}
	slices.Sort(counts[1])
	if diff := cmp.Diff(counts, map[profiler.PID][]uint64{1: {1, 7}, 2: {4}}); diff != "" {
		t.Errorf("counts by process (-got +want):\n%s", diff)
	}
}

func TestCountsWithoutStackAreLost(t *testing.T) {
	c, _ := newTestCollector()
	c.Count(sampler.Key{Hash: 1, PID: 1}, 4)
	c.Count(sampler.Key{Hash: 1, PID: 1}, 2)
	c.Count(sampler.Key{Hash: 2, PID: 1}, 1)
	if list, lost := c.w.Entries(); len(list) != 0 || lost != 7 {
		t.Errorf("%d entries, %d lost; want 0, 7", len(list), lost)
	}
	c.Add(stack(1, 1), 1)
	if byHash, lost := entries(t, c); lost != 1 || byHash[1].Count != 7 {
		t.Errorf("count %d, %d lost; want 7, 1", byHash[1].Count, lost)
	}
}

// TestCut: what was counted before its stack came goes on to the window that
// the stack comes to, and is lost if it comes in neither.
func TestCut(t *testing.T) {
	c, h := newTestCollector()
	c.Add(stack(1, 10), 1)
	c.Count(sampler.Key{Hash: 10, PID: 1}, 2)
	c.Count(sampler.Key{Hash: 11, PID: 1}, 3) // its stack comes in the next window
	c.Count(sampler.Key{Hash: 12, PID: 1}, 4) // its stack never comes
	first := c.Cut()
	c.Add(stack(1, 11), 1)
	c.Add(stack(1, 10), 1)
	second := c.Cut()
	third := c.Cut()
	got := map[string][]uint64{}
	for name, w := range map[string]*Window{"first": first, "second": second, "third": third} {
		list, lost := w.Entries()
		counts := []uint64{lost}
		slices.SortFunc(list, func(a, b *Entry) int { return int(a.Kernel[0]) - int(b.Kernel[0]) })
		for _, e := range list {
			counts = append(counts, e.Kernel[0], e.Count)
		}
		got[name] = counts
	}
	if diff := cmp.Diff(got, map[string][]uint64{"first": {0, 10, 3}, "second": {4, 10, 1, 11, 4}, "third": {0}}); diff != "" {
		t.Errorf("lost, then stack and count (-got +want):\n%s", diff)
	}
	if diff := cmp.Diff(h.first, []profiler.PID{1, 1}); diff != "" {
		t.Errorf("each window meets its processes anew (-got +want):\n%s", diff)
	}
}

// TestFull: a window that grows too large is told of once, and loses nothing.
func TestFull(t *testing.T) {
	full := 0
	c := NewCollector(Config{
		FirstSeen: func(sampler.Process, string) {}, RunTime: func(profiler.PID) {},
		MaxBytes: 200 << 10, Full: func() { full++ },
	})
	for round := range 2 {
		for i := range uint64(1000) {
			c.Add(stack(1, i, make([]uint64, 100)...), 1)
		}
		if full != round+1 {
			t.Errorf("window %d: told %d times in all, want once for each window", round, full)
		}
		if n := c.Bytes(); n < 800_000 {
			t.Errorf("1,000 stacks of 100 frames are said to take %d bytes", n)
		}
		if list, _ := c.Cut().Entries(); len(list) != 1000 {
			t.Errorf("%d entries, want 1000", len(list))
		}
	}
}

func TestByThread(t *testing.T) {
	c, _ := newTestCollector()
	for tid := range profiler.TID(2) {
		s := stack(1, 10)
		s.Key.TID = tid + 1
		copy(s.Name[:], []byte{'a' + byte(tid), 0, 'x'})
		c.Add(s, 1)
	}
	list, _ := c.w.Entries()
	names := map[profiler.TID]string{}
	for _, e := range list {
		names[e.TID] = e.Thread
	}
	if !maps.Equal(names, map[profiler.TID]string{1: "a", 2: "b"}) {
		t.Errorf("threads %v", names)
	}
}

func TestTold(t *testing.T) {
	c, h := newTestCollector()
	file, anon := unwind.Word(1, 0x10, true), unwind.Word(0, 0x7f00_0000, false)
	c.Add(stack(1, 1, file), 1)
	c.Add(stack(1, 2, file, anon), 1)
	c.Add(stack(1, 2, file, anon), 1) // known: not told again
	c.Add(stack(1, 3, anon), 1)
	c.Add(stack(2, 4, file), 1)
	c.Count(sampler.Key{Hash: 9, PID: 3}, 1)
	exec := stack(2, 5, file) // another program from now on
	copy(exec.Comm[:], "other")
	c.Add(exec, 1)
	c.Add(exec, 1)
	moved, again := stack(2, 6, file), stack(2, 7, file) // to another cgroup; and another process with the same PID
	moved.Process.Cgroups[0], again.Process.Started = 5, 6
	c.Add(moved, 1)
	c.Add(again, 1)
	if diff := cmp.Diff(*h, heard{[]profiler.PID{1, 2, 2, 2, 2}, []profiler.PID{1, 1}}, cmp.AllowUnexported(heard{})); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}

// TestSlabs: the frames of many stacks share memory, and none may run over
// into another's, nor change when the caller's slice is used again.
func TestSlabs(t *testing.T) {
	c, _ := newTestCollector()
	words := make([]uint64, 3*slabWords)
	want := map[uint64][]uint64{}
	for i := range uint64(300) {
		n := int(i*37) % 600
		switch i {
		case 100:
			n = slabWords
		case 200:
			n = len(words) // larger than a slab
		case 250:
			n = 0
		}
		for j := range n {
			words[j] = i<<32 | uint64(j)
		}
		c.Add(stack(1, i, words[:n]...), 1)
		s := stack(1, 1000+i)
		s.User = words[:n]
		c.Add(s, 1)
		want[i] = slices.Clone(words[:n])
		want[1000+i] = want[i]
		clear(words)
	}
	byHash, _ := entries(t, c)
	for i, frames := range want {
		e := byHash[i]
		if !slices.Equal(e.User, frames) {
			t.Fatalf("stack %d has %d frames that differ from the %d given", i, len(e.User), len(frames))
		}
		_ = append(e.User, 1) // must not write into the next stack
		_ = append(e.Kernel, 1)
	}
	for i, frames := range want {
		if e := byHash[i]; !slices.Equal(e.User, frames) || e.Kernel[0] != i {
			t.Fatalf("stack %d was written into", i)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	var mu sync.Mutex
	first := map[profiler.PID]int{}
	c := NewCollector(Config{
		FirstSeen: func(p sampler.Process, _ string) {
			mu.Lock()
			defer mu.Unlock()
			first[p.PID]++
		},
		RunTime: func(profiler.PID) {},
	})
	var all sync.WaitGroup
	for range 2 { // as the sampler's goroutines
		all.Go(func() {
			for i := range uint64(2000) {
				c.Add(stack(profiler.PID(i%10), i%50), 1)
				c.Count(sampler.Key{Hash: i % 60, PID: profiler.PID(i % 10)}, 1)
			}
		})
	}
	all.Wait()
	list, lost := c.w.Entries()
	sum := lost
	for _, e := range list {
		sum += e.Count
	}
	if sum != 8000 {
		t.Errorf("%d in entries and lost, want 8000", sum)
	}
	for pid, n := range first {
		if n != 1 {
			t.Errorf("PID %d was seen first %d times", pid, n)
		}
	}
}
