package dwarf

import (
	"bytes"
	"compress/zlib"
	"debug/elf"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

func handSections() map[string][]byte {
	return map[string][]byte{
		"abbrev": handAbbrev(), "info": handInfo(), "line": handLine(), "str": []byte("main\x00inner\x00"),
	}
}

func mustOpen(t testing.TB, sections map[string][]byte, o Options) *Data {
	t.Helper()
	d, err := openBytes(wrap(sections), o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestLookupOfAHandMadeUnit(t *testing.T) {
	d := mustOpen(t, handSections(), Options{})
	for _, tc := range []struct {
		name string
		addr uint64
		want []Call
		err  error
	}{
		{"function", fuzzText, []Call{{Function: "main", File: "inc/a.c", Line: 1}}, nil},
		{"inlined call", fuzzText + 0x10, []Call{
			{Function: "inner", File: "inc/a.c", Line: 11, Inlined: true}, {Function: "main", File: "inc/a.c", Line: 42}}, nil},
		{"after the inlined call", fuzzText + 0x30, []Call{{Function: "main", File: "inc/a.c", Line: 11}}, nil},
		{"origin that is itself", fuzzText + 0x40, []Call{
			{File: "inc/a.c", Line: 11, Inlined: true}, {Function: "main", File: "inc/a.c", Line: 43}}, nil},
		{"last byte", fuzzText + 0xff, []Call{{Function: "main", File: "inc/a.c", Line: 11}}, nil},
		{"unit without function or line", fuzzText + 0x100, nil, ErrNoInfo},
		{"below the code", fuzzText - 1, nil, ErrNoInfo},
		{"above the code", fuzzText + 0x1000, nil, ErrNoInfo},
		{"highest address", math.MaxUint64, nil, ErrNoInfo},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := d.Lookup(nil, tc.addr)
			if !errors.Is(err, tc.err) {
				t.Fatalf("error %v, want %v", err, tc.err)
			}
			if diff := cmp.Diff(got, tc.want); diff != "" {
				t.Errorf("(-got +want)\n%s", diff)
			}
		})
	}
}

func TestLookupAppends(t *testing.T) {
	d := mustOpen(t, handSections(), Options{})
	first := Call{Function: "before"}
	got, err := d.Lookup([]Call{first}, fuzzText)
	if err != nil || len(got) != 2 || got[0] != first {
		t.Errorf("got %+v, %v", got, err)
	}
	got, err = d.Lookup([]Call{first}, fuzzText+0x200)
	if !errors.Is(err, ErrNoInfo) || len(got) != 1 || got[0] != first {
		t.Errorf("got %+v, %v; want the slice as it was", got, err)
	}
}

func TestOpenSaysWhatIsMissing(t *testing.T) {
	s := handSections()
	delete(s, "info")
	if _, err := openBytes(wrap(s), Options{}); !errors.Is(err, ErrNoDebug) {
		t.Errorf("without .debug_info: %v", err)
	}
	file := wrap(handSections())
	binary.LittleEndian.PutUint16(file[16:], uint16(elf.ET_REL))
	if _, err := openBytes(file, Options{}); !errors.Is(err, ErrNoDebug) {
		t.Errorf("relocatable file: %v", err)
	}
}

// compress makes .debug_info a gABI compressed section that claims size bytes.
func compress(t *testing.T, size uint64) []byte {
	t.Helper()
	s := handSections()
	var z bytes.Buffer
	z.Write(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(
		binary.LittleEndian.AppendUint64(nil, uint64(elf.COMPRESS_ZLIB)), size), 1))
	w := zlib.NewWriter(&z)
	if _, err := w.Write(s["info"]); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	s["info"] = z.Bytes()
	file := wrap(s)
	headers := binary.LittleEndian.Uint64(file[40:])
	// .debug_info is the third section; sh_flags is 8 bytes into its header.
	binary.LittleEndian.PutUint64(file[headers+2*64+8:], uint64(elf.SHF_COMPRESSED))
	return file
}

