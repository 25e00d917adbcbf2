package pipeline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/bpf/bpftest"
	"github.com/kalypso-dev/kalypso/profiler"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func number(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// spinner burns CPU time at the end of a chain of calls, in a named thread if
// one is wanted, and may fork while it runs.
const spinner = `
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile unsigned long sink;

__attribute__((noinline)) static int leaf(void)
{
	for (int i = 0; i < 1000000; i++)
		sink += i * i;
	return 1;
}

__attribute__((noinline)) int down(int depth)
{
	int r = depth > 1 ? down(depth - 1) : leaf();

	sink++;
	return r + 1;
}

static int depth;

static void *forever(void *name)
{
	if (name)
		pthread_setname_np(pthread_self(), name);
	for (;;)
		down(depth);
}

int main(int argc, char **argv)
{
	depth = atoi(argv[1]);
	prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that dies leaves nothing running */
	write(1, "\n", 1);
	if (argc > 2 && !strcmp(argv[2], "threads")) {
		pthread_t t;

		pthread_create(&t, 0, forever, "first-thread");
		pthread_create(&t, 0, forever, "second-thread");
		pthread_join(t, 0);
	}
	if (argc > 2 && !strcmp(argv[2], "fork"))
		for (;;) { /* one child at a time, or a slow machine drowns in them */
			if (!fork()) {
				for (int i = 0; i < 10; i++)
					down(depth);
				_exit(0);
			}
			wait(0);
			usleep(10000);
		}
	if (argc > 2 && !strcmp(argv[2], "syscalls"))
		for (;;)
			getppid();
	forever(0);
}
`

func compile(t *testing.T, name, source string, flags ...string) string {
	t.Helper()
	dir := t.TempDir()
	c, out := filepath.Join(dir, "x.c"), filepath.Join(dir, name)
	if err := os.WriteFile(c, []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"-O2", "-fno-optimize-sibling-calls", "-fomit-frame-pointer", "-pthread", "-o", out, c}, flags...)
	if text, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, text)
	}
	return out
}

