package bpf_test

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/bpf/bpftest"
)

func threads(t testing.TB) *bpf.Threads {
	t.Helper()
	bpftest.Require(t)
	r, err := bpf.LoadThreads()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// blocked starts the workload of that name and waits until its threads wait.
func blocked(t testing.TB, args ...string) uint32 {
	t.Helper()
	path := filepath.Join(t.TempDir(), "blocked")
	if text, err := exec.Command("gcc", "-O2", "-pthread", "-o", path, "../test/workloads/blocked.c").CombinedOutput(); err != nil {
		t.Fatalf("build blocked.c: %v\n%s", err, text)
	}
	cmd := exec.Command(path, args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("blocked says %q: %v", line, err)
	}
	return uint32(cmd.Process.Pid)
}

// byName reads the threads of a process until all of them but those named
// otherwise wait.
func byName(t testing.TB, r *bpf.Threads, pid uint32, runs ...string) map[string]bpf.Thread {
	t.Helper()
	threads := map[string]bpf.Thread{}
	eventually(t, "threads that wait", func() bool {
		list, err := r.Read(pid)
		if err != nil {
			t.Fatal(err)
		}
		clear(threads)
		for _, th := range list {
			name := unix.ByteSliceToString(th.Name[:])
			threads[name] = th
			kind, _, _ := strings.Cut(name, "-")
			if th.State&3 == 0 && !slices.Contains(runs, kind) {
				return false
			}
		}
		return true
	})
	return threads
}

func TestThreadLayoutsAgree(t *testing.T) {
	const regs = 8 * (4 + 32)
	want := map[string]layout{
		"klp_thread": goLayout(bpf.Thread{}, map[string]string{
			"PID": "pid", "TID": "tid", "State": "state", "Flags": "flags", "Syscall": "syscall", "kernelFrames": "kernel_frames",
			"Switches": "switches", "Name": "comm", "Registers": "regs", "frames": "frames",
		}),
		"klp_regs": goLayout(bpf.Registers{}, map[string]string{"PC": "pc", "SP": "sp", "FP": "fp", "LR": "lr", "R": "r"}),
	}
	for _, object := range []string{"threads_x86_bpfel.o", "threads_arm64_bpfel.o"} {
		for name, w := range want {
			if diff := cmp.Diff(w, layoutOf(t, object, name)); diff != "" {
				t.Errorf("%s: %s (-Go +C):\n%s", object, name, diff)
			}
		}
	}
	// What Catch decodes by numbers. A ring buffer has no types: the same
	// structs are in the sampler's object.
	want = map[string]layout{
		"klp_copy": {96 + regs + 8 + 8*1152 + 65536, map[string]uint32{
			"header": 0, "regs": 96, "bytes": 96 + regs, "below": 96 + regs + 4, "frames": 96 + regs + 8, "stack": 96 + regs + 8 + 8*1152,
		}},
		"klp_header": {96, map[string]uint32{
			"kind": 0, "stop": 1, "flags": 2, "kernel_frames": 4, "user_frames": 6, "pid": 8, "tid": 12, "hash": 16,
			"ktime_ns": 24, "started_ns": 32, "cgroups": 40, "comm": 56, "thread": 72, "share": 88,
		}},
	}
	for _, object := range []string{"kalypso_x86_bpfel.o", "kalypso_arm64_bpfel.o"} {
		for name, w := range want {
			if diff := cmp.Diff(w, layoutOf(t, object, name)); diff != "" {
				t.Errorf("%s: %s (-Go +C):\n%s", object, name, diff)
			}
		}
	}
}

// TestReadThreads: every thread of the process and no other, with what it waits
// in, whether the kernel filters or the program does.
func TestReadThreads(t *testing.T) {
	const count = 60 // more than the 32 KiB that the kernel hands out at once
	pid := blocked(t, strconv.Itoa(count))
	syscalls := map[string][]int32{
		"futex": {unix.SYS_FUTEX}, "sleep": {unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP}, "read": {unix.SYS_READ},
		"epoll": {unix.SYS_EPOLL_PWAIT, 232}, // epoll_wait of x86-64
	}
	for _, unfiltered := range []bool{false, true} {
		t.Run(fmt.Sprintf("unfiltered %t", unfiltered), func(t *testing.T) {
			r := threads(t)
			if unfiltered {
				r.SetUnfiltered()
			}
			got := byName(t, r, pid)
			if len(got) != count+1 {
				t.Errorf("%d threads, want %d", len(got), count+1)
			}
			for name, th := range got {
				kind, _, found := strings.Cut(name, "-")
				if !found {
					kind = "read" // the main thread
				}
				comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/comm", pid, th.TID))
				if err != nil || strings.TrimSpace(string(comm)) != name {
					t.Errorf("thread %d is named %q, /proc says %q (%v)", th.TID, name, comm, err)
				}
				if th.PID != pid || th.Flags != bpf.ThreadInSyscall || th.State&1 == 0 || th.Switches == 0 {
					t.Errorf("%s: PID %d, flags %d, state %#x, %d switches", name, th.PID, th.Flags, th.State, th.Switches)
				}
				if !slices.Contains(syscalls[kind], th.Syscall) {
					t.Errorf("%s is in system call %d, want one of %v", name, th.Syscall, syscalls[kind])
				}
				if len(th.Kernel()) < 4 || th.Kernel()[0] < 1<<63 {
					t.Errorf("%s: kernel stack %#x", name, th.Kernel())
				}
				if sp := th.Registers.SP; sp == 0 || sp%8 != 0 || th.Registers.PC == 0 {
					t.Errorf("%s: PC %#x, SP %#x", name, th.Registers.PC, sp)
				}
			}
		})
	}
}

func TestReadFiltersInTheKernel(t *testing.T) {
	r := threads(t)
	if _, err := r.Read(uint32(os.Getpid())); err != nil {
		t.Fatal(err)
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	if can := major > 6 || major == 6 && minor >= 1; r.Unfiltered() == can {
		t.Errorf("Linux %d.%d: the kernel filters: %t", major, minor, !r.Unfiltered())
	}
}

func TestReadOthers(t *testing.T) {
	r := threads(t)
	gone := exec.Command("/bin/true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	for _, pid := range []uint32{uint32(gone.Process.Pid), math.MaxInt32} {
		if got, err := r.Read(pid); err != nil || len(got) != 0 {
			t.Errorf("PID %d, which is not there, has %d threads (%v)", pid, len(got), err)
		}
	}
	if comm, err := os.ReadFile("/proc/2/comm"); err == nil && string(comm) == "kthreadd\n" {
		got, err := r.Read(2)
		if err != nil || len(got) != 1 || got[0].Flags != bpf.ThreadNoUser || got[0].Registers.PC != 0 || len(got[0].Kernel()) == 0 {
			t.Errorf("the kernel thread 2 is %+v (%v)", got, err)
		}
	}
	// A process that ended and was not waited for.
	zombie := as("wait")
	in, err := zombie.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := zombie.Start(); err != nil {
		t.Fatal(err)
	}
	_ = in.Close()
	eventually(t, "a zombie", func() bool {
		got, err := r.Read(uint32(zombie.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(got) == 1 && got[0].State&0x20 != 0 && got[0].Flags&bpf.ThreadNoUser != 0
	})
	_ = zombie.Wait()
}

// TestSwitchesTellWhoRan: what the dump's belief in a stack rests on.
func TestSwitchesTellWhoRan(t *testing.T) {
	r := threads(t)
	pid := blocked(t, "-wake", "1000", "4")
	before := byName(t, r, pid, "sleep")
	eventually(t, "the sleeper to run", func() bool {
		return byName(t, r, pid, "sleep")["sleep-1"].Switches > before["sleep-1"].Switches+5
	})
	for name, now := range byName(t, r, pid, "sleep") {
		was := before[name]
		if waits := name != "sleep-1"; waits && (now.Switches != was.Switches || now.Registers != was.Registers) {
			t.Errorf("%s waits, and left a CPU %d times, then %d", name, was.Switches, now.Switches)
		}
	}
}

// TestReadMissesNoThread: the kernel's own filter ends at a thread that ends
// while it is there; threads that stay are seen all the same.
func TestReadMissesNoThread(t *testing.T) {
	const count = 40
	r := threads(t)
	pid := blocked(t, "-brief", strconv.Itoa(25*count), strconv.Itoa(count))
	for others := 1; others > 0; {
		got, err := r.Read(pid)
		if err != nil {
			t.Fatal(err)
		}
		stay, seen := 0, map[uint32]bool{}
		for _, th := range got {
			if seen[th.TID] {
				t.Fatalf("thread %d comes twice", th.TID)
			}
			seen[th.TID] = true
			if strings.Contains(unix.ByteSliceToString(th.Name[:]), "-") {
				stay++
			}
		}
		if stay != count {
			t.Fatalf("%d of the %d threads that stay", stay, count)
		}
		others = len(got) - count - 1
	}
}

func TestCatch(t *testing.T) {
	r := threads(t)
	pid := blocked(t, "-spin", "2", "4")
	all := byName(t, r, pid, "spin")
	var tids []uint32
	for _, th := range all {
		tids = append(tids, th.TID)
	}
	tids = append(tids, math.MaxInt32) // not there
	got := map[uint32]bpf.Caught{}
	eventually(t, "both threads that run", func() bool {
		caught, err := r.Catch(tids, 200*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range caught {
			got[c.TID] = c
		}
		return len(got) >= 2
	})
	for name, th := range all {
		c, ok := got[th.TID]
		if spins := strings.HasPrefix(name, "spin"); spins != ok {
			t.Errorf("%s was caught: %t", name, ok)
		} else if ok && (!c.Exact || c.Stop != 0 || len(c.Stack) < 1000 || c.Registers.SP == 0) {
			t.Errorf("%s: exact %t, stop %d, %d bytes of stack at %#x", name, c.Exact, c.Stop, len(c.Stack), c.Registers.SP)
		}
	}
	began := time.Now()
	if caught, err := r.Catch([]uint32{all["futex-0"].TID}, 50*time.Millisecond); err != nil || len(caught) != 0 {
		t.Errorf("a thread that waits was caught: %v (%v)", caught, err)
	}
	if took := time.Since(began); took < 40*time.Millisecond || took > 5*time.Second {
		t.Errorf("waited %s for a thread that does not run, want about 50 ms", took)
	}
}
