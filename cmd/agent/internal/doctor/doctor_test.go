package doctor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/deploy/check"
)

// TestChecksAreComplete: what fails must say what is lost and what to do, and
// must have a page to read on.
func TestChecksAreComplete(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range Checks(nil) {
		if seen[c.ID] {
			t.Errorf("two checks are called %s", c.ID)
		}
		seen[c.ID] = true
		if c.Title == "" || c.Run == nil || c.Effect == "" || c.Fix == "" {
			t.Errorf("%s lacks a title, a run, an effect or a fix", c.ID)
		}
		page, err := os.ReadFile("../../../../docs/checks/" + c.ID + ".md")
		if err != nil {
			t.Errorf("%s has no page: %v", c.ID, err)
		} else if !strings.HasPrefix(string(page), "# "+c.ID+"\n") {
			t.Errorf("the page of %s does not begin with its name", c.ID)
		}
	}
	pages, err := filepath.Glob("../../../../docs/checks/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages {
		if id := strings.TrimSuffix(filepath.Base(p), ".md"); id != "README" && !seen[id] {
			t.Errorf("%s is the page of no check", p)
		}
	}
}

func TestGrant(t *testing.T) {
	const bpf = 1 << 39
	tests := []struct {
		name string
		self self
		want string
	}{
		{"a user is sent to sudo", self{euid: 1000}, "sudo"},
		{"root without it: it was dropped", self{}, "dropped from root"},
		{"a container gets it in its own words", self{container: true}, "add BPF to the container's capabilities"},
		{"there, and a filter is on", self{effective: bpf, seccomp: true}, "seccomp"},
		{"there, and refused", self{effective: bpf}, "dmesg"},
		{"inside a user namespace it does not count", self{effective: bpf, userns: true}, "user namespace"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.self.grant("CAP_BPF"); !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q in it", got, tt.want)
			}
		})
	}
	one := self{effective: bpf, container: true}
	if got := one.grant("CAP_BPF and CAP_PERFMON"); got != "add BPF and PERFMON to the container's capabilities" {
		t.Errorf("one of two is missing: %q", got)
	}
}

func TestKernel(t *testing.T) {
	tests := []struct {
		name, release, arch string
		state               check.State
		said                string
	}{
		{"the oldest that is tested", "6.1.0-56-cloud-amd64", "amd64", check.Passed, "6.1.0-56-cloud-amd64 amd64"},
		{"what should do is not what was tested", "5.15.0-122-generic", "arm64", check.Passed, "5.15.0-122-generic arm64, older than all that is tested (6.1): the checks below try what is needed"},
		{"a helper is not there", "5.14.0-503.el9", "amd64", check.Failed, "5.14.0-503.el9 amd64 (need >= 5.15, tested from 6.1 on)"},
		{"no programs for this architecture", "6.12.0", "riscv64", check.Failed, "6.12.0 riscv64"},
		{"not a version", "next", "amd64", check.Failed, `release "next" is not a version`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := judge(tt.release, tt.arch); got.State != tt.state || got.Detail != tt.said {
				t.Errorf("%s: %q, want %s: %q", got.State, got.Detail, tt.state, tt.said)
			}
		})
	}
}

func TestParseCPUs(t *testing.T) {
	tests := []struct {
		list string
		want []int
		ok   bool
	}{
		{"0", []int{0}, true},
		{"0-3", []int{0, 1, 2, 3}, true},
		{"0-1,4,6-7", []int{0, 1, 4, 6, 7}, true},
		{"", nil, false},
		{"3-1", nil, false},
		{"0-99999999", nil, false},
		{"-1", nil, false},
		{"a", nil, false},
	}
	for _, tt := range tests {
		t.Run(tt.list, func(t *testing.T) {
			got, err := parseCPUs(tt.list)
			if diff := cmp.Diff(got, tt.want); diff != "" || (err == nil) != tt.ok {
				t.Errorf("error %v; (-got +want):\n%s", err, diff)
			}
		})
	}
}

func TestReadStat(t *testing.T) {
	tests := []struct {
		name     string
		stat     string
		comm     string
		isKernel bool
		ok       bool
	}{
		{"a process", "7 (sleep) S 1 7 7 0 -1 4194304 100 0 0", "sleep", false, true},
		{"a kernel thread", "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0", "kthreadd", true, true},
		{"a name made to confuse", "7 (a) S 1) R 1 7 7 0 -1 4194304 100", "a) S 1", false, true},
		{"no name", "7", "", false, false},
		{"cut", "7 (x) S 1", "", false, false},
		{"brackets the wrong way", "7 )x( S 1 7 7 0 -1 4194304", "", false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "stat")
			if err := os.WriteFile(path, []byte(tt.stat), 0o600); err != nil {
				t.Fatal(err)
			}
			comm, isKernel, err := readStat(path)
			if comm != tt.comm || isKernel != tt.isKernel || (err == nil) != tt.ok {
				t.Errorf("got %q, %v, %v", comm, isKernel, err)
			}
		})
	}
}

func TestCgroupMounts(t *testing.T) {
	const (
		v2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
		v1 = "31 24 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
		fs = "24 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
	)
	tests := []struct {
		name, mounts, wantV2 string
		wantV1               int
	}{
		{"v2", fs + v2, "/sys/fs/cgroup", 0},
		{"v1", fs + v1 + v1, "", 2},
		{"hybrid", v1 + v2, "/sys/fs/cgroup", 1},
		{"none", fs, "", 0},
		{"lines cut short", "30 24 - \n - cgroup2\n\n", "", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			gotV2, gotV1 := cgroupMounts(tt.mounts)
			if gotV2 != tt.wantV2 || gotV1 != tt.wantV1 {
				t.Errorf("got %q, %d; want %q, %d", gotV2, gotV1, tt.wantV2, tt.wantV1)
			}
		})
	}
}

// FuzzReadStat: a process chooses its own name.
func FuzzReadStat(f *testing.F) {
	f.Add("7 (sleep) S 1 7 7 0 -1 4194304 100 0 0")
	f.Add("7 )x( S 1 7 7 0 -1 4194304")
	f.Add("7 ())))) S")
	f.Fuzz(func(t *testing.T, stat string) {
		if comm, _, err := parseStat(stat); err == nil && !strings.Contains(stat, "("+comm+")") {
			t.Errorf("%q is not in %q", comm, stat)
		}
	})
}
