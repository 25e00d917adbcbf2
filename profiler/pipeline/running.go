package pipeline

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/workload"
)

// Running is a process that is there, and the workload that it is of.
type Running struct {
	Process  profiler.Process
	Workload *profiler.Workload
}

// Running lists the processes of the machine, sampled or not, without those of the
// kernel. It reads three short files of each.
func (s *Service) Running() ([]Running, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	names, err := dir.Readdirnames(-1)
	_ = dir.Close() // read from
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var out []Running
	for _, name := range names {
		n, err := strconv.ParseUint(name, 10, 31)
		if err != nil {
			continue
		}
		pid := profiler.PID(n)
		exe, kernel, gone := readExe(pid)
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if kernel || gone || err != nil || exe == "" && !runs(pid) {
			continue
		}
		place, _ := s.groups.PlaceOf(pid) // without one it is of the machine
		cgroup := place.Path
		p := profiler.Process{PID: pid, Comm: strings.TrimSuffix(string(comm), "\n"), Exe: exe, Cgroup: cgroup}
		out = append(out, Running{p, s.who.is(&identity{exe: exe, cgroup: cgroup}, p.Comm)})
	}
	return out, nil
}

// CgroupOf gives the path of the cgroup that a process is known by.
func (s *Service) CgroupOf(pid profiler.PID) (string, error) {
	place, err := s.groups.PlaceOf(pid)
	return place.Path, err
}

// is gives the workload of an identity that nothing is remembered of.
func (x *identities) is(id *identity, comm string) *profiler.Workload {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.workload(id, comm)
}

// target asks about a cgroup by its path alone.
func (x *identities) target(t Target) func(cgroup string) bool {
	return func(cgroup string) bool {
		var w *profiler.Workload
		if _, ok := x.pods.Find(cgroup); ok || workload.Identify(cgroup).Service() != "" {
			w = x.is(&identity{cgroup: cgroup}, "")
		}
		return t(cgroup, w)
	}
}
