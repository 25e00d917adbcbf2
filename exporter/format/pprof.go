package format

import (
	"fmt"
	"io"

	pprof "github.com/google/pprof/profile"

	"github.com/kalypso-dev/kalypso/profiler"
)

// Pprof is the gzipped protocol buffer that `go tool pprof` and Pyroscope read.
type Pprof struct{}

// Ending is ".pb.gz".
func (Pprof) Ending() string { return ".pb.gz" }

// Write writes the profile.
func (Pprof) Write(w io.Writer, p *profiler.Profile) error {
	if err := PprofProfile(p).Write(w); err != nil {
		return fmt.Errorf("write pprof profile: %w", err)
	}
	return nil
}

// User addresses are relative to their file, so every user mapping starts at 0
// and ends where user space does on a machine with 4-level page tables. The
// size is the same for all, since pprof takes mappings of different size for
// different files when it compares two profiles.
const (
	userLimit   = 1 << 47
	kernelStart = 0xff00000000000000
	kernelLimit = 1<<64 - 1
)

// PprofProfile gives the profile in pprof's own types. Inlined calls are lines
// of one location, innermost first. Calls without a name get a function named
// "module+0xoffset", so nothing tries to open the files on the reader's
// machine.
func PprofProfile(p *profiler.Profile) *pprof.Profile {
	b := pprofBuilder{
		out: &pprof.Profile{
			SampleType:        []*pprof.ValueType{{Type: "samples", Unit: "count"}, {Type: "cpu", Unit: "nanoseconds"}},
			DefaultSampleType: "cpu",
			PeriodType:        &pprof.ValueType{Type: "cpu", Unit: "nanoseconds"},
			Period:            p.Period().Nanoseconds(),
			DurationNanos:     p.Duration.Nanoseconds(),
		},
		modules:   make(map[profiler.Module]*pprof.Mapping),
		functions: make(map[pprofFunction]*pprof.Function),
		locations: make(map[*profiler.Location]*pprof.Location),
		markers:   make(map[string]*pprof.Location),
	}
	if !p.Start.IsZero() {
		b.out.TimeNanos = p.Start.UnixNano()
	}
	b.out.Comments = facts(p)
	b.first(p)
	for i := range p.Samples {
		b.sample(&p.Samples[i])
	}
	return b.out
}

// pprofFunction is what makes two functions different in pprof.
type pprofFunction struct{ name, linkage, file string }

type pprofBuilder struct {
	out       *pprof.Profile
	modules   map[profiler.Module]*pprof.Mapping
	functions map[pprofFunction]*pprof.Function
	locations map[*profiler.Location]*pprof.Location
	markers   map[string]*pprof.Location
}

// first makes the mapping that pprof shows as the profile's "File:": the
// executable when everything ran in one, else the kernel, which no reader
// takes for the name of a program.
func (b *pprofBuilder) first(p *profiler.Profile) {
	exe := ""
	for i := range p.Samples {
		pr := p.Samples[i].Process
		if pr == nil || pr.Exe == "" {
			continue
		}
		if exe != "" && exe != pr.Exe {
			exe = ""
			break
		}
		exe = pr.Exe
	}
	want := "[kernel]"
	if exe != "" {
		want = exe
	}
	for i := range p.Samples {
		if p.Samples[i].Stack == nil {
			continue
		}
		for _, l := range p.Samples[i].Stack.Locations {
			if l.Module != nil && l.Module.Path == want {
				b.mapping(l)
				return
			}
		}
	}
}

