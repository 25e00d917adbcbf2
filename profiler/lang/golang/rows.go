package golang

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"

	"github.com/kalypso-dev/kalypso/profiler/cfi"
)

// How Go code keeps its frames (cmd/internal/obj/x86/obj6.go and
// arm64/obj7.go, preprocess). spdelta is the number of bytes that the function
// has put on the stack since its entry; the pcsp table has it for each
// instruction.
//
// amd64: CFA = SP + spdelta + 8, return address at CFA-8. A function with a
// frame saves the caller's frame pointer at CFA-16 first of all:
//
//	from Go 1.21   PUSHQ BP; MOVQ SP, BP; SUBQ $n, SP … ADDQ $n, SP; POPQ BP; RET
//	up to Go 1.20  SUBQ $n, SP; MOVQ BP, n-8(SP); LEAQ n-8(SP), BP … MOVQ n-8(SP), BP; ADDQ $n, SP; RET
//
// arm64: CFA = SP + spdelta. A function with a frame keeps LR at SP and the
// caller's frame pointer at SP-8; its own frame pointer is SP-8. Without a
// frame the return address is in LR.
//
//	n < 256  MOVD.W LR, -n(SP); MOVD FP, -8(SP); SUB $8, SP, FP … MOVD -8(SP), FP; MOVD.P n(SP), LR; RET
//	larger   SUB $n, SP, R20; STP (FP, LR), -8(R20); MOVD R20, SP; SUB $8, SP, FP … LDP -8(SP), (FP, LR); ADD $n, SP; RET
//
// Epilogues need no care: they load the saved registers before the memory is
// given back, so both hold the caller's values until spdelta is 0 again. In
// prologues the save comes after spdelta changed, except for PUSHQ.

// frame is what the prologue of a function tells.
type frame struct {
	size  int32  // spdelta after the first change: on arm64 with LR saved at SP
	at    uint64 // first address with it; 0: no frame
	saved uint64 // from here on the caller's frame pointer is in memory; 0: never
	fpOff int32  // amd64: there, from the CFA
	ready uint64 // from here on the frame pointer is the function's own; 0: never
	// tail is the length of the instruction that gives the frame back while
	// the frame pointer is already the caller's (amd64 up to Go 1.20).
	tail uint64
}

// Functions that the pcsp table does not tell the truth of.
type special uint8

const (
	plain    special = iota
	root             // the outermost frame of its stack
	signal           // the kernel left the interrupted registers on the stack
	leaves           // goes over to another stack for good: root once it is there
	switches         // SP moves to another stack and back, the frame pointer stays
)

type rowBuilder struct {
	dst       []cfi.Row
	start     int // of this call's rows in dst
	low, high uint64
}

// emit sets the rule that holds from pc on. Calls come in order of address,
// except that one may take back the row before it.
func (b *rowBuilder) emit(pc uint64, r cfi.Rule) {
	if pc >= b.high {
		return
	}
	pc = max(pc, b.low)
	for n := len(b.dst); n > b.start && b.dst[n-1].PC >= pc; n = len(b.dst) {
		b.dst = b.dst[:n-1]
	}
	if n := len(b.dst); n > b.start && b.dst[n-1].Rule == r {
		return
	}
	b.dst = append(b.dst, cfi.Row{PC: pc, Rule: r})
}

func (p *Program) rows(dst []cfi.Row, low, high uint64) ([]cfi.Row, error) {
	t, w := &p.tab, p.win
	w.fuel = maxFuel
	b := rowBuilder{dst: dst, start: len(dst), low: low, high: high}
	b.emit(low, cfi.Rule{CFA: cfi.CFANone})
	if low < t.high && high > t.low {
		first := max(low, t.low)
		i, ok, err := t.find(w, first)
		if err != nil {
			return dst, err
		}
		if !ok {
			i = 0 // first is before the first function
		}
		// A function has one byte or more, except in hostile files. The one
		// that starts at high may claim the byte before it.
		for left := high - low + 1; i < t.nfunc && left > 0; i, left = i+1, left-1 {
			fn, err := t.function(w, i)
			if err != nil {
				return dst, err
			}
			if fn.entry > high || fn.entry >= t.high {
				break
			}
			if err := p.function(&b, &fn); errors.Is(err, ErrMalformed) {
				b.emit(fn.entry, cfi.Rule{CFA: cfi.CFANone})
			} else if err != nil {
				return dst, err
			}
		}
	}
	if high > t.high {
		b.emit(max(low, t.high), cfi.Rule{CFA: cfi.CFANone})
	}
	return b.dst, nil
}

