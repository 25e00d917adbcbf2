package dwarf

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

// unit is a unit whose functions are indexed. Their inlined calls are not:
// see function.
type unit struct {
	head      *unitHead
	root      root
	compDir   string
	functions []span // id: the subprogram's DIE, from the start of the unit
	lines     *lineTable
	linesErr  error // why lines is nil
}

// span says what holds from low on until the next span: a DIE or the number of
// a scope. id 0 is a gap or the outermost scope.
type span struct{ low, id uint32 }

func findSpan(spans []span, pc uint32) uint32 {
	i := upper(len(spans), func(i int) bool { return spans[i].low > pc })
	if i == 0 {
		return 0
	}
	return spans[i-1].id
}

// function is one function's tree of inlined calls.
type function struct {
	spans  []span
	scopes []scope // 0: the function itself
}

// scope is a subprogram or an inlined call. file and line are where the
// inlined call is made, in its parent.
type scope struct {
	die        uint32 // whose name is this scope's, from the start of the unit
	parent     uint32
	file, line uint32
}

// nested is a range on its way into spans.
type nested struct {
	low, high, id uint32
	depth         int32
}

// flatten turns ranges that may nest into spans of the innermost. Of equal
// ranges at one depth the first wins.
func flatten(all []nested) []span {
	slices.SortStableFunc(all, func(a, b nested) int {
		return cmp.Or(cmp.Compare(a.low, b.low), cmp.Compare(b.high, a.high), cmp.Compare(a.depth, b.depth))
	})
	var spans []span
	put := func(low, id uint32) {
		if n := len(spans); n > 0 && spans[n-1].low == low {
			spans = spans[:n-1]
		}
		if n := len(spans); n > 0 && spans[n-1].id == id || n == 0 && id == 0 {
			return
		}
		spans = append(spans, span{low, id})
	}
	var open []nested
	closeTo := func(low uint32) {
		for n := len(open); n > 0 && open[n-1].high <= low; n = len(open) {
			end := open[n-1].high
			open = open[:n-1]
			// Ranges that cross instead of nesting may have ended already.
			for n--; n > 0 && open[n-1].high <= end; n-- {
				open = open[:n-1]
			}
			if n > 0 {
				put(end, open[n-1].id)
			} else {
				put(end, 0)
			}
		}
	}
	for _, r := range all {
		closeTo(r.low)
		if n := len(open); n > 0 && open[n-1].low == r.low && open[n-1].high == r.high && open[n-1].depth == r.depth {
			continue
		}
		open = append(open, r)
		put(r.low, r.id)
	}
	closeTo(^uint32(0))
	return slices.Clip(spans)
}

// unit gives a unit with its functions and line table indexed.
func (d *Data) unit(h *unitHead) (*unit, error) {
	key := cacheKey{kind: kindUnit, space: d.main.info.id, off: h.off}
	if u, ok := d.cache.get(key).(*unit); ok {
		return u, nil
	}
	im := d.main
	u := &unit{head: h}
	table, err := d.abbrevs(im, h.abbrev)
	if err == nil {
		u.root, err = im.readRoot(h, im.info.cur, func(code uint64) (abbrev, bool) {
			if a := table.get(code); a != nil {
				return *a, true
			}
			return abbrev{}, false
		})
	}
	if err != nil {
		return nil, fmt.Errorf("read unit at %#x: %w", h.off, err)
	}
	u.compDir = d.dieString(&im.info, h, &u.root.bases, u.root.compDir)
	u.linesErr = ErrNoInfo
	if u.root.stmtList.form != 0 {
		u.lines, u.linesErr = d.readLines(u)
	}
	if u.root.children {
		if err := d.readFunctions(u, table); err != nil {
			d.stats.LinesOnly++
		}
	}
	bytes := 256 + len(u.compDir) + 8*cap(u.functions)
	if u.lines != nil {
		bytes += u.lines.bytes()
	}
	d.cache.put(key, u, bytes)
	return u, nil
}

// leaf says that no function is defined below a DIE of this kind. Compilers
// that write DW_AT_sibling (GCC) let these be jumped over.
func leaf(tag uint16) bool {
	switch tag {
	case tagArray, tagEnumeration, tagSubroutine, tagInlined, tagCallSite, tagGNUCallSite:
		return true
	}
	return false
}

// pcs are the attributes that say where a DIE's code is.
type pcs struct{ low, high, ranges value }

func (p *pcs) set(attr uint16, v value) {
	switch attr {
	case attrLowPC:
		p.low = v
	case attrHighPC:
		p.high = v
	case attrRanges:
		p.ranges = v
	}
}

