package accuracy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"
)

// What is asked of every workload, unless its case says otherwise.
const (
	sharePoints = 3.0   // a branch's share may differ from the truth by so many points
	chainMin    = 0.99  // of a branch's samples have the whole chain, root reached
	liesMax     = 0.005 // of a branch's samples may lack a part of the chain without a marker
	wholeMin    = 0.99  // of all samples reach the root
	fewSamples  = 2     // may be amiss in a branch of a hundred: one is a percent of them
	inlinedMin  = 0.95  // of the samples in a function show the calls inlined into it
	namedMin    = 0.95  // of the frames in modules with symbols have a name
	linesMin    = 0.95  // of a function's frames have its file and a line
	countError  = 0.03  // samples against CPU seconds times frequency
)

// A branch is one of a workload's parts with a known share.
type branch struct {
	share   string   // its name in the truth
	in      []string // functions that only this branch runs
	of      []string // the samples whose chain is held to the truth; in, when empty
	chain   []string
	inlined []string // calls inlined into the first of them
	named   string   // a function whose file and line are known …
	file    string   // … and its file
}

// A workload is one program and what its recording must show.
type workload struct {
	name     string
	build    builder
	hertz    int
	seconds  float64 // of CPU
	flags    []string
	env      []string
	branches []branch
	symbols  []string // modules whose frames must have names
	few      float64  // how many samples may be missing, when not countError
	check    func(t *testing.T, run *run) []string
}

// truth is what a workload prints at its end.
type truth struct {
	CPUSeconds    float64            `json:"cpu_seconds"`
	OwnCPUSeconds float64            `json:"own_cpu_seconds"` // of a parent, when cpu_seconds is of its children
	Processes     int                `json:"processes"`
	Shares        map[string]float64 `json:"shares"`
}

// stats is the file that `record --stats` writes.
type stats struct {
	Samples            uint64            `json:"samples"`
	Lost               uint64            `json:"lost"`
	DistinctStacks     uint64            `json:"distinct_stacks"`
	StacksComplete     uint64            `json:"stacks_complete"`
	StacksByReason     map[string]uint64 `json:"stacks_by_reason"`
	Frames             uint64            `json:"frames"`
	FramesNamed        uint64            `json:"frames_named"`
	UnnamedByModule    map[string]uint64 `json:"unnamed_by_module"`
	AgentCPUSeconds    float64           `json:"agent_cpu_seconds"`
	BPFRunSeconds      float64           `json:"bpf_run_seconds"`
	RSSPeakBytes       uint64            `json:"rss_peak_bytes"`
	BPFMapBytes        uint64            `json:"bpf_map_bytes"`
	FirstSampleSeconds float64           `json:"first_sample_seconds"`
	DurationSeconds    float64           `json:"duration_seconds"`
}

// run is one recording of one workload.
type run struct {
	*recording
	truth  truth
	stats  stats
	stolen float64 // by the hypervisor, over the time the CPUs were busy
}

// noise is what sharing a core adds to the error of a number of samples. A
// program that has its core for itself is sampled like a clock ticks. One that
// runs a part p of the time, in turns as short as the sampling period, is
// sampled at random: the standard error is sqrt((1-p)/n), and twice that is
// exceeded once in twenty. On a quiet machine it is next to nothing.
//
// What the hypervisor steals is another matter: the kernel leaves it out of
// rusage, while the sampling clock goes on and finds the same program there.
func (r *run) noise(expected float64) float64 {
	p := min(1, (r.truth.CPUSeconds+r.truth.OwnCPUSeconds)/r.stats.DurationSeconds)
	return 2 * math.Sqrt((1-p)/expected)
}

// busyTicks reads the time that all CPUs were busy and that was stolen.
func busyTicks(t *testing.T) (busy, stolen float64) {
	t.Helper()
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 {
		t.Fatalf("/proc/stat: %q", line)
	}
	for i, f := range fields[1:9] {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			t.Fatal(err)
		}
		switch i {
		case 3, 4: // idle, iowait: proc_stat(5)
		case 7:
			stolen = n
		default:
			busy += n
		}
	}
	return busy, stolen
}

// row is a line of the table.
type row struct {
	name                          string
	cpu                           float64
	samples                       int64
	count, noise                  float64 // samples / expected, and the error that load explains
	points                        float64 // the worst share's error
	chain, whole, inlined, symbol share
	verdict                       string
}

