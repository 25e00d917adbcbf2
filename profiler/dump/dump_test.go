package dump_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/bpf/bpftest"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/dump"
	"github.com/kalypso-dev/kalypso/profiler/lang"
	"github.com/kalypso-dev/kalypso/profiler/lang/golang"
	"github.com/kalypso-dev/kalypso/profiler/lang/native"
	"github.com/kalypso-dev/kalypso/profiler/symbolize"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// kernelNames are read once for all tests.
var kernelNames = sync.OnceValues(symbolize.LoadKernel)

// config reports what costs precision as an error of the test.
func config(t testing.TB) dump.Config {
	t.Helper()
	bpftest.Require(t)
	names, err := kernelNames()
	if err != nil {
		t.Fatal(err)
	}
	return dump.Config{
		Runtimes: []lang.Runtime{golang.Runtime{}, native.Runtime{}}, Kernel: true, KernelNames: names,
		OpenPerfMap: func(pid profiler.PID, root string) (lang.Instance, error) { return native.OpenPerfMap(pid, root) },
		Failed:      func(err error) { t.Error(err) },
	}
}

func threads(t testing.TB, cfg dump.Config, pid profiler.PID) []dump.Thread {
	t.Helper()
	got, err := dump.Threads(context.Background(), cfg, pid)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

const workloads = "../../test/workloads/"

// build makes a workload: optimised C without frame pointers, and Go.
func build(t testing.TB, name string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), filepath.Base(name))
	cmd := exec.Command("gcc", "-O2", "-g", "-fomit-frame-pointer", "-fno-optimize-sibling-calls", "-pthread", "-o", out, workloads+name+".c")
	if _, err := os.Stat(workloads + name); err == nil {
		cmd = exec.Command("go", "build", "-o", out, "github.com/kalypso-dev/kalypso/test/workloads/"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	}
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, text)
	}
	return out
}

// start runs a program until the test ends; it has written a line when this
// returns.
func start(t testing.TB, path string, args ...string) profiler.PID {
	t.Helper()
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
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("%s says %q: %v", path, line, err)
	}
	return profiler.PID(cmd.Process.Pid)
}

// settled dumps until every thread waits, but those named otherwise.
func settled(t testing.TB, cfg dump.Config, pid profiler.PID, runs ...string) []dump.Thread {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		got := threads(t, cfg, pid)
		awake := slices.IndexFunc(got, func(th dump.Thread) bool {
			return !slices.Contains(runs, kind(th)) && (th.State == dump.Running || th.State == dump.Runnable)
		})
		if awake < 0 {
			return got
		}
		if time.Now().After(deadline) {
			t.Fatalf("thread %s still runs after 10 s", got[awake].Name)
		}
	}
}

// kind is the way in which a thread of the workload waits, by its name.
func kind(th dump.Thread) string {
	word, _, _ := strings.Cut(th.Name, "-")
	return word
}

// functions are the user functions of a stack, root first, and what follows
// them in kernel mode.
func functions(st *profiler.Stack) (user, kernel []string) {
	for _, l := range slices.Backward(st.Locations) {
		for _, f := range slices.Backward(l.Frames) {
			if f.Kind == profiler.KindKernel {
				kernel = append(kernel, f.Function)
			} else {
				user = append(user, profiler.FrameName(l, &f))
			}
		}
	}
	return user, kernel
}

// chain is what a thread of the workload "blocked" runs at a depth, from its
// function on.
func chain(way string, depth int) []string {
	names := []string{"worker"}
	for level := 40 - depth; level < 40; level++ {
		names = append(names, fmt.Sprintf("level_%02d", level))
	}
	if way != "spin" {
		way = "wait_" + way
	}
	return append(names, "bottom", way)
}

// depth is how deep a thread of the workload waits, by its name.
func depth(t testing.TB, th dump.Thread) int {
	t.Helper()
	_, number, _ := strings.Cut(th.Name, "-")
	n, err := strconv.Atoi(number)
	if err != nil {
		t.Fatalf("a thread is named %q", th.Name)
	}
	return 20 + n%21
}

// between cuts names to those from one to another.
func between(names []string, from, to string) []string {
	first, last := slices.Index(names, from), slices.Index(names, to)
	if first < 0 || last < first {
		return names
	}
	return names[first : last+1]
}

