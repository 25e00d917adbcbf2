package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/deploy/component"
)

func newConfigCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "print the settings of the stack, and where each came from",
		Example: `  kalypsoctl config show --origin loki                every value, and where it came from
  kalypsoctl config show -f kalypso.yaml              is this file right? what follows from it?`,
	}
	cmd.AddCommand(newConfigShowCommand())
	cli.Group(cmd)
	return cmd
}

func newConfigShowCommand() *cobra.Command {
	var (
		f      stackFlags
		origin bool
		output string
	)
	cmd := &cobra.Command{
		Use:   "show [flags] [COMPONENT…]",
		Short: "every value that the charts would be told",
		Long: `Print every value that the charts of the stack, or of some components, would be
told, as YAML that -f reads, or as JSON. Values that only the upstream charts know
are not in it. Settings that are wrong end with exit code 2.

Later ones win: the charts' defaults, the profile, the file, --set.`,
		Example: `  kalypsoctl config show --origin loki                every value, and where it came from
  kalypsoctl config show -f kalypso.yaml              is this file right? what follows from it?
  kalypsoctl config show -o json                      for a program to read`,
		ValidArgsFunction: completeComponents,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := cli.OneOf(cmd, "output", output, "yaml", "json"); err != nil {
				return err
			}
			c, err := f.load()
			if err != nil {
				return err
			}
			if archives, err := openArchives(""); err == nil {
				err := checkUpstream(c, archives, c.Components())
				if cli.IsUsage(err) { // charts that are not here, or damaged, are no matter here
					return err
				}
			}
			names := component.Names(component.All())
			if len(args) > 0 {
				chosen, err := choose(cmd, c, args)
				if err != nil {
					return err
				}
				names = component.Names(chosen)
			}
			if output == "json" {
				err = c.WriteJSON(cmd.OutOrStdout(), names)
			} else {
				err = c.WriteYAML(cmd.OutOrStdout(), names, origin)
			}
			if err != nil {
				return fmt.Errorf("print the settings: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().BoolVar(&origin, "origin", false, "say of each value where it came from")
	cmd.Flags().StringVarP(&output, "output", "o", "yaml", "yaml or json")
	f.register(cmd.Flags())
	return cmd
}
