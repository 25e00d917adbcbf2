package kube

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// why is why a pod is not ready.
type why struct {
	text   string
	since  time.Time
	hurdle Hurdle
}

const (
	// crashLimit is how often a container may be started again before it is said
	// that it will not heal: the waits before the fourth time add up to 70 s, in
	// which what it waits for may have come.
	crashLimit = 4
	// roomLimit is how long a pod may find no node before it is said that there
	// is none: others may be about to leave.
	roomLimit = 20 * time.Second
	// textLimit keeps a reason on two lines of a terminal.
	textLimit = 200
)

// podReady says whether a pod takes work, or has done it.
func podReady(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded || PodReady(p) }

// PodReady says whether a pod takes work.
func PodReady(p *corev1.Pod) bool {
	c := condition(p, corev1.PodReady)
	return c != nil && c.Status == corev1.ConditionTrue && p.DeletionTimestamp == nil
}

func condition(p *corev1.Pod, kind corev1.PodConditionType) *corev1.PodCondition {
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == kind {
			return &p.Status.Conditions[i]
		}
	}
	return nil
}

// why tells why a pod is not ready: the first thing in its life that has not
// happened.
func (v *view) why(p *corev1.Pod) why {
	since := p.CreationTimestamp.Time
	scheduled := condition(p, corev1.PodScheduled)
	switch {
	case p.DeletionTimestamp != nil:
		return why{text: "is being deleted", since: p.DeletionTimestamp.Time}
	case p.Status.Phase == corev1.PodFailed:
		return v.failed(p)
	case scheduled != nil && scheduled.Status == corev1.ConditionFalse:
		return v.unscheduled(p, scheduled)
	case p.Spec.NodeName == "":
		return why{text: "waits for the scheduler", since: since}
	}
	if scheduled != nil {
		since = scheduled.LastTransitionTime.Time
	}
	for i := range p.Status.InitContainerStatuses {
		s := &p.Status.InitContainerStatuses[i]
		if s.Ready || s.State.Terminated != nil && s.State.Terminated.ExitCode == 0 || isSidecar(p, s.Name) && s.Started != nil && *s.Started {
			continue
		}
		w := v.container(p, s, since)
		if s.State.Running != nil {
			w.text = fmt.Sprintf("init container %s runs", s.Name)
		}
		return w
	}
	// The one that tells most: what waits for something tells more than what is
	// only not ready yet.
	var first *why
	for i := range p.Status.ContainerStatuses {
		s := &p.Status.ContainerStatuses[i]
		if s.Ready {
			continue
		}
		w := v.container(p, s, since)
		if first == nil || s.State.Running == nil {
			first = &w
		}
		if s.State.Running == nil {
			break
		}
	}
	if first != nil {
		return *first
	}
	if len(p.Status.ContainerStatuses) == 0 {
		return why{text: fmt.Sprintf("waits for the kubelet of %s", p.Spec.NodeName), since: since}
	}
	for _, gate := range p.Spec.ReadinessGates {
		if c := condition(p, gate.ConditionType); c == nil || c.Status != corev1.ConditionTrue {
			return why{text: fmt.Sprintf("waits for the readiness gate %s", gate.ConditionType), since: since}
		}
	}
	return why{text: "is about to be ready", since: since}
}

// isSidecar says whether an init container is one that goes on running.
func isSidecar(p *corev1.Pod, name string) bool {
	return slices.ContainsFunc(p.Spec.InitContainers, func(c corev1.Container) bool {
		return c.Name == name && c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	})
}

// failed is a pod whose containers have ended and are not started again.
func (v *view) failed(p *corev1.Pod) why {
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if t := s.State.Terminated; t != nil && t.ExitCode != 0 {
			return why{text: fmt.Sprintf("container %s ended: %s", s.Name, v.ending(p, s.Name, t)), since: t.FinishedAt.Time}
		}
	}
	text := "failed"
	if p.Status.Reason != "" {
		text = strings.ToLower(p.Status.Reason)
	}
	if p.Status.Message != "" {
		text += ": " + short(p.Status.Message)
	}
	return why{text: text, since: p.CreationTimestamp.Time}
}

// ending is how a container ended.
func (v *view) ending(p *corev1.Pod, container string, t *corev1.ContainerStateTerminated) string {
	switch {
	case t.Reason == "OOMKilled":
		if limit := memoryLimit(p, container); limit != "" {
			return "OOMKilled, limit " + limit
		}
		return "OOMKilled"
	case t.Reason == "ContainerCannotRun" || t.Reason == "StartError":
		return t.Reason + ": " + short(t.Message)
	case t.Signal != 0:
		return fmt.Sprintf("signal %d", t.Signal)
	}
	return fmt.Sprintf("exit code %d", t.ExitCode)
}

