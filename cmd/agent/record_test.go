package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/profiler"
)

func TestReportOfCommands(t *testing.T) {
	var text strings.Builder
	err := fmt.Errorf("record: %w", commandError{127, &profiler.Fault{What: "cannot run \"x\"", Fix: "look"}})
	if code := cli.Report(t.Context(), err, &text); code != 127 || text.String() != "error: cannot run \"x\"\nfix:   look\n" {
		t.Errorf("code %d, printed %q", code, text.String())
	}
}
