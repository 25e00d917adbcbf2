package cfi

// value is what a DWARF expression comes to, when it is one of the few forms
// that compilers, linkers and hand-written assembly use in CFI:
//
//	base + off
//	*(base + off) + off2
//	the PLT stub's (basePLT, off2 is the threshold)
type value struct {
	base  base
	deref bool
	off   int64
	off2  int64
}

type base uint8

const (
	baseNone  base = iota // not one of the forms
	baseConst             // off itself
	baseSP
	baseFP
	baseCFA
	basePLT
)

// Operations: DWARF 5 section 7.7.1.
const (
	exDeref      = 0x06
	exConst1u    = 0x08
	exConst1s    = 0x09
	exConst2u    = 0x0a
	exConst2s    = 0x0b
	exConst4u    = 0x0c
	exConst4s    = 0x0d
	exConst8u    = 0x0e
	exConst8s    = 0x0f
	exConstu     = 0x10
	exConsts     = 0x11
	exMinus      = 0x1c
	exPlus       = 0x22
	exPlusUconst = 0x23
	exLit0       = 0x30
	exLit31      = 0x4f
	exBreg0      = 0x70
	exBreg31     = 0x8f
	exBregx      = 0x92
	exNop        = 0x96
)

// evaluate runs an expression over symbolic values. Anything outside the forms
// gives the zero value. withCFA: the CFA is on the stack at the start.
func evaluate(b []byte, a *arch, withCFA bool) value {
	if v, ok := matchPLT(b, a); ok && !withCFA {
		return v
	}
	var stack [8]value
	n := 0
	if withCFA {
		stack[0], n = value{base: baseCFA}, 1
	}
	push := func(v value) bool {
		if n == len(stack) {
			return false
		}
		stack[n] = v
		n++
		return true
	}
	c := cursor{b: b}
	for c.left() > 0 {
		op := c.u8()
		var v value
		switch {
		case op >= exLit0 && op <= exLit31:
			v = value{base: baseConst, off: int64(op - exLit0)}
		case op >= exBreg0 && op <= exBreg31 || op == exBregx:
			reg := uint64(op - exBreg0)
			if op == exBregx {
				reg = c.uleb()
			}
			v.off = c.sleb()
			switch reg {
			case a.sp:
				v.base = baseSP
			case a.fp:
				v.base = baseFP
			default:
				return value{}
			}
		default:
			switch op {
			case exConst1u:
				v = value{base: baseConst, off: int64(c.u8())}
			case exConst1s:
				v = value{base: baseConst, off: int64(int8(c.u8()))}
			case exConst2u:
				v = value{base: baseConst, off: int64(c.u16())}
			case exConst2s:
				v = value{base: baseConst, off: int64(int16(c.u16()))}
			case exConst4u:
				v = value{base: baseConst, off: int64(c.u32())}
			case exConst4s:
				v = value{base: baseConst, off: int64(int32(c.u32()))}
			case exConst8u, exConst8s:
				v = value{base: baseConst, off: int64(c.u64())}
			case exConstu:
				v = value{base: baseConst, off: int64(c.uleb())}
			case exConsts:
				v = value{base: baseConst, off: c.sleb()}
			case exNop:
				continue
			case exDeref:
				if n == 0 || stack[n-1].deref || stack[n-1].base == baseConst {
					return value{}
				}
				stack[n-1].deref = true
				continue
			case exPlusUconst:
				k := c.uleb()
				if n == 0 {
					return value{}
				}
				stack[n-1] = stack[n-1].plus(int64(k))
				continue
			case exPlus, exMinus:
				if n < 2 {
					return value{}
				}
				x, y := stack[n-2], stack[n-1]
				if op == exPlus && x.base == baseConst {
					x, y = y, x
				}
				if y.base != baseConst {
					return value{}
				}
				k := y.off
				if op == exMinus {
					k = -k
				}
				n--
				stack[n-1] = x.plus(k)
				continue
			default:
				return value{}
			}
		}
		if c.bad || !push(v) {
			return value{}
		}
	}
	if c.bad || n == 0 || stack[n-1].base == baseConst {
		return value{}
	}
	return stack[n-1]
}

func (v value) plus(k int64) value {
	if v.deref {
		v.off2 += k
	} else {
		v.off += k
	}
	return v
}

// matchPLT recognises the expression that linkers write for .plt on x86-64:
//
//	rsp + 8 + (((rip & 15) >= N) << 3)
//
// N is 11 for the classic stub and 10 or 9 for those with endbr64 or bnd.
func matchPLT(b []byte, a *arch) (value, bool) {
	const (
		exAnd = 0x1a
		exShl = 0x24
		exGe  = 0x2a
	)
	if a.linkRegister || len(b) != 11 {
		return value{}, false
	}
	if b[0] != exBreg0+7 || b[1] != 8 || b[2] != exBreg0+16 || b[3] != 0 || b[4] != exLit0+15 {
		return value{}, false
	}
	n := b[6]
	if b[5] != exAnd || n < exLit0 || n > exLit0+15 || b[7] != exGe || b[8] != exLit0+3 || b[9] != exShl || b[10] != exPlus {
		return value{}, false
	}
	return value{base: basePLT, off2: int64(n - exLit0)}, true
}
