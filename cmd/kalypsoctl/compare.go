package main

import (
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/output"
	"github.com/kalypso-dev/kalypso/cmd/internal/term"
	"github.com/kalypso-dev/kalypso/exporter/format"
	"github.com/kalypso-dev/kalypso/profiler"
)

type compareFlags struct {
	failAbove string
	rows      int
	output    cli.Output
}

func newCompareCommand() *cobra.Command {
	f := &compareFlags{}
	cmd := &cobra.Command{
		Use:   "compare [flags] OLD NEW",
		Short: "which functions take more CPU time than before, and which less",
		Long: `Compare two pprof files function by function: the share of all samples whose
innermost call it was, by how many percentage points that changed, and by how many
CPUs. --fail-above ends with exit code 3 when the share of a function grew by more.`,
		Example: `  kalypsoctl compare old.pb.gz new.pb.gz              which functions changed?
  kalypsoctl compare old.pb.gz new.pb.gz --fail-above 5%
                                                      exit code 3 when one grew by more`,
		Args: exactly(2, "compare takes two files: the old profile and the new one", "old.pb.gz new.pb.gz"),
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args[0], args[1]) },
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringVar(&f.failAbove, "fail-above", "", "exit code 3 when a function's own share grew by more `POINTS`: 5%")
	fl.IntVarP(&f.rows, "rows", "n", 20, "functions at most")
	f.output.Register(fl)
	return cmd
}

func (f *compareFlags) run(cmd *cobra.Command, oldPath, newPath string) error {
	limit, err := f.limit()
	if err != nil {
		return err
	}
	if err := f.output.Check(cmd); err != nil {
		return err
	}
	if f.rows < 1 {
		return cli.Usage("-n 20 lists twenty", "cannot list %d rows", f.rows)
	}
	before, err := readProfile(oldPath)
	if err != nil {
		return err
	}
	after, err := readProfile(newPath)
	if err != nil {
		return err
	}
	c := newComparison(before, after, limit)
	out := cmd.OutOrStdout()
	if !f.output.Text() {
		err = f.output.Write(out, c.document())
	} else {
		_, err = io.WriteString(out, strings.Join(c.lines(filepath.Base(oldPath), filepath.Base(newPath), f.rows, term.Width(out)), "\n")+"\n")
	}
	if err == nil && len(c.above) > 0 {
		return cli.Exit(cli.ExitNotHealthy)
	}
	return output.Explain(err)
}

// limit is --fail-above in points; none is infinite.
func (f *compareFlags) limit() (float64, error) {
	if f.failAbove == "" {
		return math.Inf(1), nil
	}
	n, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(f.failAbove, "%")), 64)
	if err != nil || !(n >= 0 && n <= 100) { // also false for what is not a number
		return 0, cli.Usage("--fail-above 5%", "--fail-above cannot be %q: it takes percentage points, 0 to 100", f.failAbove)
	}
	return n, nil
}

// comparison is two profiles and what is different.
type comparison struct {
	before, after *profiler.Profile
	limit         float64
	changes       []format.Change
	above         []format.Change // grew by more than the limit
}

func newComparison(before, after *profiler.Profile, limit float64) *comparison {
	c := &comparison{before: before, after: after, limit: limit}
	for _, x := range format.Compare(before, after) {
		if x.Points() > limit {
			c.above = append(c.above, x)
		}
		if x.OldSelf != x.NewSelf || x.OldCores != x.NewCores {
			c.changes = append(c.changes, x)
		}
	}
	return c
}

// leastPoints is the smallest change that is worth a line.
const leastPoints = 0.05

