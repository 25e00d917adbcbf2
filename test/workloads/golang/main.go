// Command golang is a Go program with a known answer:
//
//	runtime.main > main.main > main.run > main.level1 .. level8 > one of
//	  main.hot60  > main.leaf60, which has no frame of its own
//	  main.hot30  > main.inlinedOuter > main.inlinedInner, both inlined
//	  main.hot10  > a closure in a goroutine locked to its own thread > main.leaf10
//
// The goroutine's stack is runtime.goexit > main.(*worker).serve > main.hot10.func1
// > main.leaf10. Shares are of the process's CPU time in each.
package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// chunk is about 0.2 ms of work between two readings of the CPU clock.
const chunk = 100_000

// cpu is the CPU time that the calling thread has used.
func cpu() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err)
	}
	return t.Nano()
}

// The leaves call nothing and keep everything in registers, so they have
// neither a stack frame nor a frame pointer: what is at the top of the stack
// is their caller's return address.

//go:noinline
func leaf60(x uint64, n int) uint64 {
	for range n {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	return x
}

//go:noinline
func leaf10(x uint64, n int) uint64 {
	for range n {
		x ^= x << 17
		x ^= x >> 13
		x ^= x << 7
	}
	return x
}

func inlinedInner(x uint64) uint64 {
	for range chunk {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	return x
}

func inlinedOuter(x uint64) uint64 {
	return inlinedInner(x) + 1
}

//go:noinline
func hot60(until int64) uint64 {
	x := uint64(88172645463325252)
	for {
		x = leaf60(x, chunk)
		if cpu() >= until {
			return x
		}
	}
}

//go:noinline
func hot30(until int64) uint64 {
	x := uint64(88172645463325252)
	for {
		x = inlinedOuter(x)
		if cpu() >= until {
			return x
		}
	}
}

type worker struct {
	jobs chan func() uint64
	done chan uint64
}

//go:noinline
func (w *worker) serve() {
	runtime.LockOSThread()
	for job := range w.jobs {
		w.done <- job()
	}
	close(w.done)
}

// hot10 hands its work to the worker and adds what that used to *used.
//
//go:noinline
func hot10(w *worker, ns int64, used *int64) uint64 {
	w.jobs <- func() uint64 {
		start := cpu()
		x := uint64(88172645463325252)
		for {
			x = leaf10(x, chunk)
			if now := cpu(); now >= start+ns {
				*used += now - start
				return x
			}
		}
	}
	return <-w.done
}

type turn struct {
	branch int
	ns     int64
	used   [3]int64
	worker *worker
}

//go:noinline
func level1(t *turn) uint64 { return level2(t)*3 + 1 }

//go:noinline
func level2(t *turn) uint64 { return level3(t)*3 + 2 }

//go:noinline
func level3(t *turn) uint64 { return level4(t)*3 + 3 }

//go:noinline
func level4(t *turn) uint64 { return level5(t)*3 + 4 }

//go:noinline
func level5(t *turn) uint64 { return level6(t)*3 + 5 }

//go:noinline
func level6(t *turn) uint64 { return level7(t)*3 + 6 }

//go:noinline
func level7(t *turn) uint64 { return level8(t)*3 + 7 }

//go:noinline
func level8(t *turn) uint64 {
	start := cpu()
	var x uint64
	switch t.branch {
	case 0:
		x = hot60(start + t.ns)
	case 1:
		x = hot30(start + t.ns)
	default:
		return hot10(t.worker, t.ns, &t.used[2])
	}
	t.used[t.branch] += cpu() - start
	return x + 8
}

//go:noinline
func run(seconds float64) ([3]int64, uint64) {
	t := &turn{worker: &worker{jobs: make(chan func() uint64), done: make(chan uint64)}}
	go t.worker.serve()
	var planned int64
	var sum uint64
	// Rounds of 400 to 600 ms of CPU time: see truth.h for why.
	for float64(planned) < seconds*1e9 {
		planned += 400e6 + rand.Int64N(200e6)
		for b, share := range []float64{0.6, 0.3, 0.1} {
			t.branch = b
			t.ns = max(1e6, int64(float64(planned)*share)-t.used[b])
			sum += level1(t)
		}
	}
	close(t.worker.jobs)
	<-t.worker.done
	return t.used, sum
}

func main() {
	seconds := flag.Float64("seconds", 6, "CPU `seconds` to use")
	flag.Parse()
	runtime.LockOSThread()
	used, sum := run(*seconds)
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	runtime.KeepAlive(sum)
	all := float64(used[0] + used[1] + used[2])
	fmt.Printf("{\"cpu_seconds\":%.6f,\"shares\":{\"hot60\":%.5f,\"hot30\":%.5f,\"hot10\":%.5f}}\n",
		float64(u.Utime.Nano()+u.Stime.Nano())/1e9,
		float64(used[0])/all, float64(used[1])/all, float64(used[2])/all)
}
