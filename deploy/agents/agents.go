package agents

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/exporter/format"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/api"
)

// Reacher opens a way to a port of a pod. Whoever is through with it says whether
// there were answers on it.
type Reacher interface {
	Reach(ctx context.Context, pod *corev1.Pod, port int) (address string, through func(answered bool), err error)
}

// Forwarded reaches pods by port-forward, which enters the pod's own network: to
// the agent the request comes from its own machine, and it answers no other.
type Forwarded struct{ *kube.Cluster }

// Reach implements Reacher.
func (f Forwarded) Reach(ctx context.Context, pod *corev1.Pod, port int) (string, func(bool), error) {
	w, err := f.ForwardPod(ctx, pod.Namespace, pod.Name, port, 0)
	if err != nil {
		return "", nil, err
	}
	return w.Addr, func(bool) { w.Close() }, nil
}

// Limits of what is asked at a time, and of how long it may take.
const (
	maxAtOnce     = 16
	answerTimeout = 40 * time.Second // of what an agent has; its own limit of making an answer is 30 s
	chartPort     = 4041
)

// Fleet is the agents that a scope needs.
type Fleet struct {
	Scope   *Scope
	Missing []error // one for each node whose agent cannot be asked: faults
	agents  []*agent
}

type agent struct {
	node, namespace, pod string
	client               *api.Client
	through              func(answered bool) // with the way to it
}

// Open finds the agent of each node of a scope and opens a way to it. Nodes
// without one are in Missing; that none has one is a fault.
func Open(ctx context.Context, client kubernetes.Interface, reach Reacher, s *Scope) (*Fleet, error) {
	f := &Fleet{Scope: s}
	pods, err := agentPods(ctx, client)
	if err != nil {
		return nil, err
	}
	if len(pods) == 0 {
		return nil, &profiler.Fault{
			What: "there are no agents in this cluster", Why: fmt.Errorf("no namespace that you may look into has pods with the label %s", agentLabel), Fix: "kalypsoctl install agent",
		}
	}
	found := make([]*agent, len(s.Nodes))
	missing := make([]error, len(s.Nodes))
	each(len(s.Nodes), func(i int) { found[i], missing[i] = open(ctx, reach, s.Nodes[i], pods) })
	for i := range s.Nodes {
		if found[i] != nil {
			f.agents = append(f.agents, found[i])
		}
		if missing[i] != nil {
			f.Missing = append(f.Missing, missing[i])
		}
	}
	if ctx.Err() != nil || len(f.agents) == 0 {
		f.Close()
		return nil, cmp.Or(ctx.Err(), f.nobody())
	}
	return f, nil
}

// agentLabel is on every pod of the chart, whatever its release is called.
const agentLabel = "app.kubernetes.io/name=kalypso-agent"

// agentPods are the agents' pods: in the namespace that install gives them, or where
// that has none wherever somebody else put them, as far as one may look.
func agentPods(ctx context.Context, client kubernetes.Interface) ([]corev1.Pod, error) {
	pods, err := client.CoreV1().Pods(home()).List(ctx, metav1.ListOptions{LabelSelector: agentLabel})
	if err != nil {
		return nil, asked("list the agents in namespace "+home(), err)
	}
	if len(pods.Items) > 0 {
		return pods.Items, nil
	}
	pods, err = client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{LabelSelector: agentLabel})
	switch {
	case apierrors.IsForbidden(err):
		return nil, nil
	case err != nil:
		return nil, asked("list the agents", err)
	}
	return pods.Items, nil
}

// home is the namespace that install gives the agents.
func home() string {
	for _, c := range component.All() {
		if c.Name == "agent" {
			return c.Namespace
		}
	}
	return ""
}

// nobody says that no agent can be asked: why the first cannot.
func (f *Fleet) nobody() error {
	if len(f.Missing) == 0 {
		return &profiler.Fault{What: "there are no nodes", Fix: "kubectl get nodes"}
	}
	if len(f.Missing) == 1 {
		return f.Missing[0]
	}
	var first *profiler.Fault
	if !errors.As(f.Missing[0], &first) {
		return f.Missing[0]
	}
	return &profiler.Fault{What: fmt.Sprintf("no agent of %d nodes can be asked", len(f.Missing)), Why: first, Fix: first.Fix}
}

