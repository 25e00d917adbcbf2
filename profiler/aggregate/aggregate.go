// Package aggregate adds up samples: one entry per distinct stack of a process,
// with the number of times it was seen. A Collector fills one window at a time
// and never stops; what it hands out is nobody else's. Naming happens
// afterwards, once per entry.
package aggregate

import (
	"bytes"
	"slices"
	"sync"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/sampler"
	"github.com/kalypso-dev/kalypso/profiler/unwind"
)

// Config of a Collector.
type Config struct {
	// FirstSeen is called at the first sample of each process in a window, and
	// again when it is in another cgroup or goes by another name: it runs another
	// program. RunTime is called at each new stack with code that the process made
	// at run time. Both are called from the goroutine that adds, so they must be
	// quick.
	FirstSeen func(p sampler.Process, comm string)
	RunTime   func(profiler.PID)
	// MaxBytes is how large a window may grow before Full is called, once; 0:
	// without end. Nothing is dropped: whoever hears of it takes the window.
	MaxBytes int
	Full     func()
}

// Collector adds samples to the current window. It implements sampler.Sink.
type Collector struct {
	Config

	mu   sync.Mutex
	w    *Window
	full bool // Full was called for this window
}

// NewCollector makes a collector with an empty window.
func NewCollector(c Config) *Collector { return &Collector{Config: c, w: NewWindow()} }

// Cut ends the current window and begins another. Counts that overtook their
// stack go with the new one, where the stack will be; those that were carried
// over once have none any more and are lost.
func (c *Collector) Cut() *Window {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.w
	c.w, c.full = NewWindow(), false
	for k, n := range w.early {
		if w.carried[k] {
			continue
		}
		c.w.early[k] = n
		c.w.carried[k] = true
		delete(w.early, k)
	}
	return w
}

// Add implements sampler.Sink.
func (c *Collector) Add(s *sampler.Stack, n uint64) {
	c.mu.Lock()
	first, fresh := c.w.add(s, n)
	full := c.MaxBytes > 0 && c.w.Bytes() > c.MaxBytes && !c.full
	c.full = c.full || full
	c.mu.Unlock()
	if first {
		c.FirstSeen(s.Process, text(s.Comm[:]))
	}
	if fresh && slices.ContainsFunc(s.User, madeAtRunTime) {
		c.RunTime(s.Key.PID)
	}
	if full {
		c.Full()
	}
}

func madeAtRunTime(word uint64) bool {
	id, _, _ := unwind.Split(word)
	return id == 0
}

// Count implements sampler.Sink.
func (c *Collector) Count(k sampler.Key, n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.w.count(k, n)
}

// Bytes is the memory that the current window takes.
func (c *Collector) Bytes() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.w.Bytes()
}

// Window is what was sampled in a time. It belongs to one goroutine.
type Window struct {
	entries map[sampler.Key]*Entry
	early   map[sampler.Key]uint64 // counts that overtook their stack
	carried map[sampler.Key]bool   // of these, the ones from the window before
	seen    map[process]bool
	slab    []uint64
	slabs   int
}

// Entry is one distinct stack.
type Entry struct {
	Process sampler.Process
	TID     profiler.TID // 0 unless by thread
	Comm    string
	Thread  string // empty unless by thread
	Kernel  []uint64
	User    []uint64
	Stop    profiler.Stop
	Share   uint32 // of such samples that was taken: sampler.Stack
	Late    int    // the rate that they were taken at, if it is not the window's
	Count   uint64
}

// NewWindow makes an empty window.
func NewWindow() *Window {
	return &Window{
		entries: map[sampler.Key]*Entry{},
		early:   map[sampler.Key]uint64{},
		carried: map[sampler.Key]bool{},
		seen:    map[process]bool{},
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
		w.slabs += 8 * cap(w.slab)
	}
	n := len(w.slab)
	w.slab = append(w.slab, words...)
	return w.slab[n:len(w.slab):len(w.slab)]
}

// add says whether the process and the stack are new to the window.
func (w *Window) add(s *sampler.Stack, n uint64) (first, fresh bool) {
	e := w.entries[s.Key]
	if fresh = e == nil; fresh {
		e = &Entry{
			Process: s.Process, TID: s.Key.TID, Comm: text(s.Comm[:]), Stop: s.Stop, Share: s.Share, Late: s.Late,
			Kernel: w.keep(s.Kernel), User: w.keep(s.User),
		}
		if e.TID != 0 {
			e.Thread = text(s.Name[:])
		}
		w.entries[s.Key] = e
		if early := w.early[s.Key]; early > 0 {
			e.Count += early
			delete(w.early, s.Key)
			delete(w.carried, s.Key)
		}
	}
	e.Count += n
	p := process{e.Process, s.Comm}
	first = !w.seen[p]
	if first {
		w.seen[p] = true
	}
	return first, fresh
}

// process is one program that a process runs.
type process struct {
	sampler.Process
	comm [16]byte
}

func (w *Window) count(k sampler.Key, n uint64) {
	if e := w.entries[k]; e != nil {
		e.Count += n
		return
	}
	w.early[k] += n
}

// Entries gives all stacks, in no order, and the number of samples whose stack
// never arrived: they are lost.
func (w *Window) Entries() (entries []*Entry, lost uint64) {
	entries = make([]*Entry, 0, len(w.entries))
	for _, e := range w.entries {
		entries = append(entries, e)
	}
	for _, n := range w.early {
		lost += n
	}
	return entries, lost
}

// entryBytes is an entry, its names and its places in the maps.
const entryBytes = 280

// Bytes is about the memory that the window takes.
func (w *Window) Bytes() int {
	return w.slabs + entryBytes*len(w.entries) + 64*(len(w.early)+len(w.seen))
}

func text(b []byte) string {
	name, _, _ := bytes.Cut(b, []byte{0})
	return string(name)
}
