package cfi

import (
	"bytes"
	"debug/elf"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

// BenchmarkPageFromCode builds the rows of 64 KiB of code that has entries for
// next to nothing (musl), for everything (libc: only the stubs in between are
// derived), and of bytes that are not code.
func BenchmarkPageFromCode(b *testing.B) {
	const page = 64 << 10
	open := map[string]func(b *testing.B) *elffile.File{
		"libc": func(b *testing.B) *elffile.File { return openFile(b, libc(b)) },
		"noise": func(b *testing.B) *elffile.File {
			code := make([]byte, imageLimit-imageCode)
			random := rand.New(rand.NewPCG(1, 2))
			for i := range code {
				code[i] = byte(random.Uint32())
			}
			return noiseFile(b, elf.EM_X86_64, code)
		},
		"noise-aarch64": func(b *testing.B) *elffile.File {
			code := make([]byte, imageLimit-imageCode)
			random := rand.New(rand.NewPCG(1, 2))
			for i := range code {
				code[i] = byte(random.Uint32())
			}
			return noiseFile(b, elf.EM_AARCH64, code)
		},
	}
	if path, err := filepath.Glob("/lib/ld-musl-*.so.1"); err == nil && len(path) > 0 {
		open["musl"] = func(b *testing.B) *elffile.File { return openFile(b, path[0]) }
	}
	for name, open := range open {
		b.Run(name, func(b *testing.B) {
			f := open(b)
			x, err := Options{Code: true}.Open(f)
			if err != nil {
				b.Fatal(err)
			}
			var pages []uint64
			for _, s := range x.instructions {
				for low := s.low &^ (page - 1); low < s.high; low += page {
					pages = append(pages, low)
				}
			}
			var rows []Row
			if rows, err = x.Rows(rows, pages[0], pages[0]+page); err != nil { // symbols
				b.Fatal(err)
			}
			b.ReportAllocs()
			n, total, longest := 0, 0, time.Duration(0)
			for b.Loop() {
				low := pages[n%len(pages)]
				n++
				start := time.Now()
				if rows, err = x.Rows(rows[:0], low, low+page); err != nil {
					b.Fatal(err)
				}
				longest = max(longest, time.Since(start))
				total += len(rows)
			}
			b.ReportMetric(float64(total)/float64(n), "rows/op")
			b.ReportMetric(float64(longest.Microseconds()), "longest-us")
		})
	}
}

func openFile(t testing.TB, path string) *elffile.File {
	t.Helper()
	f, err := elffile.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// noiseFile is a file with nothing but code.
func noiseFile(t testing.TB, m elf.Machine, code []byte) *elffile.File {
	t.Helper()
	data := image(m, code, plainHdr(), make([]byte, 8))
	f, err := elffile.NewFile(bytes.NewReader(data), int64(len(data)), t.Name())
	if err != nil {
		t.Fatal(err)
	}
	return f
}
