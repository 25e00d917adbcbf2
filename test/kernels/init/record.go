package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/exporter/format"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/lang"
	"github.com/kalypso-dev/kalypso/profiler/lang/golang"
	"github.com/kalypso-dev/kalypso/profiler/lang/native"
	"github.com/kalypso-dev/kalypso/profiler/pipeline"
)

// frequency is that of the host's test for the agent, too.
const frequency = 97

// hold waits until standard input ends, then becomes the command.
func hold(command []string) error {
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return fmt.Errorf("wait: %w", err)
	}
	return unix.Exec(command[0], command, os.Environ())
}

// withoutCycles becomes the command while an event of ours has the hardware that
// counts cycles for itself, where there is such: pinned, and exclusive. Others of
// that hardware are opened and do not count.
func withoutCycles(command []string) error {
	attr := unix.PerfEventAttr{
		Type: unix.PERF_TYPE_HARDWARE, Config: unix.PERF_COUNT_HW_CPU_CYCLES, Size: uint32(unix.PERF_ATTR_SIZE_VER5),
		Bits: unix.PerfBitPinned | unix.PerfBitExclusive,
	}
	// The machine has one CPU. The command inherits the event, which ends with it.
	if _, err := unix.PerfEventOpen(&attr, -1, 0, -1, 0); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("take the counter of cycles: %w", err)
	}
	return unix.Exec(command[0], command, os.Environ())
}

// recordByTailCalls records a command and writes folded stacks.
func recordByTailCalls(ctx context.Context, name string, command []string) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	c := exec.Command("/proc/self/exe", append([]string{"hold"}, command...)...)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	gate, err := c.StdinPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return fmt.Errorf("start %s: %w", command[0], err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- c.Wait()
		stop()
	}()
	var mu sync.Mutex
	var failed []error
	p, _, err := pipeline.Record(ctx, pipeline.Config{
		Runtimes: []lang.Runtime{golang.Runtime{}, native.Runtime{}},
		OpenPerfMap: func(pid profiler.PID, root string) (pipeline.PerfMap, error) {
			return native.OpenPerfMap(pid, root)
		},
		Frequency: frequency,
		PIDs:      []profiler.PID{profiler.PID(c.Process.Pid)},
		Kernel:    true,
		TailCalls: true,
		Started:   gate.Close,
		Failed: func(err error) {
			mu.Lock()
			defer mu.Unlock()
			failed = append(failed, err)
		},
	})
	_ = gate.Close() // a command that was not recorded must end, too
	if err = errors.Join(err, <-ended); err != nil {
		return err
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	mu.Lock()
	defer mu.Unlock()
	return errors.Join(errors.Join(failed...), format.Folded{}.Write(f, p), f.Close())
}