func (p *Program) function(b *rowBuilder, fn *function) error {
	kind, err := p.special(fn)
	if err != nil {
		return err
	}
	switch {
	case kind == root:
		b.emit(fn.entry, cfi.Rule{CFA: cfi.CFAStop})
		return nil
	case kind == signal:
		// The handler returns to the entry: what looks for the call before
		// it must find this row.
		b.emit(max(fn.entry, 1)-1, cfi.Rule{CFA: cfi.CFASignal})
		return nil
	case fn.pcsp == 0:
		b.emit(fn.entry, cfi.Rule{CFA: cfi.CFANone})
		return nil
	}
	if fn.entry == b.high {
		return nil
	}
	f, err := p.prologue(fn)
	if err != nil {
		return err
	}
	amd := p.machine == elf.EM_X86_64
	var switched uint64
	var lost bool
	if amd && kind == switches && f.ready == 0 {
		return p.frameless(b, fn)
	}
	if kind == leaves || !amd && kind == switches {
		if switched, lost, err = p.stackSwitch(fn, &f); err != nil {
			return err
		}
	}
	var last span
	err = p.tab.values(p.win, fn.pcsp, fn, func(delta int32, low, high uint64) bool {
		last.next = delta
		last.emit(b, &f, amd, kind)
		last = span{delta: delta, low: low, high: high}
		return low < b.high
	})
	if err != nil {
		return err
	}
	// Nothing runs in the padding behind a function: it needs no row.
	last.next, last.high = last.delta, max(last.high, fn.end)
	last.emit(b, &f, amd, kind)
	switch {
	case switched == 0:
	case kind == leaves:
		b.emit(switched, cfi.Rule{CFA: cfi.CFAStop})
	case lost:
		b.emit(switched, cfi.Rule{CFA: cfi.CFAUnsupported})
	}
	return nil
}

// span is a run of instructions with one spdelta.
type span struct {
	low, high   uint64
	delta, next int32 // next: of the run after it
}

func (s *span) emit(b *rowBuilder, f *frame, amd bool, kind special) {
	if s.high <= b.low || s.high == s.low {
		return
	}
	saved := f.saved != 0 && s.high > f.saved
	if amd {
		saved = saved && s.delta+8+f.fpOff >= 0
	} else {
		saved = saved && s.delta >= f.size
	}
	at := s.low
	if saved && f.saved > at {
		b.emit(at, f.rule(s.delta, false, amd))
		at = f.saved
	}
	if kind != switches || !saved || f.ready == 0 || s.high <= f.ready {
		b.emit(at, f.rule(s.delta, saved, amd))
		return
	}
	if f.ready > at {
		b.emit(at, f.rule(s.delta, true, amd))
		at = f.ready
	}
	b.emit(at, chain(amd))
	if f.tail != 0 && s.next == 0 && s.delta != 0 && s.high-at > f.tail {
		b.emit(s.high-f.tail, f.rule(s.delta, true, amd))
	}
}

// rule is for a frame on the stack that SP points to.
func (f *frame) rule(delta int32, saved, amd bool) cfi.Rule {
	if amd {
		r := cfi.Rule{CFA: cfi.CFASP, CFAOff: delta + 8, RAKind: cfi.RegCFA, RAOff: -8}
		if saved {
			r.FPKind, r.FPOff = cfi.RegCFA, int16(f.fpOff)
		}
		return r
	}
	r := cfi.Rule{CFA: cfi.CFASP, CFAOff: delta}
	if f.at == 0 || delta < f.size {
		return r
	}
	// From SP and not from the CFA, which may be over 32 KiB away.
	if delta-f.size > 1<<14 {
		return cfi.Rule{CFA: cfi.CFAUnsupported}
	}
	r.RAKind, r.RAOff = cfi.RegDerefSP, int16(delta-f.size)
	if saved {
		r.FPKind, r.FPOff = cfi.RegDerefSP, int16(delta-f.size)-8
	}
	return r
}

// chain finds the caller through the frame pointer alone.
func chain(amd bool) cfi.Rule {
	if amd {
		return cfi.Rule{CFA: cfi.CFAFrame}
	}
	// The frame record is below SP, so the caller's SP is not next to ours:
	// it is 8 above the caller's frame pointer.
	return cfi.Rule{
		CFA: cfi.CFADerefFP, Off2: 8,
		RAKind: cfi.RegDerefFP, RAOff: 8,
		FPKind: cfi.RegDerefFP, FPOff: 0,
	}
}

