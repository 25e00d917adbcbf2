package kube

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/kalypso-dev/kalypso/profiler"
)

// now is when the states of these tests are looked at.
var now = metav1.NewTime(time.Date(2026, 11, 26, 13, 0, 0, 0, time.UTC))

func named(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Namespace: "mimir", UID: types.UID("u-" + name), CreationTimestamp: now, Generation: 1}
}

func selects(name string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
}

func tracked(objects ...runtime.Object) *Cluster {
	return &Cluster{Context: "test", Client: fake.NewClientset(objects...)}
}

func aDeployment(want, updated, available, all int32) *appsv1.Deployment {
	d := &appsv1.Deployment{ObjectMeta: named("gateway"), Spec: appsv1.DeploymentSpec{Replicas: &want, Selector: selects("gateway")}}
	d.Annotations = map[string]string{revisionAnnotation: "2"}
	d.Status = appsv1.DeploymentStatus{ObservedGeneration: 1, Replicas: all, UpdatedReplicas: updated, AvailableReplicas: available}
	return d
}

func aReplicaSet(revision, hash string) *appsv1.ReplicaSet {
	r := &appsv1.ReplicaSet{ObjectMeta: named("gateway-" + hash)}
	yes := true
	r.OwnerReferences = []metav1.OwnerReference{{UID: "u-gateway", Controller: &yes}}
	r.Annotations = map[string]string{revisionAnnotation: revision}
	r.Labels = map[string]string{appsv1.DefaultDeploymentUniqueLabelKey: hash}
	return r
}

func aPod(name, app string, ready bool, status corev1.ContainerState) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: named(name)}
	p.Labels = map[string]string{"app": app}
	p.Spec.NodeName = "node-1"
	is := corev1.ConditionFalse
	if ready {
		is = corev1.ConditionTrue
	}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: is, LastTransitionTime: now}, {Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: now}}
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "app", Image: "example.org/app:1", Ready: ready, State: status}}
	p.Status.Phase = corev1.PodRunning
	return p
}

func waits(reason, message string) corev1.ContainerState {
	return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
}

func anEvent(kind, name, reason, message string) *corev1.Event {
	e := &corev1.Event{ObjectMeta: named(name + "." + reason), Reason: reason, Message: message, LastTimestamp: now}
	e.InvolvedObject = corev1.ObjectReference{Kind: kind, Name: name, Namespace: "mimir"}
	return e
}

