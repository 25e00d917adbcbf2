// Package script runs the scripts that are the contract of our command lines:
// what is typed, what is printed, and the exit code. A program is built once;
// each testdata/*.txtar runs it in a directory of its own.
package script

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// dirVariable holds the folder of the program; the environment hands it to
// tests, so that no variable of a package has to.
const dirVariable = "KALYPSO_TEST_BIN"

// Dir is the folder that has the program, and whatever Main's prepare put there.
func Dir() string { return os.Getenv(dirVariable) }

// Main builds the program of a package under a name, calls prepare (when not
// nil), runs the tests and gives the exit code. The program calls itself
// v0.0.0-test.
func Main(m *testing.M, name, pkg string, prepare func() error) int {
	dir, err := os.MkdirTemp("", "kalypso-scripts-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()
		// Other users must be able to start the program.
		err = os.Chmod(dir, 0o755)
	}
	if err == nil {
		build := exec.Command("go", "build", "-trimpath", "-buildvcs=false",
			"-ldflags", "-X main.version=v0.0.0-test -X main.commit=0123456789abcdef",
			"-o", filepath.Join(dir, name), pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		build.Stdout, build.Stderr = os.Stderr, os.Stderr
		err = build.Run()
	}
	if err == nil {
		err = os.Setenv(dirVariable, dir)
	}
	if err == nil && prepare != nil {
		err = prepare()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "build %s: %v\n", name, err)
		return 1
	}
	return m.Run()
}

// Params are what all scripts are run with. update rewrites the expected output
// inside them.
func Params(update bool) testscript.Params {
	return testscript.Params{
		Dir:                 "testdata",
		UpdateScripts:       update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", Dir()+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("LANG", "C.UTF-8")
			return nil
		},
	}
}
