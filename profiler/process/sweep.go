package process

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/cfi"
)

// Swept is what a sweep let go.
type Swept struct {
	// Executables are the numbers that will stand for other files from now on.
	// No frame that carries one is on its way any more.
	Executables map[uint32]bool
	// Processes have ended.
	Processes []profiler.PID
}

// Sweep lets go of what no live process needs: files that none has mapped since
// idle, root folders that were only kept for these, processes that ended
// without an event. Frames of a file are on their way for as long as a window
// and its naming take, so idle is to be more than two windows.
//
// An agent that did not sweep would hold on to every container that ever ran.
func (t *Table) Sweep(idle time.Duration) Swept {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	swept := Swept{Executables: map[uint32]bool{}, Processes: t.ended}
	t.ended = nil
	t.dropVanished(now)
	used, roots := t.inUse()
	for key, e := range t.files {
		if used[e] {
			e.idleSince = time.Time{}
		} else if e.idleSince.IsZero() {
			e.idleSince = now
		}
		if e.idleSince.IsZero() || now.Sub(e.idleSince) < idle {
			roots[e.root] = true
			continue
		}
		delete(t.files, key)
		if e.id != 0 {
			swept.Executables[e.id] = true
		}
		t.free(e)
	}
	t.roots.closeOthers(roots)
	if len(t.ruleList) >= int(t.kernel.Capacity().Rules) {
		t.forgetRules()
	}
	return swept
}

// dropVanished looks once a minute for processes whose exit no event told of.
func (t *Table) dropVanished(now time.Time) {
	if now.Sub(t.looked) < time.Minute {
		return
	}
	t.looked = now
	for pid, p := range t.processes {
		if p.exited.IsZero() && errors.Is(unix.Access(fmt.Sprintf("/proc/%d", pid), unix.F_OK), unix.ENOENT) {
			p.exited = now // forget takes it from here
		}
	}
}

// inUse gives the executables that live processes have mapped, with those that
// they share their rows and names with, and the root folders of processes.
func (t *Table) inUse() (used map[*Executable]bool, roots map[*Root]bool) {
	used, roots = map[*Executable]bool{}, map[*Root]bool{}
	for _, p := range t.processes {
		if p.root != nil {
			roots[p.root] = true
		}
		for _, e := range p.exes {
			if e == nil || used[e] {
				continue
			}
			used[e] = true
			if e.lender != nil {
				used[e.lender] = true
			}
		}
	}
	return used, roots
}

// free takes an executable out of all tables. Its number goes to another file.
func (t *Table) free(e *Executable) {
	if t.builds[e.module.BuildID] == e {
		delete(t.builds, e.module.BuildID)
	}
	if e.lender == nil {
		t.built = slices.DeleteFunc(t.built, func(b builtPage) bool {
			if b.exe != e {
				return false
			}
			t.rows.give(b.rows)
			return true
		})
		t.pages.give(e.pages)
	}
	e.close()
	if e.id == 0 {
		return
	}
	_ = t.kernel.SetExecutable(e.id, bpf.Executable{}) // an index inside the table: it cannot fail
	t.byID[e.id] = nil
	t.freeIDs = append(t.freeIDs, e.id)
}

// forgetRules empties the table of rules when it is full: rows that were built
// since then are gaps, and the table holds rules of files that are long gone.
// Every page is built anew when it is hit.
func (t *Table) forgetRules() {
	for i := range t.built {
		b := &t.built[i]
		_ = t.kernel.SetPage(b.exe.pages.first+b.page-b.exe.firstPage, bpf.Page{})
		t.rows.give(b.rows)
		t.stats.PagesEvicted++
	}
	t.built = nil
	// A walk that found its row just before may still look at the rule.
	time.Sleep(grace)
	t.rules, t.ruleList = map[cfi.Rule]uint16{{}: 0}, []cfi.Rule{{}}
	t.stats.RulesForgotten++
}

// Parent gives the parent of a process that was forked while the table was
// there; 0 if it is not known.
func (t *Table) Parent(pid profiler.PID) profiler.PID {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.processes[pid]; p != nil {
		return p.parent
	}
	return 0
}

// NameBytes is the memory that unwinding and naming files take now, and Trim
// brings it down: the files that were named longest ago let go of what they
// can read again, until no more than budget is left. It gives the number of
// files that had to.
func (t *Table) NameBytes() int {
	total := 0
	for _, e := range t.holders() {
		total += e.bytes()
	}
	return total
}

// Trim is described with NameBytes.
func (t *Table) Trim(budget int) int {
	list := t.holders()
	slices.SortFunc(list, func(a, b *Executable) int { return int(a.named.Load() - b.named.Load()) })
	total := 0
	sizes := make([]int, len(list))
	for i, e := range list {
		sizes[i] = e.bytes()
		total += sizes[i]
	}
	trimmed := 0
	for i, e := range list {
		if total <= budget {
			break
		}
		e.trim()
		total -= sizes[i] - e.bytes()
		trimmed++
	}
	return trimmed
}

// holders are the executables that hold memory of their own. What they hold is
// asked for without the table's lock: naming may be under way.
func (t *Table) holders() []*Executable {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]*Executable, 0, len(t.byID))
	for _, e := range t.byID {
		if e != nil && e.lender == nil && e.openErr == nil && e.file != nil {
			list = append(list, e)
		}
	}
	return list
}

// closeOthers closes the roots that are not among those to keep.
func (rs roots) closeOthers(keep map[*Root]bool) {
	for key, r := range rs {
		if !keep[r] {
			_ = unix.Close(r.fd)
			delete(rs, key)
		}
	}
}
