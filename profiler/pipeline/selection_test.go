package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/workload"
)

// table is the kernel's, with room for so many.
type table struct {
	room         int
	broken       error // what it says to a verdict; nil: it takes it
	set          map[bpf.Cgroup]bpf.Verdict
	unified, old bool
	rest         float64 // share of what no verdict is on
}

// at are the rates while nobody asks for more.
func at(hz int) frequencies { return frequencies{hz: hz, rest: hz} }

func (k *table) SetVerdict(c bpf.Cgroup, v bpf.Verdict) error {
	if k.broken != nil {
		return k.broken
	}
	if _, ok := k.set[c]; !ok && len(k.set) >= k.room {
		return bpf.ErrVerdictsFull
	}
	k.set[c] = v
	return nil
}

func (k *table) DeleteVerdict(c bpf.Cgroup) error {
	delete(k.set, c)
	return nil
}

func (k *table) Select(unified, old bool, share float64) error {
	k.unified, k.old, k.rest = unified, old, share
	return nil
}

// groupFiles are cgroups by their places; the test makes them.
type groupFiles struct {
	ids    map[workload.Place]uint64
	hybrid bool
}

func (g groupFiles) ID(p workload.Place) (uint64, error) {
	if id := g.ids[p]; id != 0 {
		return id, nil
	}
	return 0, fs.ErrNotExist
}

func (g groupFiles) Hybrid() bool { return g.hybrid }

func (g groupFiles) PodParents() (all []workload.Place) {
	for p := range g.ids {
		if strings.HasSuffix(p.Path, "kubepods") {
			all = append(all, p)
		}
	}
	return all
}

func (g groupFiles) PodsIn(parent workload.Place) map[string]workload.Place {
	pods := map[string]workload.Place{}
	for p := range g.ids {
		if uid, ok := strings.CutPrefix(p.Path, parent.Path+"/pod"); ok && p.Old == parent.Old && !strings.Contains(uid, "/") {
			pods[uid] = p
		}
	}
	return pods
}

const (
	uidOut  = "00000000-0000-0000-0000-000000000001" // of a pod that is not wanted
	uidIn   = "00000000-0000-0000-0000-000000000002"
	uidSlow = "00000000-0000-0000-0000-000000000003" // with a rate of its own
	uidNew  = "00000000-0000-0000-0000-000000000004" // of a pod that is not known
)

var cid = strings.Repeat("0123456789abcdef", 4)

func somePods(uids ...string) *workload.Pods {
	pods := workload.NewPods()
	for _, uid := range uids {
		p := &workload.Pod{UID: uid, Namespace: "shop", Name: "pod-" + uid[35:]}
		switch uid {
		case uidOut:
			p.Namespace = "out"
		case uidSlow:
			p.Annotations = map[string]string{workload.FrequencyAnnotation: "20"}
		}
		pods.Set(p, time.Now())
	}
	return pods
}

func notOut(p *workload.Pod) bool { return p.Namespace != "out" }

