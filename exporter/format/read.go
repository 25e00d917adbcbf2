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

	pprof "github.com/google/pprof/profile"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kalypso-dev/kalypso/profiler"
)

// ErrTooLarge says that a file is over the limits of what is read.
var ErrTooLarge = errors.New("larger than any profile that is read here")

// Limits of a pprof file. 15 minutes of a machine that runs some hundred
// processes inflate to a few MiB. Parsed, a byte becomes 24 at worst (an empty
// label of two bytes) and usually five.
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
	data, err := inflate(r)
	if err != nil {
		return nil, fmt.Errorf("read pprof profile: %w", err)
	}
	in, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("read pprof profile: %w", err)
	}
	d := &pprofReader{
		in: in, note: findNote(in.Comments),
		modules:   make(map[profiler.Module]*profiler.Module),
		locations: make(map[*pprof.Location]*profiler.Location, len(in.Location)),
		processes: make(map[processKey]*profiler.Process),
	}
	var profiles []*profiler.Profile
	if d.note != nil && d.note.fits(len(in.Sample)) {
		profiles, err = d.own()
	} else {
		d.note = nil
		profiles, err = d.foreign()
	}
	if err != nil {
		return nil, fmt.Errorf("read pprof profile: %w", err)
	}
	return profiles, nil
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

// parse parses what is no more than the limits allow. The library has none of
// its own, and takes anything that is not its format for a profile of another.
func parse(data []byte) (*pprof.Profile, error) {
	if len(data) == 0 {
		return nil, errors.New("the file is empty")
	}
	messages := 0
	for rest := data; len(rest) > 0; messages++ {
		_, _, n := protowire.ConsumeField(rest)
		if n < 0 {
			return nil, fmt.Errorf("not a pprof profile: %w", protowire.ParseError(n))
		}
		rest = rest[n:]
	}
	if messages > maxPprofMessages {
		return nil, ErrTooLarge
	}
	p, err := pprof.ParseUncompressed(data)
	if err == nil {
		err = p.CheckValid()
	}
	if err != nil {
		return nil, fmt.Errorf("not a pprof profile: %w", err)
	}
	return p, nil
}

type pprofReader struct {
	in        *pprof.Profile
	note      *pprofNote // nil: a foreign file
	kinds     map[*pprof.Function]profiler.FrameKind
	exes      map[processKey]string
	program   *profiler.Process // of a foreign file: whose samples say of no process
	modules   map[profiler.Module]*profiler.Module
	locations map[*pprof.Location]*profiler.Location
	processes map[processKey]*profiler.Process
}

// own shares the samples out to the profiles that the note tells of.
func (d *pprofReader) own() ([]*profiler.Profile, error) {
	if len(d.in.SampleType) == 0 || d.in.SampleType[0].Type != "samples" {
		return nil, errors.New("the first value of its samples is not their number")
	}
	if kinds := unpackKinds(d.note.Kinds, len(d.in.Function)); kinds != nil {
		d.kinds = make(map[*pprof.Function]profiler.FrameKind, len(kinds))
		for i, f := range d.in.Function {
			d.kinds[f] = kinds[i]
		}
	}
	d.exes = make(map[processKey]string, len(d.note.Processes))
	for _, p := range d.note.Processes {
		d.exes[processKey{p.PID, p.Name, p.Cgroup}] = profiler.Printable(p.Exe)
	}
	profiles := make([]*profiler.Profile, 0, len(d.note.Profiles))
	rest := d.in.Sample
	for i := range d.note.Profiles {
		n := &d.note.Profiles[i]
		p := n.profile()
		p.Samples = make([]profiler.Sample, 0, n.Entries)
		for _, s := range rest[:n.Entries] {
			if s.Value[0] < 0 {
				return nil, errNegative
			}
			p.Samples = append(p.Samples, d.sample(s, uint64(s.Value[0])))
		}
		rest = rest[n.Entries:]
		profiles = append(profiles, p)
	}
	return profiles, nil
}

