// Package kernels boots other kernels than this machine's in an emulator,
// records programs with known answers there, and runs the tests of what runs in
// the kernel: what the verifier of an old kernel refuses, and what arm64 does
// otherwise, shows nowhere else.
//
// KALYPSO_KERNELS names the folder of kernels, vmlinuz-RELEASE-ARCH, as
// scripts/kernels fills it; "make test-kernels" does all of it.
package kernels

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/test/kernels/guest"
)

const (
	// The default.
	hertz      = "97"
	cpuSeconds = "3"
	runSeconds = 120 // by the machine's clock, ten times what it takes
	// A machine takes two to four minutes of a core.
	machineTime = 20 * time.Minute

	sharePoints = 5.0  // a branch's share may differ from the truth by so many points
	chainMin    = 0.99 // of a branch's samples have the whole chain, root reached
	wholeMin    = 0.98 // of all samples reach the root: starting a program is long here, and exec cuts some
	samplesMin  = 240  // of the 291 that 3 seconds at 97 Hz give
)

// machine is the emulator for an architecture in Go's words.
func machine(arch, kernel string) []string {
	if arch == "amd64" {
		return []string{"qemu-system-x86_64", "-M", "q35", "-cpu", "max", "-append", "console=ttyS0 panic=-1 loglevel=4" + length(kernel)}
	}
	// Pointer authentication by an algorithm of the emulator's own: the
	// architected one takes most of the time. One kernel has hardware counters
	// to sample by, which no emulated amd64 has; the others have none.
	cpu := "max,pauth-impdef=on"
	if !strings.Contains(kernel, "vmlinuz-6.12.") {
		cpu += ",pmu=off"
	}
	return []string{"qemu-system-aarch64", "-M", "virt,gic-version=3", "-cpu", cpu, "-append", "console=ttyAMA0 panic=-1 loglevel=4" + length(kernel)}
}

// inLong tells whether a kernel does all runs. One that differs from another by the
// size of its pages does those that this can make a difference to.
func inLong(kernel string) bool { return !strings.Contains(kernel, "-16k-") }

// length is what the first process is told of it.
func length(kernel string) string {
	if inLong(kernel) {
		return " " + guest.LongRuns
	}
	return ""
}

// A workload is a program of test/workloads and what its recording must show.
type workload struct {
	name   string
	title  string
	arch   string              // the only one that it is for, or empty
	shares map[string]string   // name in the truth: a function that only this branch runs
	chains map[string][]string // by function: frames that must follow each other, root first
	whole  float64             // of a branch's samples and of all that must reach the root, when not chainMin and wholeMin
}

func levels() []string {
	names := []string{"_start", "*", "main", "run"}
	for i := 900 - 36; i < 900; i++ {
		names = append(names, fmt.Sprintf("level_%03d", i))
	}
	return append(names, "bottom")
}

func goLevels() []string {
	names := []string{"runtime.main", "main.main", "main.run"}
	for i := 1; i <= 8; i++ {
		names = append(names, fmt.Sprintf("main.level%d", i))
	}
	return names
}

func then(chain []string, names ...string) []string {
	return append(append([]string(nil), chain...), names...)
}

var own = map[string]string{"hot_60": "hot_60", "hot_30": "hot_30", "hot_10": "hot_10"}

var leaves = map[string]string{"hot_60": "leaf_60", "hot_30": "leaf_30", "hot_10": "leaf_10"}

func leafChains() map[string][]string {
	chains := map[string][]string{}
	for _, n := range []string{"60", "30", "10"} {
		chains["leaf_"+n] = []string{"_start", "*", "main", "run", "turn_" + n, "leaf_" + n}
	}
	return chains
}

const unnamed = "(anonymous namespace)::"

func cxxLevels() []string {
	names := []string{"_start", "*", "main", unnamed + "run"}
	for i := 11; i >= 0; i-- {
		names = append(names, fmt.Sprintf("%sLayer<%d>::step", unnamed, i))
	}
	return names
}

