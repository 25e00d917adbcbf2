package dwarf

import (
	"bytes"
	stddwarf "debug/dwarf"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

// tool finds a program of the toolchain, or skips the test.
func tool(t testing.TB, names ...string) string {
	t.Helper()
	for _, n := range names {
		if p, err := exec.LookPath(n); err == nil {
			return p
		}
	}
	t.Skipf("needs %s", strings.Join(names, " or "))
	return ""
}

func run(t testing.TB, dir, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// source copies testdata, so that the debug information has the paths of a
// usual project: a compilation folder and names relative to it.
func source(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// oracle asks addr2line, or llvm-symbolizer in its style, for many addresses.
func oracle(t testing.TB, args []string, addrs []uint64) [][]Call {
	t.Helper()
	var in bytes.Buffer
	for _, a := range addrs {
		fmt.Fprintf(&in, "%#x\n", a)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = &in
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", args[0], err)
	}
	var all [][]Call
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	for i := 0; i < len(lines); {
		if lines[i] == "" {
			i++
			continue
		}
		if !strings.HasPrefix(lines[i], "0x") {
			t.Fatalf("%s: unexpected line %q", args[0], lines[i])
		}
		var calls []Call
		for i++; i+1 < len(lines) && lines[i] != "" && !strings.HasPrefix(lines[i], "0x"); i += 2 {
			c := Call{Linkage: lines[i]}
			at, _, _ := strings.Cut(lines[i+1], " (discriminator")
			colon := strings.LastIndexByte(at, ':')
			c.File = at[:colon]
			c.Line, _ = strconv.Atoi(at[colon+1:]) // "?" is 0
			if c.File == "??" {
				c.File = ""
			} else {
				c.File = path.Clean(c.File)
			}
			if c.Linkage == "??" {
				c.Linkage = ""
			}
			calls = append(calls, c)
		}
		all = append(all, calls)
	}
	if len(all) != len(addrs) {
		t.Fatalf("%s: %d answers for %d addresses", args[0], len(all), len(addrs))
	}
	return all
}

func sameCalls(got, want []Call) bool {
	if len(want) == 1 && want[0].File == "" && want[0].Line == 0 && len(got) <= 1 {
		// The tools fall back on symbols for the name.
		return len(got) == 0 || got[0].Line == 0 && got[0].Linkage == "" && got[0].Function == "" ||
			sameName(got[0], want[0]) && got[0].Line == 0
	}
	if len(got) != len(want) {
		return false
	}
	for i := range got {
		if !sameName(got[i], want[i]) || got[i].Line != want[i].Line {
			return false
		}
		// Without a line the tools print "??" for the file, or the file.
		if got[i].File != want[i].File && (got[i].Line != 0 || want[i].File != "" && got[i].File != "") {
			return false
		}
	}
	return true
}

func sameName(got, want Call) bool {
	if got.Linkage != "" && want.Linkage == got.Linkage {
		return true
	}
	if got.Linkage == "" && got.Function == "" {
		return true // without a subprogram the tools take the symbol
	}
	return want.Linkage == got.Function || strings.HasSuffix(got.Function, "::"+want.Linkage)
}

// textAddresses are the addresses of every line table row, as the standard
// library reads them, and random ones from the code.
func textAddresses(t testing.TB, file string, random, limit int) []uint64 {
	t.Helper()
	ef, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer ef.Close()
	data, err := ef.DWARF()
	if err != nil {
		t.Logf("standard library: %v", err)
		data = nil
	}
	rng := rand.New(rand.NewPCG(1, 2))
	inText := func(a uint64) bool {
		for _, s := range ef.Sections {
			if s.Flags&elf.SHF_EXECINSTR != 0 && a >= s.Addr && a < s.Addr+s.Size {
				return true
			}
		}
		return false
	}
	var rows []uint64
	if data != nil {
		r := data.Reader()
		for {
			e, err := r.Next()
			if err != nil || e == nil {
				break
			}
			r.SkipChildren()
			if lr, err := data.LineReader(e); err == nil && lr != nil {
				var le stddwarf.LineEntry
				for {
					if err := lr.Next(&le); err != nil {
						if !errors.Is(err, io.EOF) {
							t.Logf("standard library: %v", err)
						}
						break
					}
					if inText(le.Address) && !le.EndSequence {
						rows = append(rows, le.Address)
					}
				}
			}
		}
		slices.Sort(rows)
		rows = slices.Compact(rows)
		if len(rows) > limit {
			rng.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
			rows = rows[:limit]
		}
	}
	text := ef.Section(".text")
	for range random {
		rows = append(rows, text.Addr+rng.Uint64N(text.Size))
	}
	return rows
}

type agreement struct {
	addrs, binutils, llvm, either, named, inlined int
	hasLLVM                                       bool
}

func (a agreement) String() string {
	pct := func(n int) string { return fmt.Sprintf("%.2f %%", 100*float64(n)/float64(a.addrs)) }
	return fmt.Sprintf("%d addresses: as addr2line %s, as llvm-symbolizer %s, as one of them %s; %d named, %d with inlined calls",
		a.addrs, pct(a.binutils), pct(a.llvm), pct(a.either), a.named, a.inlined)
}

// compare looks all addresses up and compares with the oracles. file is what
// the tools read: they find alternative files and separate files themselves.
func compare(t testing.TB, d *Data, file string, addrs []uint64) agreement {
	t.Helper()
	a := agreement{addrs: len(addrs)}
	binutils := oracle(t, []string{tool(t, "addr2line"), "-a", "-i", "-f", "-e", file}, addrs)
	var llvm [][]Call
	if p, err := exec.LookPath("llvm-symbolizer-19"); err == nil {
		llvm = oracle(t, []string{p, "-a", "-i", "-f=linkage", "--no-demangle", "--output-style=GNU", "-e", file}, addrs)
	}
	a.hasLLVM = llvm != nil
	shown := 0
	for i, addr := range addrs {
		got, err := d.Lookup(nil, addr)
		if err != nil && !errors.Is(err, ErrNoInfo) {
			t.Fatalf("Lookup(%#x): %v", addr, err)
		}
		if len(got) > 0 && (got[0].Function != "" || got[0].Linkage != "") {
			a.named++
		}
		if len(got) > 1 {
			a.inlined++
		}
		b := sameCalls(got, binutils[i])
		l := llvm != nil && sameCalls(got, llvm[i])
		if b {
			a.binutils++
		}
		if l {
			a.llvm++
		}
		if b || l {
			a.either++
		}
		if show := os.Getenv("DWARF_SHOW"); shown < 12 && (show == "neither" && !b && !l || show == "llvm" && !l || show == "binutils" && !b) {
			shown++
			t.Logf("%#x\n got %+v\n bin %+v", addr, got, binutils[i])
			if llvm != nil {
				t.Logf(" llvm %+v", llvm[i])
			}
		}
	}
	return a
}

func open(t testing.TB, file, alt string) *Data {
	t.Helper()
	f, err := elffile.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	var af *elffile.File
	if alt != "" {
		if af, err = elffile.Open(alt); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = af.Close() })
	}
	d, err := Options{}.Open(f, af)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// TestLookupAgreesWithAddr2line builds programs in every shape of DWARF that
// the compilers make and compares with binutils, and llvm where installed.
func TestLookupAgreesWithAddr2line(t *testing.T) {
	cc := func(compiler string, flags ...string) func(t *testing.T, dir, out string) {
		return func(t *testing.T, dir, out string) {
			run(t, dir, tool(t, compiler), slices.Concat([]string{"-O2", "-g"}, flags, []string{"calls.c", "tree.c", "-o", out})...)
		}
	}
	cxx := func(compiler string, flags ...string) func(t *testing.T, dir, out string) {
		return func(t *testing.T, dir, out string) {
			run(t, dir, tool(t, compiler), slices.Concat([]string{"-O2", "-g", "-std=c++17"}, flags, []string{"shapes.cc", "-o", out})...)
		}
	}
	rust := func(flags ...string) func(t *testing.T, dir, out string) {
		return func(t *testing.T, dir, out string) {
			run(t, dir, tool(t, "rustc"), slices.Concat(flags, []string{"-g", "sorts.rs", "-o", out})...)
		}
	}
	const clang, clangxx = "clang-19", "clang++-19"
	gc := []string{"-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections"}
	// What binutils 2.40 gets wrong, by comparison with llvm-symbolizer.
	const (
		wide       = "binutils reads 64-bit line tables wrongly"
		file0      = "binutils mixes up files 0 and 1 of DWARF 5 line tables"
		rnglistx   = "binutils loses inlined calls that start where their caller starts, of DWARF 5 range lists by index"
		typeUnits5 = "binutils stops at DWARF 5 type units"
	)
	for _, tc := range []struct {
		name     string
		build    func(t *testing.T, dir, out string)
		binutils string // why addr2line is no measure
	}{
		{"gcc DWARF 5", cc("gcc", "-gdwarf-5"), ""},
		{"gcc DWARF 4", cc("gcc", "-gdwarf-4"), ""},
		{"gcc DWARF 3", cc("gcc", "-gdwarf-3", "-gstrict-dwarf"), ""},
		{"gcc DWARF 2", cc("gcc", "-gdwarf-2", "-gstrict-dwarf"), "binutils finds no cold parts of DWARF 2 functions"},
		{"gcc 64-bit DWARF", cc("gcc", "-gdwarf64"), wide},
		{"gcc not optimised", cc("gcc", "-O0"), file0},
		{"gcc relative folder", func(t *testing.T, dir, out string) {
			cc("gcc", "-gdwarf-5", "-fdebug-prefix-map="+dir+"=src")(t, dir, out)
		}, "binutils joins a relative folder with itself"},
		{"gcc zlib", cc("gcc", "-gz=zlib"), ""},
		{"gcc zlib-gnu", cc("gcc", "-gdwarf-4", "-gz=zlib-gnu"), ""},
		{"gcc LTO", cc("gcc", "-flto", "-flto-partition=one"), file0},
		{"gcc gc-sections", cc("gcc", gc...), ""},
		{"gcc type units 4", cc("gcc", "-gdwarf-4", "-fdebug-types-section"), ""},
		{"clang DWARF 5", cc(clang, "-gdwarf-5"), rnglistx},
		{"clang DWARF 4", cc(clang, "-gdwarf-4"), ""},
		{"clang aranges", cc(clang, "-gdwarf-aranges"), rnglistx},
		{"clang gc-sections", cc(clang, gc...), rnglistx},
		{"g++ DWARF 5", cxx("g++", "-gdwarf-5"), ""},
		{"g++ DWARF 4", cxx("g++", "-gdwarf-4"), ""},
		{"g++ type units 5", cxx("g++", "-fdebug-types-section"), typeUnits5},
		{"g++ type units 4", cxx("g++", "-gdwarf-4", "-fdebug-types-section"), ""},
		{"g++ gc-sections", cxx("g++", gc...), ""},
		{"g++ LTO", cxx("g++", "-flto"), file0},
		{"clang++ DWARF 5", cxx(clangxx, "-gdwarf-5"), rnglistx},
		{"clang++ DWARF 4", cxx(clangxx, "-gdwarf-4"), ""},
		{"clang++ type units", cxx(clangxx, "-fdebug-types-section"), typeUnits5},
		{"rust optimised", rust("-O"), ""},
		{"rust debug", rust(), ""},
		{"rust LTO", rust("-O", "-C", "lto=fat"), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if testing.Short() && !strings.HasSuffix(tc.name, "DWARF 5") && strings.ContainsAny(tc.name, "+r") && !strings.HasPrefix(tc.name, "gcc") {
				t.Skip("compiles C++ or Rust for seconds")
			}
			dir := source(t)
			out := filepath.Join(dir, "out")
			tc.build(t, dir, out)
			// With symbols the tools would name functions after them.
			run(t, dir, tool(t, "objcopy"), "--wildcard", "--strip-symbol=*", out)
			d := open(t, out, "")
			a := compare(t, d, out, textAddresses(t, out, 1000, 2000))
			t.Logf("%v; %d bytes held", a, d.Bytes())
			const want = 0.995
			share := func(n int) float64 { return float64(n) / float64(a.addrs) }
			switch {
			case a.hasLLVM && share(a.either) < want:
				t.Errorf("%v: want %.1f %%", a, 100*want)
			case tc.binutils == "" && share(a.binutils) < want:
				t.Errorf("%v: want %.1f %% as addr2line", a, 100*want)
			case tc.binutils != "":
				t.Logf("addr2line is not the measure: %s", tc.binutils)
			}
			if a.named < a.addrs/2 {
				t.Errorf("%v: only %d named", a, a.named)
			}
			// DWARF that is not optimised has none in C.
			if a.inlined < a.addrs/4 && tc.name != "gcc not optimised" {
				t.Errorf("%v: only %d with inlined calls", a, a.inlined)
			}
		})
	}
}

// lookups are the answers for all addresses; nil where nothing is known.
func lookups(t testing.TB, d *Data, addrs []uint64) [][]Call {
	t.Helper()
	all := make([][]Call, len(addrs))
	for i, a := range addrs {
		calls, err := d.Lookup(nil, a)
		if err != nil && !errors.Is(err, ErrNoInfo) {
			t.Fatalf("Lookup(%#x): %v", a, err)
		}
		all[i] = calls
	}
	return all
}

// TestLookupSameAfterPostProcessing says that what packagers do to debug
// information changes no answer.
func TestLookupSameAfterPostProcessing(t *testing.T) {
	for _, build := range []struct {
		name, compiler, source string
		flags                  []string
	}{
		{"C DWARF 5", "gcc", "calls.c tree.c", nil},
		{"C++ DWARF 4", "g++", "shapes.cc", []string{"-gdwarf-4"}},
		{"C++ DWARF 5", "g++", "shapes.cc", nil},
		{"C++ type units", "g++", "shapes.cc", []string{"-gdwarf-4", "-fdebug-types-section"}},
	} {
		t.Run(build.name, func(t *testing.T) {
			dir := source(t)
			whole := filepath.Join(dir, "whole")
			run(t, dir, tool(t, build.compiler), slices.Concat([]string{"-O2", "-g", "-o", whole}, build.flags, strings.Fields(build.source))...)
			addrs := textAddresses(t, whole, 1000, 2000)
			want := lookups(t, open(t, whole, ""), addrs)
			for _, process := range []struct {
				name string
				do   func(t *testing.T, dir, out string) (file, alt string)
			}{
				{"stripped with a separate debug file", func(t *testing.T, dir, out string) (string, string) {
					run(t, dir, tool(t, "objcopy"), "--only-keep-debug", out, out+".debug")
					return out + ".debug", ""
				}},
				{"compressed with zstd", func(t *testing.T, dir, out string) (string, string) {
					cmd := exec.Command(tool(t, "objcopy"), "--compress-debug-sections=zstd", out)
					if msg, err := cmd.CombinedOutput(); err != nil {
						t.Skipf("objcopy cannot: %s", msg)
					}
					return out, ""
				}},
				{"compressed with zlib", func(t *testing.T, dir, out string) (string, string) {
					run(t, dir, tool(t, "objcopy"), "--compress-debug-sections=zlib-gabi", out)
					return out, ""
				}},
				{"dwz", func(t *testing.T, dir, out string) (string, string) {
					run(t, dir, tool(t, "dwz"), out)
					return out, ""
				}},
				{"dwz with an alternative file", func(t *testing.T, dir, out string) (string, string) {
					run(t, dir, "cp", out, out+"2")
					run(t, dir, tool(t, "dwz"), "-m", out+".alt", out, out+"2")
					return out, out + ".alt"
				}},
				{"dwz with a supplementary file", func(t *testing.T, dir, out string) (string, string) {
					run(t, dir, "cp", out, out+"2")
					run(t, dir, tool(t, "dwz"), "--dwarf-5", "-m", out+".alt", out, out+"2")
					return out, out + ".alt"
				}},
			} {
				t.Run(process.name, func(t *testing.T) {
					dir := t.TempDir()
					out := filepath.Join(dir, "out")
					run(t, dir, "cp", whole, out)
					file, alt := process.do(t, dir, out)
					got := lookups(t, open(t, file, alt), addrs)
					differ := 0
					for i := range addrs {
						if !slices.Equal(got[i], want[i]) {
							if differ++; differ <= 3 {
								t.Errorf("%#x: got %+v\nwant %+v", addrs[i], got[i], want[i])
							}
						}
					}
					if differ > 0 {
						t.Errorf("%d of %d addresses differ", differ, len(addrs))
					}
					if alt == "" {
						return
					}
					poorer := 0
					for i, calls := range lookups(t, open(t, file, ""), addrs) {
						if !slices.Equal(calls, want[i]) {
							poorer++
						}
					}
					if poorer == 0 {
						t.Error("the alternative file was not needed")
					}
				})
			}
		})
	}
}

// TestLookupOfSkeletonUnits says that without the .dwo files lines remain, and
// clang's copy of the inlined calls.
func TestLookupOfSkeletonUnits(t *testing.T) {
	for _, tc := range []struct {
		compiler, version string
		inlined           bool
	}{
		{"gcc", "-gdwarf-5", false},
		{"gcc", "-gdwarf-4", false},
		{"clang-19", "-gdwarf-5", true},
		{"clang-19", "-gdwarf-4", true},
	} {
		t.Run(tc.compiler+tc.version, func(t *testing.T) {
			dir := source(t)
			out := filepath.Join(dir, "out")
			args := []string{"-O2", "-g", tc.version, "calls.c", "tree.c", "-o"}
			run(t, dir, tool(t, tc.compiler), append(args, out)...)
			addrs := textAddresses(t, out, 1000, 2000)
			want := lookups(t, open(t, out, ""), addrs)
			args = append(args, out+"2", "-gsplit-dwarf")
			if tc.inlined {
				args = append(args, "-fsplit-dwarf-inlining")
			}
			run(t, dir, tool(t, tc.compiler), args...)
			same, inlined, named := 0, 0, 0
			for i, got := range lookups(t, open(t, out+"2", ""), addrs) {
				var line, whole Call
				if len(got) > 0 {
					line = got[0]
				}
				if len(want[i]) > 0 {
					whole = want[i][0]
				}
				if line.Line == whole.Line && line.File == whole.File {
					same++
				}
				if len(got) > 1 {
					inlined++
				}
				if line.Function != "" {
					named++
				}
			}
			t.Logf("%d addresses, %d lines as in whole DWARF, %d named, %d with inlined calls", len(addrs), same, named, inlined)
			if float64(same) < 0.995*float64(len(addrs)) {
				t.Errorf("%d of %d lines as in whole DWARF", same, len(addrs))
			}
			if tc.inlined != (inlined > 0) {
				t.Errorf("%d addresses with inlined calls", inlined)
			}
		})
	}
}

// TestLookupInFile compares in any file: KALYPSO_DWARF_FILE, and its
// alternative file in KALYPSO_DWARF_ALT.
func TestLookupInFile(t *testing.T) {
	file := os.Getenv("KALYPSO_DWARF_FILE")
	if file == "" {
		t.Skip("KALYPSO_DWARF_FILE names no file")
	}
	f, err := elffile.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text := f.Section(".text")
	rng := rand.New(rand.NewPCG(1, 2))
	addrs := make([]uint64, 2000)
	for i := range addrs {
		addrs[i] = text.Addr + rng.Uint64N(text.Size)
	}
	d := open(t, file, os.Getenv("KALYPSO_DWARF_ALT"))
	start := time.Now()
	calls, err := d.Lookup(nil, addrs[0])
	t.Logf("first look-up in %v, %d bytes held: %+v, %v", time.Since(start), d.Bytes(), calls, err)
	start = time.Now()
	slowest := time.Duration(0)
	for _, a := range addrs[1:] {
		one := time.Now()
		_, _ = d.Lookup(nil, a)
		slowest = max(slowest, time.Since(one))
	}
	t.Logf("then %v each, the slowest %v, %d bytes held, %+v", time.Since(start)/time.Duration(len(addrs)-1), slowest, d.Bytes(), d.Stats())
	t.Log(compare(t, d, file, addrs))
}

// built makes the C++ program for benchmarks.
func built(b *testing.B) (file string, addrs []uint64) {
	dir := source(b)
	file = filepath.Join(dir, "out")
	run(b, dir, tool(b, "g++"), "-O2", "-g", "-std=c++17", "shapes.cc", "-o", file)
	return file, textAddresses(b, file, 1000, 1000)
}

// BenchmarkFirstLookup opens a file with one unit of 300 KiB and names one
// address: scan of the unit headers, the unit's functions and its line table.
func BenchmarkFirstLookup(b *testing.B) {
	file, addrs := built(b)
	f, err := elffile.Open(file)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	held := 0
	b.ReportAllocs()
	for b.Loop() {
		d, err := Options{}.Open(f, nil)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := d.Lookup(nil, addrs[len(addrs)/2]); err != nil && !errors.Is(err, ErrNoInfo) {
			b.Fatal(err)
		}
		held = d.Bytes()
	}
	b.ReportMetric(float64(held), "held-bytes")
	b.ReportMetric(float64(f.Section(".debug_info").Size), "info-bytes")
}

// BenchmarkLookup names addresses of units and functions that were met before.
func BenchmarkLookup(b *testing.B) {
	file, addrs := built(b)
	d := open(b, file, "")
	lookups(b, d, addrs)
	var calls []Call
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		calls, _ = d.Lookup(calls[:0], addrs[i%len(addrs)])
		i++
	}
	b.ReportMetric(float64(d.Bytes()), "held-bytes")
}