// checkBlocked compares one thread of the workload with the truth.
func checkBlocked(t testing.TB, th dump.Thread, depth int) {
	t.Helper()
	want := chain(kind(th), depth)
	user, _ := functions(th.Stack)
	if diff := cmp.Diff(between(user, "worker", want[len(want)-1]), want); diff != "" {
		t.Errorf("%s: functions, root first (-got +want):\n%s", th.Name, diff)
	}
	if th.Stack.Stop != profiler.StopRoot || slices.Index(user, "worker") == 0 {
		t.Errorf("%s: the stack ends with %s: %v", th.Name, th.Stack.Stop, user)
	}
}

func TestEveryThreadToItsRoot(t *testing.T) {
	cfg := config(t)
	pid := start(t, build(t, "blocked"), "-spin", "1", "24")
	got := settled(t, cfg, pid, "spin")
	if len(got) != 26 {
		t.Errorf("%d threads, want 26", len(got))
	}
	syscalls := map[string][]string{
		"futex": {"futex"}, "read": {"read"}, "epoll": {"epoll_wait", "epoll_pwait"},
		"sleep": {"clock_nanosleep", "nanosleep"}, "spin": {""},
	}
	inKernel := map[string]string{
		"futex": "futex", "read": "read", "epoll": "epoll_wait", "sleep": "nanosleep",
	}
	for i, th := range got {
		user, kernel := functions(th.Stack)
		if th.Changed {
			t.Errorf("%s ran whenever its stack was read", th.Name)
		}
		if i == 0 {
			if th.TID != profiler.TID(pid) || th.Name != "blocked" || th.Syscall != "read" || th.Stack.Stop != profiler.StopRoot {
				t.Errorf("the first is not the main thread: %+v", th)
			}
			if want := []string{"main", "join", "wait_input"}; !slices.Equal(between(user, "main", "wait_input"), want) {
				t.Errorf("the main thread runs %v, want among them %v", user, want)
			}
			continue
		}
		checkBlocked(t, th, depth(t, th))
		way := kind(th)
		if !slices.Contains(syscalls[way], th.Syscall) {
			t.Errorf("%s is in %q, want one of %q", th.Name, th.Syscall, syscalls[way])
		}
		if way == "spin" {
			if th.State != dump.Running && th.State != dump.Runnable {
				t.Errorf("%s is %s", th.Name, th.State)
			}
			continue
		}
		if th.State != dump.Sleeping || !strings.Contains(strings.Join(kernel, " "), inKernel[way]) {
			t.Errorf("%s is %s in the kernel's %v, want sleeping in …%s…", th.Name, th.State, kernel, inKernel[way])
		}
		if line := th.Stack.Locations[len(kernel)+2].Frames[0].Line; line == 0 {
			t.Errorf("%s: no line numbers", th.Name)
		}
	}
}

func TestWithoutKernelStacks(t *testing.T) {
	cfg := config(t)
	cfg.Kernel = false
	for _, th := range settled(t, cfg, start(t, build(t, "blocked"), "4"))[1:] {
		checkBlocked(t, th, depth(t, th))
		if _, kernel := functions(th.Stack); len(kernel) > 0 || th.Syscall == "" {
			t.Errorf("%s: kernel frames %v, system call %q", th.Name, kernel, th.Syscall)
		}
	}
}

func TestGoThreads(t *testing.T) {
	cfg := config(t)
	t.Setenv("GODEBUG", "asyncpreemptoff=1") // in its handler, a thread is on a stack of its own for microseconds
	pid := start(t, build(t, "goblocked"))
	levels := []string{"main.level1", "main.level2", "main.level3", "main.level4", "main.level5", "main.level6", "main.level7", "main.level8"}
	want := map[string][]string{
		"main.waitInput": append(append([]string{"runtime.main", "main.main"}, levels...), "main.waitInput"),
		"main.waitPipe":  append(append([]string{"main.main.func1"}, levels...), "main.main.func1.1", "main.waitPipe"),
		"main.waitSleep": append(append([]string{"main.main.func2"}, levels...), "main.waitSleep"),
		"main.leaf":      {"main.spin", "main.leaf"},
	}
	found := map[string]bool{}
	for deadline := time.Now().Add(10 * time.Second); len(found) < len(want) && time.Now().Before(deadline); {
		clear(found)
		for _, th := range threads(t, cfg, pid) {
			user, _ := functions(th.Stack)
			if th.Stack.Stop != profiler.StopRoot && !th.Changed {
				t.Errorf("thread %d ends with %s: %v", th.TID, th.Stack.Stop, user)
			}
			for name, functions := range want {
				if !slices.Contains(user, name) {
					continue
				}
				found[name] = true
				if diff := cmp.Diff(between(user, functions[0], name), functions); diff != "" {
					t.Errorf("functions, root first (-got +want):\n%s", diff)
				}
			}
		}
	}
	if len(found) < len(want) {
		t.Errorf("the threads in %v are missing, found %v", want, found)
	}
}

