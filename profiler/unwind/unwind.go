// Package unwind walks a copied stack in user space, by the same rules and
// with the same outcome as bpf/unwind/native.h does in the kernel.
//
// The kernel side sends a copy when the tables for a stack are not built yet,
// so the first sample of a process or of a page of code is as complete as all
// later ones.
package unwind

import (
	"encoding/binary"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/cfi"
)

// A user frame is one word: struct comment in bpf/include/kalypso/contract.h.
const (
	FrameReturn      = 1 << 63 // the address is a return address
	frameExeShift    = 48
	frameAddressMask = 1<<48 - 1
)

// Word makes a frame of an offset in an executable's file (executable 0: an
// absolute address).
func Word(executable uint32, address uint64, exact bool) uint64 {
	w := address&frameAddressMask | uint64(executable&0x7fff)<<frameExeShift
	if !exact {
		w |= FrameReturn
	}
	return w
}

// Split takes a frame apart.
func Split(word uint64) (executable uint32, address uint64, exact bool) {
	return uint32(word>>frameExeShift) & 0x7fff, word & frameAddressMask, word&FrameReturn == 0
}

// Arch is an instruction set.
type Arch uint8

// The instruction sets.
const (
	AMD64 Arch = iota
	ARM64
)

// Regs are user registers: struct klp_regs.
type Regs struct {
	PC, SP, FP, LR uint64
	R              [32]uint64 // by DWARF number
}

// Copy is where a walk is to go on: the registers of a frame, and the stack
// from its SP up, or from a bit below.
type Copy struct {
	Arch      Arch
	Regs      Regs
	Exact     bool // PC is the next instruction to run, not a return address
	Leaf      bool // LR is that of the frame
	Registers bool // R is that of the frame
	Stack     []byte
	Below     uint32 // how much of Stack lies below SP
	Taken     uint64 // when, in nanoseconds of CLOCK_MONOTONIC; 0: not known
}

// Mapping is where an address of the process lies.
type Mapping struct {
	Start, End   uint64
	Bias         uint64 // address - Bias = offset in the file
	Executable   uint32
	FramePointer bool
}

// Space is the address space that a stack belongs to.
type Space interface {
	Mapping(address uint64) (Mapping, bool)
	// Rule gives the rule in force at an offset of an executable, or the
	// reason why there is none.
	Rule(executable uint32, offset uint64) (cfi.Rule, profiler.Stop)
}

// MaxFrames is the deepest user stack: KLP_MAX_FRAMES.
const MaxFrames = 1024

type walk struct {
	Copy
	pc, sp, fp, lr  uint64
	exact           bool
	leaf, registers bool
	stop            profiler.Stop
}

// Walk appends the frames of a stack to those that dst holds, leaf first, and
// says why it ended.
func Walk(dst []uint64, c *Copy, space Space) ([]uint64, profiler.Stop) {
	w := walk{
		Copy: *c, pc: c.Regs.PC, sp: c.Regs.SP, fp: c.Regs.FP, lr: c.Regs.LR,
		exact: c.Exact, leaf: c.Leaf, registers: c.Registers,
	}
	for len(dst) < MaxFrames {
		var word uint64
		var more bool
		word, more = w.step(space)
		if word != 0 {
			dst = append(dst, word)
		}
		if !more {
			return dst, w.stop
		}
	}
	return dst, profiler.StopTruncated
}

func (w *walk) end(s profiler.Stop) bool {
	w.stop = s
	return false
}

// step gives the frame at pc and moves to its caller; false ends the walk.
func (w *walk) step(space Space) (word uint64, more bool) {
	at := w.pc
	if !w.exact {
		at--
	}
	m, ok := space.Mapping(at)
	if !ok {
		if w.pc == 0 {
			return 0, w.end(profiler.StopRoot)
		}
		return Word(0, w.pc, w.exact), w.end(profiler.StopNoMapping)
	}
	word = Word(m.Executable, w.pc-m.Bias, w.exact)
	if m.FramePointer {
		return word, w.framePointer() && w.stepped()
	}
	rule, stop := space.Rule(m.Executable, at-m.Bias)
	if stop != profiler.StopNone {
		return word, w.end(stop)
	}
	switch rule.CFA {
	case cfi.CFANone:
		return word, w.end(profiler.StopNoRow)
	case cfi.CFAStop:
		return word, w.end(profiler.StopRoot)
	case cfi.CFASignal:
		// A handler returns to code that called nothing: its name is the one there.
		word = Word(m.Executable, w.pc-m.Bias, true)
		return word, w.signal(w.sp + uint64(int64(rule.CFAOff)))
	case cfi.CFAFrame:
		return word, w.framePointer() && w.stepped()
	}
	return word, w.apply(rule) && w.stepped()
}

