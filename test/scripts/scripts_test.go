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
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kalypso-dev/kalypso/test/internal/script"
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(script.Main(m, "kalypso-agent", "../../cmd/agent", nil))
}

var update = flag.Bool("update", false, "rewrite the expected output in testdata/*.txtar")

func TestScripts(t *testing.T) {
	params := script.Params(*update)
	params.Condition = func(cond string) (bool, error) {
		if cond != "bpf" {
			return false, fmt.Errorf("unknown condition %q", cond)
		}
		return canUseBPF(t), nil
	}
	testscript.Run(t, params)
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
