package cfi

import "encoding/binary"

// maxPadding is the longest run between functions that is taken for alignment:
// compilers align to 16 bytes (32 and 64 are rare, and worth their row).
const maxPadding = 16

// bridge drops gaps that are nothing but padding between two entries: nothing
// runs there, and each would cost a row, often two, because a function starts
// with the rule that the one before it ended with. Measured on libc, cc1 and
// node this is 15 to 35 % of all rows.
func (x *Index) bridge(rd *reader, w *writer) {
	rows := w.rows[w.first:]
	kept := rows[:0]
	for i, r := range rows {
		if n := len(kept); n > 0 {
			last := kept[n-1].Rule
			if r.Rule == last {
				continue
			}
			if r.Rule.CFA == CFANone && i+1 < len(rows) && rows[i+1].PC-r.PC < maxPadding && last.CFA >= CFASP && last.CFA <= CFADerefFP &&
				isPadding(x.codeAt(rd, r.PC, int(rows[i+1].PC-r.PC)), x.arch) {
				continue
			}
		}
		kept = append(kept, r)
	}
	w.rows = w.rows[:w.first+len(kept)]
}

// isPadding tells whether code is only what assemblers and linkers fill gaps
// with: zeros, traps, and nops of any length.
func isPadding(code []byte, a *arch) bool {
	if len(code) == 0 {
		return false
	}
	if a.linkRegister {
		for ; len(code) >= 4; code = code[4:] {
			const nop = 0xd503201f
			if v := binary.LittleEndian.Uint32(code); v != 0 && v != nop {
				return false
			}
		}
		return len(code) == 0
	}
	for len(code) > 0 {
		n := nopLength(code)
		if n == 0 || n > len(code) {
			return false
		}
		code = code[n:]
	}
	return true
}

// nopLength is the length of the padding instruction at the start of code, or
// 0. Intel's manual (NOP, table 4-12) recommends 0f 1f with a memory operand
// and 66 prefixes; assemblers put a cs prefix (2e) before the longest.
func nopLength(code []byte) int {
	n := 0
	for n < len(code) && (code[n] == 0x66 || code[n] == 0x2e) {
		n++
	}
	if n == len(code) {
		return 0
	}
	switch {
	case code[n] == 0x90:
		return n + 1
	case n == 0 && (code[0] == 0 || code[0] == 0xcc):
		return 1
	case len(code)-n < 3 || code[n] != 0x0f || code[n+1] != 0x1f:
		return 0
	}
	switch code[n+2] { // ModRM: (%rax), 8-bit, SIB and 8-bit, 32-bit, SIB and 32-bit
	case 0x00:
		return n + 3
	case 0x40:
		return n + 4
	case 0x44:
		return n + 5
	case 0x80:
		return n + 7
	case 0x84:
		return n + 8
	}
	return 0
}
