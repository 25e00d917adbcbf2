package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/profiler"
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
	have, keep, err := privileges()
	if err != nil {
		return err
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
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
	data := [2]unix.CapUserData{{Effective: low, Permitted: low}, {Effective: high, Permitted: high}}
	errs = append(errs, inAllThreads(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0]))))
	return errors.Join(errs...)
}

// privileges are the capabilities that the agent may use, and which of them it
// keeps.
func privileges() (have, keep uint64, err error) {
	data, err := capabilities()
	if err != nil {
		return 0, 0, err
	}
	have = uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32
	for _, c := range kept {
		keep |= 1 << c
	}
	if needs := uint64(1<<unix.CAP_BPF | 1<<unix.CAP_PERFMON); have&needs != needs {
		keep |= 1 << unix.CAP_SYS_ADMIN
	}
	return have, keep & have, nil
}

// capabilities are those of the calling thread.
func capabilities() (data [2]unix.CapUserData, err error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &data[0]); err != nil {
		return data, fmt.Errorf("read capabilities: %w", err)
	}
	return data, nil
}

// checkWritable says whether files can be made in a folder once privileges are
// dropped: before that, CAP_DAC_OVERRIDE lets root write to what is another
// user's. What else is wrong with a folder is for its owner to find, and one
// that is missing will be the agent's.
func checkWritable(dir string) error {
	if dir == "" {
		return nil
	}
	denied, err := deniedUnprivileged(dir)
	if err != nil || !denied {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil // its owner cannot come to it either, and says so
	}
	const drops = "the agent gives up CAP_DAC_OVERRIDE when it begins to sample"
	fault := &profiler.Fault{
		What: "cannot go on writing to the folder " + dir,
		Why:  fmt.Errorf("its mode is %s, and %s", info.Mode(), drops), Fix: "chmod u+rwx " + dir,
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		owner := "root"
		if uid := os.Geteuid(); uid != 0 {
			owner = strconv.Itoa(uid)
		}
		fault.Why, fault.Fix = fmt.Errorf("it belongs to user %d, and %s", st.Uid, drops), "chown "+owner+" "+dir
	}
	return fault
}

// deniedUnprivileged makes a file and removes it, in a thread that for so long
// uses only the capabilities that are kept: so ACLs and network file systems
// have their say. The thread takes the others back: they must be the same in
// all threads when they are dropped.
func deniedUnprivileged(dir string) (denied bool, err error) {
	_, keep, err := privileges()
	if err != nil {
		return false, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	had, err := capabilities()
	if err != nil {
		return false, err
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	less := had
	less[0].Effective, less[1].Effective = uint32(keep), uint32(keep>>32)
	if err := unix.Capset(&header, &less[0]); err != nil {
		return false, fmt.Errorf("use fewer capabilities: %w", err)
	}
	f, wrong := os.CreateTemp(dir, ".kalypso-agent-*")
	if wrong == nil {
		wrong = errors.Join(f.Close(), os.Remove(f.Name()))
	}
	if err := unix.Capset(&header, &had[0]); err != nil {
		return false, fmt.Errorf("use all capabilities again: %w", err)
	}
	return errors.Is(wrong, fs.ErrPermission), nil
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