var errNegative = errors.New("a sample counts less than nothing: the file is the difference of two profiles")

func (d *pprofReader) foreign() ([]*profiler.Profile, error) {
	v, err := chooseValue(d.in)
	if err != nil {
		return nil, err
	}
	p := &profiler.Profile{Duration: time.Duration(max(d.in.DurationNanos, 0)), Frequency: v.frequency}
	if d.in.TimeNanos != 0 {
		p.Start = time.Unix(0, d.in.TimeNanos)
	}
	if d.in.PeriodType != nil {
		p.Event = profiler.Printable(d.in.PeriodType.Type)
	}
	if len(d.in.Mapping) > 0 {
		file := profiler.Printable(d.in.Mapping[0].File)
		d.program = &profiler.Process{Comm: path.Base(file), Exe: file}
	}
	p.Samples = make([]profiler.Sample, 0, len(d.in.Sample))
	for _, s := range d.in.Sample {
		count, err := v.count(s)
		if err != nil {
			return nil, err
		}
		p.Samples = append(p.Samples, d.sample(s, count))
	}
	p.Quality = Quality(p.Samples)
	return []*profiler.Profile{p}, nil
}

// Quality counts what samples say of themselves. How many were lost they do
// not.
func Quality(samples []profiler.Sample) profiler.Quality {
	q := profiler.Quality{DistinctStacks: uint64(len(samples)), UnnamedByModule: make(map[string]uint64)}
	for i := range samples {
		s := &samples[i]
		q.Samples += s.Count
		if s.Stack == nil {
			continue
		}
		if int(s.Stack.Stop) < len(q.Stops) {
			q.Stops[s.Stack.Stop] += s.Count
		}
		for _, l := range s.Stack.Locations {
			q.Frames += s.Count
			switch {
			case l.Named():
				q.FramesNamed += s.Count
			case l.Module != nil:
				q.UnnamedByModule[l.Module.Path] += s.Count
			default:
				q.UnnamedByModule[""] += s.Count
			}
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
// of programs that weigh their samples say nothing of time.
func chooseValue(p *pprof.Profile) (*pprofValue, error) {
	period := 0.0
	if p.PeriodType != nil && p.Period > 0 {
		period = float64(p.Period) * nanoseconds(p.PeriodType.Unit)
	}
	best, v := 0, &pprofValue{}
	names := make([]string, 0, len(p.SampleType))
	for i, t := range p.SampleType {
		name, unit, rank := strings.ToLower(t.Type), nanoseconds(t.Unit), 0
		switch {
		case unit > 0 && strings.Contains(name, "cpu"):
			rank = 3
		case unit > 0 && (strings.Contains(name, "wall") || strings.Contains(name, "time") || strings.Contains(name, "sample")):
			rank = 2
		case t.Unit == "count" && (strings.HasSuffix(name, "sample") || strings.HasSuffix(name, "samples")):
			rank = 1
		}
		if rank > best {
			best, v.index, v.unit = rank, i, unit
		}
		names = append(names, fmt.Sprintf("%s in %s", profiler.Printable(t.Type), profiler.Printable(t.Unit)))
	}
	if best == 0 {
		return nil, fmt.Errorf("it holds no CPU time: its samples have %s", strings.Join(names, ", "))
	}
	if period == 0 && v.unit > 0 {
		period = v.unit
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
func (v *pprofValue) count(s *pprof.Sample) (uint64, error) {
	value := s.Value[v.index]
	if value < 0 {
		return 0, errNegative
	}
	if v.unit == 0 {
		return uint64(value), nil
	}
	exact := float64(value)*v.unit*float64(v.frequency)/float64(time.Second) + v.carry
	n := max(math.Round(exact), 0)
	if n >= math.MaxInt64 {
		return 0, errors.New("a sample has more CPU time than can be")
	}
	v.carry = exact - n
	return uint64(n), nil
}

func (d *pprofReader) sample(s *pprof.Sample, count uint64) profiler.Sample {
	out := profiler.Sample{Process: d.process(s), Count: count, Thread: label(s, labelThread), Stack: d.stack(s.Location)}
	if tid, ok := number(s, labelTID); ok {
		out.TID = profiler.TID(tid)
	}
	return out
}

func label(s *pprof.Sample, key string) string {
	if v := s.Label[key]; len(v) > 0 {
		return profiler.Printable(v[0])
	}
	return ""
}

func number(s *pprof.Sample, key string) (uint32, bool) {
	v := s.NumLabel[key]
	if len(v) == 0 || v[0] < 0 || v[0] > math.MaxUint32 {
		return 0, false
	}
	return uint32(v[0]), true
}

func (d *pprofReader) process(s *pprof.Sample) *profiler.Process {
	pid, known := number(s, labelPID)
	key := processKey{profiler.PID(pid), label(s, labelProcess), label(s, labelCgroup)}
	if !known && (key.name == "" || key.name == ProcessName(nil)) {
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
func (d *pprofReader) stack(in []*pprof.Location) *profiler.Stack {
	out := &profiler.Stack{Stop: profiler.StopRoot}
	if len(in) > 0 {
		if stop, ok := markerStop(in[len(in)-1]); ok {
			out.Stop, in = stop, in[:len(in)-1]
		}
	}
	out.Locations = make([]*profiler.Location, len(in))
	user := false
	for i, l := range in {
		out.Locations[i] = d.location(l)
		user = user || out.Locations[i].Frames[0].Kind != profiler.KindKernel
	}
	// Both ends are complete and have no marker.
	if out.Stop == profiler.StopRoot && !user {
		out.Stop = profiler.StopNoUser
	}
	return out
}

// markerStop gives the reason that a marker's name stands for.
func markerStop(l *pprof.Location) (profiler.Stop, bool) {
	if l.Mapping != nil || l.Address != 0 || len(l.Line) != 1 {
		return 0, false
	}
	for s := range profiler.Stops {
		if m := profiler.Stop(s).Marker(); m != "" && m == l.Line[0].Function.Name {
			return profiler.Stop(s), true
		}
	}
	return 0, false
}

func (d *pprofReader) location(in *pprof.Location) *profiler.Location {
	if l, ok := d.locations[in]; ok {
		return l
	}
	l := &profiler.Location{Address: in.Address}
	var m profiler.Module
	if in.Mapping != nil {
		m = profiler.Module{Path: profiler.Printable(in.Mapping.File), BuildID: profiler.Printable(in.Mapping.BuildID)}
		if d.note == nil && in.Address >= in.Mapping.Start && in.Address < kernelStart {
			l.Address = in.Address - in.Mapping.Start + in.Mapping.Offset
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
	l.Frames = make([]profiler.Frame, 0, max(1, len(in.Line)))
	for i, line := range in.Line {
		f := d.frame(l, line)
		f.Inlined = i < len(in.Line)-1
		l.Frames = append(l.Frames, f)
	}
	if len(l.Frames) == 0 {
		l.Frames = append(l.Frames, profiler.Frame{Kind: guessKind(l, "", "")})
	}
	d.locations[in] = l
	return l
}

func (d *pprofReader) frame(l *profiler.Location, in pprof.Line) profiler.Frame {
	fn := in.Function
	f := profiler.Frame{Function: profiler.Printable(fn.Name), File: profiler.Printable(fn.Filename)}
	if in.Line > 0 && in.Line <= math.MaxInt32 {
		f.Line = int(in.Line)
	}
	if fn.SystemName != fn.Name {
		f.Linkage = profiler.Printable(fn.SystemName)
	}
	if kind, ok := d.kinds[fn]; ok {
		f.Kind = kind
	} else {
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
	_, offset, ok := strings.Cut(name, "+0x")
	if !ok {
		return 0, false
	}
	// A module's name may have the same characters.
	offset = name[strings.LastIndex(name, "+0x")+len("+0x"):]
	at, err := strconv.ParseUint(offset, 16, 64)
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
