// Package agents runs the agents on a real Kubernetes of two nodes, installed by
// kalypsoctl as a person does it, beside pods that do what is known. What the
// agents send to a backend in a pod is held, sample by sample, against what ran
// where; what kalypsoctl answers is held against the same.
package agents

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kalypso-dev/kalypso/test/cluster"
	"github.com/kalypso-dev/kalypso/test/cluster/upstream"
	"github.com/kalypso-dev/kalypso/test/internal/script"
)

func TestMain(m *testing.M) {
	if os.Getenv(cluster.Variable) == "" {
		os.Exit(m.Run()) // everything is skipped: build nothing
	}
	code := script.Main(m, "kalypsoctl", "../../cmd/kalypsoctl", nil)
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

const (
	// window is short, so that the test is.
	window = 5 * time.Second
	// limit is far over what anything takes that is waited for.
	limit = 3 * time.Minute
)

// settings are those of kalypsoctl install. Pyroscope is not there; the backend
// is. The machine is not the test's alone: with the default budget of CPU the rate
// would fall.
const settings = `pyroscope: {enabled: false}
agent:
  config: {otlp.endpoint: "otlp.backend.svc.cluster.local:4317", window: 5s, cpu.budget: 30%%}
  kubernetes: {source: %s}
`

// bench is a cluster with what is known of it.
type bench struct {
	*cluster.Cluster
	charts   string
	received string // folder that the backend writes to
	truth    *truth
}

// Things happen one after the other. What the backend took meanwhile is looked at
// in the end, as a whole.
func TestAgents(t *testing.T) {
	b := start(t)
	b.install(t, "api")
	b.apply(t, shop)
	b.until(t, "the workloads run", func(ctx context.Context) error {
		_, err := b.Kubectl(ctx, "", "-n", "shop", "wait", "--timeout=1s", "--for=condition=Ready", "pod", "-l", "app in (checkout,store,probe)")
		return err
	})
	b.apply(t, burst)
	t.Run("the agents have the rights that they need, and no other", func(t *testing.T) {
		b.unprivileged(t)
		b.rights(t, "pods", "[list watch]")
	})
	t.Run("kalypsoctl", func(t *testing.T) { verbs(t, b) })
	t.Run("a short Job ends", func(t *testing.T) {
		b.until(t, "the Job is complete", func(ctx context.Context) error {
			_, err := b.Kubectl(ctx, "", "-n", "shop", "wait", "--timeout=1s", "--for=condition=Complete", "job/burst")
			return err
		})
	})
	var when periods
	when.chosen = b.choose(t)
	// What was sampled before is named up to two windows later.
	when.renamed = span{time.Now().Add(-3 * window), time.Now().Add(2 * window)}
	b.kubectl(t, "-n", "shop", "label", "pod", "store-0", "--overwrite", "app.kubernetes.io/name=renamed")
	b.kubectl(t, "-n", "shop", "delete", "pod", "-l", "app=checkout", "--wait=false")
	b.pass(t, 2*window)
	used := b.bursts(t)
	t.Run("labels of the chart act without a restart", func(t *testing.T) { b.live(t) })
	when.away = b.outage(t)
	when.drained = b.drain(t)
	b.install(t, "kubelet")
	t.Run("who asks the kubelet may do nothing else", func(t *testing.T) { b.rights(t, "nodes/pods", "[get]") })
	b.pass(t, 2*window)
	b.end(t)

	all := b.profiles(t)
	t.Run("every sample of a pod has its names", func(t *testing.T) { b.named(t, all, when) })
	t.Run("labels that came while the agents ran are on what they took", func(t *testing.T) { labelled(t, all) })
	t.Run("pods are sampled as they ask", func(t *testing.T) { b.asked(t, all, when.chosen) })
	t.Run("shares are right", func(t *testing.T) { shared(t, all) })
	t.Run("short containers are accounted to their pods", func(t *testing.T) { b.short(t, all, used) })
	t.Run("no sample is missing that is not counted", func(t *testing.T) { b.accounted(t, all) })
}

func start(t *testing.T) *bench {
	t.Helper()
	c := cluster.Start(t, cluster.Options{Name: "agents", Nodes: 2, Folders: []string{"/var/lib/kalypso-agent"}})
	loadImages(t, c)
	b := &bench{Cluster: c, charts: upstream.Charts(t), received: t.TempDir(), truth: watch(t, c)}
	t.Cleanup(func() {
		if t.Failed() {
			b.tell(t)
		}
	})
	b.apply(t, fmt.Sprintf(backend, b.received))
	b.kubectl(t, "-n", "backend", "wait", "--for=condition=Ready", "pod/otlp", "--timeout="+limit.String())
	return b
}

// tell says how the cluster is.
func (b *bench) tell(t *testing.T) {
	for _, args := range [][]string{{"get", "pods", "-A", "-o", "wide"}, {"get", "events", "-n", "kalypso"}} {
		out, err := b.Kubectl(context.WithoutCancel(t.Context()), "", args...)
		t.Logf("%v\n%s", err, out)
	}
	b.truth.mu.Lock()
	defer b.truth.mu.Unlock()
	for path, f := range b.truth.logs {
		_, _ = f.Seek(0, io.SeekStart)
		text, err := io.ReadAll(f)
		t.Logf("%s: %v\n%s", path, err, text)
	}
}

// install installs the agents, or changes how they learn of pods; more are lines of
// settings of theirs.
func (b *bench) install(t *testing.T, source string, more ...string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kalypso.yaml")
	text := fmt.Appendf(nil, settings, source)
	for _, line := range more {
		text = fmt.Appendf(text, "  %s\n", line)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	r := b.ctl(t, "install", "agent", "--yes", "--no-verify", "--timeout", limit.String(), "--file", file)
	r.code(t, 0)
	t.Logf("%s\n%s", r.took, r.text())
}

// run is one of kalypsoctl.
type run struct {
	args           []string
	stdout, stderr bytes.Buffer
	exit           int
	took           time.Duration
}

func (r *run) text() string { return r.stdout.String() + r.stderr.String() }

func (r *run) code(t *testing.T, want int) {
	t.Helper()
	if r.exit != want {
		t.Fatalf("kalypsoctl %s ended with %d, want %d:\n%s", strings.Join(r.args, " "), r.exit, want, r.text())
	}
}

// command is kalypsoctl, not yet started.
func (b *bench) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(script.Dir(), "kalypsoctl"), args...)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "HOME="+cmd.Dir, "KUBECONFIG="+b.Kubeconfig, "KALYPSO_CHARTS="+b.charts, "LC_ALL=C.UTF-8", "TERM=xterm")
	return cmd
}

