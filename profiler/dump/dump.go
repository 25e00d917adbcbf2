// Package dump tells what every thread of a process does right now, also of
// those that wait: state, system call, kernel and user stack, named. It is for
// hangs, needs no recording, and does not stop the process.
//
// The kernel side gives registers and kernel stacks (bpf/threads.bpf.c). What
// a waiting thread has on its stack is read from user space, and believed only
// if the thread did not run meanwhile; a running one is caught by a perf event.
// Walks and names are those of samples (process, unwind, symbolize). How a dump
// is shown is not known here.
package dump

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/lang"
	"github.com/kalypso-dev/kalypso/profiler/process"
	"github.com/kalypso-dev/kalypso/profiler/symbolize"
	"github.com/kalypso-dev/kalypso/profiler/unwind"
)

// Config says how to dump. Runtimes must be there.
type Config struct {
	Runtimes []lang.Runtime // asked in order; the last takes every executable
	// OpenPerfMap finds the perf map of a process whose files are at root; nil:
	// code made at run time has no names.
	OpenPerfMap func(pid profiler.PID, root string) (lang.Instance, error)
	Kernel      bool              // kernel stacks
	KernelNames *symbolize.Kernel // nil: read now, which takes some 100 ms
	// Failed, if set, is told of errors that cost precision, not the dump.
	Failed func(error)
}

// Thread is one thread.
type Thread struct {
	TID     profiler.TID
	Name    string
	State   State
	Syscall string // the system call that it is in; empty: in none, or not certain
	// Changed says that the thread ran whenever its stack was read: of its user
	// stack only the leaf is known.
	Changed bool
	Stack   *profiler.Stack
}

const (
	// memoryLimit is how long one reading of the process's memory may take. It
	// takes microseconds, but waits where a thread of the process holds the lock
	// of its address space.
	memoryLimit = 2 * time.Second
	// maxTries is how often a thread's stack is read before it is given up.
	maxTries = 4
	// catchLimit is how long running threads are waited for. One that is taken
	// off its CPU before it is caught waits, and is read like any other.
	catchLimit = 20 * time.Millisecond
	// stacksBytes bounds the memory for stacks that are not walked yet.
	stacksBytes = 64 << 20
)

// Threads gives all threads of a process, its main thread first, the others by
// thread ID. An error that is ESRCH says that there is no such process.
func Threads(ctx context.Context, cfg Config, pid profiler.PID) ([]Thread, error) {
	if len(cfg.Runtimes) == 0 {
		return nil, errors.New("no language runtimes given")
	}
	if cfg.Failed == nil {
		cfg.Failed = func(error) {}
	}
	if pid == 0 || pid > math.MaxInt32 {
		return nil, goneFault(pid)
	}
	d, err := open(cfg, pid)
	if err != nil {
		return nil, err
	}
	first, err := d.kernel.Read(uint32(pid))
	if err == nil && len(first) == 0 {
		err = goneFault(pid)
	}
	if err != nil {
		d.close()
		return nil, err
	}
	type outcome struct {
		threads []Thread
		err     error
	}
	done := make(chan outcome, 1)
	go func() {
		defer d.close()
		threads, err := d.threads(ctx, first)
		done <- outcome{threads, err}
	}()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case o := <-done:
			return o.threads, o.err
		case <-tick.C:
			if d.waits() {
				// The goroutine ends when the process lets go of its lock.
				d.left.Store(true)
				cfg.Failed(fmt.Errorf("the memory of PID %d could not be read within %s: a thread of it may hold the lock of its address space; only kernel stacks are shown", pid, memoryLimit))
				return d.kernelStacks(first), nil
			}
		}
	}
}

// dump is one dump in the making.
type dump struct {
	Config
	pid     profiler.PID
	owner   profiler.PID // a thread by which the process's memory is found
	kernel  *bpf.Threads
	table   *process.Table
	names   *symbolize.Symbolizer
	perfMap lang.Instance
	opened  bool // perfMap was looked for

	seen    map[uint32]*sight
	hidden  error        // why memory cannot be read
	blocked atomic.Int64 // when the current reading of memory began, ns; 0: none
	left    atomic.Bool  // nobody waits for the outcome any more
}

// sight is what was seen of a thread.
type sight struct {
	bpf.Thread
	tries   int  // how often it was looked at
	settled bool // what follows is true of one moment, or as true as it gets
	changed bool
	kernel  []uint64
	copy    unwind.Copy // until settled
	user    []uint64
	stop    profiler.Stop // before it is settled: there is nothing to walk
}

