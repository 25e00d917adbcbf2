package dump

import (
	"fmt"

	"github.com/kalypso-dev/kalypso/bpf"
)

// tables are the unwind tables of one dump. Nothing in the kernel reads them:
// what only the kernel side needs is not kept.
type tables struct {
	pages map[uint32]bpf.Page
	rows  []uint32 // as many as were written
}

// maxRows bounds the memory for rows, 4 bytes each. A process with more code on
// its stacks is unwound all the same: pages are built anew.
const maxRows = 1 << 22

// Capacity implements process.Kernel. Executables and rules have numbers of
// fixed width in frames and rows.
func (t *tables) Capacity() bpf.Capacity {
	return bpf.Capacity{Mappings: 1 << 16, Executables: 1 << 13, Pages: 1 << 16, Rows: maxRows, Rules: 1 << 14}
}

// SetMappings implements process.Kernel.
func (t *tables) SetMappings(uint32, []bpf.Mapping) error { return nil }

// SetExecutable implements process.Kernel.
func (t *tables) SetExecutable(uint32, bpf.Executable) error { return nil }

// SetPage implements process.Kernel.
func (t *tables) SetPage(i uint32, p bpf.Page) error {
	t.pages[i] = p
	return nil
}

// Page implements process.Kernel.
func (t *tables) Page(i uint32) (bpf.Page, error) { return t.pages[i], nil }

// SetRows implements process.Kernel.
func (t *tables) SetRows(first uint32, rows []uint32) error {
	end := int(first) + len(rows)
	if end > maxRows {
		return fmt.Errorf("write rows up to %d in a table of %d", end, maxRows)
	}
	if end > len(t.rows) {
		t.rows = append(t.rows, make([]uint32, end-len(t.rows))...)
	}
	copy(t.rows[first:], rows)
	return nil
}

// Row implements process.Kernel.
func (t *tables) Row(i uint32) (uint32, error) {
	if int(i) >= len(t.rows) {
		return 0, fmt.Errorf("read row %d of %d", i, len(t.rows))
	}
	return t.rows[i], nil
}

// SetRule implements process.Kernel.
func (t *tables) SetRule(uint32, bpf.Rule) error { return nil }

// SetProcess implements process.Kernel.
func (t *tables) SetProcess(uint32, uint32, uint32, bool) error { return nil }

// Process implements process.Kernel.
func (t *tables) Process(uint32) (uint32, bool) { return 0, false }

// KeepProcesses implements process.Kernel.
func (t *tables) KeepProcesses(func(uint32) bool) {}

// DeleteProcess implements process.Kernel.
func (t *tables) DeleteProcess(uint32) {}

// noEvents is what a dump is told of processes: it reads their mappings once.
type noEvents struct{}

// Drain implements process.Events.
func (noEvents) Drain(dst []bpf.ProcessEvent) ([]bpf.ProcessEvent, error) { return dst, nil }

// Lost implements process.Events.
func (noEvents) Lost() uint64 { return 0 }
