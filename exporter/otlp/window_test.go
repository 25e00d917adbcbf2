package otlp

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
)

// window makes the profiles of a busy node: samples spread over workloads
// whose stacks have depth frames each, with inlined calls, kernel frames, and
// modules that several workloads share.
func window(workloads, stacks, depth, samples int, start time.Time) []*profiler.Profile {
	random := rand.New(rand.NewPCG(1, 2))
	kernel := functions(random, &profiler.Module{Path: "[kernel]"}, profiler.KindKernel, 150, "")
	libc := functions(random, &profiler.Module{Path: "/usr/lib/x86_64-linux-gnu/libc.so.6", BuildID: hexID(random)}, profiler.KindNative, 60, "/build/glibc/")
	var out []*profiler.Profile
	for w := range workloads {
		exe := &profiler.Module{Path: fmt.Sprintf("/srv/app-%d/bin/server", w), BuildID: hexID(random)}
		own := functions(random, exe, profiler.KindNative, 120, fmt.Sprintf("/src/app-%d/internal/", w))
		p := &profiler.Profile{
			Workload: workload(w), Start: start, Duration: 15 * time.Second, Frequency: 97, Event: "cpu-clock", Host: "node-1",
		}
		process := &profiler.Process{PID: profiler.PID(1000 + w), Comm: "server"}
		// A program's stacks are a tree: most share their callers.
		trunk := walk(random, own, depth)
		for range stacks / workloads {
			s := &profiler.Stack{Stop: profiler.StopRoot}
			if random.IntN(4) == 0 {
				s.Locations = append(s.Locations, walk(random, kernel, 5)...)
			}
			if random.IntN(3) == 0 {
				s.Locations = append(s.Locations, walk(random, libc, 2)...)
			}
			shared := 2 + random.IntN(depth-2-len(s.Locations))
			s.Locations = append(s.Locations, walk(random, own, max(depth-len(s.Locations)-shared, 0))...)
			s.Locations = append(s.Locations, trunk[depth-shared:]...)
			p.Samples = append(p.Samples, profiler.Sample{Process: process, Stack: s, Count: 1})
		}
		for range samples/workloads - len(p.Samples) {
			p.Samples[random.IntN(len(p.Samples))].Count++
		}
		out = append(out, p)
	}
	return out
}

func walk(random *rand.Rand, from []*profiler.Location, n int) []*profiler.Location {
	out := make([]*profiler.Location, n)
	for i := range out {
		out[i] = from[random.IntN(len(from))]
	}
	return out
}

func functions(random *rand.Rand, m *profiler.Module, kind profiler.FrameKind, n int, source string) []*profiler.Location {
	out := make([]*profiler.Location, n)
	for i := range out {
		l := &profiler.Location{Module: m, Address: uint64(0x1000 + 64*i)}
		frame := func(inlined bool) profiler.Frame {
			f := profiler.Frame{Function: name(random), Kind: kind, Inlined: inlined}
			if source != "" {
				f.File = fmt.Sprintf("%s%s/%s.cc", source, word(random), word(random))
				f.Line = 1 + random.IntN(2000)
			}
			return f
		}
		for source != "" && random.IntN(4) == 0 {
			l.Frames = append(l.Frames, frame(true))
		}
		l.Frames = append(l.Frames, frame(false))
		out[i] = l
	}
	return out
}

func word(random *rand.Rand) string {
	words := [...]string{
		"accept", "batch", "cache", "decode", "encode", "flush", "handle", "index", "journal", "key", "list", "merge",
		"node", "order", "parse", "queue", "read", "scan", "table", "update", "value", "write", "session", "request",
	}
	return words[random.IntN(len(words))]
}

func name(random *rand.Rand) string {
	return fmt.Sprintf("%s::%s::%s_%s(%s const&, unsigned long)", word(random), word(random), word(random), word(random), word(random))
}

func hexID(random *rand.Rand) string {
	return fmt.Sprintf("%016x%016x%08x", random.Uint64(), random.Uint64(), random.Uint32())
}

// workload is a pod's container with as many attributes as those have.
func workload(i int) *profiler.Workload {
	return &profiler.Workload{Attributes: []profiler.Attribute{
		{Key: "container.id", Value: fmt.Sprintf("%064x", i+1)},
		{Key: "host.name", Value: "node-1"},
		{Key: "k8s.container.name", Value: "server"},
		{Key: "k8s.deployment.name", Value: fmt.Sprintf("app-%d", i)},
		{Key: "k8s.namespace.name", Value: "shop"},
		{Key: "k8s.node.name", Value: "node-1"},
		{Key: "k8s.pod.name", Value: fmt.Sprintf("app-%d-6d4cf56db6-x2v9k", i)},
		{Key: "process.executable.name", Value: "server"},
		{Key: "service.name", Value: fmt.Sprintf("app-%d", i)},
		{Key: "service.namespace", Value: "shop"},
	}}
}
