package preflight

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/kalypso-dev/kalypso/deploy/check"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/install"
	"github.com/kalypso-dev/kalypso/deploy/kube"
)

// demand is what objects ask a cluster for.
type demand struct {
	pods   []pods
	claims []volume
}

// pods are those of one workload.
type pods struct {
	name    string
	ask     kube.Room // of one
	count   int
	perNode bool
	spec    corev1.PodTemplateSpec
}

// volume is a claim, n times.
type volume struct {
	name  string
	class *string
	size  resource.Quantity
	count int
}

// workload is any object that makes pods, by the fields that we read.
type workload struct {
	Spec struct {
		Replicas             *int32                         `json:"replicas"`
		Template             corev1.PodTemplateSpec         `json:"template"`
		VolumeClaimTemplates []corev1.PersistentVolumeClaim `json:"volumeClaimTemplates"`
	} `json:"spec"`
}

// demandOf adds up what objects ask for. Jobs are left out: they end.
func demandOf(objects []helm.Object) (*demand, error) {
	d := &demand{}
	for _, o := range objects {
		if err := d.add(o); err != nil {
			return nil, fmt.Errorf("read %s %s: %w", o.Kind, o.Name, err)
		}
	}
	return d, nil
}

func (d *demand) add(o helm.Object) error {
	switch o.Kind {
	case "Deployment", "StatefulSet", "DaemonSet":
		var w workload
		if err := yaml.Unmarshal([]byte(o.YAML), &w); err != nil {
			return err
		}
		n := 1
		if w.Spec.Replicas != nil {
			n = int(*w.Spec.Replicas)
		}
		d.pods = append(d.pods, pods{name: o.Name, ask: kube.Requests(&corev1.Pod{Spec: w.Spec.Template.Spec}), count: n, perNode: o.Kind == "DaemonSet", spec: w.Spec.Template})
		for _, c := range w.Spec.VolumeClaimTemplates {
			d.claims = append(d.claims, claimOf(o.Name, c, n))
		}
	case "PersistentVolumeClaim":
		var c corev1.PersistentVolumeClaim
		if err := yaml.Unmarshal([]byte(o.YAML), &c); err != nil {
			return err
		}
		d.claims = append(d.claims, claimOf(o.Name, c, 1))
	}
	return nil
}

func claimOf(name string, c corev1.PersistentVolumeClaim, n int) volume {
	return volume{name: name, class: c.Spec.StorageClassName, size: c.Spec.Resources.Requests[corev1.ResourceStorage], count: n}
}

// need is the demand of the stack that is to be installed.
func (p *Preflight) need(ctx context.Context) (*demand, error) {
	if p.demand != nil {
		return p.demand, nil
	}
	all, err := p.manifests(ctx)
	if err != nil {
		return nil, err
	}
	p.demand, err = demandOfStack(p.Stack, all)
	return p.demand, err
}

func demandOfStack(s *install.Stack, all map[string]*helm.Manifests) (*demand, error) {
	var objects []helm.Object
	for _, part := range s.Parts {
		objects = append(objects, all[part.Name].Objects...)
	}
	return demandOf(objects)
}

// nodesOnce asks for the nodes once.
func (p *Preflight) nodesOnce(ctx context.Context) ([]*kube.Node, error) {
	if p.nodeSet != nil {
		return p.nodeSet, nil
	}
	var err error
	p.nodeSet, err = p.Cluster.Nodes(ctx)
	return p.nodeSet, err
}

// kind of room: memory, or CPU time.
type roomKind struct {
	of    func(kube.Room) resource.Quantity
	value func(resource.Quantity) int64
	text  func(int64) string
}

func memoryKind() roomKind {
	return roomKind{
		of:    func(r kube.Room) resource.Quantity { return r.Memory },
		value: func(q resource.Quantity) int64 { return q.Value() },
		text:  func(n int64) string { return kube.Bytes(*resource.NewQuantity(n, resource.BinarySI)) },
	}
}

func cpuKind() roomKind {
	return roomKind{
		of:    func(r kube.Room) resource.Quantity { return r.CPU },
		value: func(q resource.Quantity) int64 { return q.MilliValue() },
		text:  func(n int64) string { return fmt.Sprintf("%.2f CPU", float64(n)/1000) },
	}
}

func (p *Preflight) memory(ctx context.Context) check.Outcome { return p.room(ctx, memoryKind()) }
func (p *Preflight) cpu(ctx context.Context) check.Outcome    { return p.room(ctx, cpuKind()) }

// packing is how pods go onto nodes.
type packing struct {
	asked, free, allocatable int64
	homeless                 []string // pods that fit no node, with what they ask for
	missing                  int64    // what they ask for in all
}