func (w *walk) stepped() bool {
	w.exact, w.leaf, w.registers = false, false, false
	if w.pc == 0 {
		return w.end(profiler.StopRoot)
	}
	return true
}

// read reads 8 bytes of the copied stack.
func (w *walk) read(addr uint64) (uint64, bool) {
	base := w.Regs.SP - uint64(w.Below)
	if addr < base || addr-base > uint64(len(w.Stack)) || uint64(len(w.Stack))-(addr-base) < 8 {
		w.stop = profiler.StopBadRead
		if addr >= base && len(w.Stack) >= copyBytes {
			w.stop = profiler.StopTruncated // the copy was full: there is more stack than that
		}
		return 0, false
	}
	return binary.LittleEndian.Uint64(w.Stack[addr-base:]), true
}

// copyBytes is the most that the kernel side copies: KLP_COPY_BYTES.
const copyBytes = 64 << 10

func (w *walk) code(addr uint64) uint64 {
	if w.Arch == ARM64 {
		return addr & frameAddressMask // without the pointer authentication code
	}
	return addr
}

func (w *walk) framePointer() bool {
	if w.fp == 0 {
		return w.end(profiler.StopRoot)
	}
	if w.fp&7 != 0 {
		return w.end(profiler.StopBadRead)
	}
	fp, ok := w.read(w.fp)
	ra, ok2 := w.read(w.fp + 8)
	if !ok || !ok2 {
		return false
	}
	if fp == w.fp {
		return w.end(profiler.StopBadFrame)
	}
	w.sp, w.fp, w.pc = w.fp+16, fp, w.code(ra)
	return true
}

// Offsets in ucontext_t: see KLP_UC_PC and its neighbours in native.h.
var ucontext = [...]struct{ pc, sp, fp, lr uint64 }{
	AMD64: {168, 160, 120, 0},
	ARM64: {440, 432, 416, 424},
}

func (w *walk) signal(uc uint64) bool {
	off := ucontext[w.Arch]
	pc, ok1 := w.read(uc + off.pc)
	sp, ok2 := w.read(uc + off.sp)
	fp, ok3 := w.read(uc + off.fp)
	if !ok1 || !ok2 || !ok3 {
		return false
	}
	w.leaf, w.registers = false, false
	if w.Arch == ARM64 {
		lr, ok := w.read(uc + off.lr)
		if !ok {
			return false
		}
		w.lr, w.leaf = lr, true
	}
	w.pc, w.sp, w.fp, w.exact = w.code(pc), sp, fp, true
	return true
}

func (w *walk) cfa(rule cfi.Rule) (uint64, bool) {
	off, off2 := uint64(int64(rule.CFAOff)), uint64(int64(rule.Off2))
	switch rule.CFA {
	case cfi.CFASP:
		return w.sp + off, true
	case cfi.CFAFP:
		return w.fp + off, true
	case cfi.CFAReg:
		if w.registers {
			return w.Regs.R[rule.Reg&31] + off, true
		}
	case cfi.CFAPLT:
		if w.pc&15 >= off2 {
			return w.sp + 16, true
		}
		return w.sp + 8, true
	case cfi.CFADerefSP:
		v, ok := w.read(w.sp + off)
		return v + off2, ok
	case cfi.CFADerefFP:
		v, ok := w.read(w.fp + off)
		return v + off2, ok
	}
	return 0, w.end(profiler.StopUnsupported)
}

func (w *walk) saved(kind uint8, offset int16, cfa uint64) (uint64, bool) {
	base := w.sp
	switch kind {
	case cfi.RegCFA:
		base = cfa
	case cfi.RegDerefFP:
		base = w.fp
	}
	return w.read(base + uint64(int64(offset)))
}

func (w *walk) apply(rule cfi.Rule) bool {
	cfa, ok := w.cfa(rule)
	if !ok {
		return false
	}
	up := cfa > w.sp || cfa == w.sp && w.leaf && rule.RAKind == cfi.RegSame
	if !up && rule.RAKind != cfi.RegDerefFP {
		return w.end(profiler.StopBadFrame)
	}
	var ra uint64
	switch rule.RAKind {
	case cfi.RegUndefined:
		return w.end(profiler.StopRoot)
	case cfi.RegSame:
		if !w.leaf {
			return w.end(profiler.StopBadFrame)
		}
		ra = w.lr
	default:
		if ra, ok = w.saved(rule.RAKind, rule.RAOff, cfa); !ok {
			return false
		}
	}
	fp := w.fp
	switch rule.FPKind {
	case cfi.RegSame:
	case cfi.RegUndefined:
		fp = 0
	default:
		if fp, ok = w.saved(rule.FPKind, rule.FPOff, cfa); !ok {
			return false
		}
	}
	w.sp, w.fp, w.pc = cfa, fp, w.code(ra)
	return true
}
