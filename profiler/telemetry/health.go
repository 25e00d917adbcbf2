package telemetry

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
)

// Health knows of each stage when it last made progress.
type Health struct {
	mu     sync.Mutex
	stages []*Stage
}

// NewHealth is the health of an agent that has no stages yet.
func NewHealth() *Health { return &Health{} }

// Stage is one part of the agent that must keep moving. Its owner ticks it
// whenever it goes round, also when there was nothing to do: a stage that waits
// for work wakes up to tick.
type Stage struct {
	name   string
	limit  time.Duration
	begin  time.Time    // with the monotonic clock, which stands still while the machine sleeps
	ticked atomic.Int64 // nanoseconds since begin
	health *Health
}

// Stage adds a stage that counts as stuck when it has not ticked for longer
// than limit. The first tick is now.
func (h *Health) Stage(name string, limit time.Duration) *Stage {
	s := &Stage{name: name, limit: limit, begin: time.Now(), health: h}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stages = append(h.stages, s)
	return s
}

// Tick says that the stage makes progress.
func (s *Stage) Tick() { s.ticked.Store(int64(time.Since(s.begin))) }

// End says that the stage has ended as it should and will not tick again.
func (s *Stage) End() {
	s.health.mu.Lock()
	defer s.health.mu.Unlock()
	s.health.stages = slices.DeleteFunc(s.health.stages, func(other *Stage) bool { return other == s })
}

// stageState is how a stage is at one moment.
type stageState struct {
	name       string
	age, limit time.Duration
}

func (s stageState) stuck() bool { return s.age > s.limit }

// states are those of the stages that have not ended, by name.
func (h *Health) states(now time.Time) []stageState {
	h.mu.Lock()
	defer h.mu.Unlock()
	states := make([]stageState, 0, len(h.stages))
	for _, s := range h.stages {
		age := now.Sub(s.begin) - time.Duration(s.ticked.Load())
		states = append(states, stageState{s.name, max(age, 0), s.limit})
	}
	slices.SortStableFunc(states, func(a, b stageState) int { return strings.Compare(a.name, b.name) })
	return states
}

// Healthz is the handler of /healthz: 200 while every stage makes progress, 503
// and the names of those that do not otherwise. To restart the agent is the
// right answer to a 503; that the backend is away is no reason for one.
func (h *Health) Healthz() http.Handler {
	return answer(func() (bool, string) {
		states := h.states(time.Now())
		var stuck []string
		for _, s := range states {
			if s.stuck() {
				stuck = append(stuck, fmt.Sprintf("%s has made no progress for %s", s.name, round(s.age)))
			}
		}
		var text strings.Builder
		if len(stuck) > 0 {
			fmt.Fprintf(&text, "stuck: %s\n", strings.Join(stuck, ", "))
		} else {
			text.WriteString("healthy\n")
		}
		for _, s := range states {
			fmt.Fprintf(&text, "%-11s %s ago, limit %s\n", s.name, round(s.age), round(s.limit))
		}
		return len(stuck) == 0, text.String()
	})
}

// Readiness is what /readyz tells.
type Readiness struct {
	Attached bool      // the BPF programs are attached
	Sampling time.Time // when sampling began; zero: not yet
	Backends []Backend
}

// Backend is somewhere profiles are sent to, and how that goes.
type Backend struct {
	Name      string    // as in --export
	Endpoint  string    // host:port, or a folder
	Tried     time.Time // when the last attempt ended; zero: there was none yet
	Err       error     // of the last attempt; nil: it was delivered
	Delivered time.Time // when something was last delivered; zero: never
	Oldest    time.Time // the end of the oldest window that is not delivered; zero: nothing waits
}

// Readyz is the handler of /readyz: 200 once programs are attached and sampling
// has begun. A backend that is away does not change that, because what was
// sampled is kept for it; but the text says so.
func Readyz(state func() Readiness) http.Handler {
	return answer(func() (bool, string) {
		now, r := time.Now(), state()
		ready := r.Attached && !r.Sampling.IsZero()
		var text strings.Builder
		text.WriteString(map[bool]string{true: "ready\n", false: "not ready\n"}[ready])
		fmt.Fprintf(&text, "%-11s %s\n", "programs", map[bool]string{true: "attached", false: "not attached"}[r.Attached])
		if r.Sampling.IsZero() {
			fmt.Fprintf(&text, "%-11s not begun\n", "sampling")
		} else {
			fmt.Fprintf(&text, "%-11s for %s\n", "sampling", round(now.Sub(r.Sampling)))
		}
		for i := range r.Backends {
			fmt.Fprintf(&text, "%-11s %s\n", "backend", r.Backends[i].describe(now))
		}
		return ready, text.String()
	})
}

// describe says whether the backend takes what it is sent, and what waits for
// it. Some of the words come from elsewhere: they are made printable.
func (b *Backend) describe(now time.Time) string {
	var state string
	switch {
	case b.Tried.IsZero():
		state = "not tried yet"
	case b.Err == nil:
		state = fmt.Sprintf("reachable, delivered %s ago", round(now.Sub(b.Tried)))
	case b.Delivered.IsZero():
		state = fmt.Sprintf("last attempt failed %s ago: %v; nothing was delivered yet", round(now.Sub(b.Tried)), b.Err)
	default:
		state = fmt.Sprintf("last attempt failed %s ago: %v; last delivery %s ago", round(now.Sub(b.Tried)), b.Err, round(now.Sub(b.Delivered)))
	}
	waits := "nothing waits"
	if !b.Oldest.IsZero() {
		waits = fmt.Sprintf("the oldest window that waits ended %s ago", round(now.Sub(b.Oldest)))
	}
	return profiler.Printable(fmt.Sprintf("%s %s: %s; %s", b.Name, b.Endpoint, state, waits))
}

// round leaves of a duration what matters: tenths of a second of short ones.
func round(d time.Duration) time.Duration {
	if d < 10*time.Second {
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Second)
}

// answer is a handler that says yes (200) or no (503) and why.
func answer(state func() (bool, string)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
			return
		}
		ok, text := state()
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if !ok {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = w.Write([]byte(text)) // the client went away: it knows
	})
}
