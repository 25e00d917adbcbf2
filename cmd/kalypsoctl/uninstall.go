package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/term"
	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/install"
	"github.com/kalypso-dev/kalypso/deploy/kube"
)

func newUninstallCommand() *cobra.Command {
	var (
		f      clusterFlags
		o      install.RemoveOptions
		yes    bool
		dryRun bool
		output cli.Output
		run    removing
	)
	cmd := &cobra.Command{
		Use:   "uninstall [flags] [COMPONENT…]",
		Short: "take the stack, or some components, from a cluster",
		Long: `Take the stack, or some components, from a cluster, in the reverse order.

Volumes, the credentials that belong to them, and custom resource definitions stay,
as do things that others made. What stays is listed, with the command that removes
it.`,
		Example: `  kalypsoctl uninstall                                everything but volumes and CRDs
  kalypsoctl uninstall istio-gateway istiod           some components
  kalypsoctl uninstall --delete-data --delete-crds    everything, metrics and traces with it`,
		ValidArgsFunction: completeComponents,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := known(cmd, args); err != nil {
				return err
			}
			if err := errors.Join(output.Check(cmd), mayAsk(cmd, yes || dryRun)); err != nil {
				return err
			}
			if len(args) == 0 {
				args = component.Names(component.All())
			}
			o.Timeout = f.timeout
			if o.Timeout <= 0 {
				o.Timeout = forever
			}
			run.dryRun = dryRun
			document := func(err error) any { return run.report(cmd.Context(), err) }
			return documented(cmd, &output, document, func() error {
				cluster, err := f.connect(cmd.Context())
				if err != nil {
					return err
				}
				run.context = cluster.Context
				stack := &install.Stack{Cluster: cluster, Timeout: o.Timeout}
				if run.removal, err = stack.PlanRemoval(cmd.Context(), args, o); err != nil {
					return err
				}
				if err := printRemoval(cmd.OutOrStdout(), cluster, run.removal, o); err != nil {
					return fmt.Errorf("print the plan: %w", err)
				}
				if dryRun {
					return nil
				}
				if !yes {
					if err := confirm(cmd, "Remove this from "+cluster.Context+"?"); err != nil {
						return err
					}
				}
				return remove(cmd, stack, &run)
			})
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	output.Register(fl)
	fl.BoolVar(&o.Data, "delete-data", false, "volumes too, and credentials: all metrics, logs, traces, profiles")
	fl.BoolVar(&o.CRDs, "delete-crds", false, "custom resource definitions too, and all objects of these kinds")
	f.register(fl)
	f.registerTimeout(fl, 5*time.Minute, "how long one component may take (0: no limit)")
	fl.BoolVar(&dryRun, "dry-run", false, "show what would go and change nothing")
	fl.BoolVarP(&yes, "yes", "y", false, "do not ask")
	quietly(cmd)
	f.complete(cmd)
	return cmd
}

// printRemoval prints what is going to be removed.
func printRemoval(out io.Writer, cluster *kube.Cluster, r *install.Removal, o install.RemoveOptions) error {
	var rows [][]string
	for i, wave := range r.Waves {
		for _, gone := range wave {
			rows = append(rows, []string{"  " + strconv.Itoa(i+1), gone.Name, gone.Namespace, gone.Now.Version, "remove"})
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Plan for context %s\n", cluster.Context)
	if len(rows) == 0 {
		b.WriteString("  no component is installed\n")
	} else if err := term.For(out, os.Getenv).Table(&b, []string{"  wave", "component", "namespace", "chart", "action"}, rows); err != nil {
		return err
	}
	for _, what := range r.Foreign {
		fmt.Fprintf(&b, "  stays: %s\n", what)
	}
	for _, what := range r.Needed {
		fmt.Fprintf(&b, "  warning: %s\n", what)
	}
	b.WriteString("Volumes and credentials " + stays(o.Data) + ", CRDs " + stays(o.CRDs) + ".\n")
	_, err := io.WriteString(out, b.String())
	return err
}

func stays(deleted bool) string {
	if deleted {
		return "are deleted"
	}
	return "stay"
}

// remove does what was agreed to and tells what is left.
func remove(cmd *cobra.Command, stack *install.Stack, run *removing) error {
	started, r := time.Now(), run.removal
	var names []string
	for _, wave := range r.Waves {
		for _, gone := range wave {
			names = append(names, gone.Name)
		}
	}
	out := cmd.OutOrStdout()
	show := newProgress(out, names)
	left, err := stack.Remove(cmd.Context(), r, func(e install.Event) {
		run.states.note(e)
		show.event(e)
	})
	run.left = left
	show.end()
	if err != nil {
		_, _ = fmt.Fprintf(out, "\nNot finished. %s again goes on from here.\n", cmd.CommandPath())
		return waited(err)
	}
	if err := printLeft(out, left); err != nil {
		return fmt.Errorf("print what is left: %w", err)
	}
	if _, err := fmt.Fprintf(out, "\nRemoved in %s.\n", kube.Age(time.Since(started))); err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	return nil
}

// printLeft lists what stays, and how it goes.
func printLeft(out io.Writer, left []install.Left) error {
	if len(left) == 0 {
		return nil
	}
	var b strings.Builder
	b.WriteString("\nLeft on the cluster:\n")
	for _, l := range left {
		names := l.Names
		if l.What == "CRDs" {
			names = groups(names)
		}
		fmt.Fprintf(&b, "  %s  (%s)\n", l.What, l.Command)
		for _, name := range names {
			fmt.Fprintf(&b, "    %s\n", name)
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// groups counts CRDs by their API group.
func groups(crds []string) []string {
	counts := map[string]int{}
	for _, name := range crds {
		_, group, _ := strings.Cut(name, ".")
		counts[group]++
	}
	var out []string
	for _, group := range sortedKeys(counts) {
		out = append(out, fmt.Sprintf("%d of %s", counts[group], group))
	}
	return out
}
