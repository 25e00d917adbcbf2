package service

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/exporter/otlp/otlptest"
)

// profile is one that a receiver took.
type profile = otlptest.Profile

// profiles reads all that the receiver took, oldest first.
func profiles(t *testing.T, r *otlptest.Receiver) []profile {
	t.Helper()
	var out []profile
	for _, q := range r.Received() {
		out = append(out, otlptest.Profiles(q.Profiles)...)
	}
	for i := range out {
		if out[i].Service == "" {
			t.Error("a profile has no service.name")
		}
	}
	slices.SortStableFunc(out, func(a, b profile) int { return a.Start.Compare(b.Start) })
	return out
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
	return slices.DeleteFunc(list, func(p profile) bool { return p.Service != service })
}

// usageOf adds up the samples that have a frame of the module (all, if it is
// empty), between two moments; a zero one is no limit.
func usageOf(list []profile, module string, from, to time.Time) usage {
	u := usage{function: map[string]uint64{}, services: map[string]uint64{}, periods: map[time.Duration]uint64{}}
	for i := range list {
		p := &list[i]
		if !from.IsZero() && p.Start.Before(from) || !to.IsZero() && p.Start.Add(p.Duration).After(to) {
			continue
		}
		for j := range p.Stacks {
			s := &p.Stacks[j]
			if module != "" && !s.In(module) {
				continue
			}
			u.samples += s.Count
			u.cpu += time.Duration(s.Count) * p.Period
			u.services[p.Service] += s.Count
			u.periods[p.Period] += s.Count
			if len(s.Frames) == 0 || s.Frames[0].Name != "_start" {
				u.cut += s.Count
			}
			names := map[string]bool{}
			for _, f := range s.Frames {
				if !names[f.Name] {
					names[f.Name] = true
					u.function[f.Name] += s.Count
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