// TestSelection: what the table says of cgroups, by what is wanted.
func TestSelection(t *testing.T) {
	pod := func(uid string) string { return "/kubepods/pod" + uid }
	all := bpf.Verdict{Share: 1, Below: true}
	none, own := bpf.Verdict{Below: true}, bpf.Verdict{}
	fifth, tenth, fiftieth := bpf.Verdict{Share: 0.2, Below: true}, bpf.Verdict{Share: 0.1, Below: true}, bpf.Verdict{Share: 0.02, Below: true}
	raisedTo := func(hz int, cgroups ...string) raised {
		return raised{hz, func(cgroup string) bool { return slices.Contains(cgroups, cgroup) }}
	}
	raise := func(cgroups ...string) frequencies {
		return frequencies{hz: 1000, rest: 100, raised: []raised{raisedTo(1000, cgroups...)}}
	}
	for _, tt := range []struct {
		name   string
		set    Select
		pods   *workload.Pods
		groups []string // "old:" before the path: of version 1
		met    []string
		hybrid bool
		want   map[string]bpf.Verdict
		rates  frequencies // 100 Hz, where nothing is said
	}{
		{
			name: "all is wanted", set: Select{Pod: notOut, Outside: true}, pods: somePods(uidIn),
			groups: []string{"/kubepods", pod(uidIn)}, met: []string{"/a.service"},
		},
		{
			name: "a namespace that is not wanted, before its pod was sampled", set: Select{Pod: notOut, Outside: true}, pods: somePods(uidIn, uidOut),
			groups: []string{"/kubepods", pod(uidIn), pod(uidOut), pod(uidNew)}, met: []string{"/a.service"},
			want: map[string]bpf.Verdict{pod(uidIn): all, pod(uidOut): none},
		},
		{
			name: "a pod where no kubelet's cgroup is seen, by its first sample", set: Select{Pod: notOut, Outside: true}, pods: somePods(uidOut),
			groups: []string{"/docker/x/pod" + uidOut}, met: []string{"/docker/x/pod" + uidOut + "/" + cid + "/init.scope"},
			want: map[string]bpf.Verdict{"/docker/x/pod" + uidOut: none},
		},
		{
			name: "a rate of its own", set: Select{Outside: true}, pods: somePods(uidIn, uidSlow),
			groups: []string{"/kubepods", pod(uidIn), pod(uidSlow)},
			want:   map[string]bpf.Verdict{pod(uidIn): all, pod(uidSlow): fifth},
		},
		{
			name: "a rate of its own, and all is recorded", set: Select{Outside: true}, pods: somePods(uidIn, uidSlow), rates: frequencies{hz: 100, rest: 100, all: 50},
			groups: []string{"/kubepods", pod(uidIn), pod(uidSlow)},
			want:   map[string]bpf.Verdict{pod(uidIn): all, pod(uidSlow): {Share: 0.5, Below: true}},
		},
		{
			name: "a unit is recorded slower than all is sampled", set: Select{Outside: true}, pods: somePods(uidIn, uidSlow), met: []string{"/a.service"},
			rates:  frequencies{hz: 100, rest: 100, raised: []raised{raisedTo(50, "/a.service", pod(uidSlow))}},
			groups: []string{"/kubepods", pod(uidIn), pod(uidSlow)},
			want:   map[string]bpf.Verdict{"/a.service": all, pod(uidIn): all, pod(uidSlow): {Share: 0.5, Below: true}},
		},
		{
			name: "a unit is recorded at ten times the rate", set: Select{Outside: true}, pods: somePods(uidIn, uidSlow), rates: raise("/a.service"),
			groups: []string{"/kubepods", pod(uidIn), pod(uidSlow)}, met: []string{"/a.service", "/b.service"},
			want: map[string]bpf.Verdict{"/a.service": all, pod(uidIn): tenth, pod(uidSlow): fiftieth},
		},
		{
			name: "a pod with a rate of its own is recorded, one that is not wanted stays out", set: Select{Pod: notOut, Outside: true},
			pods: somePods(uidIn, uidSlow, uidOut), rates: raise(pod(uidSlow), pod(uidOut)),
			groups: []string{"/kubepods", pod(uidIn), pod(uidSlow), pod(uidOut)},
			want:   map[string]bpf.Verdict{pod(uidIn): tenth, pod(uidSlow): all, pod(uidOut): none},
		},
		{
			name: "a container is recorded, not the other of its pod", set: Select{Outside: true}, pods: somePods(uidIn), rates: raise(pod(uidIn) + "/" + cid),
			groups: []string{"/kubepods", pod(uidIn)}, met: []string{pod(uidIn) + "/" + cid, pod(uidIn) + "/" + cid[1:] + "0"},
			want: map[string]bpf.Verdict{pod(uidIn): tenth, pod(uidIn) + "/" + cid: all},
		},
		{
			name: "two are recorded, at rates of their own", set: Select{Outside: true}, rates: frequencies{hz: 1000, rest: 100, raised: []raised{raisedTo(1000, "/a"), raisedTo(500, "/a", "/b")}},
			met:  []string{"/a", "/b", "/c"},
			want: map[string]bpf.Verdict{"/a": all, "/b": {Share: 0.5, Below: true}},
		},
		{
			name: "what is recorded is left out by its path", rates: raise("/a/b"), groups: []string{"/a"}, met: []string{"/a/b"},
			set:  Select{Outside: true, Cgroup: func(path string) (bool, bool) { return path == "/", path != "/" }},
			want: map[string]bpf.Verdict{"/a": none},
		},
		{
			name: "a rate, and no cgroup", set: Select{Outside: true}, pods: somePods(uidSlow), groups: []string{"/kubepods"},
		},
		{
			name: "only pods: units are left out, and pods that may become known are not", set: Select{Pod: notOut}, pods: somePods(uidIn),
			groups: []string{"/kubepods", pod(uidIn)}, met: []string{"/", "/a.service", pod(uidNew) + "/" + cid},
			want: map[string]bpf.Verdict{pod(uidIn): all, "/": own, "/a.service": own},
		},
		{
			name: "only pods, in two hierarchies", set: Select{Pod: notOut}, pods: somePods(uidIn), hybrid: true,
			groups: []string{"old:/kubepods", "old:" + pod(uidIn)}, met: []string{"/", "/a.service", "old:/docker/" + cid},
			want: map[string]bpf.Verdict{"old:/kubepods": all, "old:" + pod(uidIn): all, "old:/docker/" + cid: own},
		},
		{
			name: "a path that is left out, pods and all", pods: somePods(uidIn), groups: []string{"/kubepods", pod(uidIn), "/a", "/a/b"}, met: []string{"/a/b/c", "/d"},
			set: Select{Outside: true, Cgroup: func(path string) (bool, bool) {
				out := strings.HasPrefix(path, "/a/b") || strings.HasPrefix(path, "/kubepods")
				return !out, out
			}},
			want: map[string]bpf.Verdict{"/kubepods": none, "/a/b": none},
		},
		{
			name: "only a path: what is below another may be wanted", pods: somePods(uidIn), groups: []string{"/kubepods", pod(uidIn)},
			met:  []string{"/a", "/a/b", pod(uidIn) + "/" + cid},
			set:  Select{Outside: true, Cgroup: func(path string) (bool, bool) { return path == "/a/b", false }},
			want: map[string]bpf.Verdict{"/a": own, pod(uidIn): all, pod(uidIn) + "/" + cid: own},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			place := func(s string) workload.Place {
				path, old := strings.CutPrefix(s, "old:")
				return workload.Place{Path: path, Old: old}
			}
			groups := groupFiles{map[workload.Place]uint64{}, tt.hybrid}
			for i, s := range append(tt.groups, tt.met...) {
				groups.ids[place(s)] = uint64(i + 1)
			}
			k := &table{room: 100, set: map[bpf.Cgroup]bpf.Verdict{}}
			x := newSelection(k, groups, tt.pods, tt.set, func(err error) { t.Error(err) })
			for _, s := range tt.met {
				x.meet(place(s))
			}
			if tt.rates.hz == 0 {
				tt.rates = at(100)
			}
			for range 2 { // the second time changes nothing
				x.install(x.plan(tt.rates, time.Now()))
				got := map[string]bpf.Verdict{}
				for p, id := range groups.ids {
					if v, ok := k.set[bpf.Cgroup{ID: id, Old: p.Old}]; ok {
						got[map[bool]string{true: "old:"}[p.Old]+p.Path] = v
					}
				}
				if tt.want == nil {
					tt.want = map[string]bpf.Verdict{}
				}
				if diff := cmp.Diff(got, tt.want); diff != "" || len(k.set) != len(got) {
					t.Errorf("%d verdicts (-got +want):\n%s", len(k.set), diff)
				}
			}
			if want := float64(tt.rates.rest) / float64(tt.rates.hz); k.rest != want {
				t.Errorf("of all others %v is taken, want %v", k.rest, want)
			}
			if some := len(tt.want) > 0; (k.unified || k.old) != some || x.active.Load() != some {
				t.Errorf("the kernel looks: %v, %v", k.unified, k.old)
			}
		})
	}
}

