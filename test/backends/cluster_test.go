package backends

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/exporter/otlp"
	"github.com/kalypso-dev/kalypso/exporter/transport"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/test/cluster"
	"github.com/kalypso-dev/kalypso/test/internal/script"
)

// roleVariable makes the test's own program a server in a pod.
const roleVariable = "KALYPSO_BACKENDS_ROLE"

func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) == "loki" {
		fmt.Fprintln(os.Stderr, http.ListenAndServe(":3100", &lines{}))
		os.Exit(1)
	}
	if os.Getenv(cluster.Variable) == "" {
		os.Exit(m.Run()) // nothing runs kalypsoctl: do not build it
	}
	os.Exit(script.Main(m, "kalypsoctl", "../../cmd/kalypsoctl", nil))
}

// pod is a Deployment of one static program, and its Service.
type pod struct {
	namespace, name string
	image           string
	port, target    int // of the Service, of the pod
	ready           string
	args            []string
	env             map[string]string
	file            string // /etc/test/file has it
}

// apply makes a pod's objects.
func apply(t *testing.T, c *cluster.Cluster, p pod) {
	t.Helper()
	labels := object{"app": p.name}
	meta := func() object { return object{"namespace": p.namespace, "name": p.name, "labels": labels} }
	var env []object
	for name, value := range p.env {
		env = append(env, object{"name": name, "value": value})
	}
	probe := object{"tcpSocket": object{"port": p.target}, "periodSeconds": 1}
	if p.ready != "" {
		probe = object{"httpGet": object{"path": p.ready, "port": p.target}, "periodSeconds": 1}
	}
	container := object{
		"name": p.name, "image": p.image, "imagePullPolicy": "Never", "args": p.args, "env": env, "readinessProbe": probe,
		"volumeMounts": []object{{"name": "file", "mountPath": "/etc/test"}},
	}
	var text strings.Builder
	for _, o := range []object{
		{"apiVersion": "v1", "kind": "Namespace", "metadata": object{"name": p.namespace}},
		{"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta(), "data": object{"file": p.file}},
		{"apiVersion": "v1", "kind": "Service", "metadata": meta(), "spec": object{"selector": labels, "ports": []object{{"port": p.port, "targetPort": p.target}}}},
		{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta(), "spec": object{
			"selector": object{"matchLabels": labels},
			"template": object{"metadata": object{"labels": labels}, "spec": object{
				"containers": []object{container},
				"volumes":    []object{{"name": "file", "configMap": object{"name": p.name}}},
			}},
		}},
	} {
		data, err := yaml.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		text.WriteString("---\n")
		text.Write(data)
	}
	if _, err := c.Kubectl(t.Context(), text.String(), "apply", "--filename=-"); err != nil {
		t.Fatal(err)
	}
}

// rolled waits until a pod is ready.
func rolled(t *testing.T, c *cluster.Cluster, p pod) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), readyLimit)
	defer cancel()
	if _, err := c.Kubectl(ctx, "", "--namespace="+p.namespace, "rollout", "status", "deployment/"+p.name); err != nil {
		said, _ := c.Kubectl(t.Context(), "", "--namespace="+p.namespace, "logs", "--tail=20", "deployment/"+p.name)
		t.Fatalf("%v\n%s", err, said)
	}
}

// static is this package's test program without anything that an image of one
// file lacks.
func static(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "standin")
	cmd := exec.Command("go", "test", "-c", "-trimpath", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// kalypsoctl runs the program and gives what it says and its exit code.
func kalypsoctl(t *testing.T, kubeconfig string, args ...string) (text string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(script.Dir(), "kalypsoctl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig, "LC_ALL=C.UTF-8", "TERM=xterm")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	t.Logf("kalypsoctl %s (exit code %d)\n%s", strings.Join(args, " "), cmd.ProcessState.ExitCode(), &out)
	return out.String(), cmd.ProcessState.ExitCode()
}

// expect runs kalypsoctl and checks its exit code and words.
func expect(t *testing.T, kubeconfig string, code int, words []string, args ...string) {
	t.Helper()
	text, got := kalypsoctl(t, kubeconfig, args...)
	if got != code {
		t.Errorf("exit code %d, want %d", got, code)
	}
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q is not said", w)
		}
	}
}

