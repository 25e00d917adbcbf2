package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
)

// Ref names an object.
type Ref struct{ APIVersion, Kind, Namespace, Name string }

// String is how people name it: Deployment mimir/mimir-gateway.
func (r Ref) String() string {
	if r.Namespace == "" {
		return r.Kind + " " + r.Name
	}
	return r.Kind + " " + r.Namespace + "/" + r.Name
}

// State is how an object was at one moment.
type State struct {
	Ref
	Ready    bool
	Reason   string    // why it is not: "mimir-store-gateway-0: pulling image"; empty when ready
	Since    time.Time // since when the reason holds, or since when it is ready; zero when not known
	Restarts int       // of its pods' containers, in all
	Last     Restart   // the latest of them
	Pods     int       // that are ready, of a workload
	Want     int       // pods that there are to be; zero when the object is no workload
	Hurdle   Hurdle
}

// Stuck says whether it will not be ready by itself.
func (s State) Stuck() bool {
	return !s.Ready && s.Hurdle.Cause != "" && time.Since(s.Since) >= s.Hurdle.After
}

// Restart is why a container was started again.
type Restart struct {
	Pod, Container string
	Why            string // OOMKilled, limit 512Mi
	At             time.Time
}

// Hurdle is what keeps an object from ever being ready. The zero value is none:
// it may still come.
type Hurdle struct {
	Cause string // one sentence: what the API server or the node says
	Fix   string
	After time.Duration // it counts once the reason has held for so long
	Kind  error         // of the fault that it makes; may be nil
	at    time.Time     // when it last happened, of what happens again and again
	pod   string        // that has a log to look into
	from  string        // its container
}

// Progress is how far waiting has come.
type Progress struct {
	Ready, Total int       // pods of workloads; objects, when no workload is among them
	Reason       string    // why the first one is not ready: "mimir-store-gateway-0: pulling image"
	Since        time.Time // since when
}

// String is one line: 10/12 ready; mimir-store-gateway-0: pulling image (48 s).
func (p Progress) String() string {
	s := fmt.Sprintf("%d/%d ready", p.Ready, p.Total)
	if p.Reason == "" {
		return s
	}
	s += "; " + p.Reason
	if age := time.Since(p.Since); !p.Since.IsZero() && age >= time.Second {
		s += " (" + Age(age) + ")"
	}
	return s
}

// Age is a duration in the largest unit that suits it, and the one below it
// where that matters: 48 s, 1m12s, 3h, 5d.
func Age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 10*time.Minute:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// Count is a number of things: 1 node, 3 nodes.
func Count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// Readiness looks once.
func (c *Cluster) Readiness(ctx context.Context, objects []Ref) ([]State, error) {
	w, err := c.watch(ctx, objects)
	if err != nil {
		return nil, err
	}
	defer w.stop()
	return w.look(ctx, objects)
}

// Timeout is that ctx ended before everything was ready. It wraps a
// profiler.Fault with the last reason.
type Timeout struct{ fault *profiler.Fault }

// Error is that of the fault.
func (t *Timeout) Error() string { return t.fault.Error() }

// Unwrap gives the fault.
func (t *Timeout) Unwrap() error { return t.fault }

// lookEvery bounds how old a look is when nothing was heard from the watches:
// some objects are not watched, and grace times end without an event.
const lookEvery = time.Second

// settle is how long changes are gathered before the next look.
const settle = 100 * time.Millisecond

// WaitReady waits until all objects are ready. It reports when something
// changed, gives up at once on what cannot heal, with a profiler.Fault, and
// with a Timeout when ctx ends at its deadline.
func (c *Cluster) WaitReady(ctx context.Context, objects []Ref, report func(Progress)) error {
	w, err := c.watch(ctx, objects)
	if err != nil {
		return err
	}
	defer w.stop()
	started := time.Now()
	var (
		states []State
		said   Progress
	)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		seen, err := w.look(ctx, objects)
		switch {
		case err != nil && ctx.Err() == nil:
			return err
		case err == nil: // else the last look is the last word
			states = seen
			now := progress(states)
			if now != said && report != nil {
				report(now)
			}
			said = now
			if !slices.ContainsFunc(states, func(s State) bool { return !s.Ready }) {
				return nil
			}
			if err := c.hopeless(ctx, states, started); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return waitedInVain(ctx, states, said)
		case <-tick.C:
		case <-w.changed:
			select { // what changes, changes in several places
			case <-ctx.Done():
			case <-time.After(settle):
			}
		}
	}
}

// waitedInVain is the error of a wait whose time is over.
func waitedInVain(ctx context.Context, states []State, p Progress) error {
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return context.Cause(ctx)
	}
	f := &profiler.Fault{What: fmt.Sprintf("not everything is ready in time: %d of %d", p.Ready, p.Total)}
	for _, s := range states {
		if !s.Ready {
			f.Why = fmt.Errorf("%s: %s", s.Ref, s.Reason)
			f.Fix = s.Hurdle.Fix
			if f.Fix == "" {
				f.Fix = "kubectl -n " + s.Namespace + " get pods,events     --timeout waits longer"
			}
			break
		}
	}
	if f.Why == nil {
		f.Why = errors.New("the API server did not say why")
	}
	return &Timeout{f}
}

// progress sums states up.
func progress(states []State) Progress {
	var p Progress
	workloads := slices.ContainsFunc(states, func(s State) bool { return s.Want > 0 })
	for _, s := range states {
		if workloads {
			p.Ready, p.Total = p.Ready+s.Pods, p.Total+s.Want
		} else {
			p.Total++
			if s.Ready {
				p.Ready++
			}
		}
		if !s.Ready && p.Reason == "" {
			p.Reason, p.Since = s.Reason, s.Since
		}
	}
	return p
}

const (
	// oldLimit is for hurdles from before the wait, which may just have been taken
	// away: kubelets look again every 10 s or so.
	oldLimit = 30 * time.Second
	// skew is how far the clocks here and there may be apart.
	skew = 10 * time.Second
)

// hopeless gives the first hurdle that is none that time would take away.
func (c *Cluster) hopeless(ctx context.Context, states []State, started time.Time) error {
	for _, s := range states {
		h := s.Hurdle
		if s.Ready || h.Cause == "" {
			continue
		}
		if !h.at.IsZero() && h.at.Before(started) {
			continue // of old; what is waited for may have mended it
		}
		since, grace := s.Since, h.After
		if since.Before(started.Add(-skew)) {
			since, grace = started, max(grace, oldLimit)
		}
		if grace > 0 && time.Since(since) < grace {
			continue
		}
		return &profiler.Fault{What: s.Ref.String() + " will not be ready", Why: errors.New(c.complete(ctx, s)), Fix: h.Fix, Kind: h.Kind}
	}
	return nil
}
