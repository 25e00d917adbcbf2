package pipeline

import (
	"sync"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/lang"
)

// PerfMap names code that a process made at run time.
type PerfMap interface {
	lang.Instance
	// Refresh reads what the process has added.
	Refresh()
	// Bytes is the memory that it takes.
	Bytes() int
}

// perfMaps holds the perf maps of processes that ran code made at run time. A
// map is read while its process lives: JITs append to it, and the file may go
// with the process's container.
type perfMaps struct {
	root func(profiler.PID) string
	open func(pid profiler.PID, root string) (PerfMap, error)

	mu      sync.Mutex
	waiting map[profiler.PID]int // seen, map not found yet: tries so far
	maps    map[profiler.PID]PerfMap
	leaving []profiler.PID // ended; windows with samples of them may be open
}

// maxTries is how often a map is looked for: most processes with code made at
// run time never write one.
const maxTries = 40

func newPerfMaps(root func(profiler.PID) string, open func(profiler.PID, string) (PerfMap, error)) *perfMaps {
	return &perfMaps{root: root, open: open, waiting: map[profiler.PID]int{}, maps: map[profiler.PID]PerfMap{}}
}

// add notes that a process runs such code. It is quick.
func (m *perfMaps) add(pid profiler.PID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.waiting[pid]; !ok && m.maps[pid] == nil {
		m.waiting[pid] = 0
	}
}

// refresh opens the maps of new processes and reads on in the others.
func (m *perfMaps) refresh() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, pm := range m.maps {
		pm.Refresh()
	}
	for pid, tries := range m.waiting {
		if tries == maxTries {
			continue
		}
		m.waiting[pid] = tries + 1
		root := m.root(pid)
		if root == "" {
			continue
		}
		if pm, err := m.open(pid, root); err == nil {
			m.maps[pid] = pm
			delete(m.waiting, pid)
		}
	}
}

// instance gives the map of a process, nil if it has none.
func (m *perfMaps) instance(pid profiler.PID) lang.Instance {
	m.mu.Lock()
	defer m.mu.Unlock()
	if pm := m.maps[pid]; pm != nil {
		return pm
	}
	return nil
}

// end closes the maps of processes that ended before the last call: windows
// with samples of them were named since.
func (m *perfMaps) end(ended []profiler.PID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, pid := range m.leaving {
		if pm := m.maps[pid]; pm != nil {
			_ = pm.Close() // a read-only file
		}
		delete(m.maps, pid)
		delete(m.waiting, pid)
	}
	m.leaving = ended
}

// size is how many maps are open, and the memory that they take.
func (m *perfMaps) size() (maps, bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, pm := range m.maps {
		bytes += int64(pm.Bytes())
	}
	return int64(len(m.maps)), bytes
}

func (m *perfMaps) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, pm := range m.maps {
		_ = pm.Close() // read-only files
	}
}
