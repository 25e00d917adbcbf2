package process

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/cfi"
	"github.com/kalypso-dev/kalypso/profiler/elffile"
	"github.com/kalypso-dev/kalypso/profiler/lang"
)

// Executable is one file that processes have mapped as code, known under a
// number to the kernel side once a sample landed in it. It is opened then.
type Executable struct {
	id       uint32 // 0 until a sample hit it
	numbered int    // how many had numbers before it
	path     string

	opened    bool
	opener    profiler.PID // the process through which it was opened
	tries     int
	openErr   error
	root      *Root // through which it was opened, and its debug files are looked for
	notELF    bool  // code made at run time that happens to live in a file
	file      *elffile.File
	module    *profiler.Module
	programs  []program
	pages     extent // of the table of pages; entry i is for page firstPage+i
	firstPage uint32
	lender    *Executable  // whose file, programs and pages these are: one with the same build ID; nil: its own
	idleSince time.Time    // since when no live process has it mapped; zero while one has
	named     atomic.Int64 // when it was last asked for names, Unix seconds
	closed    bool
	poisoned  atomic.Bool // see guard
	tell      func(error) // of what is wrong with the file; may be nil

	naming sync.Mutex // symbolizing does not hold the table's lock
}

// program is one runtime's view of the executable.
type program struct {
	lang.Program
	instance lang.Instance
	ranges   []lang.Range
}

var errPoisoned = errors.New("reading the file went wrong before")

// fileKey tells files apart without opening them. The stamp does when a file
// system gives a new file the inode of a deleted one, as ext4 does within
// seconds.
type fileKey struct {
	device, inode uint64
	path          string
	stamp         int64 // change time, ns; 0 where it could not be read
}

// Module describes the executable; its build ID is known once it was opened.
func (e *Executable) Module() *profiler.Module { return e.module }

// maxTries is through how many processes a file is tried to be opened.
const maxTries = 8

// retry says that a file that was not found may be found through another
// process: the one that was sampled first had ended before it could be opened.
func (e *Executable) retry(pid profiler.PID) bool {
	return errors.Is(e.openErr, fs.ErrNotExist) && pid != e.opener && e.tries < maxTries
}

// open opens the file as the process at root sees it.
func (e *Executable) open(pid profiler.PID, root *Root, m Mapping) {
	e.opened, e.opener, e.root = true, pid, root
	e.tries++
	e.module = &profiler.Module{Path: e.path}
	if !e.guard("opening", func() { e.file, e.openErr = openFile(pid, root, m) }) {
		e.openErr = errPoisoned
	}
	if e.openErr != nil {
		var format *elf.FormatError
		// debug/elf tells no other way what is wrong. An ELF file that is broken
		// keeps its name, and its stacks end there: a guess by frame pointers
		// could pass for a whole stack.
		e.notELF = errors.As(e.openErr, &format) && strings.Contains(format.Error(), "bad magic number")
		return
	}
	if machine := e.file.Machine(); machine != hostMachine() {
		e.openErr = fmt.Errorf("%s is for another machine (%s)", e.path, machine)
		return
	}
	e.module.BuildID = e.file.BuildID()
}

// recognise asks the runtimes.
func (e *Executable) recognise(pid profiler.PID, root *Root, runtimes []lang.Runtime) {
	base := ""
	if root != nil {
		base = root.Path()
	}
	for _, rt := range runtimes {
		e.guard("recognising", func() {
			p, err := rt.Recognise(e.file, base)
			if p == nil || err != nil {
				return // another runtime, native in the end, takes what this one cannot read
			}
			if in, err := p.Attach(pid); err == nil {
				e.programs = append(e.programs, program{p, in, p.Ranges()})
			}
		})
	}
}

// share takes everything but the name from an executable with the same build ID.
func (e *Executable) share(other *Executable) {
	_ = e.file.Close()
	e.lender = other
	e.file, e.programs = other.file, other.programs
	e.pages, e.firstPage = other.pages, other.firstPage
}

// openFile opens the file of a mapping: by its path in the process's root, or,
// when it was deleted or replaced, through the kernel's links to it. When the
// process is gone, the same file in the agent's own root will do.
func openFile(pid profiler.PID, root *Root, m Mapping) (*elffile.File, error) {
	if m.Path == vdso {
		return openVDSO()
	}
	link := fmt.Sprintf("/proc/%d/map_files/%x-%x", pid, m.Start, m.End)
	first := fmt.Errorf("%s was replaced since it was mapped", m.Path)
	if root == nil {
		first = &fs.PathError{Op: "open", Path: m.Path, Err: fs.ErrNotExist}
	} else {
		if !replaced(root.Path()+m.Path, link, m) {
			f, err := elffile.OpenIn(root.Path(), m.Path)
			if err == nil {
				return f, nil
			}
			first = err
		}
	}
	if f, err := elffile.Open(link); err == nil {
		return f, nil
	}
	for _, path := range []string{fmt.Sprintf("/proc/%d/exe", pid), m.Path} {
		if same(path, m) {
			if f, err := elffile.Open(path); err == nil {
				return f, nil
			}
		}
	}
	return nil, first
}

// same says that path is the very file that was mapped.
func same(path string, m Mapping) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && st.Ino == m.Inode
}

// replaced says that path is surely another file than the mapped one, to which
// link leads. Where the link cannot be followed (it takes CAP_CHECKPOINT_RESTORE)
// only a file on the mapping's own device can be told to be another: overlay
// and btrfs show other numbers for mappings than for files.
func replaced(path, link string, m Mapping) bool {
	var now, mapped unix.Stat_t
	if unix.Stat(path, &now) != nil {
		return false // what opening it says is the better reason
	}
	if unix.Stat(link, &mapped) == nil {
		return now.Dev != mapped.Dev || now.Ino != mapped.Ino
	}
	return now.Dev == m.Device && now.Ino != m.Inode
}

