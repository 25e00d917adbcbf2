package format

import (
	"cmp"
	"hash/maphash"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
)

// Merge adds up profiles of different windows and workloads to one: samples of
// the same process, thread and stack become one. Its workload is the one that
// all have, else none.
//
// Where the rates differ, the result has the highest, and samples of the others
// are weighed so that the CPU time stays right: one that was taken at half the
// rate counts as two. The sum of them is exact to one sample, and so is each
// stack. Quality counts samples as they were taken.
//
// The duration is the time that the profiles cover together, without gaps
// between them. Host and event are those of the first profile that has them.
// Merge does not change the profiles, but the result shares their frames,
// modules and processes.
func Merge(profiles ...*profiler.Profile) *profiler.Profile {
	m := Merger{Whole: true}
	for _, p := range profiles {
		m.Add(p)
	}
	if len(m.sums) == 0 {
		return &profiler.Profile{}
	}
	return m.sums[0].profile()
}

// Merger adds up profiles one after the other, so that not all of them have to
// be in memory. The zero Merger is empty and tells workloads apart.
type Merger struct {
	Whole bool // all workloads are one

	modules   map[profiler.Module]*profiler.Module
	locations map[locationKey][]*profiler.Location
	stacks    map[uint64][]*profiler.Stack // by a hash of their locations
	processes map[profiler.Process]*profiler.Process
	sums      []*sum
	byKey     map[string]*sum
	seed      maphash.Seed

	// Of the profile that is being added: what its pointers became.
	seenLocations map[*profiler.Location]*profiler.Location
	seenStacks    map[*profiler.Stack]*profiler.Stack
	seenProcesses map[*profiler.Process]*profiler.Process
	walk          []*profiler.Location
}

// locationKey is what most locations differ in: files of other programs may have
// no addresses.
type locationKey struct {
	module   *profiler.Module
	address  uint64
	function string
	line     int
}

// sum is what was added up of one workload.
type sum struct {
	out      *profiler.Profile
	samples  map[sampleKey]int
	seconds  []float64 // of CPU time, by sample
	cover    coverage
	workload string
	frames   int // of the samples' stacks
}

type sampleKey struct {
	process *profiler.Process
	tid     profiler.TID
	thread  string
	stack   *profiler.Stack
}

// Size is how many different samples were added, and how many frames their
// stacks have together: what memory it takes is for them.
func (m *Merger) Size() (samples, frames int) {
	for _, s := range m.sums {
		samples += len(s.out.Samples)
		frames += s.frames
	}
	return samples, frames
}

// Profiles gives the sums, one per workload, in the order in which workloads
// were first added. Nothing may be added afterwards.
func (m *Merger) Profiles() []*profiler.Profile {
	out := make([]*profiler.Profile, len(m.sums))
	for i, s := range m.sums {
		out[i] = s.profile()
	}
	return out
}

// workloadKey is the same for workloads that have the same attributes.
func workloadKey(w *profiler.Workload) string {
	if w == nil {
		return ""
	}
	var b strings.Builder
	for _, a := range w.Attributes {
		b.WriteString(a.Key)
		b.WriteByte(0)
		b.WriteString(a.Value)
		b.WriteByte(0)
	}
	return b.String()
}

// Add adds a profile to what was added of its workload.
func (m *Merger) Add(p *profiler.Profile) {
	key := ""
	if !m.Whole {
		key = workloadKey(p.Workload)
	}
	if m.byKey == nil {
		m.modules = make(map[profiler.Module]*profiler.Module)
		m.locations = make(map[locationKey][]*profiler.Location)
		m.stacks = make(map[uint64][]*profiler.Stack)
		m.seed = maphash.MakeSeed()
		m.processes = make(map[profiler.Process]*profiler.Process)
		m.byKey = make(map[string]*sum)
	}
	s := m.byKey[key]
	if s == nil {
		s = &sum{
			out:     &profiler.Profile{Workload: p.Workload},
			samples: make(map[sampleKey]int), workload: workloadKey(p.Workload),
		}
		m.byKey[key] = s
		m.sums = append(m.sums, s)
	}
	s.describe(p)
	m.seenLocations = make(map[*profiler.Location]*profiler.Location)
	m.seenStacks = make(map[*profiler.Stack]*profiler.Stack)
	m.seenProcesses = make(map[*profiler.Process]*profiler.Process)
	period := 1 / float64(max(p.Frequency, 1))
	for i := range p.Samples {
		from := &p.Samples[i]
		k := sampleKey{m.process(from.Process), from.TID, from.Thread, m.stack(from.Stack)}
		n, ok := s.samples[k]
		if !ok {
			n = len(s.out.Samples)
			s.samples[k] = n
			s.out.Samples = append(s.out.Samples, profiler.Sample{Process: k.process, TID: k.tid, Thread: k.thread, Stack: k.stack})
			s.seconds = append(s.seconds, 0)
			if k.stack != nil {
				s.frames += len(k.stack.Locations)
			}
		}
		s.seconds[n] += float64(from.Count) * period
	}
	m.seenLocations, m.seenStacks, m.seenProcesses = nil, nil, nil
}

