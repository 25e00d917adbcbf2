package elffile

import (
	"bytes"
	"cmp"
	"debug/elf"
	"io"
	"math"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"
)

const (
	// maxSymbols bounds the symbols of a file; ClickHouse has 1.3 million. While a
	// table is built each takes 16 bytes, afterwards 12.
	maxSymbols = 4 << 20
	// maxNameBytes bounds one symbol name. Names beyond it (templates of
	// templates) are cut.
	maxNameBytes = 16 << 10
	// maxFunctionBytes bounds a symbol's size: the two bits above are flags.
	maxFunctionBytes = 1<<30 - 1
	// Symbols without a size, from hand-written assembly, reach to the next
	// symbol but not further than this. A .dynsym does not show the local
	// functions between two exported ones, so there the guess is kept short.
	maxUnsizedBytes        = 64 << 10
	maxUnsizedDynamicBytes = 4 << 10
	// String tables up to this size are read whole while a table is built,
	// larger ones in windows. Neither is kept.
	maxNamesResident = 8 << 20
)

// Symbol is a function's name with the addresses that it covers.
type Symbol struct {
	Name  string // as the linker knows it, without a symbol version; "puts@plt" for a PLT stub
	Value uint64 // first address
	Size  uint64 // bytes covered; for symbols without a size, the bytes to the next symbol
}

// Symbol finds the function that covers the virtual address addr. It looks in
// .symtab, else .dynsym, else the dynamic segment's symbols, together with
// MiniDebugInfo and PLT stubs. An address past the end of a sized symbol has no
// name.
//
// Of several symbols at one address it prefers, in this order: one with a
// size, a function over an untyped label, an exported one, the fewest leading
// underscores (write over __write), a global over a weak one, the shortest
// name. Of nested symbols it takes the innermost.
//
// The first call builds the table; later ones read one name from the file.
func (f *File) Symbol(addr uint64) (Symbol, bool) {
	t := f.symbols.load(f)
	e, value, ok := t.find(addr)
	if !ok {
		return Symbol{}, false
	}
	name, ok := t.name(e)
	if !ok {
		return Symbol{}, false
	}
	return Symbol{Name: name, Value: value, Size: uint64(e.size & maxFunctionBytes)}, true
}

// Bytes is the memory that the file holds now: headers, and the symbol table
// once it was used.
func (f *File) Bytes() int {
	n := int(unsafe.Sizeof(*f)) + len(f.path)
	n += len(f.ELF.Sections) * int(unsafe.Sizeof(elf.Section{})+unsafe.Sizeof(io.SectionReader{})+16)
	n += len(f.ELF.Progs) * int(unsafe.Sizeof(elf.Prog{})+unsafe.Sizeof(io.SectionReader{})+8)
	if t := f.symbols.table.Load(); t != nil {
		n += cap(t.entries) * int(unsafe.Sizeof(entry{}))
		for _, s := range t.sources {
			n += s.resident
		}
	}
	return n
}

// Trim forgets the symbol table; the next look-up builds it again.
func (f *File) Trim() { f.symbols.table.Store(nil) }

// symbolCache builds the table on the first look-up.
type symbolCache struct {
	build sync.Mutex
	table atomic.Pointer[symbolTable]
}

func (c *symbolCache) load(f *File) *symbolTable {
	if t := c.table.Load(); t != nil {
		return t
	}
	c.build.Lock()
	defer c.build.Unlock()
	if t := c.table.Load(); t != nil {
		return t
	}
	t := f.buildSymbols()
	c.table.Store(t)
	return t
}

// entry is one row of the table: it holds from base+off until off+size.
type entry struct {
	off  uint32
	size uint32 // with the flags below
	name uint32 // into the sources, laid end to end
}

const (
	// flagResume marks the place where a nested symbol ended and the one
	// around it goes on: the other bits of size are that one's index.
	flagResume = 1 << 31
	// flagPLT makes the name "name@plt".
	flagPLT = 1 << 30
)

// symbolTable is sorted by address and holds no names: those of Chromium take
// 100 MB.
type symbolTable struct {
	base    uint64
	entries []entry
	sources []nameSource
}

