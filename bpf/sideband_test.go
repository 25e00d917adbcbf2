package bpf_test

import (
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/bpf/bpftest"
)

func sideband(t testing.TB) *bpf.Sideband {
	t.Helper()
	bpftest.Require(t)
	s, err := bpf.OpenSideband()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func drain(t testing.TB, s *bpf.Sideband) []bpf.ProcessEvent {
	t.Helper()
	events, err := s.Drain(nil)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.IsSortedFunc(events, func(a, b bpf.ProcessEvent) int { return int(int64(a.Time) - int64(b.Time)) }) {
		t.Error("events do not come oldest first")
	}
	return events
}

// TestSidebandTellsALife: a child that lives about a millisecond is known from
// fork to exit, with what it had mapped.
func TestSidebandTellsALife(t *testing.T) {
	s := sideband(t)
	for range 5 {
		before := now(t)
		cmd := exec.Command("/bin/true")
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		after := now(t)
		var got []bpf.ProcessEventKind
		mapped := false
		for _, e := range drain(t, s) {
			if e.PID != uint32(cmd.ProcessState.Pid()) {
				continue
			}
			if e.Time < before || e.Time > after {
				t.Errorf("%+v is not between %d and %d", e, before, after)
			}
			switch e.Kind {
			case bpf.EventFork:
				if e.Parent != uint32(os.Getpid()) {
					t.Errorf("the parent is PID %d, want %d", e.Parent, os.Getpid())
				}
			case bpf.EventMap:
				if e.Inode != 0 && e.Path == "" || e.Start >= e.End {
					t.Errorf("a mapping without a path or bytes: %+v", e)
				}
				mapped = mapped || e.Path == "/usr/bin/true" || e.Path == "/bin/true" || e.Path == "/usr/bin/coreutils"
			}
			if len(got) == 0 || got[len(got)-1] != e.Kind {
				got = append(got, e.Kind)
			}
		}
		want := []bpf.ProcessEventKind{bpf.EventFork, bpf.EventExec, bpf.EventMap, bpf.EventExit}
		if !slices.Equal(got, want) {
			t.Errorf("events are %v, want fork, exec, mappings, exit: %v", got, want)
		}
		if !mapped {
			t.Error("the program itself is among no mappings")
		}
	}
	if s.Lost() != 0 {
		t.Errorf("%d events lost", s.Lost())
	}
}

func now(t testing.TB) uint64 {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		t.Fatal(err)
	}
	return uint64(ts.Nano())
}

// mapCode makes n executable mappings, one after the other, and gives where
// they were.
func mapCode(t testing.TB, n int) []uint64 {
	t.Helper()
	starts := make([]uint64, 0, n)
	for i := range n {
		// Of different sizes: the kernel tells of each.
		size := (1 + i%7) * unix.Getpagesize()
		b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			t.Fatal(err)
		}
		starts = append(starts, uint64(uintptr(unsafe.Pointer(&b[0]))))
		if err := unix.Munmap(b); err != nil {
			t.Fatal(err)
		}
	}
	return starts
}

func ownMappings(events []bpf.ProcessEvent) []uint64 {
	var starts []uint64
	for _, e := range events {
		if e.Kind == bpf.EventMap && e.PID == uint32(os.Getpid()) {
			starts = append(starts, e.Start)
		}
	}
	return starts
}

// TestSidebandRingWraps reads several times what the rings hold.
func TestSidebandRingWraps(t *testing.T) {
	s := sideband(t)
	for round := range 24 { // of about 35 KiB, in rings of 128 KiB
		want := mapCode(t, 300)
		if got := ownMappings(drain(t, s)); !slices.Equal(got, want) {
			t.Fatalf("round %d: %d mappings told, want %d, each where it was", round, len(got), len(want))
		}
	}
	if s.Lost() != 0 {
		t.Errorf("%d events lost", s.Lost())
	}
}

// onOneCPU keeps the test on the first CPU that it may run on.
func onOneCPU(t testing.TB) {
	t.Helper()
	runtime.LockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	cpu := 0
	for !before.IsSet(cpu) {
		cpu++
	}
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.SchedSetaffinity(0, &before); err != nil {
			t.Error(err)
		}
		runtime.UnlockOSThread()
	})
}

// TestSidebandCountsLosses makes more events than the rings hold.
func TestSidebandCountsLosses(t *testing.T) {
	s := sideband(t)
	onOneCPU(t)
	const made = 12000 // about 1.4 MiB, in a ring of 128 KiB
	mapCode(t, made)
	got := len(ownMappings(drain(t, s)))
	if got == made {
		t.Fatalf("all %d events are told: more than the ring holds", made)
	}
	// The kernel tells of the loss with the next event of the same CPU.
	deadline := time.Now().Add(10 * time.Second)
	for extra := 0; uint64(got)+s.Lost() < uint64(made+extra); {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d events told, and only %d counted as lost", got, made+extra, s.Lost())
		}
		mapCode(t, 10)
		extra += 10
		got += len(ownMappings(drain(t, s)))
	}
	if s.Lost() == 0 {
		t.Error("no event is counted as lost")
	}
}
