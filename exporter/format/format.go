// Package format writes a profile as a file: pprof, folded stacks, speedscope,
// a self-contained HTML page, or a table for a terminal. It knows nothing of
// where the profile comes from, opens no files and reaches no network. The
// same profile gives the same bytes, and every name that is written went
// through profiler.Printable, because names come from foreign files.
package format

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/kalypso-dev/kalypso/profiler"
)

// Format writes profiles in one file format.
type Format interface {
	// Ending is what names of files in this format end in, with the dot.
	Ending() string
	// Write writes the whole profile. It does not close w.
	Write(w io.Writer, p *profiler.Profile) error
}

// Formats lists every format, in the order in which help texts name them.
func Formats() []Format {
	return []Format{Pprof{}, Folded{}, HTML{}, Speedscope{}}
}

// ForPath gives the format that a file's name asks for by its ending.
func ForPath(path string) (Format, error) {
	var endings []string
	for _, f := range Formats() {
		if strings.HasSuffix(strings.ToLower(path), f.Ending()) {
			return f, nil
		}
		endings = append(endings, f.Ending())
	}
	return nil, &profiler.Fault{
		What: fmt.Sprintf("no format for %q", path),
		Why:  fmt.Errorf("the ending of the name chooses the format, and is none of %s", strings.Join(endings, ", ")),
		Fix:  "name the file profile.html, or use - for folded stacks on standard output",
	}
}

// FrameName is what every format shows a frame as.
func FrameName(l *profiler.Location, f *profiler.Frame) string { return profiler.FrameName(l, f) }

// ProcessName is what every format shows a process as.
func ProcessName(p *profiler.Process) string {
	if p == nil {
		return "[unknown]"
	}
	if p.Comm == "" {
		return "[pid " + strconv.FormatUint(uint64(p.PID), 10) + "]"
	}
	return profiler.Printable(p.Comm)
}

// threadName is what a thread is shown as: its name and ID, because threads of
// a pool share their name. Empty when the recording is not by thread.
func threadName(s *profiler.Sample) string {
	if s.TID == 0 {
		return profiler.Printable(s.Thread)
	}
	id := strconv.FormatUint(uint64(s.TID), 10)
	if s.Thread == "" {
		return "thread-" + id
	}
	return profiler.Printable(s.Thread) + "-" + id
}

// byCgroup says whether the recording told cgroups apart: only then has any
// process one.
func byCgroup(p *profiler.Profile) bool {
	return slices.ContainsFunc(p.Samples, func(s profiler.Sample) bool { return s.Process != nil && s.Process.Cgroup != "" })
}

// cgroupName is what a process's cgroup is shown as in a recording by cgroup.
// A process that was gone before it could be asked has none that is known.
func cgroupName(p *profiler.Process) string {
	if p == nil || p.Cgroup == "" {
		return "[unknown cgroup]"
	}
	return profiler.Printable(p.Cgroup)
}

// call is one element of a stack as it is shown: a frame, or the marker that
// stands for what is missing (then loc and frame are nil).
type call struct {
	loc   *profiler.Location
	frame *profiler.Frame
	name  string
}

// appendCalls appends the calls of a stack, root first. The marker of an
// incomplete stack is the first, where the missing callers would be.
func appendCalls(dst []call, s *profiler.Stack) []call {
	if s == nil {
		return dst
	}
	if m := s.Stop.Marker(); m != "" {
		dst = append(dst, call{name: m})
	}
	for i := len(s.Locations) - 1; i >= 0; i-- {
		l := s.Locations[i]
		if len(l.Frames) == 0 {
			dst = append(dst, call{loc: l, name: FrameName(l, nil)})
			continue
		}
		for j := len(l.Frames) - 1; j >= 0; j-- {
			dst = append(dst, call{l, &l.Frames[j], FrameName(l, &l.Frames[j])})
		}
	}
	return dst
}

// kind is the word for the sort of code that a call runs.
func (c *call) kind() profiler.FrameKind {
	switch {
	case c.loc == nil:
		return profiler.KindMarker
	case c.frame != nil:
		return c.frame.Kind
	case c.loc.Module != nil && c.loc.Module.Path == "[kernel]":
		return profiler.KindKernel
	}
	return profiler.KindNative
}

// build is the start of a build ID, enough to tell files apart.
func build(id string) string {
	if len(id) > 12 {
		return id[:12] + "…"
	}
	return id
}