func rustLevels() []string {
	names := []string{"_start", "*", "main", "*", "chain::run"}
	for range 8 {
		names = append(names, "<chain::Above<T> as chain::Step>::step")
	}
	return append(names, "<chain::Bottom as chain::Step>::step")
}

var workloads = []workload{
	{
		name: "chain", title: "C, 40 frames, static", shares: own,
		chains: map[string][]string{
			"hot_60": then(levels(), "hot_60"), "hot_30": then(levels(), "hot_30"), "hot_10": then(levels(), "hot_10"),
		},
	},
	{
		name: "golang", title: "Go",
		shares: map[string]string{"hot60": "main.leaf60", "hot30": "main.inlinedInner", "hot10": "main.leaf10"},
		chains: map[string][]string{
			"main.leaf60":       then(goLevels(), "main.hot60", "main.leaf60"),
			"main.inlinedInner": then(goLevels(), "main.hot30", "main.inlinedOuter", "main.inlinedInner"),
			"main.leaf10":       {"main.(*worker).serve", "main.hot10.func1", "main.leaf10"},
		},
	},
	{
		// A copy of the stack, from which the first samples are unwound, holds
		// one stack, and the handlers run on another.
		name: "signals", title: "C, signal handlers on own stacks", shares: own, whole: 0.96,
		chains: map[string][]string{
			"hot_60": {"thread_main", "run", "raise_60", "*", "on_usr1", "hot_60"},
			"hot_30": {"thread_main", "run", "interrupted_30", "*", "on_alarm", "hot_30"},
			"hot_10": {"thread_main", "run", "raise_10", "*", "on_usr2", "*", "on_usr1_nested", "hot_10"},
		},
	},
	{
		name: "vdso", title: "C, in the vDSO", shares: own,
		chains: map[string][]string{
			"hot_60": {"main", "run", "hot_60"}, "hot_30": {"main", "run", "hot_30"}, "hot_10": {"main", "run", "hot_10"},
		},
	},
	{ // dynamically linked, the others are static
		name: "plt", title: "C, through the PLT, dynamic", shares: own,
		chains: map[string][]string{
			"hot_60": {"_start", "*", "main", "run", "hot_60"}, "hot_30": {"_start", "*", "main", "run", "hot_30"},
			"hot_10": {"_start", "*", "main", "run", "hot_10"},
		},
	},
	{
		name: "cxx", title: "C++, templates, inlined calls, exceptions in flight",
		shares: map[string]string{"hot_60": unnamed + "hot_60", "hot_30": unnamed + "hot_30", "hot_10": unnamed + "catch_10"},
		chains: map[string][]string{
			unnamed + "hot_60":   then(cxxLevels(), unnamed+"sort_60", "*", unnamed+"compare_60", unnamed+"hot_60", unnamed+"inlined_outer"),
			unnamed + "hot_30":   then(cxxLevels(), unnamed+"find_30", "*", unnamed+"compare_30", "*", unnamed+"hot_30", unnamed+"inlined_outer"),
			unnamed + "catch_10": then(cxxLevels(), unnamed+"catch_10"),
		},
	},
	{
		name: "rust", title: "Rust, generics, closures, inlined calls",
		shares: map[string]string{"hot_60": "chain::hot_60", "hot_30": "chain::hot_30", "hot_10": "chain::hot_10"},
		chains: map[string][]string{
			"chain::hot_60": then(rustLevels(), "<chain::Sixty as chain::Work>::work", "chain::hot_60", "chain::inlined_outer"),
			"chain::hot_30": then(rustLevels(), "chain::apply_30", "*", "chain::hot_30", "chain::inlined_outer"),
			"chain::hot_10": then(rustLevels(), "chain::sorted_10", "*", "chain::hot_10", "chain::inlined_outer"),
		},
	},
	{name: "leaf", title: "C, leaves without a frame", shares: leaves, chains: leafChains()},
	{name: "leaf-signed", title: "C, leaves with their return address signed, key B", arch: "arm64", shares: leaves, chains: leafChains()},
	{name: "leaf-records", title: "C, frame records and no .eh_frame", shares: leaves, chains: leafChains()},
}

