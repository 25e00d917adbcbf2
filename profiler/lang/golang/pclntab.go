package golang

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

// Layouts of the table, by the magic number at its start (internal/abi/symtab.go).
type layout uint8

const (
	layout116 layout = iota // Go 1.16 and 1.17: absolute function entries
	layout118               // Go 1.18 and 1.19: entries relative to the text start
	layout120               // Go 1.20 and later: start lines, 16-byte inline records
)

const (
	maxFuncs     = 1 << 24 // the largest programs seen have 500,000
	maxName      = 4 << 10 // longer names are cut; generated ones reach 2 KiB
	maxSteps     = 1 << 20 // of one pc-value table
	maxFuel      = 1 << 22 // steps of all tables read in one call: 20 ms
	maxScan      = 1 << 30 // bytes searched for the header when sections do not tell
	maxInlined   = 256     // calls inlined into each other at one address
	headerBytes  = 8 + 8*8
	noOffset     = ^uint32(0)
	funcTopFrame = 1 << 0 // abi.FuncFlagTopFrame, since Go 1.17
	funcSPWrite  = 1 << 1 // abi.FuncFlagSPWrite, since Go 1.17
)

// header is the start of a pclntab (runtime/symtab.go pcHeader), its offsets
// turned into addresses.
type header struct {
	addr    uint64
	end     uint64 // first address after the bytes that can belong to it
	layout  layout
	quantum uint64 // 1 on amd64, 4 on arm64
	nfunc   uint64
	text    uint64 // layouts 118 and 120 up to Go 1.25; 0 from Go 1.26 on and where the loader fills it in
	names   uint64
	cus     uint64
	files   uint64
	pcs     uint64
	funcs   uint64 // function table, then the function records
}

// findHeader finds the table by its section, else by its magic number.
func findHeader(f *elffile.File, w *windows) (*header, error) {
	for _, name := range [...]string{".gopclntab", ".data.rel.ro.gopclntab"} {
		s := f.Section(name)
		if s == nil || s.Type == elf.SHT_NOBITS || s.Addr == 0 {
			continue
		}
		h, err := readHeader(w, s.Addr, f.Machine())
		if h != nil || errors.Is(err, ErrUnsupportedVersion) {
			return h, err
		}
	}
	if !maybeGo(f) {
		return nil, nil
	}
	// Linkers merge the section into .data.rel.ro of position-independent
	// files, and there may be no section headers.
	left := uint64(maxScan)
	var unsupported error
	for _, exec := range [...]bool{false, true} {
		for _, s := range w.segs {
			if (s.Flags&elf.PF_X != 0) != exec || s.Filesz == 0 {
				continue
			}
			var found *header
			err := scan(f, s, min(left, s.Filesz), []byte{0xff, 0xff, 0xff, 0, 0}, func(at uint64) bool {
				if at == s.Vaddr || (at-1)%4 != 0 {
					return true
				}
				h, err := readHeader(w, at-1, f.Machine())
				if errors.Is(err, ErrUnsupportedVersion) {
					unsupported = err
				}
				found = h
				return h == nil
			})
			if found != nil {
				return found, nil
			}
			if err != nil {
				return nil, err
			}
			left -= min(left, s.Filesz)
		}
	}
	return nil, unsupported
}

// maybeGo says whether a search for the table pays: the linker leaves marks
// (.go.buildinfo, a build ID note) in every Go file, and strip keeps them as
// long as there are section headers.
func maybeGo(f *elffile.File) bool {
	if len(f.ELF.Sections) == 0 {
		return true
	}
	for _, name := range [...]string{".go.buildinfo", ".note.go.buildid", ".gopclntab", ".data.rel.ro.gopclntab", ".gosymtab"} {
		if f.Section(name) != nil {
			return true
		}
	}
	return false
}

