// Package symbolize gives names to the addresses of samples: the kernel's from
// kallsyms, a file's from what its runtime knows, run-time code from perf maps.
// An address is looked up once while its location is kept, within a budget.
package symbolize

import (
	"sync"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/lang"
	"github.com/kalypso-dev/kalypso/profiler/unwind"
)

// Executable is one file that frames lie in.
type Executable interface {
	Module() *profiler.Module
	// Symbolize appends the frames at an offset of the file, innermost first,
	// and gives its virtual address.
	Symbolize(dst []profiler.Frame, offset uint64) ([]profiler.Frame, uint64)
}

// Symbolizer names stacks.
type Symbolizer struct {
	// Executables gives a file by the number in its frames; nil if there is none.
	Executables func(id uint32) Executable
	// PerfMap gives the names of the code that a process made at run time.
	PerfMap func(profiler.PID) lang.Instance
	// Kernel names kernel addresses; nil where the kernel hides them.
	Kernel *Kernel

	// LookedUp, if set, is called after each look-up in a file.
	LookedUp func()
	// Budget bounds the bytes of locations that are kept; 0: no bound.
	Budget int

	mu        sync.Mutex
	young     generation
	old       generation // asked for no longer, if they do not come back
	evictions uint64
	modules   map[string]*profiler.Module
	scratch   []profiler.Frame
}

// generation holds locations. When the young one has half of the budget it
// becomes the old one, and what was in the old one is gone: about the least
// recently used half, without a list to keep.
type generation struct {
	files  map[uint64]*profiler.Location // by frame word
	kernel map[uint64]*profiler.Location
	jit    map[jitKey]*profiler.Location
	bytes  int
}

func newGeneration() generation {
	return generation{map[uint64]*profiler.Location{}, map[uint64]*profiler.Location{}, map[jitKey]*profiler.Location{}, 0}
}

func (g *generation) len() int { return len(g.files) + len(g.kernel) + len(g.jit) }

type jitKey struct {
	pid  profiler.PID
	addr uint64
}

// Bytes is about the memory of the locations that are kept.
func (s *Symbolizer) Bytes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.young.bytes + s.old.bytes
}

// Evictions is how many locations the budget has cost.
func (s *Symbolizer) Evictions() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.evictions
}

// SetBudget changes the bound, and holds it at once.
func (s *Symbolizer) SetBudget(bytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Budget = bytes
	if s.young.bytes+s.old.bytes > bytes {
		s.age()
	}
}

// Forget drops what is known under numbers of executables that will stand for
// others, and the names of code made at run time: JITs use addresses again.
func (s *Symbolizer) Forget(ids map[uint32]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range []*generation{&s.young, &s.old} {
		for _, l := range g.jit {
			g.bytes -= locationBytes(l)
		}
		clear(g.jit)
		if len(ids) == 0 {
			continue
		}
		for word, l := range g.files {
			if id, _, _ := unwind.Split(word); ids[id] {
				g.bytes -= locationBytes(l)
				delete(g.files, word)
			}
		}
	}
}

// locationBytes is about what a location takes, with its place in a map. Names
// are its own: nothing else holds on to them.
func locationBytes(l *profiler.Location) int {
	n := 48 + 48
	for i := range l.Frames {
		f := &l.Frames[i]
		n += 88 + len(f.Function) + len(f.Linkage) + len(f.File)
	}
	return n
}

// find looks a location up in both generations; keep puts one into the young.
func find[K comparable](s *Symbolizer, in func(*generation) map[K]*profiler.Location, key K) *profiler.Location {
	if l := in(&s.young)[key]; l != nil {
		return l
	}
	l := in(&s.old)[key]
	if l != nil {
		delete(in(&s.old), key)
		s.old.bytes -= locationBytes(l)
		keep(s, in, key, l)
	}
	return l
}

func keep[K comparable](s *Symbolizer, in func(*generation) map[K]*profiler.Location, key K, l *profiler.Location) {
	if s.young.files == nil {
		s.young, s.old = newGeneration(), newGeneration()
	}
	bytes := locationBytes(l)
	if s.Budget > 0 && s.young.bytes+bytes > s.Budget/2 {
		s.age()
	}
	in(&s.young)[key] = l
	s.young.bytes += bytes
}

