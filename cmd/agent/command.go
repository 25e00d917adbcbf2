package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/output"
	"github.com/kalypso-dev/kalypso/profiler"
)

// Exit codes for a command that cannot run, as shells have them.
const (
	exitNotRunnable = 126
	exitNotFound    = 127
)

// commandError says why a command cannot run, with the exit code for that.
type commandError struct {
	code int
	err  error
}

// Error is the reason.
func (e commandError) Error() string { return e.err.Error() }

// ExitCode is that of the shell.
func (e commandError) ExitCode() int { return e.code }

// Unwrap gives the reason, so that a profiler.Fault inside is printed whole.
func (e commandError) Unwrap() error { return e.err }

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
		code, fix := exitNotFound, "give the path of a program, or its name as your shell finds it; aliases and functions need  -- bash -c '…'"
		if errors.Is(err, fs.ErrPermission) {
			code, fix = exitNotRunnable, "chmod +x "+argv[0]+"     or name the program that runs it:  -- sh "+argv[0]
		}
		return nil, commandError{code, &profiler.Fault{What: fmt.Sprintf("cannot run %q", argv[0]), Why: output.WithoutPath(errors.Unwrap(err)), Fix: fix}}
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

// wait waits for the command's end and gives its exit code. Once ctx ends it
// waits a moment for the command to end by itself (Ctrl-C reaches it too), then
// asks it to.
func (c *command) wait(ctx context.Context) int {
	select {
	case <-c.done:
		return c.code()
	case <-ctx.Done():
	}
	select {
	case <-c.done:
	case <-time.After(2 * time.Second):
		_ = c.cmd.Process.Signal(syscall.SIGTERM)
	}
	return c.code()
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
				return cli.Usage("kalypso-agent record --help", "%s is for the agent's own use", holdVerb)
			}
			var b [1]byte
			if n, _ := gate.Read(b[:]); n == 0 {
				return cli.Exit(cli.ExitFailed) // the recording never began: do not run
			}
			_ = gate.Close()
			err := syscall.Exec(args[0], args[1:], os.Environ())
			fix := "give a program for this machine, of which you may run the file and its interpreter"
			if errors.Is(err, syscall.ENOEXEC) {
				fix = "a script needs a first line such as #!/bin/sh, or the program that runs it:  -- sh " + args[1]
			}
			return commandError{exitNotRunnable, &profiler.Fault{What: fmt.Sprintf("cannot run %q", args[1]), Why: err, Fix: fix}}
		},
	}
}
