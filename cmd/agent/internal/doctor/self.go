package doctor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// self is what this process may do on paper. It words fixes; it decides
// nothing.
type self struct {
	euid      int
	effective uint64 // CapEff
	seccomp   bool   // a seccomp filter is on
	userns    bool   // in a user namespace other than the machine's
	container bool
}

// capabilities that fixes speak of: include/uapi/linux/capability.h.
func capabilityBit(name string) (bit uint, ok bool) {
	switch name {
	case "CAP_DAC_READ_SEARCH":
		return unix.CAP_DAC_READ_SEARCH, true
	case "CAP_SYS_PTRACE":
		return unix.CAP_SYS_PTRACE, true
	case "CAP_SYS_ADMIN":
		return unix.CAP_SYS_ADMIN, true
	case "CAP_SYSLOG":
		return unix.CAP_SYSLOG, true
	case "CAP_PERFMON":
		return unix.CAP_PERFMON, true
	case "CAP_BPF":
		return unix.CAP_BPF, true
	case "CAP_CHECKPOINT_RESTORE":
		return unix.CAP_CHECKPOINT_RESTORE, true
	}
	return 0, false
}

// The inode numbers of the machine's own namespaces: PROC_IPC_INIT_INO,
// PROC_USER_INIT_INO and PROC_PID_INIT_INO in include/linux/proc_ns.h.
const (
	initialIPCNamespace  = "ipc:[4026531839]"
	initialUserNamespace = "user:[4026531837]"
	initialPIDNamespace  = "pid:[4026531836]"
)

// readSelf reads what it can from proc, a /proc/PID directory; what cannot be
// read is taken as absent.
func readSelf(proc string) self {
	s := self{euid: os.Geteuid()}
	status, _ := os.ReadFile(filepath.Join(proc, "status"))
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch key {
		case "CapEff":
			s.effective, _ = strconv.ParseUint(value, 16, 64)
		case "Seccomp":
			s.seccomp = value == "2"
		}
	}
	if ns, err := os.Readlink(filepath.Join(proc, "ns/user")); err == nil {
		s.userns = ns != initialUserNamespace
	}
	// Virtual machines made from container images keep the marker files; they
	// do not keep an IPC namespace of their own, which containers have.
	if ns, err := os.Readlink(filepath.Join(proc, "ns/ipc")); err == nil && ns != initialIPCNamespace {
		for _, marker := range []string{"/.dockerenv", "/run/.containerenv", "/var/run/secrets/kubernetes.io"} {
			if _, err := os.Stat(marker); err == nil {
				s.container = true
			}
		}
	}
	return s
}

// has says whether the capability is effective.
func (s self) has(name string) bool {
	bit, ok := capabilityBit(name)
	return ok && s.effective&(1<<bit) != 0
}

// grant words how this process gets the capabilities in names ("CAP_BPF",
// "CAP_BPF and CAP_PERFMON").
func (s self) grant(names string) string {
	missing := false
	for _, n := range strings.Split(names, " and ") {
		if !s.has(n) {
			missing = true
		}
	}
	short := strings.ReplaceAll(names, "CAP_", "")
	switch {
	case s.userns:
		return "run outside of a user namespace: " + names + " inside one does not count"
	case !missing && s.seccomp:
		return names + " is there, yet the call was refused: lift the seccomp filter (seccompProfile: Unconfined)"
	case !missing:
		return names + " is there, yet the call was refused: look for a denial of a security module with dmesg"
	case s.container:
		return "add " + short + " to the container's capabilities"
	case s.euid != 0:
		return "run it with sudo"
	}
	return fmt.Sprintf("start it with %s, which was dropped from root here (capsh --print shows what is left)", names)
}

// denied says whether err is the kernel's word for a missing privilege.
func denied(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)
}

// sysctl is the value of a kernel setting, and "" when it cannot be read.
func sysctl(name string) string {
	b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// reason is err without the layers that repeat what the line says already: the
// system's own words for an errno, else all of it.
func reason(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}
