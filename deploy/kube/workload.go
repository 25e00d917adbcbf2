package kube

import (
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

type metaFields = metav1.ManagedFieldsEntry

// state is that of an object whose kind is watched.
func (v *view) state(o Ref) State {
	switch o.Kind {
	case deployment:
		return find(v.deployments, o, v.deployment)
	case statefulSet:
		return find(v.statefulSets, o, v.statefulSet)
	case daemonSet:
		return find(v.daemonSets, o, v.daemonSet)
	case job:
		return find(v.jobs, o, v.job)
	case pod:
		return find(v.pods, o, v.pod)
	}
	return find(v.claims, o, v.claim)
}

// find looks for the object, and asks how it is.
func find[T interface{ GetName() string }](objects []T, o Ref, how func(Ref, T) State) State {
	for _, candidate := range objects {
		if candidate.GetName() == o.Name {
			return how(o, candidate)
		}
	}
	return missing(o)
}

func replicas(n *int32) int {
	if n == nil {
		return 1
	}
	return int(*n)
}

func (v *view) deployment(o Ref, d *appsv1.Deployment) State {
	s := State{Ref: o, Want: replicas(d.Spec.Replicas), Pods: int(d.Status.AvailableReplicas), Since: d.CreationTimestamp.Time}
	pods := v.owned(d.Spec.Selector, v.currentHash(d))
	s.count(v, pods)
	available := deploymentCondition(d, appsv1.DeploymentAvailable)
	if available != nil {
		s.Since = available.LastTransitionTime.Time
	}
	observed := d.Generation <= d.Status.ObservedGeneration
	s.Pods = min(s.Pods, s.Want)
	s.Ready = observed && int(d.Status.UpdatedReplicas) >= s.Want && int(d.Status.AvailableReplicas) >= s.Want && d.Status.Replicas <= d.Status.UpdatedReplicas
	if s.Ready {
		return s.steady(v, pods)
	}
	if observed && int(d.Status.UpdatedReplicas) < s.Want || len(pods) == 0 {
		if c := deploymentCondition(d, appsv1.DeploymentReplicaFailure); c != nil && c.Status == corev1.ConditionTrue {
			return s.because(refused(o, c.Message, c.LastTransitionTime.Time))
		}
	}
	return v.explain(s, pods)
}

func deploymentCondition(d *appsv1.Deployment, kind appsv1.DeploymentConditionType) *appsv1.DeploymentCondition {
	for i := range d.Status.Conditions {
		if d.Status.Conditions[i].Type == kind {
			return &d.Status.Conditions[i]
		}
	}
	return nil
}

const (
	revisionAnnotation = "deployment.kubernetes.io/revision"
	templateGeneration = "deprecated.daemonset.template.generation"
)

// currentHash is the label of pods of the newest ReplicaSet: those of older
// ones are on their way out, and why they are not ready matters no more.
func (v *view) currentHash(d *appsv1.Deployment) map[string]string {
	for _, r := range v.replicaSets {
		owner := metav1.GetControllerOf(r)
		if owner != nil && owner.UID == d.UID && r.Annotations[revisionAnnotation] == d.Annotations[revisionAnnotation] {
			return map[string]string{appsv1.DefaultDeploymentUniqueLabelKey: r.Labels[appsv1.DefaultDeploymentUniqueLabelKey]}
		}
	}
	return nil
}

func (v *view) statefulSet(o Ref, d *appsv1.StatefulSet) State {
	s := State{Ref: o, Want: replicas(d.Spec.Replicas), Pods: int(d.Status.ReadyReplicas), Since: d.CreationTimestamp.Time}
	pods := v.owned(d.Spec.Selector, nil)
	s.count(v, pods)
	s.Pods = min(s.Pods, s.Want)
	updated := d.Spec.UpdateStrategy.Type == appsv1.OnDeleteStatefulSetStrategyType || d.Status.UpdateRevision == "" ||
		int(d.Status.UpdatedReplicas) >= s.Want-partition(d)
	s.Ready = d.Generation <= d.Status.ObservedGeneration && int(d.Status.ReadyReplicas) >= s.Want && updated
	if s.Ready {
		return s.sinceReady(pods).steady(v, pods)
	}
	if int(d.Status.Replicas) < s.Want {
		if e := v.refusal(statefulSet, d.Name); e != nil {
			return s.because(refused(o, e.Message, EventTime(e)))
		}
	}
	return v.explain(s, pods)
}

func partition(d *appsv1.StatefulSet) int {
	if r := d.Spec.UpdateStrategy.RollingUpdate; r != nil && r.Partition != nil {
		return int(*r.Partition)
	}
	return 0
}

func (v *view) daemonSet(o Ref, d *appsv1.DaemonSet) State {
	s := State{Ref: o, Want: int(d.Status.DesiredNumberScheduled), Pods: int(d.Status.NumberReady), Since: d.CreationTimestamp.Time}
	var current map[string]string
	if generation := d.Annotations[templateGeneration]; generation != "" {
		current = map[string]string{appsv1.DeprecatedTemplateGeneration: generation}
	}
	pods := v.owned(d.Spec.Selector, current)
	s.count(v, pods)
	observed := d.Generation <= d.Status.ObservedGeneration
	updated := d.Spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType || d.Status.UpdatedNumberScheduled >= d.Status.DesiredNumberScheduled
	s.Ready = observed && updated && d.Status.NumberReady >= d.Status.DesiredNumberScheduled
	if s.Ready {
		return s.sinceReady(pods).steady(v, pods)
	}
	if d.Status.CurrentNumberScheduled < d.Status.DesiredNumberScheduled || len(pods) == 0 {
		if e := v.refusal(daemonSet, d.Name); e != nil {
			return s.because(refused(o, e.Message, EventTime(e)))
		}
	}
	return v.explain(s, pods)
}

func (v *view) job(o Ref, j *batchv1.Job) State {
	s := State{Ref: o, Want: replicas(j.Spec.Completions), Pods: int(j.Status.Succeeded), Since: j.CreationTimestamp.Time}
	pods := v.owned(j.Spec.Selector, nil)
	for _, c := range j.Status.Conditions {
		if c.Status != corev1.ConditionTrue {
			continue
		}
		switch c.Type {
		case batchv1.JobComplete:
			s.Ready, s.Pods, s.Since = true, s.Want, c.LastTransitionTime.Time
			return s
		case batchv1.JobFailed:
			w := why{text: "failed: " + short(c.Message), since: c.LastTransitionTime.Time}
			w.hurdle = Hurdle{Cause: fmt.Sprintf("%s failed: %s", o, short(c.Message)), Fix: fmt.Sprintf("kubectl -n %s logs job/%s --all-containers", o.Namespace, o.Name)}
			for _, p := range pods { // the last one that ended, while it is still there
				if p.Status.Phase == corev1.PodFailed {
					w.hurdle.pod = p.Name
				}
			}
			return s.because(w)
		case batchv1.JobSuspended:
			return s.because(why{text: "is suspended", since: c.LastTransitionTime.Time})
		}
	}
	if len(pods) == 0 {
		if e := v.refusal(job, j.Name); e != nil {
			return s.because(refused(o, e.Message, EventTime(e)))
		}
	}
	s.count(v, pods)
	running := slices.IndexFunc(pods, func(p *corev1.Pod) bool { return podReady(p) && p.Status.Phase == corev1.PodRunning })
	if running >= 0 {
		s.Reason, s.Since = pods[running].Name+": runs", pods[running].CreationTimestamp.Time
		return s
	}
	return v.explain(s, pods)
}

func (v *view) pod(o Ref, p *corev1.Pod) State {
	s := State{Ref: o, Want: 1, Ready: podReady(p), Since: p.CreationTimestamp.Time}
	s.count(v, []*corev1.Pod{p})
	if s.Ready {
		s.Pods = 1
		return s.sinceReady([]*corev1.Pod{p}).steady(v, []*corev1.Pod{p})
	}
	return s.because(v.why(p).of(p))
}

// claim is ready when it has a volume, or gets one only when a pod wants it:
// then the pod tells what is wrong.
func (v *view) claim(o Ref, c *corev1.PersistentVolumeClaim) State {
	s := State{Ref: o, Ready: c.Status.Phase == corev1.ClaimBound, Since: c.CreationTimestamp.Time}
	if s.Ready || v.event(claim, c.Name, "WaitForFirstConsumer") != nil {
		s.Ready = true
		return s
	}
	w := v.whyUnbound(c)
	w.text = "volume " + c.Name + ": " + w.text
	return s.because(w)
}

// owned gives the pods of a workload that are not on their way out, with labels
// beyond its selector.
func (v *view) owned(selector *metav1.LabelSelector, more map[string]string) []*corev1.Pod {
	s, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		return nil
	}
	var pods []*corev1.Pod
	for _, p := range v.pods {
		if s.Matches(labels.Set(p.Labels)) && includes(p.Labels, more) && p.DeletionTimestamp == nil {
			pods = append(pods, p)
		}
	}
	return pods
}

