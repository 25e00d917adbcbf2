package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/dump"
)

func location(module string, addr uint64, frames ...profiler.Frame) *profiler.Location {
	return &profiler.Location{Module: &profiler.Module{Path: module}, Address: addr, Frames: frames}
}

// hung is a process with threads of all sorts.
func hung() *dumped {
	futex := location("[kernel]", 1, profiler.Frame{Function: "futex_wait", Kind: profiler.KindKernel})
	lock := location("/lib/libc.so.6", 2,
		profiler.Frame{Function: "lll_lock", File: "lock.c", Line: 7, Inlined: true}, profiler.Frame{Function: "pthread_mutex_lock", File: "mutex.c", Line: 93})
	work := location("/srv/app", 3, profiler.Frame{Function: "work"})
	run := location("/srv/app", 0x4a2, profiler.Frame{})
	goFrame := location("/srv/app", 5, profiler.Frame{Function: "main.main", File: "/src/main.go", Line: 3, Kind: profiler.KindGo})
	d := &dumped{pid: 40, exe: "/srv/app", at: time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC), took: 30 * time.Millisecond}
	d.threads = []dump.Thread{
		{TID: 40, Name: "app\x1b[2J", State: dump.Running, Stack: &profiler.Stack{Locations: []*profiler.Location{goFrame}, Stop: profiler.StopRoot}},
		{TID: 41, Name: "gone", State: dump.Zombie, Stack: &profiler.Stack{Stop: profiler.StopNoUser}},
		{TID: 42, Name: "fast", State: dump.Sleeping, Syscall: "read", Changed: true, Stack: &profiler.Stack{Locations: []*profiler.Location{work}, Stop: profiler.StopBadRead}},
		{TID: 43, Name: "deep", State: dump.Sleeping, Stack: &profiler.Stack{Locations: []*profiler.Location{run}, Stop: profiler.StopTruncated}},
	}
	for i := range 10 {
		d.threads = append(d.threads, dump.Thread{
			TID: profiler.TID(50 + i), Name: fmt.Sprintf("pool-%d", i), State: dump.Sleeping, Syscall: "futex",
			Stack: &profiler.Stack{Locations: []*profiler.Location{futex, lock, work}, Stop: profiler.StopRoot},
		})
	}
	return d
}

func TestDumpText(t *testing.T) {
	var out bytes.Buffer
	if err := hung().writeText(&out); err != nil {
		t.Fatal(err)
	}
	want := `PID 40 · app\x1b[2J · /srv/app · 14 threads

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
	if diff := cmp.Diff(out.String(), want); diff != "" {
		t.Errorf("text (-got +want):\n%s", diff)
	}
}

func TestDumpJSON(t *testing.T) {
	var out bytes.Buffer
	if err := hung().writeJSON(&out); err != nil {
		t.Fatal(err)
	}
	var got dumpReport
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Schema != "kalypso.dump/v1" || got.PID != 40 || got.Executable != "/srv/app" || got.DurationMS != 30 || got.Complete != 12 || len(got.Threads) != 14 {
		t.Errorf("the report is %+v", got)
	}
	want := dumpThread{
		TID: 50, Name: "pool-0", State: "sleeping", Syscall: "futex", Complete: true, Stop: "root",
		Frames: []dumpFrame{
			{Kind: "kernel", Function: "futex_wait", Named: true, Module: "[kernel]", Address: "0x1"},
			{Kind: "native", Function: "lll_lock", Named: true, Module: "/lib/libc.so.6", File: "lock.c", Line: 7, Inlined: true, Address: "0x2"},
			{Kind: "native", Function: "pthread_mutex_lock", Named: true, Module: "/lib/libc.so.6", File: "mutex.c", Line: 93, Address: "0x2"},
			{Kind: "native", Function: "work", Named: true, Module: "/srv/app", Address: "0x3"},
		},
	}
	if diff := cmp.Diff(got.Threads[4], want); diff != "" {
		t.Errorf("a thread (-got +want):\n%s", diff)
	}
	if gone := got.Threads[1]; gone.Frames == nil || !gone.Complete || gone.Stop != "no_user" {
		t.Errorf("a thread without frames is %+v", gone)
	}
}

func TestDumpedPID(t *testing.T) {
	cmd := newDumpCommand()
	for _, tt := range []struct {
		text string
		want profiler.PID
		what string
	}{
		{"17", 17, ""},
		{"", 0, "which process?"},
		{"0", 0, `there can be no PID "0"`},
		{"-1", 0, `there can be no PID "-1"`},
		{"2147483648", 0, `there can be no PID "2147483648"`},
		{"bash", 0, `there can be no PID "bash"`},
	} {
		got, err := dumpedPID(cmd, tt.text)
		var wrong usageError
		if got != tt.want || errors.As(err, &wrong) != (tt.what != "") || err != nil && !strings.Contains(err.Error(), tt.what) {
			t.Errorf("%q: PID %d, error %v", tt.text, got, err)
		}
	}
}
