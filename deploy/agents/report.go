package agents

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/api"
)

// Report is how the agent of a node is, as it says itself.
type Report struct {
	Node     string
	Pod      string       // empty: there is none
	Quality  *api.Quality // nil: it did not answer
	Troubles []Trouble    // the one that costs most first
}

// Trouble is something that is not as it should be, and what to do about it.
type Trouble struct {
	What string
	Fix  string
}

// How long one agent may take, which answers from memory, and all: of a cluster
// whose nodes are away, those that were not asked by then do not answer.
const (
	reportTimeout  = 5 * time.Second
	reportsTimeout = 20 * time.Second
)

// Reports asks the agent of each node, those with troubles first, else by node.
// Where there are no agents at all there are none.
func Reports(ctx context.Context, client kubernetes.Interface, reach Reacher) ([]Report, error) {
	pods, err := agentPods(ctx, client)
	if err != nil || len(pods) == 0 {
		return nil, err
	}
	scope, err := Find(ctx, client, Target{Kind: Cluster})
	if err != nil {
		return nil, err
	}
	out := make([]Report, len(scope.Nodes))
	limited, cancel := context.WithTimeoutCause(ctx, reportsTimeout, fmt.Errorf("not asked: all agents together took %s", reportsTimeout))
	defer cancel()
	each(len(out), func(i int) { out[i] = report(limited, reach, scope.Nodes[i], pods) })
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	slices.SortStableFunc(out, func(a, b Report) int { return cmp.Compare(a.rank(), b.rank()) })
	return out, nil
}

// rank is 0 for an agent that does not answer, 1 for one with troubles, 2 for the
// others.
func (r *Report) rank() int {
	switch {
	case r.Quality == nil:
		return 0
	case len(r.Troubles) > 0:
		return 1
	}
	return 2
}

func report(ctx context.Context, reach Reacher, node string, pods []corev1.Pod) Report {
	ctx, cancel := context.WithTimeoutCause(ctx, reportTimeout, fmt.Errorf("no answer in %s", reportTimeout))
	defer cancel()
	r := Report{Node: node}
	a, err := open(ctx, reach, node, pods)
	if err == nil {
		r.Pod = a.pod
		r.Quality, err = a.client.Quality(ctx)
		var answered *api.StatusError
		a.client.Close()
		a.through(err == nil || errors.As(err, &answered))
		if err != nil {
			err = a.failed(ctx, err)
			r.Quality = nil
		}
	}
	if err != nil {
		r.Troubles = []Trouble{troubleOf(err)}
		return r
	}
	r.Troubles = troubles(r.Quality, time.Now())
	return r
}

func troubleOf(err error) Trouble {
	var f *profiler.Fault
	if !errors.As(err, &f) {
		return Trouble{What: err.Error()}
	}
	return Trouble{f.Error(), f.Fix}
}

// Limits above which something is a trouble.
const (
	mostLost        = 1.0  // % of samples
	leastComplete   = 90.0 // % of stacks
	leastSamples    = 1000 // before stacks are judged
	longestWaiting  = 2 * time.Minute
	startupDelivery = 2 * time.Minute
	// recently is how long a loss is told of that is over: as long as the others,
	// which are those of the history.
	recently = api.DefaultKeep
)

// ago is a time in the past as it is told: to the second only at first, so that the
// same is told of agents that lost at the same time.
func ago(d time.Duration) string {
	if d < time.Minute {
		return "less than a minute"
	}
	return plural(int(d.Minutes()), "minute")
}

// moreMemory is the command that gives agents a budget, and the container the
// room that goes with it: as in the chart, the budget is what is asked for and half
// of the limit.
func moreMemory(budget int64) string {
	mib := budget >> 20
	return fmt.Sprintf(`kalypsoctl upgrade agent --set 'agent.config.memory\.budget=%dMi' --set agent.resources.requests.memory=%[1]dMi --set agent.resources.limits.memory=%dMi`, mib, 2*mib)
}

