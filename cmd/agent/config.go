package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/agent/internal/config"
	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
)

func newConfigCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "print the settings of run, and where each came from",
		Example: `  kalypso-agent config show --origin                  every setting of run, and where it came from
  kalypso-agent config show --config agent.yaml       is this file right? what follows from it?`,
	}
	cmd.AddCommand(newConfigShowCommand())
	cli.Group(cmd)
	return cmd
}

func newConfigShowCommand() *cobra.Command {
	var (
		output string
		origin bool
	)
	cmd := &cobra.Command{
		Use:   "show [flags]",
		Short: "every value that run would use",
		Long: `Print every value that run would use if it were given the same flags, as YAML
that --config reads, or as JSON. Settings that run would refuse end with exit
code 2. Secrets are in files, and only the files' names are printed.`,
		Example: `  kalypso-agent config show --origin                  every setting of run, and where it came from
  kalypso-agent config show --config agent.yaml       is this file right? what follows from it?
  kalypso-agent config show -o json                   for a program to read`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.OneOf(cmd, "output", output, "yaml", "json"); err != nil {
				return err
			}
			c, err := config.Read(cmd.Flags(), os.Environ())
			if err != nil {
				return cli.Wrong(err)
			}
			if output == "json" {
				err = c.WriteJSON(cmd.OutOrStdout())
			} else {
				err = c.WriteYAML(cmd.OutOrStdout(), origin)
			}
			if err != nil {
				return fmt.Errorf("print the settings: %w", err)
			}
			if err := c.Validate(); err != nil {
				return cli.Wrong(err)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVar(&origin, "origin", false, "say of each value where it came from (JSON always does)")
	f.StringVarP(&output, "output", "o", "yaml", "yaml or json")
	config.Flags(f)
	return cmd
}
