package bpf

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// Threads reads the threads of processes as they are at the moment, without
// stopping them. It is an object of its own: what samples does not pay for it.
type Threads struct {
	objs   threadsObjects
	caught *ringbuf.Reader

	mu         sync.Mutex // the kernel side keeps one thread at a time
	unfiltered bool       // the kernel calls the iterator for every thread of the machine
}

// Registers are user registers: struct klp_regs.
type Registers struct {
	PC, SP, FP, LR uint64
	R              [32]uint64 // by DWARF number
}

// maxKernelFrames is KLP_MAX_KERNEL_FRAMES and one, which keeps them apart from
// what follows.
const maxKernelFrames = 127 + 1

// Thread is one thread as the iterator saw it: struct klp_thread.
type Thread struct {
	PID, TID     uint32
	State        uint32 // TASK_… and EXIT_… of include/linux/sched.h, both in one
	Flags        ThreadFlags
	Syscall      int32 // number of the system call that it is in
	kernelFrames uint32
	Switches     uint64 // how often it left a CPU: the same twice, it did not run between
	Name         [16]byte
	Registers    Registers // of its last entry into the kernel
	frames       [maxKernelFrames]uint64
}

// ThreadFlags say more of a thread.
type ThreadFlags uint32

// The flags: KLP_THREAD_….
const (
	ThreadOnCPU     ThreadFlags = 1 << iota // it runs: Registers are of a moment ago, and there is no kernel stack
	ThreadNoUser                            // a kernel thread, or one that ends and gave its memory back
	ThreadCompat                            // 32-bit
	ThreadInSyscall                         // Syscall holds
)

// Kernel is its kernel stack, leaf first.
func (t *Thread) Kernel() []uint64 { return t.frames[:min(t.kernelFrames, maxKernelFrames-1)] }

// LoadThreads loads the programs.
func LoadThreads() (*Threads, error) {
	spec, err := loadThreads()
	if err != nil {
		return nil, fmt.Errorf("read the embedded BPF object: %w", err)
	}
	t := &Threads{}
	if err := spec.LoadAndAssign(&t.objs, nil); err != nil {
		return nil, loadError(err)
	}
	if t.caught, err = ringbuf.NewReader(t.objs.Caught); err != nil {
		_ = t.objs.Close()
		return nil, fmt.Errorf("open the ring buffer: %w", err)
	}
	return t, nil
}

// Close frees everything.
func (t *Threads) Close() error { return errors.Join(t.caught.Close(), t.objs.Close()) }

// Read gives the threads of a process, none where there is no such process.
func (t *Threads) Read(pid uint32) ([]Thread, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.objs.KlpThreadsPid.Set(pid); err != nil {
		return nil, fmt.Errorf("set the process to read: %w", err)
	}
	if t.unfiltered {
		return t.iterate(pid, false)
	}
	// The kernel's own filter goes from thread to thread, new ones last, and
	// stops at one that ends while it is there (kernel/bpf/task_iter.c,
	// task_group_seq_get_next). Then it gives fewer than there were.
	count := threadCount(pid)
	threads, err := t.iterate(pid, true)
	if err == nil && len(threads) < count {
		return t.iterate(pid, false)
	}
	return threads, err
}

// threadCount is how many threads a process has, 0 when it is gone.
func threadCount(pid uint32) int {
	var st unix.Stat_t
	// The kernel counts threads as links of this folder: fs/proc/base.c, proc_task_getattr.
	if unix.Stat(fmt.Sprintf("/proc/%d/task", pid), &st) != nil {
		return 0
	}
	return int(st.Nlink) - 2
}

// iterate runs the iterator once.
func (t *Threads) iterate(pid uint32, filtered bool) ([]Thread, error) {
	it, err := t.link(pid, filtered)
	if err != nil {
		return nil, fmt.Errorf("iterate over threads: %w", err)
	}
	defer func() { _ = it.Close() }()
	r, err := it.Open()
	if err != nil {
		return nil, fmt.Errorf("iterate over threads: %w", err)
	}
	defer func() { _ = r.Close() }()
	in := bufio.NewReaderSize(again{r}, 64<<10)
	var threads []Thread
	var next Thread
	for {
		_, err := io.ReadFull(in, unsafe.Slice((*byte)(unsafe.Pointer(&next)), unsafe.Sizeof(next)))
		switch {
		case err == io.EOF:
			return threads, nil
		case err != nil:
			return nil, fmt.Errorf("read threads of PID %d: %w", pid, err)
		}
		threads = append(threads, next)
	}
}

// again reads on where the kernel stops to let others run: after a million
// threads that the program let pass (kernel/bpf/bpf_iter.c, MAX_ITER_OBJECTS).
type again struct{ io.Reader }

// Read implements io.Reader.
func (r again) Read(b []byte) (int, error) {
	for {
		n, err := r.Reader.Read(b)
		if n > 0 || !errors.Is(err, unix.EAGAIN) {
			return n, err
		}
	}
}

// link makes an iterator. A kernel that cannot filter is not asked twice.
func (t *Threads) link(pid uint32, filtered bool) (*link.Iter, error) {
	if filtered {
		it, err := t.linkProcess(pid)
		// E2BIG: the kernel knows no options of this length.
		if !errors.Is(err, unix.E2BIG) {
			return it, err
		}
		t.unfiltered = true
	}
	return link.AttachIter(link.IterOptions{Program: t.objs.KlpThreads})
}

