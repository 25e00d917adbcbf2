package bpftest

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMissingCapabilityIsNamed(t *testing.T) {
	const all = uint64(1)<<41 - 1
	for _, c := range []struct {
		have uint64
		want string // part of the message; empty: nothing is missing
	}{
		{all, ""},
		{1 << unix.CAP_SYS_ADMIN, ""},
		{1<<unix.CAP_BPF | 1<<unix.CAP_PERFMON, ""},
		{1 << unix.CAP_BPF, "CAP_PERFMON"},
		{1 << unix.CAP_PERFMON, "CAP_BPF"},
		{0, "CAP_BPF"},
	} {
		err := capabilities(fmt.Sprintf("CapPrm:\t%016x\nCapEff:\t%016x\nCapBnd:\t%016x\n", all, c.have, all))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("with %#x: %v, want %q", c.have, err, c.want)
		}
	}
	if capabilities("Name:\tx\n") == nil {
		t.Error("no capabilities are told, and none is missing")
	}
}
