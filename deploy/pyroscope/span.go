package pyroscope

import (
	"slices"
	"time"
)

// Span is a time in which there is something.
type Span struct{ From, To time.Time }

// Spans are the times in which series have points, in order: steps that follow one
// another are one, and so are those with a gap of one step.
func Spans(series []Series, step time.Duration) []Span {
	var at []time.Time
	for _, s := range series {
		for _, p := range s.Points {
			at = append(at, p.At)
		}
	}
	slices.SortFunc(at, time.Time.Compare)
	var out []Span
	for _, t := range at {
		if last := len(out) - 1; last >= 0 && t.Sub(out[last].To) <= 2*step {
			out[last].To = t
			continue
		}
		out = append(out, Span{t.Add(-step), t})
	}
	return out
}

// Step is that of about so many points in a time, no shorter than the agents' usual
// window, of which each profile is one.
func (q Query) Step(points int) time.Duration {
	return max((q.To.Sub(q.From) / time.Duration(points)).Truncate(time.Second), 15*time.Second)
}
