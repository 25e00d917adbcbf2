package golang

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/cfi"
	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

// patched is a file with some bytes changed.
type patched struct {
	file  []byte
	patch []byte
	off   int64
}

func (p patched) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(p.file)) {
		return 0, io.EOF
	}
	n := copy(b, p.file[off:])
	for i := range p.patch {
		if at := p.off + int64(i) - off; at >= 0 && at < int64(n) {
			b[at] = p.patch[i]
		}
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (p patched) open(t testing.TB) *elffile.File {
	t.Helper()
	f, err := elffile.NewFile(p, int64(len(p.file)), "patched")
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// fileOffset is where the file holds addr.
func fileOffset(t testing.TB, p *Program, addr uint64) int64 {
	t.Helper()
	s, ok := p.win.segment(addr)
	if !ok {
		t.Fatalf("%#x is in no segment", addr)
	}
	return int64(s.Off + (addr - s.Vaddr))
}

func TestTablesAreFoundWithoutSectionHeaders(t *testing.T) {
	for _, v := range variants {
		if !v.stripped {
			continue
		}
		t.Run(v.name, func(t *testing.T) {
			path := build(t, v)
			whole := open1(t, path)
			file, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			clear(file[0x28:0x30]) // e_shoff
			clear(file[0x3c:0x40]) // e_shnum, e_shstrndx
			p, err := open(patched{file: file}.open(t))
			if err != nil || p == nil {
				t.Fatalf("not recognised: %v", err)
			}
			if diff := cmp.Diff(p.tab, whole.tab, cmp.AllowUnexported(table{}, header{})); diff != "" {
				t.Fatalf("(-without +with section headers):\n%s", diff)
			}
			if p.tab.gofunc == 0 {
				t.Error("moduledata was not found")
			}
		})
	}
}

func TestOtherProgramsAreNotGo(t *testing.T) {
	f, err := elffile.Open("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if p, err := (Runtime{}).Recognise(f, ""); p != nil || err != nil {
		t.Errorf("got %v, %v for /bin/sh", p, err)
	}
}

func TestOldVersionsAreNamed(t *testing.T) {
	path := build(t, variants[1])
	p := open1(t, path)
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	old := patched{file: file, patch: []byte{0xfb, 0xff, 0xff, 0xff}, off: fileOffset(t, p, p.tab.addr)}
	got, err := Runtime{}.Recognise(old.open(t), "")
	if got != nil || !errors.Is(err, ErrUnsupportedVersion) {
		t.Errorf("got %v, %v, want ErrUnsupportedVersion", got, err)
	}
}

func TestWindowsStayWithinTheirLimit(t *testing.T) {
	p := open1(t, build(t, variants[0]))
	before := allRows(t, p)
	for pc := p.tab.low; pc < p.tab.high; pc += 4099 {
		symbolize(t, p, pc)
	}
	if got := len(p.win.held); got != maxWindows {
		t.Errorf("%d windows held, want %d", got, maxWindows)
	}
	if p.win.reads <= maxWindows {
		t.Errorf("%d reads: nothing was evicted", p.win.reads)
	}
	if got := p.Bytes(); got > 300<<10 {
		t.Errorf("%d bytes held", got)
	}
	if diff := cmp.Diff(allRows(t, p), before, cmp.AllowUnexported(cfi.Rule{})); diff != "" {
		t.Errorf("rows change after eviction (-got +want):\n%s", diff)
	}
}

// TestSpecialFunctions checks the ends of stacks and the ways over from one
// stack to another.
func TestSpecialFunctions(t *testing.T) {
	for _, v := range variants {
		if v.name != "cgo" && v.name != "arm64" {
			continue
		}
		t.Run(v.name, func(t *testing.T) {
			p := open1(t, build(t, v))
			rows := allRows(t, p)
			amd := v.name == "cgo"
			// kinds gives the CFA kinds in a function, in order, runs as one.
			kinds := func(name string) []uint8 {
				t.Helper()
				i, _, err := p.tab.find(p.win, lookup(t, p, name))
				if err != nil {
					t.Fatal(err)
				}
				fn, err := p.tab.function(p.win, i)
				if err != nil {
					t.Fatal(err)
				}
				var got []uint8
				for pc := fn.entry; pc < fn.end; pc++ {
					if k := at(rows, pc).CFA; len(got) == 0 || got[len(got)-1] != k {
						got = append(got, k)
					}
				}
				return got
			}
			want := map[string][]uint8{
				"runtime.goexit":    {cfi.CFAStop},
				"runtime.mstart":    {cfi.CFAStop},
				"runtime.rt0_go":    {cfi.CFAStop},
				"runtime.mcall":     {cfi.CFASP, cfi.CFAStop},
				"runtime.morestack": {cfi.CFASP, cfi.CFAStop},
				"gogo":              {cfi.CFASP, cfi.CFAStop},
				"runtime.sigtramp":  {cfi.CFASP},
			}
			if os.Getenv("KALYPSO_TEST_GO") == "" {
				over := uint8(cfi.CFADerefFP)
				if amd {
					over = cfi.CFAFrame
					want["runtime.asmcgocall"] = []uint8{cfi.CFASP, over, cfi.CFASP, over, cfi.CFASP}
					want["runtime.cgocallback"] = []uint8{cfi.CFASP, over, cfi.CFASP}
					want["runtime.sigreturn__sigaction"] = []uint8{cfi.CFASignal}
				} else {
					// C code sees the scheduler's frame pointer.
					want["runtime.asmcgocall"] = []uint8{cfi.CFASP, over, cfi.CFAUnsupported}
				}
				want["runtime.systemstack"] = []uint8{cfi.CFASP, over, cfi.CFASP}
			}
			for name, kindsWanted := range want {
				got := kinds(name)
				// Which epilogues come last depends on the version.
				if len(got) > len(kindsWanted) {
					got = got[:len(kindsWanted)]
				}
				if diff := cmp.Diff(got, kindsWanted); diff != "" {
					t.Errorf("%s (-got +want):\n%s", name, diff)
				}
			}
		})
	}
}

// TestSignalReturn: the handler's return address is the first byte of the
// function, and a walker looks one byte before it.
func TestSignalReturn(t *testing.T) {
	p := open1(t, build(t, variants[0]))
	name := "runtime.sigreturn__sigaction"
	if os.Getenv("KALYPSO_TEST_GO") != "" {
		t.Skip("the name depends on the version")
	}
	entry := lookup(t, p, name)
	for _, pages := range [][2]uint64{{entry - 1, entry}, {entry - 1, entry + 8}, {entry, entry + 8}, {entry - 100, entry}} {
		rows, err := p.Rows(nil, pages[0], pages[1])
		if err != nil {
			t.Fatal(err)
		}
		if got := rows[len(rows)-1].Rule; got != (cfi.Rule{CFA: cfi.CFASignal}) {
			t.Errorf("last rule of [%#x, %#x) is %+v", pages[0], pages[1], got)
		}
	}
	for pc := entry - 1; pc <= entry; pc++ {
		if got := symbolize(t, p, pc); len(got) != 1 || got[0].Function != name {
			t.Errorf("%#x is %+v", pc, got)
		}
	}
}

func TestPagesDoNotChangeRows(t *testing.T) {
	p := open1(t, build(t, variants[0]))
	want := allRows(t, p)
	for low := p.tab.low + 3; low+1009 < p.tab.low+100_000; low += 1009 {
		rows, err := p.Rows(nil, low, low+1009)
		if err != nil {
			t.Fatal(err)
		}
		for pc := low; pc < low+1009; pc += 5 {
			if got := at(rows, pc); got != at(want, pc) {
				t.Fatalf("%#x: %+v in the page at %#x, %+v else", pc, got, low, at(want, pc))
			}
		}
	}
	rows, err := p.Rows(nil, p.tab.high+16, p.tab.high+32)
	if want := []cfi.Row{{PC: p.tab.high + 16}}; err != nil || !cmp.Equal(rows, want, cmp.AllowUnexported(cfi.Rule{})) {
		t.Errorf("outside the text: %+v, %v", rows, err)
	}
}

func FuzzTables(f *testing.F) {
	path := build(f, variants[1])
	p := open1(f, path)
	file, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	off := fileOffset(f, p, p.tab.addr)
	size := uint32(p.tab.end - p.tab.addr)
	seed := func(addr uint64, patch []byte) { f.Add(uint32(addr-p.tab.addr), patch) }
	seed(p.tab.addr, file[off:off+headerBytes])
	for _, part := range []uint64{p.tab.names, p.tab.cus, p.tab.files, p.tab.pcs, p.tab.funcs, p.tab.funcs + p.tab.nfunc*8 + 8} {
		seed(part, bytes.Repeat([]byte{0xff}, 64))
		seed(part, file[fileOffset(f, p, part):][:200])
	}
	seed(p.tab.addr+8, binary.LittleEndian.AppendUint64(nil, 1<<40))
	f.Fuzz(func(t *testing.T, at uint32, patch []byte) {
		if len(patch) > 4096 {
			return
		}
		x := patched{file: file, patch: patch, off: off + int64(at%size)}
		p, err := open(x.open(t))
		if err != nil || p == nil {
			return
		}
		r := p.Ranges()[0]
		if r.Low >= r.High {
			t.Fatalf("empty range %+v", r)
		}
		var frames []profiler.Frame
		step := max((r.High-r.Low)/16, 1)
		for pc := r.Low; pc < r.High && pc >= r.Low; pc += step {
			rows, err := p.Rows(nil, pc, pc+4096)
			if err == nil && (len(rows) == 0 || rows[0].PC != pc) {
				t.Fatalf("rows of %#x start with %+v", pc, rows)
			}
			for i := 1; i < len(rows); i++ {
				if rows[i].PC <= rows[i-1].PC || rows[i].PC >= pc+4096 {
					t.Fatalf("rows out of order or range at %#x", rows[i].PC)
				}
			}
			if frames, err = (instance{p}).Symbolize(frames[:0], pc); err == nil && len(frames) > maxInlined+1 {
				t.Fatalf("%d frames", len(frames))
			}
		}
		if p.Bytes() > 512<<10 {
			t.Fatalf("%d bytes held", p.Bytes())
		}
	})
}
