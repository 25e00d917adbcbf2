package api

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
)

// Dump is the stacks of every thread of a process. Its strings hold no control
// characters.
type Dump struct {
	Schema     string       `json:"schema"`
	PID        profiler.PID `json:"pid"`
	Comm       string       `json:"comm,omitempty"` // name of the main thread
	Exe        string       `json:"exe,omitempty"`  // empty for kernel threads, and where it cannot be read
	Time       time.Time    `json:"time"`
	DurationMS int64        `json:"duration_ms"` // that it took
	Complete   int          `json:"stacks_complete"`
	Threads    []DumpThread `json:"threads"` // the main thread first, the others by thread ID
}

// DumpThread is one thread.
type DumpThread struct {
	TID      profiler.TID `json:"tid"`
	Name     string       `json:"name"`
	State    string       `json:"state"`
	Syscall  string       `json:"syscall,omitempty"`
	Complete bool         `json:"complete"`
	Changed  bool         `json:"changed,omitempty"` // it ran while its stack was read
	Stop     string       `json:"stop"`              // why the stack ends: profiler.Stop
	Marker   string       `json:"marker,omitempty"`  // the same for people; empty when it is complete
	Frames   []DumpFrame  `json:"frames"`            // leaf first, kernel and user
}

// DumpFrame is one call.
type DumpFrame struct {
	Kind     string `json:"kind"`
	Function string `json:"function"` // module+0xoffset where there is no name
	Named    bool   `json:"named"`
	Module   string `json:"module,omitempty"`
	File     string `json:"file,omitempty"`
	Line     int    `json:"line,omitempty"`
	Inlined  bool   `json:"inlined,omitempty"` // into the next frame
	Address  string `json:"address"`           // in the module
}

// ThreadStack is one thread and where it is.
type ThreadStack struct {
	TID     profiler.TID
	Name    string
	State   string // "running", "sleeping", …: see proc_pid_stat(5)
	Syscall string // the system call that it is in; empty: none, or not known
	Changed bool   // it ran while its stack was read: only the leaf is known
	Stack   *profiler.Stack
}

// NewDump is a dump of a process, begun at a time, that took so long. exe is the
// path of its executable, empty where there is none.
func NewDump(pid profiler.PID, exe string, at time.Time, took time.Duration, threads []ThreadStack) *Dump {
	d := &Dump{
		Schema: schemaDump, PID: pid, Exe: profiler.Printable(exe), Time: at.UTC(), DurationMS: took.Milliseconds(),
		Threads: make([]DumpThread, 0, len(threads)),
	}
	for i := range threads {
		t := newDumpThread(&threads[i])
		if t.TID == profiler.TID(pid) {
			d.Comm = t.Name
		}
		if t.Complete {
			d.Complete++
		}
		d.Threads = append(d.Threads, t)
	}
	return d
}

func newDumpThread(t *ThreadStack) DumpThread {
	out := DumpThread{
		TID: t.TID, Name: profiler.Printable(t.Name), State: t.State, Syscall: t.Syscall, Changed: t.Changed,
		Stop: t.Stack.Stop.String(), Marker: t.Stack.Stop.Marker(), Frames: []DumpFrame{},
	}
	if t.Changed {
		out.Marker = "[changed while it was read]"
	}
	out.Complete = out.Marker == ""
	for _, l := range t.Stack.Locations {
		for i := range l.Frames {
			out.Frames = append(out.Frames, newDumpFrame(l, &l.Frames[i]))
		}
	}
	return out
}

func newDumpFrame(l *profiler.Location, f *profiler.Frame) DumpFrame {
	out := DumpFrame{
		Kind: f.Kind.String(), Function: profiler.FrameName(l, f), Named: f.Function != "",
		File: profiler.Printable(f.File), Line: f.Line, Inlined: f.Inlined, Address: fmt.Sprintf("0x%x", l.Address),
	}
	if l.Module != nil {
		out.Module = profiler.Printable(l.Module.Path)
	}
	return out
}