// special tells by name (function IDs have changed with almost every version)
// and by flag (since Go 1.17) what the function does to the stack.
func (p *Program) special(fn *function) (special, error) {
	var buf [40]byte
	name, err := p.tab.name(buf[:0], p.win, fn.name)
	if err != nil {
		return plain, err
	}
	name = bytes.TrimSuffix(name, []byte(".abi0"))
	switch string(name) {
	case "runtime.goexit", "runtime.mstart", "runtime.rt0_go",
		"_rt0_amd64", "_rt0_amd64_linux", "_rt0_arm64_linux":
		return root, nil
	case "runtime.sigreturn", "runtime.sigreturn__sigaction":
		if p.machine == elf.EM_X86_64 {
			return signal, nil
		}
	case "runtime.mcall", "runtime.morestack", "runtime.gogo", "gogo":
		// They park the goroutine. What runs on the scheduler's stack from
		// then on is not its work: the runtime's own traceback ends here too.
		return leaves, nil
	case "runtime.sigtramp", "runtime.cgoSigtramp", "runtime.sigtrampgo":
		// Flagged as the top of a stack, but the signal frame is above.
		return plain, nil
	case "runtime.systemstack", "runtime.asmcgocall", "runtime.cgocallback":
		return switches, nil
	}
	switch {
	case fn.flag&funcTopFrame != 0:
		return root, nil
	case fn.flag&funcSPWrite != 0:
		return switches, nil
	}
	return plain, nil
}

// prologue finds where the caller's frame pointer is saved.
func (p *Program) prologue(fn *function) (frame, error) {
	var f frame
	err := p.tab.values(p.win, fn.pcsp, fn, func(delta int32, low, _ uint64) bool {
		if delta > 0 {
			f.size, f.at = delta, low
			return false
		}
		return true
	})
	if err != nil || f.at == 0 || f.at == fn.entry {
		return f, err
	}
	if p.machine == elf.EM_X86_64 {
		err = p.prologueAMD64(fn, &f)
	} else {
		err = p.prologueARM64(fn, &f)
	}
	return f, err
}

func (p *Program) prologueAMD64(fn *function, f *frame) error {
	var b [20]byte
	code := b[:min(uint64(len(b)), fn.end-f.at+1)]
	if err := p.win.read(code, f.at-1); err != nil {
		return err
	}
	push, code := code[0], code[1:]
	if push == 0x55 && f.size == 8 { // PUSHQ BP
		f.saved, f.fpOff = f.at, -16
		if bytes.HasPrefix(code, []byte{0x48, 0x89, 0xe5}) { // MOVQ SP, BP
			f.ready = f.at + 3
		}
		return nil
	}
	off, n := stackOperand(code, 0x89) // MOVQ BP, off(SP)
	if n == 0 || off < 0 || off > f.size {
		return nil
	}
	if f.fpOff = off - f.size - 8; f.fpOff < -1<<15 {
		return nil
	}
	f.saved = f.at + uint64(n)
	lea, m := stackOperand(code[n:], 0x8d) // LEAQ off(SP), BP
	if m != 0 && lea == off && f.fpOff == -16 {
		f.ready = f.saved + uint64(m)
		f.tail = 7 // ADDQ $imm32, SP
		if f.size <= 128 {
			f.tail = 4 // ADDQ $imm8, SP or SUBQ $-128, SP
		}
	}
	return nil
}

// frameless is for functions that move SP away without a frame of their own:
// systemstack and asmcgocall up to Go 1.20. Off their caller's stack there is
// only the caller's frame pointer to go by, so the caller, always a function
// of the runtime, is left out. Of others nothing is known.
func (p *Program) frameless(b *rowBuilder, fn *function) error {
	var buf [1024]byte
	code := buf[:min(uint64(len(buf)), fn.end-fn.entry)]
	if err := p.win.read(code, fn.entry); err != nil {
		return err
	}
	var name [32]byte
	away := cfi.Rule{CFA: cfi.CFAUnsupported}
	if got, err := p.tab.name(name[:0], p.win, fn.name); err != nil {
		return err
	} else if got = bytes.TrimSuffix(got, []byte(".abi0")); string(got) == "runtime.systemstack" || string(got) == "runtime.asmcgocall" {
		away = chain(true)
	}
	here := (&frame{}).rule(0, false, true)
	b.emit(fn.entry, here)
	off := false
	for i := 0; i+4 <= len(code); {
		n := 0
		switch op := code[i : i+4]; {
		case op[0] == 0x48 && op[1] == 0x83 && (op[2] == 0xec || op[2] == 0xe4): // SUBQ, ANDQ $imm8, SP
			n, off = 4, true
		case op[0]|4 == 0x4c && op[1] == 0x89 && op[2]&0xc7 == 0xc4: // MOVQ reg, SP
			n, off = 3, !off
		default:
			if n = loadsSP(op); n != 0 {
				off = !off
			}
		}
		if n == 0 {
			i++
			continue
		}
		i += n
		if off {
			b.emit(fn.entry+uint64(i), away)
		} else {
			b.emit(fn.entry+uint64(i), here)
		}
	}
	return nil
}

