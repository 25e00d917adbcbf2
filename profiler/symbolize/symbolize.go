// Package symbolize gives names to the addresses of samples: the kernel's from
// kallsyms, a file's from what its runtime knows, run-time code from perf maps.
// Every address is looked up once.
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

	mu      sync.Mutex
	files   map[uint64]*profiler.Location // by frame word
	kernel  map[uint64]*profiler.Location
	jit     map[jitKey]*profiler.Location
	modules map[string]*profiler.Module
	scratch []profiler.Frame
}

type jitKey struct {
	pid  profiler.PID
	addr uint64
}

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
	if l := s.kernel[addr]; l != nil {
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
	if s.kernel == nil {
		s.kernel = map[uint64]*profiler.Location{}
	}
	s.kernel[addr] = l
	return l
}

func (s *Symbolizer) fileLocation(word uint64, id uint32, offset uint64) *profiler.Location {
	if l := s.files[word]; l != nil {
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
	if s.files == nil {
		s.files = map[uint64]*profiler.Location{}
	}
	s.files[word] = l
	return l
}

func (s *Symbolizer) jitLocation(pid profiler.PID, addr uint64) *profiler.Location {
	key := jitKey{pid, addr}
	if l := s.jit[key]; l != nil {
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
	if s.jit == nil {
		s.jit = map[jitKey]*profiler.Location{}
	}
	s.jit[key] = l
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
