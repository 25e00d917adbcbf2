package demangle_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/kalypso-dev/kalypso/profiler/demangle"
)

func TestName(t *testing.T) {
	for _, c := range []struct{ rule, symbol, want string }{
		{"not mangled", "__libc_start_main", "__libc_start_main"},
		{"no parameter list", "_ZN3app5Cache3getERKSsi", "app::Cache::get"},
		{"no return type", "_Z3fooIiEvT_", "foo<int>"},
		{"template arguments stay", "_ZNSt6vectorIiSaIiEE9push_backEOi", "std::vector<int, std::allocator<int>>::push_back"},
		{"a function type as template argument stays", "_ZNSt8functionIFviEEclEi", "std::function<void (int)>::operator()"},
		{"strings are short", "_ZNKSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEE4sizeEv", "std::string::size"},
		{"brackets close together", "_ZNSt6vectorISt4pairINSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEEiESaIS7_EE5clearEv", "std::vector<std::pair<std::string, int>, std::allocator<std::pair<std::string, int>>>::clear"},
		{"operators", "_ZNK3FooltERKS_", "Foo::operator<"},
		{"unnamed namespace", "_ZN12_GLOBAL__N_13barEv", "(anonymous namespace)::bar"},
		{"lambda without its function's parameters", "_ZZ4mainENKUlvE_clEv", "main::{lambda()#1}::operator()"},
		{"Rust legacy, hash dropped", "_ZN4core3fmt5write17h0123456789abcdefE", "core::fmt::write"},
		{"Rust legacy, closure", "_ZN3app4main28_$u7b$$u7b$closure$u7d$$u7d$17h0123456789abcdefE", "app::main::{{closure}}"},
		{"Rust v0, crate hash dropped", "_RNvCs1234_7mycrate3foo", "mycrate::foo"},
		{"Rust v0, generic", "_RINvNtC4core3ptr13drop_in_placeNtC3foo3BarEB4_", "core::ptr::drop_in_place::<foo::Bar>"},
		{"cold part", "foo.cold", "foo"},
		{"several suffixes", "foo.part.0.isra.1.cold", "foo"},
		{"suffix of a mangled name", "_ZN1a1bEv.constprop.0", "a::b"},
		{"LLVM's suffix", "_ZN1a1bEv.llvm.1234567890", "a::b"},
		{"a nested function's number stays", "callback.1234", "callback.1234"},
		{"an unknown suffix stays", "my.object.method", "my.object.method"},
		{"a name that is only a suffix stays", ".cold", ".cold"},
		{"PLT stub", "_ZN1a1bEv@plt", "a::b@plt"},
		{"broken mangling", "_ZN5brokenEv", "_ZN5brokenEv"},
		{"control characters", "a\x1b[31mb\n", "a�[31mb�"},
		{"not UTF-8", "a\xffb", "a�b"},
		{"empty", "", ""},
	} {
		t.Run(c.rule, func(t *testing.T) {
			if got := demangle.Name(c.symbol); got != c.want {
				t.Errorf("Name(%q) = %q, want %q", c.symbol, got, c.want)
			}
		})
	}
}

// nested makes a mangled name that doubles with each level.
func nested(levels int) string {
	var b strings.Builder
	b.WriteString("_Z1fI1AIiiE")
	for i := range levels {
		b.WriteString("S" + []string{"0_", "1_", "2_", "3_", "4_"}[i%5])
	}
	return b.String() + "Evv"
}

func TestHostileNamesAreBounded(t *testing.T) {
	var explode strings.Builder
	explode.WriteString("_Z1fI1AIiE")
	for i := range 30 {
		ref := "S" + strings.ToUpper(string("0123456789abcdefghijklmnopqrstuvwxyz"[i])) + "_"
		explode.WriteString("1BI" + ref + ref + "E")
	}
	explode.WriteString("Evv")
	for name, symbol := range map[string]string{
		"long and plain": strings.Repeat("x", 1<<20), "long and mangled": "_ZN" + strings.Repeat("1a", 1<<19) + "Ev",
		"within the limit": "_ZN" + strings.Repeat("3abc", 3000) + "Ev", "substitutions": explode.String(),
		"repeated": nested(400), "multibyte": strings.Repeat("é", 4000), "deep": "_Z1f" + strings.Repeat("P", 15000) + "i",
		"rust": "_R" + strings.Repeat("NvC1a", 3000), "templates": "_Z1f" + strings.Repeat("I1A", 5000),
		"dots": strings.Repeat(".cold", 200_000),
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			got := demangle.Name(symbol)
			if d := time.Since(start); d > 2*time.Second {
				t.Errorf("took %v", d)
			}
			if len(got) > 1<<10 || !utf8.ValidString(got) {
				t.Errorf("%d bytes", len(got))
			}
			if len(symbol) > 1<<10 && len(got) > 1000 && !strings.HasSuffix(got, "…") {
				t.Errorf("%q is not marked as cut", got[len(got)-10:])
			}
		})
	}
}

// TestNamesOfARealCompiler builds C++ and reads the names back.
func TestNamesOfARealCompiler(t *testing.T) {
	dir := t.TempDir()
	src, obj := filepath.Join(dir, "x.cc"), filepath.Join(dir, "x.o")
	err := os.WriteFile(src, []byte(`
#include <map>
#include <string>
namespace app {
template <typename T> struct Table {
	std::map<std::string, T> rows;
	__attribute__((noinline)) T &at(const std::string &key) { return rows[key]; }
	explicit operator bool() const;
};
template <typename T> Table<T>::operator bool() const { return !rows.empty(); }
template struct Table<int>;
}
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("g++", "-O1", "-c", "-o", obj, src).CombinedOutput(); err != nil {
		t.Fatalf("g++: %v\n%s", err, out)
	}
	out, err := exec.Command("nm", "--format=just-symbols", obj).Output()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for symbol := range strings.Lines(string(out)) {
		names = append(names, demangle.Name(strings.TrimSpace(symbol)))
	}
	for _, want := range []string{"app::Table<int>::at", "app::Table<int>::operator bool"} {
		if !slices.Contains(names, want) {
			t.Errorf("%q is not among %q", want, names)
		}
	}
}

func BenchmarkName(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		demangle.Name("_ZNSt8_Rb_treeINSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEESt4pairIKS5_iESt10_Select1stIS8_ESt4lessIS5_ESaIS8_EE17_M_emplace_uniqueIJS8_EEES6_ISt17_Rb_tree_iteratorIS8_EbEDpOT_")
	}
}

func FuzzName(f *testing.F) {
	for _, s := range []string{
		"_ZNKSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEE4sizeEv", "_RINvNtC4core3ptr13drop_in_placeNtC3foo3BarEB4_",
		"_ZN3std2io5stdio6_print17h0123456789abcdefE.llvm.12", "foo.part.0.cold", "_ZZ4mainENKUlvE_clEv@plt", nested(20), "a\x1b\xff",
		"_RC0",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, symbol string) {
		got := demangle.Name(symbol)
		if len(got) > 1<<10 || !utf8.ValidString(got) || strings.ContainsAny(got, "\n\x1b\x00") {
			t.Fatalf("Name(%q) = %q", symbol, got)
		}
		if symbol != "" && got == "" {
			t.Fatalf("Name(%q) is empty", symbol)
		}
	})
}