// kalypsoctl verify in a cluster with a real node, through tunnels: Pyroscope, and
// a collector as the chart has it, which finds Loki by the name of its Service.
func TestVerifyOnACluster(t *testing.T) {
	cluster.Require(t)
	collector := program(t, "collector")
	if os.Getenv("PYROSCOPE_BIN") == "" {
		t.Skip("PYROSCOPE_BIN does not name the program of a Pyroscope server")
	}
	relay := trimmed(t, configuration(t, "collector", "kalypso-collector-agent", "relay"))
	c := cluster.Start(t, cluster.Options{Name: "backends", Nodes: 1})
	expect(t, c.Kubeconfig, 1, []string{"error: there is no stack in context", "fix:   kalypsoctl install"}, "verify")
	expect(t, c.Kubeconfig, 1, []string{"error: there is no Pyroscope in this cluster", "fix:   --from -15m"}, "profile", "--from", "-1h")

	pods := []pod{
		{namespace: "loki", name: "loki-gateway", image: "test/standin:1", port: 80, target: 3100, env: map[string]string{roleVariable: "loki"}},
		{namespace: "otel-system", name: "kalypso-collector", image: "test/collector:1", port: 4318, target: 4318, args: []string{"--config=file:/etc/test/file"}, env: map[string]string{"K8S_NODE_NAME": "node-1"}, file: relay},
		{namespace: "pyroscope", name: "pyroscope", image: "test/pyroscope:1", port: 4040, target: 4040, ready: "/ready", args: []string{
			"-target=all", "-usage-stats.enabled=false", "-self-profiling.disable-push=true", "-tracing.enabled=false",
			"-storage.backend=filesystem", "-storage.filesystem.dir=/tmp/shared", "-memberlist.advertise-addr=127.0.0.1",
			"-metastore.address=127.0.0.1:9095", "-query-backend.address=127.0.0.1:9095",
			"-metastore.raft.bind-address=127.0.0.1:9099", "-metastore.raft.advertise-address=127.0.0.1:9099", "-metastore.raft.server-id=127.0.0.1:9099",
			"-metastore.data-dir=/tmp/metastore/data", "-metastore.raft.dir=/tmp/metastore/raft", "-metastore.raft.snapshots-dir=/tmp/metastore/raft",
			"-metastore.min-ready-duration=1s", "-segment-writer.min-ready-duration=1s", "-architecture.storage=v2",
			"-segment-writer.lifecycler.addr=127.0.0.1", "-distributor.ring.instance-addr=127.0.0.1",
			"-query-frontend.instance-addr=127.0.0.1", "-overrides-exporter.ring.instance-addr=127.0.0.1",
		}},
	}
	for image, binary := range map[string]string{"test/standin:1": static(t), "test/collector:1": collector, "test/pyroscope:1": os.Getenv("PYROSCOPE_BIN")} {
		if err := c.Load(t.Context(), image, binary); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range pods {
		apply(t, c, p)
	}
	for _, p := range pods {
		rolled(t, c, p)
	}
	expect(t, c.Kubeconfig, 0, []string{
		"– metrics   mimir is not installed",
		"✓ logs      line written and read back from Loki",
		"✓ profiles  kalypso_probe_hot at 74 % in Pyroscope",
		"what is installed works, as far as it was tried",
	}, "verify")
	expect(t, c.Kubeconfig, 1, []string{"error: metrics cannot be proved: mimir is not installed", "fix:   kalypsoctl install mimir"}, "verify", "metrics")
	expect(t, c.Kubeconfig, 0, []string{`"schema": "kalypso.verify/v1"`, `"kept": "`}, "verify", "logs", "--keep", "-o", "json")

	history(t, c)

	// Without Loki there is nobody to ask.
	if _, err := c.Kubectl(t.Context(), "", "--namespace=loki", "scale", "--replicas=0", "deployment/loki-gateway"); err != nil {
		t.Fatal(err)
	}
	expect(t, c.Kubeconfig, 3, []string{"✗ logs", "reach loki-gateway.loki:80: no ready pod is behind Service loki/loki-gateway", "fix     kalypsoctl status", "not proved: logs"}, "verify", "logs", "--timeout", "5s")
}

// history pushes what an agent would, and reads it through kalypsoctl's tunnel.
func history(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	k, err := kube.Connect(t.Context(), kube.Config{Kubeconfig: c.Kubeconfig})
	if err != nil {
		t.Fatal(err)
	}
	address, closeIt, err := k.Forward(t.Context(), "pyroscope", "pyroscope", 4040)
	if err != nil {
		t.Fatal(err)
	}
	defer closeIt()
	sender, err := otlp.NewSender(transport.Config{Endpoint: address, Insecure: true}, otlp.GRPC)
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	stack := func(name string) *profiler.Stack {
		l := &profiler.Location{Module: &profiler.Module{Path: "/bin/checkout"}, Frames: []profiler.Frame{{Function: name}}}
		return &profiler.Stack{Stop: profiler.StopRoot, Locations: []*profiler.Location{l}}
	}
	requests, _, err := otlp.NewEncoder(otlp.EncoderConfig{}).Encode([]*profiler.Profile{{
		Workload: &profiler.Workload{Attributes: []profiler.Attribute{
			{Key: "k8s.deployment.name", Value: "checkout"}, {Key: "k8s.namespace.name", Value: "shop"}, {Key: "k8s.node.name", Value: "node-1"},
			{Key: "k8s.pod.name", Value: "checkout-1"}, {Key: "service.name", Value: "checkout"},
		}},
		Start: time.Now().Add(-20 * time.Minute), Duration: 15 * time.Second, Frequency: 100, Event: "cpu-clock",
		Samples: []profiler.Sample{{Count: 300, Stack: stack("price")}, {Count: 100, Stack: stack("sell")}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range requests {
		if _, err := sender.Send(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "x.pb.gz")
	expect(t, c.Kubeconfig, 0, []string{"100.0 %    0.00  shop/checkout-1", "deploy/checkout · ", "from Pyroscope", "4.0 s of CPU time", "75.0 %   75.0 %  native  price (checkout)", "losses not known"},
		"profile", "deploy/checkout", "-n", "shop", "--from", "-30m", "--by", "pod", "-o", file)
	expect(t, c.Kubeconfig, 0, []string{"checkout;price 3000\ncheckout;sell 1000\n"}, "profile", "deploy/checkout", "-n", "shop", "--from", "-30m")
	expect(t, c.Kubeconfig, 1, []string{"error: Pyroscope has nothing of node/node-1 from ", "cause: it has some from "}, "profile", "node/node-1", "--from", "-3h", "--to", "-2h")
}
