package golang

import (
	"bytes"
	"encoding/binary"

	"github.com/kalypso-dev/kalypso/profiler"
)

// Indices of tables in a function record, the same from Go 1.16 on
// (internal/abi/symtab.go).
const (
	pcdataInlTreeIndex = 2
	funcdataInlTree    = 3
)

const sigreturnName = "runtime.sigreturn"

// symbolize appends the frames of addr. The inline tree says which call was
// inlined at an instruction, and names an instruction of the calling function
// whose line is that of the call (runtime/symtabinl.go).
func (p *Program) symbolize(dst []profiler.Frame, addr uint64) ([]profiler.Frame, error) {
	t, w := &p.tab, p.win
	w.fuel = maxFuel
	if addr < t.low || addr >= t.high {
		return dst, nil
	}
	i, ok, err := t.find(w, addr)
	if err != nil || !ok {
		return dst, err
	}
	fn, err := t.function(w, i)
	if err != nil {
		return dst, err
	}
	// The kernel returns from a signal handler to the first instruction of
	// sigreturn; the caller has stepped back from it into the padding before.
	if addr+1 == fn.end && i+1 < t.nfunc {
		if next, err := t.function(w, i+1); err == nil && p.hasName(&next, sigreturnName) {
			fn, addr = next, next.entry
		}
	}
	tree, err := p.inlineTree(&fn)
	if err != nil {
		return dst, err
	}
	start := len(dst)
	for n := 0; tree != 0 && n < maxInlined; n++ {
		index, err := p.inlineIndex(&fn, addr)
		if err != nil {
			return dst[:start], err
		}
		if index < 0 {
			break
		}
		name, parent, err := t.inlined(w, tree, uint32(index))
		if err != nil {
			return dst[:start], err
		}
		f := profiler.Frame{Kind: profiler.KindGo, Inlined: true}
		if f.Function, err = p.funcName(name); err == nil {
			f.File, f.Line, err = p.fileLine(&fn, addr)
		}
		if err != nil {
			return dst[:start], err
		}
		dst = append(dst, f)
		if parent >= fn.end-fn.entry {
			break
		}
		addr = fn.entry + parent
	}
	f := profiler.Frame{Kind: profiler.KindGo}
	if fn.foreign() {
		f.Kind = profiler.KindNative
	}
	if f.Function, err = p.funcName(fn.name); err == nil {
		f.File, f.Line, err = p.fileLine(&fn, addr)
	}
	if err != nil {
		return dst[:start], err
	}
	return append(dst, f), nil
}

// inlineTree is the address of the function's inline tree, 0 when nothing was
// inlined into it.
func (p *Program) inlineTree(fn *function) (uint64, error) {
	if fn.nfuncdata <= funcdataInlTree || fn.npcdata <= pcdataInlTreeIndex {
		return 0, nil
	}
	at := fn.tail + uint64(fn.npcdata)*4
	if p.tab.layout == layout116 {
		at = (at+7)&^7 + funcdataInlTree*8
		return p.win.uint64(at)
	}
	off, err := p.win.uint32(at + funcdataInlTree*4)
	if err != nil || off == noOffset || p.tab.gofunc == 0 {
		return 0, err
	}
	return p.tab.gofunc + uint64(off), nil
}

func (p *Program) inlineIndex(fn *function, addr uint64) (int32, error) {
	off, err := p.win.uint32(fn.tail + pcdataInlTreeIndex*4)
	if err != nil {
		return -1, err
	}
	return p.tab.value(p.win, off, fn, addr)
}

// inlined reads one record of an inline tree: the name of the called function
// and the distance from the function's entry to the call.
//
// Go 1.20 and later: {funcID uint8; _ [3]uint8; name, parentPC, startLine int32}.
// Before: {parent int16; funcID, _ uint8; file, line, name, parentPC int32}.
func (t *table) inlined(w *windows, tree uint64, index uint32) (name uint32, parent uint64, err error) {
	size, nameAt := uint64(16), uint64(4)
	if t.layout != layout120 {
		size, nameAt = 20, 12
	}
	var b [8]byte
	if err := w.read(b[:], tree+uint64(index)*size+nameAt); err != nil {
		return 0, 0, err
	}
	return binary.LittleEndian.Uint32(b[:]), uint64(binary.LittleEndian.Uint32(b[4:])), nil
}

// hasName says whether a function's name starts with want.
func (p *Program) hasName(fn *function, want string) bool {
	var b [32]byte
	got, err := p.tab.name(b[:0], p.win, fn.name)
	return err == nil && bytes.HasPrefix(got, []byte(want))
}

// funcName gives a name as the runtime prints it: the shapes that generic
// code was compiled for become "...".
func (p *Program) funcName(off uint32) (string, error) {
	var b [256]byte
	name, err := p.tab.name(b[:0], p.win, off)
	if err != nil {
		return "", err
	}
	if p.tab.layout == layout116 { // before generics: brackets are array types
		return string(name), nil
	}
	return printed(name), nil
}

func printed(name []byte) string {
	i, j := bytes.IndexByte(name, '['), bytes.LastIndexByte(name, ']')
	if i < 0 || j <= i {
		return string(name)
	}
	return string(name[:i]) + "[...]" + string(name[j+1:])
}

// fileLine gives "", 0 where the tables hold none.
func (p *Program) fileLine(fn *function, addr uint64) (string, int, error) {
	t, w := &p.tab, p.win
	file, err := t.value(w, fn.pcfile, fn, addr)
	if err != nil {
		return "", 0, err
	}
	line, err := t.value(w, fn.pcln, fn, addr)
	if err != nil || file < 0 || line < 0 {
		return "", 0, err
	}
	// Both halves of the sum are 32 bits: it wraps as in the runtime.
	at := uint64(fn.cu+uint32(file)) * 4
	if at >= t.files-t.cus {
		return "", int(line), nil
	}
	off, err := w.uint32(t.cus + at)
	if err != nil || off == noOffset || uint64(off) >= t.pcs-t.files {
		return "", int(line), err
	}
	var b [256]byte
	path, err := w.text(b[:0], t.files+uint64(off), maxName)
	return string(path), int(line), err
}