// each calls fn for 0 to n-1, some at once.
func each(n int, fn func(i int)) {
	var all sync.WaitGroup
	slots := make(chan struct{}, maxAtOnce)
	for i := range n {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			fn(i)
		})
	}
	all.Wait()
}

// open reaches the agent of a node.
func open(ctx context.Context, reach Reacher, node string, pods []corev1.Pod) (*agent, error) {
	i := slices.IndexFunc(pods, func(p corev1.Pod) bool { return p.Spec.NodeName == node && p.Status.Phase == corev1.PodRunning })
	if i < 0 {
		i = slices.IndexFunc(pods, func(p corev1.Pod) bool { return p.Spec.NodeName == node })
	}
	if i < 0 {
		return nil, &profiler.Fault{What: "node " + node + " has no agent", Why: errors.New("no pod of kalypso-agent is on it"), Fix: "kalypsoctl status     tells about the DaemonSet; its nodeSelector and tolerations choose nodes"}
	}
	p := &pods[i]
	if !ready(p) {
		return nil, &profiler.Fault{What: "the agent of node " + node + " is not ready", Why: fmt.Errorf("pod %s is %s", p.Name, state(p)), Fix: "kalypsoctl logs agent     or kubectl -n " + p.Namespace + " describe pod " + p.Name}
	}
	address, through, err := reach.Reach(ctx, p, portOf(p))
	if err != nil {
		return nil, err
	}
	client, err := api.NewClient(address)
	if err != nil {
		through(false)
		return nil, err
	}
	return &agent{node, p.Namespace, p.Name, client, through}, nil
}

func ready(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// state is why a pod is not ready, in Kubernetes's words.
func state(p *corev1.Pod) string {
	for _, c := range p.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil && w.Reason != "" {
			return w.Reason
		}
		if t := c.State.Terminated; t != nil && t.Reason != "" {
			return t.Reason
		}
	}
	if p.Status.Phase == corev1.PodRunning {
		return "running, and has not said that it is ready"
	}
	return strings.ToLower(string(p.Status.Phase))
}

// portOf is the port that the agent's container names http.
func portOf(p *corev1.Pod) int {
	for _, c := range p.Spec.Containers {
		for _, port := range c.Ports {
			if port.Name == "http" {
				return int(port.ContainerPort)
			}
		}
	}
	return chartPort
}

// Close ends all ways.
func (f *Fleet) Close() {
	for _, a := range f.agents {
		a.client.Close()
		a.through(true)
	}
}

// ask asks all agents at once. Those that fail are told in Missing; that all fail
// is an error.
func ask[T any](ctx context.Context, f *Fleet, question func(*agent) (T, error)) ([]T, error) {
	answers, errs := make([]T, len(f.agents)), make([]error, len(f.agents))
	each(len(f.agents), func(i int) {
		if answers[i], errs[i] = question(f.agents[i]); errs[i] != nil {
			errs[i] = f.agents[i].failed(ctx, errs[i])
		}
	})
	if err := ctx.Err(); err != nil && !errors.Is(context.Cause(ctx), errSlow) {
		return nil, err
	}
	var out []T
	var failed []error
	for i := range answers {
		if errs[i] == nil {
			out = append(out, answers[i])
			continue
		}
		failed = append(failed, errs[i])
	}
	if len(out) == 0 {
		return nil, failed[0]
	}
	f.Missing = append(f.Missing, failed...)
	return out, nil
}

var errSlow = errors.New("it took too long")

// failed names the node in what its agent answered.
func (a *agent) failed(ctx context.Context, err error) error {
	var fault *profiler.Fault
	switch {
	case ctx.Err() != nil:
		return &profiler.Fault{What: "the agent of node " + a.node + " does not answer", Why: context.Cause(ctx), Fix: "kalypsoctl logs agent"}
	case !errors.As(err, &fault):
		return fmt.Errorf("ask the agent of node %s: %w", a.node, err)
	}
	named := *fault
	named.What = "node " + a.node + ": " + fault.What
	var answered *api.StatusError
	if !errors.As(err, &answered) { // the client's advice is about an address that nobody typed
		named.What, named.Fix = "the agent of node "+a.node+" does not answer", "kalypsoctl logs agent     and kubectl -n "+a.namespace+" get pod "+a.pod
	} else if answered.Status == http.StatusBadRequest && strings.Contains(fault.What, `"label"`) {
		named.Why, named.Fix = errors.New("it is older than this kalypsoctl"), "kalypsoctl upgrade agent"
	}
	return &named
}

