package cfi

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

var (
	// ErrNoCFI says that the file has no call frame information for code.
	ErrNoCFI = errors.New("no call frame information")
	// ErrMachine says that the file is not for x86-64 or little-endian aarch64.
	ErrMachine = errors.New("unsupported machine")
	// ErrTooComplex says that a range of code has so much call frame
	// information that it must be an attack or damaged.
	ErrTooComplex = errors.New("more call frame information than code can have")
)

// arch is what differs between instruction sets. Register numbers are those
// of the DWARF mappings in the processor ABIs.
type arch struct {
	sp, fp       uint64
	registers    uint64 // general registers are numbered below this
	linkRegister bool   // the return address starts in a register, not on the stack
	sigreturn    []byte // the code of the C library's rt_sigreturn stub
	ucontext     int32  // offset of struct ucontext from sp there
	savedSP      int64  // offset of the saved sp in struct ucontext
	nop          int    // length of the nop before the stub
	scratch      [2]uint8
}

var (
	// mov $15,%rax; syscall. The kernel's struct rt_sigframe (arch/x86/
	// include/asm/sigframe.h) is pretcode, uc, info: the handler's ret popped
	// pretcode, so sp is at uc. uc_mcontext.gregs[REG_RSP] is at 160.
	x8664 = arch{sp: 7, fp: 6, registers: 16, savedSP: 160, nop: 1, scratch: [2]uint8{x86R10, x86R11},
		sigreturn: []byte{0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05}}
	// mov x8,#139; svc #0. struct rt_sigframe (arch/arm64/kernel/signal.c) is
	// struct siginfo info (128 bytes), struct ucontext uc. uc_mcontext is at
	// 176 of it, and sp at 8+31*8 of that.
	aarch64 = arch{sp: 31, fp: 29, registers: 32, linkRegister: true, ucontext: 128, savedSP: 432, nop: 4, scratch: [2]uint8{armX12, armX9},
		sigreturn: []byte{0x68, 0x11, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4}}
)

const (
	// maxDebugFrameBytes bounds a compressed .debug_frame, the only section
	// held in memory.
	maxDebugFrameBytes = 16 << 20
	// A call of Rows decodes at most workBase bytes of entries and workPerByte
	// more for each byte of code. Real code has 0.02 to 0.3 bytes of CFI per
	// byte; hostile tables point many FDEs at one long program.
	workBase    = 4 << 20
	workPerByte = 4
	// entryStub bounds start code without an FDE (musl's _start is 22 bytes
	// on x86-64 and 28 on aarch64).
	entryStub = 64
	// codeChunk is how much code is searched for rt_sigreturn stubs at once.
	codeChunk = 64 << 10
)

// Index knows where each FDE of an ELF file is, by start address, and decodes
// none before it is asked for. It reads the file through the elffile.File it
// was opened on, which must stay open as long as the Index is used. All
// methods may be called from several goroutines.
type Index struct {
	arch   *arch
	file   *elffile.File
	tables []*table // .eh_frame first
	code   []span   // executable segments
	text   []*source
	plt    []pltRange
	entry  uint64

	fromCode     bool
	instructions []span // sorted

	readers sync.Pool

	mu   sync.Mutex
	cies map[cieKey]*cie
}

// pltRange is a section of linkage stubs with the rule for those without CFI.
type pltRange struct {
	span
	rule Rule
}

// Options say what rows are made of. The zero value is that of Open.
type Options struct {
	// Debug is a separate debug file whose .debug_frame is used too. It must
	// stay open as long as the Index is used.
	Debug *elffile.File
	// Code makes rows from machine code where no entry covers it (code.go). A
	// file without any entries can then be opened too.
	Code bool
}

// Open indexes f: .eh_frame through the search table of .eh_frame_hdr (found by
// program header, so stripped section headers don't matter), else by a scan,
// and .debug_frame for code that .eh_frame does not cover. Files of Go without
// cgo have .debug_frame only, which is left alone: lang/golang unwinds those.
func Open(f *elffile.File) (*Index, error) { return Options{}.Open(f) }

