package cluster

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/kalypso-dev/kalypso/deploy/check"
)

// lookScript prints, a line each, what decides whether a kernel lets itself be
// profiled. It runs in a node before anything of ours is there, with nothing but
// a shell (K3s' image has busybox) and no rights.
//
// perf_event_paranoid is there where the kernel has perf_event_open:
// perf_event_open(2); unprivileged_bpf_disabled where it has bpf(2). cat and not
// read: a shell reads a byte at a time, and the kernel gives only the first of a
// number (proc_dointvec).
const lookScript = `cd /proc/sys && for f in kernel/osrelease \
  kernel/unprivileged_bpf_disabled kernel/perf_event_paranoid \
  fs/inotify/max_user_instances /sys/kernel/security/lockdown; do
  v=$(cat $f) && echo "${f##*/}=$v"
done 2>/dev/null
test -r /sys/kernel/btf/vmlinux && echo btf=vmlinux
echo "pid=$(readlink /proc/self/ns/pid)"`

// initPIDNamespace is the machine's own: PROC_PID_INIT_INO of
// include/linux/proc_ns.h.
const initPIDNamespace = "pid:[4026531836]"

// What the agent's programs need, and the oldest kernel that they are tested on:
// docs/decisions/0074-tested-kernels.md.
const (
	oldestMajor  = 5
	oldestMinor  = 15
	testedKernel = "6.1"
)

// enoughInstances of inotify: kind and others recommend it for a few dozen pods.
const enoughInstances = 512

// kernelFacts are what lookScript printed.
type kernelFacts map[string]string

func parseFacts(output []byte) kernelFacts {
	facts := kernelFacts{}
	for line := range strings.Lines(string(output)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			facts[key] = value
		}
	}
	return facts
}

// checks are those of the kernel that nodes run on. Their IDs are those of
// kalypso-agent doctor where it tries the same thing by doing it.
func (f kernelFacts) checks() []check.Check {
	now := func(o func() check.Outcome) func(context.Context) check.Outcome {
		return func(context.Context) check.Outcome { return o() }
	}
	return []check.Check{
		{
			ID: "kernel", Title: "the kernel of the nodes", Severity: check.Required, Run: now(f.kernel),
			Effect: "nothing can be profiled", Fix: "kalypsoctl explain kernel",
		},
		{
			ID: "btf", Title: "types of the kernel", Severity: check.Required, Run: now(f.btf),
			Effect: "nothing can be profiled", Fix: "kalypsoctl explain btf",
		},
		{
			ID: "lockdown", Title: "programs may read the kernel's memory", Severity: check.Required, Run: now(f.lockdown),
			Effect: "nothing can be profiled", Fix: "kalypsoctl explain lockdown",
		},
		{
			ID: "pid_namespace", Title: "nodes see the kernel's process IDs", Severity: check.Limit, Run: now(f.pids),
			Effect: "the agent cannot tell whose samples it has: profiles of pods stay empty", Fix: "kalypsoctl explain pid_namespace",
		},
		{
			ID: "inotify", Title: "watches of files for many pods", Severity: check.Limit, Run: now(f.inotify),
			Effect: "pods end with \"too many open files\"", Fix: "on the machine whose kernel it is: sudo sysctl -w fs.inotify.max_user_instances=8192",
		},
	}
}

var release = regexp.MustCompile(`^(\d+)\.(\d+)`)

func (f kernelFacts) kernel() check.Outcome {
	seen := f["osrelease"]
	m := release.FindStringSubmatch(seen)
	if m == nil {
		return check.Fail("the release cannot be read: %q", seen)
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	if major < oldestMajor || major == oldestMajor && minor < oldestMinor {
		return check.Fail("%s (need >= %d.%d, tested from %s on)", seen, oldestMajor, oldestMinor, testedKernel)
	}
	if f["unprivileged_bpf_disabled"] == "" {
		return check.Fail("%s has no bpf(2)", seen)
	}
	if f["perf_event_paranoid"] == "" {
		return check.Fail("%s has no perf_event_open(2)", seen)
	}
	return check.Pass("%s with bpf and perf_event (need >= %d.%d, tested from %s on)", seen, oldestMajor, oldestMinor, testedKernel)
}

func (f kernelFacts) btf() check.Outcome {
	if f["btf"] == "" {
		return check.Fail("there is no /sys/kernel/btf/vmlinux")
	}
	return check.Pass("/sys/kernel/btf/vmlinux")
}

func (f kernelFacts) lockdown() check.Outcome {
	switch modes := f["lockdown"]; {
	case modes == "":
		// Either the kernel has no such thing, or a container does not see it.
		return check.Skip("there is no /sys/kernel/security/lockdown")
	case strings.Contains(modes, "[confidentiality]"):
		return check.Fail("confidentiality")
	default:
		_, mode, _ := strings.Cut(modes, "[")
		mode, _, _ = strings.Cut(mode, "]")
		return check.Pass("%s", mode)
	}
}

func (f kernelFacts) pids() check.Outcome {
	switch pid := f["pid"]; pid {
	case "":
		return check.Skip("the node does not tell")
	case initPIDNamespace:
		return check.Pass("the machine's own")
	default:
		return check.Fail("the node has one of its own, %s", pid)
	}
}

func (f kernelFacts) inotify() check.Outcome {
	n, err := strconv.Atoi(f["max_user_instances"])
	switch {
	case err != nil:
		return check.Skip("the node does not tell")
	case n < enoughInstances:
		return check.Fail("fs.inotify.max_user_instances is %d (%d are enough)", n, enoughInstances)
	}
	return check.Pass("fs.inotify.max_user_instances is %d", n)
}

// inotifyScript raises the limits now and for every start to come, and lowers
// none. 128 instances, the kernel's default, are all that root has for kubelet,
// the container runtime and every pod together.
const inotifyScript = `cd /proc/sys/fs/inotify && for s in max_user_instances=8192 \
  max_user_watches=524288; do
  n=$(cat ${s%=*}); [ "$n" -gt ${s#*=} ] || n=${s#*=}
  echo fs.inotify.${s%=*}=$n
done >` + inotifyFile + ` &&
  sysctl -q -p ` + inotifyFile

const inotifyFile = "/etc/sysctl.d/99-kalypso.conf"

// look is the step that finds out about the kernel, and hands what it found to
// told.
func (d Driver) look(name string, told func(kernelFacts) error) Step {
	return Step{
		Reason: fmt.Sprintf("can the kernel of the %s be profiled?", d.Node),
		Argv:   append(d.Inside(name), "sh", "-c", lookScript),
		Read:   func(output []byte) error { return told(parseFacts(output)) },
	}
}
