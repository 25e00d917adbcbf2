// Package install runs kalypsoctl against a real API server: the program itself,
// built once, as a person would run it. Nodes are simulated, so that pods are ready
// by decree, or not as the annotation of test/cluster says; the webhooks of pods
// are answered by test/cluster, which allows everything.
//
// Upstream charts are stand-ins, or with KALYPSO_UPSTREAM_CHARTS=DIR the real
// ones.
package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/test/cluster"
	"github.com/kalypso-dev/kalypso/test/cluster/upstream"
	"github.com/kalypso-dev/kalypso/test/internal/script"
)

func TestMain(m *testing.M) {
	if os.Getenv(cluster.Variable) == "" {
		os.Exit(m.Run()) // everything is skipped: build nothing
	}
	os.Exit(script.Main(m, "kalypsoctl", "../../cmd/kalypsoctl", nil))
}

// Exit codes, of docs/reference/kalypsoctl.md.
const (
	done        = 0
	failed      = 1
	changes     = 4
	timedOut    = 5
	noContext   = 11
	expired     = 13
	forbidden   = 15
	foreign     = 20
	noNode      = 21
	interrupted = 130
)

// bench is a cluster with what is run against it.
type bench struct {
	*cluster.Cluster
	charts     string
	kubeconfig string
}

func newBench(t *testing.T, name string) *bench {
	t.Helper()
	t.Parallel()
	c := cluster.Start(t, cluster.Options{Name: name, Simulated: 3})
	return &bench{Cluster: c, charts: upstream.Charts(t), kubeconfig: c.Kubeconfig}
}

// as gives the same bench to somebody else.
func (b *bench) as(kubeconfig string) *bench {
	other := *b
	other.kubeconfig = kubeconfig
	return &other
}

// call is one run of kalypsoctl.
type call struct {
	cmd    *exec.Cmd
	out    output
	closed chan struct{}
}

// output is what a run writes, to be read while it runs.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// start starts kalypsoctl with settings, a YAML text that may be empty.
func (b *bench) start(t *testing.T, settings string, args ...string) *call {
	t.Helper()
	dir := t.TempDir()
	if settings != "" {
		file := filepath.Join(dir, "kalypso.yaml")
		if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--file", file)
	}
	if args[0] == "install" && !slices.Contains(args, "--no-verify=false") {
		// Simulated pods answer nothing that could be proved.
		args = append(args, "--no-verify")
	}
	c := &call{cmd: exec.Command(filepath.Join(script.Dir(), "kalypsoctl"), args...), closed: make(chan struct{})}
	c.cmd.Dir = dir
	c.cmd.Env = append(os.Environ(), "HOME="+dir, "KUBECONFIG="+b.kubeconfig, "KALYPSO_CHARTS="+b.charts)
	c.cmd.Stdout, c.cmd.Stderr = &c.out, &c.out
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(c.closed)
		_ = c.cmd.Wait() // the exit code is in ProcessState
	}()
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		<-c.closed
	})
	return c
}

// says waits until the run has written a text.
func (c *call) says(t *testing.T, text string) {
	t.Helper()
	deadline := time.After(2 * time.Minute)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !strings.Contains(c.out.String(), text) {
		select {
		case <-c.closed:
			if !strings.Contains(c.out.String(), text) {
				t.Fatalf("it ended before it said %q:\n%s", text, &c.out)
			}
		case <-deadline:
			t.Fatalf("it does not say %q:\n%s", text, &c.out)
		case <-tick.C:
		}
	}
}

// ends waits for the end and checks the exit code.
func (c *call) ends(t *testing.T, code int) string {
	t.Helper()
	select {
	case <-c.closed:
	case <-time.After(8 * time.Minute):
		_ = c.cmd.Process.Kill()
		t.Fatalf("%v does not end:\n%s", c.cmd.Args[1:], &c.out)
	}
	if got := c.cmd.ProcessState.ExitCode(); got != code {
		t.Fatalf("%v ended with %d, want %d:\n%s", c.cmd.Args[1:], got, code, &c.out)
	}
	return c.out.String()
}

// run runs kalypsoctl to its end.
func (b *bench) run(t *testing.T, code int, settings string, args ...string) string {
	t.Helper()
	return b.start(t, settings, args...).ends(t, code)
}

