package dwarf

// names are what a function is called.
type names struct{ function, linkage string }

const (
	maxOriginHops   = 16 // abstract_origin and specification, from DIE to DIE
	maxParents      = 32 // namespaces and classes
	maxParentsBytes = 16 << 20
)

// string reads a string attribute, "" when it is not one or is malformed.
func (d *Data) string(im *image, h *unitHead, b *bases, v value) string {
	var c *cursor
	switch v.form {
	case formString:
		return "" // read by its owner: see dieString
	case formStrp:
		c = im.str.at(v.u)
	case formLineStrp:
		c = im.lineStr.at(v.u)
	case formStrpSup, formGNUStrAlt:
		if d.alt == nil {
			return ""
		}
		c = d.alt.str.at(v.u)
	case formStrx, formStrx1, formStrx2, formStrx3, formStrx4, formGNUStrx:
		size := uint64(4)
		if h.wide {
			size = 8
		}
		if v.u > im.strOffsets.sec.size || b.str > im.strOffsets.sec.size {
			return ""
		}
		t := im.strOffsets.at(b.str + v.u*size)
		off := t.offset(h.wide)
		if t.err != nil {
			return ""
		}
		c = im.str.at(off)
	default:
		return ""
	}
	s := c.str()
	d.work -= len(s) / 16
	if c.err != nil {
		return ""
	}
	return s
}

// dieString is string for attributes that may be in place in sp.
func (d *Data) dieString(sp *space, h *unitHead, b *bases, v value) string {
	if v.form != formString {
		return d.string(sp.image, h, b, v)
	}
	c := sp.cur.at(v.u)
	s := c.str()
	d.work -= len(s) / 16
	if c.err != nil {
		return ""
	}
	return s
}

// target is the DIE that a reference attribute of unit h names.
func (d *Data) target(sp *space, h *unitHead, v value) (*space, uint64, bool) {
	switch v.form {
	case formRef1, formRef2, formRef4, formRef8, formRefUdata:
		return sp, h.off + v.u, v.u < h.end-h.off
	case formRefAddr:
		return &sp.image.info, v.u, true
	case formGNURefAlt, formRefSup4, formRefSup8:
		if d.alt != nil {
			return &d.alt.info, v.u, true
		}
	case formRefSig8:
		return sp.image.signature(v.u)
	}
	return nil, 0, false
}

// die is what names need of one DIE.
type die struct {
	name, linkage    value
	origin, spec     value
	signature        value
	head             *unitHead
	bases            bases
	language         uint16
	sp               *space
	tag              uint16
	hasName, hasLink bool
}

func (d *Data) readDIE(sp *space, off uint64) (x die, ok bool) {
	h := sp.unitAt(off)
	d.work -= 64 // several reads
	if h == nil || d.work < 0 {
		return x, false
	}
	table, err := d.abbrevs(sp.image, h.abbrev)
	if err != nil {
		return x, false
	}
	r, err := d.rootOf(sp, h, table)
	if err != nil {
		return x, false
	}
	x.head, x.sp, x.bases, x.language = h, sp, r.bases, r.language
	c := sp.cur
	if sp.sec.load() != nil {
		return x, false
	}
	c.reset(off, h.end)
	a := table.get(c.uleb())
	if a == nil || c.err != nil {
		return x, false
	}
	x.tag = a.tag
	for _, spec := range a.attrs {
		v := h.read(c, spec)
		switch spec.attr {
		case attrName:
			x.name, x.hasName = v, true
		case attrLinkage, attrMIPSLinkage:
			x.linkage, x.hasLink = v, true
		case attrAbstract:
			x.origin = v
		case attrOrigSpec:
			x.spec = v
		case attrSignature:
			x.signature = v
		}
	}
	return x, c.err == nil
}

// rootOf is the root of any unit, from the cached unit where there is one.
func (d *Data) rootOf(sp *space, h *unitHead, table *abbrevTable) (root, error) {
	key := cacheKey{kind: kindUnit, space: sp.id, off: h.off}
	if u, ok := d.cache.get(key).(*unit); ok {
		return u.root, nil
	}
	key.kind = kindRoot
	if r, ok := d.cache.get(key).(*root); ok {
		return *r, nil
	}
	if err := sp.sec.load(); err != nil {
		return root{}, err
	}
	r, err := sp.image.readRoot(h, sp.cur, func(code uint64) (abbrev, bool) {
		if a := table.get(code); a != nil {
			return *a, true
		}
		return abbrev{}, false
	})
	if err != nil {
		return r, err
	}
	d.cache.put(key, &r, 256)
	return r, nil
}

