package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/api"
	"github.com/kalypso-dev/kalypso/profiler/dump"
	"github.com/kalypso-dev/kalypso/profiler/lang"
	"github.com/kalypso-dev/kalypso/profiler/pipeline"
)

// source is the daemon as the local API asks it.
type source struct{ d *daemon }

// Record implements api.Source.
func (s source) Record(ctx context.Context, d time.Duration, hz int, f api.Filter) ([]api.Segment, error) {
	list, err := s.d.service.Record(ctx, d, hz, s.target(f), f.Apply)
	if errors.Is(err, pipeline.ErrBehind) {
		err = errors.Join(api.ErrBusy, err)
	}
	if errors.Is(err, pipeline.ErrTooLarge) {
		err = errors.Join(api.ErrTooLarge, err)
	}
	if err != nil {
		return nil, err
	}
	out := make([]api.Segment, len(list))
	for i := range list {
		out[i] = apiSegment(&list[i])
	}
	return out, nil
}

// target is what the rate is raised of. Of a process that is its cgroup: the kernel
// side tells what is thinned apart by nothing less.
func (s source) target(f api.Filter) pipeline.Target {
	if t := f.Target(); t != nil || f.PID == 0 {
		return t
	}
	cgroup, err := s.d.service.CgroupOf(f.PID)
	if err != nil || cgroup == "/" {
		return nil
	}
	return func(path string, _ *profiler.Workload) bool { return path == cgroup }
}

func apiSegment(s *pipeline.Segment) api.Segment {
	return api.Segment{Start: s.Start, Duration: s.Duration, Frequency: s.Frequency, Lost: s.Lost, Profiles: s.Profiles}
}

// Status implements api.Source.
func (s source) Status() api.Status {
	d := s.d
	st := d.service.Stats()
	d.mu.Lock()
	wanted := d.settings.Frequency
	d.mu.Unlock()
	host, event := d.service.Describe()
	var pods *api.Pods
	if d.pods != nil {
		known, _ := d.pods.Len()
		pods = &api.Pods{Known: known, Learning: d.pods.Learning()}
	}
	exports := make([]api.Export, len(d.outlets))
	for i, o := range d.outlets {
		exports[i] = o.status()
	}
	return api.Status{
		Version: d.Version, Host: host, Event: event, Started: st.Started, Frequency: st.Frequency, WantedFrequency: wanted,
		Quality: d.service.Quality(),
		Cost: api.Cost{
			CPU: st.AgentCPU, BPF: st.BPFTime, Share: st.CPUShare, Budget: st.CPUBudget,
			RSSBytes: st.Memory.Resident, MapBytes: st.Memory.Maps, MemoryBudget: st.Memory.Budget,
			Unmet: st.CPUUnmet, Pressure: st.Memory.Pressure,
		},
		Pods: pods, Exports: exports,
	}
}

// running lists the processes of the machine.
func (s source) running() ([]api.Running, error) {
	list, err := s.d.service.Running()
	out := make([]api.Running, len(list))
	for i, r := range list {
		out[i] = api.Running(r)
	}
	return out, err
}

// Dump implements api.Source.
func (s source) Dump(ctx context.Context, pid profiler.PID) (*api.Dump, error) {
	d := s.d
	d.mu.Lock()
	kernel := d.settings.Kernel
	d.mu.Unlock()
	return Dump(ctx, dump.Config{
		Runtimes: d.Runtimes, Kernel: kernel, KernelNames: d.service.KernelNames(),
		OpenPerfMap: func(pid profiler.PID, root string) (lang.Instance, error) { return d.OpenPerfMap(pid, root) },
		Failed:      func(err error) { d.log.Warn("a dump is less than it could be", "pid", pid, "reason", err) },
	}, pid)
}

// Dump takes the stacks of every thread of a process, in the form that the API
// answers with and kalypso-agent dump prints.
func Dump(ctx context.Context, cfg dump.Config, pid profiler.PID) (*api.Dump, error) {
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)) // kernel threads have none
	at := time.Now()
	threads, err := dump.Threads(ctx, cfg, pid)
	if err != nil {
		return nil, err
	}
	took := time.Since(at)
	stacks := make([]api.ThreadStack, len(threads))
	for i, t := range threads {
		stacks[i] = api.ThreadStack{TID: t.TID, Name: t.Name, State: string(t.State), Syscall: t.Syscall, Changed: t.Changed, Stack: t.Stack}
	}
	return api.NewDump(pid, exe, at, took, stacks), nil
}
