package bpftest_test

import (
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/bpf/bpftest"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/cfi"
	"github.com/kalypso-dev/kalypso/profiler/unwind"
)

// hostile makes tables, registers and stacks that no honest machine would: what
// a process can do to the walker by writing over its own stack, and what wrong
// tables would. About half of each batch makes sense, so that walks get far.
type hostile struct {
	*rand.Rand
	tables   bpftest.Tables
	mappings uint32
	rules    int
	stackAt  uint64
	stack    []byte
	calm     bool // all of it makes sense: walks end only at the limit of frames
}

// codeFrom to codeTo is where code is said to be, in a file that begins at codeAt:
// where no Go program has anything, so that a test that reads its own memory finds
// nothing there. Programs begin at 0x400000 on amd64 and at 0x10000 on arm64, the
// heap at 0xc000000000 and 0x4000000000.
const codeAt, codeFrom, codeTo = 0x2000000000, codeAt + 0x10000, codeAt + 0x200000

func newHostile(seed uint64, calm bool, stackAt uint64, stack []byte) *hostile {
	h := &hostile{Rand: rand.New(rand.NewPCG(seed, 1)), stackAt: stackAt, stack: stack, calm: calm}
	h.makeRules()
	h.makePages()
	h.makeMappings()
	for i := 0; i+8 <= len(stack); i += 8 {
		binary.LittleEndian.PutUint64(stack[i:], h.word(stackAt+uint64(i)))
	}
	return h
}

// word is something that a stack could hold at an address.
func (h *hostile) word(at uint64) uint64 {
	size := uint64(len(h.stack))
	switch n := h.IntN(100); {
	case n < 55 || h.calm:
		return h.code()
	case n < 75: // further up, as frame pointers are
		return at + 8*h.Uint64N(16)
	case n < 85: // anywhere near the stack, its ends included
		return h.stackAt - 64 + h.Uint64N(size+128)
	case n < 88:
		return 0
	case n < 90:
		return -h.Uint64N(32)
	case n < 92: // with a pointer authentication code
		return h.code() | h.Uint64()<<48
	}
	return h.Uint64() >> h.UintN(64)
}

func (h *hostile) code() uint64 { return codeFrom + h.Uint64N(codeTo-codeFrom) }

func (h *hostile) makeRules() {
	h.rules = 1 + h.IntN(40)
	h.tables.AddRule(cfi.Rule{})
	for range h.rules {
		r := cfi.Rule{
			CFAOff: int32(8 * (1 + h.IntN(8))), RAOff: -8, FPOff: -16,
			CFA: cfi.CFASP, RAKind: cfi.RegCFA, FPKind: uint8(h.IntN(5)),
		}
		if h.calm {
			r.CFAOff, r.FPKind = int32(8*(1+h.IntN(2))), cfi.RegSame
			h.tables.AddRule(r)
			continue
		}
		switch h.IntN(12) {
		case 0: // anything at all
			r = cfi.Rule{
				CFAOff: int32(h.Uint32()) >> h.UintN(32), Off2: int16(h.Uint32()) >> h.UintN(16),
				FPOff: int16(h.Uint32()), RAOff: int16(h.Uint32()) >> h.UintN(16),
				CFA: uint8(h.Uint32()), FPKind: uint8(h.Uint32()), RAKind: uint8(h.Uint32()), Reg: uint8(h.Uint32()),
			}
		case 1:
			r.CFA, r.CFAOff = uint8(h.IntN(12)), int32(h.IntN(32)-8)
		case 2:
			r.CFA, r.RAKind, r.Reg = uint8(3+h.IntN(8)), uint8(h.IntN(6)), uint8(h.IntN(40))
			r.Off2 = int16(h.IntN(32) - 8)
		case 3:
			r.CFA = cfi.CFAFrame
		case 4:
			r.FPKind, r.FPOff = cfi.RegCFA, r.RAOff-8
		}
		h.tables.AddRule(r)
	}
}

