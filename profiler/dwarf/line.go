package dwarf

import (
	"cmp"
	"fmt"
	"math"
	"path"
	"slices"
	"unsafe"

	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

// lineTable indexes a unit's line program without keeping its rows: where each
// sequence of addresses is in the program, and the machine's state every
// markBytes, from where a look-up runs on. Chromium-sized units would
// otherwise take tens of megabytes of rows.
type lineTable struct {
	off       uint64
	head      unitHead // version, addrSize and wide of the table itself
	tables    uint64   // offset of the folder and file tables
	prog, end uint64   // the line program
	minInst   uint64
	maxOps    uint64
	lineBase  int8
	lineRange uint8
	opBase    uint8
	opLengths []uint8 // operands of opcode i+1
	sequences []sequence
	marks     []mark
}

// sequence is a run of rows for one range of addresses.
type sequence struct {
	low, high, reach uint32
	first, count     uint32 // its marks
	unsorted         bool   // addresses go backwards: always read from the start
}

// mark is the state after the row at addr; the first of a sequence is before
// any row.
type mark struct{ addr, off, file, line uint32 }

const (
	markBytes = 2 << 10
	// A sequence whose addresses go backwards is read whole on each look-up.
	maxUnsorted = 1 << 20
)

func (t *lineTable) bytes() int {
	return int(unsafe.Sizeof(*t)) + len(t.opLengths) + 24*cap(t.sequences) + 16*cap(t.marks)
}

// lineState is the state machine of DWARF 5, 6.2.2, as far as it matters.
type lineState struct {
	addr, op   uint64
	file, line uint32
}

func (d *Data) readLines(u *unit) (*lineTable, error) {
	off := u.root.stmtList.u
	t, err := parseLineHeader(d.main.line, off, u.head.addrSize)
	if err == nil {
		err = d.indexLines(t)
	}
	if err != nil {
		return nil, fmt.Errorf("read line table at %#x: %w", off, err)
	}
	return t, nil
}

func parseLineHeader(sec *section, off uint64, addrSize uint8) (*lineTable, error) {
	c := newCursor(sec, off, sec.size, 1<<10)
	t := &lineTable{off: off}
	length, wide := c.initialLength()
	start := c.off()
	if c.err != nil {
		return nil, c.err
	}
	if length > sec.size-start {
		return nil, ErrTruncated
	}
	t.end = start + length
	version := c.u16()
	if c.err == nil && (version < 2 || version > 5) {
		return nil, fmt.Errorf("version %d: %w", version, errMalformed)
	}
	t.head = unitHead{version: uint8(version), addrSize: addrSize, wide: wide}
	if version == 5 {
		t.head.addrSize = c.u8()
		c.u8() // size of segment selectors
	}
	headerLength := c.offset(wide)
	start = c.off()
	if c.err == nil && (headerLength > t.end-start || start > t.end) {
		return nil, ErrTruncated
	}
	t.prog = start + headerLength
	t.minInst, t.maxOps = uint64(c.u8()), 1
	if version >= 4 {
		t.maxOps = max(1, uint64(c.u8()))
	}
	c.u8() // default_is_stmt: every row counts, as for addr2line
	t.lineBase, t.lineRange, t.opBase = int8(c.u8()), c.u8(), c.u8()
	if c.err == nil && (t.lineRange == 0 || t.opBase == 0) {
		return nil, errMalformed
	}
	t.opLengths = make([]uint8, max(1, t.opBase)-1)
	for i := range t.opLengths {
		t.opLengths[i] = c.u8()
	}
	t.tables = c.off()
	if c.err == nil && t.tables > t.prog {
		return nil, errMalformed
	}
	if t.end-t.prog > math.MaxUint32 {
		return nil, elffile.ErrTooLarge
	}
	return t, c.err
}

// step runs one instruction; row says that it made a row, end that it was the
// end of a sequence.
func (t *lineTable) step(c *cursor, s *lineState) (row, end bool) {
	op := c.u8()
	if c.err != nil {
		return false, false
	}
	if op >= t.opBase {
		adjusted := op - t.opBase
		t.advance(s, uint64(adjusted/t.lineRange))
		s.line += uint32(int32(t.lineBase) + int32(adjusted%t.lineRange))
		return true, false
	}
	switch op { // DW_LNS_
	case 0:
		return t.extended(c, s)
	case 1: // copy
		return true, false
	case 2: // advance_pc
		t.advance(s, c.uleb())
	case 3: // advance_line
		s.line += uint32(c.sleb())
	case 4: // set_file
		s.file = uint32(min(c.uleb(), math.MaxUint32))
	case 5, 12: // set_column, set_isa
		c.uleb()
	case 6, 7, 10, 11: // negate_stmt, basic_block, prologue_end, epilogue_begin
	case 8: // const_add_pc
		t.advance(s, uint64((255-t.opBase)/t.lineRange))
	case 9: // fixed_advance_pc
		s.addr += uint64(c.u16())
		s.op = 0
	default:
		for range t.opLengths[op-1] {
			c.uleb()
		}
	}
	return false, false
}

func (t *lineTable) advance(s *lineState, by uint64) {
	if t.maxOps == 1 {
		s.addr += t.minInst * by
		return
	}
	s.addr += t.minInst * ((s.op + by) / t.maxOps)
	s.op = (s.op + by) % t.maxOps
}

func (t *lineTable) extended(c *cursor, s *lineState) (row, end bool) {
	size := c.uleb()
	start := c.off()
	if c.err == nil && (size == 0 || size > t.end-start) {
		c.fail(errMalformed)
	}
	if c.err != nil {
		return false, false
	}
	switch c.u8() { // DW_LNE_
	case 1: // end_sequence
		row, end = true, true
	case 2: // set_address
		s.addr, s.op = c.uint(uint8(min(size-1, 255))), 0
	}
	if c.err == nil {
		c.seek(start + size)
	}
	return row, end
}

// indexLines runs the whole program once. Sequences of code that is not in the
// file are dropped, and what follows a malformed instruction.
func (d *Data) indexLines(t *lineTable) error {
	c := newCursor(d.main.line, t.prog, t.end, 64<<10)
	if c.err != nil {
		return c.err
	}
	room := d.opt.Budget / 4 / 16
	s := lineState{file: 1, line: 1}
	var q sequence
	var low, prev uint64
	rows := 0
	begin := func() {
		s = lineState{file: 1, line: 1}
		q = sequence{first: uint32(len(t.marks))}
		t.marks = append(t.marks, mark{off: uint32(c.off() - t.prog), file: 1, line: 1})
		rows = 0
	}
	begin()
	for c.err == nil && c.off() < t.end && d.burn() {
		row, end := t.step(c, &s)
		if !row || c.err != nil {
			continue
		}
		if rows == 0 {
			low, prev = s.addr, s.addr
			t.marks[q.first].addr = uint32(s.addr - d.base)
		}
		rows++
		if s.addr < prev {
			q.unsorted = true
			low = min(low, s.addr)
		}
		prev = s.addr
		at := uint32(c.off() - t.prog)
		if !end {
			if !q.unsorted && s.op == 0 && at-t.marks[len(t.marks)-1].off >= markBytes {
				t.marks = append(t.marks, mark{uint32(s.addr - d.base), at, s.file, s.line})
			}
			continue
		}
		from, to, ok := d.clip(low, s.addr)
		if q.unsorted {
			t.marks = t.marks[:q.first+1]
			t.marks[q.first].addr = from
			ok = ok && at-t.marks[q.first].off <= maxUnsorted
		}
		if ok {
			q.low, q.high, q.count = from, to, uint32(len(t.marks))-q.first
			t.sequences = append(t.sequences, q)
		} else {
			t.marks = t.marks[:q.first]
		}
		if len(t.sequences)+len(t.marks) > room {
			return elffile.ErrTooLarge
		}
		begin()
	}
	t.marks = slices.Clip(t.marks[:q.first])
	slices.SortStableFunc(t.sequences, func(a, b sequence) int { return cmp.Compare(a.low, b.low) })
	t.sequences = slices.Clip(t.sequences)
	reach := uint32(0)
	for i := range t.sequences {
		reach = max(reach, t.sequences[i].high)
		t.sequences[i].reach = reach
	}
	return nil
}

// find gives the file and line of the last row at or before pc.
func (t *lineTable) find(d *Data, pc uint32) (file, line uint32, err error) {
	next := upper(len(t.sequences), func(i int) bool { return t.sequences[i].low > pc })
	for i, tries := next-1, 0; i >= 0 && t.sequences[i].reach > pc && tries < 16; i, tries = i-1, tries+1 {
		if t.sequences[i].high > pc {
			return t.findIn(d, &t.sequences[i], pc)
		}
	}
	return 0, 0, ErrNoInfo
}

func (t *lineTable) findIn(d *Data, q *sequence, pc uint32) (file, line uint32, err error) {
	marks := t.marks[q.first : q.first+q.count]
	i := max(0, upper(len(marks), func(i int) bool { return marks[i].addr > pc })-1)
	m := marks[i]
	best, found := mark{}, false
	s := lineState{file: m.file, line: m.line}
	if i > 0 {
		s.addr = d.base + uint64(m.addr)
		best, found = m, true
	}
	c := newCursor(d.main.line, t.prog+uint64(m.off), t.end, markBytes+256)
	for c.err == nil && d.burn() {
		row, end := t.step(c, &s)
		if !row || c.err != nil {
			continue
		}
		if end {
			break
		}
		at := uint32(s.addr - d.base)
		if at > pc {
			if q.unsorted {
				continue
			}
			break
		}
		if !found || at >= best.addr {
			best, found = mark{addr: at, file: s.file, line: s.line}, true
		}
	}
	if c.err != nil {
		return 0, 0, c.err
	}
	if !found {
		return 0, 0, ErrNoInfo
	}
	return best.file, best.line, nil
}

// fileName is the path of a file of the unit's line table.
func (d *Data) fileName(u *unit, index uint32) string {
	t := u.lines
	if t == nil {
		return ""
	}
	key := cacheKey{kind: kindFile, off: t.off, n: index}
	if s, ok := d.cache.get(key).(string); ok {
		return s
	}
	name, dir, whole := d.readFile(u, t, index)
	if name != "" && !path.IsAbs(name) {
		if !whole && !path.IsAbs(dir) {
			dir = path.Join(u.compDir, dir)
		}
		name = path.Join(dir, name)
	}
	if name != "" {
		name = path.Clean(name)
	}
	d.cache.put(key, name, len(name)+16)
	return name
}

// readFile walks the header's tables to one file and its folder. whole says
// that the folder is not relative to the unit's: folder 0 of DWARF 5 is the
// unit's own, which may itself be relative (glibc is built that way).
func (d *Data) readFile(u *unit, t *lineTable, index uint32) (name, dir string, whole bool) {
	c := newCursor(d.main.line, t.tables, t.prog, 4<<10)
	if t.head.version >= 5 {
		d.readEntry(u, t, c, math.MaxUint64)
		name, folder, ok := d.readEntry(u, t, c, uint64(index))
		if !ok || path.IsAbs(name) {
			return name, "", true
		}
		c.reset(t.tables, t.prog)
		dir, _, _ = d.readEntry(u, t, c, folder)
		return name, dir, folder == 0 && dir != ""
	}
	// include_directories: strings up to an empty one. The file table follows.
	for c.u8() != 0 {
		c.skipString()
	}
	for n := uint32(1); c.err == nil && n <= index; n++ {
		if n == index {
			name = c.str()
		} else {
			start := c.off()
			c.skipString()
			if c.off() == start+1 {
				return "", "", false
			}
		}
		folder := c.uleb()
		c.uleb()
		c.uleb()
		if n < index || c.err != nil || name == "" {
			continue
		}
		if folder == 0 {
			return name, "", false
		}
		c.reset(t.tables, t.prog)
		for n := uint64(1); c.err == nil; n++ {
			s := ""
			if n == folder {
				s = c.str()
			} else {
				start := c.off()
				c.skipString()
				if c.off() == start+1 {
					break
				}
			}
			if n == folder {
				return name, s, false
			}
		}
		return name, "", false
	}
	return "", "", false
}

// readEntry reads a table of folders or files of DWARF 5, 6.2.4.1, up to and
// with the entry wanted; up to the end when there is no such entry.
func (d *Data) readEntry(u *unit, t *lineTable, c *cursor, want uint64) (name string, dir uint64, ok bool) {
	type column struct {
		content uint64
		spec    attrSpec
	}
	var columns [16]column
	n := int(c.u8())
	if n > len(columns) {
		c.fail(errMalformed)
		return "", 0, false
	}
	for i := range n {
		columns[i].content = c.uleb()
		columns[i].spec.form = uint16(min(c.uleb(), 0xffff))
	}
	count := c.uleb()
	for i := uint64(0); i < count && c.err == nil && d.burn(); i++ {
		for _, col := range columns[:n] {
			if i == want && col.content == 1 && col.spec.form == formString { // DW_LNCT_path
				name = c.str()
				continue
			}
			v := t.head.read(c, col.spec)
			if i != want || c.err != nil {
				continue
			}
			switch col.content {
			case 1:
				name = d.string(d.main, &t.head, &u.root.bases, v)
			case 2: // DW_LNCT_directory_index
				dir = v.u
			}
		}
		if i == want {
			return name, dir, c.err == nil
		}
	}
	return "", 0, false
}
