package daemon

import (
	"slices"
	"testing"

	"github.com/kalypso-dev/kalypso/cmd/agent/internal/config"
	"github.com/kalypso-dev/kalypso/profiler/pipeline"
	"github.com/kalypso-dev/kalypso/profiler/telemetry"
)

// outlets opens the ways out that settings name.
func outlets(t *testing.T, s *config.Config) []*outlet {
	t.Helper()
	d := &daemon{settings: s, log: telemetry.NewLogger(t.Output(), nil, telemetry.Text)}
	t.Cleanup(d.log.Close)
	for _, e := range s.Export {
		o, err := d.newOutlet(e)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = o.close(t.Context()) })
		d.outlets = append(d.outlets, o)
	}
	return d.outlets
}

// TestEachExportHasSeriesOfItsOwn: --export file:DIR may be given more than once.
func TestEachExportHasSeriesOfItsOwn(t *testing.T) {
	a, b := config.Export{Kind: "file", Dir: t.TempDir()}, config.Export{Kind: "file", Dir: t.TempDir()}
	list := outlets(t, &config.Config{Export: []config.Export{a, b}})
	list[0].encoded.Store(1)
	list[1].encoded.Store(2)
	for _, m := range Metrics(pipeline.NewMetrics(nil), list) {
		if !slices.Equal(m.Labels, []string{"export"}) {
			continue
		}
		series := map[string]float64{}
		m.Read(func(value float64, labels ...string) { series[labels[0]] = value })
		if len(series) != 2 {
			t.Errorf("%s has the series %v, want one of each folder", m.Name, series)
		}
		if m.Name == "kalypso_agent_export_samples_encoded_total" && (series[a.String()] != 1 || series[b.String()] != 2) {
			t.Errorf("%s is %v, want 1 and 2", m.Name, series)
		}
	}
}
