package pipeline

import (
	"strings"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/aggregate"
	"github.com/kalypso-dev/kalypso/profiler/process"
	"github.com/kalypso-dev/kalypso/profiler/sampler"
	"github.com/kalypso-dev/kalypso/profiler/symbolize"
	"github.com/kalypso-dev/kalypso/profiler/workload"
)

// TestRecordingHastensNothingThatIsStored: who records gets a segment after a second,
// with the names that are known by then; what is delivered waits for the others, and
// what was sampled later waits behind it.
func TestRecordingHastensNothingThatIsStored(t *testing.T) {
	mine := strings.Repeat("0123456789abcdef", 4)
	pods := workload.NewPods()
	pods.Set(podOf(""), time.Now())
	x := newIdentities("box", "node-1", "", nil, pods, noCgroups(), nil)
	p := sampler.Process{PID: 4242}
	x.processes[processKey{p, "app"}] = &identity{cgroup: inPod(testPod, mine)}
	collector := aggregate.NewCollector(aggregate.Config{FirstSeen: func(sampler.Process, string) {}, RunTime: func(profiler.PID) {}})
	sampled := func(seq uint64) *segment {
		stack := &sampler.Stack{Process: p}
		copy(stack.Comm[:], "app")
		collector.Add(stack, 1)
		return &segment{Segment: Segment{Seq: seq, Frequency: 97, Duration: time.Second}, window: collector.Cut()}
	}
	container := func(seg Segment) string {
		if len(seg.Profiles) != 1 {
			t.Fatalf("segment %d has %d profiles, want 1", seg.Seq, len(seg.Profiles))
		}
		return seg.Profiles[0].Workload.Attribute("k8s.container.name")
	}
	var delivered []string
	n := &namer{Service: &Service{
		who: x, engine: &engine{table: &process.Table{}, symbols: &symbolize.Symbolizer{}},
		cfg: ServiceConfig{Pods: pods, Deliver: func(seg Segment) { delivered = append(delivered, container(seg)) }},
	}}
	n.memory = &memory{service: n.Service}
	n.memory.budget.Store(MinMemoryBudget)
	n.ticks.naming = func() {}
	r := &recorder{done: make(chan struct{})}
	n.recording = map[*recorder]bool{r: true}

	x.meet(inPod(testPod, mine))
	n.name(sampled(0))
	if len(delivered) != 0 || len(r.segments) != 1 || container(r.segments[0]) != "" {
		t.Fatalf("delivered %q, %d recorded; want nothing, and one with a container without a name", delivered, len(r.segments))
	}
	n.catchUp(time.Now())
	if len(delivered) != 0 {
		t.Fatalf("delivered %q, before anybody told of the container", delivered)
	}
	pods.Set(podOf(mine), time.Now())
	n.name(sampled(1))
	if len(delivered) != 2 || delivered[0] != "server" || delivered[1] != "server" || len(n.late) != 0 {
		t.Errorf("delivered %q, want both, with the container's name", delivered)
	}
	if len(r.segments) != 2 || r.segments[0].Seq != 0 || r.segments[1].Seq != 1 {
		t.Errorf("%d segments are recorded, want 2 in order", len(r.segments))
	}
	if n.stats.Samples != 2 {
		t.Errorf("%d samples are counted, want 2", n.stats.Samples)
	}
}
