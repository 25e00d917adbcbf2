package symbolize

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
)

const someSymbols = `0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81000000 T _text
ffffffff81000000 t local_start
ffffffff81000100 t __pfx_do_work
ffffffff81000110 T do_work
ffffffff81000110 T __do_work
ffffffff81000110 t aaa
ffffffff81000200 t helper.isra.0
ffffffff81000300 W weak_one
ffffffff81000310 t b_same
ffffffff81000310 t a_same
ffffffff81000320 t helper.constprop.3.cold
ffffffff81000400 T last_text
not a line
zzzzzzzzzzzzzzzz T neither
ffffffff81000500 T
ffffffff82000000 D some_data
ffffffff82000100 d more_data
ffffffffc0201000 t second_fn	[second]
ffffffffc0201800 d second_data	[second]
ffffffffc0100000 t first_fn	[first]
ffffffffc0100010 t _RNvCs1234_7rustmod4init	[first]
ffff800012340000 t bpf_prog_6deef7357e7b4530_count	[bpf]
`

func kernelFrom(t testing.TB, symbols string) (*Kernel, func(symbols, modules string), *time.Time) {
	t.Helper()
	dir := t.TempDir()
	now := time.Unix(1_700_000_000, 0)
	write := func(symbols, modules string) {
		for name, text := range map[string]string{"kallsyms": symbols, "modules": modules} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(symbols, "first 16384 0 - Live 0xffffffffc0100000\n")
	k, err := loadKernel(filepath.Join(dir, "kallsyms"), filepath.Join(dir, "modules"), func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	return k, write, &now
}

func TestKernelLookup(t *testing.T) {
	k, _, _ := kernelFrom(t, someSymbols)
	for _, c := range []struct {
		rule string
		addr uint64
		want string
	}{
		{"before everything", 0x1000, ""},
		{"global over local, then by length", 0xffffffff81000004, "_text+0x4"},
		{"padding belongs to the function before", 0xffffffff81000108, "_text+0x108"},
		{"fewest underscores", 0xffffffff81000110, "do_work+0x0"},
		{"a clone keeps its base name", 0xffffffff81000234, "helper+0x34"},
		{"weak", 0xffffffff81000301, "weak_one+0x1"},
		{"same rank: by spelling", 0xffffffff81000311, "a_same+0x1"},
		{"several suffixes", 0xffffffff81000321, "helper+0x1"},
		{"at the end of text", 0xffffffff81000410, "last_text+0x10"},
		{"far behind the last", 0xffffffff81100000, ""},
		{"data is no code", 0xffffffff82000001, ""},
		{"a module", 0xffffffffc0201001, "second_fn+0x1 [second]"},
		{"a module's data", 0xffffffffc0201801, ""},
		{"modules are not sorted", 0xffffffffc0100004, "first_fn+0x4 [first]"},
		{"Rust in the kernel", 0xffffffffc0100010, "rustmod::init+0x0 [first]"},
		{"a BPF program, 4 GiB away", 0xffff800012340020, "bpf_prog_6deef7357e7b4530_count+0x20 [bpf]"},
		{"the top", ^uint64(0), ""},
	} {
		t.Run(c.rule, func(t *testing.T) {
			name, module, offset, ok := k.Lookup(c.addr)
			got := ""
			if ok {
				got = strings.TrimSpace(fmt.Sprintf("%s+%#x %s", name, offset, module))
			}
			if got != c.want {
				t.Errorf("Lookup(%#x) = %q, want %q", c.addr, got, c.want)
			}
		})
	}
}

func TestKernelHidden(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kallsyms")
	if err := os.WriteFile(path, []byte("0000000000000000 T _text\n0000000000000000 t x\t[m]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := loadKernel(path, "/nonexistent", time.Now)
	var fault *profiler.Fault
	if !errors.Is(err, ErrKernelHidden) || !errors.As(err, &fault) || !strings.Contains(fault.Fix, "kptr_restrict") {
		t.Errorf("error %v, want ErrKernelHidden with a fix", err)
	}
	if _, err := loadKernel(path+"x", "/nonexistent", time.Now); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, want not exist", err)
	}
}

func TestKernelRefresh(t *testing.T) {
	const base = "first 16384 0 - Live 0xffffffffc0100000\n"
	const more = "second 16384 0 - Live 0xffffffffc0300000\n"
	const addr = 0xffffffffc0100004
	name := func(k *Kernel, addr uint64) string {
		n, _, _, _ := k.Lookup(addr)
		return n
	}
	t.Run("modules changed", func(t *testing.T) {
		k, write, now := kernelFrom(t, someSymbols)
		write(strings.ReplaceAll(someSymbols, "first_fn", "renamed"), more+base)
		if got := name(k, addr); got != "first_fn" {
			t.Errorf("at once: %q, want first_fn: /proc/modules was just read", got)
		}
		*now = now.Add(modulesInterval)
		if got := name(k, addr); got != "renamed" {
			t.Errorf("later: %q, want renamed", got)
		}
	})
	t.Run("a reference count is no change", func(t *testing.T) {
		k, write, now := kernelFrom(t, someSymbols)
		write(strings.ReplaceAll(someSymbols, "first_fn", "renamed"), strings.Replace(base, " 0 -", " 7 -", 1))
		*now = now.Add(modulesInterval)
		if got := name(k, addr); got != "first_fn" {
			t.Errorf("%q, want first_fn", got)
		}
	})
	t.Run("an unknown address, less and less often", func(t *testing.T) {
		k, write, now := kernelFrom(t, someSymbols)
		const unknown = 0xffffffffd0000000
		*now = now.Add(reloadInterval)
		if got := name(k, unknown); got != "" {
			t.Fatalf("%q", got)
		}
		write(someSymbols+"ffffffffd0000000 t bpf_prog_1_new\t[bpf]\n", base)
		*now = now.Add(reloadInterval)
		if got := name(k, unknown); got != "" {
			t.Errorf("%q: read again though the last time was for nothing", got)
		}
		*now = now.Add(reloadInterval)
		if got := name(k, unknown); got != "bpf_prog_1_new" {
			t.Errorf("%q, want bpf_prog_1_new", got)
		}
	})
	t.Run("what is known stays when reading fails", func(t *testing.T) {
		k, write, now := kernelFrom(t, someSymbols)
		write("0000000000000000 T _text\n", "")
		*now = now.Add(reloadInterval)
		if got := name(k, addr); got != "first_fn" {
			t.Errorf("%q, want first_fn", got)
		}
	})
}

// TestKernelOfThisMachine looks every function of /proc/kallsyms up.
func TestKernelOfThisMachine(t *testing.T) {
	k, err := LoadKernel()
	if errors.Is(err, ErrKernelHidden) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if n := k.Bytes(); n > 8<<20 {
		t.Errorf("%d symbols hold %d bytes", len(k.table.Load().offs), n)
	}
	data, err := os.ReadFile("/proc/kallsyms")
	if err != nil {
		t.Fatal(err)
	}
	lines, wrong := 0, 0
	for line := range strings.Lines(string(data)) {
		addr, kind, name, ok := kallsymsLine([]byte(line))
		if !ok || !strings.ContainsRune("tTwW", rune(kind)) || generated(name) || strings.HasPrefix(string(name), "bpf_") {
			continue // BPF programs come and go, perhaps between the two readings
		}
		lines++
		if _, _, offset, ok := k.Lookup(addr); !ok || offset != 0 {
			if wrong++; wrong < 10 {
				t.Errorf("Lookup(%#x) has offset %d, found %v, want the start of %s", addr, offset, ok, name)
			}
		}
	}
	if lines < 10_000 {
		t.Errorf("only %d functions in /proc/kallsyms", lines)
	}
	t.Logf("%d functions, %d table rows, %d bytes", lines, len(k.table.Load().offs), k.Bytes())
}

func BenchmarkLoadKernel(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		k, err := LoadKernel()
		if err != nil {
			b.Skip(err)
		}
		b.ReportMetric(float64(k.Bytes()), "held-B")
	}
}

func BenchmarkParseKallsyms(b *testing.B) {
	data, err := os.ReadFile("/proc/kallsyms")
	if err != nil {
		b.Skip(err)
	}
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := parseKallsyms(strings.NewReader(string(data))); err != nil {
			b.Skip(err)
		}
	}
}

func FuzzParseKallsyms(f *testing.F) {
	f.Add(someSymbols)
	f.Add("ffffffff81000000 T x")
	f.Add("1 t \n2 t a\n")
	f.Fuzz(func(t *testing.T, text string) {
		table, err := parseKallsyms(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, addr := range []uint64{0, 1, 0xffffffff81000004, ^uint64(0)} {
			if name, module, _, ok := table.find(addr); ok && strings.ContainsAny(name+module, "\n") {
				t.Fatalf("find(%#x) = %q %q", addr, name, module)
			}
		}
	})
}
