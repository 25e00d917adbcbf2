package bpf

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/profiler"
)

// LoadFault explains why the kernel refused us. what is what could not be done.
func LoadFault(what string, err error) error {
	f := &profiler.Fault{What: what, Why: err, Fix: "kalypso-agent doctor   tells what is missing and how to get it"}
	missing := missingCapabilities()
	switch {
	case !BTFAvailable():
		f.Why = errors.New("this kernel does not describe its types (no /sys/kernel/btf/vmlinux)")
		f.Fix = "use a kernel built with CONFIG_DEBUG_INFO_BTF=y: every distribution's kernel since about 2021"
	// Without a capability, the verifier also says EINVAL: this helper is not
	// for programs of this type.
	case missing != "" || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		switch {
		case os.Geteuid() != 0:
			f.Why = fmt.Errorf("not running as root: %w", err)
			if missing != "" {
				f.Why = fmt.Errorf("not running as root, and without %s: %w", missing, unix.EPERM)
			}
			f.Fix = "sudo " + shellWords(os.Args)
		case missing != "":
			f.Why = fmt.Errorf("running as root, but without %s: %w", missing, unix.EPERM)
			f.Fix = "add them to the container's capabilities; kalypso-agent doctor tells what each is for"
		}
	case errors.Is(err, ebpf.ErrNotSupported):
		f.Why = fmt.Errorf("this kernel cannot do it: %w", err)
		f.Fix = "use Linux 6.1 or later"
	}
	return f
}

// missingCapabilities names what loading cannot do without; empty when
// nothing is missing, or it cannot be told.
func missingCapabilities() string {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&header, &data[0]) != nil {
		return ""
	}
	have := uint64(data[1].Effective)<<32 | uint64(data[0].Effective)
	return capabilities(have)
}

// capabilities names the needed ones that are not among have. CAP_SYS_ADMIN
// stands for both: include/linux/capability.h, bpf_capable, perfmon_capable.
func capabilities(have uint64) string {
	has := func(c int) bool { return have&(1<<c) != 0 }
	if has(unix.CAP_SYS_ADMIN) {
		return ""
	}
	var missing []string
	if !has(unix.CAP_BPF) {
		missing = append(missing, "CAP_BPF")
	}
	if !has(unix.CAP_PERFMON) {
		missing = append(missing, "CAP_PERFMON")
	}
	return strings.Join(missing, " and ")
}

// shellWords writes arguments so that a shell reads them as they are.
func shellWords(args []string) string {
	words := make([]string, len(args))
	for i, a := range args {
		plain := a != "" && strings.IndexFunc(a, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_=+:,./@%", r))
		}) < 0
		if words[i] = a; !plain {
			words[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(words, " ")
}
