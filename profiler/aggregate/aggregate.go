// Package aggregate adds up samples: one entry per distinct stack of a process,
// with the number of times it was seen. Naming happens afterwards, once per
// entry.
package aggregate

import (
	"bytes"
	"slices"
	"sync"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/sampler"
	"github.com/kalypso-dev/kalypso/profiler/unwind"
)

// Window is everything sampled since it was made. It implements sampler.Sink.
type Window struct {
	firstSeen func(profiler.PID)
	runTime   func(profiler.PID)

	mu      sync.Mutex
	entries map[sampler.Key]*Entry
	early   map[sampler.Key]uint64 // counts that overtook their stack
	seen    map[profiler.PID]bool
	slab    []uint64
	total   uint64
}

// Entry is one distinct stack.
type Entry struct {
	PID    profiler.PID
	TID    profiler.TID // 0 unless by thread
	Comm   string
	Thread string // empty unless by thread
	Kernel []uint64
	User   []uint64
	Stop   profiler.Stop
	Count  uint64
}

// NewWindow makes an empty window. firstSeen is called at the first sample of
// each process, runTime at each new stack with code that the process made at
// run time; both from the goroutine that adds, so they must be quick.
func NewWindow(firstSeen, runTime func(profiler.PID)) *Window {
	return &Window{
		firstSeen: firstSeen,
		runTime:   runTime,
		entries:   map[sampler.Key]*Entry{},
		early:     map[sampler.Key]uint64{},
		seen:      map[profiler.PID]bool{},
	}
}

// slabWords: frames of many stacks share an allocation.
const slabWords = 8192

func (w *Window) keep(words []uint64) []uint64 {
	if len(words) == 0 {
		return nil
	}
	if len(w.slab)+len(words) > cap(w.slab) {
		w.slab = make([]uint64, 0, max(slabWords, len(words)))
	}
	n := len(w.slab)
	w.slab = append(w.slab, words...)
	return w.slab[n:len(w.slab):len(w.slab)]
}

// Add implements sampler.Sink.
func (w *Window) Add(s *sampler.Stack, n uint64) {
	w.mu.Lock()
	e := w.entries[s.Key]
	fresh := e == nil
	if fresh {
		e = &Entry{
			PID: s.Key.PID, TID: s.Key.TID, Comm: text(s.Comm[:]), Stop: s.Stop,
			Kernel: w.keep(s.Kernel), User: w.keep(s.User),
		}
		if e.TID != 0 {
			e.Thread = text(s.Name[:])
		}
		w.entries[s.Key] = e
		if early := w.early[s.Key]; early > 0 {
			e.Count += early
			delete(w.early, s.Key)
		}
	}
	e.Count += n
	w.total += n
	first := !w.seen[e.PID]
	w.seen[e.PID] = true
	w.mu.Unlock()
	if first {
		w.firstSeen(s.Key.PID)
	}
	if fresh && slices.ContainsFunc(s.User, madeAtRunTime) {
		w.runTime(s.Key.PID)
	}
}

func madeAtRunTime(word uint64) bool {
	id, _, _ := unwind.Split(word)
	return id == 0
}

// Count implements sampler.Sink.
func (w *Window) Count(k sampler.Key, n uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e := w.entries[k]; e != nil {
		e.Count += n
		w.total += n
		return
	}
	w.early[k] += n
	w.total += n
}

// Entries gives all stacks, in no order, and the number of samples whose stack
// never arrived: they are lost.
func (w *Window) Entries() (entries []*Entry, lost uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.entries {
		entries = append(entries, e)
	}
	for _, n := range w.early {
		lost += n
	}
	return entries, lost
}

// Total is the number of samples so far.
func (w *Window) Total() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.total
}

func text(b []byte) string {
	name, _, _ := bytes.Cut(b, []byte{0})
	return string(name)
}
