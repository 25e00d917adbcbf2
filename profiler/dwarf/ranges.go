package dwarf

import (
	"fmt"

	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

// address resolves a value of class address.
func (im *image) address(h *unitHead, b *bases, v value) (uint64, bool) {
	switch v.form {
	case formAddr:
		return v.u, true
	case formAddrx, formAddrx1, formAddrx2, formAddrx3, formAddrx4, formGNUAddrx:
		return im.addrx(h, b, v.u)
	}
	return 0, false
}

func (im *image) addrx(h *unitHead, b *bases, index uint64) (uint64, bool) {
	if index > im.addr.sec.size || b.addr > im.addr.sec.size {
		return 0, false
	}
	c := im.addr.at(b.addr + index*uint64(h.addrSize))
	a := c.uint(h.addrSize)
	return a, c.err == nil
}

// maxWork bounds the DIEs, ranges and line instructions read in one Lookup, a
// second or two of work. A hostile file could otherwise name one long range list in each of a
// million DIEs.
const maxWork = 1 << 26

// burn counts one of them and says whether work may go on.
func (d *Data) burn() bool {
	d.work--
	return d.work > 0
}

// codeRanges emits the code addresses of a DIE: its low and high PC, or its
// range list. Code outside of the file's sections is left out. emit returns
// false when it has no room.
func (d *Data) codeRanges(im *image, h *unitHead, b *bases, low, high, ranges value, emit func(low, high uint32) bool) error {
	full := false
	put := func(low, high uint64) bool {
		if from, to, ok := d.clip(low, high); ok && !emit(from, to) {
			full = true
		}
		return !full
	}
	switch {
	case ranges.form != 0:
		d.rangeList(im, h, b, ranges, put)
	case low.form != 0 && high.form != 0:
		from, ok := im.address(h, b, low)
		if !ok {
			break
		}
		// An address up to DWARF 3, a length as a constant since.
		to, isAddr := im.address(h, b, high)
		if !isAddr {
			to = from + high.u
		}
		put(from, to)
	}
	if full {
		return fmt.Errorf("ranges of unit at %#x: %w", h.off, elffile.ErrTooLarge)
	}
	return nil
}

// rangeList walks .debug_ranges or .debug_rnglists. A malformed list ends
// where it is malformed.
func (d *Data) rangeList(im *image, h *unitHead, b *bases, v value, put func(low, high uint64) bool) {
	base := b.low
	if h.version < 5 {
		c := im.ranges.at(v.u)
		largest := uint64(1)<<(8*uint(h.addrSize)-1)*2 - 1
		for d.burn() {
			low, high := c.uint(h.addrSize), c.uint(h.addrSize)
			if c.err != nil || low == 0 && high == 0 {
				return
			}
			if low == largest {
				base = high
			} else if !put(base+low, base+high) {
				return
			}
		}
		return
	}
	off := v.u
	if v.form == formRnglistx {
		size := uint64(4)
		if h.wide {
			size = 8
		}
		if off > im.rnglists.sec.size || b.rnglist > im.rnglists.sec.size {
			return
		}
		c := im.rnglists.at(b.rnglist + off*size)
		off = b.rnglist + c.offset(h.wide)
		if c.err != nil {
			return
		}
	}
	c := im.rnglists.at(off)
	for d.burn() {
		kind := c.u8()
		if c.err != nil {
			return
		}
		var low, high uint64
		ok := true
		switch kind { // DW_RLE_, DWARF 5, 7.25
		case 0: // end_of_list
			return
		case 1: // base_addressx
			base, _ = im.addrx(h, b, c.uleb())
			continue
		case 2: // startx_endx
			low, ok = im.addrx(h, b, c.uleb())
			high, _ = im.addrx(h, b, c.uleb())
		case 3: // startx_length
			low, ok = im.addrx(h, b, c.uleb())
			high = low + c.uleb()
		case 4: // offset_pair
			low = base + c.uleb()
			high = base + c.uleb()
		case 5: // base_address
			base = c.uint(h.addrSize)
			continue
		case 6: // start_end
			low, high = c.uint(h.addrSize), c.uint(h.addrSize)
		case 7: // start_length
			low = c.uint(h.addrSize)
			high = low + c.uleb()
		default:
			return
		}
		if c.err != nil || ok && !put(low, high) {
			return
		}
	}
}
