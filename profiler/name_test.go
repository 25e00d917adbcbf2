package profiler_test

import (
	"testing"

	"github.com/kalypso-dev/kalypso/profiler"
)

func TestFrameName(t *testing.T) {
	lib := &profiler.Module{Path: "/usr/lib/libc.so.6"}
	for _, c := range []struct {
		name  string
		loc   profiler.Location
		frame *profiler.Frame
		want  string
	}{
		{"a function is shown by its name", profiler.Location{Module: lib, Address: 1}, &profiler.Frame{Function: "malloc"}, "malloc"},
		{"no symbol falls back to module+offset", profiler.Location{Module: lib, Address: 0x1f0}, &profiler.Frame{}, "libc.so.6+0x1f0"},
		{"a nameless function is shown by its start", profiler.Location{Module: lib, Address: 0x1f0}, &profiler.Frame{Start: 0x1c0}, "libc.so.6+0x1c0"},
		{"no frame at all falls back too", profiler.Location{Module: lib, Address: 0x1f0}, nil, "libc.so.6+0x1f0"},
		{"the kernel has no path to shorten", profiler.Location{Module: &profiler.Module{Path: "[kernel]"}, Address: 0xffffffff81000000}, nil, "[kernel]+0xffffffff81000000"},
		{"no module is said so", profiler.Location{Address: 0x10}, nil, "[unknown]+0x10"},
		{"a hostile function name is escaped", profiler.Location{}, &profiler.Frame{Function: "a\x1b[31m\nb"}, `a\x1b[31m\x0ab`},
		{"a hostile module name is escaped", profiler.Location{Module: &profiler.Module{Path: "/tmp/a\x00b"}, Address: 2}, nil, `a\x00b+0x2`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := profiler.FrameName(&c.loc, c.frame); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestPrintable(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"std::vector<int, std::allocator<int> >::at(unsigned long)", "std::vector<int, std::allocator<int> >::at(unsigned long)"},
		{"größe·函数", "größe·函数"},
		{"\xff\xfe", `\xff\xfe`},
		{"ok\xc3", `ok\xc3`},
		{"a\u202eb", `a\u202eb`},
		{"a\u2028b", `a\u2028b`},
		{"a\u0085b", `a\x85b`},
		{"\ufffd", "\ufffd"},
		{"\ufffd\t", "\ufffd\\x09"},
	} {
		if got := profiler.Printable(c.in); got != c.want {
			t.Errorf("%q: got %q, want %q", c.in, got, c.want)
		}
	}
}
