// Package elffile reads one ELF executable: identity, segments, sections,
// symbols and the debug files that belong to it.
//
// The bytes come from processes that may be hostile, and the file may change
// or shrink while it is read: nothing is memory-mapped (a truncated mapping
// would kill the agent), every size is checked against a limit before memory
// is taken, and only what is asked for is read. It knows nothing of processes:
// a caller that wants a process's view opens the file through /proc/PID/root.
package elffile

import (
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync/atomic"
)

// MaxSectionBytes bounds one section read whole. Chromium's .eh_frame is
// 20 MiB and its .debug_info 1.5 GiB: what may be larger is read in windows.
const MaxSectionBytes = 256 << 20

var (
	// ErrNoSection says that the file has no such section.
	ErrNoSection = errors.New("no such section")
	// ErrTooLarge says that a part of the file is over its limit.
	ErrTooLarge = errors.New("over the size limit")
)

// File is an open ELF file. Its methods may be called from several goroutines
// once Open returned.
type File struct {
	ELF    *elf.File // headers only; prefer the methods below
	path   string
	root   string // of the process it was opened for; empty for the agent's own
	reader io.ReaderAt
	closer io.Closer
	size   int64

	buildID string
	symbols symbolCache
}

// Open opens the ELF file at path, which is read lazily until Close. path is
// one of the agent's own name space, such as /usr/bin/x, /proc/PID/exe or
// /proc/PID/map_files/…; to open a file by the name that a process knows it
// by, see OpenIn.
func Open(path string) (*File, error) {
	r, err := openPlain(path)
	if err != nil {
		return nil, err
	}
	return open(r, "", path)
}

// OpenIn opens the ELF file that a process with the root folder root
// ("/proc/PID/root") knows as path. Links cannot lead out of root.
func OpenIn(root, path string) (*File, error) {
	r, err := OpenRegular(root, path, true)
	if err != nil {
		return nil, err
	}
	return open(r, root, path)
}

func open(r *os.File, root, path string) (*File, error) {
	st, err := r.Stat()
	var f *File
	if err == nil {
		f, err = NewFile(r, st.Size(), path)
	}
	if err != nil {
		_ = r.Close()
		return nil, err
	}
	f.root, f.closer = root, r
	return f, nil
}

// NewFile reads an ELF file of size bytes from r; path is only its name.
func NewFile(r io.ReaderAt, size int64, path string) (*File, error) {
	ef, err := parse(r)
	if err != nil {
		return nil, fmt.Errorf("read ELF headers of %s: %w", path, err)
	}
	f := &File{ELF: ef, path: path, reader: r, size: size}
	f.buildID = f.readBuildID()
	return f, nil
}

// maxHeaderBytes bounds what is read to open a file: program headers, section
// headers and section names. A kernel built with one section per function
// has some MiB of them, executables a few KiB. Without the bound a sparse file
// that claims 2^32 sections would fill the memory.
const maxHeaderBytes = 4 << 20

// parse reads the headers. It shields against panics in debug/elf on hostile
// input.
func parse(r io.ReaderAt) (f *elf.File, err error) {
	defer func() {
		if p := recover(); p != nil {
			f, err = nil, fmt.Errorf("malformed ELF: %v", p)
		}
	}()
	budget := &budgetReader{r: r}
	budget.left.Store(maxHeaderBytes)
	f, err = elf.NewFile(budget)
	// Section readers made by debug/elf go on reading through it.
	budget.left.Store(math.MaxInt64)
	return f, err
}

// budgetReader fails once more than left bytes were read.
type budgetReader struct {
	r    io.ReaderAt
	left atomic.Int64
}

func (b *budgetReader) ReadAt(p []byte, off int64) (int, error) {
	left := b.left.Load()
	if left != math.MaxInt64 && b.left.Add(-int64(len(p))) < 0 {
		return 0, fmt.Errorf("more than %d bytes of headers: %w", maxHeaderBytes, ErrTooLarge)
	}
	return b.r.ReadAt(p, off)
}

// Close releases the file. The File must not be used afterwards.
func (f *File) Close() error {
	if f.closer == nil {
		return nil
	}
	return f.closer.Close()
}

// Path is the name the file was opened by.
func (f *File) Path() string { return f.path }

// Size is the file's size in bytes when it was opened.
func (f *File) Size() int64 { return f.size }

// Machine is the instruction set: elf.EM_X86_64 or elf.EM_AARCH64 for files
// that Kalypso unwinds.
func (f *File) Machine() elf.Machine { return f.ELF.Machine }

// Entry is the virtual address of the program's first instruction, 0 in most
// libraries.
func (f *File) Entry() uint64 { return f.ELF.Entry }

// BuildID is the GNU build ID in hex, else Go's build ID, else empty.
func (f *File) BuildID() string { return f.buildID }

