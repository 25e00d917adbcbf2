package bpf

import (
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCapabilities(t *testing.T) {
	bit := func(c int) uint64 { return 1 << c }
	tests := []struct {
		name string
		have uint64
		want string
	}{
		{"none", 0, "CAP_BPF and CAP_PERFMON"},
		{"all", 1<<64 - 1, ""},
		{"CAP_SYS_ADMIN stands for both", bit(unix.CAP_SYS_ADMIN), ""},
		{"both", bit(unix.CAP_BPF) | bit(unix.CAP_PERFMON), ""},
		{"one", bit(unix.CAP_BPF), "CAP_PERFMON"},
		{"the other", bit(unix.CAP_PERFMON), "CAP_BPF"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := capabilities(tt.have); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// TestShellWords asks the shell.
func TestShellWords(t *testing.T) {
	args := []string{"plain", "two words", "", "it's", `a"b\c`, "$(true)", "-o", "x;y", "tab\there", "ü", "a\nb", "*"}
	out, err := exec.Command("sh", "-c", `printf '%s\0' `+shellWords(args)).Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00"); strings.Join(got, "|") != strings.Join(args, "|") {
		t.Errorf("the shell reads %q, want %q", got, args)
	}
}
