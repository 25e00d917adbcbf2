package kernels

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// compilers build for each architecture as its distributions do.
var compilers = map[string]struct {
	prefix string // of gcc and g++
	flags  []string
	rust   string // its name of the platform
}{
	"amd64": {"", nil, "x86_64-unknown-linux-gnu"},
	"arm64": {"aarch64-linux-gnu-", []string{"-mbranch-protection=standard"}, "aarch64-unknown-linux-gnu"},
}

// sources are the programs in C and C++ that need nothing but a compiler.
var sources = []struct {
	name, file string
	flags      []string
	has        map[string]uint32 // instructions of arm64 by function, which make the program what it is
}{
	{name: "chain", file: "chain.c", has: map[string]uint32{"level_899": paciasp}},
	{name: "signals", file: "signals.c"},
	{name: "vdso", file: "vdso.c"},
	{name: "blocked", file: "blocked.c"},
	{name: "cxx", file: "cxx.cc", flags: []string{"-g"}},
	{name: "leaf", file: "leaf.c", has: map[string]uint32{"turn_60": paciasp}},
	{name: "leaf-signed", file: "leaf.c", flags: []string{"-mbranch-protection=pac-ret+leaf+b-key+bti"}, has: map[string]uint32{"leaf_60": pacibsp, "turn_60": pacibsp}},
	{name: "leaf-records", file: "leaf.c", flags: []string{"-fno-asynchronous-unwind-tables", "-fno-omit-frame-pointer"}},
}

// Instructions that sign the return address with a key; Arm Architecture Reference
// Manual, C6.2.
const (
	paciasp = 0xd503233f
	pacibsp = 0xd503237f
)

// kit builds the programs of an architecture.
type kit struct {
	t     *testing.T
	arch  string
	dir   string
	files []file
	built map[string]bool
}

// run runs a command and gives what it says.
func (k *kit) run(env []string, name string, args ...string) string {
	k.t.Helper()
	c := exec.Command(name, args...)
	c.Env = append(os.Environ(), env...)
	text, err := c.CombinedOutput()
	if err != nil {
		k.t.Fatalf("%s: %v\n%s", c, err, text)
	}
	return strings.TrimSpace(string(text))
}

// out is where a file of the initramfs is built, which is then part of it.
func (k *kit) out(name string) string {
	path := filepath.Join(k.dir, filepath.Base(name))
	k.files = append(k.files, file{name: name, from: path})
	k.built[filepath.Base(name)] = true
	return path
}

// compile builds from test/workloads, C or C++ by the ending of the source.
func (k *kit) compile(name string, args ...string) {
	k.t.Helper()
	c := compilers[k.arch]
	compiler := c.prefix + "gcc"
	if slices.ContainsFunc(args, func(arg string) bool { return strings.HasSuffix(arg, ".cc") }) {
		compiler = c.prefix + "g++"
	}
	flags := append([]string{"-O2", "-fomit-frame-pointer", "-fno-optimize-sibling-calls", "-o", k.out(name)}, c.flags...)
	k.run(nil, compiler, append(flags, args...)...)
}

// buildInitramfs builds everything that the machines of an architecture run, and
// gives the workloads among it.
func buildInitramfs(t *testing.T, arch, folder string) (path string, list []workload) {
	t.Helper()
	k := &kit{t: t, arch: arch, dir: t.TempDir(), built: map[string]bool{}}
	for name, program := range map[string]string{
		"init": "test/kernels/init", "bin/kalypso-agent": "cmd/agent", "bin/golang": "test/workloads/golang",
		"bin/goblocked": "test/workloads/goblocked",
	} {
		k.run([]string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + arch}, "go", "build", "-trimpath", "-o", k.out(name), "github.com/kalypso-dev/kalypso/"+program)
	}
	for _, s := range sources {
		if arch != "arm64" && s.name == "leaf-signed" {
			continue
		}
		k.compile("bin/"+s.name, append(append([]string{"-static", "-pthread"}, s.flags...), workloadDir+s.file)...)
		if arch == "arm64" {
			wantInstructions(t, filepath.Join(k.dir, s.name), s.has)
		}
	}
	k.compile("lib/libpltlib.so", "-fPIC", "-shared", "-Wl,-soname,libpltlib.so", workloadDir+"pltlib.c")
	k.compile("bin/plt", "-Wl,-z,lazy", workloadDir+"plt.c", filepath.Join(k.dir, "libpltlib.so"), "-Wl,-rpath,/lib")
	k.rust(folder)
	k.tests(folder)
	// The C library, what it ends threads with, and the loader, under the name that programs ask for.
	loader := map[string]string{"amd64": "lib64/ld-linux-x86-64.so.2", "arm64": "lib/ld-linux-aarch64.so.1"}[arch]
	for _, name := range []string{"lib/libc.so.6", "lib/libgcc_s.so.1", loader} {
		k.files = append(k.files, file{name: name, from: k.run(nil, compilers[arch].prefix+"gcc", "-print-file-name="+filepath.Base(name))})
	}
	list = workloadsOf(arch, k.built)
	commands, err := json.Marshal(runs(list))
	if err != nil {
		t.Fatal(err)
	}
	k.files = append(k.files, file{name: "runs.json", data: commands})
	path = filepath.Join(k.dir, "initramfs")
	if err := writeCPIO(path, k.files); err != nil {
		t.Fatal(err)
	}
	return path, list
}

