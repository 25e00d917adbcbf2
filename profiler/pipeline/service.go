package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/aggregate"
	"github.com/kalypso-dev/kalypso/profiler/lang"
	"github.com/kalypso-dev/kalypso/profiler/process"
	"github.com/kalypso-dev/kalypso/profiler/sampler"
	"github.com/kalypso-dev/kalypso/profiler/symbolize"
	"github.com/kalypso-dev/kalypso/profiler/telemetry"
	"github.com/kalypso-dev/kalypso/profiler/workload"
)

// Settings of a Service that can change while it runs.
type Settings struct {
	Frequency int     // samples a second and CPU that are wanted
	CPUBudget float64 // share of all CPUs that the agent may take; 0: no limit
	// MemoryBudget is the memory that the agent may take, its BPF maps
	// included, in bytes; 0: no limit. The maps keep the size they have.
	MemoryBudget int64
	ServiceName  string // of processes in no unit and no container; empty: their program's name
	Labels       []profiler.Attribute
	// Keep says which processes are wanted; nil: all. Select says what of that can
	// be told before a sample is walked; nil: nothing.
	Keep   func(*profiler.Workload, *profiler.Process) bool
	Select *Select
}

// ServiceConfig says how to profile a machine for as long as it runs.
type ServiceConfig struct {
	Settings
	Runtimes    []lang.Runtime
	OpenPerfMap func(pid profiler.PID, root string) (PerfMap, error)
	Pods        *workload.Pods // of this node; nil: containers are known by their ID
	Node        string         // the node's name in its cluster; empty: none
	Kernel      bool           // kernel stacks
	Window      time.Duration  // of what is delivered at once; windows begin at multiples of it
	// SetHistory, if set, is told how much of the memory budget the caller's
	// history of profiles may have, SetDebugInfo whether there is memory for
	// lines and inlined calls.
	SetHistory   func(bytes int64)
	SetDebugInfo func(on bool)
	// Deliver takes what was sampled, at the end of each window and at each
	// change of rate. It is called from one goroutine and is waited for:
	// windows get longer meanwhile, and no sample is lost.
	Deliver func(Segment)
	Log     *slog.Logger
	// Health, if set, hears of each stage that goes round.
	Health *telemetry.Health
}

// Segment is what was sampled between two moments while events fired at one rate,
// which is that of its profiles unless a share was taken of their samples.
type Segment struct {
	Seq       uint64
	Start     time.Time
	Duration  time.Duration
	Frequency int
	Last      bool // it is the last of its window
	Profiles  []*profiler.Profile
	Lost      uint64 // samples that were taken and lost; they are in no profile
	Filtered  uint64 // samples of processes that are not wanted, or not all wanted
	Early     uint64 // of these, left out in the kernel
}

// Limits of a window: shorter ones are all overhead, longer ones are refused by
// backends that take nothing older than an hour.
const (
	MinWindow = time.Second
	MaxWindow = 10 * time.Minute
)

// Validate says what is wrong with c.
func (c *ServiceConfig) Validate() error {
	if c.Frequency < MinFrequency || c.Frequency > MaxFrequency {
		return badFrequency(c.Frequency)
	}
	if c.Window < MinWindow || c.Window > MaxWindow {
		return &profiler.Fault{
			What: fmt.Sprintf("cannot use windows of %s", c.Window),
			Why:  fmt.Errorf("a window takes between %s and %s", MinWindow, MaxWindow),
			Fix:  "--window 15s is the default",
		}
	}
	if len(c.Runtimes) == 0 || c.OpenPerfMap == nil || c.Deliver == nil || c.Log == nil {
		return errors.New("no runtimes, no reader of perf maps, no log or nobody to deliver to")
	}
	return c.checkMemory()
}

