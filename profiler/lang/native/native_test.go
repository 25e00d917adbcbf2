package native_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/cfi"
	"github.com/kalypso-dev/kalypso/profiler/elffile"
	"github.com/kalypso-dev/kalypso/profiler/lang"
	"github.com/kalypso-dev/kalypso/profiler/lang/native"
)

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// source has a call that is inlined at a known line, a part that gcc moves
// away as cold, and a call through the PLT.
const source = `#include <stdio.h>
#include <stdlib.h>
volatile int sink;
static inline __attribute__((always_inline)) int inner(int x) {
	sink = x;
	return sink * 3; /* line 6 */
}
static __attribute__((noinline)) int hidden(int x) {
	return inner(x) + 1; /* line 9 */
}
__attribute__((noinline)) int renamed(int) __asm__("__GI_renamed");
__attribute__((noinline)) int renamed(int x) { sink = x; return x; }
__attribute__((noinline, cold)) void never(void) { sink = 7; puts("never"); }
__attribute__((noinline)) int chilly(int x) {
	if (__builtin_expect(x > 100, 0)) { never(); sink = 1; never(); abort(); }
	return hidden(x) + hidden(x + 1);
}
__asm__(".text\n.globl in_assembly\n.type in_assembly, @function\nin_assembly: nop\nnop\nret\n.size in_assembly, . - in_assembly\n");
int main(int argc, char **argv) {
	puts(argv[0]);
	return chilly(argc) + renamed(argc);
}
`

// program is a compiled file inside a fake root folder.
type program struct {
	root string
	path string // outside of root, with everything
	at   map[string]uint64
}

func build(t *testing.T, file, text, compiler string, flags ...string) program {
	t.Helper()
	p := program{root: t.TempDir(), at: map[string]uint64{}}
	dir := t.TempDir()
	p.path = filepath.Join(dir, "program")
	src := filepath.Join(dir, file)
	if err := os.WriteFile(src, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, compiler, append([]string{"-o", p.path, src}, flags...)...)
	for line := range strings.Lines(run(t, "nm", p.path)) {
		if f := strings.Fields(line); len(f) == 3 {
			addr, err := strconv.ParseUint(f[0], 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			p.at[f[2]] = addr
		}
	}
	return p
}

// install puts the program into the root, changed by strip's flags.
func (p program) install(t *testing.T, flags ...string) {
	t.Helper()
	run(t, "strip", append(flags, "-o", filepath.Join(p.root, "program"), p.path)...)
}

func (p program) attach(t *testing.T) (lang.Program, lang.Instance) {
	t.Helper()
	f, err := elffile.OpenIn(p.root, "/program")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	prog, err := native.Runtime{}.Recognise(f, p.root)
	if err != nil || prog == nil {
		t.Fatalf("Recognise = %v, %v", prog, err)
	}
	in, err := prog.Attach(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close() })
	return prog, in
}

// frames symbolizes and drops the folder of source files.
func frames(t *testing.T, in lang.Instance, addr uint64) []profiler.Frame {
	t.Helper()
	got, err := in.Symbolize(nil, addr)
	if err != nil {
		t.Fatal(err)
	}
	for i := range got {
		got[i].File = filepath.Base(got[i].File)
		if got[i].File == "." {
			got[i].File = ""
		}
	}
	return got
}

func want(t *testing.T, in lang.Instance, addr uint64, want ...profiler.Frame) {
	t.Helper()
	if diff := cmp.Diff(frames(t, in, addr), want); diff != "" {
		t.Errorf("frames at %#x (-got +want):\n%s", addr, diff)
	}
}

// inlinedAt finds an address in a function whose line table says line.
func (p program) inlinedAt(t *testing.T, function string, line int) uint64 {
	t.Helper()
	for a := p.at[function]; a < p.at[function]+64; a++ {
		out := run(t, "addr2line", "-e", p.path, strconv.FormatUint(a, 16))
		if strings.HasSuffix(strings.Fields(out)[0], ":"+strconv.Itoa(line)) {
			return a
		}
	}
	t.Fatalf("no code of line %d in %s", line, function)
	return 0
}

