package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/term"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/output"
	"github.com/kalypso-dev/kalypso/cmd/internal/web"
	"github.com/kalypso-dev/kalypso/exporter/format"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/lang"
	"github.com/kalypso-dev/kalypso/profiler/lang/golang"
	"github.com/kalypso-dev/kalypso/profiler/lang/native"
	"github.com/kalypso-dev/kalypso/profiler/pipeline"
)

// runtimes is the list of languages, asked in order; native takes what is left.
func runtimes() []lang.Runtime {
	return []lang.Runtime{golang.Runtime{}, native.Runtime{}}
}

// runtimesWithBudget is the same list with a switch that turns lines and
// inlined calls off while memory is short.
func runtimesWithBudget() (list []lang.Runtime, setDebugInfo func(on bool)) {
	off := &atomic.Bool{}
	return []lang.Runtime{golang.Runtime{}, native.Runtime{SymbolsOnly: off}}, func(on bool) { off.Store(!on) }
}

func openPerfMap(pid profiler.PID, root string) (pipeline.PerfMap, error) {
	return native.OpenPerfMap(pid, root)
}

type recordFlags struct {
	all       bool
	pids      []uint
	comm      string
	cgroup    string
	duration  time.Duration
	frequency int
	output    string
	by        string
	kernel    bool
	stats     string
	web       bool
}

func newRecordCommand() *cobra.Command {
	f := &recordFlags{}
	cmd := &cobra.Command{
		Use:   "record [-a | -p PID | -- COMMAND [ARG…]]",
		Short: "Profile this machine, a process or a command",
		Long: `Sample what runs on every CPU, unwind and name the stacks, and show where the
time went: a table, or a file by its ending (` + output.Endings() + `).`,
		Example: `  kalypso-agent record -d 10s -o profile.html        the whole machine, as a flame graph
  kalypso-agent record -p 1234                       one process and its children, as a table
  kalypso-agent record -o build.html -- make -j4     a command, from its first instruction on
  kalypso-agent record -d 30s --web                  a flame graph in the browser
  kalypso-agent record -o - | flamegraph.pl > x.svg  folded stacks for other tools`,
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) },
	}
	fl := cmd.Flags()
	fl.BoolVarP(&f.all, "all", "a", false, "the whole machine (the default)")
	fl.UintSliceVarP(&f.pids, "pid", "p", nil, "only this process and its children; may be given again")
	fl.StringVar(&f.comm, "comm", "", "only processes of this name, as in /proc/PID/comm")
	fl.StringVar(&f.cgroup, "cgroup", "", "only processes of this cgroup (version 2) and below")
	fl.DurationVarP(&f.duration, "duration", "d", 0, "how long; 10s by default, with a command until it ends")
	fl.IntVarP(&f.frequency, "frequency", "F", 97, "samples a second and CPU")
	fl.StringVarP(&f.output, "output", "o", "", "file to write; - writes folded stacks to standard output")
	fl.StringVar(&f.by, "by", "process", "what to tell apart: process, thread or cgroup")
	fl.BoolVar(&f.kernel, "kernel", true, "kernel stacks too")
	fl.StringVar(&f.stats, "stats", "", "file for figures about the recording, in JSON")
	fl.BoolVar(&f.web, "web", false, "show the result in a browser, on localhost")
	fl.SortFlags = false
	return cmd
}

const defaultDuration = 10 * time.Second

