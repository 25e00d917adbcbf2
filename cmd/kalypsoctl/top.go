package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/output"
	"github.com/kalypso-dev/kalypso/cmd/internal/term"
	"github.com/kalypso-dev/kalypso/cmd/internal/top"
	"github.com/kalypso-dev/kalypso/deploy/agents"
	"github.com/kalypso-dev/kalypso/profiler/api"
)

type topFlags struct {
	scopeFlags
	by     string
	rows   int
	once   bool
	output cli.Output
}

func newTopCommand() *cobra.Command {
	f := &topFlags{}
	cmd := &cobra.Command{
		Use:   "top [flags] [TARGET]",
		Short: "what is hot in the cluster now, as its agents see it",
		Long: `Where does CPU time go now? Asks the agents of the nodes that TARGET runs on for the
last 30 seconds, again every two seconds on a terminal. q or ^C ends.

` + targetHelp,
		Example: `  kalypsoctl top                                      hottest functions of the cluster, live
  kalypsoctl top --by pod                             busiest pods
  kalypsoctl top deploy/checkout --once               one table, as in a pipe`,
		Args: oneTarget,
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, strings.Join(args, "")) },
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringVar(&f.by, "by", string(api.ByFunction), "what to list: function, pod, service, process or module")
	fl.IntVar(&f.rows, "rows", 0, "rows at most; 20, or as many as fit on the terminal")
	fl.BoolVar(&f.once, "once", false, "print one table and end")
	f.output.Register(fl)
	f.scopeFlags.register(cmd)
	return cmd
}

func (f *topFlags) run(cmd *cobra.Command, target string) error {
	by := []string{string(api.ByFunction), string(api.ByPod), string(api.ByService), string(api.ByProcess), string(api.ByModule)}
	if err := errors.Join(cli.OneOf(cmd, "by", f.by, by...), f.output.Check(cmd)); err != nil {
		return err
	}
	if f.rows < 0 {
		return cli.Usage("--rows 20 lists twenty", "cannot list %d rows", f.rows)
	}
	ctx := cmd.Context()
	fleet, _, err := f.open(ctx, target)
	if err != nil {
		return err
	}
	defer fleet.Close()
	out := cmd.OutOrStdout()
	t, err := f.ask(ctx, fleet, f.limit(20))
	if err != nil {
		return err
	}
	screen := term.NewScreen(cmd.InOrStdin(), out)
	switch {
	case !f.output.Text():
		warn(cmd.ErrOrStderr(), fleet.Missing)
		t.Schema = "kalypso.top/v1"
		return output.Explain(f.output.Write(out, t))
	case f.once || screen == nil:
		warn(cmd.ErrOrStderr(), fleet.Missing)
		_, err = io.WriteString(out, fleet.Scope.Title()+"\n"+strings.Join(top.Lines(t, term.Width(out)), "\n")+"\n")
		return output.Explain(err)
	}
	missing := fleet.Missing
	return output.Explain(screen.Run(ctx, func(ctx context.Context, columns, lines int) []string {
		fleet.Missing = nil
		head := []string{fleet.Scope.Title()}
		t, err := f.ask(ctx, fleet, f.limit(max(lines-top.Head-1-len(missing), 1)))
		if err != nil {
			var text strings.Builder
			cli.PrintError(&text, err)
			return append(head, strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")...)
		}
		for _, m := range append(missing, fleet.Missing...) {
			head = append(head, "warning: "+m.Error())
		}
		return append(head, top.Lines(t, columns)...)
	}))
}

func (f *topFlags) limit(normally int) int {
	if f.rows > 0 {
		return f.rows
	}
	return normally
}

// topSpan is how much of the past a table is about.
const topSpan = 30 * time.Second

func (f *topFlags) ask(ctx context.Context, fleet *agents.Fleet, limit int) (*api.Top, error) {
	return fleet.Top(ctx, topSpan, api.By(f.by), limit)
}
