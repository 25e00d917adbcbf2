package cfi

import "math"

// maxRemembered bounds DW_CFA_remember_state nesting; compilers nest once.
const maxRemembered = 64

// DWARF 5 section 6.4.2, and vendor codes of binutils' dwarf2.def.
const (
	opNop                 = 0x00
	opSetLoc              = 0x01
	opAdvanceLoc1         = 0x02
	opAdvanceLoc2         = 0x03
	opAdvanceLoc4         = 0x04
	opOffsetExtended      = 0x05
	opRestoreExtended     = 0x06
	opUndefined           = 0x07
	opSameValue           = 0x08
	opRegister            = 0x09
	opRememberState       = 0x0a
	opRestoreState        = 0x0b
	opDefCFA              = 0x0c
	opDefCFARegister      = 0x0d
	opDefCFAOffset        = 0x0e
	opDefCFAExpression    = 0x0f
	opExpression          = 0x10
	opOffsetExtendedSF    = 0x11
	opDefCFASF            = 0x12
	opDefCFAOffsetSF      = 0x13
	opValOffset           = 0x14
	opValOffsetSF         = 0x15
	opValExpression       = 0x16
	opAdvanceLoc8         = 0x1d // DW_CFA_MIPS_advance_loc8
	opNegateRAStateWithPC = 0x2c // DW_CFA_AARCH64_negate_ra_state_with_pc
	opNegateRAState       = 0x2d // DW_CFA_AARCH64_negate_ra_state, DW_CFA_GNU_window_save
	opArgsSize            = 0x2e // DW_CFA_GNU_args_size
	opNegativeOffset      = 0x2f // DW_CFA_GNU_negative_offset_extended
)

type cfaKind uint8

const (
	cfaUndefined cfaKind = iota
	cfaRegOffset
	cfaExpression
)

type saveKind uint8

const (
	saveNone saveKind = iota // never mentioned
	saveSame
	saveUndefined
	saveCFA  // at CFA + off
	saveExpr // at the address val
	saveElse // in a way that Rule cannot say
)

// saved is the rule of one register.
type saved struct {
	kind saveKind
	off  int64
	val  value
}

// state is a row of the CFI table, reduced to the three columns that matter.
type state struct {
	kind   cfaKind
	reg    uint64
	off    int64
	val    value // of the expression
	fp, ra saved
	broken bool // undecodable from here on
}

// machine runs the instructions of one CIE or FDE.
type machine struct {
	arch  *arch
	cie   *cie
	base  *bases
	vaddr uint64 // of the program's first byte, for DW_CFA_set_loc
	cur   state
	stack []state
}

// run executes program from address loc on and calls emit for each run of
// addresses with the same state, up to end. It takes at most one step per
// program byte.
func (m *machine) run(program []byte, loc, end uint64, emit func(loc uint64, s *state)) {
	c := cursor{b: program}
	for c.left() > 0 && !m.cur.broken {
		op := c.u8()
		next := loc
		switch op >> 6 {
		case 1:
			next = m.advance(loc, uint64(op&0x3f))
		case 2:
			m.save(uint64(op&0x3f), saved{kind: saveCFA, off: int64(c.uleb()) * m.cie.dataAlign})
		case 3:
			m.restore(uint64(op & 0x3f))
		default:
			next = m.step(op, &c, loc)
		}
		if c.bad {
			m.cur.broken = true
		}
		if next != loc {
			if emit != nil {
				emit(loc, &m.cur)
			}
			loc = next
			if loc >= end {
				return
			}
		}
	}
	if emit != nil {
		emit(loc, &m.cur)
	}
}

// advance saturates: addresses that wrap end the program.
func (m *machine) advance(loc, delta uint64) uint64 {
	d := delta * m.cie.codeAlign
	if m.cie.codeAlign != 0 && d/m.cie.codeAlign != delta || loc+d < loc {
		return ^uint64(0)
	}
	return loc + d
}

