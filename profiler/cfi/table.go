package cfi

import (
	"debug/elf"
	"sort"
)

const (
	// hdrStride is the number of .eh_frame_hdr entries under one sparse key:
	// with 8-byte entries a block is 2 KiB, a quarter of a window. Chromium's
	// 700,000 FDEs cost 22 KiB this way instead of 5.6 MB.
	hdrStride = 256
	// maxHdrBytes bounds the search table read while opening.
	maxHdrBytes = 64 << 20
	// maxScanned bounds the FDEs listed in memory at 8 bytes each, for files
	// without a usable search table.
	maxScanned = 4 << 20
	// maxCIEs bounds the cache of decoded CIEs. Linkers merge equal ones:
	// libraries have 2 to 30.
	maxCIEs = 512
)

// table lists the FDEs of one section by start address, either through the
// search table in .eh_frame_hdr, of which only every 256th key is held, or
// from a scan.
type table struct {
	src  *source // holds the FDEs
	eh   bool    // .eh_frame, not .debug_frame
	base bases
	n    int

	hdr    *source // the entries of the search table
	enc    uint8
	width  int // of one value; an entry is two
	sparse []uint64

	low    uint64 // scanned: starts are relative to it
	starts []uint32
	offs   []uint32

	held int // bytes of src held in memory
}

func (t *table) bytes() int { return 8*len(t.sparse) + 4*len(t.starts) + 4*len(t.offs) + t.held }

// entry gives the start of FDE i and its offset in src.
func (t *table) entry(rd *reader, i int) (start, off uint64, ok bool) {
	if t.hdr == nil {
		return t.low + uint64(t.starts[i]), uint64(t.offs[i]), true
	}
	at := uint64(i) * uint64(2*t.width)
	// Ask for the whole block so that a window serves the walk that follows.
	b := rd.bytes(t.hdr, at, 2*t.width)
	if len(b) < 2*t.width {
		return 0, 0, false
	}
	start, vaddr := t.hdrEntry(b, t.hdr.vaddr+at)
	return start, vaddr - t.src.vaddr, true
}

func (t *table) hdrEntry(b []byte, vaddr uint64) (start, fde uint64) {
	c := cursor{b: b}
	start = c.raw(t.enc, 8) + t.relative(vaddr)
	fde = c.raw(t.enc, 8) + t.relative(vaddr+uint64(t.width))
	return start, fde
}

func (t *table) relative(vaddr uint64) uint64 {
	switch t.enc & 0x70 {
	case peDatarel:
		return t.base.data
	case pePcrel:
		return vaddr
	}
	return 0
}

// search returns the last FDE that starts at or before pc, or -1.
func (t *table) search(rd *reader, pc uint64) int {
	if t.hdr == nil {
		if pc < t.low {
			return -1
		}
		rel := pc - t.low
		return sort.Search(len(t.starts), func(i int) bool { return uint64(t.starts[i]) > rel }) - 1
	}
	block := sort.Search(len(t.sparse), func(i int) bool { return t.sparse[i] > pc }) - 1
	if block < 0 {
		return -1
	}
	first := block * hdrStride
	count := min(hdrStride, t.n-first)
	// One read for the block; the copies below come from its window.
	rd.bytes(t.hdr, uint64(first)*uint64(2*t.width), count*2*t.width)
	return first + sort.Search(count, func(i int) bool {
		start, _, ok := t.entry(rd, first+i)
		return !ok || start > pc
	}) - 1
}

// fde decodes FDE i up to its program. program is valid until the next read.
func (x *Index) fde(rd *reader, t *table, off uint64) (fde, error) {
	rec, err := readRecord(rd, t.src, off)
	if err != nil {
		return fde{}, err
	}
	if rec.length == 0 || rec.isCIE(t.eh) {
		return fde{}, errMalformed
	}
	ci, err := x.cie(rd, t, rec.cieOffset(t.eh))
	if err != nil {
		return fde{}, err
	}
	b, err := rec.contents(rd, t.src)
	if err != nil {
		return fde{}, err
	}
	return parseFDE(b, t.src.vaddr+rec.body+uint64(rec.idSize), ci, &t.base)
}

type cieKey struct {
	t   *table
	off uint64
}

// cie returns the CIE at off, decoded once.
func (x *Index) cie(rd *reader, t *table, off uint64) (*cie, error) {
	key := cieKey{t, off}
	if rd.last == key && rd.lastCIE != nil {
		return rd.lastCIE, nil
	}
	x.mu.Lock()
	ci, ok := x.cies[key]
	x.mu.Unlock()
	if ok {
		if ci == nil {
			return nil, errMalformed
		}
		rd.last, rd.lastCIE = key, ci
		return ci, nil
	}
	ci, err := x.readCIE(rd, t, off)
	x.mu.Lock()
	if len(x.cies) >= maxCIEs {
		clear(x.cies)
	}
	x.cies[key] = ci
	x.mu.Unlock()
	return ci, err
}

