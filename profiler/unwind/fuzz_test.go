package unwind_test

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/cfi"
	"github.com/kalypso-dev/kalypso/profiler/unwind"
)

// hostileSpace answers with what bytes say, the same for the same address.
type hostileSpace struct {
	bytes []byte
	asked int
}

// at gives 16 bytes that belong to a number.
func (s *hostileSpace) at(n uint64) (b [16]byte) {
	if len(s.bytes) > 0 {
		for i := range b {
			b[i] = s.bytes[(n*7+uint64(i))%uint64(len(s.bytes))]
		}
	}
	return b
}

// Mapping implements unwind.Space.
func (s *hostileSpace) Mapping(address uint64) (unwind.Mapping, bool) {
	s.asked++
	b := s.at(address)
	m := unwind.Mapping{
		Start: address, End: address + uint64(b[0]), Bias: binary.LittleEndian.Uint64(b[1:]) >> (b[9] & 63),
		Executable: binary.LittleEndian.Uint32(b[10:]), FramePointer: b[14]&7 == 1,
	}
	return m, b[15]&15 != 15
}

// Rule implements unwind.Space.
func (s *hostileSpace) Rule(_ uint32, offset uint64) (cfi.Rule, profiler.Stop) {
	b := s.at(offset)
	r := cfi.Rule{
		CFAOff: int32(binary.LittleEndian.Uint32(b[0:])) >> (b[15] & 31), Off2: int16(binary.LittleEndian.Uint16(b[4:])),
		FPOff: int16(binary.LittleEndian.Uint16(b[6:])) >> (b[15] & 15), RAOff: int16(binary.LittleEndian.Uint16(b[8:])) >> (b[15] & 15),
		CFA: b[10] % 13, FPKind: b[11] % 7, RAKind: b[12] % 7, Reg: b[13],
	}
	if b[14] == 255 {
		return r, profiler.Stop(b[13])
	}
	return r, profiler.StopNone
}

func seeds(f *testing.F) {
	stack := make([]byte, 4096)
	for i := 0; i < len(stack); i += 8 {
		binary.LittleEndian.PutUint64(stack[i:], 0x1000+uint64(i+8)) // each points to the next
	}
	f.Add(stack, []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0}, uint64(0x40), uint64(0x1000), uint64(0x1000), uint8(1))
	loop := make([]byte, 32) // two frames that point to each other
	for i, v := range []uint64{0x1010, 0x77, 0x1000, 0x77} {
		binary.LittleEndian.PutUint64(loop[8*i:], v)
	}
	f.Add(loop, []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0}, uint64(0x40), uint64(0x1000), uint64(0x1000), uint8(0))
	f.Add(stack, []byte{16, 0, 0, 0, 0, 0, 240, 255, 248, 255, 3, 1, 1, 0, 0, 0}, uint64(7), uint64(0x1000), uint64(0x1008), uint8(0xff))
	f.Add([]byte{}, []byte{}, uint64(0), uint64(0), uint64(0), uint8(3))
	f.Add([]byte{1}, []byte{9}, ^uint64(0), ^uint64(0), ^uint64(0)-7, uint8(0x80))
}

// FuzzWalk: whatever registers, stack, mappings and rules say, a walk ends
// within its limit, says why, and gives the same again.
func FuzzWalk(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, stack, answers []byte, pc, sp, fp uint64, flags uint8) {
		c := unwind.Copy{
			Arch: unwind.Arch(flags & 1), Exact: flags&2 != 0, Leaf: flags&4 != 0, Registers: flags&8 != 0,
			Below: uint32(flags >> 4), Stack: stack, Regs: unwind.Regs{PC: pc, SP: sp, FP: fp, LR: pc ^ fp},
		}
		for i := range c.Regs.R {
			c.Regs.R[i] = sp + uint64(i)*fp
		}
		space := &hostileSpace{bytes: answers}
		before := []uint64{1, 2, 3}
		got, stop := unwind.Walk(slices.Clone(before), &c, space)
		if len(got) > unwind.MaxFrames {
			t.Fatalf("%d frames, want %d at most", len(got), unwind.MaxFrames)
		}
		if !slices.Equal(got[:3], before) {
			t.Errorf("the frames before are %v, want %v", got[:3], before)
		}
		if space.asked > unwind.MaxFrames+1 {
			t.Errorf("%d frames looked up", space.asked)
		}
		again, stopAgain := unwind.Walk(slices.Clone(before), &c, &hostileSpace{bytes: answers})
		if !slices.Equal(got, again) || stop != stopAgain {
			t.Errorf("a second walk gives %d frames and %s, the first %d and %s", len(again), stopAgain, len(got), stop)
		}
	})
}

// TestWalkNames: a frame survives being a word.
func TestWalkNames(t *testing.T) {
	for _, c := range []struct {
		executable uint32
		address    uint64
		exact      bool
	}{{0, 0, true}, {1, 1, false}, {0x7fff, 1<<48 - 1, true}, {0x7fff, 1<<48 - 1, false}} {
		exe, address, exact := unwind.Split(unwind.Word(c.executable, c.address, c.exact))
		if exe != c.executable || address != c.address || exact != c.exact {
			t.Errorf("%+v comes back as %d, %#x, %t", c, exe, address, exact)
		}
	}
}

// codeSpace is one mapping with one rule.
type codeSpace struct{ rule cfi.Rule }

// Mapping implements unwind.Space.
func (codeSpace) Mapping(a uint64) (unwind.Mapping, bool) {
	return unwind.Mapping{Start: 0x1000, End: 0x2000, Bias: 0x1000, Executable: 1}, a >= 0x1000 && a < 0x2000
}

// Rule implements unwind.Space.
func (s codeSpace) Rule(uint32, uint64) (cfi.Rule, profiler.Stop) { return s.rule, profiler.StopNone }

// TestCopyThatIsTooShort: a stack that ends with a full copy is cut, one that
// ends earlier is broken.
func TestCopyThatIsTooShort(t *testing.T) {
	for _, c := range []struct {
		bytes, step int
		frames      int
		want        profiler.Stop
	}{
		{64 << 10, 1024, 65, profiler.StopTruncated},
		{32 << 10, 1024, 33, profiler.StopBadRead},
		{64 << 10, 16, unwind.MaxFrames, profiler.StopTruncated},
	} {
		stack := make([]byte, c.bytes)
		for i := 0; i < len(stack); i += 8 {
			binary.LittleEndian.PutUint64(stack[i:], 0x1800)
		}
		copied := unwind.Copy{Exact: true, Stack: stack, Regs: unwind.Regs{PC: 0x1800, SP: 0x7fff0000}}
		space := codeSpace{cfi.Rule{CFA: cfi.CFASP, CFAOff: int32(c.step), RAKind: cfi.RegCFA, RAOff: -8}}
		frames, stop := unwind.Walk(nil, &copied, space)
		if len(frames) != c.frames || stop != c.want {
			t.Errorf("%d bytes by steps of %d: %d frames, %s; want %d, %s", c.bytes, c.step, len(frames), stop, c.frames, c.want)
		}
	}
}