// workloadsOf are those of an architecture that were built.
func workloadsOf(arch string, built map[string]bool) (list []workload) {
	for _, w := range workloads {
		if (w.arch == "" || w.arch == arch) && built[w.name] {
			list = append(list, w)
		}
	}
	return list
}

// runs is what each machine does: everything with bpf_loop, and with tail
// calls what shows that they walk.
func runs(list []workload) []guest.Run {
	out := []guest.Run{{
		Name: "doctor", Command: []string{"/bin/kalypso-agent", "doctor", "-o", "json"},
		Files: []string{"/proc/cpuinfo", "/proc/self/smaps"}, Seconds: runSeconds,
	}}
	for _, w := range list {
		out = append(out, guest.Run{
			Name: w.name,
			Command: []string{
				"/bin/kalypso-agent", "record", "-F", hertz, "--stats", "/tmp/" + w.name + ".json", "-o", "/tmp/" + w.name + ".folded",
				"--", "/bin/" + w.name, "-seconds", cpuSeconds,
			},
			Files: []string{"/tmp/" + w.name + ".json", "/tmp/" + w.name + ".folded"}, Seconds: runSeconds,
		})
	}
	for _, w := range list[:2] {
		file := "/tmp/" + tailCalls + w.name + ".folded"
		out = append(out, guest.Run{
			Name: tailCalls + w.name, Command: []string{"/init", "record-by-tail-calls", file, "/bin/" + w.name, "-seconds", cpuSeconds},
			Files: []string{file}, Seconds: runSeconds,
		})
	}
	file := "/tmp/" + byClock + "chain"
	out = append(out, guest.Run{
		Name: byClock + "chain",
		Command: []string{
			"/init", "without-cycles", "/bin/kalypso-agent", "record", "-F", hertz, "--stats", file + ".json", "-o", file + ".folded",
			"--", "/bin/chain", "-seconds", cpuSeconds,
		},
		Files: []string{file + ".json", file + ".folded"}, Seconds: runSeconds,
	})
	for _, program := range [][]string{{"/bin/blocked", "-spin", "1", "12"}, {"/bin/goblocked"}} {
		out = append(out, guest.Run{
			Name: "dump-" + filepath.Base(program[0]), Command: append([]string{"/init", "dump-of"}, program...), Seconds: runSeconds,
		})
	}
	for _, s := range suites {
		out = append(out, s.run())
	}
	return slices.DeleteFunc(out, func(r guest.Run) bool { return !regexp.MustCompile(*only).MatchString(r.Name) })
}

// What the names of recordings without bpf_loop begin with, and of those without
// hardware that counts cycles.
const (
	tailCalls = "tail-calls-"
	byClock   = "by-clock-"
)

func TestKernels(t *testing.T) {
	folder := os.Getenv("KALYPSO_KERNELS")
	if folder == "" {
		t.Skip("KALYPSO_KERNELS names no folder of kernels; make test-kernels fills one")
	}
	if runtime.GOARCH != "amd64" {
		t.Skip("the compilers that make test-kernels installs run on amd64")
	}
	var matrix results
	t.Cleanup(func() {
		if *update && *only == "" && !t.Failed() {
			matrix.write(t)
		}
	})
	for _, arch := range []string{"amd64", "arm64"} {
		kernels, err := filepath.Glob(filepath.Join(folder, "vmlinuz-*-"+arch))
		if err != nil {
			t.Fatal(err)
		}
		if len(kernels) == 0 {
			t.Errorf("no vmlinuz-*-%s in %s: run scripts/kernels %s", arch, folder, folder)
			continue
		}
		initramfs, list := buildInitramfs(t, arch, folder)
		for _, kernel := range kernels {
			name := strings.TrimPrefix(filepath.Base(kernel), "vmlinuz-")
			t.Run(name, func(t *testing.T) {
				t.Parallel() // for the same reason
				matrix.add(testKernel(t, arch, kernel, initramfs, list))
			})
		}
	}
}

