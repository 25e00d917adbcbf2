package dwarf

import (
	"bytes"
	"compress/zlib"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

// section is one .debug_ section. Plain sections are read in windows;
// compressed ones are inflated on first use and then stay in memory.
type section struct {
	name    string
	size    uint64
	r       io.ReaderAt            // nil when data or inflate is set
	data    []byte                 // inflated bytes
	inflate func() ([]byte, error) // not nil until the section was inflated
	err     error                  // why inflating failed; asked only once
}

// packed is the memory that the section takes once inflated.
func (s *section) packed() uint64 {
	if s.inflate == nil && s.data == nil {
		return 0
	}
	return s.size
}

func (s *section) load() error {
	if s.inflate == nil {
		return s.err
	}
	inflate := s.inflate
	s.inflate = nil
	s.data, s.err = inflate()
	if s.err != nil {
		s.err = fmt.Errorf("inflate %s: %w", s.name, s.err)
	}
	return s.err
}

// openSection finds ".debug_"+name, or the ".zdebug_" that GNU tools wrote
// before gABI compression. An absent section is an empty one.
func openSection(f *elffile.File, name string) (*section, error) {
	s := &section{name: ".debug_" + name}
	if es := f.Section(s.name); es != nil && es.Type != elf.SHT_NOBITS {
		if es.Flags&elf.SHF_COMPRESSED != 0 {
			s.size = es.Size
			s.inflate = func() ([]byte, error) { return readExact(func() (io.Reader, error) { return es.Open(), nil }, es.Size) }
			return s, nil
		}
		s.r, s.size = es.ReaderAt, clip(f, es)
		return s, nil
	}
	es := f.Section(".zdebug_" + name)
	if es == nil || es.Type == elf.SHT_NOBITS || es.Flags&elf.SHF_COMPRESSED != 0 {
		return s, nil
	}
	// "ZLIB", the inflated size in 8 bytes big endian, then a zlib stream.
	var head [12]byte
	if _, err := es.ReadAt(head[:], 0); err != nil || !bytes.Equal(head[:4], []byte("ZLIB")) {
		return nil, fmt.Errorf("read .zdebug_%s of %s: %w", name, f.Path(), errMalformed)
	}
	s.size = binary.BigEndian.Uint64(head[4:])
	packed := clip(f, es)
	s.inflate = func() ([]byte, error) {
		return readExact(func() (io.Reader, error) {
			return zlib.NewReader(io.NewSectionReader(es, 12, int64(packed)-12))
		}, s.size)
	}
	return s, nil
}

// clip is the number of the section's bytes that the file can hold.
func clip(f *elffile.File, s *elf.Section) uint64 {
	if s.ReaderAt == nil || s.Offset >= uint64(f.Size()) {
		return 0
	}
	return min(s.FileSize, uint64(f.Size())-s.Offset)
}

// readExact inflates size bytes; the caller has compared size with the limit.
// The recover is for decompressors that meet hostile input.
func readExact(open func() (io.Reader, error), size uint64) (data []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			data, err = nil, errMalformed
		}
	}()
	r, err := open()
	if err != nil {
		return nil, err
	}
	data = make([]byte, size)
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, err
	}
	return data, nil
}

// cursor reads a section forwards through a window. The first error sticks and
// every later read gives zero, so callers check err once per record.
type cursor struct {
	sec   *section
	buf   []byte // the section's bytes from base on, cut at end
	pos   int    // next byte in buf
	base  uint64
	end   uint64
	chunk int
	own   []byte
	err   error
}

// newCursor reads [off, end) of s, chunk bytes at a time.
func newCursor(s *section, off, end uint64, chunk int) *cursor {
	c := &cursor{sec: s, chunk: chunk, end: min(end, s.size)}
	c.err = s.load()
	c.seek(off)
	return c
}

// reset points the cursor to [off, end), keeping the window where it can.
func (c *cursor) reset(off, end uint64) {
	end = min(end, c.sec.size)
	c.err = c.sec.err
	if end != c.end {
		// The window is cut at the old end.
		if high := c.base + uint64(len(c.buf)); high > end {
			c.buf = c.buf[:max(end, c.base)-c.base]
		}
		c.end = end
		if c.sec.data != nil {
			c.buf, c.base = nil, 0
		}
	}
	c.seek(off)
}

func (c *cursor) off() uint64 { return c.base + uint64(c.pos) }

func (c *cursor) fail(err error) {
	if c.err == nil {
		c.err = err
	}
	c.buf, c.pos = c.buf[:0], 0
}

func (c *cursor) seek(off uint64) {
	if c.err != nil {
		c.fail(c.err)
		return
	}
	if off > c.end {
		c.fail(ErrTruncated)
		return
	}
	if off >= c.base && off-c.base <= uint64(len(c.buf)) {
		c.pos = int(off - c.base)
		return
	}
	c.base, c.pos = off, 0
	if c.sec.data != nil {
		c.buf = c.sec.data[off:c.end]
		return
	}
	c.buf = c.buf[:0]
}

