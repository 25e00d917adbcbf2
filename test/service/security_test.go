package service

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/exporter/otlp/otlptest"
)

// needed are the capabilities that the agent keeps: docs/reference/capabilities.md.
var needed = []struct {
	name  string
	value int
}{
	{"BPF", unix.CAP_BPF},
	{"PERFMON", unix.CAP_PERFMON},
	{"SYS_PTRACE", unix.CAP_SYS_PTRACE},
	{"DAC_READ_SEARCH", unix.CAP_DAC_READ_SEARCH},
	{"SYSLOG", unix.CAP_SYSLOG},
	{"CHECKPOINT_RESTORE", unix.CAP_CHECKPOINT_RESTORE},
}

func neededMask() uint64 {
	var mask uint64
	for _, c := range needed {
		mask |= 1 << c.value
	}
	return mask
}

// privileges are those of one thread.
type privileges struct {
	effective, permitted, inheritable, bounding, ambient uint64
	noNew                                                bool
}

// threads gives the privileges of every thread of a process.
func threads(t *testing.T, pid int) []privileges {
	t.Helper()
	names, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(names) == 0 {
		t.Fatalf("no threads of PID %d: %v", pid, err)
	}
	var out []privileges
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		values := map[string]string{}
		for line := range strings.Lines(string(text)) {
			key, value, _ := strings.Cut(line, ":")
			values[key] = strings.TrimSpace(value)
		}
		mask := func(key string) uint64 {
			n, err := strconv.ParseUint(values[key], 16, 64)
			if err != nil {
				t.Fatalf("%s of %s: %v", key, name, err)
			}
			return n
		}
		out = append(out, privileges{
			mask("CapEff"), mask("CapPrm"), mask("CapInh"), mask("CapBnd"), mask("CapAmb"), values["NoNewPrivs"] == "1",
		})
	}
	return out
}

// TestPrivilegesAreGivenUp: while it samples, no thread of the agent has a
// capability that it does not need, nor a way to one.
func TestPrivilegesAreGivenUp(t *testing.T) {
	require(t)
	t.Parallel()
	r := otlptest.Start(t, otlptest.Options{})
	a := start(t, command{endpoint: r.Endpoint()})
	want := privileges{effective: neededMask(), permitted: neededMask(), bounding: neededMask(), noNew: true}
	least := func() bool {
		return !slices.ContainsFunc(threads(t, a.pid), func(p privileges) bool { return p != want })
	}
	until(t, 10*time.Second, "every thread has given up what it does not need", least)
	// It samples, names and sends with that, in threads that are new.
	(&scene{t, r, a, "grpc"}).catchUp(time.Now().Add(2 * time.Second))
	if !least() {
		t.Errorf("threads have %+v, want %+v", threads(t, a.pid), want)
	}
	if len(a.log.with("privileges are not given up")) > 0 {
		t.Error("the agent says that it could not give up privileges")
	}
	account(t, r, a.stop())
}

// capsh gives a command that runs another without these capabilities.
func capsh(drop []int) []string {
	names := make([]string, len(drop))
	for i, c := range drop {
		names[i] = strconv.Itoa(c)
	}
	return []string{"capsh", "--drop=" + strings.Join(names, ","), "--", "-c", `exec "$@"`, "sh"}
}

// allBut gives every capability that the kernel has and that is not kept.
func allBut(t *testing.T, keep uint64) []int {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		t.Fatal(err)
	}
	last, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for c := range last + 1 {
		if keep&(1<<c) == 0 {
			out = append(out, c)
		}
	}
	return out
}

