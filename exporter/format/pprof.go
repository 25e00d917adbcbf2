package format

import (
	"bytes"
	"cmp"
	"fmt"
	"io"

	pprof "github.com/google/pprof/profile"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kalypso-dev/kalypso/exporter/internal/gz"
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
	return write(w, gz.Small, profiles)
}

// WriteProfilesFast is WriteProfiles in half the time, for a tenth more bytes.
func WriteProfilesFast(w io.Writer, profiles []*profiler.Profile) error {
	return write(w, gz.Fast, profiles)
}

func write(w io.Writer, level gz.Level, profiles []*profiler.Profile) error {
	if err := gz.Write(w, level, encode(profiles)...); err != nil {
		return fmt.Errorf("write pprof profile: %w", err)
	}
	return nil
}

// PprofProfile gives profiles in pprof's own types, joined to one.
func PprofProfile(profiles ...*profiler.Profile) *pprof.Profile {
	p, err := pprof.ParseUncompressed(bytes.Join(encode(profiles), nil))
	if err != nil {
		panic(err) // what was encoded here can be parsed
	}
	return p
}

// Fields of https://github.com/google/pprof/blob/main/proto/profile.proto.
const (
	profileSampleType        protowire.Number = 1
	profileSample            protowire.Number = 2
	profileMapping           protowire.Number = 3
	profileLocation          protowire.Number = 4
	profileFunction          protowire.Number = 5
	profileString            protowire.Number = 6
	profileTime              protowire.Number = 9
	profileDuration          protowire.Number = 10
	profilePeriodType        protowire.Number = 11
	profilePeriod            protowire.Number = 12
	profileComment           protowire.Number = 13
	profileDefaultSampleType protowire.Number = 14

	typeName protowire.Number = 1
	typeUnit protowire.Number = 2

	sampleLocation protowire.Number = 1
	sampleValue    protowire.Number = 2
	sampleLabel    protowire.Number = 3

	labelKey    protowire.Number = 1
	labelText   protowire.Number = 2
	labelNumber protowire.Number = 3
	labelUnit   protowire.Number = 4

	mappingID        protowire.Number = 1
	mappingStart     protowire.Number = 2
	mappingLimit     protowire.Number = 3
	mappingOffset    protowire.Number = 4
	mappingFile      protowire.Number = 5
	mappingBuildID   protowire.Number = 6
	mappingFunctions protowire.Number = 7
	mappingFilenames protowire.Number = 8
	mappingLines     protowire.Number = 9
	mappingInlined   protowire.Number = 10

	locationID      protowire.Number = 1
	locationMapping protowire.Number = 2
	locationAddress protowire.Number = 3
	locationLine    protowire.Number = 4

	lineFunction protowire.Number = 1
	lineNumber   protowire.Number = 2

	functionID      protowire.Number = 1
	functionName    protowire.Number = 2
	functionLinkage protowire.Number = 3
	functionFile    protowire.Number = 4
)

// User addresses are relative to their file, so every user mapping starts at 0
// and ends where user space does on a machine with 4-level page tables. The
// size is the same for all, since pprof takes mappings of different size for
// different files when it compares two profiles.
const (
	userLimit   = 1 << 47
	kernelStart = 0xff00000000000000
	kernelLimit = 1<<64 - 1
)

// unknownModule is the file of code that lies in none.
const unknownModule = "[unknown]"

// Labels of samples. "service.name" is OpenTelemetry's.
const (
	tagProcess = "process"
	tagPID     = "pid"
	tagTID     = "tid"
	tagThread  = "thread"
	tagCgroup  = "cgroup"
	tagService = "service.name"
)