func (c *comparison) lines(oldName, newName string, rows, columns int) []string {
	lines := []string{"old  " + facts(oldName, c.before), "new  " + facts(newName, c.after), ""}
	var shown, more int
	for i := range c.changes {
		switch x := &c.changes[i]; {
		case math.Abs(x.Points()) < leastPoints:
		case shown == rows:
			more++
		default:
			if shown == 0 {
				lines = append(lines, "     old       new  points   cores  kind    function")
			}
			shown++
			lines = append(lines, changeLine(x))
		}
	}
	switch {
	case more > 0:
		lines = append(lines, fmt.Sprintf("and %s that changed less     -n %d lists all", plural(more, "more function", "more functions"), shown+more))
	case shown == 0:
		lines = append(lines, "no function's own share changed by 0.1 points or more")
	}
	if !math.IsInf(c.limit, 1) {
		lines = append(lines, "", c.verdict())
	}
	if columns > 0 {
		for i, l := range lines {
			lines[i] = term.Cut(l, columns)
		}
	}
	return lines
}

func (c *comparison) verdict() string {
	limit := fmt.Sprintf("%g points", c.limit)
	if c.limit == 1 {
		limit = "1 point"
	}
	if len(c.above) == 0 {
		return "no function grew by more than " + limit
	}
	const most = 3
	var names []string
	for i := range c.above[:min(len(c.above), most)] {
		names = append(names, c.above[i].Function)
	}
	text := fmt.Sprintf("%s grew by more than %s: %s", plural(len(c.above), "function", "functions"), limit, strings.Join(names, ", "))
	if more := len(c.above) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

func noun(n uint64, one, more string) string {
	if n == 1 {
		return one
	}
	return more
}

func facts(name string, p *profiler.Profile) string {
	n := format.Samples(p)
	parts := []string{profiler.Printable(name), format.Grouped(n) + " " + noun(n, "sample", "samples")}
	if p.Duration > 0 {
		parts = append(parts, fmt.Sprintf("%.2f cores busy", format.Cores(p, n)), fmt.Sprintf("%g s", math.Round(p.Duration.Seconds()*10)/10))
	}
	return strings.Join(parts, " · ")
}

func changeLine(c *format.Change) string {
	name := c.Function
	if c.Module != "" {
		name += " (" + c.Module + ")"
	}
	return fmt.Sprintf("%8s  %8s  %+6.1f  %+6.2f  %-6s  %s", ownShare(c.OldSelf, c.OldTotal), ownShare(c.NewSelf, c.NewTotal), c.Points(), c.Cores(), c.Kind, name)
}

// ownShare writes a function that a profile does not have as a dash.
func ownShare(self, total float64) string {
	switch {
	case total == 0:
		return "–  "
	case self > 0 && self < 0.05:
		return "<0.1 %"
	}
	return strconv.FormatFloat(self, 'f', 1, 64) + " %"
}

// comparisonJSON is what a program reads. Fields are added, not changed.
type comparisonJSON struct {
	Schema  string       `json:"schema"`
	Old     sideJSON     `json:"old"`
	New     sideJSON     `json:"new"`
	Above   int          `json:"above_limit"` // functions; 0 where there is no limit
	Changes []changeJSON `json:"changes"`
}

type sideJSON struct {
	Samples uint64  `json:"samples"`
	Seconds float64 `json:"seconds"`
	Cores   float64 `json:"cores"`
}

type changeJSON struct {
	Function string  `json:"function"`
	Module   string  `json:"module,omitempty"`
	Kind     string  `json:"kind"`
	OldSelf  float64 `json:"old_self_percent"`
	NewSelf  float64 `json:"new_self_percent"`
	OldTotal float64 `json:"old_total_percent"`
	NewTotal float64 `json:"new_total_percent"`
	OldCores float64 `json:"old_self_cores"`
	NewCores float64 `json:"new_self_cores"`
}

func (c *comparison) document() comparisonJSON {
	side := func(p *profiler.Profile) sideJSON {
		n := format.Samples(p)
		return sideJSON{n, p.Duration.Seconds(), format.Cores(p, n)}
	}
	out := comparisonJSON{Schema: "kalypso.compare/v1", Old: side(c.before), New: side(c.after), Above: len(c.above), Changes: []changeJSON{}}
	for i := range c.changes {
		x := &c.changes[i]
		out.Changes = append(out.Changes, changeJSON{x.Function, x.Module, x.Kind.String(), x.OldSelf, x.NewSelf, x.OldTotal, x.NewTotal, x.OldCores, x.NewCores})
	}
	return out
}
