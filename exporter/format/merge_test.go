package format

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/profiler"
)

// window is a profile of one function in one process, without pointers that
// another has too.
func window(start, duration time.Duration, hz int, counts map[string]uint64) *profiler.Profile {
	p := &profiler.Profile{
		Start: time.Unix(1000, 0).Add(start), Duration: duration, Frequency: hz, Event: "cpu-clock", Host: "larch",
		Quality: profiler.Quality{Lost: 1, UnnamedByModule: map[string]uint64{"/lib/x.so": 2}},
	}
	for _, name := range []string{"a", "b", "c"} {
		if counts[name] == 0 {
			continue
		}
		p.Samples = append(p.Samples, profiler.Sample{
			Process: &profiler.Process{PID: 7, Comm: "cart"}, Count: counts[name],
			Stack: &profiler.Stack{Stop: profiler.StopRoot, Locations: []*profiler.Location{{
				Module: &profiler.Module{Path: "/bin/cart"}, Address: 1, Frames: []profiler.Frame{{Function: name}},
			}}},
		})
		p.Quality.Samples += counts[name]
		p.Quality.Stops[profiler.StopRoot] += counts[name]
	}
	return p
}

func folded(p *profiler.Profile) map[string]uint64 {
	counts := make(map[string]uint64)
	for i := range p.Samples {
		counts[p.Samples[i].Stack.Locations[0].Frames[0].Function] += p.Samples[i].Count
	}
	return counts
}

func TestMerge(t *testing.T) {
	for name, c := range map[string]struct {
		in       []*profiler.Profile
		counts   map[string]uint64
		hz       int
		duration time.Duration
	}{
		"nothing": {nil, map[string]uint64{}, 0, 0},
		"counts of one stack add up": {
			[]*profiler.Profile{window(0, time.Second, 97, map[string]uint64{"a": 10, "b": 1}), window(time.Second, time.Second, 97, map[string]uint64{"b": 5, "c": 2})},
			map[string]uint64{"a": 10, "b": 6, "c": 2}, 97, 2 * time.Second,
		},
		"a sample at half the rate counts twice": {
			[]*profiler.Profile{window(0, time.Second, 100, map[string]uint64{"a": 10}), window(time.Second, time.Second, 50, map[string]uint64{"a": 5, "b": 5})},
			map[string]uint64{"a": 20, "b": 10}, 100, 2 * time.Second,
		},
		"what is no whole sample is not lost": {
			[]*profiler.Profile{window(0, time.Second, 97, map[string]uint64{"a": 1}), window(time.Second, time.Second, 73, map[string]uint64{"b": 73, "c": 146})},
			map[string]uint64{"a": 1, "b": 97, "c": 194}, 97, 2 * time.Second,
		},
		"gaps and overlaps count once": {
			[]*profiler.Profile{window(9*time.Second, time.Second, 97, map[string]uint64{"a": 1}), window(0, 2*time.Second, 97, map[string]uint64{"a": 1}), window(time.Second, 2*time.Second, 97, nil)},
			map[string]uint64{"a": 2}, 97, 4 * time.Second,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := Merge(c.in...)
			if diff := cmp.Diff(folded(got), c.counts); diff != "" {
				t.Errorf("(-got +want):\n%s", diff)
			}
			if got.Frequency != c.hz || got.Duration != c.duration || len(got.Samples) != len(c.counts) {
				t.Errorf("%d Hz, %v, %d samples; want %d Hz, %v, %d", got.Frequency, got.Duration, len(got.Samples), c.hz, c.duration, len(c.counts))
			}
			if got.Quality.Lost != uint64(len(c.in)) || got.Quality.UnnamedByModule["/lib/x.so"] != 2*uint64(len(c.in)) {
				t.Errorf("quality %+v", got.Quality)
			}
		})
	}
}

