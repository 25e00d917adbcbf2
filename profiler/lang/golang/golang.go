// Package golang unwinds and names Go code.
//
// Everything comes from the pclntab, the table that the Go runtime itself
// walks stacks with: it is in every Go executable, stripped or not, so both
// give the same answer. It tells the size of the frame at each instruction,
// function names, files, lines and which calls were inlined. The table of a
// large program is tens of megabytes and is never held whole: it is read
// through a few small windows (window.go).
//
// The package answers for Go's own text only. C code that cgo put into the
// same file is native code. Processes are unknown to it.
package golang

import (
	"debug/elf"
	"errors"
	"fmt"
	"sync"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/cfi"
	"github.com/kalypso-dev/kalypso/profiler/elffile"
	"github.com/kalypso-dev/kalypso/profiler/lang"
)

var (
	// ErrUnsupportedVersion says that the file is a Go program of a version
	// whose tables are not read (before Go 1.16). Native unwinding may do.
	ErrUnsupportedVersion = errors.New("unsupported Go version")
	// ErrMalformed says that a table contradicts itself.
	ErrMalformed = errors.New("malformed Go tables")
)

// Runtime recognises Go executables. The zero value works.
type Runtime struct{}

var _ lang.Runtime = Runtime{}

// Name is "go".
func (Runtime) Name() string { return "go" }

// Recognise finds the Go tables of f. It gives nil, nil for a file that has
// none, and ErrUnsupportedVersion for one older than Go 1.16. The program
// reads f for as long as it is used.
func (Runtime) Recognise(f *elffile.File, _ string) (lang.Program, error) {
	p, err := open(f)
	if p == nil || err != nil {
		return nil, err
	}
	return p, nil
}

// Program is one Go executable, shared library or plugin.
type Program struct {
	machine elf.Machine
	tab     table

	mu  sync.Mutex // guards win
	win *windows
}

var _ lang.Program = (*Program)(nil)

// open gives nil, nil when f holds no pclntab.
func open(f *elffile.File) (*Program, error) {
	if f.Machine() != elf.EM_X86_64 && f.Machine() != elf.EM_AARCH64 {
		return nil, nil
	}
	if f.ELF.Class != elf.ELFCLASS64 || f.ELF.Data != elf.ELFDATA2LSB {
		return nil, nil
	}
	w := newWindows(f)
	h, err := findHeader(f, w)
	if err != nil {
		return nil, fmt.Errorf("find pclntab of %s: %w", f.Path(), err)
	}
	if h == nil {
		return nil, nil
	}
	p := &Program{machine: f.Machine(), win: w}
	if p.tab, err = openTable(f, w, *h); err != nil {
		return nil, fmt.Errorf("read pclntab of %s: %w", f.Path(), err)
	}
	return p, nil
}

// Ranges is the module's Go text, without C code linked into it.
func (p *Program) Ranges() []lang.Range {
	return []lang.Range{{Low: p.tab.low, High: p.tab.high}}
}

// Rows appends the unwind rows that cover [low, high).
func (p *Program) Rows(dst []cfi.Row, low, high uint64) ([]cfi.Row, error) {
	if low >= high {
		return dst, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rows(dst, low, high)
}

// Bytes is the memory held for this program.
func (p *Program) Bytes() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.win.bytes() + programBytes
}

// Trim lets go of the pages of the table.
func (p *Program) Trim() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.win.drop()
}

// Attach gives the program itself: naming Go code needs nothing of a process.
func (p *Program) Attach(profiler.PID) (lang.Instance, error) { return instance{p}, nil }

type instance struct{ p *Program }

// Symbolize appends the function at addr, the calls inlined into it first.
func (i instance) Symbolize(dst []profiler.Frame, addr uint64) ([]profiler.Frame, error) {
	i.p.mu.Lock()
	defer i.p.mu.Unlock()
	return i.p.symbolize(dst, addr)
}

// Close does nothing: an instance holds nothing of its own.
func (instance) Close() error { return nil }