// Open is the function Open with these options.
func (o Options) Open(f *elffile.File) (*Index, error) {
	ef, debug := f.ELF, o.Debug
	x := &Index{file: f, entry: f.Entry(), cies: map[cieKey]*cie{}}
	x.readers.New = func() any { return &reader{} }
	switch {
	case ef.Class != elf.ELFCLASS64 || ef.Data != elf.ELFDATA2LSB:
		return nil, fmt.Errorf("index unwind information of %s: %v %v: %w", f.Path(), ef.Class, ef.Data, ErrMachine)
	case ef.Machine == elf.EM_X86_64:
		x.arch = &x8664
	case ef.Machine == elf.EM_AARCH64:
		x.arch = &aarch64
	default:
		return nil, fmt.Errorf("index unwind information of %s: %v: %w", f.Path(), ef.Machine, ErrMachine)
	}
	for _, p := range ef.Progs {
		if p.Type == elf.PT_LOAD && p.Flags&elf.PF_X != 0 && p.Vaddr+p.Filesz >= p.Vaddr && p.Filesz > 0 {
			x.code = append(x.code, span{p.Vaddr, p.Vaddr + p.Filesz})
			x.text = append(x.text, &source{r: p.ReaderAt, vaddr: p.Vaddr, size: p.Filesz})
		}
	}
	x.findPLT()

	if t := x.openEHFrame(); t != nil {
		x.tables = append(x.tables, t)
	}
	for _, d := range []*elffile.File{f, debug} {
		if d == nil || isGo(d) {
			continue
		}
		if t := x.openDebugFrame(d); t != nil {
			x.tables = append(x.tables, t)
		}
	}
	if x.fromCode = o.Code; x.fromCode {
		x.findInstructions()
	}
	if len(x.tables) == 0 && len(x.instructions) == 0 {
		return nil, fmt.Errorf("index unwind information of %s: %w", f.Path(), ErrNoCFI)
	}
	return x, nil
}

// isGo tells files written by Go's linker. Their .debug_frame has an FDE for
// each Go function, which nobody needs: Go code keeps frame pointers, and
// .gopclntab has the frame sizes.
func isGo(f *elffile.File) bool {
	return f.Section(".gopclntab") != nil || f.Section(".data.rel.ro.gopclntab") != nil
}

func (x *Index) openEHFrame() *table {
	ef := x.file.ELF
	b := bases{deref: func(vaddr uint64) (uint64, bool) {
		var p [8]byte
		if x.file.ReadVaddr(p[:], vaddr) != nil {
			return 0, false
		}
		c := cursor{b: p[:]}
		return c.u64(), true
	}}
	if s := x.file.Section(".text"); s != nil {
		b.text = s.Addr
	}
	if s := x.file.Section(".got"); s != nil {
		b.data = s.Addr
	}
	var ehFrame uint64
	for _, p := range ef.Progs {
		if p.Type != elf.PT_GNU_EH_FRAME {
			continue
		}
		var hdr *source
		if seg := segment(ef, p.Vaddr); seg != nil {
			at := p.Vaddr - seg.vaddr
			hdr = &source{r: offsetReader{seg.r, int64(at)}, vaddr: p.Vaddr, size: min(p.Filesz, seg.size-at)}
		} else {
			continue
		}
		t, at := x.hdrTable(hdr, func(vaddr uint64) *source { return segment(ef, vaddr) }, b)
		if t != nil {
			return t
		}
		ehFrame = at
		break
	}
	if s := x.file.Section(".eh_frame"); s != nil && s.Type != elf.SHT_NOBITS && s.Flags&elf.SHF_COMPRESSED == 0 && s.Size > 0 {
		src := &source{r: s.ReaderAt, vaddr: s.Addr, size: min(s.Size, s.FileSize)}
		return x.scan(src, true, b, 0, src.size, false, nil)
	}
	if ehFrame != 0 {
		if src := segment(ef, ehFrame); src != nil {
			return x.scan(src, true, b, ehFrame-src.vaddr, src.size, true, nil)
		}
	}
	return nil
}

