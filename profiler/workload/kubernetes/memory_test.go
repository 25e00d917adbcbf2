package kubernetes

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/profiler/workload"
)

// What is kept of pods, and what a change takes, are bounded: of the 110 pods that a
// kubelet runs unless it is told otherwise, and of 500 on one node. CPU time is
// bounded for machines that are ten times as slow as that of docs/reference/performance.md.
func TestMemory(t *testing.T) {
	const podBytes, mostKept, mostChange = 8 << 10, 4 << 10, time.Millisecond
	pod := func(n int) string {
		text := podJSON(fmt.Sprintf("00000000-0000-0000-0000-%012x", n), fmt.Sprintf("web-%d", n), 2*n+1)
		return strings.Replace(text, "hunter2", strings.Repeat("x", podBytes-len(text)), 1)
	}
	for _, pods := range []int{110, 500} {
		items, raw := make([]string, pods), make([]json.RawMessage, pods)
		for n := range items {
			items[n] = pod(n)
			raw[n] = json.RawMessage(items[n])
		}
		text := `{"metadata":{"resourceVersion":"42"},"items":[` + strings.Join(items, ",") + "]}"
		known := workload.NewPods()
		before := heap()
		list, _, err := readList(strings.NewReader(text))
		if err != nil || len(list) != pods {
			t.Fatal(len(list), err)
		}
		known.Replace(list, time.Now())
		list = nil
		kept := heap() - before
		read := costOf(10, func(int) {
			if _, _, err := readList(strings.NewReader(text)); err != nil {
				t.Fatal(err)
			}
		})
		w := Watcher{cfg: Config{Pods: known}}
		change := costOf(2000, func(n int) {
			if _, err := w.take(&event{Type: "MODIFIED", Object: raw[n%pods]}); err != nil {
				t.Fatal(err)
			}
		})
		t.Logf("%d pods in %d KB: %d KB are kept, %d bytes each; to read them takes %v and allocates %d KB, a change %v and %.1f KB",
			pods, len(text)>>10, kept>>10, kept/int64(pods), read.cpu, read.bytes>>10, change.cpu, float64(change.bytes)/1024)
		if kept > int64(pods)*mostKept {
			t.Errorf("%d bytes are kept of %d pods, the limit is %d of each", kept, pods, mostKept)
		}
		if change.cpu > mostChange {
			t.Errorf("a change takes %v, the limit is %v", change.cpu, mostChange)
		}
		if there, _ := known.Len(); there != pods {
			t.Errorf("%d pods are known", there)
		}
	}
}

// cost is CPU time, which others on the machine do not add to, and memory.
type cost struct {
	cpu   time.Duration
	bytes uint64
}

func costOf(times int, do func(n int)) cost {
	now := func() (time.Duration, uint64) {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		var u unix.Rusage
		_ = unix.Getrusage(unix.RUSAGE_SELF, &u) // it has no errors to give
		return time.Duration(u.Utime.Nano() + u.Stime.Nano()), m.TotalAlloc
	}
	cpu, bytes := now()
	for n := range times {
		do(n)
	}
	cpuAfter, bytesAfter := now()
	return cost{((cpuAfter - cpu) / time.Duration(times)).Round(time.Microsecond), (bytesAfter - bytes) / uint64(times)}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
