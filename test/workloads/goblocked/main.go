// Command goblocked is a Go program whose threads wait, for a dump of a hung
// process. It prints "ready" and ends with its standard input:
//
//	runtime.main > main.main > main.level1 .. level8 > main.waitInput, in read
//	runtime.goexit > main.level1 .. level8 > main.waitPipe, in read
//	runtime.goexit > main.level1 .. level8 > main.waitSleep, in nanosleep
//	runtime.goexit > main.spin > main.leaf, which runs
//
// Each on a thread of its own. A goroutine that waits for a channel has none:
// it is on no thread's stack.
package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

//go:noinline
func level1(wait func()) { level2(wait) }

//go:noinline
func level2(wait func()) { level3(wait) }

//go:noinline
func level3(wait func()) { level4(wait) }

//go:noinline
func level4(wait func()) { level5(wait) }

//go:noinline
func level5(wait func()) { level6(wait) }

//go:noinline
func level6(wait func()) { level7(wait) }

//go:noinline
func level7(wait func()) { level8(wait) }

//go:noinline
func level8(wait func()) { wait() }

//go:noinline
func waitInput() {
	var b [1]byte
	for {
		if n, err := unix.Read(0, b[:]); n <= 0 && err != unix.EINTR {
			return
		}
	}
}

//go:noinline
func waitPipe(fd int) {
	var b [1]byte
	_, _ = unix.Read(fd, b[:])
}

//go:noinline
func waitSleep() {
	t := unix.NsecToTimespec(int64(time.Hour))
	_ = unix.Nanosleep(&t, nil)
}

// leaf calls nothing and has no frame of its own.
//
//go:noinline
func leaf(x uint64, n int) uint64 {
	for range n {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	return x
}

//go:noinline
func spin() {
	for x := uint64(1); x != 0; {
		x = leaf(x, 1000)
	}
}

func main() {
	r, _, err := os.Pipe()
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fd := int(r.Fd()) // blocking from here on
	var started sync.WaitGroup
	for _, run := range []func(){
		func() { level1(func() { waitPipe(fd) }) },
		func() { level1(waitSleep) },
		spin,
	} {
		started.Add(1)
		go func() {
			runtime.LockOSThread()
			started.Done()
			run()
		}()
	}
	go func() { <-make(chan int) }()
	started.Wait()
	_, _ = io.WriteString(os.Stdout, "ready\n")
	level1(waitInput)
}
