package pipeline

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
)

// MinMemoryBudget is what a test holds the agent to, with hundreds of programs
// and one of a million unwind rows: 88 to 90 MiB at the peak. Loading the
// programs and naming the kernel alone take some 75.
const MinMemoryBudget = 96 << 20

func (c *Settings) checkMemory() error {
	if c.MemoryBudget == 0 || c.MemoryBudget >= MinMemoryBudget {
		return nil
	}
	return &profiler.Fault{
		What: fmt.Sprintf("cannot work with %d MiB of memory", c.MemoryBudget>>20),
		Why:  fmt.Errorf("the BPF maps, the names of the kernel and the agent itself take some %d MiB", MinMemoryBudget>>20),
		Fix:  "--memory.budget 128Mi is the default; 0 is no limit",
	}
}

// memory keeps the agent within its budget: what is resident, and the BPF maps
// beside it. Caches have fixed shares of the budget. When all of it is in use
// nonetheless, things are given up in this order, one every few seconds, and
// taken up again when there was room for a minute:
//
//  1. the history of profiles
//  2. half of the caches of names
//  3. lines and inlined calls: debug information is not read, symbols are
//  4. samples: the rate is a quarter of what is wanted
//
// The limit of the Go heap is what the rest leaves of the budget, so that
// garbage is collected rather than something given up.
type memory struct {
	service  *Service
	budget   atomic.Int64
	maps     int64
	pressure atomic.Int32
	changed  time.Time // pressure
	calm     time.Time // since when there is room
	looked   time.Time
	limit    int64 // of the Go heap
	lookups  int
	trims    atomic.Uint64
	steps    uint64 // changes of pressure
	roomy    bool   // there was room when it was looked last
	samples  [2]metrics.Sample
}

// MemoryStats are figures of the memory, in bytes.
type MemoryStats struct {
	Budget, Resident, Maps  int64
	GoLimit                 int64
	Names, Locations        int64  // what is known of files; what addresses are called
	Window                  int64  // samples that are not named yet
	Pressure                int    // how many things are given up; see memory
	Steps                   uint64 // changes of Pressure
	Trims                   uint64 // files that had to let go of what they can read again
	LocationEvictions       uint64
	PerfMaps, PerfMapsBytes int64
}

// The most that is given up, and from which step on what is.
const (
	noHistory   = 1
	fewerNames  = 2
	noDebugInfo = 3
	fewer       = 4 // samples
)

// Shares of the budget: the denominators.
const (
	namesShare     = 6
	locationsShare = 16
	windowShare    = 16
	historyShare   = 16
)

// Without a budget caches are bounded all the same.
const unlimited = 512 << 20

func newMemory(s *Service) *memory {
	m := &memory{service: s}
	m.budget.Store(s.cfg.MemoryBudget)
	m.samples[0].Name = "/memory/classes/total:bytes"
	m.samples[1].Name = "/memory/classes/heap/released:bytes"
	return m
}

// reset changes the budget while the service runs.
func (m *memory) reset(budget int64) {
	if m.budget.Swap(budget) == budget {
		return
	}
	if budget == 0 {
		m.limit = 0
		debug.SetMemoryLimit(math.MaxInt64)
		m.pressure.Store(0)
	}
	m.resize()
	m.adjust(time.Now())
}

func (m *memory) size() int64 {
	if budget := m.budget.Load(); budget > 0 {
		return budget
	}
	return unlimited
}

func (m *memory) windowBytes() int { return int(m.size() / windowShare) }

func (m *memory) namesBytes() int {
	n := m.size() / namesShare
	if m.pressure.Load() >= fewerNames {
		n /= 2
	}
	return int(n)
}

// begin sets the sizes of caches, once the engine is open.
func (m *memory) begin() {
	s := m.service
	m.maps = int64(s.kernel.MapBytes())
	s.symbols.LookedUp = m.lookedUp
	m.resize()
	m.adjust(time.Now())
}

// lookedUp is called after an address was looked up in a file: naming a window
// may open hundreds of them.
func (m *memory) lookedUp() {
	if m.lookups++; m.lookups%64 == 0 {
		m.named()
	}
}

// named brings what is known of files down to its share.
func (m *memory) named() {
	if n := m.service.table.Trim(m.namesBytes()); n > 0 {
		m.trims.Add(uint64(n))
	}
}