// TestThreadsThatWakeAreNotMixedUp: threads that run between any two looks, at
// changing depths, are shown whole or said to have changed, never with frames of
// two moments.
func TestThreadsThatWakeAreNotMixedUp(t *testing.T) {
	cfg := config(t)
	pid := start(t, build(t, "blocked"), "-wake", "20", "16")
	seen, changed := 0, 0
	depths := map[int]bool{}
	for range 20 {
		for _, th := range threads(t, cfg, pid)[1:] {
			if kind(th) != "sleep" {
				checkBlocked(t, th, depth(t, th))
				continue
			}
			seen++
			if th.Changed {
				changed++
				if th.Stack.Stop.Complete() {
					t.Errorf("%s changed, and its stack ends with %s", th.Name, th.Stack.Stop)
				}
				continue
			}
			checkMoving(t, th, depths)
		}
	}
	t.Logf("%d of %d changed, at depths %v", changed, seen, depths)
	if changed > seen/4 || len(depths) < 3 {
		t.Errorf("%d of %d stacks changed, the others are of the depths %v", changed, seen, depths)
	}
}

// checkMoving checks a thread that may be anywhere below its first function.
func checkMoving(t testing.TB, th dump.Thread, depths map[int]bool) {
	t.Helper()
	user, _ := functions(th.Stack)
	first := slices.IndexFunc(user, func(name string) bool { return strings.HasPrefix(name, "level_") })
	switch {
	case slices.Contains(user, "wait_sleep"):
		level, _ := strconv.Atoi(strings.TrimPrefix(user[max(first, 0)], "level_"))
		depths[40-level] = true
		checkBlocked(t, th, 40-level)
	case th.Stack.Stop != profiler.StopRoot || slices.Index(user, "worker") < 1:
		t.Errorf("%s: the stack ends with %s: %v", th.Name, th.Stack.Stop, user)
	}
}

// TestTheProcessIsNotStopped: whatever stops a thread that waits must wake it
// first, and it would count that.
func TestTheProcessIsNotStopped(t *testing.T) {
	cfg := config(t)
	pid := start(t, build(t, "blocked"), "100")
	settled(t, cfg, pid)
	before := switches(t, pid)
	for range 5 {
		threads(t, cfg, pid)
	}
	if diff := cmp.Diff(switches(t, pid), before); diff != "" || len(before) != 101 {
		t.Errorf("%d threads ran because they were dumped (-after +before):\n%s", len(before), diff)
	}
}

// switches is how often each thread of a process was taken off a CPU.
func switches(t testing.TB, pid profiler.PID) map[string]string {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]string{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, counts[file], _ = strings.Cut(string(text), "\nvoluntary_ctxt_switches:")
	}
	return counts
}

func TestMainThreadThatEnded(t *testing.T) {
	cfg := config(t)
	pid := start(t, build(t, "blocked"), "-leave", "8")
	for deadline := time.Now().Add(10 * time.Second); ; {
		got := settled(t, cfg, pid)
		if got[0].State != dump.Zombie && time.Now().Before(deadline) {
			continue // on its way
		}
		if got[0].State != dump.Zombie || len(got[0].Stack.Locations) > 0 || !got[0].Stack.Stop.Complete() {
			t.Errorf("the main thread is %+v", got[0])
		}
		if len(got) != 9 {
			t.Errorf("%d threads, want 9", len(got))
		}
		for _, th := range got[1:] {
			checkBlocked(t, th, depth(t, th))
		}
		return
	}
}

func TestKernelThread(t *testing.T) {
	if comm, err := os.ReadFile("/proc/2/comm"); err != nil || string(comm) != "kthreadd\n" {
		t.Skip("no kernel threads in this PID namespace")
	}
	got := threads(t, config(t), 2)
	if len(got) != 1 || got[0].Name != "kthreadd" || got[0].Stack.Stop != profiler.StopNoUser {
		t.Fatalf("PID 2 is %+v", got)
	}
	if user, kernel := functions(got[0].Stack); len(user) > 0 || !slices.Contains(kernel, "kthreadd") {
		t.Errorf("it runs %v in user mode and %v in the kernel", user, kernel)
	}
}