// TestSelectionFollows: what changes is changed in the table.
func TestSelectionFollows(t *testing.T) {
	place := workload.Place{Path: "/kubepods/pod" + uidSlow}
	groups := groupFiles{ids: map[workload.Place]uint64{{Path: "/kubepods"}: 1}}
	k := &table{room: 100, set: map[bpf.Cgroup]bpf.Verdict{}}
	pods := somePods()
	x := newSelection(k, groups, pods, Select{Outside: true}, func(err error) { t.Error(err) })
	now := time.Now()
	step := func(what string, hz int, want bpf.Verdict) {
		t.Helper()
		now = now.Add(time.Second)
		x.install(x.plan(at(hz), now))
		if got := k.set[bpf.Cgroup{ID: groups.ids[place]}]; got != want {
			t.Errorf("%s: %+v, want %+v", what, got, want)
		}
	}
	nothing := bpf.Verdict{}
	step("no pod", 100, nothing)
	pods.Set(&workload.Pod{UID: uidSlow, Annotations: map[string]string{workload.FrequencyAnnotation: "20"}}, now)
	step("no cgroup yet", 100, nothing)
	if x.due.IsZero() {
		t.Error("the cgroup is not looked for again")
	}
	groups.ids[place] = 7
	step("the cgroup", 100, bpf.Verdict{Share: 0.2, Below: true})
	step("nothing new", 100, bpf.Verdict{Share: 0.2, Below: true})
	step("another rate for all", 40, bpf.Verdict{Share: 0.5, Below: true})
	step("one that is lower", 10, nothing)
	step("the first", 100, bpf.Verdict{Share: 0.2, Below: true})
	pods.Set(&workload.Pod{UID: uidSlow, Annotations: map[string]string{workload.FrequencyAnnotation: "25"}}, now)
	step("another annotation", 100, bpf.Verdict{Share: 0.25, Below: true})
	pods.Set(&workload.Pod{UID: uidSlow, Annotations: map[string]string{workload.FrequencyAnnotation: "often"}}, now)
	step("no annotation that is understood", 100, nothing)
	pods.Set(&workload.Pod{UID: uidSlow, Annotations: map[string]string{workload.FrequencyAnnotation: "20"}}, now)
	step("the first annotation", 100, bpf.Verdict{Share: 0.2, Below: true})
	delete(groups.ids, place)
	pods.Remove(uidSlow, now)
	step("the pod has ended: samples of it may be in the window", 100, nothing)
	if len(k.set) > 0 || k.unified {
		t.Errorf("left of it: %+v", k)
	}
}