// encode gives profiles as one protocol buffer, in parts. Inlined calls are
// lines of one location, innermost first. Calls without a name get a function
// named "module+0xoffset", so nothing tries to open the files on the reader's
// machine. What pprof has no place for is in a comment: see pprofNote.
//
// It is not made from the library's types because they take 2 KB for a sample,
// with three maps for its labels, and a profile has tens of thousands. This
// takes the bytes that are written.
func encode(profiles []*profiler.Profile) [][]byte {
	p := join(profiles)
	exes := exesOf(p)
	e := pprofEncoder{
		texts:       make(map[string]uint64),
		mappingIDs:  make(map[pprofModule]*pprofMapping),
		functionIDs: make(map[pprofFunction]uint64),
		locationIDs: make(map[*profiler.Location]uint64),
		markerIDs:   make(map[string]uint64),
		tags:        make(map[*profiler.Process][]byte),
	}
	e.text("")
	e.first(p, exes)
	for _, p := range profiles {
		service := ""
		if p.Workload != nil {
			service = profiler.Printable(p.Workload.Attribute(tagService))
		}
		clear(e.tags) // the service is one of them
		for i := range p.Samples {
			e.sample(&p.Samples[i], uint64(p.Period()), service)
		}
	}

	var head []byte
	cpu := e.valueType("cpu", "nanoseconds")
	head = appendBytes(head, profileSampleType, e.valueType("samples", "count"))
	head = appendBytes(head, profileSampleType, cpu)
	head = appendNumber(head, profileDefaultSampleType, e.text("cpu"))
	head = appendBytes(head, profilePeriodType, cpu)
	head = appendNumber(head, profilePeriod, uint64(p.Period()))
	head = appendNumber(head, profileDuration, uint64(p.Duration))
	if !p.Start.IsZero() {
		head = appendNumber(head, profileTime, uint64(p.Start.UnixNano()))
	}
	for _, c := range append(facts(p), newPprofNote(profiles, exes, e.kinds).comment()) {
		head = appendNumber(head, profileComment, e.text(c))
	}
	for _, m := range e.mappings {
		head = appendBytes(head, profileMapping, m.encode())
	}
	return [][]byte{head, e.samples, e.locations, e.functions, e.strings}
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
		out.Quality.LostUnknown = out.Quality.LostUnknown || p.Quality.LostUnknown
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

// pprofMapping is encoded when all locations are known: its flags say what some
// of them have.
type pprofMapping struct {
	id, file, build         uint64
	kernel                  bool
	filenames, lines, calls bool
}

type pprofEncoder struct {
	samples, locations, functions, strings []byte // encoded
	mappings                               []*pprofMapping
	kinds                                  []profiler.FrameKind // of functions, by their ID-1

	texts       map[string]uint64
	mappingIDs  map[pprofModule]*pprofMapping
	functionIDs map[pprofFunction]uint64
	locationIDs map[*profiler.Location]uint64
	markerIDs   map[string]uint64
	tags        map[*profiler.Process][]byte // labels of its samples, encoded

	message, packed []byte // scratch
}

// first makes the mapping that pprof shows as the profile's "File:": the
// executable when everything ran in one, else the kernel, which no reader
// takes for the name of a program.
func (e *pprofEncoder) first(p *profiler.Profile, exes map[processKey]string) {
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
				e.mapping(l)
				return
			}
		}
	}
}

func (e *pprofEncoder) sample(s *profiler.Sample, period uint64, service string) {
	e.packed = e.packed[:0]
	if s.Stack != nil {
		for _, l := range s.Stack.Locations {
			e.packed = protowire.AppendVarint(e.packed, e.location(l))
		}
		if m := s.Stack.Stop.Marker(); m != "" {
			e.packed = protowire.AppendVarint(e.packed, e.marker(m))
		}
	}
	b := appendBytes(e.message[:0], sampleLocation, e.packed)
	e.packed = protowire.AppendVarint(e.packed[:0], s.Count)
	e.packed = protowire.AppendVarint(e.packed, s.Count*period)
	b = appendBytes(b, sampleValue, e.packed)
	b = append(b, e.processTags(s.Process, service)...)
	if s.TID != 0 {
		b = e.numberTag(b, tagTID, uint64(s.TID))
	}
	if s.Thread != "" {
		b = e.textTag(b, tagThread, profiler.Printable(s.Thread))
	}
	e.samples = appendBytes(e.samples, profileSample, b)
	e.message = b
}

// processTags are the labels that all samples of a process have.
func (e *pprofEncoder) processTags(p *profiler.Process, service string) []byte {
	if b, ok := e.tags[p]; ok {
		return b
	}
	b := e.textTag(nil, tagProcess, ProcessName(p))
	if service != "" {
		b = e.textTag(b, tagService, service)
	}
	if p != nil {
		b = e.numberTag(b, tagPID, uint64(p.PID))
		if p.Cgroup != "" {
			b = e.textTag(b, tagCgroup, profiler.Printable(p.Cgroup))
		}
	}
	e.tags[p] = b
	return b
}

func (e *pprofEncoder) textTag(dst []byte, key, value string) []byte {
	return appendBytes(dst, sampleLabel, appendNumber(appendNumber(nil, labelKey, e.text(key)), labelText, e.text(value)))
}

// numberTag has the unit "count", the one that pprof does not print: without a
// unit it takes the key's name for one and prints "4711pid".
func (e *pprofEncoder) numberTag(dst []byte, key string, n uint64) []byte {
	b := appendNumber(appendNumber(nil, labelKey, e.text(key)), labelNumber, n)
	return appendBytes(dst, sampleLabel, appendNumber(b, labelUnit, e.text("count")))
}

