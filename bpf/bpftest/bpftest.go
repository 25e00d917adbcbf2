// Package bpftest runs the functions of the kernel side outside of sampling:
// one at a time in the kernel, through programs that a test calls
// (functions.bpf.c), and whole walks natively under sanitizers (native/). It is
// for tests only and knows nothing of processes; they bring tables, registers
// and stacks.
package bpftest

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Require skips the test where BPF programs cannot be loaded and perf events
// not opened, and says what is missing. It fails the test instead where
// KALYPSO_REQUIRE_BPF=1, as in CI.
func Require(t testing.TB) {
	t.Helper()
	err := missing()
	switch {
	case err == nil:
	case os.Getenv("KALYPSO_REQUIRE_BPF") == "1":
		t.Fatalf("KALYPSO_REQUIRE_BPF=1, and %v", err)
	default:
		t.Skip(err)
	}
}

// missing says what BPF tests lack.
func missing() error {
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		return fmt.Errorf("the kernel does not describe its types: %w", err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	return capabilities(string(status))
}

// capabilities says which of the two capabilities that sampling needs is not
// in effect, by the text of /proc/self/status.
func capabilities(status string) error {
	_, rest, found := strings.Cut(status, "\nCapEff:")
	if !found {
		return errors.New("/proc/self/status does not tell the capabilities")
	}
	line, _, _ := strings.Cut(rest, "\n")
	have, err := strconv.ParseUint(strings.TrimSpace(line), 16, 64)
	if err != nil {
		return fmt.Errorf("read the capabilities of this process: %w", err)
	}
	if have&(1<<unix.CAP_SYS_ADMIN) != 0 {
		return nil // stands for both: include/linux/capability.h, bpf_capable and perfmon_capable
	}
	for _, c := range []struct {
		bit  int
		name string
	}{{unix.CAP_BPF, "CAP_BPF"}, {unix.CAP_PERFMON, "CAP_PERFMON"}} {
		if have&(1<<c.bit) == 0 {
			return fmt.Errorf("this process lacks %s: run the test as root", c.name)
		}
	}
	return nil
}