func includes(all, some map[string]string) bool {
	for key, value := range some {
		if all[key] != value {
			return false
		}
	}
	return true
}

// refusal is an event that says why a workload gets no pods. One that is older
// than the newest success is over.
func (v *view) refusal(kind, name string) *corev1.Event {
	e := v.event(kind, name, "FailedCreate", "SuccessfulCreate")
	if e == nil || e.Reason == "SuccessfulCreate" {
		return nil
	}
	return e
}

// refused is a workload whose pods the API server does not take.
func refused(o Ref, message string, since time.Time) why {
	w := why{text: o.Name + ": no pods: " + short(message), since: since}
	switch {
	case strings.Contains(message, "exceeded quota"):
		w.hurdle = Hurdle{Cause: "a quota of the namespace is used up: " + short(message), Fix: fmt.Sprintf("kubectl -n %s describe resourcequota", o.Namespace)}
	case strings.Contains(message, "violates PodSecurity"):
		w.hurdle = Hurdle{Cause: "the namespace admits no such pod: " + short(message), Fix: fmt.Sprintf("kubectl label namespace %s pod-security.kubernetes.io/enforce=privileged --overwrite", o.Namespace)}
	}
	return w
}

// because is the state with a reason.
func (s State) because(w why) State {
	s.Reason, s.Since, s.Hurdle = w.text, w.since, w.hurdle
	return s
}

