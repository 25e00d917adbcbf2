package bpf

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// EventKind is what fires the sampling program.
type EventKind uint8

// The kinds.
const (
	CPUClock EventKind = iota // software clock: works everywhere
	Cycles                    // hardware cycle counter: also samples code that runs with interrupts off
)

// String is the event's name as perf knows it.
func (k EventKind) String() string {
	if k == Cycles {
		return "cycles"
	}
	return "cpu-clock"
}

type event struct {
	fd   int
	link *link.RawLink
}

func (e event) close() {
	if e.link != nil {
		_ = e.link.Close()
	}
	_ = unix.Close(e.fd)
}

// Attach starts sampling on every CPU that is online at hz samples a second,
// by hardware cycles where these really count and the kernel lets them come so
// often, else by the software clock.
func (k *Kernel) Attach(hz int) error {
	kind := CPUClock
	if hz <= hardwareLimit() && hardwareCounts() {
		kind = Cycles
	}
	k.mu.Lock()
	k.kind, k.freq = kind, hz
	k.mu.Unlock()
	return k.SyncCPUs()
}

// ErrFrequency says that the kernel does not let hardware fire so often: the rate is
// what it was. See MaxFrequency.
var ErrFrequency = errors.New("kernel.perf_event_max_sample_rate is less")

// MaxFrequency is the highest rate that SetFrequency takes now.
func (k *Kernel) MaxFrequency() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.kind == CPUClock {
		return math.MaxInt
	}
	return hardwareLimit()
}

// hardwareLimit is how often hardware may fire in a second. The kernel begins at
// 100,000 and lowers it by itself where samples take long, in virtual machines to less
// than a thousand (kernel/events/core.c, perf_sample_event_took). The software clock
// has no limit if it is given a period.
func hardwareLimit() int {
	text, err := os.ReadFile("/proc/sys/kernel/perf_event_max_sample_rate")
	if err != nil {
		return math.MaxInt
	}
	hz, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return math.MaxInt
	}
	return hz
}

// SetFrequency changes the rate while sampling goes on: no sample is missed and
// none is taken twice. An event that cannot follow is an error, and its CPU
// keeps the old rate.
func (k *Kernel) SetFrequency(hz int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.freq == 0 || hz == k.freq {
		return nil
	}
	value := sample(k.kind, hz)
	if k.kind == Cycles && hz > hardwareLimit() {
		return fmt.Errorf("sample at %d Hz: %w", hz, ErrFrequency)
	}
	var errs []error
	for cpu, e := range k.events {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(e.fd), unix.PERF_EVENT_IOC_PERIOD, uintptr(unsafe.Pointer(&value))); errno != 0 {
			errs = append(errs, fmt.Errorf("sample CPU %d at %d Hz: %w", cpu, hz, errno))
		}
	}
	k.freq = hz
	return errors.Join(errs...)
}

// Event is what fires the samples, once attached.
func (k *Kernel) Event() EventKind { return k.kind }

// Detach stops sampling. Records that were taken can still be read.
func (k *Kernel) Detach() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.freq = 0 // a SyncCPUs that comes later must not begin anew
	for cpu, e := range k.events {
		e.close()
		delete(k.events, cpu)
	}
}

// SyncCPUs follows CPU hot-plug: it samples CPUs that came online and lets go
// of those that went. Call it once in a while.
func (k *Kernel) SyncCPUs() error {
	online, err := onlineCPUs()
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.freq == 0 {
		return nil
	}
	for cpu, e := range k.events {
		if !online[cpu] {
			e.close()
			delete(k.events, cpu)
		}
	}
	for cpu := range online {
		if _, ok := k.events[cpu]; ok {
			continue
		}
		e, err := attach(k.sampler, cpu, k.kind, k.freq)
		if errors.Is(err, unix.ENODEV) {
			continue // went offline meanwhile
		}
		if err != nil {
			return fmt.Errorf("sample CPU %d by %s at %d Hz: %w", cpu, k.kind, k.freq, err)
		}
		k.events[cpu] = e
	}
	return nil
}

func attach(prog *ebpf.Program, cpu int, kind EventKind, hz int) (event, error) {
	fd, err := openEvent(kind, cpu, hz)
	if err != nil {
		return event{}, err
	}
	return enable(fd, prog)
}

func openEvent(kind EventKind, cpu, hz int) (int, error) {
	attr := unix.PerfEventAttr{
		Type:   unix.PERF_TYPE_SOFTWARE,
		Config: unix.PERF_COUNT_SW_CPU_CLOCK,
		Size:   uint32(unix.PERF_ATTR_SIZE_VER5),
		Sample: sample(kind, hz),
		// exclude_idle is obeyed by the software clock only; the program skips PID 0 anyway.
		Bits: unix.PerfBitDisabled | unix.PerfBitExcludeIdle,
	}
	if kind == Cycles {
		attr.Type, attr.Config = unix.PERF_TYPE_HARDWARE, unix.PERF_COUNT_HW_CPU_CYCLES
		attr.Bits = unix.PerfBitDisabled | unix.PerfBitFreq
	}
	return unix.PerfEventOpen(&attr, -1, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
}

// sample is a rate as an event has it: the software clock its period in nanoseconds,
// hardware its frequency, which the kernel steers by the speed of the CPU.
func sample(kind EventKind, hz int) uint64 {
	if kind == CPUClock {
		return uint64(time.Second) / uint64(hz)
	}
	return uint64(hz)
}

// hardwareCounts tries the cycle counter: virtual machines often accept the
// event and never count.
func hardwareCounts() bool {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	attr := unix.PerfEventAttr{
		Type:   unix.PERF_TYPE_HARDWARE,
		Config: unix.PERF_COUNT_HW_CPU_CYCLES,
		Size:   uint32(unix.PERF_ATTR_SIZE_VER5),
	}
	fd, err := unix.PerfEventOpen(&attr, 0, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }()
	for start := time.Now(); time.Since(start) < 200*time.Microsecond; {
		_ = syscall.Getppid()
	}
	var b [8]byte
	n, err := unix.Read(fd, b[:])
	return err == nil && n == 8 && order.Uint64(b[:]) > 0
}

// OnlineCPUs is how many CPUs are online.
func OnlineCPUs() (int, error) {
	cpus, err := onlineCPUs()
	return len(cpus), err
}

func onlineCPUs() (map[int]bool, error) {
	const path = "/sys/devices/system/cpu/online"
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("list online CPUs: %w", err)
	}
	cpus := map[int]bool{}
	for _, part := range strings.Split(strings.TrimSpace(string(text)), ",") {
		low, high, isRange := strings.Cut(part, "-")
		if !isRange {
			high = low
		}
		from, err1 := strconv.Atoi(low)
		to, err2 := strconv.Atoi(high)
		if err1 != nil || err2 != nil {
			return nil, fmt.Errorf("list online CPUs: %s says %q", path, text)
		}
		for cpu := from; cpu <= to; cpu++ {
			cpus[cpu] = true
		}
	}
	return cpus, nil
}