// scan calls hit with the address of each place in the first size bytes of a
// segment where pattern is, until it gives false.
func scan(f *elffile.File, s elf.ProgHeader, size uint64, pattern []byte, hit func(addr uint64) bool) error {
	const chunk = 64 << 10
	buf := make([]byte, chunk)
	for off := uint64(0); off < size; {
		n := min(chunk, size-off)
		if err := f.ReadVaddr(buf[:n], s.Vaddr+off); err != nil {
			return err
		}
		for i := 0; ; {
			j := bytes.Index(buf[i:n], pattern)
			if j < 0 {
				break
			}
			if !hit(s.Vaddr + off + uint64(i+j)) {
				return nil
			}
			i += j + 1
		}
		if n < chunk {
			return nil
		}
		off += n - uint64(len(pattern)) + 1
	}
	return nil
}

// readHeader gives nil without an error when there is no table at addr.
func readHeader(w *windows, addr uint64, m elf.Machine) (*header, error) {
	seg, ok := w.segment(addr)
	if !ok || seg.Vaddr+seg.Filesz-addr < headerBytes {
		return nil, nil
	}
	var b [headerBytes]byte
	if err := w.read(b[:], addr); err != nil {
		return nil, err
	}
	h := &header{addr: addr, end: seg.Vaddr + seg.Filesz, quantum: 1}
	if m == elf.EM_AARCH64 {
		h.quantum = 4
	}
	if b[4] != 0 || b[5] != 0 || uint64(b[6]) != h.quantum || b[7] != 8 {
		return nil, nil
	}
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8+8*i:]) }
	offsets := 2
	switch binary.LittleEndian.Uint32(b[:]) {
	case 0xfffffffb:
		// Go 1.2 to 1.15. Four bytes are weak evidence: the count of
		// functions must make sense too.
		if n := word(0); n == 0 || n > maxFuncs || n*16 > h.end-addr {
			return nil, nil
		}
		return nil, fmt.Errorf("pclntab of Go 1.2 to 1.15: %w", ErrUnsupportedVersion)
	case 0xfffffffa:
		h.layout = layout116
	case 0xfffffff0:
		h.layout, h.text, offsets = layout118, word(2), 3
	case 0xfffffff1:
		h.layout, h.text, offsets = layout120, word(2), 3
	default:
		return nil, nil
	}
	h.nfunc = word(0)
	size := h.end - addr
	prev := uint64(headerBytes - 8)
	for i, to := range [...]*uint64{&h.names, &h.cus, &h.files, &h.pcs, &h.funcs} {
		off := word(offsets + i)
		if off < prev || off >= size {
			return nil, nil
		}
		*to, prev = addr+off, off
	}
	if h.nfunc == 0 || h.nfunc > maxFuncs || (h.nfunc*2+1)*h.fieldSize() > h.end-h.funcs {
		return nil, nil
	}
	// A function table is sorted: looking at a few entries tells it from
	// other bytes.
	var last uint64
	for i := uint64(0); i <= h.nfunc; i += 1 + h.nfunc/16 {
		pc, err := w.uintN(h.funcs+i*2*h.fieldSize(), h.fieldSize())
		if err != nil || pc < last {
			return nil, err
		}
		last = pc
	}
	return h, nil
}

// fieldSize is the size of an entry's half: a pointer before Go 1.18.
func (h *header) fieldSize() uint64 {
	if h.layout == layout116 {
		return 8
	}
	return 4
}

func (w *windows) uintN(addr, size uint64) (uint64, error) {
	if size == 8 {
		return w.uint64(addr)
	}
	v, err := w.uint32(addr)
	return uint64(v), err
}

// table is a pclntab together with what moduledata adds.
type table struct {
	header
	etext  uint64
	gofunc uint64 // base of function data, 0 when unknown or absolute
	bias   uint64 // added to the entries of the function table
	low    uint64 // the Go functions in [text, etext)
	high   uint64
}

func openTable(f *elffile.File, w *windows, h header) (table, error) {
	t := table{header: h}
	md, err := findModule(f, w, &h)
	if err != nil {
		return t, err
	}
	if md != nil {
		t.text, t.etext, t.gofunc = md.text, md.etext, md.gofunc
	} else if t.text, err = textStart(f, w, &h); err != nil {
		return t, err
	}
	if h.layout != layout116 {
		t.bias = t.text
	}
	last, err := t.entry(w, h.nfunc)
	if err != nil {
		return t, err
	}
	if first, err := t.entry(w, 0); err != nil {
		return t, err
	} else if h.layout == layout116 && md == nil {
		t.text = first
	}
	if md == nil {
		t.etext = last
	}
	if t.text >= t.etext || !executable(w, t.text, t.etext) {
		return t, fmt.Errorf("text [%#x, %#x) is not in an executable segment: %w", t.text, t.etext, ErrMalformed)
	}
	t.low, t.high = t.text, t.etext
	return t, t.trimForeign(w)
}

