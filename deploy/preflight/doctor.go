package preflight

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	scheduling "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/kalypso-dev/kalypso/deploy/check"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/install"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/profiler"
)

// Only a node knows what its kernel, its runtime and its policies let the agent
// do. So the agent's own checks run there, in a pod with the rights that the
// chart gives the agent: the image and the security context are those of the
// DaemonSet as it would be installed. What differs is that the pod is a Job's,
// asks for next to no room, reads no configuration and holds no token.

// Node is what the agent's doctor says of a node.
type Node struct {
	Name   string
	System string   // Linux 6.8.0-64-generic, Ubuntu 24.04.1 LTS, amd64, containerd://1.7.24
	Like   []string // nodes of the same system, which were not asked
	Report *check.Report
}

// Doctor is the check that fails where the agent's doctor says nothing. Those
// that it runs itself are of docs/checks.
func Doctor() check.Check {
	return check.Check{ID: "doctor", Title: "the agent's doctor runs on the node", Severity: check.Required,
		Effect: "whether the agent runs there is not known"}
}

const (
	doctorName = "kalypso-preflight"
	// doctorsAtOnce bounds how many nodes pull the image at a time.
	doctorsAtOnce = 8
	// cleanLimit is for taking away what was made, also after ^C.
	cleanLimit = 15 * time.Second
	// logLimit is fifty times what a doctor prints.
	logLimit = 1 << 20
	// leftAfter is when a namespace of an earlier run is not one that is in use.
	leftAfter = 15 * time.Minute
)

// Nodes has the agent's doctor look at one node of each system that the agent
// would run on, each for at most limit, and calls each as they come. What it made
// on the cluster it takes away, also when ctx ends.
func (p *Preflight) Nodes(ctx context.Context, limit time.Duration, each func(Node)) (err error) {
	d := &doctor{cluster: p.Cluster, limit: limit, run: rand.String(8)}
	var namespace string
	if namespace, d.template, err = p.agent(ctx); err != nil {
		return err
	}
	nodes, err := d.nodes(ctx)
	if err != nil {
		return err
	}
	clean, err := d.enter(ctx, namespace)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, clean()) }()
	found := make(chan Node)
	group := errgroup.Group{}
	group.SetLimit(doctorsAtOnce)
	go func() {
		for _, n := range nodes {
			group.Go(func() error {
				n.Report = d.look(ctx, n.Name)
				found <- n
				return nil
			})
		}
		_ = group.Wait()
		close(found)
	}()
	for n := range found {
		each(n)
	}
	return nil
}

// agent is the pod of the agent's DaemonSet and its namespace. Where upstream
// charts are missing, values that were given earlier are not among what it is
// made of.
func (p *Preflight) agent(ctx context.Context) (namespace string, pod *corev1.PodTemplateSpec, err error) {
	i := slices.IndexFunc(p.Stack.Parts, func(part install.Part) bool { return part.Name == "agent" })
	if i < 0 {
		return "", nil, &profiler.Fault{What: "there is nothing to try on the nodes", Why: errors.New("the agent is not among what is to be installed"), Fix: p.Command("preflight", "--nodes", "--component", "agent")}
	}
	part := p.Stack.Parts[i]
	var m *helm.Manifests
	if all, err := p.manifests(ctx); err == nil {
		m = all[part.Name]
	} else if m, err = render(p.Stack, part); err != nil {
		return "", nil, err
	}
	demand, err := demandOf(m.Objects)
	if err != nil {
		return "", nil, err
	}
	if pod = demand.agentTemplate(); pod == nil {
		return "", nil, &profiler.Fault{What: "there is nothing to try on the nodes", Why: errors.New("the agent's chart makes no pod that sees the processes of its node"), Fix: "kalypsoctl config show --origin     prints the values and where each came from"}
	}
	return part.Namespace, pod, nil
}

// doctor is one run of it on several nodes.
type doctor struct {
	cluster   *kube.Cluster
	template  *corev1.PodTemplateSpec
	limit     time.Duration
	namespace string
	run       string // another one may be under way in the same namespace
}

// runLabel tells what is of which run.
const runLabel = "kalypso.dev/preflight"

func (d *doctor) labels() map[string]string {
	return map[string]string{"app.kubernetes.io/name": doctorName, helm.ManagedBy: helm.Manager, runLabel: d.run}
}

