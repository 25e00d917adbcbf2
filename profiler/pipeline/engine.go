package pipeline

import (
	"cmp"
	"context"
	"errors"
	"math"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/aggregate"
	"github.com/kalypso-dev/kalypso/profiler/process"
	"github.com/kalypso-dev/kalypso/profiler/sampler"
	"github.com/kalypso-dev/kalypso/profiler/symbolize"
	"github.com/kalypso-dev/kalypso/profiler/workload"
)

// engine is what a recording and the service have in common: the stages from
// the kernel to windows of stacks, and what names these.
type engine struct {
	kernel    *bpf.Kernel
	sideband  *bpf.Sideband
	table     *process.Table
	collector *aggregate.Collector
	sampler   *sampler.Sampler
	cgroups   *workload.Cgroups // nil: nobody asks for them
	perfMaps  *perfMaps
	symbols   *symbolize.Symbolizer
	names     chan kernelNames

	stop context.CancelFunc
	done chan error // what the sampler ended with
}

// kernelNames are the names of kernel functions, or why there are none.
type kernelNames struct {
	*symbolize.Kernel
	err error
}

// openEngine loads everything. Nothing is sampled yet.
func openEngine(cfg Config, windows aggregate.Config) (*engine, error) {
	e := &engine{names: make(chan kernelNames, 1)}
	// Reading kallsyms takes longer than loading the programs: do both at once.
	go func() {
		defer close(e.names)
		var n kernelNames
		if cfg.Kernel {
			n.Kernel, n.err = symbolize.LoadKernel()
		}
		e.names <- n
	}()
	if err := e.open(cfg, windows); err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

func (e *engine) open(cfg Config, windows aggregate.Config) error {
	bc := bpf.Config{
		KernelStacks: cfg.Kernel, ByThread: cfg.ByThread, OnlyTargets: len(cfg.PIDs) > 0,
		Comm: cfg.Comm, TailCalls: cfg.TailCalls, Rows: cfg.Rows,
	}
	if cfg.groups != nil {
		bc.Subsystem, bc.Hierarchy = subsystems[cfg.groups.Controller], cfg.groups.Number
		e.cgroups = workload.NewCgroups(cfg.groups)
	}
	if cfg.Cgroup != "" {
		cg, err := workload.FindCgroup(cfg.Cgroup)
		if err != nil {
			return err
		}
		bc.CgroupID, bc.CgroupLevel = cg.ID, cg.Level
	}
	var err error
	if e.kernel, err = bpf.Load(bc); err != nil {
		return bpf.LoadFault("cannot start sampling", err)
	}
	if e.sideband, err = bpf.OpenSideband(); err != nil {
		return bpf.LoadFault("cannot start sampling", err)
	}
	e.table = process.NewTable(&e.kernel.Tables, e.sideband, cfg.Runtimes)
	e.table.Failed = cfg.Failed
	e.perfMaps = newPerfMaps(e.table.RootPath, cfg.OpenPerfMap)
	windows.RunTime = e.perfMaps.add
	e.collector = aggregate.NewCollector(windows)
	e.sampler = sampler.New(sampler.Config{
		Kernel: e.kernel, Unwinder: e.table, Sink: e.collector, Arch: process.HostArch,
		ByThread: cfg.ByThread, Failed: cfg.Failed, Tick: cfg.tick,
		Made: func(c bpf.Cgroup, path string) {
			if e.cgroups != nil {
				e.cgroups.Made(c.ID, c.Old, path)
			}
		},
	})
	e.symbols = &symbolize.Symbolizer{
		Executables: func(id uint32) symbolize.Executable {
			if x := e.table.Executable(id); x != nil {
				return x
			}
			return nil
		},
		PerfMap: e.perfMaps.instance,
	}
	return addTargets(e.kernel, cfg.PIDs)
}

// attach begins sampling. detach is to be called afterwards.
func (e *engine) attach(ctx context.Context, hz int) error {
	ctx, e.stop = context.WithCancel(context.WithoutCancel(ctx))
	e.done = make(chan error, 1)
	go func() { e.done <- e.sampler.Run(ctx) }()
	e.sampler.SetRate(hz)
	if err := e.kernel.Attach(hz); err != nil {
		_ = e.detach() // what is wrong is known
		return bpf.LoadFault("cannot start sampling", err)
	}
	return nil
}

// setFrequency changes the rate that events fire at. After bpf.ErrFrequency it is what
// it was.
func (e *engine) setFrequency(hz int) error {
	err := e.kernel.SetFrequency(hz)
	if !errors.Is(err, bpf.ErrFrequency) {
		e.sampler.SetRate(hz)
	}
	return err
}

// detach ends sampling. Everything that was sampled is with the collector then.
func (e *engine) detach() error {
	e.kernel.Detach()
	e.stop()
	return <-e.done
}

// nameKernel waits for the names of the kernel; the error is why there are
// none. It is called once, before anything is named.
func (e *engine) nameKernel() error {
	n := <-e.names
	if n.err == nil {
		e.symbols.Kernel = n.Kernel
	}
	return n.err
}

func (e *engine) close() {
	for range e.names { // its goroutine ends
	}
	if e.perfMaps != nil {
		e.perfMaps.close()
	}
	if e.table != nil {
		e.table.Close()
	}
	if e.sideband != nil {
		_ = e.sideband.Close()
	}
	if e.kernel != nil {
		_ = e.kernel.Close()
	}
}

// profiles names what a window saw at hz samples a second and adds it up, in one
// profile for each workload, and for each rate where a share of its samples was
// taken. of tells what is known of a process, keep whether it is wanted (nil: all
// are). Samples whose stack never came are lost, and nobody's.
func (e *engine) profiles(
	w *aggregate.Window, hz int, of func(p sampler.Process, comm string) seen, keep func(*profiler.Workload, *profiler.Process) bool,
) (list []*profiler.Profile, lost, filtered uint64) {
	type process struct {
		*profiler.Process
		workload *profiler.Workload
		wanted   bool
	}
	type rated struct {
		workload *profiler.Workload
		hz       int
	}
	byRate := map[rated]*profiler.Profile{}
	processes := map[processKey]process{}
	entries, lost := w.Entries()
	for _, x := range entries {
		key := processKey{x.Process, x.Comm}
		proc, known := processes[key]
		if !known {
			s := of(x.Process, x.Comm)
			proc.Process = &profiler.Process{PID: x.Process.PID, Comm: x.Comm, Exe: s.exe, Cgroup: s.cgroup}
			proc.workload, proc.wanted = s.workload, keep == nil || keep(s.workload, proc.Process)
			processes[key] = proc
		}
		if !proc.wanted {
			filtered += x.Count
			continue
		}
		rate := rated{proc.workload, shareOf(cmp.Or(x.Late, hz), x.Share)}
		p := byRate[rate]
		if p == nil {
			p = &profiler.Profile{Workload: proc.workload, Frequency: rate.hz}
			byRate[rate] = p
			list = append(list, p)
		}
		st := e.symbols.Stack(x.Process.PID, x.Kernel, x.User, x.Stop)
		p.Samples = append(p.Samples, profiler.Sample{Process: proc.Process, TID: x.TID, Thread: x.Thread, Stack: st, Count: x.Count})
		p.Quality.Add(st, x.Count)
	}
	return list, lost, filtered
}

// shareOf is the rate of samples of which a share was taken: a whole one, since the
// share was made of two.
func shareOf(hz int, share uint32) int {
	if share == bpf.ShareAll {
		return hz
	}
	return max(int(math.Round(float64(hz)*float64(share)/(1<<32))), 1)
}

// seen is what is known of a process. It may be gone when it is asked for.
type seen struct {
	exe, cgroup string
	workload    *profiler.Workload // nil in a recording of a machine
}

type processKey struct {
	sampler.Process
	comm string
}

// subsystems are the controllers of cgroup version 1 that workload knows.
var subsystems = map[string]bpf.Subsystem{"cpu": bpf.CPU, "memory": bpf.Memory, "pids": bpf.PIDs}