// of names the pod that the reason is about.
func (w why) of(p *corev1.Pod) why {
	w.text = p.Name + ": " + w.text
	return w
}

// count adds up restarts of pods.
func (s *State) count(v *view, pods []*corev1.Pod) {
	for _, p := range pods {
		n, last := v.restarts(p)
		s.Restarts += n
		if last.At.After(s.Last.At) {
			s.Last = last
		}
	}
}

// sinceReady is when the last of the pods became ready.
func (s State) sinceReady(pods []*corev1.Pod) State {
	for _, p := range pods {
		if c := condition(p, corev1.PodReady); c != nil && c.LastTransitionTime.After(s.Since) {
			s.Since = c.LastTransitionTime.Time
		}
	}
	return s
}

// steadyAfter is how long a container runs that was started again, until it is
// believed: without a probe it is ready from its start to its next crash.
const steadyAfter = 10 * time.Second

// steady is the state, unless a container has only just been started again.
func (s State) steady(v *view, pods []*corev1.Pod) State {
	for _, p := range pods {
		for _, c := range p.Status.ContainerStatuses {
			if r := c.State.Running; r != nil && c.RestartCount > 0 && v.now.Sub(r.StartedAt.Time) < steadyAfter {
				s.Ready, s.Pods = false, max(s.Pods-1, 0)
				return s.because(why{text: fmt.Sprintf("container %s was started again", c.Name), since: r.StartedAt.Time}.of(p))
			}
		}
	}
	return s
}

// explain gives the reason of the pod that tells most: one that cannot heal,
// else the first that is not ready. Since when pods are missing is not known: the
// workload may be years old.
func (v *view) explain(s State, pods []*corev1.Pod) State {
	var first *why
	for _, p := range pods {
		if podReady(p) {
			continue
		}
		w := v.why(p).of(p)
		if w.hurdle.Cause != "" {
			return s.because(w)
		}
		if first == nil {
			first = &w
		}
	}
	switch {
	case first != nil:
		return s.because(*first)
	case len(pods) < s.Want || len(pods) == 0:
		return s.because(why{text: s.Name + ": pods are being made"})
	}
	return s.because(why{text: s.Name + ": pods are being replaced"})
}
