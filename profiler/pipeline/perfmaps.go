package pipeline

import (
	"sync"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/lang"
)

// perfMaps holds the perf maps of processes that ran code made at run time. A
// map is read while its process lives: JITs append to it, and the file may go
// with the process's container.
type perfMaps struct {
	root func(profiler.PID) string
	open func(pid profiler.PID, root string) (lang.Instance, error)

	mu      sync.Mutex
	waiting map[profiler.PID]bool // seen, not read yet
	maps    map[profiler.PID]lang.Instance
}

func newPerfMaps(root func(profiler.PID) string) *perfMaps {
	return &perfMaps{root: root, waiting: map[profiler.PID]bool{}, maps: map[profiler.PID]lang.Instance{}}
}

// add notes that a process runs such code. It is quick.
func (m *perfMaps) add(pid profiler.PID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.maps[pid] == nil {
		m.waiting[pid] = true
	}
}

func (m *perfMaps) refresh() {}

func (m *perfMaps) instance(pid profiler.PID) lang.Instance { return m.maps[pid] }
