// The program prints what Go's own runtime says of its addresses, for the
// test to compare with what is read from the file.
package main

import (
	"bufio"
	"fmt"
	"os"
	"reflect"
	"runtime"
	"strconv"
)

type shape interface{ area(depth int) int }

type square struct{ side int }

type box struct{ square }

var (
	out  = bufio.NewWriter(os.Stdout)
	sink int
)

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
		fmt.Fprintf(out, "call %x %d %d %s %s\n", pcs[i]-1, depth, f.Line, f.Function, f.File)
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
		fmt.Fprintf(out, "pc %x 0 %d %s %s\n", pc, g.Line, g.Function, g.File)
	}
}

func main() {
	defer out.Flush()
	if len(os.Args) > 1 {
		n, _ := strconv.Atoi(os.Args[1])
		sink += n
	}
	fmt.Fprintf(out, "main %x 0 0 - -\n", reflect.ValueOf(main).Pointer())
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
