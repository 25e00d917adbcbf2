package agents

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	pprof "github.com/google/pprof/profile"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/kalypso-dev/kalypso/exporter/format"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/api"
)

func TestParseTarget(t *testing.T) {
	for _, c := range []struct {
		text string
		want Target
		why  string
	}{
		{"", Target{Kind: Cluster}, ""},
		{"deploy/checkout", Target{Kind: Deployment, Name: "checkout", Namespace: "shop"}, ""},
		{"StatefulSets/db", Target{Kind: StatefulSet, Name: "db", Namespace: "shop"}, ""},
		{"ns/shop", Target{Kind: Namespace, Name: "shop"}, ""},
		{"node/worker-1", Target{Kind: Node, Name: "worker-1"}, ""},
		{"pid:42@worker-1", Target{Kind: Process, Name: "worker-1", PID: 42}, ""},
		{"pid:42", Target{}, "a process is one of a node: pid:4242@NODE"},
		{"pid:0@worker-1", Target{}, "a PID is a whole number above 0"},
		{"checkout", Target{}, "a target is a kind and a name"},
		{"deploy/", Target{}, "a target is a kind and a name"},
		{"svc/checkout", Target{}, `there is no kind "svc"`},
	} {
		got, err := ParseTarget(c.text, "shop")
		why := ""
		var fault *profiler.Fault
		if errors.As(err, &fault) {
			why = fault.Why.Error()
		}
		if got != c.want || why != c.why {
			t.Errorf("%q: %+v, %q; want %+v, %q", c.text, got, why, c.want, c.why)
		}
	}
}

func pod(namespace, name, node string, labels map[string]string, ready bool) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels}}
	p.Spec.NodeName, p.Status.Phase = node, corev1.PodRunning
	if ready {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	}
	return p
}

// cluster is three nodes: birch and larch have agents, the one of fir is not
// ready. checkout is on birch and larch, lonely on fir.
func cluster() *fake.Clientset {
	agentLabels := map[string]string{"app.kubernetes.io/name": "kalypso-agent"}
	deployment := func(name string) *appsv1.Deployment {
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
		d.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
		return d
	}
	objects := []runtime.Object{
		pod("kalypso", "agent-b", "birch", agentLabels, true), pod("kalypso", "agent-l", "larch", agentLabels, true), pod("kalypso", "agent-f", "fir", agentLabels, false),
		deployment("checkout"), deployment("lonely"), deployment("empty"),
		pod("shop", "checkout-1", "birch", map[string]string{"app": "checkout"}, true), pod("shop", "checkout-2", "larch", map[string]string{"app": "checkout"}, true),
		pod("shop", "lonely-1", "fir", map[string]string{"app": "lonely"}, true),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}},
	}
	for _, n := range []string{"larch", "fir", "birch"} {
		objects = append(objects, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n}})
	}
	return fake.NewClientset(objects...)
}

// local reaches "pods" that are agents' APIs in this process: the real server
// with the histories of real profiles.
type local struct {
	t      *testing.T
	agents map[string]string // addresses by pod
}

func (l *local) Reach(_ context.Context, p *corev1.Pod, port int) (string, func(bool), error) {
	address, ok := l.agents[p.Name]
	if !ok || port != 4041 {
		return "", nil, errors.New("no such agent")
	}
	return address, func(bool) {}, nil
}

func newLocal(t *testing.T) *local {
	l := &local{t: t, agents: map[string]string{}}
	l.serve("agent-b", "birch", 100, map[string]map[string]uint64{"checkout": {"price": 600, "sell": 400}, "other": {"spin": 1000}})
	l.serve("agent-l", "larch", 50, map[string]map[string]uint64{"checkout": {"price": 100}})
	return l
}

func (l *local) serve(name, node string, hz int, workloads map[string]map[string]uint64) {
	l.t.Helper()
	history := api.NewHistory(api.DefaultKeep, 1<<20)
	s := api.Segment{Start: time.Now().Add(-10 * time.Second), Duration: 10 * time.Second, Frequency: hz, Profiles: profilesOf(node, hz, workloads)}
	l.add(history, s)
	l.listen(name, node, history, s)
}

