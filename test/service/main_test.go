// Package service holds "kalypso-agent run" to its promises from outside: the
// program itself, built once, as root, with real eBPF, sends to a real receiver
// that behaves as badly as backends do (otlptest). Every sample that the kernel
// side took must be at the receiver or be counted where the agent says it is.
//
// KALYPSO_LONG=1 runs the forms that take minutes: an outage of a minute, a
// minute of the CPU budget, a soak of five.
package service

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/kalypso-dev/kalypso/bpf/bpftest"
)

// The environment hands what was built to the tests, so that no variable of the
// package has to.
const (
	binDir = "KALYPSO_TEST_BIN"
	long   = "KALYPSO_LONG"
)

// update rewrites docs/reference/capabilities.md.
var update = flag.Bool("update", false, "rewrite docs/reference/capabilities.md")

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "kalypso-service-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()
		err = os.Chmod(dir, 0o755) // other users start what is in it
	}
	if err == nil {
		err = build(dir)
	}
	if err == nil {
		err = os.Setenv(binDir, dir)
	}
	// Tests that run at once mostly wait, for a backend that is away.
	if err == nil {
		err = flag.Set("test.parallel", "12")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "build kalypso-agent:", err)
		return 1
	}
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	return code
}

func build(dir string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-X main.version=v0.0.0-test",
		"-o", filepath.Join(dir, "kalypso-agent"), "../../cmd/agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return cmd.Run()
}

// program is the path of the agent.
func program() string { return filepath.Join(os.Getenv(binDir), "kalypso-agent") }

// inLong says whether the long forms run.
func inLong() bool { return os.Getenv(long) == "1" }

// require skips the test, or fails it, where the agent cannot run.
func require(t *testing.T) {
	t.Helper()
	bpftest.Require(t)
}

// requireTools skips the test where a program is missing, or fails it where
// none may be.
func requireTools(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("KALYPSO_REQUIRE_TOOLS") == "1" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}
