package elffile

import (
	"cmp"
	"debug/elf"
	"encoding/binary"
	"io"
	"math"
	"slices"
	"sort"
)

const (
	maxPLTBytes        = 4 << 20
	maxRelocationBytes = 256 << 20
)

// stub is one entry of a procedure linkage table while its name is looked for.
type stub struct {
	addr uint64
	size uint32
	got  uint64 // the slot it jumps through; 0 when index is used
	push int64  // its number among the .rela.plt entries, or -1
}

// Relocation types that fill a slot with the address of a function.
func slotRelocation(m elf.Machine, kind uint32) (resolved, indirect bool) {
	switch m {
	case elf.EM_X86_64:
		r := elf.R_X86_64(kind)
		return r == elf.R_X86_64_JMP_SLOT || r == elf.R_X86_64_GLOB_DAT, r == elf.R_X86_64_IRELATIVE
	case elf.EM_AARCH64:
		r := elf.R_AARCH64(kind)
		return r == elf.R_AARCH64_JUMP_SLOT || r == elf.R_AARCH64_GLOB_DAT, r == elf.R_AARCH64_IRELATIVE
	}
	return false, false
}

// pltStubs names the stubs through which calls to other files go. They have no
// symbols; each jumps through a slot, and a relocation of that slot says
// which function it is for. b.raws must be sorted.
func (b *builder) pltStubs() []raw {
	f := b.file
	if f.ELF.Class != elf.ELFCLASS64 || f.ELF.ByteOrder != binary.LittleEndian {
		return nil
	}
	var stubs []stub
	for _, s := range f.ELF.Sections {
		switch s.Name {
		case ".plt", ".plt.sec", ".plt.got", ".iplt":
		default:
			continue
		}
		if s.Type != elf.SHT_PROGBITS || s.FileSize > b.pltLeft || s.Flags&elf.SHF_COMPRESSED != 0 {
			continue
		}
		b.pltLeft -= s.FileSize
		code := make([]byte, s.FileSize)
		n, _ := f.reader.ReadAt(code, int64(s.Offset))
		code = code[:n]
		switch f.ELF.Machine {
		case elf.EM_X86_64:
			stubs = append(stubs, stubsX86(code, s.Addr, s.Entsize == 8 || s.Entsize == 0 && s.Addralign == 8)...)
		case elf.EM_AARCH64:
			stubs = append(stubs, stubsARM64(code, s.Addr)...)
		}
	}
	if len(stubs) == 0 {
		return nil
	}
	slices.SortFunc(stubs, func(x, y stub) int {
		return cmp.Or(cmp.Compare(x.got, y.got), cmp.Compare(x.push, y.push), cmp.Compare(x.addr, y.addr))
	})
	var out []raw
	name := func(st stub, name uint32) {
		end, ok := b.spanEnd(st.addr)
		if !ok || st.addr < b.base || st.addr-b.base > math.MaxUint32-maxFunctionBytes {
			return
		}
		size := min(uint64(st.size), end-st.addr)
		out = append(out, raw{off: uint32(st.addr - b.base), size: uint32(size) | flagPLT, name: name, rank: rankSized | rankFunction})
	}
	for _, s := range f.ELF.Sections {
		if s.Type == elf.SHT_RELA && s.Flags&elf.SHF_ALLOC != 0 && s.Flags&elf.SHF_COMPRESSED == 0 {
			b.nameStubs(s, stubs, name)
		}
	}
	// Two relocations of one slot would give two names: keep the first.
	slices.SortStableFunc(out, func(x, y raw) int { return cmp.Compare(x.off, y.off) })
	return slices.CompactFunc(out, func(x, y raw) bool { return x.off == y.off })
}

// nameStubs goes through the relocations in section s.
func (b *builder) nameStubs(s *elf.Section, stubs []stub, name func(stub, uint32)) {
	const width = 24 // Elf64_Rela
	f := b.file
	names, symOff, symCount := b.relocationNames(s)
	size := min(s.FileSize, b.relocationsLeft)
	b.relocationsLeft -= size
	r := io.NewSectionReader(f.reader, int64(s.Offset), int64(size))
	var buf [256 * width]byte
	for number := int64(0); ; {
		n, err := io.ReadFull(r, buf[:])
		for p := buf[:n]; len(p) >= width; p = p[width:] {
			slot := binary.LittleEndian.Uint64(p)
			info := binary.LittleEndian.Uint64(p[8:])
			addend := binary.LittleEndian.Uint64(p[16:])
			resolved, indirect := slotRelocation(f.ELF.Machine, uint32(info))
			index := int64(-1)
			if s.Name == ".rela.plt" {
				index = number
			}
			number++
			if !resolved && !indirect {
				continue
			}
			var found uint32
			ok := false
			looked := false
			for _, st := range matching(stubs, slot, index) {
				if !looked {
					looked = true
					if indirect {
						found, ok = b.nameAt(addend)
					} else if id := info >> 32; names != nil && id < symCount {
						var rec [elf.Sym64Size]byte
						if _, err := f.reader.ReadAt(rec[:], symOff+int64(id)*elf.Sym64Size); err == nil {
							off := f.decodeSym(rec[:]).name
							found, ok = names.first+off, off != 0 && off < names.size
						}
					}
				}
				if ok {
					name(st, found)
				}
			}
		}
		if err != nil {
			return
		}
	}
}

