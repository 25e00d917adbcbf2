package cluster

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// inNetworkOf runs f on a thread that is in the network namespace of a process. A
// socket stays in the namespace that it was made in. The thread ends with f, as it
// cannot be trusted to come back.
func inNetworkOf(pid int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter %s: %w", ns.Name(), err)
			}
			return f()
		}()
	}()
	return <-done
}
