package daemon

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

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
	for _, m := range Metrics(pipeline.NewMetrics(nil), list, nil, nil) {
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

// TestFilesInTheSpoolAreMetrics: what else is in the folder is told, too.
func TestFilesInTheSpoolAreMetrics(t *testing.T) {
	s := &config.Config{Export: []config.Export{{Kind: "pprof"}}}
	s.Spool.Dir, s.OTLP.Endpoint, s.OTLP.Insecure = t.TempDir(), "127.0.0.1:4040", true
	folder := spoolDir(s, "pprof")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"notes.txt", "1795379475123456.spool.gz"} {
		if err := os.WriteFile(filepath.Join(folder, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got := map[string]float64{}
	for _, m := range Metrics(pipeline.NewMetrics(nil), outlets(t, s), nil, nil) {
		if strings.HasPrefix(m.Name, "kalypso_agent_spool_") && strings.Contains(m.Name, "_files") {
			m.Read(func(value float64, _ ...string) { got[m.Name] = value })
		}
	}
	want := map[string]float64{
		"kalypso_agent_spool_foreign_files": 2, "kalypso_agent_spool_newer_files": 0, "kalypso_agent_spool_leftover_files": 0,
		"kalypso_agent_spool_rejected_files": 0, "kalypso_agent_spool_rejected_files_dropped_total": 0,
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("files (-got +want):\n%s", diff)
	}
}
