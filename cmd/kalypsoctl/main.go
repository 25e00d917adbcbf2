// Command kalypsoctl installs the observability stack that Kalypso is part of,
// and tells how it is.
//
// This package turns flags into calls and errors into text and exit codes, one
// file per verb. What the stack consists of is in deploy/component, its charts
// are in charts, and all that is done with them is in deploy/.
package main

import (
	"fmt"
	"io"
	"log"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
)

// Stamped by the Makefile with -ldflags -X; empty in a plain "go build", which
// takes both from the build information that Go embeds.
var (
	version string
	commit  string
)

func main() {
	log.SetFlags(0)
	log.SetOutput(&warnings{w: os.Stderr, said: map[string]bool{}})
	os.Exit(cli.Run(newRootCommand(), os.Args[1:], os.Stdout, os.Stderr, faultCodes()...))
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "kalypsoctl",
		Short: "Install and run the Kalypso observability stack, and profile anything on it",
	}
	root.AddCommand(
		newPreflightCommand(),
		newInstallCommand(),
		newUpgradeCommand(),
		newDiffCommand(),
		newStatusCommand(),
		newVerifyCommand(),
		newSysdumpCommand(),
		newUninstallCommand(),
		newClusterCommand(),
		newRenderCommand(),
		newImagesCommand(),
		newChartsCommand(),
		newArgoCDCommand(),
		newProfileCommand(),
		newTopCommand(),
		newDumpCommand(),
		newUICommand(),
		newCompareCommand(),
		newConvertCommand(),
		newConfigCommand(),
		newLogsCommand(),
		newOpenCommand(),
		newExplainCommand(),
		newBucketsCommand(),
		newVersionCommand(),
		newCompletionCommand(),
	)
	cli.House(root, exitCodes())
	return root
}

// warnings prints what Helm's libraries log, as people can read it: they repeat
// themselves, and print all values of a chart where one has a wrong type.
type warnings struct {
	w    io.Writer
	said map[string]bool
}

// warningLimit is about two lines of a terminal.
const warningLimit = 160

// Write prints one message, once.
func (w *warnings) Write(message []byte) (int, error) {
	text, _, _ := strings.Cut(strings.TrimSpace(string(message)), "\n")
	if head, rest, ok := strings.Cut(text, ":"); ok && strings.EqualFold(head, "warning") {
		text = strings.TrimSpace(rest)
	}
	if runes := []rune(text); len(runes) > warningLimit {
		text = string(runes[:warningLimit]) + "…"
	}
	if !w.said[text] {
		w.said[text] = true
		_, _ = fmt.Fprintf(w.w, "warning: %s\n", text)
	}
	return len(message), nil
}
