package kernels

import (
	"fmt"
	"slices"
	"strings"
)

// A fallback is what is done without something that a kernel need not have. It is
// shown with that there, and not used.
type fallback struct {
	without, instead string
	check            string   // of doctor, which passes where it is there; empty: where the tests say so
	recordings       []string // in test/kernels
	tests            []string // package and test
}

var fallbacks = []fallback{
	{
		without: "`bpf_loop` (5.17)", instead: "tail calls, up to 264 frames", check: "bpf_loop",
		recordings: []string{tailCalls + "chain", tailCalls + "golang"},
		tests: []string{
			"bpf TestBothWalksLoadAndSample/tail_calls_true", "bpf TestKernelWalksReachTheRoot/tail_calls_true",
		},
	},
	{
		without: "hardware that counts cycles", instead: "`cpu-clock`", check: "hardware",
		recordings: []string{byClock + "chain"},
	},
	{
		without: "an iterator over one process's threads (6.1)", instead: "the iterator over all threads, filtered in the program",
		tests: []string{"bpf TestReadThreads/unfiltered_true"},
	},
	{
		without: "`openat2` (5.6), or where seccomp forbids it", instead: "paths inside a root folder are walked name by name",
		tests: []string{"profiler/elffile TestWalkLikeOpenat2"},
	},
}

// shown tells whether a machine has shown it.
func (f *fallback) shown(o *outcome) bool {
	for _, name := range f.recordings {
		if !slices.ContainsFunc(o.Recordings, func(r recording) bool { return r.Name == name }) {
			return false
		}
	}
	for _, name := range f.tests {
		pkg, test, _ := strings.Cut(name, " ")
		if !slices.ContainsFunc(o.Tests, func(s tested) bool { return s.Package == pkg && slices.Contains(s.Fallbacks, test) }) {
			return false
		}
	}
	return true
}

// fallbacksOf has a line for each fallback: where it was shown with the feature
// forced off, and where there is none to force.
func fallbacksOf(list []outcome) string {
	var b strings.Builder
	b.WriteString("| without | instead | shown by | forced off on | not there on |\n|---|---|---|---|---|\n")
	for _, f := range fallbacks {
		var off, gone, by []string
		for _, o := range list {
			switch {
			case !f.shown(&o):
			case f.check != "" && !slices.Contains(o.Doctor, f.check):
				gone = append(gone, o.short())
			default:
				off = append(off, o.short())
			}
		}
		for _, name := range f.recordings {
			by = append(by, "recording `"+name+"`")
		}
		for _, name := range f.tests {
			by = append(by, "`"+name+"`")
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", f.without, f.instead, strings.Join(by, ", "), listed(off), listed(gone))
	}
	return b.String()
}

func listed(names []string) string {
	if len(names) == 0 {
		return "-"
	}
	return strings.Join(names, ", ")
}

// short is the kernel's series, kind and architecture.
func (o *outcome) short() string {
	parts := strings.SplitN(o.Kernel, ".", 3)
	kind := "cloud"
	if strings.Contains(o.Kernel, "-16k-") {
		kind = "16k"
	}
	return fmt.Sprintf("%s.%s %s %s", parts[0], parts[1], kind, o.Arch)
}
