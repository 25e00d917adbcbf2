package secret_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/secret"
	"github.com/kalypso-dev/kalypso/profiler"
)

func pick(names ...string) []component.Component {
	var out []component.Component
	for _, c := range component.All() {
		for _, name := range names {
			if c.Name == name {
				out = append(out, c)
			}
		}
	}
	return out
}

func held(t *testing.T, client kubernetes.Interface, namespace, name string) map[string]string {
	t.Helper()
	s, err := client.CoreV1().Secrets(namespace).Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for key, value := range s.Data {
		out[key] = string(value)
	}
	return out
}

func existing(namespace, name string, data map[string]string) *corev1.Secret {
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Data: map[string][]byte{}}
	for key, value := range data {
		s.Data[key] = []byte(value)
	}
	return s
}

func ensure(t *testing.T, client kubernetes.Interface, store secret.Store, names ...string) []secret.Made {
	t.Helper()
	made, err := secret.Ensure(context.Background(), client, pick(names...), store)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func TestCredentialsAreTheSameEverywhereAndStay(t *testing.T) {
	client := fake.NewClientset()
	made := ensure(t, client, secret.OwnStore, "minio", "mimir", "grafana")
	want := []secret.Made{
		{Namespace: "minio", Name: "kalypso-s3", Created: true},
		{Namespace: "mimir", Name: "kalypso-s3", Created: true},
		{Namespace: "grafana", Name: "kalypso-grafana-admin", Created: true},
	}
	if diff := cmp.Diff(made, want); diff != "" {
		t.Errorf("made (-got +want):\n%s", diff)
	}
	server, user := held(t, client, "minio", "kalypso-s3"), held(t, client, "mimir", "kalypso-s3")
	if server["rootUser"] != user["AWS_ACCESS_KEY_ID"] || server["rootPassword"] != user["AWS_SECRET_ACCESS_KEY"] {
		t.Error("minio and mimir have other credentials")
	}
	if len(server["rootUser"]) != 20 || len(server["rootPassword"]) != 40 || server["rootPassword"] == strings.Repeat(server["rootPassword"][:1], 40) {
		t.Errorf("the credentials have %d and %d characters", len(server["rootUser"]), len(server["rootPassword"]))
	}
	admin := held(t, client, "grafana", "kalypso-grafana-admin")
	if admin["admin-user"] != "admin" || len(admin["admin-password"]) != 40 || admin["admin-password"] == server["rootPassword"] {
		t.Errorf("the administrator of Grafana is %q with a password of %d characters", admin["admin-user"], len(admin["admin-password"]))
	}

	again := ensure(t, client, secret.OwnStore, "minio", "mimir", "loki", "grafana")
	for _, m := range again {
		if m.Created != (m.Namespace == "loki") {
			t.Errorf("the second time: %+v", m)
		}
	}
	if diff := cmp.Diff(held(t, client, "loki", "kalypso-s3"), user); diff != "" {
		t.Error("loki, which came later, has other credentials than mimir")
	}
	if diff := cmp.Diff(held(t, client, "minio", "kalypso-s3"), server); diff != "" {
		t.Error("the second time changed the credentials of minio")
	}
}

func TestTwoClustersHaveNothingInCommon(t *testing.T) {
	one, two := fake.NewClientset(), fake.NewClientset()
	ensure(t, one, secret.OwnStore, "minio")
	ensure(t, two, secret.OwnStore, "minio")
	a, b := held(t, one, "minio", "kalypso-s3"), held(t, two, "minio", "kalypso-s3")
	for key := range a {
		if a[key] == b[key] {
			t.Errorf("%s is the same on two clusters", key)
		}
	}
}

func TestOneOfUsersOwnIsTheSource(t *testing.T) {
	client := fake.NewClientset(existing("tempo", "kalypso-s3", map[string]string{"AWS_ACCESS_KEY_ID": "theirs", "AWS_SECRET_ACCESS_KEY": "known-to-them", "extra": "stays"}))
	ensure(t, client, secret.ForeignStore, "mimir", "tempo")
	want := map[string]string{"AWS_ACCESS_KEY_ID": "theirs", "AWS_SECRET_ACCESS_KEY": "known-to-them"}
	if diff := cmp.Diff(held(t, client, "mimir", "kalypso-s3"), want); diff != "" {
		t.Errorf("mimir's copy (-got +want):\n%s", diff)
	}
	if held(t, client, "tempo", "kalypso-s3")["extra"] != "stays" {
		t.Error("the user's Secret was changed")
	}
}

func TestFaults(t *testing.T) {
	for name, test := range map[string]struct {
		objects []*corev1.Secret
		store   secret.Store
		what    string
		fix     string
	}{
		"credentials of a foreign store are not made up": {
			store: secret.ForeignStore,
			what:  "there is no Secret mimir/kalypso-s3 with the credentials of the object store",
			fix:   "kubectl create namespace mimir; kubectl -n mimir create secret generic kalypso-s3 --from-literal=AWS_ACCESS_KEY_ID=… --from-literal=AWS_SECRET_ACCESS_KEY=…",
		},
		"a key that is missing is named, and no value": {
			objects: []*corev1.Secret{existing("mimir", "kalypso-s3", map[string]string{"AWS_ACCESS_KEY_ID": "hush"})},
			what:    "the Secret mimir/kalypso-s3 has no AWS_SECRET_ACCESS_KEY",
			fix:     "kubectl -n mimir patch secret kalypso-s3",
		},
	} {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset()
			for _, o := range test.objects {
				if err := client.Tracker().Add(o); err != nil {
					t.Fatal(err)
				}
			}
			_, err := secret.Ensure(context.Background(), client, pick("mimir"), test.store)
			var fault *profiler.Fault
			if !errors.As(err, &fault) {
				t.Fatalf("the error is %v", err)
			}
			if fault.What != test.what || !strings.HasPrefix(fault.Fix, test.fix) {
				t.Errorf("the fault is %q, fix %q", fault.What, fault.Fix)
			}
			if text := fmt.Sprint(fault.What, fault.Why, fault.Fix); strings.Contains(text, "hush") {
				t.Errorf("the fault holds a value: %s", text)
			}
		})
	}
}

func TestLookChangesNothing(t *testing.T) {
	client := fake.NewClientset()
	made, err := secret.Look(context.Background(), client, pick("minio"), secret.OwnStore)
	if err != nil || len(made) != 1 || !made[0].Created {
		t.Fatalf("look: %v, %v", made, err)
	}
	list, err := client.CoreV1().Secrets("").List(context.Background(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 0 {
		t.Errorf("after a look there are %d Secrets (%v)", len(list.Items), err)
	}
}
