package format

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
)

// ErrTooLarge says that a file is over the limits of what is read.
var ErrTooLarge = errors.New("larger than any profile that is read here")

// Limits of a pprof file. 15 minutes of a machine that runs some hundred
// processes inflate to a few MiB.
const (
	maxPprofBytes    = 64 << 20 // inflated
	maxPprofMessages = 2 << 20  // samples, locations, functions, mappings, strings
)

// ReadPprof reads a pprof file of CPU samples as one profile. Of what the
// writers of this package show nothing is lost. A file of another program is
// read as far as it says what a profile has: kinds of code are guessed from
// files and names, and counts are made from CPU time where it is there.
//
// The file may be anybody's: it is checked and bounded, and inflated to 64 MiB
// at most.
func ReadPprof(r io.Reader) (*profiler.Profile, error) {
	profiles, err := ReadProfiles(r)
	if err != nil {
		return nil, err
	}
	if len(profiles) == 1 {
		return profiles[0], nil
	}
	return Merge(profiles...), nil
}

// ReadProfiles reads a pprof file as ReadPprof does, as the profiles that
// WriteProfiles was given. A file of another program is one profile.
func ReadProfiles(r io.Reader) ([]*profiler.Profile, error) {
	profiles, err := readProfiles(r)
	if err != nil {
		return nil, fmt.Errorf("read pprof profile: %w", err)
	}
	return profiles, nil
}

func readProfiles(r io.Reader) ([]*profiler.Profile, error) {
	data, err := inflate(r)
	if err != nil {
		return nil, err
	}
	d, err := newPprofReader(data)
	switch {
	case errors.Is(err, ErrTooLarge):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("not a pprof profile: %w", err)
	case d.note != nil:
		return d.own()
	}
	return d.foreign()
}

// inflate reads the file, which may be compressed or not, up to the limit.
func inflate(r io.Reader) ([]byte, error) {
	data, err := readLimited(r)
	if err != nil || len(data) < 2 || data[0] != 0x1f || data[1] != 0x8b {
		return data, err
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("inflate: %w", err)
	}
	if data, err = readLimited(z); err != nil {
		return nil, fmt.Errorf("inflate: %w", err)
	}
	return data, nil
}

func readLimited(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxPprofBytes+1))
	if err == nil && len(data) > maxPprofBytes {
		err = ErrTooLarge
	}
	return data, err
}

// pprofReader makes profiles of a file. Nothing of it is in memory twice but its
// texts, and samples are read one by one: the agent reads its own history so.
type pprofReader struct {
	*pprofFile
	note      *pprofNote // nil: a foreign file
	exes      map[processKey]string
	program   *profiler.Process // of a foreign file: whose samples say of no process
	modules   map[profiler.Module]*profiler.Module
	mappings  map[uint64]wireMapping
	functions map[uint64]wireFunction
	locations map[uint64]wireLocation
	made      map[uint64]*profiler.Location
	processes map[processKey]*profiler.Process
	in        wireSample // the sample that is being read
}

