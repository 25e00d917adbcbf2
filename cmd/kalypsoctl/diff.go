package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/term"
	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/install"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/deploy/secret"
	"github.com/kalypso-dev/kalypso/profiler"
)

func newDiffCommand() *cobra.Command {
	var (
		f        targetFlags
		exitCode bool
		output   cli.Output
	)
	cmd := &cobra.Command{
		Use:   "diff [flags] [COMPONENT…]",
		Short: "what would install change on this cluster?",
		Long: `Compare what is installed with what install would make of it now, object by object.
What Secrets hold is not shown, nor labels and annotations that change with every
version of a chart.`,
		Example: `  kalypsoctl diff                                     what would install change?
  kalypsoctl diff loki --set loki.loki.singleBinary.replicas=2    and with this value?
  kalypsoctl diff --exit-code                         4 if there are changes, for a script`,
		ValidArgsFunction: completeComponents,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := output.Check(cmd); err != nil {
				return err
			}
			stack, err := f.open(cmd, args, false)
			if err != nil {
				return err
			}
			p, err := stack.Plan(cmd.Context())
			if err != nil {
				return err
			}
			if output.Text() {
				err = printDiff(cmd.OutOrStdout(), p)
			} else {
				err = output.Write(cmd.OutOrStdout(), newDiffReport(stack, p))
			}
			if err != nil {
				return fmt.Errorf("print the differences: %w", err)
			}
			if exitCode && p.Changes() {
				return cli.Exit(cli.ExitChanges)
			}
			return nil
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	output.Register(fl)
	f.register(fl)
	f.registerAdopt(fl)
	f.registerReset(fl)
	fl.BoolVar(&exitCode, "exit-code", false, "end with 4 if there are changes")
	quietly(cmd)
	f.cluster.complete(cmd)
	return cmd
}

// printDiff prints every object that is not as it will be, and a sum.
func printDiff(out io.Writer, p *install.Plan) error {
	var b strings.Builder
	style := term.For(out, os.Getenv)
	var sum struct{ change, add, gone, restart int }
	for _, step := range p.Steps() {
		if step.Action == install.Keep {
			continue
		}
		fmt.Fprintf(&b, "%s: %s\n", step.Name, doing(step))
		if step.Now == nil {
			n := len(step.Manifests.Objects) + len(step.Manifests.CRDs) + len(step.Manifests.Hooks)
			sum.add += n
			fmt.Fprintf(&b, "  %s, all of them new: kalypsoctl render %s shows them\n\n", kube.Count(n, "object"), step.Name)
			continue
		}
		for _, o := range step.Missing {
			sum.add++
			fmt.Fprintf(&b, "  %s %s is missing\n", o.Kind, o.Name)
		}
		for i := range step.Differences {
			d := &step.Differences[i]
			switch {
			case d.Before == "":
				sum.add++
			case d.After == "":
				sum.gone++
			default:
				sum.change++
			}
			if d.Pods {
				sum.restart++
			}
			printDifference(&b, style, d)
		}
		b.WriteString("\n")
	}
	if slices.ContainsFunc(p.Secrets, func(m secret.Made) bool { return m.Created }) {
		fmt.Fprintln(&b, credentials(p.Secrets))
	}
	if b.Len() == 0 {
		b.WriteString("No differences: install would change nothing.\n")
	} else {
		fmt.Fprintf(&b, "%s, %d new, %d deleted, %s\n", plural(sum.change, "object changes", "objects change"), sum.add, sum.gone,
			plural(sum.restart, "workload restarts its pods", "workloads restart their pods"))
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func printDifference(b *strings.Builder, style term.Style, d *helm.Difference) {
	how := ""
	switch {
	case d.Before == "":
		how = ": new"
	case d.After == "":
		how = ": deleted"
	case d.Pods:
		how = ": its pods restart"
	}
	fmt.Fprintf(b, "  %s %s%s\n", d.Kind, d.Name, how)
	if d.Before == "" || d.After == "" {
		return
	}
	text := d.Text()
	if text == "" {
		b.WriteString("    only labels and annotations that change with every version\n")
	}
	for line := range strings.Lines(text) {
		line = "    " + strings.TrimSuffix(line, "\n")
		if style.Colour {
			switch line[4] {
			case '+':
				line = "\x1b[32m" + line + "\x1b[0m"
			case '-':
				line = "\x1b[31m" + line + "\x1b[0m"
			}
		}
		b.WriteString(line + "\n")
	}
}

func plural(n int, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, more)
}

func newUpgradeCommand() *cobra.Command {
	var (
		f      targetFlags
		dryRun bool
		yes    bool
		back   bool
		to     string
		output cli.Output
		run    installing
	)
	cmd := &cobra.Command{
		Use:   "upgrade [flags] [COMPONENT…]",
		Short: "bring what is installed to the version and values of now",
		Long: `Bring what is installed to the charts of this kalypsoctl and to the values that are
given now; the differences are shown first. Values that were given earlier are kept,
on top of the new charts' own. Components that are not installed stay so. Another
version is another kalypsoctl: in a script, --to makes sure that it is the one.

With --rollback-on-failure the releases of a wave of which one does not get ready
are brought back to what they were, and waited for. CRDs stay as they became.`,
		Example: `  kalypsoctl upgrade                                  to the charts of this kalypsoctl
  kalypsoctl upgrade --set loki.loki.singleBinary.replicas=2    another value
  kalypsoctl upgrade --reset-values -f kalypso.yaml   forget what was given earlier`,
		ValidArgsFunction: completeComponents,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := errors.Join(output.Check(cmd), mayAsk(cmd, yes || dryRun)); err != nil {
				return err
			}
			if err := rightVersion(f.stack, to); err != nil {
				return err
			}
			run.dryRun = dryRun
			document := func(err error) any { return run.report(cmd.Context(), "kalypso.upgrade/v1", err) }
			return documented(cmd, &output, document, func() (err error) {
				if run.stack, err = f.open(cmd, args, false); err != nil {
					return err
				}
				if err := run.stack.OnlyInstalled(cmd.Context()); err != nil {
					return err
				}
				if len(run.stack.Parts) == 0 {
					return &profiler.Fault{What: "nothing of it is installed on " + run.stack.Cluster.Context, Fix: "kalypsoctl install"}
				}
				run.stack.RollBack = back
				if run.plan, err = run.stack.Plan(cmd.Context()); err != nil {
					return err
				}
				if err := printDiff(cmd.OutOrStdout(), run.plan); err != nil {
					return fmt.Errorf("print the differences: %w", err)
				}
				if dryRun || !run.plan.Changes() {
					return nil
				}
				if !yes {
					if err := confirm(cmd, "Upgrade "+run.stack.Cluster.Context+"?"); err != nil {
						return err
					}
				}
				return apply(cmd, &run)
			})
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	output.Register(fl)
	f.register(fl)
	f.cluster.registerTimeout(fl, 10*time.Minute, "how long one component may take (0: no limit)")
	f.registerReset(fl)
	fl.StringVar(&to, "to", "", "refuse unless this is the kalypsoctl of `VERSION`")
	fl.BoolVar(&back, "rollback-on-failure", false, "bring the releases of a wave that fails back to what they were")
	fl.BoolVar(&dryRun, "dry-run", false, "show the differences and change nothing")
	fl.BoolVarP(&yes, "yes", "y", false, "do not ask")
	quietly(cmd)
	f.cluster.complete(cmd)
	return cmd
}

// rightVersion refuses to bring the stack to a version that is not that of the charts in
// this program.
func rightVersion(f stackFlags, version string) error {
	if version == "" {
		return nil
	}
	c, err := f.load()
	if err != nil {
		return err
	}
	have, want := c.Chart(component.All()[0].Name).Version(), strings.TrimPrefix(version, "v")
	if have == want {
		return nil
	}
	return cli.Wrong(&profiler.Fault{
		What: fmt.Sprintf("this kalypsoctl brings the stack to version %s, not to %s", have, want),
		Why:  errors.New("charts go with the program that orders, waits for and proves them"),
		Fix:  "take kalypsoctl " + want + ": https://github.com/kalypso-dev/kalypso/releases",
	})
}
