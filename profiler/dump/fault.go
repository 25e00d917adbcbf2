package dump

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/profiler"
)

// loadFault explains why the kernel took no programs from us.
func loadFault(pid profiler.PID, err error) error {
	f := &profiler.Fault{What: what(pid), Why: err, Fix: "kalypso-agent doctor   tells what is missing and how to get it"}
	switch missing := missingCapabilities(); {
	case !bpf.BTFAvailable():
		f.Why = errors.New("this kernel does not describe its types (no /sys/kernel/btf/vmlinux)")
		f.Fix = "use a kernel built with CONFIG_DEBUG_INFO_BTF=y: every distribution's kernel since about 2021"
	case missing != "" && os.Geteuid() != 0:
		f.Why = fmt.Errorf("not running as root, and without %s: %w", missing, unix.EPERM)
		f.Fix = "sudo kalypso-agent dump -p " + strconv.Itoa(int(pid))
	case missing != "":
		f.Why = fmt.Errorf("running as root, but without %s: %w", missing, unix.EPERM)
		f.Fix = "add them to the container's capabilities; kalypso-agent doctor tells what each is for"
	case errors.Is(err, ebpf.ErrNotSupported):
		f.Why = fmt.Errorf("this kernel has no iterator over threads: %w", err)
		f.Fix = "use Linux 5.15 or later"
	}
	return f
}

func what(pid profiler.PID) string { return fmt.Sprintf("cannot dump PID %d", pid) }

// missingCapabilities names what a dump cannot do without; empty when nothing
// is missing, or it cannot be told. CAP_SYS_ADMIN stands for both:
// include/linux/capability.h, bpf_capable, perfmon_capable.
func missingCapabilities() string {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&header, &data[0]) != nil {
		return ""
	}
	have := uint64(data[1].Effective)<<32 | uint64(data[0].Effective)
	if have&(1<<unix.CAP_SYS_ADMIN) != 0 {
		return ""
	}
	var missing []string
	if have&(1<<unix.CAP_BPF) == 0 {
		missing = append(missing, "CAP_BPF")
	}
	if have&(1<<unix.CAP_PERFMON) == 0 {
		missing = append(missing, "CAP_PERFMON")
	}
	return strings.Join(missing, " and ")
}

// gone is ESRCH in words of ours.
type gone string

// Error is the words.
func (g gone) Error() string { return string(g) }

// Unwrap is ESRCH.
func (gone) Unwrap() error { return unix.ESRCH }

// goneFault explains why a PID has no threads.
func goneFault(pid profiler.PID) error {
	f := &profiler.Fault{What: what(pid), Why: gone("there is no such process"), Fix: "pgrep -l NAME lists PIDs"}
	if leader := threadGroup(pid); leader != 0 && leader != pid {
		f.Why = fmt.Errorf("it is a thread of PID %d", leader)
		f.Fix = fmt.Sprintf("kalypso-agent dump -p %d   shows all of that process's threads", leader)
	}
	return f
}

// threadGroup gives the process that a thread belongs to, 0 if there is none.
func threadGroup(tid profiler.PID) profiler.PID {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, "Tgid:"); found {
			n, _ := strconv.ParseUint(strings.TrimSpace(value), 10, 31) // 0 if it is no number
			return profiler.PID(n)
		}
	}
	return 0
}

// hiddenFault explains why a process's memory cannot be read.
func hiddenFault(pid profiler.PID, err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("the stacks of PID %d cannot be read, which takes CAP_SYS_PTRACE: %w", pid, err)
	}
	return fmt.Errorf("stacks of PID %d cannot be read: %w", pid, err)
}
