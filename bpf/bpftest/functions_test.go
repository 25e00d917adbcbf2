package bpftest_test

import (
	"encoding/binary"
	"math"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/bpf/bpftest"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/cfi"
	"github.com/kalypso-dev/kalypso/profiler/unwind"
)

func functions(t testing.TB) *bpftest.Functions {
	t.Helper()
	bpftest.Require(t)
	return bpftest.Load(t, nil)
}

func stopName(w *bpftest.Walk) string { return profiler.Stop(w.Stop).String() }

func TestFindMapping(t *testing.T) {
	f := functions(t)
	var tables bpftest.Tables
	tables.AddMapping(0, 100, 0, 99, 0) // of another process
	for i := range uint64(9) {          // of 0x1000 bytes each, with gaps of as many
		tables.AddMapping(0x10000+i*0x2000, 0x11000+i*0x2000, i, uint32(10+i), uint32(i&1))
	}
	tables.AddMapping(math.MaxUint64-0xfff, math.MaxUint64, 9, 19, 1)
	f.SetTables(t, &tables)
	for _, c := range []struct {
		name    string
		count   uint32
		first   uint32
		address uint64
		want    uint32 // executable; 0: none
	}{
		{"no mappings", 0, 1, 0x10000, 0},
		{"one mapping, below", 1, 1, 0xffff, 0},
		{"one mapping, first byte", 1, 1, 0x10000, 10},
		{"one mapping, last byte", 1, 1, 0x10fff, 10},
		{"one mapping, past its end", 1, 1, 0x11000, 0},
		{"address 0", 9, 1, 0, 0},
		{"not the next process's mapping", 1, 1, 0x12000, 0},
		{"the other process's", 1, 0, 99, 99},
		{"many, first", 9, 1, 0x10800, 10},
		{"many, last byte of the third", 9, 1, 0x14fff, 12},
		{"many, in a gap", 9, 1, 0x15000, 0},
		{"many, last", 9, 1, 0x20fff, 18},
		{"many, past the last", 9, 1, 0x21000, 0},
		{"at the end of the address space", 10, 1, math.MaxUint64 - 1, 19},
		{"last address of all", 10, 1, math.MaxUint64, 0},
		{"slice past the table", 8, 1 << 20, 0x10000, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := bpftest.Walk{FirstMapping: c.first, Mappings: c.count}
			found := f.Call(t, "find_mapping", &w, &bpftest.Call{Address: c.address}) == 1
			if found != (c.want != 0) || w.Executable != c.want {
				t.Errorf("found %t, executable %d; want %d", found, w.Executable, c.want)
			}
			if found && c.want < 99 && (w.Bias != uint64(c.want-10) || w.Kind != (c.want-10)&1 || c.address < w.Start || c.address >= w.End) {
				t.Errorf("the walk did not take over the mapping: %#x-%#x, bias %d, kind %d", w.Start, w.End, w.Bias, w.Kind)
			}
		})
	}
	t.Run("the current mapping is not looked up", func(t *testing.T) {
		w := bpftest.Walk{Start: 0x500000, End: 0x600000, Executable: 77}
		if f.Call(t, "find_mapping", &w, &bpftest.Call{Address: 0x5fffff}) != 1 || w.Executable != 77 {
			t.Error("the last byte of the current mapping is not found")
		}
		if f.Call(t, "find_mapping", &w, &bpftest.Call{Address: 0x600000}) != 0 {
			t.Error("the byte after the current mapping is found in it")
		}
	})
}