func (r row) String() string {
	count, points := "-", "-"
	if r.count > 0 {
		count = fmt.Sprintf("%.1f", 100*r.count)
	}
	if r.points >= 0 {
		points = fmt.Sprintf("%.1f", r.points)
	}
	return fmt.Sprintf("%-22s %7.2f %8d %8s %7.1f %8s %7s %7s %8s %7s  %s", r.name, r.cpu, r.samples, count, 100*r.noise, points,
		r.chain, r.whole, r.inlined, r.symbol, r.verdict)
}

const header = "workload                 cpu s  samples  count % noise %   points chain % whole % inline % named %"

// levels are the functions of chain.c from the one at depth to the last.
func levels(depth int) []string {
	names := []string{"main", "run"}
	for i := 900 - depth; i < 900; i++ {
		names = append(names, fmt.Sprintf("level_%03d", i))
	}
	return append(names, "bottom")
}

// branches are three branches 60, 30 and 10 whose chains have a common part.
func threeBranches(start string, common []string) []branch {
	var out []branch
	for _, n := range []string{"60", "30", "10"} {
		hot := "hot_" + n
		c := common
		if start != "" {
			c = append([]string{start, "*"}, common...)
		}
		out = append(out, branch{share: hot, in: []string{hot}, chain: append(append([]string(nil), c...), hot)})
	}
	return out
}

func cxxBranches() []branch {
	common := []string{"_start", "*", "main", "run"}
	for i := 11; i >= 0; i-- {
		common = append(common, fmt.Sprintf("Layer<%d>::step", i))
	}
	with := func(names ...string) []string { return append(append([]string(nil), common...), names...) }
	bs := []branch{
		{share: "hot_60", in: []string{"hot_60"}, chain: with("sort_60", "*", "compare_60", "hot_60")},
		{share: "hot_30", in: []string{"hot_30"}, chain: with("find_30", "*", "compare_30", "*", "hot_30")},
		{share: "hot_10", in: []string{"catch_10"}, of: []string{"hot_10"}, chain: with("catch_10", "*", "hot_10")},
	}
	for i := range bs {
		hot := bs[i].share
		bs[i].inlined = []string{hot, "inlined_outer", "inlined_inner"}
		bs[i].named, bs[i].file = "inlined_inner", "cxx.cc"
	}
	return bs
}

func rustBranches() []branch {
	common := []string{"_start", "*", "main", "*", "run"}
	for range 9 {
		common = append(common, "Step>::step")
	}
	with := func(names ...string) []string { return append(append([]string(nil), common...), names...) }
	bs := []branch{
		{share: "hot_60", in: []string{"hot_60"}, chain: with("Work>::work", "hot_60")},
		{share: "hot_30", in: []string{"hot_30"}, chain: with("apply_30", "*", "hot_30")},
		{share: "hot_10", in: []string{"hot_10"}, chain: with("sorted_10", "*", "hot_10")},
	}
	for i := range bs {
		hot := bs[i].share
		bs[i].inlined = []string{hot, "inlined_outer", "inlined_inner"}
		bs[i].named, bs[i].file = "inlined_inner", "chain.rs"
	}
	return bs
}

func goBranches() []branch {
	common := []string{"runtime.main", "main.main", "main.run"}
	for i := 1; i <= 8; i++ {
		common = append(common, fmt.Sprintf("main.level%d", i))
	}
	with := func(names ...string) []string { return append(append([]string(nil), common...), names...) }
	return []branch{
		{
			share: "hot60", in: []string{"main.leaf60", "main.hot60"}, of: []string{"main.leaf60"},
			chain: with("main.hot60", "main.leaf60"), named: "main.leaf60", file: "main.go",
		},
		{
			share: "hot30", in: []string{"main.hot30"}, chain: with("main.hot30"),
			inlined: []string{"main.hot30", "main.inlinedOuter", "main.inlinedInner"}, named: "main.inlinedInner", file: "main.go",
		},
		{
			share: "hot10", in: []string{"main.leaf10", "main.hot10.func1"}, of: []string{"main.leaf10"},
			chain: []string{"main.(*worker).serve", "main.hot10.func1", "main.leaf10"}, named: "main.leaf10", file: "main.go",
		},
	}
}

func jitBranches() []branch {
	var bs []branch
	for _, n := range []string{"hot60", "hot30", "hot10"} {
		bs = append(bs, branch{share: n, in: []string{n}, chain: []string{"run", "level1", "level2", "level3", n}})
	}
	return bs
}