// nameSource is one string table.
type nameSource struct {
	r        io.ReaderAt
	off      int64
	size     uint32
	first    uint32 // the name offset that its byte 0 has in entries
	resident int    // bytes of memory it holds
}

func (t *symbolTable) find(addr uint64) (entry, uint64, bool) {
	if addr < t.base || addr-t.base > math.MaxUint32 {
		return entry{}, 0, false
	}
	off := uint32(addr - t.base)
	// The last of several rows at one address is the chosen one.
	i := sort.Search(len(t.entries), func(i int) bool { return t.entries[i].off > off }) - 1
	if i < 0 {
		return entry{}, 0, false
	}
	e := t.entries[i]
	if e.size&flagResume != 0 {
		e = t.entries[e.size&^flagResume]
	}
	if off-e.off >= e.size&maxFunctionBytes {
		return entry{}, 0, false
	}
	return e, t.base + uint64(e.off), true
}

func (t *symbolTable) name(e entry) (string, bool) {
	s := findSource(t.sources, e.name)
	if s == nil {
		return "", false
	}
	var buf [256]byte
	name := s.read(buf[:], e.name-s.first)
	if len(name) == len(buf) {
		name = s.read(make([]byte, min(maxNameBytes, s.size)), e.name-s.first)
	}
	if name = trimVersion(name); len(name) == 0 {
		return "", false
	}
	if e.size&flagPLT != 0 {
		return string(name) + "@plt", true
	}
	return string(name), true
}

func findSource(sources []nameSource, name uint32) *nameSource {
	for i := range sources {
		if s := &sources[i]; name >= s.first && name-s.first < s.size {
			return s
		}
	}
	return nil
}

// read returns the string at off, cut to the length of buf.
func (s *nameSource) read(buf []byte, off uint32) []byte {
	if uint64(s.size-off) < uint64(len(buf)) {
		buf = buf[:s.size-off]
	}
	n, _ := s.r.ReadAt(buf, s.off+int64(off))
	if i := bytes.IndexByte(buf[:n], 0); i >= 0 {
		return buf[:i]
	}
	return buf[:n]
}

// trimVersion cuts "@@GLIBC_2.2" off: older linkers put it into .symtab.
func trimVersion(name []byte) []byte {
	if i := bytes.IndexByte(name, '@'); i > 0 {
		return name[:i]
	}
	return name
}

// raw is a symbol while the table is built.
type raw struct {
	off, size, name uint32
	rank            uint32
}

// Bits of rank; the ones above rankTie decide before a name is read.
const (
	rankSized    = 1 << 4
	rankFunction = 1 << 3
	rankExported = 1 << 2
	rankTie      = rankSized | rankFunction | rankExported
	rankGlobal   = 1 << 1
	rankDynamic  = 1 << 0
)

// span is a range of executable addresses.
type span struct{ low, high uint64 }

// builder collects the symbols of a file and makes the table of them.
type builder struct {
	file    *File
	spans   []span // executable, sorted
	base    uint64
	raws    []raw
	sources []nameSource
	names   nameWindow

	// What is left of the limits: a hostile file may have thousands of
	// sections that all cover the same bytes.
	symbolsLeft     uint64
	relocationsLeft uint64
	pltLeft         uint64
}

func (f *File) buildSymbols() *symbolTable {
	if f.ELF.Type == elf.ET_REL {
		return &symbolTable{} // values are offsets in sections there
	}
	b := &builder{
		file: f, spans: f.executable(),
		symbolsLeft: maxSymbols, relocationsLeft: maxRelocationBytes, pltLeft: maxPLTBytes,
	}
	if len(b.spans) == 0 {
		return &symbolTable{}
	}
	b.base = b.spans[0].low
	b.names.b = b

	if !b.addSections(f, elf.SHT_SYMTAB) && !b.addSections(f, elf.SHT_DYNSYM) {
		b.addDynamic()
	}
	mini := b.addMiniDebug()
	b.sort()
	if stubs := b.pltStubs(); len(stubs) > 0 {
		b.raws = append(b.raws, stubs...)
		b.sort()
	}
	t := &symbolTable{base: b.base, entries: b.flatten(), sources: b.sources}
	if mini >= 0 {
		t.compact(mini)
	}
	return t
}