func memoryLimit(p *corev1.Pod, container string) string {
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		if q, ok := c.Resources.Limits[corev1.ResourceMemory]; ok && c.Name == container {
			return q.String()
		}
	}
	return ""
}

// container tells why one container is not ready.
func (v *view) container(p *corev1.Pod, s *corev1.ContainerStatus, since time.Time) why {
	switch {
	case s.State.Waiting != nil:
		return v.waiting(p, s, since)
	case s.State.Terminated != nil:
		return v.crashes(p, s)
	case s.State.Running != nil:
		return v.unready(p, s)
	}
	return why{text: fmt.Sprintf("container %s is not started", s.Name), since: since}
}

// unready is a container that runs and is not ready: its probe says so.
func (v *view) unready(p *corev1.Pod, s *corev1.ContainerStatus) why {
	w := why{text: "started, not ready yet", since: s.State.Running.StartedAt.Time}
	// The probe's own words are worth more; a probe that failed before the
	// container was there says nothing.
	if e := v.event(pod, p.Name, "Unhealthy"); e != nil && EventTime(e).After(w.since) {
		w.text = "not ready: " + short(probeWords(e.Message))
	}
	return w
}

var probeAddress = regexp.MustCompile(`(Get|dial tcp) "?[^ "]+"?: `)

// probeWords takes addresses out of what a probe says.
func probeWords(message string) string {
	return probeAddress.ReplaceAllString(strings.TrimSpace(message), "")
}

// waiting is a container that the kubelet cannot start.
func (v *view) waiting(p *corev1.Pod, s *corev1.ContainerStatus, since time.Time) why {
	w := s.State.Waiting
	switch w.Reason {
	case "ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError":
		return v.noImage(p, s, since)
	case "CreateContainerConfigError":
		return why{text: short(w.Message), since: since, hurdle: configHurdle(p, w.Message)}
	case "CrashLoopBackOff":
		return v.crashes(p, s)
	case "ContainerCreating", "PodInitializing", "":
		return v.creating(p, since)
	}
	text := w.Reason
	if w.Message != "" {
		text += ": " + short(w.Message)
	}
	return why{text: text, since: since}
}

// neverPulled is what registries say of an image that will not be there later
// either.
var neverPulled = regexp.MustCompile(`(?i)not found|manifest unknown|name unknown|does not exist|pull access denied|unauthorized|authentication required|no match for platform|no matching manifest|invalid reference format|couldn't parse image|not present with pull policy`)

// noImage is a container whose image cannot be had.
func (v *view) noImage(p *corev1.Pod, s *corev1.ContainerStatus, since time.Time) why {
	message := s.State.Waiting.Message
	// Before Kubernetes 1.31 the back-off does not repeat why.
	if e := v.event(pod, p.Name, "Failed", "InspectFailed", "ErrImageNeverPull"); e != nil && strings.Contains(e.Message, s.Image) && !strings.Contains(message, "rpc error") {
		message = e.Message
	}
	cause := pullCause(message)
	w := why{text: fmt.Sprintf("cannot pull %s: %s", s.Image, cause), since: since}
	if s.State.Waiting.Reason == "InvalidImageName" {
		w.hurdle = Hurdle{
			Cause: fmt.Sprintf("%s: %s is not the name of an image: %s", p.Name, s.Image, cause),
			Fix:   "kalypsoctl config show --origin     prints the values and where each came from",
		}
		return w
	}
	if neverPulled.MatchString(message) {
		w.hurdle = Hurdle{
			Cause: fmt.Sprintf("%s: the image %s cannot be pulled: %s", p.Name, s.Image, cause),
			Fix:   "look whether the image is there: crane digest " + s.Image + "     (private: the namespace needs an imagePullSecret)",
		}
	}
	return w
}

var pullNoise = regexp.MustCompile(`^(rpc error: code = \w+ desc = |failed to pull and unpack image "[^"]*": |failed to resolve (reference|image)( "[^"]*")?: |Back-off pulling image "[^"]*"(: )?|Failed to pull image "[^"]*": |ErrImagePull: )+`)

// pullCause is the end of the chain that containerd's errors are.
func pullCause(message string) string {
	cause := strings.TrimSpace(pullNoise.ReplaceAllString(message, ""))
	if cause == "" {
		cause = "the kubelet tries again later"
	}
	return short(cause)
}