// TestCompat: a 32-bit process has no stack that we can walk, and says so.
func TestCompat(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("32-bit programs are made for x86")
	}
	cfg := config(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "compat")
	// write(1, "\n", 1), then pause(), by the numbers of 32-bit system calls.
	const source = `
	.globl _start
_start:	movl $4, %eax
	movl $1, %ebx
	movl $line, %ecx
	movl $1, %edx
	int $0x80
again:	movl $29, %eax
	int $0x80
	jmp again
	.data
line:	.ascii "\n"
`
	if err := os.WriteFile(path+".s", []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"as", "--32", "-o", path + ".o", path + ".s"}, {"ld", "-m", "elf_i386", "-o", path, path + ".o"}} {
		if text, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, text)
		}
	}
	got := settled(t, cfg, start(t, path))
	if len(got) != 1 || got[0].Stack.Stop != profiler.StopCompat || got[0].Syscall != "" {
		t.Fatalf("a 32-bit process is %+v", got)
	}
	if user, kernel := functions(got[0].Stack); len(user) > 0 || len(kernel) == 0 {
		t.Errorf("it runs %v in user mode and %v in the kernel", user, kernel)
	}
}

// TestMemoryThatCannotBeRead: a dump of a process whose memory makes the reader
// wait ends all the same, with what the kernel side knows.
func TestMemoryThatCannotBeRead(t *testing.T) {
	cfg := config(t)
	var failed []error
	cfg.Failed = func(err error) { failed = append(failed, err) }
	pid := start(t, build(t, "faulting"))
	began := time.Now()
	got := threads(t, cfg, pid)
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("it took %s", took)
	}
	if len(got) != 2 || len(failed) != 1 || !strings.Contains(failed[0].Error(), "could not be read within 2s") {
		t.Errorf("%d threads, and it said %v", len(got), failed)
	}
	for _, th := range got {
		if user, kernel := functions(th.Stack); len(user) > 0 || len(kernel) == 0 || th.Stack.Stop != profiler.StopBadRead {
			t.Errorf("%s: user %v, kernel %v, ends with %s", th.Name, user, kernel, th.Stack.Stop)
		}
	}
}

func TestFaults(t *testing.T) {
	cfg := config(t)
	gone := exec.Command("/bin/true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	pid := start(t, build(t, "blocked"), "1")
	thread := threads(t, cfg, pid)[1].TID
	for _, tt := range []struct {
		name     string
		pid      profiler.PID
		why, fix string
	}{
		{"PID 0 stands for no process", 0, "there is no such process", "pgrep -l NAME"},
		{"more than a PID can be", math.MaxUint32, "there is no such process", "pgrep -l NAME"},
		{"it ended", profiler.PID(gone.Process.Pid), "there is no such process", "pgrep -l NAME"},
		{"a thread leads to its process", profiler.PID(thread), fmt.Sprintf("it is a thread of PID %d", pid), fmt.Sprintf("dump -p %d ", pid)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := dump.Threads(context.Background(), cfg, tt.pid)
			var fault *profiler.Fault
			if errors.Is(err, unix.ESRCH) != (tt.why == "there is no such process") {
				t.Errorf("that there is none is not to be told from error %v", err)
			}
			if !errors.As(err, &fault) || fault.What != fmt.Sprintf("cannot dump PID %d", tt.pid) || fault.Why.Error() != tt.why || !strings.Contains(fault.Fix, tt.fix) {
				t.Errorf("%d threads, error %v", len(got), err)
			}
		})
	}
}

func TestCancelled(t *testing.T) {
	cfg := config(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if got, err := dump.Threads(ctx, cfg, profiler.PID(os.Getpid())); !errors.Is(err, context.Canceled) {
		t.Errorf("%d threads, error %v", len(got), err)
	}
}

// BenchmarkThreads is a dump of 501 threads, with the time to load everything.
func BenchmarkThreads(b *testing.B) {
	cfg := config(b)
	pid := start(b, build(b, "blocked"), "500")
	settled(b, cfg, pid)
	for b.Loop() {
		if got := threads(b, cfg, pid); len(got) != 501 {
			b.Fatalf("%d threads, want 501", len(got))
		}
	}
}