// Service profiles the machine.
type Service struct {
	cfg   ServiceConfig
	cpus  int
	host  string
	event string

	*engine
	groups    *workload.Hierarchies
	who       *identities
	selection *selection
	segments  chan *segment
	requests  chan func()
	full      chan struct{}
	ready     chan struct{} // closed when sampling has begun
	ended     chan struct{} // closed when Run is about to return

	// Of the loop.
	budget    *cpuBudget
	rates     frequencies
	start     time.Time // of the current segment
	seq       uint64    // of the current segment
	lost      uint64    // samples lost up to the current segment
	filtered  uint64    // samples left out in the kernel up to it
	final     bool      // the sampler has ended
	lastCost  cost
	lastTaken taken
	memory    *memory
	recording map[*recorder]bool

	kernelNames atomic.Pointer[symbolize.Kernel]

	mu      sync.Mutex
	stats   ServiceStats
	quality profiler.Quality // of all profiles so far

	ticks struct{ loop, sampler, naming func() }

	// Questions that are being answered, and whether one was since the last
	// second: see Working.
	working atomic.Int64
	worked  atomic.Bool
}

// segment is one that is to be named.
type segment struct {
	Segment
	window *aggregate.Window
}

// ServiceStats count what a service did since it was started.
type ServiceStats struct {
	Started      time.Time
	Frequency    int     // now
	CPUShare     float64 // of the node, in the last second
	CPUBudget    float64 // of the node
	CPUUnmet     bool    // the budget is passed, and fewer samples would not help
	AgentCPU     time.Duration
	BPFTime      time.Duration
	RateChanges  uint64
	Windows      uint64 // delivered
	LongWindows  uint64 // not ended in time, because naming and delivery took longer
	EarlyWindows uint64 // ended early, because they grew too large
	Taken        uint64 // by the kernel side, up to the last cut; all of it is in one of the next three at the end
	Samples      uint64 // delivered in profiles
	Lost         uint64
	Filtered     uint64
	Early        uint64 // of these, left out in the kernel
	LeftOut      int    // cgroups that are sampled less than others, or not at all
	Workloads    int    // in the last window
	NamingTime   time.Duration
	Memory       MemoryStats
}

// Stages that do not go round for this long are stuck. Naming a window may take
// long where hundreds of files with debug information are opened at once.
const (
	stuckAfter       = 15 * time.Second
	stuckNamingAfter = 3 * time.Minute
)

// stage gives what a stage calls each time it goes round.
func (s *Service) stage(name string, limit time.Duration) func() {
	if s.cfg.Health == nil {
		return func() {}
	}
	return s.cfg.Health.Stage(name, limit).Tick
}

// NewService loads the programs. Sampling begins with Run.
func NewService(cfg ServiceConfig) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cpus, err := bpf.OnlineCPUs()
	if err != nil {
		return nil, err
	}
	s := &Service{
		cfg: cfg, cpus: cpus,
		segments:  make(chan *segment, queuedSegments),
		requests:  make(chan func()),
		full:      make(chan struct{}, 1),
		ready:     make(chan struct{}),
		ended:     make(chan struct{}),
		budget:    newCPUBudget(cfg.CPUBudget, cfg.Frequency, cfg.Window),
		recording: map[*recorder]bool{},
	}
	if s.host = cfg.Node; s.host == "" { // in a container, its hostname is not the machine's
		s.host, _ = os.Hostname()
	}
	s.ticks.loop, s.ticks.sampler = s.stage("loop", stuckAfter), s.stage("sampler", stuckAfter)
	s.ticks.naming = s.stage("naming", stuckNamingAfter)
	s.memory = newMemory(s)
	s.groups = workload.FindHierarchies()
	s.engine, err = openEngine(Config{
		groups: s.groups, Runtimes: cfg.Runtimes, OpenPerfMap: cfg.OpenPerfMap, Kernel: cfg.Kernel, Failed: s.failed, tick: s.ticks.sampler,
	}, aggregate.Config{
		FirstSeen: func(p sampler.Process, comm string) { s.who.see(p, comm) },
		MaxBytes:  s.memory.windowBytes(),
		Full: func() {
			select {
			case s.full <- struct{}{}:
			default: // it is known already
			}
		},
	})
	if err != nil {
		s.groups.Close()
		return nil, err
	}
	s.who = newIdentities(s.host, cfg.Node, cfg.ServiceName, cfg.Labels, cfg.Pods, s.cgroups, s.table.Parent)
	s.selection = newSelection(s.kernel, s.groups, cfg.Pods, cfg.selects(), s.failed)
	s.who.met = s.selection.meet
	s.memory.begin()
	return s, nil
}