// ctl runs kalypsoctl to its end.
func (b *bench) ctl(t *testing.T, args ...string) *run {
	t.Helper()
	r := &run{args: args}
	cmd := b.command(t, args...)
	cmd.Stdout, cmd.Stderr = &r.stdout, &r.stderr
	began := time.Now()
	err := cmd.Run()
	r.took = time.Since(began).Round(10 * time.Millisecond)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	r.exit = cmd.ProcessState.ExitCode()
	return r
}

func (b *bench) apply(t *testing.T, objects string) {
	t.Helper()
	if _, err := b.Kubectl(t.Context(), objects, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := b.Kubectl(t.Context(), "", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// until tries until it works.
func (b *bench) until(t *testing.T, what string, try func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	tick := time.NewTicker(500 * time.Millisecond)
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

// pass waits.
func (b *bench) pass(t *testing.T, d time.Duration) {
	t.Helper()
	began := time.Now()
	b.until(t, "time passes", func(context.Context) error {
		if time.Since(began) < d {
			return errors.New("not yet")
		}
		return nil
	})
}

// unprivileged looks at what the agents' container has on the node.
func (b *bench) unprivileged(t *testing.T) {
	t.Helper()
	for _, c := range b.truth.agents() {
		pids := running(c.ID)
		if len(pids) != 1 {
			t.Fatalf("the agent of %s has the processes %v", c.Node, pids)
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pids[0]))
		if err != nil {
			t.Fatal(err)
		}
		// BPF, PERFMON, SYS_PTRACE, DAC_READ_SEARCH, SYSLOG, CHECKPOINT_RESTORE
		const want = 1<<39 | 1<<38 | 1<<19 | 1<<2 | 1<<34 | 1<<40
		for _, key := range []string{"CapPrm", "CapEff", "CapBnd"} {
			_, rest, _ := strings.Cut(string(status), "\n"+key+":")
			var got uint64
			if _, err := fmt.Sscanf(strings.TrimSpace(rest), "%x", &got); err != nil || got&^want != 0 {
				t.Errorf("%s of the agent of %s is %x, of which no more than %x is needed: %v", key, c.Node, got, uint64(want), err)
			}
		}
		if !strings.Contains(string(status), "\nNoNewPrivs:\t1\n") {
			t.Errorf("the agent of %s could gain privileges", c.Node)
		}
	}
}

// rights holds what the account of the agents may do against what it is to do, on
// top of what every account may.
func (b *bench) rights(t *testing.T, resource, verbs string) {
	t.Helper()
	list := func(account string) []string {
		var lines []string
		for line := range strings.Lines(b.kubectl(t, "auth", "can-i", "--list", "--no-headers", "--as", "system:serviceaccount:"+account)) {
			lines = append(lines, strings.Join(strings.Fields(line), " "))
		}
		return lines
	}
	every := list("default:default")
	got := slices.DeleteFunc(list("kalypso:kalypso-agent"), func(line string) bool { return slices.Contains(every, line) })
	if want := []string{resource + " [] [] " + verbs}; !slices.Equal(got, want) {
		t.Errorf("beyond what every account may, it may %q, want %q", got, want)
	}
}
