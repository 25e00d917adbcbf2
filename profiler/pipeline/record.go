// Package pipeline starts the stages of a recording, joins them in the right
// order, and makes one profile of what they bring:
//
//	kernel → sampler → (process, unwind) → aggregate → symbolize → Profile
package pipeline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/aggregate"
	"github.com/kalypso-dev/kalypso/profiler/lang"
	"github.com/kalypso-dev/kalypso/profiler/process"
	"github.com/kalypso-dev/kalypso/profiler/sampler"
	"github.com/kalypso-dev/kalypso/profiler/workload"
)

// Limits of the sampling rate. Above, a 4-GHz core does little but sample.
const (
	MinFrequency     = 1
	DefaultFrequency = 97
	MaxFrequency     = 10000
)

// Config says what to record. The zero value does not: Validate says why.
type Config struct {
	Runtimes []lang.Runtime // asked in order; the last takes every executable
	// OpenPerfMap finds the perf map of a process whose files are at root.
	OpenPerfMap func(pid profiler.PID, root string) (PerfMap, error)
	Frequency   int            // samples a second and CPU
	Duration    time.Duration  // 0: until the context ends
	PIDs        []profiler.PID // only these and their children; none: every process
	Comm        string         // only processes of this name
	Cgroup      string         // only processes in this cgroup and below
	ByThread    bool
	ByCgroup    bool
	Kernel      bool // kernel stacks
	TailCalls   bool // walk as on kernels before 5.17
	Rows        uint32
	// UntilGone ends the recording when none of PIDs is left.
	UntilGone bool
	// Started, if set, is called once sampling has begun.
	Started func() error
	// Progress, if set, is called four times a second.
	Progress func(Progress)
	// Failed, if set, is told of errors that cost precision, not the recording.
	Failed func(error)

	tick   func()                // called once a second by the sampler
	groups *workload.Hierarchies // whose cgroups are told apart; nil: none
}

// Progress is how far a recording is.
type Progress struct {
	Elapsed time.Duration
	Samples uint64
	Lost    uint64
}

// Cost is what a recording took.
type Cost struct {
	AgentCPU    time.Duration // user and system time of this program
	BPFRun      time.Duration // 0 where the kernel keeps no statistics
	BPFRuns     uint64
	RSSPeak     uint64 // bytes
	MapBytes    uint64 // kernel memory of the BPF maps
	FirstSample time.Duration
	StartCPU    time.Duration // of AgentCPU, until sampling began
	Table       process.Stats
	Counters    bpf.Counters
	Sampler     sampler.Stats
}

// Validate says what is wrong with c.
func (c *Config) Validate() error {
	if c.Frequency < MinFrequency || c.Frequency > MaxFrequency {
		return badFrequency(c.Frequency)
	}
	if c.Duration < 0 {
		return &profiler.Fault{What: fmt.Sprintf("cannot record for %s", c.Duration), Fix: "-d 10s records for ten seconds"}
	}
	if len(c.Runtimes) == 0 || c.OpenPerfMap == nil {
		return errors.New("no language runtimes given")
	}
	for _, pid := range c.PIDs {
		if err := recordable(pid); err != nil {
			return err
		}
	}
	return nil
}

func badFrequency(hz int) error {
	return &profiler.Fault{
		What: fmt.Sprintf("cannot sample at %d Hz", hz),
		Why:  fmt.Errorf("the rate must be between %d and %d samples a second and CPU", MinFrequency, MaxFrequency),
		Fix:  "-F 97 is the default; 999 shows more detail of short recordings",
	}
}

// Record samples until the duration is over or ctx ends, and gives what it
// saw. A context that ends early is no error.
func Record(ctx context.Context, cfg Config) (*profiler.Profile, *Cost, error) {
	if err := cfg.Validate(); err != nil {
		return nil, nil, err
	}
	r := &recording{Config: cfg, begin: time.Now(), seen: map[processKey]seen{}}
	if r.ByCgroup {
		r.groups = workload.FindHierarchies()
		defer r.groups.Close()
	}
	if r.Failed == nil {
		r.Failed = func(error) {}
	}
	e, err := openEngine(r.Config, aggregate.Config{FirstSeen: r.firstSeen})
	if err != nil {
		return nil, nil, err
	}
	defer e.close()
	r.engine = e
	if err := r.sample(ctx); err != nil {
		return nil, nil, err
	}
	return r.finish()
}

