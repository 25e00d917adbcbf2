// Package process knows the live processes: what they have mapped, which
// executables that is, and what the kernel side must be told so that it can
// unwind them.
//
// A process costs nothing until it is sampled. Its first sample comes as a copy
// of its stack; the walk over that copy asks for mappings and unwind rules
// here, and whatever it asked for is put into the kernel's tables, so that the
// next sample is unwound there. Rows are built a 64 KiB page of code at a time
// and shared by all processes that run the file; when their table is full, the
// pages that no walk used for longest make room.
package process

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/cfi"
	"github.com/kalypso-dev/kalypso/profiler/lang"
	"github.com/kalypso-dev/kalypso/profiler/unwind"
)

const pageShift = bpf.PageShift

// Kernel is what the table writes to.
type Kernel interface {
	Capacity() bpf.Capacity
	SetMappings(first uint32, ms []bpf.Mapping) error
	SetExecutable(i uint32, e bpf.Executable) error
	SetPage(i uint32, p bpf.Page) error
	Page(i uint32) (bpf.Page, error)
	SetRows(first uint32, rows []uint32) error
	Row(i uint32) (uint32, error)
	SetRule(i uint32, r bpf.Rule) error
	SetProcess(pid, first, count uint32, deferring bool) error
	Process(pid uint32) (first uint32, ok bool)
	KeepProcesses(keep func(pid uint32) bool)
	DeleteProcess(pid uint32)
}

// Events is where process events come from.
type Events interface {
	Drain(dst []bpf.ProcessEvent) ([]bpf.ProcessEvent, error)
	Lost() uint64
}

// Stats count what the table did since it was made.
type Stats struct {
	Processes, Executables uint64 // now
	PagesBuilt             uint64
	PagesEvicted           uint64
	PagesRefused           uint64 // over budget or unreadable
	ExecutablesRefused     uint64 // samples in files for which no number was left
	InstallsRefused        uint64 // processes whose mappings did not fit
	RulesRefused           uint64 // rows that became gaps because the table of rules was full
	RulesForgotten         uint64 // how often that table was emptied
	FilesPoisoned          uint64 // files that are not read any more, because reading them went wrong
	Rows                   uint64 // now
	Rules                  uint64
	EventsLost             uint64
	BuildTime              time.Duration
}

// Table is the table of live processes. Its methods may be called from several
// goroutines.
type Table struct {
	kernel   Kernel
	events   Events
	runtimes []lang.Runtime
	// Failed, if set before anything is walked, is told of files that cannot be
	// read without harm.
	Failed func(error)
	poison atomic.Uint64 // such files

	mu        sync.Mutex
	processes map[profiler.PID]*process
	roots     roots
	files     map[fileKey]*Executable
	builds    map[string]*Executable // by build ID
	byID      []*Executable          // by number; 0 is no executable, nil a number that is free
	freeIDs   []uint32               // numbers that were given back
	numbered  int                    // how often one was given
	ended     []profiler.PID         // processes forgotten since the last sweep
	lingering time.Duration
	forgot    time.Time   // when exited processes were last looked for
	looked    time.Time   // when processes were last looked for in /proc
	unknown   *Executable // stands in for files beyond maxFiles

	mappings, pages, rows *extents
	rules                 map[cfi.Rule]uint16
	ruleList              []cfi.Rule
	built                 []builtPage
	recent                map[uint32][]uint32 // rows built for this walk, by index of their page
	scratch               []bpf.ProcessEvent
	eventsLost            uint64
	stats                 Stats
}

type builtPage struct {
	exe  *Executable
	page uint32
	rows extent
	at   time.Time
}

// process is what is known of one process.
type process struct {
	pid      profiler.PID
	mappings []Mapping
	exes     []*Executable // in step with mappings once installed; nil: unwind by frame pointers
	root     *Root
	parent   profiler.PID
	ran      bool   // another program than its parent
	since    uint64 // of CLOCK_MONOTONIC: what was sampled before is of another process, or program
	known    bool   // mappings are complete, from events or from /proc
	slot     *slot
	// installed is how many executables had numbers when slot was written: its
	// mappings of those numbered later are to be written again.
	installed int
	reread    time.Time // when mappings were last read again because an address was in none
	misses    int
	exited    time.Time
}

