package main

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
)

// quietly adds -q to a verb whose exit code says what there is to know.
func quietly(cmd *cobra.Command) {
	var quiet bool
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing but errors; the exit code tells the rest")
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if !quiet {
			return nil
		}
		for _, name := range []string{"output", "watch", "dry-run", "keep"} {
			if cmd.Flags().Changed(name) {
				return cli.Usage(cmd.CommandPath()+" --"+name, "-q prints nothing: it does not go with --%s", name)
			}
		}
		if asks := cmd.Flags().Lookup("yes"); asks != nil && !asks.Changed {
			return cli.Usage(cmd.CommandPath()+" -q --yes", "%s asks before it changes something, and -q prints no question", cmd.Name())
		}
		cmd.SetOut(io.Discard)
		return nil
	}
}
