package cfi

import (
	"bytes"
	"encoding/binary"
)

// General registers of x86-64 as instructions number them.
const (
	x86RSP = 4
	x86RBP = 5
	x86R10 = 10
	x86R11 = 11
)

// x86Inst is as much of an instruction as frames depend on.
type x86Inst struct {
	size   int
	space  uint8 // opcode map: 0 one byte, 1 0F, 2 0F38, 3 0F3A, and EVEX's 5 and 6
	op     uint8
	vex    bool // VEX or EVEX: op names another instruction than without
	wide   bool // REX.W
	narrow bool // 66 prefix
	rex    bool
	ext    uint8 // REX.B: added to a register in the opcode
	modrm  bool
	mod    uint8
	reg    uint8 // register operand, extended
	rm     uint8 // register (mod 3) or base of the memory operand, extended; noBase
	other  uint8 // second source or destination of VEX
	index  bool  // the memory operand has an index
	pcRel  bool  // the memory operand is relative to the next instruction
	disp   int32
	imm    int64
}

// noBase stands for the base of a memory operand that has none.
const noBase = 0xff

// Attributes of opcodes: a ModRM byte, and the size of the immediate.
const (
	xM = 1 << iota // ModRM follows
	x1             // 1 byte of immediate
	x2             // 2 bytes
	x4             // 4 bytes, 2 with a 66 prefix
	xJ             // 4 bytes whatever the prefix: a branch
	xX             // not an instruction in 64-bit mode
	xS             // special
)

// Opcode maps: Intel's manual, volume 2, tables; each string is a
// row of sixteen opcodes.
var (
	x86One = opcodeMap([16]string{
		"MMMM14XXMMMM14XS", "MMMM14XXMMMM14XX", "MMMM14SXMMMM14SX", "MMMM14SXMMMM14SX",
		"SSSSSSSSSSSSSSSS", "................", "XXXMSSSS4n1m....", "1111111111111111",
		"mnXmMMMMMMMMMMMM", "..........X.....", "SSSS....14......", "11111111SSSSSSSS",
		"mm2.SSmnSS2..1X.", "MMMMXXX.MMMMMMMM", "11111111JJX1....", "S.SS..SS......MM",
	})
	x86Two = opcodeMap([16]string{
		"MMMMX.....X.XM.m", "MMMMMMMMMMMMMMMM", "MMMMXXXXMMMMMMMM", "........SXSXXXXX",
		"MMMMMMMMMMMMMMMM", "MMMMMMMMMMMMMMMM", "MMMMMMMMMMMMMMMM", "mmmmMMM.MMMMMMMM",
		"JJJJJJJJJJJJJJJJ", "MMMMMMMMMMMMMMMM", "...MmMMM...MmMMM", "MMMMMMMMMMmMMMMM",
		"MMmMmmmM........", "MMMMMMMMMMMMMMMM", "MMMMMMMMMMMMMMMM", "MMMMMMMMMMMMMMMM",
	})
)

func opcodeMap(rows [16]string) *[256]uint8 {
	var m [256]uint8
	for i, row := range rows {
		for j := range 16 {
			m[16*i+j] = map[byte]uint8{'.': 0, 'M': xM, 'm': xM | x1, 'n': xM | x4, '1': x1, '2': x2, '4': x4, 'J': xJ, 'X': xX, 'S': xS}[row[j]]
		}
	}
	return &m
}

