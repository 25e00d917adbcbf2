package elffile

import (
	"debug/elf"
	"io"
)

// maxDynamicBytes bounds the dynamic segment: real ones have some 40 entries
// of 16 bytes.
const maxDynamicBytes = 64 << 10

// addDynamic adds the symbols that the dynamic segment points to, for files
// without section headers (sstrip, packers, images dumped from memory).
func (b *builder) addDynamic() {
	f := b.file
	var symtab, strtab, strsz, hash, gnuHash uint64
	for _, p := range f.ELF.Progs {
		if p.Type == elf.PT_DYNAMIC {
			f.dynamic(p.Off, min(p.Filesz, maxDynamicBytes), func(tag elf.DynTag, value uint64) {
				switch tag {
				case elf.DT_SYMTAB:
					symtab = value
				case elf.DT_STRTAB:
					strtab = value
				case elf.DT_STRSZ:
					strsz = value
				case elf.DT_HASH:
					hash = value
				case elf.DT_GNU_HASH:
					gnuHash = value
				}
			})
		}
	}
	if symtab == 0 || strtab == 0 {
		return
	}
	var count uint64
	switch {
	case gnuHash != 0:
		count = f.gnuHashCount(gnuHash)
	case hash != 0:
		var head [8]byte
		if f.ReadVaddr(head[:], hash) == nil {
			count = uint64(f.ELF.ByteOrder.Uint32(head[4:])) // nchain: gABI "Hash Table"
		}
	}
	symOff, ok1 := f.fileOffset(symtab)
	strOff, ok2 := f.fileOffset(strtab)
	if !ok1 || !ok2 || count == 0 {
		return
	}
	if names, ok := b.addSource(f.reader, strOff, strsz, 0); ok {
		b.addTable(f, names, symOff, min(count, maxSymbols)*uint64(f.symSize()), true)
	}
}

// dynamic calls each with the entries of a dynamic segment.
func (f *File) dynamic(off, size uint64, each func(elf.DynTag, uint64)) {
	buf := make([]byte, size)
	n, _ := f.reader.ReadAt(buf, int64(off))
	buf = buf[:n]
	bo := f.ELF.ByteOrder
	for {
		var tag, value uint64
		switch {
		case f.ELF.Class == elf.ELFCLASS32 && len(buf) >= 8:
			tag, value, buf = uint64(bo.Uint32(buf)), uint64(bo.Uint32(buf[4:])), buf[8:]
		case f.ELF.Class == elf.ELFCLASS64 && len(buf) >= 16:
			tag, value, buf = bo.Uint64(buf), bo.Uint64(buf[8:]), buf[16:]
		default:
			return
		}
		if elf.DynTag(tag) == elf.DT_NULL {
			return
		}
		each(elf.DynTag(tag), value)
	}
}

// fileOffset finds where the file keeps the byte of a virtual address.
func (f *File) fileOffset(vaddr uint64) (int64, bool) {
	for _, p := range f.ELF.Progs {
		if p.Type == elf.PT_LOAD && vaddr >= p.Vaddr && vaddr-p.Vaddr < p.Filesz {
			off := int64(p.Off + (vaddr - p.Vaddr))
			return off, off >= 0
		}
	}
	return 0, false
}

// gnuHashCount counts the symbols of a DT_GNU_HASH table, which only says
// where the last chain ends: the highest bucket's chain is followed to the
// word whose lowest bit is set.
func (f *File) gnuHashCount(addr uint64) uint64 {
	off, ok := f.fileOffset(addr)
	if !ok {
		return 0
	}
	bo := f.ELF.ByteOrder
	var head [16]byte // nbuckets, symoffset, bloom_size, bloom_shift
	if _, err := f.reader.ReadAt(head[:], off); err != nil {
		return 0
	}
	buckets, first, bloom := uint64(bo.Uint32(head[:])), uint64(bo.Uint32(head[4:])), uint64(bo.Uint32(head[8:]))
	word := int64(8)
	if f.ELF.Class == elf.ELFCLASS32 {
		word = 4
	}
	if buckets > maxSymbols || bloom > maxSymbols {
		return 0
	}
	r := io.NewSectionReader(f.reader, off+16+int64(bloom)*word, 4*int64(buckets))
	last := uint64(0)
	f.words(r, func(w uint32) bool {
		last = max(last, uint64(w))
		return true
	})
	if last < first || last > maxSymbols {
		return 0
	}
	chains := off + 16 + int64(bloom)*word + 4*int64(buckets)
	r = io.NewSectionReader(f.reader, chains+4*int64(last-first), 4*maxSymbols)
	f.words(r, func(w uint32) bool {
		last++
		return w&1 == 0
	})
	return last
}

// words calls each with the 32-bit words of r until it says false.
func (f *File) words(r io.Reader, each func(uint32) bool) {
	var buf [4096]byte
	for {
		n, err := io.ReadFull(r, buf[:])
		for p := buf[:n]; len(p) >= 4; p = p[4:] {
			if !each(f.ELF.ByteOrder.Uint32(p)) {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
