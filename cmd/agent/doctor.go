package main

import (
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/agent/internal/doctor"
	"github.com/kalypso-dev/kalypso/cmd/internal/checks"
	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
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
			list, err := checks.Select(cmd, doctor.Checks(recordSpin), only)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			var report *check.Report
			if output == "json" {
				report = check.Run(cmd.Context(), list, checkLimit, nil)
				err = writeDoctorJSON(out, report)
			} else {
				report, err = checks.Print(cmd.Context(), out, list, checkLimit, short, nil)
				if err == nil {
					_, err = fmt.Fprintln(out, verdict(report))
				}
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
	Schema      string       `json:"schema"`
	Version     string       `json:"version"`
	Arch        string       `json:"arch"`
	Healthy     bool         `json:"healthy"`
	Limitations int          `json:"limitations"`
	DurationMS  int64        `json:"duration_ms"`
	Checks      []checks.Row `json:"checks"`
}

func writeDoctorJSON(out io.Writer, r *check.Report) error {
	doc := doctorReport{
		Schema:      "kalypso.doctor/v1",
		Version:     readBuildInfo().Version,
		Arch:        runtime.GOARCH,
		Healthy:     r.Healthy(),
		Limitations: len(r.Failures(check.Limit)),
		DurationMS:  r.Took.Milliseconds(),
		Checks:      checks.Rows(r),
	}
	return cli.WriteJSON(out, doc)
}
