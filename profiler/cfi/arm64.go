package cfi

import "encoding/binary"

// General registers of aarch64 as instructions number them.
const (
	armX12 = 12 // gcc's scratch register for large frames
	armX9  = 9  // clang's
	armFP  = 29
	armLR  = 30
	armSP  = 31
)

// armSlot is where state keeps a register's value, or -1. Register 31 is sp
// in some instructions and zero in others: callers sort that out.
func armSlot(reg uint32) int {
	switch reg {
	case armSP:
		return valueSP
	case armFP:
		return valueFP
	case armLR:
		return valueLR
	case armX12:
		return valueA
	case armX9:
		return valueB
	}
	return -1
}

// signExtend extends the low bits of v.
func signExtend(v uint32, bits int) int64 { return int64(int32(v<<(32-bits)) >> (32 - bits)) }

// stepARM64 applies the instruction at code[at] to s. Encodings: Arm
// Architecture Reference Manual, C4.1.
func stepARM64(a *analysis, s *frameState, at int) step {
	if len(a.code)-at < 4 {
		return step{kind: stepEnd, bad: true}
	}
	w := binary.LittleEndian.Uint32(a.code[at:])
	st := step{size: 4}
	value := func(reg uint32) frameValue {
		if i := armSlot(reg); i >= 0 {
			return s.values[i]
		}
		return frameValue{}
	}
	set := func(reg uint32, v frameValue) {
		if i := armSlot(reg); i >= 0 {
			s.set(i, v)
		}
	}
	data := func(reg uint32, v frameValue) { // a destination where 31 is zero
		if reg != armSP {
			set(reg, v)
		}
	}
	rd, rn, rm := w&31, w>>5&31, w>>16&31
	relative := func(bits, shift int) int { return at + int(signExtend(w>>shift, bits))*4 }
	switch {
	// Branches, exceptions, system.
	case w&0xfc000000 == 0x14000000: // b
		st.kind, st.target = stepJump, relative(26, 0)
	case w&0xfc000000 == 0x94000000: // bl
		st.kind, st.target = stepCall, relative(26, 0)
	case w&0xff000000 == 0x54000000, w&0x7e000000 == 0x34000000: // b.cond, cbz
		st.kind, st.target = stepBranch, relative(19, 5)
	case w&0x7e000000 == 0x36000000: // tbz
		st.kind, st.target = stepBranch, relative(14, 5)
	case w&0xfe000000 == 0xd6000000: // br, blr, ret, and those that authenticate
		switch w >> 21 & 7 {
		case 0:
			st.kind, st.target = stepJump, -1
		case 1:
			st.kind, st.target = stepCall, -1
		case 2:
			st.kind = stepReturn
			if sp := s.values[valueSP]; sp.kind == valueCFA && sp.off != 0 {
				st.bad = true
			}
		default:
			st.kind = stepEnd
		}
	case w&0xffff0000 == 0, w&0xffe00000 == 0xd4200000, w&0xffe00000 == 0xd4400000: // udf, brk, hlt
		st.kind = stepEnd
	case w&0xfc000000 == 0xd4000000:
		// svc, hints (paciasp and autiasp change bits that the walker strips),
		// system registers
		if w&0xfff00000 == 0xd5300000 { // mrs
			data(rd, frameValue{})
		}
	// Loads and stores.
	case w&0x3a000000 == 0x28000000: // pairs
		scale := 2 + int64(w>>31)
		simd := w>>26&1 != 0
		if simd {
			scale = 2 + int64(w>>30)
		}
		off := signExtend(w>>15, 7) << scale
		mode := w >> 23 & 3 // 1 after, 2 plain, 3 before
		base := value(rn)
		from := base
		if mode != 1 {
			from = base.plus(off)
		}
		load := w>>22&1 != 0
		rt2 := w >> 10 & 31
		var first, second frameValue
		if load && !simd && w>>31 != 0 {
			first, second = s.load(from), s.load(from.plus(8))
		}
		if !load && !simd && w>>31 != 0 {
			if rd != armSP {
				s.store(from, value(rd))
			}
			if rt2 != armSP {
				s.store(from.plus(8), value(rt2))
			}
		}
		if mode&1 != 0 {
			a.writeBack(s, rn, base.plus(off), set)
		}
		if load && !simd {
			data(rd, first)
			data(rt2, second)
		}
	case w&0x3b000000 == 0x39000000, w&0x3b200000 == 0x38000000: // one register
		simd := w>>26&1 != 0
		size := w >> 30
		load := w>>22&3 != 0
		base := value(rn)
		from := base
		mode := uint32(0)
		if w>>24&1 != 0 {
			from = base.plus(int64(w>>10&0xfff) << size)
		} else {
			mode = w >> 10 & 3 // 1 after, 3 before
			off := signExtend(w>>12, 9)
			if mode != 1 {
				from = base.plus(off)
			}
			base = base.plus(off)
		}
		if simd {
			if mode&1 != 0 {
				a.writeBack(s, rn, base, set)
			}
			break
		}
		prefetch := size == 3 && w>>22&3 == 2
		var v frameValue
		if size == 3 && w>>22&3 == 1 {
			v = s.load(from)
		}
		if !load && size == 3 && rd != armSP {
			s.store(from, value(rd))
		}
		if mode&1 != 0 {
			a.writeBack(s, rn, base, set)
		}
		if load && !prefetch {
			data(rd, v)
		}
	case w&0x0a000000 == 0x08000000:
		// Exclusive, ordered, atomic, register offset, literal, vectors: what
		// they may write is cleared, and a base register that moves is lost.
		if w>>26&1 == 0 {
			data(rd, frameValue{})
			if w&0x3b000000 == 0x08000000 {
				data(w>>10&31, frameValue{})
				data(rm, frameValue{})
			}
		} else if w&0xbe800000 == 0x0c800000 { // vectors with write-back
			set(rn, frameValue{})
		}
	// Arithmetic with an immediate operand.
	case w&0x1f800000 == 0x11000000: // add, sub
		n := int64(w >> 10 & 0xfff)
		if w>>22&1 != 0 {
			n <<= 12
		}
		if w>>30&1 != 0 {
			n = -n
		}
		v := value(rn).plus(n)
		if w>>31 == 0 || v.kind == valueCaller || v.kind == valueReturn {
			v = frameValue{}
			if w>>31 != 0 && n == 0 {
				v = value(rn)
			}
		}
		switch {
		case w>>29&1 == 0:
			a.writeBack(s, rd, v, set)
		default: // flags are set: 31 is zero
			data(rd, v)
		}
		if w>>31 != 0 && w>>30&1 == 0 && at >= 4 {
			// adrp and add make an address.
			if p := binary.LittleEndian.Uint32(a.code[at-4:]); p&0x9f000000 == 0x90000000 && p&31 == rn {
				page := (a.base + uint64(at-4)) &^ 0xfff
				to := page + uint64(signExtend(p>>5&0x7ffff<<2|p>>29&3, 21)<<12) + uint64(n)
				if to >= a.base && to-a.base < uint64(len(a.code)) {
					st.pointer, st.pointed = int(to-a.base), true
				}
			}
		}
	case w&0x1f800000 == 0x12000000: // logical; ands sets flags
		if w>>29&3 == 3 {
			data(rd, frameValue{})
		} else {
			set(rd, frameValue{})
		}
	case w&0x7f800000 == 0x52800000: // movz
		n := int64(w>>5&0xffff) << (w >> 21 & 3 * 16)
		if n == 0 && rd == armFP && s.values[valueFP].kind == valueCaller && !s.fpSaved {
			s.kind = frameStop // as _start and a new thread do
		}
		v := frameValue{}
		if n < 1<<30 {
			v = frameValue{valueConst, int32(n)}
		}
		data(rd, v)
	case w&0x7f800000 == 0x72800000: // movk
		v := value(rd)
		if shift := w >> 21 & 3 * 16; v.kind == valueConst && shift < 32 {
			n := int64(uint32(v.off)&^(0xffff<<shift) | (w >> 5 & 0xffff << shift))
			v = frameValue{}
			if n < 1<<30 {
				v = frameValue{valueConst, int32(n)}
			}
		} else {
			v = frameValue{}
		}
		data(rd, v)
	case w&0xffe0ffe0 == 0xaa0003e0: // mov of a register
		data(rd, frameValue{})
		if rm != armSP {
			data(rd, value(rm))
		}
	case w&0xbfe00000 == 0x8b200000, w&0xffe00000 == 0xcb200000: // add, sub with a register, of sp
		v := frameValue{}
		if n := value(rm); n.kind == valueConst && w>>10&7 == 0 && rm != armSP {
			d := int64(n.off)
			if w>>30&1 != 0 {
				d = -d
			}
			v = value(rn).plus(d)
		}
		set(rd, v)
	case w&0x1c000000 == 0x10000000, w&0x0e000000 == 0x0a000000: // other data processing
		data(rd, frameValue{})
	case w&0x0e000000 == 0x0e000000:
		// Vectors and floats: fmov, fcvt*, umov and smov write general registers.
		if w&0x5f20fc00 == 0x1e200000 || w&0xbfe0c400 == 0x0e000400 {
			data(rd, frameValue{})
		}
	}
	return st
}

// writeBack moves a base register; sp beyond the CFA is the stack of a new
// thread, whose arguments clone's caller left there.
func (a *analysis) writeBack(s *frameState, reg uint32, v frameValue, set func(uint32, frameValue)) {
	set(reg, v)
	if reg == armSP && v.kind == valueCFA && v.off > 0 {
		s.kind = frameStop
	}
}