// TestSelectionOfUnitsThatStartAgain: the same path is another cgroup.
func TestSelectionOfUnitsThatStartAgain(t *testing.T) {
	unit := workload.Place{Path: "/a.service"}
	groups := groupFiles{ids: map[workload.Place]uint64{unit: 5}}
	k := &table{room: 100, set: map[bpf.Cgroup]bpf.Verdict{}}
	x := newSelection(k, groups, nil, Select{}, func(err error) { t.Error(err) })
	fresh := func() bool {
		select {
		case <-x.fresh:
			return true
		default:
			return false
		}
	}
	for _, id := range []uint64{5, 6} {
		groups.ids[unit] = id
		if x.meet(unit); !fresh() {
			t.Errorf("cgroup %d is not looked at", id)
		}
		x.install(x.plan(at(97), time.Now()))
		if _, ok := k.set[bpf.Cgroup{ID: id}]; !ok || len(k.set) != 1 {
			t.Errorf("of cgroup %d: %v", id, k.set)
		}
		if x.meet(unit); fresh() {
			t.Errorf("cgroup %d is looked at again", id)
		}
	}
	delete(groups.ids, unit)
	x.install(x.plan(at(97), time.Now()))
	if len(k.set) > 0 || len(x.met) > 0 {
		t.Errorf("a cgroup that is gone is kept: %v, %v", k.set, x.met)
	}
}