func TestFindRule(t *testing.T) {
	f := functions(t)
	var tables bpftest.Tables
	tables.AddExecutable(0, 0, 0)       // 0: not opened
	tables.AddExecutable(0, 2, 5)       // 1: pages 2 to 6
	tables.AddExecutable(3, 0x12345, 1) // 2: code beyond 4 GiB
	tables.AddExecutable(math.MaxUint32-1, 0, 4)
	tables.AddPage(0, 3)
	tables.AddPage(0, 0)          // not built
	tables.AddPage(0, 0xffffffff) // will not be
	tables.AddPage(3, 1)
	tables.AddPage(1<<20-1, 9) // rows past their table
	for _, row := range [][2]uint16{{0, 1}, {0x10, 2}, {0xffff, 3}, {0, 4}} {
		tables.AddRow(row[0], row[1])
	}
	for i := range int32(5) {
		tables.AddRule(cfi.Rule{CFA: cfi.CFASP, CFAOff: i})
	}
	f.SetTables(t, &tables)
	for _, c := range []struct {
		name       string
		executable uint32
		offset     uint64
		want       int32 // the rule's number; 0: none
	}{
		{"executable out of range", 1 << 20, 0x20000, 0},
		{"executable not opened", 0, 0, 0},
		{"below the first page", 1, 0x1ffff, 0},
		{"first byte of a page", 1, 0x20000, 1},
		{"last byte of a row", 1, 0x2000f, 1},
		{"first byte of a row", 1, 0x20010, 2},
		{"in the middle of a row", 1, 0x28000, 2},
		{"last byte but one of a page", 1, 0x2fffe, 2},
		{"last byte of a page", 1, 0x2ffff, 3},
		{"page not built", 1, 0x30000, 0},
		{"page unavailable", 1, 0x40000, 0},
		{"page of one row", 1, 0x5abcd, 4},
		{"rows past the end of their table", 1, 0x60000, 0},
		{"past the last page", 1, 0x70000, 0},
		{"offset beyond 4 GiB", 2, 0x123450000 + 0x1234, 4},
		{"offset beyond 4 GiB, page before", 2, 0x12344ffff, 0},
		{"low half of an offset beyond 4 GiB", 2, 0x23450000, 0},
		{"pages past the end of their table", 3, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := bpftest.Walk{Executable: c.executable}
			call := bpftest.Call{Address: c.offset}
			found := f.Call(t, "find_rule", &w, &call) == 1
			if found != (c.want != 0) || found && call.Rule.CfaOff != c.want {
				t.Errorf("found %t, rule %d; want %d", found, call.Rule.CfaOff, c.want)
			}
			if want := map[bool]string{true: "none", false: "no_table"}[found]; stopName(&w) != want {
				t.Errorf("stop is %s, want %s", stopName(&w), want)
			}
		})
	}
}

func TestPush(t *testing.T) {
	f := functions(t)
	for _, c := range []struct {
		name         string
		base, frames uint32
		executable   uint32
		exact        uint8
		address      uint64
		want         uint64
		ok           bool
	}{
		{"exact address", 0, 0, 5, 1, 0x1234, 5<<48 | 0x1234, true},
		{"return address", 3, 7, 5, 0, 0x1234, 1<<63 | 5<<48 | 0x1234, true},
		{"address of more than 48 bits", 0, 0, 1, 1, 0xabcd_8765_4321_0fed, 1<<48 | 0x8765_4321_0fed, true},
		{"number of more than 15 bits", 0, 0, 0xffff, 1, 0, 0x7fff << 48, true},
		{"last frame, behind all kernel frames", 127, 1023, 1, 1, 1, 1<<48 | 1, true},
		{"stack full", 0, 1024, 1, 1, 1, 0, false},
		{"stack full behind kernel frames", 127, 1024, 1, 1, 1, 0, false},
		{"more kernel frames than there can be", 1152, 0, 1, 1, 1, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := bpftest.Walk{Base: c.base, Frames: c.frames, Executable: c.executable, Exact: c.exact, Hash: 9}
			ok := f.Call(t, "push", &w, &bpftest.Call{Address: c.address}) == 1
			if ok != c.ok {
				t.Fatalf("pushed %t, want %t", ok, c.ok)
			}
			if !ok {
				if w.Frames != c.frames || w.Hash != 9 || stopName(&w) != "truncated" {
					t.Errorf("a full stack has %d frames, hash %d, stop %s; want %d, 9, truncated", w.Frames, w.Hash, stopName(&w), c.frames)
				}
				return
			}
			if got := w.Stack.Frames[c.base+c.frames]; got != c.want {
				t.Errorf("the frame is %#x, want %#x", got, c.want)
			}
			if got := unwind.Word(c.executable, c.address, c.exact == 1); got != c.want {
				t.Errorf("unwind.Word gives %#x, want %#x", got, c.want)
			}
			if w.Frames != c.frames+1 {
				t.Errorf("%d frames, want %d", w.Frames, c.frames+1)
			}
		})
	}
}

// words is a stack of words between unreadable pages; the last word is the last
// readable one.
func words(t testing.TB, values map[int]uint64) (at func(i int) uint64) {
	t.Helper()
	memory := guarded(t, unix.Getpagesize())
	n := len(memory) / 8
	for i, v := range values {
		binary.LittleEndian.PutUint64(memory[8*((i+n)%n):], v)
	}
	base := address(memory)
	return func(i int) uint64 { return base + uint64(8*i) }
}