var (
	missingObject = regexp.MustCompile(`(?i)(secret|configmap) "([^"]+)" not found`)
	missingKey    = regexp.MustCompile(`couldn't find key (\S+) in (Secret|ConfigMap) (\S+)`)
)

// configHurdle is a Secret or ConfigMap that a container reads and that is not
// there. Charts make their own before their pods; those of ours are made before
// the charts.
func configHurdle(p *corev1.Pod, message string) Hurdle {
	if m := missingObject.FindStringSubmatch(message); m != nil {
		return Hurdle{
			Cause: fmt.Sprintf("%s: %s %q is not in namespace %s", p.Name, m[1], m[2], p.Namespace),
			Fix:   fmt.Sprintf("kalypsoctl install makes the Secrets of the stack; to look: kubectl -n %s get %s", p.Namespace, strings.ToLower(m[1])),
		}
	}
	if m := missingKey.FindStringSubmatch(message); m != nil {
		return Hurdle{
			Cause: fmt.Sprintf("%s: %s %s has no key %s", p.Name, m[2], m[3], m[1]),
			Fix:   fmt.Sprintf("kubectl -n %s describe %s %s     lists its keys", p.Namespace, strings.ToLower(m[2]), m[3][strings.LastIndex(m[3], "/")+1:]),
		}
	}
	return Hurdle{Cause: p.Name + ": " + short(message), Fix: fmt.Sprintf("kubectl -n %s describe pod %s", p.Namespace, p.Name)}
}

// crashes is a container that ends again and again. Between two tries it is
// either waiting (CrashLoopBackOff) or still shown as ended.
func (v *view) crashes(p *corev1.Pod, s *corev1.ContainerStatus) why {
	last := s.State.Terminated
	if last == nil {
		last = s.LastTerminationState.Terminated
	}
	if last == nil {
		return why{text: fmt.Sprintf("container %s ends again and again", s.Name), since: p.CreationTimestamp.Time}
	}
	text := fmt.Sprintf("container %s ended%s: %s", s.Name, times(int(s.RestartCount)+1), v.ending(p, s.Name, last))
	w := why{text: text, since: last.FinishedAt.Time}
	if s.RestartCount >= crashLimit {
		w.hurdle = Hurdle{
			Cause: p.Name + ": " + text,
			Fix:   fmt.Sprintf("kubectl -n %s logs %s -c %s --previous", p.Namespace, p.Name, s.Name),
			at:    last.FinishedAt.Time, pod: p.Name, from: s.Name,
		}
	}
	return w
}

func times(n int) string {
	switch n {
	case 1:
		return ""
	case 2:
		return " twice"
	}
	return fmt.Sprintf(" %d times", n)
}

// creating is a container that the kubelet is about to start: events tell what
// it is doing.
func (v *view) creating(p *corev1.Pod, since time.Time) why {
	for _, e := range v.events {
		if e.InvolvedObject.Kind != pod || e.InvolvedObject.Name != p.Name || e.InvolvedObject.UID != "" && e.InvolvedObject.UID != p.UID {
			continue
		}
		switch e.Reason {
		case "Pulling":
			return why{text: "pulling image " + quoted(e.Message), since: EventTime(e)}
		case "FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox", "FailedMapVolume":
			return why{text: short(e.Message), since: since}
		case "Pulled", "Created", "Started":
			return why{text: "starting", since: since}
		case "Scheduled":
			return why{text: "volumes and network are being made", since: since}
		}
	}
	return why{text: "volumes and network are being made", since: since}
}

// quoted is the first thing in quotes: Pulling image "grafana/loki:3.5".
func quoted(message string) string {
	if parts := strings.SplitN(message, `"`, 3); len(parts) == 3 {
		return parts[1]
	}
	return ""
}

// scaledUp is what cluster-autoscalers say when a node is coming.
var scaledUp = []string{"TriggeredScaleUp", "Nominated", "NodeClaimCreated"}

// unscheduled is a pod that no node takes.
func (v *view) unscheduled(p *corev1.Pod, c *corev1.PodCondition) why {
	w := why{text: "no node takes it: " + schedulerWords(c.Message), since: c.LastTransitionTime.Time}
	if c.Reason == "SchedulingGated" {
		w.text = "somebody holds it back (scheduling gate)"
		return w
	}
	if e := v.event(pod, p.Name, scaledUp...); e != nil && EventTime(e).After(w.since) {
		w.text = "a node is being made for it"
		return w
	}
	if strings.Contains(c.Message, "unbound immediate PersistentVolumeClaims") {
		if name, reason := v.unbound(p); reason.text != "" {
			reason.text = fmt.Sprintf("volume %s: %s", name, reason.text)
			return reason
		}
	}
	w.hurdle = Hurdle{
		Cause: fmt.Sprintf("%s: no node takes it: %s", p.Name, schedulerWords(c.Message)),
		Fix:   noNodeFix(c.Message),
		After: roomLimit, Kind: ErrNoNode, pod: p.Name,
	}
	return w
}

