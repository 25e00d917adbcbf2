package telemetry

import (
	"bytes"
	"strings"
	"testing"
)

func TestWriteReference(t *testing.T) {
	var page bytes.Buffer
	if err := WriteReference(&page, []Metric{
		samples(1),
		{Name: "kalypso_agent_dropped_total", Unit: "{sample}", Kind: Counter, Labels: []string{"stage", "reason"}, Description: "Dropped | lost.", Read: func(Observe) {}},
		{Name: "kalypso_agent_heap_bytes", Unit: "By", Kind: Gauge, Description: "Go's heap.", Read: func(Observe) {}},
	}); err != nil {
		t.Fatal(err)
	}
	last := -1
	for _, line := range []string{
		"| metric | type | unit | labels | |\n",
		"| `kalypso_agent_dropped_total` | counter | sample | `stage`, `reason` | Dropped \\| lost. |\n",
		"| `kalypso_agent_heap_bytes` | gauge | bytes |  | Go's heap. |\n",
		"| `kalypso_agent_log_records_total` | counter | record | `level` | ",
		"| `kalypso_agent_samples_total` | counter | sample |  | Samples taken. |\n",
	} {
		at := strings.Index(page.String(), line)
		if at <= last {
			t.Errorf("line %q is not there, or not where it belongs, in\n%s", line, &page)
		}
		last = at
	}
	if err := WriteReference(&page, []Metric{samples(1), samples(2)}); err == nil {
		t.Error("a name that is there twice is documented without a word")
	}
}
