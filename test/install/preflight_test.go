package install

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/chart"

	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/test/cluster"
	"github.com/kalypso-dev/kalypso/test/cluster/upstream"
	"github.com/kalypso-dev/kalypso/test/internal/script"
)

const notHealthy = 3

// oldRelease installs what somebody installed with Helm long ago.
func (b *bench) oldRelease(t *testing.T, name, namespace string) {
	t.Helper()
	c, err := kube.Connect(t.Context(), kube.Config{Kubeconfig: b.Kubeconfig})
	if err != nil {
		t.Fatal(err)
	}
	cfg := new(action.Configuration)
	if err := cfg.Init(c.Getter(namespace), namespace, "secret", t.Logf); err != nil {
		t.Fatal(err)
	}
	in := action.NewInstall(cfg)
	in.ReleaseName, in.Namespace, in.CreateNamespace = name, namespace, true
	_, err = in.Run(&chart.Chart{
		Metadata: &chart.Metadata{APIVersion: chart.APIVersionV2, Name: name, Version: "5.0.14"},
		Templates: []*chart.File{{Name: "templates/objects.yaml", Data: []byte(`apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: ` + name + `}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: ` + name + `}
spec:
  selector: {matchLabels: {app: ` + name + `}}
  template:
    metadata: {labels: {app: ` + name + `}}
    spec:
      containers: [{name: server, image: "example.org/` + name + `:1", resources: {requests: {memory: 256Mi}}}]
      volumes: [{name: data, persistentVolumeClaim: {claimName: ` + name + `}}]
`)}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
}

// shell types a command line as a person would, who has kubectl and kalypsoctl.
func (b *bench) shell(t *testing.T, line string) string {
	t.Helper()
	bin := t.TempDir()
	kubectl := "#!/bin/sh\nexec " + filepath.Join(os.Getenv(cluster.Variable), "kubectl") + " \"$@\"\n"
	if err := os.WriteFile(filepath.Join(bin, "kubectl"), []byte(kubectl), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-ec", line)
	cmd.Env = append(os.Environ(), "HOME="+bin, "KUBECONFIG="+b.kubeconfig, "KALYPSO_CHARTS="+b.charts, "PATH="+bin+":"+script.Dir()+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

var fixLine = regexp.MustCompile(`(?m)^\s+fix\s+(.*)$`)

// fixOf runs one check and gives its fix.
func (b *bench) fixOf(t *testing.T, id string) string {
	t.Helper()
	text := b.run(t, notHealthy, "", "preflight", "--only", id)
	m := fixLine.FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no fix in:\n%s", text)
	}
	return m[1]
}

// Too little memory, no storage class, an old release of MinIO: three findings,
// each with a fix that works when it is typed.
func TestPreflightFixesWork(t *testing.T) {
	t.Parallel()
	c := cluster.Start(t, cluster.Options{Name: "preflight", Simulated: 3, CPU: "2", Memory: "1700Mi"})
	b := &bench{Cluster: c, charts: upstream.Charts(t), kubeconfig: c.Kubeconfig}
	b.oldRelease(t, "minio", "minio")
	b.kubectl(t, "", "-n", "minio", "wait", "--for=jsonpath={.status.phase}=Bound", "pvc/minio", "--timeout=60s")
	b.kubectl(t, "", "delete", "storageclass", "--all")

	text := b.run(t, notHealthy, "", "preflight")
	t.Log(text)
	holds(t, text, "there is no storage class", "release minio", "no room for", " 3 failed")

	b.shell(t, b.fixOf(t, "storage"))
	b.run(t, done, "", "preflight", "--only", "storage")

	// One command mends both: what is not the profile is the old release.
	fix := b.fixOf(t, "memory")
	if other := b.fixOf(t, "ownership"); other != fix {
		t.Errorf("two commands that mend one thing each, and refuse because of the other:\n%s\n%s", fix, other)
	}
	if want := "kalypsoctl install --profile small --adopt minio"; !strings.HasPrefix(fix, want) {
		t.Fatalf("the fix is %q, want %q", fix, want)
	}
	holds(t, b.shell(t, fix+" --yes --no-verify"), "Ready in ")
	holds(t, b.run(t, done, "", "preflight"), ", 0 failed")
	holds(t, b.run(t, done, "", "status"), "healthy")
}

// Somebody with few rights is told which are missing.
func TestPreflightTellsMissingRights(t *testing.T) {
	b := newBench(t, "rights")
	file, err := b.KubeconfigFor(cluster.User{Name: "jane"})
	if err != nil {
		t.Fatal(err)
	}
	text := b.as(file).run(t, notHealthy, "", "preflight", "--only", "rbac")
	holds(t, text, "you may not:", "cluster-wide", "--clusterrole cluster-admin --user 'jane'")
	_, command, _ := strings.Cut(b.as(file).fixOf(t, "rbac"), "an administrator types: ")
	b.shell(t, command)
	b.as(file).run(t, done, "", "preflight", "--only", "rbac")
}

// A namespace that is being deleted is told with what keeps it, and how to free
// it.
func TestPreflightFreesANamespace(t *testing.T) {
	b := newBench(t, "freed")
	b.kubectl(t, "{apiVersion: v1, kind: Namespace, metadata: {name: tempo}}", "apply", "-f", "-")
	b.kubectl(t, "{apiVersion: v1, kind: ConfigMap, metadata: {name: held, namespace: tempo, finalizers: [example.org/held]}}", "apply", "-f", "-")
	b.kubectl(t, "", "delete", "namespace", "tempo", "--wait=false")
	b.kubectl(t, "", "wait", "--for=condition=NamespaceFinalizersRemaining", "namespace/tempo", "--timeout=60s")
	holds(t, b.run(t, notHealthy, "", "preflight", "--only", "namespaces"), "tempo is being deleted", "example.org/held")
	b.shell(t, b.fixOf(t, "namespaces"))
	b.kubectl(t, "", "wait", "--for=delete", "namespace/tempo", "--timeout=60s")
	b.run(t, done, "", "preflight", "--only", "namespaces")
}

// A webhook whose server is gone refuses everything.
func TestPreflightFindsAWebhookThatIsLeft(t *testing.T) {
	b := newBench(t, "left")
	b.kubectl(t, `{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingWebhookConfiguration, metadata: {name: left},
webhooks: [{name: left.example.org, admissionReviewVersions: [v1], sideEffects: None, failurePolicy: Fail,
clientConfig: {service: {name: gone, namespace: default}, caBundle: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t},
rules: [{apiGroups: [example.org], apiVersions: [v1], operations: [CREATE], resources: [things]}]}]}`, "apply", "-f", "-")
	holds(t, b.run(t, notHealthy, "", "preflight", "--only", "webhooks"), "left: webhook left.example.org: no ready pod is behind Service default/gone")
	line, _, _ := strings.Cut(b.fixOf(t, "webhooks"), "     ")
	b.shell(t, line)
	b.run(t, done, "", "preflight", "--only", "webhooks")
}

func TestStatus(t *testing.T) {
	b := newBench(t, "status")
	holds(t, b.run(t, notHealthy, "", "status"), "not installed", "kalypsoctl install")
	holds(t, b.run(t, done, "", "version"), "kalypsoctl v", "Kubernetes v", "agents  none", "charts  none")
	b.run(t, done, "", "install", "--yes", "--profile", "small", "tempo")
	text := b.run(t, done, "", "status", "--wait")
	holds(t, text, ": healthy", "tempo ", "not installed: cert-manager")
	holds(t, b.run(t, done, "", "version", "-o", "json"), `"component": "minio"`, `"component": "tempo"`, `"skew": []`)
	for line := range strings.Lines(text) {
		if strings.HasSuffix(strings.TrimRight(line, "\n"), " ") {
			t.Errorf("a line ends in blanks: %q", line)
		}
	}
	// A pod that no node takes: there is none of this kind.
	b.kubectl(t, "", "-n", "tempo", "patch", "statefulset", "tempo", "-p", `{"spec":{"template":{"spec":{"nodeSelector":{"kind":"none"}}}}}`)
	holds(t, b.run(t, timedOut, "", "status", "--wait", "--timeout", "12s"), "not healthy: 1 starting", "tempo-0: ", "error: not everything is ready in time")
	holds(t, b.run(t, notHealthy, "", "status", "--wait"), "not healthy: 1 broken", "no node takes it")
	holds(t, b.run(t, notHealthy, "", "status", "-o", "json"), `"schema": "kalypso.status/v1"`, `"health": "broken"`)
}
