package format

import (
	"bufio"
	"cmp"
	"encoding/json"
	"io"
	"slices"
	"strconv"

	"github.com/kalypso-dev/kalypso/profiler"
)

// Speedscope is the JSON that speedscope.app opens
// (https://www.speedscope.app/file-format-schema.json): one sampled profile
// per process (in a recording by cgroup: per cgroup), the busiest first, and
// before them one of everything when there are several. Weights are nanoseconds of CPU time.
type Speedscope struct{}

// Ending is ".speedscope.json".
func (Speedscope) Ending() string { return ".speedscope.json" }

// Frames of the schema carry the line of the function, not of the call, which
// is why the lines of samples are not written: one function would be many.
type speedscopeFrame struct {
	Name string `json:"name"`
	File string `json:"file,omitempty"`
}

// Write writes the profile, one sample at a time: stacks are not held twice.
func (Speedscope) Write(w io.Writer, p *profiler.Profile) error {
	var (
		frames []speedscopeFrame
		byKey  = make(map[speedscopeFrame]int)
		calls  []call
	)
	number := func(f speedscopeFrame) int {
		n, ok := byKey[f]
		if !ok {
			n = len(frames)
			byKey[f] = n
			frames = append(frames, f)
		}
		return n
	}
	// A sample's stack starts with what the name of its profile leaves open:
	// cgroup, process, thread.
	cgroups := byCgroup(p)
	indices := func(dst []int, s *profiler.Sample, all bool) []int {
		if all && cgroups {
			dst = append(dst, number(speedscopeFrame{Name: cgroupName(s.Process)}))
		}
		if all || cgroups {
			dst = append(dst, number(speedscopeFrame{Name: ProcessName(s.Process)}))
		}
		if t := threadName(s); t != "" {
			dst = append(dst, number(speedscopeFrame{Name: t}))
		}
		calls = appendCalls(calls[:0], s.Stack)
		for _, c := range calls {
			f := speedscopeFrame{Name: c.name}
			if c.frame != nil {
				f.File = profiler.Printable(c.frame.File)
			}
			dst = append(dst, number(f))
		}
		return dst
	}

	everyName, groups := "All processes", byProcess(p)
	if cgroups {
		everyName, groups = "All cgroups", groupByCgroup(p)
	}
	// The frames come first in the file, so all of them are numbered first.
	var stack []int
	for i := range p.Samples {
		stack = indices(stack[:0], &p.Samples[i], len(groups) > 1)
	}

	b := bufio.NewWriterSize(w, 64<<10)
	j := jsonWriter{b}
	b.WriteString(`{"$schema":"https://www.speedscope.app/file-format-schema.json","exporter":"kalypso-agent","name":`)
	j.value(title(p))
	b.WriteString(`,"activeProfileIndex":0,"shared":{"frames":[`)
	for i, f := range frames {
		j.comma(i)
		j.value(f)
	}
	b.WriteString("]},\"profiles\":[")
	profile := func(n int, name string, all bool, samples []*profiler.Sample) {
		j.comma(n)
		var total uint64
		for _, s := range samples {
			total += s.Count
		}
		b.WriteString(`{"type":"sampled","name":`)
		j.value(name)
		b.WriteString(`,"unit":"nanoseconds","startValue":0,"endValue":`)
		j.number(total * uint64(p.Period()))
		b.WriteString(`,"samples":[`)
		for i, s := range samples {
			j.comma(i)
			stack = indices(stack[:0], s, all)
			b.WriteByte('[')
			for k, n := range stack {
				j.comma(k)
				j.number(uint64(n))
			}
			b.WriteByte(']')
		}
		b.WriteString(`],"weights":[`)
		for i, s := range samples {
			j.comma(i)
			j.number(s.Count * uint64(p.Period()))
		}
		b.WriteString("]}")
	}
	n := 0
	if len(groups) != 1 {
		everything := make([]*profiler.Sample, len(p.Samples))
		for i := range p.Samples {
			everything[i] = &p.Samples[i]
		}
		profile(n, everyName, len(groups) > 1, everything)
		n++
	}
	for _, g := range groups {
		profile(n, g.name, false, g.samples)
		n++
	}
	b.WriteString("]}\n")
	return b.Flush() // the writer keeps its first error
}

// group is the samples of one process, or of one cgroup.
type group struct {
	name    string
	samples []*profiler.Sample
	count   uint64
}

// byProcess sorts samples into processes, the busiest first.
func byProcess(p *profiler.Profile) []*group {
	return groupBy(p, func(pr *profiler.Process) *profiler.Process { return pr }, func(pr *profiler.Process) string {
		if pr == nil {
			return ProcessName(pr)
		}
		return ProcessName(pr) + " (" + strconv.FormatUint(uint64(pr.PID), 10) + ")"
	})
}

// groupByCgroup sorts samples into cgroups, the busiest first.
func groupByCgroup(p *profiler.Profile) []*group {
	return groupBy(p, cgroupName, cgroupName)
}

func groupBy[K comparable](p *profiler.Profile, key func(*profiler.Process) K, name func(*profiler.Process) string) []*group {
	var groups []*group
	byKey := make(map[K]*group)
	for i := range p.Samples {
		s := &p.Samples[i]
		k := key(s.Process)
		g, ok := byKey[k]
		if !ok {
			g = &group{name: name(s.Process)}
			byKey[k] = g
			groups = append(groups, g)
		}
		g.samples = append(g.samples, s)
		g.count += s.Count
	}
	slices.SortStableFunc(groups, func(a, b *group) int { return cmp.Compare(b.count, a.count) })
	return groups
}

type jsonWriter struct{ *bufio.Writer }

func (j jsonWriter) comma(i int) {
	if i > 0 {
		j.WriteByte(',')
	}
}

func (j jsonWriter) number(n uint64) { j.Write(strconv.AppendUint(j.AvailableBuffer(), n, 10)) }

func (j jsonWriter) value(v any) {
	out, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and structs of strings always marshal
	}
	j.Write(out)
}
