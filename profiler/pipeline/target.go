package pipeline

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kalypso-dev/kalypso/profiler"
)

// status is what /proc/PID/stat says of a process or thread.
type status struct {
	state   byte
	parent  profiler.PID
	threads int
	kernel  bool   // a kernel thread
	started uint64 // in ticks of the clock since the machine was
}

// clockTick is one of them, in nanoseconds: USER_HZ is 100.
const clockTick = 10_000_000

// readStatus reads it, for a PID or a thread's ID.
func readStatus(pid profiler.PID) (status, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return status{}, err
	}
	return parseStatus(string(text))
}

// parseStatus reads a line of proc_pid_stat(5): "12 (name) S 1 …". The name may
// hold spaces and brackets.
func parseStatus(line string) (status, error) {
	i := strings.LastIndexByte(line, ')')
	f := strings.Fields(line[i+1:])
	if i < 0 || len(f) < 20 {
		return status{}, fmt.Errorf("read state of a process: %q", line)
	}
	parent, err := strconv.ParseUint(f[1], 10, 32)
	threads, err2 := strconv.Atoi(f[17])
	flags, err3 := strconv.ParseUint(f[6], 10, 32)
	started, err4 := strconv.ParseUint(f[19], 10, 64)
	const kernelThread = 0x00200000 // PF_KTHREAD, include/linux/sched.h
	return status{f[0][0], profiler.PID(parent), threads, flags&kernelThread != 0, started}, errors.Join(err, err2, err3, err4)
}

// runs says that a process has not ended. One that nobody waited for has ended;
// one whose main thread did, but not the others, has not.
func runs(pid profiler.PID) bool {
	st, err := readStatus(pid)
	return err == nil && (st.threads > 1 || st.state != 'Z' && st.state != 'X')
}

// recordable says what keeps a process from being recorded.
func recordable(pid profiler.PID) error {
	f := &profiler.Fault{
		What: fmt.Sprintf("cannot record PID %d", pid),
		Why:  errors.New("there is no such process"),
		Fix:  "pgrep -l NAME lists PIDs; -a records every process",
	}
	if pid == 0 || pid > math.MaxInt32 {
		return f
	}
	if _, err := readStatus(pid); err != nil {
		return f
	}
	if leader := threadGroup(pid); leader != pid {
		f.Why = fmt.Errorf("it is a thread of PID %d", leader)
		f.Fix = fmt.Sprintf("-p %d --by thread   records the process and tells its threads apart", leader)
		return f
	}
	if !runs(pid) {
		f.Why = errors.New("it has ended: its parent has yet to take note")
		return f
	}
	return nil
}

// threadGroup gives the process that a thread belongs to, itself if unknown.
func threadGroup(tid profiler.PID) profiler.PID {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return tid
	}
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, "Tgid:"); found {
			if pid, err := strconv.ParseUint(strings.TrimSpace(value), 10, 32); err == nil {
				return profiler.PID(pid)
			}
		}
	}
	return tid
}

// targets is where the processes to sample are noted; their children to come
// follow by themselves.
type targets interface{ AddTarget(pid uint32) error }

// addTargets adds processes and the children that they already have. A child
// made meanwhile by one that was added is added by the kernel side.
func addTargets(to targets, pids []profiler.PID) error {
	added := map[profiler.PID]bool{}
	add := func(pid profiler.PID) error {
		added[pid] = true
		return to.AddTarget(uint32(pid))
	}
	for _, pid := range pids {
		if err := add(pid); err != nil {
			return err
		}
	}
	for more := len(pids) > 0; more; {
		more = false
		children, err := filepath.Glob("/proc/[0-9]*")
		if err != nil {
			return err
		}
		for _, path := range children {
			n, err := strconv.ParseUint(filepath.Base(path), 10, 31)
			if err != nil || added[profiler.PID(n)] {
				continue
			}
			if st, err := readStatus(profiler.PID(n)); err == nil && added[st.parent] {
				if err := add(profiler.PID(n)); err != nil {
					return err
				}
				more = true
			}
		}
	}
	return nil
}
