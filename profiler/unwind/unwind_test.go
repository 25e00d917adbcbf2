package unwind_test

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/cfi"
	"github.com/kalypso-dev/kalypso/profiler/unwind"
)

// space is one executable that fills the address space, with a rule for each
// address.
type space map[uint64]cfi.Rule

func (space) Mapping(uint64) (unwind.Mapping, bool) {
	return unwind.Mapping{End: ^uint64(0), Executable: 1}, true
}

func (s space) Rule(_ uint32, offset uint64) (cfi.Rule, profiler.Stop) {
	r, ok := s[offset]
	if !ok {
		return r, profiler.StopNoRow
	}
	return r, profiler.StopNone
}

// A function of Go on arm64 has the return address at SP and the caller's
// frame pointer below, where a copy from SP up does not reach.
func TestFramePointerBelowStackPointer(t *testing.T) {
	const sp = 0x4000000000
	goFrame := cfi.Rule{CFA: cfi.CFASP, CFAOff: 32, RAKind: cfi.RegDerefSP, FPKind: cfi.RegDerefSP, FPOff: -8}
	rules := space{0x100: goFrame, 0x1ff: {CFA: cfi.CFAFrame}, 0x2ff: {CFA: cfi.CFAStop}}
	memory := make([]byte, 16+32+16)
	put := func(at uint64, v uint64) { binary.LittleEndian.PutUint64(memory[at-(sp-16):], v) }
	put(sp-8, sp+32)
	put(sp, 0x200)
	put(sp+32, 0)
	put(sp+40, 0x300)

	c := unwind.Copy{Arch: unwind.ARM64, Regs: unwind.Regs{PC: 0x100, SP: sp}, Exact: true, Stack: memory, Below: 16}
	frames, stop := unwind.Walk(nil, &c, rules)
	want := []uint64{unwind.Word(1, 0x100, true), unwind.Word(1, 0x200, false), unwind.Word(1, 0x300, false)}
	if !slices.Equal(frames, want) || stop != profiler.StopRoot {
		t.Errorf("the walk gives %#x and ends with %q, want %#x and the root", frames, stop, want)
	}

	c.Stack, c.Below = memory[16:], 0
	if frames, stop := unwind.Walk(nil, &c, rules); stop != profiler.StopBadRead || len(frames) != 1 {
		t.Errorf("without what lies below SP the walk gives %#x and ends with %q, want one frame and a bad read", frames, stop)
	}
}