// testKernel boots a machine and holds what it did to what it must do.
func testKernel(t *testing.T, arch, kernel, initramfs string, list []workload) outcome {
	out := outcome{Kernel: strings.TrimPrefix(filepath.Base(kernel), "vmlinuz-"), Arch: arch}
	start := time.Now()
	results, console := boot(t, arch, kernel, initramfs)
	t.Logf("%d results in %s", len(results), time.Since(start).Round(time.Second))
	t.Log(tableHeader)
	for _, r := range runs(list) {
		res := results[r.Name]
		switch {
		case r.Long && !inLong(kernel):
		case res == nil:
			t.Fatalf("%s: the machine ended without a result; its last words:\n%s", r.Name, console)
		case strings.HasPrefix(r.Name, suiteOf):
			out.Tests = append(out.Tests, checkSuite(t, res))
		case res.Error != "":
			t.Errorf("%s: %s\nstandard error:\n%s\nstandard output:\n%s", r.Name, res.Error, res.Stderr, res.Stdout)
		case r.Name == "doctor":
			out.Doctor = checkDoctor(t, res)
			checkMachine(t, kernel, arch, res)
		case strings.HasPrefix(r.Name, "dump-"):
			checkDump(t, res)
		default:
			out.Recordings = append(out.Recordings, checkRecording(t, &r, res))
		}
	}
	for _, f := range fallbacks {
		if *only == "" && !f.shown(&out) {
			t.Errorf("it was not shown what is done without %s", f.without)
		}
	}
	return out
}

// checkMachine wants the machine to have what its tests are about: return addresses
// that are signed, and pages of the size that the kernel's name says.
func checkMachine(t *testing.T, kernel, arch string, res *guest.Result) {
	if arch == "arm64" {
		for _, feature := range []string{" paca ", " bti "} {
			if !strings.Contains(strings.ReplaceAll(res.Files["/proc/cpuinfo"], "\n", " "), feature) {
				t.Errorf("the machine does not have%s: %s", feature, res.Files["/proc/cpuinfo"])
			}
		}
	}
	size := "4"
	if strings.Contains(kernel, "-16k-") {
		size = "16"
	}
	if !regexp.MustCompile(`KernelPageSize: +` + size + ` kB`).MatchString(res.Files["/proc/self/smaps"]) {
		t.Errorf("pages are not of %s KiB:\n%s", size, res.Files["/proc/self/smaps"])
	}
}

// checkDoctor wants everything to work that profiling needs, and gives the checks
// that passed.
func checkDoctor(t *testing.T, res *guest.Result) (passed []string) {
	var report struct {
		Healthy bool `json:"healthy"`
		Checks  []struct {
			ID, State, Severity, Detail string
		} `json:"checks"`
	}
	if err := json.Unmarshal([]byte(res.Stdout), &report); err != nil {
		t.Errorf("doctor: %v\n%s", err, res.Stdout)
		return nil
	}
	if !report.Healthy || len(report.Checks) == 0 {
		t.Errorf("doctor says that profiling will not work")
	}
	for _, c := range report.Checks {
		if c.State == "failed" && c.Severity != "note" {
			t.Errorf("doctor: %s: %s", c.ID, c.Detail)
		}
		if c.State == "passed" {
			passed = append(passed, c.ID)
		}
	}
	return passed
}