// openDebugFrame lists what .debug_frame of d adds to the tables so far. A
// section that cannot be read is left out: .eh_frame alone is worth having.
func (x *Index) openDebugFrame(d *elffile.File) *table {
	const name = ".debug_frame"
	s := d.Section(name)
	if s == nil || s.Type == elf.SHT_NOBITS || s.Size == 0 {
		return nil
	}
	src := &source{r: s.ReaderAt, size: min(s.Size, s.FileSize)}
	held := 0
	if s.Flags&elf.SHF_COMPRESSED != 0 {
		if s.Size > maxDebugFrameBytes {
			return nil
		}
		data, err := d.SectionData(name)
		if err != nil || len(data) > maxDebugFrameBytes {
			return nil
		}
		src = &source{r: bytes.NewReader(data), size: uint64(len(data))}
		held = len(data)
	}
	rd := &reader{}
	t := x.scan(src, false, bases{}, 0, src.size, false, func(pc uint64) bool {
		for _, t := range x.tables {
			if i := t.search(rd, pc); i >= 0 {
				if _, off, ok := t.entry(rd, i); ok {
					if f, err := x.fde(rd, t, off); err == nil && pc >= f.start && pc < f.end {
						return true
					}
				}
			}
		}
		return false
	})
	if t != nil {
		t.held = held
	}
	return t
}

// findPLT notes sections of linkage stubs: lld writes no CFI for them, and no
// linker does on aarch64.
func (x *Index) findPLT() {
	for _, s := range x.file.ELF.Sections {
		if s.Flags&elf.SHF_EXECINSTR == 0 || s.Addr+s.Size < s.Addr {
			continue
		}
		var r Rule
		switch {
		case s.Name == ".plt" && x.arch.linkRegister:
			r = Rule{CFA: CFASP}
		case s.Name == ".plt":
			r = Rule{CFA: CFAPLT, Off2: 11, RAKind: RegCFA, RAOff: -8}
		case (s.Name == ".plt.got" || s.Name == ".plt.sec") && !x.arch.linkRegister:
			r = Rule{CFA: CFASP, CFAOff: 8, RAKind: RegCFA, RAOff: -8}
		default:
			continue
		}
		x.plt = append(x.plt, pltRange{span{s.Addr, s.Addr + s.Size}, r})
	}
}

// FDEs is the number of entries indexed.
func (x *Index) FDEs() int {
	n := 0
	for _, t := range x.tables {
		n += t.n
	}
	return n
}

// Bytes is the memory that the Index holds, pooled read buffers aside (32 to
// 96 KiB for each goroutine that is in Rows).
func (x *Index) Bytes() int {
	const perCIE, fixed = 256, 512
	x.mu.Lock()
	n := len(x.cies) * perCIE
	x.mu.Unlock()
	for _, t := range x.tables {
		n += t.bytes()
	}
	n += 16 * len(x.instructions)
	return n + fixed
}

// Rows appends to dst the rows for addresses from low up to high. The first
// has PC low; a row with CFANone starts each gap; no two neighbours have the
// same rule. Padding of a few bytes between two entries belongs to the row
// before it. Entries that cannot be decoded are gaps. The error is
// ErrTooComplex or nil, and dst is returned as it was with the former.
func (x *Index) Rows(dst []Row, low, high uint64) ([]Row, error) {
	if low >= high {
		return dst, nil
	}
	rd := x.readers.Get().(*reader)
	defer func() {
		rd.reset()
		x.readers.Put(rd)
	}()
	w := writer{rows: dst, first: len(dst), low: low, high: high}
	work := int64(workBase) + int64(min(high-low, 1<<40))*workPerByte
	w.put(low, Rule{})
	for i, t := range x.tables {
		if i == 0 {
			x.decode(rd, t, &w, low, high, &work)
			continue
		}
		w.fill(func(w *writer, low, high uint64) { x.decode(rd, t, w, low, high, &work) })
	}
	if k := x.known(rd, low, high); len(k) > 0 {
		w.fill(func(w *writer, low, high uint64) { x.stub(rd, w, k, low, high) })
	}
	if x.fromCode && work >= 0 {
		w.fill(func(w *writer, low, high uint64) { x.derive(rd, w, low, high) })
	}
	x.bridge(rd, &w)
	if work < 0 {
		return dst, fmt.Errorf("unwind rows %#x to %#x of %s: %w", low, high, x.file.Path(), ErrTooComplex)
	}
	return w.rows, nil
}

