package pipeline

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/sampler"
	"github.com/kalypso-dev/kalypso/profiler/workload"
)

func newTestIdentities(service string, labels ...profiler.Attribute) *identities {
	return newIdentities("box", "", service, labels, nil, noCgroups(), func(profiler.PID) profiler.PID { return 1 })
}

// noCgroups are those of a machine that shows none: what /proc says holds.
func noCgroups() *workload.Cgroups { return workload.NewCgroups(new(workload.Hierarchies)) }

// processOf is a process as the kernel side tells it, but for its cgroups. One that
// is gone was started last.
func processOf(pid profiler.PID) sampler.Process {
	p := sampler.Process{PID: pid, Started: math.MaxUint64}
	if st, err := readStatus(pid); err == nil {
		p.Started = st.started * clockTick
	}
	return p
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
	x := newIdentities("box", "", "", nil, nil, noCgroups(), func(profiler.PID) profiler.PID { return own })
	x.see(processOf(own), "me")
	if got := x.of(processOf(own), "me"); got.exe != exe || got.cgroup == "" {
		t.Fatalf("of this process: %+v", got)
	}
	x.byPID[own].cgroup = "/system.slice/parent.service"
	x.see(processOf(gone), "child")
	if got := x.of(processOf(gone), "child"); got.workload.Attribute("service.name") != "parent" {
		t.Errorf("the child of a unit's process is %v", got.workload)
	}
	x.processes[processKey{processOf(gone), "child"}].exe = "/bin/known"
	x.see(processOf(gone), "child")
	if got := x.of(processOf(gone), "child"); got.exe != "/bin/known" {
		t.Errorf("what was known of a process that is gone is forgotten: %+v", got)
	}
	if got := x.of(processOf(gone), "exec'd"); got.workload.Attribute("service.name") != "parent" {
		t.Errorf("the same process under another name is %v", got.workload)
	}
	x.end([]profiler.PID{gone})
	if got := x.of(processOf(gone), "child"); got.exe != "/bin/known" {
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
		x := newIdentities("box", "", "", nil, nil, noCgroups(), func(pid profiler.PID) profiler.PID { return parents[pid] })
		if got := x.of(processOf(child), "unmet"); got.cgroup != want {
			t.Errorf("%s: a process that was never met is in %q, want %q", name, got.cgroup, want)
		}
		x.see(processOf(child), "child")
		if got := x.of(processOf(child), "child"); got.cgroup != want {
			t.Errorf("%s: a process that is gone is in %q, want %q", name, got.cgroup, want)
		}
	}
	endless := newIdentities("box", "", "", nil, nil, noCgroups(), func(pid profiler.PID) profiler.PID { return child })
	if got := endless.of(processOf(child), "loop"); got.cgroup != "" {
		t.Errorf("its own ancestor is in %q", got.cgroup)
	}
}

// TestIdentityIsNotAnothers: a process that has the PID of one that is gone, kin in
// another cgroup, and what a process was before do not say what it is.
func TestIdentityIsNotAnothers(t *testing.T) {
	own := profiler.PID(os.Getpid())
	now := processOf(own)
	before := now
	before.Started -= clockTick
	x := newIdentities("box", "", "", nil, nil, noCgroups(), func(profiler.PID) profiler.PID { return 0 })
	x.see(now, "me")
	x.see(before, "me")
	if got := x.of(before, "me"); got.exe != "" || got.cgroup != "" {
		t.Errorf("a process that had the PID before is %+v", got)
	}
	if got := x.of(now, "me"); got.exe == "" || got.cgroup == "" {
		t.Errorf("the process that has it now is %+v", got)
	}

	x = newIdentities("box", "", "", nil, nil, noCgroups(), func(profiler.PID) profiler.PID { return own })
	x.cgroups.Made(7, false, "/there.service")
	x.see(now, "me")
	x.byPID[own].Cgroups, x.byPID[own].cgroup = workload.IDs{9}, "/runtime.service"
	child := sampler.Process{PID: 1 << 22, Started: math.MaxUint64}
	for ids, want := range map[workload.IDs]string{{9}: "/runtime.service", {7}: "/there.service", {8}: ""} {
		child.Cgroups = ids
		if x.see(child, "child"); x.of(child, "child").cgroup != want {
			t.Errorf("a process that is gone, of cgroup %d, is in %q, want %q", ids[0], x.of(child, "child").cgroup, want)
		}
	}
	x.byPID[own].Started = math.MaxUint64
	if got := x.of(sampler.Process{PID: 1<<22 + 1, Started: 5, Cgroups: workload.IDs{9}}, "child"); got.cgroup != "" {
		t.Errorf("one that was started before its parent's PID was given is in %q", got.cgroup)
	}
}

