package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/output"
	"github.com/kalypso-dev/kalypso/deploy/agents"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/api"
)

type dumpFlags struct {
	scopeFlags
	output cli.Output
	most   int
}

func newDumpCommand() *cobra.Command {
	f := &dumpFlags{}
	cmd := &cobra.Command{
		Use:   "dump [flags] TARGET",
		Short: "stacks of every thread of its processes right now; for hangs",
		Long: `Where is every thread of a process right now? Prints the state of each and its
stack, kernel and user, leaf first. The process goes on meanwhile.

TARGET: deploy/NAME, sts/NAME, ds/NAME, job/NAME, pod/NAME, ns/NAME, node/NAME,
pid:N@NODE.
The busiest of the last 15 minutes come first, then those that waited all the time.`,
		Example: `  kalypsoctl dump pod/cart-0 -n shop                  where do its threads wait?
  kalypsoctl dump pid:4242@worker-1                   one process of a node
  kalypsoctl dump deploy/checkout -o json             for a program to read`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cli.Usage(cmd.CommandPath()+" pod/NAME", "which processes? dump takes a target")
			}
			return oneTarget(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args[0]) },
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.IntVar(&f.most, "most", 20, "processes at most, the busiest first")
	f.output.Register(fl)
	f.scopeFlags.register(cmd)
	return cmd
}

func (f *dumpFlags) run(cmd *cobra.Command, target string) error {
	if err := f.output.Check(cmd); err != nil {
		return err
	}
	if f.most < 1 {
		return cli.Usage("--most 20 dumps twenty", "cannot dump %d processes", f.most)
	}
	fleet, _, err := f.open(cmd.Context(), target)
	if err != nil {
		return err
	}
	defer fleet.Close()
	list, more, err := fleet.Dump(cmd.Context(), f.most)
	if err != nil {
		return err
	}
	warn(cmd.ErrOrStderr(), fleet.Missing)
	if len(list) == 0 {
		return &profiler.Fault{
			What: "no process of " + fleet.Scope.Title() + " is known", Why: errors.New("its agents know of none that runs, or that ran in the last 15 minutes"),
			Fix: "kalypsoctl dump pid:N@NODE     takes any process of a node",
		}
	}
	if more > 0 {
		_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "%s not dumped: --most %d takes all\n", plural(more, "more process is", "more processes are"), len(list)+more)
	}
	return output.Explain(f.write(cmd.OutOrStdout(), list))
}

// stacksJSON is a dump and where it was taken. Fields are added, not changed.
type stacksJSON struct {
	Schema    string       `json:"schema"`
	Processes []nodeStacks `json:"processes"`
}

type nodeStacks struct {
	Node string `json:"node"`
	*api.Dump
}

func (f *dumpFlags) write(w io.Writer, list []agents.Stacks) error {
	if !f.output.Text() {
		out := stacksJSON{Schema: "kalypso.dump/v1"}
		for _, s := range list {
			out.Processes = append(out.Processes, nodeStacks{s.Node, s.Dump})
		}
		return f.output.Write(w, out)
	}
	for i, s := range list {
		between := ""
		if i > 0 {
			between = "\n" + strings.Repeat("-", 72) + "\n"
		}
		if _, err := fmt.Fprintf(w, "%snode %s\n", between, profiler.Printable(s.Node)); err != nil {
			return err
		}
		if err := api.WriteDump(w, s.Dump); err != nil {
			return err
		}
	}
	return nil
}
