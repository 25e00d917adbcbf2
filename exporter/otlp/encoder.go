package otlp

import (
	"fmt"

	"github.com/kalypso-dev/kalypso/exporter"
	"github.com/kalypso-dev/kalypso/exporter/pyroscope/limits"
	"github.com/kalypso-dev/kalypso/profiler"
)

// EncoderConfig is how profiles are encoded. Its zero value works.
type EncoderConfig struct {
	// Version of the agent, in the scope of each profile.
	Version string
	// PushBytes is what one request may be charged; 0: limits.PushBytes.
	PushBytes int
}

// Encoder makes OTLP requests of profiles. It keeps nothing from one call to
// the next.
type Encoder struct{ config EncoderConfig }

// NewEncoder makes an encoder.
func NewEncoder(c EncoderConfig) *Encoder {
	if c.PushBytes == 0 {
		c.PushBytes = limits.PushBytes
	}
	return &Encoder{c}
}

// Encode makes one request of the profiles, or more where a server would
// refuse one of that size. The samples that it drops are those of a profile
// without a rate, and those whose stack alone is too large for a request.
func (e *Encoder) Encode(profiles []*profiler.Profile) ([]*exporter.Request, uint64, error) {
	p := newPlan(&e.config)
	for _, profile := range profiles {
		p.profile(profile)
	}
	requests := make([]*exporter.Request, 0, len(p.batches))
	for i := range p.batches {
		r, err := e.request(p.table, p.batches[i])
		if err != nil {
			return nil, 0, err
		}
		requests = append(requests, r)
	}
	return requests, p.dropped, nil
}

// plan says which samples go into which request.
type plan struct {
	config  *EncoderConfig
	table   *table
	batches []batch
	charge  int // of the last batch
	dropped uint64
	parts   map[string]int // made of each set of labels

	// The current piece, by its number, and the last piece in which a location,
	// function, string was charged.
	pieces    int32
	locations []int32
	functions []int32
	strings   []int32
	// Of the current piece as pprof: how many locations and mappings it has, and
	// the number of each location.
	locationCount, mappingCount int
	locationNumbers             []int32
}

func newPlan(c *EncoderConfig) *plan {
	return &plan{config: c, table: newTable(), parts: map[string]int{}}
}

// batch becomes a request.
type batch []piece

// piece is a profile, or a part of one: the backend adds up what it has of the
// same labels.
type piece struct {
	profile *profiler.Profile
	part    int // of those with the same labels
	labels  []profiler.Attribute
	samples []sample
}

type sample struct {
	stack int32
	count uint64
}

func (p *plan) profile(profile *profiler.Profile) {
	if profile.Period() <= 0 {
		for i := range profile.Samples {
			p.dropped += profile.Samples[i].Count
		}
		return
	}
	samples := p.samples(profile)
	labels := limits.Labels(profile.Workload)
	base := profileCharge + labelsCharge(labels)
	perSample := sampleCharge + labelCharge*len(labels)
	var current *piece
	for _, s := range samples {
		charge := 0
		if current != nil {
			charge = perSample + p.stackCharge(s.stack)
			if len(current.samples) == limits.SamplesPerProfile || p.charge+charge > p.config.PushBytes {
				current = nil
			}
		}
		if current == nil {
			p.pieces++
			p.locationCount, p.mappingCount = 0, 0
			charge = base + perSample + p.stackCharge(s.stack)
			if charge > p.config.PushBytes {
				p.dropped += s.count
				continue
			}
			current = p.add(piece{profile: profile, part: p.part(labels), labels: labels}, charge)
		}
		current.samples = append(current.samples, s)
		p.charge += charge
	}
}

// part numbers the pieces that have the same labels.
func (p *plan) part(labels []profiler.Attribute) int {
	key := fmt.Sprint(labels)
	n := p.parts[key]
	p.parts[key] = n + 1
	return n
}

// add starts a piece, in a new batch where it would be too much for the last.
func (p *plan) add(one piece, charge int) *piece {
	if len(p.batches) == 0 || p.charge+charge > p.config.PushBytes {
		p.batches = append(p.batches, nil)
		p.charge = 0
	}
	b := &p.batches[len(p.batches)-1]
	*b = append(*b, one)
	return &(*b)[len(*b)-1]
}

// samples gives the samples of a profile, each stack once, in the order in
// which they come.
func (p *plan) samples(profile *profiler.Profile) []sample {
	out := make([]sample, 0, len(profile.Samples))
	at := make(map[int32]int, len(profile.Samples))
	for i := range profile.Samples {
		s := &profile.Samples[i]
		if s.Count == 0 {
			continue
		}
		stack := p.table.stack(s.Stack)
		if j, ok := at[stack]; ok {
			out[j].count += s.Count
			continue
		}
		at[stack] = len(out)
		out = append(out, sample{stack, s.Count})
	}
	return out
}

// stackCharge is what a stack adds to the current piece, which has it then.
func (p *plan) stackCharge(i int32) int {
	t := p.table
	p.locations = grow(p.locations, len(t.locations))
	p.locationNumbers = grow(p.locationNumbers, len(t.locations))
	p.functions = grow(p.functions, len(t.functions))
	p.strings = grow(p.strings, len(t.strings))
	s := &t.stacks[i]
	p.mappingCount += s.modules
	n := s.modules * (mappingCharge + uvarintBytes(uint64(p.mappingCount)))
	for _, l := range s.locations {
		if p.locations[l] != p.pieces {
			p.locations[l] = p.pieces
			p.locationCount++
			p.locationNumbers[l] = int32(p.locationCount)
			n += p.locationCharge(&t.locations[l])
		}
		n += uvarintBytes(uint64(p.locationNumbers[l]))
	}
	return n
}

// locationCharge is what a location adds that the current piece has not yet.
func (p *plan) locationCharge(l *location) int {
	m := p.table.mappings[l.mapping]
	n := l.charge + p.stringCharge(m.file) + p.stringCharge(m.buildID)
	for _, line := range l.lines {
		if p.functions[line.function] == p.pieces {
			continue
		}
		p.functions[line.function] = p.pieces
		f := p.table.functions[line.function]
		n += functionCharge + p.stringCharge(f.name) + p.stringCharge(f.file)
	}
	return n
}

func (p *plan) stringCharge(i int32) int {
	if i == 0 || p.strings[i] == p.pieces {
		return 0
	}
	p.strings[i] = p.pieces
	return stringCharge(p.table.strings[i])
}

func grow(s []int32, n int) []int32 {
	if len(s) >= n {
		return s
	}
	return append(s, make([]int32, n-len(s))...)
}