// TestSelectionIsBounded: what does not fit is sampled at everybody's rate, and it
// is said once.
func TestSelectionIsBounded(t *testing.T) {
	groups := groupFiles{ids: map[workload.Place]uint64{{Path: "/kubepods"}: 1, {Path: "/kubepods/pod" + uidSlow}: 2}}
	said := 0
	k := &table{room: 0, set: map[bpf.Cgroup]bpf.Verdict{}}
	x := newSelection(k, groups, somePods(uidSlow), Select{Outside: true}, func(error) { said++ })
	for range 3 {
		x.install(x.plan(at(97), time.Now()))
	}
	if said != 1 {
		t.Errorf("said %d times", said)
	}
	k.broken = errors.New("another error")
	for range 3 {
		x.install(x.plan(at(97), time.Now()))
	}
	if said != 4 {
		t.Errorf("another error was said %d times, want 3", said-1)
	}
	k.broken = nil
	for i := range maxMet + 10 {
		p := workload.Place{Path: fmt.Sprint("/", i)}
		groups.ids[p] = uint64(i + 10)
		x.meet(p)
	}
	if len(x.met) != maxMet {
		t.Errorf("%d cgroups are remembered, want %d", len(x.met), maxMet)
	}
}

// podGroup is the cgroup that a kubelet would make those of pods in.
type podGroup struct {
	parent string
	mount  string
	t      *testing.T
}

// path is its place in its hierarchy.
func (g podGroup) path() string { return strings.TrimPrefix(g.parent, g.mount) }

// kubelet makes the cgroup that pods' are in, in one hierarchy of this machine.
func kubelet(t *testing.T, kind, controller string) podGroup {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	mount := ""
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); mount == "" && f[2] == kind && strings.Contains(","+f[3]+",", controller) {
			mount = f[1]
		}
	}
	if mount == "" {
		t.Skipf("no %s %s is mounted", kind, controller)
	}
	g := podGroup{filepath.Join(mount, fmt.Sprint("kalypso-test-", os.Getpid())), mount, t}
	g.mkdir("")
	g.parent += "/kubepods"
	g.mkdir("")
	return g
}

func (g podGroup) mkdir(path string) string {
	g.t.Helper()
	dir := filepath.Join(g.parent, path)
	if err := os.Mkdir(dir, 0o755); err != nil {
		if os.Getenv("KALYPSO_REQUIRE_BPF") == "1" && err.(*fs.PathError).Err != unix.EROFS {
			g.t.Fatal(err)
		}
		g.t.Skip(err)
	}
	g.t.Cleanup(func() { until(g.t, "the cgroup to go", func() bool { return os.Remove(dir) == nil }) })
	return dir
}

// run starts a program in a cgroup: it is in it from its first instruction on.
func (g podGroup) run(dir, program string) profiler.PID {
	g.t.Helper()
	// A group of the hierarchy's own is entered by a shell, which then becomes it.
	cmd := exec.Command("/bin/sh", "-c", `echo $$ > "$1/cgroup.procs" && exec "$2" 60`, "sh", dir, program)
	if err := cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return profiler.PID(cmd.Process.Pid)
}