type recording struct {
	Config
	*engine
	begin    time.Time
	start    time.Time // sampling began
	took     time.Duration
	startCPU time.Duration

	mu   sync.Mutex
	seen map[processKey]seen
}

func (r *recording) firstSeen(p sampler.Process, comm string) {
	exe, _, there := ask(p)
	s := seen{exe: exe}
	if r.ByCgroup {
		place, _, _ := placeOf(r.cgroups, p, there) // gone already, and its cgroup too: it stays unknown
		s.cgroup = place.Path
	}
	r.mu.Lock()
	r.seen[processKey{p, comm}] = s
	r.mu.Unlock()
}

func (r *recording) sample(ctx context.Context) error {
	if err := r.attach(ctx, r.Frequency); err != nil {
		return err
	}
	r.start, r.startCPU = time.Now(), cpuTime()
	var err error
	if r.Started != nil {
		err = r.Started()
	}
	if err == nil {
		r.wait(ctx)
	}
	r.took = time.Since(r.start)
	return errors.Join(err, r.detach())
}

// wait waits for the end of the recording and keeps everything going meanwhile.
func (r *recording) wait(ctx context.Context) {
	var over <-chan time.Time
	if r.Duration > 0 {
		timer := time.NewTimer(r.Duration)
		defer timer.Stop()
		over = timer.C
	}
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-over:
			return
		case err := <-r.done:
			r.done <- err
			return
		case <-tick.C:
			r.perfMaps.refresh()
			if r.Progress != nil {
				if c, err := r.kernel.Counters(); err == nil {
					r.Progress(Progress{Elapsed: time.Since(r.start), Samples: c.Samples, Lost: c.LostRing})
				}
			}
			if r.UntilGone && r.gone() {
				return
			}
		}
	}
}

func (r *recording) gone() bool {
	return !slices.ContainsFunc(r.PIDs, runs)
}

// finish names everything and adds it up.
func (r *recording) finish() (*profiler.Profile, *Cost, error) {
	counters, err := r.kernel.Counters()
	if err != nil {
		return nil, nil, err
	}
	cost := &Cost{
		BPFRuns: 0, MapBytes: r.kernel.MapBytes(), StartCPU: r.startCPU,
		Table: r.table.Stats(), Counters: counters, Sampler: r.sampler.Stats(),
	}
	if n := counters.ProcessUntracked; n > 0 {
		r.Failed(fmt.Errorf("%d child processes were not sampled: more are running than can be told apart from those that are not wanted", n))
	}
	cost.BPFRun, cost.BPFRuns = r.kernel.RunTime()
	if first := cost.Sampler.FirstSample; !first.IsZero() {
		cost.FirstSample = first.Sub(r.begin)
	}
	r.perfMaps.refresh()
	if err := r.nameKernel(); err != nil {
		r.Failed(err)
	}
	p := r.profile(counters)
	cost.AgentCPU, cost.RSSPeak = cpuTime(), rssPeak()
	return p, cost, nil
}

func (r *recording) profile(counters bpf.Counters) *profiler.Profile {
	of := func(p sampler.Process, comm string) seen { return r.seen[processKey{p, comm}] }
	list, orphans, _ := r.profiles(r.collector.Cut(), r.Frequency, of, nil)
	p := &profiler.Profile{}
	if len(list) > 0 { // one: no process has a workload
		p = list[0]
	}
	p.Start, p.Duration, p.Frequency, p.Event = r.start, r.took, r.Frequency, r.kernel.Event().String()
	p.Host, _ = os.Hostname()
	if p.Quality.UnnamedByModule == nil {
		p.Quality.UnnamedByModule = map[string]uint64{}
	}
	p.Quality.Lost = counters.LostRing + orphans + r.sampler.Stats().BadRecords
	return p
}

// cpuTime is the CPU time of this program so far.
func cpuTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// rssPeak is the most memory that this program had resident, in bytes.
func rssPeak() uint64 {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return uint64(u.Maxrss) << 10
}
