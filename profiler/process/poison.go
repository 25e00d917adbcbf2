package process

import (
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// tooLong is how much CPU time reading one thing of a file may take. The symbol
// table of the largest programs takes a second or two.
const tooLong = 20 * time.Second

// guard runs what reads the file's bytes, and says whether that went well.
// Parsers check bounds, count their work and are fuzzed; should one panic or
// take far too long all the same, the agent goes on: the file is poisoned, which
// is said once, and not read any more. Its frames stay module+0xoffset and its
// stacks end there. A file system that does not answer is waited for: /healthz
// tells which stage that holds up.
func (e *Executable) guard(doing string, read func()) (ok bool) {
	holder := e
	if e.lender != nil {
		holder = e.lender
	}
	if holder.poisoned.Load() {
		return false
	}
	runtime.LockOSThread() // whose CPU time is read
	begin := threadTime()
	defer func() {
		why := recover()
		if took := threadTime() - begin; why == nil && took > tooLong {
			why = fmt.Sprintf("it takes %s of CPU time", took.Round(time.Second))
		}
		runtime.UnlockOSThread()
		if why == nil {
			return
		}
		ok = false
		if !holder.poisoned.Swap(true) && e.tell != nil {
			e.tell(fmt.Errorf("%s of %s (build %s): %v; the file is not read any more", doing, e.path, e.module.BuildID, why))
		}
	}()
	read()
	return true
}

// threadTime is the CPU time of the calling thread.
func threadTime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
