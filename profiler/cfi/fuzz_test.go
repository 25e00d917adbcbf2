package cfi

import (
	"bytes"
	"debug/elf"
	"errors"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

// seedFrames are an .eh_frame and .eh_frame_hdr of this machine's C library,
// cut short: a fuzzer spends its time minimizing longer inputs.
func seedFrames(f *testing.F) (frames, hdr []byte) {
	f.Helper()
	file, err := elffile.Open(libc(f))
	if err != nil {
		f.Fatal(err)
	}
	defer file.Close()
	if frames, err = file.SectionData(".eh_frame"); err != nil {
		f.Fatal(err)
	}
	if hdr, err = file.SectionData(".eh_frame_hdr"); err != nil {
		f.Fatal(err)
	}
	return frames[:min(len(frames), 400)], hdr[:min(len(hdr), 200)]
}

// handmade is a small .eh_frame that covers the start of image's code.
func handmade(m elf.Machine, program []byte) []byte {
	e := &entries{}
	start := x86Start
	if m == elf.EM_AARCH64 {
		start = armStart
	}
	c := e.cie(m, "zR", []byte{peAbsptr}, start)
	e.fde(c, imageCode, 0x800, true, program)
	e.fde(c, imageCode+0x900, 0x100, true, nil)
	return append(e.b, 0, 0, 0, 0)
}

// tryImage opens data and builds all rows of image's code. It fails when the
// rows break a promise, when they take long, or when parts differ from the
// whole.
func tryImage(t *testing.T, data []byte) {
	t.Helper()
	start := time.Now()
	_, x, err := openImage(t, data)
	if err != nil {
		return
	}
	const low, high = imageCode, imageLimit
	rows, err := x.Rows(nil, low, high)
	if err != nil {
		if !errors.Is(err, ErrTooComplex) {
			t.Fatalf("unexpected error: %v", err)
		}
		return
	}
	checkRows(t, rows, low, high)
	for _, r := range rows {
		cfa, _, _ := r.Rule.Text(elf.EM_X86_64)
		if cfa == "" || r.Rule.Reg >= 32 || r.Rule.RAKind == RegUndefined || r.Rule.CFA >= CFAFrame {
			t.Fatalf("rule outside the contract: %+v", r.Rule)
		}
	}
	if n := x.Bytes(); n > 64*len(data)+1<<20 {
		t.Fatalf("%d bytes held for a file of %d", n, len(data))
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Fatalf("took %v", d)
	}
}

// FuzzEHFrame feeds CIEs and FDEs.
func FuzzEHFrame(f *testing.F) {
	frames, _ := seedFrames(f)
	f.Add(frames, false)
	f.Add(frames, true)
	f.Add(handmade(elf.EM_X86_64, []byte{0x44, opDefCFAOffset, 16}), false)
	f.Add(handmade(elf.EM_AARCH64, []byte{0x44, opDefCFAOffset, 16}), true)
	f.Fuzz(func(t *testing.T, frames []byte, arm bool) {
		m := elf.EM_X86_64
		if arm {
			m = elf.EM_AARCH64
		}
		tryImage(t, image(m, nil, plainHdr(), frames))
	})
}

// FuzzEHFrameHdr feeds the header and search table of a sound .eh_frame.
func FuzzEHFrameHdr(f *testing.F) {
	_, hdr := seedFrames(f)
	f.Add(hdr)
	f.Add(plainHdr())
	// version 1, udata4 pointer, udata4 count, datarel sdata4 table of two
	f.Add([]byte{1, peUdata4, peUdata4, peDatarel | peSdata4, 0, 0x10, 1, 0, 2, 0, 0, 0,
		0, 0x0e, 0, 0, 0x18, 0x0e, 1, 0, 0, 0x17, 0, 0, 0x40, 0x0e, 1, 0})
	frames := handmade(elf.EM_X86_64, []byte{0x44, opDefCFAOffset, 16})
	f.Fuzz(func(t *testing.T, hdr []byte) {
		tryImage(t, image(elf.EM_X86_64, nil, hdr[:min(len(hdr), imageCode-imageHdr)], frames))
	})
}

// FuzzProgram feeds the instructions of one FDE.
func FuzzProgram(f *testing.F) {
	f.Add([]byte{0x41, opDefCFAOffset, 16, 0x86, 2, 0x43, opDefCFARegister, 6}, false)
	f.Add([]byte{opDefCFAExpression, 3, 0x76, 0x78, exDeref, opExpression, 6, 2, 0x76, 0}, false)
	f.Add([]byte{opDefCFAExpression, 11, 0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, exPlus}, false)
	f.Add([]byte{opRememberState, 0x42, opRestoreState, opValOffset, 6, 1, opSetLoc, 0, 0x12, 0, 0, 0, 0, 0, 0}, false)
	f.Add([]byte{0x41, opNegateRAState, 0x41, opDefCFAOffset, 48, 0x9d, 6, 0x9e, 5, 0x44, 0xdd, 0xde}, true)
	f.Fuzz(func(t *testing.T, program []byte, arm bool) {
		m := elf.EM_X86_64
		if arm {
			m = elf.EM_AARCH64
		}
		tryImage(t, image(m, nil, plainHdr(), handmade(m, program)))
	})
}

// FuzzFile overwrites a part of a sound file: ELF and program headers, too.
func FuzzFile(f *testing.F) {
	f.Add(uint32(0), []byte(elf.ELFMAG), false)
	f.Add(uint32(18), []byte{byte(elf.EM_AARCH64)}, true)
	f.Add(uint32(64+16), []byte{0, 0, 0, 0, 0, 0, 0, 0xff}, false) // p_vaddr
	f.Add(uint32(imageHdr), []byte{1, peUdata4, peUdata4, peDatarel | peSdata4, 0, 0x10, 1, 0, 2}, false)
	f.Add(uint32(imageCode), aarch64.sigreturn, true)
	f.Add(uint32(imageCFI), []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, false)
	f.Fuzz(func(t *testing.T, at uint32, patch []byte, arm bool) {
		m := elf.EM_X86_64
		if arm {
			m = elf.EM_AARCH64
		}
		data := image(m, nil, plainHdr(), handmade(m, []byte{0x44, opDefCFAOffset, 16}))
		copy(data[at%uint32(len(data)):], patch)
		file, err := elffile.NewFile(bytes.NewReader(data), int64(len(data)), "fuzz")
		if err != nil {
			return
		}
		x, err := Open(file)
		if err != nil {
			return
		}
		for _, p := range file.Segments() {
			high := p.Vaddr + min(p.Filesz, 1<<20)
			if high <= p.Vaddr {
				continue
			}
			rows, err := x.Rows(nil, p.Vaddr, high)
			if err != nil {
				continue
			}
			checkRows(t, rows, p.Vaddr, high)
		}
	})
}
