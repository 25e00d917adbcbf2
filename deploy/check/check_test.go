package check

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func list() []Check {
	say := func(o Outcome) func(context.Context) Outcome {
		return func(context.Context) Outcome { return o }
	}
	return []Check{
		{ID: "up", Title: "it is up", Severity: Required, Run: say(Pass("answers in %d ms", 12)), Effect: "nothing works", Fix: "start it"},
		{ID: "rights", Title: "we may", Severity: Required, Run: say(Fail("we may not")), Effect: "nothing works", Fix: "ask root"},
		{ID: "names", Title: "names", Severity: Limit, Run: say(Fail("no names:\nline one").WithEffect("numbers only").WithFix("try %s", "again"))},
		{ID: "speed", Title: "speed", Severity: Note, Run: say(Fail("slow")), Effect: "waits"},
		{ID: "rest", Title: "rest", Severity: Limit, Run: say(Skip("not tried: no bed")), Effect: "tired", Fix: "sleep"},
	}
}

func TestRun(t *testing.T) {
	var heard []string
	report := Run(context.Background(), list(), time.Second, func(r Result) { heard = append(heard, r.ID) })

	if diff := cmp.Diff(heard, []string{"up", "rights", "names", "speed", "rest"}); diff != "" {
		t.Errorf("results as they came (-got +want):\n%s", diff)
	}
	if report.Healthy() {
		t.Error("healthy, and a required check failed")
	}
	if got := report.Failures(Limit); len(got) != 1 || got[0].ID != "names" {
		t.Errorf("limits that failed: %v", got)
	}
	want := []Result{
		{ID: "up", Title: "it is up", Severity: Required, State: Passed, Detail: "answers in 12 ms"},
		{ID: "rights", Title: "we may", Severity: Required, State: Failed, Detail: "we may not", Effect: "nothing works", Fix: "ask root"},
		{ID: "names", Title: "names", Severity: Limit, State: Failed, Detail: "no names:\nline one", Effect: "numbers only", Fix: "try again"},
		{ID: "speed", Title: "speed", Severity: Note, State: Failed, Detail: "slow", Effect: "waits"},
		{ID: "rest", Title: "rest", Severity: Limit, State: Skipped, Detail: "not tried: no bed"},
	}
	for i := range report.Results {
		report.Results[i].Took = 0
	}
	if diff := cmp.Diff(report.Results, want); diff != "" {
		t.Errorf("results (-got +want):\n%s", diff)
	}
}

func TestLimitsAndNotesLeaveItHealthy(t *testing.T) {
	checks, _ := Select(list(), []string{"names", "speed", "rest", "up"})
	if report := Run(context.Background(), checks, time.Second, nil); !report.Healthy() {
		t.Error("not healthy, and nothing required failed")
	}
}

func TestEachCheckHasItsTime(t *testing.T) {
	waits := Check{ID: "waits", Severity: Required, Run: func(ctx context.Context) Outcome {
		<-ctx.Done()
		return Fail("no answer: %v", ctx.Err())
	}}
	report := Run(context.Background(), []Check{waits, list()[0]}, time.Millisecond, nil)
	if got := report.Results[0].Detail; got != "no answer: context deadline exceeded" {
		t.Errorf("the check that waits: %q", got)
	}
	if got := report.Results[1].State; got != Passed {
		t.Errorf("the check after it: %v", got)
	}
}

func TestInterruptedChecksAreSkipped(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	stops := Check{ID: "stops", Run: func(context.Context) Outcome { cancel(); return Pass("done") }}
	report := Run(ctx, append([]Check{stops}, list()...), time.Second, nil)
	if got := len(report.Results); got != 1+len(list()) {
		t.Fatalf("%d results, want %d: %+v", got, 1+len(list()), report.Results)
	}
	for _, r := range report.Results[1:] {
		if r.State != Skipped {
			t.Errorf("%s: %v, want skipped", r.ID, r.State)
		}
	}
}

func TestSelect(t *testing.T) {
	tests := []struct {
		name    string
		ids     []string
		want    []string
		unknown string
	}{
		{"the list's order wins", []string{"speed", "up"}, []string{"up", "speed"}, ""},
		{"twice is once", []string{"up", "up"}, []string{"up"}, ""},
		{"the first unknown one is told", []string{"up", "upp", "x"}, nil, "upp"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			selected, unknown := Select(list(), tt.ids)
			var got []string
			for _, c := range selected {
				got = append(got, c.ID)
			}
			if diff := cmp.Diff(got, tt.want); diff != "" || unknown != tt.unknown {
				t.Errorf("unknown %q, want %q; (-got +want):\n%s", unknown, tt.unknown, diff)
			}
		})
	}
}

func TestPrint(t *testing.T) {
	tests := []struct {
		name  string
		style Style
		want  string
	}{
		{"all", Style{}, `  ✓ up      answers in 12 ms
  ✗ rights  we may not
            effect  nothing works
            fix     ask root
  ✗ names   no names:
            line one
            effect  numbers only
            fix     try again
  ! speed   slow
            effect  waits
  – rest    not tried: no bed
`},
		{"short and plain", Style{Short: true, ASCII: true}, `  x  rights  we may not
             effect  nothing works
             fix     ask root
  x  names   no names:
             line one
             effect  numbers only
             fix     try again
  !  speed   slow
             effect  waits
`},
		{"plain marks have one width", Style{ASCII: true}, "  ok up      answers in 12 ms\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b strings.Builder
			style := tt.style.Fit(list())
			Run(context.Background(), list(), time.Second, func(r Result) {
				if err := style.Print(&b, r); err != nil {
					t.Error(err)
				}
			})
			got := b.String()
			if strings.HasPrefix(tt.name, "plain marks") {
				got, _, _ = strings.Cut(got, "  x ")
			}
			if diff := cmp.Diff(got, tt.want); diff != "" {
				t.Errorf("(-got +want):\n%s", diff)
			}
		})
	}
}
