package pipeline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/bpf/bpftest"
	"github.com/kalypso-dev/kalypso/profiler"
)

// delivered keeps what a service delivers.
type delivered struct {
	mu       sync.Mutex
	segments []Segment
}

func (d *delivered) add(s Segment) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.segments = append(d.segments, s)
}

func (d *delivered) all() []Segment {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.segments)
}

// serve runs a service until stop is called, which gives what Run returned.
func serve(t *testing.T, change func(*ServiceConfig)) (s *Service, got *delivered, stop func() error) {
	t.Helper()
	bpftest.Require(t)
	got = &delivered{}
	cfg := ServiceConfig{
		Settings: Settings{Frequency: 199},
		Runtimes: testRuntimes(), OpenPerfMap: openPerfMap, Kernel: true,
		Window: time.Second, Deliver: got.add, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	change(&cfg)
	s, err := NewService(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	t.Cleanup(func() { _ = stop() })
	select {
	case <-s.Ready():
	case err := <-done:
		stopped = true
		t.Fatal(err)
	}
	return s, got, stop
}

// until waits for a condition.
// mayBeMissed are samples that are counted as lost: one that is merged while the counts
// of the same stack are read and deleted on another CPU is in neither.
const mayBeMissed = 3

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// cpuOf is the CPU time that profiles show of a service, in seconds.
func cpuOf(segments []Segment, service string) (seconds float64) {
	for _, seg := range segments {
		for _, p := range seg.Profiles {
			if p.Workload.Attribute("service.name") == service {
				seconds += float64(p.Quality.Samples) * p.Period().Seconds()
			}
		}
	}
	return seconds
}

// TestServiceLosesNothing: segments follow each other without a gap, and what
// the kernel side took is what was delivered and lost, to the sample.
func TestServiceLosesNothing(t *testing.T) {
	pid := start(t, compile(t, "spinner", spinner), "12", "fork")
	s, got, stop := serve(t, func(*ServiceConfig) {})
	before := childrenTimeOf(t, pid)
	until(t, "five windows", func() bool { return s.Stats().Windows >= 5 })
	used := childrenTimeOf(t, pid) - before
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	segments := got.all()
	var samples, lost uint64
	for i, seg := range segments {
		if seg.Seq != uint64(i) {
			t.Fatalf("segment %d comes at place %d", seg.Seq, i)
		}
		if i > 0 {
			if end := segments[i-1].Start.Add(segments[i-1].Duration); !end.Equal(seg.Start) {
				t.Errorf("segment %d begins %s after the one before", i, seg.Start.Sub(end))
			}
		}
		// All but the first and the last begin and end with a second of the clock.
		if i > 0 && i < len(segments)-1 {
			if off := seg.Start.Sub(seg.Start.Truncate(time.Second)); off > 700*time.Millisecond {
				t.Errorf("window %d begins %s behind the second", i, off)
			}
		}
		lost += seg.Lost
		names := map[string]bool{}
		for _, p := range seg.Profiles {
			samples += p.Quality.Samples
			name := p.Workload.Attribute("service.name")
			if name == "" || names[name] {
				t.Errorf("segment %d has two profiles of %q, or one of nobody", i, name)
			}
			names[name] = true
			if !p.Start.Equal(seg.Start) || p.Duration != seg.Duration || p.Frequency != seg.Frequency || p.Event == "" || p.Host == "" {
				t.Errorf("profile %+v of segment %+v", *p, seg)
			}
		}
	}
	if all := s.Stats(); all.Samples != samples || all.Lost != lost || all.Windows < 5 {
		t.Errorf("stats %+v of %d samples and %d lost", all, samples, lost)
	}
	if taken := s.Stats().Taken; samples+lost != taken {
		t.Errorf("%d samples delivered and %d lost are not the %d taken", samples, lost, taken)
	}
	last := segments[len(segments)-1]
	if !last.Last {
		t.Error("the last segment does not end its window")
	}
	if got := cpuOf(segments, "spinner"); used == 0 || got < 0.8*used.Seconds() {
		t.Errorf("%.2f s of CPU time are shown of the workload, it took %s", got, used)
	}
}

// TestServiceChangesRate: each profile has the rate that its samples were taken
// at, and the CPU time that they stand for stays right.
func TestServiceChangesRate(t *testing.T) {
	pid := start(t, compile(t, "rated", spinner), "12")
	s, got, stop := serve(t, func(c *ServiceConfig) { c.Window = 2 * time.Second })
	before := cpuTimeOf(t, pid)
	begin := time.Now()
	for _, hz := range []int{47, 499, 97, 199} {
		if err := s.Apply(context.Background(), Settings{Frequency: hz}); err != nil {
			t.Fatal(err)
		}
		since := cpuTimeOf(t, pid)
		until(t, "900 ms of CPU time", func() bool { return cpuTimeOf(t, pid)-since > 900*time.Millisecond })
	}
	used := cpuTimeOf(t, pid) - before
	if err := s.Apply(context.Background(), Settings{Frequency: 0}); err == nil {
		t.Error("a rate of 0 is taken")
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	rates := map[int]bool{}
	var after []Segment
	for _, seg := range got.all() {
		if seg.Start.Before(begin.Add(-50*time.Millisecond)) && seg.Frequency == 199 {
			continue
		}
		rates[seg.Frequency] = true
		after = append(after, seg)
	}
	for _, hz := range []int{47, 499, 97, 199} {
		if !rates[hz] {
			t.Errorf("no profile at %d Hz: %v", hz, rates)
		}
	}
	if seen := cpuOf(after, "rated"); math.Abs(seen-used.Seconds()) > 0.12*used.Seconds()+0.1 {
		t.Errorf("%.2f s of CPU time are shown, the workload used %.2f s", seen, used.Seconds())
	}
	if st := s.Stats(); st.RateChanges < 4 || st.Frequency != 199 {
		t.Errorf("stats %+v after four changes", st)
	}
}

// TestRecorder: a recording has its own rate and ends with what was asked for,
// while windows go on.
func TestRecorder(t *testing.T) {
	pid := start(t, compile(t, "recorded", spinner), "12")
	s, got, stop := serve(t, func(c *ServiceConfig) { c.Window = 10 * time.Minute })
	if _, err := s.Record(context.Background(), time.Second, MaxFrequency+1, nil, nil); err == nil {
		t.Error("an impossible rate is taken")
	}
	var both sync.WaitGroup
	results := make([][]Segment, 2)
	before, begin := cpuTimeOf(t, pid), time.Now()
	for i, hz := range []int{0, 499} {
		both.Go(func() {
			var err error
			if results[i], err = s.Record(context.Background(), time.Second, hz, nil, nil); err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	load := float64(cpuTimeOf(t, pid)-before) / float64(time.Since(begin)) // what was sampled is named meanwhile, too
	for i, segments := range results {
		var long time.Duration
		for _, seg := range segments {
			long += seg.Duration
		}
		if long < 950*time.Millisecond || long > 3*time.Second {
			t.Errorf("recording %d took %s", i, long)
		}
		used := load * long.Seconds()
		if seen := cpuOf(segments, "recorded"); seen < 0.8*used-0.1 || seen > 1.1*used+0.1 {
			t.Errorf("recording %d of %s shows %.2f s of CPU time, it took %.2f s", i, long, seen, used)
		}
	}
	if !slices.ContainsFunc(results[1], func(s Segment) bool { return s.Frequency == 499 }) {
		t.Error("no segment has the rate that was asked for")
	}
	until(t, "the old rate", func() bool { return s.Stats().Frequency == 199 })
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Record(ctx, time.Hour, 0, nil, nil); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Record(context.Background(), time.Second, 0, nil, nil); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a recording after the end says: %v", err)
	}
	last := 0
	for _, seg := range got.all() {
		if seg.Last {
			last++
		}
	}
	if last > 2 { // a multiple of ten minutes may have passed
		t.Errorf("recordings ended %d windows", last)
	}
}

// TestRecorderDoesNotLowerTheRate: what others get is what they would have got.
func TestRecorderDoesNotLowerTheRate(t *testing.T) {
	s, _, _ := serve(t, func(*ServiceConfig) {})
	segments, err := s.Record(context.Background(), 2500*time.Millisecond, 47, nil, nil)
	if err != nil || len(segments) == 0 {
		t.Fatalf("%d segments, %v", len(segments), err)
	}
	for _, seg := range segments {
		if seg.Frequency != 199 {
			t.Errorf("a segment at %d Hz, want 199", seg.Frequency)
		}
	}
}

// TestRecorderRespectsMemory: it does not raise what was lowered for want of
// memory.
func TestRecorderRespectsMemory(t *testing.T) {
	s, _, _ := serve(t, func(*ServiceConfig) {})
	s.memory.pressure.Store(fewer)
	until(t, "the lower rate", func() bool { return s.Stats().Frequency == 199/4 })
	segments, err := s.Record(context.Background(), 300*time.Millisecond, 400, nil, nil)
	if err != nil || len(segments) == 0 {
		t.Fatalf("%d segments, %v", len(segments), err)
	}
	for _, seg := range segments {
		if seg.Frequency > 100 {
			t.Errorf("a segment at %d Hz, want a quarter of 400", seg.Frequency)
		}
	}
}

// TestRecorderEndsWhileNamingIsBehind: that it cannot be ended yet holds up
// nobody else, and the end of the service ends it.
func TestRecorderEndsWhileNamingIsBehind(t *testing.T) {
	gate := make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	var shut atomic.Bool
	s, _, stop := serve(t, func(c *ServiceConfig) {
		c.Window = 10 * time.Minute
		deliver := c.Deliver
		c.Deliver = func(seg Segment) {
			deliver(seg)
			if shut.Load() {
				<-gate
			}
		}
	})
	t.Cleanup(open) // before the service is stopped, which waits for it
	ctx, cancel := context.WithCancel(context.Background())
	recorded := make(chan error, 1)
	go func() {
		segments, err := s.Record(ctx, time.Hour, 0, nil, nil)
		if err == nil && len(segments) == 0 {
			err = errors.New("nothing was recorded")
		}
		recorded <- err
	}()
	until(t, "the recording", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.recording) == 1
	})
	shut.Store(true)
	for i := range 2 * queuedSegments { // each change ends a segment
		if err := s.Apply(context.Background(), Settings{Frequency: 100 + i}); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "a full queue", func() bool { return len(s.segments) == queuedSegments })
	cancel()
	until(t, "the end to be wanted", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return slices.ContainsFunc(slices.Collect(maps.Keys(s.recording)), func(r *recorder) bool { return r.known })
	})
	soon, done := context.WithTimeout(context.Background(), 5*time.Second)
	defer done()
	answered := make(chan error, 1)
	go func() { answered <- s.do(soon, func() {}) }()
	select {
	case err := <-answered:
		if err != nil {
			t.Errorf("the loop does nothing else: %v", err)
		}
	case <-soon.Done():
		t.Error("the loop does nothing else")
	}
	open()
	if err := <-recorded; err != nil {
		t.Error(err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// TestRecorderEndsWithItsMemory: a recording that grows too large ends at once,
// not when its time is over.
func TestRecorderEndsWithItsMemory(t *testing.T) {
	s, _, _ := serve(t, func(*ServiceConfig) {})
	recorded := make(chan error, 1)
	go func() {
		_, err := s.Record(context.Background(), time.Hour, 401, nil, nil)
		recorded <- err
	}()
	until(t, "the recording", func() bool { return s.Stats().Frequency == 401 })
	large := make([]profiler.Sample, s.memory.size()/recordingShare/sampleBytes)
	s.publish(Segment{Seq: 1 << 40, Profiles: []*profiler.Profile{{Samples: large}}})
	select {
	case err := <-recorded:
		if !errors.Is(err, ErrTooLarge) {
			t.Errorf("got %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it goes on")
	}
	until(t, "the old rate", func() bool { return s.Stats().Frequency == 199 })
}

// TestServiceWorkloads: labels, filter, and names of programs and the kernel.
func TestServiceWorkloads(t *testing.T) {
	path := compile(t, "workload-a", spinner)
	start(t, path, "12", "syscalls")
	start(t, compile(t, "unwanted", spinner), "12")
	s, got, stop := serve(t, func(c *ServiceConfig) {
		c.Labels = []profiler.Attribute{{Key: "env", Value: "test"}, {Key: "host.name", Value: "here"}}
		c.Keep = func(w *profiler.Workload, _ *profiler.Process) bool { return w.Attribute("service.name") != "unwanted" }
	})
	until(t, "three windows", func() bool { return s.Stats().Windows >= 3 })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	segments := got.all()
	var filtered uint64
	for _, seg := range segments {
		filtered += seg.Filtered
		for _, p := range seg.Profiles {
			w := p.Workload
			if w.Attribute("env") != "test" || w.Attribute("host.name") != "here" {
				t.Fatalf("workload %+v lacks a label", w)
			}
			if !slices.IsSortedFunc(w.Attributes, func(a, b profiler.Attribute) int {
				if a.Key < b.Key {
					return -1
				}
				return 1
			}) {
				t.Errorf("attributes %+v are not sorted, or come twice", w.Attributes)
			}
			if w.Attribute("service.name") != "workload-a" {
				continue
			}
			if w.Attribute("process.executable.name") != filepath.Base(path) {
				t.Errorf("workload %+v", w)
			}
			for _, smp := range p.Samples {
				if smp.Process.Exe != path || smp.Process.Cgroup == "" {
					t.Errorf("process %+v", *smp.Process)
				}
			}
		}
	}
	if filtered == 0 || s.Stats().Filtered != filtered {
		t.Errorf("%d samples were filtered, stats say %d", filtered, s.Stats().Filtered)
	}
	if cpuOf(segments, "unwanted") > 0 || cpuOf(segments, "workload-a") == 0 {
		t.Errorf("%.2f s of the unwanted and %.2f s of the wanted", cpuOf(segments, "unwanted"), cpuOf(segments, "workload-a"))
	}
}

// TestServiceEndsFullWindows: a window that grows too large ends early, and
// slow delivery makes windows longer; neither loses a sample.
func TestServiceEndsFullWindows(t *testing.T) {
	start(t, compile(t, "deep", spinner), "200")
	slow := make(chan struct{}, 1)
	got := &delivered{}
	s, _, stop := serve(t, func(c *ServiceConfig) {
		c.Settings.Frequency = 999
		c.Deliver = func(seg Segment) {
			got.add(seg)
			select {
			case <-slow:
				time.Sleep(8 * time.Second)
			default:
			}
		}
	})
	slow <- struct{}{}
	until(t, "a long window", func() bool { return s.Stats().LongWindows > 0 })
	until(t, "the next window", func() bool { return s.Stats().Windows > 6 })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	var samples, lost uint64
	long := false
	for _, seg := range got.all() {
		lost += seg.Lost
		long = long || seg.Duration > 1500*time.Millisecond
		for _, p := range seg.Profiles {
			samples += p.Quality.Samples
		}
	}
	if taken := s.Stats().Taken; samples+lost != taken || lost > mayBeMissed {
		t.Errorf("%d delivered, %d lost, %d taken", samples, lost, taken)
	}
	if !long {
		t.Error("no window took longer while delivery did")
	}
}

// TestServiceForgets: processes that end leave nothing behind.
func TestServiceForgets(t *testing.T) {
	s, _, stop := serve(t, func(*ServiceConfig) {})
	var ended []profiler.PID
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); {
		cmd := exec.Command("/bin/sh", "-c", "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done")
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		ended = append(ended, profiler.PID(cmd.Process.Pid))
	}
	known := func(pid profiler.PID) bool { return s.who.byPID[pid] != nil }
	until(t, "some of them to be met", func() bool {
		s.who.mu.Lock()
		defer s.who.mu.Unlock()
		return slices.ContainsFunc(ended, known)
	})
	begin := time.Now()
	until(t, "a sweep after the last process", func() bool {
		s.who.mu.Lock()
		defer s.who.mu.Unlock()
		return !slices.ContainsFunc(ended, known)
	})
	t.Logf("forgotten after %s", time.Since(begin).Round(time.Millisecond))
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

func TestServiceConfig(t *testing.T) {
	good := ServiceConfig{
		Settings: Settings{Frequency: 97}, Runtimes: testRuntimes(), OpenPerfMap: openPerfMap, Window: 15 * time.Second,
		Deliver: func(Segment) {}, Log: slog.Default(),
	}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*ServiceConfig){
		"a rate of 0":                func(c *ServiceConfig) { c.Frequency = 0 },
		"a rate of a million":        func(c *ServiceConfig) { c.Frequency = 1e6 },
		"no window":                  func(c *ServiceConfig) { c.Window = 0 },
		"a window of an hour":        func(c *ServiceConfig) { c.Window = time.Hour },
		"a budget that is too small": func(c *ServiceConfig) { c.MemoryBudget = 1 << 20 },
		"nobody to deliver to":       func(c *ServiceConfig) { c.Deliver = nil },
	} {
		bad := good
		change(&bad)
		if bad.Validate() == nil {
			t.Errorf("%s passes", name)
		}
	}
}

func TestUntilBoundary(t *testing.T) {
	at := time.Date(2026, 11, 26, 10, 0, 7, 500e6, time.UTC)
	if got := untilBoundary(at, 15*time.Second); got != 7500*time.Millisecond {
		t.Errorf("%s until a multiple of 15 s, want 7.5s", got)
	}
	if got := untilBoundary(at.Truncate(15*time.Second), 15*time.Second); got != 15*time.Second {
		t.Errorf("%s at a boundary, want a whole window", got)
	}
}

// cpuTimeOf is the CPU time that a process used so far.
func cpuTimeOf(t *testing.T, pid profiler.PID) time.Duration {
	t.Helper()
	var ts unix.Timespec
	// clock_getcpuclockid(3): the inverted PID above three bits, of which 2 is
	// the scheduler's time.
	if err := unix.ClockGettime(int32(^int(pid)<<3|2), &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// childrenTimeOf is the CPU time of a process's children that have ended.
func childrenTimeOf(t *testing.T, pid profiler.PID) time.Duration {
	t.Helper()
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(line[bytes.LastIndexByte(line, ')'):])) // field 2, proc_pid_stat(5)
	ticks := 0
	for _, i := range []int{16, 17} { // cutime, cstime
		n, err := strconv.Atoi(fields[i-2])
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100 // USER_HZ
}