// look is called every second. Measuring is not free: where there is room it
// happens less often.
func (m *memory) look() {
	every := 3 * time.Second
	if m.roomy {
		every = 12 * time.Second
	}
	if now := time.Now(); now.Sub(m.looked) >= every {
		m.looked = now
		m.adjust(now)
	}
}

// adjust measures, and gives something up or takes it up again.
func (m *memory) adjust(now time.Time) {
	resident := residentBytes()
	budget := m.budget.Load()
	if budget > 0 {
		m.limitHeap(budget, resident)
		m.press(now, budget, resident+m.maps)
		m.roomy = resident+m.maps < budget*roomyPercent/100
	}
	s := m.service
	st := MemoryStats{
		Budget: budget, Resident: resident, Maps: m.maps, GoLimit: m.limit,
		Names: int64(s.table.NameBytes()), Locations: int64(s.symbols.Bytes()), Window: int64(s.collector.Bytes()),
		Pressure: int(m.pressure.Load()), Steps: m.steps, Trims: m.trims.Load(), LocationEvictions: s.symbols.Evictions(),
	}
	st.PerfMaps, st.PerfMapsBytes = s.perfMaps.size()
	s.count(func(all *ServiceStats) { all.Memory = st })
}

// Of the budget, in percent: above the first, something is given up; below the
// second, it is taken up again; the heap is collected before either.
const (
	tightPercent = 93
	roomyPercent = 75
	heapPercent  = 88
)

// limitHeap gives the Go heap what the maps and everything else that is
// resident (the program itself, shared pages of the maps) leave.
func (m *memory) limitHeap(budget, resident int64) {
	metrics.Read(m.samples[:])
	heap := int64(m.samples[0].Value.Uint64() - m.samples[1].Value.Uint64())
	other := max(resident-heap, 0)
	limit := max(budget*heapPercent/100-m.maps-other, 16<<20)
	if math.Abs(float64(limit-m.limit)) > 1<<20 {
		m.limit = limit
		debug.SetMemoryLimit(limit)
	}
}

// settle is how long a step is given to show.
const settle = 6 * time.Second

func (m *memory) press(now time.Time, budget, used int64) {
	level := m.pressure.Load()
	switch {
	case used > budget*tightPercent/100:
		m.calm = time.Time{}
		if level < fewer && now.Sub(m.changed) >= settle {
			m.step(now, level+1, used)
		}
	case used > budget*roomyPercent/100:
		m.calm = time.Time{}
	case m.calm.IsZero():
		m.calm = now
	case level > 0 && now.Sub(m.calm) > time.Minute:
		m.calm = now
		m.step(now, level-1, used)
	}
}

// given names what each step of pressure gives up.
var given = [...]string{"nothing", "history", "half of the caches of names", "lines and inlined calls", "three of four samples"}

func (m *memory) step(now time.Time, level int32, used int64) {
	up := level > m.pressure.Load()
	m.pressure.Store(level)
	m.changed = now
	m.steps++
	m.service.cfg.Log.Warn("memory budget", "used", used, "budget", m.budget.Load(), "given up", given[level])
	m.resize()
	if up {
		m.named()
		debug.FreeOSMemory()
	}
}

// resize tells everybody the size that the pressure leaves.
func (m *memory) resize() {
	s, level := m.service, m.pressure.Load()
	locations := m.size() / locationsShare
	if level >= fewerNames {
		locations /= 2
	}
	s.symbols.SetBudget(int(locations))
	if s.cfg.SetHistory != nil {
		history := m.size() / historyShare
		if level >= noHistory {
			history = 0
		}
		s.cfg.SetHistory(history)
	}
	if s.cfg.SetDebugInfo != nil {
		s.cfg.SetDebugInfo(level < noDebugInfo)
	}
}

// rate is what memory leaves of a rate.
func (m *memory) rate(hz int) int {
	if m.pressure.Load() >= fewer {
		return max(hz/4, MinFrequency)
	}
	return hz
}

// residentBytes is what the agent has in memory now: proc_pid_statm(5).
func residentBytes() int64 {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	f := bytes.Fields(text)
	if len(f) < 2 {
		return 0
	}
	pages, err := strconv.ParseInt(string(f[1]), 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}