func repeat(name string, n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = name
	}
	return names
}

// cases are in the order of the table. 199 Hz where shares and counts are
// held to the truth within seconds; 97 Hz, the default, where that matters.
func cases() []workload {
	own := []string{"workload"}
	signal := []branch{
		{share: "hot_60", in: []string{"hot_60"}, chain: []string{"thread_main", "run", "raise_60", "*", "on_usr1", "hot_60"}},
		{share: "hot_30", in: []string{"hot_30"}, chain: []string{"thread_main", "run", "interrupted_30", "*", "on_alarm", "hot_30"}},
		{share: "hot_10", in: []string{"hot_10"}, chain: []string{"thread_main", "run", "raise_10", "*", "on_usr2", "*", "on_usr1_nested", "hot_10"}},
	}
	return []workload{
		{name: "c-40", build: cProgram("chain.c", nil), branches: threeBranches("_start", levels(36)), symbols: own},
		{name: "c-40-97hz", build: cProgram("chain.c", nil), hertz: 97, seconds: 7, branches: threeBranches("_start", levels(36)), symbols: own},
		{name: "c-300", build: cProgram("chain.c", nil, "300"), branches: threeBranches("_start", levels(300)), symbols: own},
		{name: "c-900", build: cProgram("chain.c", nil, "900"), branches: threeBranches("_start", levels(900)), symbols: own},
		{
			name: "c-recursion-900", build: cProgram("recursion.c", nil), symbols: own,
			branches: threeBranches("_start", append([]string{"main", "run"}, repeat("recurse", 900)...)),
		},
		{name: "c-debuglink", build: debugLinked, branches: threeBranches("_start", levels(36)), symbols: own},
		{name: "c-deleted", build: cProgram("chain.c", nil, "-unlink"), branches: threeBranches("_start", levels(36)), symbols: own},
		{name: "c-mount-namespace", build: hiddenProgram, branches: threeBranches("_start", levels(36)), symbols: own},
		{
			name: "c-realigned", build: cProgram("realign.c", []string{"-mstackrealign"}), symbols: own,
			branches: threeBranches("_start", []string{"main", "run", "aligned_a", "aligned_b", "aligned_c"}),
		},
		{name: "c-signals", build: cProgram("signals.c", []string{"-pthread"}), branches: signal, symbols: own},
		{name: "c-plt", build: pltProgram, branches: threeBranches("_start", []string{"main", "run"}), symbols: append([]string{"libpltlib.so"}, own...)},
		{name: "c-vdso", build: cProgram("vdso.c", nil), branches: threeBranches("_start", []string{"main", "run"}), symbols: append([]string{"[vdso]"}, own...)},
		// musl is built without unwind information: its rows come from its code.
		{name: "musl-static", build: muslProgram(), branches: threeBranches("_start", levels(36)), symbols: own},
		{name: "musl-static-stripped", build: muslProgram("-s"), check: wantUnnamed},
		{name: "c++", build: cxxProgram, branches: cxxBranches(), symbols: own},
		{name: "rust", build: rustProgram, branches: rustBranches(), symbols: own},
		{name: "go", build: goProgram(), branches: goBranches(), symbols: own},
		{name: "go-stripped", build: goProgram("-ldflags=-s -w"), branches: goBranches(), symbols: own},
		{name: "node-perf-map", build: nodeProgram, branches: jitBranches(), check: removePerfMaps},
		{name: "threads", build: cProgram("threads.c", []string{"-pthread"}), flags: []string{"--by", "thread"}, symbols: own, check: wantThreads},
		{name: "short-lived", build: cProgram("shortlived.c", nil), hertz: 97, seconds: 8, few: 0.05, check: wantShortLived, symbols: own,
			branches: []branch{{in: []string{"hot_child"}, chain: []string{"_start", "*", "main", "child", "hot_child"}}}},
		{name: "openssl", build: opensslProgram},
	}
}

// opensslProgram runs hand-written assembly, without symbols in Debian.
func opensslProgram(t *testing.T, dir string) []string {
	t.Helper()
	requireTools(t, "openssl")
	return []string{compileC(t, dir, "gcc", "rusage.c"), "openssl", "speed", "-seconds", "1", "sha256"}
}

