package api

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/exporter/format"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/viewer"
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func between(t testing.TB, h *History, from, to time.Duration, f Filter) *Range {
	t.Helper()
	r, err := h.Between(t.Context(), begin().Add(from), begin().Add(to), Selection{Filter: f})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// counts are a range's samples by service and function.
func counts(r *Range) map[string]uint64 {
	out := map[string]uint64{}
	for _, p := range r.Profiles {
		for i := range p.Samples {
			out[service(p)+" "+p.Samples[i].Stack.Locations[0].Frames[0].Function] += p.Samples[i].Count
		}
	}
	return out
}

func labels(list ...string) (out []profiler.Attribute) {
	for _, l := range list {
		key, value, _ := strings.Cut(l, "=")
		out = append(out, profiler.Attribute{Key: key, Value: value})
	}
	return out
}

func TestHistoryAddsUpWhatIsInARange(t *testing.T) {
	h := NewHistory(DefaultKeep, 1<<20)
	add(t, h,
		segment(0, 97, workload("cart", 1, map[string]uint64{"price": 10, "[kernel]": 1}), workload("shop", 2, map[string]uint64{"sell": 5})),
		segment(1, 97, workload("cart", 1, map[string]uint64{"price": 20})),
		segment(2, 97), // idle
		segment(3, 97, workload("shop", 2, map[string]uint64{"sell": 7, "buy": 3})),
	)
	all := map[string]uint64{"cart price": 30, "cart ksys_read": 1, "shop sell": 12, "shop buy": 3}
	for _, c := range []struct {
		name     string
		from, to time.Duration
		filter   Filter
		want     map[string]uint64
		begin    time.Duration
		covered  time.Duration
	}{
		{"all of it", -time.Hour, time.Hour, Filter{}, all, 0, 40 * time.Second},
		{"one segment", 10 * time.Second, 20 * time.Second, Filter{}, map[string]uint64{"cart price": 20}, 10 * time.Second, 10 * time.Second},
		{"most of a segment is all of it", 12 * time.Second, 24 * time.Second, Filter{}, map[string]uint64{"cart price": 20}, 10 * time.Second, 10 * time.Second},
		{"what is inside a segment is the segment", 12 * time.Second, 14 * time.Second, Filter{}, map[string]uint64{"cart price": 20}, 10 * time.Second, 10 * time.Second},
		{"a time in which nothing ran", 20 * time.Second, 30 * time.Second, Filter{}, map[string]uint64{}, 20 * time.Second, 10 * time.Second},
		{"a time before", -time.Hour, -time.Minute, Filter{}, map[string]uint64{}, 0, 0},
		{"a service", -time.Hour, time.Hour, Filter{Service: "shop"}, map[string]uint64{"shop sell": 12, "shop buy": 3}, 0, 40 * time.Second},
		{"a process", -time.Hour, time.Hour, Filter{PID: 1}, map[string]uint64{"cart price": 30, "cart ksys_read": 1}, 0, 40 * time.Second},
		{"a name", -time.Hour, time.Hour, Filter{Comm: "shop"}, map[string]uint64{"shop sell": 12, "shop buy": 3}, 0, 40 * time.Second},
		{"a cgroup and below", -time.Hour, time.Hour, Filter{Cgroup: "/system.slice/"}, all, 0, 40 * time.Second},
		{"a cgroup's name that only begins so", -time.Hour, time.Hour, Filter{Cgroup: "/system"}, map[string]uint64{}, 0, 40 * time.Second},
		{"a label", -time.Hour, time.Hour, Filter{Labels: labels("service.name=shop")}, map[string]uint64{"shop sell": 12, "shop buy": 3}, 0, 40 * time.Second},
		{"labels of one key are alternatives", -time.Hour, time.Hour, Filter{Labels: labels("service.name=shop", "service.name=cart")}, all, 0, 40 * time.Second},
		{"labels of two keys must both fit", -time.Hour, time.Hour, Filter{Labels: labels("service.name=shop", "host.name=fir")}, map[string]uint64{}, 0, 40 * time.Second},
		{"a label that nobody has", -time.Hour, time.Hour, Filter{Labels: labels("k8s.pod.name=shop")}, map[string]uint64{}, 0, 40 * time.Second},
		{"two that no process has", -time.Hour, time.Hour, Filter{PID: 1, Service: "shop"}, map[string]uint64{}, 0, 40 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := between(t, h, c.from, c.to, c.filter)
			if diff := cmp.Diff(counts(r), c.want); diff != "" {
				t.Errorf("(-got +want):\n%s", diff)
			}
			if c.covered == 0 {
				if len(r.Profiles) != 0 || !r.From.IsZero() {
					t.Errorf("got %+v, want nothing", r)
				}
				return
			}
			if !r.From.Equal(begin().Add(c.begin)) || r.Cut || len(r.Profiles) == 0 {
				t.Errorf("begins %v, cut %v, %d profiles", r.From, r.Cut, len(r.Profiles))
			}
			for _, p := range r.Profiles {
				if p.Duration != c.covered || !p.Start.Equal(r.From) || p.Frequency != 97 {
					t.Errorf("%s: %v from %v at %d Hz, want %v", service(p), p.Duration, p.Start, p.Frequency, c.covered)
				}
			}
			whole := r.Whole()
			if want := format.Samples(whole); whole.Quality.Samples != want || whole.Quality.Stops[profiler.StopRoot] != want {
				t.Errorf("quality %+v of %d samples", whole.Quality, want)
			}
		})
	}
}