// start runs a program until the test ends; it is in main when this returns.
func start(t *testing.T, path string, args ...string) profiler.PID {
	t.Helper()
	cmd := exec.Command(path, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return profiler.PID(cmd.Process.Pid)
}

// record records with these changes to a configuration that finds enough in
// little time.
func record(t *testing.T, change func(*Config)) (*profiler.Profile, *Cost) {
	t.Helper()
	cfg := Config{
		Runtimes: testRuntimes(), OpenPerfMap: openPerfMap, Frequency: 499, Duration: time.Second, Kernel: true,
		Failed: func(err error) {
			if !strings.Contains(err.Error(), "process events were lost") { // others may start programs faster than anybody reads
				t.Errorf("told of %v", err)
			}
		},
	}
	change(&cfg)
	p, cost, err := Record(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	q := &p.Quality
	var samples, stops uint64
	for _, s := range p.Samples {
		samples += s.Count
		for _, l := range s.Stack.Locations {
			if l.Module == nil || len(l.Frames) == 0 {
				t.Fatalf("location %+v has no module or no frames", l)
			}
		}
	}
	for _, n := range q.Stops {
		stops += n
	}
	if samples != q.Samples || stops != samples || q.Stops[profiler.StopNone] != 0 || uint64(len(p.Samples)) != q.DistinctStacks {
		t.Errorf("quality %+v of %d samples and %d reasons", q, samples, stops)
	}
	if q.Samples+q.Lost != cost.Counters.Samples {
		t.Errorf("%d samples and %d lost are not the %d that the kernel side took", q.Samples, q.Lost, cost.Counters.Samples)
	}
	if q.FramesNamed > q.Frames || p.Duration <= 0 || p.Frequency != cfg.Frequency || p.Event == "" || p.Host == "" {
		t.Errorf("profile %+v", *p)
	}
	if samples > 0 && (cost.RSSPeak == 0 || cost.MapBytes == 0 || cost.AgentCPU <= 0 || cost.FirstSample <= 0) {
		t.Errorf("cost %+v", *cost)
	}
	return p, cost
}

// by sums up samples by a property.
func by[K comparable](p *profiler.Profile, key func(*profiler.Sample) K) map[K]uint64 {
	m := map[K]uint64{}
	for i := range p.Samples {
		m[key(&p.Samples[i])] += p.Samples[i].Count
	}
	return m
}

func pidOf(s *profiler.Sample) profiler.PID { return s.Process.PID }

// depth is how many frames of a stack are those of down.
func depth(s *profiler.Sample) int {
	n := 0
	for _, l := range s.Stack.Locations {
		if l.Frames[len(l.Frames)-1].Function == "down" {
			n++
		}
	}
	return n
}

func inLeaf(s *profiler.Sample) bool {
	return slices.ContainsFunc(s.Stack.Locations, func(l *profiler.Location) bool {
		return l.Frames[len(l.Frames)-1].Function == "leaf"
	})
}

func TestRecordFilters(t *testing.T) {
	bpftest.Require(t)
	path := compile(t, "spinner", spinner)
	other := compile(t, "bystander", spinner)
	one, two := start(t, path, "40"), start(t, other, "40")

	t.Run("one process among others", func(t *testing.T) {
		p, _ := record(t, func(c *Config) { c.PIDs = []profiler.PID{one} })
		if pids := by(p, pidOf); len(pids) != 1 || pids[one] < 30 {
			t.Errorf("samples by PID %v, want only PID %d", pids, one)
		}
		for _, s := range p.Samples {
			if s.Process.Comm != "spinner" || s.Process.Exe != path || s.TID != 0 || s.Thread != "" {
				t.Fatalf("sample of %+v, thread %q", *s.Process, s.Thread)
			}
		}
		if q := p.Quality; float64(q.Complete()) < 0.95*float64(q.Samples) {
			t.Errorf("%d of %d stacks are complete: %v", q.Complete(), q.Samples, q.Stops)
		}
	})
	t.Run("two processes", func(t *testing.T) {
		p, _ := record(t, func(c *Config) { c.PIDs = []profiler.PID{one, two} })
		if pids := by(p, pidOf); len(pids) != 2 || pids[one] == 0 || pids[two] == 0 {
			t.Errorf("samples by PID %v", pids)
		}
	})
	t.Run("a name", func(t *testing.T) {
		p, _ := record(t, func(c *Config) { c.Comm = "bystander" })
		if names := by(p, func(s *profiler.Sample) string { return s.Process.Comm }); len(names) != 1 || names["bystander"] == 0 {
			t.Errorf("samples by name %v", names)
		}
	})
	t.Run("a cgroup and those below", func(t *testing.T) {
		dir := cgroup(t)
		inner := filepath.Join(dir, "inner")
		if err := os.Mkdir(inner, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(inner) })
		move := func(to string) {
			if err := os.WriteFile(filepath.Join(to, "cgroup.procs"), fmt.Append(nil, two), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		move(inner)
		t.Cleanup(func() { move(filepath.Dir(dir)) })
		p, _ := record(t, func(c *Config) { c.Cgroup, c.ByCgroup = dir, true })
		if pids := by(p, pidOf); len(pids) != 1 || pids[two] == 0 {
			t.Errorf("samples by PID %v, want PID %d, which is in the cgroup", pids, two)
		}
		if groups := by(p, func(s *profiler.Sample) string { return s.Process.Cgroup }); len(groups) != 1 {
			t.Errorf("cgroups %v", groups)
		}
	})
	t.Run("no such cgroup", func(t *testing.T) {
		_, _, err := Record(context.Background(), Config{Runtimes: testRuntimes(), OpenPerfMap: openPerfMap, Frequency: 97, Cgroup: "/no/such", Kernel: true})
		if err == nil || !strings.Contains(err.Error(), `cgroup "/no/such" not found`) {
			t.Errorf("error %v", err)
		}
	})
}

// cgroup makes one of version 2.
func cgroup(t *testing.T) string {
	t.Helper()
	hierarchy := ""
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err == nil {
			hierarchy = dir
		}
	}
	if hierarchy == "" {
		hierarchy = t.TempDir()
		if err := unix.Mount("cgroup2", hierarchy, "cgroup2", 0, ""); err != nil {
			unable(t, "mount cgroup2", err)
		}
		t.Cleanup(func() { _ = unix.Unmount(hierarchy, unix.MNT_DETACH) })
	}
	dir, err := os.MkdirTemp(hierarchy, "kalypso-test-")
	if err != nil {
		unable(t, "make a cgroup", err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) })
	return dir
}

// unable ends a test that this machine cannot run: it skips, or fails where
// nothing may be lacking. What no set-up can mend, a kernel without cgroup v2 or
// a hierarchy mounted read-only, is skipped there too.
func unable(t *testing.T, what string, err error) {
	t.Helper()
	if os.Getenv("KALYPSO_REQUIRE_BPF") == "1" && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EROFS) {
		t.Fatalf("KALYPSO_REQUIRE_BPF=1, and %s: %v", what, err)
	}
	t.Skipf("%s: %v", what, err)
}

