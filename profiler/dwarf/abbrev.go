package dwarf

import (
	"fmt"

	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

// Numbers of DWARF 5, section 7, and of the GNU extensions before it.
const (
	tagArray        = 0x01
	tagClass        = 0x02
	tagEnumeration  = 0x04
	tagSubroutine   = 0x15 // DW_TAG_subroutine_type
	tagStructure    = 0x13
	tagUnion        = 0x17
	tagInlined      = 0x1d
	tagModule       = 0x1e
	tagSubprogram   = 0x2e
	tagNamespace    = 0x39
	tagInterface    = 0x38
	tagCallSite     = 0x48
	tagGNUCallSite  = 0x4109
	attrSibling     = 0x01
	attrName        = 0x03
	attrStmtList    = 0x10
	attrLowPC       = 0x11
	attrHighPC      = 0x12
	attrLanguage    = 0x13
	attrCompDir     = 0x1b
	attrAbstract    = 0x31
	attrOrigSpec    = 0x47
	attrRanges      = 0x55
	attrCallFile    = 0x58
	attrCallLine    = 0x59
	attrSignature   = 0x69
	attrLinkage     = 0x6e
	attrStrBase     = 0x72
	attrAddrBase    = 0x73
	attrRngBase     = 0x74
	attrMIPSLinkage = 0x2007
	attrGNUAddrBase = 0x2133

	formAddr      = 0x01
	formBlock2    = 0x03
	formBlock4    = 0x04
	formData2     = 0x05
	formData4     = 0x06
	formData8     = 0x07
	formString    = 0x08
	formBlock     = 0x09
	formBlock1    = 0x0a
	formData1     = 0x0b
	formFlag      = 0x0c
	formSdata     = 0x0d
	formStrp      = 0x0e
	formUdata     = 0x0f
	formRefAddr   = 0x10
	formRef1      = 0x11
	formRef2      = 0x12
	formRef4      = 0x13
	formRef8      = 0x14
	formRefUdata  = 0x15
	formIndirect  = 0x16
	formSecOffset = 0x17
	formExprloc   = 0x18
	formFlagSet   = 0x19 // DW_FORM_flag_present
	formStrx      = 0x1a
	formAddrx     = 0x1b
	formRefSup4   = 0x1c
	formStrpSup   = 0x1d
	formData16    = 0x1e
	formLineStrp  = 0x1f
	formRefSig8   = 0x20
	formImplicit  = 0x21
	formLoclistx  = 0x22
	formRnglistx  = 0x23
	formRefSup8   = 0x24
	formStrx1     = 0x25
	formStrx2     = 0x26
	formStrx3     = 0x27
	formStrx4     = 0x28
	formAddrx1    = 0x29
	formAddrx2    = 0x2a
	formAddrx3    = 0x2b
	formAddrx4    = 0x2c
	formGNUAddrx  = 0x1f01
	formGNUStrx   = 0x1f02
	formGNURefAlt = 0x1f20
	formGNUStrAlt = 0x1f21
)

// Limits of one abbreviation table. Clang's largest LTO units use about 3000
// abbreviations with 20000 attributes.
const (
	maxAbbrevs     = 1 << 16
	maxAbbrevAttrs = 1 << 18
)

type attrSpec struct {
	attr, form uint16
	implicit   int64
}

type abbrev struct {
	tag      uint16
	children bool
	sibling  bool
	// Size of the attributes: fixed bytes, addresses and offsets; size < 0
	// when a form has no fixed size.
	size, addrs, offs int32
	attrs             []attrSpec
}

type abbrevTable struct {
	dense  []abbrev // codes 1…n, which all compilers write
	sparse map[uint64]*abbrev
	bytes  int
}

func (t *abbrevTable) get(code uint64) *abbrev {
	if code-1 < uint64(len(t.dense)) {
		return &t.dense[code-1]
	}
	return t.sparse[code]
}

// readAbbrev reads one declaration, whose attributes it appends to room.
// code 0 ends a table.
func readAbbrev(c *cursor, room []attrSpec) (code uint64, a abbrev, attrs []attrSpec) {
	code = c.uleb()
	if code == 0 || c.err != nil {
		return 0, a, room
	}
	tag := c.uleb()
	if tag > 0xffff {
		c.fail(errMalformed)
	}
	a.tag, a.children = uint16(tag), c.u8() != 0
	first := len(room)
	for c.err == nil {
		attr, form := c.uleb(), c.uleb()
		if attr == 0 && form == 0 {
			break
		}
		spec := attrSpec{attr: uint16(attr), form: uint16(form)}
		if form == formImplicit {
			spec.implicit = c.sleb()
		}
		if attr > 0xffff || form > 0xffff || len(room) >= maxAbbrevAttrs {
			c.fail(errMalformed)
			break
		}
		room = append(room, spec)
		if attr == attrSibling {
			a.sibling = true
		}
		a.measure(spec.form)
	}
	a.attrs = room[first:len(room):len(room)]
	return code, a, room
}

func (a *abbrev) measure(form uint16) {
	if a.size < 0 {
		return
	}
	switch form {
	case formAddr:
		a.addrs++
	case formData1, formRef1, formFlag, formStrx1, formAddrx1:
		a.size++
	case formData2, formRef2, formStrx2, formAddrx2:
		a.size += 2
	case formStrx3, formAddrx3:
		a.size += 3
	case formData4, formRef4, formRefSup4, formStrx4, formAddrx4:
		a.size += 4
	case formData8, formRef8, formRefSig8, formRefSup8:
		a.size += 8
	case formData16:
		a.size += 16
	case formStrp, formLineStrp, formSecOffset, formStrpSup, formGNUStrAlt, formGNURefAlt:
		a.offs++
	case formFlagSet, formImplicit:
	default:
		a.size = -1
	}
}

// abbrevs gives the table at off of .debug_abbrev.
func (d *Data) abbrevs(im *image, off uint64) (*abbrevTable, error) {
	key := cacheKey{kind: kindAbbrevs, space: im.id, off: off}
	if t, ok := d.cache.get(key).(*abbrevTable); ok {
		return t, nil
	}
	t, err := parseAbbrevs(im.abbrev, off)
	if err != nil {
		return nil, err
	}
	d.cache.put(key, t, t.bytes)
	return t, nil
}

func parseAbbrevs(s *section, off uint64) (*abbrevTable, error) {
	c := newCursor(s, off, s.size, 8<<10)
	t := &abbrevTable{}
	var room []attrSpec
	for n := 0; ; n++ {
		var code uint64
		var a abbrev
		code, a, room = readAbbrev(c, room)
		if c.err != nil {
			return nil, fmt.Errorf("read abbreviations at %#x: %w", off, c.err)
		}
		if code == 0 {
			break
		}
		if n >= maxAbbrevs {
			return nil, fmt.Errorf("abbreviations at %#x: %w", off, elffile.ErrTooLarge)
		}
		if code == uint64(len(t.dense))+1 {
			t.dense = append(t.dense, a)
			continue
		}
		if t.sparse == nil {
			t.sparse = map[uint64]*abbrev{}
		}
		if t.sparse[code] == nil {
			t.sparse[code] = &a
		}
	}
	t.bytes = 48*cap(t.dense) + 96*len(t.sparse) + 16*cap(room)
	return t, nil
}

// findAbbrev reads the table at the cursor up to one code. The abbreviation of
// a unit's first DIE is nearly always the first, and the unit index would
// otherwise parse the whole of .debug_abbrev.
func findAbbrev(c *cursor, code uint64, room []attrSpec) (a abbrev, attrs []attrSpec, ok bool) {
	for range maxAbbrevs {
		got, a, attrs := readAbbrev(c, room[:0])
		if got == 0 {
			return a, attrs, false
		}
		if got == code {
			return a, attrs, true
		}
		room = attrs
	}
	return a, room, false
}

// value is an attribute's form and number: an offset, index, address or
// constant. For strings in place it is their offset in the section.
type value struct {
	form uint16
	u    uint64
}

// read reads one attribute at the cursor.
func (h *unitHead) read(c *cursor, spec attrSpec) value {
	form := spec.form
	if form == formIndirect {
		form = uint16(min(c.uleb(), 0xffff))
		if form == formIndirect || form == formImplicit {
			c.fail(errMalformed)
		}
	}
	v := value{form: form}
	switch form {
	case formAddr:
		v.u = c.uint(h.addrSize)
	case formData1, formRef1, formFlag, formStrx1, formAddrx1:
		v.u = uint64(c.u8())
	case formData2, formRef2, formStrx2, formAddrx2:
		v.u = uint64(c.u16())
	case formStrx3, formAddrx3:
		v.u = c.uint(3)
	case formData4, formRef4, formRefSup4, formStrx4, formAddrx4:
		v.u = uint64(c.u32())
	case formData8, formRef8, formRefSig8, formRefSup8:
		v.u = c.u64()
	case formData16:
		c.skip(16)
	case formSdata:
		v.u = uint64(c.sleb())
	case formUdata, formRefUdata, formStrx, formAddrx, formLoclistx, formRnglistx, formGNUAddrx, formGNUStrx:
		v.u = c.uleb()
	case formStrp, formLineStrp, formSecOffset, formStrpSup, formGNUStrAlt, formGNURefAlt:
		v.u = c.offset(h.wide)
	case formRefAddr:
		if h.version <= 2 { // an address in DWARF 2, an offset since
			v.u = c.uint(h.addrSize)
		} else {
			v.u = c.offset(h.wide)
		}
	case formString:
		v.u = c.off()
		c.skipString()
	case formBlock1:
		c.skip(uint64(c.u8()))
	case formBlock2:
		c.skip(uint64(c.u16()))
	case formBlock4:
		c.skip(uint64(c.u32()))
	case formBlock, formExprloc:
		c.skip(c.uleb())
	case formFlagSet:
		v.u = 1
	case formImplicit:
		v.u = uint64(spec.implicit)
	default:
		c.fail(fmt.Errorf("form %#x: %w", form, errMalformed))
	}
	return v
}

// skip steps over the attributes of one DIE.
func (h *unitHead) skip(c *cursor, a *abbrev) {
	if a.size >= 0 {
		n := uint64(a.size) + uint64(a.addrs)*uint64(h.addrSize)
		if h.wide {
			n += 8 * uint64(a.offs)
		} else {
			n += 4 * uint64(a.offs)
		}
		c.skip(n)
		return
	}
	for _, spec := range a.attrs {
		h.read(c, spec)
	}
}
