package service

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/exporter/otlp/otlptest"
	"github.com/kalypso-dev/kalypso/test/internal/ledger"
)

// totals is the line that an agent logs at its end.
type totals = ledger.Totals

// account holds the totals of runs, one after the other with the same spool,
// against each other and against what the receiver took: to the sample, and
// nothing twice.
func account(t *testing.T, r *otlptest.Receiver, runs ...totals) {
	t.Helper()
	var left, taken, delivered, partly uint64
	for i := range runs {
		n := &runs[i]
		n.Check(t)
		if n.OTLP.Recovered != left {
			t.Errorf("run %d found %d samples in the spool, the one before left %d", i, n.OTLP.Recovered, left)
		}
		left = n.OTLP.Waiting
		taken += n.Taken
		delivered += n.OTLP.Delivered
		partly += n.OTLP.PartlyAccepted
	}
	received(t, r, delivered, partly)
	t.Logf("%d samples taken, %d received, %d left out by the receiver, %d waiting; last run %+v", taken, r.Samples(), r.Rejected(), left, runs[len(runs)-1])
}

// received holds what the receiver took against what was delivered.
func received(t *testing.T, r *otlptest.Receiver, delivered, partly uint64) {
	t.Helper()
	if got, want := r.Samples()+r.Rejected(), delivered+partly; got != want {
		t.Errorf("the receiver saw %d samples in what it took, the agent says that it delivered %d", got, want)
	}
	if partly == 0 && r.Rejected() > 0 {
		t.Errorf("the receiver left out %d samples, and the agent does not say so", r.Rejected())
	}
	if n, example := repeated(t, r); n > 0 {
		t.Errorf("%d samples came twice, such as those of %s", n, example)
	}
}

// repeated counts samples in profiles that the receiver took more than once. A
// profile is known by its workload and its begin: two windows do not begin at
// the same nanosecond.
func repeated(t *testing.T, r *otlptest.Receiver) (samples uint64, example string) {
	t.Helper()
	seen := map[string]bool{}
	for _, p := range profiles(t, r) {
		key := fmt.Sprint(p.Service, p.Start.UnixNano(), p.Attributes)
		if seen[key] {
			samples += p.Samples()
			example = strings.TrimSpace(p.Service + " " + p.Start.Format(time.StampMicro))
		}
		seen[key] = true
	}
	return samples, example
}