// name is what the function of the DIE at off is called. Attributes that the
// DIE does not have come from its abstract origin or declaration.
func (d *Data) name(sp *space, off uint64, hops int) names {
	key := cacheKey{kind: kindName, space: sp.id, off: off}
	if n, ok := d.cache.get(key).(names); ok {
		return n
	}
	x, ok := d.readDIE(sp, off)
	if !ok {
		return names{}
	}
	var n names
	if x.hasName {
		n.function = d.dieString(sp, x.head, &x.bases, x.name)
	}
	if x.hasLink {
		n.linkage = d.dieString(sp, x.head, &x.bases, x.linkage)
	}
	own := n
	ref := x.origin
	if ref.form == 0 {
		ref = x.spec
	}
	if ref.form != 0 && (n.function == "" || n.linkage == "") && hops < maxOriginHops {
		if to, at, ok := d.target(sp, x.head, ref); ok {
			more := d.name(to, at, hops+1)
			if n.function == "" {
				n.function = more.function
			}
			if n.linkage == "" {
				n.linkage = more.linkage
			}
		}
	}
	if own.function != "" && n.linkage == "" && qualifies(x.language) {
		if parents := d.parents(x.sp, x.head, off, hops); parents != "" {
			n.function = parents + "::" + n.function
		}
	}
	// DIEs that only refer on are as many as there are inlined calls, and
	// cost one read: they are not kept.
	if own != (names{}) || ref.form == 0 {
		d.cache.put(key, n, len(n.function)+len(n.linkage)+32)
	}
	return n
}

// qualifies says that a language has namespaces that its DW_AT_name leaves
// out: C++, Objective-C++, Rust, D and Swift. Numbers of DWARF 5, 7.12, and
// of the list kept at dwarfstd.org since.
func qualifies(language uint16) bool {
	switch language {
	case 0x04, 0x1a, 0x21, 0x2b, 0x3a, 0x11, 0x1c, 0x13, 0x1e:
		return true
	}
	return false
}

// parents is the path of namespaces and classes down to the DIE at off. DIEs
// do not name their parents, so it walks down from the unit.
func (d *Data) parents(sp *space, h *unitHead, off uint64, hops int) string {
	table, err := d.abbrevs(sp.image, h.abbrev)
	if err != nil || off-h.off > maxParentsBytes {
		return ""
	}
	var stack []uint64 // offsets of the DIEs around
	c := newCursor(sp.sec, h.off+uint64(h.size), h.end, 16<<10)
	for c.err == nil && c.off() < off && d.burn() {
		at := c.off()
		code := c.uleb()
		if code == 0 {
			if len(stack) <= 1 {
				return ""
			}
			stack = stack[:len(stack)-1]
			continue
		}
		a := table.get(code)
		if a == nil {
			return ""
		}
		if a.children && a.sibling {
			if next := h.sibling(c, a); next != 0 && next <= off {
				c.seek(next)
				continue
			}
		} else {
			h.skip(c, a)
		}
		if a.children {
			if len(stack) >= maxDIEDepth {
				return ""
			}
			stack = append(stack, at)
		}
	}
	if c.err != nil || c.off() != off || len(stack) == 0 {
		return ""
	}
	path := ""
	stack = stack[1:] // the unit
	if len(stack) > maxParents {
		return ""
	}
	for _, at := range stack {
		part, function := d.scopeName(sp, at, hops)
		switch {
		case part == "":
			continue
		case path == "" || function: // a function's name comes with its own parents
			path = part
		default:
			path += "::" + part
		}
		if len(path) > maxString {
			return ""
		}
	}
	return path
}

// scopeName names a namespace, a class or a function around another DIE; ""
// for blocks. A function's name is qualified.
func (d *Data) scopeName(sp *space, off uint64, hops int) (name string, function bool) {
	x, ok := d.readDIE(sp, off)
	if !ok {
		return "", false
	}
	switch x.tag {
	case tagSubprogram:
		function = true
	case tagNamespace, tagModule, tagClass, tagStructure, tagUnion, tagInterface, tagEnumeration:
	default:
		return "", false
	}
	if x.hasName {
		if name = d.dieString(sp, x.head, &x.bases, x.name); name != "" {
			if function && hops < maxOriginHops {
				if around := d.parents(sp, x.head, off, hops+1); around != "" {
					name = around + "::" + name
				}
			}
			return name, function
		}
	}
	for _, ref := range []value{x.spec, x.origin, x.signature} {
		if ref.form == 0 || hops >= maxOriginHops {
			continue
		}
		if to, at, ok := d.target(sp, x.head, ref); ok {
			if name, _ := d.scopeName(to, at, hops+1); name != "" {
				return name, function
			}
		}
	}
	switch x.tag {
	case tagNamespace:
		return "(anonymous namespace)", false
	case tagSubprogram:
		return "", false
	}
	return "(anonymous class)", false
}
