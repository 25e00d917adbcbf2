package elffile_test

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

// run runs a tool of the build machine and returns what it printed.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// compile builds source with gcc into a file of its own.
func compile(t testing.TB, source string, flags ...string) string {
	t.Helper()
	dir := t.TempDir()
	src, out := filepath.Join(dir, "x.c"), filepath.Join(dir, "x")
	if err := os.WriteFile(src, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "gcc", append([]string{"-o", out, src}, flags...)...)
	return out
}

func open(t testing.TB, path string) *elffile.File {
	t.Helper()
	f, err := elffile.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// addresses gives the value of every symbol that nm lists.
func addresses(t testing.TB, path string, flags ...string) map[string]uint64 {
	t.Helper()
	at := map[string]uint64{}
	for line := range strings.Lines(run(t, "nm", append(flags, path)...)) {
		if f := strings.Fields(line); len(f) == 3 {
			addr, err := strconv.ParseUint(f[0], 16, 64)
			if err != nil {
				t.Fatalf("nm printed %q", line)
			}
			at[f[2]] = addr
		}
	}
	return at
}

func wantSymbol(t *testing.T, f *elffile.File, addr uint64, want string) {
	t.Helper()
	got, ok := f.Symbol(addr)
	if got.Name != want || ok != (want != "") {
		t.Errorf("Symbol(%#x) = %+v, %v, want %q", addr, got, ok, want)
	}
}

const rules = `
#include <string.h>
#include <stdio.h>
__attribute__((noinline)) static int local_twin(int x) { return x * 3 + 1; }
int exported_twin(int x) __attribute__((alias("local_twin")));
int __strong(int x) { return x * 5 + 2; }
int weak_name(int x) __attribute__((weak, alias("__strong")));
static int fast(int x) { return x + 11; }
static void *pick(void) { return fast; }
int chosen(int x) __attribute__((ifunc("pick")));
__asm__(
	".text\n"
	".globl asm_unsized\n"
	"asm_unsized: nop\nnop\nnop\nnop\nret\n"
	".type asm_sized, @function\n"
	"asm_sized: nop\nnop\nnop\nnop\n"
	"asm_label: nop\nnop\nnop\nnop\n"
	".size asm_sized, . - asm_sized\n"
	".type padding, @object\n"
	"padding: .skip 64, 0xcc\n"
	".size padding, 64\n"
	".type outer, @function\n"
	"outer: nop\nnop\nnop\nnop\n"
	".type inner, @function\n"
	"inner: nop\nnop\nnop\nnop\n"
	".size inner, . - inner\n"
	"nop\nnop\nnop\nnop\n"
	".size outer, . - outer\n"
	".type short_alias, @function\n"
	".globl short_alias\n"
	"short_alias:\n"
	".type long_alias, @function\n"
	"long_alias: nop\nnop\nnop\nnop\n"
	".size short_alias, . - short_alias\n"
	"nop\nnop\nnop\nnop\n"
	".size long_alias, . - long_alias\n"
	"\"$x\": nop\n"
	".symver versioned_impl, versioned@@VER_1\n"
	".globl versioned_impl\n.type versioned_impl, @function\n"
	"versioned_impl: nop\nnop\n.size versioned_impl, 2\n"
);
int main(int argc, char **argv) {
	puts(argv[0]);
	return local_twin(argc) + __strong(argc) + chosen(argc);
}
`

func TestSymbolRules(t *testing.T) {
	path := compile(t, rules, "-O1", "-fno-inline")
	at := addresses(t, path)
	f := open(t, path)
	for _, c := range []struct {
		rule   string
		symbol string
		offset uint64
		want   string
	}{
		{"an exported alias beats a local one", "local_twin", 1, "exported_twin"},
		{"fewer underscores beat strong over weak", "__strong", 1, "weak_name"},
		{"an ifunc is named at its resolver", "chosen", 0, "chosen"},
		{"the function behind an ifunc keeps its own name", "fast", 1, "fast"},
		{"a symbol without size reaches to the next", "asm_unsized", 4, "asm_unsized"},
		{"a label inside a sized function gives way", "asm_sized", 5, "asm_sized"},
		{"no name past a sized function's end", "padding", 3, ""},
		{"before a nested symbol", "outer", 3, "outer"},
		{"inside a nested symbol", "outer", 5, "inner"},
		{"behind a nested symbol", "outer", 9, "outer"},
		{"both aliases cover it: the exported one", "short_alias", 3, "short_alias"},
		{"only the longer alias covers it", "short_alias", 5, "long_alias"},
		{"a mapping symbol is no name", "$x", 0, ""},
		{"a version is cut off", "versioned@@VER_1", 1, "versioned"},
	} {
		t.Run(c.rule, func(t *testing.T) {
			addr, ok := at[c.symbol]
			if !ok {
				t.Fatalf("nm lists no %s", c.symbol)
			}
			wantSymbol(t, f, addr+c.offset, c.want)
		})
	}
	wantSymbol(t, f, 0, "")
	wantSymbol(t, f, ^uint64(0), "")
}

// plt reads the stubs that objdump names.
func plt(t *testing.T, path string) map[uint64]string {
	stubs := map[uint64]string{}
	for line := range strings.Lines(run(t, "objdump", "-d", "-j", ".plt", "-j", ".plt.sec", "-j", ".plt.got", path)) {
		addr, name, ok := strings.Cut(strings.TrimSpace(line), " <")
		if a, err := strconv.ParseUint(addr, 16, 64); ok && err == nil && strings.HasSuffix(name, "@plt>:") {
			stubs[a] = strings.TrimSuffix(name, ">:")
		}
	}
	return stubs
}

func TestPLTStubs(t *testing.T) {
	lazy := []string{"-O1", "-Wl,-z,lazy"}
	for name, flags := range map[string][]string{
		"lazy":                   lazy,
		"lazy, IBT":              append([]string{"-fcf-protection=full", "-Wl,-z,ibtplt"}, lazy...),
		"immediate":              {"-O1", "-Wl,-z,now"},
		"not position dependent": {"-O1", "-no-pie"},
		"stripped":               {"-O1", "-s", "-no-pie"},
	} {
		t.Run(name, func(t *testing.T) {
			path := compile(t, rules, flags...)
			f := open(t, path)
			want := plt(t, path)
			puts := false
			for addr, name := range want {
				if strings.HasPrefix(name, "*ABS*") {
					continue // IRELATIVE: objdump knows no name, see below
				}
				wantSymbol(t, f, addr, name)
				wantSymbol(t, f, addr+5, name)
				puts = puts || name == "puts@plt"
			}
			if !puts {
				t.Fatalf("objdump found no puts@plt among %v", want)
			}
		})
	}
	t.Run("indirect functions of a static program", func(t *testing.T) {
		path := compile(t, rules, "-O1", "-static")
		f := open(t, path)
		s := f.Section(".plt")
		names := map[string]bool{}
		for a := s.Addr; a < s.Addr+s.Size; a += 8 {
			got, _ := f.Symbol(a)
			names[got.Name] = true
		}
		if !names["chosen@plt"] || !names["strlen@plt"] {
			t.Errorf("names in .plt are %v, want chosen@plt and strlen@plt among them", names)
		}
	})
}

func TestSymbolsWithoutSectionHeaders(t *testing.T) {
	for _, hash := range []string{"gnu", "sysv", "both"} {
		t.Run(hash, func(t *testing.T) {
			path := compile(t, "int fn_a(int x) { return x * 3; }\nint fn_b(int x) { return fn_a(x) + 1; }\n",
				"-O1", "-shared", "-fPIC", "-Wl,--hash-style="+hash)
			at := addresses(t, path, "-D")
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			binary.LittleEndian.PutUint64(data[0x28:], 0) // e_shoff
			binary.LittleEndian.PutUint32(data[0x3c:], 0) // e_shnum, e_shstrndx
			f, err := elffile.NewFile(bytes.NewReader(data), int64(len(data)), "stripped")
			if err != nil {
				t.Fatal(err)
			}
			if f.BuildID() == "" {
				t.Error("no build ID")
			}
			wantSymbol(t, f, at["fn_a"]+1, "fn_a")
			wantSymbol(t, f, at["fn_b"]+1, "fn_b")
		})
	}
}

// systemFiles are large executables that a Debian build machine has.
func systemFiles(t testing.TB) []string {
	var files []string
	for _, pattern := range []string{
		"/lib/*-linux-gnu/libc.so.6", "/lib/*-linux-gnu/ld-linux-*", "/usr/lib/*-linux-gnu/libcrypto.so.*",
		"/usr/lib/*-linux-gnu/libstdc++.so.6", "/usr/lib/gcc/*/*/cc1",
	} {
		m, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, m...)
	}
	if len(files) < 3 {
		t.Fatalf("found only %v", files)
	}
	return files
}

