package format

import (
	"cmp"
	"math"
	"slices"

	"github.com/kalypso-dev/kalypso/profiler"
)

// Change is one function in two profiles. Shares are of all samples, in percent;
// cores are CPUs that it kept busy on average, 0 where a profile does not tell
// how long it took.
type Change struct {
	Function string // as shown, see FrameName
	Module   string // file name of native code, empty for other kinds
	Kind     profiler.FrameKind

	OldSelf, NewSelf   float64 // where it was the innermost call
	OldTotal, NewTotal float64 // where it was anywhere in the stack
	OldCores, NewCores float64 // itself
}

// Points is by how many percentage points its own share grew.
func (c *Change) Points() float64 { return c.NewSelf - c.OldSelf }

// Cores is by how many CPUs its own use grew.
func (c *Change) Cores() float64 { return c.NewCores - c.OldCores }

// Compare gives every function of two profiles, the one whose own share changed
// most first.
func Compare(old, changed *profiler.Profile) []Change {
	type key struct {
		function, module string
		kind             profiler.FrameKind
	}
	rows := make(map[key]*Change)
	row := func(r *TopRow) *Change {
		k := key{r.Function, r.Module, r.Kind}
		if rows[k] == nil {
			rows[k] = &Change{Function: r.Function, Module: r.Module, Kind: r.Kind}
		}
		return rows[k]
	}
	for _, side := range []struct {
		p   *profiler.Profile
		put func(c *Change, self, total, cores float64)
	}{
		{old, func(c *Change, self, total, cores float64) { c.OldSelf, c.OldTotal, c.OldCores = self, total, cores }},
		{changed, func(c *Change, self, total, cores float64) { c.NewSelf, c.NewTotal, c.NewCores = self, total, cores }},
	} {
		samples := max(Samples(side.p), 1)
		for _, r := range Top(side.p) {
			share := func(n uint64) float64 { return float64(n) / float64(samples) * 100 }
			side.put(row(&r), share(r.Self), share(r.Total), Cores(side.p, r.Self))
		}
	}
	out := make([]Change, 0, len(rows))
	for _, c := range rows {
		out = append(out, *c)
	}
	slices.SortFunc(out, func(a, b Change) int {
		return cmp.Or(
			cmp.Compare(math.Abs(b.Points()), math.Abs(a.Points())),
			cmp.Compare(math.Abs(b.NewTotal-b.OldTotal), math.Abs(a.NewTotal-a.OldTotal)),
			cmp.Compare(a.Function, b.Function), cmp.Compare(a.Module, b.Module), cmp.Compare(a.Kind, b.Kind),
		)
	})
	return out
}

// Samples is how many samples a profile has, of all its stacks.
func Samples(p *profiler.Profile) uint64 {
	var n uint64
	for i := range p.Samples {
		n += p.Samples[i].Count
	}
	return n
}

// Cores is how many CPUs so many samples of a profile kept busy; 0 where it does
// not tell how long it took.
func Cores(p *profiler.Profile, samples uint64) float64 {
	if p.Duration <= 0 || p.Frequency <= 0 {
		return 0
	}
	return float64(samples) / float64(p.Frequency) / p.Duration.Seconds()
}
