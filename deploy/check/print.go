package check

import (
	"fmt"
	"io"
	"strings"
)

// Style says how results are printed.
type Style struct {
	ASCII bool // marks that every terminal has
	Short bool // leave out what passed and what was skipped
	Width int  // of the column of IDs: see Style.Fit
}

// Fit sets the width of the column of IDs to that of the longest.
func (s Style) Fit(checks []Check) Style {
	s.Width = 0
	for i := range checks {
		s.Width = max(s.Width, len(checks[i].ID))
	}
	return s
}

// mark is the sign in front of a result. It is never the only signal: effect
// and fix follow what failed, and the last line says what it comes to.
func (s Style) mark(r *Result) string {
	switch {
	case r.State == Passed && s.ASCII:
		return "ok"
	case r.State == Passed:
		return "✓"
	case r.State == Skipped && s.ASCII:
		return "- "
	case r.State == Skipped:
		return "–"
	case r.Severity == Note && s.ASCII:
		return "! "
	case r.Severity == Note:
		return "!"
	case s.ASCII:
		return "x "
	}
	return "✗"
}

// Print writes one result: a line, and two more below it when it failed.
func (s Style) Print(w io.Writer, r Result) error {
	if s.Short && r.State != Failed {
		return nil
	}
	indent := strings.Repeat(" ", s.Width+6)
	if s.ASCII {
		indent += " "
	}
	var b strings.Builder
	// A detail may have lines: a verifier's last words.
	detail := strings.ReplaceAll(r.Detail, "\n", "\n"+indent)
	fmt.Fprintf(&b, "  %s %-*s  %s\n", s.mark(&r), s.Width, r.ID, detail)
	if r.State == Failed {
		if r.Effect != "" {
			fmt.Fprintf(&b, "%seffect  %s\n", indent, r.Effect)
		}
		if r.Fix != "" {
			fmt.Fprintf(&b, "%sfix     %s\n", indent, r.Fix)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
