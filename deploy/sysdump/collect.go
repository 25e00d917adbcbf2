package sysdump

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"

	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/deploy/plan"
	"github.com/kalypso-dev/kalypso/deploy/status"
)

const (
	atOnce   = 8       // questions to the server
	logLimit = 2 << 20 // of one container, the newest part
	logLines = 20000   // likewise; a container that writes more in an hour repeats itself

	agentsAsked = 10
)

// versions writes versions.txt: all that a reader asks for first.
func (d *dump) versions(ctx context.Context) error {
	var b strings.Builder
	fmt.Fprintf(&b, "kalypsoctl   %s\ncontext      %s\nkubernetes   %s\n\n", d.opts.Tool, d.cluster.Context, d.cluster.Version)
	nodes, err := d.cluster.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err == nil {
		d.nodes = nodes.Items
	}
	for _, n := range d.nodes {
		i := n.Status.NodeInfo
		fmt.Fprintf(&b, "node %s\n  kubelet %s, %s, kernel %s, %s, %s\n  allocatable cpu %s, memory %s\n",
			n.Name, i.KubeletVersion, i.OSImage, i.KernelVersion, i.Architecture, i.ContainerRuntimeVersion,
			n.Status.Allocatable.Cpu(), n.Status.Allocatable.Memory())
		for _, c := range n.Status.Conditions {
			fmt.Fprintf(&b, "  %s=%s since %s %s\n", c.Type, c.Status, c.LastTransitionTime.UTC().Format(time.RFC3339), c.Message)
		}
	}
	return errors.Join(err, d.add("versions.txt", []byte(b.String())))
}

// plan writes plan.txt.
func (d *dump) plan(context.Context) error {
	waves, err := plan.Waves(component.All())
	if err != nil {
		return err
	}
	var b strings.Builder
	for i, wave := range waves {
		for _, c := range wave {
			fmt.Fprintf(&b, "wave %d  %-18s  namespace %-14s  release %-26s  needs %s\n", i+1, c.Name, c.Namespace, c.Release, strings.Join(c.Needs, ", "))
		}
	}
	return d.add("plan.txt", []byte(b.String()))
}

// releases writes releases.txt, and the values that somebody gave. Helm keeps
// whole charts and manifests in its Secrets; none of that is written.
func (d *dump) releases(context.Context) error {
	var b strings.Builder
	var errs []error
	for _, c := range d.health {
		r := c.Release
		if r == nil {
			fmt.Fprintf(&b, "%-18s  %s %s\n", c.Name, c.Health, c.Note)
			continue
		}
		fmt.Fprintf(&b, "%-18s  %s/%s  chart %s %s (app %s)  revision %d  %s  %s  profile %q  managed %t  %s\n",
			c.Name, r.Namespace, r.Name, r.Chart, r.Version, r.App, r.Revision, r.Status, r.Updated.UTC().Format(time.RFC3339), r.Profile, r.Managed, r.Why)
		if len(r.Values) == 0 {
			continue
		}
		text, err := helm.WriteValues(d.redact.tree(helm.Merge(r.Values)).(map[string]any))
		if err != nil {
			errs = append(errs, fmt.Errorf("values of %s: %w", c.Name, err))
			continue
		}
		errs = append(errs, d.keep("values/"+c.Name+".yaml", []byte(text)))
	}
	return errors.Join(append(errs, d.add("releases.txt", []byte(b.String())))...)
}

// events writes events/NAMESPACE.txt, newest last.
func (d *dump) events(ctx context.Context) error {
	for _, ns := range append(d.namespaces(), "") {
		from, name := ns, ns
		options := metav1.ListOptions{}
		if ns == "" { // nodes have theirs in the namespace default
			from, name, options.FieldSelector = "default", "nodes", "involvedObject.kind=Node"
		}
		list, err := d.cluster.Client.CoreV1().Events(from).List(ctx, options)
		if err != nil {
			d.fail("events/"+name+".txt", err)
			continue
		}
		if err := d.add("events/"+name+".txt", d.eventsText(list.Items)); err != nil {
			return err
		}
	}
	return nil
}

