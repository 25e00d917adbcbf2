// Package cluster is a real Kubernetes for tests, on the machine that they run
// on: etcd, API server, controllers and scheduler, with simulated nodes, real
// ones, or both. It needs root, Linux and, for real nodes, Debian's containerd;
// no image is pulled and nothing is asked of a network.
//
// Simulated nodes are played by kwok: their pods become ready, and Jobs complete,
// by decree. What such a pod would have answered as a webhook this package
// answers: it allows everything (see webhooks.go). A pod fails on purpose when it
// has the annotation Outcome. Real nodes run containers of images that are made
// of one static binary each; see Load.
//
// The control plane and each real node are a set of network, mount and UTS
// namespaces; the addresses in there are in no other. Any number of clusters run
// side by side. All their processes are in one cgroup, and a guard, which lives as
// long as the process that started the cluster, removes it with everything that
// belongs to it, also when that process is killed.
//
// The package knows no Helm and nothing of what is tested on the cluster.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Variable says whether there may be clusters: empty, no; 1, yes; a path, yes,
// with binaries that "run -build" has put there.
const Variable = "KALYPSO_TEST_CLUSTER"

// startTimeout is twenty times what a start takes on two quiet cores (6 s with
// simulated nodes, 12 s with a real one).
const startTimeout = 4 * time.Minute

// Options of a cluster.
type Options struct {
	Name      string // of its folder and cgroup, for people who look; "": test
	Nodes     int    // real ones; where there are others too they are tainted kalypso.dev/real
	Simulated int
	CPU       string                           // of each simulated node; "": 32
	Memory    string                           // of each simulated node; "": 64Gi
	Folders   []string                         // that each real node has to itself, besides Kubernetes's own
	Log       func(format string, args ...any) // of slow steps; nil: nothing is said
}

// Cluster is one that runs.
type Cluster struct {
	Kubeconfig string // a path; cluster-admin
	REST       *rest.Config
	Client     kubernetes.Interface

	options Options
	bin     string // folder of the binaries
	state   string // folder of everything else; its name is the cgroup's too
	groups  []hierarchy
	pki     *pki
	port    int // of the API server on 127.0.0.1
	control *place
	nodes   []*place
	guard   *guard
	webhook *webhooks
	closers []func()
	waits   sync.WaitGroup
	faults  chan error // a process of the cluster that ended by itself

	mu   sync.Mutex
	pids map[string]int // of processes, by name
}

// Require skips a test where there may be no clusters.
func Require(t testing.TB) {
	t.Helper()
	if os.Getenv(Variable) == "" {
		t.Skipf("needs a Kubernetes: make test-cluster, or %s=1", Variable)
	}
}

