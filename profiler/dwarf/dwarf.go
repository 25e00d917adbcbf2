// Package dwarf names source functions, lines and inlined calls for machine
// addresses of one ELF file, from DWARF 2 to 5.
//
// It is written for an agent that runs as root and meets files it cannot
// trust, of any size: nothing is loaded whole. Sections are read in windows,
// the unit headers are scanned once, a unit's functions and line programs are
// indexed when an address first falls into it, and a function's tree of
// inlined calls is read when an address falls into that function. What was
// parsed lives in one least-recently-used cache with a byte budget. Only
// compressed sections are held in memory, inflated, up to a limit.
//
// It knows nothing of symbol tables, build IDs or processes, and it does not
// demangle: the caller finds the debug files and has the symbols to fall back
// on. Types, variables and expressions are not read at all.
//
// Limits: little-endian linked files only (no relocations are applied); of
// split DWARF (.dwo, .dwp) only the skeleton units are read, which gives lines
// and, from clang, inlined calls.
package dwarf

import (
	"container/list"
	"debug/elf"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

var (
	// ErrNoDebug says that the file has no DWARF that can be read.
	ErrNoDebug = errors.New("no debug information")
	// ErrNoInfo says that the debug information does not cover the address.
	ErrNoInfo = errors.New("no debug information for the address")
	// ErrTruncated says that a record runs over the end of its section.
	ErrTruncated = errors.New("truncated debug information")

	errMalformed = errors.New("malformed debug information")
)

// Call is one source-level call at an address.
type Call struct {
	// Function is the DW_AT_name. It is qualified with namespaces and classes
	// when there is no Linkage to give them.
	Function string
	Linkage  string // mangled name, or empty
	File     string // cleaned path, joined with the compilation folder
	Line     int    // 0 when unknown
	Inlined  bool   // not a machine-level call: inlined into the next one
}

// Options bound the memory of a Data.
type Options struct {
	Budget       int    // bytes of parsed units, functions and names; 0: 16 MiB
	InflateBytes uint64 // bytes of inflated compressed sections; 0: 64 MiB
	UnitBytes    uint64 // a unit larger than this gets lines only; 0: 256 MiB
}

// Data is the debug information of one file. Its methods may be called from
// several goroutines.
type Data struct {
	mu      sync.Mutex
	opt     Options
	main    *image
	alt     *image // nil without a dwz file
	text    []textRange
	base    uint64 // addresses are kept as 32-bit distances from here
	indexed bool
	index   []unitRange
	failed  error
	cache   cache
	stats   Stats
	work    int // left for this Lookup
	closed  bool
}

// Stats counts what happened to a Data.
type Stats struct {
	Units     int    // units with code
	Evictions uint64 // parsed parts dropped for the budget
	LinesOnly uint64 // units whose functions were malformed or over a limit
}

// Open prepares the DWARF of f, the file with the .debug_ sections. alt is the
// file that its .gnu_debugaltlink or .debug_sup names, or nil. Both remain the
// caller's and must stay open until Close.
//
// It gives ErrNoDebug when there is nothing to read, and elffile.ErrTooLarge
// when compressed sections would take more memory than InflateBytes.
func (o Options) Open(f, alt *elffile.File) (*Data, error) {
	if o.Budget <= 0 {
		o.Budget = 16 << 20
	}
	if o.InflateBytes == 0 {
		o.InflateBytes = 64 << 20
	}
	if o.UnitBytes == 0 {
		o.UnitBytes = 256 << 20
	}
	o.UnitBytes = min(o.UnitBytes, math.MaxUint32)
	d := &Data{opt: o}
	d.cache.budget = o.Budget
	d.cache.entries = map[cacheKey]*list.Element{}
	var err error
	if d.main, err = openImage(f, 0); err != nil {
		return nil, err
	}
	if d.main.info.sec.size == 0 || d.main.abbrev.size == 0 {
		return nil, fmt.Errorf("%s: %w", f.Path(), ErrNoDebug)
	}
	packed := d.main.packed()
	if alt != nil {
		if d.alt, err = openImage(alt, 1); err != nil {
			return nil, err
		}
		packed += d.alt.packed()
	}
	if packed > o.InflateBytes {
		return nil, fmt.Errorf("compressed debug information of %s takes %d bytes: %w", f.Path(), packed, elffile.ErrTooLarge)
	}
	d.text = textRanges(f)
	if len(d.text) == 0 {
		return nil, fmt.Errorf("%s has no code: %w", f.Path(), ErrNoDebug)
	}
	d.base = d.text[0].low
	return d, nil
}

// Lookup appends the calls at addr, an address of the ELF file: the innermost
// inlined call first, the function that has the machine code last. The line of
// the first call is that of the line table, the lines of the others are where
// they call. It gives ErrNoInfo when nothing is known of addr.
func (d *Data) Lookup(dst []Call, addr uint64) ([]Call, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return dst, ErrNoInfo
	}
	d.work = maxWork
	if !d.indexed {
		d.indexed = true
		d.failed = d.buildIndex()
	}
	if d.failed != nil {
		return dst, d.failed
	}
	if addr < d.base || addr-d.base >= math.MaxUint32 {
		return dst, ErrNoInfo
	}
	pc := uint32(addr - d.base)
	var firstErr error
	next := upper(len(d.index), func(i int) bool { return d.index[i].low > pc })
	last := int32(-1)
	// Ranges that overlap come from identical code folding and hostile files.
	for i, tries := next-1, 0; i >= 0 && d.index[i].reach > pc && tries < 64; i, tries = i-1, tries+1 {
		r := d.index[i]
		if r.high <= pc || r.unit == last {
			continue
		}
		last = r.unit
		out, err := d.lookupUnit(dst, &d.main.info.units[r.unit], pc)
		if err == nil {
			return out, nil
		}
		if firstErr == nil && !errors.Is(err, ErrNoInfo) {
			firstErr = err
		}
	}
	if firstErr == nil {
		firstErr = ErrNoInfo
	}
	return dst, firstErr
}

