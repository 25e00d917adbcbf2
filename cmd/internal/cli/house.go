package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/near"
	"github.com/kalypso-dev/kalypso/profiler"
)

// House gives a root command, whose verbs have been added, what all our
// programs have: help with the examples first, and errors that name the next
// thing to type. codes is the line of help that tells the exit codes.
func House(root *cobra.Command, codes string) {
	cobra.EnableCommandSorting = false
	root.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		return unknownVerb(cmd, args[0])
	}
	root.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	root.SilenceErrors = true
	root.SilenceUsage = true
	root.DisableFlagsInUseLine = true
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetHelpTemplate(strings.Replace(helpTemplate, "EXIT CODES", codes, 1))
	root.SetHelpCommand(newHelpCommand())
	root.SetFlagErrorFunc(FlagError)
	root.Example = firstExamples(root.Commands())
	for _, cmd := range root.Commands() {
		argsAreUsage(cmd)
	}
}

// Group makes a verb one that only holds others: alone it prints its help.
func Group(cmd *cobra.Command) {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		fix := HelpOf(cmd)
		if word := near.Word(args[0], verbs(cmd)); word != "" {
			fix = cmd.CommandPath() + " " + word
		}
		return Usage(fix, "%s has no verb %q", cmd.CommandPath(), args[0])
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.DisableFlagsInUseLine = true
}

// helpTemplate puts the examples first: most people look for a line to copy.
const helpTemplate = `{{or .Long .Short}}

{{if .HasExample}}Examples:
{{.Example}}

{{end}}Usage: {{.UseLine}}{{if .HasAvailableSubCommands}} VERB

Verbs:{{range .Commands}}{{if .IsAvailableCommand}}
  {{rpad .Name 10}} {{.Short}}{{end}}{{end}}

{{.CommandPath}} VERB --help tells all about one verb.
{{if not .HasParent}}
Exit codes: EXIT CODES
{{end}}{{else if .HasAvailableLocalFlags}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}
{{end}}`

// firstExamples is the first example of each verb, in the verbs' order, with
// what they do in one column.
func firstExamples(cmds []*cobra.Command) string {
	var lines strings.Builder
	for _, c := range cmds {
		if c.Hidden {
			continue
		}
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
		return Wrong(&profiler.Fault{What: err.Error(), Fix: HelpOf(cmd)})
	}
}

func unknownVerb(root *cobra.Command, verb string) error {
	fix := HelpOf(root)
	if word := near.Word(verb, verbs(root)); word != "" {
		fix = root.CommandPath() + " " + word
	}
	return Usage(fix, "there is no verb %q", verb)
}

func verbs(cmd *cobra.Command) []string {
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return names
}