// wantUnnamed: without symbols every frame of the program is module+0xoffset,
// and never a wrong name.
func wantUnnamed(_ *testing.T, r *run) []string {
	n := r.names("workload")
	if n.whole == 0 {
		return []string{"no frames in the program"}
	}
	if n.part > 0 {
		return []string{fmt.Sprintf("%d of %d frames of a stripped program have names", n.part, n.whole)}
	}
	return nil
}

// wantThreads: every thread is there under its name, and the even ones have
// three quarters of the samples.
func wantThreads(_ *testing.T, r *run) []string {
	var problems []string
	got := make(map[string]int64)
	var even, all int64
	for i := range r.stacks {
		got[r.stacks[i].thread] += r.stacks[i].count
	}
	var evenTruth float64
	for i := range 64 {
		name := fmt.Sprintf("worker-%02d", i)
		n := got[name]
		all += n
		if i%2 == 0 {
			even += n
			evenTruth += r.truth.Shares[name]
		}
		if n == 0 {
			problems = append(problems, "no samples of thread "+name)
		}
	}
	if all > 0 && math.Abs(float64(even)/float64(all)-evenTruth)*100 > sharePoints {
		problems = append(problems, fmt.Sprintf("even threads have %.1f %% of the samples, want %.1f", 100*float64(even)/float64(all), 100*evenTruth))
	}
	if float64(all) < 0.98*float64(r.total) {
		problems = append(problems, fmt.Sprintf("%d of %d samples bear a worker's name", all, r.total))
	}
	return problems
}

// removePerfMaps removes the files that node leaves behind.
func removePerfMaps(t *testing.T, r *run) []string {
	t.Helper()
	for i := range r.stacks {
		if err := os.Remove(fmt.Sprintf("/tmp/perf-%d.map", r.stacks[i].pid)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	}
	return nil
}

// wantShortLived: nearly every process is seen.
func wantShortLived(_ *testing.T, r *run) []string {
	pids := make(map[int64]bool)
	inChild := runs("hot_child")
	for i := range r.stacks {
		if inChild(&r.stacks[i]) {
			pids[r.stacks[i].pid] = true
		}
	}
	if len(pids) < r.truth.Processes*95/100 {
		return []string{fmt.Sprintf("%d of %d processes were seen in hot_child", len(pids), r.truth.Processes)}
	}
	return nil
}

// record runs the agent on a command and reads what it wrote. The command's
// standard output passes through the agent; its last line is the truth.
func record(t *testing.T, agent string, env, flags, command []string) *run {
	t.Helper()
	dir := t.TempDir()
	profile, statistics := filepath.Join(dir, "x.pb.gz"), filepath.Join(dir, "stats.json")
	args := append([]string{"record", "-d", "120s", "-o", profile, "--stats", statistics}, flags...)
	args = append(append(args, "--"), command...)
	c := exec.Command(agent, args...)
	c.Env = append(append(os.Environ(), "TMPDIR="+dir), env...)
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	busy, stolen := busyTicks(t)
	if err := c.Run(); err != nil {
		t.Fatalf("kalypso-agent %q: %v\n%s%s", args, err, stdout.Bytes(), stderr.Bytes())
	}
	out := &run{}
	if b, s := busyTicks(t); b > busy {
		out.stolen = (s - stolen) / (b - busy)
	}
	found := false
	for _, line := range strings.Split(stdout.String(), "\n") {
		if strings.HasPrefix(line, `{"cpu_seconds"`) {
			if err := json.Unmarshal([]byte(line), &out.truth); err != nil {
				t.Fatalf("read the workload's truth %q: %v", line, err)
			}
			found = true
		}
	}
	if !found {
		t.Fatalf("the workload's truth did not pass through; standard output:\n%s\nstandard error:\n%s", stdout.Bytes(), stderr.Bytes())
	}
	out.recording = mustRead(t, profile)
	raw, err := os.ReadFile(statistics)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &out.stats); err != nil {
		t.Fatalf("read %s: %v\n%s", statistics, err, raw)
	}
	return out
}