// remembers serves a node that remembers some minutes, in each of which it took as
// many samples of checkout.
func (l *local) remembers(name, node string, hz, minutes int, samples uint64) {
	l.t.Helper()
	history := api.NewHistory(time.Hour, 1<<20)
	now := time.Now()
	var s api.Segment
	for i := minutes; i > 0; i-- {
		s = api.Segment{Start: now.Add(-time.Duration(i) * time.Minute), Duration: time.Minute, Frequency: hz}
		if samples > 0 {
			s.Profiles = profilesOf(node, hz, map[string]map[string]uint64{"checkout": {"price on " + node: samples}})
			s.Profiles[0].Start, s.Profiles[0].Duration = s.Start, s.Duration
		}
		l.add(history, s)
	}
	l.listen(name, node, history, s)
}

func (l *local) add(history *api.History, s api.Segment) {
	l.t.Helper()
	if err := history.Add(s); err != nil {
		l.t.Fatal(err)
	}
}

func (l *local) listen(name, node string, history *api.History, s api.Segment) {
	l.t.Helper()
	listener, err := api.Listen("127.0.0.1:0", false)
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- api.Serve(ctx, listener, api.NewServer(api.Config{Source: source{s}, History: history, Running: running(node)}), slog.New(slog.DiscardHandler))
	}()
	l.t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			l.t.Errorf("serve: %v", err)
		}
	})
	l.agents[name] = listener.Addr().String()
}

// running is a checkout that has waited since before the history began, beside one
// that is in it and a process of the node.
func running(node string) func() ([]api.Running, error) {
	checkout := &profiler.Workload{Attributes: []profiler.Attribute{
		{Key: "k8s.deployment.name", Value: "checkout"}, {Key: "k8s.namespace.name", Value: "shop"}, {Key: "k8s.node.name", Value: node},
	}}
	return func() ([]api.Running, error) {
		return []api.Running{
			{Process: profiler.Process{PID: 3, Comm: "waits", Exe: "/bin/waits"}, Workload: checkout}, {Process: profiler.Process{PID: 1, Comm: "checkout"}, Workload: checkout},
			{Process: profiler.Process{PID: 2, Comm: "sshd", Exe: "/bin/sshd"}, Workload: &profiler.Workload{}},
		}, nil
	}
}

// source stands in for the kernel: what it records is always the same.
type source struct{ segment api.Segment }

func (s source) Record(context.Context, time.Duration, int, api.Filter) ([]api.Segment, error) {
	return []api.Segment{s.segment}, nil
}
func (s source) Status() api.Status {
	return api.Status{Frequency: s.segment.Frequency, Version: "v1.2.3"}
}
func (s source) Dump(_ context.Context, pid profiler.PID) (*api.Dump, error) {
	name, ok := map[profiler.PID]string{1: "checkout", 3: "waits"}[pid]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return api.NewDump(pid, "/bin/"+name, time.Now(), time.Millisecond, []api.ThreadStack{{TID: profiler.TID(pid), Name: name, State: "sleeping", Stack: &profiler.Stack{Stop: profiler.StopRoot}}}), nil
}

func profilesOf(node string, hz int, workloads map[string]map[string]uint64) (out []*profiler.Profile) {
	for name, functions := range workloads {
		p := &profiler.Profile{Start: time.Now().Add(-10 * time.Second), Duration: 10 * time.Second, Frequency: hz, Host: node, Event: "cpu-clock"}
		p.Workload = &profiler.Workload{Attributes: []profiler.Attribute{
			{Key: "k8s.deployment.name", Value: name}, {Key: "k8s.namespace.name", Value: "shop"}, {Key: "k8s.node.name", Value: node},
			{Key: "k8s.pod.name", Value: name + "-" + node}, {Key: "service.name", Value: name},
		}}
		process := &profiler.Process{PID: 1, Comm: name}
		for f, n := range functions {
			s := profiler.Sample{Process: process, Count: n, Stack: &profiler.Stack{Stop: profiler.StopRoot, Locations: []*profiler.Location{{
				Module: &profiler.Module{Path: "/bin/" + name}, Frames: []profiler.Frame{{Function: f}},
			}}}}
			p.Samples = append(p.Samples, s)
			p.Quality.Add(s.Stack, n)
		}
		out = append(out, p)
	}
	return out
}

