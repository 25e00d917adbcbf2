package daemon

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kept are the capabilities that the agent needs while it runs: CPUs may come
// online, processes are opened, kernel modules are loaded.
var kept = []uintptr{
	unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH, unix.CAP_SYSLOG, unix.CAP_CHECKPOINT_RESTORE,
}

// dropPrivileges gives up, in all threads and for good, every capability that
// the agent has and does not need, and the way to new ones. Where CAP_SYS_ADMIN
// stands for CAP_BPF or CAP_PERFMON (container runtimes that do not know these)
// it stays.
func dropPrivileges() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	have := uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32
	var keep uint64
	for _, c := range kept {
		keep |= 1 << c
	}
	if needs := uint64(1<<unix.CAP_BPF | 1<<unix.CAP_PERFMON); have&needs != needs {
		keep |= 1 << unix.CAP_SYS_ADMIN
	}
	keep &= have
	var errs []error
	// The bounding set first: that takes CAP_SETPCAP.
	if err := inAllThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1); errors.Is(err, errNotStatic) {
		return err
	}
	if have&(1<<unix.CAP_SETPCAP) != 0 {
		for c := range uintptr(unix.CAP_LAST_CAP + 1) {
			if keep&(1<<c) == 0 {
				errs = append(errs, inAllThreads(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c))
			}
		}
	}
	errs = append(errs, inAllThreads(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL))
	errs = append(errs, inAllThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1))
	low, high := uint32(keep), uint32(keep>>32)
	data = [2]unix.CapUserData{{Effective: low, Permitted: low}, {Effective: high, Permitted: high}}
	errs = append(errs, inAllThreads(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0]))))
	return errors.Join(errs...)
}

var errNotStatic = errors.New("this build uses cgo, and cannot speak for all of its threads: build it with CGO_ENABLED=0")

// inAllThreads makes a system call in every thread: privileges belong to
// threads. A kernel that does not know a capability says EINVAL.
func inAllThreads(call, a, b uintptr) error {
	_, _, errno := syscall.AllThreadsSyscall(call, a, b, 0)
	switch errno {
	case 0, syscall.EINVAL:
		return nil
	case syscall.ENOTSUP: // a program with cgo in it; releases have none
		return errNotStatic
	}
	return fmt.Errorf("system call %d(%d, %d) in all threads: %w", call, a, b, errno)
}
