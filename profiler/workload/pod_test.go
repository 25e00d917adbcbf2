package workload

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/profiler"
)

// due is when a CronJob's Job was due whose name ends in the number.
const (
	due       = "29928377"
	dueMinute = 29928377
)

func TestAttributes(t *testing.T) {
	created := time.Unix(dueMinute*60+2, 0)
	container := PodContainer{ID: "0123", Name: "server", Image: "registry:5000/shop/web:1.4"}
	pod := func(owner Owner, labels, annotations map[string]string) *Pod {
		return &Pod{
			UID: "u", Namespace: "shop", Name: "web-6cd8c64799-2t9fs", Created: created, Owner: owner, Labels: labels, Annotations: annotations,
		}
	}
	for _, tt := range []struct {
		name string
		pod  *Pod
		want map[string]string // service.*, and those of the owner
	}{
		{"a Deployment's", pod(Owner{"ReplicaSet", "web-6cd8c64799"}, map[string]string{"pod-template-hash": "6cd8c64799"}, nil),
			map[string]string{"service.name": "web", "k8s.deployment.name": "web"}},
		{"a ReplicaSet's of its own", pod(Owner{"ReplicaSet", "web-blue"}, nil, nil),
			map[string]string{"service.name": "web-blue", "k8s.replicaset.name": "web-blue"}},
		{"a ReplicaSet's, with a hash that is not in its name", pod(Owner{"ReplicaSet", "web-blue"}, map[string]string{"pod-template-hash": "lue"}, nil),
			map[string]string{"service.name": "web-blue", "k8s.replicaset.name": "web-blue"}},
		{"a StatefulSet's", pod(Owner{"StatefulSet", "db"}, nil, nil), map[string]string{"service.name": "db", "k8s.statefulset.name": "db"}},
		{"a DaemonSet's", pod(Owner{"DaemonSet", "log"}, nil, nil), map[string]string{"service.name": "log", "k8s.daemonset.name": "log"}},
		{"a Job's", pod(Owner{"Job", "migrate"}, nil, nil), map[string]string{"service.name": "migrate", "k8s.job.name": "migrate"}},
		{"a CronJob's", pod(Owner{"Job", "nightly-" + due}, nil, nil), map[string]string{"service.name": "nightly", "k8s.cronjob.name": "nightly"}},
		{"a Job's, with a number that is no time", pod(Owner{"Job", "migrate-20261126"}, nil, nil),
			map[string]string{"service.name": "migrate-20261126", "k8s.job.name": "migrate-20261126"}},
		{"a Job's, whose name is a number", pod(Owner{"Job", "-" + due}, nil, nil),
			map[string]string{"service.name": "-" + due, "k8s.job.name": "-" + due}},
		{"of a controller of somebody's", pod(Owner{"Rollout", "web"}, nil, nil), map[string]string{"service.name": "web"}},
		{"a static pod", pod(Owner{"Node", "node-1"}, nil, nil), map[string]string{"service.name": "web-6cd8c64799-2t9fs"}},
		{"of nobody", pod(Owner{}, nil, nil), map[string]string{"service.name": "web-6cd8c64799-2t9fs"}},
		{"a label over the owner", pod(Owner{"StatefulSet", "db"}, map[string]string{nameLabel: "postgres"}, nil),
			map[string]string{"service.name": "postgres", "k8s.statefulset.name": "db"}},
		{"the instance over the name", pod(Owner{}, map[string]string{nameLabel: "postgres", instanceLabel: "orders", versionLabel: "17"}, nil),
			map[string]string{"service.name": "orders", "service.version": "17"}},
		{"an annotation over all", pod(Owner{}, map[string]string{instanceLabel: "orders", versionLabel: "17"}, map[string]string{
			resourcePrefix + "service.name": "checkout", resourcePrefix + "service.namespace": "sales", resourcePrefix + "service.version": "2"}),
			map[string]string{"service.name": "checkout", "service.namespace": "sales", "service.version": "2"}},
		{"control characters", pod(Owner{}, nil, map[string]string{resourcePrefix + "service.name": "a\nb"}), map[string]string{"service.name": profiler.Printable("a\nb")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := map[string]string{
				"service.namespace": "shop", "service.version": "1.4", "k8s.namespace.name": "shop", "k8s.pod.name": "web-6cd8c64799-2t9fs",
				"k8s.container.name": "server", "container.id": "0123",
			}
			for k, v := range tt.want {
				want[k] = v
			}
			got := map[string]string{}
			for _, a := range (Container{container, tt.pod}).Attributes() {
				if _, twice := got[a.Key]; twice {
					t.Errorf("%s is there twice", a.Key)
				}
				got[a.Key] = a.Value
			}
			if diff := cmp.Diff(got, want); diff != "" {
				t.Errorf("(-got +want):\n%s", diff)
			}
		})
	}
}

func TestTag(t *testing.T) {
	for image, want := range map[string]string{
		"nginx": "", "nginx:1.27": "1.27", "registry:5000/nginx": "", "registry:5000/nginx:1": "1",
		"nginx@sha256:0123": "", "nginx:1@sha256:0123": "1", "sha256:0123": "", "": "",
	} {
		if got := tag(image); got != want {
			t.Errorf("%q: %q, want %q", image, got, want)
		}
	}
}

func TestKeepAnnotation(t *testing.T) {
	for _, tt := range []struct {
		key, value string
		want       bool
	}{
		{resourcePrefix + "service.name", "a", true}, {EnabledAnnotation, "true", true},
		{"kubectl.kubernetes.io/last-applied-configuration", "{}", false},
		{EnabledAnnotation, strings.Repeat("a", 2000), false},
	} {
		if got := KeepAnnotation(tt.key, tt.value); got != tt.want {
			t.Errorf("%s is kept: %v", tt.key, got)
		}
	}
}