// WriteDump writes a dump as text. Threads that are at the same place are
// written once, with their names.
func WriteDump(w io.Writer, d *Dump) error {
	b := bufio.NewWriter(w)
	title := []string{fmt.Sprintf("PID %d", d.PID)}
	if d.Comm != "" {
		title = append(title, d.Comm)
	}
	if d.Exe != "" {
		title = append(title, d.Exe)
	}
	writeLine(b, strings.Join(append(title, plural(len(d.Threads), "thread")), " · "))
	for _, p := range foldThreads(d.Threads) {
		b.WriteByte('\n')
		writePlace(b, p)
	}
	b.WriteByte('\n')
	writeLine(b, "quality  "+dumpQuality(d))
	return b.Flush() // the writer keeps its first error
}

// writeLine writes a line of which parts may come from an agent that is not
// ours.
func writeLine(w io.StringWriter, line string) {
	_, _ = w.WriteString(profiler.Printable(line)) // writers that keep their first error, or have none
	_, _ = w.WriteString("\n")
}

// place is where threads are: what they do, and the lines of their stack.
type place struct {
	state, stack string
	threads      []*DumpThread
}

// foldThreads puts threads that are at the same place together, in the order of
// the first of each.
func foldThreads(threads []DumpThread) []*place {
	var places []*place
	at := map[[2]string]*place{}
	for i := range threads {
		t := &threads[i]
		state, stack := threadState(t), stackLines(t)
		p := at[[2]string{state, stack}]
		if p == nil {
			p = &place{state: state, stack: stack}
			at[[2]string{state, stack}] = p
			places = append(places, p)
		}
		p.threads = append(p.threads, t)
	}
	return places
}

func threadState(t *DumpThread) string {
	if t.Syscall == "" {
		return t.State
	}
	return t.State + " in " + t.Syscall
}

// maxListed is how many threads at one place are written by name.
const maxListed = 8

func writePlace(b *bufio.Writer, p *place) {
	var names []string
	for _, t := range p.threads[:min(len(p.threads), maxListed)] {
		names = append(names, fmt.Sprintf("%d \"%s\"", t.TID, t.Name))
	}
	if len(p.threads) == 1 {
		writeLine(b, names[0]+" · "+p.state)
	} else {
		writeLine(b, plural(len(p.threads), "thread")+" · "+p.state)
		list := "  " + strings.Join(names, ", ")
		if more := len(p.threads) - maxListed; more > 0 {
			list += fmt.Sprintf(" and %d more", more)
		}
		writeLine(b, list)
	}
	b.WriteString(p.stack)
}

func stackLines(t *DumpThread) string {
	var b strings.Builder
	for i := range t.Frames {
		writeLine(&b, frameLine(&t.Frames[i]))
	}
	if t.Marker != "" {
		writeLine(&b, "    "+t.Marker)
	}
	return b.String()
}

// frameLine names the module of native functions: those of others tell where
// they are from.
func frameLine(f *DumpFrame) string {
	line := fmt.Sprintf("    %-6s  %s", f.Kind, f.Function)
	if f.Kind == profiler.KindNative.String() && f.Named && f.Module != "" {
		m := profiler.Module{Path: f.Module}
		line += " (" + m.Name() + ")"
	}
	if f.File != "" {
		line += "  " + f.File
		if f.Line > 0 {
			line += ":" + strconv.Itoa(f.Line)
		}
	}
	if f.Inlined {
		line += "  inlined"
	}
	return line
}

// dumpQuality says how far the stacks can be trusted. Frames are counted as in
// profiler.Quality: an address with its inlined calls is one.
func dumpQuality(d *Dump) string {
	var changed, frames, named int
	stops := map[string]int{}
	for i := range d.Threads {
		t := &d.Threads[i]
		switch {
		case t.Changed:
			changed++
		case !t.Complete:
			stops[t.Marker]++
		}
		for j := range t.Frames {
			f := &t.Frames[j]
			if f.Inlined {
				continue
			}
			frames++
			if f.Named {
				named++
			}
		}
	}
	parts := []string{fmt.Sprintf("%d of %s complete", d.Complete, plural(len(d.Threads), "stack"))}
	if changed > 0 {
		parts = append(parts, fmt.Sprintf("%d changed while they were read", changed))
	}
	for _, marker := range slices.Sorted(maps.Keys(stops)) {
		parts = append(parts, fmt.Sprintf("%d %s", stops[marker], marker))
	}
	return strings.Join(append(parts, fmt.Sprintf("%d of %s named", named, plural(frames, "frame"))), " · ")
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