// oneIn says no, but for once in n times, and never where all is to make sense.
func (h *hostile) oneIn(n int) bool { return !h.calm && h.IntN(n) == 0 }

const codePages = (codeTo - codeAt) >> 16

func (h *hostile) makePages() {
	first := uint32(0)
	for range codePages {
		count, low := uint32(1+h.IntN(12)), uint16(0)
		if h.oneIn(40) {
			low = uint16(h.Uint32())
		}
		for range count {
			rule := uint16(1 + h.IntN(h.rules))
			if h.oneIn(100) {
				rule = uint16(h.Uint32())
			}
			h.tables.AddRow(low, rule)
			if h.oneIn(40) {
				low = uint16(h.Uint32())
			} else {
				low += uint16(h.UintN(0x1000))
			}
		}
		switch {
		case h.oneIn(20):
			h.tables.AddPage(first, 0xffffffff)
		case h.oneIn(20):
			h.tables.AddPage(h.Uint32(), h.Uint32())
		case h.oneIn(20):
			h.tables.AddPage(first, 0)
		default:
			h.tables.AddPage(first, count)
		}
		first += count
	}
	for range 8 {
		if h.oneIn(16) {
			h.tables.AddExecutable(h.Uint32(), h.Uint32(), h.Uint32())
		} else {
			h.tables.AddExecutable(0, 0, codePages)
		}
	}
}

func (h *hostile) makeMappings() {
	h.mappings = uint32(1 + h.IntN(12))
	at := uint64(codeFrom)
	for i := range h.mappings {
		end := at + (codeTo-at)/uint64(h.mappings-i)
		start, bias, exe, kind := at, uint64(codeAt), uint32(h.IntN(8)), uint32(0)
		at = end
		switch {
		case h.oneIn(16):
			kind = 1
		case h.oneIn(16):
			kind = h.Uint32()
		case h.oneIn(16):
			bias = h.Uint64()
		case h.oneIn(16):
			start, end = h.code(), h.code()
		case h.oneIn(16):
			bias = start - h.Uint64N(0x20000)
		case h.oneIn(16):
			exe = h.Uint32()
		}
		h.tables.AddMapping(start, end, bias, exe, kind)
	}
}

// inputs are walks over the stack, all of whose registers are made up.
func (h *hostile) inputs(arch unwind.Arch, n int) []bpftest.Input {
	inputs := make([]bpftest.Input, n)
	for i := range inputs {
		in := &inputs[i]
		in.Arch, in.Stack = arch, h.stack
		in.Exact, in.Leaf, in.Registers = h.IntN(2) == 0, h.IntN(2) == 0, h.IntN(2) == 0
		in.Below = uint32(8 * h.IntN(3))
		in.Regs.PC, in.Regs.SP = h.code(), h.stackAt+uint64(in.Below)
		if h.oneIn(20) {
			in.Regs.PC = h.word(h.stackAt)
		}
		in.Regs.FP, in.Regs.LR = h.stackAt+8*h.Uint64N(uint64(len(h.stack))/8), h.code()
		if h.oneIn(6) {
			in.Regs.FP = h.word(h.stackAt)
		}
		for r := range in.Regs.R {
			in.Regs.R[r] = h.word(h.stackAt)
		}
		in.Base = h.Uint32N(128)
		in.Mappings = h.mappings
		if h.oneIn(50) {
			in.First, in.Mappings = h.Uint32(), h.Uint32()
		}
	}
	return inputs
}

func archName(a unwind.Arch) string {
	return map[unwind.Arch]string{unwind.AMD64: "amd64", unwind.ARM64: "arm64"}[a]
}