func mustRead(t *testing.T, name string) *recording {
	t.Helper()
	r, err := readRecording(name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// judge compares a recording with the truth. The noisy problems are those
// that other load on the machine can cause.
func judge(t *testing.T, w *workload, r *run) (out row, problems, noisy []string) {
	t.Helper()
	out = row{name: w.name, samples: r.total, cpu: r.truth.CPUSeconds + r.truth.OwnCPUSeconds, points: -1, whole: r.whole()}
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }

	few := countError
	if w.few > 0 {
		few = w.few
	}
	expected := out.cpu * float64(w.hertz)
	out.count, out.noise = float64(r.total)/expected, r.noise(expected)
	if out.count < 1-few-out.noise || out.count > 1+countError+out.noise+r.stolen {
		noisy = append(noisy, fmt.Sprintf("%d samples are %.1f %% of %.2f CPU seconds at %d Hz (load adds an error of %.1f %%, steal %.1f %%)",
			r.total, 100*out.count, out.cpu, w.hertz, 100*out.noise, 100*r.stolen))
	}
	ended := func(s *stack) bool { return len(s.frames) > 0 && s.marker == "" }
	if got := r.count(ended); got.ratio() < wholeMin {
		bad("%s %% of the stacks are whole; the others: %v", got, r.markers())
		for _, e := range r.examples(3, func(s *stack) bool { return !ended(s) }) {
			bad("  cut: %s", e)
		}
	}
	for i := range w.branches {
		b := &w.branches[i]
		if b.share != "" {
			got := r.count(runs(b.in...))
			points := math.Abs(got.ratio()-r.truth.Shares[b.share]) * 100
			out.points = max(out.points, points)
			if points > sharePoints {
				noisy = append(noisy, fmt.Sprintf("%s has %s %% of the samples and %.1f %% of the CPU time", b.share, got, 100*r.truth.Shares[b.share]))
			}
		}
		of := b.of
		if of == nil {
			of = b.in
		}
		want := newChain(b.chain...)
		has := runs(of...)
		holds := func(s *stack) bool { return s.marker == "" && want.in(s.frames) }
		got := r.among(of, holds)
		out.chain.add(got)
		if got.ratio() < chainMin && got.whole-got.part > fewSamples {
			bad("%d of %d samples in %s have the whole chain", got.part, got.whole, of[0])
			for _, e := range r.examples(3, func(s *stack) bool { return has(s) && !holds(s) }) {
				bad("  not: %s", e)
			}
		}
		lies := r.among(of, func(s *stack) bool { return s.marker == "" && !want.in(s.frames) })
		if lies.ratio() > liesMax && lies.part > 1 {
			bad("%d of %d samples in %s have a broken chain and are shown as complete", lies.part, lies.whole, of[0])
		}
		if b.inlined != nil {
			in, has, inlines := newChain(b.inlined...), runs(b.inlined[0]), inlining(b.inlined[1:])
			got := r.among(b.inlined[:1], func(s *stack) bool { return in.in(s.frames) && inlines(s) })
			out.inlined.add(got)
			if got.ratio() < inlinedMin {
				bad("%d of %d samples in %s show the inlined calls %q", got.part, got.whole, b.inlined[0], b.inlined[1:])
				for _, e := range r.examples(3, func(s *stack) bool { return has(s) && !(in.in(s.frames) && inlines(s)) }) {
					bad("  not: %s", e)
				}
			}
		}
		if b.file != "" {
			if got := r.lines(b.named, b.file); got.ratio() < linesMin {
				bad("%d of %d frames of %s have a line of %s", got.part, got.whole, b.named, b.file)
			}
		}
	}
	if w.symbols != nil {
		out.symbol = r.names(append([]string{"[kernel]"}, w.symbols...)...)
		for _, module := range w.symbols {
			if got := r.names(module); got.ratio() < namedMin {
				bad("%d of %d frames in %s have names", got.part, got.whole, module)
			}
		}
	}
	if got := r.names("[kernel]"); got.whole > 0 && got.ratio() < namedMin {
		bad("%d of %d kernel frames have names", got.part, got.whole)
	}
	if r.stats.Samples != uint64(r.total) {
		bad("the stats count %d samples, the profile %d", r.stats.Samples, r.total)
	}
	if r.stats.StacksComplete != uint64(out.whole.part) {
		bad("the stats count %d complete stacks, the profile %d", r.stats.StacksComplete, out.whole.part)
	}
	if r.stats.Lost != 0 {
		bad("%d samples were lost", r.stats.Lost)
	}
	if w.check != nil {
		problems = append(problems, w.check(t, r)...)
	}
	return out, problems, noisy
}

// inlining gives a test for stacks that show each function as an inlined call.
func inlining(functions []string) func(*stack) bool {
	patterns := newChain(functions...)
	return func(s *stack) bool {
		for _, p := range patterns {
			found := false
			for i := range s.frames {
				found = found || s.frames[i].inlined && p.match(s.frames[i].name)
			}
			if !found {
				return false
			}
		}
		return true
	}
}

func TestRecordAccuracy(t *testing.T) {
	requireBPF(t)
	agent := buildAgent(t)
	table := []string{header}
	for _, w := range cases() {
		if w.hertz == 0 {
			w.hertz = 199
		}
		if w.seconds == 0 {
			w.seconds = 5
		}
		t.Run(w.name, func(t *testing.T) {
			dir := t.TempDir()
			command := w.build(t, dir)
			if w.name != "openssl" {
				command = append(command, "-seconds", strconv.FormatFloat(w.seconds, 'g', -1, 64))
			}
			flags := append([]string{"-F", strconv.Itoa(w.hertz)}, w.flags...)
			for attempt := 1; ; attempt++ {
				r := record(t, agent, w.env, flags, command)
				line, problems, noisy := judge(t, &w, r)
				line.verdict = "ok"
				if len(problems) > 0 {
					line.verdict = "WRONG"
				} else if len(noisy) > 0 {
					line.verdict = "off"
				}
				table = append(table, line.String())
				// Another process on a shared core can shift counts once.
				// What is wrong in a stack is wrong every time.
				again := attempt == 1 && len(problems) == 0 && len(noisy) > 0 && !deletes(command)
				for _, p := range append(problems, noisy...) {
					if again {
						t.Logf("first attempt: %s", p)
					} else {
						t.Error(p)
					}
				}
				if !again {
					break
				}
			}
		})
	}
	t.Log("\n" + strings.Join(table, "\n"))
	if path := os.Getenv("KALYPSO_ACCURACY_TABLE"); path != "" {
		if err := os.WriteFile(path, []byte(strings.Join(table, "\n")+"\n"), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// deletes says whether the command removes itself and cannot run twice.
func deletes(command []string) bool { return contains(command, "-unlink") }

func TestRecordFiltersByPID(t *testing.T) {
	requireBPF(t)
	agent := buildAgent(t)
	dir := t.TempDir()
	program := compileC(t, dir, "gcc", "chain.c")
	var commands []*exec.Cmd
	for range 2 {
		c := exec.Command(program, "-seconds", "60")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = c.Process.Kill() // it may have ended
			_ = c.Wait()         // killed: its status says nothing
		})
		commands = append(commands, c)
	}
	pid := commands[0].Process.Pid
	profile := filepath.Join(dir, "x.pb.gz")
	before := cpuSeconds(t, pid)
	if out, err := exec.Command(agent, "record", "-p", strconv.Itoa(pid), "-d", "3s", "-F", "199", "-o", profile).CombinedOutput(); err != nil {
		t.Fatalf("record -p: %v\n%s", err, out)
	}
	used := cpuSeconds(t, pid) - before
	r := mustRead(t, profile)
	if r.total == 0 {
		t.Fatal("no samples")
	}
	if got := r.count(func(s *stack) bool { return s.pid == int64(pid) }); got.part != got.whole {
		t.Errorf("%d of %d samples are of process %d", got.part, got.whole, pid)
	}
	// The recording is shorter than the time between the readings, by the
	// agent's start and end.
	if most := used * 199 * (1 + countError); float64(r.total) > most || float64(r.total) < most/3 {
		t.Errorf("%d samples of a process that used %.2f s at 199 Hz", r.total, used)
	}
	want := newChain(append([]string{"_start", "*"}, levels(36)...)...)
	if got := r.count(func(s *stack) bool { return s.marker == "" && want.in(s.frames) }); got.ratio() < chainMin {
		t.Errorf("%d of %d samples of a process that ran before the recording have the whole chain", got.part, got.whole)
		for _, e := range r.examples(3, func(s *stack) bool { return s.marker != "" || !want.in(s.frames) }) {
			t.Logf("not: %s", e)
		}
	}
}

// cpuSeconds reads the time a process ran, in ns, from its scheduler statistics.
func cpuSeconds(t *testing.T, pid int) float64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(raw))
	if len(fields) != 3 {
		t.Fatalf("schedstat %q", raw)
	}
	ns, err := strconv.ParseFloat(fields[0], 64)
	if err != nil {
		t.Fatal(err)
	}
	return ns / 1e9
}

