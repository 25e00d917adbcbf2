package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/deploy/check"
)

type helper = asm.BuiltinFunc

const (
	readKernelHelper = asm.FnProbeReadKernel
	loopHelper       = asm.FnLoop
)

// sampleHz and sampleFor: enough for two figures, short enough not to be
// waited for. 97 Hz is what record uses.
const (
	sampleHz  = 97
	sampleFor = 500 * time.Millisecond
	// maxRounds of that before silence is believed: a virtual CPU can be away
	// from its real one for longer than a round.
	maxRounds = 4
)

// counter assembles a program that adds one to slot of an array of u64.
func counter(counts *ebpf.Map, slot int32) asm.Instructions {
	return asm.Instructions{
		asm.StoreImm(asm.RFP, -4, int64(slot), asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, counts.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "exit"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("exit"),
		asm.Return(),
	}
}

func newCounts(kind ebpf.MapType, slots uint32) (*ebpf.Map, error) {
	return ebpf.NewMap(&ebpf.MapSpec{Name: "klp_doctor", Type: kind, KeySize: 4, ValueSize: 8, MaxEntries: slots})
}

// capPerfmon samples every online CPU with a program, as record does. Idle
// CPUs are sampled too, so every CPU must count.
func (s self) capPerfmon(ctx context.Context) check.Outcome {
	cpus, err := onlineCPUs()
	if err != nil {
		return check.Fail("%v", err)
	}
	events := make([]int, 0, len(cpus))
	defer func() {
		for _, fd := range events {
			_ = unix.Close(fd)
		}
	}()
	for _, cpu := range cpus {
		attr := unix.PerfEventAttr{
			Type:   unix.PERF_TYPE_SOFTWARE,
			Config: unix.PERF_COUNT_SW_CPU_CLOCK,
			Sample: sampleHz,
			Bits:   unix.PerfBitFreq | unix.PerfBitDisabled,
		}
		attr.Size = unix.PERF_ATTR_SIZE_VER0
		fd, err := unix.PerfEventOpen(&attr, -1, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
		if errors.Is(err, unix.ENODEV) {
			continue // it went offline since the list was read
		}
		if err != nil {
			return check.Fail("opening a cpu-clock event on CPU %d: %s%s", cpu, reason(err), paranoid())
		}
		events = append(events, fd)
	}

	counts, err := newCounts(ebpf.PerCPUArray, 1)
	if denied(err) {
		return check.Skip("opened cpu-clock events on %d CPUs; no program tried: it takes cap_bpf", len(events))
	}
	if err != nil {
		return check.Fail("creating a map: %s", reason(err))
	}
	defer func() { _ = counts.Close() }()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "klp_doctor", Type: ebpf.PerfEvent, License: "Dual BSD/GPL", Instructions: counter(counts, 0),
	})
	if denied(err) && !s.has("CAP_BPF") && !s.has("CAP_SYS_ADMIN") {
		return check.Skip("opened cpu-clock events on %d CPUs; no program tried: it takes cap_bpf", len(events))
	}
	if err != nil {
		return check.Fail("loading a perf_event program: %s", reason(err))
	}
	defer func() { _ = prog.Close() }()
	for _, fd := range events {
		if err := unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_SET_BPF, prog.FD()); err != nil {
			return check.Fail("attaching a program to a cpu-clock event: %s", reason(err))
		}
		if err := unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_ENABLE, 0); err != nil {
			return check.Fail("enabling a cpu-clock event: %s", reason(err))
		}
	}
	started := time.Now()
	total, silent, err := countOnEach(ctx, counts, cpus)
	if err != nil {
		return check.Fail("reading the counts: %s", reason(err))
	}
	seen := fmt.Sprintf("attached perf_event program to cpu-clock on %d CPUs, %d samples in %.1f s", len(events), total, time.Since(started).Seconds())
	if total == 0 || silent > 0 {
		return check.Fail("%s, none on %d CPUs", seen, silent).
			WithFix("look at kernel.perf_cpu_time_max_percent and at dmesg: the kernel throttles events that take too long")
	}
	return check.Pass("%s", seen)
}