// pack puts pods onto nodes, the largest first, each where most is free: what
// the scheduler does, near enough. What runs in these namespaces is being
// replaced and counts as free.
func pack(d *demand, nodes []*kube.Node, ours map[string]bool, kind roomKind) packing {
	var p packing
	free := make([]int64, len(nodes))
	for i, n := range nodes {
		left := kind.value(kind.of(n.Allocatable))
		p.allocatable += left
		for namespace, r := range n.Requested {
			if !ours[namespace] {
				left -= kind.value(kind.of(r))
			}
		}
		free[i] = max(left, 0)
		p.free += free[i]
	}
	var rest []pods
	for _, w := range d.pods {
		if !w.perNode {
			rest = append(rest, w)
			continue
		}
		ask := kind.value(kind.of(w.ask))
		for i := range free {
			p.place(w.name, ask, &free[i], kind)
		}
	}
	slices.SortStableFunc(rest, func(a, b pods) int {
		x, y := kind.of(a.ask), kind.of(b.ask)
		return y.Cmp(x)
	})
	for _, w := range rest {
		ask := kind.value(kind.of(w.ask))
		for range w.count {
			most := 0
			for i := range free {
				if free[i] > free[most] {
					most = i
				}
			}
			p.place(w.name, ask, &free[most], kind)
		}
	}
	return p
}

func (p *packing) place(name string, ask int64, free *int64, kind roomKind) {
	p.asked += ask
	if ask <= *free {
		*free -= ask
		return
	}
	p.missing += ask
	p.homeless = append(p.homeless, fmt.Sprintf("%s (%s)", name, kind.text(ask)))
}

// room checks one kind of room.
func (p *Preflight) room(ctx context.Context, kind roomKind) check.Outcome {
	d, err := p.need(ctx)
	if err != nil {
		return unseen(err)
	}
	nodes, err := p.nodesOnce(ctx)
	if err != nil {
		return unseen(err)
	}
	if len(nodes) == 0 {
		return check.Skip("no node takes pods")
	}
	ours := p.ours(ctx)
	got := pack(d, nodes, ours, kind)
	asks := fmt.Sprintf("asks for %s; %s of %s free on %s", kind.text(got.asked), kind.text(got.free), kind.text(got.allocatable), kube.Count(len(nodes), "node"))
	if len(got.homeless) == 0 {
		return check.Pass("%s", asks)
	}
	return check.Fail("%s\nno room for %s", asks, few(got.homeless)).WithFix("%s", p.moreRoom(ctx, got, kind))
}

// few names the first of several things.
func few(things []string) string {
	const limit = 2
	if len(things) > limit {
		return fmt.Sprintf("%s and %d more", strings.Join(things[:limit], ", "), len(things)-limit)
	}
	return strings.Join(things, ", ")
}

// ours are the namespaces that kalypsoctl made: their pods make room for those
// that come.
func (p *Preflight) ours(ctx context.Context) map[string]bool {
	out := map[string]bool{}
	list, err := p.Cluster.Client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{LabelSelector: helm.ManagedBy + "=" + helm.Manager})
	if err != nil {
		return out // then nothing is taken to be free
	}
	for _, ns := range list.Items {
		out[ns.Name] = true
	}
	return out
}

// fits is the largest smaller profile for which there is room, where there is
// none for what is asked for.
func (p *Preflight) fits(ctx context.Context) string {
	nodes, err := p.nodesOnce(ctx)
	if err != nil {
		return ""
	}
	ours := p.ours(ctx)
	room := func(d *demand) bool {
		return len(pack(d, nodes, ours, memoryKind()).homeless) == 0 && len(pack(d, nodes, ours, cpuKind()).homeless) == 0
	}
	if d, err := p.need(ctx); err != nil || room(d) {
		return ""
	}
	for _, s := range p.Smaller() {
		all, err := rendered(s)
		if err != nil {
			return ""
		}
		if d, err := demandOfStack(s, all); err == nil && room(d) {
			return s.Profile
		}
	}
	return ""
}

// gib is how machines are given memory.
const gib = 1 << 30

// moreRoom tells how there would be room.
func (p *Preflight) moreRoom(ctx context.Context, got packing, kind roomKind) string {
	if p.fits(ctx) != "" {
		return p.install(ctx)
	}
	context := p.Cluster.Context
	needed := got.allocatable + got.missing
	switch name, isColima := strings.CutPrefix(context, "colima"); {
	case isColima:
		profile := strings.TrimPrefix(name, "-")
		if profile == "" {
			profile = "default"
		}
		if kind.text(0) == cpuKind().text(0) {
			return fmt.Sprintf("colima stop %s && colima start %s --cpu %d", profile, profile, (needed+999)/1000)
		}
		// The VM keeps some for itself.
		return fmt.Sprintf("colima stop %s && colima start %s --memory %d", profile, profile, (needed+gib-1)/gib+1)
	default:
		return fmt.Sprintf("add a node with %s free, or leave a component out: %s", kind.text(got.missing), p.Command("install", "--skip", "COMPONENT"))
	}
}

// agentTemplate is the DaemonSet that asks for most: the agent's.
func (d *demand) agentTemplate() *corev1.PodTemplateSpec {
	for i := range d.pods {
		if spec := d.pods[i].spec.Spec; d.pods[i].perNode && spec.HostPID {
			return &d.pods[i].spec
		}
	}
	return nil
}
