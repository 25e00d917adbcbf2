package cfi

import (
	"debug/elf"
	"encoding/binary"
	"io"
	"slices"
	"sync"
)

// Rows from machine code, for addresses that no entry covers: musl is built
// without call frame information, and so is much assembly.
//
// A run of code without entries is decoded once from end to end, which finds
// the functions: what is called directly, and what symbols name. From each the
// instructions are followed along all branches with what they do to stack
// pointer, frame pointer and link register. Where two paths meet, only what
// holds for both is kept. A path that returns with the stack pointer elsewhere
// than where it came in is wrong, and what it told is dropped.
//
// A call may never return, and what follows it is then another function: such
// paths are followed last, and end where something better is known. Code that
// no path reached (functions called by pointer only, the cases of a switch) is
// tried as a function and as a continuation of the last indirect jump; what
// contradicts itself or its surroundings stays a gap.
const (
	// codeBlock is how much is analysed at once, and codeBefore and codeAfter
	// what is looked at around it: functions begin before a page and go on
	// behind it.
	codeBlock  = 64 << 10
	codeBefore = 16 << 10
	codeAfter  = 8 << 10
	// Further before, no guesses are made.
	guessBefore = 8 << 10
	// maxCodeSteps bounds the instructions followed for one block at about 40
	// ns each. Real code takes 1.1 steps an instruction.
	maxCodeSteps = 80_000
	// maxTrySteps bounds the instructions followed to see whether a guess fits.
	maxTrySteps = 1000
	// maxCodeStates and maxTrails bound what is told apart in one block.
	maxCodeStates = 1<<16 - 2
	maxCount      = 1 << 14
	maxTrails     = 1<<16 - 2
	// Symbols are only read when there is more code without entries than the
	// few stubs that every file has, and when reading them takes no longer
	// than some milliseconds: unless a lot of code has no entries (V8's
	// built-in functions in node), whose starts cannot all be guessed. Naming
	// reads the same symbols later (node's 10 MB take 0.2 s, once).
	minSymbolCode     = 512
	maxSymbolSections = 2 << 20
	muchSymbolCode    = 16 << 10
	maxSymbolBytes    = 64 << 20
)

// What an instruction does to the flow of control.
const (
	stepNext   uint8 = iota
	stepJump         // to target; -1: unknown
	stepBranch       // to target or on
	stepCall         // of target, -1: unknown; then on, if it returns
	stepReturn
	stepEnd // nothing goes on here
)

// step is what one instruction does beside its effect on the frame.
type step struct {
	kind    uint8
	bad     bool // cannot be: a return from the middle of a frame, or no instruction
	pointed bool // pointer is the address of code
	size    int
	target  int // as an offset, like pointer
	pointer int
}

// Marks of an address.
const (
	markBoundary uint8 = 1 << iota // an instruction starts here
	markFunction                   // a function starts here
	markPointer                    // code has the address
	markPadding
	markEnd    // the instruction before does not go on
	markDeeper // followed: the code behind may go on with its state
)

// trail is a set of paths that stands and falls together.
type trail struct {
	parent uint16
	bad    bool
	proofs uint16 // returns from where the function came in, here and below
	errors uint16 // returns from elsewhere
}

// path is a place to go on from.
type path struct {
	at    int32
	state uint16
	trail uint16
}

// analysis follows the code of one block. It is used again.
type analysis struct {
	arch *arch
	step func(a *analysis, s *frameState, at int) step
	base uint64
	code []byte
	x86  x86Inst

	marks []uint8
	sizes []uint8  // of followed instructions
	found []uint16 // state before the instruction, +1
	owner []uint16 // its trail

	states []frameState
	ids    map[frameState]uint16
	trails []trail
	strong []path
	weak   []path // a heap, lowest address first
	steps  int
	// Guesses are made from guessFrom to guessTo; the block starts at guessBlock.
	guessFrom, guessBlock, guessTo int
	entry                          int // of the program, or -1
	calls                          []int

	scratch frameState // of sweep and prologue
	current frameState // of walk

	// While code is tried: the trails from trial on are not yet believed.
	trial   int
	journal []int32
	proof   int
	refuted bool
}

var analyses = sync.Pool{New: func() any { return &analysis{ids: map[frameState]uint16{}} }}

func zeroed[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	s = s[:n]
	clear(s)
	return s
}