func opened(t *testing.T, text string) *Fleet {
	t.Helper()
	f, err := tryOpen(t, text)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

func tryOpen(t *testing.T, text string) (*Fleet, error) {
	t.Helper()
	target, err := ParseTarget(text, "shop")
	if err != nil {
		t.Fatal(err)
	}
	client := cluster()
	scope, err := Find(t.Context(), client, target)
	if err != nil {
		return nil, err
	}
	return Open(t.Context(), client, newLocal(t), scope)
}

// selfOf gives the samples of each function itself.
func selfOf(p *profiler.Profile) map[string]uint64 {
	self := map[string]uint64{}
	for _, r := range format.Top(p) {
		self[r.Function] = r.Self
	}
	return self
}

func TestRecordAddsUpPodsOfTwoNodes(t *testing.T) {
	f := opened(t, "deploy/checkout")
	if got := f.Scope.Title(); got != "deploy/checkout (2 pods on 2 nodes)" {
		t.Errorf("title %q", got)
	}
	a, err := f.Record(t.Context(), 10*time.Second, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := a.Whole()
	// One sample at 50 Hz is two at 100 Hz.
	if diff := cmp.Diff(selfOf(p), map[string]uint64{"price": 800, "sell": 400}); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	if cores := format.Cores(p, format.Samples(p)); p.Duration != 10*time.Second || cores < 1.19 || cores > 1.21 {
		t.Errorf("%v, %.2f cores", p.Duration, cores)
	}
	places := map[string]bool{}
	for _, s := range p.Samples {
		places[s.Process.Cgroup] = true
	}
	if diff := cmp.Diff(places, map[string]bool{"shop/checkout-birch": true, "shop/checkout-larch": true}); diff != "" {
		t.Errorf("processes are in (-got +want):\n%s", diff)
	}
	shares := a.Shares(func(w *profiler.Workload) string { return w.Attribute("k8s.pod.name") })
	if len(shares) != 2 || shares[0].Name != "checkout-birch" || int(shares[0].Percent) != 83 || shares[1].Name != "checkout-larch" {
		t.Errorf("shares %+v", shares)
	}
	a.Keep(func(s *profiler.Sample) bool { return s.Stack.Locations[0].Frames[0].Function == "sell" })
	if n := a.Samples(); n != 400 {
		t.Errorf("%d samples kept, want 400", n)
	}
}

func TestHistoryAndTop(t *testing.T) {
	f := opened(t, "deploy/checkout")
	a, err := f.History(t.Context(), time.Now().Add(-time.Minute), time.Now())
	if err != nil || a.Samples() != 1100 {
		t.Errorf("%v, %d samples", err, a.Samples())
	}
	top, err := f.Top(t.Context(), 30*time.Second, api.ByFunction, 1)
	if err != nil {
		t.Fatal(err)
	}
	if len(top.Rows) != 1 || top.More != 1 || top.Rows[0].Name != "price" || int(top.Rows[0].SelfPercent+0.5) != 67 || top.Cores < 1.19 || top.Cores > 1.21 {
		t.Errorf("top %+v", top)
	}
	// Both have the PID 1.
	processes, err := f.Top(t.Context(), 30*time.Second, api.ByProcess, 10)
	if err != nil || len(processes.Rows) != 2 || processes.Rows[0].Node != "birch" || processes.Rows[1].Node != "larch" {
		t.Errorf("%v, processes %+v", err, processes)
	}
	one, err := opened(t, "node/birch").Top(t.Context(), 30*time.Second, api.ByProcess, 10)
	if err != nil || one.Rows[0].Node != "" {
		t.Errorf("%v, of one node %+v", err, one)
	}
	pods, err := f.Top(t.Context(), 30*time.Second, api.ByPod, 10)
	if err != nil || len(pods.Rows) != 2 || pods.Rows[0].Name != "shop/checkout-birch" {
		t.Errorf("%v, pods %+v", err, pods)
	}
}

func TestVersions(t *testing.T) {
	f := opened(t, "")
	got, err := f.Versions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, []Version{{"birch", "v1.2.3"}, {"larch", "v1.2.3"}}); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	if len(f.Missing) != 1 {
		t.Errorf("missing: %v, want the node whose agent is not ready", f.Missing)
	}
}

func TestDump(t *testing.T) {
	list, more, err := opened(t, "deploy/checkout").Dump(t.Context(), 1)
	if err != nil || len(list) != 1 || more != 3 || list[0].Node != "birch" || list[0].Comm != "checkout" {
		t.Errorf("%v, %+v, %d more", err, list, more)
	}
	// Those that waited come after all that ran, on whichever node.
	list, _, err = opened(t, "deploy/checkout").Dump(t.Context(), 10)
	var got []string
	for _, s := range list {
		got = append(got, s.Node+" "+s.Comm)
	}
	if diff := cmp.Diff(got, []string{"birch checkout", "larch checkout", "birch waits", "larch waits"}); err != nil || diff != "" {
		t.Errorf("%v (-got +want):\n%s", err, diff)
	}
	_, _, err = opened(t, "pid:7@larch").Dump(t.Context(), 20)
	if err == nil || !strings.HasPrefix(err.Error(), "node larch: ") {
		t.Errorf("a process that is not there: %v", err)
	}
}

// TestPast: pods that a target had were on any node, and there may be none left.
func TestPast(t *testing.T) {
	for text, want := range map[string]string{
		"deploy/checkout": "birch fir larch", "deploy/empty": "birch fir larch", "ns/shop": "birch fir larch", "node/larch": "larch",
	} {
		target, err := ParseTarget(text, "shop")
		if err != nil {
			t.Fatal(err)
		}
		s, err := FindPast(t.Context(), cluster(), target)
		if err != nil || strings.Join(s.Nodes, " ") != want {
			t.Errorf("%s: %v, nodes %v, want %s", text, err, s.Nodes, want)
		}
	}
}

// TestNodesThatRememberLess: what one node remembers less of is cut off of the others
// where most stays, and told where it would not; what stays is what was seen.
func TestNodesThatRememberLess(t *testing.T) {
	type node struct {
		minutes, hz int
		samples     uint64 // a minute
	}
	tests := []struct {
		name         string
		birch, larch node
		length       time.Duration
		samples      map[string]uint64
		remarks      []string // with * for a time
	}{
		{"all remember as much", node{15, 100, 60}, node{14, 100, 60}, 15 * time.Minute, map[string]uint64{"price on birch": 900, "price on larch": 840}, nil},
		{"one remembers most of it", node{15, 100, 60}, node{9, 100, 60}, 9 * time.Minute, map[string]uint64{"price on birch": 540, "price on larch": 540},
			[]string{"since *, as far back as node larch remembers"}},
		{"one remembers little", node{15, 100, 600}, node{3, 100, 6000}, 15 * time.Minute, map[string]uint64{"price on birch": 9000, "price on larch": 18000},
			[]string{"nodes are there for different times, and shares are of the CPU time that was seen:", "node larch · 100 Hz · 3m0s · 1.00 cores busy", "node birch · 100 Hz · 15m0s · 0.10 cores busy"}},
		{"one remembers little, and has none of it", node{15, 100, 600}, node{3, 100, 0}, 15 * time.Minute, map[string]uint64{"price on birch": 9000},
			[]string{"nodes are there for different times, and shares are of the CPU time that was seen:", "node larch · 100 Hz · 3m0s · no sample", "node birch · 100 Hz · 15m0s · 0.10 cores busy"}},
		{"one that has none of it takes nothing from the others", node{15, 100, 600}, node{14, 100, 0}, 15 * time.Minute, map[string]uint64{"price on birch": 9000}, nil},
		{"at different rates", node{15, 100, 600}, node{15, 50, 600}, 15 * time.Minute, map[string]uint64{"price on birch": 9000, "price on larch": 18000},
			[]string{"nodes sampled at different rates, by which samples are weighed:", "node larch · 50 Hz · 15m0s · 0.20 cores busy", "node birch · 100 Hz · 15m0s · 0.10 cores busy"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := &local{t: t, agents: map[string]string{}}
			l.remembers("agent-b", "birch", tt.birch.hz, tt.birch.minutes, tt.birch.samples)
			l.remembers("agent-l", "larch", tt.larch.hz, tt.larch.minutes, tt.larch.samples)
			client := cluster()
			scope, err := Find(t.Context(), client, Target{Kind: Deployment, Name: "checkout", Namespace: "shop"})
			if err != nil {
				t.Fatal(err)
			}
			f, err := Open(t.Context(), client, l, scope)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			a, err := f.History(t.Context(), time.Now().Add(-15*time.Minute), time.Now())
			if err != nil {
				t.Fatal(err)
			}
			p := a.Whole()
			if diff := cmp.Diff(selfOf(p), tt.samples); diff != "" || p.Duration != tt.length {
				t.Errorf("%v (-got +want):\n%s", p.Duration, diff)
			}
			for i, r := range p.Remarks {
				p.Remarks[i] = regexp.MustCompile(`\d\d:\d\d:\d\d`).ReplaceAllString(r, "*")
			}
			if diff := cmp.Diff(p.Remarks, tt.remarks); diff != "" {
				t.Errorf("remarks (-got +want):\n%s", diff)
			}
			var file bytes.Buffer
			if err := (format.Pprof{}).Write(&file, p); err != nil {
				t.Fatal(err)
			}
			parsed, err := pprof.Parse(&file)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range tt.remarks {
				if !slices.Contains(parsed.Comments, r) {
					t.Errorf("the file's comments do not tell: %s", r)
				}
			}
		})
	}
}

// TestAgentsElsewhere: agents that somebody put into another namespace are found if
// there are none where install puts them, which is where they are looked for first.
func TestAgentsElsewhere(t *testing.T) {
	labels := map[string]string{"app.kubernetes.io/name": "kalypso-agent"}
	elsewhere, here := pod("monitoring", "agent-b", "birch", labels, true), pod("kalypso", "agent-l", "birch", labels, true)
	birch := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "birch"}}
	for _, tt := range []struct {
		name, pod string
		objects   []runtime.Object
	}{
		{"only elsewhere", "agent-b", []runtime.Object{birch, elsewhere}},
		{"at home, too", "agent-l", []runtime.Object{birch, elsewhere, here}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client := fake.NewClientset(tt.objects...)
			scope, err := Find(t.Context(), client, Target{Kind: Node, Name: "birch"})
			if err != nil {
				t.Fatal(err)
			}
			f, err := Open(t.Context(), client, newLocal(t), scope)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if len(f.agents) != 1 || f.agents[0].pod != tt.pod {
				t.Errorf("asked is %+v, want %s", f.agents, tt.pod)
			}
			reports, err := Reports(t.Context(), client, newLocal(t))
			if err != nil || len(reports) != 1 || reports[0].Pod != tt.pod {
				t.Errorf("%v, reports %+v", err, reports)
			}
		})
	}
}

