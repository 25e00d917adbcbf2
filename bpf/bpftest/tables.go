package bpftest

import (
	"encoding/binary"
	"unsafe"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/cfi"
	"github.com/kalypso-dev/kalypso/profiler/unwind"
)

// stopTruncated and its like are profiler's, in the kernel's type.
const stopTruncated = uint32(profiler.StopTruncated)

// Tables are unwind tables as bytes, each entry laid out as in contract.h.
type Tables struct {
	Mappings, Executables, Pages, Rows, Rules []byte
}

func (t *Tables) all() []*[]byte {
	return []*[]byte{&t.Mappings, &t.Executables, &t.Pages, &t.Rows, &t.Rules}
}

// Sizes of their entries.
const (
	mappingBytes    = 32
	executableBytes = 16
	pageBytes       = 16
	rowBytes        = 4
	ruleBytes       = 16
)

// AddMapping appends a mapping.
func (t *Tables) AddMapping(start, end, bias uint64, executable, kind uint32) {
	for _, v := range []uint64{start, end, bias} {
		t.Mappings = binary.LittleEndian.AppendUint64(t.Mappings, v)
	}
	t.Mappings = appendWords(t.Mappings, executable, kind)
}

// AddExecutable appends an executable.
func (t *Tables) AddExecutable(pages, firstPage, count uint32) {
	t.Executables = appendWords(t.Executables, pages, firstPage, count, 0)
}

// AddPage appends a page.
func (t *Tables) AddPage(first, count uint32) {
	t.Pages = appendWords(t.Pages, first, count, 0, 0)
}

// AddRow appends a row: from the offset in its page on, a rule holds.
func (t *Tables) AddRow(low, rule uint16) {
	t.Rows = appendWords(t.Rows, uint32(low)<<16|uint32(rule))
}

// AddRule appends a rule.
func (t *Tables) AddRule(r cfi.Rule) {
	b := *(*[ruleBytes]byte)(unsafe.Pointer(&r)) // laid out as struct klp_rule
	t.Rules = append(t.Rules, b[:]...)
}

func appendWords(b []byte, words ...uint32) []byte {
	for _, w := range words {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}

// Space is what package unwind asks, answered from tables in the very way of
// native.h: of tables that make no sense too, both must make the same.
type Space struct {
	*Tables
	first, count uint32
	current      unwind.Mapping
}

// Space gives the address space of a slice of the table of mappings.
func (t *Tables) Space(first, count uint32) *Space {
	return &Space{Tables: t, first: first, count: count}
}

// entry gives an entry of a table, nil past its end.
func entry(table []byte, size, i uint32) []byte {
	if uint64(i) >= uint64(len(table))/uint64(size) {
		return nil
	}
	return table[i*size : (i+1)*size]
}

// Mapping implements unwind.Space.
func (s *Space) Mapping(addr uint64) (unwind.Mapping, bool) {
	if addr >= s.current.Start && addr < s.current.End {
		return s.current, true
	}
	low, high := uint32(0), s.count
	for range 16 {
		if low >= high {
			break
		}
		mid := (low + high) / 2
		m := entry(s.Mappings, mappingBytes, s.first+mid)
		if m == nil {
			return unwind.Mapping{}, false
		}
		if binary.LittleEndian.Uint64(m) <= addr {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low == 0 {
		return unwind.Mapping{}, false
	}
	m := entry(s.Mappings, mappingBytes, s.first+low-1)
	if m == nil {
		return unwind.Mapping{}, false
	}
	out := unwind.Mapping{
		Start: binary.LittleEndian.Uint64(m), End: binary.LittleEndian.Uint64(m[8:]),
		Bias: binary.LittleEndian.Uint64(m[16:]), Executable: binary.LittleEndian.Uint32(m[24:]),
		FramePointer: binary.LittleEndian.Uint32(m[28:]) == 1,
	}
	if addr < out.Start || addr >= out.End {
		return unwind.Mapping{}, false
	}
	s.current = out
	return out, true
}

// Rule implements unwind.Space.
func (s *Space) Rule(executable uint32, offset uint64) (cfi.Rule, profiler.Stop) {
	none := func() (cfi.Rule, profiler.Stop) { return cfi.Rule{}, profiler.StopNoTable }
	exe := entry(s.Executables, executableBytes, executable)
	if exe == nil {
		return none()
	}
	word := func(b []byte, i int) uint32 { return binary.LittleEndian.Uint32(b[4*i:]) }
	number := uint32(offset>>16) - word(exe, 1)
	if number >= word(exe, 2) {
		return none()
	}
	page := entry(s.Pages, pageBytes, word(exe, 0)+number)
	if page == nil || word(page, 1) == 0 || word(page, 1) == 0xffffffff {
		return none()
	}
	first, low, high := word(page, 0), uint32(0), word(page, 1)
	for range 17 {
		if low >= high {
			break
		}
		mid := (low + high) >> 1
		row := entry(s.Rows, rowBytes, first+mid)
		if row == nil {
			return none()
		}
		if word(row, 0) <= uint32(offset)<<16|0xffff {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low == 0 {
		return none()
	}
	row := entry(s.Rows, rowBytes, first+low-1)
	if row == nil {
		return none()
	}
	rule := entry(s.Rules, ruleBytes, word(row, 0)&0xffff)
	if rule == nil {
		return none()
	}
	var r cfi.Rule
	copy((*[ruleBytes]byte)(unsafe.Pointer(&r))[:], rule)
	return r, profiler.StopNone
}

// Walk walks a copied stack in Go. Where it ends for the reason that the copy
// is too short the kernel side, which has all memory, could not read it.
func (t *Tables) Walk(in *Input) Outcome {
	frames, stop := unwind.Walk(nil, &in.Copy, t.Space(in.First, in.Mappings))
	out := Outcome{Frames: frames, Stop: uint32(stop)}
	if stop == profiler.StopTruncated && len(frames) < unwind.MaxFrames {
		out.Stop = uint32(profiler.StopBadRead)
	}
	for _, f := range frames {
		out.Hash = (out.Hash ^ f) * 0x9e3779b97f4a7c15
		out.Hash ^= out.Hash >> 29
	}
	return out
}
