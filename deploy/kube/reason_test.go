package kube

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// read decodes the objects of a file of testdata: statuses as API servers and
// kubelets wrote them, without what does not matter.
func read[T any](t *testing.T, name string) []*T {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	var out []*T
	for decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096); ; {
		o := new(T)
		if err := decoder.Decode(o); err != nil {
			return out
		}
		out = append(out, o)
	}
}

func TestWhyAPodIsNotReady(t *testing.T) {
	tests := []struct {
		name   string
		pod    string // file
		events []corev1.Event
		want   string
		cause  string // of the hurdle; empty is none
	}{
		{"no node has room", "unschedulable.yaml", nil,
			"no node takes it: 0/1 nodes are available: 1 Insufficient memory",
			"big-0: no node takes it: 0/1 nodes are available: 1 Insufficient memory"},
		{"a node is on its way", "unschedulable.yaml", []corev1.Event{event("TriggeredScaleUp", "pod triggered scale-up", time.Hour)},
			"a node is being made for it", ""},
		{"the image is not there", "no-image.yaml", nil,
			"cannot pull registry.example.org/nothing:1: registry.example.org/nothing:1: not found",
			"no-image: the image registry.example.org/nothing:1 cannot be pulled: registry.example.org/nothing:1: not found"},
		{"the registry cannot be reached: that may pass", "no-network.yaml", nil,
			`cannot pull example.invalid/a:1: failed to do request: Head "https://example.invalid/v2/a/manifests/1": dial tcp: lookup example.invalid on 10.255.255.53:53: read udp 198.51.100.11:57995->10.255.255.53:53: i/o timeout`, ""},
		{"what is no name of an image", "bad-name.yaml", nil,
			`cannot pull test/NONE::1: Failed to apply default image tag "test/NONE::1": couldn't parse image name "test/NONE::1": invalid reference format: repository name (test/NONE) must be lowercase`,
			`bad-name: test/NONE::1 is not the name of an image: Failed to apply default image tag "test/NONE::1": couldn't parse image name "test/NONE::1": invalid reference format: repository name (test/NONE) must be lowercase`},
		{"the image is not on the node and is not to be pulled", "never.yaml", nil,
			`cannot pull test/none:1: Container image "test/none:1" is not present with pull policy of Never`,
			`never: the image test/none:1 cannot be pulled: Container image "test/none:1" is not present with pull policy of Never`},
		{"an old kubelet tells why in an event only", "backoff-only.yaml",
			[]corev1.Event{event("Failed", `Failed to pull image "example.org/a:1": rpc error: code = NotFound desc = failed to pull and unpack image "example.org/a:1": failed to resolve reference "example.org/a:1": example.org/a:1: not found`, 0)},
			"cannot pull example.org/a:1: example.org/a:1: not found", "backoff-only: the image example.org/a:1 cannot be pulled: example.org/a:1: not found"},
		{"a Secret that it reads is missing", "no-secret.yaml", nil,
			`secret "kalypso-s3" not found`, `no-secret: secret "kalypso-s3" is not in namespace minio`},
		{"a key of a Secret is missing", "no-key.yaml", nil,
			"couldn't find key rootUser in Secret minio/has", "no-key: Secret minio/has has no key rootUser"},
		{"it ended some times: it may heal", "crash-3.yaml", nil, "container app ended 4 times: exit code 7", ""},
		{"it ended again and again", "crash-5.yaml", nil, "container app ended 6 times: exit code 7", "crash: container app ended 6 times: exit code 7"},
		{"memory was not enough", "oom.yaml", nil, "container app ended 6 times: OOMKilled, limit 16Mi", "oom: container app ended 6 times: OOMKilled, limit 16Mi"},
		{"beside a sidecar that runs", "sidecar.yaml", nil, "container app ended 6 times: exit code 3", "sidecar: container app ended 6 times: exit code 3"},
		{"the image is being pulled", "creating.yaml", []corev1.Event{event("Pulling", `Pulling image "grafana/loki:3.7.6"`, 0)}, "pulling image grafana/loki:3.7.6", ""},
		{"a volume cannot be mounted", "creating.yaml", []corev1.Event{event("FailedMount", `MountVolume.SetUp failed for volume "cert" : secret "webhook-cert" not found`, 0)},
			`MountVolume.SetUp failed for volume "cert" : secret "webhook-cert" not found`, ""},
		{"it has only just been started", "unready.yaml", nil, "started, not ready yet", ""},
		{"the probe's own words", "unready.yaml", []corev1.Event{event("Unhealthy", `Readiness probe failed: Get "http://10.244.1.5:8080/ready": dial tcp 10.244.1.5:8080: connect: connection refused`, time.Hour)},
			"not ready: Readiness probe failed: connect: connection refused", ""},
		{"an init container that runs", "init.yaml", nil, "init container wait runs", ""},
		{"the first init container that cannot start", "init-crash.yaml", nil, "container wait ended 6 times: exit code 1", "init-crash: container wait ended 6 times: exit code 1"},
		{"evicted", "evicted.yaml", nil, "evicted: The node was low on resource: ephemeral-storage.", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := read[corev1.Pod](t, tt.pod)[0]
			v := &view{now: time.Now(), pods: []*corev1.Pod{p}}
			for i := range tt.events {
				e := tt.events[i]
				e.InvolvedObject = corev1.ObjectReference{Kind: "Pod", Name: p.Name, UID: p.UID}
				v.events = append(v.events, &e)
			}
			got := v.why(p)
			if got.text != tt.want {
				t.Errorf("reason:\ngot  %s\nwant %s", got.text, tt.want)
			}
			if got.hurdle.Cause != tt.cause {
				t.Errorf("hurdle:\ngot  %s\nwant %s", got.hurdle.Cause, tt.cause)
			}
			if (got.hurdle.Cause == "") != (got.hurdle.Fix == "") {
				t.Errorf("cause %q and fix %q: one without the other", got.hurdle.Cause, got.hurdle.Fix)
			}
		})
	}
}

// created is later than anything in testdata by this much.
var created = time.Date(2026, 11, 26, 14, 30, 0, 0, time.UTC)

func event(reason, message string, later time.Duration) corev1.Event {
	e := corev1.Event{Reason: reason, Message: message}
	e.LastTimestamp.Time = created.Add(later)
	return e
}

func TestAge(t *testing.T) {
	for age, want := range map[time.Duration]string{
		48 * time.Second:                "48 s",
		72 * time.Second:                "1m12s",
		12*time.Minute + 40*time.Second: "12m",
		3 * time.Hour:                   "3h",
		120 * time.Hour:                 "5d",
	} {
		if got := Age(age); got != want {
			t.Errorf("%s: got %q, want %q", age, got, want)
		}
	}
}

func TestLastComplaint(t *testing.T) {
	tests := []struct{ name, log, want string }{
		{"a line that complains wins", "start\nlevel=error msg=\"no bucket\"\ngoroutine 1\n", `level=error msg="no bucket"`},
		{"else the last line", "one\ntwo\n\n", "two"},
		{"nothing", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := lastComplaint(strings.NewReader(tt.log)); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