// nmSymbol is a line of nm -S.
type nmSymbol struct {
	value, size uint64
	name        string
}

func nmTable(t testing.TB, path string, flags ...string) []nmSymbol {
	var table []nmSymbol
	for line := range strings.Lines(run(t, "nm", append(flags, "-n", "-S", "--defined-only", path)...)) {
		f := strings.Fields(line)
		if len(f) < 3 || !strings.Contains("tTwWi", f[len(f)-2]) {
			continue
		}
		s := nmSymbol{name: strings.Split(f[len(f)-1], "@")[0]}
		s.value, _ = strconv.ParseUint(f[0], 16, 64)
		if len(f) == 4 {
			s.size, _ = strconv.ParseUint(f[1], 16, 64)
		}
		table = append(table, s)
	}
	return table
}

// TestSymbolsAgreeWithBinutils takes random addresses of code and compares
// with nm, where the answer must be one of the names of the innermost symbol
// that covers the address, and with addr2line where there is a .symtab (it
// reads no other).
func TestSymbolsAgreeWithBinutils(t *testing.T) {
	const perFile = 2000
	dir := t.TempDir()
	source, static := filepath.Join(dir, "x.cc"), filepath.Join(dir, "static")
	if err := os.WriteFile(source, []byte("#include <iostream>\n#include <regex>\nint main(int c, char **v) { std::cout << std::regex_match(v[0], std::regex(v[c - 1])); }"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "g++", "-O1", "-static", "-o", static, source)
	for _, path := range append(systemFiles(t), static) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			f := open(t, path)
			symtab := f.Section(".symtab") != nil
			var table []nmSymbol
			if symtab {
				table = nmTable(t, path)
			} else {
				table = nmTable(t, path, "-D")
			}
			text := f.Section(".text")
			if text == nil {
				t.Fatal("no .text")
			}
			rng := rand.New(rand.NewPCG(1, text.Size))
			addrs := make([]uint64, perFile)
			for i := range addrs {
				addrs[i] = text.Addr + rng.Uint64N(text.Size)
			}
			wrong, named := 0, 0
			for _, a := range addrs {
				want := innermost(table, a)
				got, ok := f.Symbol(a)
				if ok {
					named++
				}
				if !ok && len(want) == 0 || slices.Contains(want, got.Name) {
					continue
				}
				wrong++
				t.Errorf("Symbol(%#x) = %+v, nm has %v", a, got, want)
				if wrong > 10 {
					t.Fatal("and more")
				}
			}
			t.Logf("%d of %d named as nm does", named, perFile)
			if !symtab {
				return
			}
			differ := differencesToAddr2line(t, f, path, addrs, table)
			t.Logf("%d differ from addr2line", differ)
			if differ > perFile/500 {
				t.Errorf("%d of %d differ from addr2line, want at most 0.2 %%", differ, perFile)
			}
		})
	}
}

