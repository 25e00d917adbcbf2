package pipeline

import (
	"context"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
)

// TestRecordRaisesItsTargetOnly: of two busy cgroups the one that is recorded has
// the rate that is asked for, the other the rate that it had; both show the CPU time
// that they used, in the recording and in what is delivered.
func TestRecordRaisesItsTargetOnly(t *testing.T) {
	const rest, hz = 197, 1997 // more of each: a share is taken by chance
	program := compile(t, "raised", spinner)
	for name, h := range map[string][2]string{"version 2": {"cgroup2", ""}, "version 1": {"cgroup", ",cpu,"}} {
		t.Run(name, func(t *testing.T) {
			g := kubelet(t, h[0], h[1])
			s, got, stop := serve(t, func(c *ServiceConfig) { c.Frequency, c.Window = rest, 5*time.Second })
			a, b := g.run(g.mkdir("a"), program), g.run(g.mkdir("b"), program)
			until(t, "both to be sampled", func() bool {
				s.selection.mu.Lock()
				defer s.selection.mu.Unlock()
				n := 0
				for place := range s.selection.met {
					if place.Path == g.path()+"/a" || place.Path == g.path()+"/b" {
						n++
					}
				}
				return n == 2
			})
			if cgroup, err := s.CgroupOf(a); err != nil || cgroup != g.path()+"/a" {
				t.Errorf("the one is in %q, %v; want %q", cgroup, err, g.path()+"/a")
			}
			ctx, cancel := context.WithCancel(context.Background())
			raised := func(want bool) func() bool {
				return func() (ok bool) {
					if err := s.do(context.Background(), func() { ok = len(s.rates.raised) > 0 == want }); err != nil {
						t.Fatal(err)
					}
					return ok
				}
			}
			recorded := make(chan []Segment, 1)
			go func() {
				segments, err := s.Record(ctx, time.Hour, hz, func(cgroup string, _ *profiler.Workload) bool { return cgroup == g.path()+"/a" }, nil)
				if err != nil {
					t.Error(err)
				}
				recorded <- segments
			}()
			until(t, "the recording to begin", raised(true))
			usedA, usedB := cpuTimeOf(t, a), cpuTimeOf(t, b)
			until(t, "CPU time", func() bool { return cpuTimeOf(t, b)-usedB > 2*time.Second && cpuTimeOf(t, a)-usedA > time.Second })
			cancel()
			until(t, "the recording to end", raised(false))
			usedA, usedB = cpuTimeOf(t, a)-usedA, cpuTimeOf(t, b)-usedB
			segments := <-recorded
			until(t, "the rate to be what it was", func() bool {
				n := len(got.all())
				return n > 0 && got.all()[n-1].Frequency == rest && got.all()[n-1].Start.After(segments[len(segments)-1].Start)
			})
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			for _, tt := range []struct {
				group string
				hz    int
				used  time.Duration
			}{{"a", hz, usedA}, {"b", rest, usedB}} {
				for name, list := range map[string][]Segment{"recorded": segments, "delivered": within(got.all(), segments)} {
					byRate := map[int]uint64{}
					for _, seg := range list {
						for _, p := range seg.Profiles {
							for _, x := range p.Samples {
								if x.Process.Cgroup == g.path()+"/"+tt.group {
									byRate[p.Frequency] += x.Count
								}
							}
						}
					}
					shown := float64(byRate[tt.hz]) / float64(tt.hz)
					t.Logf("%s: of %s samples by rate %v: %.2f s of %.2f s", name, tt.group, byRate, shown, tt.used.Seconds())
					for hz, n := range byRate {
						if hz != tt.hz && n > 40 { // between two steps of a change, some milliseconds
							t.Errorf("%s: %d samples of %s at %d Hz", name, n, tt.group, hz)
						}
					}
					chance := 2 * math.Sqrt(tt.used.Seconds()/float64(tt.hz)) // seconds: two standard deviations of what is thinned
					if math.Abs(shown-tt.used.Seconds()) > 0.15*tt.used.Seconds()+chance {
						t.Errorf("%s: %.2f s of CPU time are shown of %s at %d Hz, it used %.2f s; samples by rate: %v", name, shown, tt.group, tt.hz, tt.used.Seconds(), byRate)
					}
				}
			}
			if st := s.Stats(); st.Taken != st.Samples+st.Lost+st.Filtered || st.Frequency != rest {
				t.Errorf("%d samples were taken; %d delivered, %d lost, %d filtered; now at %d Hz", st.Taken, st.Samples, st.Lost, st.Filtered, st.Frequency)
			}
		})
	}
}

