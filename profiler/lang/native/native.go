// Package native unwinds and names compiled code: C, C++, Rust, assembly,
// whatever left an ELF file with call frame information and symbols.
//
// Rows come from package cfi: from call frame information, and from machine
// code where there is none. Names come, in this order, from DWARF (lines and
// inlined calls; in the file itself or in its separate debug file), from the
// debug file's symbol table, and from the file's own symbols. Nothing is
// opened before the first address is asked for. Code that a process makes at
// run time has no file: its names come from a perf map (perfmap.go).
//
// Names are for a flame graph: demangled, without parameter lists. The parts
// that a compiler splits off or specialises (foo.cold, foo.part.0,
// foo.constprop.1) are all shown as foo, so that a function's time is in one
// place; Frame.Linkage keeps the exact symbol. Where DWARF and the symbol table
// disagree, as for functions that the linker folded into one, DWARF is
// believed, because it also knows the calls inlined there.
package native

import (
	"debug/elf"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/cfi"
	"github.com/kalypso-dev/kalypso/profiler/demangle"
	"github.com/kalypso-dev/kalypso/profiler/dwarf"
	"github.com/kalypso-dev/kalypso/profiler/elffile"
	"github.com/kalypso-dev/kalypso/profiler/lang"
)

// Runtime takes every ELF file. The zero value works.
type Runtime struct {
	// DWARF bounds the memory that the debug information of one file takes.
	// Zero fields: 4 MiB of parsed parts, 32 MiB of inflated sections.
	DWARF dwarf.Options
	// SymbolsOnly, where set and true, is for times when memory is short: no
	// DWARF is read, so that there are no lines and no inlined calls.
	SymbolsOnly *atomic.Bool
}

var _ lang.Runtime = Runtime{}

// Name is "native".
func (Runtime) Name() string { return "native" }

// Recognise takes any file with code. The program reads f, and looks for its
// debug files in root, for as long as it is used.
func (r Runtime) Recognise(f *elffile.File, root string) (lang.Program, error) {
	p := &Program{file: f, root: root, options: r.DWARF, symbolsOnly: r.SymbolsOnly}
	if p.options.Budget == 0 {
		p.options.Budget = 4 << 20
	}
	if p.options.InflateBytes == 0 {
		p.options.InflateBytes = 32 << 20
	}
	for _, s := range f.Segments() {
		if s.Flags&elf.PF_X != 0 && s.Memsz > 0 && s.Vaddr+s.Memsz > s.Vaddr {
			p.ranges = append(p.ranges, lang.Range{Low: s.Vaddr, High: s.Vaddr + s.Memsz})
		}
	}
	if len(p.ranges) == 0 {
		return nil, nil
	}
	return p, nil
}

// Program is one executable or library.
type Program struct {
	file    *elffile.File
	root    string
	options dwarf.Options
	ranges  []lang.Range

	symbolsOnly *atomic.Bool

	indexing sync.Mutex
	indexed  bool
	index    *cfi.Index    // nil: not for this machine
	indexErr error         // why not, when that is not simply so
	frames   *elffile.File // debug file that index reads, or nil

	naming sync.Mutex
	users  int
	looked bool          // for debug files
	lean   bool          // without DWARF
	debug  *elffile.File // separate debug file, or nil
	alt    *elffile.File // what dwz took out of it, or nil
	data   *dwarf.Data   // nil: none
	calls  []dwarf.Call
}

var _ lang.Program = (*Program)(nil)

// Ranges are the executable segments.
func (p *Program) Ranges() []lang.Range { return p.ranges }

// Rows appends the unwind rows of [low, high): from call frame information,
// else from the machine code. A file of another machine has one row, a gap.
func (p *Program) Rows(dst []cfi.Row, low, high uint64) ([]cfi.Row, error) {
	x, err := p.openIndex()
	if err != nil {
		return dst, err
	}
	if x == nil {
		return append(dst, cfi.Row{PC: low}), nil
	}
	return x.Rows(dst, low, high)
}