// decodeX86 decodes the instruction at the start of b. It knows the length of
// all that compilers and assemblers emit, and fails on the rest.
func decodeX86(b []byte, in *x86Inst) bool {
	*in = x86Inst{rm: noBase}
	if len(b) > 15 {
		b = b[:15]
	}
	i := 0
	var rex uint8
	address32 := false
prefixes:
	for ; ; i++ {
		if i == len(b) {
			return false
		}
		switch c := b[i]; {
		case c == 0x66:
			in.narrow, rex = true, 0
		case c == 0x67:
			address32, rex = true, 0
		case c == 0xf0 || c == 0xf2 || c == 0xf3 || c == 0x2e || c == 0x36 || c == 0x3e || c == 0x26 || c == 0x64 || c == 0x65:
			rex = 0
		case c&0xf0 == 0x40:
			rex = c
		default:
			break prefixes
		}
	}
	in.wide = rex&8 != 0
	extR, extX, extB := rex<<1&8, rex<<2&8, rex<<3&8
	in.rex, in.ext = rex != 0, extB
	in.op = b[i]
	i++
	attr := x86One[in.op]
	switch {
	case in.op == 0x0f:
		if i == len(b) {
			return false
		}
		in.space, in.op = 1, b[i]
		i++
		attr = x86Two[in.op]
		if attr == xS { // 0F38, 0F3A
			if i == len(b) {
				return false
			}
			in.space, attr = 2, xM
			if in.op == 0x3a {
				in.space, attr = 3, xM|x1
			}
			in.op = b[i]
			i++
		}
	case in.op == 0xc4 || in.op == 0xc5 || in.op == 0x62:
		n := 1
		switch in.op {
		case 0xc4:
			n = 2
		case 0x62:
			n = 3
		}
		if i+n >= len(b) {
			return false
		}
		p := b[i : i+n]
		in.vex, in.space = true, 1
		extR = ^p[0] >> 4 & 8
		extX, extB = 0, 0
		if n > 1 {
			in.space = p[0] & 0x1f
			if n == 3 {
				in.space &= 7
			}
			extX, extB = ^p[0]>>3&8, ^p[0]>>2&8
			in.wide = p[1]&0x80 != 0
		}
		in.other = ^p[min(n-1, 1)] >> 3 & 15
		in.op = b[i+n]
		i += n + 1
		attr = xM
		switch in.space {
		case 1:
			if in.op == 0x77 {
				attr = 0
			}
			attr |= x86Two[in.op] & x1
		case 2, 5, 6:
		case 3:
			attr |= x1
		default:
			return false
		}
	case in.op == 0x8f && i < len(b) && b[i]&0x38 != 0: // AMD's XOP
		return false
	case attr == xS:
		switch {
		case in.op >= 0xa0 && in.op <= 0xa3:
			if i += 8; address32 {
				i -= 4
			}
			in.size = i
			return i <= len(b)
		case in.op >= 0xb8 && in.op <= 0xbf:
			attr = x4
			if in.wide {
				if i+8 > len(b) {
					return false
				}
				in.imm = int64(binary.LittleEndian.Uint64(b[i:]))
				in.size = i + 8
				return true
			}
		case in.op == 0xc8: // enter
			attr = x2 | x1
		case in.op == 0xc9: // leave
			attr = 0
		case in.op&0xfe == 0xf6:
			attr = xM
			if i < len(b) && b[i]&0x30 == 0 { // test
				attr |= x1
				if in.op == 0xf7 {
					attr = xM | x4
				}
			}
		default:
			return false
		}
	}
	if attr&xX != 0 {
		return false
	}
	if attr&xM != 0 {
		if i == len(b) {
			return false
		}
		m := b[i]
		i++
		in.modrm, in.mod, in.reg = true, m>>6, m>>3&7|extR
		rm := m & 7
		size := 0
		switch {
		case in.mod == 3:
			in.rm = rm | extB
		case rm == 4:
			if i == len(b) {
				return false
			}
			sib := b[i]
			i++
			in.index = sib>>3&7|extX != 4
			if in.rm = sib&7 | extB; sib&7 == 5 && in.mod == 0 {
				in.rm, size = noBase, 4
			}
		case rm == 5 && in.mod == 0:
			in.pcRel, size = true, 4
		default:
			in.rm = rm | extB
		}
		switch in.mod {
		case 1:
			size = 1
		case 2:
			size = 4
		}
		if i+size > len(b) {
			return false
		}
		switch size {
		case 1:
			in.disp = int32(int8(b[i]))
		case 4:
			in.disp = int32(binary.LittleEndian.Uint32(b[i:]))
		}
		i += size
		if address32 {
			in.rm = noBase // an address of 32 bits is not on the stack
			if in.mod == 3 {
				in.rm = rm | extB
			}
		}
	}
	size := 0
	if attr&x4 != 0 {
		if size = 4; in.narrow && !in.wide {
			size = 2
		}
	}
	if attr&xJ != 0 {
		size = 4
	}
	if attr&x2 != 0 {
		size += 2
	}
	if attr&x1 != 0 {
		size++
	}
	if i+size > len(b) {
		return false
	}
	switch size {
	case 1:
		in.imm = int64(int8(b[i]))
	case 2:
		in.imm = int64(int16(binary.LittleEndian.Uint16(b[i:])))
	case 4:
		in.imm = int64(int32(binary.LittleEndian.Uint32(b[i:])))
	}
	in.size = i + size
	return true
}