// nodes are one of each system that the DaemonSet would have a pod on.
func (d *doctor) nodes(ctx context.Context) ([]Node, error) {
	list, err := d.cluster.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list the nodes: %w", err)
	}
	var out []Node
	for i := range list.Items {
		n := &list.Items[i]
		if !d.runsOn(n) {
			continue
		}
		system := systemOf(n)
		if j := slices.IndexFunc(out, func(o Node) bool { return o.System == system }); j >= 0 {
			out[j].Like = append(out[j].Like, n.Name)
		} else {
			out = append(out, Node{Name: n.Name, System: system})
		}
	}
	if len(out) == 0 {
		return nil, &profiler.Fault{What: "there is no node that the agent would run on", Why: fmt.Errorf("of %s none is ready and is what the agent's nodeSelector, affinity and tolerations ask for", kube.Count(len(list.Items), "node")), Fix: "kubectl describe nodes     tells of labels, taints and conditions"}
	}
	return out, nil
}

// runsOn says whether the DaemonSet would have a pod on a node, as its controller
// decides it. One that is not ready is not asked.
func (d *doctor) runsOn(n *corev1.Node) bool {
	ready := slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
	matches, err := nodeaffinity.GetRequiredNodeAffinity(&corev1.Pod{Spec: d.template.Spec}).Match(n)
	keepsOut := func(t *corev1.Taint) bool { return t.Effect != corev1.TaintEffectPreferNoSchedule }
	_, kept := scheduling.FindMatchingUntoleratedTaint(logr.Discard(), n.Spec.Taints, d.tolerations(), keepsOut, false)
	return ready && err == nil && matches && !kept
}

// tolerations are those of the chart, and those that every DaemonSet has for
// nodes that are closed to others.
func (d *doctor) tolerations() []corev1.Toleration {
	list := slices.Clone(d.template.Spec.Tolerations)
	for _, key := range []string{corev1.TaintNodeUnschedulable, corev1.TaintNodeDiskPressure, corev1.TaintNodeMemoryPressure, corev1.TaintNodePIDPressure} {
		list = append(list, corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule})
	}
	return list
}

// systemOf is what decides whether the agent runs on a node, as its kubelet
// tells it.
func systemOf(n *corev1.Node) string {
	info := n.Status.NodeInfo
	if info.KernelVersion == "" {
		return "tells nothing of its system"
	}
	return strings.Join([]string{"Linux " + info.KernelVersion, info.OSImage, info.Architecture, info.ContainerRuntimeVersion}, ", ")
}

// enter gives the namespace to work in: the agent's, which may have what its
// image is pulled with, or one for this run. clean takes away what was made.
func (d *doctor) enter(ctx context.Context, agents string) (clean func() error, err error) {
	namespaces := d.cluster.Client.CoreV1().Namespaces()
	bounded := func() (context.Context, context.CancelFunc) {
		return context.WithTimeout(context.WithoutCancel(ctx), cleanLimit)
	}
	d.removeLeft(ctx)
	ns, err := namespaces.Get(ctx, agents, metav1.GetOptions{})
	switch {
	case err == nil && ns.Status.Phase != corev1.NamespaceTerminating:
		d.namespace = agents
		return func() error {
			ctx, cancel := bounded()
			defer cancel()
			background := metav1.DeletePropagationBackground
			err := d.cluster.Client.BatchV1().Jobs(agents).DeleteCollection(ctx,
				metav1.DeleteOptions{PropagationPolicy: &background}, metav1.ListOptions{LabelSelector: runLabel + "=" + d.run})
			return left(err, "-n "+agents+" delete jobs -l "+runLabel+"="+d.run)
		}, nil
	case err != nil && !apierrors.IsNotFound(err):
		return nil, fmt.Errorf("see namespace %s: %w", agents, err)
	}
	labels := d.labels()
	labels["pod-security.kubernetes.io/enforce"] = "privileged"
	ns, err = namespaces.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: doctorName + "-", Labels: labels}}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("make a namespace for the agent's doctor: %w", err)
	}
	d.namespace = ns.Name
	return func() error {
		ctx, cancel := bounded()
		defer cancel()
		return left(namespaces.Delete(ctx, ns.Name, metav1.DeleteOptions{}), "delete namespace "+ns.Name)
	}, nil
}