func TestCompressedSections(t *testing.T) {
	d, err := openBytes(compress(t, uint64(len(handInfo()))), Options{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := d.Lookup(nil, fuzzText+0x10)
	if err != nil || len(got) != 2 {
		t.Errorf("got %+v, %v", got, err)
	}
	if d.Bytes() < len(handInfo()) {
		t.Errorf("%d bytes: inflated sections are not counted", d.Bytes())
	}
	if _, err := openBytes(compress(t, 65<<20), Options{}); !errors.Is(err, elffile.ErrTooLarge) {
		t.Errorf("over the limit: %v", err)
	}
	if _, err := openBytes(compress(t, math.MaxUint64), Options{}); !errors.Is(err, elffile.ErrTooLarge) {
		t.Errorf("absurd size: %v", err)
	}
	// A size that the stream does not have.
	d, err = openBytes(compress(t, 1<<20), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Lookup(nil, fuzzText); err == nil {
		t.Error("no error for a stream that ends early")
	}
}

func TestLEB128(t *testing.T) {
	for _, tc := range []struct {
		in       []byte
		unsigned uint64
		signed   int64
		bad      bool
	}{
		{[]byte{0x02}, 2, 2, false},
		{[]byte{0x7f}, 127, -1, false},
		{[]byte{0xff, 0x00}, 127, 127, false},
		{[]byte{0x80, 0x7f}, 16256, -128, false},
		{[]byte{0x80, 0x80, 0x80, 0x80, 0x00}, 0, 0, false}, // padded by a linker
		{[]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, 0, -1, true},
		{[]byte{0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00}, 0, 0, true},
		{[]byte{0x80}, 0, 0, true},
	} {
		c := newCursor(&section{data: tc.in, size: uint64(len(tc.in))}, 0, uint64(len(tc.in)), 16)
		if got := c.uleb(); (c.err != nil) != tc.bad || got != tc.unsigned {
			t.Errorf("uleb(% x) = %d, %v", tc.in, got, c.err)
		}
		c = newCursor(&section{data: tc.in, size: uint64(len(tc.in))}, 0, uint64(len(tc.in)), 16)
		if got := c.sleb(); c.err == nil && got != tc.signed {
			t.Errorf("sleb(% x) = %d", tc.in, got)
		}
	}
}

func TestFlatten(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   []nested
		want []span
	}{
		{"nothing", nil, nil},
		{"nested", []nested{{0, 100, 1, 0}, {10, 20, 2, 1}, {12, 14, 3, 2}},
			[]span{{0, 1}, {10, 2}, {12, 3}, {14, 2}, {20, 1}, {100, 0}}},
		{"equal ranges: the deeper wins", []nested{{0, 10, 1, 0}, {0, 10, 2, 1}}, []span{{0, 2}, {10, 0}}},
		{"equal ranges at one depth: the first wins", []nested{{0, 10, 1, 0}, {0, 10, 2, 0}}, []span{{0, 1}, {10, 0}}},
		{"crossing", []nested{{0, 10, 1, 0}, {5, 15, 2, 1}}, []span{{0, 1}, {5, 2}, {15, 0}}},
		{"neighbours", []nested{{10, 20, 2, 0}, {0, 10, 1, 0}}, []span{{0, 1}, {10, 2}, {20, 0}}},
		{"gap", []nested{{0, 10, 1, 0}, {20, 30, 1, 0}}, []span{{0, 1}, {10, 0}, {20, 1}, {30, 0}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := flatten(tc.in); !slices.Equal(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

// TestDroppedCode says that code that the linker dropped, at 0, 1, -1 or -2,
// never answers.
func TestDroppedCode(t *testing.T) {
	for _, low := range []uint64{0, 1, math.MaxUint64, math.MaxUint64 - 1} {
		s := handSections()
		s["info"] = bytes.ReplaceAll(s["info"], binary.LittleEndian.AppendUint64(nil, fuzzText), binary.LittleEndian.AppendUint64(nil, low))
		s["line"] = bytes.ReplaceAll(s["line"], binary.LittleEndian.AppendUint64(nil, fuzzText), binary.LittleEndian.AppendUint64(nil, low))
		d := mustOpen(t, s, Options{})
		for _, a := range []uint64{low, low + 0x10, fuzzText, fuzzText + 0x10} {
			if got, err := d.Lookup(nil, a); !errors.Is(err, ErrNoInfo) {
				t.Errorf("code at %#x: Lookup(%#x) = %+v, %v", low, a, got, err)
			}
		}
	}
}

// TestLineMachine covers what compilers for x86 and arm64 do not write.
func TestLineMachine(t *testing.T) {
	table := &lineTable{minInst: 4, maxOps: 3}
	s := lineState{addr: 0x1000}
	table.advance(&s, 2)
	if s.addr != 0x1000 || s.op != 2 {
		t.Errorf("VLIW: %+v", s)
	}
	table.advance(&s, 5)
	if s.addr != 0x1008 || s.op != 1 {
		t.Errorf("VLIW: %+v", s)
	}
	// Rows whose addresses go backwards: 0x401020 line 5, then 0x401000 line
	// 7, then the end at 0x401040.
	line := handLine()
	prog := []byte{0, 9, 2}
	prog = binary.LittleEndian.AppendUint64(prog, fuzzText+0x20)
	prog = append(prog, 3, 4, 1, 0, 9, 2)
	prog = binary.LittleEndian.AppendUint64(prog, fuzzText)
	prog = append(prog, 3, 2, 1, 2, 0x40, 0, 1, 1)
	line = append(line[:len(line)-23], prog...)
	binary.LittleEndian.PutUint32(line, uint32(len(line)-4))
	sections := handSections()
	sections["line"] = line
	d := mustOpen(t, sections, Options{})
	for addr, want := range map[uint64]int{fuzzText: 7, fuzzText + 0xf: 7, fuzzText + 0x20: 5, fuzzText + 0x3f: 5} {
		got, err := d.Lookup(nil, addr)
		if err != nil || got[0].Line != want {
			t.Errorf("Lookup(%#x) = %+v, %v; want line %d", addr, got, err, want)
		}
	}
}

// manyUnits repeats the hand-made unit at other addresses.
func manyUnits(n int) map[string][]byte {
	s := handSections()
	info := s["info"]
	s["info"] = nil
	for i := range n {
		s["info"] = append(s["info"], bytes.ReplaceAll(bytes.ReplaceAll(info,
			binary.LittleEndian.AppendUint64(nil, fuzzText), binary.LittleEndian.AppendUint64(nil, fuzzText+uint64(i)*16)),
			[]byte{0, 0x10, 0, 0, 0, 0, 0, 0}, []byte{16, 0, 0, 0, 0, 0, 0, 0})...)
	}
	return s
}

func TestCacheStaysInBudget(t *testing.T) {
	const budget = 16 << 10
	d := mustOpen(t, manyUnits(256), Options{Budget: budget})
	for round := range 2 {
		for a := uint64(fuzzText); a < fuzzText+0x1000; a += 16 {
			if _, err := d.Lookup(nil, a); err != nil {
				t.Fatalf("round %d, Lookup(%#x): %v", round, a, err)
			}
			if d.cache.bytes > budget {
				t.Fatalf("%d bytes held, budget %d", d.cache.bytes, budget)
			}
		}
	}
	if n := d.Stats().Evictions; n < 256 {
		t.Errorf("%d evictions", n)
	}
	sum := 0
	for e := d.cache.order.Front(); e != nil; e = e.Next() {
		sum += e.Value.(*cacheEntry).bytes
	}
	if sum != d.cache.bytes || len(d.cache.entries) != d.cache.order.Len() {
		t.Errorf("cache says %d bytes, has %d", d.cache.bytes, sum)
	}
}

func TestUnitOverTheLimitGivesLines(t *testing.T) {
	d := mustOpen(t, handSections(), Options{UnitBytes: 16})
	got, err := d.Lookup(nil, fuzzText+0x10)
	if diff := cmp.Diff(got, []Call{{File: "inc/a.c", Line: 11}}); err != nil || diff != "" {
		t.Errorf("%v (-got +want)\n%s", err, diff)
	}
	if d.Stats().LinesOnly != 1 {
		t.Errorf("stats %+v", d.Stats())
	}
}

// TestHostileWorkIsBounded has 20000 functions that each name one range list
// of 60000 entries: 1.2 billion ranges.
func TestHostileWorkIsBounded(t *testing.T) {
	s := handSections()
	info := s["info"]
	info = info[:len(info)-1]
	for range 20000 {
		info = append(info, 6, 5, 0, 0, 0, 0, 0, 0, 0)
	}
	info = append(info, 0)
	binary.LittleEndian.PutUint32(info, uint32(len(info)-4))
	s["info"] = info
	var list []byte
	for range 60000 {
		list = append(list, 7)
		list = binary.LittleEndian.AppendUint64(list, fuzzText)
		list = append(list, 1)
	}
	s["rnglists"] = list
	d := mustOpen(t, s, Options{})
	start := time.Now()
	got, err := d.Lookup(nil, fuzzText)
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
	if err != nil || got[0].Line != 1 {
		t.Errorf("got %+v, %v; want at least the line", got, err)
	}
	if d.cache.bytes > d.cache.budget {
		t.Errorf("%d bytes held", d.cache.bytes)
	}
}

func TestConcurrentLookups(t *testing.T) {
	d := mustOpen(t, manyUnits(256), Options{Budget: 32 << 10})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for a := uint64(fuzzText); a < fuzzText+0x1000; a += 16 {
				if _, err := d.Lookup(nil, a); err != nil {
					t.Errorf("Lookup(%#x): %v", a, err)
				}
				_ = d.Bytes()
				_ = d.Stats()
			}
		})
	}
	wg.Wait()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if _, err := d.Lookup(nil, fuzzText); !errors.Is(err, ErrNoInfo) {
		t.Errorf("after Close: %v", err)
	}
	if d.Bytes() != 0 {
		t.Errorf("%d bytes after Close", d.Bytes())
	}
}

// TestFileThatShrinks says that a file cut while it is read gives errors.
func TestFileThatShrinks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, wrap(handSections()), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := elffile.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, err := Options{}.Open(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 80); err != nil {
		t.Fatal(err)
	}
	if got, err := d.Lookup(nil, fuzzText); err == nil {
		t.Errorf("got %+v", got)
	}
}