func TestRecordWholeMachine(t *testing.T) {
	requireBPF(t)
	agent := buildAgent(t)
	dir := t.TempDir()
	program := compileC(t, dir, "gcc", "chain.c")
	busy := func() *exec.Cmd {
		c := exec.Command(program, "-seconds", "60")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = c.Process.Kill() // it may have ended
			_ = c.Wait()         // killed: its status says nothing
		})
		return c
	}
	c, other := busy(), busy()
	profile := filepath.Join(dir, "x.pb.gz")
	before := cpuSeconds(t, c.Process.Pid)
	if out, err := exec.Command(agent, "record", "-a", "-d", "3s", "-o", profile).CombinedOutput(); err != nil {
		t.Fatalf("record -a: %v\n%s", err, out)
	}
	used := cpuSeconds(t, c.Process.Pid) - before
	r := mustRead(t, profile)
	of := func(s *stack) bool { return s.pid == int64(c.Process.Pid) }
	if got := r.count(of); float64(got.part) < used*97/4 {
		t.Errorf("%d of %d samples are of a process that used %.2f s", got.part, got.whole, used)
	}
	if got := r.count(func(s *stack) bool { return s.pid == int64(other.Process.Pid) }); got.part == 0 {
		t.Errorf("none of %d samples is of another busy process", got.whole)
	}
	want, hot := newChain(append([]string{"_start", "*"}, levels(36)...)...), runs("hot_60", "hot_30", "hot_10")
	if wrong := r.examples(5, func(s *stack) bool { return of(s) && hot(s) && !want.in(s.frames) }); len(wrong) > 2 {
		t.Errorf("stacks of the busy process without the chain: %q", wrong)
	}
}