// executable lists the address ranges that hold code: sections where the file
// has them, since debug files keep section headers but no segment contents,
// and else segments.
func (f *File) executable() []span {
	var spans []span
	add := func(low, size uint64) {
		if size > 0 && low+size > low {
			spans = append(spans, span{low, low + size})
		}
	}
	for _, s := range f.ELF.Sections {
		if s.Flags&elf.SHF_ALLOC != 0 && s.Flags&elf.SHF_EXECINSTR != 0 {
			add(s.Addr, s.Size)
		}
	}
	if len(spans) == 0 {
		for _, p := range f.ELF.Progs {
			if p.Type == elf.PT_LOAD && p.Flags&elf.PF_X != 0 {
				add(p.Vaddr, p.Memsz)
			}
		}
	}
	slices.SortFunc(spans, func(a, b span) int {
		return cmp.Or(cmp.Compare(a.low, b.low), cmp.Compare(a.high, b.high))
	})
	return spans
}

// spanEnd gives the end of the executable range around addr.
func (b *builder) spanEnd(addr uint64) (uint64, bool) {
	i := sort.Search(len(b.spans), func(i int) bool { return b.spans[i].low > addr }) - 1
	if i < 0 || addr >= b.spans[i].high {
		return 0, false
	}
	return b.spans[i].high, true
}

// addSource appends a string table and says what its names start at.
func (b *builder) addSource(r io.ReaderAt, off int64, size uint64, resident int) (*nameSource, bool) {
	first := uint64(0)
	if n := len(b.sources); n > 0 {
		first = uint64(b.sources[n-1].first) + uint64(b.sources[n-1].size)
	}
	if size == 0 || off < 0 || first+size > math.MaxUint32 {
		return nil, false
	}
	b.sources = append(b.sources, nameSource{r: r, off: off, size: uint32(size), first: uint32(first), resident: resident})
	return &b.sources[len(b.sources)-1], true
}

// addSections adds the symbols of f's tables of a kind, and says if there were
// any. f is the builder's file, or the one inside its MiniDebugInfo.
func (b *builder) addSections(f *File, kind elf.SectionType) bool {
	found := false
	for _, s := range f.ELF.Sections {
		if s.Type != kind || s.Flags&elf.SHF_COMPRESSED != 0 || s.Link == 0 || int(s.Link) >= len(f.ELF.Sections) {
			continue
		}
		str := f.ELF.Sections[s.Link]
		if str.Type != elf.SHT_STRTAB || str.Flags&elf.SHF_COMPRESSED != 0 {
			continue
		}
		names, ok := b.addSource(f.reader, int64(str.Offset), str.FileSize, 0)
		if !ok {
			continue
		}
		if b.addTable(f, names, int64(s.Offset), s.FileSize, kind == elf.SHT_DYNSYM) {
			found = true
		}
	}
	return found
}

// sym is one record of a symbol table.
type sym struct {
	name  uint32
	info  uint8
	shndx uint16
	value uint64
	size  uint64
}

func (f *File) symSize() int {
	if f.ELF.Class == elf.ELFCLASS32 {
		return elf.Sym32Size
	}
	return elf.Sym64Size
}

func (f *File) decodeSym(p []byte) sym {
	bo := f.ELF.ByteOrder
	if f.ELF.Class == elf.ELFCLASS32 {
		return sym{name: bo.Uint32(p), value: uint64(bo.Uint32(p[4:])), size: uint64(bo.Uint32(p[8:])),
			info: p[12], shndx: bo.Uint16(p[14:])}
	}
	return sym{name: bo.Uint32(p), info: p[4], shndx: bo.Uint16(p[6:]), value: bo.Uint64(p[8:]), size: bo.Uint64(p[16:])}
}

