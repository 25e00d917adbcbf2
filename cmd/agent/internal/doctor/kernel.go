package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/deploy/check"
)

// The oldest kernel that has bpf_task_pt_regs, which finds the user registers
// of a task stopped in the kernel, and the oldest that test/kernels runs.
var (
	oldest = version{5, 15}
	tested = version{6, 1}
)

// version is the series of a kernel.
type version struct{ major, minor int }

func (v version) olderThan(w version) bool {
	return v.major < w.major || v.major == w.major && v.minor < w.minor
}

func (v version) String() string { return fmt.Sprintf("%d.%d", v.major, v.minor) }

func kernel(context.Context) check.Outcome {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return check.Fail("uname: %v", err)
	}
	return judge(unix.ByteSliceToString(u.Release[:]), runtime.GOARCH)
}

// judge is what to think of a release on an architecture.
func judge(release, arch string) check.Outcome {
	var v version
	if _, err := fmt.Sscanf(release, "%d.%d", &v.major, &v.minor); err != nil {
		return check.Fail("release %q is not a version", release)
	}
	if v.olderThan(oldest) {
		return check.Fail("%s %s (need >= %s, tested from %s on)", release, arch, oldest, tested)
	}
	if arch != "amd64" && arch != "arm64" {
		return check.Fail("%s %s", release, arch).
			WithEffect("there are no programs for this architecture: no profile at all").
			WithFix("use a machine with amd64 or arm64")
	}
	if v.olderThan(tested) {
		return check.Pass("%s %s, older than all that is tested (%s): the checks below try what is needed", release, arch, tested)
	}
	return check.Pass("%s %s", release, arch)
}

func vmlinuxBTF(context.Context) check.Outcome {
	const path = "/sys/kernel/btf/vmlinux"
	st, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return check.Fail("%s is not there", path)
	}
	if err != nil {
		return check.Fail("%v", err).WithFix("mount sysfs: mount -t sysfs sysfs /sys")
	}
	spec, err := btf.LoadSpec(path)
	if err != nil {
		return check.Fail("%s: %v", path, err)
	}
	// Present when the kernel can attach typed programs to its tracepoints.
	var t *btf.Typedef
	if err := spec.TypeByName("btf_trace_sched_process_exec", &t); err != nil {
		return check.Fail("%s does not describe the tracepoint sched_process_exec", path)
	}
	return check.Pass("vmlinux BTF, %.1f MiB", float64(st.Size())/(1<<20))
}

// capBPF uses an LRU map: plain arrays and hashes are open to everybody where
// kernel.unprivileged_bpf_disabled is 0.
func (s self) capBPF(context.Context) check.Outcome {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "klp_doctor", Type: ebpf.LRUHash, KeySize: 4, ValueSize: 8, MaxEntries: 16})
	if err != nil {
		return check.Fail("creating a map: %s", reason(err))
	}
	defer func() { _ = m.Close() }()
	const key, value = uint32(7), uint64(77)
	if err := m.Put(key, value); err != nil {
		return check.Fail("writing a map: %s", reason(err))
	}
	var got uint64
	if err := m.Lookup(key, &got); err != nil {
		return check.Fail("reading a map: %s", reason(err))
	}
	if got != value {
		return check.Fail("a map gave %d for %d", got, value)
	}
	if !s.has("CAP_BPF") && s.has("CAP_SYS_ADMIN") {
		return check.Pass("created a map (CAP_SYS_ADMIN stands in for CAP_BPF)")
	}
	return check.Pass("created a map")
}

func (s self) lockdown(context.Context) check.Outcome {
	mode := "not in this kernel"
	if b, err := os.ReadFile("/sys/kernel/security/lockdown"); err == nil {
		// "none [integrity] confidentiality": the brackets mark the one in force.
		_, rest, _ := strings.Cut(string(b), "[")
		mode, _, _ = strings.Cut(rest, "]")
	}
	switch err := haveHelper(readKernelHelper); {
	case denied(err):
		return check.Skip("not tried: it takes cap_bpf and cap_perfmon")
	case err != nil:
		return check.Fail("a program that reads kernel memory was refused (lockdown: %s): %s", mode, reason(err))
	}
	return check.Pass("a program that reads kernel memory was accepted (lockdown: %s)", mode)
}

func (s self) bpfLoop(context.Context) check.Outcome {
	switch err := haveHelper(loopHelper); {
	case denied(err):
		return check.Skip("not tried: it takes cap_bpf and cap_perfmon")
	case errors.Is(err, ebpf.ErrNotSupported):
		return check.Fail("this kernel has no bpf_loop")
	case err != nil:
		return check.Fail("loading a program with bpf_loop: %s", reason(err))
	}
	return check.Pass("a program with bpf_loop was accepted: stacks up to 1,024 frames")
}

// hardwareCycles counts cycles on this thread while it spins: virtual machines
// often let the event be opened and never count.
func hardwareCycles(context.Context) check.Outcome {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	attr := unix.PerfEventAttr{
		Type:   unix.PERF_TYPE_HARDWARE,
		Config: unix.PERF_COUNT_HW_CPU_CYCLES,
		Bits:   unix.PerfBitExcludeKernel | unix.PerfBitExcludeHv,
	}
	attr.Size = unix.PERF_ATTR_SIZE_VER0
	fd, err := unix.PerfEventOpen(&attr, 0, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
	switch {
	case denied(err):
		return check.Skip("not tried: it takes cap_perfmon")
	case err != nil:
		return check.Fail("no hardware counters%s; sampling by cpu-clock", virtual())
	}
	defer func() { _ = unix.Close(fd) }()
	for end := time.Now().Add(5 * time.Millisecond); time.Now().Before(end); {
	}
	var count [8]byte
	if n, err := unix.Read(fd, count[:]); err != nil || n != len(count) {
		return check.Fail("the cycle counter cannot be read; sampling by cpu-clock")
	}
	if count == [8]byte{} {
		return check.Fail("the cycle counter does not count%s; sampling by cpu-clock", virtual())
	}
	return check.Pass("the cycle counter counts; sampling by cycles")
}

func virtual() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if strings.HasPrefix(line, "flags") {
			if strings.Contains(line, " hypervisor") {
				return " (virtual machine)"
			}
			return ""
		}
	}
	return ""
}

// bpfStats switches run-time statistics on for a moment, as record --stats
// does for its duration.
func (s self) bpfStats(context.Context) check.Outcome {
	if sysctl("kernel.bpf_stats_enabled") == "1" {
		return check.Pass("on for the whole machine (kernel.bpf_stats_enabled=1)")
	}
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return check.Fail("switching statistics on: %s", reason(err))
	}
	_ = stats.Close()
	return check.Pass("switched statistics on and off again")
}

// haveHelper is nil when a perf_event program that calls the helper loads.
func haveHelper(h helper) error {
	return features.HaveProgramHelper(ebpf.PerfEvent, h)
}