// troubles are those of an agent that answers.
func troubles(q *api.Quality, now time.Time) (out []Trouble) {
	add := func(fix, format string, args ...any) { out = append(out, Trouble{fmt.Sprintf(format, args...), fix}) }
	for i := range q.Exports {
		e := &q.Exports[i]
		switch {
		case e.Error != "":
			add("kalypsoctl logs pyroscope     what waits is sent when it answers again", "%s takes no profiles: %s; %s", profiler.Printable(e.Endpoint), profiler.Printable(e.Error), plural(e.Waiting, "request")+" waiting")
		case e.Oldest != nil && now.Sub(*e.Oldest) > longestWaiting:
			add("kalypsoctl logs agent", "%s for %s, the oldest since %s", plural(e.Waiting, "request")+" waiting", profiler.Printable(e.Endpoint), now.Sub(*e.Oldest).Round(time.Second))
		case e.Delivered == nil && now.Sub(q.Started) > startupDelivery:
			add("kalypsoctl logs agent", "%s has taken no profile since the agent was started", profiler.Printable(e.Endpoint))
		}
		if e.DroppedAt != nil && now.Sub(*e.DroppedAt) < recently {
			add("kalypsoctl logs agent     tells why", "%d samples reached no backend since the agent was started, the last of them %s ago", e.Dropped, ago(now.Sub(*e.DroppedAt)))
		}
	}
	if lost := LostPercent(q); lost > mostLost {
		add(`kalypsoctl upgrade agent --set 'agent.config.cpu\.budget=2%'     where it has too little time; kalypsoctl logs agent`, "%.1f %% of the samples of the last 15 minutes were lost", lost)
	}
	c := &q.Cost
	switch {
	case c.Pressure > 0:
		add(moreMemory(2*c.MemoryBudget), "it gives up %s for its memory budget of %d MiB", pressure(c.Pressure), c.MemoryBudget>>20)
	case c.MemoryBudget > 0 && c.RSSBytes+c.MapBytes > c.MemoryBudget*21/20:
		add(moreMemory(2*c.MemoryBudget), "it takes %d MiB, its budget is %d", (c.RSSBytes+c.MapBytes)>>20, c.MemoryBudget>>20)
	}
	switch {
	case c.Unmet:
		add(`kalypsoctl upgrade agent --set 'agent.config.cpu\.budget=2%'`, "it takes more than its CPU budget of %g %%, and fewer samples would not help", c.CPUBudget)
	case c.Pressure < 4 && c.CPUBudget > 0 && q.Frequency*2 < q.WantedFrequency:
		add(fmt.Sprintf(`kalypsoctl upgrade agent --set 'agent.config.cpu\.budget=%g%%'`, 2*c.CPUBudget), "it samples %d times a second and not %d: its CPU budget of %g %% allows no more", q.Frequency, q.WantedFrequency, c.CPUBudget)
	}
	if q.Pods != nil && !q.Pods.Learning {
		add("kalypsoctl logs agent     tells who refuses; kubernetes.source of the chart says who is asked", "nobody tells it of pods: new ones have no name")
	}
	if all := stacks(q); all >= leastSamples {
		if complete := float64(q.StacksComplete) / float64(all) * 100; complete < leastComplete {
			reason, n := worst(q)
			add("kalypsoctl profile node/NAME     names what has no symbols or no unwind information", "%.1f %% of stacks are whole; %.1f %% have: %s", complete, float64(n)/float64(all)*100, reason)
		}
	}
	return out
}

// pressure says what is given up at a step (docs/reference/metrics.md).
func pressure(step int) string {
	return strings.Join([]string{"its history", "half of its caches of names", "lines and inlined calls", "three of four samples"}[:min(step, 4)], ", ")
}

// LostPercent is how much of what was taken in the last minutes was lost.
func LostPercent(q *api.Quality) float64 {
	samples, lost := q.Samples, q.Lost
	if len(q.Rates) > 0 {
		samples, lost = 0, 0
		for _, r := range q.Rates {
			samples, lost = samples+r.Samples, lost+r.Lost
		}
	}
	if samples+lost == 0 {
		return 0
	}
	return float64(lost) / float64(samples+lost) * 100
}

func stacks(q *api.Quality) (n uint64) {
	for _, k := range q.StacksByReason {
		n += k
	}
	return n
}

// worst is the reason that most stacks are not whole for, in words.
func worst(q *api.Quality) (words string, n uint64) {
	for s := range profiler.Stops {
		stop := profiler.Stop(s)
		if k := q.StacksByReason[stop.String()]; !stop.Complete() && k > n {
			words, n = strings.TrimPrefix(strings.Trim(stop.Marker(), "[]"), "unwind: "), k
		}
	}
	return words, n
}

// Sum adds up what agents say of their stacks since they were started.
type Sum struct {
	Agents          int    // that answered
	Stacks          uint64 // that were walked; without any there are no shares of them
	Complete, Named float64
	Reason          string // that most stacks are not whole for; empty: all are
	ReasonPercent   float64
	Lost            float64 // %, lately
	CPULow, CPUHigh float64 // % of the CPUs of their node, now
	MemoryLow       int64   // with BPF maps
	MemoryHigh      int64
	RateLow         int
	RateHigh        int
	WithTroubles    int // and those that did not answer
}

// SumUp adds up reports.
func SumUp(reports []Report) Sum {
	var s Sum
	all := &api.Quality{StacksByReason: map[string]uint64{}}
	for i := range reports {
		r := &reports[i]
		if len(r.Troubles) > 0 {
			s.WithTroubles++
		}
		q := r.Quality
		if q == nil {
			continue
		}
		memory := q.Cost.RSSBytes + q.Cost.MapBytes
		if s.Agents == 0 {
			s.RateLow, s.CPULow, s.MemoryLow = q.Frequency, q.Cost.CPUPercent, memory
		}
		s.Agents++
		s.RateLow, s.RateHigh = min(s.RateLow, q.Frequency), max(s.RateHigh, q.Frequency)
		s.CPULow, s.CPUHigh = min(s.CPULow, q.Cost.CPUPercent), max(s.CPUHigh, q.Cost.CPUPercent)
		s.MemoryLow, s.MemoryHigh = min(s.MemoryLow, memory), max(s.MemoryHigh, memory)
		for reason, n := range q.StacksByReason {
			all.StacksByReason[reason] += n
		}
		all.StacksComplete += q.StacksComplete
		all.Frames, all.FramesNamed = all.Frames+q.Frames, all.FramesNamed+q.FramesNamed
		all.Rates = append(all.Rates, q.Rates...)
		if len(q.Rates) == 0 {
			all.Rates = append(all.Rates, api.Rate{Samples: q.Samples, Lost: q.Lost})
		}
	}
	percent := func(n, of uint64) float64 {
		if of == 0 {
			return 0
		}
		return float64(n) / float64(of) * 100
	}
	var n uint64
	s.Stacks = stacks(all)
	s.Complete, s.Named = percent(all.StacksComplete, s.Stacks), percent(all.FramesNamed, all.Frames)
	s.Reason, n = worst(all)
	s.ReasonPercent, s.Lost = percent(n, s.Stacks), LostPercent(all)
	return s
}