// dumpChains are functions that must follow each other in some thread of a
// dump, root first, with what the thread waits in.
var dumpChains = map[string][]struct {
	syscalls []string // "": it runs
	chain    []string
}{
	"dump-blocked": {
		{[]string{"futex"}, then(blockedLevels(20), "wait_futex")},
		{[]string{"nanosleep", "clock_nanosleep"}, then(blockedLevels(21), "wait_sleep")},
		{[]string{"read"}, then(blockedLevels(22), "wait_read")},
		{[]string{"epoll_wait", "epoll_pwait"}, then(blockedLevels(23), "wait_epoll")},
		{[]string{"futex"}, then(blockedLevels(28), "wait_futex")},
		{[]string{""}, then(blockedLevels(32), "spin")},
		{[]string{"read"}, []string{"main", "join", "wait_input"}},
	},
	"dump-goblocked": {
		{[]string{"read"}, then(goChain("runtime.main", "main.main"), "main.waitInput")},
		{[]string{"read"}, then(goChain("main.main.func1"), "main.main.func1.1", "main.waitPipe")},
		{[]string{"nanosleep"}, then(goChain("main.main.func2"), "main.waitSleep")},
		{[]string{""}, []string{"main.spin", "main.leaf"}},
	},
}

func blockedLevels(depth int) []string {
	names := []string{"worker"}
	for level := 40 - depth; level < 40; level++ {
		names = append(names, fmt.Sprintf("level_%02d", level))
	}
	return append(names, "bottom")
}

func goChain(first ...string) []string {
	for i := 1; i <= 8; i++ {
		first = append(first, fmt.Sprintf("main.level%d", i))
	}
	return first
}

// checkDump wants every stack whole, and the threads of the truth among them.
func checkDump(t *testing.T, res *guest.Result) {
	var report struct {
		Threads []struct {
			Name, State, Syscall, Stop string
			Complete, Changed          bool
			Frames                     []struct{ Kind, Function string }
		}
	}
	if err := json.Unmarshal([]byte(res.Stdout), &report); err != nil {
		t.Errorf("%s: %v\n%s", res.Name, err, res.Stdout)
		return
	}
	if res.Stderr != "" {
		t.Errorf("%s says\n%s", res.Name, res.Stderr)
	}
	want := slices.Clone(dumpChains[res.Name])
	complete := 0
	for _, th := range report.Threads {
		var frames []string
		for _, f := range slices.Backward(th.Frames) {
			frames = append(frames, f.Function)
		}
		switch {
		case th.Complete:
			complete++
		case th.Changed: // it ran each time that it was looked at, as it may where a CPU is emulated; the dump says so
			t.Logf("%s: %q, %s in %q, ran whenever its stack was read", res.Name, th.Name, th.State, th.Syscall)
		default:
			t.Errorf("%s: %q, %s in %q, ends with %s: %v", res.Name, th.Name, th.State, th.Syscall, th.Stop, frames)
		}
		// What runs may do so in user mode: Go's monitor, too.
		if th.State != "running" && !th.Changed && (len(th.Frames) == 0 || th.Frames[0].Kind != "kernel") {
			t.Errorf("%s: %q, %s in %q, has no kernel stack: %v", res.Name, th.Name, th.State, th.Syscall, frames)
		}
		for i := range want {
			if slices.Contains(want[i].syscalls, th.Syscall) && has(frames, want[i].chain) {
				want = slices.Delete(want, i, i+1)
				break
			}
		}
	}
	for _, w := range want {
		t.Errorf("%s: no thread in %q runs %v\n%s", res.Name, w.syscalls, w.chain, res.Stdout)
	}
	t.Logf("%-19s %d of %d stacks whole, in %.2f s", res.Name, complete, len(report.Threads), res.Seconds)
}

const tableHeader = "run                 event      samples  points  chain %  whole %"