// writes calls f for each general register that the instruction may change by
// naming it: rax and rdx of a multiplication are of no interest. Doubt counts
// as a change.
func (in *x86Inst) writes(f func(reg uint8)) {
	reg := func() { f(in.reg) }
	rm := func() {
		if in.mod == 3 {
			f(in.rm)
		}
	}
	op := in.op
	if !in.vex && !in.rex && (in.space == 0 && op&1 == 0 && (op < 0x40 || op >= 0x80 && op != 0x8e) ||
		in.space == 1 && (op&0xf0 == 0x90 || op == 0xb0 || op == 0xc0)) {
		// Bytes: 4 to 7 are ah to bh.
		g := f
		f = func(reg uint8) {
			if reg < 4 {
				g(reg)
			}
		}
	}
	switch {
	case in.vex:
		switch {
		case in.space == 1 && (op == 0x50 || op == 0xd7 || op == 0xc5 || op == 0x93 || op == 0x2c || op == 0x2d || op == 0x78 || op == 0x79):
			reg()
		case in.space == 1 && op == 0x7e, in.space == 3 && op >= 0x14 && op <= 0x17:
			rm()
		case in.space == 2 && (op >= 0xf0 || op == 0xe0 || op > 0xe0 && op < 0xf0):
			reg()
			f(in.other)
		case in.space == 3 && op == 0xf0:
			reg()
		}
	case in.space == 0:
		switch {
		case op < 0x40 && op&7 < 4:
			if op >= 0x38 { // cmp
				return
			}
			if op&2 != 0 {
				reg()
			} else {
				rm()
			}
		case op == 0x63, op == 0x69, op == 0x6b, op == 0x8a, op == 0x8b:
			reg()
		case op >= 0x80 && op <= 0x83:
			if in.reg&7 != 7 { // cmp
				rm()
			}
		case op == 0x86, op == 0x87:
			reg()
			rm()
		case op == 0x88, op == 0x89, op == 0x8c, op == 0x8f, op == 0xc0, op == 0xc1, op == 0xc6, op == 0xc7, op >= 0xd0 && op <= 0xd3, op == 0xfe:
			rm()
		case op == 0xff && in.reg&7 < 2:
			rm()
		case op == 0xf6, op == 0xf7:
			if r := in.reg & 7; r == 2 || r == 3 { // not, neg
				rm()
			}
		}
	case in.space == 1:
		switch {
		case op == 0x02, op == 0x03, op == 0x2c, op == 0x2d, op >= 0x40 && op <= 0x50, op == 0x78, op == 0x79,
			op == 0xaf, op >= 0xb2 && op <= 0xb8, op >= 0xbc && op <= 0xbf, op == 0xc5, op == 0xd7:
			reg()
		case op == 0x00, op == 0x01, op == 0x1e, op == 0x20, op == 0x21, op == 0x7e, op >= 0x90 && op <= 0x9f,
			op == 0xa4, op == 0xa5, op == 0xab, op == 0xac, op == 0xad, op == 0xae, op == 0xb3, op == 0xba, op == 0xbb, op == 0xc7:
			rm()
		case op == 0xb0, op == 0xb1, op == 0xc0, op == 0xc1:
			reg()
			rm()
		}
	case in.space == 2:
		if op >= 0xf0 {
			reg()
		}
	case in.space == 3:
		if op >= 0x14 && op <= 0x17 {
			rm()
		}
	}
}

// x86Tracked has a bit for each register that state follows.
const x86Tracked = 1<<x86RSP | 1<<x86RBP | 1<<x86R10 | 1<<x86R11

