package pipeline

import (
	"os"
	"os/exec"
	"testing"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/workload"
)

// TestRunning: processes are listed that no sample was ever of, and those of the
// kernel and those that ended are not.
func TestRunning(t *testing.T) {
	ended := exec.Command("true") // nobody waits for it until the test is over
	if err := ended.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ended.Wait() }()
	until(t, "true has ended", func() bool { return !runs(profiler.PID(ended.Process.Pid)) })
	s := &Service{who: newTestIdentities(""), groups: new(workload.Hierarchies)}
	list, err := s.Running()
	if err != nil {
		t.Fatal(err)
	}
	self := false
	for _, r := range list {
		if r.Process.PID == profiler.PID(ended.Process.Pid) {
			t.Errorf("it ended: %+v", r.Process)
		}
		if _, kernel, _ := readExe(r.Process.PID); kernel {
			t.Errorf("it is a thread of the kernel: %+v", r.Process)
		}
		if r.Process.PID == profiler.PID(os.Getpid()) {
			self = r.Process.Exe != "" && r.Process.Comm != "" && r.Process.Cgroup != "" && r.Workload.Attribute("host.name") == "box"
		}
	}
	if !self {
		t.Errorf("this process is not among %d, or not known", len(list))
	}
}