// reset prepares for n bytes of code at base, from which rows of the block
// around pc are wanted.
func (a *analysis) reset(ar *arch, base uint64, n int, pc uint64) {
	block := pc &^ (codeBlock - 1)
	a.guessFrom = int(max(block-min(block, guessBefore), base) - base)
	a.guessBlock = int(max(block, base) - base)
	a.guessTo = min(n, int(block+codeBlock-base))
	a.arch, a.base = ar, base
	a.step = stepX86
	if ar.linkRegister {
		a.step = stepARM64
	}
	if cap(a.code) < n {
		a.code = make([]byte, n)
	}
	a.code = a.code[:n]
	a.marks, a.sizes = zeroed(a.marks, n), zeroed(a.sizes, n)
	a.found, a.owner = zeroed(a.found, n), zeroed(a.owner, n)
	clear(a.ids)
	a.states, a.trails = a.states[:0], append(a.trails[:0], trail{})
	a.strong, a.weak = a.strong[:0], a.weak[:0]
	a.steps, a.trial = maxCodeSteps, 0
}

// intern numbers a state; the last number stands for all that are too many.
func (a *analysis) intern(s *frameState) uint16 {
	if id, ok := a.ids[*s]; ok {
		return id
	}
	if len(a.states) >= maxCodeStates {
		lost := frameState{kind: frameLost}
		if id, ok := a.ids[lost]; ok {
			return id
		}
		s = &lost
	}
	id := uint16(len(a.states))
	a.states = append(a.states, *s)
	a.ids[*s] = id
	return id
}

// branch opens a new one below parent.
func (a *analysis) branch(parent uint16) uint16 {
	if len(a.trails) >= maxTrails {
		return parent
	}
	a.trails = append(a.trails, trail{parent: parent})
	return uint16(len(a.trails) - 1)
}

// sweep decodes all code in order and marks instructions, functions and
// padding. first says that the code before cannot go on into this.
func (a *analysis) sweep(first bool) {
	s := &a.scratch
	calls := a.calls[:0]
	end := first
	for at := 0; at < len(a.code); {
		a.marks[at] |= markBoundary
		if end {
			a.marks[at] |= markEnd
		}
		if n := a.padding(at); n > 0 {
			a.marks[at] |= markPadding
			at += n
			continue // padding ends nothing, and goes on from an end
		}
		*s = frameState{}
		st := a.step(a, s, at)
		if st.size == 0 {
			end = false
			at += 1
			if a.arch.linkRegister {
				at += 3
			}
			continue
		}
		if st.kind == stepCall && st.target >= 0 && st.target < len(a.code) {
			calls = append(calls, st.target)
		}
		if st.pointed && st.pointer >= 0 && st.pointer < len(a.code) {
			a.marks[st.pointer] |= markPointer
		}
		end = st.kind == stepJump || st.kind == stepReturn || st.kind == stepEnd
		at += st.size
		if st.kind == stepCall && at < len(a.code) && a.aligned(at) {
			end = true
		}
	}
	a.calls = calls
	for _, t := range calls {
		if a.marks[t]&markBoundary != 0 {
			a.marks[t] |= markFunction
		}
	}
	for at := int(-a.base % trapsAlign); at < len(a.code); at += trapsAlign {
		if a.marks[at]&(markBoundary|markPadding) == markBoundary && a.trapsBefore(at) {
			a.marks[at] |= markFunction
		}
	}
}

// V8 fills with traps between its built-in functions, and compilers never fill so
// within one: of node's 2,182 on amd64, 2,178 begin at a multiple of trapsAlign behind
// so many bytes of them, and nothing else does.
const (
	trapsAlign = 32
	trapBytes  = 4
	trap       = 0xcc // int3; on arm64 four are no instruction
)

// resumed gives rows to functions that are returned to where they begin: what V8
// goes on with in the bytecode of a function that it had compiled. They work in the
// frame that is there, and say so by reading from it first. Addresses are looked up
// one before the return address, which is the last trap before the function.
func (a *analysis) resumed() {
	frame, size := frameState{fpSaved: true, fpSlot: -16}, 1
	frame.values[valueFP] = frameValue{valueCFA, -16}
	if a.arch.linkRegister {
		frame.raSaved, frame.raSlot, size = true, -8, 4
	}
	id := a.intern(&frame)
	for at := int(-a.base % trapsAlign); at < len(a.code); at += trapsAlign {
		if a.marks[at]&markFunction != 0 && a.trapsBefore(at) && a.readsFrame(at) {
			a.found[at-size], a.owner[at-size], a.sizes[at-size] = id+1, 0, uint8(size)
		}
	}
}

