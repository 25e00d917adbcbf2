package golang

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

// Words of moduledata (runtime/symtab.go), the same from Go 1.16 to 1.26 as
// far as etext.
const (
	mdHeader   = 0  // pcHeader
	mdNames    = 1  // funcnametab, a slice: pointer, length, capacity
	mdPclntab  = 13 // pclntable, from the function table on
	mdFtab     = 16
	mdFtabLen  = 17
	mdMinPC    = 20
	mdMaxPC    = 21
	mdText     = 22
	mdEtext    = 23
	mdGofunc18 = 38 // Go 1.18 and 1.19
	mdGofunc20 = 40 // from Go 1.20 on: after covctrs, ecovctrs
	mdWords    = 41
)

const (
	maxCandidates = 64
	maxRelocs     = 1 << 24 // 384 MiB of Elf64_Rela
)

type module struct{ text, etext, gofunc uint64 }

type candidate struct {
	addr  uint64
	words [mdWords]uint64
}

// findModule finds moduledata: the one structure that points at the table's
// header and at its parts. nil when there is none.
//
// In position-independent files the pointers are relocations. Go's own linker
// writes the addresses into the file too; GNU ld writes zeros, so relocations
// are looked through when the data does not tell.
func findModule(f *elffile.File, w *windows, h *header) (*module, error) {
	var needle [8]byte
	binary.LittleEndian.PutUint64(needle[:], h.addr)
	left := maxCandidates
	for _, writable := range [...]bool{true, false} {
		for _, s := range w.segs {
			if (s.Flags&elf.PF_W != 0) != writable || s.Flags&elf.PF_X != 0 {
				continue
			}
			var found *module
			err := scan(f, s, min(s.Filesz, maxScan), needle[:], func(at uint64) bool {
				if at%8 != 0 {
					return true
				}
				left--
				c := candidate{addr: at}
				if c.load(w) == nil {
					found = c.module(w, h)
				}
				return found == nil && left > 0
			})
			if found != nil || err != nil {
				return found, err
			}
		}
	}
	return findRelocated(f, w, h)
}

func (c *candidate) load(w *windows) error {
	var b [mdWords * 8]byte
	if err := w.read(b[:], c.addr); err != nil {
		return err
	}
	for i := range c.words {
		c.words[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return nil
}

// module gives nil when the words are not those of the header's module.
func (c *candidate) module(w *windows, h *header) *module {
	m := &c.words
	if m[mdHeader] != h.addr || m[mdNames] != h.names || m[mdPclntab] != h.funcs ||
		m[mdFtab] != h.funcs || m[mdFtabLen] != h.nfunc+1 {
		return nil
	}
	text, etext := m[mdText], m[mdEtext]
	if text >= etext || m[mdMinPC] < text || m[mdMaxPC] > etext || !executable(w, text, etext) {
		return nil
	}
	md := &module{text: text, etext: etext}
	switch h.layout {
	case layout118:
		md.gofunc = m[mdGofunc18]
	case layout120:
		md.gofunc = m[mdGofunc20]
	}
	if _, ok := w.segment(md.gofunc); !ok {
		md.gofunc = 0
	}
	return md
}

// findRelocated rebuilds moduledata from RELATIVE relocations.
func findRelocated(f *elffile.File, w *windows, h *header) (*module, error) {
	addr, size, err := relocations(f, w)
	if err != nil || size == 0 {
		return nil, err
	}
	var found []candidate
	err = eachRelative(f, addr, size, func(offset, target uint64) bool {
		if target == h.addr && offset%8 == 0 {
			found = append(found, candidate{addr: offset})
		}
		return len(found) < maxCandidates
	})
	if err != nil || len(found) == 0 {
		return nil, err
	}
	kept := found[:0]
	for _, c := range found {
		if c.load(w) == nil {
			kept = append(kept, c)
		}
	}
	err = eachRelative(f, addr, size, func(offset, target uint64) bool {
		for i := range kept {
			if c := &kept[i]; offset >= c.addr && offset-c.addr < mdWords*8 && (offset-c.addr)%8 == 0 {
				c.words[(offset-c.addr)/8] = target
			}
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	for i := range kept {
		if md := kept[i].module(w, h); md != nil {
			return md, nil
		}
	}
	return nil, nil
}

// relocations gives the place of the RELA table from the dynamic segment.
func relocations(f *elffile.File, w *windows) (addr, size uint64, err error) {
	const maxDynamic = 4096 // entries; real files have 30
	for _, p := range f.ELF.Progs {
		if p.Type != elf.PT_DYNAMIC {
			continue
		}
		for i := uint64(0); i < min(p.Filesz/16, maxDynamic); i++ {
			tag, err := w.uint64(p.Vaddr + i*16)
			if err != nil {
				return 0, 0, err
			}
			val, err := w.uint64(p.Vaddr + i*16 + 8)
			if err != nil {
				return 0, 0, err
			}
			switch elf.DynTag(tag) {
			case elf.DT_NULL:
				return addr, size, nil
			case elf.DT_RELA:
				addr = val
			case elf.DT_RELASZ:
				size = val
			}
		}
	}
	return addr, size, nil
}

func eachRelative(f *elffile.File, addr, size uint64, visit func(offset, target uint64) bool) error {
	const entry = 24
	relative := uint64(elf.R_X86_64_RELATIVE)
	if f.Machine() == elf.EM_AARCH64 {
		relative = uint64(elf.R_AARCH64_RELATIVE)
	}
	if size/entry > maxRelocs {
		return fmt.Errorf("%d relocations: %w", size/entry, ErrMalformed)
	}
	buf := make([]byte, 2730*entry)
	for size >= entry {
		n := min(uint64(len(buf)), size-size%entry)
		if err := f.ReadVaddr(buf[:n], addr); err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) {
				return fmt.Errorf("relocations are cut: %w", ErrMalformed)
			}
			return err
		}
		for b := buf[:n]; len(b) > 0; b = b[entry:] {
			info := binary.LittleEndian.Uint64(b[8:])
			if info&0xffffffff == relative && !visit(binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[16:])) {
				return nil
			}
		}
		addr, size = addr+n, size-n
	}
	return nil
}