func (f *Fleet) filter() api.Filter {
	return api.Filter{PID: f.Scope.PID, Labels: f.Scope.Labels}
}

// Record gives what the target does from now on for a while, at the agents' own
// rate where hz is 0.
func (f *Fleet) Record(ctx context.Context, d time.Duration, hz int) (*Answer, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, d+answerTimeout, errSlow)
	defer cancel()
	return f.recorded(ctx, func(a *agent) ([]*profiler.Profile, error) { return a.client.Record(ctx, d, hz, f.filter()) })
}

// History gives what the target did from one time to another. Where one node does
// not remember as much as others, it is what all remember, if that is most of it:
// else shares would tell which agent was started first.
func (f *Fleet) History(ctx context.Context, from, to time.Time) (*Answer, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, answerTimeout, errSlow)
	defer cancel()
	between := func(from time.Time) (*Answer, error) {
		return f.recorded(ctx, func(a *agent) ([]*profiler.Profile, error) { return a.client.History(ctx, from, to, f.filter()) })
	}
	missing := f.Missing
	all, err := between(from)
	if err != nil {
		return nil, err
	}
	begin, node := all.common()
	if node == "" {
		return all, nil
	}
	found := f.Missing
	f.Missing = missing
	common, err := between(begin)
	if err != nil || common.Samples() == 0 {
		f.Missing = found
		return all, ctx.Err()
	}
	common.cut = fmt.Sprintf("since %s, as far back as node %s remembers", begin.Local().Format(time.TimeOnly), node)
	return common, nil
}

func (f *Fleet) recorded(ctx context.Context, question func(*agent) ([]*profiler.Profile, error)) (*Answer, error) {
	parts, err := ask(ctx, f, func(a *agent) (part, error) {
		profiles, err := question(a)
		return part{a.node, profiles}, err
	})
	if err != nil {
		return nil, err
	}
	return newAnswer(parts), nil
}

// Answer is what agents recorded.
type Answer struct {
	parts  []part
	length time.Duration // of the longest that has samples
	cut    string        // why it is less than was asked for; empty: it is not
}

// part is what one node recorded: a profile for each workload, all of the same
// time.
type part struct {
	node     string
	profiles []*profiler.Profile
}

func newAnswer(parts []part) *Answer {
	a := &Answer{parts: parts}
	idle := time.Duration(0)
	for i := range parts {
		p := &parts[i]
		if idle = max(idle, p.length()); p.samples() > 0 {
			a.length = max(a.length, p.length())
		}
	}
	a.length = cmp.Or(a.length, idle)
	return a
}

// all goes through the profiles.
func (a *Answer) all(yield func(*profiler.Profile) bool) {
	for i := range a.parts {
		for _, p := range a.parts[i].profiles {
			if !yield(p) {
				return
			}
		}
	}
}

func (p *part) length() (d time.Duration) {
	for _, one := range p.profiles {
		d = max(d, one.Duration)
	}
	return d
}

// start is when it begins; zero where nothing was recorded.
func (p *part) start() (first time.Time) {
	for _, one := range p.profiles {
		if first.IsZero() || one.Start.Before(first) {
			first = one.Start
		}
	}
	return first
}

// frequency is the highest rate: pods may have asked for less.
func (p *part) frequency() (hz int) {
	for _, one := range p.profiles {
		hz = max(hz, one.Frequency)
	}
	return hz
}

func (p *part) samples() (n uint64) {
	for _, one := range p.profiles {
		n += format.Samples(one)
	}
	return n
}

// cores is how many CPUs it kept busy in the time that it is of.
func (p *part) cores() (busy float64) {
	for _, one := range p.profiles {
		busy += format.Cores(one, format.Samples(one))
	}
	return busy
}

// Length is how long was recorded, on the node where that was longest.
func (a *Answer) Length() time.Duration { return a.length }

