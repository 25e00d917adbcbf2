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
	"github.com/kalypso-dev/kalypso/test/internal/script"
)

// long is the variable that asks for the long forms.
const long = "KALYPSO_LONG"

// update rewrites docs/reference/capabilities.md.
var update = flag.Bool("update", false, "rewrite docs/reference/capabilities.md")

func TestMain(m *testing.M) {
	flag.Parse()
	code := script.Main(m, "kalypso-agent", "../../cmd/agent", func() error {
		// Tests that run at once mostly wait, for a backend that is away.
		return flag.Set("test.parallel", "12")
	})
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// program is the path of the agent.
func program() string { return filepath.Join(script.Dir(), "kalypso-agent") }

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
