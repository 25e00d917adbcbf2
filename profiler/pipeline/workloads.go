package pipeline

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/sampler"
	"github.com/kalypso-dev/kalypso/profiler/workload"
)

// maxWorkloads bounds the workloads that are told apart between two clean-ups,
// which come with every window. A machine that runs more different programs
// outside of units and containers shows the rest as one.
const maxWorkloads = 4096

// identities says which workload a process belongs to. A process is known by its
// PID, when it was started and the cgroups that it was in when it was sampled, all
// told by the kernel side: PIDs are given again, and processes move. What else there
// is to know is read at its first sample in a window: it may be gone a moment later.
//
// A container's pod is looked up when the window is named, and again for each
// window: its labels may have changed, and of a container that is a second old
// Kubernetes may not have told yet.
type identities struct {
	host    string
	node    string // empty: in no cluster
	service string // name of processes in no unit and no container; empty: their program's
	labels  []profiler.Attribute
	pods    *workload.Pods
	parent  func(profiler.PID) profiler.PID
	cgroups *workload.Cgroups
	met     func(workload.Place) // hears of the cgroup of each process; nil: nobody does

	mu        sync.Mutex
	processes map[processKey]*identity
	byPID     map[profiler.PID]*identity // the newest of each
	leaving   []profiler.PID             // ended; windows that hold samples of them may still be open
	round     int                        // of clean-ups
	workloads map[string]known
	inPods    map[string]bool // cgroups with a pod in their path, since the last clean-up
	unsettled map[string]meeting
}

// meeting is when a cgroup was met whose container is not known yet, and what was
// known of its pod then.
type meeting struct {
	at      time.Time
	podTold bool // of all its containers
}

// known is a workload and the container that it was made of.
type known struct {
	workload  *profiler.Workload
	container workload.Container
}

// identity is what was read of a process.
type identity struct {
	processKey
	exe, cgroup string
	kernel      bool // a kernel thread
	round       int  // in which it was met last
}

func newIdentities(
	host, node, service string, labels []profiler.Attribute, pods *workload.Pods, cgroups *workload.Cgroups,
	parent func(profiler.PID) profiler.PID,
) *identities {
	return &identities{
		host: host, node: node, service: service, labels: labels, pods: pods, parent: parent, cgroups: cgroups,
		processes: map[processKey]*identity{}, byPID: map[profiler.PID]*identity{},
		workloads: map[string]known{}, inPods: map[string]bool{}, unsettled: map[string]meeting{},
	}
}

// see reads what there is to know of a process. It costs two short files.
func (x *identities) see(p sampler.Process, comm string) {
	exe, kernel, there := ask(p)
	place, known, all := placeOf(x.cgroups, p, there)
	if known && x.met != nil {
		x.met(place)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	id := &identity{processKey{p, comm}, exe, place.Path, kernel, x.round}
	if !all {
		id.cgroup = x.withKin(place, p)
	}
	if before := x.before(id); before != nil && exe == "" && !kernel {
		id.exe, id.kernel = before.exe, before.kernel
		if before.Cgroups == p.Cgroups {
			id.cgroup = cmp.Or(id.cgroup, before.cgroup)
		}
	}
	x.processes[id.processKey], x.byPID[p.PID] = id, id
	x.meet(id.cgroup)
}

// before is what was read of the same program of a process earlier.
func (x *identities) before(id *identity) *identity {
	if same := x.processes[id.processKey]; same != nil {
		return same
	}
	if newest := x.byPID[id.PID]; newest != nil && newest.Started == id.Started && newest.comm == id.comm {
		return newest
	}
	return nil
}

// ask reads a process's program, which a kernel thread has none of, and whether it
// is there: its PID may be another's by now.
func ask(p sampler.Process) (exe string, kernel, there bool) {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID))
	st, err2 := readStatus(p.PID) // after the other: if it is the process now, it was then
	if err2 != nil || st.started != p.Started/clockTick {
		return "", false, false
	}
	return exe, errors.Is(err, fs.ErrNotExist) && st.kernel, true
}

// placeOf gives the cgroup that a process is known by, by the numbers of those that
// it was in. all says that no more could be told of it: hierarchies of version 1 are
// many, and a number is known in one.
func placeOf(cgroups *workload.Cgroups, p sampler.Process, there bool) (place workload.Place, known, all bool) {
	place, known = cgroups.Place(p.Cgroups)
	if known && (p.Cgroups[1] == 0 || len(workload.Containers(place.Path)) > 0) {
		return place, true, true
	}
	if there {
		if told, ok := cgroups.PlaceOf(p.PID, p.Cgroups); ok {
			return told, true, true
		}
	}
	return place, known, false
}