// addTable streams the symbol table of size bytes at off, and says if it had
// functions.
func (b *builder) addTable(f *File, names *nameSource, off int64, size uint64, dynamic bool) bool {
	width := f.symSize()
	count := min(size/uint64(width), b.symbolsLeft)
	if off < 0 {
		return false
	}
	b.symbolsLeft -= count
	limit := uint64(maxUnsizedBytes)
	var rank uint32
	if dynamic {
		limit, rank = maxUnsizedDynamicBytes, rankDynamic
	}
	found := false
	buf := make([]byte, min(count, 2048)*uint64(width))
	r := io.NewSectionReader(f.reader, off, int64(count)*int64(width))
	for count > 0 {
		n, err := io.ReadFull(r, buf)
		count -= min(count, uint64(len(buf)/width))
		for p := buf[:n]; len(p) >= width; p = p[width:] {
			if b.addSym(f.decodeSym(p), names, limit, rank) {
				found = true
			}
		}
		if err != nil {
			break
		}
	}
	return found
}

// addSym adds a symbol if it names code.
func (b *builder) addSym(s sym, names *nameSource, limit uint64, rank uint32) bool {
	kind, bind := elf.ST_TYPE(s.info), elf.ST_BIND(s.info)
	section := elf.SectionIndex(s.shndx)
	if section == elf.SHN_UNDEF || section == elf.SHN_ABS || section == elf.SHN_COMMON || s.name == 0 || s.name >= names.size {
		return false
	}
	switch kind {
	case elf.STT_FUNC, elf.STT_GNU_IFUNC:
		rank |= rankFunction
	case elf.STT_NOTYPE:
	default:
		return false
	}
	end, ok := b.spanEnd(s.value)
	if !ok || s.value < b.base || s.value-b.base > math.MaxUint32-maxFunctionBytes {
		return false
	}
	room := min(end-s.value, maxFunctionBytes)
	if s.size > 0 {
		rank |= rankSized
		s.size = min(s.size, room)
	} else {
		s.size = min(limit, room)
	}
	switch bind {
	case elf.STB_LOCAL:
		if kind == elf.STT_NOTYPE && b.isMark(names, s.name) {
			return false
		}
	case elf.STB_WEAK:
		rank |= rankExported
	default:
		rank |= rankExported | rankGlobal
	}
	b.raws = append(b.raws, raw{off: uint32(s.value - b.base), size: uint32(s.size), name: names.first + s.name, rank: rank})
	return true
}

// isMark says if a local label is a note of the tools and not a name: mapping
// symbols ($x, $d: ELF for the Arm 64-bit Architecture, 5.5.5), local labels
// (.L), notes of GCC's annobin plug-in.
func (b *builder) isMark(names *nameSource, name uint32) bool {
	var buf [8]byte
	s := string(names.read(buf[:], name))
	return s == "" || s[0] == '$' || strings.HasPrefix(s, ".L") || strings.HasPrefix(s, ".annobin"[:len(buf)])
}

func (b *builder) sort() {
	slices.SortFunc(b.raws, func(x, y raw) int {
		return cmp.Or(cmp.Compare(x.off, y.off), cmp.Compare(x.name, y.name))
	})
}

// best chooses among symbols of the same address.
func (b *builder) best(group []raw) raw {
	win := group[0]
	for _, r := range group[1:] {
		if c := cmp.Compare(r.rank&rankTie, win.rank&rankTie); c > 0 || c == 0 && b.nicer(r, win) {
			win = r
		}
	}
	return win
}

// nicer says if x is a better name than y, which starts at the same address
// and is as good by its attributes.
func (b *builder) nicer(x, y raw) bool {
	if x.name == y.name {
		return false
	}
	xn := trimVersion(b.names.at(x.name))
	xs := string(xn)
	ys := string(trimVersion(b.names.at(y.name)))
	return cmp.Or(
		cmp.Compare(underscores(xs), underscores(ys)),
		-cmp.Compare(x.rank&rankGlobal, y.rank&rankGlobal),
		cmp.Compare(len(xs), len(ys)),
		strings.Compare(xs, ys),
	) < 0
}

func underscores(s string) int { return len(s) - len(strings.TrimLeft(s, "_")) }