func (m *machine) step(op uint8, c *cursor, loc uint64) uint64 {
	switch op {
	case opNop, opNegateRAState, opNegateRAStateWithPC:
		// Signed return addresses: the walker strips the signature always.
	case opArgsSize:
		c.uleb()
	case opSetLoc:
		if m.base == nil {
			m.cur.broken = true
			break
		}
		to := c.pointer(m.cie.enc, m.cie.addrSize, m.vaddr, m.base)
		if to < loc {
			m.cur.broken = true
			break
		}
		return to
	case opAdvanceLoc1:
		return m.advance(loc, uint64(c.u8()))
	case opAdvanceLoc2:
		return m.advance(loc, uint64(c.u16()))
	case opAdvanceLoc4:
		return m.advance(loc, uint64(c.u32()))
	case opAdvanceLoc8:
		return m.advance(loc, c.u64())
	case opOffsetExtended:
		r := c.uleb()
		m.save(r, saved{kind: saveCFA, off: int64(c.uleb()) * m.cie.dataAlign})
	case opOffsetExtendedSF:
		r := c.uleb()
		m.save(r, saved{kind: saveCFA, off: c.sleb() * m.cie.dataAlign})
	case opNegativeOffset:
		r := c.uleb()
		m.save(r, saved{kind: saveCFA, off: -int64(c.uleb()) * m.cie.dataAlign})
	case opRestoreExtended:
		m.restore(c.uleb())
	case opUndefined:
		m.save(c.uleb(), saved{kind: saveUndefined})
	case opSameValue:
		m.save(c.uleb(), saved{kind: saveSame})
	case opRegister:
		r, in := c.uleb(), c.uleb()
		if r == in {
			m.save(r, saved{kind: saveSame})
		} else {
			m.save(r, saved{kind: saveElse})
		}
	case opValOffset:
		r := c.uleb()
		c.uleb()
		m.save(r, saved{kind: saveElse})
	case opValOffsetSF:
		r := c.uleb()
		c.sleb()
		m.save(r, saved{kind: saveElse})
	case opValExpression:
		r := c.uleb()
		c.block()
		m.save(r, saved{kind: saveElse})
	case opExpression:
		r := c.uleb()
		// The CFA is on the stack before the first operation.
		v := evaluate(c.block(), m.arch, true)
		s := saved{kind: saveExpr, val: v}
		if v.base == baseCFA && !v.deref {
			s = saved{kind: saveCFA, off: v.off}
		}
		m.save(r, s)
	case opRememberState:
		if len(m.stack) >= maxRemembered {
			m.cur.broken = true
			break
		}
		m.stack = append(m.stack, m.cur)
	case opRestoreState:
		if len(m.stack) == 0 {
			m.cur.broken = true
			break
		}
		m.cur = m.stack[len(m.stack)-1]
		m.stack = m.stack[:len(m.stack)-1]
	case opDefCFA:
		m.cur.reg, m.cur.off = c.uleb(), int64(c.uleb())
		m.cur.kind = cfaRegOffset
	case opDefCFASF:
		m.cur.reg, m.cur.off = c.uleb(), c.sleb()*m.cie.dataAlign
		m.cur.kind = cfaRegOffset
	case opDefCFARegister:
		m.cur.reg = c.uleb()
		m.cur.kind = cfaRegOffset
	case opDefCFAOffset:
		m.cur.off = int64(c.uleb())
	case opDefCFAOffsetSF:
		m.cur.off = c.sleb() * m.cie.dataAlign
	case opDefCFAExpression:
		m.cur.val = evaluate(c.block(), m.arch, false)
		m.cur.kind = cfaExpression
	default:
		m.cur.broken = true
	}
	return loc
}

func (m *machine) save(reg uint64, s saved) {
	switch reg {
	case m.arch.fp:
		m.cur.fp = s
	case m.cie.raReg:
		m.cur.ra = s
	}
}

func (m *machine) restore(reg uint64) {
	switch reg {
	case m.arch.fp:
		m.cur.fp = m.cie.initial.fp
	case m.cie.raReg:
		m.cur.ra = m.cie.initial.ra
	}
}

var unsupported = Rule{CFA: CFAUnsupported}

// rule turns a state into what a walker does.
func (s *state) rule(a *arch) Rule {
	if s.broken {
		return unsupported
	}
	var r Rule
	off, off2 := s.off, int64(0)
	switch s.kind {
	case cfaUndefined:
		return Rule{CFA: CFAStop}
	case cfaRegOffset:
		switch s.reg {
		case a.sp:
			r.CFA = CFASP
		case a.fp:
			r.CFA = CFAFP
		default:
			if s.reg >= a.registers {
				return unsupported
			}
			r.CFA, r.Reg = CFAReg, uint8(s.reg)
		}
	case cfaExpression:
		off, off2 = s.val.off, s.val.off2
		switch {
		case s.val.base == basePLT:
			r.CFA, off = CFAPLT, 0
		case s.val.base == baseSP && s.val.deref:
			r.CFA = CFADerefSP
		case s.val.base == baseFP && s.val.deref:
			r.CFA = CFADerefFP
		case s.val.base == baseSP:
			r.CFA = CFASP
		case s.val.base == baseFP:
			r.CFA = CFAFP
		default:
			return unsupported
		}
	}
	if off < math.MinInt32 || off > math.MaxInt32 || off2 < math.MinInt16 || off2 > math.MaxInt16 {
		return unsupported
	}
	r.CFAOff, r.Off2 = int32(off), int16(off2)

	var ok bool
	if r.RAKind, r.RAOff, ok = s.ra.rule(&r); !ok {
		return unsupported
	}
	switch r.RAKind {
	case RegUndefined:
		return Rule{CFA: CFAStop}
	case RegSame:
		if !a.linkRegister {
			return unsupported
		}
	}
	if s.fp.kind == saveElse {
		// The walk goes on as long as no caller needs its frame pointer.
		r.FPKind = RegUndefined
		return r
	}
	if r.FPKind, r.FPOff, ok = s.fp.rule(&r); !ok {
		return unsupported
	}
	return r
}

// rule says where a register is saved in a frame whose CFA is that of r.
func (s *saved) rule(r *Rule) (kind uint8, off int16, ok bool) {
	o := s.off
	switch s.kind {
	case saveNone, saveSame:
		return RegSame, 0, true
	case saveUndefined:
		return RegUndefined, 0, true
	case saveCFA:
		kind = RegCFA
		if o >= math.MinInt16 && o <= math.MaxInt16 {
			break
		}
		// aarch64 saves at the low end of the frame: a frame of more than
		// 32 KiB is out of reach from the CFA, but not from its base.
		switch r.CFA {
		case CFASP:
			kind, o = RegDerefSP, o+int64(r.CFAOff)
		case CFAFP:
			kind, o = RegDerefFP, o+int64(r.CFAOff)
		}
	case saveExpr:
		o = s.val.off
		switch {
		case s.val.deref:
			return 0, 0, false
		case s.val.base == baseFP:
			kind = RegDerefFP
		case s.val.base == baseSP:
			kind = RegDerefSP
		default:
			return 0, 0, false
		}
	default:
		return 0, 0, false
	}
	if o < math.MinInt16 || o > math.MaxInt16 {
		return 0, 0, false
	}
	return kind, int16(o), true
}