func (d *dump) eventsText(events []corev1.Event) []byte {
	slices.SortStableFunc(events, func(a, b corev1.Event) int { return kube.EventTime(&a).Compare(kube.EventTime(&b)) })
	var b bytes.Buffer
	old := 0
	for i := range events {
		e := &events[i]
		if time.Since(kube.EventTime(e)) > d.opts.Since {
			old++
			continue
		}
		message := strings.Join(strings.Fields(e.Message), " ")
		fmt.Fprintf(&b, "%s  %-7s  %-4s  %-22s  %s %s  %s\n", kube.EventTime(e).UTC().Format(time.RFC3339), e.Type, fmt.Sprintf("x%d", max(e.Count, 1)), e.Reason, e.InvolvedObject.Kind, e.InvolvedObject.Name, message)
		if e.Type == corev1.EventTypeWarning {
			d.tallies[fmt.Sprintf("%s %s/%s: %s: %s", e.InvolvedObject.Kind, e.Namespace, e.InvolvedObject.Name, e.Reason, message)] += int(max(e.Count, 1))
		}
	}
	if old > 0 {
		fmt.Fprintf(&b, "%d older than %s were left out\n", old, kube.Age(d.opts.Since))
	}
	return b.Bytes()
}

// objects writes objects/NAMESPACE/RESOURCE.yaml, of whatever kinds there are.
func (d *dump) objects(ctx context.Context) error {
	resources, err := d.cluster.Kinds()
	// Names of Secrets are listed below, without what is in them.
	resources = slices.DeleteFunc(resources, func(r schema.GroupVersionResource) bool { return r.Group == "" && r.Resource == "secrets" })
	var group errgroup.Group
	group.SetLimit(atOnce)
	for _, ns := range d.namespaces() {
		for _, r := range resources {
			group.Go(func() error {
				if err := d.list(ctx, ns, r); err != nil {
					d.fail("objects/"+ns+"/"+r.Resource, err)
				}
				return nil
			})
		}
		group.Go(func() error {
			if err := d.secretNames(ctx, ns); err != nil {
				d.fail("names of Secrets of namespace "+ns, err)
			}
			return nil
		})
	}
	_ = group.Wait() // nobody gives an error
	if err != nil {
		return fmt.Errorf("some of the API did not answer: %w", err)
	}
	return nil
}

func (d *dump) list(ctx context.Context, ns string, r schema.GroupVersionResource) error {
	list, err := d.cluster.Dynamic.Resource(r).Namespace(ns).List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(list.Items) == 0 {
		return nil
	}
	text, err := d.yaml(list.Items)
	if err != nil {
		return err
	}
	name := r.Resource
	if r.Group != "" {
		name += "." + r.Group
	}
	return d.keep("objects/"+ns+"/"+name+".yaml", text)
}

func (d *dump) yaml(objects []unstructured.Unstructured) ([]byte, error) {
	var b bytes.Buffer
	for _, o := range objects {
		text, err := helm.WriteValues(d.redact.tree(o.Object).(map[string]any))
		if err != nil {
			return nil, err
		}
		b.WriteString("---\n" + text)
	}
	return b.Bytes(), nil
}

// secretNames asks for nothing else: the server does not send what they hold.
func (d *dump) secretNames(ctx context.Context, ns string) error {
	client, err := metadata.NewForConfig(d.cluster.REST)
	if err != nil {
		return err
	}
	list, err := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "secrets"}).Namespace(ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	var b bytes.Buffer
	for _, s := range list.Items {
		fmt.Fprintf(&b, "%s  %s\n", s.CreationTimestamp.UTC().Format(time.RFC3339), s.Name)
	}
	return d.keep("objects/"+ns+"/secrets-names.txt", b.Bytes())
}

// logs writes logs/NAMESPACE/POD/CONTAINER.log, and .previous.log where a
// container was started again.
func (d *dump) logs(ctx context.Context) error {
	for _, ns := range d.namespaces() {
		pods, err := d.cluster.Client.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
		if err != nil {
			d.fail("logs/"+ns, err)
			continue
		}
		var group errgroup.Group
		group.SetLimit(atOnce)
		for i := range pods.Items {
			p := &pods.Items[i]
			for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
				group.Go(func() error { d.log(ctx, p, s); return nil })
			}
		}
		_ = group.Wait() // nobody gives an error
	}
	return nil
}