// TestNativeWalksAsGo: the kernel side's walker, compiled for either instruction
// set and under the sanitizers, and the one in Go make the same of anything.
func TestNativeWalksAsGo(t *testing.T) {
	const batches, walks = 250, 500 // 123,000 walks
	for _, arch := range []unwind.Arch{unwind.AMD64, unwind.ARM64} {
		t.Run(archName(arch), func(t *testing.T) {
			t.Parallel()
			native := bpftest.StartNative(t, "native/walk.c", arch)
			var stops [profiler.Stops]int
			deepest := 0
			for batch := range batches {
				size := 512 << (batch % 5)
				calm := batch%50 == 49
				if calm {
					size = 64 << 10 // a full copy
				}
				h := newHostile(uint64(batch)<<8|uint64(arch), calm, 0x7ffc12345000+uint64(batch&7), make([]byte, size))
				n := walks
				if calm {
					n = walks / 5 // of 1,024 frames each
				}
				inputs := h.inputs(arch, n)
				for i, got := range native.Walk(t, &h.tables, inputs) {
					want := h.tables.Walk(&inputs[i])
					if !cmp.Equal(want, got) {
						t.Fatalf("batch %d, walk %d: the walks in Go and C differ (-Go +C):\n%s", batch, i, cmp.Diff(want, got))
					}
					stops[want.Stop]++
					deepest = max(deepest, len(want.Frames))
				}
			}
			t.Logf("walks by stop reason: %d, deepest %d", stops, deepest)
			if deepest != unwind.MaxFrames {
				t.Errorf("the deepest walk has %d frames: these tables do not test the limit", deepest)
			}
			for stop, n := range stops {
				switch profiler.Stop(stop) {
				case profiler.StopNone, profiler.StopNoRegisters, profiler.StopCompat, profiler.StopNoUser:
					if n != 0 {
						t.Errorf("%d walks ended with %s: klp_step must not say so", n, profiler.Stop(stop))
					}
				default:
					if n == 0 {
						t.Errorf("no walk ended with %s: these tables do not test it", profiler.Stop(stop))
					}
				}
			}
		})
	}
}

// TestKernelWalksAsGo: so does the walker as the kernel runs it, with memory
// that the kernel reads.
func TestKernelWalksAsGo(t *testing.T) {
	bpftest.Require(t)
	arch := unwind.AMD64
	if runtime.GOARCH == "arm64" {
		arch = unwind.ARM64
	}
	functions := bpftest.Load(t, nil)
	walked, elsewhere := 0, 0
	for batch := range 40 {
		memory := guarded(t, max(4096<<(batch%6), unix.Getpagesize()))
		h := newHostile(uint64(batch)<<8|uint64(arch), batch%10 == 9, address(memory), memory)
		functions.SetTables(t, &h.tables)
		for i, in := range h.inputs(arch, 50) {
			want, got := h.tables.Walk(&in), functions.Walk(t, &in)
			walked++
			if n := len(want.Frames); want.Stop == uint32(profiler.StopBadRead) && len(got.Frames) >= n &&
				slices.Equal(want.Frames, got.Frames[:n]) && got.Stop != want.Stop {
				elsewhere++ // a made-up address hit upon memory of this process
				continue
			}
			if diff := cmp.Diff(want.String(), got.String()); diff != "" {
				t.Fatalf("batch %d, walk %d: the walks in Go and in the kernel differ (-Go +kernel):\n%s", batch, i, diff)
			}
			if want.Hash != got.Hash {
				t.Fatalf("batch %d, walk %d: the hash of %s is %#x in Go and %#x in the kernel", batch, i, want, want.Hash, got.Hash)
			}
		}
	}
	if elsewhere > walked/100 {
		t.Errorf("%d of %d walks read other memory than the stack", elsewhere, walked)
	}
}

// guarded gives memory with nothing readable within 64 KiB of it: further than
// a rule's 16-bit offsets reach. It is of whole pages.
func guarded(t testing.TB, size int) []byte {
	t.Helper()
	const around = 64 << 10
	all, err := unix.Mmap(-1, 0, size+2*around, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(all) })
	memory := all[around : around+size : around+size]
	if err := unix.Mprotect(memory, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		t.Fatal(err)
	}
	clear(memory) // present: the kernel side reads without taking faults
	return memory
}

func address(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&b[0]))) }