// patience is how long a container of a known pod may be unknown before its
// samples are named without it. Kubernetes tells of a container about a second
// after its start, on a busy node after some; of a pod's sandbox it never does,
// which is known once it has told of all others.
//
// strangers is the same for a pod that is not known: Kubernetes tells of a pod
// before its first container is made, so that it is another node's. hurry is how
// long is waited at most where somebody waits for the window.
const (
	patience  = 10 * time.Second
	strangers = 2 * time.Second
	hurry     = time.Second
)

// meet notes a container in a pod that is not known yet, and has it asked for.
func (x *identities) meet(cgroup string) {
	if x.pods == nil || cgroup == "" || x.inPods[cgroup] || len(x.inPods) >= maxWorkloads {
		return
	}
	if !workload.InPod(cgroup) {
		return
	}
	x.inPods[cgroup] = true
	if c, ok := x.pods.Find(cgroup); !ok || c.Name == "" {
		x.unsettled[cgroup] = meeting{time.Now(), ok && c.Pod.Told}
		x.pods.Want()
	}
}

// settle waits until the containers that were met so far are known, or have been
// unknown for long. It calls tick while it waits, and is false where it gave up
// early, because awaited says that somebody else waits.
func (x *identities) settle(tick func(), awaited func() bool) bool {
	if x.pods == nil {
		return true
	}
	begin := time.Now()
	for {
		changed := x.pods.Changed()
		left := x.waitFor(begin, time.Now())
		if left <= 0 {
			return true
		}
		if awaited() && time.Since(begin) >= hurry {
			return false
		}
		x.pods.Want()
		tick()
		timer := time.NewTimer(min(left, hurry/4))
		select {
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// waitFor is how long it is worth to wait for those that were met before begin.
// What is known by now, or was waited for long enough, is not waited for again.
func (x *identities) waitFor(begin, now time.Time) (left time.Duration) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for cgroup, met := range x.unsettled {
		if met.at.After(begin) {
			continue
		}
		c, ok := x.pods.Find(cgroup)
		patient := strangers - now.Sub(met.at)
		sandbox := false
		if ok {
			patient = patience - now.Sub(met.at)
			sandbox = c.Pod.Told && !met.podTold
		}
		if ok && c.Name != "" || sandbox || patient <= 0 {
			delete(x.unsettled, cgroup)
			continue
		}
		left = max(left, patient)
	}
	return left
}

// kin is how many generations are asked. A shell's pipeline may have ended two
// before the process that is looked for was met.
const kin = 4

// withKin is the cgroup of a process of which there is no more to be asked than its
// numbers told: that of its nearest ancestor in the same cgroups, if that is known or
// can be asked, since it may say more. x.mu is held.
func (x *identities) withKin(place workload.Place, p sampler.Process) string {
	pid := p.PID
	for range kin {
		k := x.byPID[pid]
		if k != nil && k.Cgroups == p.Cgroups && k.Started <= p.Started && k.cgroup != "" {
			return k.cgroup
		}
		if pid = x.parent(pid); pid == 0 {
			break
		}
		if k := x.byPID[pid]; k == nil {
			if told, ok := x.cgroups.PlaceOf(pid, p.Cgroups); ok {
				return told.Path
			}
		}
	}
	return place.Path
}

// of gives what is known of a process.
func (x *identities) of(p sampler.Process, comm string) seen {
	x.mu.Lock()
	defer x.mu.Unlock()
	id := x.processes[processKey{p, comm}]
	if id == nil {
		place, _, all := placeOf(x.cgroups, p, false)
		if id = (&identity{cgroup: place.Path}); !all {
			id.cgroup = x.withKin(place, p)
		}
	}
	return seen{id.exe, id.cgroup, x.workload(id, comm)}
}

// keepOther is for how many rounds what a process was before, under another name
// or in another cgroup, is remembered.
const keepOther = 4

// end drops what ended before the last call and was not met since: by now, all
// windows that could hold a sample of it are named. What was met since is another
// process with the same PID.
func (x *identities) end(ended []profiler.PID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	gone := map[profiler.PID]bool{}
	for _, pid := range x.leaving {
		gone[pid] = true
	}
	maps.DeleteFunc(x.processes, func(_ processKey, id *identity) bool {
		return gone[id.PID] && id.round < x.round || id.round+keepOther < x.round && x.byPID[id.PID] != id
	})
	maps.DeleteFunc(x.byPID, func(pid profiler.PID, id *identity) bool { return gone[pid] && id.round < x.round })
	x.leaving = ended
	x.round++
	if len(x.inPods) >= maxWorkloads {
		clear(x.inPods)
	}
	if len(x.workloads) >= maxWorkloads {
		clear(x.workloads)
	}
}

// relabel changes what is said of workloads from now on.
func (x *identities) relabel(service string, labels []profiler.Attribute) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.service, x.labels = service, labels
	clear(x.workloads)
}

// workload gives the one workload that stands for an identity. x.mu is held.
func (x *identities) workload(p *identity, comm string) *profiler.Workload {
	if c, ok := x.pods.Find(p.cgroup); ok {
		return x.once("pod "+c.Pod.UID+" "+c.ID, c, func() []profiler.Attribute { return x.onNode(c.Attributes()) })
	}
	id := workload.Identify(p.cgroup)
	program := filepath.Base(strings.TrimSuffix(p.exe, " (deleted)"))
	if p.exe == "" || strings.HasPrefix(p.exe, "/memfd:") { // whose names are made up for each run
		program = comm
	}
	name := id.Service()
	key := "cgroup " + name + " " + id.ContainerID + " " + id.PodUID
	var attributes []profiler.Attribute
	switch {
	case id.PodUID != "" && x.pods != nil:
		// No pod of this node, as far as is known: where nodes share a kernel, it is
		// another's.
		if id.ContainerID != "" {
			attributes = append(attributes, profiler.Attribute{Key: "container.id", Value: id.ContainerID})
		}
	case id.ContainerID != "":
		attributes = x.onNode(append(attributes, profiler.Attribute{Key: "container.id", Value: id.ContainerID}))
	case id.PodUID != "":
		attributes = x.onNode(append(attributes, profiler.Attribute{Key: "k8s.pod.uid", Value: id.PodUID}))
	case id.Unit != "":
		attributes = x.onNode(append(attributes, profiler.Attribute{Key: "systemd.unit", Value: id.Unit}))
	case p.kernel:
		name, key = "kernel", "kernel"
		attributes = x.onNode(nil)
	case x.service != "":
		name, key = x.service, "host"
		attributes = x.onNode(nil)
	default:
		name, key = program, "program "+program
		attributes = x.onNode(append(attributes, profiler.Attribute{Key: "process.executable.name", Value: profiler.Printable(program)}))
	}
	return x.once(key, workload.Container{}, func() []profiler.Attribute {
		return append(attributes, profiler.Attribute{Key: "service.name", Value: profiler.Printable(name)})
	})
}

// onNode adds the node.
func (x *identities) onNode(attributes []profiler.Attribute) []profiler.Attribute {
	if x.node == "" {
		return attributes
	}
	return append(attributes, profiler.Attribute{Key: "k8s.node.name", Value: x.node})
}

// once makes a workload, unless it was made of the same container before.
func (x *identities) once(key string, c workload.Container, attributes func() []profiler.Attribute) *profiler.Workload {
	k, ok := x.workloads[key]
	if ok && k.container == c {
		return k.workload
	}
	list := []profiler.Attribute{{Key: "service.name", Value: "other"}}
	if ok || len(x.workloads) < maxWorkloads {
		list = attributes()
	} else if k, key, c = x.workloads["other"], "other", (workload.Container{}); k.workload != nil {
		return k.workload
	}
	w := &profiler.Workload{Attributes: withLabels(append(list, profiler.Attribute{Key: "host.name", Value: x.host}), x.labels)}
	x.workloads[key] = known{w, c}
	return w
}

// withLabels adds labels, which hold over what was found out, and sorts.
func withLabels(attributes, labels []profiler.Attribute) []profiler.Attribute {
	attributes = slices.DeleteFunc(attributes, func(a profiler.Attribute) bool {
		return slices.ContainsFunc(labels, func(l profiler.Attribute) bool { return l.Key == a.Key })
	})
	attributes = append(attributes, labels...)
	slices.SortFunc(attributes, func(a, b profiler.Attribute) int { return strings.Compare(a.Key, b.Key) })
	return attributes
}

// readExe gives the path of a process's program. A kernel thread has none; a
// process that is gone has nothing.
func readExe(pid profiler.PID) (exe string, kernel, gone bool) {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if !errors.Is(err, fs.ErrNotExist) {
		return exe, false, false
	}
	st, err := readStatus(pid)
	return "", err == nil && st.kernel, err != nil
}