// asLong says of a time whether it is as long as another for all that shares tell.
func asLong(d, other time.Duration) bool { return d >= other*9/10 }

// common is when the node that remembers least begins to, and which that is: the
// shortest of those that have samples, if it is too short to be added to the others
// and has at least half of their time. Else there is none.
func (a *Answer) common() (begin time.Time, node string) {
	least := a.length
	for i := range a.parts {
		p := &a.parts[i]
		if p.samples() > 0 && p.length() < least && p.start().After(begin) {
			least, begin, node = p.length(), p.start(), p.node
		}
	}
	if asLong(least, a.length) || least < a.length/2 {
		return time.Time{}, ""
	}
	return begin, node
}

// mostRemarked is of how many nodes is told.
const mostRemarked = 5

// remarks are what has to be known of the nodes to read what was added up: that it
// is less than was asked for, and how each recorded where they did so differently.
func (a *Answer) remarks() (lines []string) {
	if a.cut != "" {
		lines = append(lines, a.cut)
	}
	parts := slices.DeleteFunc(slices.Clone(a.parts), func(p part) bool { return p.samples() == 0 && asLong(p.length(), a.length) })
	uneven, rates := false, map[int]bool{}
	for i := range parts {
		uneven = uneven || !asLong(parts[i].length(), a.length)
		if parts[i].samples() > 0 {
			rates[parts[i].frequency()] = true
		}
	}
	switch {
	case uneven:
		lines = append(lines, "nodes are there for different times, and shares are of the CPU time that was seen:")
	case len(rates) > 1:
		lines = append(lines, "nodes sampled at different rates, by which samples are weighed:")
	default:
		return lines
	}
	slices.SortFunc(parts, func(a, b part) int {
		return cmp.Or(cmp.Compare(a.length(), b.length()), cmp.Compare(a.frequency(), b.frequency()), cmp.Compare(a.node, b.node))
	})
	for i := range parts {
		p := &parts[i]
		if i == mostRemarked {
			lines = append(lines, fmt.Sprintf("and %d more", len(parts)-i))
			break
		}
		of := fmt.Sprintf("%.2f cores busy", p.cores())
		if p.samples() == 0 {
			of = "no sample"
		}
		lines = append(lines, fmt.Sprintf("node %s · %d Hz · %s · %s", p.node, p.frequency(), p.length().Round(time.Second), of))
	}
	return lines
}

func nodeOf(p *profiler.Profile) string {
	if p.Workload == nil {
		return p.Host
	}
	return cmp.Or(p.Workload.Attribute("k8s.node.name"), p.Host)
}

// Samples is how many there are.
func (a *Answer) Samples() uint64 {
	var n uint64
	for i := range a.parts {
		n += a.parts[i].samples()
	}
	return n
}

// Keep leaves out the samples that keep does not want. How far the rest can be
// trusted is counted anew; of what was lost nobody knows whose it was.
func (a *Answer) Keep(keep func(*profiler.Sample) bool) {
	for p := range a.all {
		p.Samples = slices.DeleteFunc(p.Samples, func(s profiler.Sample) bool { return !keep(&s) })
		lost := p.Quality.Lost
		p.Quality = format.Quality(p.Samples)
		p.Quality.Lost = lost
	}
}

// Whole is all of it as one profile. The clocks of nodes differ, and what they
// recorded at the same time is not longer for that. In place of its cgroup, which
// says nothing to a person, a process has the pod and container that it is in.
func (a *Answer) Whole() *profiler.Profile {
	m := format.Merger{Whole: true}
	for p := range a.all {
		m.Add(placed(p))
	}
	merged := m.Profiles()
	if len(merged) == 0 {
		return &profiler.Profile{}
	}
	merged[0].Duration, merged[0].Remarks = a.length, a.remarks()
	return merged[0]
}