// plain tells most instructions that cannot concern a frame: no branches, and
// no operand that is followed.
func (in *x86Inst) plain() bool {
	if !in.modrm || in.vex || x86Tracked>>in.reg&1 != 0 || in.rm != noBase && x86Tracked>>in.rm&1 != 0 {
		return false
	}
	op := in.op
	switch in.space {
	case 0:
		return op < 0x40 || op == 0x63 || op >= 0x80 && op <= 0x8b || op == 0x8d && !in.pcRel ||
			op == 0xc0 || op == 0xc1 || op == 0xc6 || op == 0xc7 || op >= 0xd0 && op <= 0xd3 || op == 0xf6 || op == 0xf7
	case 1:
		return op >= 0x10 && op < 0x30 || op >= 0x40 && op < 0x80 || op >= 0x90 && op < 0xa0 || op >= 0xb0 && op < 0xb8 || op >= 0xbc && op < 0xc8 || op >= 0xd0 && op < 0xff
	}
	return false
}

// x86Slot is where state keeps a register's value, or -1.
func x86Slot(reg uint8) int {
	switch reg {
	case x86RSP:
		return valueSP
	case x86RBP:
		return valueFP
	case x86R10:
		return valueA
	case x86R11:
		return valueB
	}
	return -1
}

// isMoveOfSPToFP tells whether code begins with mov %rsp,%rbp.
func isMoveOfSPToFP(code []byte) bool {
	return bytes.HasPrefix(code, []byte{0x48, 0x89, 0xe5}) || bytes.HasPrefix(code, []byte{0x48, 0x8b, 0xec})
}