// check finds mistakes that need no recording to be found.
func (f *recordFlags) check(cmd *cobra.Command, args []string) error {
	ways := 0
	for _, given := range []bool{f.all, len(f.pids) > 0, len(args) > 0} {
		if given {
			ways++
		}
	}
	if ways > 1 {
		return cli.Usage(cli.HelpOf(cmd), "-a, -p and a command exclude each other")
	}
	if len(args) > 0 && cmd.ArgsLenAtDash() != 0 {
		if slices.Contains([]string{"true", "false", "yes", "no", "on", "off", "0", "1"}, args[0]) && cmd.Flags().Changed("kernel") {
			return cli.Usage("--kernel=false leaves kernel stacks out", "the value of --kernel follows an equals sign: what is %q?", args[0])
		}
		return cli.Usage("kalypso-agent record -- "+args[0], "a command to record follows two dashes: what is %q?", args[0])
	}
	if cmd.ArgsLenAtDash() == 0 && len(args) == 0 {
		return cli.Usage(cli.HelpOf(cmd), "no command follows the two dashes")
	}
	for _, pid := range f.pids {
		if pid > math.MaxInt32 {
			return cli.Usage(pidFix, "there can be no PID %d", pid)
		}
	}
	if err := cli.OneOf(cmd, "by", f.by, "process", "thread", "cgroup"); err != nil {
		return err
	}
	if cmd.Flags().Changed("duration") && f.duration <= 0 {
		return cli.Usage("-d 10s records for ten seconds", "cannot record for %s", f.duration)
	}
	if f.frequency < pipeline.MinFrequency || f.frequency > pipeline.MaxFrequency {
		return cli.Usage(fmt.Sprintf("-F takes %d to %d; 97 is the default, 999 shows more of short recordings", pipeline.MinFrequency, pipeline.MaxFrequency),
			"cannot sample at %d Hz", f.frequency)
	}
	if f.stats == "-" {
		return cli.Usage("--stats stats.json", "--stats takes a file: standard output is for the profile")
	}
	if len(f.comm) > 15 {
		return cli.Usage(fmt.Sprintf("--comm %s", f.comm[:15]), "the kernel keeps 15 bytes of a process's name, %q has %d", f.comm, len(f.comm))
	}
	return nil
}

func (f *recordFlags) run(cmd *cobra.Command, args []string) error {
	if err := f.check(cmd, args); err != nil {
		return err
	}
	out, err := output.NewProfile(f.output)
	if err != nil {
		return cli.Wrong(err)
	}
	defer out.Discard()
	stats, err := output.NewFile(f.stats)
	if err != nil {
		return cli.Wrong(err)
	}
	defer stats.Discard()

	ctx, stop := context.WithCancel(cmd.Context())
	defer stop()
	cfg := pipeline.Config{
		Runtimes: runtimes(), OpenPerfMap: openPerfMap, Frequency: f.frequency, Duration: f.duration, Comm: f.comm, Cgroup: f.cgroup,
		ByThread: f.by == "thread", ByCgroup: f.by == "cgroup", Kernel: f.kernel, UntilGone: len(f.pids) > 0,
	}
	for _, pid := range f.pids { // checked to fit
		cfg.PIDs = append(cfg.PIDs, profiler.PID(pid))
	}
	var run *command
	if len(args) > 0 {
		if run, err = startCommand(args); err != nil {
			return err
		}
		cfg.PIDs, cfg.Started = []profiler.PID{run.pid()}, run.release
		go func() {
			<-run.done
			stop()
		}()
	} else if f.duration == 0 {
		cfg.Duration = defaultDuration
	}

	notes := term.NewNotes(cmd.ErrOrStderr())
	cfg.Progress, cfg.Failed = func(p pipeline.Progress) { notes.Line(progressLine(p)) }, notes.Failed
	p, cost, err := pipeline.Record(ctx, cfg)
	notes.End()
	if err != nil {
		if run != nil {
			run.abandon()
			return withCode(run.code(), err)
		}
		return err
	}
	// A command's standard output stays its own: our words go beside it.
	text := cmd.OutOrStdout()
	if run != nil || f.output == "-" {
		text = cmd.ErrOrStderr()
	}
	err = f.write(p, cost, out, stats, text)
	if err == nil && f.web {
		err = web.Serve(cmd.Context(), text, web.Config{}, web.Page{Profile: p})
	}
	if run != nil {
		return withCode(run.wait(cmd.Context()), err)
	}
	return err
}

// withCode keeps a command's exit code, whatever went wrong beside it.
func withCode(code int, err error) error {
	switch {
	case code == 0:
		return err
	case err == nil:
		return cli.Exit(code)
	}
	return commandError{code, err}
}

// write writes the files, then the words.
func (f *recordFlags) write(p *profiler.Profile, cost *pipeline.Cost, out *output.Profile, stats *output.File, text io.Writer) error {
	// The reader of our output may go away, and we with it: files come first.
	if err := stats.Write(func(w io.Writer) error { return writeStats(w, p, cost) }); err != nil {
		return err
	}
	if err := out.Write(p); err != nil {
		return err
	}
	if f.output == "-" {
		return nil
	}
	if err := format.WriteTable(text, p, format.Table{Width: term.Width(text)}); err != nil {
		return output.Explain(err)
	}
	if f.output != "" {
		if _, err := fmt.Fprintf(text, "\nwrote %s\n", f.output); err != nil {
			return output.Explain(err)
		}
	}
	return nil
}

