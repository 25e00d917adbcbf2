package agents

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/profiler/api"
)

// fine is an agent with nothing wrong.
func fine() *api.Quality {
	delivered := time.Now().Add(-5 * time.Second)
	return &api.Quality{
		Started: time.Now().Add(-time.Hour), Frequency: 97, WantedFrequency: 97, Samples: 1000000, StacksComplete: 9800,
		StacksByReason: map[string]uint64{"root": 9800, "no_row": 150, "truncated": 50}, Frames: 1000, FramesNamed: 990,
		Rates:   []api.Rate{{Samples: 99900, Lost: 100}},
		Cost:    api.CostReport{CPUPercent: 0.6, CPUBudget: 1, RSSBytes: 90 << 20, MapBytes: 14 << 20, MemoryBudget: 128 << 20},
		Pods:    &api.Pods{Known: 12, Learning: true},
		Exports: []api.Export{{Name: "otlp", Endpoint: "pyroscope:4040", Delivered: &delivered}},
	}
}

func TestTroubles(t *testing.T) {
	old, older := time.Now().Add(-10*time.Minute), time.Now().Add(-20*time.Minute)
	for _, c := range []struct {
		name string
		edit func(*api.Quality)
		want []string
	}{
		{"none", func(*api.Quality) {}, nil},
		{"the rate fell a little", func(q *api.Quality) { q.Frequency = 60 }, nil},
		{"the rate fell to less than half", func(q *api.Quality) { q.Frequency = 23 }, []string{"it samples 23 times a second and not 97: its CPU budget of 1 % allows no more"}},
		{"fewer samples do not help", func(q *api.Quality) { q.Frequency, q.Cost.Unmet = 1, true }, []string{"it takes more than its CPU budget of 1 %, and fewer samples would not help"}},
		{"samples were lost", func(q *api.Quality) { q.Rates[0].Lost = 3000 }, []string{"2.9 % of the samples of the last 15 minutes were lost"}},
		{"samples were lost long ago", func(q *api.Quality) { q.Lost = 1e6 }, nil},
		{"memory is short", func(q *api.Quality) { q.Cost.Pressure = 2 }, []string{"it gives up its history, half of its caches of names for its memory budget of 128 MiB"}},
		{"memory is over its budget", func(q *api.Quality) { q.Cost.RSSBytes = 150 << 20 }, []string{"it takes 164 MiB, its budget is 128"}},
		{"three of four samples are left out for memory, not for CPU time", func(q *api.Quality) { q.Cost.Pressure, q.Frequency = 4, 24 }, []string{"it gives up its history, half of its caches of names, lines and inlined calls, three of four samples for its memory budget of 128 MiB"}},
		{"the backend is away", func(q *api.Quality) { q.Exports[0].Error, q.Exports[0].Waiting = "connection refused", 7 }, []string{"pyroscope:4040 takes no profiles: connection refused; 7 requests waiting"}},
		{"the backend is behind", func(q *api.Quality) { q.Exports[0].Oldest, q.Exports[0].Waiting = &old, 1 }, []string{"1 request waiting for pyroscope:4040, the oldest since 10m0s"}},
		{"nothing was ever taken", func(q *api.Quality) { q.Exports[0].Delivered = nil }, []string{"pyroscope:4040 has taken no profile since the agent was started"}},
		{"it has just been started", func(q *api.Quality) { q.Started, q.Exports[0].Delivered = time.Now(), nil }, nil},
		{"samples were given up", func(q *api.Quality) { q.Exports[0].Dropped, q.Exports[0].DroppedAt = 5, &old }, []string{"5 samples reached no backend since the agent was started, the last of them 10 minutes ago"}},
		{"samples were given up long ago", func(q *api.Quality) { q.Exports[0].Dropped, q.Exports[0].DroppedAt = 5, &older }, nil},
		{"nobody tells of pods", func(q *api.Quality) { q.Pods.Learning = false }, []string{"nobody tells it of pods: new ones have no name"}},
		{"an agent that says nothing of pods and backends", func(q *api.Quality) { q.Pods, q.Exports = nil, nil }, nil},
		{"stacks are not whole", func(q *api.Quality) {
			q.StacksComplete, q.StacksByReason["root"], q.StacksByReason["no_row"] = 8000, 8000, 1950
		}, []string{"80.0 % of stacks are whole; 19.5 % have: no information"}},
		{"few stacks say nothing", func(q *api.Quality) { q.StacksComplete, q.StacksByReason = 0, map[string]uint64{"no_row": 999} }, nil},
	} {
		q := fine()
		c.edit(q)
		var got []string
		for _, tr := range troubles(q, time.Now()) {
			got = append(got, tr.What)
			if tr.Fix == "" {
				t.Errorf("%s: no fix of %q", c.name, tr.What)
			}
		}
		if diff := cmp.Diff(got, c.want); diff != "" {
			t.Errorf("%s (-got +want):\n%s", c.name, diff)
		}
	}
}

func TestReports(t *testing.T) {
	got, err := Reports(t.Context(), cluster(), newLocal(t))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, r := range got {
		line := r.Node + " " + r.Pod
		if r.Quality == nil {
			line += ": " + r.Troubles[0].What
		}
		lines = append(lines, line)
	}
	want := []string{"fir : the agent of node fir is not ready: pod agent-f is running, and has not said that it is ready", "birch agent-b", "larch agent-l"}
	if diff := cmp.Diff(lines, want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	s := SumUp(got)
	if s.Agents != 2 || s.WithTroubles != 1 || s.RateLow != 50 || s.RateHigh != 100 {
		t.Errorf("sum %+v", s)
	}
}

func TestSumUp(t *testing.T) {
	other := fine()
	other.StacksComplete, other.StacksByReason = 10000, map[string]uint64{"root": 10000}
	other.Cost.CPUPercent, other.Frequency = 0.2, 23
	got := SumUp([]Report{{Quality: fine()}, {Quality: other, Troubles: []Trouble{{}}}, {Troubles: []Trouble{{}}}})
	want := Sum{
		Agents: 2, Stacks: 20000, Complete: 99, Named: 99, Reason: "no information", ReasonPercent: 0.75, Lost: 0.1, CPULow: 0.2, CPUHigh: 0.6,
		MemoryLow: 104 << 20, MemoryHigh: 104 << 20, RateLow: 23, RateHigh: 97, WithTroubles: 2,
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	if !strings.HasPrefix(pressure(1), "its history") {
		t.Error(pressure(1))
	}
}
