package bpf_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/bpf/bpftest"
)

func load(t testing.TB, cfg bpf.Config) *bpf.Kernel {
	t.Helper()
	bpftest.Require(t)
	k, err := bpf.Load(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

// self makes this process the only one that is sampled.
func self(t testing.TB, cfg bpf.Config) *bpf.Kernel {
	t.Helper()
	cfg.OnlyTargets = true
	k := load(t, cfg)
	if err := k.AddTarget(uint32(os.Getpid())); err != nil {
		t.Fatal(err)
	}
	return k
}

func burn(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
	}
}

// madeCgroup is the kind of a record that is of no process: somebody's new cgroup.
const madeCgroup = 3 // KLP_RECORD_CGROUP

// records reads stacks from the ring buffer until nothing comes.
func records(t testing.TB, k *bpf.Kernel, each func(raw []byte)) {
	t.Helper()
	var rec ringbuf.Record
	for {
		k.SetDeadline(time.Now().Add(50 * time.Millisecond))
		err := k.Read(&rec)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if rec.RawSample[0] != madeCgroup {
			each(rec.RawSample)
		}
	}
}

func TestBothWalksLoadAndSample(t *testing.T) {
	for _, tails := range []bool{false, true} {
		t.Run(fmt.Sprintf("tail calls %t", tails), func(t *testing.T) {
			k := self(t, bpf.Config{TailCalls: tails, KernelStacks: true})
			if want := map[bool]int{false: 1024, true: 264}[tails]; k.MaxFrames != want {
				t.Errorf("walks go %d frames deep, want %d", k.MaxFrames, want)
			}
			if err := k.Attach(999); err != nil {
				t.Fatal(err)
			}
			taken := 0
			eventually(t, "a sample of this process", func() bool {
				burn(20 * time.Millisecond)
				records(t, k, func(raw []byte) {
					taken++
					if pid := int(le32(raw[8:])); pid != os.Getpid() {
						t.Errorf("a record of PID %d, not a target", pid)
					}
				})
				return taken > 0
			})
			c, err := k.Counters()
			if err != nil {
				t.Fatal(err)
			}
			if c.Samples == 0 || c.Samples < uint64(taken) {
				t.Errorf("%d samples counted, %d records read", c.Samples, taken)
			}
			if c.RunNs == 0 || time.Duration(c.RunNs) > time.Duration(c.Samples)*time.Millisecond {
				t.Errorf("%d samples took %s", c.Samples, time.Duration(c.RunNs))
			}
			if k.MapBytes() == 0 || k.MapBytes() > 20<<20 {
				t.Errorf("the maps take %d bytes, want 20 MiB at most", k.MapBytes())
			}
		})
	}
}

func le32(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

func TestDetachStops(t *testing.T) {
	k := self(t, bpf.Config{})
	if err := k.Attach(999); err != nil {
		t.Fatal(err)
	}
	k.Detach()
	if err := k.SyncCPUs(); err != nil {
		t.Fatal(err)
	}
	before, err := k.Counters()
	if err != nil {
		t.Fatal(err)
	}
	burn(50 * time.Millisecond)
	after, err := k.Counters()
	if err != nil {
		t.Fatal(err)
	}
	before.RunNs, after.RunNs = 0, 0 // processes that come and go are followed still
	if before != after {
		t.Errorf("samples were taken after Detach and SyncCPUs: %+v, then %+v", before, after)
	}
}

// TestSyncCPUs asks for the events of all CPUs over and over: each CPU has one,
// or twice the samples come.
func TestSyncCPUs(t *testing.T) {
	k := self(t, bpf.Config{})
	const hz = 499
	if err := k.Attach(hz); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if err := k.SyncCPUs(); err != nil {
			t.Fatal(err)
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := k.Counters()
	if err != nil {
		t.Fatal(err)
	}
	cpu := cpuTime(t)
	burn(time.Second)
	cpu = cpuTime(t) - cpu
	after, err := k.Counters()
	if err != nil {
		t.Fatal(err)
	}
	got, want := float64(after.Samples-before.Samples), cpu.Seconds()*hz
	if got < 0.6*want || got > 1.4*want {
		t.Errorf("%.0f samples in %s of CPU time at %d Hz, want about %.0f", got, cpu, hz, want)
	}
}

// TestSetFrequency changes the rate while samples are taken.
func TestSetFrequency(t *testing.T) {
	k := self(t, bpf.Config{})
	if err := k.SetFrequency(97); err != nil {
		t.Fatal(err)
	}
	if err := k.Attach(997); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, hz := range []int{997, 101, 499} {
		if err := k.SetFrequency(hz); err != nil {
			t.Fatal(err)
		}
		before, err := k.Counters()
		if err != nil {
			t.Fatal(err)
		}
		cpu := cpuTime(t)
		for end := cpu + 700*time.Millisecond; cpuTime(t) < end; {
			burn(10 * time.Millisecond)
		}
		cpu = cpuTime(t) - cpu
		after, err := k.Counters()
		if err != nil {
			t.Fatal(err)
		}
		got, want := float64(after.Samples-before.Samples), cpu.Seconds()*float64(hz)
		if got < 0.7*want || got > 1.3*want {
			t.Errorf("%.0f samples in %s of CPU time at %d Hz, want about %.0f", got, cpu, hz, want)
		}
	}
}

// TestLifecycleIsTimed: what processes that come and go cost is counted too.
func TestLifecycleIsTimed(t *testing.T) {
	k := load(t, bpf.Config{})
	before, err := k.Counters()
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if err := exec.Command("/bin/true").Run(); err != nil {
			t.Fatal(err)
		}
	}
	after, err := k.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Duration(after.RunNs - before.RunNs); took <= 0 || took > 20*time.Millisecond {
		t.Errorf("20 processes took %s of the programs' time", took)
	}
	if after.Samples != 0 {
		t.Errorf("%d samples without a perf event", after.Samples)
	}
}

func cpuTime(t testing.TB) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestCountsAreDrainedOnce: what merged in the kernel comes out once.
func TestCountsAreDrainedOnce(t *testing.T) {
	k := self(t, bpf.Config{})
	counts := k.Maps()["counts"]
	want := map[bpf.Key]uint64{}
	for i := range 3000 { // more than one batch
		key := bpf.Key{Hash: uint64(i) * 0x9e3779b97f4a7c15, PID: uint32(i), TID: 7}
		want[key] = uint64(i + 1)
		if err := counts.Put(&key, uint64(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.DrainCounts(func(key bpf.Key, n uint64) {
		if want[key] != n {
			t.Fatalf("%+v has the count %d, want %d", key, n, want[key])
		}
		delete(want, key)
	}); err != nil {
		t.Fatal(err)
	}
	if len(want) != 0 {
		t.Errorf("%d counts did not come out", len(want))
	}
	if err := k.DrainCounts(func(key bpf.Key, n uint64) { t.Errorf("%+v: %d came out twice", key, n) }); err != nil {
		t.Fatal(err)
	}
}

func TestTick(t *testing.T) {
	k := load(t, bpf.Config{})
	for want := range uint32(3) {
		if got, err := k.Epoch(); err != nil || got != want {
			t.Fatalf("after %d ticks the epoch is %d (%v)", want, got, err)
		}
		if err := k.Tick(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLoadWithoutCapabilities drops what loading needs, in one thread.
func TestLoadWithoutCapabilities(t *testing.T) {
	bpftest.Require(t)
	result := make(chan error, 1)
	done := make(chan struct{})
	defer close(done)
	var drop func()
	drop = func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			// The main thread does not end, and what it may is what the process may.
			go drop()
			<-done
			runtime.UnlockOSThread()
			return
		}
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			result <- fmt.Errorf("drop capabilities: %w", err)
			return
		}
		k, err := bpf.Load(bpf.Config{})
		if err == nil {
			_ = k.Close()
		}
		result <- err
	}
	go drop()
	err := <-result
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		t.Errorf("Load without capabilities gives %v, want one that says so", err)
	}
	if err != nil && !strings.HasPrefix(err.Error(), "load BPF programs: ") {
		t.Errorf("the error does not say what was being done: %v", err)
	}
}

func TestLoadErrorKeepsTheEndOfTheVerifiersLog(t *testing.T) {
	var log []string
	for i := range 100 {
		log = append(log, fmt.Sprintf("line %d", i))
	}
	err := bpf.LoadError(fmt.Errorf("program x: %w", &ebpf.VerifierError{Cause: unix.EACCES, Log: log}))
	if !errors.Is(err, unix.EACCES) {
		t.Errorf("the cause is lost: %v", err)
	}
	text := err.Error()
	if !strings.Contains(text, "line 80\n") || !strings.HasSuffix(text, "line 99") || strings.Contains(text, "line 79\n") {
		t.Errorf("want the last 20 lines of the log:\n%s", text)
	}
}

// TestKernelLimitsHardware: the kernel lets hardware fire less and less often where
// samples take long.
func TestKernelLimitsHardware(t *testing.T) {
	const file = "/proc/sys/kernel/perf_event_max_sample_rate"
	before, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, []byte("500"), 0)
	}
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(file, before, 0); err != nil {
			t.Error(err)
		}
	})
	k := self(t, bpf.Config{})
	if err := k.Attach(997); err != nil || k.Event() != bpf.CPUClock {
		t.Errorf("%v, sampled by %s", err, k.Event())
	}
	k.Detach()
	if err := k.Attach(97); err != nil {
		t.Fatal(err)
	}
	err = k.SetFrequency(997)
	switch k.Event() {
	case bpf.CPUClock:
		if most := k.MaxFrequency(); err != nil || most < 997 {
			t.Errorf("%v, at most %d Hz", err, most)
		}
	case bpf.Cycles:
		if most := k.MaxFrequency(); !errors.Is(err, bpf.ErrFrequency) || most != 500 {
			t.Errorf("%v, at most %d Hz", err, most)
		}
		if err := k.SetFrequency(499); err != nil {
			t.Error(err)
		}
	}
}