// trimForeign leaves out the C functions of cgo that Go's linker, when it
// links without the system's, puts before (or after) the Go code.
func (t *table) trimForeign(w *windows) error {
	const maxForeign = 1 << 14 // net and os/user bring 40
	for i := uint64(0); i < min(t.nfunc, maxForeign); i++ {
		fn, err := t.function(w, i)
		if err != nil {
			return err
		}
		if !fn.foreign() {
			t.low = max(t.low, fn.entry)
			break
		}
	}
	for i := uint64(1); i <= min(t.nfunc, maxForeign); i++ {
		fn, err := t.function(w, t.nfunc-i)
		if err != nil {
			return err
		}
		if !fn.foreign() {
			t.high = min(t.high, fn.end)
			break
		}
	}
	if t.low >= t.high {
		return fmt.Errorf("no Go function: %w", ErrMalformed)
	}
	return nil
}

// textStart is for tables without moduledata.
func textStart(f *elffile.File, w *windows, h *header) (uint64, error) {
	if h.layout == layout116 {
		return 0, nil
	}
	if h.text != 0 {
		return h.text, nil
	}
	if addr, ok := symbol(f, "runtime.text"); ok {
		return addr, nil
	}
	if s := f.Section(".text"); s != nil && s.Addr != 0 {
		return s.Addr, nil
	}
	for _, s := range w.segs {
		if s.Flags&elf.PF_X != 0 {
			return 0, fmt.Errorf("start of the text is not known: %w", ErrMalformed)
		}
	}
	return 0, fmt.Errorf("no executable segment: %w", ErrMalformed)
}

func executable(w *windows, low, high uint64) bool {
	s, ok := w.segment(low)
	return ok && s.Flags&elf.PF_X != 0 && high-s.Vaddr <= s.Filesz
}

// symbol reads the symbol table entry by entry: it can be as large as the
// rest of the file.
func symbol(f *elffile.File, name string) (uint64, bool) {
	syms, err := f.SectionData(".symtab")
	if err != nil {
		return 0, false
	}
	strs, err := f.SectionData(".strtab")
	if err != nil {
		return 0, false
	}
	for ; len(syms) >= elf.Sym64Size; syms = syms[elf.Sym64Size:] {
		off := uint64(binary.LittleEndian.Uint32(syms))
		if off+uint64(len(name)) < uint64(len(strs)) && string(strs[off:off+uint64(len(name))]) == name && strs[off+uint64(len(name))] == 0 {
			return binary.LittleEndian.Uint64(syms[8:]), true
		}
	}
	return 0, false
}

// entry is the first address of function i; of i == nfunc, the end.
func (t *table) entry(w *windows, i uint64) (uint64, error) {
	pc, err := w.uintN(t.funcs+i*2*t.fieldSize(), t.fieldSize())
	return pc + t.bias, err
}

// find gives the number of the last function that starts at or before addr.
func (t *table) find(w *windows, addr uint64) (uint64, bool, error) {
	low, high := uint64(0), t.nfunc+1 // entry(low) <= addr < entry(high)
	first, err := t.entry(w, 0)
	if err != nil || addr < first {
		return 0, false, err
	}
	for high-low > 1 {
		mid := low + (high-low)/2
		pc, err := t.entry(w, mid)
		if err != nil {
			return 0, false, err
		}
		if pc <= addr {
			low = mid
		} else {
			high = mid
		}
	}
	return low, low < t.nfunc, nil
}

// function is one record (runtime/runtime2.go _func).
type function struct {
	entry, end uint64
	name       uint32 // offsets, 0 for none
	pcsp       uint32
	pcfile     uint32
	pcln       uint32
	npcdata    uint32
	cu         uint32
	flag       uint8
	nfuncdata  uint8
	tail       uint64 // address of the pcdata offsets, then funcdata
}

