package cfi

// What a register holds, as far as frames depend on it.
const (
	valueUnknown int32 = iota
	valueCFA           // the CFA + off
	valueCaller        // the caller's frame pointer
	valueReturn        // the return address (aarch64)
	valueConst         // the number off
)

// frameValue is what a register holds. Like frameState it has no holes: it is
// compared and hashed as plain memory.
type frameValue struct {
	kind int32
	off  int32
}

// maxFrame bounds the offsets that are followed.
const maxFrame = 1 << 30

func (v frameValue) plus(n int64) frameValue {
	if n == 0 {
		return v
	}
	if v.kind != valueCFA && v.kind != valueConst || n > maxFrame || n < -maxFrame {
		return frameValue{}
	}
	if n += int64(v.off); n > maxFrame || n < -maxFrame {
		return frameValue{}
	}
	return frameValue{v.kind, int32(n)}
}

// The registers that are followed: stack pointer, frame pointer, two scratch
// registers that prologues use, link register (aarch64).
const (
	valueSP = iota
	valueFP
	valueA
	valueB
	valueLR
	valueCount
)

// Kinds of frameState.
const (
	frameLive   uint8 = iota
	frameStop         // outermost: nobody called this
	frameLost         // contradictory
	framePopped       // the return address was taken off the stack
)

// frameState is what is known before an instruction.
type frameState struct {
	kind    uint8
	thrown  bool // framePopped: it was not read
	fpSaved bool // the caller's frame pointer is at CFA + fpSlot
	raSaved bool // the return address is at CFA + raSlot (aarch64; x86-64: it was put there)
	fpSlot  int32
	raSlot  int32
	values  [valueCount]frameValue
}

// atEntry is the state before a function's first instruction.
func (a *arch) atEntry() frameState {
	s := frameState{}
	s.values[valueFP].kind = valueCaller
	if a.linkRegister {
		s.values[valueSP] = frameValue{valueCFA, 0}
		s.values[valueLR].kind = valueReturn
	} else {
		s.values[valueSP] = frameValue{valueCFA, -8}
	}
	return s
}

// set gives a register a value. What lies below the stack pointer is lost.
func (s *frameState) set(i int, v frameValue) {
	s.values[i] = v
	if i == valueSP && v.kind == valueCFA {
		if s.fpSaved && s.fpSlot < v.off {
			s.fpSaved, s.fpSlot = false, 0
		}
		if s.raSaved && s.raSlot < v.off {
			s.raSaved, s.raSlot = false, 0
		}
	}
}

// store notes 8 bytes written to the stack.
func (s *frameState) store(at, v frameValue) {
	if at.kind != valueCFA {
		return
	}
	switch {
	case v.kind == valueCaller && !s.fpSaved:
		s.fpSaved, s.fpSlot = true, at.off
	case v.kind == valueReturn && !s.raSaved:
		s.raSaved, s.raSlot = true, at.off
	case s.fpSaved && at.off == s.fpSlot && v.kind != valueCaller:
		s.fpSaved, s.fpSlot = false, 0
	case s.raSaved && at.off == s.raSlot && v.kind != valueReturn:
		s.raSaved, s.raSlot = false, 0
	}
}

// load gives the 8 bytes at a place of the stack.
func (s *frameState) load(at frameValue) frameValue {
	if at.kind == valueCFA {
		if s.fpSaved && at.off == s.fpSlot {
			return frameValue{kind: valueCaller}
		}
		if s.raSaved && at.off == s.raSlot {
			return frameValue{kind: valueReturn}
		}
	}
	return frameValue{}
}

// underflow notes that the return address was taken off the stack: by assembly that
// returns by a jump, or puts it back elsewhere. Only the caller's frame pointer is
// followed then. thrown says that the address was not read.
func (s *frameState) underflow(thrown bool) {
	if s.kind != frameLive {
		return
	}
	fp := s.values[valueFP]
	*s = frameState{kind: frameLost}
	if fp.kind == valueCaller {
		s.kind, s.thrown = framePopped, thrown
		s.values[valueFP] = fp
	}
}

// refound notes that such code makes a frame as functions do: what it finds on the
// stack is its return address, wherever it put it, or its caller's if it threw its
// own away. V8's built-in functions do so where they move arguments.
func (s *frameState) refound() {
	*s = frameState{values: s.values, raSaved: true, raSlot: -8}
	s.values[valueSP] = frameValue{valueCFA, -8}
}

// meet keeps what holds in both states.
func (s frameState) meet(o frameState) frameState {
	if s.kind != o.kind {
		return frameState{kind: frameLost}
	}
	s.thrown = s.thrown && o.thrown
	for i := range s.values {
		if s.values[i] != o.values[i] {
			s.values[i] = frameValue{}
		}
	}
	if s.fpSaved != o.fpSaved || s.fpSlot != o.fpSlot {
		s.fpSaved, s.fpSlot = false, 0
	}
	if s.raSaved != o.raSaved || s.raSlot != o.raSlot {
		s.raSaved, s.raSlot = false, 0
	}
	if s.kind == frameLive && !s.rooted() {
		s = frameState{kind: frameLost}
	}
	return s
}

// rooted tells whether any register leads to the CFA.
func (s *frameState) rooted() bool {
	for _, v := range s.values {
		if v.kind == valueCFA {
			return true
		}
	}
	return false
}

// rule says the state as a rule.
func (s *frameState) rule(a *arch) Rule {
	unsupported := Rule{CFA: CFAUnsupported}
	switch s.kind {
	case frameStop:
		return Rule{CFA: CFAStop}
	case frameLost, framePopped:
		return unsupported
	}
	var r Rule
	sp, fp := s.values[valueSP], s.values[valueFP]
	switch {
	case fp.kind == valueCFA && (s.fpSaved || sp.kind != valueCFA):
		r = Rule{CFA: CFAFP, CFAOff: -fp.off}
	case sp.kind == valueCFA:
		r = Rule{CFA: CFASP, CFAOff: -sp.off}
	case s.values[valueA].kind == valueCFA:
		r = Rule{CFA: CFAReg, Reg: a.scratch[0], CFAOff: -s.values[valueA].off}
	case s.values[valueB].kind == valueCFA:
		r = Rule{CFA: CFAReg, Reg: a.scratch[1], CFAOff: -s.values[valueB].off}
	default:
		return unsupported
	}
	switch {
	case s.fpSaved:
		kind, off, ok := (&saved{kind: saveCFA, off: int64(s.fpSlot)}).rule(&r)
		if !ok {
			return unsupported
		}
		r.FPKind, r.FPOff = kind, off
	case fp.kind != valueCaller:
		r.FPKind = RegUndefined
	}
	switch {
	case !a.linkRegister:
		r.RAKind, r.RAOff = RegCFA, -8
	case s.raSaved:
		kind, off, ok := (&saved{kind: saveCFA, off: int64(s.raSlot)}).rule(&r)
		if !ok {
			return unsupported
		}
		r.RAKind, r.RAOff = kind, off
	case s.values[valueLR].kind != valueReturn:
		return unsupported
	}
	return r
}