// describe adds up all but the samples.
func (s *sum) describe(p *profiler.Profile) {
	out := s.out
	if out.Workload != nil && workloadKey(p.Workload) != s.workload {
		out.Workload = nil
	}
	out.Host, out.Event = cmp.Or(out.Host, p.Host), cmp.Or(out.Event, p.Event)
	out.Frequency = max(out.Frequency, p.Frequency)
	s.cover.add(p)
	q, from := &out.Quality, &p.Quality
	q.Samples += from.Samples
	q.Lost += from.Lost
	q.LostUnknown = q.LostUnknown || from.LostUnknown
	q.Frames += from.Frames
	q.FramesNamed += from.FramesNamed
	for i, n := range from.Stops {
		q.Stops[i] += n
	}
	if q.UnnamedByModule == nil {
		q.UnnamedByModule = make(map[string]uint64, len(from.UnnamedByModule))
	}
	for path, n := range from.UnnamedByModule {
		q.UnnamedByModule[path] += n
	}
}

// profile gives the sum. What rounding one sample takes or adds is given to the
// next, so that all together stay right.
func (s *sum) profile() *profiler.Profile {
	p := s.out
	p.Start, p.Duration = s.cover.span()
	p.Quality.DistinctStacks = uint64(len(p.Samples))
	carry := 0.0
	for i := range p.Samples {
		exact := s.seconds[i]*float64(max(p.Frequency, 1)) + carry
		n := math.Round(exact)
		carry = exact - n
		p.Samples[i].Count = uint64(max(n, 0))
	}
	return p
}

func (m *Merger) process(p *profiler.Process) *profiler.Process {
	if p == nil {
		return nil
	}
	out, ok := m.seenProcesses[p]
	if ok {
		return out
	}
	if out, ok = m.processes[*p]; !ok {
		out = p
		m.processes[*p] = p
	}
	m.seenProcesses[p] = out
	return out
}

func (m *Merger) stack(s *profiler.Stack) *profiler.Stack {
	if s == nil {
		return nil
	}
	if out, ok := m.seenStacks[s]; ok {
		return out
	}
	m.walk = m.walk[:0]
	hash := uint64(s.Stop)
	for _, l := range s.Locations {
		l = m.location(l)
		m.walk = append(m.walk, l)
		hash = hash*31 + maphash.Comparable(m.seed, l)
	}
	var out *profiler.Stack
	for _, have := range m.stacks[hash] {
		if have.Stop == s.Stop && slices.Equal(have.Locations, m.walk) {
			out = have
			break
		}
	}
	if out == nil {
		out = &profiler.Stack{Stop: s.Stop, Locations: slices.Clone(m.walk)}
		m.stacks[hash] = append(m.stacks[hash], out)
	}
	m.seenStacks[s] = out
	return out
}

func (m *Merger) location(l *profiler.Location) *profiler.Location {
	if out, ok := m.seenLocations[l]; ok {
		return out
	}
	key := locationKey{address: l.Address}
	if len(l.Frames) > 0 {
		key.function, key.line = l.Frames[0].Function, l.Frames[0].Line
	}
	if l.Module != nil {
		if key.module = m.modules[*l.Module]; key.module == nil {
			key.module = l.Module
			m.modules[*l.Module] = l.Module
		}
	}
	var out *profiler.Location
	for _, have := range m.locations[key] {
		if slices.Equal(have.Frames, l.Frames) {
			out = have
			break
		}
	}
	if out == nil {
		out = &profiler.Location{Module: key.module, Address: l.Address, Frames: l.Frames}
		m.locations[key] = append(m.locations[key], out)
	}
	m.seenLocations[l] = out
	return out
}

// coverage is the time that profiles cover.
type coverage struct {
	parts   []interval
	unknown time.Duration // of profiles that do not say when they began
}

type interval struct{ from, to time.Time }

func (c *coverage) add(p *profiler.Profile) {
	if p.Start.IsZero() {
		c.unknown += p.Duration
		return
	}
	c.parts = append(c.parts, interval{p.Start, p.Start.Add(p.Duration)})
}

// span gives the beginning of the first part, and the length of all of them
// with what overlaps counted once.
func (c *coverage) span() (time.Time, time.Duration) {
	if len(c.parts) == 0 {
		return time.Time{}, c.unknown
	}
	slices.SortFunc(c.parts, func(a, b interval) int { return a.from.Compare(b.from) })
	total, end := c.unknown, c.parts[0].from
	for _, p := range c.parts {
		if p.from.After(end) {
			end = p.from
		}
		if p.to.After(end) {
			total += p.to.Sub(end)
			end = p.to
		}
	}
	return c.parts[0].from, total
}
