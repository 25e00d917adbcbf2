package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/agent/internal/daemon"
	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/output"
	"github.com/kalypso-dev/kalypso/cmd/internal/term"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/api"
	"github.com/kalypso-dev/kalypso/profiler/dump"
	"github.com/kalypso-dev/kalypso/profiler/lang"
)

type dumpFlags struct {
	pid    string
	kernel bool
	listen string
	output string
}

func newDumpCommand() *cobra.Command {
	f := &dumpFlags{}
	cmd := &cobra.Command{
		Use:   "dump -p PID",
		Short: "stacks of every thread of a process right now; for hangs",
		Long: `Where is every thread of a process right now? Prints the state of each and its
stack, kernel and user, leaf first. The process goes on meanwhile.
Goroutines that wait for each other are on no thread and not shown.

Where the privileges are missing it asks the agent that runs on this machine
(kalypso-agent run); the PID is then one of the agent's PID namespace.`,
		Example: `  sudo kalypso-agent dump -p 1234                     where does every thread of a process wait?
  sudo kalypso-agent dump -p 1234 --kernel=false      only what is the program's own
  kalypso-agent dump -p 1234                          the same, from the agent that runs
  kalypso-agent dump -p 1234 -o json                  for a program to read`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringVarP(&f.pid, "pid", "p", "", "the process, by its `PID`")
	fl.BoolVar(&f.kernel, "kernel", true, "kernel stacks too")
	fl.StringVar(&f.listen, "listen", api.DefaultAddress, "where the agent listens: `ADDRESS` is HOST:PORT or unix:PATH")
	fl.StringVarP(&f.output, "output", "o", "text", "text or json")
	return cmd
}

func (f *dumpFlags) run(cmd *cobra.Command) error {
	if err := cli.OneOf(cmd, "output", f.output, "text", "json"); err != nil {
		return err
	}
	pid, err := dumpedPID(cmd, f.pid)
	if err != nil {
		return err
	}
	client, err := api.NewClient(f.listen)
	if err != nil {
		return cli.Wrong(err)
	}
	defer client.Close()
	d, err := f.take(cmd, pid)
	if errors.Is(err, fs.ErrPermission) {
		d, err = f.ask(cmd, client, pid, err)
	}
	if err != nil {
		return err
	}
	return output.Explain(f.write(cmd.OutOrStdout(), d))
}

func dumpedPID(cmd *cobra.Command, text string) (profiler.PID, error) {
	if text == "" {
		return 0, cli.Usage(cmd.CommandPath()+" -p PID", "which process? dump takes its PID")
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n == 0 || n > math.MaxInt32 {
		return 0, cli.Usage("pgrep -l NAME lists PIDs", "there can be no PID %q", text)
	}
	return profiler.PID(n), nil
}

// take takes the stacks itself.
func (f *dumpFlags) take(cmd *cobra.Command, pid profiler.PID) (*api.Dump, error) {
	notes := term.NewNotes(cmd.ErrOrStderr())
	return daemon.Dump(cmd.Context(), dump.Config{
		Runtimes: runtimes(), Kernel: f.kernel, Failed: notes.Failed,
		OpenPerfMap: func(pid profiler.PID, root string) (lang.Instance, error) { return openPerfMap(pid, root) },
	}, pid)
}

// dumpTimeout is as long as an agent may take to answer: see docs/reference/api.md.
const dumpTimeout = 30 * time.Second

// ask lets the agent take the stacks, because of refusal. Where no agent
// answers, the error names both ways.
func (f *dumpFlags) ask(cmd *cobra.Command, client *api.Client, pid profiler.PID, refusal error) (*api.Dump, error) {
	ctx, cancel := context.WithTimeout(cmd.Context(), dumpTimeout)
	defer cancel()
	d, err := client.Dump(ctx, pid)
	var status *api.StatusError
	switch {
	case cmd.Context().Err() != nil:
		return nil, cmd.Context().Err()
	case errors.Is(err, context.DeadlineExceeded):
		err = fmt.Errorf("the agent at %s does not answer within %s", f.listen, dumpTimeout)
	case err == nil, errors.As(err, &status):
		_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "asked the agent at %s: %v\n", f.listen, reasonOf(refusal))
		if !f.kernel {
			leaveOutKernel(d)
		}
		return d, err
	}
	return nil, bothWays(pid, refusal, err)
}

// reasonOf is why something cannot be done, without what.
func reasonOf(err error) error {
	var fault *profiler.Fault
	if errors.As(err, &fault) && fault.Why != nil {
		return fault.Why
	}
	return err
}

// bothWays explains that this process may not take stacks and that no agent does.
func bothWays(pid profiler.PID, refusal, unanswered error) error {
	fault := &profiler.Fault{
		What: fmt.Sprintf("cannot dump PID %d", pid),
		Why:  fmt.Errorf("%w; %v", reasonOf(refusal), unanswered),
		Fix:  "start the agent, which is then asked: sudo kalypso-agent run --otlp.endpoint HOST:PORT",
	}
	var own *profiler.Fault
	if errors.As(refusal, &own) && own.Fix != "" {
		fault.Fix = own.Fix + "     or " + fault.Fix
	}
	return fault
}

// leaveOutKernel leaves out what an agent says of the kernel.
func leaveOutKernel(d *api.Dump) {
	for i := range d.Threads {
		t := &d.Threads[i]
		t.Frames = slices.DeleteFunc(t.Frames, func(f api.DumpFrame) bool { return f.Kind == profiler.KindKernel.String() })
	}
}

func (f *dumpFlags) write(w io.Writer, d *api.Dump) error {
	if f.output == "text" {
		return api.WriteDump(w, d)
	}
	return cli.WriteJSON(w, d)
}