// within are the segments that were delivered while others were recorded.
func within(all, recorded []Segment) (list []Segment) {
	for _, seg := range all {
		if seg.Seq >= recorded[0].Seq && seg.Seq <= recorded[len(recorded)-1].Seq {
			list = append(list, seg)
		}
	}
	return list
}

// TestDueRates: a recording of all raises everybody's rate, one of a target its own,
// and neither lowers any.
func TestDueRates(t *testing.T) {
	target := Target(func(cgroup string, _ *profiler.Workload) bool { return cgroup == "/a" })
	for _, tt := range []struct {
		name       string
		recordings []recorder
		rest, hz   int
		a          int // asked for /a
	}{
		{"none", nil, 97, 97, 0},
		{"of all", []recorder{{hz: 499}}, 499, 499, 0},
		{"of a target", []recorder{{hz: 997, target: target}}, 97, 997, 997},
		{"of a target, slower", []recorder{{hz: 49, target: target}}, 97, 97, 49},
		{"of both", []recorder{{hz: 997, target: target}, {hz: 499}}, 499, 997, 997},
		{"of both, all faster", []recorder{{hz: 499, target: target}, {hz: 997}}, 997, 997, 499},
		{"of a target twice", []recorder{{hz: 499, target: target}, {hz: 997, target: target}}, 97, 997, 997},
		{"that has ended", []recorder{{target: target}}, 97, 97, 0},
	} {
		s := &Service{budget: newCPUBudget(0, 97, time.Second), recording: map[*recorder]bool{}, who: newTestIdentities("")}
		s.memory = newMemory(s)
		for i := range tt.recordings {
			s.recording[&tt.recordings[i]] = true
		}
		if r := s.dueRates(); r.rest != tt.rest || r.hz != tt.hz || r.asked("/a") != tt.a || r.asked("/b") != 0 {
			t.Errorf("%s: %d Hz, %d Hz of the rest, /a %d Hz, /b %d Hz; want %d, %d, %d, 0", tt.name, r.hz, r.rest, r.asked("/a"), r.asked("/b"), tt.hz, tt.rest, tt.a)
		}
	}
}

// TestEquivalentRate: what a second with a raised target cost is held against the
// rate that would have cost it.
func TestEquivalentRate(t *testing.T) {
	raisedBy10 := frequencies{hz: 1000, rest: 100, raised: make([]raised, 1)}
	for _, tt := range []struct {
		name string
		r    frequencies
		t    taken
		want int
	}{
		{"nothing of the target ran", raisedBy10, taken{1000, 900}, 100},
		{"only the target ran", raisedBy10, taken{1000, 0}, 1000},
		{"both ran as long", raisedBy10, taken{2000, 900}, 550},
		{"nothing ran", raisedBy10, taken{}, 1000},
		{"more was left out: no less than at everybody's", raisedBy10, taken{2000, 1990}, 100},
		{"nothing is raised", frequencies{hz: 100, rest: 100}, taken{100, 0}, 100},
	} {
		if got := tt.r.equivalent(tt.t); got != tt.want {
			t.Errorf("%s: %d Hz, want %d", tt.name, got, tt.want)
		}
	}
}

// TestRecorderKeepsWhatIsWanted: what others run does not end a recording.
func TestRecorderKeepsWhatIsWanted(t *testing.T) {
	others := &profiler.Profile{Samples: make([]profiler.Sample, 100)}
	wanted := &profiler.Profile{Samples: make([]profiler.Sample, 1)}
	most := int64(segmentBytes + 10*sampleBytes)
	for name, tt := range map[string]struct {
		wanted Wanted
		want   error
	}{
		"all":      {nil, ErrTooLarge},
		"a target": {func([]*profiler.Profile) []*profiler.Profile { return []*profiler.Profile{wanted} }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := &recorder{wanted: tt.wanted}
			r.add(Segment{Profiles: []*profiler.Profile{others, wanted}}, most)
			if r.err != tt.want {
				t.Fatalf("%v, want %v", r.err, tt.want)
			}
			if r.err == nil && (len(r.segments) != 1 || !slices.Equal(r.segments[0].Profiles, []*profiler.Profile{wanted})) {
				t.Errorf("it has %v", r.segments)
			}
		})
	}
}
