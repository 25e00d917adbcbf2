// Package ledger reads what an agent says at its end of every sample that it took,
// and adds it up, for tests.
package ledger

import (
	"testing"
	"time"
)

// Totals is the line that an agent logs at its end.
type Totals struct {
	Taken       uint64        `json:"taken"`
	Samples     uint64        `json:"samples"`
	Lost        uint64        `json:"lost"`
	Filtered    uint64        `json:"filtered"`
	Windows     uint64        `json:"windows"`
	RateChanges uint64        `json:"rate_changes"`
	AgentCPU    time.Duration `json:"agent_cpu"`
	BPFTime     time.Duration `json:"bpf_time"`
	OTLP        Export        `json:"otlp"`
}

// Export is what became of the samples of one export.
type Export struct {
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

// Check holds a run's figures against each other: every sample that was taken
// is in one place.
func (n *Totals) Check(t testing.TB) {
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
func (o *Export) ended() uint64 {
	return o.Delivered + o.PartlyAccepted + o.Refused + o.Expired + o.Evicted + o.Unreadable + o.Lost
}

// Undelivered is the samples that were taken and that no backend will have, though one
// would take them.
func (n *Totals) Undelivered() uint64 {
	return n.Lost + n.OTLP.Dropped + n.OTLP.Expired + n.OTLP.Evicted + n.OTLP.Unreadable + n.OTLP.Lost
}