func (d *dump) log(ctx context.Context, p *corev1.Pod, s corev1.ContainerStatus) {
	if s.State.Waiting != nil && s.RestartCount == 0 {
		return // it never ran
	}
	for _, previous := range []bool{false, true} {
		if previous && s.RestartCount == 0 {
			continue
		}
		suffix := ".log"
		if previous {
			suffix = ".previous.log"
		}
		name := "logs/" + p.Namespace + "/" + p.Name + "/" + s.Name + suffix
		text, err := d.readLog(ctx, p, s.Name, previous, name)
		if err != nil {
			d.fail(name, err)
			continue
		}
		if len(text) == 0 {
			continue
		}
		if err := d.add(name, text); err != nil {
			d.fail(name, err)
		}
	}
}

// readLog gives the newest part of a log.
func (d *dump) readLog(ctx context.Context, p *corev1.Pod, container string, previous bool, name string) ([]byte, error) {
	lines, since := int64(logLines), max(int64(d.opts.Since.Seconds()), 1)
	o := &corev1.PodLogOptions{Container: container, Previous: previous, Timestamps: true, TailLines: &lines, SinceSeconds: &since}
	if previous {
		o.SinceSeconds = nil // it may have ended long ago, and matters all the more
	}
	body, err := d.cluster.Client.CoreV1().Pods(p.Namespace).GetLogs(p.Name, o).Stream(ctx)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	tail := &tail{limit: logLimit}
	_, err = io.Copy(tail, body)
	tail.trim()
	if tail.cut > 0 {
		d.leftOut("%s: the first %s of it", name, size(tail.cut))
	}
	return tail.data, err
}

// tail keeps the end of what is written to it.
type tail struct {
	limit int
	data  []byte
	cut   int64
}

func (t *tail) Write(p []byte) (int, error) {
	t.data = append(t.data, p...)
	// Twice the limit, so that moving costs little for each byte.
	if len(t.data) > 2*t.limit {
		t.trim()
	}
	return len(p), nil
}

func (t *tail) trim() {
	if over := len(t.data) - t.limit; over > 0 {
		if line := bytes.IndexByte(t.data[over:], '\n'); line >= 0 {
			over += line + 1
		}
		t.cut += int64(over)
		t.data = append(t.data[:0], t.data[over:]...)
	}
}

// agents writes what each agent tells of itself.
func (d *dump) agents(ctx context.Context) error {
	i := slices.IndexFunc(d.health, func(c status.Component) bool { return c.Name == "agent" })
	if i < 0 || d.health[i].Release == nil {
		return nil
	}
	pods, err := d.cluster.Pods(ctx, status.Refs(d.health[i].Release))
	if err != nil {
		return err
	}
	asked := 0
	for _, p := range pods {
		if p.Status.Phase != corev1.PodRunning {
			continue
		}
		if asked++; asked > agentsAsked {
			d.leftOut("agents beyond the first %d of %d", agentsAsked, len(pods))
			break
		}
		if err := d.agent(ctx, p); err != nil {
			d.fail("agent/"+p.Spec.NodeName, innermost(err))
		}
	}
	return nil
}

// innermost is the reason without the names of who was asked, so that the same
// reason reads the same everywhere.
func innermost(err error) error {
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(inner) {
		err = inner
	}
	return err
}

// agentLimit bounds one agent; what has its port open answers in milliseconds.
const agentLimit = 5 * time.Second

// agentPort is the chart's.
const agentPort = 4041

func (d *dump) agent(ctx context.Context, p *corev1.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, agentLimit)
	defer cancel()
	port := agentPort
	for _, c := range p.Spec.Containers {
		if len(c.Ports) > 0 {
			port = int(c.Ports[0].ContainerPort)
		}
	}
	way, err := d.cluster.ForwardPod(ctx, p.Namespace, p.Name, port, 0)
	if err != nil {
		return err
	}
	defer way.Close()
	for path, file := range map[string]string{"/metrics": "metrics.txt", "/v1/quality": "quality.json"} {
		text, err := get(ctx, "http://"+way.Addr+path)
		if err != nil {
			return err
		}
		if err := d.add("agent/"+p.Spec.NodeName+"/"+file, text); err != nil {
			return err
		}
	}
	return nil
}

// get reads one page of an agent, at most logLimit of it.
func get(ctx context.Context, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the agent answers %s", answer.Status)
	}
	return io.ReadAll(io.LimitReader(answer.Body, logLimit))
}
