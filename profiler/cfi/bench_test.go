package cfi

import (
	"debug/elf"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

// benchFiles are a small, a dense and a huge executable, where installed.
func benchFiles(b *testing.B) map[string]string {
	b.Helper()
	files := map[string]string{"libc": libc(b)}
	if out, err := exec.Command("gcc", "-print-prog-name=cc1").Output(); err == nil {
		files["cc1"] = strings.TrimSpace(string(out))
	}
	if path, err := exec.LookPath("node"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			files["node"] = path
		}
	}
	return files
}

func libc(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("gcc", "-print-file-name=libc.so.6").Output()
	if err != nil {
		t.Fatalf("find libc.so.6: %v", err)
	}
	return strings.TrimSpace(string(out))
}

func BenchmarkOpen(b *testing.B) {
	for name, path := range benchFiles(b) {
		b.Run(name, func(b *testing.B) {
			f, err := elffile.Open(path)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			b.ReportAllocs()
			for b.Loop() {
				x, err := Open(f)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(x.Bytes()), "held-bytes")
			}
		})
	}
}

// BenchmarkPage builds the rows of 64 KiB of code, page after page.
func BenchmarkPage(b *testing.B) {
	const page = 64 << 10
	for name, path := range benchFiles(b) {
		b.Run(name, func(b *testing.B) {
			f, err := elffile.Open(path)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			x, err := Open(f)
			if err != nil {
				b.Fatal(err)
			}
			var pages []uint64
			for _, p := range f.Segments() {
				if p.Flags&elf.PF_X != 0 {
					for low := p.Vaddr &^ (page - 1); low < p.Vaddr+p.Filesz; low += page {
						pages = append(pages, low)
					}
				}
			}
			b.ReportAllocs()
			var rows []Row
			n, total := 0, 0
			for b.Loop() {
				low := pages[n%len(pages)]
				n++
				if rows, err = x.Rows(rows[:0], low, low+page); err != nil {
					b.Fatal(err)
				}
				total += len(rows)
			}
			b.ReportMetric(float64(total)/float64(n), "rows/op")
		})
	}
}