func (e *pprofEncoder) location(l *profiler.Location) uint64 {
	if id, ok := e.locationIDs[l]; ok {
		return id
	}
	m := e.mapping(l)
	id := e.nextLocation()
	b := appendNumber(appendNumber(nil, locationID, id), locationMapping, m.id)
	b = appendNumber(b, locationAddress, l.Address)
	if len(l.Frames) == 0 {
		c := call{loc: l}
		b = e.line(b, pprofFunction{name: FrameName(l, nil), kind: c.kind()}, 0)
	}
	for i := range l.Frames {
		f := &l.Frames[i]
		b = e.line(b, pprofFunction{FrameName(l, f), profiler.Printable(f.Linkage), profiler.Printable(f.File), f.Kind}, f.Line)
		m.filenames = m.filenames || f.File != ""
		m.lines = m.lines || f.Line != 0
		m.calls = m.calls || i > 0
	}
	e.locations = appendBytes(e.locations, profileLocation, b)
	e.locationIDs[l] = id
	return id
}

func (e *pprofEncoder) marker(name string) uint64 {
	if id, ok := e.markerIDs[name]; ok {
		return id
	}
	id := e.nextLocation()
	b := e.line(appendNumber(nil, locationID, id), pprofFunction{name: name, kind: profiler.KindMarker}, 0)
	e.locations = appendBytes(e.locations, profileLocation, b)
	e.markerIDs[name] = id
	return id
}

func (e *pprofEncoder) nextLocation() uint64 {
	return uint64(len(e.locationIDs) + len(e.markerIDs) + 1)
}

func (e *pprofEncoder) line(dst []byte, f pprofFunction, number int) []byte {
	return appendBytes(dst, locationLine, appendNumber(appendNumber(nil, lineFunction, e.function(f)), lineNumber, uint64(number)))
}

func (e *pprofEncoder) function(f pprofFunction) uint64 {
	if f.linkage == "" {
		f.linkage = f.name
	}
	if id, ok := e.functionIDs[f]; ok {
		return id
	}
	id := uint64(len(e.functionIDs) + 1)
	b := appendNumber(appendNumber(nil, functionID, id), functionName, e.text(f.name))
	b = appendNumber(appendNumber(b, functionLinkage, e.text(f.linkage)), functionFile, e.text(f.file))
	e.functions = appendBytes(e.functions, profileFunction, b)
	e.kinds = append(e.kinds, f.kind)
	e.functionIDs[f] = id
	return id
}

func (e *pprofEncoder) mapping(l *profiler.Location) *pprofMapping {
	key := pprofModule{file: unknownModule}
	if l.Module != nil {
		key.build = profiler.Printable(l.Module.BuildID)
		if l.Module.Path != "" {
			key.file = profiler.Printable(l.Module.Path)
		}
	}
	if m, ok := e.mappingIDs[key]; ok {
		return m
	}
	m := &pprofMapping{id: uint64(len(e.mappings) + 1), file: e.text(key.file), build: e.text(key.build), kernel: l.Address >= kernelStart}
	e.mappings = append(e.mappings, m)
	e.mappingIDs[key] = m
	return m
}

func (m *pprofMapping) encode() []byte {
	b := appendNumber(nil, mappingID, m.id)
	if m.kernel {
		b = appendNumber(appendNumber(b, mappingStart, kernelStart), mappingLimit, kernelLimit)
	} else {
		b = appendNumber(b, mappingLimit, userLimit)
	}
	b = appendNumber(appendNumber(b, mappingFile, m.file), mappingBuildID, m.build)
	b = appendFlag(b, mappingFunctions, true)
	b = appendFlag(b, mappingFilenames, m.filenames)
	b = appendFlag(b, mappingLines, m.lines)
	return appendFlag(b, mappingInlined, m.calls)
}

func (e *pprofEncoder) valueType(name, unit string) []byte {
	return appendNumber(appendNumber(nil, typeName, e.text(name)), typeUnit, e.text(unit))
}

// text gives a string's index in the file's table.
func (e *pprofEncoder) text(s string) uint64 {
	i, ok := e.texts[s]
	if !ok {
		i = uint64(len(e.texts))
		e.texts[s] = i
		e.strings = protowire.AppendString(protowire.AppendTag(e.strings, profileString, protowire.BytesType), s)
	}
	return i
}

func appendNumber(dst []byte, field protowire.Number, n uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(dst, field, protowire.VarintType), n)
}

func appendBytes(dst []byte, field protowire.Number, b []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(dst, field, protowire.BytesType), b)
}

func appendFlag(dst []byte, field protowire.Number, is bool) []byte {
	return appendNumber(dst, field, protowire.EncodeBool(is))
}
