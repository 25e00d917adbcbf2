package kernels

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/kalypso-dev/kalypso/test/kernels/guest"
)

// A suite is the tests of a package, which run in each machine as they do on this
// one, from a copy of the files that they read.
type suite struct {
	pkg     string
	only    string            // pattern of the tests that run; empty: all
	rest    string            // why the others do not
	long    bool              // not on a kernel that differs from another by its pages alone
	files   []string          // that the tests read, from the repository's root; folders with all that is in them
	leftOut map[string]string // test, or subtest, that does not run: why
}

var suites = []suite{
	{
		pkg: "bpf", files: []string{
			"bpf/include", "bpf/threads_arm64_bpfel.o", "bpf/threads_x86_bpfel.o", "bpf/bpftest/native/walk.c",
			"test/workloads/chain.c", "test/workloads/blocked.c",
		},
		leftOut: map[string]string{
			"TestHotplug":                      "takes a second CPU offline, and the machine has one",
			"TestCostOfASampleThatIsNotWanted": "bounds a time, and the machine's clock counts instructions",
			"TestVerdicts/version_1,_memory":   "6.12 has no such hierarchy (`CONFIG_MEMCG_V1`)",
		},
	},
	{
		pkg:     "bpf/bpftest",
		leftOut: map[string]string{"TestNativeWalksAsGo": "asks nothing of the kernel: C compiled for user space, against Go, with either's instructions on any machine"},
	},
	{pkg: "profiler/sampler", long: true, files: []string{"bpf/kalypso_arm64_bpfel.o", "bpf/kalypso_x86_bpfel.o"}},
	{
		pkg: "profiler/process",
		leftOut: map[string]string{
			"TestOpenFile/replaced_on_overlay,_where_device_numbers_say_nothing": "overlayfs is a module of these kernels, and the machine has none",
		},
	},
	{
		pkg: "profiler/pipeline", long: true,
		only: "^(TestRecordFilters|TestRecordByThread|TestRecordWithTailCalls|TestServiceSelects|TestServiceLosesNothing|TestIdentityIsThatOfTheSample)$",
		rest: "ask nothing else of the kernel, or want a faster machine",
	},
	{pkg: "profiler/elffile", only: "^TestWalkLikeOpenat2$", rest: "ask nothing of the kernel"},
	{
		pkg: "test/service", long: true, only: "^TestRightProfiles$", rest: "are of faults and budgets, and want a faster machine",
		files: []string{"test/workloads/chain.c"},
	},
}

// compilations are what the tests ask a C compiler for: sources by their name, or
// by a part of the string in the tests that holds them, and flags. A machine that
// is asked for another names it.
var compilations = []struct{ pkg, source, flags, also string }{
	{pkg: "bpf", source: "../test/workloads/chain.c", flags: "-O2"},
	{pkg: "bpf", source: "../test/workloads/blocked.c", flags: "-O2 -pthread"},
	// With sanitizers it takes a minute and a half on arm64, of the machine's clock.
	{pkg: "bpf/bpftest", source: "native/walk.c", flags: walkerFlags + " -D__TARGET_ARCH_x86", also: "-fno-sanitize=all"},
	{pkg: "bpf/bpftest", source: "native/walk.c", flags: walkerFlags + " -D__TARGET_ARCH_arm64", also: "-fno-sanitize=all"},
	{pkg: "profiler/process", source: "int main(void) { write(1,", flags: "-O2"},
	{pkg: "profiler/process", source: "int main(void) { write(1,", flags: "-O2 -DOTHER -Wl,--build-id=0x0102030405060708"},
	{pkg: "profiler/process", source: "int main(void) { pthread_t t;", flags: "-O2 -pthread"},
	{pkg: "profiler/pipeline", source: "static void *forever(void *name)", flags: "-O2 -fno-optimize-sibling-calls -fomit-frame-pointer -pthread"},
	{pkg: "profiler/pipeline", source: "static void run(pid_t *pid, const char *dir, int ms)", flags: "-O2 -fno-optimize-sibling-calls -fomit-frame-pointer -pthread"},
	{pkg: "test/service", source: "../workloads/chain.c", flags: "-O2 -fomit-frame-pointer -fno-optimize-sibling-calls"},
}