// readsFrame tells whether an instruction loads from below the frame pointer.
func (a *analysis) readsFrame(at int) bool {
	if a.arch.linkRegister { // ldur x, [x29, #-n]
		return len(a.code)-at >= 4 && binary.LittleEndian.Uint32(a.code[at:])&0xfff00fe0 == 0xf8500000|armFP<<5
	}
	in := &a.x86
	return decodeX86(a.code[at:], in) && in.space == 0 && in.op == 0x8b && in.wide && in.mod != 3 && in.rm == x86RBP && in.disp < 0
}

// trapsBefore tells whether nothing but traps is before an offset.
func (a *analysis) trapsBefore(at int) bool {
	for i := at - trapBytes; i < at; i++ {
		if i < 0 || a.code[i] != trap || !a.arch.linkRegister && a.marks[i]&markPadding == 0 {
			return false
		}
	}
	return true
}

// padding is the length of the filler at an offset.
func (a *analysis) padding(at int) int {
	rest := a.code[at:]
	if a.arch.linkRegister {
		if len(rest) >= 4 && isPadding(rest[:4], a.arch) {
			return 4
		}
		return 0
	}
	if n := nopLength(rest); n > 0 && n <= len(rest) && rest[0] != 0 {
		return n
	}
	if len(rest) > 1 && rest[0] == 0 && rest[1] == 0 {
		return 2
	}
	return 0
}

// follow walks all paths from the places in strong, then those in weak.
func (a *analysis) follow() {
	for a.steps > 0 && !a.refuted {
		if n := len(a.strong); n > 0 {
			p := a.strong[n-1]
			a.strong = a.strong[:n-1]
			a.walk(p, false)
		} else if len(a.weak) > 0 {
			a.walk(a.popWeak(), true)
		} else {
			return
		}
	}
	a.strong, a.weak = a.strong[:0], a.weak[:0]
}

// walk follows one path until it ends or joins another. weak says that it
// begins behind a call.
func (a *analysis) walk(p path, weak bool) {
	entry := a.arch.atEntry()
	at, id, on := int(p.at), p.state, p.trail
	s := &a.current
	*s = a.states[id]
	for at >= 0 && at < len(a.code) {
		if a.marks[at]&markFunction != 0 && *s != entry && at != a.entry {
			return
		}
		if e := a.found[at]; e != 0 {
			if e-1 == id {
				a.prove(at)
				return
			}
			if weak {
				return // the call does not return
			}
			if a.trial > 0 && int(a.owner[at]) < a.trial {
				known := a.states[e-1]
				m := known.meet(*s)
				if known.kind == frameLost || known.kind == framePopped {
					return
				}
				if m.rule(a.arch) == known.rule(a.arch) {
					a.proof++
				} else {
					a.refuted = true
				}
				return
			}
			m := a.states[e-1].meet(*s)
			if m == a.states[e-1] {
				return
			}
			*s = m
			id = a.intern(s)
		}
		if a.steps--; a.steps <= 0 {
			return
		}
		weak = false
		if a.trial > 0 && a.found[at] == 0 {
			a.journal = append(a.journal, int32(at))
		}
		if a.found[at] == 0 {
			a.owner[at] = on
		}
		a.found[at] = id + 1
		before := *s
		st := a.step(a, s, at)
		if st.size == 0 {
			a.trails[on].errors = min(a.trails[on].errors+1, maxCount)
			return
		}
		a.sizes[at] = uint8(st.size)
		switch st.kind {
		case stepEnd:
			return
		case stepReturn:
			t := &a.trails[on]
			if st.bad && (before.kind == frameLive || before.thrown) {
				t.errors = min(t.errors+1, maxCount)
			} else if before.kind == frameLive {
				t.proofs = min(t.proofs+1, maxCount)
				a.proof++
			}
			return
		case stepJump:
			if st.target == -1 && before != entry && before.kind == frameLive {
				a.marks[at] |= markDeeper
			}
			if st.target < 0 || st.target >= len(a.code) {
				return
			}
			if a.marks[st.target]&markFunction != 0 && *s == entry {
				a.proof++
			}
			if *s != before {
				id = a.intern(s)
			}
			at = st.target
			continue
		case stepBranch:
			if st.target >= 0 && st.target < len(a.code) {
				a.strong = append(a.strong, path{int32(st.target), a.intern(s), on})
			}
		case stepCall:
			for _, i := range [...]int{valueA, valueB, valueLR} {
				s.values[i] = frameValue{}
			}
			if s.kind == frameLive && !s.rooted() {
				*s = frameState{kind: frameLost}
			}
			if next := at + st.size; next < len(a.code) && a.aligned(next) {
				if before.kind == frameLive {
					a.marks[at] |= markDeeper
				}
				return
			}
			at += st.size
			a.pushWeak(path{int32(at), a.intern(s), a.branch(on)})
			return
		}
		if s.kind == frameLive && !s.rooted() {
			*s = frameState{kind: frameLost}
		}
		if *s != before {
			id = a.intern(s)
		}
		at += st.size
	}
}

