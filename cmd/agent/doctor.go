package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/agent/internal/doctor"
	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/near"
	"github.com/kalypso-dev/kalypso/cmd/internal/term"
	"github.com/kalypso-dev/kalypso/deploy/check"
)

// checkLimit is far over what any check takes (the longest samples for half a
// second).
const checkLimit = 10 * time.Second

func newDoctorCommand() *cobra.Command {
	var (
		output string
		only   []string
		short  bool
	)
	cmd := &cobra.Command{
		Use:   "doctor [flags]",
		Short: "can this machine be profiled? tries each thing by doing it",
		Long: `Can this machine be profiled? Tries each thing that profiling needs by doing it,
and says of what does not work what is lost and how to mend it.
Exit code 0: profiling will work. 3: it will not.`,
		Example: `  sudo kalypso-agent doctor                           what works here, what does not, how to mend it
  sudo kalypso-agent doctor --short                   only what does not
  sudo kalypso-agent doctor --only cap_syslog,btf     some checks
  sudo kalypso-agent doctor -o json                   for a program to read`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.OneOf(cmd, "output", output, "text", "json"); err != nil {
				return err
			}
			checks, err := selectChecks(cmd, only)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			var report *check.Report
			if output == "json" {
				report = check.Run(cmd.Context(), checks, checkLimit, nil)
				err = writeDoctorJSON(out, report)
			} else {
				report, err = printDoctor(cmd, out, checks, short)
			}
			switch {
			case err != nil:
				return fmt.Errorf("print the checks: %w", err)
			case cmd.Context().Err() != nil:
				return cli.Exit(cli.ExitInterrupted)
			case !report.Healthy():
				return cli.Exit(cli.ExitNotHealthy)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVarP(&output, "output", "o", "text", "text or json")
	f.StringSliceVar(&only, "only", nil, "run only the checks with these `ID`s")
	f.BoolVar(&short, "short", false, "print only what does not work, and the last line")
	return cmd
}

func selectChecks(cmd *cobra.Command, only []string) ([]check.Check, error) {
	checks := doctor.Checks(recordSpin)
	if len(only) == 0 {
		return checks, nil
	}
	selected, unknown := check.Select(checks, only)
	if selected != nil {
		return selected, nil
	}
	ids := make([]string, len(checks))
	for i := range checks {
		ids[i] = checks[i].ID
	}
	fix := "the checks are " + strings.Join(ids, ", ")
	if word := near.Word(unknown, ids); word != "" {
		fix = cmd.CommandPath() + " --only " + word
	}
	return nil, cli.Usage(fix, "there is no check %q", unknown)
}

// printDoctor prints each result as it comes, so that the check that takes
// half a second is seen to be the one.
func printDoctor(cmd *cobra.Command, out io.Writer, checks []check.Check, short bool) (*check.Report, error) {
	style := check.Style{Short: short, ASCII: term.ASCII(os.Getenv)}.Fit(checks)
	var failed error
	report := check.Run(cmd.Context(), checks, checkLimit, func(r check.Result) {
		if err := style.Print(out, r); failed == nil {
			failed = err
		}
	})
	if failed == nil {
		_, failed = fmt.Fprintln(out, verdict(report))
	}
	return report, failed
}

// verdict is the last line of doctor.
func verdict(r *check.Report) string {
	if broken := r.Failures(check.Required); len(broken) > 0 {
		ids := make([]string, len(broken))
		for i := range broken {
			ids[i] = broken[i].ID
		}
		return "profiling will not work: " + strings.Join(ids, ", ")
	}
	switch n := len(r.Failures(check.Limit)); n {
	case 0:
		return "profiling will work"
	case 1:
		return "profiling will work, with 1 limitation"
	default:
		return fmt.Sprintf("profiling will work, with %d limitations", n)
	}
}

// doctorReport is kalypso.doctor/v1. Fields are added, not changed.
type doctorReport struct {
	Schema      string        `json:"schema"`
	Version     string        `json:"version"`
	Arch        string        `json:"arch"`
	Healthy     bool          `json:"healthy"`
	Limitations int           `json:"limitations"`
	DurationMS  int64         `json:"duration_ms"`
	Checks      []doctorCheck `json:"checks"`
}

type doctorCheck struct {
	ID         string `json:"id"`
	Title      string `json:"title"`
	Severity   string `json:"severity"` // required, limit, note
	State      string `json:"state"`    // passed, failed, skipped
	Detail     string `json:"detail"`
	Effect     string `json:"effect,omitempty"`
	Fix        string `json:"fix,omitempty"`
	DurationMS int64  `json:"duration_ms"`
}

func writeDoctorJSON(out io.Writer, r *check.Report) error {
	doc := doctorReport{
		Schema:      "kalypso.doctor/v1",
		Version:     readBuildInfo().Version,
		Arch:        runtime.GOARCH,
		Healthy:     r.Healthy(),
		Limitations: len(r.Failures(check.Limit)),
		DurationMS:  r.Took.Milliseconds(),
		Checks:      make([]doctorCheck, 0, len(r.Results)),
	}
	for _, res := range r.Results {
		doc.Checks = append(doc.Checks, doctorCheck{
			ID: res.ID, Title: res.Title, Severity: res.Severity.String(), State: res.State.String(),
			Detail: res.Detail, Effect: res.Effect, Fix: res.Fix, DurationMS: res.Took.Milliseconds(),
		})
	}
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(doc)
}