// selects is what a selection goes by: that nothing is left out, where nobody says.
func (s *Settings) selects() Select {
	if s.Select == nil {
		return Select{Outside: true}
	}
	return *s.Select
}

// queuedSegments is how many wait to be named: a few changes of rate in a row.
const queuedSegments = 4

// failed is told of errors that cost precision; the logger folds repeats.
func (s *Service) failed(err error) {
	s.cfg.Log.Warn("the profile is less than it could be", "reason", err)
}

// Run samples until ctx ends. Everything sampled is delivered when it returns.
func (s *Service) Run(ctx context.Context) error {
	defer s.groups.Close()
	defer s.engine.close()
	defer close(s.ended)
	s.rates = frequencies{hz: s.budget.rate, rest: s.budget.rate}
	s.lastCost = s.measure()
	s.selectAnew()
	if err := s.attach(ctx, s.rates.hz); err != nil {
		return err
	}
	s.event = s.kernel.Event().String()
	s.start = time.Now()
	s.mu.Lock()
	s.stats.Started, s.stats.Frequency = s.start, s.rates.hz
	s.mu.Unlock()
	s.cfg.Log.Info("sampling", "event", s.event, "hz", s.rates.hz, "cpus", s.cpus, "window", s.cfg.Window)
	close(s.ready)

	named := make(chan struct{})
	go func() {
		defer close(named)
		s.nameAll()
	}()
	err := s.loop(ctx)
	err = errors.Join(err, s.detach())
	s.final = true
	// The sampler has ended: what it left with the collector is the last window.
	s.hand(s.collector.Cut(), true)
	close(s.segments)
	<-named
	return err
}

// loop ends windows, keeps to the budgets and does what is asked for.
func (s *Service) loop(ctx context.Context) error {
	second := time.NewTicker(time.Second)
	defer second.Stop()
	boundary := time.NewTimer(untilBoundary(time.Now(), s.cfg.Window))
	defer boundary.Stop()
	defer s.selection.timer.Stop()
	changed := s.selection.changed()
	for {
		s.ticks.loop()
		select {
		case <-ctx.Done():
			return nil
		case err := <-s.done:
			s.done <- nil
			return fmt.Errorf("sampling ended by itself: %w", err)
		case <-second.C:
			s.perfMaps.refresh()
			s.keepToBudget()
			s.memory.look()
		case <-boundary.C:
			if !s.cut(true) {
				s.count(func(st *ServiceStats) { st.LongWindows++ })
			}
			boundary.Reset(untilBoundary(time.Now(), s.cfg.Window))
		case <-s.full:
			if s.cut(true) {
				s.count(func(st *ServiceStats) { st.EarlyWindows++ })
			}
		case <-changed:
			changed = s.selection.changed()
			s.selection.soon(settleTime)
		case <-s.selection.fresh:
			s.selection.soon(settleTime)
		case <-s.selection.timer.C:
			s.selectAnew()
		case do := <-s.requests:
			do()
		}
	}
}

// selectAnew brings the kernel's table of cgroups up to date.
func (s *Service) selectAnew() { s.install(s.selection.plan(s.rates, time.Now())) }

func (s *Service) install(p *plan) {
	s.selection.install(p)
	s.count(func(st *ServiceStats) { st.LeftOut = s.selection.leftOut() })
}

// untilBoundary is how long it is until the wall clock shows a multiple of the
// window: all agents of a cluster end their windows at the same moments.
func untilBoundary(now time.Time, window time.Duration) time.Duration {
	return now.Truncate(window).Add(window).Sub(now)
}

// cut ends the current segment, unless naming is so far behind that there is
// no room for it; then it goes on.
func (s *Service) cut(last bool) bool {
	if len(s.segments) == cap(s.segments) {
		return false
	}
	var w *aggregate.Window
	if err := s.sampler.Cut(func() { w = s.collector.Cut() }); err != nil {
		s.failed(err)
	}
	if w == nil {
		return false
	}
	s.hand(w, last)
	return true
}