// openIndex opens the call frame information, once. The separate debug file
// is only looked for when the file itself has none (-fno-asynchronous-unwind-
// tables leaves .debug_frame, which strip takes away): unwinding cannot wait
// for a debug file's checksum.
func (p *Program) openIndex() (*cfi.Index, error) {
	p.indexing.Lock()
	defer p.indexing.Unlock()
	if p.indexed {
		return p.index, p.indexErr
	}
	p.indexed = true
	p.index, p.indexErr = cfi.Options{Code: true}.Open(p.file)
	if p.indexErr == nil && p.index.FDEs() == 0 {
		if d, err := p.file.OpenDebug(p.root); err == nil {
			if x, err := (cfi.Options{Debug: d, Code: true}).Open(p.file); err == nil && x.FDEs() > 0 {
				p.index, p.frames = x, d
			} else {
				_ = d.Close()
			}
		}
	}
	if errors.Is(p.indexErr, cfi.ErrMachine) || errors.Is(p.indexErr, cfi.ErrNoCFI) {
		p.indexErr = nil
	}
	return p.index, p.indexErr
}

// Attach gives a namer. All processes share what it finds; the last one
// closed releases it.
func (p *Program) Attach(profiler.PID) (lang.Instance, error) {
	p.naming.Lock()
	defer p.naming.Unlock()
	p.users++
	return &instance{program: p}, nil
}

// Bytes is the memory held for unwinding and naming, without the file's own.
func (p *Program) Bytes() int {
	n := 0
	p.indexing.Lock()
	if p.index != nil {
		n += p.index.Bytes()
	}
	p.indexing.Unlock()
	p.naming.Lock()
	defer p.naming.Unlock()
	if p.data != nil {
		n += p.data.Bytes()
	}
	for _, f := range []*elffile.File{p.debug, p.alt} {
		if f != nil {
			n += f.Bytes()
		}
	}
	return n
}

// Trim closes the debug files and forgets the index of call frame information,
// unless that reads a debug file: somebody may be reading it now. Both are
// opened again when they are asked for.
func (p *Program) Trim() {
	p.naming.Lock()
	_ = p.release() // read-only files
	p.naming.Unlock()
	p.indexing.Lock()
	defer p.indexing.Unlock()
	if p.frames == nil {
		p.index, p.indexErr, p.indexed = nil, nil, false
	}
}

// instance is a process's share in a program.
type instance struct {
	program *Program
	closed  bool
}

// Symbolize appends the frames at addr, a virtual address of the file.
func (in *instance) Symbolize(dst []profiler.Frame, addr uint64) ([]profiler.Frame, error) {
	p := in.program
	p.naming.Lock()
	defer p.naming.Unlock()
	if in.closed {
		return dst, fmt.Errorf("symbolize %#x in %s: already closed", addr, p.file.Path())
	}
	return p.symbolize(dst, addr), nil
}

// Close releases the debug files when nobody else uses them.
func (in *instance) Close() error {
	p := in.program
	p.naming.Lock()
	defer p.naming.Unlock()
	if in.closed {
		return nil
	}
	in.closed = true
	if p.users--; p.users > 0 {
		return nil
	}
	err := p.release()
	p.indexing.Lock()
	defer p.indexing.Unlock()
	if p.frames != nil {
		err = errors.Join(err, p.frames.Close())
		p.frames, p.index, p.indexed = nil, nil, false
	}
	return err
}

// release closes what look opened. p.naming is held.
func (p *Program) release() error {
	var err error
	if p.data != nil {
		err = p.data.Close()
	}
	for _, f := range []*elffile.File{p.debug, p.alt} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	p.data, p.debug, p.alt, p.looked = nil, nil, nil, false
	return err
}

