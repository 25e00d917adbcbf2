// Package identity runs the agent on a real Kubernetes of two nodes, installed by
// its chart, and asks it, as kalypsoctl does, who the CPU time was of.
package identity

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/api"
	"github.com/kalypso-dev/kalypso/test/cluster"
	"github.com/kalypso-dev/kalypso/test/internal/ours"
)

const (
	agentChart = "kalypso-agent"
	agents     = "kalypso" // namespace
	tag        = "0.1.0"   // what the chart asks for
	// limit is far over what it takes until pods run.
	limit = 5 * time.Minute
)

// workloads are one of each kind that has a name of its own. chain has no frame
// pointers, and takes half a second of CPU time at least.
const workloads = `apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: checkout, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: checkout}}
  template:
    metadata: {labels: {app: checkout}}
    spec:
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            - {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: checkout}}}
      containers:
        - {name: server, image: "example.org/chain:1", args: [-seconds, "100000"], resources: {limits: {cpu: 250m}}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: store, namespace: shop}
spec:
  serviceName: store
  selector: {matchLabels: {app: store}}
  template:
    metadata: {labels: {app: store, app.kubernetes.io/name: shop-store}}
    spec:
      containers:
        - {name: db, image: "example.org/golang:1", args: [-seconds, "100000"], resources: {limits: {cpu: 250m}}}
---
apiVersion: v1
kind: Pod
metadata: {name: loop, namespace: shop, annotations: {resource.opentelemetry.io/service.name: looper}}
spec:
  containers:
    - {name: main, image: "example.org/chain:1", args: [-seconds, "0.1"], resources: {requests: {cpu: 200m}}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: burst, namespace: shop}
spec:
  completions: 10
  parallelism: 2
  template:
    metadata: {labels: {app: burst}}
    spec:
      restartPolicy: Never
      containers:
        - {name: short, image: "example.org/chain:1", args: [-seconds, "0.1"], resources: {requests: {cpu: 200m}}}
`

// values are those of the agent's chart. Two nodes share the file system, so that
// their spools cannot be one folder of it; and CPU is shared with whatever else
// runs on the machine.
func values() helm.Values {
	return helm.Values{
		"image": helm.Values{"pullPolicy": "Never"},
		"config": helm.Values{
			"export": "file:/spool/profiles", "otlp.endpoint": "", "window": "5s", "cpu.budget": "100%", "memory.budget": "256Mi",
		},
		"spool":     helm.Values{"kind": "emptyDir"},
		"resources": helm.Values{"requests": helm.Values{"cpu": "500m"}, "limits": helm.Values{"memory": "512Mi"}},
	}
}

// build makes a static program.
func build(t *testing.T, out string, args ...string) string {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, text)
	}
	return out
}

func TestIdentity(t *testing.T) {
	cluster.Require(t)
	dir := t.TempDir()
	images := map[string]string{}
	for image, args := range map[string][]string{
		"ghcr.io/kalypso-dev/kalypso-agent:" + tag: {"go", "build", "-o", "%", "../../cmd/agent"},
		"example.org/golang:1":                     {"go", "build", "-o", "%", "../workloads/golang"},
		"example.org/chain:1":                      {"gcc", "-O2", "-static", "-fomit-frame-pointer", "-o", "%", "../workloads/chain.c"},
	} {
		out := filepath.Join(dir, fmt.Sprint(len(images)))
		args[slices.Index(args, "%")] = out
		images[image] = build(t, out, args...)
	}
	c := cluster.Start(t, cluster.Options{Name: "identity", Nodes: 2})
	for image, binary := range images {
		if err := c.Load(t.Context(), image, binary); err != nil {
			t.Fatal(err)
		}
	}
	install(t, c, values())
	began := time.Now()
	apply(t, c, workloads)
	wait(t, "the workloads run", func(ctx context.Context) error {
		_, err := c.Kubectl(ctx, "", "-n", "shop", "wait", "--timeout=5s", "--for=condition=Ready", "pod", "-l", "app in (checkout,store)")
		if err == nil {
			_, err = c.Kubectl(ctx, "", "-n", "shop", "wait", "--timeout=5s", "--for=condition=Complete", "job/burst")
		}
		return err
	})

	t.Run("every sample of a pod has its names", func(t *testing.T) { named(t, c, began) })
	t.Run("the account may list pods and nothing else", func(t *testing.T) { rights(t, c, `pods`, "[list watch]") })
	t.Run("a label that changes is a new name", func(t *testing.T) {
		if _, err := c.Kubectl(t.Context(), "", "-n", "shop", "label", "pod", "store-0", "--overwrite", "app.kubernetes.io/name=renamed"); err != nil {
			t.Fatal(err)
		}
		wait(t, "store-0 is called renamed", func(ctx context.Context) error { return called(ctx, c, "store-0", "renamed") })
	})
	t.Run("the kubelet tells as much", func(t *testing.T) {
		v := values()
		v["kubernetes"] = helm.Values{"source": "kubelet"}
		install(t, c, v)
		wait(t, "store-0 is called renamed", func(ctx context.Context) error { return called(ctx, c, "store-0", "renamed") })
		rights(t, c, `nodes/pods`, "[get]")
	})
}