// need makes n bytes readable at pos.
func (c *cursor) need(n int) bool {
	if len(c.buf)-c.pos >= n {
		return true
	}
	return c.fill(n)
}

func (c *cursor) fill(n int) bool {
	if c.err != nil {
		return false
	}
	off := c.off()
	if c.end-off < uint64(n) {
		c.fail(ErrTruncated)
		return false
	}
	if c.sec.data != nil {
		c.base, c.pos, c.buf = off, 0, c.sec.data[off:c.end]
		return true
	}
	want := int(min(uint64(max(n, c.chunk)), c.end-off))
	if cap(c.own) < want {
		c.own = make([]byte, want)
	}
	got, err := c.sec.r.ReadAt(c.own[:want], int64(off))
	if got < n {
		if err == nil || errors.Is(err, io.EOF) {
			err = ErrTruncated
		}
		c.fail(err)
		return false
	}
	c.base, c.pos, c.buf = off, 0, c.own[:got]
	return true
}

func (c *cursor) u8() uint8 {
	if !c.need(1) {
		return 0
	}
	v := c.buf[c.pos]
	c.pos++
	return v
}

func (c *cursor) u16() uint16 {
	if !c.need(2) {
		return 0
	}
	v := binary.LittleEndian.Uint16(c.buf[c.pos:])
	c.pos += 2
	return v
}

func (c *cursor) u32() uint32 {
	if !c.need(4) {
		return 0
	}
	v := binary.LittleEndian.Uint32(c.buf[c.pos:])
	c.pos += 4
	return v
}

func (c *cursor) u64() uint64 {
	if !c.need(8) {
		return 0
	}
	v := binary.LittleEndian.Uint64(c.buf[c.pos:])
	c.pos += 8
	return v
}

// uint reads an unsigned number of 1, 2, 3, 4 or 8 bytes.
func (c *cursor) uint(size uint8) uint64 {
	switch size {
	case 1:
		return uint64(c.u8())
	case 2:
		return uint64(c.u16())
	case 3:
		low := uint64(c.u16())
		return low | uint64(c.u8())<<16
	case 4:
		return uint64(c.u32())
	case 8:
		return c.u64()
	}
	c.fail(errMalformed)
	return 0
}

// offset reads a section offset: 8 bytes in 64-bit DWARF, else 4.
func (c *cursor) offset(wide bool) uint64 {
	if wide {
		return c.u64()
	}
	return uint64(c.u32())
}

// uleb reads an unsigned LEB128 number of at most 64 bits.
func (c *cursor) uleb() uint64 {
	var v uint64
	for shift := uint(0); shift < 70; shift += 7 {
		b := c.u8()
		if shift == 63 && b > 1 {
			break
		}
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v
		}
	}
	c.fail(errMalformed)
	return 0
}

// sleb reads a signed LEB128 number of at most 64 bits.
func (c *cursor) sleb() int64 {
	var v int64
	for shift := uint(0); shift < 70; shift += 7 {
		b := c.u8()
		if shift == 63 && b != 0 && b != 0x7f {
			break
		}
		v |= int64(b&0x7f) << shift
		if b < 0x80 {
			if b&0x40 != 0 && shift < 57 {
				v |= -1 << (shift + 7)
			}
			return v
		}
	}
	c.fail(errMalformed)
	return 0
}

func (c *cursor) skip(n uint64) {
	if n <= uint64(len(c.buf)-c.pos) {
		c.pos += int(n)
		return
	}
	if n > c.end-c.off() {
		c.fail(ErrTruncated)
		return
	}
	c.seek(c.off() + n)
}

// skipString steps over a NUL-terminated string.
func (c *cursor) skipString() {
	for {
		if i := bytes.IndexByte(c.buf[c.pos:], 0); i >= 0 {
			c.pos += i + 1
			return
		}
		c.pos = len(c.buf)
		if !c.need(1) {
			return
		}
	}
}

// maxString bounds one name. Mangled C++ names of 30 KiB exist; what is longer
// is cut.
const maxString = 64 << 10

// str reads a NUL-terminated string and stays within maxString.
func (c *cursor) str() string {
	var long []byte
	for {
		rest := c.buf[c.pos:]
		if i := bytes.IndexByte(rest, 0); i >= 0 {
			c.pos += i + 1
			if long == nil {
				return string(rest[:min(i, maxString)])
			}
			long = append(long, rest[:i]...)
			return string(long[:min(len(long), maxString)])
		}
		if len(long)+len(rest) > maxString {
			long = append(long, rest...)
			return string(long[:maxString])
		}
		long = append(long, rest...)
		c.pos = len(c.buf)
		if !c.need(1) {
			return ""
		}
	}
}

// initialLength reads a unit length: the length and whether offsets are wide.
func (c *cursor) initialLength() (length uint64, wide bool) {
	n := c.u32()
	switch {
	case n == 0xffffffff:
		return c.u64(), true
	case n >= 0xfffffff0: // reserved
		c.fail(errMalformed)
		return 0, false
	}
	return uint64(n), false
}
