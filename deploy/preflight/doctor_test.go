package preflight

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kalypso-dev/kalypso/deploy/check"
)

func TestReadDoctor(t *testing.T) {
	const text = `{"schema":"kalypso.doctor/v1","healthy":false,"checks":[
{"id":"btf","title":"t","severity":"required","state":"passed","detail":"5.3 MiB","duration_ms":7},
{"id":"cap_syslog","severity":"limit","state":"failed","detail":"zero","effect":"e","fix":"f"},
{"id":"bpf_stats","severity":"note","state":"skipped"},
{"id":"later","severity":"fatal","state":"burnt"}]}`
	r, err := readDoctor([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Results) != 4 || r.Results[0].Took != 7*time.Millisecond || r.Results[1].Fix != "f" || r.Results[2].State != check.Skipped {
		t.Errorf("%+v", r.Results)
	}
	if limits, broken := r.Failures(check.Limit), r.Failures(check.Required); len(limits) != 1 || len(broken) != 1 || broken[0].ID != "later" {
		t.Errorf("limits %v, broken %v: a word that is not known is the worst", limits, broken)
	}
	for _, text := range []string{"", "exec format error\nmore", `{"schema":"kalypso.status/v1"}`} {
		if _, err := readDoctor([]byte(text)); err == nil || strings.Contains(err.Error(), "more") {
			t.Errorf("%q: %v, want its first line", text, err)
		}
	}
}

// The doctor has a pod where the DaemonSet would have one, and there alone.
func TestDoctorGoesWhereTheAgentGoes(t *testing.T) {
	d := &doctor{template: &corev1.PodTemplateSpec{Spec: corev1.PodSpec{
		NodeSelector: map[string]string{"kubernetes.io/os": "linux"},
		Tolerations:  []corev1.Toleration{{Key: "gpu", Operator: corev1.TolerationOpExists}},
	}}}
	made := func(os string, ready corev1.ConditionStatus, taint string) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"kubernetes.io/os": os}}}
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}
		if taint != "" {
			n.Spec.Taints = []corev1.Taint{{Key: taint, Effect: corev1.TaintEffectNoSchedule}}
		}
		return n
	}
	for _, tt := range []struct {
		name string
		node *corev1.Node
		want bool
	}{
		{"one that is ready", made("linux", corev1.ConditionTrue, ""), true},
		{"one that is not", made("linux", corev1.ConditionUnknown, ""), false},
		{"one that the selector leaves out", made("windows", corev1.ConditionTrue, ""), false},
		{"a taint that is tolerated", made("linux", corev1.ConditionTrue, "gpu"), true},
		{"a taint that is not", made("linux", corev1.ConditionTrue, "other"), false},
		{"one that is closed to others, as to any DaemonSet", made("linux", corev1.ConditionTrue, corev1.TaintNodeUnschedulable), true},
	} {
		if got := d.runsOn(tt.node); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

// What decides what the agent may do is as the chart has it; what it reads and
// what it asks for is not.
func TestDoctorHasTheRightsOfTheAgent(t *testing.T) {
	root := int64(0)
	rights := &corev1.SecurityContext{RunAsUser: &root, Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"BPF"}}}
	d := &doctor{limit: time.Minute, template: &corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "agent"}, Annotations: map[string]string{
			"container.apparmor.security.beta.kubernetes.io/agent": "unconfined", "prometheus.io/scrape": "true"}},
		Spec: corev1.PodSpec{HostPID: true, ServiceAccountName: "agent", Volumes: []corev1.Volume{{Name: "config"}},
			Containers: []corev1.Container{{Name: "agent", Image: "example.org/agent:1", Args: []string{"run"}, SecurityContext: rights,
				VolumeMounts: []corev1.VolumeMount{{Name: "config"}}, StartupProbe: &corev1.Probe{}}}},
	}}
	job := d.job("n")
	pod := job.Spec.Template
	c := pod.Spec.Containers[0]
	switch {
	case !pod.Spec.HostPID, c.SecurityContext != rights && c.SecurityContext.Capabilities.Add[0] != "BPF", c.Image != "example.org/agent:1":
		t.Errorf("another pod: %+v", pod.Spec)
	case pod.Spec.ServiceAccountName != "", *pod.Spec.AutomountServiceAccountToken, len(pod.Spec.Volumes)+len(c.VolumeMounts) > 0, c.StartupProbe != nil:
		t.Errorf("it reads something: %+v", pod.Spec)
	case pod.Labels["app"] != "", len(pod.Annotations) != 1:
		t.Errorf("the DaemonSet would take it for its own, or it is scraped: %v %v", pod.Labels, pod.Annotations)
	case strings.Join(c.Args, " ") != "doctor -o json", *job.Spec.ActiveDeadlineSeconds <= 60, *job.Spec.TTLSecondsAfterFinished == 0:
		t.Errorf("%v, deadline %d s", c.Args, *job.Spec.ActiveDeadlineSeconds)
	}
}
