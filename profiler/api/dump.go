package api

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
)

func newDump(pid profiler.PID, at time.Time, threads []ThreadStack) *Dump {
	d := &Dump{Schema: schemaDump, PID: pid, Time: at.UTC(), Threads: make([]DumpThread, 0, len(threads))}
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
		TID: t.TID, Name: profiler.Printable(t.Name), State: t.State, Syscall: t.Syscall, Changed: t.Changed, Frames: []DumpFrame{},
	}
	stack := t.Stack
	if stack == nil {
		stack = &profiler.Stack{}
	}
	out.Stop, out.Marker = stack.Stop.String(), stack.Stop.Marker()
	if t.Changed {
		out.Marker = "[changed while it was read]"
	}
	out.Complete = out.Marker == ""
	for _, l := range stack.Locations {
		for i := range l.Frames {
			f := &l.Frames[i]
			frame := DumpFrame{
				Kind: f.Kind.String(), Function: profiler.FrameName(l, f), Named: f.Function != "",
				File: profiler.Printable(f.File), Line: f.Line, Inlined: f.Inlined, Address: fmt.Sprintf("0x%x", l.Address),
			}
			if l.Module != nil {
				frame.Module = profiler.Printable(l.Module.Path)
			}
			out.Frames = append(out.Frames, frame)
		}
	}
	return out
}

// WriteDump writes the stacks as text. Threads that are at the same place are
// written once, with their names.
func WriteDump(w io.Writer, d *Dump) error {
	b := bufio.NewWriter(w)
	title := fmt.Sprintf("PID %d", d.PID)
	if d.Comm != "" {
		title += " · " + d.Comm
	}
	fmt.Fprintf(b, "%s · %s\n", title, plural(len(d.Threads), "thread"))
	for _, same := range foldThreads(d.Threads) {
		b.WriteByte('\n')
		writeThreads(b, same)
	}
	fmt.Fprintf(b, "\n%d of %s complete\n", d.Complete, plural(len(d.Threads), "stack"))
	return b.Flush() // the writer keeps its first error
}

// foldThreads puts threads that are at the same place together, in the order of
// the first of each.
func foldThreads(threads []DumpThread) [][]*DumpThread {
	var folded [][]*DumpThread
	for i := range threads {
		t := &threads[i]
		n := slices.IndexFunc(folded, func(have []*DumpThread) bool {
			h := have[0]
			return h.State == t.State && h.Syscall == t.Syscall && h.Marker == t.Marker && slices.Equal(h.Frames, t.Frames)
		})
		if n < 0 {
			folded = append(folded, []*DumpThread{t})
			continue
		}
		folded[n] = append(folded[n], t)
	}
	return folded
}

// maxListed is how many threads at one place are written by name.
const maxListed = 8

func writeThreads(b *bufio.Writer, same []*DumpThread) {
	t := same[0]
	state := t.State
	if t.Syscall != "" {
		state += " in " + t.Syscall
	}
	var names []string
	for _, t := range same[:min(len(same), maxListed)] {
		names = append(names, fmt.Sprintf("%d \"%s\"", t.TID, t.Name))
	}
	if more := len(same) - maxListed; more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	if len(same) == 1 {
		fmt.Fprintf(b, "%s · %s\n", names[0], state)
	} else {
		fmt.Fprintf(b, "%s · %s\n  %s\n", plural(len(same), "thread"), state, strings.Join(names, ", "))
	}
	for i := range t.Frames {
		f := &t.Frames[i]
		fmt.Fprintf(b, "    %-6s  %s", f.Kind, f.Function)
		if f.File != "" {
			fmt.Fprintf(b, "  %s", f.File)
		}
		if f.File != "" && f.Line > 0 {
			fmt.Fprintf(b, ":%d", f.Line)
		}
		if f.Inlined {
			b.WriteString("  inlined")
		}
		b.WriteByte('\n')
	}
	if t.Marker != "" {
		fmt.Fprintf(b, "    %s\n", t.Marker)
	}
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