// recordStats is what --stats writes. Fields are added, not changed.
type recordStats struct {
	Schema          string            `json:"schema"`
	Event           string            `json:"event"`
	Frequency       int               `json:"frequency"`
	Samples         uint64            `json:"samples"`
	Lost            uint64            `json:"lost"`
	DistinctStacks  uint64            `json:"distinct_stacks"`
	StacksComplete  uint64            `json:"stacks_complete"`
	StacksByReason  map[string]uint64 `json:"stacks_by_reason"`
	Frames          uint64            `json:"frames"`
	FramesNamed     uint64            `json:"frames_named"`
	UnnamedByModule map[string]uint64 `json:"unnamed_by_module"`
	AgentCPU        float64           `json:"agent_cpu_seconds"`
	StartCPU        float64           `json:"start_cpu_seconds"`
	BPFRun          float64           `json:"bpf_run_seconds"`
	BPFRuns         uint64            `json:"bpf_runs"`
	RSSPeak         uint64            `json:"rss_peak_bytes"`
	MapBytes        uint64            `json:"bpf_map_bytes"`
	FirstSample     float64           `json:"first_sample_seconds"`
	Duration        float64           `json:"duration_seconds"`
	StacksCopied    uint64            `json:"stacks_copied"`
	StacksMerged    uint64            `json:"stacks_merged"`
	CopiesDropped   uint64            `json:"copies_dropped"`
	PagesBuilt      uint64            `json:"unwind_pages_built"`
	PagesEvicted    uint64            `json:"unwind_pages_evicted"`
	PagesRefused    uint64            `json:"unwind_pages_refused"`
	Rows            uint64            `json:"unwind_rows"`
	Rules           uint64            `json:"unwind_rules"`
	BuildSeconds    float64           `json:"unwind_build_seconds"`
	EventsLost      uint64            `json:"process_events_lost"`
	Untracked       uint64            `json:"children_not_sampled"`
	FilesRefused    uint64            `json:"samples_in_refused_files"`
	InstallsRefused uint64            `json:"mapping_tables_refused"`
	RulesRefused    uint64            `json:"unwind_rules_refused"`
}

func writeStats(w io.Writer, p *profiler.Profile, c *pipeline.Cost) error {
	q := &p.Quality
	s := recordStats{
		Schema: "kalypso.record-stats/v1", Event: p.Event, Frequency: p.Frequency,
		Samples: q.Samples, Lost: q.Lost, DistinctStacks: q.DistinctStacks, StacksComplete: q.Complete(),
		StacksByReason: map[string]uint64{}, Frames: q.Frames, FramesNamed: q.FramesNamed, UnnamedByModule: q.UnnamedByModule,
		AgentCPU: c.AgentCPU.Seconds(), StartCPU: c.StartCPU.Seconds(), BPFRun: c.BPFRun.Seconds(), BPFRuns: c.BPFRuns,
		RSSPeak: c.RSSPeak, MapBytes: c.MapBytes, FirstSample: c.FirstSample.Seconds(), Duration: p.Duration.Seconds(),
		StacksCopied: c.Sampler.Copies, StacksMerged: c.Counters.Merged,
		CopiesDropped: c.Sampler.Overflowed + c.Counters.DeferSkipped,
		PagesBuilt:    c.Table.PagesBuilt, PagesEvicted: c.Table.PagesEvicted, PagesRefused: c.Table.PagesRefused,
		Rows: c.Table.Rows, Rules: c.Table.Rules, BuildSeconds: c.Table.BuildTime.Seconds(), EventsLost: c.Table.EventsLost,
		Untracked: c.Counters.ProcessUntracked, FilesRefused: c.Table.ExecutablesRefused,
		InstallsRefused: c.Table.InstallsRefused, RulesRefused: c.Table.RulesRefused,
	}
	for i, n := range q.Stops {
		if n > 0 {
			s.StacksByReason[profiler.Stop(i).String()] = n
		}
	}
	return cli.WriteJSON(w, s)
}

// progressLine is what is said while recording.
func progressLine(p pipeline.Progress) string {
	return fmt.Sprintf("recording %5.1f s   %d samples   lost %d   Ctrl-C ends and writes", p.Elapsed.Seconds(), p.Samples, p.Lost)
}