func (s *Symbolizer) age() {
	s.evictions += uint64(s.old.len())
	s.old, s.young = s.young, newGeneration()
}

func filesOf(g *generation) map[uint64]*profiler.Location  { return g.files }
func kernelOf(g *generation) map[uint64]*profiler.Location { return g.kernel }
func jitOf(g *generation) map[jitKey]*profiler.Location    { return g.jit }

// KernelModule is the module of kernel code outside loadable modules.
const KernelModule = "[kernel]"

// Stack names one stack.
func (s *Symbolizer) Stack(pid profiler.PID, kernel, user []uint64, stop profiler.Stop) *profiler.Stack {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &profiler.Stack{Locations: make([]*profiler.Location, 0, len(kernel)+len(user)), Stop: stop}
	for i, addr := range kernel {
		if i > 0 {
			addr-- // a return address: the call is before it
		}
		st.Locations = append(st.Locations, s.kernelLocation(addr))
	}
	for _, word := range user {
		id, addr, exact := unwind.Split(word)
		if !exact {
			addr--
		}
		if id == 0 {
			st.Locations = append(st.Locations, s.jitLocation(pid, addr))
		} else {
			st.Locations = append(st.Locations, s.fileLocation(word, id, addr))
		}
	}
	return st
}

func (s *Symbolizer) kernelLocation(addr uint64) *profiler.Location {
	if l := find(s, kernelOf, addr); l != nil {
		return l
	}
	frame, module := profiler.Frame{Kind: profiler.KindKernel}, KernelModule
	if s.Kernel != nil {
		if name, mod, _, ok := s.Kernel.Lookup(addr); ok {
			frame.Function = name
			if mod != "" {
				module = mod
			}
		}
	}
	l := &profiler.Location{Module: s.module(module), Address: addr, Frames: []profiler.Frame{frame}}
	keep(s, kernelOf, addr, l)
	return l
}

func (s *Symbolizer) fileLocation(word uint64, id uint32, offset uint64) *profiler.Location {
	if l := find(s, filesOf, word); l != nil {
		return l
	}
	l := &profiler.Location{Address: offset}
	s.scratch = s.scratch[:0]
	if e := s.Executables(id); e != nil {
		l.Module = e.Module()
		s.scratch, l.Address = e.Symbolize(s.scratch, offset)
	} else {
		l.Module = s.module("[unknown]")
	}
	l.Frames = s.take()
	keep(s, filesOf, word, l)
	if s.LookedUp != nil {
		s.LookedUp()
	}
	return l
}

func (s *Symbolizer) jitLocation(pid profiler.PID, addr uint64) *profiler.Location {
	key := jitKey{pid, addr}
	if l := find(s, jitOf, key); l != nil {
		return l
	}
	l := &profiler.Location{Module: s.module("[anon]"), Address: addr}
	s.scratch = s.scratch[:0]
	if m := s.PerfMap(pid); m != nil {
		s.scratch, _ = m.Symbolize(s.scratch, addr) // an error is a frame without a name
	}
	if len(s.scratch) == 0 {
		s.scratch = append(s.scratch, profiler.Frame{Kind: profiler.KindJIT})
	}
	l.Frames = s.take()
	keep(s, jitOf, key, l)
	return l
}

// take copies the scratch frames; a location always has one.
func (s *Symbolizer) take() []profiler.Frame {
	if len(s.scratch) == 0 {
		return []profiler.Frame{{Kind: profiler.KindNative}}
	}
	return append([]profiler.Frame(nil), s.scratch...)
}

func (s *Symbolizer) module(path string) *profiler.Module {
	if m := s.modules[path]; m != nil {
		return m
	}
	if s.modules == nil {
		s.modules = map[string]*profiler.Module{}
	}
	m := &profiler.Module{Path: path}
	s.modules[path] = m
	return m
}
