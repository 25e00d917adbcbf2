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
	"github.com/kalypso-dev/kalypso/profiler/symbolize"
	"github.com/kalypso-dev/kalypso/profiler/workload"
)

// Limits of the sampling rate. Above, a 4-GHz core does little but sample.
const (
	MinFrequency = 1
	MaxFrequency = 10000
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
		return &profiler.Fault{
			What: fmt.Sprintf("cannot sample at %d Hz", c.Frequency),
			Why:  fmt.Errorf("the rate must be between %d and %d samples a second and CPU", MinFrequency, MaxFrequency),
			Fix:  "-F 97 is the default; 999 shows more detail of short recordings",
		}
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

// Record samples until the duration is over or ctx ends, and gives what it
// saw. A context that ends early is no error.
func Record(ctx context.Context, cfg Config) (*profiler.Profile, *Cost, error) {
	if err := cfg.Validate(); err != nil {
		return nil, nil, err
	}
	r := &recording{Config: cfg, begin: time.Now(), seen: map[profiler.PID]seen{}}
	if r.Failed == nil {
		r.Failed = func(error) {}
	}
	defer r.close()
	if err := r.open(); err != nil {
		return nil, nil, err
	}
	if err := r.sample(ctx); err != nil {
		return nil, nil, err
	}
	return r.finish()
}

type recording struct {
	Config
	begin    time.Time
	start    time.Time // sampling began
	took     time.Duration
	startCPU time.Duration
	event    string

	kernel   *bpf.Kernel
	sideband *bpf.Sideband
	table    *process.Table
	window   *aggregate.Collector
	sampler  *sampler.Sampler
	perfMaps *perfMaps
	names    chan kernelNames

	mu   sync.Mutex
	seen map[profiler.PID]seen
}

// kernelNames are the names of kernel functions, or why there are none.
type kernelNames struct {
	*symbolize.Kernel
	err error
}

// seen is what was noted of a process at its first sample: it may be gone later.
type seen struct{ exe, cgroup string }

func (r *recording) open() error {
	// Reading kallsyms takes longer than loading the programs: do both at once.
	r.names = make(chan kernelNames, 1)
	go func() {
		defer close(r.names)
		var n kernelNames
		if r.Kernel {
			n.Kernel, n.err = symbolize.LoadKernel()
		}
		r.names <- n
	}()
	bc := bpf.Config{
		KernelStacks: r.Kernel, ByThread: r.ByThread, OnlyTargets: len(r.PIDs) > 0,
		Comm: r.Comm, TailCalls: r.TailCalls, Rows: r.Rows,
	}
	if r.Cgroup != "" {
		cg, err := workload.FindCgroup(r.Cgroup)
		if err != nil {
			return err
		}
		bc.CgroupID, bc.CgroupLevel = cg.ID, cg.Level
	}
	var err error
	if r.kernel, err = bpf.Load(bc); err != nil {
		return loadFault(err)
	}
	if r.sideband, err = bpf.OpenSideband(); err != nil {
		return loadFault(err)
	}
	r.table = process.NewTable(&r.kernel.Tables, r.sideband, r.Runtimes)
	r.perfMaps = newPerfMaps(r.table.RootPath, r.OpenPerfMap)
	r.window = aggregate.NewCollector(aggregate.Config{FirstSeen: r.firstSeen, RunTime: r.perfMaps.add})
	r.sampler = sampler.New(sampler.Config{
		Kernel: r.kernel, Unwinder: r.table, Sink: r.window, Arch: process.HostArch,
		ByThread: r.ByThread, Failed: r.Failed,
	})
	return addTargets(r.kernel, r.PIDs)
}

func (r *recording) close() {
	for range r.names { // its goroutine ends
	}
	if r.perfMaps != nil {
		r.perfMaps.close()
	}
	if r.table != nil {
		r.table.Close()
	}
	if r.sideband != nil {
		_ = r.sideband.Close()
	}
	if r.kernel != nil {
		_ = r.kernel.Close()
	}
}

func (r *recording) firstSeen(pid profiler.PID) {
	var s seen
	s.exe, _ = os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)) // a kernel thread has none
	if r.ByCgroup {
		s.cgroup, _ = workload.CgroupOf(pid) // gone already: the cgroup stays unknown
	}
	r.mu.Lock()
	r.seen[pid] = s
	r.mu.Unlock()
}

func (r *recording) sample(ctx context.Context) error {
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	done := make(chan error, 1)
	go func() { done <- r.sampler.Run(run) }()
	if err := r.kernel.Attach(r.Frequency); err != nil {
		stop()
		<-done
		return loadFault(err)
	}
	r.start, r.startCPU = time.Now(), cpuTime()
	r.event = r.kernel.Event().String()
	var err error
	if r.Started != nil {
		err = r.Started()
	}
	if err == nil {
		r.wait(ctx, done)
	}
	r.took = time.Since(r.start)
	r.kernel.Detach()
	stop()
	return errors.Join(err, <-done)
}

// wait waits for the end of the recording and keeps everything going meanwhile.
func (r *recording) wait(ctx context.Context, done chan error) {
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
		case err := <-done:
			done <- err
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
	names := <-r.names
	if names.err != nil {
		names.Kernel = nil
		r.Failed(names.err)
	}
	sym := &symbolize.Symbolizer{
		Executables: func(id uint32) symbolize.Executable {
			if e := r.table.Executable(id); e != nil {
				return e
			}
			return nil
		},
		PerfMap: r.perfMaps.instance,
		Kernel:  names.Kernel,
	}
	p := r.profile(sym, counters)
	cost.AgentCPU, cost.RSSPeak = cpuTime(), rssPeak()
	return p, cost, nil
}

func (r *recording) profile(sym *symbolize.Symbolizer, counters bpf.Counters) *profiler.Profile {
	host, _ := os.Hostname()
	p := &profiler.Profile{Start: r.start, Duration: r.took, Frequency: r.Frequency, Event: r.event, Host: host}
	q := &p.Quality
	q.UnnamedByModule = map[string]uint64{}
	entries, orphans := r.window.Cut().Entries()
	q.Lost = counters.LostRing + orphans + r.sampler.Stats().BadRecords
	processes := map[processKey]*profiler.Process{}
	for _, e := range entries {
		key := processKey{e.PID, e.Comm}
		proc := processes[key]
		if proc == nil {
			s := r.seen[e.PID]
			proc = &profiler.Process{PID: e.PID, Comm: e.Comm, Exe: s.exe, Cgroup: s.cgroup}
			processes[key] = proc
		}
		st := sym.Stack(e.PID, e.Kernel, e.User, e.Stop)
		p.Samples = append(p.Samples, profiler.Sample{Process: proc, TID: e.TID, Thread: e.Thread, Stack: st, Count: e.Count})
		q.Samples += e.Count
		q.DistinctStacks++
		if int(e.Stop) < len(q.Stops) {
			q.Stops[e.Stop] += e.Count
		}
		for _, l := range st.Locations {
			q.Frames += e.Count
			if l.Named() {
				q.FramesNamed += e.Count
			} else {
				q.UnnamedByModule[l.Module.Path] += e.Count
			}
		}
	}
	return p
}

type processKey struct {
	pid  profiler.PID
	comm string
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