// placed is a profile whose processes tell where they are: NAMESPACE/POD/CONTAINER,
// or the node and their cgroup on it. PIDs of two nodes stay apart so.
func placed(p *profiler.Profile) *profiler.Profile {
	if p.Workload == nil {
		return p
	}
	in := p.Workload.Attribute
	node := nodeOf(p)
	renamed := make(map[*profiler.Process]*profiler.Process)
	out := *p
	out.Samples = slices.Clone(p.Samples)
	for i := range out.Samples {
		old := out.Samples[i].Process
		if old == nil {
			continue
		}
		if renamed[old] == nil {
			process := *old
			process.Cgroup = node + old.Cgroup
			if pod := in("k8s.pod.name"); pod != "" {
				process.Cgroup = strings.TrimSuffix(in("k8s.namespace.name")+"/"+pod+"/"+in("k8s.container.name"), "/")
			}
			renamed[old] = &process
		}
		out.Samples[i].Process = renamed[old]
	}
	return &out
}

// Share is a part of an answer.
type Share struct {
	Name    string
	Percent float64
	Cores   float64
}

// Shares are the parts of an answer by an attribute of its workloads, the largest
// first. Cores are those of the time that each node is there for.
func (a *Answer) Shares(name func(*profiler.Workload) string) []Share {
	seconds, cores := map[string]float64{}, map[string]float64{}
	for p := range a.all {
		if n := format.Samples(p); n > 0 && p.Frequency > 0 {
			seconds[name(p.Workload)] += float64(n) / float64(p.Frequency)
			cores[name(p.Workload)] += format.Cores(p, n)
		}
	}
	out := SharesOf(seconds, a.length)
	for i := range out {
		out[i].Cores = cores[out[i].Name]
	}
	return out
}

// SharesOf are the shares of names with so many seconds of CPU time in so long, the
// largest first.
func SharesOf(seconds map[string]float64, length time.Duration) []Share {
	all := 0.0
	for _, s := range seconds {
		all += s
	}
	out := make([]Share, 0, len(seconds))
	for n, s := range seconds {
		out = append(out, Share{Name: n, Percent: s / all * 100, Cores: s / max(length.Seconds(), 1e-9)})
	}
	slices.SortFunc(out, func(a, b Share) int { return cmp.Or(cmp.Compare(b.Cores, a.Cores), cmp.Compare(a.Name, b.Name)) })
	return out
}

// Top gives what of the target used the CPUs lately; at most limit rows.
func (f *Fleet) Top(ctx context.Context, newest time.Duration, by api.By, limit int) (*api.Top, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, answerTimeout, errSlow)
	defer cancel()
	const each = 500 // rows of each agent: what is hot in all is hot in some
	tops, err := ask(ctx, f, func(a *agent) (*api.Top, error) {
		t, err := a.client.Top(ctx, api.HistoryQuery{Newest: newest, Filter: f.filter()}, by, max(each, limit))
		if err == nil && by == api.ByProcess && len(f.agents) > 1 {
			for i := range t.Rows {
				t.Rows[i].Node = a.node
			}
		}
		return t, err
	})
	if err != nil {
		return nil, err
	}
	return mergeTops(tops, limit), nil
}

// mergeTops adds up tables of nodes. Cores add up; shares are those of all that
// was busy.
func mergeTops(tops []*api.Top, limit int) *api.Top {
	out := *tops[0]
	out.Rows, out.More = nil, 0
	type key struct {
		name, kind, module string
		pid                profiler.PID
		node               string // PIDs are of one node
	}
	rows := map[key]*api.TopRow{}
	for i, t := range tops {
		if i > 0 {
			out.Samples += t.Samples
			out.Lost += t.Lost
			out.Cores += t.Cores
			out.Processes += t.Processes
			out.Seconds = max(out.Seconds, t.Seconds)
			out.Frequency, out.Lowest = max(out.Frequency, t.Frequency), min(out.Lowest, t.Lowest)
			if t.To.After(out.To) {
				out.To = t.To
			}
			if t.From.Before(out.From) {
				out.From = t.From
			}
		}
		for _, r := range t.Rows {
			k := key{r.Name, r.Kind, r.Module, r.PID, r.Node}
			if rows[k] == nil {
				rows[k] = &api.TopRow{Name: r.Name, Kind: r.Kind, Module: r.Module, PID: r.PID, Node: r.Node, Service: r.Service}
			}
			to := rows[k]
			to.SelfSamples += r.SelfSamples
			to.TotalSamples += r.TotalSamples
			to.SelfCores += r.SelfCores
			to.TotalCores += r.TotalCores
		}
		out.More = max(out.More, t.More)
	}
	if len(tops) > 1 {
		out.Host = plural(len(tops), "node")
	}
	for _, r := range rows {
		if out.Cores > 0 {
			r.SelfPercent, r.TotalPercent = r.SelfCores/out.Cores*100, r.TotalCores/out.Cores*100
		}
		out.Rows = append(out.Rows, *r)
	}
	slices.SortFunc(out.Rows, func(a, b api.TopRow) int {
		return cmp.Or(cmp.Compare(b.SelfCores, a.SelfCores), cmp.Compare(b.TotalCores, a.TotalCores), cmp.Compare(a.Name, b.Name), cmp.Compare(a.PID, b.PID))
	})
	if limit > 0 && len(out.Rows) > limit {
		out.More += len(out.Rows) - limit
		out.Rows = out.Rows[:limit]
	}
	return &out
}