// stepX86 applies the instruction at code[at] to s.
func stepX86(a *analysis, s *frameState, at int) step {
	in := &a.x86
	if !decodeX86(a.code[at:], in) {
		return step{kind: stepEnd, bad: true}
	}
	next := at + in.size
	st := step{size: in.size}
	if in.plain() {
		return st
	}
	value := func(reg uint8) frameValue {
		if i := x86Slot(reg); i >= 0 {
			return s.values[i]
		}
		return frameValue{}
	}
	set := func(reg uint8, v frameValue) {
		if i := x86Slot(reg); i >= 0 {
			s.set(i, v)
		}
	}
	address := func() frameValue {
		if in.mod == 3 || in.index || in.rm == noBase {
			return frameValue{}
		}
		return value(in.rm).plus(int64(in.disp))
	}
	width := int64(8)
	if in.narrow {
		width = 2
	}
	push := func(v frameValue) {
		s.thrown = false // a return goes to what was pushed
		s.values[valueSP] = s.values[valueSP].plus(-width)
		if width == 8 {
			s.store(s.values[valueSP], v)
		}
	}
	pop := func(reg uint8) {
		v := s.load(s.values[valueSP])
		sp := s.values[valueSP]
		s.set(valueSP, sp.plus(width))
		if sp.kind == valueCFA && sp.off >= -8 {
			s.underflow(false)
		}
		if reg == x86RSP {
			v = frameValue{}
		}
		set(reg, v)
	}
	// Only the one-byte map and 0F branches matter; the rest can but
	// overwrite registers.
	if in.vex || in.space > 1 {
		in.writes(func(r uint8) { set(r, frameValue{}) })
		return st
	}
	op := in.op
	if in.space == 1 {
		switch {
		case op == 0x0b || op == 0xb9 || op == 0xff: // ud2, ud1, ud0
			st.kind = stepEnd
		case op&0xf0 == 0x80:
			st.kind, st.target = stepBranch, next+int(in.imm)
		case op == 0xa0 || op == 0xa8:
			push(frameValue{})
		case op == 0xa1 || op == 0xa9:
			pop(noBase)
		case op == 0x07 || op == 0x35: // sysret, sysexit
			st.kind = stepEnd
		default:
			if op >= 0xc8 && op <= 0xcf { // bswap
				set(op&7|in.ext, frameValue{})
			}
			in.writes(func(r uint8) { set(r, frameValue{}) })
		}
		return st
	}
	switch {
	case op&0xf8 == 0x50, op&0xf8 == 0x58:
		r := op&7 | in.ext
		if op&8 == 0 {
			if s.kind == framePopped && r == x86RBP && value(r).kind == valueCaller && isMoveOfSPToFP(a.code[next:]) {
				s.refound()
			}
			push(value(r))
		} else {
			pop(r)
		}
	case op == 0x68, op == 0x6a, op == 0x9c:
		push(frameValue{})
	case op == 0x9d:
		pop(noBase)
	case op == 0xff && in.reg&7 == 6:
		push(frameValue{})
	case op == 0x8f:
		pop(noBase)
		in.writes(func(r uint8) { set(r, frameValue{}) })
	case op == 0xc9: // leave
		s.set(valueSP, s.values[valueFP])
		pop(x86RBP)
	case op == 0xc8: // enter
		s.kind = frameLost
	case op == 0xc3, op == 0xc2, op == 0xcb, op == 0xca, op == 0xcf:
		st.kind = stepReturn
		if sp := s.values[valueSP]; sp.kind == valueCFA && sp.off != -8 || op == 0xcf {
			if st.bad = !s.raSaved; s.raSaved { // to what was pushed: a jump
				st.kind = stepEnd
			}
		}
		st.bad = st.bad || s.thrown
	case op == 0xcc, op == 0xf4, op == 0xf1: // int3, hlt, int1
		st.kind = stepEnd
	case op == 0xe8:
		st.kind, st.target = stepCall, next+int(in.imm)
	case op == 0xe9, op == 0xeb:
		st.kind, st.target = stepJump, next+int(in.imm)
	case op&0xf0 == 0x70, op >= 0xe0 && op <= 0xe3:
		st.kind, st.target = stepBranch, next+int(in.imm)
	case op == 0xff && in.reg&7 == 2, op == 0xff && in.reg&7 == 3:
		st.kind, st.target = stepCall, -1
	case op == 0xff && in.reg&7 == 4, op == 0xff && in.reg&7 == 5:
		st.kind, st.target = stepJump, -1
	case op == 0x89 && in.wide, op == 0x8b && in.wide:
		switch {
		case op == 0x89 && in.mod != 3:
			s.store(address(), value(in.reg))
		case op == 0x89:
			set(in.rm, value(in.reg))
		case in.mod == 3:
			set(in.reg, value(in.rm))
		default:
			set(in.reg, s.load(address()))
		}
	case op == 0x8d:
		v := frameValue{}
		if in.wide {
			v = address()
		}
		set(in.reg, v)
		if in.pcRel {
			st.pointer, st.pointed = next+int(in.disp), true
		}
	case op&0xf8 == 0xb8 && !in.narrow: // mov of an address of a program that is not position-independent
		set(op&7|in.ext, frameValue{})
		if v := uint64(in.imm); v >= a.base && v < a.base+uint64(len(a.code)) {
			st.pointer, st.pointed = int(v-a.base), true
		}
	case (op == 0x81 || op == 0x83) && in.mod == 3 && in.wide && (in.reg&7 == 0 || in.reg&7 == 5):
		n := in.imm
		if in.reg&7 == 5 {
			n = -n
		}
		thrown := in.rm == x86RSP && n == 8 && s.values[valueSP] == frameValue{valueCFA, -8}
		if set(in.rm, value(in.rm).plus(n)); thrown {
			s.underflow(true)
		}
	case (op == 0x31 || op == 0x33) && in.mod == 3 && in.reg == in.rm && in.rm == x86RBP:
		// The ABI (3.4.1) marks the outermost frame with rbp 0. Elsewhere
		// nobody may lose the caller's rbp.
		if s.values[valueFP].kind == valueCaller && !s.fpSaved && s.values[valueSP] == (frameValue{valueCFA, -8}) {
			s.kind = frameStop
		}
		s.set(valueFP, frameValue{})
	case op >= 0x90 && op <= 0x97: // xchg with rax
		set(op&7|in.ext, frameValue{})
	case op&0xf8 == 0xb8, op&0xf8 == 0xb0 && in.rex:
		set(op&7|in.ext, frameValue{})
	default:
		in.writes(func(r uint8) { set(r, frameValue{}) })
	}
	return st
}
