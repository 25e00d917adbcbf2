package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	xterm "golang.org/x/term"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/near"
	"github.com/kalypso-dev/kalypso/deploy/component"
)

// mayAsk says, before anything is done, that nobody is there to answer.
func mayAsk(cmd *cobra.Command, agreed bool) error {
	if agreed {
		return nil
	}
	in, ok := cmd.InOrStdin().(*os.File)
	if ok && xterm.IsTerminal(int(in.Fd())) {
		return nil
	}
	return cli.Usage(cmd.CommandPath()+" --yes     does it without a question; --dry-run only shows the plan",
		"%s asks before it changes something, and standard input is no terminal", cmd.Name())
}

// confirm asks a question, which only y and yes agree to.
func confirm(cmd *cobra.Command, question string) error {
	if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s [y/N] ", question); err != nil {
		return fmt.Errorf("ask: %w", err)
	}
	answer := make(chan string, 1)
	go func() { // ends with the program: a read from a terminal cannot be ended
		line, _ := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case a := <-answer:
		if a == "y" || a == "yes" {
			_, err := io.WriteString(cmd.OutOrStdout(), "\n")
			return err
		}
		_, _ = fmt.Fprintln(cmd.OutOrStdout(), "Nothing was changed.")
		return cli.Exit(cli.ExitFailed)
	case <-cmd.Context().Done():
		_, _ = fmt.Fprintln(cmd.OutOrStdout(), "\nNothing was changed.")
		return context.Cause(cmd.Context())
	}
}

// known refuses names that are no components.
func known(cmd *cobra.Command, names []string) error {
	all := component.Names(component.All())
	for _, name := range names {
		if slices.Contains(all, name) {
			continue
		}
		fix := "the components are " + strings.Join(all, ", ")
		if word := near.Word(name, all); word != "" {
			fix = "did you mean " + word + "?"
		}
		return cli.Usage(fix, "there is no component %q", name)
	}
	return nil
}
