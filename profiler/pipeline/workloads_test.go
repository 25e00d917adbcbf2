package pipeline

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/workload"
)

func newTestIdentities(service string, labels ...profiler.Attribute) *identities {
	return newIdentities("box", "", service, labels, nil, func(profiler.PID) profiler.PID { return 1 })
}

func attributes(w *profiler.Workload) map[string]string {
	m := map[string]string{}
	for _, a := range w.Attributes {
		m[a.Key] = a.Value
	}
	return m
}

func TestWorkloadAttributes(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	label := profiler.Attribute{Key: "env", Value: "prod"}
	for _, tt := range []struct {
		name    string
		who     *identities
		process identity
		comm    string
		want    map[string]string
	}{
		{
			"a program in no unit", newTestIdentities(""), identity{exe: "/usr/bin/python3.11", cgroup: "/"}, "python",
			map[string]string{"service.name": "python3.11", "process.executable.name": "python3.11", "host.name": "box"},
		},
		{
			"a program whose file was deleted", newTestIdentities(""), identity{exe: "/opt/app (deleted)", cgroup: "/"}, "app",
			map[string]string{"service.name": "app", "process.executable.name": "app", "host.name": "box"},
		},
		{
			"a process of which only the name is known", newTestIdentities(""), identity{}, "cc1",
			map[string]string{"service.name": "cc1", "process.executable.name": "cc1", "host.name": "box"},
		},
		{
			"a name with control characters", newTestIdentities(""), identity{}, "a\x1b[2J",
			map[string]string{"service.name": profiler.Printable("a\x1b[2J"), "process.executable.name": profiler.Printable("a\x1b[2J"), "host.name": "box"},
		},
		{
			"a program in memory only, whose name is made up for each run", newTestIdentities(""), identity{exe: "/memfd:sealed-9117 (deleted)", cgroup: "/"}, "runner",
			map[string]string{"service.name": "runner", "process.executable.name": "runner", "host.name": "box"},
		},
		{
			"the host's processes under one name", newTestIdentities("node"), identity{exe: "/bin/sh", cgroup: "/"}, "sh",
			map[string]string{"service.name": "node", "host.name": "box"},
		},
		{
			"a kernel thread", newTestIdentities("node"), identity{cgroup: "/", kernel: true}, "kworker/0:1",
			map[string]string{"service.name": "kernel", "host.name": "box"},
		},
		{
			"a unit", newTestIdentities("node", label), identity{exe: "/usr/sbin/nginx", cgroup: "/system.slice/nginx.service"}, "nginx",
			map[string]string{"service.name": "nginx", "systemd.unit": "nginx.service", "host.name": "box", "env": "prod"},
		},
		{
			"a container", newTestIdentities("", label), identity{exe: "/app", cgroup: "/docker/" + id}, "app",
			map[string]string{"service.name": "container-0123456789ab", "container.id": id, "host.name": "box", "env": "prod"},
		},
		{
			"a label over what was found out", newTestIdentities("", profiler.Attribute{Key: "service.name", Value: "all"}), identity{exe: "/app", cgroup: "/"}, "app",
			map[string]string{"service.name": "all", "process.executable.name": "app", "host.name": "box"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := tt.who.workload(&tt.process, tt.comm)
			if diff := cmp.Diff(attributes(w), tt.want); diff != "" {
				t.Errorf("(-got +want):\n%s", diff)
			}
			if again := tt.who.workload(&tt.process, tt.comm); again != w {
				t.Error("the same identity gives another workload")
			}
		})
	}
}

// TestIdentityOfTheGone: a process that cannot be asked any more is where it
// was before its exec, or where its parent is.
func TestIdentityOfTheGone(t *testing.T) {
	const gone = 1 << 22 // above pid_max's default
	own := profiler.PID(os.Getpid())
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	x := newIdentities("box", "", "", nil, nil, func(profiler.PID) profiler.PID { return own })
	x.see(own, "me")
	if got := x.of(own, "me"); got.exe != exe || got.cgroup == "" {
		t.Fatalf("of this process: %+v", got)
	}
	x.byPID[own].cgroup = "/system.slice/parent.service"
	x.see(gone, "child")
	if got := x.of(gone, "child"); got.workload.Attribute("service.name") != "parent" {
		t.Errorf("the child of a unit's process is %v", got.workload)
	}
	x.processes[processKey{gone, "child"}].exe = "/bin/known"
	x.see(gone, "child")
	if got := x.of(gone, "child"); got.exe != "/bin/known" {
		t.Errorf("what was known of a process that is gone is forgotten: %+v", got)
	}
	if got := x.of(gone, "exec'd"); got.workload.Attribute("service.name") != "parent" {
		t.Errorf("the same process under another name is %v", got.workload)
	}
	x.end([]profiler.PID{gone})
	if got := x.of(gone, "child"); got.exe != "/bin/known" {
		t.Error("a process is forgotten while a window may still hold samples of it")
	}
	x.end(nil)
	if len(x.processes) != 1 || len(x.byPID) != 1 {
		t.Errorf("%d processes are left, want this one", len(x.processes))
	}
}

// TestIdentityByAskingKin: a parent that was never sampled is asked in /proc, and
// a grandparent where the parent is gone too.
func TestIdentityByAskingKin(t *testing.T) {
	own := profiler.PID(os.Getpid())
	want, err := workload.CgroupOf(own)
	if err != nil {
		t.Fatal(err)
	}
	const child, middle = 1 << 22, 1<<22 + 1 // above pid_max's default: gone
	for name, parents := range map[string]map[profiler.PID]profiler.PID{
		"parent":      {child: own},
		"grandparent": {child: middle, middle: own},
	} {
		x := newIdentities("box", "", "", nil, nil, func(pid profiler.PID) profiler.PID { return parents[pid] })
		if got := x.of(child, "unmet"); got.cgroup != want {
			t.Errorf("%s: a process that was never met is in %q, want %q", name, got.cgroup, want)
		}
		x.see(child, "child")
		if got := x.of(child, "child"); got.cgroup != want {
			t.Errorf("%s: a process that is gone is in %q, want %q", name, got.cgroup, want)
		}
	}
	endless := newIdentities("box", "", "", nil, nil, func(pid profiler.PID) profiler.PID { return child })
	if got := endless.of(child, "loop"); got.cgroup != "" {
		t.Errorf("its own ancestor is in %q", got.cgroup)
	}
}

func TestWorkloadsAreBounded(t *testing.T) {
	x := newTestIdentities("")
	for i := range maxWorkloads + 100 {
		x.workload(&identity{exe: filepath.Join("/bin", fmt.Sprint("program", i))}, "x")
	}
	w := x.workload(&identity{exe: "/bin/one-more"}, "x")
	if w.Attribute("service.name") != "other" || len(x.workloads) > maxWorkloads+1 {
		t.Errorf("one more is %v, %d are kept", w, len(x.workloads))
	}
	x.end(nil)
	if w := x.workload(&identity{exe: "/bin/one-more"}, "x"); w.Attribute("service.name") != "one-more" {
		t.Errorf("in the next window it is %v", w)
	}
}

func TestRelabel(t *testing.T) {
	x := newTestIdentities("")
	own := profiler.PID(os.Getpid())
	x.see(own, "me")
	x.relabel("node", []profiler.Attribute{{Key: "env", Value: "test"}})
	x.byPID[own].cgroup = "/"
	if diff := cmp.Diff(attributes(x.of(own, "me").workload), map[string]string{"service.name": "node", "host.name": "box", "env": "test"}); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}