func TestReadiness(t *testing.T) {
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}}
	one := int32(1)
	hash := func(p *corev1.Pod, h string) *corev1.Pod {
		p.Labels[appsv1.DefaultDeploymentUniqueLabelKey] = h
		return p
	}
	tests := []struct {
		name    string
		kind    string
		of      string
		objects []runtime.Object
		ready   bool
		reason  string
		cause   string
	}{
		{"a Deployment whose pods are all new and available", "Deployment", "gateway",
			[]runtime.Object{aDeployment(1, 1, 1, 1)}, true, "", ""},
		{"one that is not there", "Deployment", "gateway", nil, false, "there is no Deployment gateway", ""},
		{"old pods are still there", "Deployment", "gateway",
			[]runtime.Object{aDeployment(1, 1, 1, 2), aReplicaSet("2", "new"), hash(aPod("gateway-new-1", "gateway", true, running), "new")}, false, "gateway: pods are being replaced", ""},
		{"why an old pod is not ready does not matter", "Deployment", "gateway",
			[]runtime.Object{aDeployment(1, 1, 0, 2), aReplicaSet("1", "old"), aReplicaSet("2", "new"),
				hash(aPod("gateway-old-1", "gateway", false, waits("CreateContainerConfigError", `secret "gone" not found`)), "old"),
				hash(aPod("gateway-new-1", "gateway", false, running), "new")},
			false, "gateway-new-1: started, not ready yet", ""},
		{"a quota refuses its pods", "Deployment", "gateway", []runtime.Object{func() runtime.Object {
			d := aDeployment(1, 0, 0, 0)
			d.Status.Conditions = []appsv1.DeploymentCondition{{Type: appsv1.DeploymentReplicaFailure, Status: corev1.ConditionTrue, Message: `pods "gateway-1" is forbidden: exceeded quota: small, requested: memory=1Gi, used: memory=1Gi, limited: memory=1Gi`}}
			return d
		}()}, false, `gateway: no pods: pods "gateway-1" is forbidden: exceeded quota: small, requested: memory=1Gi, used: memory=1Gi, limited: memory=1Gi`,
			`a quota of the namespace is used up: pods "gateway-1" is forbidden: exceeded quota: small, requested: memory=1Gi, used: memory=1Gi, limited: memory=1Gi`},
		{"a StatefulSet with all its pods", "StatefulSet", "ingester", []runtime.Object{&appsv1.StatefulSet{ObjectMeta: named("ingester"),
			Spec: appsv1.StatefulSetSpec{Replicas: &one, Selector: selects("ingester")}, Status: appsv1.StatefulSetStatus{ObservedGeneration: 1, Replicas: 1, ReadyReplicas: 1, UpdatedReplicas: 1, UpdateRevision: "r"}}}, true, "", ""},
		{"Pod Security refuses the pods of a DaemonSet", "DaemonSet", "agent", []runtime.Object{
			&appsv1.DaemonSet{ObjectMeta: named("agent"), Spec: appsv1.DaemonSetSpec{Selector: selects("agent")}, Status: appsv1.DaemonSetStatus{ObservedGeneration: 1, DesiredNumberScheduled: 1}},
			anEvent("DaemonSet", "agent", "FailedCreate", `Error creating: pods "agent-x" is forbidden: violates PodSecurity "restricted:latest": host namespaces (hostPID=true)`),
		}, false, `agent: no pods: Error creating: pods "agent-x" is forbidden: violates PodSecurity "restricted:latest": host namespaces (hostPID=true)`,
			`the namespace admits no such pod: Error creating: pods "agent-x" is forbidden: violates PodSecurity "restricted:latest": host namespaces (hostPID=true)`},
		{"a DaemonSet where no node wants it is ready", "DaemonSet", "agent", []runtime.Object{
			&appsv1.DaemonSet{ObjectMeta: named("agent"), Spec: appsv1.DaemonSetSpec{Selector: selects("agent")}, Status: appsv1.DaemonSetStatus{ObservedGeneration: 1}}}, true, "", ""},
		{"a Job that is done", "Job", "buckets", []runtime.Object{&batchv1.Job{ObjectMeta: named("buckets"), Spec: batchv1.JobSpec{Selector: selects("buckets")},
			Status: batchv1.JobStatus{Conditions: []batchv1.JobCondition{{Type: batchv1.JobComplete, Status: corev1.ConditionTrue}}}}}, true, "", ""},
		{"a Job that failed", "Job", "buckets", []runtime.Object{&batchv1.Job{ObjectMeta: named("buckets"), Spec: batchv1.JobSpec{Selector: selects("buckets")},
			Status: batchv1.JobStatus{Conditions: []batchv1.JobCondition{{Type: batchv1.JobFailed, Status: corev1.ConditionTrue, Message: "Job has reached the specified backoff limit"}}}}},
			false, "failed: Job has reached the specified backoff limit", "Job mimir/buckets failed: Job has reached the specified backoff limit"},
		{"a claim without a class", "PersistentVolumeClaim", "data", []runtime.Object{
			&corev1.PersistentVolumeClaim{ObjectMeta: named("data"), Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending}},
			anEvent("PersistentVolumeClaim", "data", "FailedBinding", "no persistent volumes available for this claim and no storage class is set"),
		}, false, "volume data: the cluster has no default storage class", "claim data names no storage class, and the cluster has no default"},
		{"a claim that waits for a pod is ready", "PersistentVolumeClaim", "data", []runtime.Object{
			&corev1.PersistentVolumeClaim{ObjectMeta: named("data"), Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending}},
			anEvent("PersistentVolumeClaim", "data", "WaitForFirstConsumer", "waiting for first consumer to be created before binding"),
		}, true, "", ""},
		{"a pod that has done its work is ready", "Pod", "once", []runtime.Object{&corev1.Pod{ObjectMeta: named("once"), Status: corev1.PodStatus{Phase: corev1.PodSucceeded}}}, true, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			states, err := tracked(tt.objects...).Readiness(t.Context(), []Ref{{Kind: tt.kind, Namespace: "mimir", Name: tt.of}})
			if err != nil {
				t.Fatal(err)
			}
			s := states[0]
			if s.Ready != tt.ready || s.Reason != tt.reason || s.Hurdle.Cause != tt.cause {
				t.Errorf("ready %v, want %v\nreason %q\nwant   %q\nhurdle %q\nwant   %q", s.Ready, tt.ready, s.Reason, tt.reason, s.Hurdle.Cause, tt.cause)
			}
			if strings.Contains(s.Reason, ": pods are being ") && !s.Since.IsZero() {
				t.Errorf("%s since %s: that is the age of something else", s.Reason, s.Since)
			}
		})
	}
}