// innermost lists the names that nm gives the symbol around addr: all those
// that start where the last one that reaches addr starts.
func innermost(table []nmSymbol, addr uint64) []string {
	var names []string
	var start uint64
	for _, s := range table {
		if s.value > addr {
			break
		}
		if addr-s.value < s.size {
			if s.value != start {
				names, start = nil, s.value
			}
			names = append(names, s.name)
		}
	}
	return names
}

// differencesToAddr2line counts the addresses at which addr2line names another
// function than Symbol. It also names addresses behind the end of a function,
// as if the symbol before them covered them: those are not counted where
// Symbol has no name.
func differencesToAddr2line(t *testing.T, f *elffile.File, path string, addrs []uint64, table []nmSymbol) int {
	// A copy without the links to debug files, which addr2line would follow.
	plain := filepath.Join(t.TempDir(), "plain")
	run(t, "objcopy", "-R", ".gnu_debuglink", "-R", ".note.gnu.build-id", path, plain)
	cmd := exec.Command("addr2line", "-f", "-e", plain)
	var in bytes.Buffer
	for _, a := range addrs {
		fmt.Fprintf(&in, "%#x\n", a)
	}
	cmd.Stdin = &in
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("addr2line: %v", err)
	}
	start := map[string]uint64{}
	for _, s := range table {
		start[s.name] = s.value
	}
	differ := 0
	lines := bufio.NewScanner(bytes.NewReader(out))
	for _, a := range addrs {
		lines.Scan()
		theirs := strings.Split(lines.Text(), "@")[0]
		lines.Scan() // file and line
		ours, ok := f.Symbol(a)
		if !ok || theirs == ours.Name || start[theirs] == ours.Value {
			continue
		}
		differ++
		t.Logf("%#x: %s, addr2line says %s", a, ours.Name, theirs)
	}
	return differ
}