func TestNamesOfC(t *testing.T) {
	p := build(t, "x.c", source, "gcc", "-O2", "-g")
	inlined := []profiler.Frame{
		{Function: "inner", File: "x.c", Line: 6, Inlined: true},
		{Function: "hidden", File: "x.c", Line: 9},
	}
	at := p.inlinedAt(t, "hidden", 6)
	cold, ok := p.at["chilly.cold"]
	if !ok {
		t.Fatal("gcc split no cold part off")
	}
	t.Run("DWARF in the file", func(t *testing.T) {
		p.install(t, "--keep-section=nothing", "-R", "nothing", "--strip-dwo")
		_, in := p.attach(t)
		want(t, in, at, inlined...)
		if got := frames(t, in, cold); len(got) != 1 || got[0].Function != "chilly" || got[0].Line == 0 {
			t.Errorf("cold part: %+v, want chilly with a line", got)
		}
		want(t, in, p.at["in_assembly"], profiler.Frame{Function: "in_assembly"})
		if got := frames(t, in, p.at["__GI_renamed"]); len(got) != 1 || got[0].Function != "renamed" || got[0].Linkage != "__GI_renamed" {
			t.Errorf("%+v, want renamed, known to the linker as __GI_renamed", got)
		}
	})
	t.Run("DWARF in a debug file of the target's root", func(t *testing.T) {
		p.install(t)
		prog, in := p.attach(t)
		id := elfID(t, p.path)
		debug := filepath.Join(p.root, "usr/lib/debug/.build-id", id[:2], id[2:]+".debug")
		if err := os.MkdirAll(filepath.Dir(debug), 0o755); err != nil {
			t.Fatal(err)
		}
		run(t, "objcopy", "--only-keep-debug", "--compress-debug-sections=zlib", p.path, debug)
		defer func() { _ = os.Remove(debug) }()
		want(t, in, at, inlined...)
		want(t, in, p.at["in_assembly"], profiler.Frame{Function: "in_assembly"})
		if got := frames(t, in, puts(t, p)); len(got) != 1 || got[0].Function != "puts@plt" {
			t.Errorf("PLT stub: %+v, want puts@plt", got)
		}
		if n := prog.(*native.Program).Bytes(); n <= 0 || n > 1<<20 {
			t.Errorf("%d bytes held", n)
		}
		if err := in.Close(); err != nil {
			t.Fatal(err)
		}
		if n := prog.(*native.Program).Bytes(); n != 0 {
			t.Errorf("%d bytes held after the last Close", n)
		}
		if _, err := in.Symbolize(nil, at); err == nil {
			t.Error("no error after Close")
		}
	})
	t.Run("symbols only", func(t *testing.T) {
		p.install(t, "-g")
		_, in := p.attach(t)
		want(t, in, at, profiler.Frame{Function: "hidden"})
		want(t, in, cold, profiler.Frame{Function: "chilly", Linkage: "chilly.cold"})
		want(t, in, p.at["main"], profiler.Frame{Function: "main"})
	})
	t.Run("nothing", func(t *testing.T) {
		p.install(t)
		_, in := p.attach(t)
		// Unwind information still tells where the function begins.
		if got := frames(t, in, at); len(got) != 1 || got[0].Function != "" || got[0].Start == 0 || got[0].Start > at {
			t.Errorf("%+v, want one frame without a name, with a start at or before %#x", got, at)
		}
		want(t, in, 0)
		want(t, in, ^uint64(0))
	})
	t.Run("damaged DWARF leaves the symbols", func(t *testing.T) {
		broken := filepath.Join(t.TempDir(), "garbage")
		if err := os.WriteFile(broken, []byte(strings.Repeat("\xff\x01\x80", 300)), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, section := range []string{".debug_info", ".debug_abbrev", ".debug_line", ".debug_str"} {
			run(t, "objcopy", "--update-section", section+"="+broken, p.path, filepath.Join(p.root, "program"))
			_, in := p.attach(t)
			if got := frames(t, in, at); len(got) == 0 || got[len(got)-1].Function != "hidden" && section != ".debug_str" {
				t.Errorf("%s damaged: %+v, want hidden", section, got)
			}
		}
	})
}

func elfID(t *testing.T, path string) string {
	t.Helper()
	f, err := elffile.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if len(f.BuildID()) < 8 {
		t.Fatalf("build ID %q", f.BuildID())
	}
	return f.BuildID()
}

// puts finds the PLT stub that objdump names.
func puts(t *testing.T, p program) uint64 {
	t.Helper()
	for line := range strings.Lines(run(t, "objdump", "-d", p.path)) {
		if addr, rest, ok := strings.Cut(line, " "); ok && strings.HasPrefix(rest, "<puts@plt>:") {
			a, err := strconv.ParseUint(addr, 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return a
		}
	}
	t.Fatal("no puts@plt")
	return 0
}

func TestNamesOfCPlusPlus(t *testing.T) {
	const text = `#include <vector>
#include <cstdlib>
namespace app {
volatile int sink;
template <typename T> struct Box {
	T value;
	__attribute__((noinline)) int twice(int x) { sink = x; return x * 2 + sizeof(T); }
	__attribute__((always_inline)) int thrice(int x) { sink = x; return sink * 3; }
};
namespace { __attribute__((noinline)) int quiet(int x) { return Box<long>().thrice(x); } }
}
int main(int argc, char **) { return app::Box<int>().twice(argc) + app::quiet(argc); }
`
	for name, flags := range map[string][]string{"DWARF 5": {"-gdwarf-5"}, "DWARF 4": {"-gdwarf-4"}, "symbols": {"-g0"}} {
		t.Run(name, func(t *testing.T) {
			p := build(t, "x.cc", text, "g++", append(flags, "-O2")...)
			p.install(t, "--strip-dwo")
			_, in := p.attach(t)
			got := frames(t, in, p.starting(t, "_ZN3app3BoxIiE5twiceEi"))
			if len(got) == 0 || got[0].Function != "app::Box<int>::twice" || !strings.HasPrefix(got[0].Linkage, "_ZN3app3BoxIiE5twiceEi") {
				t.Errorf("%+v, want app::Box<int>::twice", got)
			}
			got = frames(t, in, p.starting(t, "_ZN3app12_GLOBAL__N_15quietEi")+1)
			if last := got[len(got)-1]; last.Function != "app::(anonymous namespace)::quiet" || last.Inlined {
				t.Errorf("%+v, want app::(anonymous namespace)::quiet", got)
			}
			if flags[0] != "-g0" && (len(got) != 2 || got[0].Function != "app::Box<long>::thrice" || !got[0].Inlined) {
				t.Errorf("%+v, want the inlined app::Box<long>::thrice first", got)
			}
		})
	}
}

// starting finds the symbol, with any suffix that the compiler gave it.
func (p program) starting(t *testing.T, prefix string) uint64 {
	t.Helper()
	for name, addr := range p.at {
		if strings.HasPrefix(name, prefix) {
			return addr
		}
	}
	t.Fatalf("no symbol %s", prefix)
	return 0
}

// V8 returns to where some of its builtins begin, behind the traps between them.
func TestNamesBehindTraps(t *testing.T) {
	p := build(t, "x.c", `
__asm__(".text\n.macro function name\n.globl \\name\n.type \\name,%function\n\\name:\nret\n.size \\name,.-\\name\n.endm\n"
	"function first\n.fill 8,1,0xcc\nfunction resumed\n.fill 8,1,0\nfunction padded\n");
void _start(void) { for (;;) ; }`, "gcc", "-O2", "-g0", "-nostdlib", "-static")
	p.install(t, "--strip-debug")
	_, in := p.attach(t)
	want(t, in, p.at["resumed"]-1, profiler.Frame{Function: "resumed", Kind: profiler.KindNative})
	want(t, in, p.at["resumed"]-2)
	want(t, in, p.at["padded"]-1)
}

func TestRows(t *testing.T) {
	t.Run("of a stripped file", func(t *testing.T) {
		p := build(t, "x.c", source, "gcc", "-O2")
		p.install(t)
		prog, _ := p.attach(t)
		wantRows(t, prog, p.at["chilly"], cfi.CFASP)
	})
	t.Run("of .debug_frame in the debug file", func(t *testing.T) {
		// What the code shows and what .debug_frame says differ.
		p := build(t, "x.c", `
#ifdef __x86_64__
#define RA "rip"
#else
#define RA "x30"
#endif
__asm__(".cfi_sections .debug_frame\n.text\n.globl chilly\n.type chilly,%function\nchilly:\n"
	".cfi_startproc\n.cfi_undefined " RA "\nnop\nret\n.cfi_endproc\n.size chilly,.-chilly");
int chilly(int);
void _start(void) { for (;;) chilly(1); }`,
			"gcc", "-O2", "-g", "-nostdlib", "-static", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables")
		p.install(t)
		id := elfID(t, p.path)
		prog, _ := p.attach(t)
		wantRows(t, prog, p.at["chilly"], cfi.CFASP)

		debug := filepath.Join(p.root, "usr/lib/debug/.build-id", id[:2], id[2:]+".debug")
		if err := os.MkdirAll(filepath.Dir(debug), 0o755); err != nil {
			t.Fatal(err)
		}
		run(t, "objcopy", "--only-keep-debug", p.path, debug)
		prog, _ = p.attach(t)
		wantRows(t, prog, p.at["chilly"], cfi.CFAStop)
	})
}

func wantRows(t *testing.T, prog lang.Program, addr uint64, kind uint8) {
	t.Helper()
	covered := false
	for _, r := range prog.Ranges() {
		covered = covered || addr >= r.Low && addr < r.High
	}
	if !covered {
		t.Errorf("%#x is in none of %v", addr, prog.Ranges())
	}
	rows, err := prog.Rows(nil, addr, addr+1)
	if err != nil || len(rows) != 1 || rows[0].PC != addr || rows[0].Rule.CFA != kind {
		t.Errorf("Rows(%#x) = %+v, %v, want one of kind %d", addr, rows, err, kind)
	}
}

func TestRecogniseNeedsCode(t *testing.T) {
	p := build(t, "x.c", "int data = 1;", "gcc", "-c")
	f, err := elffile.Open(p.path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if prog, err := (native.Runtime{}).Recognise(f, ""); prog != nil || err != nil {
		t.Errorf("Recognise = %v, %v, want nil, nil", prog, err)
	}
}

func BenchmarkSymbolize(b *testing.B) {
	self, err := filepath.Glob("/lib/*-linux-gnu/libc.so.6")
	if err != nil || len(self) == 0 {
		b.Skip("no libc.so.6")
	}
	f, err := elffile.Open(self[0])
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	prog, err := native.Runtime{}.Recognise(f, "")
	if err != nil {
		b.Fatal(err)
	}
	in, err := prog.Attach(1)
	if err != nil {
		b.Fatal(err)
	}
	text := f.Section(".text")
	var dst []profiler.Frame
	b.ReportAllocs()
	for i := uint64(0); b.Loop(); i += 4099 {
		dst, _ = in.Symbolize(dst[:0], text.Addr+i%text.Size)
	}
	b.ReportMetric(float64(prog.(*native.Program).Bytes()), "held-B")
	_ = in.Close()
}