func TestRecordKernelFrames(t *testing.T) {
	requireBPF(t)
	requireTools(t, "dd")
	agent := buildAgent(t)
	rusage := compileC(t, t.TempDir(), "gcc", "rusage.c")
	command := []string{rusage, "dd", "if=/dev/zero", "of=/dev/null", "bs=64k", "count=300000"}
	inKernel := func(s *stack) bool {
		for i := range s.frames {
			if s.frames[i].module == "[kernel]" {
				return true
			}
		}
		return false
	}
	with := record(t, agent, nil, []string{"-F", "199"}, command)
	if got := with.count(inKernel); got.ratio() < 0.5 {
		t.Errorf("%d of %d samples of a program that copies zeros have kernel frames", got.part, got.whole)
	}
	if got := with.names("[kernel]"); got.ratio() < namedMin {
		t.Errorf("%d of %d kernel frames have names", got.part, got.whole)
	}
	without := record(t, agent, nil, []string{"-F", "199", "--kernel=false"}, command)
	if got := without.count(inKernel); got.part != 0 {
		t.Errorf("%d of %d samples have kernel frames in spite of --kernel=false", got.part, got.whole)
	}
	t.Logf("samples with kernel frames: %v %%, without --kernel: %v %%", with.count(inKernel), without.count(inKernel))
}

func TestRecordPassesExitCodeThrough(t *testing.T) {
	requireBPF(t)
	agent := buildAgent(t)
	for _, want := range []int{0, 1, 7, 42} {
		profile := filepath.Join(t.TempDir(), "x.pb.gz")
		c := exec.Command(agent, "record", "-o", profile, "--", "sh", "-c", fmt.Sprintf("echo out; echo err >&2; i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; exit %d", want))
		var stdout, stderr bytes.Buffer
		c.Stdout, c.Stderr = &stdout, &stderr
		start := time.Now()
		err := c.Run()
		got := 0
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			got = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("exit code %d, want the command's %d\n%s", got, want, stderr.Bytes())
		}
		if stdout.String() != "out\n" {
			t.Errorf("standard output %q, want the command's and nothing else", stdout.String())
		}
		if !strings.Contains(stderr.String(), "err\n") {
			t.Errorf("standard error %q lacks the command's", stderr.String())
		}
		if mustRead(t, profile).total == 0 {
			t.Errorf("no samples of a command that computes and ends with %d", want)
		}
		if d := time.Since(start); d > 8*time.Second {
			t.Errorf("the recording took %v; it ends with the command", d)
		}
	}
}

func TestCasesAreDistinct(t *testing.T) {
	var names []string
	for _, w := range cases() {
		names = append(names, w.name)
	}
	sort.Strings(names)
	for i := 1; i < len(names); i++ {
		if names[i] == names[i-1] {
			t.Errorf("two workloads are named %s", names[i])
		}
	}
}
