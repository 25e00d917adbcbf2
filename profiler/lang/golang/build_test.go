package golang

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kalypso-dev/kalypso/profiler/elffile"
)

// variant is one way to build testdata/program.
type variant struct {
	name     string
	flags    []string
	env      []string
	stripped bool
	norun    bool
}

var variants = []variant{
	{name: "static", env: []string{"CGO_ENABLED=0"}},
	{name: "static stripped", flags: []string{"-ldflags=-s -w"}, env: []string{"CGO_ENABLED=0"}, stripped: true},
	{name: "trimpath", flags: []string{"-trimpath"}, env: []string{"CGO_ENABLED=0"}},
	{name: "pie", flags: []string{"-buildmode=pie"}, env: []string{"CGO_ENABLED=0"}},
	{name: "cgo", flags: []string{"-tags=withcgo"}, env: []string{"CGO_ENABLED=1"}},
	{name: "cgo pie stripped", flags: []string{"-tags=withcgo", "-buildmode=pie", "-ldflags=-s -w"}, env: []string{"CGO_ENABLED=1"}, stripped: true},
	{name: "c-shared", flags: []string{"-tags=withcgo", "-buildmode=c-shared"}, env: []string{"CGO_ENABLED=1"}, norun: true},
	{name: "plugin stripped", flags: []string{"-tags=withcgo", "-buildmode=plugin", "-ldflags=-s -w"}, env: []string{"CGO_ENABLED=1"}, stripped: true, norun: true},
	{name: "arm64", env: []string{"CGO_ENABLED=0", "GOARCH=arm64"}, norun: true},
	{name: "arm64 pie stripped", flags: []string{"-buildmode=pie", "-ldflags=-s -w"}, env: []string{"CGO_ENABLED=0", "GOARCH=arm64"}, stripped: true, norun: true},
}

// programs is the folder of what was built, for all tests of one run.
var programs = filepath.Join(os.TempDir(), fmt.Sprintf("kalypso-golang-test-%d", os.Getpid()))

func TestMain(m *testing.M) {
	code := 1
	if err := os.Mkdir(programs, 0o700); err == nil {
		code = m.Run()
	} else {
		fmt.Fprintln(os.Stderr, err)
	}
	_ = os.RemoveAll(programs)
	os.Exit(code)
}

// build builds the program with the toolchain under test: "go", or the one
// that KALYPSO_TEST_GO names, for checking other versions by hand.
func build(t testing.TB, v variant) string {
	t.Helper()
	goTool := os.Getenv("KALYPSO_TEST_GO")
	if goTool == "" {
		goTool = "go"
	}
	path := filepath.Join(programs, strings.ReplaceAll(v.name, " ", "-"))
	if _, err := os.Stat(path); err == nil {
		return path
	}
	cmd := exec.Command(goTool, append(append([]string{"build", "-o", path}, v.flags...), ".")...)
	cmd.Dir = filepath.Join("testdata", "program")
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
	cmd.Env = append(cmd.Env, v.env...)
	if !v.stripped {
		// Up to Go 1.18 compressed sections have names of their own.
		cmd.Args = append(cmd.Args[:len(cmd.Args)-1], "-ldflags=-compressdwarf=false", ".")
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", v.name, err, out)
	}
	return path
}

func open1(t testing.TB, path string) *Program {
	t.Helper()
	f, err := elffile.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	p, err := Runtime{}.Recognise(f, "")
	if err != nil {
		t.Fatal(err)
	}
	if p == nil {
		t.Fatalf("%s is not recognised", path)
	}
	return p.(*Program)
}