// prove notes that a path under trial came to a place that is known to be as
// the path says.
func (a *analysis) prove(at int) {
	if a.trial > 0 && int(a.owner[at]) < a.trial {
		a.proof++
	}
}

// try follows code from at as if it began with s, and tells whether that makes
// sense. need is the number of things that must agree.
func (a *analysis) try(at int, s frameState, need int) bool {
	a.trial, a.journal, a.proof, a.refuted = len(a.trails), a.journal[:0], 0, false
	on := a.branch(0)
	if int(on) != a.trial {
		a.trial = 0
		return false // too many
	}
	a.strong = append(a.strong, path{int32(at), a.intern(&s), on})
	rest := max(a.steps-maxTrySteps, 0)
	a.steps -= rest
	a.follow()
	a.steps += rest
	a.spread(a.trial)
	ok := !a.refuted && !a.trails[a.trial].bad && a.proof >= need
	for _, at := range a.journal {
		if !ok || a.trails[a.owner[at]].bad {
			a.found[at], a.owner[at], a.sizes[at] = 0, 0, 0
		}
	}
	if !ok {
		a.trails = a.trails[:a.trial]
	}
	a.trial, a.refuted = 0, false
	return ok
}

// spread finds the trails that are wrong: those that only led to errors, and
// all that came from them. A trail behind a call that does not return is
// wrong from its start, though the error may show many calls later.
func (a *analysis) spread(from int) {
	for i := len(a.trails) - 1; i >= max(from, 1); i-- {
		t := &a.trails[i]
		t.bad = t.errors > 0 && t.proofs == 0
		if t.parent == 0 {
			continue
		}
		p := &a.trails[t.parent]
		p.proofs = min(p.proofs+t.proofs, maxCount)
		p.errors = min(p.errors+t.errors, maxCount)
	}
	for i := max(from, 1); i < len(a.trails); i++ {
		if a.trails[a.trails[i].parent].bad {
			a.trails[i].bad = true
		}
	}
}

// analyse follows everything that can be followed. entry is the program's first instruction, or -1.
func (a *analysis) analyse(entry int) {
	start := a.arch.atEntry()
	a.entry = entry
	if entry >= 0 {
		s := frameState{kind: frameStop}
		a.strong = append(a.strong, path{int32(entry), a.intern(&s), a.branch(0)})
		a.follow()
	}
	id := a.intern(&start)
	for at := len(a.code) - 1; at >= 0; at-- {
		if a.marks[at]&markFunction != 0 && at != entry {
			a.strong = append(a.strong, path{int32(at), id, a.branch(0)})
		}
	}
	a.follow()
	a.spread(1)
	for at, f := range a.found {
		if f != 0 && a.trails[a.owner[at]].bad {
			a.found[at], a.owner[at], a.sizes[at] = 0, 0, 0
		}
	}
	for at, m := range a.marks[:a.guessTo] {
		if at < a.guessBlock {
			continue
		}
		if m&(markPointer|markBoundary|markPadding) == markPointer|markBoundary && a.found[at] == 0 && m&markEnd != 0 {
			a.try(at, start, 0)
		}
	}
	// What lies before the block may be the middle of a function, where all
	// guesses fail.
	rest := a.steps - a.steps/8
	a.steps -= rest
	a.guess(start, a.guessFrom, a.guessBlock)
	a.steps += rest
	a.guess(start, a.guessBlock, a.guessTo)
	a.resumed()
}

