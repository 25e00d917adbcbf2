package doctor

import (
	"context"
	"slices"

	"github.com/kalypso-dev/kalypso/deploy/check"
	"github.com/kalypso-dev/kalypso/profiler"
)

// Recorder records a process with a known stack for a moment, as record would.
// chain is that stack, leaf first; other functions may stand between.
type Recorder func(ctx context.Context) (p *profiler.Profile, chain []string, err error)

// unwind looks whether samples come out as whole stacks with the right names.
func (s self) unwind(record Recorder) func(context.Context) check.Outcome {
	return func(ctx context.Context) check.Outcome {
		if s.lacksTracing() {
			return check.Skip("not tried: it takes cap_bpf and cap_perfmon")
		}
		p, chain, err := record(ctx)
		if err != nil {
			return check.Fail("recording: %s", reason(err))
		}
		var spinning, whole uint64
		for _, sample := range p.Samples {
			names := functions(sample.Stack)
			if !slices.Contains(names, chain[0]) {
				continue
			}
			spinning += sample.Count
			if inOrder(names, chain) && sample.Stack.Stop.Complete() {
				whole += sample.Count
			}
		}
		if spinning == 0 {
			return check.Fail("none of %d samples shows the function that ran", p.Quality.Samples)
		}
		// The first samples of a process may come before its tables do.
		if whole*10 < spinning*9 {
			return check.Fail("%d of %d samples are whole", whole, spinning)
		}
		return check.Pass("%d of %d samples of a process walked to its root and named", whole, spinning)
	}
}

// functions are the names in a stack, leaf first.
func functions(st *profiler.Stack) []string {
	var names []string
	for _, l := range st.Locations {
		for i := range l.Frames {
			names = append(names, l.Frames[i].Function)
		}
	}
	return names
}

// inOrder says whether all of want stand in names, in their order.
func inOrder(names, want []string) bool {
	for _, n := range names {
		if len(want) > 0 && n == want[0] {
			want = want[1:]
		}
	}
	return len(want) == 0
}
