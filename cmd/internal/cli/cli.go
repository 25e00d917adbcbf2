// Package cli is what the command lines of our programs have in common: how a
// verb's error becomes text and an exit code, how help is laid out, and what is
// said about a verb, a flag or a value that does not exist.
//
// It knows cobra and profiler.Fault, and no verb: those are in the package of
// each program, which makes a root command, gives it to House and runs it with
// Run.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/near"
	"github.com/kalypso-dev/kalypso/profiler"
)

// Exit codes, as printed by the help of the root command.
const (
	ExitFailed      = 1
	ExitUsage       = 2
	ExitNotHealthy  = 3
	ExitChanges     = 4
	ExitTimedOut    = 5
	ExitInterrupted = 130 // 128 + SIGINT, as shells have it
)

// Code is an exit code of one program for one kind of error.
type Code struct {
	Exit  int
	Means string // a few words, for help
	Is    func(error) bool
}

// Exit ends the program with a code and prints nothing: whoever returns it has
// said what there is to say.
type Exit int

// Error names the code, for logs and tests; Report never prints it.
func (e Exit) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// usageError is a mistake in the command line or in the settings.
type usageError struct{ err error }

// Error is the mistake.
func (e usageError) Error() string { return e.err.Error() }

// Unwrap gives the mistake, so that a profiler.Fault inside is printed whole.
func (e usageError) Unwrap() error { return e.err }

// ExitCode is that of wrong usage.
func (e usageError) ExitCode() int { return ExitUsage }

// Wrong makes err one that ends with the exit code of wrong usage.
func Wrong(err error) error { return usageError{err} }

// IsUsage says whether an error is one of wrong usage.
func IsUsage(err error) bool {
	var wrong usageError
	return errors.As(err, &wrong)
}

// timedOut is an error that waiting longer may mend.
type timedOut struct{ error }

// Unwrap gives what was waited for, so that a profiler.Fault is printed whole.
func (e timedOut) Unwrap() error { return e.error }

// ExitCode is that of waiting in vain.
func (timedOut) ExitCode() int { return ExitTimedOut }

// TimedOut makes err one that ends with the exit code of waiting in vain.
func TimedOut(err error) error { return timedOut{err} }

// Usage is an error of wrong usage that says what is wrong and what to type
// instead.
func Usage(fix, format string, args ...any) error {
	return Wrong(&profiler.Fault{What: fmt.Sprintf(format, args...), Fix: fix})
}

// Run executes the command line of root and gives the exit code; codes are those
// that only this program has.
func Run(root *cobra.Command, args []string, stdout, stderr io.Writer, codes ...Code) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The first signal asks a verb to finish; a second one must be able to kill.
	// Not at once: timeout(1) signals its child and then the child's group, and a
	// recording that was asked to end is being written.
	context.AfterFunc(ctx, func() { time.AfterFunc(time.Second, stop) })

	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return Report(ctx, root.ExecuteContext(ctx), stderr, codes...)
}

// Report prints err for a person and gives the exit code that belongs to it:
// that of its method ExitCode, if it has one, else the first of codes that is for
// it.
func Report(ctx context.Context, err error, stderr io.Writer, codes ...Code) int {
	var exit Exit
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return int(exit)
	case errors.Is(err, syscall.EPIPE):
		// The reader of our output went away; it knows.
		return ExitFailed
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return ExitInterrupted
	}
	PrintError(stderr, err)
	var coded interface {
		error
		ExitCode() int
	}
	if errors.As(err, &coded) {
		return coded.ExitCode()
	}
	for _, c := range codes {
		if c.Is(err) {
			return c.Exit
		}
	}
	return ExitFailed
}

// PrintError prints the three lines of a profiler.Fault, or one line.
func PrintError(w io.Writer, err error) {
	var fault *profiler.Fault
	if !errors.As(err, &fault) {
		_, _ = fmt.Fprintf(w, "error: %v\n", err)
		return
	}
	_, _ = fmt.Fprintf(w, "error: %s\n", fault.What)
	if fault.Why != nil {
		_, _ = fmt.Fprintf(w, "cause: %v\n", fault.Why)
	}
	if fault.Fix != "" {
		_, _ = fmt.Fprintf(w, "fix:   %s\n", fault.Fix)
	}
}

// NoArgs is the Args function of verbs that take none.
func NoArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return Usage(HelpOf(cmd), "%s takes no arguments, only flags: what is %q?", cmd.Name(), args[0])
}

// HelpOf is the command line that tells about a verb.
func HelpOf(cmd *cobra.Command) string { return cmd.CommandPath() + " --help" }

// OneOf checks the value of a flag that takes one of a few words.
func OneOf(cmd *cobra.Command, flag, value string, allowed ...string) error {
	for _, a := range allowed {
		if value == a {
			return nil
		}
	}
	fix := fmt.Sprintf("--%s takes %s", flag, strings.Join(allowed, ", "))
	if word := near.Word(value, allowed); word != "" {
		fix = fmt.Sprintf("%s --%s %s", cmd.CommandPath(), flag, word)
	}
	return Usage(fix, "--%s cannot be %q", flag, value)
}