// Working says that the agent works for somebody who asks it something, until
// done is called. What that costs is reported with the rest, but does not steer
// the sampling rate: to look at a profile must not cost the samples of the next.
func (s *Service) Working() (done func()) {
	s.working.Add(1)
	return func() {
		s.worked.Store(true)
		s.working.Add(-1)
	}
}

// hand hands a window on to be named.
func (s *Service) hand(w *aggregate.Window, last bool) {
	now := time.Now()
	lost, filtered := s.lostSoFar()
	s.segments <- &segment{Segment{
		Seq: s.seq, Start: s.start, Duration: now.Sub(s.start), Frequency: s.rates.hz, Last: last,
		Lost: lost - s.lost, Filtered: filtered - s.filtered, Early: filtered - s.filtered,
	}, w}
	s.start, s.lost, s.filtered = now, lost, filtered
	s.seq++
}

// lostSoFar is how many samples the kernel side took that will never arrive,
// but for those whose stack is missing, which windows count, and how many it left
// out.
func (s *Service) lostSoFar() (lost, filtered uint64) {
	c, err := s.kernel.Counters()
	if err != nil {
		s.failed(err)
		return s.lost, s.filtered
	}
	s.count(func(st *ServiceStats) { st.Taken = c.Samples })
	st := s.sampler.Stats()
	lost = c.LostRing + st.BadRecords
	if s.final { // nothing is on its way any more: whatever did not arrive is lost
		walked := c.Samples - c.Filtered
		lost = max(lost, walked-min(st.Received, walked))
	}
	return lost, c.Filtered
}

// keepToBudget measures what the last second cost and sets the rate.
func (s *Service) keepToBudget() {
	now := s.measure()
	spent := now.since(s.lastCost, s.cpus)
	spent.hz = s.sampled()
	s.lastCost = now
	s.count(func(st *ServiceStats) {
		st.CPUShare, st.CPUBudget, st.AgentCPU, st.BPFTime = spent.all, s.budget.limit, now.agent, now.bpf
	})
	// In a second with answers in it, the rest is taken to have kept to the limit.
	if worked := s.worked.Swap(false); worked || s.working.Load() > 0 {
		spent.all = min(spent.all, s.budget.limit)
	}
	s.budget.observe(spent)
	s.setRates(s.dueRates())
	unmet := s.budget.unmet()
	if unmet && !s.stats.CPUUnmet {
		s.cfg.Log.Warn("the CPU budget is passed, and fewer samples would not help: the rate is held", "hz", fmt.Sprint(s.rates.rest),
			"cpu share", s.budget.mean(s.budget.window).all, "cpu budget", s.budget.limit, "fix", "raise --cpu.budget, or leave out processes that come and go")
	}
	s.count(func(st *ServiceStats) { st.CPUUnmet = unmet })
}

// setRates changes the rates. Where events are to fire at another one the segment
// ends, so that a share is always one of the same rate.
func (s *Service) setRates(r frequencies) {
	before := s.rates
	r = r.atMost(s.kernel.MaxFrequency())
	if r.hz == before.hz && r.rest == before.rest && r.all == before.all && len(r.raised)+len(before.raised) == 0 {
		return
	}
	p := s.selection.plan(r, time.Now()) // it takes longer than to install it, and meanwhile the shares are others'
	if r.hz != before.hz {
		if !s.cut(false) {
			return
		}
		if err := s.setFrequency(r.hz); err != nil {
			if s.failed(err); errors.Is(err, bpf.ErrFrequency) {
				return // lowered since it was looked at; the next second looks again
			}
		}
	}
	s.rates = r
	s.install(p)
	if len(r.raised) > 0 {
		s.lastTaken, _ = s.takenSoFar() // without it, the next second is judged by all samples so far
	}
	if r.hz == before.hz && r.rest == before.rest {
		return
	}
	// As text: changes of other figures alone would be folded.
	s.cfg.Log.Info("sampling rate changed", "from", fmt.Sprint(before.rest), "to", fmt.Sprint(r.rest), "raised to", fmt.Sprint(r.hz),
		"asked for", s.cfg.Frequency, "cpu share", s.stats.CPUShare)
	s.count(func(st *ServiceStats) { st.RateChanges++; st.Frequency = r.rest })
}