func TestFramePointer(t *testing.T) {
	f := functions(t)
	at := words(t, map[int]uint64{0: 0x7000, 1: 0x4321, 2: 0, 3: 0})
	self := words(t, nil)
	own := words(t, map[int]uint64{0: 1})
	for _, c := range []struct {
		name           string
		fp             uint64
		stop           string // empty: stepped
		pc, sp, nextFP uint64
	}{
		{"two words", at(0), "", 0x4321, at(2), 0x7000},
		{"all zero", at(2), "", 0, at(4), 0},
		{"no frame pointer", 0, "root", 0, 0, 0},
		{"not aligned", at(0) + 4, "bad_read", 0, 0, 0},
		{"below readable memory", at(-1), "bad_read", 0, 0, 0},
		{"second word not readable", at(unix.Getpagesize()/8 - 1), "bad_read", 0, 0, 0},
		{"last two words", self(unix.Getpagesize()/8 - 2), "", 0, self(unix.Getpagesize() / 8), 0},
		{"kernel address", 0xffffffff81000000, "bad_read", 0, 0, 0},
		{"another chain", own(0), "", 0, own(2), 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := bpftest.Walk{Fp: c.fp}
			ok := f.Call(t, "frame_pointer", &w, nil) == 1
			if ok != (c.stop == "") || !ok && stopName(&w) != c.stop {
				t.Fatalf("stepped %t, stop %s; want %q", ok, stopName(&w), c.stop)
			}
			if ok && (w.Pc != c.pc || w.Sp != c.sp || w.Fp != c.nextFP) {
				t.Errorf("pc %#x sp %#x fp %#x, want %#x %#x %#x", w.Pc, w.Sp, w.Fp, c.pc, c.sp, c.nextFP)
			}
		})
	}
	t.Run("points to itself", func(t *testing.T) {
		memory := guarded(t, unix.Getpagesize())
		binary.LittleEndian.PutUint64(memory, address(memory))
		w := bpftest.Walk{Fp: address(memory)}
		if f.Call(t, "frame_pointer", &w, nil) != 0 || stopName(&w) != "bad_frame" {
			t.Errorf("stop is %s, want bad_frame", stopName(&w))
		}
	})
}

func TestSignalFrame(t *testing.T) {
	f := functions(t)
	pc, sp, fp := 168/8, 160/8, 120/8
	if runtime.GOARCH == "arm64" {
		pc, sp, fp = 440/8, 432/8, 416/8
	}
	at := words(t, map[int]uint64{pc: 0x4000, sp: 0x7000, fp: 0x7100, 424 / 8: 0x4400})
	w := bpftest.Walk{Registers: 1, Leaf: 1}
	if f.Call(t, "signal_frame", &w, &bpftest.Call{Address: at(0)}) != 1 {
		t.Fatalf("stop %s", stopName(&w))
	}
	if w.Pc != 0x4000 || w.Sp != 0x7000 || w.Fp != 0x7100 || w.Exact != 1 || w.Registers != 0 {
		t.Errorf("pc %#x sp %#x fp %#x exact %d registers %d", w.Pc, w.Sp, w.Fp, w.Exact, w.Registers)
	}
	if runtime.GOARCH == "arm64" && (w.Lr != 0x4400 || w.Leaf != 1) || runtime.GOARCH == "amd64" && w.Leaf != 0 {
		t.Errorf("lr %#x leaf %d", w.Lr, w.Leaf)
	}
	for _, missing := range []int{pc, sp, fp} {
		// The context lies so that this word is the first past readable memory, or the last before it.
		for _, base := range []uint64{at(unix.Getpagesize()/8 - missing), at(-missing - 1)} {
			w := bpftest.Walk{}
			if f.Call(t, "signal_frame", &w, &bpftest.Call{Address: base}) != 0 || stopName(&w) != "bad_read" {
				t.Errorf("word %d is not readable, and stop is %s", missing, stopName(&w))
			}
		}
	}
}

