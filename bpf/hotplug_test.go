package bpf_test

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/bpf/bpftest"
)

// TestHotplug: sampling and process events go on when a CPU goes offline, and
// take it in again when it comes back.
func TestHotplug(t *testing.T) {
	bpftest.Require(t)
	const cpu = 1
	path := fmt.Sprintf("/sys/devices/system/cpu/cpu%d/online", cpu)
	set := func(state string) error { return os.WriteFile(path, []byte(state), 0) }
	if err := set("1"); err != nil {
		t.Skip("the CPUs of this machine cannot be taken offline: ", err)
	}
	k, err := bpf.Load(bpf.Config{OnlyTargets: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = k.Close() }()
	s := sideband(t)
	if err := k.Attach(997); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = set("1") }()
	if err := set("0"); err != nil {
		t.Skip("the CPUs of this machine cannot be taken offline: ", err)
	}
	if err := k.SyncCPUs(); err != nil {
		t.Fatalf("a CPU went offline: %v", err)
	}
	lost := s.Lost()
	time.Sleep(bpf.FollowEvery) // the list is looked at that often
	drain(t, s)
	if err := set("1"); err != nil {
		t.Fatal(err)
	}
	if err := k.SyncCPUs(); err != nil {
		t.Fatalf("a CPU came back: %v", err)
	}
	time.Sleep(bpf.FollowEvery)
	drain(t, s)
	if s.Lost() == lost {
		t.Error("nothing says that events of the CPU may have been missed")
	}

	// A busy process that may only run on that CPU.
	spin := exec.Command("taskset", "-c", fmt.Sprint(cpu), "sh", "-c", "while :; do :; done")
	if err := spin.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = spin.Process.Kill()
		_ = spin.Wait()
	}()
	pid := uint32(spin.Process.Pid)
	if err := k.AddTarget(pid); err != nil {
		t.Fatal(err)
	}
	sampled, execs := uint64(0), false
	for deadline := time.Now().Add(10 * time.Second); (sampled < 100 || !execs) && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		c, err := k.Counters()
		if err != nil {
			t.Fatal(err)
		}
		sampled = c.Samples
		execs = execs || slices.ContainsFunc(drain(t, s), func(e bpf.ProcessEvent) bool {
			return e.Kind == bpf.EventExec && e.PID == pid
		})
	}
	if sampled < 100 {
		t.Errorf("%d samples on the CPU that came back, want at least 100", sampled)
	}
	if !execs {
		t.Error("no event tells of an exec on the CPU that came back")
	}
}
