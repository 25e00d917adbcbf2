package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/term"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/output"
	"github.com/kalypso-dev/kalypso/cmd/internal/top"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/api"
)

type topFlags struct {
	listen string
	by     string
	rows   int
	once   bool
	output string
}

func newTopCommand() *cobra.Command {
	f := &topFlags{}
	cmd := &cobra.Command{
		Use:   "top [flags]",
		Short: "what is hot on this machine now, as the running agent sees it",
		Long: `Where does CPU time go now? Asks the agent that runs on this machine
(kalypso-agent run) for the last 30 seconds, again every two seconds on a
terminal. q or Ctrl-C ends.`,
		Example: `  kalypso-agent top                                   hottest functions, live
  kalypso-agent top --by service -n 5                 the five busiest services
  kalypso-agent top --once                            one table, as in a pipe
  kalypso-agent top -o json                           for a program to read`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringVar(&f.by, "by", string(api.ByFunction), "what to list: function, process, service or module")
	fl.IntVarP(&f.rows, "rows", "n", 0, "rows at most; 20, or as many as fit on the terminal")
	fl.BoolVar(&f.once, "once", false, "print one table and end")
	fl.StringVar(&f.listen, "listen", api.DefaultAddress, "where the agent listens: `ADDRESS` is HOST:PORT or unix:PATH")
	fl.StringVarP(&f.output, "output", "o", "text", "text or json")
	return cmd
}

const (
	topTimeout = 10 * time.Second // of one question
	topRows    = 20               // where there is no terminal to fill
)

func (f *topFlags) run(cmd *cobra.Command) error {
	by := []string{string(api.ByFunction), string(api.ByProcess), string(api.ByService), string(api.ByModule)}
	if err := errors.Join(cli.OneOf(cmd, "by", f.by, by...), cli.OneOf(cmd, "output", f.output, "text", "json")); err != nil {
		return err
	}
	if f.rows < 0 {
		return cli.Usage("-n 20 lists twenty", "cannot list %d rows", f.rows)
	}
	client, err := api.NewClient(f.listen)
	if err != nil {
		return cli.Wrong(err)
	}
	defer client.Close()
	out := cmd.OutOrStdout()
	screen := term.NewScreen(cmd.InOrStdin(), out)
	if f.output == "json" || f.once || screen == nil {
		t, err := f.ask(cmd.Context(), client, f.limit(topRows))
		if err != nil {
			return err
		}
		if f.output == "json" {
			return output.Explain(cli.WriteJSON(out, t))
		}
		_, err = io.WriteString(out, strings.Join(top.Lines(t, term.Width(out)), "\n")+"\n")
		return output.Explain(err)
	}
	// A mistake in the address is better said than shown again and again.
	if _, err := f.ask(cmd.Context(), client, 1); err != nil && !notYet(err) {
		return err
	}
	return output.Explain(screen.Run(cmd.Context(), func(ctx context.Context, columns, lines int) []string {
		t, err := f.ask(ctx, client, f.limit(max(lines-top.Head, 1)))
		if err != nil {
			return faultLines(err)
		}
		return top.Lines(t, columns)
	}))
}

func (f *topFlags) limit(normally int) int {
	if f.rows > 0 {
		return f.rows
	}
	return normally
}

func (f *topFlags) ask(ctx context.Context, client *api.Client, limit int) (*api.Top, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, topTimeout, errSlow)
	defer cancel()
	t, err := client.Top(ctx, api.HistoryQuery{}, api.By(f.by), limit)
	if err == nil {
		return t, nil
	}
	if errors.Is(context.Cause(ctx), errSlow) {
		err = &profiler.Fault{What: "the agent at " + f.listen + " does not answer", Why: errSlow, Fix: "kalypso-agent top --listen ADDRESS     asks another one"}
	}
	return nil, err
}

var errSlow = fmt.Errorf("it took longer than %s", topTimeout)

// notYet says whether the agent runs and has no profile so far.
func notYet(err error) bool {
	var status *api.StatusError
	return errors.As(err, &status) && status.Status == http.StatusServiceUnavailable
}

func faultLines(err error) []string {
	var text strings.Builder
	cli.PrintError(&text, err)
	return strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
}
