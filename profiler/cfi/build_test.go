package cfi

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"testing"

	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

// Where image puts things: a file of one segment, mapped where its offsets are.
const (
	imageHdr   = 0x200
	imageCode  = 0x1000
	imageLimit = 0x11000 // end of code
	imageCFI   = 0x11000
)

// image makes an ELF file without section headers: 64 KiB of code that is nops
// but for the given bytes at its start, hdr as .eh_frame_hdr, cfi as .eh_frame.
func image(m elf.Machine, code, hdr, cfi []byte) []byte {
	size := uint64(imageCFI + len(cfi))
	var b bytes.Buffer
	eh := elf.Header64{Type: uint16(elf.ET_DYN), Machine: uint16(m), Version: 1, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 2, Shentsize: 64}
	copy(eh.Ident[:], elf.ELFMAG)
	eh.Ident[elf.EI_CLASS], eh.Ident[elf.EI_DATA], eh.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	write := func(v any) { _ = binary.Write(&b, binary.LittleEndian, v) } // a Buffer does not fail
	write(eh)
	write(elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Filesz: size, Memsz: size, Align: 0x1000})
	write(elf.Prog64{Type: uint32(elf.PT_GNU_EH_FRAME), Flags: uint32(elf.PF_R), Off: imageHdr, Vaddr: imageHdr, Filesz: imageCode - imageHdr, Memsz: imageCode - imageHdr})
	out := make([]byte, size)
	copy(out, b.Bytes())
	copy(out[imageHdr:imageCode], hdr)
	for i := imageCode; i < imageLimit; i++ {
		out[i] = 0x90
	}
	copy(out[imageCode:imageLimit], code)
	copy(out[imageCFI:], cfi)
	return out
}

// plainHdr is an .eh_frame_hdr that has only the address of .eh_frame.
func plainHdr() []byte {
	return binary.LittleEndian.AppendUint32([]byte{1, peUdata4, peOmit, peOmit}, imageCFI)
}

func openImage(t testing.TB, data []byte) (*elffile.File, *Index, error) {
	t.Helper()
	f, err := elffile.NewFile(bytes.NewReader(data), int64(len(data)), t.Name())
	if err != nil {
		return nil, nil, err
	}
	x, err := Open(f)
	return f, x, err
}

// entries assembles CIEs and FDEs of .eh_frame or .debug_frame.
type entries struct {
	b     []byte
	wide  bool // 64-bit lengths
	debug bool // .debug_frame
}

func (e *entries) add(id func(at int) uint64, body []byte) int {
	off := len(e.b)
	idSize := 4
	if e.wide {
		idSize = 8
		e.b = append(e.b, 0xff, 0xff, 0xff, 0xff)
	}
	for (idSize+len(body))%8 != 0 {
		body = append(body, opNop)
	}
	if e.wide {
		e.b = binary.LittleEndian.AppendUint64(e.b, uint64(idSize+len(body)))
		e.b = binary.LittleEndian.AppendUint64(e.b, id(len(e.b)))
	} else {
		e.b = binary.LittleEndian.AppendUint32(e.b, uint32(idSize+len(body)))
		e.b = binary.LittleEndian.AppendUint32(e.b, uint32(id(len(e.b))))
	}
	e.b = append(e.b, body...)
	return off
}

// cie adds a version 1 CIE: code factor 1 or 4 and data factor -8 by machine.
func (e *entries) cie(m elf.Machine, aug string, augData, program []byte) int {
	body := append([]byte{1}, aug...)
	body = append(body, 0)
	if m == elf.EM_AARCH64 {
		body = append(body, 4, 0x78, 30)
	} else {
		body = append(body, 1, 0x78, 16)
	}
	if aug != "" {
		body = append(body, byte(len(augData)))
		body = append(body, augData...)
	}
	return e.add(func(int) uint64 {
		if e.debug {
			return ^uint64(0)
		}
		return 0
	}, append(body, program...))
}

// fde adds an FDE with absolute 8-byte addresses.
func (e *entries) fde(cie int, start, size uint64, augmented bool, program []byte) {
	body := binary.LittleEndian.AppendUint64(nil, start)
	body = binary.LittleEndian.AppendUint64(body, size)
	if augmented {
		body = append(body, 0)
	}
	e.add(func(at int) uint64 {
		if e.debug {
			return uint64(cie)
		}
		return uint64(at - cie)
	}, append(body, program...))
}

var (
	// What gcc puts into CIEs: def_cfa rsp+8, rip at c-8; def_cfa sp+0.
	x86Start = []byte{opDefCFA, 7, 8, 0x80 | 16, 1}
	armStart = []byte{opDefCFA, 31, 0}
)

// checkRows holds what Rows promises of any input.
func checkRows(t testing.TB, rows []Row, low, high uint64) {
	t.Helper()
	if len(rows) == 0 || rows[0].PC != low {
		t.Fatalf("rows of %#x-%#x do not start there: %v", low, high, rows)
	}
	for i, r := range rows {
		if r.PC >= high || i > 0 && (r.PC <= rows[i-1].PC || r.Rule == rows[i-1].Rule) {
			t.Fatalf("row %d of %#x-%#x out of order or repeated: %+v after %+v", i, low, high, r, rows[max(i-1, 0)])
		}
	}
}
