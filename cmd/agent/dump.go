package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/dump"
	"github.com/kalypso-dev/kalypso/profiler/lang"
	"github.com/kalypso-dev/kalypso/profiler/lang/native"
)

func newDumpCommand() *cobra.Command {
	var (
		pid    string
		output string
		kernel bool
	)
	cmd := &cobra.Command{
		Use:   "dump -p PID",
		Short: "stacks of every thread of a process right now; for hangs",
		Long: `Where is every thread of a process right now? Prints the state of each and its
stack, kernel and user, leaf first. The process goes on meanwhile.
Goroutines that wait for each other are on no thread and not shown.`,
		Example: `  sudo kalypso-agent dump -p 1234                     where does every thread of a process wait?
  sudo kalypso-agent dump -p 1234 --kernel=false      only what is the program's own
  sudo kalypso-agent dump -p 1234 -o json             for a program to read`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := oneOf(cmd, "output", output, "text", "json"); err != nil {
				return err
			}
			n, err := dumpedPID(cmd, pid)
			if err != nil {
				return err
			}
			d, err := takeDump(cmd, n, kernel)
			if err != nil {
				return err
			}
			if output == "json" {
				return printFault(d.writeJSON(cmd.OutOrStdout()))
			}
			return printFault(d.writeText(cmd.OutOrStdout()))
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVarP(&pid, "pid", "p", "", "the process, by its `PID`")
	f.BoolVar(&kernel, "kernel", true, "kernel stacks too")
	f.StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

func dumpedPID(cmd *cobra.Command, text string) (profiler.PID, error) {
	if text == "" {
		return 0, usage(cmd.CommandPath()+" -p PID", "which process? dump takes its PID")
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n == 0 || n > math.MaxInt32 {
		return 0, usage("pgrep -l NAME lists PIDs", "there can be no PID %q", text)
	}
	return profiler.PID(n), nil
}

// dumped is a dump with what it is of.
type dumped struct {
	pid     profiler.PID
	exe     string // empty for kernel threads, and where it cannot be read
	at      time.Time
	took    time.Duration
	threads []dump.Thread
}

func takeDump(cmd *cobra.Command, pid profiler.PID, kernel bool) (*dumped, error) {
	d := &dumped{pid: pid, at: time.Now()}
	d.exe, _ = os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	notes := newNotes(cmd.ErrOrStderr())
	var err error
	d.threads, err = dump.Threads(cmd.Context(), dump.Config{
		Runtimes: runtimes(), Kernel: kernel, Failed: notes.failed,
		OpenPerfMap: func(pid profiler.PID, root string) (lang.Instance, error) {
			return native.OpenPerfMap(pid, root)
		},
	}, pid)
	d.took = time.Since(d.at)
	return d, err
}

// writeText writes threads with the same stack once.
func (d *dumped) writeText(w io.Writer) error {
	b := bufio.NewWriter(w)
	title := []string{fmt.Sprintf("PID %d", d.pid)}
	if len(d.threads) > 0 && d.threads[0].TID == profiler.TID(d.pid) {
		title = append(title, profiler.Printable(d.threads[0].Name))
	}
	if d.exe != "" {
		title = append(title, profiler.Printable(d.exe))
	}
	title = append(title, counted(len(d.threads), "thread"))
	_, _ = fmt.Fprintln(b, strings.Join(title, " · "))
	for _, same := range foldThreads(d.threads) {
		_, _ = fmt.Fprintln(b)
		writeThreads(b, same)
	}
	_, _ = fmt.Fprintf(b, "\nquality  %s\n", dumpQuality(d.threads))
	return b.Flush()
}

// foldThreads puts threads that wait at the same place together, in the order
// of each place's first thread.
func foldThreads(threads []dump.Thread) [][]*dump.Thread {
	var folded [][]*dump.Thread
	at := map[string]int{}
	for i := range threads {
		t := &threads[i]
		var key strings.Builder
		_, _ = fmt.Fprint(&key, t.State, t.Syscall, t.Changed, t.Stack.Stop)
		for _, l := range t.Stack.Locations {
			_, _ = fmt.Fprintf(&key, " %p", l) // one address is one location
		}
		n, known := at[key.String()]
		if !known {
			n = len(folded)
			at[key.String()] = n
			folded = append(folded, nil)
		}
		folded[n] = append(folded[n], t)
	}
	return folded
}

// maxListed is how many threads of the same stack are listed by name.
const maxListed = 8

func writeThreads(w io.Writer, same []*dump.Thread) {
	t := same[0]
	state := string(t.State)
	if t.Syscall != "" {
		state += " in " + t.Syscall
	}
	if len(same) == 1 {
		_, _ = fmt.Fprintf(w, "%s · %s\n", threadName(t), state)
	} else {
		var names []string
		for _, t := range same[:min(len(same), maxListed)] {
			names = append(names, threadName(t))
		}
		text := strings.Join(names, ", ")
		if more := len(same) - maxListed; more > 0 {
			text += fmt.Sprintf(" and %d more", more)
		}
		_, _ = fmt.Fprintf(w, "%s · %s\n  %s\n", counted(len(same), "thread"), state, text)
	}
	for _, l := range t.Stack.Locations {
		for i := range l.Frames {
			writeFrame(w, l, &l.Frames[i])
		}
	}
	if marker := dumpMarker(t); marker != "" {
		_, _ = fmt.Fprintf(w, "    %s\n", marker)
	}
}

func threadName(t *dump.Thread) string {
	return fmt.Sprintf("%d \"%s\"", t.TID, profiler.Printable(t.Name))
}

func writeFrame(w io.Writer, l *profiler.Location, f *profiler.Frame) {
	line := fmt.Sprintf("    %-6s  %s", f.Kind, profiler.FrameName(l, f))
	if f.Kind == profiler.KindNative && f.Function != "" && l.Module != nil {
		line += " (" + profiler.Printable(l.Module.Name()) + ")"
	}
	if f.File != "" {
		line += "  " + profiler.Printable(f.File)
		if f.Line > 0 {
			line += ":" + strconv.Itoa(f.Line)
		}
	}
	if f.Inlined {
		line += "  inlined"
	}
	_, _ = fmt.Fprintln(w, line)
}

// dumpMarker stands for the part of a stack that is missing.
func dumpMarker(t *dump.Thread) string {
	if t.Changed {
		return "[changed while it was read]"
	}
	return t.Stack.Stop.Marker()
}

// dumpQuality says how far the stacks can be trusted.
func dumpQuality(threads []dump.Thread) string {
	var complete, changed, frames, named int
	stops := map[string]int{}
	for i := range threads {
		t := &threads[i]
		switch marker := dumpMarker(t); {
		case t.Changed:
			changed++
		case marker == "":
			complete++
		default:
			stops[marker]++
		}
		for _, l := range t.Stack.Locations {
			frames++
			if l.Named() {
				named++
			}
		}
	}
	parts := []string{fmt.Sprintf("%d of %d stacks complete", complete, len(threads))}
	if changed > 0 {
		parts = append(parts, fmt.Sprintf("%d changed while they were read", changed))
	}
	var markers []string
	for marker := range stops {
		markers = append(markers, marker)
	}
	slices.Sort(markers)
	for _, marker := range markers {
		parts = append(parts, fmt.Sprintf("%d %s", stops[marker], marker))
	}
	return strings.Join(append(parts, fmt.Sprintf("%d of %d frames named", named, frames)), " · ")
}

func counted(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// dumpReport is kalypso.dump/v1. Fields are added, not changed.
type dumpReport struct {
	Schema     string       `json:"schema"`
	PID        uint32       `json:"pid"`
	Executable string       `json:"executable,omitempty"`
	Time       time.Time    `json:"time"`
	DurationMS int64        `json:"duration_ms"`
	Complete   int          `json:"stacks_complete"`
	Threads    []dumpThread `json:"threads"`
}

type dumpThread struct {
	TID      uint32      `json:"tid"`
	Name     string      `json:"name"`
	State    string      `json:"state"`
	Syscall  string      `json:"syscall,omitempty"`
	Complete bool        `json:"complete"`
	Changed  bool        `json:"changed,omitempty"` // it ran while its stack was read
	Stop     string      `json:"stop"`              // why the stack ends: profiler.Stop
	Frames   []dumpFrame `json:"frames"`            // leaf first
}

type dumpFrame struct {
	Kind     string `json:"kind"`
	Function string `json:"function"` // module+0xoffset where there is no name
	Named    bool   `json:"named"`
	Module   string `json:"module,omitempty"`
	File     string `json:"file,omitempty"`
	Line     int    `json:"line,omitempty"`
	Inlined  bool   `json:"inlined,omitempty"`
	Address  string `json:"address"` // in the module
}

func (d *dumped) writeJSON(w io.Writer) error {
	doc := dumpReport{
		Schema: "kalypso.dump/v1", PID: uint32(d.pid), Executable: d.exe, Time: d.at.UTC(), DurationMS: d.took.Milliseconds(),
		Threads: make([]dumpThread, 0, len(d.threads)),
	}
	for i := range d.threads {
		t := &d.threads[i]
		out := dumpThread{
			TID: uint32(t.TID), Name: t.Name, State: string(t.State), Syscall: t.Syscall, Changed: t.Changed,
			Complete: dumpMarker(t) == "", Stop: t.Stack.Stop.String(), Frames: []dumpFrame{},
		}
		if out.Complete {
			doc.Complete++
		}
		for _, l := range t.Stack.Locations {
			for j := range l.Frames {
				out.Frames = append(out.Frames, frameOf(l, &l.Frames[j]))
			}
		}
		doc.Threads = append(doc.Threads, out)
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(doc)
}

func frameOf(l *profiler.Location, f *profiler.Frame) dumpFrame {
	out := dumpFrame{
		Kind: f.Kind.String(), Function: profiler.FrameName(l, f), Named: f.Function != "", File: f.File, Line: f.Line,
		Inlined: f.Inlined, Address: fmt.Sprintf("0x%x", l.Address),
	}
	if l.Module != nil {
		out.Module = l.Module.Path
	}
	return out
}
