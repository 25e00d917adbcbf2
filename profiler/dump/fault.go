package dump

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/profiler"
)

func what(pid profiler.PID) string { return fmt.Sprintf("cannot dump PID %d", pid) }

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
