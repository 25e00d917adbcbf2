package otlp

import (
	"fmt"
	"strings"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
)

// shop is a window of two workloads that has everything that profiles can
// have: inlined calls, kernel frames, frames without a name, stacks that are
// not whole, names that are not UTF-8, and stacks deeper than a server takes.
func shop(start time.Time) []*profiler.Profile {
	kernel := &profiler.Module{Path: "[kernel]"}
	server := &profiler.Module{Path: "/srv/checkout", BuildID: "0123456789abcdef0123456789abcdef01234567"}
	stripped := &profiler.Module{Path: "/usr/lib/libfoo.so.1"}
	goServer := &profiler.Module{Path: "/srv/cart", BuildID: "eXl1/abc/def/ghi"}

	at := func(m *profiler.Module, address uint64, frames ...profiler.Frame) *profiler.Location {
		return &profiler.Location{Module: m, Address: address, Frames: frames}
	}
	main := at(server, 0x1000, profiler.Frame{Function: "main", File: "main.cc", Line: 12})
	handle := at(server, 0x1100, profiler.Frame{Function: "checkout::handle(Request const&)", File: "handle.cc", Line: 40})
	price := at(server, 0x1200,
		profiler.Frame{Function: "round", File: "money.h", Line: 7, Inlined: true},
		profiler.Frame{Function: "price", File: "price.cc", Line: 33, Inlined: true},
		profiler.Frame{Function: "total", File: "price.cc", Line: 90})
	sys := at(kernel, 0xffffffff81000100, profiler.Frame{Function: "do_syscall_64", Kind: profiler.KindKernel})
	copied := at(kernel, 0xffffffff81000200, profiler.Frame{Function: "copy_user_generic", Kind: profiler.KindKernel})
	copied2 := at(kernel, 0xffffffff81000208, profiler.Frame{Function: "copy_user_generic", Kind: profiler.KindKernel})
	nameless := at(stripped, 0x2345, profiler.Frame{Start: 0x2300})
	hostile := at(stripped, 0x2400, profiler.Frame{Function: "evil\x00\xff\x1b[31m\u202ename", File: "a\xffb.c", Line: 1})
	goMain := at(goServer, 0x3000, profiler.Frame{Function: "main.main", File: "/src/cart/main.go", Line: 20, Kind: profiler.KindGo})
	recurse := at(goServer, 0x3100, profiler.Frame{Function: "main.walk", File: "/src/cart/walk.go", Line: 8, Kind: profiler.KindGo})
	bottom := at(goServer, 0x3200, profiler.Frame{Function: "main.visit", File: "/src/cart/walk.go", Line: 15, Kind: profiler.KindGo})

	stack := func(stop profiler.Stop, leafFirst ...*profiler.Location) *profiler.Stack {
		return &profiler.Stack{Locations: leafFirst, Stop: stop}
	}
	one, two := &profiler.Process{PID: 4711, Comm: "checkout"}, &profiler.Process{PID: 4712, Comm: "checkout"}
	checkout := &profiler.Profile{
		Workload: &profiler.Workload{Attributes: []profiler.Attribute{
			{Key: "container.id", Value: "c0ffee"},
			{Key: "k8s.container.name", Value: "server"},
			{Key: "k8s.namespace.name", Value: "shop"},
			{Key: "k8s.node.name", Value: "node-1"},
			{Key: "k8s.pod.label.app.kubernetes.io/name", Value: "checkout"},
			{Key: "k8s.pod.name", Value: "checkout-7d9f"},
			{Key: "process.pid", Value: "4711"},
			{Key: "service.name", Value: "checkout"},
			{Key: "service.namespace", Value: "shop"},
		}},
		Start: start, Duration: 15 * time.Second, Frequency: 100,
		Samples: []profiler.Sample{
			{Process: one, Stack: stack(profiler.StopRoot, price, handle, main), Count: 60},
			{Process: one, Stack: stack(profiler.StopRoot, copied, sys, handle, main), Count: 20},
			{Process: two, Stack: stack(profiler.StopRoot, copied2, sys, handle, main), Count: 10},
			{Process: two, Stack: stack(profiler.StopNoRow, nameless, handle), Count: 5},
			{Process: two, TID: 5, Thread: "worker", Stack: stack(profiler.StopRoot, hostile, main), Count: 4},
			{Process: two, Stack: stack(profiler.StopNoRegisters), Count: 1},
			{Process: two, Stack: stack(profiler.StopRoot, main), Count: 0},
		},
	}
	deep := []*profiler.Location{bottom}
	for range 1500 {
		deep = append(deep, recurse)
	}
	deep = append(deep, goMain)
	cart := &profiler.Profile{
		Workload: &profiler.Workload{Attributes: []profiler.Attribute{{Key: "host.name", Value: "node-1"}, {Key: "service.name", Value: "cart"}}},
		Start:    start, Duration: 15 * time.Second, Frequency: 97,
		Samples: []profiler.Sample{{Process: one, Stack: stack(profiler.StopRoot, deep...), Count: 3}},
	}
	return []*profiler.Profile{checkout, cart}
}