// install installs the agents by the chart, and waits until they sample.
func install(t *testing.T, c *cluster.Cluster, values helm.Values) {
	t.Helper()
	m := ours.Render(t, agentChart, agents, values)
	apply(t, c, ours.YAML(agents, "{pod-security.kubernetes.io/enforce: privileged}", m))
	if _, err := c.Kubectl(t.Context(), "", "-n", agents, "rollout", "status", "ds/"+agentChart, "--timeout", limit.String()); err != nil {
		t.Fatal(err)
	}
}

func apply(t *testing.T, c *cluster.Cluster, objects string) {
	t.Helper()
	if _, err := c.Kubectl(t.Context(), objects, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// wait tries until it works.
func wait(t *testing.T, what string, try func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	tick := time.NewTicker(5 * time.Second) // an agent's history has an allowance
	defer tick.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// history is what each agent recorded since a moment, of workloads with these
// attributes, by its node.
func history(ctx context.Context, c *cluster.Cluster, since time.Time, of ...profiler.Attribute) (map[string][]*profiler.Profile, error) {
	k, err := kube.Connect(ctx, kube.Config{Kubeconfig: c.Kubeconfig})
	if err != nil {
		return nil, err
	}
	list, err := c.Client.CoreV1().Pods(agents).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + agentChart})
	if err != nil {
		return nil, err
	}
	all := map[string][]*profiler.Profile{}
	for _, p := range list.Items {
		if p.DeletionTimestamp != nil {
			continue
		}
		profiles, err := ask(ctx, k, p.Name, since, of)
		if err != nil {
			return nil, err
		}
		all[p.Spec.NodeName] = profiles
	}
	return all, nil
}

func ask(ctx context.Context, k *kube.Cluster, pod string, since time.Time, of []profiler.Attribute) ([]*profiler.Profile, error) {
	f, err := k.ForwardPod(ctx, agents, pod, 4041, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	client, err := api.NewClient(f.Addr)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	profiles, err := client.History(ctx, since, time.Now(), api.Filter{Labels: of})
	return slices.DeleteFunc(profiles, func(p *profiler.Profile) bool { return p.Workload == nil }), err // nothing fits
}

// called says whether a pod goes by a service's name in what was recorded last,
// some of which may be from before it did.
func called(ctx context.Context, c *cluster.Cluster, pod, want string) error {
	all, err := history(ctx, c, time.Now().Add(-30*time.Second), profiler.Attribute{Key: "k8s.pod.name", Value: pod})
	if err != nil {
		return err
	}
	var names []string
	for _, profiles := range all {
		for _, p := range profiles {
			names = append(names, p.Workload.Attribute("service.name"))
		}
	}
	if !slices.Contains(names, want) {
		return fmt.Errorf("it is called %q", names)
	}
	return nil
}

// named holds what the agents recorded against what the API server says of the
// pods that ran.
func named(t *testing.T, c *cluster.Cluster, since time.Time) {
	wants := map[string]map[string]string{ // by the start of the pod's name
		"checkout-": {"service.name": "checkout", "k8s.deployment.name": "checkout", "k8s.container.name": "server"},
		"store-0":   {"service.name": "shop-store", "k8s.statefulset.name": "store", "k8s.container.name": "db"},
		"loop":      {"service.name": "looper", "k8s.container.name": "main"},
		"burst-":    {"service.name": "burst", "k8s.job.name": "burst", "k8s.container.name": "short"},
	}
	list, err := c.Client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pods := map[string]*corev1.Pod{}
	for i := range list.Items {
		pods[list.Items[i].Namespace+"/"+list.Items[i].Name] = &list.Items[i]
	}
	nodeOf := map[string]string{} // of containers
	for _, pod := range pods {
		for _, s := range pod.Status.ContainerStatuses {
			if _, id, ok := strings.Cut(s.ContainerID, "://"); ok {
				nodeOf[id] = pod.Spec.NodeName
			}
		}
	}
	var burst float64 // CPU seconds of its own code
	var hot, hot60 uint64
	var wrong []string
	wait(t, "profiles of all pods", func(ctx context.Context) error {
		all, err := history(ctx, c, since)
		if err != nil {
			return err
		}
		burst, hot, hot60, wrong = 0, 0, 0, nil
		met := map[string]bool{}
		for node, profiles := range all {
			for _, p := range profiles {
				w := p.Workload
				name, id := w.Attribute("k8s.namespace.name")+"/"+w.Attribute("k8s.pod.name"), w.Attribute("container.id")
				met[name] = true
				pod := pods[name]
				switch {
				case name == "/" && nodeOf[id] == node:
					wrong = append(wrong, fmt.Sprintf("%s has a container of its own without its pod: %v", node, w.Attributes))
				case name == "/":
				case pod == nil:
					wrong = append(wrong, fmt.Sprintf("%s has a pod that there is not: %v", node, w.Attributes))
				case pod.Spec.NodeName != node || w.Attribute("k8s.node.name") != node || w.Attribute("host.name") != node:
					wrong = append(wrong, fmt.Sprintf("%s has a pod of %s: %v", node, pod.Spec.NodeName, w.Attributes))
				}
				for prefix, want := range wants {
					if !strings.HasPrefix(name, "shop/"+prefix) {
						continue
					}
					for key, value := range want {
						got := w.Attribute(key)
						if got != value && !(got == "" && key == "k8s.container.name" && !hasContainer(pod, id)) {
							wrong = append(wrong, fmt.Sprintf("%s: %s is %q, want %q", name, key, got, value))
						}
					}
					switch prefix {
					case "burst-":
						burst += float64(through(p, "hot_")) * p.Period().Seconds()
					case "checkout-":
						hot, hot60 = hot+through(p, "hot_"), hot60+through(p, "hot_60")
					}
				}
			}
		}
		for name, pod := range pods {
			if pod.Namespace == "shop" && !met[name] {
				return fmt.Errorf("there is no profile of %s", name)
			}
		}
		return nil
	})
	for _, w := range wrong {
		t.Error(w)
	}
	// 500 samples, of which chance takes or gives 5 %.
	used := cpuSeconds(t, c, "app=burst")
	if burst < 0.9*used || burst > 1.1*used {
		t.Errorf("ten short containers have %.2f s of the %.2f s that they used", burst, used)
	}
	share := float64(hot60) / float64(hot)
	if chance := 3 * math.Sqrt(0.6*0.4/float64(hot)); hot == 0 || math.Abs(share-0.6) > 0.03+chance {
		t.Errorf("hot_60 has %.1f %% of %d samples", 100*share, hot)
	}
	t.Logf("ten short containers have %.2f s of %.2f s; hot_60 has %.1f %% of %d samples of checkout", burst, used, 100*share, hot)
}

// cpuSeconds is what containers that have ended used, as each wrote it.
func cpuSeconds(t *testing.T, c *cluster.Cluster, selector string) (total float64) {
	t.Helper()
	log, err := c.Kubectl(t.Context(), "", "-n", "shop", "logs", "-l", selector, "--tail=1")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(log) {
		var wrote struct {
			CPUSeconds float64 `json:"cpu_seconds"`
		}
		if err := json.Unmarshal([]byte(line), &wrote); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		total += wrote.CPUSeconds
	}
	return total
}

// through is how many samples of a profile have a function of these on their stack.
func through(p *profiler.Profile, function string) (n uint64) {
	for _, s := range p.Samples {
		if slices.ContainsFunc(s.Stack.Locations, func(l *profiler.Location) bool {
			return slices.ContainsFunc(l.Frames, func(f profiler.Frame) bool { return strings.HasPrefix(f.Function, function) })
		}) {
			n += s.Count
		}
	}
	return n
}

// hasContainer says whether a container is one of those that the pod's status has:
// the sandbox, in which the pod's network is made, is none of them.
func hasContainer(pod *corev1.Pod, id string) bool {
	return slices.ContainsFunc(pod.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool {
		if last := s.LastTerminationState.Terminated; last != nil && strings.HasSuffix(last.ContainerID, id) {
			return true
		}
		return strings.HasSuffix(s.ContainerID, id)
	})
}

// rights holds what the account of the agents may do against what it is to do, on
// top of what every account may.
func rights(t *testing.T, c *cluster.Cluster, resource, verbs string) {
	t.Helper()
	list := func(account string) []string {
		text, err := c.Kubectl(t.Context(), "", "auth", "can-i", "--list", "--no-headers", "--as", "system:serviceaccount:"+account)
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for line := range strings.Lines(text) {
			lines = append(lines, strings.Join(strings.Fields(line), " "))
		}
		return lines
	}
	every := list("default:default")
	got := slices.DeleteFunc(list(agents+":"+agentChart), func(line string) bool { return slices.Contains(every, line) })
	if want := []string{resource + " [] [] " + verbs}; !slices.Equal(got, want) {
		t.Errorf("beyond what every account may, it may %q, want %q", got, want)
	}
}
