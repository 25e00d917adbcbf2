package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/output"
	"github.com/kalypso-dev/kalypso/cmd/internal/term"
	"github.com/kalypso-dev/kalypso/cmd/internal/web"
	"github.com/kalypso-dev/kalypso/deploy/agents"
	"github.com/kalypso-dev/kalypso/exporter/format"
	"github.com/kalypso-dev/kalypso/profiler"
)

type profileFlags struct {
	scopeFlags
	period
	duration  time.Duration
	frequency int
	output    string
	focus     string
	by        string
	rows      int
	web       bool
}

func newProfileCommand() *cobra.Command {
	f := &profileFlags{}
	cmd := &cobra.Command{
		Use:   "profile [flags] [TARGET]",
		Short: "where does its CPU time go? asks the agents, now or of the last minutes",
		Long: `Ask the agents of the nodes that TARGET runs on for what it does from now on, add it
up over pods and nodes, and print the hottest functions. Writes a pprof file, or what
-o names, by its ending: ` + output.Endings() + `.
In a pipe: folded stacks.

` + targetHelp + `
--from reads what was recorded anyway: agents remember 15 minutes, what is older is
read from the Pyroscope in the cluster.`,
		Example: `  kalypsoctl profile deploy/checkout -d 15s           where does its CPU time go?
  kalypsoctl profile ns/shop --by pod                 which pods of it are busy?
  kalypsoctl profile pod/cart-0 -n shop -o cart.html  a flame graph in one file
  kalypsoctl profile node/worker-1 --from -5m         what did the node do in the last 5 minutes?
  kalypsoctl profile deploy/checkout --from -3h --to -2h
                                                      what did it do two hours ago?
  kalypsoctl profile pid:4242@worker-1 --web          a process, in the browser
  kalypsoctl profile deploy/checkout | flamegraph.pl  folded stacks for other tools`,
		Args: oneTarget,
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, strings.Join(args, "")) },
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.DurationVarP(&f.duration, "duration", "d", 10*time.Second, "how long; up to 1m")
	fl.IntVarP(&f.frequency, "frequency", "F", 99, "samples a second and CPU, as long as it takes; 0: as each agent samples anyway")
	f.period.register(fl)
	fl.StringVarP(&f.output, "output", "o", "", "file to write; - writes folded stacks to standard output")
	fl.StringVar(&f.focus, "focus", "", "only stacks with a function that `REGEXP` fits")
	fl.StringVar(&f.by, "by", "", "list the shares of each: pod, container, service or node")
	fl.IntVar(&f.rows, "rows", 20, "functions at most")
	fl.BoolVar(&f.web, "web", false, "show the result in a browser, on localhost")
	f.scopeFlags.register(cmd)
	return cmd
}

// maxDuration is the most that an agent records at a time.
const maxDuration = time.Minute

func (f *profileFlags) check(cmd *cobra.Command) (*regexp.Regexp, error) {
	if f.duration <= 0 || f.duration > maxDuration {
		return nil, cli.Usage("-d 10s records for ten seconds; --from -5m reads what was recorded anyway", "cannot record for %s", f.duration)
	}
	if f.frequency < 0 || f.frequency > 1000 {
		return nil, cli.Usage("-F takes 0 to 1000", "cannot sample at %d Hz", f.frequency)
	}
	if f.rows < 1 {
		return nil, cli.Usage("--rows 20 lists twenty", "cannot list %d rows", f.rows)
	}
	if f.given() {
		for _, other := range []string{"duration", "frequency"} {
			if cmd.Flags().Changed(other) {
				return nil, cli.Usage("leave --"+other+" out", "--from reads what was recorded, --%s is about what will be", other)
			}
		}
	}
	if err := f.period.check(time.Now()); err != nil {
		return nil, err
	}
	if f.by != "" {
		if err := cli.OneOf(cmd, "by", f.by, "pod", "container", "service", "node"); err != nil {
			return nil, err
		}
	}
	if f.focus == "" {
		return nil, nil
	}
	focus, err := regexp.Compile(f.focus)
	if err != nil {
		return nil, cli.Wrong(&profiler.Fault{What: fmt.Sprintf("--focus cannot be %q", f.focus), Why: err, Fix: `--focus 'json.*Decode' is a regular expression; \. is a dot`})
	}
	return focus, nil
}

