package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/profiler"
)

// hung is a process with threads of all sorts.
func hung() *Dump {
	location := func(module string, addr uint64, frames ...profiler.Frame) *profiler.Location {
		return &profiler.Location{Module: &profiler.Module{Path: module}, Address: addr, Frames: frames}
	}
	futex := location("[kernel]", 0xffffffff81000000, profiler.Frame{Function: "futex_wait", Kind: profiler.KindKernel})
	lock := location("/lib/libc.so.6", 2,
		profiler.Frame{Function: "lll_lock", File: "lock.c", Line: 7, Inlined: true}, profiler.Frame{Function: "pthread_mutex_lock", File: "mutex.c", Line: 93})
	work := location("/srv/app", 3, profiler.Frame{Function: "work"})
	run := location("/srv/app", 0x4a2, profiler.Frame{})
	goFrame := location("/srv/app", 5, profiler.Frame{Function: "main.main", File: "/src/main.go", Line: 3, Kind: profiler.KindGo})
	stack := func(stop profiler.Stop, locations ...*profiler.Location) *profiler.Stack {
		return &profiler.Stack{Locations: locations, Stop: stop}
	}
	threads := []ThreadStack{
		{TID: 40, Name: "app\x1b[2J", State: "running", Stack: stack(profiler.StopRoot, goFrame)},
		{TID: 41, Name: "gone", State: "zombie", Stack: stack(profiler.StopNoUser)},
		{TID: 42, Name: "fast", State: "sleeping", Syscall: "read", Changed: true, Stack: stack(profiler.StopBadRead, work)},
		{TID: 43, Name: "deep", State: "sleeping", Stack: stack(profiler.StopTruncated, run)},
	}
	for i := range 10 {
		threads = append(threads, ThreadStack{
			TID: profiler.TID(50 + i), Name: fmt.Sprintf("pool-%d", i), State: "sleeping", Syscall: "futex", Stack: stack(profiler.StopRoot, futex, lock, work),
		})
	}
	return NewDump(40, "/srv/app\n", begin().In(time.FixedZone("", 3600)), 30*time.Millisecond, threads)
}

const hungText = `PID 40 · app\x1b[2J · /srv/app\x0a · 14 threads

40 "app\x1b[2J" · running
    go      main.main  /src/main.go:3

41 "gone" · zombie

42 "fast" · sleeping in read
    native  work (app)
    [changed while it was read]

43 "deep" · sleeping
    native  app+0x4a2
    [truncated]

10 threads · sleeping in futex
  50 "pool-0", 51 "pool-1", 52 "pool-2", 53 "pool-3", 54 "pool-4", 55 "pool-5", 56 "pool-6", 57 "pool-7" and 2 more
    kernel  futex_wait
    native  lll_lock (libc.so.6)  lock.c:7  inlined
    native  pthread_mutex_lock (libc.so.6)  mutex.c:93
    native  work (app)

quality  12 of 14 stacks complete · 1 changed while they were read · 1 [truncated] · 32 of 33 frames named
`

func TestDump(t *testing.T) {
	a, _, s := served(t)
	a.dump = hung()
	got := getJSON[Dump](t, s, "/v1/dump?pid=7")
	if diff := cmp.Diff(got, a.dump); diff != "" {
		t.Errorf("read back (-got +want):\n%s", diff)
	}
	head := *got
	head.Threads = nil
	want := Dump{Schema: "kalypso.agent.dump/v1", PID: 40, Comm: `app\x1b[2J`, Exe: `/srv/app\x0a`, Time: begin(), DurationMS: 30, Complete: 12}
	if diff := cmp.Diff(head, want); diff != "" {
		t.Errorf("the process (-got +want):\n%s", diff)
	}
	thread := DumpThread{
		TID: 50, Name: "pool-0", State: "sleeping", Syscall: "futex", Complete: true, Stop: "root", Frames: []DumpFrame{
			{Kind: "kernel", Function: "futex_wait", Named: true, Module: "[kernel]", Address: "0xffffffff81000000"},
			{Kind: "native", Function: "lll_lock", Named: true, Module: "/lib/libc.so.6", File: "lock.c", Line: 7, Inlined: true, Address: "0x2"},
			{Kind: "native", Function: "pthread_mutex_lock", Named: true, Module: "/lib/libc.so.6", File: "mutex.c", Line: 93, Address: "0x2"},
			{Kind: "native", Function: "work", Named: true, Module: "/srv/app", Address: "0x3"},
		},
	}
	if diff := cmp.Diff(got.Threads[4], thread); diff != "" {
		t.Errorf("a thread (-got +want):\n%s", diff)
	}
	if gone := got.Threads[1]; gone.Frames == nil || !gone.Complete || gone.Stop != "no_user" {
		t.Errorf("a thread without frames is %+v", gone)
	}
	if moved := got.Threads[2]; moved.Complete || moved.Stop != "bad_read" || moved.Marker != "[changed while it was read]" {
		t.Errorf("a thread that ran is %+v", moved)
	}
	if diff := cmp.Diff(get(s, "/v1/dump?pid=7&format=text").Body.String(), hungText); diff != "" {
		t.Errorf("text (-got +want):\n%s", diff)
	}
}

// TestWriteDump: where the agent is somebody else's, nothing of what it says may
// steer the terminal.
func TestWriteDump(t *testing.T) {
	const bad = "\x1b[2J\n"
	d := &Dump{PID: 3, Comm: bad, Exe: bad, Complete: 0, Threads: []DumpThread{{
		TID: 4, Name: bad, State: bad, Syscall: bad, Marker: bad,
		Frames: []DumpFrame{{Kind: bad, Function: bad, File: bad, Line: -1}, {Kind: "native", Named: true, Function: bad, Module: "/a/" + bad}},
	}}}
	var b bytes.Buffer
	if err := WriteDump(&b, d); err != nil {
		t.Fatal(err)
	}
	const shown = `\x1b[2J\x0a`
	want := "PID 3 · " + shown + " · " + shown + " · 1 thread\n\n" +
		`4 "` + shown + `" · ` + shown + " in " + shown + "\n" +
		"    " + shown + "   " + shown + "  " + shown + "\n    native  " + shown + " (" + shown + ")\n    " + shown + "\n\n" +
		"quality  0 of 1 stack complete · 1 " + shown + " · 1 of 2 frames named\n"
	if diff := cmp.Diff(b.String(), want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}

// TestDumpOfNothing: threads may be gone when they are looked at.
func TestDumpOfNothing(t *testing.T) {
	var b bytes.Buffer
	d := NewDump(3, "", begin(), 0, nil)
	if err := WriteDump(&b, d); err != nil {
		t.Fatal(err)
	}
	if want := "PID 3 · 0 threads\n\nquality  0 of 0 stacks complete · 0 of 0 frames named\n"; b.String() != want {
		t.Errorf("got %q", b.String())
	}
	if text, err := json.Marshal(d); err != nil || !bytes.Contains(text, []byte(`"threads":[]`)) {
		t.Errorf("JSON %s, %v", text, err)
	}
}
