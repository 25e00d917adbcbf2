package sysdump

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/deploy/status"
)

// unpack gives the files of an archive, in their order.
func unpack(t *testing.T, data []byte) (names []string, files map[string]string) {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	files = map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names, files
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Mode != 0o600 {
			t.Errorf("%s has mode %o", h.Name, h.Mode)
		}
		names = append(names, h.Name)
		files[strings.TrimPrefix(h.Name, "d/")] = string(text)
	}
}

func newTestDump(objects ...*corev1.Node) *dump {
	d := &dump{
		cluster: &kube.Cluster{Context: "test", Version: "v1.37.2", Client: fake.NewClientset()},
		opts:    Options{Since: time.Hour, Tool: "v0"}, tallies: map[string]int{},
		archive: &archive{folder: "d", at: time.Now(), limit: 10 << 20, redact: newRedactor(nil)},
	}
	for _, n := range objects {
		d.nodes = append(d.nodes, *n)
	}
	return d
}

func TestArchive(t *testing.T) {
	d := newTestDump()
	d.limit = summaryRoom + 64<<10
	noise := make([]byte, 48<<10)
	if _, err := rand.Read(noise); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"b/large.bin": noise, "a/small.txt": []byte("password=abcdef")} {
		if err := d.add(name, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.keep("c/too-much.bin", noise); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	n, err := d.write(&out, []byte("summary"))
	if err != nil || n != int64(out.Len()) || n > d.limit {
		t.Fatalf("%d of %d bytes, %v", n, out.Len(), err)
	}
	names, files := unpack(t, out.Bytes())
	if diff := cmp.Diff(names, []string{"d/SUMMARY.md", "d/a/small.txt", "d/b/large.bin"}); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	if files["a/small.txt"] != "password=(redacted)" || files["SUMMARY.md"] != "summary" {
		t.Errorf("got %q", files["a/small.txt"])
	}
	if diff := cmp.Diff(d.left, []string{"c/too-much.bin (48.0 KiB): the size limit"}); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}

func named(name string) component.Component {
	for _, c := range component.All() {
		if c.Name == name {
			return c
		}
	}
	panic(name)
}

func TestSummaryBeginsWithWhatIsWrong(t *testing.T) {
	sick := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
		{Type: corev1.NodeReady, Status: corev1.ConditionTrue},
		{Type: corev1.NodeDiskPressure, Status: corev1.ConditionTrue, Message: "disk is full"},
	}}}
	d := newTestDump(sick)
	d.health = []status.Component{
		{Component: named("minio"), Health: status.Broken, Want: 1, Note: `kalypso-minio-0: image "x/y:1" not found`, Fix: "kalypsoctl upgrade --set minio.image.tag=…     then it goes on", Since: time.Now().Add(-3 * time.Minute)},
		{Component: named("mimir"), Health: status.Starting, Ready: 3, Want: 10, Note: "mimir-ingester-0: not ready", Since: time.Now().Add(-time.Minute)},
		{Component: named("tempo"), Health: status.Healthy, Ready: 1, Want: 1},
		{Component: named("loki"), Health: status.Unknown, Note: "no answer in 10 s"},
		{Component: named("grafana"), Health: status.Absent},
	}
	if err := d.add("events/minio.txt", []byte("x")); err != nil {
		t.Fatal(err)
	}
	d.tallies["Pod minio/kalypso-minio-0: Failed: no such image"] = 7
	d.fail("b", &url.Error{Op: "Get", URL: "https://x/y", Err: errors.New("password=hunter22 refused")})
	for _, name := range []string{"a", "c", "d"} {
		d.fail(name, errors.New("password=hunter22 refused"))
	}
	d.leftOut("logs/x: too old")
	got := string(d.summary(time.Now()))
	order := []string{
		"# kalypso on test: 4 things wrong", "1. **node n1: DiskPressure is True**", "why: disk is full",
		"2. **minio is broken, 0 of 1 pods ready, since 3m00s**", `why: kalypso-minio-0: image "x/y:1" not found`, "fix: `kalypsoctl upgrade --set minio.image.tag=…` then it goes on", "needed by: mimir, tempo, loki", "look at: events/minio.txt",
		"3. **loki is unknown**", "4. **mimir is not ready, 3 of 10 pods ready, since 1m00s**",
		"## Components", "| minio | broken | 0/1 |", "Not installed: grafana.", "## What happened lately", "(7 times)",
		"## What could not be had", "- a, b, c, and 1 more: password=(redacted) refused", "## What was left out", "- logs/x: too old", "## Files", "- events/minio.txt, 1 B",
	}
	at := 0
	for _, want := range order {
		i := strings.Index(got[at:], want)
		if i < 0 {
			t.Fatalf("%q is not where it should be in:\n%s", want, got)
		}
		at += i
	}
	if diff := cmp.Diff(d.namespaces(), []string{"minio", "loki", "mimir", "tempo"}); diff != "" {
		t.Errorf("what is broken is not gathered first (-got +want):\n%s", diff)
	}
}