// shopStacks is what must be seen of shop, by service: nanoseconds by stack,
// root first, as collapse writes it.
func shopStacks() map[string]map[string]int64 {
	const ms = int64(time.Millisecond)
	perCart := int64(time.Second) / 97
	return map[string]map[string]int64{
		"checkout": {
			"main main.cc:12;checkout::handle(Request const&) handle.cc:40;total price.cc:90;price price.cc:33;round money.h:7": 600 * ms,
			"main main.cc:12;checkout::handle(Request const&) handle.cc:40;do_syscall_64;copy_user_generic":                     300 * ms,
			"[unwind: no information];checkout::handle(Request const&) handle.cc:40;libfoo.so.1+0x2300":                         50 * ms,
			`main main.cc:12;evil\x00\xff\x1b[31m\u202ename a\xffb.c:1`:                                                         40 * ms,
			"[unwind: registers not readable]": 10 * ms,
		},
		"cart": {
			"main.main /src/cart/main.go:20;main.walk /src/cart/walk.go:8 *499;[truncated];main.walk /src/cart/walk.go:8 *498;main.visit /src/cart/walk.go:15": 3 * perCart,
		},
	}
}

// shopLabels are the labels of shop's workloads.
func shopLabels() map[string]map[string]string {
	return map[string]map[string]string{
		"checkout": {
			"container.id":                         "c0ffee",
			"container":                            "server",
			"k8s.container.name":                   "server",
			"k8s.namespace.name":                   "shop",
			"k8s.node.name":                        "node-1",
			"k8s.pod.label.app.kubernetes.io_name": "checkout",
			"k8s.pod.name":                         "checkout-7d9f",
			"namespace":                            "shop",
			"node":                                 "node-1",
			"pod":                                  "checkout-7d9f",
			"service.name":                         "checkout",
			"service.namespace":                    "shop",
			"service_namespace":                    "shop",
		},
		"cart": {"host.name": "node-1", "service.name": "cart"},
	}
}

// call is one line of a stack.
type call struct {
	function, file string
	line           int64
}

// collapse writes a stack, root first, on one line; calls that repeat become
// one with their number.
func collapse(rootFirst []call) string {
	var out []string
	for i := 0; i < len(rootFirst); {
		n := 1
		for i+n < len(rootFirst) && rootFirst[i+n] == rootFirst[i] {
			n++
		}
		c := rootFirst[i]
		text := c.function
		if c.file != "" {
			text += fmt.Sprintf(" %s:%d", c.file, c.line)
		}
		if n > 1 {
			text += fmt.Sprintf(" *%d", n)
		}
		out = append(out, text)
		i += n
	}
	return strings.Join(out, ";")
}