// TestServiceSelects: pods that are not wanted are left out in the kernel from
// their first sample on; one with a rate of its own has it in its profiles, which
// show its CPU time; what changes acts at once; and every sample is accounted for.
func TestServiceSelects(t *testing.T) {
	for name, h := range map[string][2]string{"version 2": {"cgroup2", ""}, "version 1": {"cgroup", ",cpu,"}} {
		t.Run(name, func(t *testing.T) {
			g := kubelet(t, h[0], h[1])
			pods := workload.NewPods()
			set := func(uid, namespace, hz string) {
				p := &workload.Pod{UID: uid, Namespace: namespace, Name: namespace + uid[35:], Containers: []workload.PodContainer{{ID: uid[35:] + cid[1:], Name: "main"}}}
				if hz != "" {
					p.Annotations = map[string]string{workload.FrequencyAnnotation: hz}
				}
				pods.Set(p, time.Now())
			}
			s, got, stop := serve(t, func(c *ServiceConfig) {
				c.Frequency, c.Window, c.Pods = 499, 2*time.Second, pods
				c.Select = &Select{Pod: notOut, Outside: true}
				c.Keep = func(w *profiler.Workload, p *profiler.Process) bool {
					f, ok := pods.Find(p.Cgroup)
					return !ok || notOut(f.Pod)
				}
			})
			program := compile(t, "selected", spinner)
			start := func(uid, below string) profiler.PID {
				var st unix.Stat_t
				if err := unix.Stat(g.mkdir("pod"+uid), &st); err != nil {
					t.Fatal(err)
				}
				until(t, "the pod's cgroup to be found", func() (found bool) {
					if err := s.do(context.Background(), func() { _, found = s.selection.installed[bpf.Cgroup{ID: st.Ino, Old: h[0] == "cgroup"}] }); err != nil {
						t.Fatal(err)
					}
					return found
				})
				dir := g.mkdir("pod" + uid + "/" + uid[35:] + cid[1:])
				if below != "" {
					dir = g.mkdir("pod" + uid + "/" + uid[35:] + cid[1:] + below)
				}
				return g.run(dir, program)
			}
			set(uidOut, "out", "")
			out := start(uidOut, "/init.scope")
			set(uidSlow, "shop", "100")
			slow := start(uidSlow, "")
			filtered := func() uint64 {
				c, err := s.kernel.Counters()
				if err != nil {
					t.Fatal(err)
				}
				return c.Filtered
			}
			until(t, "samples to be left out", func() bool { return filtered() > 100 })
			s.who.mu.Lock()
			for key := range s.who.processes {
				if key.PID == out && key.comm == "selected" {
					t.Error("a process of a pod that is not wanted was sampled") // the shell may have been
				}
			}
			s.who.mu.Unlock()

			before := cpuTimeOf(t, slow)
			until(t, "CPU time at a rate of its own", func() bool { return cpuTimeOf(t, slow)-before > 1500*time.Millisecond })

			// Both change: the one is wanted, the other has no rate of its own.
			set(uidOut, "shop", "")
			set(uidSlow, "shop", "")
			mark := len(got.all())
			shows := func(pod string, hz int) func() bool {
				return func() bool {
					for _, seg := range got.all()[mark:] {
						for _, p := range seg.Profiles {
							if p.Workload.Attribute("k8s.pod.name") == pod && p.Frequency == hz {
								return true
							}
						}
					}
					return false
				}
			}
			until(t, "a profile of the pod that was not wanted", shows("shop1", 499))
			until(t, "a profile of the other at everybody's rate", shows("shop3", 499))
			n := filtered()
			set(uidOut, "out", "")
			until(t, "samples to be left out again", func() bool { return filtered() > n+20 })
			// Settings change: all pods are wanted.
			if err := s.Apply(context.Background(), Settings{Frequency: 499}); err != nil {
				t.Fatal(err)
			}
			n = filtered()
			mark = len(got.all())
			until(t, "a profile after settings changed", shows("out1", 499))
			if n = filtered() - n; n > 0 {
				t.Errorf("%d samples are left out, and all are wanted", n)
			}
			used := cpuTimeOf(t, slow)
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			// Whatever its rate was, its profiles show the CPU time that it used.
			rates, seen := map[int]float64{}, 0.0
			for _, seg := range got.all() {
				for _, p := range seg.Profiles {
					if p.Workload.Attribute("k8s.pod.name") == "shop3" {
						seconds := float64(p.Quality.Samples) * p.Period().Seconds()
						rates[p.Frequency] += seconds
						seen += seconds
					}
				}
			}
			t.Logf("%.2f s of CPU time are shown, it used %.2f s; by rate: %v", seen, used.Seconds(), rates)
			if math.Abs(seen-used.Seconds()) > 0.35*used.Seconds() || rates[100] < 0.9 || len(rates) > 2 {
				t.Errorf("%.2f s of CPU time are shown of the pod, it used %.2f s; by rate: %v", seen, used.Seconds(), rates)
			}
			if st := s.Stats(); st.Taken != st.Samples+st.Lost+st.Filtered || st.Lost > mayBeMissed || st.Early == 0 || st.Early > st.Filtered {
				t.Errorf("%d samples were taken; %d delivered, %d lost and %d filtered, %d of them early", st.Taken, st.Samples, st.Lost, st.Filtered, st.Early)
			}
		})
	}
}
