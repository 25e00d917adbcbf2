package golang

import (
	"debug/elf"
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/profiler/cfi"
)

// cfaRow is the distance from SP to the CFA from an address on.
type cfaRow struct {
	pc  uint64
	off int64
}

// fde is one function in .debug_frame as the Go linker writes it.
type fde struct {
	low, high uint64
	rows      []cfaRow
}

// debugFrame reads the linker's .debug_frame: one CIE per file and few
// opcodes (cmd/link/internal/ld/dwarf.go, writeframes).
func debugFrame(t *testing.T, p *Program) []fde {
	t.Helper()
	d, err := p.win.file.SectionData(".debug_frame")
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	start := int64(8)
	if p.machine == elf.EM_AARCH64 {
		start = 0
	}
	uleb := func(b []byte) (uint64, []byte) {
		v, n := binary.Uvarint(b)
		return v, b[n:]
	}
	sleb := func(b []byte) (int64, []byte) {
		var v int64
		for shift := 0; ; shift += 7 {
			c := b[0]
			b = b[1:]
			v |= int64(c&0x7f) << shift
			if c < 0x80 {
				if c&0x40 != 0 {
					v |= -1 << (shift + 7)
				}
				return v, b
			}
		}
	}
	var all []fde
	type cie struct {
		quantum uint64
		align   int64
	}
	cies := map[uint32]cie{} // by offset
	for off := uint32(0); int(off)+8 <= len(d); {
		size := le.Uint32(d[off:])
		body := d[off+4 : off+4+size]
		at := off
		off += 4 + size
		if id := le.Uint32(body); id == ^uint32(0) {
			b := body[5:] // id, version
			if b[0] != 0 {
				continue // not Go's: an augmentation
			}
			quantum, b := uleb(b[1:])
			align, _ := sleb(b)
			cies[at] = cie{quantum, align}
			continue
		}
		c, ok := cies[le.Uint32(body)]
		if !ok {
			continue
		}
		f := fde{low: le.Uint64(body[4:])}
		f.high = f.low + le.Uint64(body[12:])
		pc := f.low
		cfa := start
		b := body[20:]
		set := func() { f.rows = append(f.rows, cfaRow{pc, cfa}) }
		set()
		for len(b) > 0 {
			op := b[0]
			b = b[1:]
			var u uint64
			switch {
			case op == 0: // DW_CFA_nop
			case op>>6 == 1:
				pc += uint64(op&0x3f) * c.quantum
			case op == 2:
				pc += uint64(b[0]) * c.quantum
				b = b[1:]
			case op == 3:
				pc += uint64(le.Uint16(b)) * c.quantum
				b = b[2:]
			case op == 4:
				pc += uint64(le.Uint32(b)) * c.quantum
				b = b[4:]
			case op == 0x0e:
				u, b = uleb(b)
				cfa = int64(u)
				set()
			case op == 0x13: // def_cfa_offset_sf
				cfa, b = sleb(b)
				cfa *= c.align
				set()
			case op == 0x11: // offset_extended_sf
				_, b = uleb(b)
				_, b = sleb(b)
			case op>>6 == 2, op == 6, op == 7, op == 8: // offset, restore_extended, undefined, same_value
				_, b = uleb(b)
			case op == 0x14: // val_offset
				_, b = uleb(b)
				_, b = uleb(b)
			default:
				t.Fatalf("opcode %#x in .debug_frame", op)
			}
		}
		all = append(all, f)
	}
	return all
}

func allRows(t testing.TB, p *Program) []cfi.Row {
	t.Helper()
	var all []cfi.Row
	for _, r := range p.Ranges() {
		for low := r.Low; low < r.High; {
			high := min(low&^0xffff+0x10000, r.High)
			rows, err := p.Rows(nil, low, high)
			if err != nil {
				t.Fatal(err)
			}
			if len(rows) == 0 || rows[0].PC != low {
				t.Fatalf("page %#x: first row %+v", low, rows)
			}
			all = append(all, rows...)
			low = high
		}
	}
	for i := 1; i < len(all); i++ {
		if all[i].PC <= all[i-1].PC {
			t.Fatalf("rows %d at %#x and %#x are not in order", i, all[i-1].PC, all[i].PC)
		}
	}
	return all
}

// at is the rule for pc.
func at(rows []cfi.Row, pc uint64) cfi.Rule {
	low, high := 0, len(rows)
	for high-low > 1 {
		if mid := (low + high) / 2; rows[mid].PC <= pc {
			low = mid
		} else {
			high = mid
		}
	}
	return rows[low].Rule
}

func TestRowsAgreeWithDebugFrame(t *testing.T) {
	for _, v := range variants {
		if v.stripped {
			continue
		}
		t.Run(v.name, func(t *testing.T) {
			p := open1(t, build(t, v))
			rows := allRows(t, p)
			text := p.Ranges()[0]
			compared, other := 0, map[string]int{}
			for _, f := range debugFrame(t, p) {
				if f.low < text.Low || f.high > text.High {
					continue
				}
				for i, want := range f.rows {
					if i+1 < len(f.rows) && f.rows[i+1].pc == want.pc || want.pc >= f.high {
						continue
					}
					got := at(rows, want.pc)
					if got.CFA == cfi.CFASP {
						compared++
						if int64(got.CFAOff) != want.off {
							t.Errorf("%#x: CFA is SP+%d, in .debug_frame SP+%d", want.pc, got.CFAOff, want.off)
						}
						continue
					}
					frames := symbolize(t, p, want.pc)
					other[frames[len(frames)-1].Function]++
				}
			}
			t.Logf("%d rows compared, %d rows in all; not by SP: %v", compared, len(rows), other)
			if compared < 5000 {
				t.Errorf("only %d rows compared", compared)
			}
			if len(other) > 40 {
				t.Errorf("%d functions are not unwound by SP", len(other))
			}
		})
	}
}

func TestStrippedRowsAreTheSame(t *testing.T) {
	a, b := open1(t, build(t, variants[0])), open1(t, build(t, variants[1]))
	if diff := cmp.Diff(allRows(t, b), allRows(t, a), cmp.AllowUnexported(cfi.Rule{})); diff != "" {
		t.Errorf("(-stripped +whole):\n%s", diff)
	}
	for pc := a.tab.low; pc < a.tab.high; pc += 997 {
		if diff := cmp.Diff(symbolize(t, b, pc), symbolize(t, a, pc)); diff != "" {
			t.Fatalf("%#x (-stripped +whole):\n%s", pc, diff)
		}
	}
}
