package format

import (
	"bufio"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/kalypso-dev/kalypso/profiler"
)

// Folded is one line per distinct stack, "comm;root;…;leaf count", sorted, as
// flame graph scripts and grep want it. Names are plain: no _[k] or _[j] is
// added, because a name that is not the function's name is found by nobody who
// looks for the function. A recording by thread has the thread as second
// element, one by cgroup the cgroup as first, so that a flame graph of it has a
// tower per cgroup. An incomplete stack has its marker before the frames.
type Folded struct{}

// Ending is ".folded".
func (Folded) Ending() string { return ".folded" }

// Write writes the profile. Stacks that are the same in several processes of
// one name are one line.
func (Folded) Write(w io.Writer, p *profiler.Profile) error {
	counts := make(map[string]uint64)
	var calls []call
	var line []byte
	cgroups := byCgroup(p)
	for i := range p.Samples {
		s := &p.Samples[i]
		line = line[:0]
		if cgroups {
			line = append(line, element(cgroupName(s.Process))...)
			line = append(line, ';')
		}
		line = append(line, element(ProcessName(s.Process))...)
		if t := threadName(s); t != "" {
			line = append(line, ';')
			line = append(line, element(t)...)
		}
		calls = appendCalls(calls[:0], s.Stack)
		for _, c := range calls {
			line = append(line, ';')
			line = append(line, element(c.name)...)
		}
		counts[string(line)] += s.Count
	}
	stacks := make([]string, 0, len(counts))
	for s, n := range counts {
		if n > 0 {
			stacks = append(stacks, s)
		}
	}
	slices.Sort(stacks)
	b := bufio.NewWriterSize(w, 64<<10)
	for _, s := range stacks {
		b.WriteString(s)
		b.WriteByte(' ')
		b.WriteString(strconv.FormatUint(counts[s], 10))
		b.WriteByte('\n')
	}
	return b.Flush() // the writer keeps its first error
}

// element is a name without the one printable character that separates
// elements. Java's signatures have it ("Ljava/lang/String;").
func element(name string) string { return strings.ReplaceAll(name, ";", ":") }