func TestOpenRefusesWhatIsNoFile(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	run(t, "mkfifo", fifo)
	for _, path := range []string{fifo, "/dev/zero", t.TempDir()} {
		if _, err := elffile.Open(path); err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("Open(%s) = %v, want not a regular file", path, err)
		}
	}
}

// sparse claims a huge table of sections without having the bytes.
type sparse struct{ head []byte }

func (s sparse) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(s.head)) {
		copy(p, s.head[off:])
	}
	return len(p), nil
}

func TestOpenBoundsHeaders(t *testing.T) {
	path := compile(t, "int main(void) { return 0; }")
	head, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head = head[:4096]
	shoff := uint64(1 << 20)
	binary.LittleEndian.PutUint64(head[0x28:], shoff)
	binary.LittleEndian.PutUint16(head[0x3c:], 0) // the count is in section 0
	image := make([]byte, shoff+64)
	copy(image, head)
	binary.LittleEndian.PutUint64(image[shoff+32:], 1<<28)
	if _, err := elffile.NewFile(sparse{image}, 1<<40, "sparse"); err == nil || !strings.Contains(err.Error(), "size limit") {
		t.Errorf("NewFile with 2^28 sections = %v, want over the size limit", err)
	}
}

func TestBytesAreCompact(t *testing.T) {
	for _, path := range systemFiles(t) {
		f := open(t, path)
		before := f.Bytes()
		f.Symbol(0)
		n := len(nmTable(t, path, "-D"))
		for _, name := range []string{".plt", ".plt.sec", ".plt.got"} {
			if s := f.Section(name); s != nil {
				n += int(s.Size / 8)
			}
		}
		if per := float64(f.Bytes()-before) / float64(n); per > 13 {
			t.Errorf("%s: %.1f bytes a symbol, want at most 13", path, per)
		}
	}
}

func BenchmarkBuildSymbols(b *testing.B) {
	for _, path := range systemFiles(b) {
		b.Run(filepath.Base(path), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				f := open(b, path)
				f.Symbol(0)
				b.ReportMetric(float64(f.Bytes()), "held-B")
				_ = f.Close()
			}
		})
	}
}

func BenchmarkSymbol(b *testing.B) {
	f := open(b, systemFiles(b)[0])
	text := f.Section(".text")
	rng := rand.New(rand.NewPCG(1, 2))
	b.ReportAllocs()
	for b.Loop() {
		f.Symbol(text.Addr + rng.Uint64N(text.Size))
	}
}

func FuzzOpen(f *testing.F) {
	for _, flags := range [][]string{{"-O1"}, {"-O1", "-shared", "-fPIC", "-Wl,--hash-style=both"}, {"-O1", "-s", "-no-pie"}} {
		data, err := os.ReadFile(compile(f, "#include <stdio.h>\nint f(int x) { return puts(\"x\") + x; }\nint main(int c, char **v) { return f(c); }", flags...))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
		noSections := bytes.Clone(data)
		clear(noSections[0x28:0x30])
		clear(noSections[0x3c:0x40])
		f.Add(noSections)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := elffile.NewFile(bytes.NewReader(data), int64(len(data)), "/fuzz")
		if err != nil {
			return
		}
		_ = file.BuildID()
		for _, p := range file.Segments() {
			if p.Flags&elf.PF_X != 0 {
				for a := p.Vaddr; a-p.Vaddr < min(p.Memsz, 4096); a += 7 {
					if s, ok := file.Symbol(a); ok && (s.Name == "" || a < s.Value || a-s.Value >= s.Size) {
						t.Fatalf("Symbol(%#x) = %+v", a, s)
					}
				}
			}
		}
		file.Symbol(file.Entry())
		if file.Bytes() > 1<<20+64*len(data) {
			t.Fatalf("%d bytes of input hold %d bytes", len(data), file.Bytes())
		}
		for _, root := range []string{"/nonexistent"} {
			if d, err := file.OpenDebug(root); err == nil {
				_ = d.Close()
			}
			if d, err := file.OpenAlt(root); err == nil {
				_ = d.Close()
			}
		}
	})
}