func (b *pprofBuilder) sample(s *profiler.Sample) {
	out := &pprof.Sample{
		Value: []int64{int64(s.Count), int64(s.Count) * b.out.Period},
		Label: map[string][]string{"process": {ProcessName(s.Process)}},
	}
	// The unit "count" is the one that pprof does not print: without a unit it
	// takes the key's name for one and prints "4711pid".
	number := func(key string, n int64) {
		if out.NumLabel == nil {
			out.NumLabel, out.NumUnit = make(map[string][]int64), make(map[string][]string)
		}
		out.NumLabel[key], out.NumUnit[key] = []int64{n}, []string{"count"}
	}
	if s.Process != nil {
		number("pid", int64(s.Process.PID))
		if s.Process.Cgroup != "" {
			out.Label["cgroup"] = []string{profiler.Printable(s.Process.Cgroup)}
		}
	}
	if s.TID != 0 {
		number("tid", int64(s.TID))
	}
	if s.Thread != "" {
		out.Label["thread"] = []string{profiler.Printable(s.Thread)}
	}
	if s.Stack != nil {
		out.Location = make([]*pprof.Location, 0, len(s.Stack.Locations)+1)
		for _, l := range s.Stack.Locations {
			out.Location = append(out.Location, b.location(l))
		}
		if m := s.Stack.Stop.Marker(); m != "" {
			out.Location = append(out.Location, b.marker(m))
		}
	}
	b.out.Sample = append(b.out.Sample, out)
}

func (b *pprofBuilder) location(l *profiler.Location) *pprof.Location {
	if out, ok := b.locations[l]; ok {
		return out
	}
	out := &pprof.Location{
		ID:      uint64(len(b.out.Location) + 1),
		Mapping: b.mapping(l),
		Address: l.Address,
		Line:    make([]pprof.Line, 0, max(1, len(l.Frames))),
	}
	if len(l.Frames) == 0 {
		out.Line = append(out.Line, pprof.Line{Function: b.function(pprofFunction{name: FrameName(l, nil)})})
	}
	for i := range l.Frames {
		f := &l.Frames[i]
		out.Line = append(out.Line, pprof.Line{
			Function: b.function(pprofFunction{FrameName(l, f), profiler.Printable(f.Linkage), profiler.Printable(f.File)}),
			Line:     int64(f.Line),
		})
		out.Mapping.HasFilenames = out.Mapping.HasFilenames || f.File != ""
		out.Mapping.HasLineNumbers = out.Mapping.HasLineNumbers || f.Line != 0
		out.Mapping.HasInlineFrames = out.Mapping.HasInlineFrames || i > 0
	}
	b.out.Location = append(b.out.Location, out)
	b.locations[l] = out
	return out
}

func (b *pprofBuilder) marker(name string) *pprof.Location {
	if out, ok := b.markers[name]; ok {
		return out
	}
	out := &pprof.Location{
		ID:   uint64(len(b.out.Location) + 1),
		Line: []pprof.Line{{Function: b.function(pprofFunction{name: name})}},
	}
	b.out.Location = append(b.out.Location, out)
	b.markers[name] = out
	return out
}

func (b *pprofBuilder) function(key pprofFunction) *pprof.Function {
	if out, ok := b.functions[key]; ok {
		return out
	}
	out := &pprof.Function{
		ID:         uint64(len(b.out.Function) + 1),
		Name:       key.name,
		SystemName: key.linkage,
		Filename:   key.file,
	}
	if out.SystemName == "" {
		out.SystemName = out.Name
	}
	b.out.Function = append(b.out.Function, out)
	b.functions[key] = out
	return out
}

func (b *pprofBuilder) mapping(l *profiler.Location) *pprof.Mapping {
	var m profiler.Module
	if l.Module != nil {
		m = *l.Module
	}
	if out, ok := b.modules[m]; ok {
		return out
	}
	out := &pprof.Mapping{
		ID:           uint64(len(b.out.Mapping) + 1),
		Limit:        userLimit,
		File:         profiler.Printable(m.Path),
		BuildID:      profiler.Printable(m.BuildID),
		HasFunctions: true,
	}
	if out.File == "" {
		out.File = "[unknown]"
	}
	if l.Address >= kernelStart {
		out.Start, out.Limit = kernelStart, kernelLimit
	}
	b.out.Mapping = append(b.out.Mapping, out)
	b.modules[m] = out
	return out
}