func open(cfg Config, pid profiler.PID) (*dump, error) {
	d := &dump{Config: cfg, pid: pid, seen: map[uint32]*sight{}}
	named := make(chan error, 1)
	go func() {
		var err error
		if cfg.Kernel && cfg.KernelNames == nil {
			d.KernelNames, err = symbolize.LoadKernel()
		}
		named <- err
	}()
	var err error
	d.kernel, err = bpf.LoadThreads()
	nameErr := <-named
	if err != nil {
		return nil, bpf.LoadFault(what(pid), err)
	}
	if nameErr != nil {
		cfg.Failed(nameErr)
	}
	d.table = process.NewTable(&tables{pages: map[uint32]bpf.Page{}}, noEvents{}, cfg.Runtimes)
	d.names = &symbolize.Symbolizer{Executables: d.executable, PerfMap: d.openPerfMap, Kernel: d.KernelNames}
	return d, nil
}

func (d *dump) close() {
	if d.perfMap != nil {
		_ = d.perfMap.Close() // read from
	}
	d.table.Close()
	_ = d.kernel.Close()
}

func (d *dump) executable(id uint32) symbolize.Executable {
	if e := d.table.Executable(id); e != nil {
		return e
	}
	return nil
}

func (d *dump) openPerfMap(profiler.PID) lang.Instance {
	if !d.opened && d.OpenPerfMap != nil {
		if m, err := d.OpenPerfMap(d.pid, d.table.RootPath(d.owner)); err == nil {
			d.perfMap = m
		}
	}
	d.opened = true
	return d.perfMap
}

// warn tells of an error as long as there is somebody to tell.
func (d *dump) warn(err error) {
	if !d.left.Load() {
		d.Failed(err)
	}
}

// waits says that a reading of the process's memory does not come back.
func (d *dump) waits() bool {
	since := d.blocked.Load()
	return since != 0 && time.Since(time.Unix(0, since)) > memoryLimit
}

// reading does what may wait for the lock of the process's address space.
func (d *dump) reading(f func() error) error {
	d.blocked.Store(time.Now().UnixNano())
	defer d.blocked.Store(0)
	return f()
}

// threads looks at the threads until each was seen at rest, was caught while
// it ran, or is given up, and names their stacks.
func (d *dump) threads(ctx context.Context, now []bpf.Thread) ([]Thread, error) {
	d.findOwner(now)
	for round := 0; ; round++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		d.look(now)
		next, err := d.kernel.Read(uint32(d.pid))
		if err != nil {
			return nil, err
		}
		// Threads may be made faster than they are looked at.
		if d.settle(next) && (round >= maxTries || !d.anyNew(next)) {
			break
		}
		now = next
	}
	if d.hidden != nil {
		d.warn(hiddenFault(d.pid, d.hidden))
	}
	if len(d.seen) == 0 {
		return nil, &profiler.Fault{What: what(d.pid), Why: gone("it ended meanwhile")}
	}
	return d.name(ctx)
}

// findOwner picks a thread that has the process's memory: a main thread that
// ended before the others has none.
func (d *dump) findOwner(threads []bpf.Thread) {
	d.owner = d.pid
	for i := range threads {
		if t := &threads[i]; t.Flags&bpf.ThreadNoUser == 0 {
			d.owner = profiler.PID(t.TID)
			if t.TID == t.PID {
				return
			}
		}
	}
}

func (d *dump) anyNew(threads []bpf.Thread) bool {
	return slices.ContainsFunc(threads, func(t bpf.Thread) bool { return d.seen[t.TID] == nil })
}

// look reads the stacks of threads that wait, and catches those that run.
func (d *dump) look(now []bpf.Thread) {
	// Walks read the mappings: better to wait for them here.
	_ = d.reading(func() error {
		f, err := os.Open(fmt.Sprintf("/proc/%d/maps", d.owner))
		if err == nil {
			_, err = f.Read(make([]byte, 1))
			_ = f.Close()
		}
		return err
	})
	var running []uint32
	held := 0
	for i := range now {
		t := &now[i]
		s := d.seen[t.TID]
		if s == nil {
			s = &sight{}
			d.seen[t.TID] = s
		}
		if s.settled || held > stacksBytes {
			continue
		}
		d.lookAt(s, t)
		held += len(s.copy.Stack)
		if t.Flags&bpf.ThreadOnCPU != 0 || s.tries == maxTries {
			running = append(running, t.TID)
		}
	}
	if len(running) == 0 {
		return
	}
	caught, err := d.kernel.Catch(running, catchLimit)
	if err != nil {
		d.warn(err)
	}
	for i := range caught {
		d.take(&caught[i])
	}
}

