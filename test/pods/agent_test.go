package pods

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/profiler/api"
	"github.com/kalypso-dev/kalypso/test/cluster"
	"github.com/kalypso-dev/kalypso/test/internal/ours"
)

// What 500 pods on its node may add to an agent: of memory beside mostBytesPerPod
// each, and of CPU time while nothing changes. Two agents beside each other differ by
// some MiB and some tenths of a percent of a core by chance.
const (
	mostMemoryBeside = 12 << 20
	mostCPUBeside    = 0.02 // of one core; two agents differ by tenths of a percent by chance
)

// TestAgentBeside500Pods runs two whole agents on a real node, by the chart: one
// that knows of the pods which are there, and one that is told it was on a simulated
// node which has 500. They sample the same machine, so that what the pods cost is
// what they differ by.
func TestAgentBeside500Pods(t *testing.T) {
	cluster.Require(t)
	archive := ours.Images(t)
	c := cluster.Start(t, cluster.Options{Name: "beside", Nodes: 1, Simulated: 1})
	if err := c.LoadArchive(t.Context(), archive("kalypso-agent")); err != nil {
		t.Fatal(err)
	}
	config := rest.CopyConfig(c.REST)
	config.QPS, config.Burst = 1000, 1000
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	const pods = 500
	makePods(t, client, ownerOf(t, client), "simulated-1", 0, pods)
	few, many := startAgent(t, c, "node-1"), startAgent(t, c, "simulated-1")
	both := func() [2]cost { return [2]cost{few.now(t), many.now(t)} }
	until(t, fmt.Sprintf("the agent knows %d pods", pods), func() bool { return many.known() >= pods })
	// Programs that it meets for the first time are read by then.
	pass(t, 30*time.Second)

	begin, first := time.Now(), both()
	pass(t, time.Minute)
	took, idle := time.Since(begin), both()
	changed := change(t, client, 0, pods, 2)
	pass(t, 10*time.Second) // a watch brings a change within some milliseconds
	after := both()
	share := func(i int) float64 { return (idle[i].cpu - first[i].cpu).Seconds() / took.Seconds() }
	for i, known := range []int{few.known(), many.known()} {
		t.Logf("with %d pods known: %.1f MiB with BPF maps, %.2f %% of a core while nothing changes", known, idle[i].mebibytes(), 100*share(i))
	}
	extra := (after[1].cpu - idle[1].cpu) - (after[0].cpu - idle[0].cpu)
	t.Logf("%d changes: %v of CPU time more, %v each; memory then %.1f and %.1f MiB",
		changed, extra.Round(time.Millisecond), (extra / time.Duration(changed)).Round(time.Microsecond), after[0].mebibytes(), after[1].mebibytes())
	if more := after[1].memory - after[0].memory; more > pods*mostBytesPerPod+mostMemoryBeside {
		t.Errorf("%d pods take %d KiB more", pods, more>>10)
	}
	if more := share(1) - share(0); more > mostCPUBeside {
		t.Errorf("%d pods take %.2f %% of a core more while nothing changes", pods, 100*more)
	}
	if extra > time.Duration(changed)*mostPerChange {
		t.Errorf("%d changes take %v", changed, extra)
	}
}

// agentPod is a running agent.
type agentPod struct{ client *api.Client }

// cost is what an agent took since its start.
type cost struct {
	cpu    time.Duration
	memory int64 // resident, with BPF maps
}

func (c cost) mebibytes() float64 { return float64(c.memory) / (1 << 20) }

// startAgent runs the chart's agent in a pod of the real node, and tells it that it is
// on another.
func startAgent(t *testing.T, c *cluster.Cluster, node string) *agentPod {
	t.Helper()
	values := helm.Values{
		"image":        helm.Values{"tag": ours.Tag, "pullPolicy": "Never"},
		"nodeSelector": helm.Values{"example.org/nowhere": "true"}, // the pod below is what runs
		"spool":        helm.Values{"kind": "emptyDir"},
		"config":       helm.Values{"export": []any{"file:/spool/profiles"}},
	}
	objects, _ := render(t, "kalypso-agent", "kalypso", values)
	apply(t, c, objects)
	set, err := c.Client.AppsV1().DaemonSets("kalypso").Get(t.Context(), "kalypso-agent", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "agent-of-" + node, Namespace: "kalypso"}, Spec: set.Spec.Template.Spec}
	p.Spec.NodeSelector = map[string]string{cluster.RealLabel: "true"}
	env := p.Spec.Containers[0].Env
	for i := range env {
		if env[i].Name == "KALYPSO_AGENT_KUBERNETES_NODE" {
			env[i] = corev1.EnvVar{Name: env[i].Name, Value: node}
		}
	}
	if _, err := c.Client.CoreV1().Pods("kalypso").Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, p.Name+" is ready", func() bool {
		now, err := c.Client.CoreV1().Pods("kalypso").Get(t.Context(), p.Name, metav1.GetOptions{})
		return err == nil && len(now.Status.ContainerStatuses) == 1 && now.Status.ContainerStatuses[0].Ready
	})
	k, err := kube.Connect(t.Context(), kube.Config{Kubeconfig: c.Kubeconfig})
	if err != nil {
		t.Fatal(err)
	}
	way, err := k.ForwardPod(context.WithoutCancel(t.Context()), "kalypso", p.Name, int(p.Spec.Containers[0].Ports[0].ContainerPort), 0)
	if err != nil {
		t.Fatal(err)
	}
	client, err := api.NewClient(way.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		way.Close()
	})
	return &agentPod{client}
}

// known is how many pods it knows; -1: it does not say.
func (a *agentPod) known() int {
	q, err := a.client.Quality(context.Background())
	if err != nil || q.Pods == nil {
		return -1
	}
	return q.Pods.Known
}

func (a *agentPod) now(t *testing.T) cost {
	t.Helper()
	q, err := a.client.Quality(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return cost{cpu: time.Duration((q.Cost.CPUSeconds + q.Cost.BPFSeconds) * float64(time.Second)), memory: q.Cost.RSSBytes + q.Cost.MapBytes}
}

// pass waits.
func pass(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}
