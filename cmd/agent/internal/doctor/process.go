package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/deploy/check"
)

// kallsyms looks for an address that is not zero. The kernel shows zeros, not
// an error, to those who may not see addresses (kernel/ksyms_common.c).
func (s self) kallsyms(context.Context) check.Outcome {
	f, err := os.Open("/proc/kallsyms")
	if err != nil {
		return check.Fail("%v", err).WithFix("boot a kernel built with CONFIG_KALLSYMS=y and mount /proc")
	}
	defer func() { _ = f.Close() }()
	symbols, hidden := 0, true
	// The first symbols can be at address 0 for real (per-CPU data on older
	// amd64 kernels): look at all until one is not.
	lines := bufio.NewScanner(f)
	for hidden && lines.Scan() {
		symbols++
		addr, _, _ := strings.Cut(lines.Text(), " ")
		hidden = strings.Trim(addr, "0") == ""
	}
	if err := lines.Err(); err != nil {
		return check.Fail("reading /proc/kallsyms: %s", reason(err))
	}
	if symbols == 0 {
		return check.Fail("/proc/kallsyms is empty").WithFix("boot a kernel built with CONFIG_KALLSYMS=y")
	}
	if !hidden {
		return check.Pass("/proc/kallsyms has addresses")
	}
	restrict := sysctl("kernel.kptr_restrict")
	switch restrict {
	case "0": // then perf_event_paranoid decides, and the capability
		return check.Fail("/proc/kallsyms addresses are zero (kptr_restrict=0, perf_event_paranoid=%s)", sysctl("kernel.perf_event_paranoid"))
	case "2":
		return check.Fail("/proc/kallsyms addresses are zero (kptr_restrict=2)").
			WithFix("sysctl kernel.kptr_restrict=1: 2 hides them from everybody")
	}
	return check.Fail("/proc/kallsyms addresses are zero (kptr_restrict=%s)", restrict)
}

// maxProcesses bounds the walk over /proc: a sample of a busy machine is
// enough to tell.
const maxProcesses = 2000

// otherProcesses opens the mappings and the root directory of every process,
// as the profiler does for those it samples. Kernel threads have neither.
func (s self) otherProcesses(ctx context.Context) check.Outcome {
	dir, err := os.Open("/proc")
	if err != nil {
		return check.Fail("%v", err)
	}
	names, err := dir.Readdirnames(-1)
	_ = dir.Close()
	if err != nil {
		return check.Fail("%v", err)
	}
	own := strconv.Itoa(os.Getpid())
	users := map[uint32]bool{}
	tried, shut, example := 0, 0, ""
	for _, name := range names {
		if _, err := strconv.ParseUint(name, 10, 32); err != nil || name == own {
			continue
		}
		if tried >= maxProcesses || ctx.Err() != nil {
			break
		}
		comm, isKernel, err := readStat("/proc/" + name + "/stat")
		if err != nil || isKernel {
			continue // it ended, or has no user side
		}
		var st unix.Stat_t
		if err := unix.Stat("/proc/"+name, &st); err != nil {
			continue
		}
		err = openProcess("/proc/" + name)
		if err != nil && !denied(err) {
			continue // it ended meanwhile
		}
		tried++
		users[st.Uid] = true
		if err != nil {
			shut++
			if example == "" || name == "1" {
				example = fmt.Sprintf("%s (%s)", name, comm)
			}
		}
	}
	switch {
	case shut > 0:
		out := check.Fail("no access to %d of %d other processes, for example %s", shut, tried, example)
		if shut < tried && s.has("CAP_SYS_PTRACE") {
			return out.WithFix("none by capabilities, CAP_SYS_PTRACE is there: something else protects these processes")
		}
		return out
	case tried == 0:
		return check.Skip("not tried: there is no other process here")
	}
	return check.Pass("opened mappings and files of %d other processes of %d users", tried, len(users))
}

// openProcess tries what needs PTRACE_MODE_READ_FSCREDS over a process.
func openProcess(proc string) error {
	f, err := os.Open(proc + "/maps")
	if err != nil {
		return err
	}
	var b [1]byte
	_, err = f.Read(b[:])
	_ = f.Close()
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	var st unix.Stat_t
	return unix.Stat(proc+"/root/", &st)
}

// readStat reads name and kind of a process: proc_pid_stat(5). The name may
// hold blanks and brackets; the last ")" ends it.
func readStat(path string) (comm string, isKernel bool, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", false, err
	}
	comm, isKernel, err = parseStat(string(b))
	if err != nil {
		return "", false, fmt.Errorf("%s: %w", path, err)
	}
	return comm, isKernel, nil
}