// Segments are the loadable segments in file order.
func (f *File) Segments() []elf.ProgHeader {
	var segs []elf.ProgHeader
	for _, p := range f.ELF.Progs {
		if p.Type == elf.PT_LOAD {
			segs = append(segs, p.ProgHeader)
		}
	}
	return segs
}

// Vaddr turns a file offset inside an executable segment into the virtual
// address that the file was linked for.
func (f *File) Vaddr(offset uint64) (uint64, bool) {
	for _, p := range f.ELF.Progs {
		if p.Type == elf.PT_LOAD && p.Flags&elf.PF_X != 0 && offset >= p.Off && offset-p.Off < p.Filesz {
			return p.Vaddr + (offset - p.Off), true
		}
	}
	return 0, false
}

// Section returns the named section's header, or nil. Debug files keep the
// headers of stripped sections as SHT_NOBITS: those are returned too.
func (f *File) Section(name string) *elf.Section { return f.ELF.Section(name) }

// SectionData reads a whole section, decompressed. It gives ErrNoSection when
// the section is absent or has no bytes in this file, and ErrTooLarge over
// MaxSectionBytes.
func (f *File) SectionData(name string) (data []byte, err error) {
	s := f.ELF.Section(name)
	if s == nil || s.Type == elf.SHT_NOBITS {
		return nil, fmt.Errorf("%s in %s: %w", name, f.path, ErrNoSection)
	}
	if s.Size > MaxSectionBytes || s.FileSize > MaxSectionBytes {
		return nil, fmt.Errorf("%s in %s has %d bytes: %w", name, f.path, s.Size, ErrTooLarge)
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("read %s of %s: malformed: %v", name, f.path, p)
		}
	}()
	data, err = s.Data()
	if err != nil {
		return nil, fmt.Errorf("read %s of %s: %w", name, f.path, err)
	}
	return data, nil
}

// ReadVaddr fills p with the bytes that the file holds for virtual address
// vaddr, from any loadable segment. Short reads are errors.
func (f *File) ReadVaddr(p []byte, vaddr uint64) error {
	for _, s := range f.ELF.Progs {
		if s.Type != elf.PT_LOAD || vaddr < s.Vaddr || vaddr-s.Vaddr >= s.Filesz {
			continue
		}
		if s.Filesz-(vaddr-s.Vaddr) < uint64(len(p)) {
			return fmt.Errorf("read %d bytes at %#x of %s: %w", len(p), vaddr, f.path, io.ErrUnexpectedEOF)
		}
		n, err := f.reader.ReadAt(p, int64(s.Off+(vaddr-s.Vaddr)))
		if n == len(p) {
			return nil
		}
		return fmt.Errorf("read %d bytes at %#x of %s: %w", len(p), vaddr, f.path, err)
	}
	return fmt.Errorf("read at %#x of %s: address in no segment", vaddr, f.path)
}

func (f *File) readBuildID() string {
	id := ""
	for _, p := range f.ELF.Progs {
		if p.Type == elf.PT_NOTE {
			if d := f.noteDesc(p.Off, p.Filesz, "GNU\x00", 3); d != nil {
				return hex.EncodeToString(d)
			}
			if d := f.noteDesc(p.Off, p.Filesz, "Go\x00\x00", 4); d != nil {
				id = string(d)
			}
		}
	}
	for _, s := range f.ELF.Sections {
		if s.Type == elf.SHT_NOTE {
			if d := f.noteDesc(s.Offset, s.FileSize, "GNU\x00", 3); d != nil {
				return hex.EncodeToString(d)
			}
		}
	}
	return id
}

// noteDesc finds the note (name, kind) in size bytes at off: gABI "Note
// Section", 4-byte alignment, which is what linkers emit for build IDs.
func (f *File) noteDesc(off, size uint64, name string, kind uint32) []byte {
	const maxNotes = 64 << 10
	if size > maxNotes {
		size = maxNotes
	}
	buf := make([]byte, size)
	n, _ := f.reader.ReadAt(buf, int64(off))
	buf = buf[:n]
	bo := f.ELF.ByteOrder
	for len(buf) >= 12 {
		nameSize, descSize := uint64(bo.Uint32(buf)), uint64(bo.Uint32(buf[4:]))
		noteType := bo.Uint32(buf[8:])
		descOff := 12 + (nameSize+3)&^3
		next := descOff + (descSize+3)&^3
		if descOff+descSize > uint64(len(buf)) {
			return nil
		}
		if noteType == kind && nameSize == uint64(len(name)) && string(buf[12:12+nameSize]) == name {
			return buf[descOff : descOff+descSize]
		}
		if next > uint64(len(buf)) {
			return nil
		}
		buf = buf[next:]
	}
	return nil
}
