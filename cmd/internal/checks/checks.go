// Package checks is what verbs that run checks have in common: how checks are
// chosen, printed as they come, and told to a program. Which checks, and what
// they come to, is the verb's affair.
package checks

import (
	"context"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/near"
	"github.com/kalypso-dev/kalypso/cmd/internal/term"
	"github.com/kalypso-dev/kalypso/deploy/check"
)

// Select gives the checks that --only names, all if it names none.
func Select(cmd *cobra.Command, list []check.Check, only []string) ([]check.Check, error) {
	if len(only) == 0 {
		return list, nil
	}
	selected, unknown := check.Select(list, only)
	if selected != nil {
		return selected, nil
	}
	ids := make([]string, len(list))
	for i := range list {
		ids[i] = list[i].ID
	}
	fix := "the checks are " + strings.Join(ids, ", ")
	if word := near.Word(unknown, ids); word != "" {
		fix = cmd.CommandPath() + " --only " + word
	}
	return nil, cli.Usage(fix, "there is no check %q", unknown)
}

// Print runs checks and prints each result as it comes, so that the one that
// takes its time is seen to be the one. shown, if not nil, may change what is
// printed of a result. The error is that of printing.
func Print(ctx context.Context, out io.Writer, list []check.Check, limit time.Duration, short bool, shown func(*check.Result)) (*check.Report, error) {
	style := check.Style{Short: short, ASCII: term.ASCII(os.Getenv)}.Fit(list)
	var failed error
	report := check.Run(ctx, list, limit, func(r check.Result) {
		if shown != nil {
			shown(&r)
		}
		if err := style.Print(out, r); failed == nil {
			failed = err
		}
	})
	return report, failed
}

// Row is a result for a program. Fields are added, not changed.
type Row struct {
	ID         string `json:"id"`
	Title      string `json:"title"`
	Severity   string `json:"severity"` // required, limit, note
	State      string `json:"state"`    // passed, failed, skipped
	Detail     string `json:"detail"`
	Effect     string `json:"effect,omitempty"`
	Fix        string `json:"fix,omitempty"`
	DurationMS int64  `json:"duration_ms"`
}

// Rows are the results of a report; not nil.
func Rows(r *check.Report) []Row {
	rows := make([]Row, 0, len(r.Results))
	for _, res := range r.Results {
		rows = append(rows, Row{
			ID: res.ID, Title: res.Title, Severity: res.Severity.String(), State: res.State.String(),
			Detail: res.Detail, Effect: res.Effect, Fix: res.Fix, DurationMS: res.Took.Milliseconds(),
		})
	}
	return rows
}