// slot is a run of the table of mappings, shared with children that were
// forked while it was in force.
type slot struct {
	extent
	users int
}

// NewTable makes an empty table that asks runtimes in order; the last should
// take every executable.
func NewTable(kernel Kernel, events Events, runtimes []lang.Runtime) *Table {
	c := kernel.Capacity()
	return &Table{
		kernel: kernel, events: events, runtimes: runtimes, lingering: lingering,
		processes: map[profiler.PID]*process{},
		roots:     roots{},
		files:     map[fileKey]*Executable{},
		builds:    map[string]*Executable{},
		byID:      []*Executable{nil},
		unknown:   &Executable{module: &profiler.Module{}, opened: true, openErr: errTooManyFiles},
		mappings:  newExtents(c.Mappings, mappingGrace),
		pages:     newExtents(c.Pages, grace),
		rows:      newExtents(c.Rows, grace),
		// Number 0 is the zero rule, a gap: what a table not written to says.
		rules:    map[cfi.Rule]uint16{{}: 0},
		ruleList: []cfi.Rule{{}},
		recent:   map[uint32][]uint32{},
	}
}

// Close closes all files.
func (t *Table) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.byID {
		if e != nil {
			e.close()
		}
	}
	t.roots.close()
}

// Stats tells what the table did.
func (t *Table) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.stats
	s.Processes, s.Executables = uint64(len(t.processes)), uint64(len(t.byID)-1-len(t.freeIDs))
	s.Rows, s.Rules = uint64(t.rows.used), uint64(len(t.ruleList))
	s.EventsLost = t.events.Lost()
	s.FilesPoisoned = t.poison.Load()
	return s
}

func (t *Table) poisoned(err error) {
	t.poison.Add(1)
	if t.Failed != nil {
		t.Failed(err)
	}
}

// Sync takes in what happened to processes since the last call.
func (t *Table) Sync() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.sync()
}

func (t *Table) sync() error {
	var err error
	t.scratch, err = t.events.Drain(t.scratch[:0])
	var changed map[*process]bool
	for i := range t.scratch {
		// One that is not in the kernel's tables is put there by a sample.
		if p := t.apply(&t.scratch[i]); p != nil && p.slot != nil {
			if changed == nil {
				changed = map[*process]bool{}
			}
			changed[p] = true
		}
	}
	for p := range changed {
		if p.slot != nil {
			t.install(p)
		}
	}
	if lost := t.events.Lost(); lost != t.eventsLost {
		if t.Failed != nil {
			t.Failed(fmt.Errorf("%d process events were lost: mappings are read from /proc again", lost-t.eventsLost))
		}
		t.eventsLost = lost
		for _, p := range t.processes {
			p.known = false // read /proc again at the next sample
		}
		// A fork that we did not hear of left the child with mappings that may
		// be given to others.
		t.kernel.KeepProcesses(func(pid uint32) bool {
			p := t.processes[profiler.PID(pid)]
			return p != nil && p.slot != nil
		})
	}
	t.forget()
	return err
}

// lingering is how long an exited process is remembered: samples of it may
// still be on their way.
const lingering = 2 * time.Second

// forget forgets them. There may be thousands of processes, and a look at each
// is not free: it happens four times in that time, not at every call.
func (t *Table) forget() {
	now := time.Now()
	if now.Sub(t.forgot) < t.lingering/4 {
		return
	}
	t.forgot = now
	for pid, p := range t.processes {
		if !p.exited.IsZero() && now.Sub(p.exited) > t.lingering {
			if alive(pid) {
				p.exited = now // only the main thread ended: look again later
				continue
			}
			t.uninstall(p)
			delete(t.processes, pid)
			t.ended = append(t.ended, pid)
		}
	}
}

// alive says that a process whose main thread ended has other threads.
func alive(pid profiler.PID) bool {
	if errors.Is(unix.Kill(int(pid), 0), unix.ESRCH) { // as good as always, and a fraction of reading the folder
		return false
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	return err == nil && len(threads) > 1
}

// usualMappings is how many mappings of code a new program gets: itself, the
// loader, the vDSO and some libraries.
const usualMappings = 8

// apply takes in one event, and gives the process whose mappings it changed.
func (t *Table) apply(e *bpf.ProcessEvent) *process {
	pid := profiler.PID(e.PID)
	p := t.processes[pid]
	switch e.Kind {
	case bpf.EventFork:
		t.fork(pid, profiler.PID(e.Parent), e.Time)
	case bpf.EventExec:
		if p == nil {
			p = &process{pid: pid}
			t.processes[pid] = p
		}
		t.uninstall(p)
		*p = process{pid: pid, parent: p.parent, ran: true, since: e.Time, known: true, mappings: make([]Mapping, 0, usualMappings)}
	case bpf.EventMap:
		if p == nil || !p.known {
			return nil // read whole from /proc when a sample comes
		}
		m := Mapping{Start: e.Start, End: e.End, Offset: e.Offset, Device: e.Device, Inode: e.Inode, Path: strings.TrimSuffix(e.Path, deleted)}
		if m.Inode == 0 && m.Path != vdso {
			m.Path = ""
		}
		p.mappings = insertMapping(p.mappings, m)
		p.exes = nil
		return p
	case bpf.EventExit:
		if p != nil {
			p.exited = time.Now()
		}
	}
	return nil
}

// fork gives the child what the parent has, as the kernel side did already.
func (t *Table) fork(pid, parent profiler.PID, at uint64) {
	if old := t.processes[pid]; old != nil { // it ended, and its PID is given again
		t.uninstall(old)
		t.ended = append(t.ended, pid)
	}
	child := &process{pid: pid, parent: parent, since: at}
	if p := t.processes[parent]; p != nil && p.known {
		child.mappings, child.known = slices.Clone(p.mappings), true
		child.exes = slices.Clone(p.exes)
		child.root = p.root
		if p.slot != nil {
			// The kernel side copied the entry at once. If the parent's changed
			// since, the child's is stale: its next sample installs it anew.
			if first, ok := t.kernel.Process(uint32(pid)); ok && first == p.slot.first {
				child.slot, child.installed = p.slot, p.installed
				p.slot.users++
			} else {
				t.kernel.DeleteProcess(uint32(pid))
			}
		}
	}
	t.processes[pid] = child
}

// load gives the process, with its mappings.
func (t *Table) load(pid profiler.PID) *process {
	p := t.processes[pid]
	if p == nil {
		p = &process{pid: pid}
		t.processes[pid] = p
	}
	if !p.known {
		t.reread(p)
	}
	return p
}

// reread reads the mappings from /proc; a process that is gone leaves those of
// its parent, which it had unless it ran another program.
func (t *Table) reread(p *process) {
	ms, err := readMaps(p.pid)
	if (err != nil || len(ms) == 0) && len(p.mappings) == 0 && p.parent != 0 && !p.ran {
		ms, err = readMaps(p.parent)
	}
	p.reread = time.Now()
	if err == nil && len(ms) > 0 {
		p.mappings, p.exes, p.known = ms, nil, true
	}
}

// uninstall takes a process out of the kernel's tables.
func (t *Table) uninstall(p *process) {
	if p.slot == nil {
		return
	}
	t.kernel.DeleteProcess(uint32(p.pid))
	t.release(p.slot)
	p.slot = nil
}

func (t *Table) release(s *slot) {
	if s.users--; s.users == 0 {
		t.mappings.give(s.extent)
	}
}

// install puts the process's mappings into the kernel's tables.
func (t *Table) install(p *process) {
	t.resolve(p)
	ms := make([]bpf.Mapping, 0, len(p.mappings))
	for i, m := range p.mappings {
		out := bpf.Mapping{Start: m.Start, End: m.End}
		if e := p.exes[i]; e != nil {
			if out.Executable = e.id; e.id != 0 {
				out.Bias = m.Start - m.Offset
			}
		} else {
			out.FramePointer = true
		}
		ms = append(ms, out)
	}
	x, ok := t.mappings.take(uint32(len(ms)))
	if !ok {
		t.stats.InstallsRefused++
		return // its stacks keep coming as copies, until processes end
	}
	old := p.slot
	p.slot, p.installed = &slot{extent: x, users: 1}, t.numbered
	err := t.kernel.SetMappings(x.first, ms)
	if err == nil {
		err = t.kernel.SetProcess(uint32(p.pid), x.first, x.count, p.misses < maxMisses)
	}
	if err != nil {
		t.mappings.give(x)
		p.slot = nil
	}
	if old != nil {
		t.release(old)
	}
}

// maxFiles is how many files are known, hit by samples or not.
const maxFiles = 1 << 16

var errTooManyFiles = errors.New("too many files are mapped as code")

// maxMisses is how many samples in no mapping a process may have before its
// stacks are no longer copied: nothing will be learnt from more.
const maxMisses = 1000

// resolve finds the executable of every mapping.
func (t *Table) resolve(p *process) {
	if len(p.exes) == len(p.mappings) {
		return
	}
	if p.root == nil {
		p.root, _ = t.roots.open(p.pid) // a process that is gone: its files are not found
	}
	p.exes = make([]*Executable, len(p.mappings))
	for i := range p.mappings {
		if m := &p.mappings[i]; !m.anonymous() {
			p.exes[i] = t.executable(p, m)
		}
	}
}

// executable gives the executable of a mapping, nil where code is made at run
// time or no number is left for it.
func (t *Table) executable(p *process, m *Mapping) *Executable {
	key := fileKey{device: m.Device, inode: m.Inode, path: m.Path}
	if m.Path != vdso && p.root != nil {
		var st unix.Stat_t
		if unix.Stat(p.root.Path()+m.Path, &st) == nil {
			key.stamp = st.Ctim.Nano()
		}
	}
	e := t.files[key]
	if e == nil {
		if len(t.files) >= maxFiles {
			return t.unknown
		}
		e = &Executable{path: m.Path, module: &profiler.Module{Path: m.Path}, tell: t.poisoned}
		t.files[key] = e
	}
	if e.notELF {
		return nil
	}
	return e
}

// number gives an executable its number, when a sample first hits it: a process
// may map thousands of files that never run. When all numbers are taken it has
// none, its stacks end there, and that is counted.
func (t *Table) number(e *Executable) {
	if e.id != 0 || e == t.unknown {
		return
	}
	switch n := len(t.freeIDs); {
	case n > 0:
		e.id = t.freeIDs[0] // the one that is free for longest
		t.freeIDs = slices.Delete(t.freeIDs, 0, 1)
		t.byID[e.id] = e
	case len(t.byID) < int(t.kernel.Capacity().Executables):
		e.id = uint32(len(t.byID))
		t.byID = append(t.byID, e)
	default:
		t.stats.ExecutablesRefused++
		return
	}
	e.numbered = t.numbered
	t.numbered++
}

// Executable gives an executable by the number that frames carry; nil for code
// made at run time.
func (t *Table) Executable(id uint32) *Executable {
	t.mu.Lock()
	defer t.mu.Unlock()
	if int(id) < len(t.byID) {
		return t.byID[id]
	}
	return nil
}

// RootPath is where the file system of a process is found, empty when it was
// never seen.
func (t *Table) RootPath(pid profiler.PID) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.processes[pid]; p != nil && p.root != nil {
		return p.root.Path()
	}
	return ""
}

// Walk unwinds a copied stack and puts what that needed into the kernel's
// tables.
func (t *Table) Walk(dst []uint64, pid profiler.PID, c *unwind.Copy) ([]uint64, profiler.Stop, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.recent)
	err := t.sync()
	p := t.load(pid)
	if c.Taken != 0 && c.Taken < p.since { // it waited for its turn, and the mappings that it needs are gone
		dst, stop := unwind.Walk(dst, c, &space{t: t, p: &process{pid: pid}})
		return dst, stop, err
	}
	s := &space{t: t, p: p}
	n := len(dst)
	dst, stop := unwind.Walk(dst, c, s)
	if (stop == profiler.StopNoMapping || s.reread) && time.Since(p.reread) > time.Second {
		// A mapping that no event told of, or one that turned out to be no ELF file.
		t.reread(p)
		t.uninstall(p)
		dst, stop = unwind.Walk(dst[:n], c, s)
	}
	if stop == profiler.StopNoMapping || s.refused {
		if p.misses++; p.misses == maxMisses {
			t.install(p)
		}
	}
	if (p.slot == nil || s.stale) && len(p.mappings) > 0 {
		t.install(p)
	}
	return dst, stop, err
}

// space is the address space of a process for a walk over a copy.
type space struct {
	t       *Table
	p       *process
	reread  bool
	stale   bool // an executable was numbered since the mappings were installed
	refused bool // the walk ended in a file without a number
}

// Mapping implements unwind.Space.
func (s *space) Mapping(addr uint64) (unwind.Mapping, bool) {
	s.t.resolve(s.p)
	ms := s.p.mappings
	i, found := slices.BinarySearchFunc(ms, addr, func(m Mapping, a uint64) int {
		if m.Start <= a {
			return -1
		}
		return 1
	})
	if found || i == 0 || addr >= ms[i-1].End {
		return unwind.Mapping{}, false
	}
	m, e := &ms[i-1], s.p.exes[i-1]
	out := unwind.Mapping{Start: m.Start, End: m.End, FramePointer: e == nil}
	if e != nil {
		s.t.number(e)
		s.stale = s.stale || e.id != 0 && e.numbered >= s.p.installed
		s.t.opened(s.p, e, m)
		if e.notELF {
			s.p.exes[i-1] = nil
			s.t.uninstall(s.p)
			out.FramePointer = true
			return out, true
		}
		if out.Executable = e.id; e.id != 0 {
			out.Bias = m.Start - m.Offset
		}
	}
	return out, true
}

// Rule implements unwind.Space.
func (s *space) Rule(id uint32, offset uint64) (cfi.Rule, profiler.Stop) {
	if id == 0 {
		s.refused = true
		return cfi.Rule{}, profiler.StopNoTable // no number was left for the file
	}
	return s.t.rule(s.t.byID[id], offset)
}

// opened opens the executable if it is not, and gives it its pages.
func (t *Table) opened(p *process, e *Executable, m *Mapping) {
	if e.opened && !e.retry(p.pid) {
		return
	}
	start := time.Now()
	e.open(p.pid, p.root, *m)
	if e.openErr == nil {
		// Containers hold the same libraries in different files: one set of rows serves all.
		id := e.module.BuildID
		if other := t.builds[id]; id != "" && other != nil && other.file.Size() == e.file.Size() {
			e.share(other)
		} else {
			e.recognise(p.pid, p.root, t.runtimes)
			t.builds[id] = e
		}
	}
	t.stats.BuildTime += time.Since(start)
	if e.openErr != nil {
		if !e.notELF && !errors.Is(e.openErr, fs.ErrNotExist) {
			_ = t.kernel.SetExecutable(e.id, bpf.Executable{Unavailable: true})
		}
		return
	}
	if e.lender != nil {
		_ = t.kernel.SetExecutable(e.id, bpf.Executable{Pages: e.pages.first, FirstPage: e.firstPage, Count: e.pages.count})
		return
	}
	if first, count := e.pageSpan(); count > 0 {
		if x, ok := t.pages.take(count); ok {
			for i := range count {
				_ = t.kernel.SetPage(x.first+i, bpf.Page{})
			}
			e.pages, e.firstPage = x, first
			_ = t.kernel.SetExecutable(e.id, bpf.Executable{Pages: x.first, FirstPage: first, Count: count})
		}
	}
}

// rule gives the rule at an offset of an executable, building its page if that
// was not done yet.
func (t *Table) rule(e *Executable, offset uint64) (cfi.Rule, profiler.Stop) {
	number := uint32(offset>>pageShift) - e.firstPage
	if e.openErr != nil || number >= e.pages.count {
		return cfi.Rule{}, profiler.StopNoTable
	}
	index := e.pages.first + number
	page, err := t.kernel.Page(index)
	rows, built := t.recent[index]
	if err == nil && page.Count == 0 && !built {
		rows, err = t.build(e, e.firstPage+number, index)
		built = true
	}
	if err != nil || page.Count == bpf.PageUnavailable {
		return cfi.Rule{}, profiler.StopNoTable
	}
	low, high := uint32(0), page.Count
	if built {
		high = uint32(len(rows))
	}
	want := uint32(offset)<<16 | 0xffff
	var row uint32
	for low < high {
		mid := (low + high) / 2
		var r uint32
		if built {
			r = rows[mid]
		} else if r, err = t.kernel.Row(page.First + mid); err != nil {
			return cfi.Rule{}, profiler.StopNoTable
		}
		if r <= want {
			low, row = mid+1, r
		} else {
			high = mid
		}
	}
	if low == 0 || int(row&0xffff) >= len(t.ruleList) {
		return cfi.Rule{}, profiler.StopNoTable
	}
	return t.ruleList[row&0xffff], profiler.StopNone
}

// build makes the rows of one page and installs them if there is room. Where
// room has to be made first, the walk that asked goes on with the rows that it
// gets here, and a later one installs them: waiting for entries that were freed
// would hold up everything else.
func (t *Table) build(e *Executable, page, index uint32) ([]uint32, error) {
	start := time.Now()
	defer func() { t.stats.BuildTime += time.Since(start) }()
	rows, err := e.rows(page)
	if capacity := t.kernel.Capacity().Rows; err == nil && len(rows) > min(1<<16, int(capacity)) {
		err = fmt.Errorf("page %d of %s has %d rows, there is room for %d", page, e.path, len(rows), min(1<<16, capacity))
	}
	if err != nil {
		t.stats.PagesRefused++
		return nil, errors.Join(err, t.kernel.SetPage(index, bpf.Page{Count: bpf.PageUnavailable}))
	}
	words := make([]uint32, len(rows))
	for i, r := range rows {
		number, err := t.ruleNumber(r.Rule)
		if err != nil {
			return nil, err
		}
		words[i] = uint32(r.PC)<<16 | uint32(number)
	}
	t.recent[index] = words
	t.stats.PagesBuilt++
	n := uint32(len(words))
	x, ok := t.rows.take(n)
	if !ok {
		t.evict(n)
		return words, nil
	}
	if err := t.kernel.SetRows(x.first, words); err != nil {
		t.rows.give(x)
		return nil, err
	}
	t.built = append(t.built, builtPage{e, page, x, time.Now()})
	return words, t.kernel.SetPage(index, bpf.Page{First: x.first, Count: x.count})
}

// ruleNumber gives the number of a rule, the same for equal rules.
func (t *Table) ruleNumber(r cfi.Rule) (uint16, error) {
	if n, ok := t.rules[r]; ok {
		return n, nil
	}
	if n := len(t.ruleList); n >= int(t.kernel.Capacity().Rules) {
		t.stats.RulesRefused++
		return 0, nil // a gap, honestly
	}
	n := uint16(len(t.ruleList))
	t.rules[r] = n
	t.ruleList = append(t.ruleList, r)
	return n, t.kernel.SetRule(uint32(n), *(*bpf.Rule)(unsafe.Pointer(&r)))
}

// settling is how long the kernel side may take to use a page that was built
// for a sample: until then, not having used it says nothing.
const settling = 5 * time.Second

// evict makes room for n rows: pages that no walk used for longest go first,
// an eighth of the table at a time so that this is rare. What was freed shortly
// before counts: it will be room soon.
func (t *Table) evict(n uint32) {
	want := max(n, t.kernel.Capacity().Rows/8)
	resting := t.rows.resting()
	if resting >= 2*want {
		return // there must be n in a row among so many
	}
	used := make(map[*builtPage]uint32, len(t.built))
	order := make([]*builtPage, len(t.built))
	for i := range t.built {
		b := &t.built[i]
		order[i] = b
		if p, err := t.kernel.Page(b.exe.pages.first + b.page - b.exe.firstPage); err == nil {
			used[b] = p.Used
		}
		if used[b] == 0 && time.Since(b.at) < settling {
			used[b] = math.MaxUint32
		}
	}
	slices.SortStableFunc(order, func(a, b *builtPage) int { return int(int64(used[a]) - int64(used[b])) })
	gone := map[extent]bool{}
	for freed := uint32(0); freed < want && len(order) > 0; order = order[1:] {
		b := order[0]
		if err := t.kernel.SetPage(b.exe.pages.first+b.page-b.exe.firstPage, bpf.Page{}); err != nil {
			break
		}
		t.rows.give(b.rows)
		gone[b.rows] = true
		freed += b.rows.count
		t.stats.PagesEvicted++
	}
	t.built = slices.DeleteFunc(t.built, func(b builtPage) bool { return gone[b.rows] })
}
