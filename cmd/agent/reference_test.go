package main

import (
	"bytes"
	"flag"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/cmd/agent/internal/daemon"
	"github.com/kalypso-dev/kalypso/profiler/pipeline"
	"github.com/kalypso-dev/kalypso/profiler/telemetry"
)

var update = flag.Bool("update", false, "write docs/reference/metrics.md anew")

// TestMetricsReference: the page of metrics is what the metrics say.
func TestMetricsReference(t *testing.T) {
	const page = "../../docs/reference/metrics.md"
	var want bytes.Buffer
	if err := telemetry.WriteReference(&want, daemon.Metrics(pipeline.NewMetrics(nil), nil, nil, nil)); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(page, want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(got), want.String()); diff != "" {
		t.Errorf("%s is not what the metrics say; go test ./cmd/agent -run Reference -update (-got +want):\n%s", page, diff)
	}
}