// TestIdentitiesAreForgotten: with the process, and what it was before, some rounds
// after; what has its PID since is not.
func TestIdentitiesAreForgotten(t *testing.T) {
	x := newIdentities("box", "", "", nil, nil, noCgroups(), func(profiler.PID) profiler.PID { return 0 })
	own := processOf(profiler.PID(os.Getpid()))
	for i := range 100 { // it goes on changing its name
		x.see(own, fmt.Sprint("name-", i))
		x.end(nil)
	}
	if n := len(x.processes); n > keepOther+2 {
		t.Errorf("%d names of a process are remembered", n)
	}
	x.end([]profiler.PID{own.PID})
	again := own
	again.Started++
	x.see(again, "again")
	x.end(nil)
	if len(x.processes) != 1 || x.processes[processKey{again, "again"}] == nil || len(x.byPID) != 1 {
		t.Errorf("left are %v", x.processes)
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
	x.see(processOf(own), "me")
	x.relabel("node", []profiler.Attribute{{Key: "env", Value: "test"}})
	x.byPID[own].cgroup = "/"
	if diff := cmp.Diff(attributes(x.of(processOf(own), "me").workload), map[string]string{"service.name": "node", "host.name": "box", "env": "test"}); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}

const testPod = "5cd8b7a1-0c2d-4e5f-8a9b-1c2d3e4f5a6b"

// inPod is the cgroup of a container of a pod.
func inPod(uid, container string) string { return "/kubepods/pod" + uid + "/" + container }

func podOf(container string) *workload.Pod {
	p := &workload.Pod{UID: testPod, Namespace: "shop", Name: "web-0", Owner: workload.Owner{Kind: "StatefulSet", Name: "web"}}
	if container != "" {
		p.Containers = []workload.PodContainer{{ID: container, Name: "server"}}
	}
	return p
}

func TestPodsOfNode(t *testing.T) {
	mine, other := strings.Repeat("0123456789abcdef", 4), strings.Repeat("fedcba9876543210", 4)
	pods := workload.NewPods()
	pods.Set(podOf(mine), time.Now())
	x := newIdentities("box", "node-1", "", nil, pods, noCgroups(), nil)
	of := func(cgroup string) map[string]string {
		return attributes(x.workload(&identity{exe: "/app", cgroup: cgroup}, "app"))
	}
	for _, tt := range []struct {
		name, cgroup string
		want         map[string]string
	}{
		{"a pod's container", inPod(testPod, mine), map[string]string{
			"service.name": "web", "service.namespace": "shop", "k8s.namespace.name": "shop", "k8s.pod.name": "web-0", "k8s.container.name": "server",
			"k8s.statefulset.name": "web", "k8s.node.name": "node-1", "container.id": mine, "host.name": "box"}},
		{"a container that is not told of", inPod(testPod, other), map[string]string{
			"service.name": "web", "service.namespace": "shop", "k8s.namespace.name": "shop", "k8s.pod.name": "web-0",
			"k8s.statefulset.name": "web", "k8s.node.name": "node-1", "container.id": other, "host.name": "box"}},
		{"a pod of another node", inPod("6"+testPod[1:], other), map[string]string{
			"service.name": "container-fedcba987654", "container.id": other, "host.name": "box"}},
		{"a container in no pod", "/docker/" + other, map[string]string{
			"service.name": "container-fedcba987654", "container.id": other, "host.name": "box", "k8s.node.name": "node-1"}},
		{"a unit", "/system.slice/kubelet.service", map[string]string{
			"service.name": "kubelet", "systemd.unit": "kubelet.service", "host.name": "box", "k8s.node.name": "node-1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(of(tt.cgroup), tt.want); diff != "" {
				t.Errorf("(-got +want):\n%s", diff)
			}
		})
	}

	// What was said of a pod before holds no longer.
	before := x.workload(&identity{cgroup: inPod(testPod, mine)}, "app")
	renamed := podOf(mine)
	renamed.Labels = map[string]string{"app.kubernetes.io/name": "shop-web"}
	pods.Set(renamed, time.Now())
	if got := of(inPod(testPod, mine))["service.name"]; got != "shop-web" || before.Attribute("service.name") != "web" {
		t.Errorf("after a label changed it is %q, before %q", got, before.Attribute("service.name"))
	}
}