// foreign says that the function is not Go's: the linker lists C functions of
// cgo without tables.
func (fn *function) foreign() bool { return fn.pcsp == 0 && fn.pcln == 0 }

func (t *table) function(w *windows, i uint64) (function, error) {
	var fn function
	var err error
	if fn.entry, err = t.entry(w, i); err != nil {
		return fn, err
	}
	if fn.end, err = t.entry(w, i+1); err != nil {
		return fn, err
	}
	if fn.end < fn.entry {
		return fn, fmt.Errorf("function table is not sorted at %d: %w", i, ErrMalformed)
	}
	off, err := w.uintN(t.funcs+i*2*t.fieldSize()+t.fieldSize(), t.fieldSize())
	if err != nil {
		return fn, err
	}
	if off >= t.end-t.funcs {
		return fn, fmt.Errorf("function record %d is outside the table: %w", i, ErrMalformed)
	}
	// entry, name, args, deferreturn, pcsp, pcfile, pcln, npcdata, cu,
	// (start line,) id, flag, pad, nfuncdata
	var b [48]byte
	rec, size := t.funcs+off, 40
	switch t.layout {
	case layout116:
		size = 44
	case layout120:
		size = 44
	}
	if t.end-rec < uint64(size) {
		return fn, fmt.Errorf("function record %d is cut: %w", i, ErrMalformed)
	}
	if err := w.read(b[:size], rec); err != nil {
		return fn, err
	}
	f := b[4:]
	if t.layout == layout116 {
		f = b[8:]
	}
	le := binary.LittleEndian
	fn.name = le.Uint32(f)
	fn.pcsp, fn.pcfile, fn.pcln = le.Uint32(f[12:]), le.Uint32(f[16:]), le.Uint32(f[20:])
	fn.npcdata, fn.cu = le.Uint32(f[24:]), le.Uint32(f[28:])
	fn.flag, fn.nfuncdata = b[size-3], b[size-1]
	fn.tail = rec + uint64(size)
	if uint64(fn.npcdata)*4 > t.end-fn.tail {
		return fn, fmt.Errorf("function record %d is cut: %w", i, ErrMalformed)
	}
	return fn, nil
}

// name appends the function's name as the linker wrote it.
func (t *table) name(dst []byte, w *windows, off uint32) ([]byte, error) {
	if off == 0 || uint64(off) >= t.cus-t.names {
		return dst, nil
	}
	return w.text(dst, t.names+uint64(off), maxName)
}

// values walks a pc-value table (runtime/symtab.go step): each value holds up
// to, not including, the address that comes with it. It ends early when visit
// gives false. visit must not read through w: the table is read in place.
func (t *table) values(w *windows, off uint32, fn *function, visit func(value int32, low, high uint64) bool) error {
	if off == 0 {
		return nil
	}
	if uint64(off) >= t.funcs-t.pcs {
		return fmt.Errorf("table of the function at %#x is outside: %w", fn.entry, ErrMalformed)
	}
	c := cursor{w: w, addr: t.pcs + uint64(off)}
	value, pc := int32(-1), fn.entry
	for n := 0; n < maxSteps; n++ {
		d, err := c.uvarint()
		if err != nil {
			return err
		}
		if d == 0 && n > 0 {
			return nil
		}
		value += int32(-(d & 1) ^ (d >> 1))
		if d, err = c.uvarint(); err != nil {
			return err
		}
		if w.fuel--; d == 0 || w.fuel < 0 {
			break
		}
		next := min(pc+uint64(d)*t.quantum, fn.end)
		if !visit(value, pc, next) || next == fn.end {
			return nil
		}
		pc = next
	}
	return fmt.Errorf("table of the function at %#x does not end: %w", fn.entry, ErrMalformed)
}

// value is the value for addr, -1 where there is none.
func (t *table) value(w *windows, off uint32, fn *function, addr uint64) (int32, error) {
	got := int32(-1)
	err := t.values(w, off, fn, func(v int32, _, high uint64) bool {
		if addr < high {
			got = v
			return false
		}
		return true
	})
	return got, err
}
