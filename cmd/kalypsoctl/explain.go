package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/charts"
	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/near"
	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/plan"
	"github.com/kalypso-dev/kalypso/docs"
)

func newExplainCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "explain [TERM]",
		Short: "what is this component, this check?",
		Long: `Tell about a component of the stack, or about a check of kalypsoctl preflight or
kalypso-agent doctor.
Without a term: which terms there are.`,
		Example: `  kalypsoctl explain loki                             what it is, needs and serves
  kalypsoctl explain cap_syslog                       why does this check fail, and what to do?
  kalypsoctl explain                                  all terms`,
		DisableFlagsInUseLine: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return cli.Usage(cmd.CommandPath()+" "+args[0], "explain takes one term, not %d", len(args))
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
			names, directive := completeComponents(cmd, args, typed)
			return append(names, docs.Checks()...), directive
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := explain(cmd, args)
			if err != nil {
				return err
			}
			if _, err := io.WriteString(cmd.OutOrStdout(), text); err != nil {
				return fmt.Errorf("print the page: %w", err)
			}
			return nil
		},
	}
}

func explain(cmd *cobra.Command, args []string) (string, error) {
	components, checks := component.Names(component.All()), docs.Checks()
	if len(args) == 0 {
		return "components  " + strings.Join(components, " ") + "\nchecks      " + strings.Join(checks, " ") + "\n", nil
	}
	term := args[0]
	if slices.Contains(checks, term) {
		return docs.Check(term)
	}
	for _, c := range component.All() {
		if c.Name == term {
			return explainComponent(c)
		}
	}
	fix := cmd.CommandPath() + "     lists all terms"
	if word := near.Word(term, append(components, checks...)); word != "" {
		fix = cmd.CommandPath() + " " + word
	}
	return "", cli.Usage(fix, "there is no page about %q", term)
}

// explainComponent tells what the catalogue knows of a component.
func explainComponent(c component.Component) (string, error) {
	fsys, err := charts.Open(c.Chart)
	if err != nil {
		return "", err
	}
	chart, err := helm.Open(fsys)
	if err != nil {
		return "", err
	}
	wave, err := waveOf(c.Name)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	row := func(name string, values ...string) {
		for _, value := range values {
			fmt.Fprintf(&b, "%-12s  %s\n", name, value)
			name = ""
		}
	}
	fmt.Fprintf(&b, "%s: %s\n\n", c.Name, c.Title)
	row("chart", chart.Name()+" "+chart.Version())
	for _, d := range chart.Dependencies(nil) {
		row("upstream", fmt.Sprintf("%s of %s", d, d.Repository))
	}
	row("release", fmt.Sprintf("%s in namespace %s", c.Release, c.Namespace))
	row("wave", fmt.Sprint(wave))
	if len(c.Needs) > 0 {
		row("needs", strings.Join(c.Needs, ", "))
	}
	if by := neededBy(c.Name); len(by) > 0 {
		row("needed by", strings.Join(by, ", "))
	}
	var serves, secrets []string
	for _, s := range c.Serves {
		serves = append(serves, fmt.Sprintf("%s:%s", c.Host(s), joinInts(s.Ports)))
	}
	for _, s := range c.Secrets {
		secrets = append(secrets, fmt.Sprintf("%s with %s", s.Name, strings.Join(s.Keys, ", ")))
	}
	row("reached at", serves...)
	row("secrets", secrets...)
	row("resources", c.Groups...)
	return b.String(), nil
}

// waveOf counts from 1, as people do.
func waveOf(name string) (int, error) {
	waves, err := plan.Waves(component.All())
	if err != nil {
		return 0, err
	}
	for i, w := range waves {
		if slices.Contains(component.Names(w), name) {
			return i + 1, nil
		}
	}
	return 0, fmt.Errorf("%s is in no wave", name)
}

func neededBy(name string) []string {
	var by []string
	for _, c := range component.All() {
		if slices.Contains(c.Needs, name) {
			by = append(by, c.Name)
		}
	}
	return by
}

func joinInts(numbers []int) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(numbers), " ", ","), "[]")
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