// loadsSP is the length of MOVQ disp(reg), SP, 0 for other instructions:
// REX.W[B] 8B ModRM(SP, mem).
func loadsSP(code []byte) int {
	if len(code) < 3 || code[0]&^1 != 0x48 || code[1] != 0x8b || code[2]>>3&7 != 4 || code[2]>>6 == 3 {
		return 0
	}
	n := 3
	if code[2]&7 == 4 {
		n++
	}
	switch code[2] >> 6 {
	case 1:
		n++
	case 2:
		n += 4
	}
	return n
}

// stackOperand decodes REX.W opcode ModRM(BP, SP+disp): the displacement and
// the length, 0 for any other instruction.
func stackOperand(code []byte, opcode byte) (disp int32, n int) {
	switch {
	case len(code) >= 4 && code[0] == 0x48 && code[1] == opcode && code[2] == 0x2c && code[3] == 0x24:
		return 0, 4
	case len(code) >= 5 && code[0] == 0x48 && code[1] == opcode && code[2] == 0x6c && code[3] == 0x24:
		return int32(int8(code[4])), 5
	case len(code) >= 8 && code[0] == 0x48 && code[1] == opcode && code[2] == 0xac && code[3] == 0x24:
		return int32(binary.LittleEndian.Uint32(code[4:])), 8
	}
	return 0, 0
}

// arm64 instructions looked for.
const (
	armStoreFP = 0xf81f83fd // STUR X29, [SP, #-8]
	armSetFP   = 0xd10023fd // SUB X29, SP, #8
	armMoveSP  = 0x9100029f // MOV SP, X20
	armPushLR  = 0xf8000ffe // STR X30, [SP, #n]!, under armPushMask
	armStoreLR = 0xf80003fe // STUR X30, [SP, #n]
	armSubSP   = 0xd10003ff // SUB SP, SP, #n
)

const armPushMask = 0xffe00fff

func (p *Program) prologueARM64(fn *function, f *frame) error {
	op, err := p.win.uint32(f.at - 4)
	if err != nil {
		return err
	}
	before := uint32(0)
	if f.at-8 >= fn.entry {
		if before, err = p.win.uint32(f.at - 8); err != nil {
			return err
		}
	}
	// asyncPreempt stores LR below SP first, then moves SP down to it.
	stored := op&^uint32(0xfff<<10) == armSubSP && before == armStoreLR|uint32(-f.size)&0x1ff<<12
	if op != armMoveSP && op&armPushMask != armPushLR && !stored {
		// Assembly that takes stack itself: LR stays where it is.
		f.at = 0
		return nil
	}
	f.saved = f.at // STP before SP moved
	for i := uint64(0); i < 2 && f.at+4*i+4 <= fn.end; i++ {
		op, err := p.win.uint32(f.at + 4*i)
		if err != nil {
			return err
		}
		switch op {
		case armStoreFP:
			f.saved = f.at + 4*i + 4
		case armSetFP:
			f.ready = f.at + 4*i + 4
		}
	}
	return nil
}

// stackSwitch finds the first instruction behind the one that loads SP from
// another place than the stack, 0 when there is none, and whether the frame
// pointer is lost on the way. The functions it is asked for are known and
// short, so plain search does.
func (p *Program) stackSwitch(fn *function, f *frame) (after uint64, lost bool, err error) {
	var b [512]byte
	code := b[:min(uint64(len(b)), fn.end-fn.entry)]
	if err := p.win.read(code, fn.entry); err != nil {
		return 0, false, err
	}
	if p.machine == elf.EM_X86_64 {
		for i := 0; i+3 <= len(code); i++ {
			if n := loadsSP(code[i:]); n != 0 {
				return fn.entry + uint64(i+n), false, nil
			}
		}
		return 0, false, nil
	}
	loaded := false
	for i := 0; i+4 <= len(code); i += 4 {
		op := binary.LittleEndian.Uint32(code[i:])
		pc := fn.entry + uint64(i)
		switch {
		case op&0xfffffc1f == 0x9100001f && op>>5&31 != 31 && pc >= f.ready: // MOV SP, Xn
			if after == 0 && pc >= f.at {
				after = pc + 4
			}
		case op&0xffc003ff == 0xf940039d: // LDR X29, [X28, #n]: the frame pointer of another stack
			loaded = true
		case op&0xfffffc1f == 0xd63f0000: // BLR: the function goes on there
			lost = lost || loaded
		}
	}
	return after, lost, nil
}
