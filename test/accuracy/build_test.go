package accuracy

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
)

const workloads = "../workloads"

// cFlags build every C and C++ workload: optimised, without frame pointers,
// and with every call a call.
var cFlags = []string{"-O2", "-fomit-frame-pointer", "-fno-optimize-sibling-calls"}

// missing skips a test that lacks what it needs, or fails it where the
// environment says that nothing may be lacking.
func missing(t *testing.T, variable, what string) {
	t.Helper()
	if os.Getenv(variable) == "1" {
		t.Fatalf("%s (%s=1 makes this a failure)", what, variable)
	}
	t.Skip(what)
}

// requireBPF wants the right to create BPF maps, by creating one.
func requireBPF(t *testing.T) {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		missing(t, "KALYPSO_REQUIRE_BPF", "cannot create a BPF map: "+err.Error())
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
}

func requireTools(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			missing(t, "KALYPSO_REQUIRE_TOOLS", "this test needs "+tool+", which is not installed")
		}
	}
}

// execute runs a command to its end and fails the test with its output when
// it does not succeed.
func execute(t *testing.T, env []string, name string, args ...string) {
	t.Helper()
	c := exec.Command(name, args...)
	c.Env = append(os.Environ(), env...)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// buildAgent gives the path of the agent: KALYPSO_AGENT, or one built now.
func buildAgent(t *testing.T) string {
	t.Helper()
	if agent := os.Getenv("KALYPSO_AGENT"); agent != "" {
		path, err := filepath.Abs(agent)
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	requireTools(t, "go")
	path := filepath.Join(t.TempDir(), "kalypso-agent")
	execute(t, []string{"CGO_ENABLED=0"}, "go", "build", "-trimpath", "-o", path, "github.com/kalypso-dev/kalypso/cmd/agent")
	return path
}

// A builder makes the workload's files in dir and gives the command to run.
type builder func(t *testing.T, dir string) []string

// cProgram builds one C file with more flags, and runs it with arguments.
func cProgram(source string, flags []string, args ...string) builder {
	return func(t *testing.T, dir string) []string {
		t.Helper()
		return append([]string{compileC(t, dir, "gcc", source, flags...)}, args...)
	}
}

func compileC(t *testing.T, dir, compiler, source string, flags ...string) string {
	t.Helper()
	requireTools(t, compiler)
	out := filepath.Join(dir, "workload")
	args := append([]string{"-o", out}, cFlags...)
	args = append(args, filepath.Join(workloads, source))
	execute(t, nil, compiler, append(args, flags...)...)
	return out
}

func muslProgram(flags ...string) builder {
	return func(t *testing.T, dir string) []string {
		t.Helper()
		return []string{compileC(t, dir, "musl-gcc", "chain.c", append(flags, "-static")...)}
	}
}

// debugLinked has its symbols in a second file, which .gnu_debuglink names.
func debugLinked(t *testing.T, dir string) []string {
	t.Helper()
	requireTools(t, "objcopy")
	out := compileC(t, dir, "gcc", "chain.c", "-g")
	execute(t, nil, "objcopy", "--only-keep-debug", out, out+".debug")
	execute(t, nil, "objcopy", "--strip-all", "--add-gnu-debuglink="+out+".debug", out)
	return []string{out}
}

func cxxProgram(t *testing.T, dir string) []string {
	t.Helper()
	return []string{compileC(t, dir, "g++", "cxx.cc", "-g")}
}

func rustProgram(t *testing.T, dir string) []string {
	t.Helper()
	requireTools(t, "rustc")
	out := filepath.Join(dir, "workload")
	execute(t, nil, "rustc", "--edition=2021", "-Copt-level=2", "-Cdebuginfo=2", "-Cforce-frame-pointers=no",
		"-o", out, filepath.Join(workloads, "chain.rs"))
	return []string{out}
}

func goProgram(flags ...string) builder {
	return func(t *testing.T, dir string) []string {
		t.Helper()
		requireTools(t, "go")
		out := filepath.Join(dir, "workload")
		args := append([]string{"build", "-o", out}, flags...)
		execute(t, []string{"CGO_ENABLED=0"}, "go", append(args, "github.com/kalypso-dev/kalypso/test/workloads/golang")...)
		return []string{out}
	}
}

func pltProgram(t *testing.T, dir string) []string {
	t.Helper()
	requireTools(t, "gcc")
	library := filepath.Join(dir, "libpltlib.so")
	execute(t, nil, "gcc", "-O2", "-fPIC", "-shared", "-o", library, filepath.Join(workloads, "pltlib.c"))
	return []string{compileC(t, dir, "gcc", "plt.c", "-Wl,-z,lazy", library, "-Wl,-rpath,"+dir)}
}

// nodeProgram keeps V8's own log, which --interpreted-frames-native-stack
// switches on, out of the source folder.
func nodeProgram(t *testing.T, dir string) []string {
	t.Helper()
	requireTools(t, "node")
	return []string{
		"node", "--no-logfile-per-isolate", "--logfile=" + filepath.Join(dir, "v8.log"), "--perf-basic-prof", "--interpreted-frames-native-stack", "--no-turbo-inlining",
		filepath.Join(workloads, "jit.js"),
	}
}

// hiddenProgram runs where only /proc/PID/root leads to its file.
func hiddenProgram(t *testing.T, dir string) []string {
	t.Helper()
	requireTools(t, "unshare", "chroot", "ldd")
	return []string{filepath.Join(workloads, "mountns.sh"), compileC(t, dir, "gcc", "chain.c")}
}
