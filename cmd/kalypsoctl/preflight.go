package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/checks"
	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/kalypsoctl/internal/config"
	"github.com/kalypso-dev/kalypso/deploy/check"
	"github.com/kalypso-dev/kalypso/deploy/install"
	"github.com/kalypso-dev/kalypso/deploy/preflight"
)

// preflightLimit is for one check; most take milliseconds, and planning against
// a slow cluster some seconds.
const preflightLimit = 30 * time.Second

// preflightFlags are its flags.
type preflightFlags struct {
	targetFlags
	output     cli.Output
	only       []string
	components []string
	short      bool
}

func newPreflightCommand() *cobra.Command {
	f := &preflightFlags{}
	cmd := &cobra.Command{
		Use:   "preflight [flags]",
		Short: "can this cluster run the stack?",
		Long: `Can this cluster run the stack? Holds what an installation with the same flags
would make against what the API server says: rights, nodes, memory, volumes, what is
there already. Changes nothing, starts no pod, needs no internet. Before charts pull,
what depends on the charts is not known.
Exit code 0: it can. 3: it cannot; each failure has a fix to type.`,
		Example: `  kalypsoctl preflight                                can this cluster run the stack?
  kalypsoctl preflight --profile small                and a small one?
  kalypsoctl preflight --short                        only what is wrong
  kalypsoctl preflight --only memory,storage          some checks
  kalypsoctl preflight -o json                        for a program to read`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.output.Check(cmd); err != nil {
				return err
			}
			// What is typed wrong is said before a cluster is asked.
			if _, err := checks.Select(cmd, preflight.Checks(preflight.Config{}), f.only); err != nil {
				return err
			}
			if err := known(cmd, f.components); err != nil {
				return err
			}
			return f.run(cmd)
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	f.output.Register(fl)
	fl.StringSliceVar(&f.only, "only", nil, "run only the checks with these `ID`s")
	fl.StringSliceVar(&f.components, "component", nil, "only for these `COMPONENT`s and what they need")
	fl.BoolVar(&f.short, "short", false, "print only what does not work, and the last line")
	f.register(fl)
	f.registerAdopt(fl)
	f.cluster.complete(cmd)
	return cmd
}

func (f *preflightFlags) run(cmd *cobra.Command) error {
	stack, err := f.openLeniently(cmd)
	if err != nil {
		return err
	}
	list, err := checks.Select(cmd, preflight.Checks(preflight.Config{
		Cluster: stack.Cluster, Stack: stack,
		Smaller: func() []*install.Stack { return f.smaller(cmd, stack) },
		Command: func(words ...string) string { return f.command(cmd, words) },
	}), f.only)
	if err != nil {
		return err
	}
	out, ctx := cmd.OutOrStdout(), quiet(cmd.Context())
	var report *check.Report
	if !f.output.Text() {
		report = check.Run(ctx, list, preflightLimit, nil)
		err = f.output.Write(out, preflightDocument(stack, report))
	} else {
		if _, err = fmt.Fprintf(out, "Context %s (Kubernetes %s, profile %s)\n", stack.Cluster.Context, stack.Cluster.Version, stack.Profile); err == nil {
			report, err = checks.Print(ctx, out, list, preflightLimit, f.short, nil)
			if err == nil {
				_, err = fmt.Fprintln(out, preflightVerdict(report))
			}
		}
	}
	switch {
	case err != nil:
		return fmt.Errorf("print the checks: %w", err)
	case ctx.Err() != nil:
		return cli.Exit(cli.ExitInterrupted)
	case !report.Healthy():
		return cli.Exit(cli.ExitNotHealthy)
	}
	return nil
}

// openLeniently opens the stack also for those who may not see what is
// installed: which rights are missing is one of the findings.
func (f *preflightFlags) openLeniently(cmd *cobra.Command) (*install.Stack, error) {
	ask := f.targetFlags
	ask.reset = true   // asks for no earlier profile
	ask.lenient = true // what needs the charts is not known without them
	stack, err := ask.open(cmd, f.components, true)
	if err != nil {
		return nil, err
	}
	stack.Reset = false
	c, err := f.stack.load()
	if err != nil || c.ProfileGiven() {
		return stack, err
	}
	if profile, err := install.Profile(cmd.Context(), stack.Cluster); err == nil && profile != "" && profile != stack.Profile {
		ask.stack.profile = profile
		if stack, err = ask.open(cmd, f.components, true); err != nil {
			return nil, err
		}
		stack.Reset = false
	}
	return stack, nil
}

// smaller gives the stack in the profiles below its own, largest first.
func (f *preflightFlags) smaller(cmd *cobra.Command, stack *install.Stack) []*install.Stack {
	var out []*install.Stack
	profiles := config.Profiles() // smallest first
	for i := slices.Index(profiles, stack.Profile) - 1; i >= 0; i-- {
		ask := f.targetFlags
		ask.stack.profile, ask.reset, ask.lenient = profiles[i], true, true
		if s, err := ask.open(cmd, f.components, true); err == nil {
			out = append(out, s)
		}
	}
	return out
}

// command is a command line with the flags that were given here and matter
// there; words given now win.
func (f *preflightFlags) command(cmd *cobra.Command, words []string) string {
	line := append([]string{cmd.Root().Name()}, words...)
	for _, name := range []string{"context", "kubeconfig", "charts", "file", "profile", "adopt", "skip", "set"} {
		flag := cmd.Flags().Lookup(name)
		if flag == nil || !flag.Changed || slices.Contains(words, "--"+name) {
			continue
		}
		values := []string{flag.Value.String()}
		switch name {
		case "adopt":
			values = []string{strings.Join(f.adopt, ",")}
		case "skip":
			values = []string{strings.Join(f.skip, ",")}
		case "set":
			values = f.stack.set
		}
		for _, value := range values {
			line = append(line, "--"+name, shellWord(value))
		}
	}
	return strings.Join(line, " ")
}

// shellWord is a value as a shell takes it.
func shellWord(value string) string {
	if value != "" && !strings.ContainsAny(value, " \t\n'\"\\$`&|;<>()*?[]{}#~!") {
		return value
	}
	return "'" + strings.ReplaceAll(value, "'", `'\''`) + "'"
}

// preflightVerdict is the last line.
func preflightVerdict(r *check.Report) string {
	states := map[check.State]int{}
	for _, res := range r.Results {
		states[res.State]++
	}
	broken, limits := r.Failures(check.Required), r.Failures(check.Limit)
	line := fmt.Sprintf("%d passed, %d failed", states[check.Passed], len(broken))
	if n := len(limits); n > 0 {
		line += ", " + count(n, "limitation")
	}
	if n := states[check.Skipped]; n > 0 {
		line += fmt.Sprintf(", %d not tried", n)
	}
	line += fmt.Sprintf(" in %.1f s", r.Took.Seconds())
	if failed := append(broken, limits...); len(failed) > 0 {
		line += "     more: kalypsoctl explain " + failed[0].ID
	}
	return line
}

// preflightReport is kalypso.preflight/v1. Fields are added, not changed.
type preflightReport struct {
	Schema      string       `json:"schema"`
	Context     string       `json:"context"`
	Kubernetes  string       `json:"kubernetes"`
	Profile     string       `json:"profile"`
	Healthy     bool         `json:"healthy"`
	Limitations int          `json:"limitations"`
	DurationMS  int64        `json:"duration_ms"`
	Checks      []checks.Row `json:"checks"`
}

func preflightDocument(stack *install.Stack, r *check.Report) preflightReport {
	return preflightReport{
		Schema: "kalypso.preflight/v1", Context: stack.Cluster.Context, Kubernetes: stack.Cluster.Version, Profile: stack.Profile,
		Healthy: r.Healthy(), Limitations: len(r.Failures(check.Limit)), DurationMS: r.Took.Milliseconds(), Checks: checks.Rows(r),
	}
}
