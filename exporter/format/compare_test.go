package format

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/profiler"
)

func TestCompare(t *testing.T) {
	module := &profiler.Module{Path: "/bin/shop"}
	main := &profiler.Location{Module: module, Frames: []profiler.Frame{{Function: "main"}}}
	profile := func(d time.Duration, counts map[string]uint64) *profiler.Profile {
		p := &profiler.Profile{Frequency: 100, Duration: d}
		for f, n := range counts {
			l := &profiler.Location{Module: module, Frames: []profiler.Frame{{Function: f}}}
			p.Samples = append(p.Samples, profiler.Sample{Count: n, Stack: &profiler.Stack{Stop: profiler.StopRoot, Locations: []*profiler.Location{l, main}}})
		}
		return p
	}
	old := profile(10*time.Second, map[string]uint64{"price": 500, "sell": 300, "gone": 200})
	changed := profile(20*time.Second, map[string]uint64{"price": 2600, "sell": 1200, "new": 200})
	want := []Change{
		{Function: "gone", Module: "shop", OldSelf: 20, OldTotal: 20, OldCores: 0.2},
		{Function: "price", Module: "shop", OldSelf: 50, NewSelf: 65, OldTotal: 50, NewTotal: 65, OldCores: 0.5, NewCores: 1.3},
		{Function: "new", Module: "shop", NewSelf: 5, NewTotal: 5, NewCores: 0.1},
		{Function: "main", Module: "shop", OldTotal: 100, NewTotal: 100},
		{Function: "sell", Module: "shop", OldSelf: 30, NewSelf: 30, OldTotal: 30, NewTotal: 30, OldCores: 0.3, NewCores: 0.6},
	}
	if diff := cmp.Diff(Compare(old, changed), want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	if got := Compare(&profiler.Profile{}, &profiler.Profile{}); len(got) != 0 {
		t.Errorf("two empty profiles differ: %v", got)
	}
}