func (f *profileFlags) run(cmd *cobra.Command, target string) error {
	focus, err := f.check(cmd)
	if err != nil {
		return err
	}
	text := cmd.OutOrStdout()
	path := f.output
	if path == "" && !f.web {
		if path = "-"; term.Width(text) > 0 {
			path = fileName(target, time.Now())
		}
	}
	out, err := output.NewProfile(path)
	if err != nil {
		return cli.Wrong(err)
	}
	defer out.Discard()

	got, err := f.read(cmd, target, focus)
	if err != nil {
		return err
	}
	p := got.profile
	if err := out.Write(p); err != nil {
		return err
	}
	if path == "-" {
		tellRemarks(cmd.ErrOrStderr(), p)
		return nil
	}
	if err := f.print(text, got); err != nil {
		return output.Explain(err)
	}
	if path != "" {
		if _, err := io.WriteString(text, wrote(path, term.Width(text))); err != nil {
			return output.Explain(err)
		}
	}
	if f.web {
		return web.Serve(cmd.Context(), text, web.Config{}, web.Page{Name: p.Host, Profile: p})
	}
	return nil
}

// read gives what the target does from now on or did, of the stacks that focus
// fits; nil is all.
func (f *profileFlags) read(cmd *cobra.Command, target string, focus *regexp.Regexp) (*recorded, error) {
	find := agents.Find
	if f.given() {
		find = agents.FindPast
		now := time.Now()
		from, to, err := f.parse(now)
		if err != nil {
			return nil, err
		}
		if f.isStored(from, now) {
			return f.stored(cmd, target, from, to, focus)
		}
	}
	fleet, _, err := f.openAs(cmd.Context(), target, find)
	if err != nil {
		return nil, err
	}
	defer fleet.Close()
	answer, err := f.ask(cmd.Context(), cmd.ErrOrStderr(), fleet)
	if err != nil {
		return nil, err
	}
	warn(cmd.ErrOrStderr(), fleet.Missing)
	if answer.Samples() == 0 {
		return nil, f.idle(fleet.Scope, answer)
	}
	if focus != nil {
		if answer.Keep(func(s *profiler.Sample) bool { return fits(focus, s) }); answer.Samples() == 0 {
			return nil, f.unfocused(fleet.Scope)
		}
	}
	out := &recorded{profile: answer.Whole()}
	out.profile.Host = fleet.Scope.Title()
	if f.by != "" {
		out.shares = answer.Shares(partOf(f.by))
	}
	return out, nil
}

// tellRemarks tells what has to be known of a profile where no table does.
func tellRemarks(w io.Writer, p *profiler.Profile) {
	for _, r := range p.Remarks {
		fmt.Fprintf(w, "note: %s\n", r)
	}
}

// unfocused says that nothing is left of a target.
func (f *profileFlags) unfocused(target fmt.Stringer) error {
	return &profiler.Fault{What: fmt.Sprintf("no stack of %s has a function that %q fits", target, f.focus), Fix: "leave --focus out to see what there is"}
}

// wrote names the file that was written, and how it is looked at, on one line where
// that fits.
func wrote(path string, columns int) string {
	line := "wrote " + path
	if !strings.HasSuffix(path, (format.Pprof{}).Ending()) {
		return "\n" + line + "\n"
	}
	view, between := "view: kalypsoctl ui "+shellWord(path), "     "
	if columns > 0 && utf8.RuneCountInString(line+between+view) > columns {
		between = "\n"
	}
	return "\n" + line + between + view + "\n"
}

// fileName is the file that is written when none is named: of what, and when.
func fileName(target string, at time.Time) string {
	if target == "" {
		target = "cluster"
	}
	if kind, name, ok := strings.Cut(target, "/"); ok {
		target = name
		if kind == "ns" || kind == "node" {
			target = kind + "-" + name
		}
	}
	target = strings.NewReplacer(":", "-", "@", "-", "/", "-").Replace(target)
	return target + at.Format("-20060102-150405") + format.Pprof{}.Ending()
}