func TestRecordKernelStacks(t *testing.T) {
	bpftest.Require(t)
	pid := start(t, compile(t, "spinner", spinner), "1", "syscalls")
	kernel := func(p *profiler.Profile) (n uint64) {
		for _, s := range p.Samples {
			if len(s.Stack.Locations) > 0 && s.Stack.Locations[0].Frames[0].Kind == profiler.KindKernel {
				n += s.Count
			}
		}
		return n
	}
	p, _ := record(t, func(c *Config) { c.PIDs = []profiler.PID{pid} })
	if kernel(p) == 0 {
		t.Error("no kernel frames in a process that does nothing but system calls")
	}
	p, _ = record(t, func(c *Config) { c.PIDs, c.Kernel = []profiler.PID{pid}, false })
	if n := kernel(p); n != 0 || p.Quality.Samples == 0 {
		t.Errorf("%d of %d samples have kernel frames where none are wanted", n, p.Quality.Samples)
	}
}

func TestRecordByThread(t *testing.T) {
	bpftest.Require(t)
	pid := start(t, compile(t, "spinner", spinner), "5", "threads")
	p, _ := record(t, func(c *Config) { c.PIDs, c.ByThread = []profiler.PID{pid}, true })
	names := by(p, func(s *profiler.Sample) string {
		if s.TID == 0 {
			t.Fatalf("sample %+v has no thread", s)
		}
		return s.Thread
	})
	if names["first-thread"] == 0 || names["second-thread"] == 0 {
		t.Errorf("samples by thread %v", names)
	}
}

func TestRecordFollowsChildren(t *testing.T) {
	bpftest.Require(t)
	pid := start(t, compile(t, "spinner", spinner), "10", "fork")
	p, _ := record(t, func(c *Config) { c.PIDs, c.Duration = []profiler.PID{pid}, 1500*time.Millisecond })
	pids := by(p, pidOf)
	delete(pids, pid)
	if len(pids) < 5 {
		t.Errorf("%d children were sampled, want some twenty: %v", len(pids), pids)
	}
	whole := uint64(0)
	for i := range p.Samples {
		if depth(&p.Samples[i]) == 10 {
			whole += p.Samples[i].Count
		}
	}
	if q := p.Quality; float64(whole) < 0.8*float64(q.Samples) {
		t.Errorf("%d of %d samples have the whole chain: %v", whole, q.Samples, q.Stops)
	}
}

