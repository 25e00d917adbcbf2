package golang

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/cfi"
	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

// large is a Go program of tens of megabytes: KALYPSO_BENCH_FILE, else the
// compiler.
func large(b *testing.B) *elffile.File {
	b.Helper()
	path := os.Getenv("KALYPSO_BENCH_FILE")
	if path == "" {
		root, err := exec.Command("go", "env", "GOROOT").Output()
		if err != nil {
			b.Skip("no Go here")
		}
		matches, _ := filepath.Glob(filepath.Join(strings.TrimSpace(string(root)), "pkg/tool/*/compile"))
		if len(matches) == 0 {
			b.Skip("no large Go program here")
		}
		path = matches[0]
	}
	f, err := elffile.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	return f
}

func BenchmarkRecognise(b *testing.B) {
	f := large(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := (Runtime{}).Recognise(f, ""); err != nil {
			b.Fatal(err)
		}
	}
}

func program(b *testing.B) *Program {
	p, err := open(large(b))
	if err != nil {
		b.Fatal(err)
	}
	if p == nil {
		b.Fatal("not a Go program")
	}
	return p
}

// BenchmarkRows builds the rows of one 64 KiB page of code.
func BenchmarkRows(b *testing.B) {
	p := program(b)
	var rows []cfi.Row
	var built int
	low := p.tab.low
	for b.Loop() {
		var err error
		if rows, err = p.Rows(rows[:0], low, low+64<<10); err != nil {
			b.Fatal(err)
		}
		built += len(rows)
		if low += 64 << 10; low >= p.tab.high {
			low = p.tab.low
		}
	}
	b.ReportMetric(float64(built)/float64(b.N), "rows/op")
	b.ReportMetric(float64(p.win.reads)/float64(b.N), "reads/op")
	b.ReportMetric(float64(p.Bytes()), "bytes-held")
}

// BenchmarkSymbolize names addresses all over the text.
func BenchmarkSymbolize(b *testing.B) {
	p := program(b)
	in, err := p.Attach(1)
	if err != nil {
		b.Fatal(err)
	}
	var frames []profiler.Frame
	var got int
	pc, size := uint64(0), p.tab.high-p.tab.low
	b.ReportAllocs()
	for b.Loop() {
		if frames, err = in.Symbolize(frames[:0], p.tab.low+pc%size); err != nil {
			b.Fatal(err)
		}
		got += len(frames)
		pc += 1_000_003
	}
	b.ReportMetric(float64(got)/float64(b.N), "frames/op")
	b.ReportMetric(float64(p.win.reads)/float64(b.N), "reads/op")
}
