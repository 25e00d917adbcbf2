// The program prints what Go's own runtime says of its addresses, for the
// test to compare with what is read from the file.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"reflect"
	"runtime"
	"sort"
	"strconv"
	"time"
)

type shape interface{ area(depth int) int }

type square struct{ side int }

type box struct{ square }

var (
	out  = bufio.NewWriter(os.Stdout)
	sink int
)

func init() { runtime.LockOSThread() } // main stays on the first thread: the test steps through it

func (s *square) area(depth int) int { return s.side*s.side + outer(depth) }

func outer(depth int) int { return middle(depth) + 1 }

func middle(depth int) int {
	n := inner(depth)
	return n + 2
}

func inner(depth int) int { return report(depth) }

//go:noinline
func report(depth int) int {
	var pcs [64]uintptr
	n := runtime.Callers(1, pcs[:])
	frames := runtime.CallersFrames(pcs[:n])
	for i := 0; i < n; i++ {
		f, more := frames.Next()
		fmt.Fprintf(out, "call %x %d %d\t%s\t%s\n", pcs[i]-1, depth, f.Line, f.Function, f.File)
		if !more {
			break
		}
	}
	return n
}

//go:noinline
func recurse(depth int) int {
	var big [200]int
	if depth == 0 {
		return outer(0)
	}
	for i := range big {
		big[i] = depth + i
	}
	sink += big[depth]
	return recurse(depth-1) + big[199]
}

func sweep() {
	end := reflect.ValueOf(main).Pointer()
	for pc := end - 400<<10; pc < end+400; pc += 7 {
		f, next := runtime.FuncForPC(pc), runtime.FuncForPC(pc+1)
		if f == nil || next == nil || f.Entry() != next.Entry() {
			continue
		}
		g, _ := runtime.CallersFrames([]uintptr{pc + 1}).Next()
		fmt.Fprintf(out, "pc %x 0 %d\t%s\t%s\n", pc, g.Line, g.Function, g.File)
	}
}

// work goes through what moves the stack in its own way: growth, the
// scheduler's stack, the vDSO, block copies, maps, a panic, a defer.
func work() {
	start := time.Now()
	words := map[string][64]int{}
	for i := 0; i < 20; i++ {
		words[strconv.Itoa(i)] = [64]int{i}
	}
	names := make([]string, 0, 4)
	for k, v := range words {
		names = append(names, k+fmt.Sprint(v[0]))
	}
	sort.Strings(names)
	huge := make([]byte, 1<<20)
	sink += len(huge) + len(names) + copied(words) + int(time.Since(start)&1)
	func() {
		defer func() { recover() }()
		var s shape
		sink += s.area(1)
	}()
	recurse(20)
}

//go:noinline
func copied(words map[string][64]int) int {
	var big [64]int
	for _, v := range words {
		w := v
		big = w
		sink += w[3]
	}
	return big[0]
}

func main() {
	defer out.Flush()
	if len(os.Args) > 1 && os.Args[1] == "work" {
		work()
		out.Reset(io.Discard)
		return
	}
	fmt.Fprintf(out, "main %x 0 0\t-\t-\n", reflect.ValueOf(main).Pointer())
	var s shape = &box{square{3}}
	sink += s.area(1)
	recurse(5)
	generic()
	func() { outer(3) }()
	done := make(chan int)
	go func() { done <- middle(4) }()
	<-done
	defer func() {
		recover()
		sweep()
	}()
	var m map[string]int
	m["panic"] = outer(5)
}
