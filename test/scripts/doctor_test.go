package scripts

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/test/internal/script"
)

// doctorDoc is what the tests read of kalypso.doctor/v1.
type doctorDoc struct {
	Schema  string `json:"schema"`
	Healthy bool   `json:"healthy"`
	Checks  []struct {
		ID     string `json:"id"`
		State  string `json:"state"`
		Detail string `json:"detail"`
		Effect string `json:"effect"`
		Fix    string `json:"fix"`
	} `json:"checks"`
}

func (d *doctorDoc) failed() []string {
	ids := []string{}
	for _, c := range d.Checks {
		if c.State == "failed" {
			ids = append(ids, c.ID)
		}
	}
	return ids
}

// runDoctor runs doctor under capsh with these arguments and gives what it
// found and its exit code.
func runDoctor(t *testing.T, capsh ...string) (*doctorDoc, int) {
	t.Helper()
	agent := filepath.Join(script.Dir(), "kalypso-agent")
	cmd := exec.Command("capsh", append(capsh, "--", "-c", agent+" doctor -o json")...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("capsh: %v", err)
	}
	doc := &doctorDoc{}
	if err := json.Unmarshal(stdout.Bytes(), doc); err != nil {
		t.Fatalf("doctor printed no JSON: %v\n%s%s", err, &stdout, &stderr)
	}
	if doc.Schema != "kalypso.doctor/v1" {
		t.Errorf("schema is %q", doc.Schema)
	}
	return doc, cmd.ProcessState.ExitCode()
}

// statisticsOn says whether doctor found run-time statistics switched on: then
// it needs no right to do so. Another program's recording may do that at any
// moment.
func (d *doctorDoc) statisticsOn() bool {
	for _, c := range d.Checks {
		if c.ID == "bpf_stats" {
			return strings.Contains(c.Detail, "kernel.bpf_stats_enabled=1")
		}
	}
	return false
}

// TestDoctorWithoutCapabilities takes capabilities away and compares with what
// doctor finds when it has them all. CAP_SYS_ADMIN stands in for many of them
// and goes too.
func TestDoctorWithoutCapabilities(t *testing.T) {
	if !canUseBPF(t) {
		t.Skip("dropping capabilities takes root")
	}
	if _, err := exec.LookPath("capsh"); err != nil {
		if os.Getenv("KALYPSO_REQUIRE_BPF") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	all, code := runDoctor(t)
	if !all.Healthy || code != 0 {
		t.Fatalf("with all capabilities: healthy %v, exit code %d, failed %v", all.Healthy, code, all.failed())
	}
	tests := []struct {
		name    string
		capsh   string
		fails   []string // beside what fails anyway
		healthy bool
		fix     map[string]string // check → what its fix must name
	}{
		{"CAP_SYS_ADMIN stands in for CAP_BPF", "--drop=cap_bpf", nil, true, nil},
		{"without CAP_SYS_ADMIN only statistics are lost", "--drop=cap_sys_admin",
			[]string{"bpf_stats"}, true, map[string]string{"bpf_stats": "SYS_ADMIN"}},
		{"without CAP_BPF nothing loads", "--drop=cap_bpf,cap_sys_admin",
			[]string{"cap_bpf", "bpf_stats"}, false, map[string]string{"cap_bpf": "BPF"}},
		{"without CAP_PERFMON nothing samples", "--drop=cap_perfmon,cap_sys_admin",
			[]string{"cap_perfmon", "bpf_stats"}, false, map[string]string{"cap_perfmon": "PERFMON"}},
		{"without CAP_SYSLOG the kernel has no names", "--drop=cap_syslog,cap_sys_admin",
			[]string{"cap_syslog", "bpf_stats"}, true, map[string]string{"cap_syslog": "SYSLOG"}},
		{"without CAP_SYS_PTRACE others are shut", "--drop=cap_sys_ptrace",
			[]string{"cap_sys_ptrace"}, true, map[string]string{"cap_sys_ptrace": "SYS_PTRACE"}},
		{"without CAP_DAC_READ_SEARCH private files are shut", "--drop=cap_dac_read_search,cap_dac_override",
			[]string{"cap_dac_read_search"}, true, map[string]string{"cap_dac_read_search": "DAC_READ_SEARCH"}},
		{"without CAP_CHECKPOINT_RESTORE deleted files are shut", "--drop=cap_checkpoint_restore,cap_sys_admin",
			[]string{"cap_checkpoint_restore", "bpf_stats"}, true, map[string]string{"cap_checkpoint_restore": "CHECKPOINT_RESTORE"}},
		{"nobody can do nothing", "--user=nobody",
			[]string{"cap_bpf", "cap_perfmon", "cap_syslog", "cap_sys_ptrace", "cap_dac_read_search", "cap_checkpoint_restore", "bpf_stats"},
			false, map[string]string{"cap_bpf": "sudo", "cap_perfmon": "sudo"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, code := runDoctor(t, tt.capsh)
			want := append(all.failed(), tt.fails...)
			slices.Sort(want)
			want = slices.Compact(want)
			if got.statisticsOn() {
				want = slices.DeleteFunc(want, func(id string) bool { return id == "bpf_stats" })
			}
			failed := got.failed()
			slices.Sort(failed)
			if diff := cmp.Diff(failed, want); diff != "" {
				t.Errorf("failed checks (-got +want):\n%s", diff)
			}
			wantCode := 0
			if !tt.healthy {
				wantCode = 3
			}
			if got.Healthy != tt.healthy || code != wantCode {
				t.Errorf("healthy %v, exit code %d; want %v, %d: %+v", got.Healthy, code, tt.healthy, wantCode, got.Checks)
			}
			for _, c := range got.Checks {
				if c.State == "failed" && (c.Detail == "" || c.Effect == "" || c.Fix == "") {
					t.Errorf("%s does not say what, effect and fix: %+v", c.ID, c)
				}
				if name := tt.fix[c.ID]; c.State == "failed" && !strings.Contains(c.Fix, name) {
					t.Errorf("the fix of %s is %q and does not name %s", c.ID, c.Fix, name)
				}
			}
		})
	}
}
