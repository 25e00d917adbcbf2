// Command bench measures what profiling costs: kalypso-agent record beside
// perf record on the same workload, and kalypso-agent run once it has settled,
// in one run. It prints a table, or JSON
// with -o json, and writes no files outside a temporary folder.
//
//	go run ./test/bench [-d 5s] [-a] [-check] [-o text|json] [-agent FILE]
//
// It needs root, gcc and, for the comparison, perf. How each figure is taken
// is in docs/reference/performance.md.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
)

type config struct {
	duration time.Duration
	machine  bool // record every process, not just the workload
	check    bool // over budget is a failure
	format   string
	agent    string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var c config
	flag.DurationVar(&c.duration, "d", 5*time.Second, "how long each recording takes")
	flag.BoolVar(&c.machine, "a", false, "record the whole machine, not only the workload")
	flag.BoolVar(&c.check, "check", false, "exit with 1 when a figure is over its budget")
	flag.StringVar(&c.format, "o", "text", "text or json")
	flag.StringVar(&c.agent, "agent", os.Getenv("KALYPSO_AGENT"), "the agent to measure; built when empty")
	flag.Parse()
	over, err := c.run(ctx, os.Stdout, os.Stderr)
	if err != nil {
		printError(os.Stderr, err)
		stop()
		os.Exit(1)
	}
	if over && c.check {
		stop()
		os.Exit(1)
	}
}

func printError(w io.Writer, err error) {
	f := (*profiler.Fault)(nil)
	if !errors.As(err, &f) {
		fmt.Fprintf(w, "error: %v\n", err)
		return
	}
	fmt.Fprintf(w, "error: %s\n", f.What)
	if f.Why != nil {
		fmt.Fprintf(w, "cause: %v\n", f.Why)
	}
	if f.Fix != "" {
		fmt.Fprintf(w, "fix:   %s\n", f.Fix)
	}
}

// report is what -o json prints.
type report struct {
	Schema   string   `json:"schema"`
	Kernel   string   `json:"kernel"`
	CPUs     int      `json:"cpus"`
	Perf     string   `json:"perf"` // its version, empty when it is not installed
	Scope    string   `json:"scope"`
	Seconds  float64  `json:"seconds"`
	Results  []result `json:"results"`
	Budgets  []budget `json:"budgets"`
	Workload string   `json:"workload"`
}

func (c config) run(ctx context.Context, out, progress io.Writer) (over bool, err error) {
	if c.format != "text" && c.format != "json" {
		return false, &profiler.Fault{What: fmt.Sprintf("no output format %q", c.format), Fix: "-o text or -o json"}
	}
	if c.duration < time.Second {
		return false, &profiler.Fault{What: fmt.Sprintf("%v is too short to measure", c.duration), Fix: "-d 5s"}
	}
	if os.Geteuid() != 0 {
		return false, &profiler.Fault{What: "the benchmark needs root", Why: errors.New("it loads BPF programs and switches kernel.bpf_stats_enabled"), Fix: "sudo make bench"}
	}
	dir, err := os.MkdirTemp("", "kalypso-bench-")
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	workload := filepath.Join(dir, "chain")
	if err := command(ctx, "gcc", "-O2", "-fomit-frame-pointer", "-fno-optimize-sibling-calls", "-o", workload, "test/workloads/chain.c"); err != nil {
		return false, &profiler.Fault{What: "cannot build the workload", Why: err, Fix: "install gcc and run from the top of the repository"}
	}
	agent := c.agent
	if agent == "" {
		agent = filepath.Join(dir, "kalypso-agent")
		if err := command(ctx, "go", "build", "-trimpath", "-o", agent, "./cmd/agent"); err != nil {
			return false, &profiler.Fault{What: "cannot build the agent", Why: err, Fix: "make build, and run from the top of the repository"}
		}
	}
	rep := report{
		Schema: "kalypso.bench/v1", Kernel: kernel(), CPUs: runtime.NumCPU(), Perf: perfVersion(ctx),
		Scope: "process", Seconds: c.duration.Seconds(), Workload: "test/workloads/chain.c: 40 frames, no frame pointers, one busy thread",
	}
	if c.machine {
		rep.Scope = "machine"
	}
	for _, load := range []struct {
		name  string
		hertz int
		busy  bool
	}{{"idle", 97, false}, {"busy", 97, true}, {"busy", 999, true}} {
		for _, tool := range tools(agent, rep.Perf != "") {
			fmt.Fprintf(progress, "measuring %s, %s at %d Hz\n", tool.name(), load.name, load.hertz)
			b := bench{dir: dir, workload: workload, duration: c.duration, hertz: load.hertz, busy: load.busy, machine: c.machine || !load.busy}
			r, err := b.measure(ctx, tool)
			if err != nil {
				return false, fmt.Errorf("measure %s, %s at %d Hz: %w", tool.name(), load.name, load.hertz, err)
			}
			r.Load = load.name
			rep.Results = append(rep.Results, r)
		}
	}
	for _, busy := range []bool{false, true} {
		load := map[bool]string{false: "idle", true: "busy"}[busy]
		fmt.Fprintf(progress, "measuring %s, %s at 97 Hz\n", serviceName, load)
		b := bench{dir: dir, workload: workload, duration: c.duration, hertz: 97, busy: busy, machine: true}
		r, err := b.measureService(ctx, agent)
		if err != nil {
			return false, fmt.Errorf("measure %s, %s: %w", serviceName, load, err)
		}
		r.Load = load + ", service"
		rep.Results = append(rep.Results, r)
	}
	rep.Budgets = budgets(rep.Results)
	for _, b := range rep.Budgets {
		over = over || !b.Held
	}
	if c.format == "json" {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return over, e.Encode(rep)
	}
	_, err = io.WriteString(out, rep.text())
	return over, err
}

