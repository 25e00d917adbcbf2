package dwarf

import (
	"cmp"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

// Limits of the index. Chromium has 40000 units; the ranges of its functions
// merge to about one per function section.
const (
	maxUnits      = 1 << 18
	maxUnitRanges = 1 << 21
	// An index over 1 MiB takes the padding between functions as part of the
	// unit: such addresses then have a line though no function.
	exactRanges = 1 << 16
)

// image is one file's debug sections.
type image struct {
	id          uint8
	info, types space
	abbrev      *section
	sections    []*section

	// Windows for reads here and there, kept so that neighbours share a read.
	str, lineStr, strOffsets, addr, ranges, rnglists *cursor
	line, aranges                                    *section
}

// space is a section of units: .debug_info, or .debug_types of DWARF 4.
type space struct {
	id      uint8
	image   *image
	sec     *section
	units   []unitHead
	scanned bool
	types   map[uint64]uint64 // signature → offset of the type's DIE
	cur     *cursor           // for single DIEs
}

// unitHead is a unit's header.
type unitHead struct {
	off, end, abbrev uint64
	size             uint8 // of the header
	version          uint8
	addrSize         uint8
	kind             uint8 // DW_UT_ of DWARF 5, made up for older units
	wide             bool  // 64-bit DWARF
}

const (
	unitCompile      = 1
	unitType         = 2
	unitPartial      = 3
	unitSkeleton     = 4
	unitSplitCompile = 5
	unitSplitType    = 6
)

// unitRange says which unit covers [low, high). reach is the highest end of
// all ranges up to this one.
type unitRange struct {
	low, high, reach uint32
	unit             int32
}

func openImage(f *elffile.File, id uint8) (*image, error) {
	im := &image{id: id}
	// dwz writes alternative files as ET_REL; they have no relocations.
	if f.ELF.ByteOrder != binary.LittleEndian || f.ELF.Type == elf.ET_REL && id == 0 {
		return nil, fmt.Errorf("%s is not a linked little-endian file: %w", f.Path(), ErrNoDebug)
	}
	var err error
	open := func(name string) *section {
		s, e := openSection(f, name)
		if e != nil {
			if err == nil {
				err = e
			}
			return nil
		}
		im.sections = append(im.sections, s)
		return s
	}
	window := func(name string, chunk int) *cursor {
		if s := open(name); s != nil {
			return &cursor{sec: s, chunk: chunk}
		}
		return nil
	}
	im.info = space{id: 2 * id, image: im, sec: open("info")}
	im.types = space{id: 2*id + 1, image: im, sec: open("types")}
	im.abbrev, im.line, im.aranges = open("abbrev"), open("line"), open("aranges")
	im.str, im.lineStr = window("str", 512), window("line_str", 512)
	im.strOffsets, im.addr = window("str_offsets", 512), window("addr", 4096)
	im.ranges, im.rnglists = window("ranges", 4096), window("rnglists", 4096)
	if err != nil {
		return nil, err
	}
	im.info.cur = &cursor{sec: im.info.sec, chunk: 512}
	im.types.cur = &cursor{sec: im.types.sec, chunk: 512}
	return im, nil
}

func (im *image) packed() (n uint64) {
	for _, s := range im.sections {
		if p := s.packed(); p > 1<<40 {
			n += 1 << 40 // no overflow from hostile headers
		} else {
			n += p
		}
	}
	return n
}

func (im *image) bytes() (n int) {
	for _, s := range im.sections {
		n += len(s.data)
	}
	for _, sp := range []*space{&im.info, &im.types} {
		n += 40*cap(sp.units) + 40*len(sp.types)
	}
	return n
}

// at moves a shared window and makes sure that its section is inflated.
func (c *cursor) at(off uint64) *cursor {
	if err := c.sec.load(); err != nil {
		c.err = err
	}
	c.reset(off, c.sec.size)
	return c
}

// scan reads all unit headers. It stops at the first malformed one: lengths
// are the only way from unit to unit.
func (sp *space) scan() {
	if sp.scanned {
		return
	}
	sp.scanned = true
	c := newCursor(sp.sec, 0, sp.sec.size, 64)
	for off := uint64(0); off < sp.sec.size && len(sp.units) < maxUnits; {
		c.seek(off)
		length, wide := c.initialLength()
		start := c.off()
		if c.err != nil || length > sp.sec.size-start {
			return
		}
		h := unitHead{off: off, end: start + length, wide: wide}
		version := c.u16()
		switch {
		case version == 5:
			h.kind, h.addrSize, h.abbrev = c.u8(), c.u8(), c.offset(wide)
			switch h.kind {
			case unitType, unitSplitType:
				c.skip(8)
				c.offset(wide)
			case unitSkeleton, unitSplitCompile:
				c.skip(8)
			}
		case version >= 2 && version <= 4:
			h.kind, h.abbrev, h.addrSize = unitCompile, c.offset(wide), c.u8()
			if sp == &sp.image.types {
				h.kind = unitType
				c.skip(8)
				c.offset(wide)
			}
		}
		if c.err != nil {
			return
		}
		off = h.end
		if version < 2 || version > 5 || c.off() > h.end || h.addrSize != 4 && h.addrSize != 8 {
			continue
		}
		h.version, h.size = uint8(version), uint8(c.off()-h.off)
		sp.units = append(sp.units, h)
	}
}

// unitAt is the unit that the DIE at off belongs to, or nil.
func (sp *space) unitAt(off uint64) *unitHead {
	sp.scan()
	i := upper(len(sp.units), func(i int) bool { return sp.units[i].off > off }) - 1
	if i < 0 || off >= sp.units[i].end || off < sp.units[i].off+uint64(sp.units[i].size) {
		return nil
	}
	return &sp.units[i]
}

// signature finds the type unit with a signature.
func (im *image) signature(sig uint64) (*space, uint64, bool) {
	for _, sp := range []*space{&im.types, &im.info} {
		if sp.sec.size == 0 {
			continue
		}
		sp.scan()
		if sp.types == nil {
			sp.types = map[uint64]uint64{}
			c := newCursor(sp.sec, 0, sp.sec.size, 64)
			for i := range sp.units {
				h := &sp.units[i]
				if h.kind != unitType && h.kind != unitSplitType {
					continue
				}
				tail := uint64(8 + 4)
				if h.wide {
					tail = 8 + 8
				}
				c.seek(h.off + uint64(h.size) - tail)
				s := c.u64()
				if off := c.offset(h.wide); c.err == nil && off < h.end-h.off {
					sp.types[s] = h.off + off
				}
			}
		}
		if off, ok := sp.types[sig]; ok {
			return sp, off, true
		}
	}
	return nil, 0, false
}

// bases are what a unit's forms are relative to.
type bases struct {
	low                uint64
	str, addr, rnglist uint64
}

// root is what is needed of a unit's first DIE.
type root struct {
	bases
	lowPC, highPC, ranges value // form 0: absent
	stmtList, compDir     value
	name                  value
	language              uint16
	children              bool
}

// readRoot reads the unit DIE at c with an abbreviation looked up by find.
func (im *image) readRoot(h *unitHead, c *cursor, find func(code uint64) (abbrev, bool)) (root, error) {
	r := root{}
	// Defaults for units without a base attribute: right after the header of
	// the first table (DWARF 5, 7.26 to 7.29). Before DWARF 5: 0.
	if h.version >= 5 {
		r.str, r.addr, r.rnglist = 8, 8, 12
		if h.wide {
			r.str, r.addr, r.rnglist = 16, 16, 20
		}
	}
	c.reset(h.off+uint64(h.size), h.end)
	code := c.uleb()
	if c.err != nil {
		return r, c.err
	}
	if code == 0 {
		return r, errMalformed
	}
	a, ok := find(code)
	if !ok {
		return r, errMalformed
	}
	r.children = a.children
	for _, spec := range a.attrs {
		v := h.read(c, spec)
		if c.err != nil {
			return r, c.err
		}
		switch spec.attr {
		case attrLowPC:
			r.lowPC = v
		case attrHighPC:
			r.highPC = v
		case attrRanges:
			r.ranges = v
		case attrStmtList:
			r.stmtList = v
		case attrName:
			r.name = v
		case attrCompDir:
			r.compDir = v
		case attrLanguage:
			r.language = uint16(v.u)
		case attrStrBase:
			r.str = v.u
		case attrAddrBase, attrGNUAddrBase:
			r.addr = v.u
		case attrRngBase:
			r.rnglist = v.u
		}
	}
	if r.lowPC.form != 0 {
		r.low, _ = im.address(h, &r.bases, r.lowPC)
	}
	return r, nil
}

// buildIndex finds the units' addresses: from .debug_aranges for the units it
// has, else from the units' first DIEs.
func (d *Data) buildIndex() error {
	im := d.main
	if err := im.info.sec.load(); err != nil {
		return err
	}
	im.info.scan()
	units := im.info.units
	if len(units) == 0 {
		return fmt.Errorf("read units: %w", errMalformed)
	}
	covered := make([]bool, len(units))
	d.readAranges(covered)
	c := newCursor(im.info.sec, 0, im.info.sec.size, 256)
	ab := newCursor(im.abbrev, 0, im.abbrev.size, 256)
	var room []attrSpec
	for i := range units {
		h := &units[i]
		if covered[i] || h.kind != unitCompile && h.kind != unitSkeleton {
			continue
		}
		r, err := im.readRoot(h, c, func(code uint64) (abbrev, bool) {
			ab.reset(h.abbrev, im.abbrev.size)
			a, attrs, ok := findAbbrev(ab, code, room)
			room = attrs
			return a, ok
		})
		if err != nil {
			continue
		}
		err = d.codeRanges(im, h, &r.bases, r.lowPC, r.highPC, r.ranges, func(low, high uint32) bool {
			return d.addRange(low, high, int32(i))
		})
		if err != nil {
			return err
		}
	}
	slices.SortFunc(d.index, func(a, b unitRange) int {
		return cmp.Or(cmp.Compare(a.low, b.low), cmp.Compare(b.high, a.high))
	})
	d.index = merge(d.index, 0)
	if len(d.index) > exactRanges {
		d.index = merge(d.index, 64)
	}
	d.index = slices.Clone(d.index)
	has := map[int32]struct{}{}
	reach := uint32(0)
	for i := range d.index {
		reach = max(reach, d.index[i].high)
		d.index[i].reach = reach
		has[d.index[i].unit] = struct{}{}
	}
	d.stats.Units = len(has)
	return nil
}

func (d *Data) addRange(low, high uint32, unit int32) bool {
	if n := len(d.index); n > 0 && d.index[n-1].unit == unit && d.index[n-1].high == low {
		d.index[n-1].high = high
		return true
	}
	if len(d.index) >= maxUnitRanges {
		return false
	}
	d.index = append(d.index, unitRange{low: low, high: high, unit: unit})
	return true
}

// merge joins neighbours of one unit that are at most gap bytes apart.
func merge(all []unitRange, gap uint32) []unitRange {
	out := all[:0]
	for _, r := range all {
		if n := len(out); n > 0 && out[n-1].unit == r.unit && r.low <= out[n-1].high+gap && r.low >= out[n-1].low {
			out[n-1].high = max(out[n-1].high, r.high)
			continue
		}
		out = append(out, r)
	}
	return out
}

// readAranges reads .debug_aranges as far as it is well-formed and marks the
// units that it gives code for.
func (d *Data) readAranges(covered []bool) {
	sec, units := d.main.aranges, d.main.info.units
	if sec.size == 0 {
		return
	}
	c := newCursor(sec, 0, sec.size, 16<<10)
	for off := uint64(0); off < sec.size; {
		c.seek(off)
		length, wide := c.initialLength()
		start := c.off()
		if c.err != nil || length > sec.size-start {
			return
		}
		off = start + length
		version, info := c.u16(), c.offset(wide)
		addrSize, segSize := c.u8(), c.u8()
		if c.err != nil {
			return
		}
		i := upper(len(units), func(i int) bool { return units[i].off > info }) - 1
		if version != 2 || segSize != 0 || addrSize != 4 && addrSize != 8 || i < 0 || units[i].off != info {
			continue
		}
		// Tuples are aligned to their size, counted from the set's start.
		set := start - 4
		if wide {
			set = start - 12
		}
		tuple := 2 * uint64(addrSize)
		if r := (c.off() - set) % tuple; r != 0 {
			c.skip(tuple - r)
		}
		for c.err == nil && c.off()+tuple <= off {
			low, size := c.uint(addrSize), c.uint(addrSize)
			if low == 0 && size == 0 {
				break
			}
			if from, to, ok := d.clip(low, low+size); ok && d.addRange(from, to, int32(i)) {
				covered[i] = true
			}
		}
		if c.err != nil {
			return
		}
	}
}