const walkerFlags = "-std=gnu11 -O1 -g -Wall -Werror -fsanitize=address,undefined -fno-sanitize-recover=all"

// tests builds the suites of an architecture and what they need.
func (k *kit) tests(folder string) {
	k.t.Helper()
	k.files = append(k.files, file{name: "bin/busybox", from: filepath.Join(folder, "busybox-"+k.arch)})
	for _, name := range []string{"cat", "cp", "mount", "sh", "sleep"} {
		k.files = append(k.files, file{name: "bin/" + name, link: "busybox"})
	}
	// A program of that path, not a link to another: tests look for it in mappings.
	k.files = append(k.files, file{name: "bin/true", from: filepath.Join(folder, "busybox-"+k.arch)})
	for _, name := range []string{"gcc", "go", "setarch"} {
		k.files = append(k.files, file{name: "bin/" + name, link: "/init"})
	}
	// Built with -trimpath, tests know their sources by the module's name.
	k.files = append(k.files, file{name: "src/bpf/github.com/kalypso-dev/kalypso", link: "/src"})
	for _, s := range suites {
		k.run([]string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + k.arch}, "go", "test", "-c", "-trimpath", "-ldflags=-w",
			"-o", k.out("src/"+s.pkg+"/"+s.binary()), "github.com/kalypso-dev/kalypso/"+s.pkg)
		for _, name := range s.files {
			k.tree(name)
		}
	}
	for i := range 6 { // as many as TestSweep sees
		k.precompile("profiler/process", "int main(void) { write(1,", fmt.Sprintf("-O2 -Wl,--build-id=0x%040x", i+1), "")
	}
	for _, c := range compilations {
		k.precompile(c.pkg, c.source, c.flags, c.also)
	}
}

// binary is the name of the suite's program, one for each.
func (s *suite) binary() string { return strings.ReplaceAll(s.pkg, "/", "-") + ".test" }

// tree adds a file of the repository, or a folder.
func (k *kit) tree(name string) {
	k.t.Helper()
	err := filepath.WalkDir(filepath.Join("../..", name), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			k.files = append(k.files, file{name: filepath.Join("src", strings.TrimPrefix(path, "../../")), from: path})
		}
		return err
	})
	if err != nil {
		k.t.Fatal(err)
	}
}

// precompile builds what a test will ask a compiler for with these flags, and with
// others that it does not ask for.
func (k *kit) precompile(pkg, source, flags, also string) {
	k.t.Helper()
	path := filepath.Join("../..", pkg, source)
	if !strings.HasSuffix(source, ".c") {
		path = filepath.Join(k.t.TempDir(), "x.c")
		if err := os.WriteFile(path, []byte(literal(k.t, filepath.Join("../..", pkg), source)), 0o600); err != nil {
			k.t.Fatal(err)
		}
	}
	name, _, err := guest.Compilation(append(strings.Fields(flags), path, "-o", "x"))
	if err != nil {
		k.t.Fatal(err)
	}
	if k.built[name] {
		return // two packages ask for the same
	}
	c := compilers[k.arch]
	k.run(nil, c.prefix+"gcc", slices.Concat(c.flags, strings.Fields(flags), strings.Fields(also), []string{path, "-o", k.out("built/" + name)})...)
}

// literal is the string in a package's tests that has a part.
func literal(t *testing.T, dir, part string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	found := ""
	for _, name := range names {
		parsed, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			e, ok := n.(ast.Expr)
			if !ok || found != "" {
				return found == ""
			}
			if text, ok := constant(e); ok && strings.Contains(text, part) {
				found = text
			}
			return found == ""
		})
	}
	if found == "" {
		t.Fatalf("no string in the tests of %s has %q", dir, part)
	}
	return found
}

// constant is the value of a string literal, or of a sum of such.
func constant(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(e.Value)
		return text, e.Kind == token.STRING && err == nil
	case *ast.BinaryExpr:
		x, ok := constant(e.X)
		y, also := constant(e.Y)
		return x + y, ok && also && e.Op == token.ADD
	}
	return "", false
}

// suiteOf begins the names of runs of suites.
const suiteOf = "test "

// suiteSeconds may pass in a machine while a suite runs.
const suiteSeconds = 200