func (x *Index) readCIE(rd *reader, t *table, off uint64) (*cie, error) {
	rec, err := readRecord(rd, t.src, off)
	if err != nil {
		return nil, err
	}
	if rec.length == 0 || !rec.isCIE(t.eh) {
		return nil, errMalformed
	}
	b, err := rec.contents(rd, t.src)
	if err != nil {
		return nil, err
	}
	return parseCIE(b, t.src.vaddr+rec.body+uint64(rec.idSize), x.arch, &t.base)
}

// hdrTable reads the head of .eh_frame_hdr at vaddr and checks that its search
// table can be used. It returns the address of .eh_frame in any case, 0 when
// the head is damaged.
func (x *Index) hdrTable(hdr *source, frames func(vaddr uint64) *source, b bases) (t *table, ehFrame uint64) {
	rd := &reader{}
	head := rd.bytes(hdr, 0, 4+16)
	if len(head) < 4 || head[0] != 1 {
		return nil, 0
	}
	b.data = hdr.vaddr
	c := cursor{b: head, off: 4}
	ehFrame = c.pointer(head[1], 8, hdr.vaddr, &b)
	if c.bad || head[1] == peOmit {
		return nil, 0
	}
	count := c.pointer(head[2], 8, hdr.vaddr, &b)
	if c.bad || head[2] == peOmit || head[3] == peOmit || count == 0 {
		return nil, ehFrame
	}
	t = &table{eh: true, base: b, enc: head[3], src: frames(ehFrame)}
	switch t.enc & 0x0f {
	case peUdata2, peSdata2:
		t.width = 2
	case peUdata4, peSdata4:
		t.width = 4
	case peAbsptr, peSigned, peUdata8, peSdata8:
		t.width = 8
	}
	if rel := t.enc & 0xf0; t.width == 0 || t.src == nil || rel != peAbsptr && rel != peDatarel && rel != pePcrel {
		return nil, ehFrame
	}
	at := uint64(c.off)
	if count > maxHdrBytes/uint64(2*t.width) || at > hdr.size || count*uint64(2*t.width) > hdr.size-at {
		return nil, ehFrame
	}
	t.n = int(count)
	t.hdr = &source{r: offsetReader{hdr.r, int64(at)}, vaddr: hdr.vaddr + at, size: count * uint64(2*t.width)}
	t.sparse = make([]uint64, 0, (t.n+hdrStride-1)/hdrStride)
	// A table out of order would lose FDEs: the section is scanned instead.
	last := uint64(0)
	for i := range t.n {
		start, _, ok := t.entry(rd, i)
		if !ok || start < last {
			return nil, ehFrame
		}
		last = start
		if i%hdrStride == 0 {
			t.sparse = append(t.sparse, start)
		}
	}
	return t, ehFrame
}

// scan lists the FDEs between from and to (offsets in src) that cover code.
// stopAtZero: the section's end is unknown, so a terminator ends it. skip
// tells addresses that another table covers.
func (x *Index) scan(src *source, eh bool, b bases, from, to uint64, stopAtZero bool, skip func(pc uint64) bool) *table {
	t := &table{src: src, eh: eh, base: b, low: ^uint64(0)}
	for _, r := range x.code {
		t.low = min(t.low, r.low)
	}
	rd := &reader{}
	type pair struct{ start, off uint32 }
	var list []pair
	for off := from; off+4 <= to && len(list) < maxScanned && off <= 0xffffffff; {
		rec, err := readRecord(rd, src, off)
		if err != nil {
			break
		}
		if rec.length == 0 && stopAtZero {
			break
		}
		if rec.length != 0 && !rec.isCIE(eh) {
			// Entries of discarded functions stay in the section with
			// address 0 or an empty range: they would hide real ones.
			f, err := x.fde(rd, t, off)
			if err == nil && f.end > f.start && x.inCode(f.start) && f.start-t.low <= 0xffffffff && (skip == nil || !skip(f.start)) {
				list = append(list, pair{uint32(f.start - t.low), uint32(off)})
			}
		}
		off = rec.next
	}
	if len(list) == 0 {
		return nil
	}
	sort.SliceStable(list, func(i, j int) bool { return list[i].start < list[j].start })
	t.n = len(list)
	t.starts, t.offs = make([]uint32, t.n), make([]uint32, t.n)
	for i, p := range list {
		t.starts[i], t.offs[i] = p.start, p.off
	}
	return t
}

// span is a range of addresses.
type span struct{ low, high uint64 }

func (x *Index) inCode(pc uint64) bool {
	for _, r := range x.code {
		if pc >= r.low && pc < r.high {
			return true
		}
	}
	return false
}

// segment returns the loadable segment that holds file bytes for vaddr.
func segment(f *elf.File, vaddr uint64) *source {
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD && vaddr >= p.Vaddr && vaddr-p.Vaddr < p.Filesz {
			return &source{r: p.ReaderAt, vaddr: p.Vaddr, size: p.Filesz}
		}
	}
	return nil
}