// countOnEach keeps one CPU after the other busy until it was sampled: the
// clock of an idle CPU may stand still. silent are those that never were; a CPU
// that this process may not run on is none of them.
func countOnEach(ctx context.Context, counts *ebpf.Map, cpus []int) (total uint64, silent int, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return 0, 0, fmt.Errorf("read the CPUs of this thread: %w", err)
	}
	defer func() { _ = unix.SchedSetaffinity(0, &before) }()
	var perCPU []uint64
	for _, cpu := range cpus {
		var only unix.CPUSet
		only.Set(cpu)
		allowed := unix.SchedSetaffinity(0, &only) == nil
		for end := time.Now().Add(maxRounds * sampleFor); allowed && ctx.Err() == nil; {
			if err := counts.Lookup(uint32(0), &perCPU); err != nil {
				return 0, 0, err
			}
			if cpu >= len(perCPU) || perCPU[cpu] > 0 {
				break
			}
			if time.Now().After(end) {
				silent++
				break
			}
		}
	}
	err = counts.Lookup(uint32(0), &perCPU)
	for _, n := range perCPU {
		total += n
	}
	return total, silent, err
}

func paranoid() string {
	if v := sysctl("kernel.perf_event_paranoid"); v != "" {
		return " (kernel.perf_event_paranoid=" + v + ")"
	}
	return ""
}

// onlineCPUs reads a list such as "0-3,8,10-11".
func onlineCPUs() ([]int, error) {
	const path = "/sys/devices/system/cpu/online"
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	cpus, err := parseCPUs(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return cpus, nil
}

func parseCPUs(list string) ([]int, error) {
	const maxCPUs = 1 << 16 // far over CONFIG_NR_CPUS of any distribution
	var cpus []int
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		lo, err := strconv.Atoi(first)
		hi := lo
		if err == nil && isRange {
			hi, err = strconv.Atoi(last)
		}
		if err != nil || lo < 0 || hi < lo || hi >= maxCPUs {
			return nil, fmt.Errorf("%q is not a list of CPUs", list)
		}
		for c := lo; c <= hi; c++ {
			cpus = append(cpus, c)
		}
	}
	return cpus, nil
}

// lifecycle attaches the kind of program that record uses to the three
// tracepoints and starts a process for them to see.
func (s self) lifecycle(ctx context.Context) check.Outcome {
	points := []string{"sched_process_fork", "sched_process_exec", "sched_process_exit"}
	counts, err := newCounts(ebpf.Array, uint32(len(points)))
	if denied(err) {
		return check.Skip("not tried: it takes cap_bpf")
	}
	if err != nil {
		return check.Fail("creating a map: %s", reason(err))
	}
	defer func() { _ = counts.Close() }()
	for slot, point := range points {
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "klp_doctor", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: point,
			License: "Dual BSD/GPL", Instructions: counter(counts, int32(slot)),
		})
		if denied(err) && s.lacksTracing() {
			return check.Skip("not tried: it takes cap_bpf and cap_perfmon")
		}
		if err != nil {
			return check.Fail("loading a program for tp_btf/%s: %s", point, reason(err))
		}
		tracing, err := link.AttachTracing(link.TracingOptions{Program: prog, AttachType: ebpf.AttachTraceRawTp})
		_ = prog.Close() // the link keeps it
		if err != nil {
			return check.Fail("attaching a program to tp_btf/%s: %s", point, reason(err))
		}
		defer func() { _ = tracing.Close() }()
	}
	if _, err := startChild(ctx); err != nil {
		return check.Fail("%v", err)
	}
	for slot, point := range points {
		var n uint64
		if err := counts.Lookup(uint32(slot), &n); err != nil {
			return check.Fail("reading the counts: %s", reason(err))
		}
		if n == 0 {
			return check.Fail("tp_btf/%s did not fire for a process that was started", point)
		}
	}
	return check.Pass("tp_btf programs saw the fork, exec and exit of a process")
}