func TestHealthyAndAbsent(t *testing.T) {
	d := newTestDump()
	d.health = []status.Component{{Component: named("tempo"), Health: status.Absent}}
	if got := string(d.summary(time.Now())); !strings.HasPrefix(got, "# kalypso on test: not installed\n") {
		t.Errorf("got %q", got)
	}
	d.health[0].Health = status.Healthy
	if got := string(d.summary(time.Now())); !strings.HasPrefix(got, "# kalypso on test: healthy\n") || strings.Contains(got, "What could not be had") {
		t.Errorf("got %q", got)
	}
}

func TestEvents(t *testing.T) {
	event := func(name, kind string, age time.Duration, count int32) *corev1.Event {
		return &corev1.Event{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "loki"}, InvolvedObject: corev1.ObjectReference{Kind: "Pod", Name: "loki-0", Namespace: "loki"},
			Type: kind, Reason: "Failed", Message: "pull\nfailed", LastTimestamp: metav1.NewTime(time.Now().Add(-age)), Count: count,
		}
	}
	d := newTestDump()
	d.cluster.Client = fake.NewClientset(event("new", "Warning", time.Minute, 3), event("older", "Normal", 2*time.Minute, 1), event("old", "Warning", 2*time.Hour, 1))
	d.health = []status.Component{{Component: named("loki"), Health: status.Broken}}
	if err := d.events(t.Context()); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := d.write(&out, nil); err != nil {
		t.Fatal(err)
	}
	_, files := unpack(t, out.Bytes())
	lines := strings.Split(strings.TrimSpace(files["events/loki.txt"]), "\n")
	if len(lines) != 3 || !strings.Contains(lines[0], "Normal") || !strings.Contains(lines[1], "x3    Failed") || !strings.HasSuffix(lines[1], "Pod loki-0  pull failed") || lines[2] != "1 older than 60m were left out" {
		t.Errorf("got %q", lines)
	}
	if diff := cmp.Diff(d.warnings(), []string{"Pod loki/loki-0: Failed: pull failed (3 times)"}); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}

func TestLogsOfEachContainer(t *testing.T) {
	d := newTestDump()
	d.cluster.Client = fake.NewClientset(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "loki-0", Namespace: "loki"},
		Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{
			{Name: "loki", RestartCount: 2},
			{Name: "sidecar"},
			{Name: "never", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff"}}},
		}},
	})
	d.health = []status.Component{{Component: named("loki"), Health: status.Broken}}
	if err := d.logs(t.Context()); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := d.write(&out, nil); err != nil {
		t.Fatal(err)
	}
	names, _ := unpack(t, out.Bytes())
	want := []string{"d/SUMMARY.md", "d/logs/loki/loki-0/loki.log", "d/logs/loki/loki-0/loki.previous.log", "d/logs/loki/loki-0/sidecar.log"}
	if diff := cmp.Diff(names, want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}

func TestCredentialsAreThoseOfTheCatalogue(t *testing.T) {
	d := newTestDump()
	d.opts.Components = component.All()
	d.cluster.Client = fake.NewClientset(
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "kalypso-s3", Namespace: "loki"}, Data: map[string][]byte{"AWS_SECRET_ACCESS_KEY": []byte("abc123xyz")}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "other", Namespace: "loki"}, Data: map[string][]byte{"x": []byte("of others")}},
	)
	if got := d.credentials(context.WithoutCancel(t.Context())); len(got) != 1 || string(got[0]) != "abc123xyz" {
		t.Errorf("got %q", got)
	}
}

// What the server refuses is one line, not one for each kind and namespace; and
// a dump of nothing says so.
func TestWhatMayNotBeRead(t *testing.T) {
	d := newTestDump()
	d.health = []status.Component{{Component: component.Component{Name: "loki", Namespace: "loki"}, Health: status.Unknown}}
	for _, resource := range []string{"pods", "services", "configmaps", "jobs"} {
		d.fail("objects/loki/"+resource, apierrors.NewForbidden(schema.GroupResource{Resource: resource}, "", errors.New("no")))
	}
	d.fail("agent/one", errors.New("connection refused"))
	want := []string{"objects/loki/configmaps, objects/loki/jobs, objects/loki/pods, and 1 more: " + noRights, "agent/one: connection refused"}
	if diff := cmp.Diff(d.failures(), want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	if err := d.nothing(); !apierrors.IsForbidden(err) {
		t.Errorf("nothing: %v", err)
	}
	if got := string(d.summary(time.Now())); !strings.HasPrefix(got, "# kalypso on test: nothing could be read\n") {
		t.Errorf("the summary begins with:\n%.200s", got)
	}
	if err := d.keep("events/loki.txt", nil); err != nil {
		t.Fatal(err)
	}
	if err := d.nothing(); err != nil {
		t.Errorf("with events: %v", err)
	}
}
