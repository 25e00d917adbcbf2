package dump

import "github.com/kalypso-dev/kalypso/bpf"

// State is what the scheduler says of a thread, in the words of proc_pid_stat(5)
// but for Runnable: there both are "running".
type State string

// The states.
const (
	Running   State = "running"  // on a CPU
	Runnable  State = "runnable" // waits for a CPU
	Sleeping  State = "sleeping"
	DiskSleep State = "disk sleep" // waits and takes no signals
	Stopped   State = "stopped"    // by a signal
	Traced    State = "tracing stop"
	Parked    State = "parked"
	Idle      State = "idle" // a kernel thread without work
	Frozen    State = "frozen"
	Zombie    State = "zombie"
	Dead      State = "dead"
)

// Bits of include/linux/sched.h; the same since Linux 4.14, and taskFrozen since 6.1.
const (
	taskInterruptible   = 0x1
	taskUninterruptible = 0x2
	taskStopped         = 0x4
	taskTraced          = 0x8
	exitDead            = 0x10
	exitZombie          = 0x20
	taskParked          = 0x40
	taskDead            = 0x80
	taskNoLoad          = 0x400
	taskLockWait        = 0x1000
	taskFrozen          = 0x8000
)

// stateOf reads the bits. A thread that ends may still have those of its life.
func stateOf(t *bpf.Thread) State {
	for _, s := range [...]struct {
		bits  uint32
		state State
	}{
		{exitZombie, Zombie},
		{exitDead | taskDead, Dead},
		{taskFrozen, Frozen},
		{taskTraced, Traced},
		{taskStopped, Stopped},
		{taskParked, Parked},
		{taskNoLoad, Idle},
		{taskUninterruptible | taskLockWait, DiskSleep},
		{taskInterruptible, Sleeping},
	} {
		if t.State&s.bits != 0 {
			return s.state
		}
	}
	if t.Flags&bpf.ThreadOnCPU != 0 {
		return Running
	}
	return Runnable
}