// holds checks that a text has all words.
func holds(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q is not in:\n%s", w, text)
		}
	}
}

// releases are those that Helm knows: "NAMESPACE/NAME" → "STATUS REVISION".
func (b *bench) releases(t *testing.T) map[string]string {
	t.Helper()
	list, err := b.Client.CoreV1().Secrets("").List(t.Context(), metav1.ListOptions{LabelSelector: "owner=helm"})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, s := range list.Items {
		if s.Labels["status"] != "superseded" {
			out[s.Namespace+"/"+s.Labels["name"]] = s.Labels["status"] + " " + s.Labels["version"]
		}
	}
	return out
}

// kubectl runs kubectl and gives what it prints.
func (b *bench) kubectl(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	out, err := b.Kubectl(t.Context(), stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// unready are pods that are neither ready nor complete.
func (b *bench) unready(t *testing.T) []string {
	t.Helper()
	pods, err := b.Client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, p := range pods.Items {
		ready := p.Status.Phase == "Succeeded"
		for _, c := range p.Status.Conditions {
			ready = ready || c.Type == "Ready" && c.Status == "True"
		}
		if !ready {
			out = append(out, p.Namespace+"/"+p.Name)
		}
	}
	return out
}

// versions are the resource versions of everything that a release can be made of.
func (b *bench) versions(t *testing.T) string {
	t.Helper()
	return b.kubectl(t, "", "get", "deployments,statefulsets,daemonsets,services,configmaps,pvc,jobs,secrets,crds,namespaces", "-A",
		"-o", `jsonpath={range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name} {.metadata.generation} {.metadata.uid}{"\n"}{end}`)
}

func outcome(what string) string { return fmt.Sprintf("{%s: %s}", cluster.Outcome, what) }

// The whole stack, from nothing to nothing.
func TestStack(t *testing.T) {
	b := newBench(t, "stack")
	t.Run("install", func(t *testing.T) {
		began := time.Now()
		text := b.run(t, done, "", "install", "--yes", "--profile", "small")
		t.Logf("%.0f s\n%s", time.Since(began).Seconds(), text)
		holds(t, text, "Ready in ")
		releases := b.releases(t)
		for _, c := range component.All() {
			if got := releases[c.Namespace+"/"+c.Release]; got != "deployed 1" {
				t.Errorf("release %s is %q", c.Release, got)
			}
		}
		if unready := b.unready(t); len(unready) > 0 {
			t.Errorf("not ready: %v", unready)
		}
		inOrder(t, text)
	})
	t.Run("a second run changes nothing", func(t *testing.T) {
		before, releases := b.versions(t), b.releases(t)
		holds(t, b.run(t, done, "", "install", "--yes"), "Nothing to do", "profile small")
		if after := b.versions(t); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		for name, was := range releases {
			if now := b.releases(t)[name]; now != was {
				t.Errorf("release %s was %s and is %s", name, was, now)
			}
		}
	})
	t.Run("a changed value changes one release, and stays", func(t *testing.T) {
		const value = "loki:\n  loki: {gateway: {replicas: 2}}\n"
		holds(t, b.run(t, changes, value, "diff", "--exit-code"), "Deployment loki-gateway", "replicas")
		b.run(t, done, value, "upgrade", "--yes")
		b.run(t, done, "", "diff", "--exit-code")
		holds(t, b.run(t, done, "", "install", "--yes"), "Nothing to do")
		for name, now := range b.releases(t) {
			want := "deployed 1"
			if name == "loki/kalypso-loki" {
				want = "deployed 2"
			}
			if now != want {
				t.Errorf("release %s is %q, want %q", name, now, want)
			}
		}
		if got := b.kubectl(t, "", "-n", "loki", "get", "deployment", "loki-gateway", "-o", "jsonpath={.spec.replicas}"); got != "2" {
			t.Errorf("the gateway has %s replicas", got)
		}
	})
	t.Run("what somebody deleted is made again", func(t *testing.T) {
		b.kubectl(t, "", "-n", "tempo", "delete", "service", "tempo")
		holds(t, b.run(t, done, "", "install", "--yes"), "missing")
		b.kubectl(t, "", "-n", "tempo", "get", "service", "tempo")
	})
	t.Run("uninstall leaves volumes, their credentials and CRDs, and says so", func(t *testing.T) {
		text := b.run(t, done, "", "uninstall", "--yes")
		t.Log(text)
		holds(t, text, "Left on the cluster", "cert-manager.io", "opentelemetry.io", "data-kalypso-minio-0", "Removed in ")
		if left := b.releases(t); len(left) > 0 {
			t.Errorf("releases are left: %v", left)
		}
		left := b.kubectl(t, "", "get", "deployments,statefulsets,daemonsets,services,validatingwebhookconfigurations,mutatingwebhookconfigurations", "-A", "-o", "name")
		if left != "service/kubernetes\n" {
			t.Errorf("left:\n%s", left)
		}
		if pvcs := b.kubectl(t, "", "get", "pvc", "-A", "-o", "name"); !strings.Contains(pvcs, "minio") {
			t.Errorf("the store's volume is gone: %s", pvcs)
		}
	})
	t.Run("installed again it finds its volumes", func(t *testing.T) {
		secret := func() string {
			return b.kubectl(t, "", "-n", "minio", "get", "secret", "kalypso-s3", "-o", "jsonpath={.data.rootPassword}")
		}
		before := secret()
		b.run(t, done, "", "install", "--yes", "--profile", "small", "minio")
		if secret() != before {
			t.Error("the store has another password than its volume")
		}
	})
	t.Run("uninstall takes data and CRDs when it is told to", func(t *testing.T) {
		b.run(t, done, "", "uninstall", "--yes", "--delete-data", "--delete-crds")
		if left := b.kubectl(t, "", "get", "pvc,crds,secrets", "-A", "-o", "name"); left != "" {
			t.Errorf("left:\n%s", left)
		}
	})
}

// inOrder checks that nothing was sent before what it needs was ready.
func inOrder(t *testing.T, text string) {
	t.Helper()
	began, ready := map[string]int{}, map[string]int{}
	for i, line := range strings.Split(text, "\n") {
		for _, c := range component.All() {
			if !slices.Contains(strings.Fields(line), c.Name) || strings.Contains(line, " install") && !strings.Contains(line, ":") {
				continue
			}
			if _, seen := began[c.Name]; !seen {
				began[c.Name] = i
			}
			ready[c.Name] = i
		}
	}
	for _, c := range component.All() {
		for _, need := range c.Needs {
			if began[c.Name] < ready[need] {
				t.Errorf("%s began at line %d, and %s was ready at line %d", c.Name, began[c.Name], need, ready[need])
			}
		}
	}
}

// What uninstall was not asked to take stays: data of a component that went
// earlier, and whatever others put into a namespace of the stack.
func TestUninstallTakesOnlyItsOwn(t *testing.T) {
	b := newBench(t, "own")
	b.run(t, done, "", "install", "--yes", "--no-verify", "--profile", "small", "cert-manager", "minio", "tempo")
	b.kubectl(t, `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: users, namespace: tempo}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
---
apiVersion: cert-manager.io/v1
kind: Issuer
metadata: {name: users, namespace: cert-manager}
spec: {selfSigned: {}}
`, "apply", "-f", "-")
	b.run(t, done, "", "uninstall", "--yes", "minio")
	text := b.run(t, done, "", "uninstall", "--yes", "--delete-data", "--delete-crds", "tempo")
	holds(t, text, "namespace tempo", "users is not of the stack")
	left := b.kubectl(t, "", "get", "pvc", "-A", "-o", "jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name} {end}")
	if left != "minio/data-kalypso-minio-0 tempo/users " {
		t.Errorf("volumes left: %s", left)
	}
	holds(t, b.run(t, done, "", "uninstall", "--yes", "--delete-data"), "namespace cert-manager", "users is not of the stack")
	left = b.kubectl(t, "", "get", "pvc,issuers", "-A", "-o", "jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name} {end}")
	if left != "tempo/users cert-manager/users " {
		t.Errorf("left: %s", left)
	}
}

// A failed hook is told as one, with what to look at, and the next run goes on.
func TestFailedHook(t *testing.T) {
	b := newBench(t, "hook")
	check := func(what string) string {
		return "cert-manager:\n  cert-manager: {startupapicheck: {backoffLimit: 0, podAnnotations: " + outcome(what) + "}}\n"
	}
	text := b.run(t, failed, check(cluster.Failed), "install", "--yes", "--profile", "small", "cert-manager")
	holds(t, text, "a hook of cert-manager failed", "cause:", "fix:")
	if got := b.releases(t)["cert-manager/cert-manager"]; !strings.HasPrefix(got, "failed") {
		t.Errorf("the release is %q", got)
	}
	holds(t, b.run(t, done, check(cluster.Slow), "install", "--yes", "cert-manager"), "Ready in ")
	if got := b.releases(t)["cert-manager/cert-manager"]; !strings.HasPrefix(got, "deployed") {
		t.Errorf("the release is %q", got)
	}
}

// Pods that are ready do not make a webhook that answers: what needs it waits.
func TestWebhookNotReady(t *testing.T) {
	b := newBench(t, "webhook")
	if err := b.AnswerWebhooks(false); err != nil {
		t.Fatal(err)
	}
	text := b.run(t, timedOut, "", "install", "--yes", "--profile", "small", "--timeout", "20s", "otel-operator")
	holds(t, text, "webhook", "cause:", "fix:")
	if got, found := b.releases(t)["otel-system/kalypso-otel-operator"]; found {
		t.Errorf("the operator was sent before: %s", got)
	}
	c := b.start(t, "", "install", "--yes", "otel-operator")
	c.says(t, "its webhook lets nothing in yet")
	if err := b.AnswerWebhooks(true); err != nil {
		t.Fatal(err)
	}
	holds(t, c.ends(t, done), "Ready in ")
}

// Ctrl-C leaves what is there, and the next run goes on from it.
func TestInterrupted(t *testing.T) {
	b := newBench(t, "interrupted")
	store := func(what string) string {
		return "loki:\n  loki: {singleBinary: {podAnnotations: " + outcome(what) + "}}\n"
	}
	c := b.start(t, store(cluster.Starting), "install", "--yes", "--profile", "small", "loki")
	c.says(t, "loki-0")
	if err := c.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	holds(t, c.ends(t, interrupted), "What was installed stays")
	minio := b.releases(t)["minio/kalypso-minio"]
	text := b.run(t, done, store(cluster.Slow), "install", "--yes", "loki")
	holds(t, text, "Ready in ")
	if now := b.releases(t)["minio/kalypso-minio"]; now != minio {
		t.Errorf("the release that was done was %s and is %s", minio, now)
	}
	if unready := b.unready(t); len(unready) > 0 {
		t.Errorf("not ready: %v", unready)
	}
}

// A run that was killed while Helm worked leaves a release that Helm would not
// touch again: "another operation (install/upgrade/rollback) is in progress".
func TestKilled(t *testing.T) {
	b := newBench(t, "killed")
	check := func(what string) string {
		return "cert-manager:\n  cert-manager: {startupapicheck: {podAnnotations: " + outcome(what) + "}}\n"
	}
	c := b.start(t, check(cluster.Starting), "install", "--yes", "--profile", "small", "cert-manager")
	b.eventually(t, "the hook runs", func(ctx context.Context) bool {
		out, err := b.Kubectl(ctx, "", "-n", "cert-manager", "get", "jobs", "-o", "name")
		return err == nil && out != ""
	})
	if err := c.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-c.closed
	if got := b.releases(t)["cert-manager/cert-manager"]; !strings.HasPrefix(got, "pending-install") {
		t.Fatalf("the release is %q", got)
	}
	text := b.run(t, done, check(cluster.Slow), "install", "--yes", "cert-manager")
	holds(t, text, "was interrupted", "Ready in ")
	if got := b.releases(t)["cert-manager/cert-manager"]; !strings.HasPrefix(got, "deployed") {
		t.Errorf("the release is %q", got)
	}
}

// What cannot heal ends a run at once, says why, and the next run goes on.
func TestHalfFailed(t *testing.T) {
	b := newBench(t, "half")
	values := func(what string) string {
		return "pyroscope:\n  pyroscope: {pyroscope: {podAnnotations: " + outcome(what) + "}}\n"
	}
	for what, cause := range map[string]string{
		cluster.ImageNotFound: "image",
		cluster.NoConfig:      `configmap "settings"`,
	} {
		began := time.Now()
		text := b.run(t, failed, values(what), "install", "--yes", "--profile", "small", "pyroscope")
		holds(t, text, "pyroscope-0", cause, "fix:")
		if took := time.Since(began); took > 2*time.Minute {
			t.Errorf("%s: it took %s", what, took)
		}
	}
	holds(t, b.run(t, done, values(cluster.Slow), "install", "--yes", "pyroscope"), "Ready in ")
}

// An upgrade that does not get ready is brought back: the StatefulSet's pod that
// never got ready, too, which Kubernetes would leave.
func TestRollBack(t *testing.T) {
	b := newBench(t, "back")
	b.run(t, done, "", "install", "--yes", "--profile", "small", "pyroscope")
	settings := "pyroscope:\n  pyroscope: {pyroscope: {podAnnotations: " + outcome(cluster.ImageNotFound) + "}}\n"
	text := b.run(t, failed, settings, "upgrade", "--yes", "--rollback-on-failure", "pyroscope")
	t.Log(text)
	holds(t, text, "pyroscope-0", "as it was before: chart", "What was rolled back is as it was before")
	if got := b.releases(t)["pyroscope/kalypso-pyroscope"]; got != "deployed 3" {
		t.Errorf("the release is %q", got)
	}
	holds(t, b.run(t, done, "", "status"), ": healthy")
	holds(t, b.run(t, done, "", "install", "--yes", "pyroscope"), "Nothing to do")
}

// document reads what a verb prints for programs, between what it says on the way
// and the error.
func document(t *testing.T, text string) map[string]any {
	t.Helper()
	from := strings.Index(text, "{\n")
	if from < 0 {
		t.Fatalf("no document in:\n%s", text)
	}
	var doc map[string]any
	if err := json.NewDecoder(strings.NewReader(text[from:])).Decode(&doc); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	return doc
}

// Verbs that change a cluster tell programs what they did, and why they did not.
func TestDocuments(t *testing.T) {
	b := newBench(t, "documents")
	for _, tt := range []struct {
		code         int
		args         string
		schema, ends string
		states       string // of components
		more         string // JSON that the document has
	}{
		{done, "install --yes --profile small -o json --dry-run tempo minio", "kalypso.install/v1", "planned", "<nil> <nil>", `"action": "install"`},
		{done, "install --yes --profile small -o json --only tempo,minio", "kalypso.install/v1", "done", "done done", `"new_secrets": [`},
		{done, "install --yes -o json --only tempo,minio", "kalypso.install/v1", "done", "kept kept", `"action": "keep"`},
		{done, "diff -o json tempo --set tempo.tempo.replicas=2", "kalypso.diff/v1", "", "<nil>", `"change": "changed"`},
		{noNode, "upgrade --yes -o json tempo --set tempo.tempo.tempo.resources.requests.memory=900Gi --set tempo.tempo.tempo.resources.limits.memory=900Gi", "kalypso.upgrade/v1", "failed", "failed", `no node takes it`},
		{done, "uninstall --yes -o json tempo", "kalypso.uninstall/v1", "done", "done", `"wave": 1`},
	} {
		text := b.run(t, tt.code, "", strings.Fields(tt.args)...)
		doc := document(t, text)
		var states []string
		for _, c := range doc["components"].([]any) {
			states = append(states, fmt.Sprint(c.(map[string]any)["state"]))
		}
		if doc["schema"] != tt.schema || tt.ends != "" && doc["result"] != tt.ends || strings.Join(states, " ") != tt.states || !strings.Contains(text, tt.more) {
			t.Errorf("%s: %v, %v, %v, want %q:\n%s", tt.args, doc["schema"], doc["result"], states, tt.more, text)
		}
	}
}

// Before Argo CD takes over: what would it change?
func TestArgoCheck(t *testing.T) {
	b := newBench(t, "argo")
	holds(t, b.run(t, failed, "", "argocd", "--check", "--profile", "small"), "installed nothing", "argocd app diff")
	b.run(t, done, "", "install", "--yes", "--profile", "small", "--set", "tempo.tempo.replicas=2", "--only", "tempo")
	holds(t, b.run(t, changes, "", "argocd", "--check", "--profile", "small"), "StatefulSet tempo", "-  replicas: 2")
	holds(t, b.run(t, done, "", "argocd", "--check", "--profile", "small", "--set", "tempo.tempo.replicas=2"), "Argo CD would change nothing")
}

// Each kubeconfig leads to its own cluster, alone or joined to another.
func TestTwoKubeconfigs(t *testing.T) {
	one := newBench(t, "one")
	two := cluster.Start(t, cluster.Options{Name: "two", Simulated: 1})
	both := one.as(one.Kubeconfig + string(os.PathListSeparator) + two.Kubeconfig)
	both.run(t, done, "", "install", "--yes", "--profile", "small", "--context", "two", "istio-base")
	if got := one.releases(t); len(got) > 0 {
		t.Errorf("the cluster that was not meant has %v", got)
	}
	if got := (&bench{Cluster: two}).releases(t); got["istio-system/istio-base"] != "deployed 1" {
		t.Errorf("the cluster that was meant has %v", got)
	}
	holds(t, both.run(t, noContext, "", "install", "--yes", "--context", "twoo", "istio-base"), "twoo", "--context two")
}

// Who may do nothing is told so before anything is changed; who may only look is
// told what he lacks.
func TestRestricted(t *testing.T) {
	b := newBench(t, "restricted")
	for name, role := range map[string]string{"nobody": "", "viewer": "view"} {
		kubeconfig, err := b.KubeconfigFor(cluster.User{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		if role != "" {
			b.kubectl(t, "", "create", "clusterrolebinding", name, "--clusterrole="+role, "--user="+name)
		}
		text := b.as(kubeconfig).run(t, forbidden, "", "install", "--yes", "--profile", "small", "istio-base")
		holds(t, text, "error:", "fix:", "preflight")
		if got := b.releases(t); len(got) > 0 {
			t.Errorf("%s installed %v", name, got)
		}
	}
	late, err := b.KubeconfigFor(cluster.User{Name: "late", Groups: []string{"system:masters"}, Expired: true})
	if err != nil {
		t.Fatal(err)
	}
	holds(t, b.as(late).run(t, expired, "", "install", "--yes", "istio-base"), "valid until", "fix:")
}

// What others made is refused, named, and taken over when that is asked for.
func TestAdopt(t *testing.T) {
	b := newBench(t, "adopt")
	b.kubectl(t, `
apiVersion: v1
kind: Namespace
metadata: {name: tempo, labels: {team: observability}}
---
apiVersion: v1
kind: Service
metadata: {name: tempo, namespace: tempo}
spec: {selector: {app: tempo}, ports: [{port: 3200}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: other, namespace: tempo}
spec:
  selector: {matchLabels: {app: other}}
  template:
    metadata: {labels: {app: other}}
    spec: {containers: [{name: other, image: example.org/other:1}]}
`, "apply", "-f", "-")
	text := b.run(t, foreign, "", "install", "--yes", "--profile", "small", "tempo")
	holds(t, text, "tempo", "--adopt tempo")
	if got := b.releases(t); len(got) > 0 {
		t.Errorf("something was installed beside it: %v", got)
	}
	holds(t, b.run(t, done, "", "install", "--yes", "--profile", "small", "--adopt", "tempo", "tempo"), "Ready in ")
	b.kubectl(t, "", "-n", "tempo", "get", "deployment", "other")
	holds(t, b.run(t, done, "", "install", "--yes", "tempo"), "Nothing to do")
}

// A namespace that does not go is waited for, and told with what keeps it.
func TestTerminating(t *testing.T) {
	b := newBench(t, "terminating")
	b.kubectl(t, "{apiVersion: v1, kind: Namespace, metadata: {name: tempo}}", "apply", "-f", "-")
	b.kubectl(t, "{apiVersion: v1, kind: ConfigMap, metadata: {name: held, namespace: tempo, finalizers: [example.org/held]}}", "apply", "-f", "-")
	b.kubectl(t, "", "delete", "namespace", "tempo", "--wait=false")
	c := b.start(t, "", "install", "--yes", "--profile", "small", "tempo")
	c.says(t, "being deleted")
	b.kubectl(t, "", "-n", "tempo", "patch", "configmap", "held", "--type=merge", "-p", `{"metadata":{"finalizers":null}}`)
	holds(t, c.ends(t, done), "Ready in ")
}

// eventually polls for three minutes.
func (b *bench) eventually(t *testing.T, what string, is func(ctx context.Context) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !is(ctx) {
		select {
		case <-ctx.Done():
			t.Fatal(errors.New("waited in vain until " + what))
		case <-tick.C:
		}
	}
}