// matching lists the stubs that jump through slot or push index.
func matching(stubs []stub, slot uint64, index int64) []stub {
	low := sort.Search(len(stubs), func(i int) bool { return stubs[i].got >= slot })
	high := low
	for high < len(stubs) && stubs[high].got == slot && slot != 0 {
		high++
	}
	found := stubs[low:high:high]
	if index >= 0 { // those with got 0 come first, sorted by push
		i := sort.Search(len(stubs), func(i int) bool { return stubs[i].got > 0 || stubs[i].push >= index })
		for ; i < len(stubs) && stubs[i].got == 0 && stubs[i].push == index; i++ {
			found = append(found, stubs[i])
		}
	}
	return found
}

// relocationNames finds the symbol table that a relocation section refers to,
// and its string table among the builder's sources.
func (b *builder) relocationNames(s *elf.Section) (names *nameSource, off int64, count uint64) {
	sections := b.file.ELF.Sections
	if s.Link == 0 || int(s.Link) >= len(sections) {
		return nil, 0, 0
	}
	syms := sections[s.Link]
	if syms.Type != elf.SHT_DYNSYM || syms.Link == 0 || int(syms.Link) >= len(sections) {
		return nil, 0, 0
	}
	str := sections[syms.Link]
	if str.Type != elf.SHT_STRTAB {
		return nil, 0, 0
	}
	for i := range b.sources {
		if src := &b.sources[i]; src.r == b.file.reader && src.off == int64(str.Offset) {
			return src, int64(syms.Offset), syms.FileSize / elf.Sym64Size
		}
	}
	names, ok := b.addSource(b.file.reader, int64(str.Offset), str.FileSize, 0)
	if !ok {
		return nil, 0, 0
	}
	return names, int64(syms.Offset), syms.FileSize / elf.Sym64Size
}

// nameAt gives the name of the symbol that starts at addr.
func (b *builder) nameAt(addr uint64) (uint32, bool) {
	if addr < b.base || addr-b.base > math.MaxUint32 {
		return 0, false
	}
	off := uint32(addr - b.base)
	low := sort.Search(len(b.raws), func(i int) bool { return b.raws[i].off >= off })
	high := low
	for high < len(b.raws) && b.raws[high].off == off {
		high++
	}
	if low == high {
		return 0, false
	}
	return b.best(b.raws[low:high]).name, true
}

// stubsX86 finds "jmp *slot(%rip)" in the entries of a PLT section, after an
// optional endbr64 and bnd prefix, and "push $index" in the lazy entries that
// are paired with a .plt.sec (System V ABI for x86-64, 5.2 and 13.1). Entries
// have 16 bytes, or 8 where nothing is lazy: .plt.got, static programs.
func stubsX86(code []byte, addr uint64, short bool) []stub {
	width := uint64(16)
	if short {
		width = 8
	}
	var out []stub
	for off := uint64(0); off+width <= uint64(len(code)); off += width {
		p := code[off : off+width]
		at := 0
		if binary.LittleEndian.Uint32(p) == 0xfa1e0ff3 { // endbr64
			at = 4
		}
		s := stub{addr: addr + off, size: uint32(width), push: -1}
		jump := at
		if p[jump] == 0xf2 { // bnd
			jump++
		}
		switch {
		case jump+6 <= len(p) && p[jump] == 0xff && p[jump+1] == 0x25:
			rel := int32(binary.LittleEndian.Uint32(p[jump+2:]))
			s.got = s.addr + uint64(jump+6) + uint64(int64(rel))
		case at+5 <= len(p) && p[at] == 0x68:
			s.push = int64(binary.LittleEndian.Uint32(p[at+1:]))
		default:
			continue // the first entry, which calls the dynamic linker
		}
		out = append(out, s)
	}
	return out
}

// stubsARM64 finds "adrp x16, page; ldr x17, [x16, #low]", with a "bti c" before
// it in some files (ELF for the Arm 64-bit Architecture, appendix "PLT").
func stubsARM64(code []byte, addr uint64) []stub {
	var out []stub
	word := func(i int) uint32 { return binary.LittleEndian.Uint32(code[i:]) }
	for i := 0; i+8 <= len(code); i += 4 {
		adrp, ldr := word(i), word(i+4)
		if adrp&0x9f00001f != 0x90000010 || ldr&0xffc003ff != 0xf9400211 {
			continue
		}
		pages := int64(int32((adrp>>5&0x7ffff)<<2|adrp>>29&3)<<11) >> 11 // 21 bits, signed
		got := (addr+uint64(i))&^4095 + uint64(pages<<12) + uint64(ldr>>10&0xfff)*8
		start, size := i, uint32(16)
		if i >= 4 && word(i-4) == 0xd503245f { // bti c
			start, size = i-4, 24
		}
		out = append(out, stub{addr: addr + uint64(start), size: size, got: got, push: -1})
	}
	return out
}