// readFunctions finds the code of all subprograms of a unit. What was found
// before an error stays.
func (d *Data) readFunctions(u *unit, table *abbrevTable) error {
	h := u.head
	if h.end-h.off > d.opt.UnitBytes {
		return fmt.Errorf("unit of %d bytes: %w", h.end-h.off, elffile.ErrTooLarge)
	}
	c := newCursor(d.main.info.sec, h.off+uint64(h.size), h.end, 64<<10)
	var all []nested
	// Half of the budget: the rest is for what belongs to the unit.
	room := d.opt.Budget / 2 / 16
	depth := int32(0)
	var err error
	for c.err == nil && c.off() < h.end {
		if !d.burn() {
			err = elffile.ErrTooLarge
			break
		}
		die := uint32(c.off() - h.off)
		code := c.uleb()
		if code == 0 {
			if depth--; depth <= 0 {
				break
			}
			continue
		}
		a := table.get(code)
		if a == nil {
			err = errMalformed
			break
		}
		switch {
		case a.tag == tagSubprogram:
			var p pcs
			for _, spec := range a.attrs {
				p.set(spec.attr, h.read(c, spec))
			}
			if p.low.form|p.ranges.form == 0 || c.err != nil {
				break
			}
			err = d.codeRanges(d.main, h, &u.root.bases, p.low, p.high, p.ranges, func(low, high uint32) bool {
				all = append(all, nested{low, high, die, depth})
				return len(all) < room
			})
		case a.sibling && a.children && leaf(a.tag):
			if next := h.sibling(c, a); next != 0 {
				c.seek(next)
				continue
			}
		default:
			h.skip(c, a)
		}
		if err != nil {
			break
		}
		if a.children {
			depth++
		} else if depth == 0 {
			break
		}
	}
	u.functions = flatten(all)
	return errors.Join(err, c.err)
}

// sibling reads the attributes of a DIE and gives the offset of its sibling,
// 0 when that is not ahead.
func (h *unitHead) sibling(c *cursor, a *abbrev) uint64 {
	next := uint64(0)
	for _, spec := range a.attrs {
		if v := h.read(c, spec); spec.attr == attrSibling && v.form != formRefAddr && v.u < h.end-h.off {
			next = h.off + v.u
		}
	}
	if next <= c.off() || next > h.end {
		return 0
	}
	return next
}

// Limits of one function's tree. Functions with 20000 inlined calls exist.
const (
	maxScopes   = 1 << 18
	maxDIEDepth = 4096
)

// function reads the inlined calls of the subprogram at die.
func (d *Data) function(u *unit, die uint32) (*function, error) {
	h := u.head
	key := cacheKey{kind: kindFunction, off: h.off + uint64(die)}
	if f, ok := d.cache.get(key).(*function); ok {
		return f, nil
	}
	table, err := d.abbrevs(d.main, h.abbrev)
	if err != nil {
		return nil, err
	}
	f := &function{scopes: []scope{{die: die}}}
	var all []nested
	c := newCursor(d.main.info.sec, h.off+uint64(die), h.end, 8<<10)
	// enclosing[i] is the scope of the DIEs at depth i.
	enclosing := make([]uint32, 1, 16)
	for c.err == nil && c.off() < h.end {
		if !d.burn() {
			return nil, fmt.Errorf("function at %#x: %w", h.off+uint64(die), elffile.ErrTooLarge)
		}
		at := uint32(c.off() - h.off)
		code := c.uleb()
		if code == 0 {
			if enclosing = enclosing[:len(enclosing)-1]; len(enclosing) <= 1 {
				break
			}
			continue
		}
		a := table.get(code)
		if a == nil || len(enclosing) > maxDIEDepth {
			return nil, fmt.Errorf("function at %#x: %w", h.off+uint64(die), errMalformed)
		}
		inside := enclosing[len(enclosing)-1]
		switch {
		case a.tag == tagInlined && inside != outside:
			s := scope{die: at, parent: inside}
			var p pcs
			for _, spec := range a.attrs {
				v := h.read(c, spec)
				p.set(spec.attr, v)
				switch spec.attr {
				case attrCallFile:
					s.file = uint32(v.u)
				case attrCallLine:
					s.line = uint32(v.u)
				case attrAbstract:
					// Straight to the origin where that is in this unit.
					if v.form >= formRef1 && v.form <= formRefUdata && v.u < h.end-h.off {
						s.die = uint32(v.u)
					}
				}
			}
			if c.err != nil {
				break
			}
			inside = uint32(len(f.scopes))
			if inside >= maxScopes {
				return nil, fmt.Errorf("function at %#x: %w", h.off+uint64(die), elffile.ErrTooLarge)
			}
			f.scopes = append(f.scopes, s)
			err := d.codeRanges(d.main, h, &u.root.bases, p.low, p.high, p.ranges, func(low, high uint32) bool {
				all = append(all, nested{low, high, inside, int32(len(enclosing))})
				return len(all) < 4*maxScopes
			})
			if err != nil {
				return nil, err
			}
		case a.tag == tagSubprogram && len(enclosing) > 1:
			// A nested function has spans of its own.
			inside = outside
			h.skip(c, a)
		case a.sibling && a.children && leaf(a.tag):
			if next := h.sibling(c, a); next != 0 {
				c.seek(next)
				continue
			}
		default:
			h.skip(c, a)
		}
		if a.children {
			enclosing = append(enclosing, inside)
		} else if len(enclosing) == 1 {
			break
		}
	}
	if c.err != nil {
		return nil, fmt.Errorf("function at %#x: %w", h.off+uint64(die), c.err)
	}
	f.spans = flatten(all)
	f.scopes = slices.Clip(f.scopes)
	d.cache.put(key, f, 48+8*cap(f.spans)+16*cap(f.scopes))
	return f, nil
}

// outside marks the DIEs of a function nested in the one being read.
const outside = ^uint32(0)