// decode writes the rows of t's entries between low and high.
func (x *Index) decode(rd *reader, t *table, w *writer, low, high uint64, work *int64) {
	m := machine{arch: x.arch, base: &t.base}
	for i := max(t.search(rd, low), 0); i < t.n && *work >= 0; i++ {
		start, off, ok := t.entry(rd, i)
		if !ok || start > high {
			return
		}
		clip := high
		if i+1 < t.n {
			if next, _, ok := t.entry(rd, i+1); ok {
				clip = min(clip, next)
			}
		}
		*work -= 16
		f, err := x.fde(rd, t, off)
		// The entry rules; a table that disagrees with it is damaged.
		if err != nil || f.start != start {
			continue
		}
		end := min(f.end, clip)
		if f.end <= low {
			continue
		}
		if f.cie.signal {
			program := bytes.Clone(f.program)
			if r, from, ok := x.signalRule(rd, t, f, program); ok {
				*work -= int64(len(program))
				if from < high && end > low {
					w.put(max(from, low), r)
					w.put(end, Rule{})
				}
				continue
			}
			f.program = program
		}
		if end <= max(start, low) {
			continue
		}
		m.cie, m.cur, m.stack = f.cie, f.cie.initial, m.stack[:0]
		m.vaddr = f.programVaddr
		*work -= int64(len(f.program))
		m.run(f.program, start, end, func(loc uint64, s *state) {
			w.put(max(loc, low), s.rule(x.arch))
		})
		w.put(end, Rule{})
	}
}

// signalRule recognises the frame that the kernel builds for a signal handler:
// the FDE covers the rt_sigreturn stub, or takes the CFA from the saved stack
// pointer. 'S' alone says only that the address is exact. from is where the
// rule starts: one byte before the stub, because a walker looks up the byte
// before a return address, unless the FDE covers that byte (glibc's does).
func (x *Index) signalRule(rd *reader, t *table, f fde, program []byte) (r Rule, from uint64, ok bool) {
	a := x.arch
	r = Rule{CFA: CFASignal, CFAOff: a.ucontext}
	code := x.codeAt(rd, f.start, len(a.sigreturn)+a.nop)
	switch {
	case bytes.HasPrefix(code, a.sigreturn):
		return r, f.start - 1, true
	case len(code) > a.nop && bytes.HasPrefix(code[a.nop:], a.sigreturn):
		return r, f.start, true
	}
	m := machine{arch: a, cie: f.cie, base: &t.base, vaddr: f.programVaddr, cur: f.cie.initial}
	var s state
	seen := false
	m.run(program, f.start, f.end, func(_ uint64, cur *state) {
		if !seen {
			s, seen = *cur, true
		}
	})
	if seen && s.kind == cfaExpression && s.val.base == baseSP && s.val.deref && s.val.off2 == 0 {
		off := s.val.off - a.savedSP
		if off >= 0 && off < 1<<16 {
			r.CFAOff = int32(off)
			return r, f.start - 1, true
		}
	}
	return Rule{}, 0, false
}

// codeAt returns up to n bytes of code at vaddr.
func (x *Index) codeAt(rd *reader, vaddr uint64, n int) []byte {
	for _, s := range x.text {
		if vaddr >= s.vaddr && vaddr-s.vaddr < s.size {
			return rd.bytes(s, vaddr-s.vaddr, n)
		}
	}
	return nil
}

// knownCode is code without CFI whose shape says how to unwind it.
type knownCode struct {
	span
	rule Rule
}

// known lists linkage stubs, start code and rt_sigreturn stubs (musl, Go with
// cgo) in [low, high), the more certain last.
func (x *Index) known(rd *reader, low, high uint64) []knownCode {
	var list []knownCode
	add := func(from, to uint64, r Rule) {
		if from, to = max(from, low), min(to, high); from < to {
			list = append(list, knownCode{span{from, to}, r})
		}
	}
	for _, p := range x.plt {
		add(p.low, p.high, p.rule)
	}
	if x.entry != 0 && x.inCode(x.entry) && !x.fromCode {
		add(x.entry, x.entry+entryStub, Rule{CFA: CFAStop})
	}
	x.sigreturns(rd, low, high, func(at uint64) {
		add(at-1, at+uint64(len(x.arch.sigreturn)), Rule{CFA: CFASignal, CFAOff: x.arch.ucontext})
	})
	return list
}