// linkProcess makes an iterator over the threads of one process: Linux 6.1,
// union bpf_iter_link_info. The library sets no options for tasks.
func (t *Threads) linkProcess(pid uint32) (*link.Iter, error) {
	info := struct{ tid, pid, pidFD uint32 }{pid: pid}
	attr := struct {
		program, target, kind, flags uint32
		info                         unsafe.Pointer // 64 bits on both machines
		infoLength, pad              uint32
	}{
		program: uint32(t.objs.KlpThreads.FD()), kind: uint32(ebpf.AttachTraceIter),
		info: unsafe.Pointer(&info), infoLength: uint32(unsafe.Sizeof(info)),
	}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_LINK_CREATE, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return nil, errno
	}
	l, err := link.NewFromFD(int(fd))
	if err != nil {
		return nil, err
	}
	it, ok := l.(*link.Iter)
	if !ok {
		_ = l.Close()
		return nil, fmt.Errorf("the kernel made a link of another type: %T", l)
	}
	return it, nil
}

// Caught is a thread at a moment when it ran.
type Caught struct {
	TID       uint32
	Stop      uint8 // profiler.Stop: why there is no user stack; 0: there is one
	Exact     bool  // PC is the next instruction, not a return address
	Registers Registers
	Kernel    []uint64 // kernel stack, leaf first
	Stack     []byte   // from Below bytes below SP up
	Below     uint32
}

const (
	// catchPeriod is the CPU time after which a thread is caught.
	catchPeriod = 100 * time.Microsecond
	// maxWanted is KLP_WANTED.
	maxWanted = 1024
)

// Catch waits until each of the threads ran for a moment and takes its
// registers and its stack there, all of one instant. Threads that do not run
// within the limit, that ended, or that are more than 1,024 are missing.
func (t *Threads) Catch(tids []uint32, limit time.Duration) ([]Caught, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	waiting := map[uint32]event{}
	defer func() {
		for tid, e := range waiting {
			e.close()
			_ = t.objs.Wanted.Delete(tid) // caught after all
		}
	}()
	for _, tid := range tids[:min(len(tids), maxWanted)] {
		if err := t.objs.Wanted.Put(tid, uint8(1)); err != nil {
			return nil, fmt.Errorf("catch thread %d: %w", tid, err)
		}
		e, err := openClock(tid, t.objs.KlpCatch)
		if errors.Is(err, unix.ESRCH) {
			_ = t.objs.Wanted.Delete(tid)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("catch thread %d: %w", tid, err)
		}
		waiting[tid] = e
	}
	return t.collect(waiting, time.Now().Add(limit))
}

// collect reads what was caught, and takes it from those that are waited for.
func (t *Threads) collect(waiting map[uint32]event, deadline time.Time) ([]Caught, error) {
	var caught []Caught
	var rec ringbuf.Record
	t.caught.SetDeadline(deadline)
	for len(waiting) > 0 {
		err := t.caught.ReadInto(&rec)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read caught threads: %w", err)
		}
		c, err := decodeCaught(rec.RawSample)
		if err != nil {
			return nil, err
		}
		// One that comes late was wanted before.
		if e, ok := waiting[c.TID]; ok {
			e.close()
			delete(waiting, c.TID)
			caught = append(caught, c)
		}
	}
	return caught, nil
}

// openClock fires a program each time that a thread has used some CPU time.
func openClock(tid uint32, prog *ebpf.Program) (event, error) {
	attr := unix.PerfEventAttr{
		Type:   unix.PERF_TYPE_SOFTWARE,
		Config: unix.PERF_COUNT_SW_CPU_CLOCK,
		Size:   uint32(unix.PERF_ATTR_SIZE_VER5),
		Sample: uint64(catchPeriod),
		Bits:   unix.PerfBitDisabled,
	}
	fd, err := unix.PerfEventOpen(&attr, int(tid), -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return event{}, err
	}
	return enable(fd, prog)
}

// Parts of struct klp_copy, contract.h, which is also a record of samples.
const (
	caughtHeader = 96
	caughtRegs   = caughtHeader + int(unsafe.Sizeof(Registers{}))
	caughtFrames = caughtRegs + 8
	caughtStack  = caughtFrames + 8*(maxKernelFrames+1024)
	caughtBytes  = caughtStack + 64<<10
	flagExact    = 2
)

func decodeCaught(raw []byte) (Caught, error) {
	if len(raw) < caughtBytes {
		return Caught{}, fmt.Errorf("a caught thread's record has %d bytes, want %d", len(raw), caughtBytes)
	}
	c := Caught{
		TID: order.Uint32(raw[12:]), Stop: raw[1], Exact: raw[2]&flagExact != 0,
		Below: order.Uint32(raw[caughtRegs+4:]),
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&c.Registers)), unsafe.Sizeof(c.Registers)), raw[caughtHeader:])
	for i := range min(int(order.Uint16(raw[4:])), maxKernelFrames-1) {
		c.Kernel = append(c.Kernel, order.Uint64(raw[caughtFrames+8*i:]))
	}
	n := min(int(order.Uint32(raw[caughtRegs:])), caughtBytes-caughtStack)
	c.Stack = slices.Clone(raw[caughtStack : caughtStack+n])
	return c, nil
}

// enable attaches a program to an event and starts it.
func enable(fd int, prog *ebpf.Program) (event, error) {
	e := event{fd: fd}
	var err error
	if e.link, err = link.AttachRawLink(link.RawLinkOptions{Target: fd, Program: prog, Attach: ebpf.AttachPerfEvent}); err != nil {
		e.close()
		return event{}, fmt.Errorf("attach program: %w", err)
	}
	if err := unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_ENABLE, 0); err != nil {
		e.close()
		return event{}, fmt.Errorf("enable event: %w", err)
	}
	return e, nil
}