// ask records, or reads what was recorded.
func (f *profileFlags) ask(ctx context.Context, w io.Writer, fleet *agents.Fleet) (*agents.Answer, error) {
	if f.given() {
		from, to, err := f.parse(time.Now())
		if err != nil {
			return nil, err
		}
		return fleet.History(ctx, from, to)
	}
	notes := term.NewNotes(w)
	defer notes.End()
	length, title := f.duration.Seconds(), fleet.Scope.Title()
	defer live(notes, func(elapsed float64) string {
		state := "recording"
		if elapsed > length {
			state, elapsed = "adding up", length
		}
		return fmt.Sprintf("%s %4.1f of %g s   %s", state, elapsed, length, title)
	})()
	return fleet.Record(ctx, f.duration, f.frequency)
}

// live shows a line on a terminal that changes with the seconds, until it is ended.
func live(notes *term.Notes, line func(elapsed float64) string) (end func()) {
	begin, stop, over := time.Now(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			notes.Line(line(time.Since(begin).Seconds()) + "   Ctrl-C gives up")
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	return func() {
		close(stop)
		<-over
	}
}

// idle explains that there is no sample.
func (f *profileFlags) idle(s *agents.Scope, a *agents.Answer) error {
	fault := &profiler.Fault{
		What: fmt.Sprintf("%s used no CPU in %s", s.Title(), a.Whole().Duration.Round(100*time.Millisecond)),
		Why:  errors.New("no sample is of it"),
		Fix:  "kalypsoctl profile --from -15m looks further back; dump tells where its threads wait",
	}
	if f.given() {
		fault.Fix = "kalypsoctl dump tells where its threads wait; without --from it records what comes"
	}
	return fault
}

// fits says whether a stack has a function that an expression fits.
func fits(focus *regexp.Regexp, s *profiler.Sample) bool {
	if s.Stack == nil {
		return false
	}
	for _, l := range s.Stack.Locations {
		for i := range l.Frames {
			if focus.MatchString(format.FrameName(l, &l.Frames[i])) {
				return true
			}
		}
	}
	return false
}

// print prints the shares that were asked for, then functions.
func (f *profileFlags) print(w io.Writer, got *recorded) error {
	width := term.Width(w)
	b := bufio.NewWriter(w)
	if f.by != "" {
		b.WriteString("   share   cores  " + f.by + "\n")
		for i, s := range got.shares {
			if i == f.rows {
				fmt.Fprintf(b, "and %s\n", plural(len(got.shares)-i, "more", "more"))
				break
			}
			line := fmt.Sprintf("%6.1f %% %7.2f  %s", s.Percent, s.Cores, profiler.Printable(s.Name))
			if width > 0 {
				line = term.Cut(line, width)
			}
			b.WriteString(line + "\n")
		}
		b.WriteByte('\n')
	}
	if err := format.WriteTable(b, got.profile, format.Table{Width: width, Rows: f.rows, NoCgroups: true, Facts: got.facts}); err != nil {
		return err
	}
	return b.Flush()
}

// partOf names what a workload is a part of.
func partOf(by string) func(*profiler.Workload) string {
	get := func(w *profiler.Workload, key string) string {
		if w == nil {
			return ""
		}
		return w.Attribute(key)
	}
	return func(w *profiler.Workload) string {
		name := get(w, "service.name")
		switch by {
		case "node":
			name = get(w, "k8s.node.name")
			if name == "" {
				name = get(w, "host.name")
			}
		case "pod", "container":
			pod := get(w, "k8s.pod.name")
			if pod == "" {
				return "[no pod]"
			}
			name = get(w, "k8s.namespace.name") + "/" + pod
			if by == "container" {
				name += "/" + get(w, "k8s.container.name")
			}
		}
		if name == "" {
			return "[unknown]"
		}
		return name
	}
}

// exists says whether an argument is a file.
func exists(path string) bool {
	st, err := os.Stat(path)
	return err == nil && !st.IsDir()
}