// newPprofReader reads all but the samples.
func newPprofReader(data []byte) (*pprofReader, error) {
	p, err := takeApart(data)
	if err != nil {
		return nil, err
	}
	d := &pprofReader{
		pprofFile: p, note: findNote(p.comments, len(p.rawSamples)),
		modules:   make(map[profiler.Module]*profiler.Module),
		mappings:  make(map[uint64]wireMapping, len(p.rawMappings)),
		functions: make(map[uint64]wireFunction, len(p.rawFunctions)),
		locations: make(map[uint64]wireLocation, len(p.rawLocations)),
		made:      make(map[uint64]*profiler.Location, len(p.rawLocations)),
		processes: make(map[processKey]*profiler.Process),
	}
	var kinds []profiler.FrameKind
	if d.note != nil {
		kinds = unpackKinds(d.note.Kinds, len(p.rawFunctions))
		d.exes = make(map[processKey]string, len(d.note.Processes))
		for _, pr := range d.note.Processes {
			d.exes[processKey{pr.PID, pr.Name, pr.Cgroup}] = profiler.Printable(pr.Exe)
		}
	}
	for _, message := range p.rawMappings {
		id, m, err := p.readMapping(message)
		if err := enter(d.mappings, id, m, err); err != nil {
			return nil, err
		}
	}
	for i, message := range p.rawFunctions {
		id, fn, err := p.readFunction(message)
		if kinds != nil {
			fn.kind, fn.kindKnown = kinds[i], true
		}
		if err := enter(d.functions, id, fn, err); err != nil {
			return nil, err
		}
	}
	for _, message := range p.rawLocations {
		id, l, err := p.readLocation(message)
		if err := enter(d.locations, id, l, err); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// enter puts what was read, if it was, under its number.
func enter[T any](table map[uint64]T, id uint64, v T, err error) error {
	if err != nil {
		return err
	}
	if _, twice := table[id]; twice {
		return errTwice
	}
	table[id] = v
	return nil
}

// own shares the samples out to the profiles that the note tells of.
func (d *pprofReader) own() ([]*profiler.Profile, error) {
	if d.types[0].name != "samples" {
		return nil, errors.New("the first value of its samples is not their number")
	}
	profiles := make([]*profiler.Profile, 0, len(d.note.Profiles))
	rest := d.rawSamples
	for i := range d.note.Profiles {
		n := &d.note.Profiles[i]
		p := n.profile()
		var err error
		if p.Samples, err = d.read(rest[:n.Entries], func(values []uint64) (uint64, error) { return whole(values[0]) }); err != nil {
			return nil, err
		}
		rest = rest[n.Entries:]
		profiles = append(profiles, p)
	}
	return profiles, nil
}

// whole is a value that counts something.
func whole(value uint64) (uint64, error) {
	if value > math.MaxInt64 {
		return 0, errors.New("a sample counts less than nothing: the file is the difference of two profiles")
	}
	return value, nil
}

func (d *pprofReader) foreign() ([]*profiler.Profile, error) {
	v, err := d.chooseValue()
	if err != nil {
		return nil, err
	}
	p := &profiler.Profile{Duration: time.Duration(max(d.duration, 0)), Frequency: v.frequency, Event: profiler.Printable(d.periodType.name)}
	if d.start != 0 {
		p.Start = time.Unix(0, d.start)
	}
	if len(d.rawMappings) > 0 {
		_, m, err := d.readMapping(d.rawMappings[0]) // which pprof takes for the program's
		if err != nil {
			return nil, err
		}
		d.program = &profiler.Process{Comm: path.Base(m.module.Path), Exe: m.module.Path}
	}
	if p.Samples, err = d.read(d.rawSamples, v.count); err != nil {
		return nil, err
	}
	p.Quality = Quality(p.Samples)
	return []*profiler.Profile{p}, nil
}

// Quality counts what samples say of themselves. How many were lost they do
// not.
func Quality(samples []profiler.Sample) profiler.Quality {
	q := profiler.Quality{LostUnknown: true}
	for i := range samples {
		if s := &samples[i]; s.Stack != nil {
			q.Add(s.Stack, s.Count)
		}
	}
	return q
}

// pprofValue is the one of the values of samples that becomes their count.
type pprofValue struct {
	index     int
	unit      float64 // ns of a value; 0: it is a count
	frequency int
	carry     float64
}

// chooseValue takes CPU time before other time, and time before counts: counts
// of programs that weigh their samples say nothing of time. Nobody samples once a
// second or less: Pyroscope writes that into what it has added up, and its CPU time
// is counted in milliseconds.
func (p *pprofFile) chooseValue() (*pprofValue, error) {
	best, v := 0, &pprofValue{}
	names := make([]string, 0, len(p.types))
	for i, t := range p.types {
		name, unit, rank := strings.ToLower(t.name), nanoseconds(t.unit), 0
		switch {
		case unit > 0 && strings.Contains(name, "cpu"):
			rank = 3
		case unit > 0 && (strings.Contains(name, "wall") || strings.Contains(name, "time") || strings.Contains(name, "sample")):
			rank = 2
		case t.unit == "count" && (strings.HasSuffix(name, "sample") || strings.HasSuffix(name, "samples")):
			rank = 1
		}
		if rank > best {
			best, v.index, v.unit = rank, i, unit
		}
		names = append(names, fmt.Sprintf("%s in %s", profiler.Printable(t.name), profiler.Printable(t.unit)))
	}
	if best == 0 {
		return nil, fmt.Errorf("it holds no CPU time: its samples have %s", strings.Join(names, ", "))
	}
	period := max(float64(p.period), 0) * nanoseconds(p.periodType.unit)
	switch {
	case period == 0:
		period = v.unit
	case period >= float64(time.Second) && v.unit > 0:
		period = float64(time.Millisecond)
	}
	if period > 0 {
		v.frequency = int(math.Round(min(max(float64(time.Second)/period, 1), float64(time.Second))))
	}
	return v, nil
}

// nanoseconds is how many one of the unit is; 0 when it is no time.
func nanoseconds(unit string) float64 {
	switch unit {
	case "nanoseconds", "ns":
		return 1
	case "microseconds", "us":
		return 1e3
	case "milliseconds", "ms":
		return 1e6
	case "seconds", "s":
		return 1e9
	}
	return 0
}

// count is how often a sample was seen. What rounding takes from one is given
// to the next, so that all together have the time that the file says.
func (v *pprofValue) count(values []uint64) (uint64, error) {
	value, err := whole(values[v.index])
	if err != nil || v.unit == 0 {
		return value, err
	}
	exact := float64(value)*v.unit*float64(v.frequency)/float64(time.Second) + v.carry
	n := max(math.Round(exact), 0)
	if n >= math.MaxInt64 {
		return 0, errors.New("a sample has more CPU time than can be")
	}
	v.carry = exact - n
	return uint64(n), nil
}

// read reads samples, of which count gives how often each was seen.
func (d *pprofReader) read(messages [][]byte, count func(values []uint64) (uint64, error)) ([]profiler.Sample, error) {
	out := make([]profiler.Sample, 0, len(messages))
	for _, message := range messages {
		err := d.readSample(&d.in, message)
		if err == nil && len(d.in.values) != len(d.types) {
			err = errors.New("a sample has not as many values as there are kinds of them")
		}
		s := profiler.Sample{Process: d.process(), TID: profiler.TID(d.in.tid), Thread: d.in.thread}
		if err == nil {
			s.Count, err = count(d.in.values)
		}
		if err == nil {
			s.Stack, err = d.stack(d.in.locations)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

func (d *pprofReader) process() *profiler.Process {
	key := processKey{profiler.PID(d.in.pid), d.in.process, d.in.cgroup}
	if !d.in.hasPID && (key.name == "" || key.name == ProcessName(nil)) {
		return d.program
	}
	if p, ok := d.processes[key]; ok {
		return p
	}
	p := &profiler.Process{PID: key.pid, Comm: key.name, Cgroup: key.cgroup, Exe: d.exes[key]}
	if p.Comm == ProcessName(&profiler.Process{PID: p.PID}) {
		p.Comm = ""
	}
	d.processes[key] = p
	return p
}

// stack takes the marker that the writer put at the root end off again.
func (d *pprofReader) stack(ids []uint64) (*profiler.Stack, error) {
	out := &profiler.Stack{Stop: profiler.StopRoot}
	if len(ids) > 0 {
		if stop, ok := d.marker(ids[len(ids)-1]); ok {
			out.Stop, ids = stop, ids[:len(ids)-1]
		}
	}
	out.Locations = make([]*profiler.Location, len(ids))
	user := false
	for i, id := range ids {
		l, err := d.location(id)
		if err != nil {
			return nil, err
		}
		out.Locations[i] = l
		user = user || l.Frames[0].Kind != profiler.KindKernel
	}
	// Both ends are complete and have no marker.
	if out.Stop == profiler.StopRoot && !user {
		out.Stop = profiler.StopNoUser
	}
	return out, nil
}

// marker gives the reason that a location stands for, if it is a marker.
func (d *pprofReader) marker(id uint64) (profiler.Stop, bool) {
	l := d.locations[id]
	// What has passed through a Pyroscope has a mapping, without a name or by this.
	if m := d.mappings[l.mapping].module; m.Path != "" && m.Path != unknownModule || l.address != 0 || len(l.lines) != 1 {
		return 0, false
	}
	fn := d.functions[l.lines[0].function]
	if fn.kindKnown && fn.kind != profiler.KindMarker {
		return 0, false // a function of such a name
	}
	for s := range profiler.Stops {
		if m := profiler.Stop(s).Marker(); m != "" && m == fn.name {
			return profiler.Stop(s), true
		}
	}
	return 0, false
}

func (d *pprofReader) location(id uint64) (*profiler.Location, error) {
	if l, ok := d.made[id]; ok {
		return l, nil
	}
	in, ok := d.locations[id]
	if !ok {
		return nil, errReference
	}
	l := &profiler.Location{Address: in.address}
	var m profiler.Module
	if in.mapping != 0 {
		from, ok := d.mappings[in.mapping]
		if !ok {
			return nil, errReference
		}
		m = from.module
		if d.note == nil && in.address >= from.start && in.address < kernelStart {
			l.Address = in.address - from.start + from.offset
		}
	}
	switch {
	case m.Path == unknownModule:
		m.Path = ""
	case strings.HasPrefix(m.Path, "[kernel.kallsyms]"): // as perf names it
		m.Path = "[kernel]"
	}
	if l.Module = d.modules[m]; l.Module == nil {
		l.Module = &m
		d.modules[m] = &m
	}
	l.Frames = make([]profiler.Frame, 0, max(1, len(in.lines)))
	for i, line := range in.lines {
		fn, ok := d.functions[line.function]
		if !ok {
			return nil, errReference
		}
		f := fn.frame(l)
		if line.number > 0 && line.number <= math.MaxInt32 {
			f.Line = int(line.number)
		}
		f.Inlined = i < len(in.lines)-1
		l.Frames = append(l.Frames, f)
	}
	if len(l.Frames) == 0 {
		l.Frames = append(l.Frames, profiler.Frame{Kind: guessKind(l, "", "")})
	}
	d.made[id] = l
	return l, nil
}

func (fn *wireFunction) frame(l *profiler.Location) profiler.Frame {
	f := profiler.Frame{Function: fn.name, Linkage: fn.linkage, File: fn.file, Kind: fn.kind}
	if !fn.kindKnown {
		f.Kind = guessKind(l, f.Function, f.File)
	}
	if start, ok := nameless(l, f.Function); ok {
		f.Function, f.Start = "", start
	}
	return f
}

// nameless says whether a function's name is what one without a name is shown
// as, and where it starts: 0 when the name has the address itself.
func nameless(l *profiler.Location, name string) (uint64, bool) {
	i := strings.LastIndex(name, "+0x")
	if i < 0 {
		return 0, false
	}
	at, err := strconv.ParseUint(name[i+len("+0x"):], 16, 64)
	if err != nil {
		return 0, false
	}
	f := profiler.Frame{Start: at}
	if at == l.Address {
		f.Start = 0
	}
	return f.Start, FrameName(l, &f) == name
}

// guessKind guesses what sort of code a function of a foreign file is.
func guessKind(l *profiler.Location, function, file string) profiler.FrameKind {
	switch {
	case strings.HasPrefix(l.Module.Path, "[kernel") || l.Address >= kernelStart:
		return profiler.KindKernel
	case strings.HasSuffix(file, ".go") || strings.HasSuffix(file, ".s") && strings.HasPrefix(function, "runtime."):
		return profiler.KindGo
	case function != "" && slices.ContainsFunc([]string{"[anon", "//anon", "/memfd:"}, func(p string) bool { return strings.HasPrefix(l.Module.Path, p) }):
		return profiler.KindJIT
	}
	return profiler.KindNative
}