// maxInlineDepth bounds the calls at one address. LLVM stops inlining long
// before.
const maxInlineDepth = 256

func (d *Data) lookupUnit(dst []Call, h *unitHead, pc uint32) ([]Call, error) {
	u, err := d.unit(h)
	if err != nil {
		return dst, err
	}
	var file, line uint32
	lineErr := u.linesErr
	if u.lines != nil {
		file, line, lineErr = u.lines.find(d, pc)
	}
	known := lineErr == nil
	die := findSpan(u.functions, pc)
	if die == 0 {
		if !known {
			return dst, lineErr
		}
		return append(dst, Call{File: d.fileName(u, file), Line: int(line)}), nil
	}
	fn, err := d.function(u, die)
	if err != nil {
		if !known {
			return dst, err
		}
		return append(dst, Call{File: d.fileName(u, file), Line: int(line)}), nil
	}
	at := findSpan(fn.spans, pc)
	for range maxInlineDepth {
		s := &fn.scopes[at]
		call := Call{Inlined: at != 0, Line: int(line)}
		if known {
			call.File = d.fileName(u, file)
		}
		n := d.name(&d.main.info, u.head.off+uint64(s.die), 0)
		call.Function, call.Linkage = n.function, n.linkage
		dst = append(dst, call)
		if at == 0 {
			break
		}
		at, file, line, known = s.parent, s.file, s.line, true
	}
	return dst, nil
}

// Bytes is the memory held: index, parsed parts and inflated sections.
func (d *Data) Bytes() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.cache.bytes + 16*cap(d.index)
	for _, im := range []*image{d.main, d.alt} {
		if im != nil {
			n += im.bytes()
		}
	}
	return n
}

// Stats gives the counts so far.
func (d *Data) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.stats
	s.Evictions = d.cache.evictions
	return s
}

// Close drops what was parsed. Later look-ups give ErrNoInfo.
func (d *Data) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed, d.index, d.alt = true, nil, nil
	d.main = &image{}
	d.cache.clear()
	return nil
}

// textRange is an executable section: code that the linker dropped has
// addresses outside of them (0, 1, -1 or -2 by linker and section).
type textRange struct{ low, high uint64 }

func textRanges(f *elffile.File) []textRange {
	var text []textRange
	for _, s := range f.ELF.Sections {
		if s.Flags&elf.SHF_EXECINSTR != 0 && s.Flags&elf.SHF_ALLOC != 0 && s.Size > 0 && s.Addr+s.Size > s.Addr {
			text = append(text, textRange{s.Addr, s.Addr + s.Size})
		}
	}
	if len(text) == 0 {
		for _, p := range f.Segments() {
			if p.Flags&elf.PF_X != 0 && p.Memsz > 0 && p.Vaddr+p.Memsz > p.Vaddr {
				text = append(text, textRange{p.Vaddr, p.Vaddr + p.Memsz})
			}
		}
	}
	slices.SortFunc(text, func(a, b textRange) int {
		if a.low < b.low {
			return -1
		}
		return 1
	})
	return text
}

// clip cuts [low, high) to the executable section that low is in and gives it
// as distances from the base; ok is false for code that is not in the file.
func (d *Data) clip(low, high uint64) (from, to uint32, ok bool) {
	if low >= high {
		return 0, 0, false
	}
	i := upper(len(d.text), func(i int) bool { return d.text[i].low > low }) - 1
	if i < 0 || low >= d.text[i].high {
		return 0, 0, false
	}
	high = min(high, d.text[i].high)
	if high-d.base >= math.MaxUint32 {
		return 0, 0, false
	}
	return uint32(low - d.base), uint32(high - d.base), true
}

// upper is the first i in [0, n) for which over is true, n when there is none.
func upper(n int, over func(int) bool) int {
	low, high := 0, n
	for low < high {
		if mid := int(uint(low+high) >> 1); over(mid) {
			high = mid
		} else {
			low = mid + 1
		}
	}
	return low
}