// left says what could not be taken away, and how it can be.
func left(err error, command string) error {
	if err == nil || apierrors.IsNotFound(err) {
		return nil
	}
	return &profiler.Fault{What: "what ran the agent's doctor is still there", Why: err, Fix: "kubectl " + command}
}

// removeLeft deletes namespaces of runs that were killed. Their Jobs went by
// themselves.
func (d *doctor) removeLeft(ctx context.Context) {
	namespaces := d.cluster.Client.CoreV1().Namespaces()
	list, err := namespaces.List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + doctorName})
	if err != nil {
		return // it only helps
	}
	for i := range list.Items {
		if ns := &list.Items[i]; time.Since(ns.CreationTimestamp.Time) > leftAfter {
			_ = namespaces.Delete(ctx, ns.Name, metav1.DeleteOptions{})
		}
	}
}

// look runs the doctor on a node.
func (d *doctor) look(ctx context.Context, node string) *check.Report {
	started := time.Now()
	limited, cancel := context.WithTimeout(ctx, d.limit)
	defer cancel()
	report, err := d.ask(limited, node)
	if err == nil {
		report.Took = time.Since(started)
		return report
	}
	c := Doctor()
	result := check.Result{ID: c.ID, Title: c.Title, Severity: c.Severity, State: check.Failed, Effect: c.Effect, Took: time.Since(started)}
	var fault *profiler.Fault
	switch {
	case ctx.Err() != nil:
		result.State, result.Detail, result.Effect = check.Skipped, "interrupted", ""
	case errors.As(err, &fault) && fault.Why != nil:
		result.Detail, result.Fix = fault.What+": "+fault.Why.Error(), fault.Fix
	default:
		result.Detail, result.Fix = err.Error(), "kubectl describe node "+node
	}
	return &check.Report{Results: []check.Result{result}, Took: result.Took}
}

// ask starts the pod, waits for its end and reads what it says.
func (d *doctor) ask(ctx context.Context, node string) (*check.Report, error) {
	job, err := d.cluster.Client.BatchV1().Jobs(d.namespace).Create(ctx, d.job(node), metav1.CreateOptions{})
	if err != nil {
		return nil, d.refused(node, err)
	}
	// A doctor that finds something ends with exit code 3, which is a Job that
	// failed: what it says counts, wherever there is something.
	waited := d.cluster.WaitReady(ctx, []kube.Ref{{APIVersion: "batch/v1", Kind: "Job", Namespace: d.namespace, Name: job.Name}}, nil)
	var late *kube.Timeout
	if errors.As(waited, &late) {
		return nil, d.late(node, late)
	}
	text, err := d.says(ctx, job.Name)
	switch {
	case err != nil && waited != nil: // it was never started, and it is known why
		return nil, waited
	case err != nil:
		return nil, &profiler.Fault{
			What: "no sign that the pod ran on " + node, Why: fmt.Errorf("the API server says that it ended, and its kubelet gives no log: %w", err),
			Fix: "kubectl describe node " + node + "     is there a kubelet behind it?",
		}
	}
	report, err := readDoctor(text)
	if err != nil && waited != nil {
		err = waited
	}
	if err != nil {
		return nil, &profiler.Fault{What: "no report came from " + node, Why: err, Fix: "is the image the agent's? kalypsoctl images agent     names it"}
	}
	return report, nil
}

// late says that the pod did not end in time, and how far it was.
func (d *doctor) late(node string, late *kube.Timeout) error {
	f := &profiler.Fault{
		What: fmt.Sprintf("it did not end on %s within %s", node, d.limit), Why: late,
		Fix: "kubectl describe node " + node + "     and does its kubelet start pods? --timeout 5m waits longer",
	}
	var inner *profiler.Fault
	if errors.As(late, &inner) && inner.Why != nil {
		f.Why = inner.Why
	}
	return f
}

// refused is a pod that the API server does not take.
func (d *doctor) refused(node string, err error) error {
	f := &profiler.Fault{What: "no pod for " + node, Why: errors.New(refusal(err)), Fix: "kalypsoctl preflight --only rbac,pod_security     tells more"}
	return f
}