func TestRecordEnds(t *testing.T) {
	bpftest.Require(t)
	path := compile(t, "spinner", spinner)
	cfg := Config{Runtimes: testRuntimes(), OpenPerfMap: openPerfMap, Frequency: 499, Duration: time.Minute}

	t.Run("with the process, though nobody waits for it", func(t *testing.T) {
		cmd := exec.Command(path, "3")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = cmd.Wait() }()
		cfg := cfg
		cfg.Started = func() error {
			time.AfterFunc(time.Second, func() { _ = cmd.Process.Kill() })
			return nil
		}
		cfg.PIDs, cfg.UntilGone = []profiler.PID{profiler.PID(cmd.Process.Pid)}, true
		p, _, err := Record(context.Background(), cfg)
		if err != nil || p.Quality.Samples == 0 {
			t.Fatalf("%+v, %v: want what was recorded until then", p, err)
		}
		if p.Duration > 20*time.Second {
			t.Errorf("recorded for %s", p.Duration)
		}
	})
	t.Run("with the context", func(t *testing.T) {
		pid := start(t, path, "3")
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		cfg := cfg
		var progress atomic.Int32
		cfg.PIDs = []profiler.PID{pid}
		cfg.Progress = func(Progress) { progress.Add(1) }
		p, _, err := Record(ctx, cfg)
		if err != nil || p.Quality.Samples == 0 || p.Duration > 20*time.Second {
			t.Errorf("%+v, %v", p, err)
		}
		if progress.Load() == 0 {
			t.Error("no word of progress")
		}
	})
	t.Run("before it begins", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if p, _, err := Record(ctx, cfg); err != nil || p == nil {
			t.Errorf("%v, %v: want an empty profile", p, err)
		}
	})
	t.Run("when it cannot start", func(t *testing.T) {
		cfg := cfg
		want := fmt.Errorf("no")
		cfg.Started = func() error { return want }
		if p, _, err := Record(context.Background(), cfg); err == nil || !strings.Contains(err.Error(), "no") || p != nil {
			t.Errorf("%v, %v", p, err)
		}
	})
}

// TestRecordWithTailCalls walks as on kernels before 5.17.
func TestRecordWithTailCalls(t *testing.T) {
	bpftest.Require(t)
	path := compile(t, "spinner", spinner)
	shallow, deep := start(t, path, "40"), start(t, path, "900")
	p, _ := record(t, func(c *Config) { c.PIDs, c.TailCalls = []profiler.PID{shallow, deep}, true })
	var whole, all, cut uint64
	for i := range p.Samples {
		s := &p.Samples[i]
		switch {
		case s.Process.PID == shallow:
			all += s.Count
			if s.Stack.Stop.Complete() && depth(s) == 40 {
				whole += s.Count
			}
		case s.Stack.Stop == profiler.StopTruncated:
			cut += s.Count
		// On its way down and up again the program has fewer calls.
		case s.Stack.Stop.Complete() && inLeaf(s) && depth(s) < 900:
			t.Fatalf("a stack of 900 calls is shown as complete with %d", depth(s))
		}
	}
	if all == 0 || float64(whole) < 0.95*float64(all) {
		t.Errorf("%d of %d stacks of 40 calls are whole: %v", whole, all, p.Quality.Stops)
	}
	if cut == 0 {
		t.Errorf("no stack of 900 calls is marked as truncated: %v", p.Quality.Stops)
	}
}

// spread gives a program of functions that fill a page of code each, without
// libc: some 30 rows a page. What fills the page lies within a function, so
// that it has unwind information.
func spread(pages int) string {
	var b strings.Builder
	b.WriteString("#ifdef __x86_64__\n#define JUMP \"jmp\"\n#else\n#define JUMP \"b\"\n#endif\n")
	b.WriteString("typedef long fn(int, int);\nextern fn *table[];\nvolatile long sink;\n")
	b.WriteString("__attribute__((noinline)) long spin(void) { for (int i = 0; i < 3000000; i++) sink += i; return sink; }\n")
	for i := range pages {
		fmt.Fprintf(&b, "__attribute__((noinline, aligned(65536))) long f%d(int i, int d) { __asm__ volatile(JUMP \" 1f\\n.skip 56000\\n1:\"); long r = d ? table[(i + 1) %% %d]((i + 1) %% %d, d - 1) : spin(); sink++; return r + d; }\n", i, pages, pages)
		for j := range 8 {
			fmt.Fprintf(&b, "__attribute__((noinline, used)) long g%d_%d(long x) { long a = f%d(x, 1), b = f%d(x + a, 2); return a * b * x; }\n", i, j, i, i)
		}
	}
	b.WriteString("fn *table[] = {")
	for i := range pages {
		fmt.Fprintf(&b, "f%d,", i)
	}
	fmt.Fprintf(&b, "};\n__attribute__((used)) void run(void) { for (int i = 0;; i = (i + 17) %% %d) table[i](i, 10); }\n", pages)
	// The outermost frame says so, as libc's _start does.
	b.WriteString("#ifdef __x86_64__\n__asm__(\".globl _start\\n_start: .cfi_startproc\\n.cfi_undefined rip\\ncall run\\nhlt\\n.cfi_endproc\\n\");\n")
	b.WriteString("#else\n__asm__(\".globl _start\\n_start: .cfi_startproc\\n.cfi_undefined x30\\nbl run\\nbrk 1\\n.cfi_endproc\\n\");\n#endif\n")
	return b.String()
}

