package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/profiler"
)

// end kills a process and lets the table hear of it.
func end(t *testing.T, cmd *exec.Cmd, table *Table, n *news) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	n.events = append(n.events, bpf.ProcessEvent{Kind: bpf.EventExit, PID: uint32(cmd.Process.Pid)})
	if err := table.Sync(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * table.lingering)
	if err := table.Sync(); err != nil {
		t.Fatal(err)
	}
}

// files is how many files this process has open.
func files(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// distinct builds a program with a build ID of its own.
func distinct(t *testing.T, i int) string {
	t.Helper()
	return build(t, fmt.Sprintf("sleeper%d", i), fmt.Sprintf("-Wl,--build-id=0x%040x", i+1))
}

// TestSweep: an agent that sees more executables than there are numbers, one
// after the other, holds on to none of them.
func TestSweep(t *testing.T) {
	capacity := roomy
	capacity.Executables = 3 // two numbers
	table, k, n := newTestTable(t, capacity)
	table.lingering = time.Millisecond
	var open int
	for i := range 6 {
		path := distinct(t, i)
		cmd := exec.Command(path)
		pid := start(t, cmd)
		m := codeOf(t, pid, filepath.Base(path))
		e := walk(t, table, pid, m.Start+100)
		if e.Module().Path != path {
			t.Fatalf("program %d: number %d is %s, want %s", i, e.id, e.Module().Path, path)
		}
		if swept := table.Sweep(0); len(swept.Executables) > 0 || e.closed {
			t.Fatalf("a sweep takes what a live process runs: %+v", swept)
		}
		end(t, cmd, table, n)
		swept := table.Sweep(0)
		if !swept.Executables[e.id] || len(swept.Executables) != 1 || !e.closed {
			t.Fatalf("program %d, number %d: the sweep after its end let go of %+v", i, e.id, swept)
		}
		if len(swept.Processes) != 1 || swept.Processes[0] != pid {
			t.Errorf("processes %v ended, want %d", swept.Processes, pid)
		}
		if k.executables[e.id] != (bpf.Executable{}) {
			t.Errorf("the kernel side still has %+v for number %d", k.executables[e.id], e.id)
		}
		if i == 1 {
			open = files(t)
		}
	}
	if now := files(t); now > open {
		t.Errorf("%d files are open after six programs, %d after two", now, open)
	}
	s := table.Stats()
	if s.Executables != 0 || s.Processes != 0 || s.Rows != 0 || s.ExecutablesRefused != 0 || table.pages.used != 0 || len(table.built) != 0 {
		t.Errorf("what is left: %+v, %d pages, %d built", s, table.pages.used, len(table.built))
	}
	if len(table.files) != 0 || len(table.builds) != 0 || len(table.roots) != 0 {
		t.Errorf("what is left: %d files, %d builds, %d roots", len(table.files), len(table.builds), len(table.roots))
	}
}

// TestSweepWaits: a file is kept for a while, for frames on their way and for
// the next process that runs it.
func TestSweepWaits(t *testing.T) {
	table, _, n := newTestTable(t, roomy)
	table.lingering = time.Millisecond
	path := build(t, "sleeper")
	cmd := exec.Command(path)
	pid := start(t, cmd)
	e := walk(t, table, pid, codeOf(t, pid, "sleeper").Start+100)
	end(t, cmd, table, n)
	if swept := table.Sweep(time.Hour); len(swept.Executables) > 0 {
		t.Fatal("a file is let go at once")
	}
	again := exec.Command(path)
	second := start(t, again)
	if other := walk(t, table, second, codeOf(t, second, "sleeper").Start+100); other != e {
		t.Error("the next process that runs a file opens it anew")
	}
	if s := table.Stats(); s.PagesBuilt != 1 {
		t.Errorf("%d pages built for two runs of a program, want 1", s.PagesBuilt)
	}
	table.Sweep(time.Hour)
	if !e.idleSince.IsZero() {
		t.Error("a file that is used again counts as idle")
	}
}

// TestSweepSharedFile: rows and names of a file are another's with the same
// build ID; they stay for as long as any of the two is used.
func TestSweepSharedFile(t *testing.T) {
	table, _, n := newTestTable(t, roomy)
	table.lingering = time.Millisecond
	path := build(t, "sleeper")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	twin := filepath.Join(t.TempDir(), "sleeper")
	if err := os.WriteFile(twin, text, 0o755); err != nil {
		t.Fatal(err)
	}
	cmds := []*exec.Cmd{exec.Command(path), exec.Command(twin)}
	var exes []*Executable
	for _, cmd := range cmds {
		pid := start(t, cmd)
		exes = append(exes, walk(t, table, pid, codeOf(t, pid, "sleeper").Start+100))
	}
	if exes[1].lender != exes[0] {
		t.Fatal("the same program in two files is built twice")
	}
	end(t, cmds[0], table, n)
	if swept := table.Sweep(0); len(swept.Executables) > 0 || exes[0].closed {
		t.Errorf("the file that the other one borrows from was let go: %+v", swept)
	}
	walk(t, table, profiler.PID(cmds[1].Process.Pid), codeOf(t, profiler.PID(cmds[1].Process.Pid), "sleeper").Start+100)
	end(t, cmds[1], table, n)
	if swept := table.Sweep(0); len(swept.Executables) != 2 || !exes[0].closed || !exes[1].closed {
		t.Errorf("let go of %+v, want both", swept)
	}
}

// TestSweepFindsTheVanished: a process whose end no event told of.
func TestSweepFindsTheVanished(t *testing.T) {
	table, _, _ := newTestTable(t, roomy)
	table.lingering = time.Millisecond
	cmd := exec.Command(build(t, "sleeper"))
	pid := start(t, cmd)
	walk(t, table, pid, codeOf(t, pid, "sleeper").Start+100)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	table.looked = time.Time{}
	table.Sweep(0)
	time.Sleep(2 * table.lingering)
	if err := table.Sync(); err != nil {
		t.Fatal(err)
	}
	if swept := table.Sweep(0); len(swept.Executables) != 1 || len(table.processes) != 0 {
		t.Errorf("swept %+v, %d processes left", swept, len(table.processes))
	}
}

// TestFullRules: when the table of rules is full it begins anew, and the rows
// built afterwards are right.
func TestFullRules(t *testing.T) {
	capacity := roomy
	capacity.Rules = 3 // the zero rule, and the two of the runtime: full at once
	table, _, _ := newTestTable(t, capacity)
	pid := start(t, exec.Command(build(t, "sleeper")))
	m := codeOf(t, pid, "sleeper")
	walk(t, table, pid, m.Start+100)
	table.Sweep(time.Hour)
	if s := table.Stats(); s.RulesForgotten != 1 || s.Rules != 1 || s.Rows != 0 {
		t.Errorf("after a sweep with a full table: %+v", s)
	}
	walk(t, table, pid, m.Start+100)
	if s := table.Stats(); s.Rules != 3 || s.PagesBuilt != 2 || s.RulesRefused != 0 {
		t.Errorf("after the next walk: %+v", s)
	}
}

// TestKeepProcesses: when events were lost, the kernel side forgets whom the
// table knows nothing of.
func TestKeepProcesses(t *testing.T) {
	table, k, n := newTestTable(t, roomy)
	pid := start(t, exec.Command(build(t, "sleeper")))
	walk(t, table, pid, codeOf(t, pid, "sleeper").Start+100)
	if err := k.SetProcess(4711, 0, 1, true); err != nil {
		t.Fatal(err)
	}
	n.lost = 1
	if err := table.Sync(); err != nil {
		t.Fatal(err)
	}
	if _, known := k.Process(4711); known {
		t.Error("a process that was forked unseen keeps its parent's mappings")
	}
	if _, known := k.Process(uint32(pid)); !known {
		t.Error("a process with mappings of its own lost them")
	}
}
