package pods

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/kalypso-dev/kalypso/profiler/workload"
	watcher "github.com/kalypso-dev/kalypso/profiler/workload/kubernetes"
	"github.com/kalypso-dev/kalypso/test/cluster"
)

// What the agent's knowledge of pods may cost. A change took 0.44 ms of CPU time,
// with TLS and all, on two cores at a load of 15.
const (
	mostBytesPerPod = 4 << 10
	mostPerChange   = 4 * time.Millisecond
)

// TestWatchOf500Pods has the agent's watcher, in a process of its own, learn the
// pods of one node of a cluster of 500: 110 of them, the most that a kubelet runs
// unless it is told otherwise, and all 500. It says what that takes.
func TestWatchOf500Pods(t *testing.T) {
	cluster.Require(t)
	c := cluster.Start(t, cluster.Options{Name: "watch", Simulated: 2})
	config := rest.CopyConfig(c.REST)
	config.QPS, config.Burst = 1000, 1000
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	dir := credentials(t, c)
	const here, elsewhere = "simulated-1", "simulated-2"
	owner := ownerOf(t, client)
	makePods(t, client, owner, here, 0, 110)
	makePods(t, client, owner, elsewhere, 110, 500)

	w := startWatcher(t, c.REST.Host, dir, here)
	learnt := w.await(t, 110)
	judge(t, "110 of 500 pods", w.before, learnt)
	// Changes of its own pods, and of the others.
	changed := change(t, client, 0, 110, 9)
	own := w.settle(t)
	perChange := (own.CPU - learnt.CPU) / time.Duration(changed)
	t.Logf("%d changes of its pods: %v of CPU time each, %d bytes allocated each", changed, perChange.Round(time.Microsecond), (own.Allocated-learnt.Allocated)/uint64(changed))
	if own.Changes == learnt.Changes {
		t.Error("it heard of none")
	}
	if perChange > mostPerChange {
		t.Errorf("a change takes %v, the limit is %v", perChange, mostPerChange)
	}
	judge(t, "110 of 500 pods, after the changes", w.before, own)
	begin := time.Now()
	changed = change(t, client, 110, 500, 3)
	after := w.settle(t)
	t.Logf("%d changes of pods of another node in %.1f s: %v of CPU time", changed, time.Since(begin).Seconds(), (after.CPU - own.CPU).Round(time.Millisecond))
	if after.Changes != own.Changes || after.CPU-own.CPU > time.Duration(changed)*mostPerChange/10 {
		t.Errorf("pods of another node: %d changes heard of, %v of CPU time", after.Changes-own.Changes, after.CPU-own.CPU)
	}

	// All on one node.
	makePods(t, client, owner, elsewhere, 500, 610)
	all := startWatcher(t, c.REST.Host, dir, elsewhere)
	judge(t, "500 pods on one node", all.before, all.await(t, 500))
}

// judge holds what is kept against the limit.
func judge(t *testing.T, what string, before, now figures) {
	t.Helper()
	kept := int64(now.Heap) - int64(before.Heap)
	t.Logf("%s: %d are known, %d KB are kept, %d bytes each; %d KB allocated and %v of CPU time since the start; resident %.1f MiB, %.1f MiB before",
		what, now.Known, kept>>10, kept/int64(now.Known), (now.Allocated-before.Allocated)>>10, (now.CPU - before.CPU).Round(time.Millisecond), float64(now.Resident)/(1<<20), float64(before.Resident)/(1<<20))
	if kept > int64(now.Known)*mostBytesPerPod+(512<<10) { // connections and their buffers take some
		t.Errorf("%s: %d bytes are kept, the limit is %d for each pod and 512 KiB", what, kept, mostBytesPerPod)
	}
}