func TestCFA(t *testing.T) {
	f := functions(t)
	at := words(t, map[int]uint64{4: 0x9000})
	w := func() bpftest.Walk {
		w := bpftest.Walk{Pc: 0x40001b, Sp: at(2), Fp: at(8), Registers: 1}
		w.Regs.R[10], w.Regs.R[31] = 0x5000, 0x6000
		return w
	}
	for _, c := range []struct {
		name string
		rule bpftest.Rule
		want uint64
		stop string
	}{
		{"sp", bpftest.Rule{Cfa: cfi.CFASP, CfaOff: 24}, at(5), ""},
		{"sp, negative", bpftest.Rule{Cfa: cfi.CFASP, CfaOff: -8}, at(1), ""},
		{"fp", bpftest.Rule{Cfa: cfi.CFAFP, CfaOff: 16}, at(10), ""},
		{"fp, lowest offset", bpftest.Rule{Cfa: cfi.CFAFP, CfaOff: math.MinInt32}, at(8) - 1<<31, ""},
		{"register", bpftest.Rule{Cfa: cfi.CFAReg, Reg: 10, CfaOff: -16}, 0x4ff0, ""},
		{"last register", bpftest.Rule{Cfa: cfi.CFAReg, Reg: 31}, 0x6000, ""},
		{"register number too big", bpftest.Rule{Cfa: cfi.CFAReg, Reg: 32 + 10}, 0x5000, ""},
		{"PLT, before the push", bpftest.Rule{Cfa: cfi.CFAPLT, Off2: 12}, at(3), ""},
		{"PLT, after the push", bpftest.Rule{Cfa: cfi.CFAPLT, Off2: 11}, at(4), ""},
		{"*sp", bpftest.Rule{Cfa: cfi.CFADerefSP, CfaOff: 16, Off2: 8}, 0x9008, ""},
		{"*sp, negative", bpftest.Rule{Cfa: cfi.CFADerefSP, CfaOff: 16, Off2: -8}, 0x8ff8, ""},
		{"*fp, negative", bpftest.Rule{Cfa: cfi.CFADerefFP, CfaOff: -32, Off2: -1}, 0x8fff, ""},
		{"*sp, not readable", bpftest.Rule{Cfa: cfi.CFADerefSP, CfaOff: -24}, 0, "bad_read"},
		{"*fp, not readable", bpftest.Rule{Cfa: cfi.CFADerefFP, CfaOff: -1 << 15}, 0, "bad_read"},
		{"unsupported", bpftest.Rule{Cfa: cfi.CFAUnsupported}, 0, "unsupported"},
		{"unknown", bpftest.Rule{Cfa: 200}, 0, "unsupported"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, call := w(), bpftest.Call{Rule: c.rule}
			ok := f.Call(t, "cfa_of", &w, &call) == 1
			if ok != (c.stop == "") || call.Value != c.want || !ok && stopName(&w) != c.stop {
				t.Errorf("%t, %#x, stop %s; want %#x, %q", ok, call.Value, stopName(&w), c.want, c.stop)
			}
		})
	}
	t.Run("register of a caller", func(t *testing.T) {
		w := w()
		w.Registers = 0
		if f.Call(t, "cfa_of", &w, &bpftest.Call{Rule: bpftest.Rule{Cfa: cfi.CFAReg}}) != 0 || stopName(&w) != "unsupported" {
			t.Errorf("stop is %s, want unsupported", stopName(&w))
		}
	})
}

func TestSaved(t *testing.T) {
	f := functions(t)
	at := words(t, map[int]uint64{0: 100, 1: 101, 2: 102, 3: 103, 4: 104, 5: 105, 6: 106})
	for _, c := range []struct {
		name   string
		kind   uint8
		offset int16
		want   uint64 // 0: not readable
	}{
		{"below the CFA", cfi.RegCFA, -16, 102},
		{"above the CFA", cfi.RegCFA, 16, 106},
		{"below fp", cfi.RegDerefFP, -8, 101},
		{"at sp", cfi.RegDerefSP, 0, 100},
		{"above sp", cfi.RegDerefSP, 40, 105},
		{"not readable", cfi.RegDerefSP, -8, 0},
		{"lowest offset", cfi.RegCFA, math.MinInt16, 0},
		{"highest offset", cfi.RegCFA, math.MaxInt16, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := bpftest.Walk{Sp: at(0), Fp: at(2)}
			call := bpftest.Call{Address: at(4), Kind: uint32(c.kind), Offset: uint32(int32(c.offset))}
			ok := f.Call(t, "saved", &w, &call) == 1
			if ok != (c.want != 0) || call.Value != c.want || !ok && stopName(&w) != "bad_read" {
				t.Errorf("%t, %d, stop %s; want %d", ok, call.Value, stopName(&w), c.want)
			}
		})
	}
}

