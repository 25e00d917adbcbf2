package api

import (
	"fmt"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kalypso-dev/kalypso/profiler"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// begin is when the tests' recordings begin: long ago, so that no range up to now
// has them.
func begin() time.Time { return time.Date(2020, 11, 26, 12, 0, 0, 0, time.UTC) }

// workload is a profile of one process of a service. Each function is called by
// main, and has so many samples.
func workload(name string, pid profiler.PID, functions map[string]uint64) *profiler.Profile {
	exe := &profiler.Module{Path: "/usr/bin/" + name, BuildID: "aa" + name}
	process := &profiler.Process{PID: pid, Comm: name, Exe: exe.Path, Cgroup: "/system.slice/" + name + ".service"}
	main := &profiler.Location{Module: exe, Address: 1, Frames: []profiler.Frame{{Function: "main", File: "/src/" + name + ".c", Line: 3}}}
	p := &profiler.Profile{
		Workload: &profiler.Workload{Attributes: []profiler.Attribute{{Key: "host.name", Value: "larch"}, {Key: "service.name", Value: name}}},
		Host:     "larch", Event: "cpu-clock",
	}
	for _, f := range sortedKeys(functions) {
		l := &profiler.Location{Module: exe, Address: uint64(len(p.Samples)) + 16, Frames: []profiler.Frame{{Function: f}}}
		if f == "[kernel]" {
			l.Module, l.Address = &profiler.Module{Path: "[kernel]"}, 0xffffffff81000000
			l.Frames = []profiler.Frame{{Function: "ksys_read", Kind: profiler.KindKernel}}
		}
		p.Samples = append(p.Samples, profiler.Sample{
			Process: process, Count: functions[f],
			Stack: &profiler.Stack{Stop: profiler.StopRoot, Locations: []*profiler.Location{l, main}},
		})
		p.Quality.Add(p.Samples[len(p.Samples)-1].Stack, functions[f])
	}
	return p
}

// segment is a closed segment of 10 s, n segments after the beginning.
func segment(n, hz int, profiles ...*profiler.Profile) Segment {
	s := Segment{Start: begin().Add(time.Duration(n) * 10 * time.Second), Duration: 10 * time.Second, Frequency: hz, Profiles: profiles}
	for _, p := range profiles {
		p.Start, p.Duration, p.Frequency = s.Start, s.Duration, hz
	}
	return s
}

func add(t testing.TB, h *History, segments ...Segment) {
	t.Helper()
	for _, s := range segments {
		if err := h.Add(s); err != nil {
			t.Fatal(err)
		}
	}
}

// busy is a segment of a machine on which much goes on: so many stacks, of 30
// frames, that each segment has for itself.
func busy(n, stacks int) Segment {
	p := workload("busy", 7, nil)
	var locations []*profiler.Location
	for i := range 2000 {
		locations = append(locations, &profiler.Location{
			Module: &profiler.Module{Path: fmt.Sprintf("/usr/lib/lib%d.so", i%50)}, Address: uint64(i),
			Frames: []profiler.Frame{{Function: fmt.Sprintf("some_namespace::some_class_%d::some_function_%d(int, char const*)", i%97, i), File: fmt.Sprintf("/usr/src/some/file%d.cc", i%300), Line: i}},
		})
	}
	at := uint64(n + 1)
	for range stacks {
		st := &profiler.Stack{Stop: profiler.StopRoot}
		for depth := range 30 {
			at = at*6364136223846793005 + 1442695040888963407
			// The root end is common to many, the leaf end is not.
			st.Locations = append(st.Locations, locations[(at>>33)%uint64(2+(30-depth)*(30-depth))])
		}
		p.Samples = append(p.Samples, profiler.Sample{Process: &profiler.Process{PID: profiler.PID(at>>50%40 + 1), Comm: "busy"}, Count: 1 + at>>60, Stack: st})
		p.Quality.Add(st, 1+at>>60)
	}
	// One process is one value.
	processes := map[profiler.PID]*profiler.Process{}
	for i := range p.Samples {
		pr := p.Samples[i].Process
		if processes[pr.PID] == nil {
			processes[pr.PID] = pr
		}
		p.Samples[i].Process = processes[pr.PID]
	}
	return segment(n, 97, p)
}
