package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/term"
	"github.com/kalypso-dev/kalypso/cmd/kalypsoctl/internal/config"
	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/install"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/deploy/secret"
)

// targetFlags are the flags of verbs that hold a stack against a cluster.
type targetFlags struct {
	stack   stackFlags
	cluster clusterFlags
	charts  string
	skip    []string
	adopt   []string
	reset   bool
	lenient bool // without charts, too
}

func (f *targetFlags) register(flags *pflag.FlagSet) {
	f.stack.register(flags)
	chartsFlag(flags, &f.charts, "folder of packaged upstream charts")
	flags.StringSliceVar(&f.skip, "skip", nil, "leave `COMPONENT`s as they are")
	f.cluster.register(flags)
}

func (f *targetFlags) registerAdopt(flags *pflag.FlagSet) {
	flags.StringSliceVar(&f.adopt, "adopt", nil, "take over what others made for `COMPONENT`s")
}

func (f *targetFlags) registerReset(flags *pflag.FlagSet) {
	flags.BoolVar(&f.reset, "reset-values", false, "forget values and profile that were given earlier")
}

// open reads the settings and connects. What is wrong with the command line is
// said before anything else is done.
func (f *targetFlags) open(cmd *cobra.Command, names []string, withNeeds bool) (*install.Stack, error) {
	c, err := f.stack.load()
	if err != nil {
		return nil, err
	}
	chosen, err := choose(cmd, c, names)
	if err != nil {
		return nil, err
	}
	if withNeeds && len(names) > 0 {
		chosen = needed(c.Components(), chosen)
	}
	for _, list := range [][]string{f.skip, f.adopt} {
		if err := known(cmd, list); err != nil {
			return nil, err
		}
	}
	chosen = slices.DeleteFunc(chosen, func(c component.Component) bool { return slices.Contains(f.skip, c.Name) })
	archives, err := openArchives(f.charts)
	var none errNoCharts
	if err != nil && !(f.lenient && errors.As(err, &none)) {
		return nil, err
	}
	if archives != nil {
		if err := checkUpstream(c, archives, chosen); err != nil {
			return nil, err
		}
	}
	cluster, err := f.cluster.connect(cmd.Context())
	if err != nil {
		return nil, err
	}
	if c, err = f.keepProfile(cmd.Context(), c, cluster); err != nil {
		return nil, err
	}
	s := &install.Stack{Cluster: cluster, Archives: archives, Profile: c.Profile, Adopt: f.adopt, Reset: f.reset, Timeout: f.cluster.timeout}
	if s.Timeout <= 0 {
		s.Timeout = forever
	}
	for _, comp := range chosen {
		s.Parts = append(s.Parts, install.Part{Component: comp, Chart: c.Chart(comp.Name), Base: c.Base(comp.Name), Values: c.Given(comp.Name)})
	}
	s.Store = foreignStore(c)
	return s, nil
}

// forever stands for no limit where one is needed: --timeout 0.
const forever = 24 * time.Hour

// foreignStore says whether the object store is somebody else's.
func foreignStore(c *config.Config) bool {
	if !slices.Contains(component.Names(c.Components()), "minio") {
		return true
	}
	store, _ := c.Values("minio")["objectStore"].(helm.Values)
	return store["kind"] == "external"
}

// keepProfile goes on with the profile that the cluster was installed with,
// unless another is asked for.
func (f *targetFlags) keepProfile(ctx context.Context, c *config.Config, cluster *kube.Cluster) (*config.Config, error) {
	if c.ProfileGiven() || f.reset {
		return c, nil
	}
	profile, err := install.Profile(ctx, cluster)
	if err != nil || profile == "" || profile == c.Profile {
		return c, err
	}
	again := f.stack
	again.profile = profile
	return again.load()
}