// look finds the DWARF of the file, once. What cannot be read is as if it were
// not there: symbols are left.
func (p *Program) look() {
	lean := p.symbolsOnly != nil && p.symbolsOnly.Load()
	if p.looked && p.lean == lean {
		return
	}
	if p.looked {
		_ = p.release() // read-only files
	}
	p.looked, p.lean = true, lean
	if !lean && hasInfo(p.file) && p.open(p.file) {
		return
	}
	d, err := p.file.OpenDebug(p.root)
	if err != nil {
		return
	}
	p.debug = d
	if !lean && hasInfo(d) {
		p.open(d)
	}
}

func hasInfo(f *elffile.File) bool {
	for _, name := range []string{".debug_info", ".zdebug_info"} {
		if s := f.Section(name); s != nil && s.Type != elf.SHT_NOBITS {
			return true
		}
	}
	return false
}

// open reads the DWARF in f, and says if there is any.
func (p *Program) open(f *elffile.File) bool {
	alt, err := f.OpenAlt(p.root)
	if err != nil {
		alt = nil
	}
	data, err := p.options.Open(f, alt)
	if err != nil && alt != nil {
		_ = alt.Close()
		alt = nil
		data, err = p.options.Open(f, nil)
	}
	if err != nil {
		return false
	}
	p.data, p.alt = data, alt
	return true
}

func (p *Program) symbolize(dst []profiler.Frame, addr uint64) []profiler.Frame {
	p.look()
	var last dwarf.Call
	if p.data != nil {
		var err error
		p.calls, err = p.data.Lookup(p.calls[:0], addr)
		if err != nil {
			p.calls = p.calls[:0]
		}
		for i, c := range p.calls {
			if i == len(p.calls)-1 {
				last = c
			} else if f := frame(c); f.Function != "" {
				dst = append(dst, f)
			}
		}
	}
	f := frame(last)
	f.Inlined = false
	if f.Function == "" {
		// Assembly has lines but no functions.
		sym, ok := p.symbol(addr)
		if !ok {
			sym, ok = p.resumed(addr)
		}
		if !ok {
			f.Start = p.start(addr)
			if f.File == "" && f.Start == 0 {
				return dst
			}
			return append(dst, f)
		}
		f.Function = demangle.Name(sym.Name)
		if f.Function != sym.Name {
			f.Linkage = demangle.Cut(sym.Name)
		}
	}
	return append(dst, f)
}

// resumed is the function that a frame goes on with where it begins: V8 returns to
// builtins that it never called. The address before is a trap then, which no call
// ends with.
func (p *Program) resumed(addr uint64) (elffile.Symbol, bool) {
	const trap = 0xcc // int3
	var code [1]byte
	if p.file.ReadVaddr(code[:], addr) != nil || code[0] != trap {
		return elffile.Symbol{}, false
	}
	sym, ok := p.symbol(addr + 1)
	return sym, ok && sym.Value == addr+1
}

// start is where the nameless function at addr begins, as its unwind
// information has it; 0 where it has none.
func (p *Program) start(addr uint64) uint64 {
	x, err := p.openIndex()
	if x == nil || err != nil {
		return 0
	}
	start, ok := x.Function(addr)
	if !ok {
		return 0
	}
	return start
}

// symbol asks the symbol tables: the debug file's has all that was stripped,
// the file's own has PLT stubs.
func (p *Program) symbol(addr uint64) (elffile.Symbol, bool) {
	if p.debug != nil {
		if s, ok := p.debug.Symbol(addr); ok {
			return s, true
		}
	}
	return p.file.Symbol(addr)
}

func frame(c dwarf.Call) profiler.Frame {
	f := profiler.Frame{File: demangle.Cut(c.File), Line: c.Line, Kind: profiler.KindNative, Inlined: c.Inlined}
	if c.Linkage == "" {
		f.Function = demangle.Cut(c.Function)
		return f
	}
	f.Function = demangle.Name(c.Linkage)
	if f.Function == demangle.Base(c.Linkage) && c.Function != "" {
		f.Function = demangle.Cut(c.Function) // an asm label, such as __GI_read of glibc's read
	}
	if f.Function != c.Linkage {
		f.Linkage = demangle.Cut(c.Linkage)
	}
	return f
}
