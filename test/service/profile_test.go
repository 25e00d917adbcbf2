package service

import (
	"fmt"
	"math"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/collector/pdata/pprofile"

	"github.com/kalypso-dev/kalypso/exporter/otlp/otlptest"
)

// profile is one that a receiver took.
type profile struct {
	service    string
	attributes map[string]string // of the workload
	start      time.Time
	duration   time.Duration
	period     time.Duration
	stacks     []stack
}

// stack is one sample, root first.
type stack struct {
	frames []frame
	count  uint64
}

type frame struct {
	name   string
	module string // base name of the mapping's file
}

func (p *profile) samples() uint64 {
	var n uint64
	for i := range p.stacks {
		n += p.stacks[i].count
	}
	return n
}

// profiles reads all that the receiver took, oldest first.
func profiles(t *testing.T, r *otlptest.Receiver) []profile {
	t.Helper()
	var out []profile
	for _, q := range r.Received() {
		d := q.Profiles.Dictionary()
		for _, rp := range q.Profiles.ResourceProfiles().All() {
			attributes := map[string]string{}
			for k, v := range rp.Resource().Attributes().All() {
				attributes[k] = v.Str()
			}
			for _, sp := range rp.ScopeProfiles().All() {
				for _, p := range sp.Profiles().All() {
					out = append(out, read(t, d, p, attributes))
				}
			}
		}
	}
	slices.SortStableFunc(out, func(a, b profile) int { return a.start.Compare(b.start) })
	return out
}

func read(t *testing.T, d pprofile.ProfilesDictionary, p pprofile.Profile, attributes map[string]string) profile {
	t.Helper()
	text := func(i int32) string { return d.StringTable().At(int(i)) }
	out := profile{
		service: attributes["service.name"], attributes: attributes,
		start: p.Time().AsTime(), duration: time.Duration(p.DurationNano()), period: time.Duration(p.Period()),
	}
	if out.service == "" {
		t.Error("a profile has no service.name")
	}
	for _, s := range p.Samples().All() {
		var st stack
		for _, v := range s.Values().All() {
			st.count += uint64(v)
		}
		indices := d.StackTable().At(int(s.StackIndex())).LocationIndices()
		for i := indices.Len() - 1; i >= 0; i-- {
			l := d.LocationTable().At(int(indices.At(i)))
			module := path.Base(strings.TrimSuffix(text(d.MappingTable().At(int(l.MappingIndex())).FilenameStrindex()), " (deleted)"))
			for j := l.Lines().Len() - 1; j >= 0; j-- {
				fn := d.FunctionTable().At(int(l.Lines().At(j).FunctionIndex()))
				st.frames = append(st.frames, frame{text(fn.NameStrindex()), module})
			}
		}
		out.stacks = append(out.stacks, st)
	}
	return out
}

// in says whether the stack has a frame of a module.
func (s *stack) in(module string) bool {
	return slices.ContainsFunc(s.frames, func(f frame) bool { return f.module == module })
}

// runs says whether the stack has a function.
func (s *stack) runs(function string) bool {
	return slices.ContainsFunc(s.frames, func(f frame) bool { return f.name == function })
}

func (s *stack) String() string {
	names := make([]string, len(s.frames))
	for i, f := range s.frames {
		names[i] = f.name
	}
	return fmt.Sprintf("%d x %s", s.count, strings.Join(names, ";"))
}

// usage is what profiles tell of one program.
type usage struct {
	samples  uint64
	cpu      time.Duration
	function map[string]uint64 // samples that have it
	services map[string]uint64 // samples by workload
	periods  map[time.Duration]uint64
	cut      uint64 // samples whose stack does not begin at the program's start
}

// ofService gives the profiles of a workload.
func ofService(list []profile, service string) []profile {
	return slices.DeleteFunc(list, func(p profile) bool { return p.service != service })
}

// usageOf adds up the samples that have a frame of the module (all, if it is
// empty), between two moments; a zero one is no limit.
func usageOf(list []profile, module string, from, to time.Time) usage {
	u := usage{function: map[string]uint64{}, services: map[string]uint64{}, periods: map[time.Duration]uint64{}}
	for i := range list {
		p := &list[i]
		if !from.IsZero() && p.start.Before(from) || !to.IsZero() && p.start.Add(p.duration).After(to) {
			continue
		}
		for j := range p.stacks {
			s := &p.stacks[j]
			if module != "" && !s.in(module) {
				continue
			}
			u.samples += s.count
			u.cpu += time.Duration(s.count) * p.period
			u.services[p.service] += s.count
			u.periods[p.period] += s.count
			if len(s.frames) == 0 || s.frames[0].name != "_start" {
				u.cut += s.count
			}
			names := map[string]bool{}
			for _, f := range s.frames {
				if !names[f.name] {
					names[f.name] = true
					u.function[f.name] += s.count
				}
			}
		}
	}
	return u
}

// checkShares holds the shares of functions within three points of the truth,
// and what so few samples can tell.
func checkShares(t *testing.T, u usage, want map[string]float64) {
	t.Helper()
	var all uint64
	for name := range want {
		all += u.function[name]
	}
	for name, share := range want {
		got := float64(u.function[name]) / float64(max(all, 1))
		noise := 2.5 * math.Sqrt(share*(1-share)/float64(max(all, 1)))
		t.Logf("%s: %.1f %% of %d samples, want %.1f", name, 100*got, all, 100*share)
		if math.Abs(got-share) > max(0.03, noise) {
			t.Errorf("%s has %.1f %% of %d samples, want %.1f", name, 100*got, all, 100*share)
		}
	}
}