func parseStat(stat string) (comm string, isKernel bool, err error) {
	open, end := strings.IndexByte(stat, '('), strings.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return "", false, errors.New("no name in it")
	}
	fields := strings.Fields(stat[end+1:])
	const flagsField = 6             // the 9th of the line: 3rd is the first after the name
	const kernelThread = 0x0020_0000 // PF_KTHREAD: include/linux/sched.h
	if len(fields) <= flagsField {
		return "", false, fmt.Errorf("%d fields", len(fields))
	}
	flags, err := strconv.ParseUint(fields[flagsField], 10, 64)
	if err != nil {
		return "", false, err
	}
	return stat[open+1 : end], flags&kernelThread != 0, nil
}

// unreadableFile opens a file of mode 0 through its descriptor's name, which
// checks the mode again. It lives in memory: a container may have no directory
// to write to.
func (s self) unreadableFile(context.Context) check.Outcome {
	fd, err := unix.MemfdCreate("klp_doctor", unix.MFD_CLOEXEC)
	if err != nil {
		return check.Skip("not tried: creating a file in memory: %s", reason(err))
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Fchmod(fd, 0); err != nil {
		return check.Skip("not tried: taking away the permissions of a file in memory: %s", reason(err))
	}
	again, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return check.Fail("opening a file of mode 0: %s", reason(err))
	}
	_ = unix.Close(again)
	return check.Pass("opened a file of mode 0")
}

// mapFiles opens one of its own mappings the way that reaches deleted files.
// The kernel asks for the capability even of a process's own
// (proc_map_files_get_link in fs/proc/base.c).
func (s self) mapFiles(context.Context) check.Outcome {
	mapped, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return check.Fail("%v", err)
	}
	for line := range strings.Lines(string(mapped)) {
		fields := strings.Fields(line)
		if len(fields) < 6 || !strings.HasPrefix(fields[5], "/") {
			continue
		}
		// The file names of map_files have no leading zeros, those of maps do on some kernels.
		lo, hi, _ := strings.Cut(fields[0], "-")
		name := strings.TrimLeft(lo, "0") + "-" + strings.TrimLeft(hi, "0")
		f, err := os.Open("/proc/self/map_files/" + name)
		if errors.Is(err, os.ErrNotExist) {
			return check.Fail("/proc/self/map_files has no %s", name)
		}
		if err != nil {
			return check.Fail("opening /proc/self/map_files/…: %s", reason(err))
		}
		_ = f.Close()
		return check.Pass("opened a mapped file through /proc/PID/map_files")
	}
	return check.Skip("not tried: this process maps no file")
}

func pidNamespace(context.Context) check.Outcome {
	ns, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return check.Skip("not tried: %v", err)
	}
	if ns != initialPIDNamespace {
		return check.Fail("this process lives in a PID namespace of its own, %s", ns)
	}
	return check.Pass("the machine's own")
}

func cgroups(context.Context) check.Outcome {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return check.Skip("not tried: %v", err)
	}
	v2, v1 := cgroupMounts(string(mounts))
	switch {
	case v2 != "" && v1 == 0:
		return check.Pass("v2 at %s", v2)
	case v2 != "":
		return check.Fail("hybrid: v2 at %s beside %d v1 hierarchies", v2, v1).
			WithEffect("a filter by cgroup goes by the v2 hierarchy: containers placed by v1 alone all look alike to it")
	case v1 > 0:
		return check.Fail("v1 only (%d hierarchies)", v1)
	}
	return check.Fail("no cgroup file system is mounted").WithFix("mount -t cgroup2 cgroup2 /sys/fs/cgroup")
}

// cgroupMounts gives where the v2 hierarchy is mounted and how many v1
// hierarchies there are: proc_pid_mountinfo(5), type after the " - ".
func cgroupMounts(mountinfo string) (v2 string, v1 int) {
	for line := range strings.Lines(mountinfo) {
		mount, source, _ := strings.Cut(line, " - ")
		fields, kind := strings.Fields(mount), strings.Fields(source)
		if len(fields) < 5 || len(kind) < 1 {
			continue
		}
		switch kind[0] {
		case "cgroup2":
			if v2 == "" {
				v2 = fields[4]
			}
		case "cgroup":
			v1++
		}
	}
	return v2, v1
}
