package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/profiler"
)

// command is a program to be recorded. It is started at once but runs only
// when released: by then it is a target of the kernel side, which sees it from
// its first instruction on.
type command struct {
	cmd  *exec.Cmd
	gate *os.File
	done chan struct{}
	err  error
}

// holdVerb is the hidden verb that the agent runs itself as: it waits for the
// gate, then becomes the command.
const holdVerb = "hold-then-exec"

// startCommand starts argv, held.
func startCommand(argv []string) (*command, error) {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return nil, &profiler.Fault{
			What: fmt.Sprintf("cannot run %q", argv[0]), Why: errors.Unwrap(err),
			Fix: "give the path of a program, or its name as your shell finds it; aliases and functions need  -- bash -c '…'",
		}
	}
	gate, release, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	defer func() { _ = gate.Close() }()
	self := "/proc/self/exe"
	c := &command{cmd: exec.Command(self, append([]string{holdVerb, path}, argv...)...), gate: release, done: make(chan struct{})}
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.cmd.ExtraFiles = []*os.File{gate} // file descriptor 3
	if err := c.cmd.Start(); err != nil {
		_ = release.Close()
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	go func() {
		c.err = c.cmd.Wait()
		close(c.done)
	}()
	return c, nil
}

func (c *command) pid() profiler.PID { return profiler.PID(c.cmd.Process.Pid) }

// release lets the command run.
func (c *command) release() error {
	_, err := c.gate.Write([]byte{1})
	return errors.Join(err, c.gate.Close())
}

// abandon ends a command that was never released.
func (c *command) abandon() {
	_ = c.gate.Close()
	<-c.done
}

// stop waits a moment for the command to end by itself (Ctrl-C reaches it too),
// then asks it to.
func (c *command) stop() {
	select {
	case <-c.done:
		return
	case <-time.After(2 * time.Second):
	}
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	<-c.done
}

// code is the command's exit code, as a shell gives it.
func (c *command) code() int {
	<-c.done
	var exit *exec.ExitError
	if errors.As(c.err, &exit) {
		if st, ok := exit.Sys().(syscall.WaitStatus); ok && st.Signaled() {
			return 128 + int(st.Signal())
		}
		return exit.ExitCode()
	}
	return 0
}

func newHoldCommand() *cobra.Command {
	return &cobra.Command{
		Use:                holdVerb,
		Hidden:             true,
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			gate := os.NewFile(3, "gate")
			if gate == nil || len(args) < 2 {
				return usage("kalypso-agent record --help", "%s is for the agent's own use", holdVerb)
			}
			var b [1]byte
			if n, _ := gate.Read(b[:]); n == 0 {
				return exitError{exitFailed} // the recording never began: do not run
			}
			_ = gate.Close()
			err := syscall.Exec(args[0], args[1:], os.Environ())
			return &profiler.Fault{What: fmt.Sprintf("cannot run %q", args[1]), Why: err}
		},
	}
}
