package bpf

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// Mapping is one entry of the table of mappings: struct klp_mapping.
type Mapping struct {
	Start, End   uint64
	Bias         uint64 // address - Bias = offset in the file
	Executable   uint32
	FramePointer bool // unwind by frame pointers, not by rows
}

// Executable is one entry of the table of executables: its slice of pages.
type Executable struct {
	Pages, FirstPage, Count uint32
	Unavailable             bool // its pages will never come: do not ask for them
}

// Page is one entry of the table of pages: its slice of rows.
type Page struct{ First, Count, Used uint32 }

// Rule is one unwind rule, laid out as struct klp_rule.
type Rule [16]byte

const (
	// PageUnavailable as a page's count says that it will not be built.
	PageUnavailable = 0xffffffff
	// PageShift: unwind rows are found by pages of 64 KiB of the file.
	PageShift = 16

	rowsPerChunk = 1024
	noDefer      = 1
)

// Tables are the unwind tables, shared with the kernel side. The caller owns
// them: it decides which index holds what, writes what an entry points to
// before the entry, and leaves what it took away alone until walks that may
// still use it are over (a walk takes well under a millisecond).
type Tables struct {
	mappings, executables, pages, rows, rules table
	processes                                 *ebpf.Map
}

// table is a BPF array in shared memory.
type table struct {
	memory  *ebpf.Memory
	entries uint32
	size    uint32 // bytes of an entry
}

func newTables(m *kalypsoMaps) (Tables, error) {
	t := Tables{processes: m.Processes}
	for _, x := range []struct {
		to *table
		m  *ebpf.Map
	}{{&t.mappings, m.Mappings}, {&t.executables, m.Executables}, {&t.pages, m.Pages}, {&t.rows, m.Rows}, {&t.rules, m.Rules}} {
		memory, err := x.m.Memory()
		if err != nil {
			return t, fmt.Errorf("share table %s: %w", x.m, err)
		}
		*x.to = table{memory: memory, entries: x.m.MaxEntries(), size: x.m.ValueSize()}
	}
	t.rows.entries, t.rows.size = t.rows.entries*rowsPerChunk, 4
	return t, nil
}

func (t *table) write(i uint32, b []byte) error {
	if _, err := t.memory.WriteAt(b, int64(i)*int64(t.size)); err != nil {
		return fmt.Errorf("write entry %d of a table of %d: %w", i, t.entries, err)
	}
	return nil
}

func (t *table) read(i uint32, b []byte) error {
	if _, err := t.memory.ReadAt(b, int64(i)*int64(t.size)); err != nil {
		return fmt.Errorf("read entry %d of a table of %d: %w", i, t.entries, err)
	}
	return nil
}

// Capacity is how many entries each table has.
type Capacity struct{ Mappings, Executables, Pages, Rows, Rules uint32 }

// Capacity tells the sizes of the tables.
func (t *Tables) Capacity() Capacity {
	return Capacity{t.mappings.entries, t.executables.entries, t.pages.entries, t.rows.entries, t.rules.entries}
}

// SetMappings writes mappings from index first on.
func (t *Tables) SetMappings(first uint32, ms []Mapping) error {
	b := make([]byte, 0, 32*len(ms))
	for _, m := range ms {
		kind := uint32(0)
		if m.FramePointer {
			kind = 1
		}
		b = order.AppendUint64(b, m.Start)
		b = order.AppendUint64(b, m.End)
		b = order.AppendUint64(b, m.Bias)
		b = order.AppendUint32(b, m.Executable)
		b = order.AppendUint32(b, kind)
	}
	return t.mappings.write(first, b)
}

// SetExecutable writes one entry.
func (t *Tables) SetExecutable(i uint32, e Executable) error {
	var b [16]byte
	order.PutUint32(b[0:], e.Pages)
	order.PutUint32(b[4:], e.FirstPage)
	order.PutUint32(b[8:], e.Count)
	if e.Unavailable {
		order.PutUint32(b[12:], 1)
	}
	return t.executables.write(i, b[:])
}

// SetPage writes one entry: its first row, then its count, which makes it valid.
func (t *Tables) SetPage(i uint32, p Page) error {
	var b [16]byte
	order.PutUint32(b[0:], p.First)
	order.PutUint32(b[4:], p.Count)
	order.PutUint32(b[8:], p.Used)
	return t.pages.write(i, b[:])
}

// Page reads one entry; Used tells when a walk last went through it.
func (t *Tables) Page(i uint32) (Page, error) {
	var b [16]byte
	err := t.pages.read(i, b[:])
	return Page{order.Uint32(b[0:]), order.Uint32(b[4:]), order.Uint32(b[8:])}, err
}

// SetRows writes rows from index first on.
func (t *Tables) SetRows(first uint32, rows []uint32) error {
	b := make([]byte, 0, 4*len(rows))
	for _, r := range rows {
		b = order.AppendUint32(b, r)
	}
	return t.rows.write(first, b)
}

// Row reads one row.
func (t *Tables) Row(i uint32) (uint32, error) {
	var b [4]byte
	err := t.rows.read(i, b[:])
	return order.Uint32(b[:]), err
}

// SetRule writes one rule.
func (t *Tables) SetRule(i uint32, r Rule) error { return t.rules.write(i, r[:]) }

// SetProcess says which mappings a process has.
func (t *Tables) SetProcess(pid, first, count uint32, deferring bool) error {
	p := struct{ First, Count, Flags, Pad uint32 }{first, count, 0, 0}
	if !deferring {
		p.Flags = noDefer
	}
	if err := t.processes.Put(pid, &p); err != nil {
		return fmt.Errorf("set mappings of PID %d: %w", pid, err)
	}
	return nil
}

// Process tells where the mappings of a process are.
func (t *Tables) Process(pid uint32) (first uint32, ok bool) {
	var p struct{ First, Count, Flags, Pad uint32 }
	err := t.processes.Lookup(pid, &p)
	return p.First, err == nil
}

// KeepProcesses forgets all processes but those to keep.
func (t *Tables) KeepProcesses(keep func(pid uint32) bool) {
	var pid uint32
	var p struct{ First, Count, Flags, Pad uint32 }
	var drop []uint32
	// An entry that goes while the map is read may make the reading end early:
	// the others are forgotten the next time.
	for it := t.processes.Iterate(); it.Next(&pid, &p); {
		if !keep(pid) {
			drop = append(drop, pid)
		}
	}
	for _, pid := range drop {
		t.DeleteProcess(pid)
	}
}

// DeleteProcess forgets a process; one that is not there is no error.
func (t *Tables) DeleteProcess(pid uint32) { _ = t.processes.Delete(pid) }
