package cfi

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

// assemble builds testdata/frames.s with gcc and returns the file's path.
func assemble(t *testing.T, args ...string) string {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skip("the assembly is for x86-64")
	}
	out := filepath.Join(t.TempDir(), "frames")
	run(t, "gcc", append([]string{"-nostdlib", "-o", out, "testdata/frames.s"}, args...)...)
	return out
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

func openIndex(t testing.TB, path string) (*elffile.File, *Index) {
	t.Helper()
	f, err := elffile.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	x, err := Open(f)
	if err != nil {
		t.Fatal(err)
	}
	return f, x
}

// ruleText is what holds at pc, as "cfa fp ra".
func ruleText(t testing.TB, x *Index, pc uint64) string {
	t.Helper()
	rows, err := x.Rows(nil, pc, pc+1)
	if err != nil {
		t.Fatal(err)
	}
	cfa, fp, ra := rows[0].Rule.Text(elf.EM_X86_64)
	if fp == "" {
		return cfa
	}
	return cfa + " " + fp + " " + ra
}

func symbolAddresses(t testing.TB, f *elffile.File) map[string]uint64 {
	t.Helper()
	symbols, err := f.ELF.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	addrs := map[string]uint64{}
	for _, s := range symbols {
		addrs[s.Name] = s.Value
	}
	return addrs
}

// TestAssembledFrames names the rule at labels of testdata/frames.s, in every
// form that the same information can take in a file.
func TestAssembledFrames(t *testing.T) {
	const signal = "signal frame, ucontext at rsp+0"
	want := map[string]string{
		"_start":                     "stop",
		"_start_end":                 "stop",
		"plain":                      "rsp+8 same c-8",
		"plain_body":                 "rsp+16 same c-8",
		"plain_ret":                  "rsp+8 same c-8",
		"realigned":                  "rsp+8 same c-8",
		"realigned_r10":              "r10+0 same c-8",
		"realigned_body":             "*(rbp-8)+0 *(rbp+0) c-8",
		"saved_sp_rax":               "rax+8 same c-8",
		"saved_sp_body":              "*(rsp+40)+8 c-16 c-8",
		"saved_by_sp_body":           "rsp+32 *(rsp+8) c-8",
		"saved_by_cfa":               "rsp+32 c+112 c-8",
		"early_return_first":         "rsp+8 same c-8",
		"early_return_second":        "rsp+16 c-16 c-8",
		"early_return_third":         "rsp+16 c-16 c-8",
		"in_registers_ra":            "unsupported",
		"in_registers_fp":            "rsp+8 lost c-8",
		"large_body":                 "rsp+131080 *(rsp+16) c-8",
		"outermost_body":             "stop",
		"indexed_body":               "unsupported",
		"restorer-1":                 signal,
		"restorer":                   signal,
		"restorer+8":                 signal,
		"restorer_end":               "none",
		"restorer_without_cfi-2":     "none",
		"restorer_without_cfi-1":     signal,
		"restorer_without_cfi":       signal,
		"restorer_without_cfi+8":     signal,
		"restorer_without_cfi_end":   "none",
		"restorer_without_cfi_end+9": "none",
	}
	check := func(t *testing.T, x *Index, addrs map[string]uint64) {
		t.Helper()
		got := map[string]string{}
		for label := range want {
			name, delta := label, uint64(0)
			if i := bytes.IndexAny([]byte(label), "+-"); i > 0 {
				name, delta = label[:i], uint64(label[i+1]-'0')
				if label[i] == '-' {
					delta = -delta
				}
			}
			addr, ok := addrs[name]
			if !ok {
				t.Fatalf("no symbol %s", name)
			}
			got[label] = ruleText(t, x, addr+delta)
		}
		if diff := cmp.Diff(got, want); diff != "" {
			t.Errorf("rules (-got +want):\n%s", diff)
		}
	}

	for _, form := range []struct {
		name string
		args []string
	}{
		{"shared, search table", []string{"-shared", "-Wl,-e,_start", "-Wl,-Bsymbolic"}},
		{"static", []string{"-static"}},
		{"no search table", []string{"-static", "-Wl,--no-eh-frame-hdr"}},
	} {
		t.Run(form.name, func(t *testing.T) {
			path := assemble(t, form.args...)
			f, x := openIndex(t, path)
			check(t, x, symbolAddresses(t, f))
			c := comparison{reasons: map[string]int{}}
			compareFile(t, &c, path)
			for _, d := range c.differences {
				t.Error(d)
			}
			if c.rows == 0 {
				t.Error("nothing was compared with readelf")
			}
		})
	}
	t.Run("no section headers", func(t *testing.T) {
		path := assemble(t, "-shared", "-Wl,-e,_start", "-Wl,-Bsymbolic")
		f, _ := openIndex(t, path)
		addrs := symbolAddresses(t, f)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		binary.LittleEndian.PutUint64(data[40:], 0) // e_shoff
		clear(data[60:64])                          // e_shnum, e_shstrndx
		_, x, err := openImage(t, data)
		if err != nil {
			t.Fatal(err)
		}
		check(t, x, addrs)
	})
	// Assembled with .debug_frame only, whose CIE cannot say "signal frame".
	t.Run("compressed .debug_frame", func(t *testing.T) {
		path := debugFrameOnly(t, "-Wl,--compress-debug-sections=zlib")
		f, x := openIndex(t, path)
		if f.Section(".debug_frame").Flags&elf.SHF_COMPRESSED == 0 {
			t.Fatal(".debug_frame is not compressed")
		}
		addrs := symbolAddresses(t, f)
		check(t, x, addrs)
	})
	t.Run("separate debug file", func(t *testing.T) {
		path := debugFrameOnly(t)
		f, _ := openIndex(t, path)
		addrs := symbolAddresses(t, f)
		debug := path + ".debug"
		run(t, "objcopy", "--only-keep-debug", path, debug)
		run(t, "strip", path)
		stripped, err := elffile.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer stripped.Close()
		if _, err := Open(stripped); !errors.Is(err, ErrNoCFI) {
			t.Errorf("without the debug file: got error %v, want ErrNoCFI", err)
		}
		d, err := elffile.Open(debug)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		x, err := Options{Debug: d}.Open(stripped)
		if err != nil {
			t.Fatal(err)
		}
		check(t, x, addrs)
	})
}