// guess tries the code in [from, to) that nothing led to.
func (a *analysis) guess(start frameState, from, to int) {
	var deeper frameState // where code went on from in a way that is not known
	known := false
	stopped := false
	for at := from; at < to && a.steps > 0; {
		m := a.marks[at]
		if a.found[at] == 0 && m&(markBoundary|markPadding) == markBoundary && (m&markEnd != 0 || stopped) {
			switch {
			case known && a.try(at, deeper, 1):
			case a.try(at, start, 1):
				known = false
			case !known && m&markEnd != 0 && a.prologue(at):
				a.try(at, start, 0)
			}
			m = a.marks[at]
		}
		if a.found[at] == 0 {
			stopped = stopped && m&(markPadding|markBoundary) != markBoundary
			at++
			continue
		}
		if m&markFunction != 0 {
			known = false
		}
		if m&markDeeper != 0 {
			deeper, known = a.states[a.found[at]-1], true
		}
		// Where nothing is known of the code behind, this did not lead there: a
		// jump, or a call that does not return.
		stopped = true
		at += max(int(a.sizes[at]), 1)
	}
}

// aligned tells whether there is padding that ends at a multiple of 16: behind
// a call that is the start of another function more often than that of a loop.
func (a *analysis) aligned(at int) bool {
	from := at
	for at < len(a.code) && at-from < maxPadding {
		n := a.padding(at)
		if n == 0 {
			break
		}
		at += n
	}
	return at > from && (a.base+uint64(at))%16 == 0
}

// prologue tells whether code begins by making a frame, as only functions do.
func (a *analysis) prologue(at int) bool {
	start := a.arch.atEntry()
	s := &a.scratch
	*s = start
	for range 4 {
		if at >= len(a.code) {
			return false
		}
		st := a.step(a, s, at)
		if st.kind != stepNext || st.size == 0 {
			return false
		}
		if v := s.values[valueSP]; v != start.values[valueSP] {
			return v.kind == valueCFA && v.off < start.values[valueSP].off
		}
		at += st.size
	}
	return false
}

// put writes the rows of [low, high).
func (a *analysis) put(w *writer, low, high uint64) {
	first := max(int(low-a.base)-15, 0)
	for at := first; at < len(a.code) && a.base+uint64(at) < high; {
		pc := max(a.base+uint64(at), low)
		if a.found[at] == 0 || a.sizes[at] == 0 {
			if a.base+uint64(at) >= low {
				w.put(pc, Rule{})
			}
			at++
			continue
		}
		next := at + int(a.sizes[at])
		if a.base+uint64(next) > low {
			w.put(pc, a.states[a.found[at]-1].rule(a.arch))
		}
		at = next
	}
	w.put(high, Rule{})
}

// pushWeak and popWeak keep weak a heap by address.
func (a *analysis) pushWeak(p path) {
	a.weak = append(a.weak, p)
	for i := len(a.weak) - 1; i > 0; {
		up := (i - 1) / 2
		if a.weak[up].at <= a.weak[i].at {
			break
		}
		a.weak[up], a.weak[i] = a.weak[i], a.weak[up]
		i = up
	}
}

func (a *analysis) popWeak() path {
	top := a.weak[0]
	n := len(a.weak) - 1
	a.weak[0] = a.weak[n]
	a.weak = a.weak[:n]
	for i := 0; ; {
		down := 2*i + 1
		if down >= n {
			break
		}
		if down+1 < n && a.weak[down+1].at < a.weak[down].at {
			down++
		}
		if a.weak[i].at <= a.weak[down].at {
			break
		}
		a.weak[i], a.weak[down] = a.weak[down], a.weak[i]
		i = down
	}
	return top
}

// derive writes the rows of [low, high), a gap between entries, from its code.
func (x *Index) derive(rd *reader, w *writer, low, high uint64) {
	for _, s := range x.instructions {
		from, to := max(low, s.low), min(high, s.high)
		for from < to {
			end := min(from&^(codeBlock-1)+codeBlock, to)
			if end <= from {
				end = to
			}
			x.deriveBlock(rd, w, from, end, s)
			from = end
		}
	}
}