// TestReadOnlyRoot: the agent needs to write to its spool only, and neither
// CAP_SYS_ADMIN nor CAP_SYS_RESOURCE. What it shows is as complete.
func TestReadOnlyRoot(t *testing.T) {
	require(t)
	requireTools(t, "unshare", "mount", "capsh")
	t.Parallel()
	r := otlptest.Start(t, otlptest.Options{})
	disk := smallDisk(t, 4096)
	// Every mount but the spool's becomes read-only, for the agent. The file
	// systems of the kernel are left out: devices and /proc/self/attr take no
	// writes from it anyway.
	script := fmt.Sprintf(`awk '{print $2}' /proc/self/mounts | while read -r m; do
	case $m in /proc*|/sys*|/dev*|%s) ;; *) mount -o remount,bind,ro "$m" 2>/dev/null || : ;; esac
done
! touch %s/probe 2>/dev/null || exit 9
exec "$@"`, disk, t.TempDir())
	spin(t, compile(t, "chain.c", "readonly-chain"), "-seconds", "600")
	a := start(t, command{
		endpoint: r.Endpoint(), spool: filepath.Join(disk, "spool"),
		under: slices.Concat([]string{"unshare", "--mount", "sh", "-c", script, "sh"}, capsh([]int{unix.CAP_SYS_ADMIN, unix.CAP_SYS_RESOURCE})),
	})
	(&scene{t, r, a, "grpc"}).catchUp(time.Now().Add(2 * time.Second))
	n := a.stop()
	u := usageOf(profiles(t, r), "readonly-chain", time.Time{}, time.Time{})
	hot := u.function["hot_60"] + u.function["hot_30"] + u.function["hot_10"]
	if u.samples == 0 || u.cut > 0 || hot < u.samples*98/100 {
		t.Errorf("of %d samples %d are in the hot functions, %d are cut", u.samples, hot, u.cut)
	}
	if warnings := a.log.with(`"level":"WARN"`); len(warnings) > 0 {
		t.Errorf("the agent warns:\n%s", strings.Join(warnings, "\n"))
	}
	account(t, r, n)
}

// TestConnectsToTheEndpointOnly: in a network namespace where nothing is but
// the receiver, every connection that the agent opens is taken by it, and
// nothing else is sent.
func TestConnectsToTheEndpointOnly(t *testing.T) {
	require(t)
	t.Parallel()
	for _, protocol := range []string{"grpc", "http"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			var r *otlptest.Receiver
			var a *agent
			inNetwork(t, func() {
				loopbackUp(t)
				r = otlptest.Start(t, otlptest.Options{})
				a = start(t, command{endpoint: r.Endpoint(), args: []string{"--otlp.protocol", protocol}})
			})
			(&scene{t, r, a, protocol}).catchUp(time.Now().Add(3 * time.Second))
			c := netCounters(t, a.pid)
			for _, key := range []string{"Tcp AttemptFails", "Udp OutDatagrams", "Udp NoPorts", "Ip OutNoRoutes", "Icmp OutMsgs", "Ip6OutNoRoutes", "Udp6OutDatagrams"} {
				n, known := c[key]
				if !known {
					t.Errorf("the kernel does not count %s", key)
				}
				if n > 0 {
					t.Errorf("%s is %d, want 0", key, n)
				}
			}
			if opened, taken := c["Tcp ActiveOpens"], c["Tcp PassiveOpens"]; opened == 0 || opened != taken || opened > 2 {
				t.Errorf("%d connections opened, %d of them to the receiver; want all, and one or two", opened, taken)
			}
			account(t, r, a.stop())
		})
	}
}

// inNetwork calls fn in a network namespace that has nothing but a loopback
// device that is down. Sockets and processes that fn makes stay in it.
func inNetwork(t *testing.T, fn func()) {
	t.Helper()
	done := make(chan error)
	ended := false
	go func() {
		runtime.LockOSThread() // and the thread ends with the goroutine
		defer func() {
			if !ended { // a failed test leaves fn
				done <- nil
			}
		}()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			ended = true
			done <- err
			return
		}
		fn()
	}()
	if err := <-done; err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	if t.Failed() {
		t.FailNow()
	}
}

// loopbackUp brings up the loopback device of this thread's network namespace.
func loopbackUp(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		t.Fatal(err)
	}
}

// netCounters gives what the kernel counted in the network namespace of a
// process: "Tcp ActiveOpens" of /proc/PID/net/snmp, "Ip6InReceives" of snmp6.
func netCounters(t *testing.T, pid int) map[string]int {
	t.Helper()
	out := map[string]int{}
	four, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/snmp", pid))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(four)), "\n")
	for i := 0; i+1 < len(lines); i += 2 { // a line of names, a line of numbers
		protocol, names, _ := strings.Cut(lines[i], ":")
		_, numbers, _ := strings.Cut(lines[i+1], ":")
		values := strings.Fields(numbers)
		for j, name := range strings.Fields(names) {
			out[protocol+" "+name], _ = strconv.Atoi(values[j])
		}
	}
	six, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/snmp6", pid))
	if err != nil {
		return out
	}
	for line := range strings.Lines(string(six)) {
		if f := strings.Fields(line); len(f) == 2 {
			out[f[0]], _ = strconv.Atoi(f[1])
		}
	}
	return out
}