func debugFrameOnly(t *testing.T, args ...string) string {
	t.Helper()
	source, err := os.ReadFile("testdata/frames.s")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "frames.s")
	if err := os.WriteFile(path, append([]byte(".cfi_sections .debug_frame\n"), source...), 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "frames")
	run(t, "gcc", append([]string{"-nostdlib", "-static", "-o", out, path}, args...)...)
	return out
}

// TestCompilerFrames compares what gcc makes of a function with an
// over-aligned local, and of a shared library's linkage table, with readelf.
func TestCompilerFrames(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "a.c")
	if err := os.WriteFile(source, []byte(`
void sink(void *);
void aligned(int n)
{
	char a[64] __attribute__((aligned(128)));
	char b[n];
	sink(a);
	sink(b);
}
int calls(int n) { sink(&n); sink(&n); return n; }
`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"-O2"}, {"-O0"}, {"-O2", "-fcf-protection=full"}, {"-O2", "-fno-omit-frame-pointer", "-fno-plt"}} {
		out := filepath.Join(dir, "a.so")
		run(t, "gcc", append(args, "-shared", "-fPIC", "-nostdlib", "-o", out, source)...)
		c := comparison{reasons: map[string]int{}}
		compareFile(t, &c, out)
		for _, d := range c.differences {
			t.Errorf("%q: %s", args, d)
		}
		if c.rows == 0 {
			t.Errorf("%q: nothing was compared", args)
		}
	}
}