// Start starts a cluster that ends with the test. It skips the test where there
// may be none.
func Start(t testing.TB, o Options) *Cluster {
	t.Helper()
	Require(t)
	if o.Log == nil {
		o.Log = t.Logf
	}
	c, err := Up(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Down(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// Up starts a cluster: it returns once every node is ready.
func Up(ctx context.Context, o Options) (*Cluster, error) {
	if o.Name == "" {
		o.Name = "test"
	}
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	if err := possible(o); err != nil {
		return nil, fmt.Errorf("start a test cluster: %w", err)
	}
	bin, err := Build(ctx, o.Log)
	if err != nil {
		return nil, err
	}
	c := &Cluster{options: o, bin: bin, faults: make(chan error, 64), pids: map[string]int{}}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := c.up(ctx); err != nil {
		err = fmt.Errorf("start a test cluster: %w", errors.Join(err, c.fault()))
		return nil, errors.Join(err, c.Down())
	}
	return c, nil
}

// possible says why there can be no cluster on this machine.
func possible(o Options) error {
	if runtime.GOOS != "linux" || os.Getuid() != 0 {
		return errors.New("it needs Linux, and root for namespaces and cgroups")
	}
	programs := []string{"nsenter", "unshare", "flock", "ip", "mount"}
	if o.Nodes > 0 {
		programs = append(programs, "containerd", "ctr", "runc", "iptables", "nft", "conntrack")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("%s is not there: scripts/setup test-cluster installs it", p)
		}
	}
	return nil
}

func (c *Cluster) up(ctx context.Context) error {
	began := time.Now()
	if err := c.prepare(); err != nil {
		return err
	}
	if err := c.startControlPlane(ctx); err != nil {
		return err
	}
	if err := c.startSimulated(ctx); err != nil {
		return err
	}
	if err := c.startNodes(ctx); err != nil {
		return err
	}
	c.options.Log("cluster of %d real and %d simulated nodes: %.1f s", c.options.Nodes, c.options.Simulated, time.Since(began).Seconds())
	return nil
}

// prepare makes the cluster's folder and cgroups and starts its guard.
func (c *Cluster) prepare() error {
	var err error
	if c.groups, err = hierarchies(); err != nil {
		return err
	}
	if c.state, err = makeState(c.options.Name, c.folders()); err != nil {
		return err
	}
	if c.guard, err = startGuard(c.state, c.groups); err != nil {
		return err
	}
	if err := makeGroup(c.groups, c.group(), "system"); err != nil {
		return err
	}
	for i := range c.options.Nodes {
		if err := makeGroup(c.groups, c.group(), nodeName(i)); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) group() string { return filepath.Base(c.state) }

// Down ends the cluster and removes what belongs to it. It is an error if a
// process of it ended before, as what was seen of the cluster is then not to be
// trusted.
func (c *Cluster) Down() error {
	fault := c.fault()
	if c.webhook != nil {
		c.webhook.close()
	}
	for _, f := range c.closers {
		f()
	}
	if c.guard == nil {
		return nil
	}
	err := errors.Join(fault, c.guard.release())
	c.guard = nil
	c.waits.Wait()
	if err != nil {
		return fmt.Errorf("end a test cluster: %w", err)
	}
	return nil
}

// Kubectl runs kubectl as cluster-admin and gives what it writes to stdout.
func (c *Cluster) Kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, "kubectl"), append([]string{"--kubeconfig", c.Kubeconfig}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, stderrOf(err))
	}
	return string(out), nil
}

// Log is what a process of the cluster has written: kube-apiserver,
// kube-controller-manager, kube-scheduler, etcd, kwok, kubelet-node-1, and so on.
func (c *Cluster) Log(process string) string {
	data, err := os.ReadFile(c.logFile(process))
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// Pause stops a process of the cluster, named as for Log, where it is: it answers
// nobody, and connections to it stay open. resume lets it go on.
func (c *Cluster) Pause(process string) (resume func() error, err error) {
	c.mu.Lock()
	pid := c.pids[process]
	c.mu.Unlock()
	if pid == 0 {
		return nil, fmt.Errorf("pause %s: there is no such process", process)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return nil, fmt.Errorf("pause %s: %w", process, err)
	}
	return func() error { return syscall.Kill(pid, syscall.SIGCONT) }, nil
}

func (c *Cluster) logFile(process string) string {
	return filepath.Join(c.state, "logs", process+".log")
}

// connect makes the clients.
func (c *Cluster) connect() error {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		return err
	}
	// The limits of a polite client would slow tests down.
	config.QPS, config.Burst = 200, 400
	c.REST = config
	c.Client, err = kubernetes.NewForConfig(config)
	return err
}

// fail notes what went wrong beside the caller.
func (c *Cluster) fail(err error) {
	select {
	case c.faults <- err:
	default: // the first ones tell enough
	}
}

// fault is the first process of the cluster that ended by itself, with the end of
// what it wrote.
func (c *Cluster) fault() error {
	select {
	case err := <-c.faults:
		return err
	default:
		return nil
	}
}

// wait polls until done, for what has no watch.
func wait(ctx context.Context, what string, done func(context.Context) error) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := done(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, err)
		case <-tick.C:
		}
	}
}

func stderrOf(err error) string {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return strings.TrimSpace(string(exit.Stderr))
	}
	return ""
}

func nodeName(i int) string { return "node-" + strconv.Itoa(i+1) }