// TestNodesWithoutAnAgent: what can be asked is asked, and the rest is told.
func TestNodesWithoutAnAgent(t *testing.T) {
	f := opened(t, "")
	if len(f.agents) != 2 || len(f.Missing) != 1 || f.Scope.Title() != "3 nodes" {
		t.Fatalf("%d nodes asked, missing %v, %s", len(f.agents), f.Missing, f.Scope.Title())
	}
	a, err := f.Record(t.Context(), time.Second, 0)
	if err != nil || a.Samples() != 2100 {
		t.Errorf("%v, %d samples", err, a.Samples())
	}
}

func TestFaults(t *testing.T) {
	for text, want := range map[string]string{
		"deploy/lonely": "the agent of node fir is not ready: pod agent-f is running, and has not said that it is ready",
		"deploy/empty":  "deploy/empty has no running pods: there is nothing to profile",
		"deploy/none":   "there is no deploy/none in namespace shop",
		"ns/none":       "there is no ns/none",
		"node/none":     "there is no node/none",
		"pid:1@none":    "there is no node none",
	} {
		_, err := tryOpen(t, text)
		var fault *profiler.Fault
		if !errors.As(err, &fault) || err.Error() != want || fault.Fix == "" {
			t.Errorf("%s: %v; want %s", text, err, want)
		}
	}
	target := Target{Kind: Node, Name: "birch"}
	client := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "birch"}})
	scope, err := Find(t.Context(), client, target)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), client, newLocal(t), scope)
	var fault *profiler.Fault
	if !errors.As(err, &fault) || fault.What != "there are no agents in this cluster" || fault.Fix != "kalypsoctl install agent" {
		t.Errorf("a cluster without agents: %v", err)
	}
}