// says gives the log of the pod of a Job.
func (d *doctor) says(ctx context.Context, job string) ([]byte, error) {
	pods := d.cluster.Client.CoreV1().Pods(d.namespace)
	list, err := pods.List(ctx, metav1.ListOptions{LabelSelector: batchv1.JobNameLabel + "=" + job})
	if err != nil {
		return nil, fmt.Errorf("list the pods of Job %s: %w", job, err)
	}
	for i := range list.Items {
		switch p := &list.Items[i]; p.Status.Phase {
		case corev1.PodSucceeded, corev1.PodFailed:
			most := int64(logLimit)
			return pods.GetLogs(p.Name, &corev1.PodLogOptions{LimitBytes: &most}).DoRaw(ctx)
		}
	}
	return nil, errors.New("no pod of it has ended")
}

// job is the agent's pod on one node, with another command. A run that is killed
// leaves nothing that runs on: it ends by its deadline and goes by its age.
func (d *doctor) job(node string) *batchv1.Job {
	labels := d.labels()
	labels["sidecar.istio.io/inject"] = "false"
	annotations := map[string]string{}
	for key, value := range d.template.Annotations { // of AppArmor, before Kubernetes 1.30
		if strings.HasPrefix(key, "container.apparmor.security.beta.kubernetes.io/") {
			annotations[key] = value
		}
	}
	once, deadline, age := int32(0), int64((d.limit + cleanLimit).Seconds()), int32(60)
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{GenerateName: doctorName + "-", Labels: labels},
		Spec: batchv1.JobSpec{
			BackoffLimit: &once, ActiveDeadlineSeconds: &deadline, TTLSecondsAfterFinished: &age,
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: annotations}, Spec: d.pod(node)},
		},
	}
}

// pod is what the agent's would be, as far as it decides what the agent may do.
func (d *doctor) pod(node string) corev1.PodSpec {
	spec := *d.template.Spec.DeepCopy()
	no, grace := false, int64(1)
	spec.RestartPolicy, spec.TerminationGracePeriodSeconds = corev1.RestartPolicyNever, &grace
	spec.PriorityClassName, spec.Priority = "", nil // a check takes nobody's place
	spec.ServiceAccountName, spec.DeprecatedServiceAccount, spec.AutomountServiceAccountToken = "", "", &no
	spec.Volumes, spec.InitContainers, spec.NodeSelector, spec.Tolerations = nil, nil, nil, d.tolerations()
	spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{{
			Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{node},
		}}}},
	}}}
	c := spec.Containers[0]
	spec.Containers = []corev1.Container{{
		Name: c.Name, Image: c.Image, ImagePullPolicy: c.ImagePullPolicy, SecurityContext: c.SecurityContext,
		Command: c.Command, Args: []string{"doctor", "-o", "json"},
		// Whether there is room for the agent is told by other checks; its limit
		// decides whether its programs can be loaded.
		Resources: corev1.ResourceRequirements{Limits: c.Resources.Limits, Requests: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("16Mi"),
		}},
	}}
	return spec
}

// doctorReport is what is read of kalypso.doctor/v1.
type doctorReport struct {
	Schema string `json:"schema"`
	Checks []struct {
		ID         string `json:"id"`
		Title      string `json:"title"`
		Severity   string `json:"severity"`
		State      string `json:"state"`
		Detail     string `json:"detail"`
		Effect     string `json:"effect"`
		Fix        string `json:"fix"`
		DurationMS int64  `json:"duration_ms"`
	} `json:"checks"`
}

// readDoctor reads what kalypso-agent doctor -o json prints. A word that this
// program does not know yet is taken for the worst of its kind.
func readDoctor(text []byte) (*check.Report, error) {
	var doc doctorReport
	if err := json.Unmarshal(text, &doc); err != nil || doc.Schema != "kalypso.doctor/v1" {
		line, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
		return nil, fmt.Errorf("its pod says: %.200s", line)
	}
	report := &check.Report{}
	for _, c := range doc.Checks {
		result := check.Result{
			ID: c.ID, Title: c.Title, Severity: check.Required, State: check.Failed,
			Detail: c.Detail, Effect: c.Effect, Fix: c.Fix, Took: time.Duration(c.DurationMS) * time.Millisecond,
		}
		for _, s := range []check.Severity{check.Limit, check.Note} {
			if c.Severity == s.String() {
				result.Severity = s
			}
		}
		for _, s := range []check.State{check.Passed, check.Skipped} {
			if c.State == s.String() {
				result.State = s
			}
		}
		report.Results = append(report.Results, result)
	}
	return report, nil
}