// command runs a program and gives its output as the error when it fails.
func command(ctx context.Context, name string, args ...string) error {
	c := exec.CommandContext(ctx, name, args...)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := c.CombinedOutput()
	if err != nil {
		if s := strings.TrimSpace(string(out)); s != "" {
			return fmt.Errorf("%s: %w: %s", name, err, s)
		}
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func kernel() string {
	raw, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
}

// perfVersion is empty when there is no perf that runs here.
func perfVersion(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "perf", "--version").Output()
	if err != nil {
		return ""
	}
	return strings.TrimPrefix(strings.TrimSpace(string(out)), "perf version ")
}

// A budget is a limit for one figure of the agent.
type budget struct {
	Figure string  `json:"figure"`
	Load   string  `json:"load"`
	Limit  float64 `json:"limit"`
	Got    float64 `json:"got"`
	Unit   string  `json:"unit"`
	Held   bool    `json:"held"`
}

func budgets(results []result) []budget {
	var out []budget
	for _, r := range results {
		if r.Tool != agentName && r.Tool != serviceName {
			continue
		}
		load := r.Load + " " + strconv.Itoa(r.Hertz) + " Hz"
		add := func(figure string, got, limit float64, unit string) {
			out = append(out, budget{Figure: figure, Load: load, Limit: limit, Got: got, Unit: unit, Held: got <= limit})
		}
		if r.Tool == serviceName {
			limit := map[string]float64{"idle, service": 0.5, "busy, service": 2}[r.Load]
			add("CPU once settled", r.CPUPercent, limit, "% of a core")
			add("memory and BPF maps", float64(r.RSSBytes+r.BufferBytes)/(1<<20), 128, "MiB")
			continue
		}
		switch {
		case r.Load == "idle":
			add("CPU while recording", r.CPUPercent, 0.5, "% of a core")
		case r.Hertz == 97:
			add("CPU while recording", r.CPUPercent, 2, "% of a core")
		default:
			add("CPU while recording", r.CPUPercent, 6, "% of a core")
		}
		if r.Load != "idle" {
			add("BPF time", r.BPFMicros, 20, "us a sample")
			add("time to first sample", r.FirstSample, 1, "s")
		}
		add("CPU to start", r.StartCPU, 1, "s")
		add("resident memory", float64(r.RSSBytes)/1e6, 60, "MB")
		add("BPF maps", float64(r.BufferBytes)/1e6, 20, "MB")
	}
	return out
}

// text is the report for people: a block per load, a column per tool, and the
// agent's figure over perf's.
func (r report) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "kernel %s, %d CPUs", r.Kernel, r.CPUs)
	if r.Perf != "" {
		fmt.Fprintf(&b, ", perf %s", r.Perf)
	} else {
		b.WriteString("; perf is not installed (apt-get install linux-perf): no comparison")
	}
	fmt.Fprintf(&b, "\n%s, %g s each, recording the %s (idle: the machine)\n", r.Workload, r.Seconds, r.Scope)
	for i := 0; i < len(r.Results); {
		j := i
		for j < len(r.Results) && r.Results[j].Load == r.Results[i].Load && r.Results[j].Hertz == r.Results[i].Hertz {
			j++
		}
		block(&b, r.Results[i:j])
		i = j
	}
	if worst := r.others(); worst > quiet {
		fmt.Fprintf(&b, "\nOther programs used up to %.0f %% of a core: the figures are not those of a quiet machine.\n", worst)
	}
	b.WriteString("\nbudgets of kalypso-agent\n")
	for _, l := range r.Budgets {
		word := "held"
		if !l.Held {
			word = "OVER"
		}
		fmt.Fprintf(&b, "  %s  %-19s %-22s %8.2f of %g %s\n", word, l.Load, l.Figure, l.Got, l.Limit, l.Unit)
	}
	return b.String()
}