func TestHistoryCountsWhatWasLost(t *testing.T) {
	h := NewHistory(DefaultKeep, 1<<20)
	one, two := segment(0, 97, workload("cart", 1, map[string]uint64{"price": 10})), segment(1, 97)
	one.Lost, two.Lost = 3, 4
	add(t, h, one, two)
	for _, f := range []Filter{{}, {Service: "cart"}, {Service: "nobody"}} {
		if got := between(t, h, 0, time.Hour, f).Whole().Quality.Lost; got != 7 {
			t.Errorf("%+v: %d samples lost, want 7", f, got)
		}
	}
}

func TestHistoryRates(t *testing.T) {
	h := NewHistory(DefaultKeep, 1<<20)
	cart := func() *profiler.Profile { return workload("cart", 1, map[string]uint64{"price": 10}) }
	lossy := segment(3, 49, cart())
	lossy.Lost = 2
	add(t, h, segment(0, 97, cart()), segment(1, 97, cart()), segment(2, 49, cart()), lossy, segment(4, 97))
	want := []Rate{
		{From: begin(), To: begin().Add(20 * time.Second), Frequency: 97, Samples: 20},
		{From: begin().Add(20 * time.Second), To: begin().Add(40 * time.Second), Frequency: 49, Samples: 20, Lost: 2},
		{From: begin().Add(40 * time.Second), To: begin().Add(50 * time.Second), Frequency: 97},
	}
	if diff := cmp.Diff(h.Rates(), want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	// 20 samples at 97 Hz, and 20 at 49 Hz that stand for twice the time.
	if got := format.Samples(between(t, h, 0, time.Hour, Filter{}).Whole()); got != 60 {
		t.Errorf("%d samples at 97 Hz, want 60", got)
	}
}

func TestHistoryEvictsWhatIsOld(t *testing.T) {
	h := NewHistory(time.Minute, 1<<20)
	for n := range 10 {
		add(t, h, segment(n, 97, workload("cart", 1, map[string]uint64{"price": uint64(n)})))
	}
	st := h.Stats()
	if st.Segments != 6 || st.Evicted != (Evicted{Age: 4}) || !st.From.Equal(begin().Add(40*time.Second)) || !st.To.Equal(begin().Add(100*time.Second)) {
		t.Errorf("%+v, want 6 segments of a minute", st)
	}
	// The clock was set back by an hour: what came before is of no time now.
	add(t, h, segment(-360, 97, workload("cart", 1, map[string]uint64{"price": 1})))
	if st := h.Stats(); st.Segments != 1 || st.Evicted.Age != 10 {
		t.Errorf("after the clock was set back: %+v", st)
	}
}

func TestHistoryKeepsItsBudget(t *testing.T) {
	h := NewHistory(DefaultKeep, 200<<10)
	for n := range 20 {
		add(t, h, busy(n, 300))
		if st := h.Stats(); st.Bytes > st.Budget || st.Bytes <= 0 {
			t.Fatalf("%d bytes of a budget of %d", st.Bytes, st.Budget)
		}
	}
	st := h.Stats()
	if st.Segments == 0 || st.Segments+int(st.Evicted.Budget) != 20 || st.Evicted.Age != 0 {
		t.Errorf("%+v of 20 segments", st)
	}
	h.SetBudget(st.Bytes / 2)
	half := h.Stats()
	if half.Bytes > st.Bytes/2 || half.Segments == 0 || half.Segments >= st.Segments || !half.To.Equal(st.To) {
		t.Errorf("%+v after the budget was halved from %+v", half, st)
	}
	h.SetBudget(0)
	if st := h.Stats(); st.Segments != 0 || st.Bytes != 0 {
		t.Errorf("%+v without a budget", st)
	}
	if from, to := h.Newest(time.Minute); !from.IsZero() || !to.IsZero() {
		t.Errorf("newest %v to %v of nothing", from, to)
	}
	add(t, h, busy(20, 300))
	if st := h.Stats(); st.Segments != 0 || st.Bytes != 0 {
		t.Errorf("%+v: a segment over the budget stayed", st)
	}
}

func TestHistoryNewest(t *testing.T) {
	h := NewHistory(DefaultKeep, 1<<20)
	for n := range 6 {
		add(t, h, segment(n, 97))
	}
	for d, want := range map[time.Duration]time.Duration{
		time.Second: 10 * time.Second, 10 * time.Second: 10 * time.Second, 11 * time.Second: 20 * time.Second,
		30*time.Second + time.Millisecond: 30 * time.Second, time.Hour: time.Minute,
	} {
		from, to := h.Newest(d)
		if !to.Equal(begin().Add(time.Minute)) || to.Sub(from) != want {
			t.Errorf("the newest %v: %v to %v, want %v", d, from, to, want)
		}
	}
}

func TestHistoryStopsReadingWithItsContext(t *testing.T) {
	h := NewHistory(DefaultKeep, 1<<20)
	add(t, h, segment(0, 97))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Between(ctx, begin(), begin().Add(time.Hour), Selection{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestHistoryLeavesProfilesAlone(t *testing.T) {
	h := NewHistory(DefaultKeep, 1<<20)
	s := busy(0, 50)
	add(t, h, s)
	if diff := cmp.Diff(s.Profiles, busy(0, 50).Profiles); diff != "" {
		t.Errorf("(-after +before):\n%s", diff)
	}
}

// heap is how much of it is in use.
func heap() int64 {
	runtime.GC()
	runtime.GC() // what pools keep goes the second time
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// peak is the most that f needs of the heap beside what is in use before.
func peak(f func()) int64 {
	defer debug.SetGCPercent(debug.SetGCPercent(10))
	before := heap()
	most := before
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				most = max(most, int64(m.HeapAlloc))
			}
		}
	}()
	f()
	close(stop)
	<-ended
	return most - before
}

// TestHistoryMemory: what is kept takes what it says, and to read all of it and
// draw it takes no more than the limit of stacks and one segment over it do.
func TestHistoryMemory(t *testing.T) {
	const budget, stacks = 3 << 20, 2000 // of each segment
	before := heap()
	h := NewHistory(DefaultKeep, budget)
	for n := range 40 {
		add(t, h, busy(n, stacks))
	}
	st := h.Stats()
	used := heap() - before
	if used < st.Bytes*8/10 || used > st.Bytes*11/10 {
		t.Errorf("%d bytes of the heap for %d bytes of history", used, st.Bytes)
	}
	if st.Evicted.Budget == 0 {
		t.Fatalf("%+v: the test does not fill the budget", st)
	}
	var r *Range
	var size sizeWriter
	read := peak(func() { r = between(t, h, 0, time.Hour, Filter{}) })
	draw := peak(func() {
		if err := viewer.Write(&size, r.Whole()); err != nil {
			t.Fatal(err)
		}
	})
	write := peak(func() {
		if err := format.WriteProfiles(io.Discard, r.Profiles); err != nil {
			t.Fatal(err)
		}
	})
	n := len(r.Whole().Samples)
	t.Logf("%d of %d segments kept in %.1f MiB, %d bytes a stack; %d stacks read in %.1f MiB, drawn in %.1f, written in %.1f; a page of %d KB",
		st.Segments, 40, mib(st.Bytes), st.Bytes/int64(st.Segments*stacks), n, mib(read), mib(draw), mib(write), size/1000)
	if most := int64(minReadBytes+stacks*(stackBytes+30*frameBytes)) * 11 / 10; read+draw > most || read+write > most {
		t.Errorf("%d bytes to read, %d to draw, %d to write; want less than %d together", read, draw, write, most)
	}
	if !r.Cut || n < 2*stacks || !r.To.Equal(st.To) {
		t.Errorf("cut %v, %d stacks, to %v: want the newest, at least %d", r.Cut, n, r.To, 2*stacks)
	}
}

// TestHistoryRefusesWhatIsTooLarge: a program may have stacks of a thousand
// frames, all different.
func TestHistoryRefusesWhatIsTooLarge(t *testing.T) {
	h := NewHistory(DefaultKeep, 6<<20)
	s := busy(0, 2000)
	for i := range s.Profiles[0].Samples {
		st := s.Profiles[0].Samples[i].Stack
		for len(st.Locations) < 1000 {
			st.Locations = append(st.Locations, st.Locations...)
		}
	}
	add(t, h, s)
	_, err := h.Between(t.Context(), begin(), begin().Add(time.Hour), Selection{})
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v", err)
	}
	server := NewServer(Config{Source: &agent{segments: []Segment{s}}, History: h})
	for _, path := range []string{"/?seconds=60", "/v1/profile?seconds=1"} {
		w := get(server, path)
		if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "choose some of it") {
			t.Errorf("%s: %d %.300s", path, w.Code, w.Body)
		}
	}
	if r := between(t, h, 0, time.Hour, Filter{PID: s.Profiles[0].Samples[0].Process.PID}); len(r.Profiles[0].Samples) == 0 {
		t.Error("one of its processes is not there")
	}
}

type sizeWriter int

func (s *sizeWriter) Write(b []byte) (int, error) {
	*s += sizeWriter(len(b))
	return len(b), nil
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }
