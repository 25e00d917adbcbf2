package process

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/cfi"
	"github.com/kalypso-dev/kalypso/profiler/elffile"
	"github.com/kalypso-dev/kalypso/profiler/lang"
	"github.com/kalypso-dev/kalypso/profiler/unwind"
)

// tables is the kernel's side as plain slices.
type tables struct {
	mappings    []bpf.Mapping
	executables []bpf.Executable
	pages       []bpf.Page
	rows        []uint32
	rules       []bpf.Rule
	processes   map[uint32]entry
	full        bool // no process can be added
}

type entry struct {
	first, count uint32
	deferring    bool
}

func newTables(c bpf.Capacity) *tables {
	return &tables{
		mappings: make([]bpf.Mapping, c.Mappings), executables: make([]bpf.Executable, c.Executables),
		pages: make([]bpf.Page, c.Pages), rows: make([]uint32, c.Rows), rules: make([]bpf.Rule, c.Rules),
		processes: map[uint32]entry{},
	}
}

// roomy is a capacity that nothing here reaches.
var roomy = bpf.Capacity{Mappings: 4096, Executables: 512, Pages: 8192, Rows: 1 << 19, Rules: 8192}

func put[T any](to []T, first uint32, what ...T) error {
	if int(first)+len(what) > len(to) {
		return fmt.Errorf("entry %d of a table of %d", int(first)+len(what)-1, len(to))
	}
	copy(to[first:], what)
	return nil
}

func get[T any](from []T, i uint32) (T, error) {
	var none T
	if int(i) >= len(from) {
		return none, fmt.Errorf("entry %d of a table of %d", i, len(from))
	}
	return from[i], nil
}

func (k *tables) Capacity() bpf.Capacity {
	return bpf.Capacity{Mappings: uint32(len(k.mappings)), Executables: uint32(len(k.executables)),
		Pages: uint32(len(k.pages)), Rows: uint32(len(k.rows)), Rules: uint32(len(k.rules))}
}
func (k *tables) SetMappings(i uint32, ms []bpf.Mapping) error   { return put(k.mappings, i, ms...) }
func (k *tables) SetExecutable(i uint32, e bpf.Executable) error { return put(k.executables, i, e) }
func (k *tables) SetPage(i uint32, p bpf.Page) error             { return put(k.pages, i, p) }
func (k *tables) Page(i uint32) (bpf.Page, error)                { return get(k.pages, i) }
func (k *tables) SetRows(i uint32, rows []uint32) error          { return put(k.rows, i, rows...) }
func (k *tables) Row(i uint32) (uint32, error)                   { return get(k.rows, i) }
func (k *tables) SetRule(i uint32, r bpf.Rule) error             { return put(k.rules, i, r) }
func (k *tables) DeleteProcess(pid uint32)                       { delete(k.processes, pid) }
func (k *tables) Process(pid uint32) (first uint32, ok bool) {
	p, ok := k.processes[pid]
	return p.first, ok
}
func (k *tables) KeepProcesses(keep func(uint32) bool) {
	maps.DeleteFunc(k.processes, func(pid uint32, _ entry) bool { return !keep(pid) })
}
func (k *tables) SetProcess(pid, first, count uint32, deferring bool) error {
	if k.full {
		return unix.E2BIG
	}
	k.processes[pid] = entry{first, count, deferring}
	return nil
}

// of gives the mappings that the kernel side unwinds a process by.
func (k *tables) of(t *testing.T, pid profiler.PID) []bpf.Mapping {
	t.Helper()
	p, ok := k.processes[uint32(pid)]
	if !ok {
		t.Fatalf("the kernel side knows nothing of PID %d", pid)
	}
	return k.mappings[p.first : p.first+p.count]
}

// news are process events, given out at the next Drain.
type news struct {
	events []bpf.ProcessEvent
	lost   uint64
}

func (n *news) Drain(dst []bpf.ProcessEvent) ([]bpf.ProcessEvent, error) {
	dst = append(dst, n.events...)
	n.events = nil
	return dst, nil
}
func (n *news) Lost() uint64 { return n.lost }

// plain is a runtime that takes every file: rows a step apart over all code,
// each with a rule of its own.
type plain struct{ step uint64 }

func (plain) Name() string { return "plain" }
func (p plain) Recognise(f *elffile.File, _ string) (lang.Program, error) {
	var ranges []lang.Range
	for _, s := range f.Segments() {
		if s.Flags&elf.PF_X != 0 {
			ranges = append(ranges, lang.Range{Low: s.Vaddr, High: s.Vaddr + s.Filesz})
		}
	}
	return plainProgram{ranges, p.step}, nil
}

type plainProgram struct {
	ranges []lang.Range
	step   uint64
}

func (p plainProgram) Ranges() []lang.Range { return p.ranges }
func (p plainProgram) Rows(dst []cfi.Row, low, high uint64) ([]cfi.Row, error) {
	for at := low; at < high; at += p.step {
		dst = append(dst, cfi.Row{PC: at, Rule: ruleAt(at)})
	}
	return dst, nil
}
func (plainProgram) Bytes() int                                 { return 0 }
func (plainProgram) Trim()                                      {}
func (plainProgram) Attach(profiler.PID) (lang.Instance, error) { return plainInstance{}, nil }

func ruleAt(at uint64) cfi.Rule {
	return cfi.Rule{CFA: cfi.CFASP, CFAOff: int32(8 + at/64%2*8), RAKind: cfi.RegCFA, RAOff: -8}
}

type plainInstance struct{}

func (plainInstance) Symbolize(dst []profiler.Frame, _ uint64) ([]profiler.Frame, error) {
	return dst, nil
}
func (plainInstance) Close() error { return nil }

func newTestTable(t *testing.T, c bpf.Capacity, runtimes ...lang.Runtime) (*Table, *tables, *news) {
	t.Helper()
	k, n := newTables(c), &news{}
	if len(runtimes) == 0 {
		runtimes = []lang.Runtime{plain{64}}
	}
	table := NewTable(k, n, runtimes)
	t.Cleanup(table.Close)
	return table, k, n
}

// codeOf gives the first executable mapping of a process whose path ends so.
func codeOf(t *testing.T, pid profiler.PID, ending string) Mapping {
	t.Helper()
	ms, err := readMaps(pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range ms {
		if strings.HasSuffix(m.Path, ending) {
			return m
		}
	}
	t.Fatalf("PID %d has no code of %s: %v", pid, ending, ms)
	return Mapping{}
}

// at is the copy of a stack whose leaf is at an address, and that ends there:
// its return address is 0.
func at(pc uint64) *unwind.Copy {
	return &unwind.Copy{Regs: unwind.Regs{PC: pc, SP: 0x7ff0_0000_0000}, Exact: true, Stack: make([]byte, 64)}
}

// walk walks such a stack and wants one frame in a file, to the end.
func walk(t *testing.T, table *Table, pid profiler.PID, pc uint64) *Executable {
	t.Helper()
	words, stop, err := table.Walk(nil, pid, at(pc))
	if err != nil || stop != profiler.StopRoot || len(words) != 1 {
		t.Fatalf("walk at %#x of PID %d: %x, %s, %v", pc, pid, words, stop, err)
	}
	id, _, _ := unwind.Split(words[0])
	e := table.Executable(id)
	if e == nil {
		t.Fatalf("walk at %#x of PID %d: frame %x has no file", pc, pid, words[0])
	}
	return e
}

// build compiles a C program that sleeps, in a folder of the test's.
func build(t *testing.T, name string, flags ...string) string {
	t.Helper()
	source := filepath.Join(t.TempDir(), "sleep.c")
	text := "#include <unistd.h>\nint main(void) { write(1, \"\\n\", 1); for (;;) pause(); }\n"
	if err := os.WriteFile(source, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), name)
	if text, err := exec.Command("gcc", append([]string{"-O2", "-o", out, source}, flags...)...).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, text)
	}
	return out
}

// start runs a program until the test ends. It is past its exec when this
// returns: it has written a byte.
func start(t *testing.T, cmd *exec.Cmd) profiler.PID {
	t.Helper()
	ready, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if _, err := io.ReadFull(ready, make([]byte, 1)); err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	return profiler.PID(cmd.Process.Pid)
}

func newExecutableForRows(t *testing.T) *Executable {
	t.Helper()
	e := &Executable{path: "/proc/self/exe"}
	e.open(profiler.PID(os.Getpid()), nil, codeOf(t, profiler.PID(os.Getpid()), ".test"))
	if e.openErr != nil {
		t.Fatal(e.openErr)
	}
	e.recognise(0, nil, []lang.Runtime{plain{64}})
	t.Cleanup(e.close)
	return e
}

func TestWalkInstalls(t *testing.T) {
	table, k, _ := newTestTable(t, roomy)
	pid := start(t, exec.Command(build(t, "sleeper")))
	m := codeOf(t, pid, "/sleeper")
	e := walk(t, table, pid, m.Start+100)
	if e.Module().Path != m.Path || e.Module().BuildID == "" {
		t.Errorf("module %+v, want that of %s", e.Module(), m.Path)
	}
	ms, err := readMaps(pid)
	if err != nil {
		t.Fatal(err)
	}
	installed := k.of(t, pid)
	if len(installed) != len(ms) {
		t.Errorf("%d mappings installed, want %d", len(installed), len(ms))
	}
	for i, got := range installed {
		bias := ms[i].Start - ms[i].Offset
		if got.Executable == 0 {
			bias = 0 // not hit yet
		}
		if got.Start != ms[i].Start || got.End != ms[i].End || got.FramePointer || got.Bias != bias {
			t.Errorf("mapping %d is %+v, want that of %+v", i, got, ms[i])
		}
	}
	if s := table.Stats(); s.PagesBuilt != 1 || s.Rows == 0 || s.Rules != 3 || s.Processes != 1 {
		t.Errorf("stats %+v after one walk", s)
	}
	// What is built is not built again.
	walk(t, table, pid, m.Start+200)
	if s := table.Stats(); s.PagesBuilt != 1 {
		t.Errorf("%d pages built, want 1", s.PagesBuilt)
	}
	// An address in no mapping.
	if _, stop, _ := table.Walk(nil, pid, at(0x1000)); stop != profiler.StopNoMapping {
		t.Errorf("a walk at an address in no mapping ends with %s", stop)
	}
}

func TestVDSO(t *testing.T) {
	table, _, _ := newTestTable(t, roomy)
	pid := start(t, exec.Command(build(t, "sleeper")))
	if e := walk(t, table, pid, codeOf(t, pid, vdso).Start+0x500); e.Module().Path != vdso || e.Module().BuildID == "" {
		t.Errorf("module %+v", e.Module())
	}
}

func TestForkSharesSlot(t *testing.T) {
	table, k, n := newTestTable(t, roomy)
	pid := start(t, exec.Command(build(t, "sleeper")))
	m := codeOf(t, pid, "/sleeper")
	walk(t, table, pid, m.Start+100)
	used := table.mappings.used

	// As the kernel side does, at once.
	const child, late = 4_000_001, 4_000_002
	k.processes[child] = k.processes[uint32(pid)]
	n.events = []bpf.ProcessEvent{{Kind: bpf.EventFork, PID: child, Parent: uint32(pid)}}
	if err := table.Sync(); err != nil {
		t.Fatal(err)
	}
	if table.mappings.used != used {
		t.Errorf("%d entries used, want %d: parent and child share", table.mappings.used, used)
	}
	// The child's walk needs nothing of /proc: there is no such process.
	if e := walk(t, table, child, m.Start+100); e.Module().Path != m.Path {
		t.Errorf("module %+v", e.Module())
	}

	// The parent maps more: the child keeps what it had.
	before := len(k.of(t, child))
	n.events = []bpf.ProcessEvent{{Kind: bpf.EventMap, PID: uint32(pid), Start: 0x10000, End: 0x20000}}
	if err := table.Sync(); err != nil {
		t.Fatal(err)
	}
	if got := k.of(t, pid); len(got) != before+1 || got[0].Start != 0x10000 || !got[0].FramePointer {
		t.Errorf("the parent's mappings are %+v", got)
	}
	if len(k.of(t, child)) != before {
		t.Errorf("the child has %d mappings, want %d", len(k.of(t, child)), before)
	}

	// A child whose entry the kernel side copied before that is told apart.
	k.processes[late] = k.processes[child]
	n.events = []bpf.ProcessEvent{{Kind: bpf.EventFork, PID: late, Parent: uint32(pid)}}
	if err := table.Sync(); err != nil {
		t.Fatal(err)
	}
	if _, ok := k.processes[late]; ok {
		t.Error("a stale copy of the parent's mappings stays in force")
	}

	// All gone: all entries come back.
	n.events = []bpf.ProcessEvent{{Kind: bpf.EventExit, PID: child}, {Kind: bpf.EventExit, PID: late}, {Kind: bpf.EventExit, PID: uint32(pid)}}
	if err := table.Sync(); err != nil {
		t.Fatal(err)
	}
	if table.Stats().Processes != 3 {
		t.Error("processes that ended are forgotten at once: their samples may be on their way")
	}
	for _, p := range table.processes {
		p.exited = p.exited.Add(-2 * lingering)
	}
	table.forgot = time.Time{}
	if err := table.Sync(); err != nil {
		t.Fatal(err)
	}
	if s := table.Stats(); s.Processes != 0 || len(k.processes) != 0 || table.mappings.used != 0 {
		t.Errorf("%d processes, %d in the kernel, %d mappings stay", s.Processes, len(k.processes), table.mappings.used)
	}
}

func TestExecResets(t *testing.T) {
	table, k, n := newTestTable(t, roomy)
	pid := start(t, exec.Command(build(t, "sleeper")))
	m := codeOf(t, pid, "/sleeper")
	walk(t, table, pid, m.Start+100)
	k.DeleteProcess(uint32(pid)) // as the kernel side does
	n.events = []bpf.ProcessEvent{
		{Kind: bpf.EventExec, PID: uint32(pid)},
		{Kind: bpf.EventMap, PID: uint32(pid), Start: 0x40_0000, End: 0x50_0000, Offset: m.Offset, Device: m.Device, Inode: m.Inode, Path: m.Path},
		{Kind: bpf.EventMap, PID: uint32(pid), Start: 0x60_0000, End: 0x61_0000, Path: "//anon"},
	}
	if _, stop, _ := table.Walk(nil, pid, at(0x40_0100)); stop != profiler.StopRoot {
		t.Errorf("a walk in the new program ends with %s", stop)
	}
	got := k.of(t, pid)
	if len(got) != 2 || got[0].Start != 0x40_0000 || got[0].FramePointer || !got[1].FramePointer {
		t.Errorf("after exec the mappings are %+v", got)
	}
	if table.mappings.used != 2 {
		t.Errorf("%d entries used, want 2", table.mappings.used)
	}
}

// TestWalkOfWhatWasBefore: a copy that was taken before its PID was given again, or
// before another program ran, is not walked by what is mapped now.
func TestWalkOfWhatWasBefore(t *testing.T) {
	table, _, n := newTestTable(t, roomy)
	pid := start(t, exec.Command(build(t, "sleeper")))
	m := codeOf(t, pid, "/sleeper")
	for name, events := range map[string][]bpf.ProcessEvent{
		"fork": {{Kind: bpf.EventFork, PID: uint32(pid), Parent: 1 << 22, Time: 200}}, // what it has mapped is read
		"exec": {
			{Kind: bpf.EventExec, PID: uint32(pid), Time: 200},
			{Kind: bpf.EventMap, PID: uint32(pid), Time: 201, Start: m.Start, End: m.End, Offset: m.Offset, Device: m.Device, Inode: m.Inode, Path: m.Path},
		},
	} {
		n.events = events
		for taken, want := range map[uint64]profiler.Stop{199: profiler.StopNoMapping, 300: profiler.StopRoot} {
			c := at(m.Start + 100)
			c.Taken = taken
			if _, stop, _ := table.Walk(nil, pid, c); stop != want {
				t.Errorf("%s: of a copy taken at %d the walk ends with %s, want %s", name, taken, stop, want)
			}
		}
	}
}

func TestMapEventOfUnknownProcess(t *testing.T) {
	table, k, n := newTestTable(t, roomy)
	n.events = []bpf.ProcessEvent{
		{Kind: bpf.EventMap, PID: 77, Start: 0x1000, End: 0x2000},
		{Kind: bpf.EventExit, PID: 78},
		{Kind: bpf.EventFork, PID: 79, Parent: 80},
	}
	if err := table.Sync(); err != nil {
		t.Fatal(err)
	}
	if len(k.processes) != 0 {
		t.Errorf("processes that were never sampled cost entries: %v", k.processes)
	}
}

func TestDeletedPathOfEvent(t *testing.T) {
	table, _, n := newTestTable(t, roomy)
	n.events = []bpf.ProcessEvent{
		{Kind: bpf.EventExec, PID: 77},
		{Kind: bpf.EventMap, PID: 77, Start: 0x1000, End: 0x2000, Inode: 9, Path: "/memfd:code (deleted)"},
	}
	if err := table.Sync(); err != nil {
		t.Fatal(err)
	}
	if got := table.processes[77].mappings[0].Path; got != "/memfd:code" {
		t.Errorf("path %q: a file must have one name, as in /proc/PID/maps", got)
	}
}

// A pod's short shell command that cannot be asked any more is known by who
// started it, whatever it ran.
func TestParentIsKnownAfterExec(t *testing.T) {
	table, _, n := newTestTable(t, roomy)
	n.events = []bpf.ProcessEvent{
		{Kind: bpf.EventFork, PID: 4_000_011, Parent: 4_000_010},
		{Kind: bpf.EventExec, PID: 4_000_011},
	}
	if err := table.Sync(); err != nil {
		t.Fatal(err)
	}
	if got := table.Parent(4_000_011); got != 4_000_010 {
		t.Errorf("parent %d, want 4000010", got)
	}
}

func TestLostEventsReread(t *testing.T) {
	table, k, n := newTestTable(t, roomy)
	pid := start(t, exec.Command(build(t, "sleeper")))
	m := codeOf(t, pid, "/sleeper")
	walk(t, table, pid, m.Start+100)
	table.processes[pid].mappings = nil // what an event that was lost would have told
	table.processes[pid].exes = nil
	n.lost = 1
	walk(t, table, pid, m.Start+100)
	if len(k.of(t, pid)) < 3 {
		t.Errorf("mappings %+v were not read again", k.of(t, pid))
	}
}

func TestMappingThatNoEventToldOf(t *testing.T) {
	table, _, _ := newTestTable(t, roomy)
	pid := start(t, exec.Command(build(t, "sleeper")))
	m := codeOf(t, pid, "/sleeper")
	walk(t, table, pid, m.Start+100)
	p := table.processes[pid]
	p.mappings, p.exes = p.mappings[1:], p.exes[1:]
	p.reread = time.Now().Add(-time.Minute)
	walk(t, table, pid, m.Start+100)
}

func TestMissesEndCopies(t *testing.T) {
	table, k, _ := newTestTable(t, roomy)
	pid := start(t, exec.Command(build(t, "sleeper")))
	for range maxMisses - 1 {
		if _, stop, _ := table.Walk(nil, pid, at(0x1000)); stop != profiler.StopNoMapping {
			t.Fatalf("stop %s", stop)
		}
	}
	if !k.processes[uint32(pid)].deferring {
		t.Error("copies end too early")
	}
	if _, _, err := table.Walk(nil, pid, at(0x1000)); err != nil || k.processes[uint32(pid)].deferring {
		t.Errorf("after %d samples in no mapping the stacks are still copied: %v", maxMisses, err)
	}
}

func TestProcessGone(t *testing.T) {
	table, _, n := newTestTable(t, roomy)
	n.events = []bpf.ProcessEvent{{Kind: bpf.EventFork, PID: 4_000_003, Parent: 4_000_004}}
	if _, stop, err := table.Walk(nil, 4_000_003, at(0x1000)); stop != profiler.StopNoMapping || err != nil {
		t.Errorf("stop %s, %v", stop, err)
	}

	// Its mappings came as events, its files must do without its root.
	path := build(t, "sleeper")
	pid := start(t, exec.Command(path))
	m := codeOf(t, pid, "/sleeper")
	n.events = []bpf.ProcessEvent{
		{Kind: bpf.EventExec, PID: 4_000_005},
		{Kind: bpf.EventMap, PID: 4_000_005, Start: m.Start, End: m.End, Offset: m.Offset, Device: m.Device, Inode: m.Inode, Path: m.Path},
	}
	walk(t, table, 4_000_005, m.Start+100)
}

// TestNotFoundIsRetried: the first process with a deleted file ended before the
// file could be opened through it.
func TestNotFoundIsRetried(t *testing.T) {
	table, _, n := newTestTable(t, roomy)
	path := build(t, "gone")
	pid := start(t, exec.Command(path))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	m := codeOf(t, pid, "/gone")
	n.events = []bpf.ProcessEvent{
		{Kind: bpf.EventExec, PID: 4_000_006},
		{Kind: bpf.EventMap, PID: 4_000_006, Start: m.Start, End: m.End, Offset: m.Offset, Device: m.Device, Inode: m.Inode, Path: m.Path},
	}
	if _, stop, _ := table.Walk(nil, 4_000_006, at(m.Start+100)); stop != profiler.StopNoTable {
		t.Errorf("a file that cannot be found: %s", stop)
	}
	walk(t, table, pid, m.Start+100)
}

func TestMainThreadEnded(t *testing.T) {
	source := filepath.Join(t.TempDir(), "x.c")
	text := "#include <pthread.h>\n#include <unistd.h>\nstatic void *f(void *x) { write(1, \"\\n\", 1); for (;;) pause(); return x; }\n" +
		"int main(void) { pthread_t t; pthread_create(&t, 0, f, 0); pthread_exit(0); }\n"
	if err := os.WriteFile(source, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "headless")
	if text, err := exec.Command("gcc", "-O2", "-pthread", "-o", path, source).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, text)
	}
	table, k, n := newTestTable(t, roomy)
	pid := start(t, exec.Command(path))
	n.events = []bpf.ProcessEvent{
		{Kind: bpf.EventExec, PID: uint32(pid)},
		{Kind: bpf.EventMap, PID: uint32(pid), Start: 0x1000, End: 0x2000},
		{Kind: bpf.EventExit, PID: uint32(pid)},
	}
	if _, _, err := table.Walk(nil, pid, at(0x1100)); err != nil {
		t.Fatal(err)
	}
	table.processes[pid].exited, table.forgot = time.Now().Add(-2*lingering), time.Time{}
	if err := table.Sync(); err != nil {
		t.Fatal(err)
	}
	if len(k.of(t, pid)) != 1 {
		t.Error("a process was forgotten while its threads run")
	}
}

func TestTablesFull(t *testing.T) {
	path := build(t, "sleeper")
	pid := start(t, exec.Command(path))
	m := codeOf(t, pid, "/sleeper")
	t.Run("mappings", func(t *testing.T) {
		c := roomy
		c.Mappings = 2
		table, k, _ := newTestTable(t, c)
		walk(t, table, pid, m.Start+100) // in user space it works
		if len(k.processes) != 0 {
			t.Errorf("processes %v with no room for their mappings", k.processes)
		}
	})
	t.Run("processes", func(t *testing.T) {
		table, k, _ := newTestTable(t, roomy)
		k.full = true
		walk(t, table, pid, m.Start+100)
		if table.mappings.used != 0 {
			t.Errorf("%d mappings are taken by a process that was not installed", table.mappings.used)
		}
	})
	t.Run("files without a number end the stack", func(t *testing.T) {
		c := roomy
		c.Executables = 1
		table, k, _ := newTestTable(t, c)
		words, stop, _ := table.Walk(nil, pid, at(m.Start+100))
		if id, _, _ := unwind.Split(words[0]); id != 0 || stop != profiler.StopNoTable {
			t.Errorf("executable %d, %s", id, stop)
		}
		for _, m := range k.of(t, pid) {
			if m.FramePointer {
				t.Errorf("mapping %+v of a file is unwound by frame pointers", m)
			}
		}
		if table.Stats().ExecutablesRefused == 0 {
			t.Error("nothing says that a file was refused")
		}
	})
	t.Run("only files that are hit take a number", func(t *testing.T) {
		c := roomy
		c.Executables = 2
		table, k, _ := newTestTable(t, c)
		walk(t, table, pid, m.Start+100)
		if n := table.Stats().Executables; n != 1 {
			t.Errorf("%d executables are numbered, want the one that was hit", n)
		}
		found := false
		for _, m := range k.of(t, pid) {
			found = found || m.Executable == 1
		}
		if !found {
			t.Errorf("the kernel side was not told its number: %+v", k.of(t, pid))
		}
	})
	t.Run("pages", func(t *testing.T) {
		c := roomy
		c.Pages = 0
		table, _, _ := newTestTable(t, c)
		if _, stop, _ := table.Walk(nil, pid, at(m.Start+100)); stop != profiler.StopNoTable {
			t.Errorf("stop %s", stop)
		}
	})
	t.Run("rules leave gaps", func(t *testing.T) {
		c := roomy
		c.Rules = 1
		table, _, _ := newTestTable(t, c)
		if _, stop, _ := table.Walk(nil, pid, at(m.Start+100)); stop != profiler.StopNoRow {
			t.Errorf("stop %s", stop)
		}
	})
	t.Run("a page larger than the table is refused and counted", func(t *testing.T) {
		c := roomy
		c.Rows = 1
		table, _, _ := newTestTable(t, c)
		for range 3 {
			if _, stop, _ := table.Walk(nil, pid, at(m.Start+100)); stop != profiler.StopNoTable {
				t.Errorf("stop %s", stop)
			}
		}
		if s := table.Stats(); s.PagesRefused != 1 || s.PagesBuilt != 0 || s.PagesEvicted != 0 {
			t.Errorf("stats %+v: refused once, and not tried again", s)
		}
	})
}

// libc has some 24 pages of code, at 64 bytes a row 1024 rows each.
func TestEviction(t *testing.T) {
	pid := start(t, exec.Command(build(t, "sleeper")))
	m := codeOf(t, pid, "/libc.so.6")
	count := int((m.End - m.Start) >> pageShift)
	if count < 12 {
		t.Skipf("libc has only %d pages of code", count)
	}
	c := roomy
	c.Rows = 4200 // four pages
	table, k, _ := newTestTable(t, c)
	table.rows.grace = 0
	page := func(i int) uint64 { return m.Start&^0xffff + uint64(i)<<pageShift + 0x100 }
	entry := func(i int) *bpf.Page {
		walk(t, table, pid, page(i)) // makes room
		e := walk(t, table, pid, page(i))
		return &k.pages[e.pages.first+uint32((page(i)-m.Start+m.Offset)>>pageShift)-e.firstPage]
	}
	for range 2 {
		for i := 1; i < count; i++ {
			walk(t, table, pid, page(i))
			if used := table.Stats().Rows; used > uint64(c.Rows) {
				t.Fatalf("%d rows in a table of %d", used, c.Rows)
			}
		}
	}
	s := table.Stats()
	if s.PagesRefused != 0 || s.PagesBuilt < 2*uint64(count-1) || s.PagesEvicted < uint64(count)/2 {
		t.Errorf("stats %+v after two rounds over %d pages in room for 4", s, count)
	}

	// Three are used lately by the kernel side, the others are not: they stay.
	for i := range table.built {
		table.built[i].at = time.Now().Add(-time.Minute)
	}
	hot := []*bpf.Page{entry(2), entry(3), entry(4)}
	for _, p := range hot {
		p.Used = 100
	}
	for i := 6; i < count; i++ {
		entry(i).Used = 50
		for j, p := range hot {
			if p.Count == 0 || p.Count == bpf.PageUnavailable {
				t.Fatalf("page %d, used last, was evicted for page %d", j+2, i)
			}
		}
	}
	// The table is full of pages that rest: walks go on, and none waits.
	table.rows.grace = time.Hour
	start := time.Now()
	for range 3 {
		for i := 1; i < count; i++ {
			walk(t, table, pid, page(i))
		}
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("walks took %v", took)
	}
	for i := range table.rows.dying {
		table.rows.dying[i].at = time.Time{}
	}
	table.rows.grace = 0

	// One that was just built and had no time to be used is not the oldest.
	fresh := entry(5)
	walk(t, table, pid, page(6))
	if fresh.Count == 0 {
		t.Error("the newest page was evicted first")
	}
}

func TestBuildIDShared(t *testing.T) {
	path := build(t, "sleeper")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	twin := filepath.Join(t.TempDir(), "twin")
	if err := os.WriteFile(twin, text, 0o755); err != nil {
		t.Fatal(err)
	}
	table, k, _ := newTestTable(t, roomy)
	a, b := start(t, exec.Command(path)), start(t, exec.Command(twin))
	ma, mb := codeOf(t, a, "/sleeper"), codeOf(t, b, "/twin")
	ea, eb := walk(t, table, a, ma.Start+100), walk(t, table, b, mb.Start+100)
	if ea == eb || ea.Module().Path == eb.Module().Path {
		t.Error("two files have one name")
	}
	if s := table.Stats(); s.PagesBuilt != 1 || k.executables[ea.id] != k.executables[eb.id] {
		t.Errorf("%d pages built for two copies of one file, want 1", s.PagesBuilt)
	}

	// Another size with the same build ID is another file.
	long := filepath.Join(t.TempDir(), "long")
	if err := os.WriteFile(long, append(text, 0), 0o755); err != nil {
		t.Fatal(err)
	}
	p := start(t, exec.Command(long))
	walk(t, table, p, codeOf(t, p, "/long").Start+100)
	if s := table.Stats(); s.PagesBuilt != 2 {
		t.Errorf("%d pages built, want 2", s.PagesBuilt)
	}
}

func TestOpenFile(t *testing.T) {
	requireRoot(t) // for /proc/PID/map_files and mounts
	other := build(t, "other", "-DOTHER", "-Wl,--build-id=0x0102030405060708")
	buildID := func(path string) string {
		f, err := elffile.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		return f.BuildID()
	}
	check := func(t *testing.T, pid profiler.PID, ending, want string) {
		t.Helper()
		table, _, _ := newTestTable(t, roomy)
		m := codeOf(t, pid, ending)
		if e := walk(t, table, pid, m.Start+100); e.Module().BuildID != want {
			t.Errorf("build ID %s, want %s", e.Module().BuildID, want)
		}
	}
	t.Run("deleted while it runs", func(t *testing.T) {
		path := build(t, "prog")
		want := buildID(path)
		pid := start(t, exec.Command(path))
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		check(t, pid, "/prog", want)
	})
	t.Run("replaced by another file", func(t *testing.T) {
		path := build(t, "prog")
		want := buildID(path)
		pid := start(t, exec.Command(path))
		if err := os.Rename(other, path); err != nil {
			t.Fatal(err)
		}
		check(t, pid, "/prog", want)
		// And the new one, under the same path, beside it.
		table, _, _ := newTestTable(t, roomy)
		second := start(t, exec.Command(path))
		old, fresh := walk(t, table, pid, codeOf(t, pid, "/prog").Start+100), walk(t, table, second, codeOf(t, second, "/prog").Start+100)
		if old.Module().BuildID != want || fresh.Module().BuildID != "0102030405060708" {
			t.Errorf("build IDs %s and %s", old.Module().BuildID, fresh.Module().BuildID)
		}
		if err := os.Rename(path, other); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("replaced on overlay, where device numbers say nothing", func(t *testing.T) {
		// The layers are on a tmpfs: a container's own file system, which may be
		// an overlay, is refused as the upper layer. Not below t.TempDir, which
		// has this test's name: the comma in it would end the mount option.
		dir, err := os.MkdirTemp("", "overlay")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(dir) })
		mount(t, "tmpfs", dir, "")
		for _, d := range []string{"lower", "upper", "work", "merged"} {
			if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		merged := filepath.Join(dir, "merged")
		mount(t, "overlay", merged, fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", dir, dir, dir))
		path := filepath.Join(merged, "prog")
		copyFile(t, build(t, "prog"), path)
		want := buildID(path)
		pid := start(t, exec.Command(path))
		copyFile(t, other, path+".new")
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		check(t, pid, "/prog", want)
	})
	t.Run("an inode that is used again", func(t *testing.T) {
		// tmpfs numbers inodes anew; what matters is that the same number with
		// another stamp is another file.
		table, _, n := newTestTable(t, roomy)
		path := filepath.Join(t.TempDir(), "prog")
		copyFile(t, build(t, "prog"), path)
		pid := start(t, exec.Command(path))
		m := codeOf(t, pid, "/prog")
		first := walk(t, table, pid, m.Start+100)
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(5 * time.Second)
		for stamp := st.Ctim.Nano(); st.Ctim.Nano() == stamp; { // the clock of files ticks every few ms
			if time.Now().After(deadline) {
				t.Fatal("the change time does not change")
			}
			if err := os.Chmod(path, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := unix.Stat(path, &st); err != nil {
				t.Fatal(err)
			}
		}
		n.events = []bpf.ProcessEvent{
			{Kind: bpf.EventExec, PID: uint32(pid)},
			{Kind: bpf.EventMap, PID: uint32(pid), Start: m.Start, End: m.End, Offset: m.Offset, Device: m.Device, Inode: m.Inode, Path: m.Path},
		}
		if second := walk(t, table, pid, m.Start+100); second == first {
			t.Error("the number of an inode is taken for the file")
		}
	})
	t.Run("in another mount namespace", func(t *testing.T) {
		path := build(t, "prog")
		want := buildID(path)
		dir := t.TempDir()
		// The folder is a mount that only the process has.
		cmd := exec.Command("sh", "-c", `mount -t tmpfs none "$0" && cp "$1" "$0/inside" && exec "$0/inside"`, dir, path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		pid := start(t, cmd)
		if _, err := os.Stat(filepath.Join(dir, "inside")); err == nil {
			t.Fatal("the mount is visible here: this test shows nothing")
		}
		check(t, pid, "/inside", want)
	})
	t.Run("a file that exists in memory only", func(t *testing.T) {
		path := build(t, "prog")
		want := buildID(path)
		fd, err := unix.MemfdCreate("ghost", 0)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "ghost")
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(text); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/proc/self/fd/3")
		// A file that is open for writing cannot be run: reopen it.
		ro, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		cmd.ExtraFiles = []*os.File{ro}
		check(t, start(t, cmd), "/memfd:ghost", want)
	})
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, text, 0o755); err != nil {
		t.Fatal(err)
	}
}

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("KALYPSO_REQUIRE_BPF") == "1" {
		t.Fatal("KALYPSO_REQUIRE_BPF=1, and this is not root")
	}
	t.Skip("takes root")
}

// mount mounts a file system until the test ends. It skips the test where the
// kernel does not have that file system, and, outside CI, where it refuses:
// root in a container may not mount.
func mount(t *testing.T, kind, dir, options string) {
	t.Helper()
	err := unix.Mount(kind, dir, kind, 0, options)
	switch {
	case err == nil:
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	case errors.Is(err, unix.ENODEV):
		t.Skipf("this kernel has no %s", kind)
	case os.Getenv("KALYPSO_REQUIRE_BPF") == "1":
		t.Fatalf("KALYPSO_REQUIRE_BPF=1, and mount %s: %v", kind, err)
	default:
		t.Skipf("mount %s: %v", kind, err)
	}
}

// fileWith maps a file with these bytes as code into this very process.
func fileWith(t *testing.T, text []byte) Mapping {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mapped")
	if err := os.WriteFile(path, append(text, make([]byte, 8192)...), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	memory, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(memory) })
	return codeOf(t, profiler.PID(os.Getpid()), path)
}

func TestForeignFiles(t *testing.T) {
	own, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	header := own[:4096]
	with := func(at int, b ...byte) []byte {
		return append(append(append([]byte{}, header[:at]...), b...), header[at+len(b):]...)
	}
	risc := make([]byte, 2)
	binary.LittleEndian.PutUint16(risc, uint16(elf.EM_RISCV))
	thirtyTwo := make([]byte, 52)
	copy(thirtyTwo, "\x7fELF\x01\x01\x01")
	thirtyTwo[16], thirtyTwo[18], thirtyTwo[20] = 2, byte(elf.EM_386), 1

	pid := profiler.PID(os.Getpid())
	tests := []struct {
		name         string
		text         []byte
		framePointer bool // else there is no way to unwind it
		module       bool // else it is code made at run time that lives in a file
	}{
		{"code of a JIT in a file", []byte("\x90\x90\x90\xc3 not an ELF file"), true, false},
		{"nothing but zeros", make([]byte, 100), true, false},
		{"an ELF file for another machine", with(18, risc...), false, true},
		{"a 32-bit ELF file", thirtyTwo, false, true},
		{"a file of another class", with(4, 9), false, true},
		{"section headers past the end of the file", with(40, 0, 0, 0, 0, 1), false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := fileWith(t, tt.text)
			table, k, _ := newTestTable(t, roomy)
			words, stop, err := table.Walk(nil, pid, at(m.Start+100))
			if err != nil || len(words) != 1 {
				t.Fatalf("%x, %s, %v", words, stop, err)
			}
			for range 3 { // the mapping is marked once the file was read
				_, stop, _ = table.Walk(nil, pid, at(m.Start+100))
			}
			id, _, _ := unwind.Split(words[0])
			if (id != 0) != tt.module {
				t.Errorf("executable %d", id)
			}
			if tt.framePointer {
				if stop != profiler.StopRoot {
					t.Errorf("frame %x, %s: want the frame pointer's chain to its end", words[0], stop)
				}
				for _, x := range k.of(t, pid) {
					if x.Start == m.Start && !x.FramePointer {
						t.Error("the kernel side waits for rows of a file that has none")
					}
				}
			} else if stop != profiler.StopNoTable {
				t.Errorf("stop %s, want the walk to say that there is no table", stop)
			}
			if !tt.module {
				return
			}
			e := table.Executable(id)
			if e == nil || e.Module().Path != m.Path {
				t.Fatalf("executable %d has no name", id)
			}
			if frames, _ := e.Symbolize(nil, 100); len(frames) != 0 {
				t.Errorf("a foreign file's frames are named %v", frames)
			}
		})
	}
}

// TestConcurrent is for the race detector, and for deadlocks.
func TestConcurrent(t *testing.T) {
	table, _, _ := newTestTable(t, roomy)
	pid := start(t, exec.Command(build(t, "sleeper")))
	m := codeOf(t, pid, "/sleeper")
	e := walk(t, table, pid, m.Start+100)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 200 {
			e.Symbolize(nil, 0x1100)
			table.Stats()
			table.RootPath(pid)
			table.Executable(e.id)
		}
	}()
	for range 200 {
		walk(t, table, pid, m.Start+100)
	}
	<-done
	table.Close()
	if frames, _ := e.Symbolize(nil, 0x1100); len(frames) != 0 {
		t.Error("named from a closed file")
	}
	table.roots = roots{} // closed
}
