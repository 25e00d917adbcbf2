// Command kalypso-agent profiles the machine it runs on.
//
// This package turns flags into calls and errors into text and exit codes,
// one file per verb. It holds no logic of profiling: that is in profiler/,
// and what runs in the kernel is in bpf/.
package main

import (
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
)

// Stamped by the Makefile with -ldflags -X; empty in a plain "go build", which
// takes both from the build information that Go embeds.
var (
	version string
	commit  string
)

func readBuildInfo() cli.BuildInfo { return cli.ReadBuildInfo(version, commit) }

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run executes one command line and gives the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	return cli.Run(newRootCommand(), args, stdout, stderr)
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "kalypso-agent",
		Short: "Profile this machine: where does its CPU time go?",
	}
	root.AddCommand(
		newRecordCommand(),
		newRunCommand(),
		newTopCommand(),
		newDumpCommand(),
		newDoctorCommand(),
		newConfigCommand(),
		newUnwindCommand(),
		cli.NewVersionCommand("kalypso-agent", readBuildInfo()),
		newHoldCommand(),
		newSpinCommand(),
	)
	cli.House(root, `0 done · 1 failed · 2 wrong usage · 3 ran fine, the answer is "not healthy" · 130 interrupted`)
	root.SetFlagErrorFunc(flagError)
	return root
}
