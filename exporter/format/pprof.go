package format

import (
	"cmp"
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
	return WriteProfiles(w, []*profiler.Profile{p})
}

// WriteProfiles writes profiles of several workloads as one pprof file, in
// which each sample is labelled with its service's name. ReadProfiles gives
// them back one by one.
func WriteProfiles(w io.Writer, profiles []*profiler.Profile) error {
	if err := PprofProfile(profiles...).Write(w); err != nil {
		return fmt.Errorf("write pprof profile: %w", err)
	}
	return nil
}

// User addresses are relative to their file, so every user mapping starts at 0
// and ends where user space does on a machine with 4-level page tables. The
// size is the same for all, since pprof takes mappings of different size for
// different files when it compares two profiles.
const (
	unknownModule = "[unknown]"

	userLimit   = 1 << 47
	kernelStart = 0xff00000000000000
	kernelLimit = 1<<64 - 1
)

// PprofProfile gives profiles in pprof's own types, joined to one. Inlined
// calls are lines of one location, innermost first. Calls without a name get a
// function named "module+0xoffset", so nothing tries to open the files on the
// reader's machine. What pprof has no place for is in a comment: see pprofNote.
func PprofProfile(profiles ...*profiler.Profile) *pprof.Profile {
	p := join(profiles)
	b := pprofBuilder{
		out: &pprof.Profile{
			SampleType:        []*pprof.ValueType{{Type: "samples", Unit: "count"}, {Type: "cpu", Unit: "nanoseconds"}},
			DefaultSampleType: "cpu",
			PeriodType:        &pprof.ValueType{Type: "cpu", Unit: "nanoseconds"},
			Period:            p.Period().Nanoseconds(),
			DurationNanos:     p.Duration.Nanoseconds(),
		},
		modules:   make(map[pprofModule]*pprof.Mapping),
		functions: make(map[pprofFunction]*pprof.Function),
		locations: make(map[*profiler.Location]*pprof.Location),
		markers:   make(map[string]*pprof.Location),
	}
	if !p.Start.IsZero() {
		b.out.TimeNanos = p.Start.UnixNano()
	}
	exes := exesOf(p)
	b.first(p, exes)
	for _, p := range profiles {
		service := ""
		if p.Workload != nil {
			service = profiler.Printable(p.Workload.Attribute("service.name"))
		}
		for i := range p.Samples {
			b.sample(&p.Samples[i], p.Period().Nanoseconds(), service)
		}
	}
	b.out.Comments = append(facts(p), newPprofNote(profiles, exes, b.kinds).comment())
	return b.out
}

// join puts the samples of several profiles beside each other, as one profile.
func join(profiles []*profiler.Profile) *profiler.Profile {
	if len(profiles) == 1 {
		return profiles[0]
	}
	out := &profiler.Profile{}
	var cover coverage
	for _, p := range profiles {
		out.Host, out.Event = cmp.Or(out.Host, p.Host), cmp.Or(out.Event, p.Event)
		out.Frequency = max(out.Frequency, p.Frequency)
		out.Samples = append(out.Samples, p.Samples...)
		out.Quality.Lost += p.Quality.Lost
		cover.add(p)
	}
	out.Start, out.Duration = cover.span()
	return out
}

// pprofFunction is what makes two functions different.
type pprofFunction struct {
	name, linkage, file string
	kind                profiler.FrameKind
}

// pprofModule is what makes two modules different in pprof.
type pprofModule struct{ file, build string }

type pprofBuilder struct {
	out       *pprof.Profile
	modules   map[pprofModule]*pprof.Mapping
	functions map[pprofFunction]*pprof.Function
	locations map[*profiler.Location]*pprof.Location
	markers   map[string]*pprof.Location
	kinds     []profiler.FrameKind // of functions, by their ID-1
}

// first makes the mapping that pprof shows as the profile's "File:": the
// executable when everything ran in one, else the kernel, which no reader
// takes for the name of a program.
func (b *pprofBuilder) first(p *profiler.Profile, exes map[processKey]string) {
	exe := ""
	for i := range p.Samples {
		one := exes[keyOf(p.Samples[i].Process)]
		if one == "" {
			continue
		}
		if exe != "" && exe != one {
			exe = ""
			break
		}
		exe = one
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
			if l.Module != nil && profiler.Printable(l.Module.Path) == want {
				b.mapping(l)
				return
			}
		}
	}
}

// Labels of samples. "service.name" is OpenTelemetry's, the others are pprof's
// custom.
const (
	labelProcess = "process"
	labelPID     = "pid"
	labelTID     = "tid"
	labelThread  = "thread"
	labelCgroup  = "cgroup"
	labelService = "service.name"
)

func (b *pprofBuilder) sample(s *profiler.Sample, period int64, service string) {
	out := &pprof.Sample{
		Value: []int64{int64(s.Count), int64(s.Count) * period},
		Label: map[string][]string{labelProcess: {ProcessName(s.Process)}},
	}
	if service != "" {
		out.Label[labelService] = []string{service}
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
		number(labelPID, int64(s.Process.PID))
		if s.Process.Cgroup != "" {
			out.Label[labelCgroup] = []string{profiler.Printable(s.Process.Cgroup)}
		}
	}
	if s.TID != 0 {
		number(labelTID, int64(s.TID))
	}
	if s.Thread != "" {
		out.Label[labelThread] = []string{profiler.Printable(s.Thread)}
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
		c := call{loc: l}
		out.Line = append(out.Line, pprof.Line{Function: b.function(pprofFunction{name: FrameName(l, nil), kind: c.kind()})})
	}
	for i := range l.Frames {
		f := &l.Frames[i]
		out.Line = append(out.Line, pprof.Line{
			Function: b.function(pprofFunction{FrameName(l, f), profiler.Printable(f.Linkage), profiler.Printable(f.File), f.Kind}),
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
		Line: []pprof.Line{{Function: b.function(pprofFunction{name: name, kind: profiler.KindMarker})}},
	}
	b.out.Location = append(b.out.Location, out)
	b.markers[name] = out
	return out
}

func (b *pprofBuilder) function(key pprofFunction) *pprof.Function {
	if key.linkage == "" {
		key.linkage = key.name
	}
	if out, ok := b.functions[key]; ok {
		return out
	}
	out := &pprof.Function{
		ID:         uint64(len(b.out.Function) + 1),
		Name:       key.name,
		SystemName: key.linkage,
		Filename:   key.file,
	}
	b.out.Function = append(b.out.Function, out)
	b.kinds = append(b.kinds, key.kind)
	b.functions[key] = out
	return out
}

func (b *pprofBuilder) mapping(l *profiler.Location) *pprof.Mapping {
	key := pprofModule{file: unknownModule}
	if l.Module != nil {
		key.build = profiler.Printable(l.Module.BuildID)
		if l.Module.Path != "" {
			key.file = profiler.Printable(l.Module.Path)
		}
	}
	if out, ok := b.modules[key]; ok {
		return out
	}
	out := &pprof.Mapping{
		ID:           uint64(len(b.out.Mapping) + 1),
		Limit:        userLimit,
		File:         key.file,
		BuildID:      key.build,
		HasFunctions: true,
	}
	if l.Address >= kernelStart {
		out.Start, out.Limit = kernelStart, kernelLimit
	}
	b.out.Mapping = append(b.out.Mapping, out)
	b.modules[key] = out
	return out
}