// needed adds to components what they need, and what that needs.
func needed(all, chosen []component.Component) []component.Component {
	want := map[string]bool{}
	var add func(names []string)
	add = func(names []string) {
		for _, name := range names {
			i := slices.IndexFunc(all, func(c component.Component) bool { return c.Name == name })
			if i >= 0 && !want[name] {
				want[name] = true
				add(all[i].Needs)
			}
		}
	}
	add(component.Names(chosen))
	return slices.DeleteFunc(slices.Clone(all), func(c component.Component) bool { return !want[c.Name] })
}

func newInstallCommand() *cobra.Command {
	var (
		f      targetFlags
		only   []string
		dryRun bool
		yes    bool
		trust  bool
		output cli.Output
		run    installing
	)
	cmd := &cobra.Command{
		Use:   "install [flags] [COMPONENT…]",
		Short: "bring the stack onto a cluster, in order, and wait until it works",
		Long: `Bring the stack, or some components and what they need, onto a cluster: wave after
wave, each when what it needs is ready. The plan is shown first.

It can be run again at any time. What is as it should be is left alone, what an
earlier run left half done is finished, and values that were given earlier are kept.
What others made is not touched unless --adopt names it.

At the end it is proved that what is installed works, as kalypsoctl verify does.
Exit code 3: it is installed, and something does not work.`,
		Example: `  kalypsoctl install                                  the whole stack, in order
  kalypsoctl install --profile small --yes            a small one, without a question
  kalypsoctl install loki                             one component and what it needs
  kalypsoctl install --dry-run                        what would be done?`,
		ValidArgsFunction: completeComponents,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(only) > 0 && len(args) > 0 {
				return cli.Usage(cmd.CommandPath()+" "+strings.Join(args, " "), "components are named either as arguments or by --only")
			}
			if err := errors.Join(output.Check(cmd), mayAsk(cmd, yes || dryRun)); err != nil {
				return err
			}
			run.dryRun = dryRun
			document := func(err error) any { return run.report(cmd.Context(), "kalypso.install/v1", err) }
			return documented(cmd, &output, document, func() (err error) {
				if run.stack, err = f.open(cmd, append(args, only...), len(args) > 0); err != nil {
					return err
				}
				if run.plan, err = run.stack.Plan(cmd.Context()); err != nil {
					return err
				}
				if err := printPlan(cmd.OutOrStdout(), run.stack, run.plan); err != nil {
					return fmt.Errorf("print the plan: %w", err)
				}
				if dryRun {
					return nil
				}
				if run.plan.Changes() && !yes {
					if err := confirm(cmd, "Continue?"); err != nil {
						return err
					}
				}
				if err := apply(cmd, &run); err != nil || trust {
					return err
				}
				return proveInstalled(cmd, &run)
			})
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	output.Register(fl)
	f.register(fl)
	f.cluster.registerTimeout(fl, 10*time.Minute, "how long one component may take (0: no limit)")
	fl.StringSliceVar(&only, "only", nil, "these `COMPONENT`s and not what they need")
	f.registerAdopt(fl)
	f.registerReset(fl)
	fl.BoolVar(&dryRun, "dry-run", false, "show the plan and change nothing")
	fl.BoolVarP(&yes, "yes", "y", false, "do not ask")
	fl.BoolVar(&trust, "no-verify", false, "do not prove at the end that it works")
	quietly(cmd)
	f.cluster.complete(cmd)
	return cmd
}

// apply does what the plan says and tells of it.
func apply(cmd *cobra.Command, run *installing) error {
	stack, p, started := run.stack, run.plan, time.Now()
	var names []string
	for _, step := range p.Steps() {
		names = append(names, step.Name)
	}
	show := newProgress(cmd.OutOrStdout(), names)
	forget := context.AfterFunc(cmd.Context(), func() {
		show.say("Interrupted: what is being sent is finished first; ^C again ends at once.")
	})
	err := stack.Apply(cmd.Context(), p, func(e install.Event) {
		run.states.note(e)
		show.event(e)
	})
	forget()
	show.end()
	if err != nil {
		goesOn(cmd, stack, err)
		return waited(err)
	}
	what := "Ready in " + kube.Age(time.Since(started)) + "."
	if !p.Changes() {
		what = "Nothing to do: everything is as it should be, and ready."
	}
	if _, err := fmt.Fprintf(cmd.OutOrStdout(), "\n%s\n", what); err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	return nil
}

// goesOn tells that nothing is lost.
func goesOn(cmd *cobra.Command, stack *install.Stack, err error) {
	what, stays := "Not finished.", "What was installed stays"
	switch {
	case cmd.Context().Err() != nil && errors.Is(err, context.Canceled):
		what = "Interrupted."
	case stack.RollBack:
		stays = "What was rolled back is as it was before, what came earlier stays"
	}
	_, _ = fmt.Fprintf(cmd.OutOrStdout(), "\n%s %s; %s again goes on from there.\n", what, stays, cmd.CommandPath())
}

// waited makes a timeout one that ends with its exit code.
func waited(err error) error {
	var ready *kube.Timeout
	var works *install.Timeout
	if errors.As(err, &ready) || errors.As(err, &works) {
		return cli.TimedOut(err)
	}
	return err
}

// printPlan prints what is going to be done, one line for each component.
func printPlan(out interface{ Write([]byte) (int, error) }, stack *install.Stack, p *install.Plan) error {
	if _, err := fmt.Fprintf(out, "Plan for context %s (profile %s)\n", stack.Cluster.Context, stack.Profile); err != nil {
		return err
	}
	var rows [][]string
	for _, step := range p.Steps() {
		rows = append(rows, []string{"  " + strconv.Itoa(step.Wave), step.Name, step.Namespace, versions(step), doing(step)})
	}
	if err := term.For(out, os.Getenv).Table(out, []string{"  wave", "component", "namespace", "chart", "action"}, rows); err != nil {
		return err
	}
	for _, what := range p.Lacking {
		if _, err := fmt.Fprintf(out, "  warning: %s, which is neither there nor in this plan\n", what); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(out, credentials(p.Secrets))
	return err
}

// versions is that of the chart, and the one that is installed where that is
// another.
func versions(step *install.Step) string {
	if now := step.Now; now != nil && now.Chart == step.Chart.Name() && now.Version != step.Chart.Version() {
		return now.Version + " -> " + step.Chart.Version()
	}
	return step.Chart.Version()
}

// doing says what is done for a component, and why.
func doing(step *install.Step) string {
	var more []string
	switch step.Action {
	case install.Adopt:
		if step.Now != nil {
			more = append(more, "release of chart "+step.Now.Chart+" "+step.Now.Version)
		}
	case install.Finish:
		if step.Now.Interrupted() {
			more = append(more, "was interrupted")
		} else {
			more = append(more, "failed before")
		}
	case install.Upgrade:
		if n := len(step.Differences); n > 0 {
			more = append(more, plural(n, "object changes", "objects change"))
		}
		if n := len(step.Missing); n > 0 {
			more = append(more, kube.Count(n, "object")+" missing")
		}
		if len(more) == 0 && step.Now.Version == step.Chart.Version() {
			more = append(more, "other values, same objects")
		}
	}
	return strings.Join(append([]string{step.Action.String()}, more...), ", ")
}

// credentials says which Secrets are made.
func credentials(all []secret.Made) string {
	var made []string
	for _, m := range all {
		if m.Created {
			made = append(made, m.String())
		}
	}
	if len(made) == 0 {
		return "Credentials: none are new, none change."
	}
	text := strings.Join(made, ", ")
	if len(made) > 2 { // more do not fit a line
		text = fmt.Sprintf("%s and %d more", made[0], len(made)-1)
	}
	return fmt.Sprintf("Credentials: %s (%s); none change.", kube.Count(len(made), "new Secret"), text)
}