// startChild runs this program to print its version, and gives the process ID
// that it had.
func startChild(ctx context.Context) (int, error) {
	exe, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("find an executable to start: %w", err)
	}
	child := exec.CommandContext(ctx, exe, "version")
	if err := child.Run(); err != nil {
		return 0, fmt.Errorf("start %s: %w", exe, err)
	}
	return child.Process.Pid, nil
}

// processEvents opens the rings that record reads and looks in them for a
// process that it starts.
func (s self) processEvents(ctx context.Context) check.Outcome {
	sideband, err := bpf.OpenSideband()
	if denied(err) && !s.has("CAP_PERFMON") && !s.has("CAP_SYS_ADMIN") {
		return check.Skip("not tried: it takes cap_perfmon")
	}
	if err != nil {
		out := check.Fail("opening rings for process events: %s", reason(err))
		if limit := sysctl("kernel.perf_event_mlock_kb"); limit != "" {
			return out.WithFix("sysctl kernel.perf_event_mlock_kb=516 (it is %s), or close other users of perf", limit)
		}
		return out
	}
	defer func() { _ = sideband.Close() }()
	// On a busy machine a ring may overflow between opening and reading.
	var seen map[bpf.ProcessEventKind]int
	for range 3 {
		pid, err := startChild(ctx)
		if err != nil {
			return check.Fail("%v", err)
		}
		events, err := sideband.Drain(nil)
		if err == nil {
			// What is newer than a drain's start is held back until the next.
			events, err = sideband.Drain(events)
		}
		if err != nil {
			return check.Fail("reading process events: %s", reason(err))
		}
		seen = map[bpf.ProcessEventKind]int{}
		for _, e := range events {
			if int(e.PID) == pid {
				seen[e.Kind]++
			}
		}
		if seen[bpf.EventExec] > 0 && seen[bpf.EventMap] > 0 && seen[bpf.EventExit] > 0 {
			return check.Pass("perf told of the exec, %d mappings and the exit of a process", seen[bpf.EventMap])
		}
	}
	return check.Fail("of a process that was started, perf told %d execs, %d mappings, %d exits (%d records lost)",
		seen[bpf.EventExec], seen[bpf.EventMap], seen[bpf.EventExit], sideband.Lost())
}

// programs loads what record loads and lets it sample for a moment. Each
// failure that has a cause of its own is another check's.
func (s self) programs(ctx context.Context) check.Outcome {
	started := time.Now()
	kernel, err := bpf.Load(bpf.Config{KernelStacks: true})
	// The verifier words a missing capability in many ways (EACCES, EINVAL).
	if err != nil && s.lacksTracing() {
		return check.Skip("not tried: it takes cap_bpf and cap_perfmon")
	}
	if errors.Is(err, unix.ENOMEM) {
		return check.Fail("loading: %s", reason(err)).WithFix("raise the memory limit of this cgroup by 20 MiB")
	}
	if err != nil {
		return check.Fail("loading: %v", err)
	}
	defer func() { _ = kernel.Close() }()
	loaded := time.Since(started)
	if err := kernel.Attach(sampleHz); err != nil {
		return check.Fail("attaching: %v", err)
	}
	// Idle CPUs are not sampled: be busy.
	var counters bpf.Counters
	for range maxRounds {
		for end := time.Now().Add(sampleFor / 2); time.Now().Before(end) && ctx.Err() == nil; {
		}
		if counters, err = kernel.Counters(); err != nil {
			return check.Fail("reading the counters: %v", err)
		}
		if counters.Samples > 0 {
			break
		}
	}
	kernel.Detach()
	if counters.Samples == 0 {
		return check.Fail("the programs were loaded and attached, and took no sample in %s of work", maxRounds*sampleFor/2)
	}
	return check.Pass("loaded in %d ms, %.1f MiB of maps, %d samples by %s, user stacks up to %d frames",
		loaded.Milliseconds(), float64(kernel.MapBytes())/(1<<20), counters.Samples, kernel.Event(), kernel.MaxFrames)
}

// lacksTracing says whether tracing programs are out of reach on paper, and
// another check names the cause.
func (s self) lacksTracing() bool {
	return !s.has("CAP_SYS_ADMIN") && (!s.has("CAP_BPF") || !s.has("CAP_PERFMON"))
}
