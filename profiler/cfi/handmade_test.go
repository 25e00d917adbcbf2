package cfi

import (
	"debug/elf"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// describe writes rows as "address: cfa fp ra" lines.
func describe(rows []Row, m elf.Machine) []string {
	var out []string
	for _, r := range rows {
		cfa, fp, ra := r.Rule.Text(m)
		out = append(out, strings.TrimSpace(fmt.Sprintf("%x: %s %s %s", r.PC, cfa, fp, ra)))
	}
	return out
}

// TestHandmadeEntries runs entries that no assembler at hand would write, and
// those of aarch64, for which CI has no linker.
func TestHandmadeEntries(t *testing.T) {
	const x86, arm = elf.EM_X86_64, elf.EM_AARCH64
	tests := []struct {
		name    string
		machine elf.Machine
		code    []byte
		build   func(e *entries)
		high    uint64
		want    []string
	}{
		{
			name: "64-bit lengths", machine: x86, high: 0x1030,
			build: func(e *entries) {
				e.wide = true
				c := e.cie(x86, "", nil, x86Start)
				e.fde(c, 0x1000, 0x20, false, []byte{0x41, opDefCFAOffset, 16, 0x80 | 6, 2})
			},
			want: []string{"1000: rsp+8 same c-8", "1001: rsp+16 c-16 c-8", "1020: none"},
		},
		{
			name: "every way to advance", machine: x86, high: 0x20000,
			build: func(e *entries) {
				c := e.cie(x86, "zR", []byte{peAbsptr}, x86Start)
				e.fde(c, 0x1000, 0x5000, true, []byte{
					0x7f, opDefCFAOffset, 16, // +63
					opAdvanceLoc1, 0xff, opDefCFAOffset, 24,
					opAdvanceLoc2, 0, 1, opDefCFAOffset, 32,
					opAdvanceLoc4, 0, 2, 0, 0, opDefCFAOffset, 40,
					opAdvanceLoc8, 0, 4, 0, 0, 0, 0, 0, 0, opDefCFAOffset, 48,
					opSetLoc, 0, 0x20, 0, 0, 0, 0, 0, 0, opDefCFAOffset, 56,
					opAdvanceLoc4, 0xff, 0xff, 0xff, 0xff, opDefCFAOffset, 64, // past the end
				})
			},
			want: []string{"1000: rsp+8 same c-8", "103f: rsp+16 same c-8", "113e: rsp+24 same c-8", "123e: rsp+32 same c-8",
				"143e: rsp+40 same c-8", "183e: rsp+48 same c-8", "2000: rsp+56 same c-8", "6000: none"},
		},
		{
			name: "going back ends what is known", machine: x86, high: 0x1020,
			build: func(e *entries) {
				c := e.cie(x86, "", nil, x86Start)
				e.fde(c, 0x1000, 0x20, false, []byte{0x44, opDefCFAOffset, 16, opSetLoc, 0, 0x10, 0, 0, 0, 0, 0, 0})
			},
			want: []string{"1000: rsp+8 same c-8", "1004: unsupported"},
		},
		{
			name: "unknown instructions and unbalanced restores are unsupported from there on", machine: x86, high: 0x1050,
			build: func(e *entries) {
				c := e.cie(x86, "", nil, x86Start)
				e.fde(c, 0x1000, 0x10, false, []byte{0x44, 0x3f})
				e.fde(c, 0x1010, 0x10, false, []byte{0x44, opRestoreState})
				e.fde(c, 0x1020, 0x10, false, []byte{0x44, opDefCFAExpression, 0x7f})
			},
			want: []string{"1000: rsp+8 same c-8", "1004: unsupported", "1010: rsp+8 same c-8", "1014: unsupported",
				"1020: rsp+8 same c-8", "1024: unsupported", "1030: none"},
		},
		{
			name: "factored and signed forms", machine: x86, high: 0x1010,
			build: func(e *entries) {
				c := e.cie(x86, "", nil, x86Start)
				e.fde(c, 0x1000, 0x10, false, []byte{
					0x41, opDefCFASF, 7, 0x7e, // rsp + -2*-8
					0x41, opDefCFAOffsetSF, 0x7d, // 24
					0x41, opOffsetExtended, 6, 2, // c-16
					0x41, opOffsetExtendedSF, 6, 0x7d, // c+24
					0x41, opNegativeOffset, 6, 1, // c+8
					0x41, opRestoreExtended, 6,
					0x41, opArgsSize, 16, opSameValue, 6, opDefCFARegister, 6,
					0x41, opUndefined, 6,
				})
			},
			want: []string{"1000: rsp+8 same c-8", "1001: rsp+16 same c-8", "1002: rsp+24 same c-8", "1003: rsp+24 c-16 c-8",
				"1004: rsp+24 c+24 c-8", "1005: rsp+24 c+8 c-8", "1006: rsp+24 same c-8", "1007: rbp+24 same c-8", "1008: rbp+24 lost c-8"},
		},
		{
			name: "an entry ends where the next one starts", machine: x86, high: 0x1030,
			build: func(e *entries) {
				c := e.cie(x86, "", nil, x86Start)
				e.fde(c, 0x1010, 0x10, false, []byte{opDefCFAOffset, 32})
				e.fde(c, 0x1000, 0x18, false, nil)
			},
			want: []string{"1000: rsp+8 same c-8", "1010: rsp+32 same c-8", "1020: none"},
		},
		{
			name: "no CFA and no return address end the stack", machine: x86, high: 0x1020,
			build: func(e *entries) {
				e.fde(e.cie(x86, "", nil, nil), 0x1000, 0x10, false, nil)
				e.fde(e.cie(x86, "", nil, x86Start), 0x1010, 0x8, false, []byte{0x44, opUndefined, 16})
			},
			want: []string{"1000: stop", "1010: rsp+8 same c-8", "1014: stop", "1018: none"},
		},
		{
			name: "offsets that do not fit are unsupported", machine: x86, high: 0x1010,
			build: func(e *entries) {
				c := e.cie(x86, "", nil, x86Start)
				e.fde(c, 0x1000, 0x10, false, []byte{0x42, opDefCFAOffset, 0x80, 0x80, 0x80, 0x80, 0x10, 0x42, opDefCFA, 33, 0})
			},
			want: []string{"1000: rsp+8 same c-8", "1002: unsupported"},
		},
		{
			name: "rt_sigreturn without an entry, and the byte before", machine: x86, high: 0x1010,
			code: append([]byte{0x90, 0x90}, x8664.sigreturn...),
			build: func(e *entries) {
				e.fde(e.cie(x86, "", nil, x86Start), 0x100c, 4, false, nil)
			},
			want: []string{"1000: none", "1001: signal frame, ucontext at rsp+0", "100b: none", "100c: rsp+8 same c-8"},
		},
		{
			name: "aarch64: frame record at the low end, signed return address", machine: arm, high: 0x1040,
			build: func(e *entries) {
				c := e.cie(arm, "zRB", []byte{peAbsptr}, armStart)
				e.fde(c, 0x1000, 0x30, true, []byte{
					0x41, opNegateRAState,
					0x41, opDefCFAOffset, 48, 0x80 | 29, 6, 0x80 | 30, 5,
					0x41, opDefCFARegister, 29,
					0x41, 0xc0 | 29, 0xc0 | 30, opDefCFA, 31, 0,
				})
			},
			want: []string{"1000: sp+0 same same", "1008: sp+48 c-48 c-40", "100c: x29+48 c-48 c-40", "1010: sp+0 same same", "1030: none"},
		},
		{
			name: "aarch64: frame of 64 KiB", machine: arm, high: 0x1008,
			build: func(e *entries) {
				c := e.cie(arm, "", nil, armStart)
				e.fde(c, 0x1000, 8, false, []byte{opDefCFAOffset, 0x80, 0x80, 4, 0x80 | 29, 0x80, 0x40, 0x80 | 30, 0xff, 0x3f})
			},
			want: []string{"1000: sp+65536 *(sp+0) *(sp+8)"},
		},
		{
			name: "aarch64: signal frame by its stub", machine: arm, high: 0x1020,
			code: append([]byte{0x1f, 0x20, 0x03, 0xd5}, aarch64.sigreturn...),
			build: func(e *entries) {
				c := e.cie(arm, "zRS", []byte{peAbsptr}, armStart)
				e.fde(c, 0x1000, 12, true, []byte{opDefCFA, 29, 0, 0x80 | 29, 0})
			},
			want: []string{"1000: signal frame, ucontext at sp+128", "100c: none"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := &entries{}
			tt.build(e)
			data := image(tt.machine, tt.code, plainHdr(), append(e.b, 0, 0, 0, 0))
			_, x, err := openImage(t, data)
			if err != nil {
				t.Fatal(err)
			}
			rows, err := x.Rows(nil, 0x1000, tt.high)
			if err != nil {
				t.Fatal(err)
			}
			checkRows(t, rows, 0x1000, tt.high)
			if diff := cmp.Diff(describe(rows, tt.machine), tt.want); diff != "" {
				t.Errorf("rows (-got +want):\n%s", diff)
			}
			// Any part of the range says the same.
			for low := uint64(0x1000); low < tt.high && low < 0x1040; low++ {
				one, err := x.Rows(nil, low, low+1)
				if err != nil {
					t.Fatal(err)
				}
				want := Rule{}
				for _, r := range rows {
					if r.PC <= low {
						want = r.Rule
					}
				}
				if len(one) != 1 || one[0].PC != low || one[0].Rule != want {
					t.Errorf("alone, %#x has %v, want %v", low, describe(one, tt.machine), want)
				}
			}
		})
	}
}

// TestRowsBoundWork points thousands of entries at one long program.
func TestRowsBoundWork(t *testing.T) {
	e := &entries{}
	c := e.cie(elf.EM_X86_64, "", nil, x86Start)
	long := make([]byte, 16<<10)
	for i := uint64(0); i < 2000; i++ {
		e.fde(c, 0x1000+i, 1, false, long)
	}
	_, x, err := openImage(t, image(elf.EM_X86_64, nil, plainHdr(), e.b))
	if err != nil {
		t.Fatal(err)
	}
	rows, err := x.Rows([]Row{{PC: 1}}, 0x1000, 0x2000)
	if !errors.Is(err, ErrTooComplex) || len(rows) != 1 {
		t.Errorf("got %d rows and error %v, want the one given and ErrTooComplex", len(rows), err)
	}
}

func TestOpenRefuses(t *testing.T) {
	tests := []struct {
		name string
		data []byte
		want error
	}{
		{"no entries", image(elf.EM_X86_64, nil, plainHdr(), make([]byte, 8)), ErrNoCFI},
		{"damaged header", image(elf.EM_X86_64, nil, []byte{9, 9, 9}, make([]byte, 8)), ErrNoCFI},
		{"other machine", image(elf.EM_RISCV, nil, plainHdr(), make([]byte, 8)), ErrMachine},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, _, err := openImage(t, tt.data); !errors.Is(err, tt.want) {
				t.Errorf("got error %v, want %v", err, tt.want)
			}
		})
	}
}