// run is how a machine runs the suite.
func (s *suite) run() guest.Run {
	command := []string{"./" + s.binary(), "-test.v", "-test.count=1", fmt.Sprintf("-test.timeout=%ds", suiteSeconds-10)}
	if s.only != "" {
		command = append(command, "-test.run="+s.only)
	}
	var names []string
	for name := range s.leftOut {
		if !strings.Contains(name, "/") { // a subtest says itself that it cannot run
			names = append(names, name)
		}
	}
	if slices.Sort(names); len(names) > 0 {
		command = append(command, "-test.skip=^("+strings.Join(names, "|")+")$")
	}
	return guest.Run{Name: suiteOf + s.pkg, Command: command, Dir: "/src/" + s.pkg, Env: []string{"KALYPSO_REQUIRE_BPF=1"}, Seconds: suiteSeconds, Long: s.long}
}

// verdict is a line of "go test -v" that says how a test, or a subtest, ended.
var verdict = regexp.MustCompile(`(?m)^ *--- (PASS|FAIL|SKIP): (\S+) \(`)

// checkSuite wants all tests to pass; those that say that they cannot run must
// be among those that are left out.
func checkSuite(t *testing.T, res *guest.Result) (out tested) {
	s := &suites[slices.IndexFunc(suites, func(s suite) bool { return suiteOf+s.pkg == res.Name })]
	out.Package = s.pkg
	for _, m := range verdict.FindAllStringSubmatch(res.Stdout, -1) {
		switch how, name := m[1], m[2]; how {
		case "PASS":
			out.Passed++
			if isFallback(s.pkg + " " + name) {
				out.Fallbacks = append(out.Fallbacks, name)
			}
		case "SKIP":
			out.Skipped = append(out.Skipped, name)
			if _, ok := s.leftOut[name]; !ok {
				t.Errorf("%s: %s was skipped", res.Name, name)
			}
		case "FAIL":
			t.Errorf("%s: %s failed", res.Name, name)
		}
	}
	if res.Error != "" || out.Passed == 0 {
		t.Errorf("%s: %s, %d tests passed\n%s\n%s", res.Name, res.Error, out.Passed, res.Stdout, res.Stderr)
	}
	t.Logf("%-24s %d passed, %d skipped, in %.0f s", res.Name, out.Passed, len(out.Skipped), res.Seconds)
	return out
}

// tested is what a machine did of a suite.
type tested struct {
	Package   string   `json:"package"`
	Passed    int      `json:"passed"` // tests, and subtests
	Skipped   []string `json:"skipped,omitempty"`
	Fallbacks []string `json:"fallbacks,omitempty"` // of those that passed
}

// isFallback tells whether a test is one that shows a fallback.
func isFallback(name string) bool {
	return slices.ContainsFunc(fallbacks, func(f fallback) bool { return slices.Contains(f.tests, name) })
}

// What is built for the machines is what the tests have: whoever changes a test
// need not boot one to learn that it was moved.
func TestSuitesAreThere(t *testing.T) {
	for _, c := range compilations {
		dir := filepath.Join("../..", c.pkg)
		if !strings.HasSuffix(c.source, ".c") {
			literal(t, dir, c.source)
		} else if _, err := os.Stat(filepath.Join(dir, c.source)); err != nil {
			t.Error(err)
		}
	}
	for _, s := range suites {
		for _, name := range s.files {
			if _, err := os.Stat(filepath.Join("../..", name)); err != nil {
				t.Error(err)
			}
		}
		names := slices.Collect(maps.Keys(s.leftOut))
		for _, f := range fallbacks {
			for _, test := range f.tests {
				if name, ok := strings.CutPrefix(test, s.pkg+" "); ok {
					names = append(names, name)
				}
			}
		}
		for _, name := range names {
			name, _, _ = strings.Cut(name, "/")
			if !hasFunction(t, filepath.Join("../..", s.pkg), name) {
				t.Errorf("%s has no test %s", s.pkg, name)
			}
		}
	}
}

// hasFunction tells whether a package's tests have a function.
func hasFunction(t *testing.T, dir, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "\nfunc "+name+"(") {
			return true
		}
	}
	return false
}