// TestStep makes one step by each rule, and meets every reason to stop.
func TestStep(t *testing.T) {
	f := functions(t)
	sp := words(t, map[int]uint64{0: 0x7100, 1: 0x10500, 2: 0x7200, 3: 0, 8: 0x7300, 9: 0x10600})
	const code = 0x10000
	type result struct {
		Stop       string // empty: stepped
		PC, SP, FP uint64
	}
	arm64 := runtime.GOARCH == "arm64"
	leaf := func(yes, no result) result {
		if arm64 {
			return yes
		}
		return no
	}
	for _, c := range []struct {
		name string
		rule cfi.Rule
		with func(w *bpftest.Walk)
		want result
	}{
		{"return address at sp", cfi.Rule{CFA: cfi.CFASP, CFAOff: 16, RAKind: cfi.RegCFA, RAOff: -8}, nil,
			result{"", 0x10500, sp(2), sp(8)}},
		{"both in one read", cfi.Rule{CFA: cfi.CFASP, CFAOff: 16, RAKind: cfi.RegCFA, RAOff: -8, FPKind: cfi.RegCFA, FPOff: -16}, nil,
			result{"", 0x10500, sp(2), 0x7100}},
		{"frame pointer apart", cfi.Rule{CFA: cfi.CFASP, CFAOff: 24, RAKind: cfi.RegCFA, RAOff: -16, FPKind: cfi.RegCFA, FPOff: -8}, nil,
			result{"", 0x10500, sp(3), 0x7200}},
		{"by frame pointer, negative offsets", cfi.Rule{CFA: cfi.CFAFP, CFAOff: -32, RAKind: cfi.RegDerefFP, RAOff: -56, FPKind: cfi.RegDerefSP, FPOff: 16}, nil,
			result{"", 0x10500, sp(4), 0x7200}},
		{"frame pointer lost", cfi.Rule{CFA: cfi.CFASP, CFAOff: 16, RAKind: cfi.RegCFA, RAOff: -8, FPKind: cfi.RegUndefined}, nil,
			result{"", 0x10500, sp(2), 0}},
		{"chain", cfi.Rule{CFA: cfi.CFAFrame}, nil, result{"", 0x10600, sp(10), 0x7300}},
		{"over two stacks, down", cfi.Rule{CFA: cfi.CFASP, CFAOff: -8, RAKind: cfi.RegDerefFP, RAOff: 8}, nil,
			result{"", 0x10600, sp(-1), sp(8)}},
		{"return address is 0", cfi.Rule{CFA: cfi.CFASP, CFAOff: 32, RAKind: cfi.RegCFA, RAOff: -8}, nil, result{Stop: "root"}},
		{"outermost", cfi.Rule{CFA: cfi.CFAStop}, nil, result{Stop: "root"}},
		{"return address undefined", cfi.Rule{CFA: cfi.CFASP, CFAOff: 8, RAKind: cfi.RegUndefined}, nil, result{Stop: "root"}},
		{"gap", cfi.Rule{}, nil, result{Stop: "no_row"}},
		{"unsupported", cfi.Rule{CFA: cfi.CFAUnsupported}, nil, result{Stop: "unsupported"}},
		{"stack pointer goes down", cfi.Rule{CFA: cfi.CFASP, CFAOff: -8, RAKind: cfi.RegCFA, RAOff: 8}, nil, result{Stop: "bad_frame"}},
		{"stack pointer stays", cfi.Rule{CFA: cfi.CFASP, RAKind: cfi.RegCFA, RAOff: 8}, nil, result{Stop: "bad_frame"}},
		{"return address not readable", cfi.Rule{CFA: cfi.CFASP, CFAOff: 1 << 15, RAKind: cfi.RegCFA, RAOff: -8}, nil, result{Stop: "bad_read"}},
		{"in the link register of a caller", cfi.Rule{CFA: cfi.CFASP, CFAOff: 16, RAKind: cfi.RegSame}, func(w *bpftest.Walk) { w.Leaf = 0 },
			result{Stop: "bad_frame"}},
		{"leaf that leaves sp where it is", cfi.Rule{CFA: cfi.CFASP, RAKind: cfi.RegSame}, func(w *bpftest.Walk) { w.Leaf, w.Lr = 1, 0xffff<<48|0x10700 },
			leaf(result{"", 0x10700, sp(0), sp(8)}, result{"", 0xffff<<48 | 0x10700, sp(0), sp(8)})},
		{"no mapping", cfi.Rule{}, func(w *bpftest.Walk) { w.Pc = 0x99999 }, result{Stop: "no_mapping"}},
		{"at address 0", cfi.Rule{}, func(w *bpftest.Walk) { w.Pc = 0 }, result{Stop: "root"}},
		{"no table", cfi.Rule{}, func(w *bpftest.Walk) { w.Pc = code + 0x20000 }, result{Stop: "no_table"}},
		{"stack full", cfi.Rule{CFA: cfi.CFASP, CFAOff: 16, RAKind: cfi.RegCFA, RAOff: -8}, func(w *bpftest.Walk) { w.Frames = 1024 },
			result{Stop: "truncated"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var tables bpftest.Tables
			tables.AddMapping(code, code+0x40000, code, 1, 0)
			tables.AddExecutable(0, 0, 0)
			tables.AddExecutable(0, 0, 1)
			tables.AddPage(0, 1)
			tables.AddRow(0, 0)
			tables.AddRule(c.rule)
			f.SetTables(t, &tables)
			w := bpftest.Walk{Pc: code + 0x100, Sp: sp(0), Fp: sp(8), Exact: 1, Registers: 1, Mappings: 1}
			if c.with != nil {
				c.with(&w)
			}
			frames := w.Frames
			got := result{Stop: ""}
			if f.Call(t, "step", &w, nil) == 1 {
				got = result{"", w.Pc, w.Sp, w.Fp}
				if w.Exact != 0 || w.Leaf != 0 || w.Registers != 0 || w.Frames != frames+1 {
					t.Errorf("after a step exact, leaf, registers are %d %d %d, frames %d", w.Exact, w.Leaf, w.Registers, w.Frames)
				}
			} else {
				got.Stop = stopName(&w)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("step (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("a call as last instruction is looked up before the return address", func(t *testing.T) {
		w := bpftest.Walk{Pc: code + 0x10000, Sp: sp(0), Mappings: 1}
		f.Call(t, "step", &w, nil)
		if stopName(&w) == "no_table" {
			t.Error("looked up in the page of the return address, which is not that of the call")
		}
		w = bpftest.Walk{Pc: code + 0x10000, Sp: sp(0), Mappings: 1, Exact: 1}
		f.Call(t, "step", &w, nil)
		if stopName(&w) != "no_table" {
			t.Error("an exact address is not looked up where it is")
		}
	})
}

func TestBound(t *testing.T) {
	f := functions(t)
	for in, want := range map[uint64]uint64{0: 0, 1: 1, 65535: 65535, 65536: 65536, 65537: 65536, math.MaxUint64: 65536} {
		c := bpftest.Call{Value: in}
		f.Call(t, "bound", nil, &c)
		if c.Value != want {
			t.Errorf("%d is bound to %d, want %d", in, c.Value, want)
		}
	}
}

// TestCopyStack copies stacks of any length that end with a page: whole, with up to
// a piece of 256 bytes that is below them.
func TestCopyStack(t *testing.T) {
	f := functions(t)
	const full = 64 << 10
	memory := guarded(t, 2*full) // pages, of any size
	for i := range memory {
		memory[i] = byte(i*7 + i>>8)
	}
	end := len(memory)
	for _, bytes := range []int{0, 8, 255, 256, 300, 4095, 4096, 4097, 4096 + 512, 20000, full - 256, full - 1, full, full + 5000} {
		sp := end - bytes
		got := int(f.Call(t, "copy_stack", nil, &bpftest.Call{Address: address(memory) + uint64(sp)}))
		below := int(f.Copied(t).Below)
		if below > 256+16 || got != min(bytes+below, full) && bytes > 0 {
			t.Errorf("of %d bytes %d are copied, from %d below them", bytes, got, below)
			continue
		}
		if diff := cmp.Diff(memory[sp-below:][:got], f.Copied(t).Stack[:got]); diff != "" {
			t.Errorf("the copy of %d bytes is not the stack (-stack +copy):\n%s", bytes, diff)
		}
	}
}

func TestMix(t *testing.T) {
	f := functions(t)
	// The definition, in other words: an odd multiplier keeps all bits, and the
	// shift brings high ones down. profiler/sampler compares its own with this one.
	for _, c := range [][2]uint64{{0, 0}, {0, 1}, {1, 0}, {math.MaxUint64, 1}, {0x123456789abcdef0, 0xfedcba9876543210}} {
		product := (c[0] ^ c[1]) * 11400714819323198485
		want := product ^ product/(1<<29)
		call := bpftest.Call{Value: c[0], Address: c[1]}
		f.Call(t, "mix", nil, &call)
		if call.Value != want {
			t.Errorf("mix(%#x, %#x) = %#x, want %#x", c[0], c[1], call.Value, want)
		}
	}
}
