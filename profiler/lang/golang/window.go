package golang

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"unsafe"

	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

const (
	windowBytes  = 4 << 10
	maxWindows   = 64 // 256 KiB for each program
	programBytes = int(unsafe.Sizeof(Program{})) + int(unsafe.Sizeof(windows{}))
)

// windows reads a file by virtual address through pages that it keeps, the
// least recently used dropped first. A hostile file may change under it: what
// is read twice may differ, so callers check what they act on.
type windows struct {
	file  *elffile.File
	segs  []elf.ProgHeader
	pages map[uint64]*page
	held  []*page // the same, to look for the oldest
	last  *page
	tick  uint64
	reads uint64 // from the file, for the benchmark
	fuel  int    // steps that the running call may still take
}

type page struct {
	base uint64 // address of data[0]
	key  uint64
	used uint64
	data []byte
}

func newWindows(f *elffile.File) *windows {
	return &windows{file: f, segs: f.Segments(), pages: make(map[uint64]*page)}
}

func (w *windows) bytes() int { return len(w.held) * (windowBytes + int(unsafe.Sizeof(page{})) + 24) }

func (w *windows) drop() {
	clear(w.pages)
	w.held, w.last = nil, nil
}

// segment is the loadable segment whose file bytes hold addr.
func (w *windows) segment(addr uint64) (elf.ProgHeader, bool) {
	for _, s := range w.segs {
		if addr >= s.Vaddr && addr-s.Vaddr < s.Filesz && s.Vaddr+s.Filesz > s.Vaddr {
			return s, true
		}
	}
	return elf.ProgHeader{}, false
}

// at returns the bytes that are held from addr on: at least one.
func (w *windows) at(addr uint64) ([]byte, error) {
	if p := w.last; p != nil && addr >= p.base && addr-p.base < uint64(len(p.data)) {
		return p.data[addr-p.base:], nil
	}
	key := addr / windowBytes
	p := w.pages[key]
	if p == nil || addr < p.base || addr-p.base >= uint64(len(p.data)) {
		var err error
		if p, err = w.load(key, addr); err != nil {
			return nil, err
		}
	}
	w.tick++
	p.used = w.tick
	w.last = p
	return p.data[addr-p.base:], nil
}

func (w *windows) load(key, addr uint64) (*page, error) {
	s, ok := w.segment(addr)
	if !ok {
		return nil, fmt.Errorf("address %#x is in no segment: %w", addr, ErrMalformed)
	}
	low := max(key*windowBytes, s.Vaddr)
	high := min(key*windowBytes+(windowBytes-1), s.Vaddr+s.Filesz-1)
	p := w.pages[key]
	if p == nil {
		if len(w.held) < maxWindows {
			p = &page{data: make([]byte, 0, windowBytes)}
			w.held = append(w.held, p)
		} else {
			p = w.held[0]
			for _, q := range w.held {
				if q.used < p.used {
					p = q
				}
			}
			delete(w.pages, p.key)
		}
	}
	if w.last == p {
		w.last = nil
	}
	p.key, p.base = key, low
	p.data = p.data[:high-low+1]
	w.reads++
	if err := w.file.ReadVaddr(p.data, low); err != nil {
		delete(w.pages, key)
		p.data, p.used = p.data[:0], 0
		return nil, err
	}
	w.pages[key] = p
	return p, nil
}

// read fills b from addr on.
func (w *windows) read(b []byte, addr uint64) error {
	for len(b) > 0 {
		d, err := w.at(addr)
		if err != nil {
			return err
		}
		n := copy(b, d)
		b, addr = b[n:], addr+uint64(n)
	}
	return nil
}

func (w *windows) uint32(addr uint64) (uint32, error) {
	d, err := w.at(addr)
	if err == nil && len(d) >= 4 {
		return binary.LittleEndian.Uint32(d), nil
	}
	var b [4]byte
	err = w.read(b[:], addr)
	return binary.LittleEndian.Uint32(b[:]), err
}

func (w *windows) uint64(addr uint64) (uint64, error) {
	d, err := w.at(addr)
	if err == nil && len(d) >= 8 {
		return binary.LittleEndian.Uint64(d), nil
	}
	var b [8]byte
	err = w.read(b[:], addr)
	return binary.LittleEndian.Uint64(b[:]), err
}

// text appends the zero-terminated text at addr, limit bytes at most.
func (w *windows) text(dst []byte, addr uint64, limit int) ([]byte, error) {
	for limit > 0 {
		d, err := w.at(addr)
		if err != nil {
			return dst, err
		}
		d = d[:min(len(d), limit)]
		for i, c := range d {
			if c == 0 {
				return append(dst, d[:i]...), nil
			}
		}
		dst = append(dst, d...)
		addr += uint64(len(d))
		limit -= len(d)
	}
	return dst, nil
}

// cursor reads varints one after the other.
type cursor struct {
	w    *windows
	addr uint64
	buf  []byte
}

// uvarint reads one base-128 number of up to 32 bits, as in runtime/symtab.go
// readvarint.
func (c *cursor) uvarint() (uint32, error) {
	var v uint32
	for shift := 0; shift < 35; shift += 7 {
		if len(c.buf) == 0 {
			var err error
			if c.buf, err = c.w.at(c.addr); err != nil {
				return 0, err
			}
		}
		b := c.buf[0]
		c.buf = c.buf[1:]
		c.addr++
		v |= uint32(b&0x7f) << shift
		if b < 0x80 {
			return v, nil
		}
	}
	return 0, fmt.Errorf("number over 32 bits at %#x: %w", c.addr, ErrMalformed)
}