// TestMergeKeepsCPUTime: with rates that are no multiples of each other, all
// stacks together are right to one sample, and so is each.
func TestMergeKeepsCPUTime(t *testing.T) {
	var in []*profiler.Profile
	want := 0.0
	each := map[string]float64{}
	for i, hz := range []int{97, 61, 13, 97, 7, 89} {
		counts := map[string]uint64{"a": uint64(3*i + 1), "b": 1, "c": uint64(500 * i)}
		in = append(in, window(time.Duration(i)*time.Second, time.Second, hz, counts))
		for name, n := range counts {
			want += float64(n) / float64(hz)
			each[name] += float64(n) / float64(hz)
		}
	}
	got := Merge(in...)
	total := 0.0
	for name, n := range folded(got) {
		total += float64(n) / 97
		if diff := float64(n)/97 - each[name]; diff > 1.0/97 || diff < -1.0/97 {
			t.Errorf("%s has %.4f s of CPU time, want %.4f", name, float64(n)/97, each[name])
		}
	}
	if diff := total - want; diff > 1.0/97 || diff < -1.0/97 {
		t.Errorf("%.4f s of CPU time, want %.4f", total, want)
	}
}

func TestMergeLeavesItsInputAlone(t *testing.T) {
	one, two := shop(), shop()
	Merge(one, two, threads())
	if diff := cmp.Diff(one, shop()); diff != "" {
		t.Errorf("(-after +before):\n%s", diff)
	}
}

func TestMergeWorkload(t *testing.T) {
	cart := func() *profiler.Profile {
		p := window(0, time.Second, 97, map[string]uint64{"a": 1})
		p.Workload = &profiler.Workload{Attributes: []profiler.Attribute{{Key: "service.name", Value: "cart"}}}
		return p
	}
	other := cart()
	other.Workload.Attributes[0].Value = "other"
	if w := Merge(cart(), cart()).Workload; w == nil || w.Attribute("service.name") != "cart" {
		t.Errorf("of one workload twice: %v", w)
	}
	if w := Merge(cart(), other, cart()).Workload; w != nil {
		t.Errorf("of two workloads: %v", w)
	}
	if w := Merge(cart(), shop()).Workload; w != nil {
		t.Errorf("of a workload and of everything: %v", w)
	}
	var m Merger
	for _, p := range []*profiler.Profile{cart(), other, cart()} {
		m.Add(p)
	}
	got := m.Profiles()
	if len(got) != 2 || got[0].Workload.Attribute("service.name") != "cart" || got[1].Workload.Attribute("service.name") != "other" ||
		got[0].Samples[0].Count != 2 || got[1].Samples[0].Count != 1 {
		t.Errorf("by workload: %+v", got)
	}
	if got[0].Samples[0].Stack != got[1].Samples[0].Stack {
		t.Error("the workloads have the same stack twice in memory")
	}
}

// TestMergeTellsApart: what makes two samples different.
func TestMergeTellsApart(t *testing.T) {
	for name, edit := range map[string]func(*profiler.Sample){
		"PID":     func(s *profiler.Sample) { s.Process = &profiler.Process{PID: 8, Comm: "cart"} },
		"thread":  func(s *profiler.Sample) { s.Thread = "x" },
		"TID":     func(s *profiler.Sample) { s.TID = 3 },
		"stop":    func(s *profiler.Sample) { s.Stack.Stop = profiler.StopTruncated },
		"address": func(s *profiler.Sample) { s.Stack.Locations[0].Address++ },
		"line":    func(s *profiler.Sample) { s.Stack.Locations[0].Frames[0].Line = 4 },
		"module":  func(s *profiler.Sample) { s.Stack.Locations[0].Module = &profiler.Module{Path: "/bin/x"} },
		"depth":   func(s *profiler.Sample) { s.Stack.Locations = append(s.Stack.Locations, s.Stack.Locations[0]) },
		"process": func(s *profiler.Sample) { s.Process = nil },
		"stack":   func(s *profiler.Sample) { s.Stack = nil },
	} {
		one, two := window(0, time.Second, 97, map[string]uint64{"a": 1}), window(0, time.Second, 97, map[string]uint64{"a": 1})
		if n := len(Merge(one, two).Samples); n != 1 {
			t.Fatalf("the same twice makes %d samples", n)
		}
		edit(&two.Samples[0])
		if n := len(Merge(one, two).Samples); n != 2 {
			t.Errorf("%s: %d samples, want 2", name, n)
		}
	}
}
