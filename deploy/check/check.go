// Package check runs lists of checks and tells how they went.
//
// A check is data: an identity, how bad it is when it fails, how to try it,
// what its failure means and how to mend it. The package owns the running and
// the telling, so that every verb that checks something reads the same; it
// does not know what is checked. Lists live with the verbs that use them.
// It imports only the standard library.
package check

import (
	"context"
	"fmt"
	"time"
)

// Severity says what the failure of a check means.
type Severity uint8

// The severities, worst first.
const (
	Required Severity = iota // the whole does not work without it
	Limit                    // the whole works, but gives less
	Note                     // worth knowing; nothing is lost that was promised
)

// String gives the word used in JSON.
func (s Severity) String() string {
	switch s {
	case Required:
		return "required"
	case Limit:
		return "limit"
	case Note:
		return "note"
	}
	return "unknown"
}

// Check is one thing that can be tried.
type Check struct {
	ID       string // lower case, also the name of its page under docs/checks/
	Title    string // what is tried, in a few words
	Severity Severity
	Run      func(context.Context) Outcome
	Effect   string // what is lost when it fails
	Fix      string // what to do about it
}

// State is how a check ended.
type State uint8

// The states. A check that was skipped could not be tried, and says why.
const (
	Passed State = iota
	Failed
	Skipped
)

// String gives the word used in JSON.
func (s State) String() string {
	switch s {
	case Passed:
		return "passed"
	case Failed:
		return "failed"
	case Skipped:
		return "skipped"
	}
	return "unknown"
}

// Outcome is what a Run function found.
type Outcome struct {
	State  State
	Detail string // what was seen, with figures
	Effect string // instead of the check's own, when the run knows better
	Fix    string // likewise
}

// Pass is the outcome of a check that worked.
func Pass(format string, args ...any) Outcome {
	return Outcome{State: Passed, Detail: fmt.Sprintf(format, args...)}
}

// Fail is the outcome of a check that did not work.
func Fail(format string, args ...any) Outcome {
	return Outcome{State: Failed, Detail: fmt.Sprintf(format, args...)}
}

// Skip is the outcome of a check that could not be tried.
func Skip(format string, args ...any) Outcome {
	return Outcome{State: Skipped, Detail: fmt.Sprintf(format, args...)}
}

// WithFix is the same outcome with another fix than the check's own.
func (o Outcome) WithFix(format string, args ...any) Outcome {
	o.Fix = fmt.Sprintf(format, args...)
	return o
}

// WithEffect is the same outcome with another effect than the check's own.
func (o Outcome) WithEffect(format string, args ...any) Outcome {
	o.Effect = fmt.Sprintf(format, args...)
	return o
}

// Result is a check and how it ended.
type Result struct {
	ID       string
	Title    string
	Severity Severity
	State    State
	Detail   string
	Effect   string // empty unless State is Failed
	Fix      string // likewise
	Took     time.Duration
}

// Report is a list of checks and how they ended, in the order of the list.
type Report struct {
	Results []Result
	Took    time.Duration
}

// Failures are the results of this severity that failed.
func (r *Report) Failures(s Severity) []Result {
	var out []Result
	for _, res := range r.Results {
		if res.State == Failed && res.Severity == s {
			out = append(out, res)
		}
	}
	return out
}

// Healthy says whether nothing that is required failed.
func (r *Report) Healthy() bool { return len(r.Failures(Required)) == 0 }

// Run runs the checks one after another, each for at most limit, and calls
// each (when not nil) as results come in. When ctx ends, the rest is skipped.
// Checks must heed their context: Run does not abandon one that does not.
func Run(ctx context.Context, checks []Check, limit time.Duration, each func(Result)) *Report {
	started := time.Now()
	report := &Report{Results: make([]Result, 0, len(checks))}
	for i := range checks {
		res := runOne(ctx, &checks[i], limit)
		report.Results = append(report.Results, res)
		if each != nil {
			each(res)
		}
	}
	report.Took = time.Since(started)
	return report
}

func runOne(ctx context.Context, c *Check, limit time.Duration) Result {
	started := time.Now()
	res := Result{ID: c.ID, Title: c.Title, Severity: c.Severity}
	var out Outcome
	if err := ctx.Err(); err != nil {
		out = Skip("not tried: %v", context.Cause(ctx))
	} else {
		limited, cancel := context.WithTimeout(ctx, limit)
		out = c.Run(limited)
		cancel()
	}
	res.State, res.Detail, res.Took = out.State, out.Detail, time.Since(started)
	if out.State == Failed {
		res.Effect, res.Fix = c.Effect, c.Fix
		if out.Effect != "" {
			res.Effect = out.Effect
		}
		if out.Fix != "" {
			res.Fix = out.Fix
		}
	}
	return res
}

// Select gives the checks with these IDs in the order of the list, and the
// first ID that the list does not have.
func Select(checks []Check, ids []string) (selected []Check, unknown string) {
	want := make(map[string]bool, len(ids))
	for _, id := range ids {
		want[id] = true
	}
	for _, c := range checks {
		if want[c.ID] {
			selected = append(selected, c)
			delete(want, c.ID)
		}
	}
	for _, id := range ids {
		if want[id] {
			return nil, id
		}
	}
	return selected, ""
}