// lookAt notes what the iterator says of a thread, and reads its stack.
func (d *dump) lookAt(s *sight, t *bpf.Thread) {
	s.Thread = *t
	s.kernel = s.Thread.Kernel()
	s.tries++
	s.stop, s.copy = profiler.StopNone, unwind.Copy{}
	switch {
	// Threads of io_uring and vhost have the memory and were never in user mode.
	case s.Flags&bpf.ThreadNoUser != 0, s.Registers.PC == 0:
		s.stop = profiler.StopNoUser
	case s.Flags&bpf.ThreadCompat != 0:
		s.stop = profiler.StopCompat
	default:
		s.copy = unwind.Copy{
			Arch: process.HostArch, Regs: unwind.Regs(s.Registers), Leaf: true, Registers: true, Below: below(),
			// In a system call, PC is the instruction after it: like a return address.
			Exact: s.Flags&bpf.ThreadInSyscall == 0,
		}
	}
	if s.stop != profiler.StopNone || s.Flags&bpf.ThreadOnCPU != 0 {
		return
	}
	err := d.reading(func() (err error) {
		s.copy.Stack, err = readStack(s.TID, s.Registers.SP-uint64(s.copy.Below))
		return err
	})
	switch {
	case err == nil, errors.Is(err, unix.EFAULT): // nothing is where SP points
	case errors.Is(err, unix.ESRCH): // it ended
	default:
		d.hidden = err
	}
}

// below is how much is read below the stack pointer: KLP_COPY_BELOW.
func below() uint32 {
	if process.HostArch == unwind.ARM64 {
		return 16
	}
	return 0
}

// take notes a thread that was caught while it ran.
func (d *dump) take(c *bpf.Caught) {
	s := d.seen[c.TID]
	if s == nil || s.settled {
		return
	}
	s.State, s.Flags = 0, s.Flags&^bpf.ThreadInSyscall|bpf.ThreadOnCPU
	s.kernel, s.stop = c.Kernel, profiler.Stop(c.Stop)
	s.copy = unwind.Copy{
		Arch: process.HostArch, Regs: unwind.Regs(c.Registers), Leaf: true, Registers: true,
		Exact: c.Exact, Stack: c.Stack, Below: c.Below,
	}
	d.finish(s)
}

// settle walks the stacks of threads that did not run since they were looked
// at, and says whether that was the last of them.
func (d *dump) settle(next []bpf.Thread) bool {
	now := make(map[uint32]*bpf.Thread, len(next))
	for i := range next {
		now[next[i].TID] = &next[i]
	}
	all := true
	for tid, s := range d.seen {
		n := now[tid]
		switch {
		case s.settled:
		case n == nil:
			delete(d.seen, tid) // it ended
		case s.tries > 0 && (s.Flags|n.Flags)&bpf.ThreadOnCPU == 0 && s.Switches == n.Switches:
			d.finish(s)
		case s.tries >= maxTries:
			s.changed = s.stop == profiler.StopNone
			s.copy.Stack = nil
			d.finish(s)
		default:
			all = false
		}
	}
	return all
}

// finish walks the user stack of a thread.
func (d *dump) finish(s *sight) {
	s.settled = true
	if s.stop == profiler.StopNone {
		var err error
		if s.user, s.stop, err = d.table.Walk(nil, d.owner, &s.copy); err != nil {
			d.warn(err)
		}
	}
	s.copy = unwind.Copy{}
}

// name names all stacks.
func (d *dump) name(ctx context.Context) ([]Thread, error) {
	var threads []Thread
	for _, s := range d.seen {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		threads = append(threads, d.thread(s, d.names))
	}
	d.sort(threads)
	return threads, nil
}

func (d *dump) sort(threads []Thread) {
	rank := func(t Thread) profiler.TID {
		if t.TID == profiler.TID(d.pid) {
			return 0 // the main thread, whatever its ID
		}
		return t.TID
	}
	slices.SortFunc(threads, func(a, b Thread) int { return cmp.Compare(rank(a), rank(b)) })
}

// kernelStacks is what there is to say without the process's memory.
func (d *dump) kernelStacks(first []bpf.Thread) []Thread {
	names := &symbolize.Symbolizer{Kernel: d.KernelNames}
	var threads []Thread
	for i := range first {
		s := &sight{Thread: first[i], kernel: first[i].Kernel(), stop: profiler.StopBadRead}
		if s.Flags&bpf.ThreadNoUser != 0 {
			s.stop = profiler.StopNoUser
		}
		threads = append(threads, d.thread(s, names))
	}
	d.sort(threads)
	return threads
}

func (d *dump) thread(s *sight, names *symbolize.Symbolizer) Thread {
	t := Thread{TID: profiler.TID(s.TID), Name: unix.ByteSliceToString(s.Name[:]), State: stateOf(&s.Thread), Changed: s.changed}
	if s.Flags&(bpf.ThreadInSyscall|bpf.ThreadOnCPU|bpf.ThreadCompat) == bpf.ThreadInSyscall {
		t.Syscall = syscallName(s.Syscall)
	}
	kernel := s.kernel
	if !d.Kernel {
		kernel = nil
	}
	t.Stack = names.Stack(d.pid, kernel, s.user, s.stop)
	return t
}