// quiet is the load by others, in % of a core, that leaves figures comparable:
// a desktop at rest stays below.
const quiet = 15

func (r report) others() (worst float64) {
	for i := range r.Results {
		worst = max(worst, r.Results[i].OthersPercent)
	}
	return worst
}

func block(b *strings.Builder, results []result) {
	fmt.Fprintf(b, "\n%s, %d Hz\n%-26s", results[0].Load, results[0].Hertz, "")
	for _, r := range results {
		fmt.Fprintf(b, "%16s", r.Tool)
	}
	if len(results) > 1 {
		fmt.Fprintf(b, "%18s", "agent/perf dwarf")
	}
	b.WriteString("\n")
	for _, f := range []struct {
		name  string
		verb  string
		value func(*result) float64
	}{
		{"CPU recording, % of core", "%.2f", func(r *result) float64 { return r.CPUPercent }},
		{"CPU to start, s", "%.2f", func(r *result) float64 { return r.StartCPU }},
		{"CPU in all, s", "%.2f", func(r *result) float64 { return r.CPUSeconds }},
		{"CPU to name stacks, s", "%.2f", func(r *result) float64 { return r.NamingCPU }},
		{"BPF a sample, us", "%.1f", func(r *result) float64 { return r.BPFMicros }},
		{"resident memory, MB", "%.1f", func(r *result) float64 { return float64(r.RSSBytes) / 1e6 }},
		{"maps or ring buffers, MB", "%.1f", func(r *result) float64 { return float64(r.BufferBytes) / 1e6 }},
		{"first sample after, s", "%.2f", func(r *result) float64 { return r.FirstSample }},
		{"written, MB", "%.3f", func(r *result) float64 { return float64(r.WrittenBytes) / 1e6 }},
		{"samples", "%.0f", func(r *result) float64 { return float64(r.Samples) }},
		{"others, % of core", "%.0f", func(r *result) float64 { return r.OthersPercent }},
	} {
		fmt.Fprintf(b, "  %-24s", f.name)
		for i := range results {
			v := f.value(&results[i])
			if v < 0 {
				fmt.Fprintf(b, "%16s", "-")
				continue
			}
			fmt.Fprintf(b, "%16s", fmt.Sprintf(f.verb, v))
		}
		if len(results) > 1 {
			a, p := f.value(&results[0]), f.value(&results[1])
			if a >= 0 && p > 0 {
				fmt.Fprintf(b, "%18s", fmt.Sprintf("%.2f", a/p))
			} else {
				fmt.Fprintf(b, "%18s", "-")
			}
		}
		b.WriteString("\n")
	}
}