// checkRecording holds a recording to the truth that its program printed.
func checkRecording(t *testing.T, r *guest.Run, res *guest.Result) (out recording) {
	name, byTailCalls := strings.CutPrefix(r.Name, tailCalls)
	name, withoutCycles := strings.CutPrefix(name, byClock)
	w := &workloads[slices.IndexFunc(workloads, func(w workload) bool { return w.name == name })]
	out.Name, out.Title = r.Name, w.title
	if byTailCalls {
		out.Title += ", by tail calls"
	}
	if withoutCycles {
		out.Title += ", without the counter of cycles"
	}
	if strings.Contains(res.Stderr, "warning:") {
		t.Errorf("%s warns:\n%s", r.Name, res.Stderr)
	}
	var truth struct {
		CPUSeconds float64            `json:"cpu_seconds"`
		Shares     map[string]float64 `json:"shares"`
	}
	for line := range strings.Lines(res.Stdout) {
		if strings.HasPrefix(line, `{"cpu_seconds"`) {
			if err := json.Unmarshal([]byte(line), &truth); err != nil {
				t.Errorf("%s: %v", r.Name, err)
			}
		}
	}
	if len(truth.Shares) == 0 {
		t.Errorf("%s did not print its truth:\n%s", r.Name, res.Stdout)
		return out
	}
	var stacks []stack
	stats := struct {
		Event   string `json:"event"`
		Samples uint64 `json:"samples"`
		Lost    uint64 `json:"lost"`
	}{Event: "-"}
	for _, name := range r.Files {
		text, ok := res.Files[name]
		if !ok {
			t.Errorf("%s did not write %s\n%s", r.Name, name, res.Stderr)
			return out
		}
		var err error
		if strings.HasSuffix(name, ".json") {
			err = json.Unmarshal([]byte(text), &stats)
		} else {
			stacks, err = parseFolded(text)
		}
		if err != nil {
			t.Errorf("%s: %s: %v", r.Name, name, err)
			return out
		}
	}
	if withoutCycles && stats.Event != "cpu-clock" {
		t.Errorf("%s: sampled by %s", r.Name, stats.Event)
	}
	if stats.Lost != 0 {
		t.Errorf("%s: lost %d samples", r.Name, stats.Lost)
	}

	var all, whole, hot, complete int
	in := map[string]int{}
	var bad []string
	note := func(why string, s *stack) {
		if len(bad) < 12 {
			bad = append(bad, fmt.Sprintf("  %s: %d x %s", why, s.count, s))
		}
	}
	for i := range stacks {
		s := &stacks[i]
		all += s.count
		if s.marker == "" {
			whole += s.count
		} else {
			note("cut", s)
		}
		for fn, want := range w.chains {
			if !s.runs(fn) {
				continue
			}
			hot += s.count
			in[fn] += s.count
			if s.marker == "" && has(s.frames, want) {
				complete += s.count
			} else if s.marker == "" {
				note("not the chain", s)
			}
		}
	}
	worst := 0.0
	if hot < samplesMin {
		t.Errorf("%s: %d samples in %.1f CPU seconds", r.Name, hot, truth.CPUSeconds)
	} else {
		for name, fn := range w.shares {
			got := float64(in[fn]) / float64(hot)
			worst = max(worst, 100*math.Abs(got-truth.Shares[name]))
			if worst > sharePoints {
				t.Errorf("%s: %s has %.1f %% of the samples and %.1f %% of the time", r.Name, fn, 100*got, 100*truth.Shares[name])
			}
		}
	}
	out.Event, out.Samples, out.Points, out.Chain, out.Whole = stats.Event, all, tenth(worst), tenth(percent(complete, hot)), tenth(percent(whole, all))
	t.Logf("%-19s %-10s %7d %7.1f %8.1f %8.1f", r.Name, out.Event, out.Samples, out.Points, out.Chain, out.Whole)
	needHot, needAll := chainMin, wholeMin
	if w.whole > 0 {
		needHot, needAll = w.whole, w.whole
	}
	if float64(complete) < needHot*float64(hot) || float64(whole) < needAll*float64(all) {
		t.Errorf("%s: %d of %d samples have the whole chain, %d of %d stacks are whole\n%s",
			r.Name, complete, hot, whole, all, strings.Join(bad, "\n"))
	}
	return out
}

func tenth(v float64) float64 { return math.Round(10*v) / 10 }

func percent(part, of int) float64 { return 100 * float64(part) / math.Max(1, float64(of)) }

