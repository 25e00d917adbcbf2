package cfi

import (
	"encoding/binary"
	"io"
)

// cursor reads little-endian values from b. The first read past the end sets
// bad, after which every read gives zero: callers check once, at the end of
// what they decode.
type cursor struct {
	b   []byte
	off int
	bad bool
}

func (c *cursor) left() int { return len(c.b) - c.off }

func (c *cursor) take(n int) []byte {
	if c.bad || n < 0 || n > c.left() {
		c.bad = true
		return nil
	}
	p := c.b[c.off : c.off+n]
	c.off += n
	return p
}

func (c *cursor) u8() uint8 {
	if p := c.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if p := c.take(2); p != nil {
		return binary.LittleEndian.Uint16(p)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if p := c.take(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if p := c.take(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

// uleb reads an unsigned LEB128. Assemblers may pad one with 0x80 bytes, so
// its length is bounded by the buffer only; bits over the 64th are dropped.
func (c *cursor) uleb() uint64 {
	var v uint64
	for shift := uint(0); ; shift += 7 {
		b := c.u8()
		if c.bad {
			return 0
		}
		if shift < 64 {
			v |= uint64(b&0x7f) << shift
		}
		if b&0x80 == 0 {
			return v
		}
	}
}

// sleb reads a signed LEB128, see uleb.
func (c *cursor) sleb() int64 {
	var v int64
	for shift := uint(0); ; {
		b := c.u8()
		if c.bad {
			return 0
		}
		if shift < 64 {
			v |= int64(b&0x7f) << shift
		}
		shift += 7
		if b&0x80 == 0 {
			if shift < 64 && b&0x40 != 0 {
				v |= -1 << shift
			}
			return v
		}
	}
}

// block reads a ULEB128 length and as many bytes.
func (c *cursor) block() []byte {
	n := c.uleb()
	if n > uint64(c.left()) {
		c.bad = true
		return nil
	}
	return c.take(int(n))
}

// Pointer encodings: Linux Standard Base Core 5.0, section 10.5.1.
const (
	peAbsptr  = 0x00
	peUleb    = 0x01
	peUdata2  = 0x02
	peUdata4  = 0x03
	peUdata8  = 0x04
	peSigned  = 0x08
	peSleb    = 0x09
	peSdata2  = 0x0a
	peSdata4  = 0x0b
	peSdata8  = 0x0c
	pePcrel   = 0x10
	peTextrel = 0x20
	peDatarel = 0x30
	peFuncrel = 0x40
	peAligned = 0x50
	peIndir   = 0x80
	peOmit    = 0xff
)

// raw reads the value part of an encoded pointer; addrSize is the size of an
// address (0 means 8).
func (c *cursor) raw(enc uint8, addrSize int) uint64 {
	switch enc & 0x0f {
	case peAbsptr, peSigned:
		if addrSize == 4 {
			if enc&0x0f == peSigned {
				return uint64(int64(int32(c.u32())))
			}
			return uint64(c.u32())
		}
		return c.u64()
	case peUleb:
		return c.uleb()
	case peUdata2:
		return uint64(c.u16())
	case peUdata4:
		return uint64(c.u32())
	case peUdata8, peSdata8:
		return c.u64()
	case peSleb:
		return uint64(c.sleb())
	case peSdata2:
		return uint64(int64(int16(c.u16())))
	case peSdata4:
		return uint64(int64(int32(c.u32())))
	}
	c.bad = true
	return 0
}

// bases are what encoded pointers may be relative to.
type bases struct {
	text, data uint64
	// deref reads the 8 bytes at an address of the file, for DW_EH_PE_indirect.
	deref func(vaddr uint64) (uint64, bool)
}

// pointer reads an encoded pointer; vaddr is the address of c.b[0].
func (c *cursor) pointer(enc uint8, addrSize int, vaddr uint64, b *bases) uint64 {
	if enc == peOmit {
		return 0
	}
	if enc&0x70 == peAligned {
		if pad := int(-(vaddr + uint64(c.off)) & 7); pad != 0 {
			c.take(pad)
		}
		return c.u64()
	}
	at := vaddr + uint64(c.off)
	v := c.raw(enc, addrSize)
	// A zero value is a null pointer whatever it is relative to, except in
	// a table, whose reader does not come through here.
	switch enc & 0x70 {
	case peAbsptr:
	case pePcrel:
		v += at
	case peTextrel:
		v += b.text
	case peDatarel:
		v += b.data
	default: // function-relative makes no sense for what we read
		c.bad = true
	}
	if enc&peIndir != 0 && !c.bad {
		p, ok := uint64(0), false
		if b.deref != nil {
			p, ok = b.deref(v)
		}
		if !ok {
			c.bad = true
		}
		v = p
	}
	return v
}

// source is a run of bytes in the file, or in memory, with the address of its
// first byte.
type source struct {
	r     io.ReaderAt
	vaddr uint64
	size  uint64
}

// A window is 8 KiB: about 200 FDEs, one read of two or three microseconds
// from the page cache. Four of them keep a walk over .eh_frame_hdr, .eh_frame
// and code from pushing each other out.
const (
	windowBytes = 8 << 10
	windows     = 4
)

// reader reads sources through a few windows. It is not safe for concurrent
// use: Index keeps a pool of them.
type reader struct {
	win  [windows]window
	next int
	code []byte

	last    cieKey // the CIE used last, which neighbours share
	lastCIE *cie
}

type window struct {
	src *source
	off uint64
	n   int
	buf []byte
}

// bytes returns n bytes at off, or fewer at the end of the source. They are
// valid until the next call.
func (r *reader) bytes(src *source, off uint64, n int) []byte {
	if off >= src.size {
		return nil
	}
	if rest := src.size - off; uint64(n) > rest {
		n = int(rest)
	}
	for i := range r.win {
		w := &r.win[i]
		if w.src == src && off >= w.off && off-w.off+uint64(n) <= uint64(w.n) {
			return w.buf[off-w.off:][:n]
		}
	}
	if n > windowBytes {
		p := make([]byte, n)
		got, _ := src.r.ReadAt(p, int64(off))
		return p[:max(got, 0)]
	}
	w := &r.win[r.next]
	r.next = (r.next + 1) % windows
	if w.buf == nil {
		w.buf = make([]byte, windowBytes)
	}
	want := uint64(windowBytes)
	if rest := src.size - off; want > rest {
		want = rest
	}
	got, _ := src.r.ReadAt(w.buf[:want], int64(off))
	w.src, w.off, w.n = src, off, max(got, 0)
	return w.buf[:min(n, w.n)]
}

// reset forgets what the windows hold, so that a pooled reader keeps no file
// alive and shows no stale bytes.
func (r *reader) reset() {
	for i := range r.win {
		r.win[i].src, r.win[i].n = nil, 0
	}
	r.last, r.lastCIE = cieKey{}, nil
}