// credentials makes a service account with the rights that the agent's chart gives,
// and the folder that its pods would have.
func credentials(t *testing.T, c *cluster.Cluster) string {
	t.Helper()
	_, err := c.Kubectl(t.Context(), `
apiVersion: v1
kind: ServiceAccount
metadata: {name: watcher, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: watcher}
rules: [{apiGroups: [""], resources: [pods], verbs: [list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: watcher}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: watcher}
subjects: [{kind: ServiceAccount, name: watcher, namespace: default}]
`, "apply", "-f", "-")
	if err != nil {
		t.Fatal(err)
	}
	token, err := c.Client.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "watcher", &authv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ca := c.REST.CAData
	if len(ca) == 0 {
		if ca, err = os.ReadFile(c.REST.CAFile); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	for name, text := range map[string][]byte{"token": []byte(token.Status.Token), "ca.crt": ca} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// makePods makes pods, each of some 8 KB, and waits until they are ready.
func makePods(t *testing.T, client kubernetes.Interface, owner metav1.OwnerReference, node string, from, to int) {
	t.Helper()
	each(t, from, to, func(ctx context.Context, i int) error {
		_, err := client.CoreV1().Pods("default").Create(ctx, podOf(node, i, owner), metav1.CreateOptions{})
		return err
	})
	until(t, fmt.Sprintf("pods %d to %d run", from, to), func() bool {
		pods, err := client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
		if err != nil {
			t.Fatal(err)
		}
		return !slices.ContainsFunc(pods.Items, func(p corev1.Pod) bool { return len(p.Status.ContainerStatuses) == 0 })
	})
	// Containers of simulated nodes have no IDs of their own.
	each(t, from, to, func(ctx context.Context, i int) error {
		patch := fmt.Appendf(nil, `{"status":{"containerStatuses":[{"name":"server","containerID":"containerd://%064x"},{"name":"proxy","containerID":"containerd://%064x"}]}}`, 2*i+1, 2*i+2)
		_, err := client.CoreV1().Pods("default").Patch(ctx, nameOf(i), types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		return err
	})
	if p, err := client.CoreV1().Pods("default").Get(t.Context(), nameOf(from), metav1.GetOptions{}); err == nil && from == 0 {
		text, _ := json.Marshal(p)
		t.Logf("a pod has %d bytes", len(text))
	}
}

// each does something with each pod, some at a time.
func each(t *testing.T, from, to int, do func(ctx context.Context, i int) error) {
	t.Helper()
	group, ctx := errgroup.WithContext(t.Context())
	group.SetLimit(16)
	for i := from; i < to; i++ {
		group.Go(func() error { return do(ctx, i) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

func nameOf(i int) string { return fmt.Sprintf("web-%d-7d9f8c6b5d-%05d", i%20, i) }

// ownerOf makes something that owns pods and leaves them alone: without it they are
// taken away.
func ownerOf(t *testing.T, client kubernetes.Interface) metav1.OwnerReference {
	t.Helper()
	o, err := client.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "owner"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: o.Name, UID: o.UID, Controller: new(true)}
}

func podOf(node string, i int, owner metav1.OwnerReference) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: nameOf(i),
		Labels: map[string]string{
			"app.kubernetes.io/name": fmt.Sprintf("web-%d", i%20), "app.kubernetes.io/instance": fmt.Sprintf("shop-%d", i%20), "app.kubernetes.io/version": "1.2.3",
			"app.kubernetes.io/part-of": "shop", "pod-template-hash": "7d9f8c6b5d", "team": "checkout",
		},
		Annotations:     map[string]string{"prometheus.io/scrape": "true", "prometheus.io/port": "8080", "checksum/config": strings.Repeat("0123456789abcdef", 4)},
		OwnerReferences: []metav1.OwnerReference{owner},
	}}
	p.Spec.NodeName = node
	p.Spec.AutomountServiceAccountToken = new(false)
	for _, name := range []string{"server", "proxy"} {
		container := corev1.Container{Name: name, Image: "registry.example.org/shop/" + name + ":1.2.3"}
		for e := range 20 {
			container.Env = append(container.Env, corev1.EnvVar{Name: fmt.Sprintf("SETTING_%d", e), Value: strings.Repeat("x", 80)})
		}
		p.Spec.Containers = append(p.Spec.Containers, container)
	}
	return p
}

// change changes an annotation of each pod, so many times, and gives how many
// changes that were.
func change(t *testing.T, client kubernetes.Interface, from, to, times int) int {
	t.Helper()
	for n := range times {
		each(t, from, to, func(ctx context.Context, i int) error {
			patch := fmt.Appendf(nil, `{"metadata":{"annotations":{"changed":"%d"}}}`, n)
			_, err := client.CoreV1().Pods("default").Patch(ctx, nameOf(i), types.MergePatchType, patch, metav1.PatchOptions{})
			return err
		})
	}
	return times * (to - from)
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 2 minutes until %s", what)
		}
	}
}

// watchVariable makes a process of this test one that watches: NODE, API and
// folder of credentials, by "|".
const watchVariable = "KALYPSO_TEST_WATCH"

// figures are what the watching process says of itself.
type figures struct {
	Known     int
	Changes   int64
	Heap      uint64 // after a collection, where that was asked for
	Allocated uint64
	CPU       time.Duration
	Resident  int64
}

// watch is the watching process: it begins with the first line that comes, and says
// its figures with each; what is in use, where the line is not empty.
func watch() {
	setting := strings.Split(os.Getenv(watchVariable), "|")
	pods := workload.NewPods()
	var changes atomic.Int64
	w, err := watcher.New(watcher.Config{
		Source: watcher.API, Node: setting[0], API: setting[1], Credentials: setting[2], Pods: pods, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		panic(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	said := json.NewEncoder(os.Stdout)
	in := bufio.NewScanner(os.Stdin)
	_ = said.Encode(measure(pods, &changes, true))
	for first := true; in.Scan(); first = false {
		if first {
			go w.Run(ctx)
			go func() {
				for ctx.Err() == nil {
					changed := pods.Changed()
					<-changed
					changes.Add(1)
				}
			}()
		}
		_ = said.Encode(measure(pods, &changes, in.Text() != ""))
	}
}

func measure(pods *workload.Pods, changes *atomic.Int64, collect bool) figures {
	var f figures
	f.Known, _ = pods.Len()
	f.Changes = changes.Load()
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	f.CPU = time.Duration(u.Utime.Nano() + u.Stime.Nano())
	if collect {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	f.Heap, f.Allocated = m.HeapAlloc, m.TotalAlloc
	text, _ := os.ReadFile("/proc/self/statm")
	var size, resident int64
	_, _ = fmt.Sscan(string(text), &size, &resident)
	f.Resident = resident * int64(os.Getpagesize())
	return f
}

// watching is such a process, as the test has it.
type watching struct {
	in     io.Writer
	out    *json.Decoder
	before figures
}

func startWatcher(t *testing.T, server, dir, node string) *watching {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), watchVariable+"="+node+"|"+server+"|"+dir)
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	w := &watching{in: in, out: json.NewDecoder(out)}
	if err := w.out.Decode(&w.before); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *watching) ask(t *testing.T, line string) (f figures) {
	t.Helper()
	if _, err := io.WriteString(w.in, line+"\n"); err != nil {
		t.Fatal(err)
	}
	if err := w.out.Decode(&f); err != nil {
		t.Fatal(err)
	}
	return f
}

// await waits until so many pods are known.
func (w *watching) await(t *testing.T, known int) figures {
	t.Helper()
	until(t, fmt.Sprintf("%d pods are known", known), func() bool { return w.ask(t, "").Known >= known })
	f := w.settle(t)
	if f.Known != known {
		t.Errorf("%d pods are known, want %d", f.Known, known)
	}
	return f
}

// settle waits until nothing more is heard of.
func (w *watching) settle(t *testing.T) figures {
	t.Helper()
	last := int64(-1)
	until(t, "nothing changes any more", func() bool {
		time.Sleep(500 * time.Millisecond) // a watch brings a change within some milliseconds
		f := w.ask(t, "")
		done := f.Changes == last
		last = f.Changes
		return done
	})
	return w.ask(t, "collect")
}
