package native

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/profiler"
)

// perfMap writes a map into a fake root and opens it.
type perfMapFixture struct {
	*PerfMap
	root, file string
	now        time.Time
}

func openFixture(t testing.TB, text string) *perfMapFixture {
	t.Helper()
	x := &perfMapFixture{root: t.TempDir(), now: time.Unix(1_700_000_000, 0)}
	x.file = filepath.Join(x.root, "tmp/perf-7.map")
	if err := os.MkdirAll(filepath.Dir(x.file), 0o755); err != nil {
		t.Fatal(err)
	}
	x.write(t, text)
	m, err := openPerfMap(x.root, "/tmp/perf-7.map", []uint32{uint32(os.Getuid())}, func() time.Time { return x.now })
	if err != nil {
		t.Fatal(err)
	}
	x.PerfMap = m
	t.Cleanup(func() { _ = m.Close() })
	return x
}

func (x *perfMapFixture) write(t testing.TB, text string) {
	t.Helper()
	if err := os.WriteFile(x.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (x *perfMapFixture) append(t testing.TB, text string) {
	t.Helper()
	f, err := os.OpenFile(x.file, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(text)
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
}

func (x *perfMapFixture) want(t testing.TB, addr uint64, want string) {
	t.Helper()
	got, err := x.Symbolize(nil, addr)
	if err != nil {
		t.Fatal(err)
	}
	name := ""
	if len(got) > 0 {
		name = got[0].Function
		if got[0].Kind != profiler.KindJIT || len(got) > 1 {
			t.Errorf("Symbolize(%#x) = %+v, want one JIT frame", addr, got)
		}
	}
	if name != want {
		t.Errorf("Symbolize(%#x) = %q, want %q", addr, name, want)
	}
}

func TestPerfMapLines(t *testing.T) {
	x := openFixture(t, `1000 100 plain
0x2000 0x80 with 0x
3000 20 several words (a, b)
4000 zz bad size
nonsense

5000 0 empty
6000 10
7000 10 _ZN3app3runEv
8000 10 `+strings.Repeat("long", 2000)+`
ffffffffffffffff 10 wraps
9000 10 last `+"\x1b[31m"+`
a000 10 not ended`)
	for addr, name := range map[uint64]string{
		0xfff: "", 0x1000: "plain", 0x10ff: "plain", 0x1100: "", 0x2001: "with 0x", 0x3001: "several words (a, b)",
		0x4000: "", 0x5000: "", 0x6000: "", 0x7000: "app::run", 0x8000: "", 0x9001: "last �[31m", 0xa000: "",
		0: "", ^uint64(0): "",
	} {
		x.want(t, addr, name)
	}
	if diff := cmp.Diff(x.Stats(), PerfMapStats{Entries: 5, Bad: 7}); diff != "" {
		t.Errorf("stats (-got +want):\n%s", diff)
	}
	x.append(t, "\n")
	x.now = x.now.Add(missInterval)
	x.want(t, 0xa000, "not ended")
}

func TestPerfMapLaterLinesWin(t *testing.T) {
	x := openFixture(t, "1000 100 old\n1040 20 inside\n2000 100 a\n2080 100 b\n1000 100 same\n10c0 10 tail\n")
	for addr, name := range map[uint64]string{
		0x1000: "same", 0x1050: "same", 0x10c0: "tail", 0x10d0: "same", 0x207f: "a", 0x2080: "b", 0x217f: "b", 0x2180: "",
	} {
		x.want(t, addr, name)
	}
}

// TestFlattenAgainstBruteForce paints ranges one over the other.
func TestFlattenAgainstBruteForce(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		const size = 200
		var painted [size]uint32
		var base []code
		line := uint32(0)
		for range 3 {
			var fresh []code
			for range rng.IntN(30) {
				line++
				c := code{start: rng.Uint64N(size - 1), line: line}
				c.size = uint32(1 + rng.Uint64N(min(40, size-c.start)))
				if c.start+uint64(c.size) > size {
					c.size = uint32(size - c.start)
				}
				fresh = append(fresh, c)
				for a := c.start; a < c.start+uint64(c.size); a++ {
					painted[a] = line
				}
			}
			base = flatten(base, fresh)
		}
		m := PerfMap{base: base}
		for a := range painted {
			got, _ := m.find(uint64(a))
			if got.line != painted[a] {
				t.Fatalf("address %d has line %d, want %d, in %v", a, got.line, painted[a], base)
			}
		}
	}
}

func TestPerfMapChanges(t *testing.T) {
	t.Run("grows", func(t *testing.T) {
		x := openFixture(t, "1000 100 one\n")
		x.append(t, "2000 100 two\n1000 80 newer\n")
		x.want(t, 0x2000, "")
		x.now = x.now.Add(missInterval)
		x.want(t, 0x1000, "one") // a hit is believed for longer
		x.want(t, 0x2000, "two")
		x.want(t, 0x1000, "newer")
		x.want(t, 0x1080, "one")
	})
	t.Run("Refresh does not wait", func(t *testing.T) {
		x := openFixture(t, "1000 100 one\n")
		x.append(t, "2000 100 two\n")
		x.Refresh()
		x.want(t, 0x2000, "two")
	})
	t.Run("truncated and written anew", func(t *testing.T) {
		x := openFixture(t, "1000 100 one\n2000 100 two\n")
		x.write(t, "3000 100 three\n")
		x.want(t, 0x1000, "") // its line is gone
		x.now = x.now.Add(missInterval)
		x.want(t, 0x3000, "three")
		x.want(t, 0x2000, "")
	})
	t.Run("written anew and longer", func(t *testing.T) {
		x := openFixture(t, "1000 100 one\n2000 100 two\n")
		x.write(t, "1000 100 uno\n5000 100 five\n6000 100 six\n7000 100 seven\n")
		x.Refresh()
		x.want(t, 0x5000, "five")
		x.want(t, 0x1000, "uno")
		x.want(t, 0x2000, "")
	})
	t.Run("replaced by another file", func(t *testing.T) {
		x := openFixture(t, "1000 100 one\n")
		other := x.file + ".new"
		if err := os.WriteFile(other, []byte("1000 100 1st\n2000 10 x\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(other, x.file); err != nil {
			t.Fatal(err)
		}
		x.Refresh()
		x.want(t, 0x1000, "1st")
	})
	t.Run("removed with its process", func(t *testing.T) {
		x := openFixture(t, "1000 100 one\n")
		if err := os.RemoveAll(x.root); err != nil {
			t.Fatal(err)
		}
		x.Refresh()
		x.want(t, 0x1000, "one")
	})
	t.Run("closed", func(t *testing.T) {
		x := openFixture(t, "1000 100 one\n")
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
		x.Refresh()
		if _, err := x.Symbolize(nil, 0x1000); err == nil {
			t.Error("no error after Close")
		}
	})
}

func TestPerfMapHostile(t *testing.T) {
	root := t.TempDir()
	tmp := filepath.Join(root, "tmp")
	if err := os.Mkdir(tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("1000 100 secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	inside := filepath.Join(root, "inside")
	if err := os.WriteFile(inside, []byte("1000 100 inside\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(tmp, "perf-7.map")
	open := func(uids ...uint32) error {
		m, err := openPerfMap(root, "/tmp/perf-7.map", uids, time.Now)
		if err == nil {
			_ = m.Close()
		}
		return err
	}
	if err := open(0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v, want not exist", err)
	}
	for name, make := range map[string]func() error{
		"a link out of the root": func() error { return os.Symlink(secret, path) },
		"a link inside it":       func() error { return os.Symlink("/inside", path) },
		"a FIFO":                 func() error { return exec.Command("mkfifo", path).Run() },
		"a folder":               func() error { return os.Mkdir(path, 0o755) },
	} {
		if err := make(); err != nil {
			t.Fatal(err)
		}
		if err := open(uint32(os.Getuid())); err == nil {
			t.Errorf("%s was opened", name)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if os.Getuid() == 0 {
		if err := os.WriteFile(path, []byte("1000 100 x\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, 4242, 4242); err != nil {
			t.Fatal(err)
		}
		if err := open(1000, 0); !errors.Is(err, ErrNotOwner) {
			t.Errorf("another user's file: %v, want ErrNotOwner", err)
		}
		if err := open(4242); err != nil {
			t.Errorf("the process's own file: %v", err)
		}
	}
}

func TestPerfMapLimits(t *testing.T) {
	t.Run("entries", func(t *testing.T) {
		var b bytes.Buffer
		for i := range maxPerfMapEntries + 10 {
			fmt.Fprintf(&b, "%x 10 f%d\n", 0x1000+16*i, i)
		}
		x := openFixture(t, b.String())
		if diff := cmp.Diff(x.Stats(), PerfMapStats{Entries: maxPerfMapEntries, Dropped: 10}); diff != "" {
			t.Errorf("stats (-got +want):\n%s", diff)
		}
		if x.Bytes() > 16*maxPerfMapEntries {
			t.Errorf("%d bytes held", x.Bytes())
		}
		x.want(t, 0x1000+16*12345, "f12345")
	})
	t.Run("bytes", func(t *testing.T) {
		x := openFixture(t, "1000 10 first\n")
		if err := os.Truncate(x.file, 1<<40); err != nil { // sparse
			t.Fatal(err)
		}
		x.Refresh()
		x.want(t, 0x1000, "first")
		if x.offset > maxPerfMapBytes {
			t.Errorf("read up to %d", x.offset)
		}
	})
}

func TestV8Names(t *testing.T) {
	for name, want := range map[string]profiler.Frame{
		"JS:*fib /app/fib.js:3:7":                     {Function: "fib", File: "/app/fib.js", Line: 3},
		"JS:~fib /app/fib.js:3:7":                     {Function: "fib", File: "/app/fib.js", Line: 3},
		"LazyCompile:^get size file:///a b/x.mjs:1:2": {Function: "get size", File: "file:///a b/x.mjs", Line: 1},
		"JS:+ node:internal/main:12:34":               {Function: "(anonymous)", File: "node:internal/main", Line: 12},
		"Script:~ /app/fib.js:1:1":                    {Function: "(script)", File: "/app/fib.js", Line: 1},
		"JS:*":                                        {Function: "JS:*"},
		"Builtin:ArrayMap":                            {Function: "Builtin:ArrayMap"},
		"Lcom/app/Main;::run":                         {Function: "Lcom/app/Main;::run"},
		"void [app] Main::Run(int32)[Optimized]":      {Function: "void [app] Main::Run(int32)[Optimized]"},
		"py::fib:/app/fib.py":                         {Function: "py::fib:/app/fib.py"},
	} {
		want.Kind = profiler.KindJIT
		if want.File != "" {
			want.Linkage = name
		}
		if diff := cmp.Diff(jitFrame(name), want); diff != "" {
			t.Errorf("%q (-got +want):\n%s", name, diff)
		}
	}
}

func TestParseStatus(t *testing.T) {
	inner, uids := parseStatus("Name:\tnode\nUid:\t1000\t1001\t1002\t1003\nNSpid:\t4711\t17\n")
	if inner != 17 || !cmp.Equal(uids, []uint32{1000, 1001, 1002, 1003}) {
		t.Errorf("got %d, %v", inner, uids)
	}
	if inner, uids := parseStatus("NSpid:\nUid:\tx\n"); inner != 0 || uids != nil {
		t.Errorf("got %d, %v", inner, uids)
	}
}

// TestOpenPerfMapOfAProcess writes the map of this very process.
func TestOpenPerfMapOfAProcess(t *testing.T) {
	path := fmt.Sprintf("/tmp/perf-%d.map", os.Getpid())
	if _, err := OpenPerfMap(profiler.PID(os.Getpid()), ""); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("before there is one: %v, want not exist", err)
	}
	if err := os.WriteFile(path, []byte("1000 10 mine\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.Remove(path) }()
	m, err := OpenPerfMap(profiler.PID(os.Getpid()), "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	got, err := m.Symbolize(nil, 0x1008)
	if err != nil || len(got) != 1 || got[0].Function != "mine" {
		t.Errorf("Symbolize = %+v, %v, want mine", got, err)
	}
}

func BenchmarkReadPerfMap(b *testing.B) {
	var text bytes.Buffer
	for i := range 100_000 {
		fmt.Fprintf(&text, "%x 80 JS:*function%d /app/dist/server.js:%d:12\n", 0x7f0000000000+128*i, i, i)
	}
	x := openFixture(b, text.String())
	b.SetBytes(int64(text.Len()))
	b.ReportAllocs()
	for b.Loop() {
		x.reset()
		x.Refresh()
	}
	b.ReportMetric(float64(x.Bytes()), "held-B")
}

func FuzzPerfMap(f *testing.F) {
	f.Add([]byte("1000 100 one\n1040 20 two\n"), []byte("1000 200 three\nbad\n"))
	f.Add([]byte("ffffffffffffff00 ff x\n0 40000000 y"), []byte("\n\n\x00"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, first, second []byte) {
		file := filepath.Join(dir, fmt.Sprint(os.Getpid()))
		if err := os.WriteFile(file, first, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := openPerfMap(dir, "/"+filepath.Base(file), []uint32{uint32(os.Getuid())}, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = m.Close() }()
		if err := os.WriteFile(file, append(first, second...), 0o600); err != nil {
			t.Fatal(err)
		}
		m.Refresh()
		for _, list := range [][]code{m.base, m.recent} {
			for i, c := range list {
				if c.size == 0 || i > 0 && list[i-1].start+uint64(list[i-1].size) > c.start {
					t.Fatalf("overlap in %v", list)
				}
				for _, addr := range []uint64{c.start, c.start + uint64(c.size) - 1} {
					if got, err := m.Symbolize(nil, addr); err != nil || len(got) != 1 || got[0].Function == "" {
						t.Fatalf("Symbolize(%#x) = %+v, %v", addr, got, err)
					}
				}
			}
		}
	})
}
