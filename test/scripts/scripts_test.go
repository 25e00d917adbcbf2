// Package scripts is the contract of kalypso-agent's command line: what is
// typed, what is printed, and the exit code. Each testdata/*.txtar runs the
// program itself, built once, in a directory of its own.
//
// "go test ./test/scripts -update" rewrites the expected output inside the
// scripts; read the diff.
package scripts

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(buildAndRun(m))
}

// binDir holds the program; the environment hands it to tests, so that no
// variable of the package has to.
const binDir = "KALYPSO_TEST_BIN"

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "kalypso-scripts-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()
		// Other users must be able to start the program.
		err = os.Chmod(dir, 0o755)
	}
	if err == nil {
		build := exec.Command("go", "build", "-trimpath", "-buildvcs=false",
			"-ldflags", "-X main.version=v0.0.0-test -X main.commit=0123456789abcdef",
			"-o", filepath.Join(dir, "kalypso-agent"), "../../cmd/agent")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		build.Stdout, build.Stderr = os.Stderr, os.Stderr
		err = build.Run()
	}
	if err == nil {
		err = os.Setenv(binDir, dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "build kalypso-agent:", err)
		return 1
	}
	return m.Run()
}

var update = flag.Bool("update", false, "rewrite the expected output in testdata/*.txtar")

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", os.Getenv(binDir)+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("LANG", "C.UTF-8")
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond != "bpf" {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			return canUseBPF(t), nil
		},
	})
}

// canUseBPF says whether tests that load programs can run. Where they must
// (KALYPSO_REQUIRE_BPF=1, as in CI) it fails the test in place of a no.
func canUseBPF(t *testing.T) bool {
	t.Helper()
	if os.Geteuid() == 0 {
		return true
	}
	if os.Getenv("KALYPSO_REQUIRE_BPF") == "1" {
		t.Fatal("KALYPSO_REQUIRE_BPF=1, and this is not root")
	}
	return false
}
