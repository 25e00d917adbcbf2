// Package demangle turns the linker's names of C++ and Rust functions into
// names for a flame graph: qualified, with template arguments, without
// parameter lists and without what only tells builds apart.
//
// The names come from files that may be hostile, so the input's length, the
// demangler's output and the result are bounded. It keeps nothing: callers
// cache.
package demangle

import (
	"strings"
	"unicode/utf8"

	"github.com/ianlancetaylor/demangle"
)

const (
	// maxInput bounds what is demangled: substitutions let a name of n bytes
	// stand for exponentially many, and while the library's output is bounded
	// its syntax tree is not. Real names beyond it are rare and useless.
	maxInput = 16 << 10
	// maxOutput bounds a name. Longer ones end in "…".
	maxOutput = 1 << 10
	// maxExpanded is the library's own bound on its output, as a power of two.
	maxExpanded = 14
)

// Name gives the readable name of a linker symbol. A name that is not mangled
// comes back as it is, without a compiler's suffix: the parts of a function
// that a compiler splits off or specialises (foo.cold, foo.part.0,
// foo.constprop.1, foo.isra.0, foo.llvm.123) are all foo to a reader, who finds
// the exact symbol in profiler.Frame.Linkage.
func Name(symbol string) string {
	name, plt := strings.CutSuffix(symbol, "@plt")
	name = Base(name)
	if strings.HasPrefix(name, "_") && len(name) <= maxInput {
		if readable := expand(name); readable != "" { // "_RC0" is a crate without a name
			name = readable
		}
	}
	if plt {
		name += "@plt"
	}
	return Cut(name)
}

// expand demangles; a name that it cannot comes back unchanged.
func expand(name string) (out string) {
	// The library is fuzzed upstream, but a panic in it must not end the agent.
	defer func() {
		if recover() != nil {
			out = name
		}
	}()
	rust := isRust(name)
	out, err := demangle.ToString(name, demangle.NoParams, demangle.NoEnclosingParams, demangle.MaxLength(maxExpanded))
	if err != nil {
		return name
	}
	if rust {
		return out
	}
	return tidy(out)
}

// isRust says if the name is of Rust's v0 scheme or of its legacy one, which
// is C++'s with a hash as the last element.
func isRust(name string) bool {
	if strings.HasPrefix(name, "_R") {
		return true
	}
	const hash = len("17h") + 16 + len("E")
	return strings.HasPrefix(name, "_ZN") && len(name) > hash && strings.HasPrefix(name[len(name)-hash:], "17h")
}

// tidy shortens the ways in which the C++ demangler is exact rather than
// readable.
func tidy(name string) string {
	for strings.Contains(name, "> >") { // as in C++98
		name = strings.ReplaceAll(name, "> >", ">>")
	}
	for _, r := range [...][2]string{
		{"std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char>>", "std::string"},
		{"std::basic_string<char, std::char_traits<char>, std::allocator<char>>", "std::string"},
		{"[abi:cxx11]", ""},
	} {
		name = strings.ReplaceAll(name, r[0], r[1])
	}
	return name
}

// Base cuts the suffixes off that GCC and LLVM put on the names of functions
// which they split or specialise. Mangled names have no other dots; in plain
// ones only known suffixes are cut.
func Base(symbol string) string {
	for {
		i := strings.LastIndexByte(symbol, '.')
		if i <= 0 {
			return symbol
		}
		head, word := symbol[:i], symbol[i+1:]
		if isNumber(word) {
			j := strings.LastIndexByte(head, '.')
			if j <= 0 {
				return symbol // a static variable's or nested function's number: foo.1
			}
			head, word = head[:j], head[j+1:]
			if !isNumbered(word) {
				return symbol
			}
		} else if !isBare(word) {
			return symbol
		}
		symbol = head
	}
}

// isNumbered lists the suffixes that a number follows.
func isNumbered(word string) bool {
	switch word {
	case "cold", "part", "constprop", "isra", "lto_priv", "localalias", "simdclone", "__part", "warm", "clone", // GCC
		"llvm", "__uniq", "specialized", "outlined", "argelim", "retelim", "argprom", // LLVM
		"destroy", "resume", "cleanup": // coroutines
		return true
	}
	return false
}

// isBare lists the suffixes that stand alone, too.
func isBare(word string) bool {
	switch word {
	case "cold", "localalias", "warm", "hot", "argelim", "argprom", "retelim",
		"actor", "destroy", "resume", "cleanup", "eh", "split":
		return true
	}
	return false
}

func isNumber(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// Cut bounds a name that is shown, at a character's edge, and replaces what
// is not text: names come from files that anyone may have written.
func Cut(name string) string {
	if !utf8.ValidString(name) {
		name = strings.ToValidUTF8(name[:min(len(name), 4*maxOutput)], "�")
	}
	if strings.IndexFunc(name, isControl) >= 0 {
		name = strings.Map(func(r rune) rune {
			if isControl(r) {
				return '�'
			}
			return r
		}, name[:min(len(name), 4*maxOutput)])
	}
	if len(name) <= maxOutput {
		return name
	}
	end := maxOutput - len("…")
	for end > 0 && !utf8.RuneStart(name[end]) {
		end--
	}
	return name[:end] + "…"
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 }