// flatten makes the look-up table of the sorted symbols. It walks up the
// addresses with the stack of sized symbols that are open there: where an
// inner one ends, a row sends look-ups back to the one around it.
func (b *builder) flatten() []entry {
	type scope struct{ end, index uint32 }
	var open []scope
	out := make([]entry, 0, len(b.raws))
	emit := func(e entry) uint32 {
		if n := len(out); n > 0 && out[n-1].off == e.off && out[n-1].size&flagResume != 0 {
			out = out[:n-1]
		}
		out = append(out, e)
		return uint32(len(out) - 1)
	}
	closeUntil := func(off uint32) {
		for len(open) > 0 && open[len(open)-1].end <= off {
			end := open[len(open)-1].end
			for len(open) > 0 && open[len(open)-1].end <= end {
				open = open[:len(open)-1]
			}
			if len(open) > 0 {
				emit(entry{off: end, size: flagResume | open[len(open)-1].index})
			}
		}
	}
	for i := 0; i < len(b.raws); {
		n := i + 1
		for n < len(b.raws) && b.raws[n].off == b.raws[i].off {
			n++
		}
		group := b.raws[i:n]
		i = n
		win := b.best(group)
		closeUntil(win.off)
		if win.rank&rankSized == 0 {
			if len(open) > 0 {
				continue // a label inside a function
			}
			if n < len(b.raws) {
				win.size = min(win.size, b.raws[n].off-win.off)
			}
			emit(entry{off: win.off, size: win.size, name: win.name})
			continue
		}
		// An alias that is longer than the winner names what lies behind it.
		// It has no address of its own in the table, so find sees only the
		// row that resumes it.
		longest := win
		for _, r := range group {
			if r.rank&rankSized != 0 && r.size&maxFunctionBytes > longest.size&maxFunctionBytes {
				longest = r
			}
		}
		if longest.size&maxFunctionBytes > win.size&maxFunctionBytes {
			open = append(open, scope{win.off + longest.size&maxFunctionBytes, emit(entry{longest.off, longest.size, longest.name})})
		}
		open = append(open, scope{win.off + win.size&maxFunctionBytes, emit(entry{win.off, win.size, win.name})})
	}
	closeUntil(math.MaxUint32)
	return append(make([]entry, 0, len(out)), out...)
}

// compact copies the names of one source that are still in use into memory:
// the decompressed MiniDebugInfo that they come from is several times larger.
func (t *symbolTable) compact(source int) {
	s := &t.sources[source]
	var blob []byte
	buf := make([]byte, maxNameBytes)
	for i := range t.entries {
		e := &t.entries[i]
		if e.size&flagResume != 0 || e.name < s.first || e.name-s.first >= s.size {
			continue
		}
		name := s.read(buf, e.name-s.first)
		if uint64(len(blob)+len(name)+1) > uint64(s.size) {
			e.size &= flagPLT // names overlap in a way that no string table does
			continue
		}
		e.name = s.first + uint32(len(blob))
		blob = append(append(blob, name...), 0)
	}
	blob = append(make([]byte, 0, len(blob)), blob...)
	s.r, s.off, s.resident = bytes.NewReader(blob), 0, len(blob)
	s.size = min(s.size, uint32(len(blob)))
}

// nameWindow reads names while the table is built, when many are compared.
type nameWindow struct {
	b      *builder
	source *nameSource
	first  uint32 // offset in the source of buf[0]
	buf    []byte
}

// at returns a name; it is valid until the next call.
func (w *nameWindow) at(name uint32) []byte {
	s := findSource(w.b.sources, name)
	if s == nil {
		return nil
	}
	off := name - s.first
	if w.source == s && off >= w.first && off-w.first < uint32(len(w.buf)) {
		rest := w.buf[off-w.first:]
		if i := bytes.IndexByte(rest, 0); i >= 0 {
			return rest[:min(i, maxNameBytes)]
		}
	}
	w.source, w.first = s, 0
	size := s.size
	if size > maxNamesResident {
		w.first = off &^ 4095
		size = min(s.size-w.first, 64<<10)
	}
	if uint32(cap(w.buf)) < size {
		w.buf = make([]byte, size)
	}
	n, _ := s.r.ReadAt(w.buf[:size], s.off+int64(w.first))
	w.buf = w.buf[:n]
	if off-w.first >= uint32(n) {
		return nil
	}
	rest := w.buf[off-w.first:]
	if i := bytes.IndexByte(rest, 0); i >= 0 {
		rest = rest[:i]
	}
	return rest[:min(len(rest), maxNameBytes)]
}
