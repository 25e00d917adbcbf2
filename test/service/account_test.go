package service

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/exporter/otlp/otlptest"
)

// totals is the line that an agent logs at its end.
type totals struct {
	Taken       uint64        `json:"taken"`
	Samples     uint64        `json:"samples"`
	Lost        uint64        `json:"lost"`
	Filtered    uint64        `json:"filtered"`
	Windows     uint64        `json:"windows"`
	RateChanges uint64        `json:"rate_changes"`
	AgentCPU    time.Duration `json:"agent_cpu"`
	BPFTime     time.Duration `json:"bpf_time"`
	OTLP        export        `json:"otlp"`
}

// export is what became of the samples of one export.
type export struct {
	Queued         uint64 `json:"queued"`
	Dropped        uint64 `json:"dropped"`
	Recovered      uint64 `json:"recovered"`
	Delivered      uint64 `json:"delivered"`
	PartlyAccepted uint64 `json:"partly_accepted"`
	Refused        uint64 `json:"refused"`
	Expired        uint64 `json:"expired"`
	Evicted        uint64 `json:"evicted"`
	Unreadable     uint64 `json:"unreadable"`
	Lost           uint64 `json:"lost"`
	Waiting        uint64 `json:"waiting"`
	Retries        uint64 `json:"retries"`
}

// check holds a run's figures against each other: every sample that was taken
// is in one place.
func (n *totals) check(t *testing.T) {
	t.Helper()
	if n.Taken == 0 {
		t.Error("no sample was taken")
	}
	if n.Taken != n.Samples+n.Lost+n.Filtered {
		t.Errorf("%d samples were taken, and %d + %d lost + %d filtered are accounted for", n.Taken, n.Samples, n.Lost, n.Filtered)
	}
	o := &n.OTLP
	if n.Samples != o.Queued+o.Dropped {
		t.Errorf("%d samples were in profiles, %d queued and %d dropped", n.Samples, o.Queued, o.Dropped)
	}
	if in, out := o.Queued+o.Recovered, o.ended()+o.Waiting; in != out {
		t.Errorf("%d samples went into the spool and %d are accounted for: %+v", in, out, *o)
	}
}

// ended is the samples that do not wait any more.
func (o *export) ended() uint64 {
	return o.Delivered + o.PartlyAccepted + o.Refused + o.Expired + o.Evicted + o.Unreadable + o.Lost
}

// lost is the samples that were taken and that no backend will have, though one
// would take them.
func (n *totals) lost() uint64 {
	return n.Lost + n.OTLP.Dropped + n.OTLP.Expired + n.OTLP.Evicted + n.OTLP.Unreadable + n.OTLP.Lost
}

// account holds the totals of runs, one after the other with the same spool,
// against each other and against what the receiver took: to the sample, and
// nothing twice.
func account(t *testing.T, r *otlptest.Receiver, runs ...totals) {
	t.Helper()
	var left, taken, delivered, partly uint64
	for i := range runs {
		n := &runs[i]
		n.check(t)
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
