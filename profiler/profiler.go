// Package profiler holds the nouns of Kalypso: frame, location, stack, process,
// sample, profile, quality. Every other package speaks in them; this one
// imports only the standard library and knows nothing of where they come from.
//
// Order: stacks and the frames of a location are leaf first (the innermost
// call has index 0), as in pprof.
package profiler

import "time"

// PID is a process ID (a thread group ID, in kernel words) as seen in the
// agent's own PID namespace.
type PID uint32

// TID is a thread ID in the agent's own PID namespace.
type TID uint32

// FrameKind says what sort of code a frame runs.
type FrameKind uint8

// The kinds. Marker frames are not code: they say why a stack is not whole.
const (
	KindNative FrameKind = iota // compiled code with a file behind it: C, C++, Rust, …
	KindKernel                  // the kernel and its modules
	KindGo                      // Go code
	KindJIT                     // machine code made at run time, named by a perf map
	KindMarker                  // "[truncated]", "[no unwind info]", …
)

// String gives the lower-case word used in output and labels.
func (k FrameKind) String() string {
	switch k {
	case KindNative:
		return "native"
	case KindKernel:
		return "kernel"
	case KindGo:
		return "go"
	case KindJIT:
		return "jit"
	case KindMarker:
		return "marker"
	}
	return "unknown"
}

// Frame is one source-level call. One machine address may stand for several
// frames when the compiler inlined calls.
type Frame struct {
	Function string // demangled; empty when no symbol covers the address
	Start    uint64 // of a function without a name, where its bounds are known all the same; else 0
	Linkage  string // the symbol as the linker knows it, when it differs from Function
	File     string // source file, empty when unknown
	Line     int    // 1-based, 0 when unknown
	Kind     FrameKind
	Inlined  bool // the call was inlined into the next frame of the location
}

// Module is one executable file, the kernel, a kernel module, or a region of
// code made at run time.
type Module struct {
	Path    string // as the process sees it; "[kernel]", "[vdso]", "[anon]"
	BuildID string // GNU build ID in hex, else Go's build ID, else empty
}

// Name is the last element of the module's path: what a frame without a
// symbol is shown with.
func (m *Module) Name() string {
	for i := len(m.Path) - 1; i >= 0; i-- {
		if m.Path[i] == '/' && i+1 < len(m.Path) {
			return m.Path[i+1:]
		}
	}
	return m.Path
}

// Location is one machine address with all the source-level calls that it
// stands for, innermost first. It always has at least one frame; Function is
// empty in it when the address has no name.
type Location struct {
	Module  *Module
	Address uint64 // virtual address inside the module's file; absolute for the kernel and for code made at run time
	Frames  []Frame
}

// Named says whether a symbol was found.
func (l *Location) Named() bool { return len(l.Frames) > 0 && l.Frames[0].Function != "" }

// Stop is the reason why a stack walk ended.
type Stop uint8

// The reasons, in step with bpf/include/kalypso/status.h; a test compares them.
const (
	StopNone        Stop = iota // the walk did not end: a bug
	StopRoot                    // the root of the stack was reached: the only complete end
	StopTruncated               // the frame limit was reached, or the copied stack was too short
	StopNoMapping               // the address is in no known executable mapping
	StopNoTable                 // unwind rows of this page were not built (over budget, or file unreadable)
	StopNoRow                   // the file has no unwind information for the address
	StopUnsupported             // the unwind rule cannot be expressed
	StopBadRead                 // the stack memory could not be read
	StopBadFrame                // the stack pointer did not move up, or a frame pointer was implausible
	StopNoRegisters             // the user registers could not be read
	StopCompat                  // a 32-bit process on a 64-bit kernel
	StopNoUser                  // a kernel thread, or a process that exits and gave its memory back: there is no user stack
	stopCount
)

// Stops is the number of stop reasons.
const Stops = int(stopCount)

// Complete says whether the walk saw everything down to the root.
func (s Stop) Complete() bool { return s == StopRoot || s == StopNoUser }

// String gives the reason's name as in stats files, metrics and docs.
func (s Stop) String() string {
	names := [...]string{
		"none", "root", "truncated", "no_mapping", "no_table", "no_row", "unsupported",
		"bad_read", "bad_frame", "no_registers", "compat", "no_user",
	}
	if int(s) < len(names) {
		return names[s]
	}
	return "unknown"
}