// stub writes what is known about the gap [low, high).
func (x *Index) stub(rd *reader, w *writer, known []knownCode, low, high uint64) {
	for _, k := range known {
		from, to := max(k.low, low), min(k.high, high)
		// Start code ends with the first FDE behind the entry point.
		if from >= to || k.rule.CFA == CFAStop && low > x.entry && x.covered(rd, x.entry, low) {
			continue
		}
		w.put(from, k.rule)
		w.put(to, Rule{})
	}
}

// covered tells whether an FDE covers any address in [from, to).
func (x *Index) covered(rd *reader, from, to uint64) bool {
	for _, t := range x.tables {
		for i := max(t.search(rd, from), 0); i < t.n; i++ {
			start, off, ok := t.entry(rd, i)
			if !ok || start >= to {
				break
			}
			if f, err := x.fde(rd, t, off); err == nil && f.end > from && f.start < to {
				return true
			}
		}
	}
	return false
}

// sigreturns calls found for each rt_sigreturn stub that overlaps, or directly
// follows, [low, high).
func (x *Index) sigreturns(rd *reader, low, high uint64, found func(at uint64)) {
	n := uint64(len(x.arch.sigreturn))
	for _, s := range x.text {
		from, to := max(low-min(low, n-1), s.vaddr), min(high+n, s.vaddr+s.size)
		if from >= to || to-from < n {
			continue
		}
		if rd.code == nil {
			rd.code = make([]byte, codeChunk)
		}
		for from < to {
			b := rd.code[:min(uint64(len(rd.code)), to-from)]
			got, err := s.r.ReadAt(b, int64(from-s.vaddr))
			if err != nil && err != io.EOF {
				break
			}
			b = b[:max(got, 0)]
			for at := 0; ; {
				i := bytes.Index(b[at:], x.arch.sigreturn)
				if i < 0 {
					break
				}
				found(from + uint64(at+i))
				at += i + int(n)
			}
			if uint64(len(b)) < n {
				break
			}
			from += uint64(len(b)) - (n - 1)
			if uint64(len(b)) < uint64(len(rd.code)) {
				break
			}
		}
	}
}

// writer collects rows in order. A row written at or before earlier ones
// replaces them.
type writer struct {
	rows      []Row
	first     int
	low, high uint64
}

func (w *writer) put(pc uint64, r Rule) {
	if pc >= w.high {
		return
	}
	for len(w.rows) > w.first && w.rows[len(w.rows)-1].PC >= pc {
		w.rows = w.rows[:len(w.rows)-1]
	}
	if n := len(w.rows); n > w.first && w.rows[n-1].Rule == r {
		return
	}
	w.rows = append(w.rows, Row{PC: pc, Rule: r})
}

// fill calls f for each gap with a writer bounded by it.
func (w *writer) fill(f func(w *writer, low, high uint64)) {
	rows := w.rows[w.first:]
	var out, gap []Row
	for i, r := range rows {
		end := w.high
		if i+1 < len(rows) {
			end = rows[i+1].PC
		}
		if r.Rule.CFA != CFANone {
			if out != nil {
				out = append(out, r)
			}
			continue
		}
		g := writer{rows: gap[:0], low: r.PC, high: end}
		g.put(r.PC, Rule{})
		f(&g, r.PC, end)
		gap = g.rows
		if len(g.rows) == 1 && g.rows[0].Rule.CFA == CFANone {
			if out != nil {
				out = append(out, r)
			}
			continue
		}
		if out == nil {
			out = make([]Row, 0, len(rows)+8)
			out = append(out, rows[:i]...)
		}
		for _, n := range g.rows {
			if len(out) > 0 && out[len(out)-1].Rule == n.Rule {
				continue
			}
			out = append(out, n)
		}
	}
	if out == nil {
		return
	}
	// A filled gap may end with the rule that follows it.
	w.rows = w.rows[:w.first]
	for _, r := range out {
		if n := len(w.rows); n > w.first && w.rows[n-1].Rule == r.Rule {
			continue
		}
		w.rows = append(w.rows, r)
	}
}

// offsetReader reads from off on.
type offsetReader struct {
	r   io.ReaderAt
	off int64
}

func (o offsetReader) ReadAt(p []byte, off int64) (int, error) { return o.r.ReadAt(p, o.off+off) }
