package main

import (
	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/near"
	"github.com/kalypso-dev/kalypso/deploy/component"
)

func newCompletionCommand() *cobra.Command {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "print a script that completes verbs, flags and components",
		Long: `Print a script that completes verbs, flags and components in a shell:
bash, zsh, fish or powershell.`,
		Example: `  source <(kalypsoctl completion bash)                completion in this shell
  kalypsoctl completion zsh > ~/.zfunc/_kalypsoctl    in every zsh, if ~/.zfunc is in $fpath
  kalypsoctl completion fish | source                 in this fish`,
		ValidArgs:             shells,
		DisableFlagsInUseLine: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return cli.Usage(cmd.CommandPath()+" bash", "%s takes one shell: bash, zsh, fish or powershell", cmd.Name())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			out, root := cmd.OutOrStdout(), cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(out, true)
			case "zsh":
				return root.GenZshCompletion(out)
			case "fish":
				return root.GenFishCompletion(out, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(out)
			}
			fix := cli.HelpOf(cmd)
			if word := near.Word(args[0], shells); word != "" {
				fix = cmd.CommandPath() + " " + word
			}
			return cli.Usage(fix, "there is no completion for %q", args[0])
		},
	}
}

// completeComponents offers the names of components, with what they are.
func completeComponents(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	var out []string
	for _, c := range component.All() {
		out = append(out, cobra.CompletionWithDesc(c.Name, c.Title))
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