// openVDSO reads the kernel's vDSO from the agent's own memory: every 64-bit
// process has the same one.
func openVDSO() (*elffile.File, error) {
	ms, err := readMaps(profiler.PID(os.Getpid()))
	if err != nil {
		return nil, fmt.Errorf("find the vDSO: %w", err)
	}
	for _, m := range ms {
		if m.Path != vdso {
			continue
		}
		mem, err := os.Open("/proc/self/mem")
		if err != nil {
			return nil, fmt.Errorf("read the vDSO: %w", err)
		}
		defer func() { _ = mem.Close() }()
		image := make([]byte, m.End-m.Start)
		if _, err := mem.ReadAt(image, int64(m.Start)); err != nil {
			return nil, fmt.Errorf("read the vDSO: %w", err)
		}
		return elffile.NewFile(bytes.NewReader(image), int64(len(image)), vdso)
	}
	return nil, errors.New("the agent has no vDSO")
}

// pageSpan gives the pages of the file that hold code.
func (e *Executable) pageSpan() (first, count uint32) {
	low, high := ^uint64(0), uint64(0)
	for _, s := range e.file.Segments() {
		if s.Flags&elf.PF_X == 0 || s.Filesz == 0 || s.Off+s.Filesz < s.Off {
			continue
		}
		low, high = min(low, s.Off), max(high, s.Off+s.Filesz)
	}
	if low >= high || high > 1<<47 {
		return 0, 0
	}
	return uint32(low >> pageShift), uint32((high-1)>>pageShift) - uint32(low>>pageShift) + 1
}

// rows builds the unwind rows of one page, by offset in the file.
func (e *Executable) rows(page uint32) (rows []cfi.Row, err error) {
	if !e.guard("building unwind rows", func() { rows, err = e.buildRows(page) }) {
		return nil, errPoisoned
	}
	return rows, err
}

func (e *Executable) buildRows(page uint32) ([]cfi.Row, error) {
	from := uint64(page) << pageShift
	to := from + 1<<pageShift
	rows := []cfi.Row{{PC: from}}
	for _, s := range e.file.Segments() {
		low, high := max(from, s.Off), min(to, s.Off+s.Filesz)
		if s.Flags&elf.PF_X == 0 || low >= high {
			continue
		}
		start := len(rows)
		delta := s.Vaddr - s.Off
		var err error
		if rows, err = e.rowsAt(rows, low+delta, high+delta); err != nil {
			return nil, err
		}
		for i := start; i < len(rows); i++ {
			rows[i].PC -= delta
		}
		rows = append(rows, cfi.Row{PC: high})
	}
	return tidy(rows, to), nil
}

// rowsAt appends the rows of [low, high), each part from the first runtime that
// answers for it.
func (e *Executable) rowsAt(dst []cfi.Row, low, high uint64) ([]cfi.Row, error) {
	for low < high {
		p, end := e.owner(low, high)
		if p == nil {
			dst = append(dst, cfi.Row{PC: low})
		} else {
			var err error
			if dst, err = p.Rows(dst, low, end); err != nil {
				return dst, err
			}
		}
		low = end
	}
	return dst, nil
}

// owner gives the runtime that answers for low, and how far.
func (e *Executable) owner(low, high uint64) (*program, uint64) {
	end := high
	for i := range e.programs {
		for _, r := range e.programs[i].ranges {
			if low >= r.Low && low < r.High {
				return &e.programs[i], min(end, r.High)
			}
			if r.Low > low {
				end = min(end, r.Low)
			}
		}
	}
	return nil, end
}

// tidy sorts out rows that share an address (the last one holds), that repeat
// the rule before them, or that lie at the end of the page.
func tidy(rows []cfi.Row, end uint64) []cfi.Row {
	out := rows[:0]
	for _, r := range rows {
		if r.PC >= end {
			break
		}
		if n := len(out); n > 0 && out[n-1].PC == r.PC {
			out = out[:n-1]
		}
		if n := len(out); n > 0 && out[n-1].Rule == r.Rule {
			continue
		}
		out = append(out, r)
	}
	return out
}

// Symbolize appends the frames of the instruction at an offset of the file,
// innermost first, and gives its virtual address.
func (e *Executable) Symbolize(dst []profiler.Frame, offset uint64) ([]profiler.Frame, uint64) {
	if e.file == nil {
		return dst, offset
	}
	vaddr, ok := e.file.Vaddr(offset)
	if !ok {
		return dst, offset
	}
	holder := e
	if e.lender != nil {
		holder = e.lender
	}
	holder.named.Store(time.Now().Unix())
	e.naming.Lock()
	defer e.naming.Unlock()
	if p, _ := e.owner(vaddr, vaddr+1); p != nil && !e.closed {
		n := len(dst)
		var err error
		if !e.guard("naming functions", func() { dst, err = p.instance.Symbolize(dst, vaddr) }) || err != nil {
			return dst[:n], vaddr
		}
	}
	return dst, vaddr
}

// bytes is the memory that the file and its programs hold.
func (e *Executable) bytes() int {
	n := e.file.Bytes()
	for _, p := range e.programs {
		n += p.Bytes()
	}
	return n
}

// trim lets go of what can be read again.
func (e *Executable) trim() {
	e.file.Trim()
	for _, p := range e.programs {
		p.Trim()
	}
}

func (e *Executable) close() {
	e.naming.Lock()
	defer e.naming.Unlock()
	e.closed = true
	if e.lender != nil {
		return
	}
	for _, p := range e.programs {
		_ = p.instance.Close()
	}
	if e.file != nil {
		_ = e.file.Close()
	}
}