// Stacks is where the threads of one process are.
type Stacks struct {
	Node string
	*api.Dump
}

// process is one of a node.
type process struct {
	agent *agent
	pid   profiler.PID
	cores float64
	exe   string // empty: not known
}

// replaced says that another program has the process's PID now.
func (p *process) replaced(d *api.Dump) bool {
	was, is := strings.TrimSuffix(p.exe, " (deleted)"), strings.TrimSuffix(d.Exe, " (deleted)")
	return was != "" && is != "" && was != is
}

// Dump gives the stacks of every thread of the target's processes, at most so
// many: first those that ran in the time that the agents remember, the busiest
// first, then those that waited all the time.
func (f *Fleet) Dump(ctx context.Context, most int) (list []Stacks, more int, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, answerTimeout, errSlow)
	defer cancel()
	processes, err := f.processes(ctx)
	if err != nil {
		return nil, 0, err
	}
	if len(processes) > most {
		processes, more = processes[:most], len(processes)-most
	}
	stacks, errs := make([]*api.Dump, len(processes)), make([]error, len(processes))
	// An agent takes one dump at a time.
	each(len(f.agents), func(a int) {
		for i, p := range processes {
			if p.agent == f.agents[a] {
				stacks[i], errs[i] = p.agent.client.Dump(ctx, p.pid)
			}
		}
	})
	if err := ctx.Err(); err != nil {
		return nil, 0, cmp.Or(context.Cause(ctx), err)
	}
	for i, p := range processes {
		var status *api.StatusError
		switch err := errs[i]; {
		case err == nil && p.replaced(stacks[i]): // it ended
		case err == nil:
			list = append(list, Stacks{p.agent.node, stacks[i]})
		case f.Scope.Kind != Process && errors.As(err, &status) && status.Status == http.StatusNotFound: // it ended
		default:
			f.Missing = append(f.Missing, p.agent.failed(ctx, err))
		}
	}
	if len(list) == 0 && len(f.Missing) > 0 {
		return nil, 0, f.Missing[0]
	}
	return list, more, nil
}

// processes are the target's, the busiest first.
func (f *Fleet) processes(ctx context.Context) ([]process, error) {
	if f.Scope.Kind == Process {
		return []process{{agent: f.agents[0], pid: f.Scope.PID}}, nil
	}
	lists, err := ask(ctx, f, func(a *agent) (out []process, err error) {
		q := api.HistoryQuery{Newest: api.DefaultKeep, Filter: f.filter()}
		found, err := a.client.AllProcesses(ctx, q)
		var refused *api.StatusError
		if errors.As(err, &refused) && refused.Status == http.StatusBadRequest { // it is older, and knows those that ran
			found, err = a.client.Processes(ctx, q)
		}
		if err != nil {
			return nil, err
		}
		listed := map[profiler.PID]bool{} // one that ran under two names is there twice
		for _, p := range found.List {
			if p.PID > 0 && !listed[p.PID] {
				listed[p.PID] = true
				out = append(out, process{a, p.PID, p.Cores, p.Exe})
			}
		}
		return out, nil
	})
	all := slices.Concat(lists...)
	slices.SortStableFunc(all, func(a, b process) int { return cmp.Compare(b.cores, a.cores) })
	return all, err
}