// Marker is the name of the frame that stands in for the missing part of an
// incomplete stack, and empty for a complete one.
func (s Stop) Marker() string {
	switch s {
	case StopRoot, StopNoUser:
		return ""
	case StopTruncated:
		return "[truncated]"
	case StopNoMapping:
		return "[unwind: address in no mapping]"
	case StopNoTable:
		return "[unwind: table not built]"
	case StopNoRow:
		return "[unwind: no information]"
	case StopUnsupported:
		return "[unwind: unsupported rule]"
	case StopBadRead:
		return "[unwind: stack not readable]"
	case StopBadFrame:
		return "[unwind: implausible frame]"
	case StopNoRegisters:
		return "[unwind: registers not readable]"
	case StopCompat:
		return "[unwind: 32-bit process]"
	}
	return "[unwind: unknown]"
}

// Stack is one distinct call stack, leaf first: kernel locations, then user
// locations. It holds no marker frame: writers add Stop.Marker at the root end.
type Stack struct {
	Locations []*Location
	Stop      Stop
}

// Process is one process as samples know it.
type Process struct {
	PID    PID
	Comm   string // of the process's main thread, at the last sample
	Exe    string // path of the executable as the process sees it; empty for kernel threads
	Cgroup string // cgroup path, empty when not asked for
}

// Sample is a stack of one process (and thread, where they are told apart)
// with the number of times it was seen.
type Sample struct {
	Process *Process
	TID     TID    // 0 unless the recording is by thread
	Thread  string // the thread's name; empty unless the recording is by thread
	Stack   *Stack
	Count   uint64
}

// Attribute is one thing that is known of a workload, under its OpenTelemetry
// semantic name ("service.name", "k8s.pod.name").
type Attribute struct{ Key, Value string }

// Workload is what processes belong to: a systemd unit, a container, the host.
// It is who a profile is of where profiles are sent somewhere.
type Workload struct {
	Attributes []Attribute // sorted by key, no key twice; "service.name" is among them
}

// Attribute gives the value of an attribute, empty when there is none.
func (w *Workload) Attribute(key string) string {
	for _, a := range w.Attributes {
		if a.Key == key {
			return a.Value
		}
	}
	return ""
}

// Profile is everything sampled between Start and Start+Duration. One sample
// stands for Period of CPU time.
type Profile struct {
	Workload  *Workload // nil: everything that was recorded
	Start     time.Time
	Duration  time.Duration
	Frequency int    // samples a second and CPU
	Event     string // "cpu-clock" or "cycles"
	Host      string
	Remarks   []string // lines for people: what has to be known to read its figures
	Samples   []Sample
	Quality   Quality
}

// Period is the CPU time that one sample stands for.
func (p *Profile) Period() time.Duration {
	if p.Frequency <= 0 {
		return 0
	}
	return time.Second / time.Duration(p.Frequency)
}

// Quality says how much of the truth a profile holds.
type Quality struct {
	Samples         uint64            // samples in the profile
	Lost            uint64            // samples taken but lost on the way, counted
	LostUnknown     bool              // of some of the profile nobody told how many were lost
	DistinctStacks  uint64            // different stacks among them
	Stops           [Stops]uint64     // samples by the reason their walk ended
	Frames          uint64            // locations of distinct stacks times their samples
	FramesNamed     uint64            // of those, the ones with a function name
	UnnamedByModule map[string]uint64 // the others, by module path
}

// Add counts a stack that was seen count times.
func (q *Quality) Add(s *Stack, count uint64) {
	q.Samples += count
	q.DistinctStacks++
	if int(s.Stop) < len(q.Stops) {
		q.Stops[s.Stop] += count
	}
	for _, l := range s.Locations {
		q.Frames += count
		if l.Named() {
			q.FramesNamed += count
			continue
		}
		if q.UnnamedByModule == nil {
			q.UnnamedByModule = map[string]uint64{}
		}
		q.UnnamedByModule[l.Module.Path] += count
	}
}

// Merge adds up two qualities. Stacks that are in both count as distinct.
func (q *Quality) Merge(o *Quality) {
	q.Samples += o.Samples
	q.Lost += o.Lost
	q.LostUnknown = q.LostUnknown || o.LostUnknown
	q.DistinctStacks += o.DistinctStacks
	for i, n := range o.Stops {
		q.Stops[i] += n
	}
	q.Frames += o.Frames
	q.FramesNamed += o.FramesNamed
	for module, n := range o.UnnamedByModule {
		if q.UnnamedByModule == nil {
			q.UnnamedByModule = map[string]uint64{}
		}
		q.UnnamedByModule[module] += n
	}
}

// Complete is the number of samples whose stack reached the root.
func (q *Quality) Complete() uint64 {
	var n uint64
	for s := range q.Stops {
		if Stop(s).Complete() {
			n += q.Stops[s]
		}
	}
	return n
}