// taken are samples up to a moment of what is wanted, and those of them that were
// left out in the kernel for a rate.
type taken struct{ all, filtered uint64 }

func (s *Service) takenSoFar() (taken, error) {
	c, err := s.kernel.Counters()
	return taken{c.Samples - (c.Filtered - c.Thinned), c.Thinned}, err
}

// sampled is the rate that samples of the last second cost as much as. What is
// recorded at a raised rate would cost less at that of all others.
func (s *Service) sampled() int {
	if len(s.rates.raised) == 0 {
		return s.rates.hz
	}
	now, err := s.takenSoFar()
	if err != nil {
		return s.rates.rest // the cost is held against all
	}
	return s.rates.equivalent(taken{now.all - s.lastTaken.all, now.filtered - s.lastTaken.filtered})
}

// equivalent is the rate at which all would have been walked as often: of the rest
// one in times was, of what is raised each.
func (r frequencies) equivalent(t taken) int {
	times := float64(r.hz) / float64(r.rest)
	walked := float64(t.all - min(t.filtered, t.all))
	if times <= 1 || walked == 0 {
		return r.hz
	}
	rest := min(float64(t.filtered)/(times-1), walked)
	return int(math.Round(float64(r.rest) * walked / (rest + (walked-rest)/times)))
}

func (s *Service) count(fn func(*ServiceStats)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn(&s.stats)
}

// cost is what the agent took up to a moment.
type cost struct {
	at         time.Time
	agent, bpf time.Duration
	samples    time.Duration // of agent: to read and unwind samples
}

func (s *Service) measure() cost {
	c := cost{at: time.Now(), agent: cpuTime(), bpf: s.lastCost.bpf, samples: s.sampler.Stats().Busy}
	if ns, err := s.kernel.RunNs(); err == nil {
		c.bpf = time.Duration(ns)
	}
	return c
}

// since is the part of all CPUs' time that was taken since before.
func (c cost) since(before cost, cpus int) spent {
	time := c.at.Sub(before.at).Seconds() * float64(cpus)
	agent, bpf, samples := c.agent-before.agent, c.bpf-before.bpf, c.samples-before.samples
	return spent{all: (agent + bpf).Seconds() / time, samples: (min(samples, agent) + bpf).Seconds() / time}
}

// Apply changes settings while the service runs.
func (s *Service) Apply(ctx context.Context, set Settings) error {
	if set.Frequency < MinFrequency || set.Frequency > MaxFrequency {
		return badFrequency(set.Frequency)
	}
	if err := set.checkMemory(); err != nil {
		return err
	}
	return s.do(ctx, func() {
		s.mu.Lock()
		s.cfg.Settings = set
		s.mu.Unlock()
		s.who.relabel(set.ServiceName, set.Labels)
		s.budget.reset(set.CPUBudget, set.Frequency)
		s.memory.reset(set.MemoryBudget)
		s.selection.set = set.selects()
		s.setRates(s.dueRates())
		s.selectAnew()
	})
}

// ErrNotRunning says that a service has not begun, or has ended.
var ErrNotRunning = errors.New("not sampling")

// do has the loop call fn.
func (s *Service) do(ctx context.Context, fn func()) error {
	done := make(chan struct{})
	select {
	case s.requests <- func() { fn(); close(done) }:
		<-done
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.ended:
		return ErrNotRunning
	}
}

// Describe gives the host's name, and what fires the samples once Ready.
func (s *Service) Describe() (host, event string) {
	select {
	case <-s.ready:
		return s.host, s.event
	default:
		return s.host, ""
	}
}

// KernelNames names the kernel's functions; nil until they are read, and where
// the kernel hides them.
func (s *Service) KernelNames() *symbolize.Kernel { return s.kernelNames.Load() }

// Ready is closed when sampling has begun.
func (s *Service) Ready() <-chan struct{} { return s.ready }

// Stats tells what the service did.
func (s *Service) Stats() ServiceStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// stages tells what the stages below did. The kernel's counters are gone when
// the service has ended.
func (s *Service) stages() (bpf.Counters, sampler.Stats, process.Stats, error) {
	c, err := s.kernel.Counters()
	return c, s.sampler.Stats(), s.table.Stats(), err
}