// TestRecordWithFewRows: the table of unwind rows holds a third of what the
// program needs, all the time.
func TestRecordWithFewRows(t *testing.T) {
	bpftest.Require(t)
	path := compile(t, "spread", spread(100), "-nostdlib", "-static", "-fno-toplevel-reorder", "-fno-stack-protector")
	cmd := exec.Command(path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	p, cost := record(t, func(c *Config) {
		pid := profiler.PID(cmd.Process.Pid)
		c.PIDs, c.Rows, c.Frequency, c.Duration, c.Kernel = []profiler.PID{pid}, 1024, 99, time.Minute, false
		c.UntilGone = true
		c.Started = func() error {
			go func() {
				for end := cpuTimeOf(t, pid) + 3*time.Second; cpuTimeOf(t, pid) < end; time.Sleep(50 * time.Millisecond) {
				}
				_ = cmd.Process.Kill()
			}()
			return nil
		}
	})
	t.Logf("%+v", cost.Table)
	if q := p.Quality; q.Samples < 60 || float64(q.Complete()) < 0.95*float64(q.Samples) {
		t.Errorf("%d of %d stacks are complete: %v", q.Complete(), q.Samples, q.Stops)
	}
	if st := cost.Table; st.PagesEvicted == 0 || st.Rows > 1024 || st.PagesRefused != 0 {
		t.Errorf("table %+v: want pages to make room for others", st)
	}
	functions := by(p, func(s *profiler.Sample) string {
		if len(s.Stack.Locations) < 2 {
			return ""
		}
		return s.Stack.Locations[1].Frames[0].Function
	})
	delete(functions, "")
	if len(functions) < 50 {
		t.Errorf("only %d of 100 functions were seen", len(functions))
	}
	if cost.RSSPeak > 300<<20 {
		t.Errorf("%d MiB resident", cost.RSSPeak>>20)
	}
}

func TestPerfMaps(t *testing.T) {
	var opened []profiler.PID
	m := newPerfMaps(
		func(pid profiler.PID) string {
			if pid == 3 {
				return "" // its root was never seen
			}
			return "/root"
		},
		func(pid profiler.PID, root string) (PerfMap, error) {
			opened = append(opened, pid)
			if pid == 2 {
				return nil, os.ErrNotExist
			}
			return ownPerfMap(t), nil
		})
	for range maxTries + 5 {
		for pid := range profiler.PID(3) {
			m.add(pid + 1)
		}
		m.refresh()
	}
	if n := len(slices.DeleteFunc(slices.Clone(opened), func(p profiler.PID) bool { return p != 2 })); n != maxTries {
		t.Errorf("a map that does not exist was looked for %d times, want %d", n, maxTries)
	}
	if n := len(opened) - maxTries; n != 1 {
		t.Errorf("a map that exists was opened %d times", n)
	}
	if m.instance(1) == nil || m.instance(2) != nil || m.instance(3) != nil || m.instance(4) != nil {
		t.Error("maps of other processes")
	}
	m.close()
}

// ownPerfMap gives a perf map of this very process.
func ownPerfMap(t *testing.T) PerfMap {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "tmp"), 0o777); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(root, "tmp", fmt.Sprintf("perf-%d.map", os.Getpid()))
	if err := os.WriteFile(file, []byte("1000 10 name\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	pm, err := openPerfMap(profiler.PID(os.Getpid()), root)
	if err != nil {
		t.Fatal(err)
	}
	return pm
}
