package sysdump

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	pprof "github.com/google/pprof/profile"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/status"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/api"
)

// hot stands in for the kernel: what it records is always the same.
type hot struct{ api.Segment }

func (h hot) Record(context.Context, time.Duration, int, api.Filter) ([]api.Segment, error) {
	return []api.Segment{h.Segment}, nil
}
func (hot) Status() api.Status { return api.Status{Frequency: 97} }
func (hot) Dump(context.Context, profiler.PID) (*api.Dump, error) {
	return nil, errors.New("not asked for")
}

// reacher reaches the real API of an agent, in this process.
type reacher string

func (r reacher) Reach(context.Context, *corev1.Pod, int) (string, func(bool), error) {
	return string(r), func(bool) {}, nil
}

func newAgent(t *testing.T) reacher {
	t.Helper()
	stack := &profiler.Stack{Stop: profiler.StopRoot, Locations: []*profiler.Location{{Module: &profiler.Module{Path: "/bin/shop"}, Frames: []profiler.Frame{{Function: "price"}}}}}
	p := &profiler.Profile{Start: time.Now(), Duration: time.Second, Frequency: 97, Host: "birch", Event: "cpu-clock",
		Samples: []profiler.Sample{{Process: &profiler.Process{PID: 1, Comm: "shop"}, Count: 42, Stack: stack}}}
	p.Quality.Add(stack, 42)
	source := hot{api.Segment{Start: p.Start, Duration: p.Duration, Frequency: 97, Profiles: []*profiler.Profile{p}}}
	listener, err := api.Listen("127.0.0.1:0", false)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		server := api.NewServer(api.Config{Source: source, History: api.NewHistory(api.DefaultKeep, 1<<20)})
		ended <- api.Serve(ctx, listener, server, slog.New(slog.DiscardHandler))
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return reacher(listener.Addr().String())
}

func TestProfile(t *testing.T) {
	running := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kalypso", Name: "agent-b", Labels: map[string]string{"app.kubernetes.io/name": "kalypso-agent"}},
		Spec:       corev1.PodSpec{NodeName: "birch"},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
	d := newTestDump()
	d.cluster.Client = fake.NewClientset(running, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "birch"}}, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "fir"}})
	d.reach, d.opts.Profile = newAgent(t), time.Second
	d.health = []status.Component{{Component: component.Component{Name: "agent"}, Health: status.Healthy, Release: &helm.Installed{}}}
	if err := d.profile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if failed := d.failures(); len(failed) != 1 || !strings.HasPrefix(failed[0], "profile: node fir has no agent") {
		t.Errorf("of the node without an agent: %q", failed)
	}
	var archive strings.Builder
	if _, err := d.write(&archive, nil); err != nil {
		t.Fatal(err)
	}
	_, files := unpack(t, []byte(archive.String()))
	if text := files["profile/functions.txt"]; !strings.Contains(text, "price") {
		t.Errorf("the table has no function:\n%s", text)
	}
	whole, err := pprof.ParseData([]byte(files["profile/cluster.pb.gz"]))
	if err != nil || !slices.ContainsFunc(whole.Function, func(f *pprof.Function) bool { return f.Name == "price" }) {
		t.Errorf("the profile has no function price: %v", err)
	}
}
