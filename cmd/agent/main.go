// Command kalypso-agent profiles the machine it runs on.
//
// This package turns flags into calls and errors into text and exit codes,
// one file per verb. It holds no logic of profiling: that is in profiler/,
// and what runs in the kernel is in bpf/.
package main

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
	"github.com/spf13/pflag"

	"github.com/kalypso-dev/kalypso/cmd/internal/near"
	"github.com/kalypso-dev/kalypso/profiler"
)

// Exit codes, as printed by the help of the root command.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitNotHealthy  = 3
	exitInterrupted = 130 // 128 + SIGINT, as shells have it
)

// exitError ends the program with a code and prints nothing: whoever returns
// it has said what there is to say. record passes a command's own code on
// with it.
type exitError struct{ code int }

// Error names the code, for logs and tests; run never prints it.
func (e exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// usageError is a mistake in the command line: exit code 2.
type usageError struct{ err error }

// Error is the mistake.
func (e usageError) Error() string { return e.err.Error() }

// Unwrap gives the mistake, so that a profiler.Fault inside is printed whole.
func (e usageError) Unwrap() error { return e.err }

// usage makes a usageError that says what is wrong and what to type instead.
func usage(fix, format string, args ...any) error {
	return usageError{&profiler.Fault{What: fmt.Sprintf(format, args...), Fix: fix}}
}

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run executes one command line and gives the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The first signal asks a verb to finish; a second one must be able to kill.
	// Not at once: timeout(1) signals its child and then the child's group, and a
	// recording that was asked to end is being written.
	context.AfterFunc(ctx, func() { time.AfterFunc(time.Second, stop) })

	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return report(ctx, root.ExecuteContext(ctx), stderr)
}

// report prints err for a person and gives the exit code that belongs to it.
func report(ctx context.Context, err error, stderr io.Writer) int {
	var (
		exit  exitError
		wrong usageError
		cmd   commandError
	)
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.code
	case errors.Is(err, syscall.EPIPE):
		// The reader of our output went away; it knows.
		return exitFailed
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return exitInterrupted
	}
	printError(stderr, err)
	switch {
	case errors.As(err, &wrong):
		return exitUsage
	case errors.As(err, &cmd):
		return cmd.code
	}
	return exitFailed
}

// printError prints the three lines of a profiler.Fault, or one line.
func printError(w io.Writer, err error) {
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

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "kalypso-agent",
		Short: "Profile this machine: where does its CPU time go?",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return unknownVerb(cmd, args[0])
		},
		RunE:                  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors:         true,
		SilenceUsage:          true,
		DisableFlagsInUseLine: true,
		CompletionOptions:     cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.AddCommand(
		newRecordCommand(),
		newRunCommand(),
		newTopCommand(),
		newDumpCommand(),
		newDoctorCommand(),
		newConfigCommand(),
		newUnwindCommand(),
		newVersionCommand(),
		newHoldCommand(),
		newSpinCommand(),
	)
	cobra.EnableCommandSorting = false
	root.SetHelpTemplate(helpTemplate)
	root.SetHelpCommand(newHelpCommand())
	root.SetFlagErrorFunc(unknownFlag)
	root.Example = firstExamples(root.Commands())
	for _, cmd := range root.Commands() {
		argsAreUsage(cmd)
	}
	return root
}

// helpTemplate puts the examples first: most people look for a line to copy.
const helpTemplate = `{{or .Long .Short}}

{{if .HasExample}}Examples:
{{.Example}}

{{end}}Usage: {{.UseLine}}{{if .HasAvailableSubCommands}} VERB

Verbs:{{range .Commands}}{{if .IsAvailableCommand}}
  {{rpad .Name 10}} {{.Short}}{{end}}{{end}}

kalypso-agent VERB --help tells all about one verb.

Exit codes: 0 done · 1 failed · 2 wrong usage · 3 ran fine, the answer is "not healthy" · 130 interrupted
{{else if .HasAvailableLocalFlags}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}
{{end}}`

// firstExamples is the first example of each verb, in the verbs' order, with
// what they do in one column.
func firstExamples(cmds []*cobra.Command) string {
	var lines strings.Builder
	for _, c := range cmds {
		first, _, _ := strings.Cut(c.Example, "\n")
		typed, does, found := strings.Cut(strings.TrimSpace(first), "   ")
		if found {
			fmt.Fprintf(&lines, "  %-50s  %s\n", typed, strings.TrimSpace(does))
		}
	}
	return strings.TrimSuffix(lines.String(), "\n")
}

// newHelpCommand is "help [VERB]". Cobra's own prints an unknown verb's usage
// and exits with 0.
func newHelpCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "help [VERB]",
		Short:  "tell about a verb",
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			target, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return unknownVerb(cmd.Root(), args[0])
			}
			target.InitDefaultHelpFlag()
			return target.Help()
		},
	}
}

// argsAreUsage turns what a verb's Args function says into a usage error.
func argsAreUsage(cmd *cobra.Command) {
	check := cmd.Args
	if check == nil {
		return
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		err := check(cmd, args)
		var wrong usageError
		if err == nil || errors.As(err, &wrong) {
			return err
		}
		return usageError{&profiler.Fault{What: err.Error(), Fix: helpOf(cmd)}}
	}
}

func unknownVerb(root *cobra.Command, verb string) error {
	var verbs []string
	for _, c := range root.Commands() {
		if c.IsAvailableCommand() {
			verbs = append(verbs, c.Name())
		}
	}
	fix := helpOf(root)
	if word := near.Word(verb, verbs); word != "" {
		fix = root.Name() + " " + word
	}
	return usage(fix, "there is no verb %q", verb)
}

// unknownFlag is cobra's hook for whatever its flag parser does not like.
func unknownFlag(cmd *cobra.Command, err error) error {
	fix := helpOf(cmd)
	var missing *pflag.NotExistError
	if !errors.As(err, &missing) {
		if fault := flagFault(cmd, err); fault != nil {
			return usageError{fault}
		}
		return usageError{&profiler.Fault{What: err.Error(), Fix: fix}}
	}
	name := missing.GetSpecifiedName()
	if missing.GetSpecifiedShortnames() != "" {
		return usage(fix, "%s has no flag -%s", cmd.CommandPath(), name)
	}
	var flags []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			flags = append(flags, f.Name)
		}
	})
	if word := near.Word(name, flags); word != "" {
		fix = cmd.CommandPath() + " --" + word
	}
	return usage(fix, "%s has no flag --%s", cmd.CommandPath(), name)
}

// noArgs is the Args function of verbs that take none.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return usage(helpOf(cmd), "%s takes no arguments, only flags: what is %q?", cmd.Name(), args[0])
}

func helpOf(cmd *cobra.Command) string { return cmd.CommandPath() + " --help" }

// oneOf checks the value of a flag that takes one of a few words.
func oneOf(cmd *cobra.Command, flag, value string, allowed ...string) error {
	for _, a := range allowed {
		if value == a {
			return nil
		}
	}
	fix := fmt.Sprintf("--%s takes %s", flag, strings.Join(allowed, ", "))
	if word := near.Word(value, allowed); word != "" {
		fix = fmt.Sprintf("%s --%s %s", cmd.CommandPath(), flag, word)
	}
	return usage(fix, "--%s cannot be %q", flag, value)
}