// noNodeFix is what to look at by what the scheduler says.
func noNodeFix(message string) string {
	switch {
	case strings.Contains(message, "Insufficient memory"), strings.Contains(message, "Insufficient cpu"):
		return "kalypsoctl preflight --only memory,cpu     tells what is there and what is asked for"
	case strings.Contains(message, "affinity/selector"):
		return "kubectl get nodes --show-labels     against the pod's nodeSelector and affinity"
	}
	return "kubectl describe nodes     tells of taints, conditions and what is asked of each"
}

// schedulerWords leaves out what the scheduler says of preemption:
// "0/3 nodes are available: 3 Insufficient memory. preemption: 0/3 …".
func schedulerWords(message string) string {
	message, _, _ = strings.Cut(message, ". ")
	return short(strings.TrimRight(message, "."))
}

// unbound gives the first claim of a pod that has no volume, and why.
func (v *view) unbound(p *corev1.Pod) (string, why) {
	for _, volume := range p.Spec.Volumes {
		if volume.PersistentVolumeClaim == nil {
			continue
		}
		for _, c := range v.claims {
			if c.Name == volume.PersistentVolumeClaim.ClaimName && c.Status.Phase != corev1.ClaimBound {
				return c.Name, v.whyUnbound(c)
			}
		}
	}
	return "", why{}
}

// noClassLimit is how long a claim may wait for a default storage class, which
// another component may be about to make.
const noClassLimit = 10 * time.Second

// whyUnbound tells why a claim has no volume.
func (v *view) whyUnbound(c *corev1.PersistentVolumeClaim) why {
	w := why{text: "waits for a volume", since: c.CreationTimestamp.Time}
	if c.Status.Phase == corev1.ClaimLost {
		w.text = "its volume is gone"
		w.hurdle = Hurdle{Cause: fmt.Sprintf("the volume of claim %s is gone", c.Name), Fix: fmt.Sprintf("kubectl -n %s describe pvc %s", c.Namespace, c.Name)}
		return w
	}
	e := v.event(claim, c.Name, "ProvisioningFailed", "FailedBinding", "WaitForFirstConsumer", "ExternalProvisioning", "Provisioning")
	if e == nil {
		return w
	}
	w.text = short(e.Message)
	switch {
	case e.Reason == "FailedBinding" && strings.Contains(e.Message, "no storage class is set"):
		w.text = "the cluster has no default storage class"
		w.hurdle = Hurdle{Cause: fmt.Sprintf("claim %s names no storage class, and the cluster has no default", c.Name), Fix: "kalypsoctl preflight --only storage     tells how to make one", After: noClassLimit, Kind: ErrNoVolume}
	case e.Reason == "ProvisioningFailed" && strings.Contains(e.Message, "not found"):
		w.hurdle = Hurdle{Cause: fmt.Sprintf("claim %s: %s", c.Name, short(e.Message)), Fix: "kubectl get storageclass     lists those that there are", After: noClassLimit, Kind: ErrNoVolume}
	}
	return w
}

// short is text on one line, and not more than two of a terminal.
func short(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if runes := []rune(text); len(runes) > textLimit {
		return string(runes[:textLimit]) + "…"
	}
	return text
}

// restarts counts those of a pod, and gives the latest.
func (v *view) restarts(p *corev1.Pod) (int, Restart) {
	n, last := 0, Restart{}
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		n += int(s.RestartCount)
		if t := s.LastTerminationState.Terminated; t != nil && t.FinishedAt.After(last.At) {
			last = Restart{Pod: p.Name, Container: s.Name, Why: v.ending(p, s.Name, t), At: t.FinishedAt.Time}
		}
	}
	return n, last
}

// Bytes is an amount of memory as people read it: 512 MiB, 9.8 GiB.
func Bytes(q resource.Quantity) string {
	const gib = 1 << 30
	if n := float64(q.Value()); n >= gib {
		return fmt.Sprintf("%.1f GiB", n/gib)
	}
	return fmt.Sprintf("%d MiB", q.Value()>>20)
}
