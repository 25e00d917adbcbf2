package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/kalypso-dev/kalypso/cmd/agent/internal/config"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/telemetry"
)

// TestFoldersThatTheAgentCannotGoOnWritingTo: root may write to everything until
// it drops privileges, which is when sampling begins and nobody looks any more.
func TestFoldersThatTheAgentCannotGoOnWritingTo(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("KALYPSO_REQUIRE_BPF") == "1" {
			t.Fatal("KALYPSO_REQUIRE_BPF=1, and this is not root")
		}
		t.Skip("takes root")
	}
	tests := []struct {
		name     string
		uid, gid int
		mode     os.FileMode
		why, fix string // of the fault; empty: there is none
	}{
		{"root's", 0, 0, 0o755, "", ""},
		{"another user's", 1000, 1000, 0o755, "it belongs to user 1000", "chown root "},
		{"another user's, for all to write to", 1000, 1000, 0o777, "", ""},
		{"another user's, for root's group to write to", 1000, 0, 0o775, "", ""},
		{"root's, for nobody to write to", 0, 0, 0o555, "its mode is dr-xr-xr-x", "chmod u+rwx "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			profiles, spools := t.TempDir(), t.TempDir()
			spool := filepath.Join(spools, "pprof")
			if err := os.Mkdir(spool, 0o700); err != nil {
				t.Fatal(err)
			}
			for _, dir := range []string{profiles, spool} {
				if err := errors.Join(os.Chown(dir, tt.uid, tt.gid), os.Chmod(dir, tt.mode)); err != nil {
					t.Fatal(err)
				}
			}
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			before, err := capabilities()
			if err != nil {
				t.Fatal(err)
			}
			d := &daemon{settings: &config.Config{}, log: telemetry.NewLogger(t.Output(), nil, telemetry.Text)}
			defer d.log.Close()
			d.settings.Spool.Dir, d.settings.OTLP.Endpoint, d.settings.OTLP.Insecure = spools, "127.0.0.1:4040", true
			for _, e := range []config.Export{{Kind: "file", Dir: profiles}, {Kind: "pprof"}} {
				o, err := d.newOutlet(e)
				if err == nil {
					err = o.close(t.Context())
				}
				var fault *profiler.Fault
				switch {
				case tt.why == "" && err != nil:
					t.Errorf("%s: %v", e, err)
				case tt.why != "" && (!errors.As(err, &fault) || !strings.Contains(fault.Why.Error(), tt.why) || !strings.HasPrefix(fault.Fix, tt.fix)):
					t.Errorf("%s: got %v, want a fault: %s, %s", e, err, tt.why, tt.fix)
				}
			}
			if after, err := capabilities(); err != nil || after != before {
				t.Errorf("the thread has the capabilities %v, %v; it had %v", after, err, before)
			}
			for _, dir := range []string{profiles, spool} {
				if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
					t.Errorf("left in the folder: %v, %v", left, err)
				}
				if err := os.WriteFile(filepath.Join(dir, "other"), nil, 0o600); err != nil {
					t.Errorf("the rest of the process lost privileges too: %v", err)
				}
			}
		})
	}
}
