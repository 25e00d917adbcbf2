package service

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	pprof "github.com/google/pprof/profile"

	"github.com/kalypso-dev/kalypso/exporter/otlp/otlptest"
	"github.com/kalypso-dev/kalypso/test/internal/ledger"
)

// TestTwoExports: each export gets every sample, whatever becomes of the other.
func TestTwoExports(t *testing.T) {
	require(t)
	t.Parallel()
	r := otlptest.Start(t, otlptest.Options{Away: true})
	dir := filepath.Join(t.TempDir(), "profiles")
	a := start(t, command{endpoint: r.Endpoint(), args: []string{"--export", "otlp,file:" + dir}})
	written := func() []string {
		names, err := filepath.Glob(filepath.Join(dir, "*.pb.gz"))
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	until(t, time.Minute, "three files while the backend is away", func() bool { return len(written()) >= 3 })
	r.Listen()
	n := a.stop()
	account(t, r, n)
	var line map[string]json.RawMessage
	var files ledger.Export
	if err := json.Unmarshal(a.log.wait("ended", 0), &line); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(line["file:"+dir], &files); err != nil {
		t.Fatal(err)
	}
	var samples, period int64
	for _, name := range written() {
		p := readPprof(t, name)
		for i, kind := range p.SampleType {
			if kind.Type != "samples" {
				continue
			}
			for _, s := range p.Sample {
				samples += s.Value[i]
			}
		}
		period = p.Period
	}
	if uint64(samples) != n.Samples || files.Delivered != n.Samples || files.Waiting > 0 {
		t.Errorf("%d samples in %d files, %d were in profiles: %+v", samples, len(written()), n.Samples, files)
	}
	if want := int64(time.Second / 97); period != want {
		t.Errorf("the period is %d ns, want %d", period, want)
	}
	if n.OTLP.Delivered+n.OTLP.Waiting != n.Samples || n.OTLP.Retries == 0 {
		t.Errorf("%d samples were in profiles: %+v", n.Samples, n.OTLP)
	}
}

func readPprof(t *testing.T, name string) *pprof.Profile {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p, err := pprof.Parse(f)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return p
}