const workloadDir = "../workloads/"

// rust builds the Rust workload. Debian's compiler has no standard library for
// another architecture with it: scripts/kernels fetches it, and it is of use to
// that version of the compiler only.
func (k *kit) rust(folder string) {
	args := []string{
		"--target", compilers[k.arch].rust, "--edition=2021", "-Copt-level=2", "-Cdebuginfo=2", "-Cforce-frame-pointers=no",
		"-Ctarget-feature=+crt-static", "-Clinker=" + compilers[k.arch].prefix + "gcc",
	}
	compiler := "rustc"
	if _, err := os.Stat("/usr/bin/rustc"); err == nil {
		compiler = "/usr/bin/rustc" // Debian's, beside one of another kind
	}
	if k.arch == "arm64" {
		library, err := os.ReadFile(filepath.Join(folder, "rust", "VERSION"))
		if err != nil {
			k.t.Fatalf("no standard library of Rust for arm64: %v: run scripts/kernels %s", err, folder)
		}
		out, err := exec.Command(compiler, "--version").Output()
		is, want := strings.Fields(string(out)), strings.TrimSpace(string(library))
		if err != nil || len(is) < 2 || is[1] != want {
			what := fmt.Sprintf("no Rust for arm64: the compiler is %q, the standard library for %s: %v", is, want, err)
			if os.Getenv("KALYPSO_REQUIRE_TOOLS") == "1" {
				k.t.Fatal(what)
			}
			k.t.Log(what)
			return
		}
		args = append(args, "--sysroot", filepath.Join(folder, "rust"))
	}
	k.run(nil, compiler, append(args, "-o", k.out("bin/rust"), workloadDir+"chain.rs")...)
}

// wantInstructions wants functions of a program to have an instruction.
func wantInstructions(t *testing.T, path string, has map[string]uint32) {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	symbols, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	for function, instruction := range has {
		i := slices.IndexFunc(symbols, func(s elf.Symbol) bool { return s.Name == function })
		if i < 0 {
			t.Errorf("%s has no function %s", path, function)
			continue
		}
		s := symbols[i]
		text := f.Sections[s.Section]
		code := make([]byte, s.Size)
		if _, err := text.ReadAt(code, int64(s.Value-text.Addr)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(code, binary.LittleEndian.AppendUint32(nil, instruction)) {
			t.Errorf("%s of %s does not have the instruction %#x", function, path, instruction)
		}
	}
}

// file is one of an initramfs: from a path, a symbolic link, or data.
type file struct {
	name, from, link string
	data             []byte
}

// writeCPIO writes an archive as the kernel unpacks it: format newc, see
// Documentation/driver-api/early-userspace/buffer-format.rst.
func writeCPIO(path string, files []file) error {
	var b bytes.Buffer
	inode := 0
	add := func(name string, mode, major, minor int, data []byte) {
		inode++
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
			inode, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0)
		b.WriteString(name)
		b.WriteByte(0)
		b.Write(make([]byte, -b.Len()&3))
		b.Write(data)
		b.Write(make([]byte, -b.Len()&3))
	}
	made := map[string]bool{".": true}
	var folder func(name string)
	folder = func(name string) {
		if !made[name] {
			made[name] = true
			folder(filepath.Dir(name))
			add(name, 0o40755, 0, 0, nil)
		}
	}
	folder("dev")
	add("dev/console", 0o20600, 5, 1, nil) // where the first process's output goes
	for _, f := range files {
		folder(filepath.Dir(f.name))
		if f.link != "" {
			add(f.name, 0o120777, 0, 0, []byte(f.link))
			continue
		}
		data := f.data
		if f.from != "" {
			var err error
			if data, err = os.ReadFile(f.from); err != nil {
				return err
			}
		}
		add(f.name, 0o100755, 0, 0, data)
	}
	add("TRAILER!!!", 0, 0, 0, nil)
	return os.WriteFile(path, b.Bytes(), 0o600)
}
