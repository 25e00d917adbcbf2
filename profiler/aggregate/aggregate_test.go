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

func newTestWindow() (*Window, *heard) {
	h := &heard{}
	return NewWindow(
		func(p profiler.PID) { h.first = append(h.first, p) },
		func(p profiler.PID) { h.runTime = append(h.runTime, p) },
	), h
}

func stack(pid profiler.PID, hash uint64, user ...uint64) *sampler.Stack {
	s := &sampler.Stack{Key: sampler.Key{Hash: hash, PID: pid}, Thread: 9, Stop: profiler.StopRoot, Kernel: []uint64{hash}, User: user}
	copy(s.Comm[:], "comm")
	copy(s.Name[:], "thread")
	return s
}

func entries(t *testing.T, w *Window) (map[uint64]*Entry, uint64) {
	t.Helper()
	list, lost := w.Entries()
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
	w, _ := newTestWindow()
	file := unwind.Word(3, 0x100, true)
	w.Add(stack(1, 10, file), 1)
	w.Add(stack(1, 10, file), 1)
	w.Count(sampler.Key{Hash: 10, PID: 1}, 5)
	w.Add(stack(1, 11, file, file), 1)
	w.Count(sampler.Key{Hash: 10, PID: 2}, 3) // another process: its stack comes later
	w.Add(stack(2, 10), 1)
	list, lost := w.Entries()
	if lost != 0 || len(list) != 3 || w.Total() != 12 {
		t.Errorf("%d entries, %d lost, %d in all; want 3, 0, 12", len(list), lost, w.Total())
	}
	counts := map[profiler.PID][]uint64{}
	for _, e := range list {
		counts[e.PID] = append(counts[e.PID], e.Count)
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
	w, _ := newTestWindow()
	w.Count(sampler.Key{Hash: 1, PID: 1}, 4)
	w.Count(sampler.Key{Hash: 1, PID: 1}, 2)
	w.Count(sampler.Key{Hash: 2, PID: 1}, 1)
	if list, lost := w.Entries(); len(list) != 0 || lost != 7 {
		t.Errorf("%d entries, %d lost; want 0, 7", len(list), lost)
	}
	w.Add(stack(1, 1), 1)
	if byHash, lost := entries(t, w); lost != 1 || byHash[1].Count != 7 || w.Total() != 8 {
		t.Errorf("count %d, %d lost, %d in all; want 7, 1, 8", byHash[1].Count, lost, w.Total())
	}
}

func TestByThread(t *testing.T) {
	w, _ := newTestWindow()
	for tid := range profiler.TID(2) {
		s := stack(1, 10)
		s.Key.TID = tid + 1
		copy(s.Name[:], []byte{'a' + byte(tid), 0, 'x'})
		w.Add(s, 1)
	}
	list, _ := w.Entries()
	names := map[profiler.TID]string{}
	for _, e := range list {
		names[e.TID] = e.Thread
	}
	if !maps.Equal(names, map[profiler.TID]string{1: "a", 2: "b"}) {
		t.Errorf("threads %v", names)
	}
}

func TestTold(t *testing.T) {
	w, h := newTestWindow()
	file, anon := unwind.Word(1, 0x10, true), unwind.Word(0, 0x7f00_0000, false)
	w.Add(stack(1, 1, file), 1)
	w.Add(stack(1, 2, file, anon), 1)
	w.Add(stack(1, 2, file, anon), 1) // known: not told again
	w.Add(stack(1, 3, anon), 1)
	w.Add(stack(2, 4, file), 1)
	w.Count(sampler.Key{Hash: 9, PID: 3}, 1)
	if diff := cmp.Diff(*h, heard{[]profiler.PID{1, 2}, []profiler.PID{1, 1}}, cmp.AllowUnexported(heard{})); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}

// TestSlabs: the frames of many stacks share memory, and none may run over
// into another's, nor change when the caller's slice is used again.
func TestSlabs(t *testing.T) {
	w, _ := newTestWindow()
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
		w.Add(stack(1, i, words[:n]...), 1)
		s := stack(1, 1000+i)
		s.User = words[:n]
		w.Add(s, 1)
		want[i] = slices.Clone(words[:n])
		want[1000+i] = want[i]
		clear(words)
	}
	byHash, _ := entries(t, w)
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
	w := NewWindow(func(p profiler.PID) {
		mu.Lock()
		defer mu.Unlock()
		first[p]++
	}, func(profiler.PID) {})
	var all sync.WaitGroup
	for range 2 { // as the sampler's goroutines
		all.Go(func() {
			for i := range uint64(2000) {
				w.Add(stack(profiler.PID(i%10), i%50), 1)
				w.Count(sampler.Key{Hash: i % 60, PID: profiler.PID(i % 10)}, 1)
				w.Total()
			}
		})
	}
	all.Wait()
	list, lost := w.Entries()
	sum := lost
	for _, e := range list {
		sum += e.Count
	}
	if sum != 8000 || w.Total() != 8000 {
		t.Errorf("%d in entries and lost, %d in all, want 8000", sum, w.Total())
	}
	for pid, n := range first {
		if n != 1 {
			t.Errorf("PID %d was seen first %d times", pid, n)
		}
	}
}