// A container that Kubernetes has not told of yet is waited for, once and not long.
func TestSettle(t *testing.T) {
	mine, never := strings.Repeat("0123456789abcdef", 4), strings.Repeat("fedcba9876543210", 4)
	pods := workload.NewPods()
	pods.Set(podOf(""), time.Now())
	x := newIdentities("box", "node-1", "", nil, pods, noCgroups(), nil)
	nobody := func() bool { return false }
	x.settle(func() { t.Error("it waits for nobody") }, nobody)
	x.meet(inPod(testPod, mine))
	x.meet("/docker/" + never) // in no pod: nobody will tell of it
	select {
	case <-pods.Wanted():
	default:
		t.Error("nobody is asked for a container that is not known")
	}
	begin := time.Now()
	x.settle(func() { // it waits: now it is told
		pods.Set(podOf(mine), time.Now())
	}, nobody)
	if took := time.Since(begin); took > patience/2 {
		t.Errorf("it waited %s for a container that was told of at once", took)
	}
	if c, ok := pods.Find(inPod(testPod, mine)); !ok || c.Name != "server" {
		t.Errorf("the container is %+v", c)
	}

	x.meet(inPod(testPod, never))
	begin = time.Now()
	x.settle(func() {}, func() bool { return true })
	if took := time.Since(begin); took < hurry || took > patience/2 {
		t.Errorf("it waited %s though somebody waits", took)
	}
	now := time.Now()
	if left := x.waitFor(now, now); left <= 0 || left > patience {
		t.Errorf("it would wait %s", left)
	}
	if left := x.waitFor(begin.Add(-time.Second), now); left > 0 {
		t.Errorf("it would wait %s for one that was met later", left)
	}
	if left := x.waitFor(now, now.Add(patience)); left > 0 {
		t.Errorf("it would wait %s more", left)
	}
	x.meet(inPod(testPod, never))
	if len(x.unsettled) != 0 {
		t.Error("it would wait a second time")
	}
}

// The first container of a pod that nobody tells of is its sandbox: it is not waited
// for once the others are known. One that comes later was started again, and is.
func TestSettleSandbox(t *testing.T) {
	sandbox, mine, again := strings.Repeat("0", 64), strings.Repeat("1", 64), strings.Repeat("2", 64)
	pods := workload.NewPods()
	pods.Set(podOf(""), time.Now())
	x := newIdentities("box", "node-1", "", nil, pods, noCgroups(), nil)
	x.meet(inPod(testPod, sandbox))
	now := time.Now()
	if left := x.waitFor(now, now); left <= strangers {
		t.Errorf("it would wait %s while the pod has told of nothing", left)
	}
	told := podOf(mine)
	told.Told = true
	pods.Set(told, now)
	if left := x.waitFor(now, now); left > 0 {
		t.Errorf("it would wait %s for the sandbox of a pod that has told of all else", left)
	}
	x.meet(inPod(testPod, again))
	if now = time.Now(); x.waitFor(now, now) <= 0 {
		t.Error("it would not wait for a container that was started again")
	}

	x = newIdentities("box", "node-1", "", nil, workload.NewPods(), noCgroups(), nil)
	x.meet(inPod(testPod, mine))
	if now = time.Now(); x.waitFor(now, now.Add(strangers)) > 0 {
		t.Error("it would wait long for a container of another node")
	}
}