// reports gathers what WaitReady tells.
type reports struct {
	mu  sync.Mutex
	all []Progress
}

func (r *reports) add(p Progress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, p)
}

func (r *reports) last() Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.all) == 0 {
		return Progress{}
	}
	return r.all[len(r.all)-1]
}

func TestWaitReadyEndsWhenItIs(t *testing.T) {
	c := tracked(aDeployment(2, 2, 1, 2), aReplicaSet("2", "new"))
	var heard reports
	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	go func() {
		done <- c.WaitReady(ctx, []Ref{{Kind: "Deployment", Namespace: "mimir", Name: "gateway"}}, heard.add)
	}()
	for heard.last() == (Progress{}) {
		select {
		case err := <-done:
			t.Fatalf("ended before it was ready: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	if p := heard.last(); p.Ready != 1 || p.Total != 2 {
		t.Errorf("progress %v, want 1/2", p)
	}
	if _, err := c.Client.AppsV1().Deployments("mimir").UpdateStatus(ctx, aDeployment(2, 2, 2, 2), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if p := heard.last(); p.Ready != 2 || p.Reason != "" {
		t.Errorf("the last progress is %v", p)
	}
}

func TestWaitReadyGivesUpAtOnce(t *testing.T) {
	p := aPod("gateway-new-1", "gateway", false, waits("ImagePullBackOff", `Back-off pulling image "example.org/app:1": ErrImagePull: rpc error: code = NotFound desc = failed to pull and unpack image "example.org/app:1": example.org/app:1: not found`))
	p.Labels[appsv1.DefaultDeploymentUniqueLabelKey] = "new"
	p.Status.Conditions[1].LastTransitionTime = metav1.Now() // it was given to its node
	c := tracked(aDeployment(1, 1, 0, 1), aReplicaSet("2", "new"), p)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	started := time.Now()
	err := c.WaitReady(ctx, []Ref{{Kind: "Deployment", Namespace: "mimir", Name: "gateway"}}, nil)
	var fault *profiler.Fault
	if !errors.As(err, &fault) {
		t.Fatalf("no fault: %v", err)
	}
	if took := time.Since(started); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
	if want := "Deployment mimir/gateway will not be ready: gateway-new-1: the image example.org/app:1 cannot be pulled: example.org/app:1: not found"; fault.Error() != want {
		t.Errorf("got  %s\nwant %s", fault, want)
	}
}

// What was in the way before the wait may just have been taken away.
func TestOldHurdlesAreGivenTime(t *testing.T) {
	p := aPod("gateway-new-1", "gateway", false, waits("CreateContainerConfigError", `secret "kalypso-s3" not found`))
	p.Labels[appsv1.DefaultDeploymentUniqueLabelKey] = "new"
	c := tracked(aDeployment(1, 1, 0, 1), aReplicaSet("2", "new"), p)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err := c.WaitReady(ctx, []Ref{{Kind: "Deployment", Namespace: "mimir", Name: "gateway"}}, nil)
	var late *Timeout
	if !errors.As(err, &late) || !strings.Contains(err.Error(), `secret "kalypso-s3" not found`) {
		t.Errorf("got %v", err)
	}
}

func TestTimeIsOverSaysTheLastReason(t *testing.T) {
	p := aPod("gateway-new-1", "gateway", false, corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}})
	p.Labels[appsv1.DefaultDeploymentUniqueLabelKey] = "new"
	c := tracked(aDeployment(1, 1, 0, 1), aReplicaSet("2", "new"), p)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err := c.WaitReady(ctx, []Ref{{Kind: "Deployment", Namespace: "mimir", Name: "gateway"}}, nil)
	var late *Timeout
	if !errors.As(err, &late) {
		t.Fatalf("no Timeout: %v", err)
	}
	if want := "not everything is ready in time: 0 of 1: Deployment mimir/gateway: gateway-new-1: started, not ready yet"; err.Error() != want {
		t.Errorf("got  %s\nwant %s", err, want)
	}
}

func TestInterruptedWaitIsNoTimeout(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := tracked(aDeployment(1, 1, 0, 1))
	err := c.WaitReady(ctx, []Ref{{Kind: "Deployment", Namespace: "mimir", Name: "gateway"}}, func(Progress) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// A crash of before is no reason to give up: what is waited for may have mended
// it. A new one is.
func TestOldCrashesAreGivenAnotherTry(t *testing.T) {
	crashed := func(at time.Time) *Cluster {
		p := aPod("gateway-new-1", "gateway", false, waits("CrashLoopBackOff", "back-off 5m0s restarting failed container"))
		p.Labels[appsv1.DefaultDeploymentUniqueLabelKey] = "new"
		s := &p.Status.ContainerStatuses[0]
		s.RestartCount = 7
		s.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 1, FinishedAt: metav1.NewTime(at)}
		return tracked(aDeployment(1, 1, 0, 1), aReplicaSet("2", "new"), p)
	}
	wait := func(c *Cluster) error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		return c.WaitReady(ctx, []Ref{{Kind: "Deployment", Namespace: "mimir", Name: "gateway"}}, nil)
	}
	var late *Timeout
	if err := wait(crashed(time.Now().Add(-time.Minute))); !errors.As(err, &late) {
		t.Errorf("of an old crash: %v", err)
	}
	if err := wait(crashed(time.Now().Add(time.Minute))); err == nil || !strings.Contains(err.Error(), "will not be ready: gateway-new-1: container app ended 8 times: exit code 1") {
		t.Errorf("of a new crash: %v", err)
	}
}

// A container without a probe is ready from its start to its next crash.
func TestStartedAgainIsNotReadyAtOnce(t *testing.T) {
	again := func(ago time.Duration) State {
		p := aPod("once", "once", true, corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(time.Now().Add(-ago))}})
		p.Status.ContainerStatuses[0].RestartCount = 3
		states, err := tracked(p).Readiness(t.Context(), []Ref{{Kind: "Pod", Namespace: "mimir", Name: "once"}})
		if err != nil {
			t.Fatal(err)
		}
		return states[0]
	}
	if s := again(2 * time.Second); s.Ready || s.Reason != "once: container app was started again" {
		t.Errorf("after 2 s: ready %v, reason %q", s.Ready, s.Reason)
	}
	if s := again(time.Minute); !s.Ready {
		t.Errorf("after a minute: %q", s.Reason)
	}
}

func TestProgressString(t *testing.T) {
	p := Progress{Ready: 10, Total: 12, Reason: "mimir-store-gateway-0: pulling image grafana/mimir:3", Since: time.Now().Add(-48 * time.Second)}
	if got, want := p.String(), "10/12 ready; mimir-store-gateway-0: pulling image grafana/mimir:3 (48 s)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := (Progress{Ready: 12, Total: 12}).String(); got != "12/12 ready" {
		t.Errorf("got %q", got)
	}
}