// deriveBlock is derive for a part of one block of executable code.
func (x *Index) deriveBlock(rd *reader, w *writer, low, high uint64, within span) {
	block := low &^ (codeBlock - 1)
	from := x.gapStart(rd, low, max(block-min(block, codeBefore), within.low))
	to := x.gapEnd(rd, high, min(block+codeBlock+codeAfter, within.high))
	if from > low || to < high || to-from > codeBlock+codeBefore+codeAfter {
		return
	}
	if isPadding(x.shortCode(rd, from, to), x.arch) {
		return
	}
	a := analyses.Get().(*analysis)
	defer analyses.Put(a)
	a.reset(x.arch, from, int(to-from), low)
	if !x.readCode(a.code, from) {
		return
	}
	a.sweep(from == within.low || from > max(block-min(block, codeBefore), within.low))
	if to-from >= minSymbolCode && x.readsSymbols(to-from) {
		for pc := from; pc < to; {
			s, ok := x.file.Symbol(pc)
			if !ok || s.Value+s.Size <= pc {
				pc += 16 // a hole between symbols is alignment
				if pc -= pc % 16; ok {
					break
				}
				continue
			}
			if s.Value >= from && a.marks[s.Value-from]&markBoundary != 0 {
				a.marks[s.Value-from] |= markFunction
			}
			pc = s.Value + s.Size
		}
	}
	entry := -1
	if x.entry >= from && x.entry < to {
		entry = int(x.entry - from)
	}
	a.analyse(entry)
	a.put(w, low, high)
}

// shortCode is the code of a short gap, which may be padding; nil when long.
func (x *Index) shortCode(rd *reader, low, high uint64) []byte {
	if high-low > 64 {
		return nil
	}
	return x.codeAt(rd, low, int(high-low))
}

// readCode fills p with the code at vaddr.
func (x *Index) readCode(p []byte, vaddr uint64) bool {
	for _, s := range x.text {
		if vaddr >= s.vaddr && vaddr-s.vaddr < s.size {
			n, err := s.r.ReadAt(p, int64(vaddr-s.vaddr))
			return n == len(p) && (err == nil || err == io.EOF)
		}
	}
	return false
}

// gapStart gives where the gap around low begins, not before limit.
func (x *Index) gapStart(rd *reader, low, limit uint64) uint64 {
	if low <= limit {
		return low
	}
	for _, t := range x.tables {
		i := t.search(rd, low-1)
		if i < 0 {
			continue
		}
		_, off, ok := t.entry(rd, i)
		if !ok {
			continue
		}
		if f, err := x.fde(rd, t, off); err == nil {
			limit = max(limit, min(f.end, low))
		}
	}
	return limit
}

// gapEnd gives where the gap around high-1 ends, not after limit.
func (x *Index) gapEnd(rd *reader, high, limit uint64) uint64 {
	if high >= limit {
		return high
	}
	for _, t := range x.tables {
		if i := t.search(rd, high-1) + 1; i < t.n {
			if start, _, ok := t.entry(rd, i); ok {
				limit = min(limit, max(start, high))
			}
		}
	}
	return limit
}

// readsSymbols tells whether the file's symbols are worth reading for so much
// code without entries.
func (x *Index) readsSymbols(code uint64) bool {
	var size uint64
	for _, s := range x.file.ELF.Sections {
		if s.Type == elf.SHT_SYMTAB || s.Type == elf.SHT_DYNSYM {
			size = max(size, s.Size)
		}
	}
	return size <= maxSymbolSections || code >= muchSymbolCode && size <= maxSymbolBytes
}

// findInstructions lists where instructions are: linkers put headers and
// constants into executable segments, too.
func (x *Index) findInstructions() {
	for _, s := range x.file.ELF.Sections {
		if s.Flags&elf.SHF_EXECINSTR == 0 || s.Type == elf.SHT_NOBITS || s.Addr+s.Size <= s.Addr {
			continue
		}
		for _, c := range x.code {
			if low, high := max(s.Addr, c.low), min(s.Addr+s.Size, c.high); low < high {
				x.instructions = append(x.instructions, span{low, high})
			}
		}
	}
	if x.instructions == nil {
		x.instructions = x.code
	}
	x.instructions = slices.Clone(x.instructions)
	slices.SortFunc(x.instructions, func(a, b span) int {
		if a.low < b.low {
			return -1
		}
		return 1
	})
	// Sections of a hostile file may overlap.
	end := uint64(0)
	for i := range x.instructions {
		s := &x.instructions[i]
		s.low = max(s.low, end)
		end = max(end, s.high)
	}
}