// stack is a line of a folded file.
type stack struct {
	process string
	marker  string // why it is not whole
	frames  []string
	count   int
}

func (s *stack) String() string {
	return s.process + ";" + s.marker + ";" + strings.Join(s.frames, ";")
}

func (s *stack) runs(fn string) bool {
	for _, f := range s.frames {
		if f == fn {
			return true
		}
	}
	return false
}

func parseFolded(text string) ([]stack, error) {
	var out []stack
	for line := range strings.Lines(text) {
		at := strings.LastIndexByte(line, ' ')
		if at < 0 {
			return nil, fmt.Errorf("line without a count: %q", line)
		}
		n, err := strconv.Atoi(strings.TrimSpace(line[at+1:]))
		if err != nil {
			return nil, fmt.Errorf("line %q: %w", line, err)
		}
		frames := strings.Split(line[:at], ";")
		s := stack{process: frames[0], frames: frames[1:], count: n}
		if len(s.frames) > 0 && strings.HasPrefix(s.frames[0], "[unwind: ") {
			s.marker, s.frames = s.frames[0], s.frames[1:]
		}
		out = append(out, s)
	}
	return out, nil
}

// has tells whether frames hold the chain; "*" is any number of frames.
func has(frames, chain []string) bool {
	for i := range frames {
		if begins(frames[i:], chain) {
			return true
		}
	}
	return false
}

func begins(frames, chain []string) bool {
	for i, name := range chain {
		if name == "*" {
			return has(frames[min(i, len(frames)):], chain[i+1:])
		}
		if i >= len(frames) || frames[i] != name {
			return false
		}
	}
	return true
}

// boot runs a machine to its end and gives the results by name, and the last
// lines of its console.
func boot(t *testing.T, arch, kernel, initramfs string) (map[string]*guest.Result, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), machineTime)
	defer cancel()
	m := machine(arch, kernel)
	args := append([]string{
		// Time is counted in instructions, 2 ns each: a busy host makes the
		// machine slow and changes nothing that it sees.
		"-accel", "tcg", "-icount", "shift=1,sleep=off", "-m", "2G", "-smp", "1", "-nic", "none", "-nographic", "-no-reboot",
		"-kernel", kernel, "-initrd", initramfs,
	}, m[1:]...)
	c := exec.CommandContext(ctx, m[0], args...)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	results := map[string]*guest.Result{}
	var packed strings.Builder
	var last []string
	over := false
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		switch {
		case strings.HasPrefix(line, guest.Line):
			packed.WriteString(line[len(guest.Line):])
		case line == guest.Over:
			r, err := unpack(packed.String())
			if err != nil {
				t.Errorf("result from %s: %v", kernel, err)
			} else {
				results[r.Name] = r
				keep(t, kernel, r)
			}
			packed.Reset()
		default:
			over = over || line == guest.End
			if last = append(last, line); len(last) > 40 {
				last = last[1:]
			}
		}
	}
	err = c.Wait()
	if ctx.Err() != nil {
		err = fmt.Errorf("the machine was not through after %s", machineTime)
	}
	console := strings.Join(last, "\n")
	if err != nil || !over {
		t.Errorf("%s: %v\n%s\nlast lines of the console:\n%s", kernel, err, stderr.Bytes(), console)
	}
	return results, console
}

// keep writes a result into the folder KALYPSO_KERNELS_KEEP, as it comes.
func keep(t *testing.T, kernel string, r *guest.Result) {
	folder := os.Getenv("KALYPSO_KERNELS_KEEP")
	if folder == "" {
		return
	}
	raw, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		name := filepath.Base(kernel) + " " + strings.ReplaceAll(r.Name, "/", "-") + ".json"
		err = os.WriteFile(filepath.Join(folder, name), raw, 0o644)
	}
	if err != nil {
		t.Error(err)
	}
}

func unpack(text string) (*guest.Result, error) {
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	r := &guest.Result{}
	return r, json.NewDecoder(z).Decode(r)
}
