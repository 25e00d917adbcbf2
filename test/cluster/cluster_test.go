package cluster

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// apply applies YAML and waits for nothing.
func apply(t *testing.T, c *Cluster, yaml string) {
	t.Helper()
	if _, err := c.Kubectl(t.Context(), yaml, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// eventually polls for half a minute.
func eventually(t *testing.T, what string, done func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := wait(ctx, what, done); err != nil {
		t.Fatal(err)
	}
}

const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: default}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: example.org/web:1}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: store, namespace: default}
spec:
  serviceName: store
  selector: {matchLabels: {app: store}}
  template:
    metadata: {labels: {app: store}}
    spec: {containers: [{name: store, image: example.org/store:1}]}
  volumeClaimTemplates:
    - metadata: {name: data}
      spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: once, namespace: default}
spec:
  template:
    spec: {restartPolicy: Never, containers: [{name: once, image: example.org/once:1}]}
---
apiVersion: batch/v1
kind: Job
metadata: {name: later, namespace: default}
spec:
  template:
    metadata: {annotations: {test.kalypso.dev/outcome: slow}}
    spec: {restartPolicy: Never, containers: [{name: once, image: example.org/once:1}]}
`

func TestSimulatedNodes(t *testing.T) {
	c := Start(t, Options{Name: "simulated", Simulated: 2, Memory: "3Gi"})
	ctx := t.Context()
	t.Run("pods become ready, volumes are bound, jobs complete", func(t *testing.T) {
		apply(t, c, deployment)
		for _, args := range [][]string{
			{"rollout", "status", "deployment/web", "--timeout=30s"},
			{"rollout", "status", "statefulset/store", "--timeout=30s"},
			{"wait", "--for=condition=Complete", "job/once", "job/later", "--timeout=30s"},
			{"wait", "--for=jsonpath={.status.phase}=Bound", "pvc/data-store-0", "--timeout=30s"},
		} {
			if _, err := c.Kubectl(ctx, "", args...); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("nodes are as large as they were asked for", func(t *testing.T) {
		list, err := c.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range list.Items {
			if got := n.Status.Allocatable.Memory().String(); got != "3Gi" {
				t.Errorf("%s has %s", n.Name, got)
			}
		}
		if len(list.Items) != 2 {
			t.Errorf("%d nodes", len(list.Items))
		}
	})
	for outcome, want := range map[string]string{
		Slow:          "Running ready",
		NotReady:      "Running",
		Starting:      "Pending ContainerCreating",
		Failed:        "Failed exit 1",
		CrashLoop:     "Running CrashLoopBackOff",
		ImageNotFound: "Pending ImagePullBackOff",
		NoConfig:      "Pending CreateContainerConfigError",
	} {
		t.Run("a pod can be "+outcome, func(t *testing.T) {
			apply(t, c, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, namespace: default, annotations: {%[2]s: %[1]s}}
spec: {containers: [{name: main, image: example.org/main:1}]}
`, outcome, Outcome))
			eventually(t, "become "+want, func(ctx context.Context) error {
				pod, err := c.Client.CoreV1().Pods("default").Get(ctx, outcome, metav1.GetOptions{})
				if err == nil && summary(pod) != want {
					err = fmt.Errorf("it is %s", summary(pod))
				}
				return err
			})
		})
	}
	t.Run("webhooks of simulated pods allow everything, until they are not answered", func(t *testing.T) { testWebhook(t, c) })
	t.Run("people have the rights that they are given", func(t *testing.T) { testUsers(t, c) })
}

// summary is a pod's phase and what its container is at.
func summary(pod *corev1.Pod) string {
	words := string(pod.Status.Phase)
	for _, s := range pod.Status.ContainerStatuses {
		switch {
		case s.Ready:
			words += " ready"
		case s.State.Waiting != nil:
			words += " " + s.State.Waiting.Reason
		case s.State.Terminated != nil:
			words += fmt.Sprintf(" exit %d", s.State.Terminated.ExitCode)
		}
	}
	return words
}

func testWebhook(t *testing.T, c *Cluster) {
	apply(t, c, `
apiVersion: apps/v1
kind: Deployment
metadata: {name: hook, namespace: default}
spec:
  selector: {matchLabels: {app: hook}}
  template:
    metadata: {labels: {app: hook}}
    spec: {containers: [{name: hook, image: example.org/hook:1}]}
---
apiVersion: v1
kind: Service
metadata: {name: hook, namespace: default}
spec: {selector: {app: hook}, ports: [{port: 443, targetPort: 9443}]}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: hook}
webhooks:
  - name: hook.example.org
    admissionReviewVersions: [v1]
    sideEffects: None
    failurePolicy: Fail
    clientConfig: {service: {name: hook, namespace: default}}
    rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}]
    objectSelector: {matchLabels: {checked: "true"}}
`)
	n := 0
	create := func(ctx context.Context) error {
		n++
		_, err := c.Client.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("checked-", n), Labels: map[string]string{"checked": "true"}},
		}, metav1.CreateOptions{})
		return err
	}
	eventually(t, "be allowed", create)
	if err := c.AnswerWebhooks(false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "be refused", func(ctx context.Context) error {
		err := create(ctx)
		if err == nil || !strings.Contains(err.Error(), "failed calling webhook") {
			return fmt.Errorf("creating says: %v", err)
		}
		return nil
	})
	if err := c.AnswerWebhooks(true); err != nil {
		t.Fatal(err)
	}
	eventually(t, "be allowed again", create)
}

func testUsers(t *testing.T, c *Cluster) {
	for name, test := range map[string]struct {
		user User
		want func(error) bool
	}{
		"somebody without a role is forbidden":      {User{Name: "guest"}, apierrors.IsForbidden},
		"an expired certificate is not recognised":  {User{Name: "late", Groups: []string{"system:masters"}, Expired: true}, apierrors.IsUnauthorized},
		"a member of system:masters may everything": {User{Name: "boss", Groups: []string{"system:masters"}}, func(err error) bool { return err == nil }},
	} {
		t.Run(name, func(t *testing.T) {
			path, err := c.KubeconfigFor(test.user)
			if err != nil {
				t.Fatal(err)
			}
			config, err := clientcmd.BuildConfigFromFlags("", path)
			if err != nil {
				t.Fatal(err)
			}
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				t.Fatal(err)
			}
			_, err = client.CoreV1().Secrets("kube-system").List(t.Context(), metav1.ListOptions{})
			if !test.want(err) {
				t.Errorf("listing Secrets: %v", err)
			}
		})
	}
}

// Two clusters are two: what is in one is not in the other, and nothing of either
// is on the machine when they have ended.
func TestTwoAtOnce(t *testing.T) {
	Require(t)
	before := traces(t, "twin")
	var both [2]*Cluster
	for i := range both {
		c, err := Up(t.Context(), Options{Name: "twin", Simulated: 1, Log: t.Logf})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Down()
		both[i] = c
	}
	apply(t, both[0], "{apiVersion: v1, kind: Namespace, metadata: {name: first}}")
	if _, err := both[1].Client.CoreV1().Namespaces().Get(t.Context(), "first", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a namespace of the one in the other: %v", err)
	}
	for _, c := range both {
		if err := c.Down(); err != nil {
			t.Fatal(err)
		}
	}
	if left := traces(t, "twin"); len(left) > len(before) {
		t.Errorf("left on the machine: %v, before: %v", left, before)
	}
}

// The guard ends the cluster of a process that is killed.
func TestOwnerIsKilled(t *testing.T) {
	Require(t)
	before := traces(t, "killed")
	bin := filepath.Join(t.TempDir(), "run")
	if out, err := exec.Command("go", "build", "-trimpath", "-o", bin, "./run").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	var stderr bytes.Buffer
	cmd := exec.Command(bin, "-simulated", "1", "-name", "killed")
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	cmd.Process.Kill()
	cmd.Wait()
	eventually(t, "see everything removed", func(context.Context) error {
		if left := traces(t, "killed"); len(left) > len(before) {
			return fmt.Errorf("left on the machine: %v, before: %v", left, before)
		}
		return nil
	})
}

// traces are the cgroups and folders of clusters of a name, and the folders that
// were made on the machine, unless another cluster needs them.
func traces(t *testing.T, name string) []string {
	t.Helper()
	var found []string
	groups, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		matches, err := filepath.Glob(filepath.Join(g.path, "kalypso-"+name+"-*"))
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, matches...)
	}
	states, err := os.ReadDir(root())
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	others := false
	for _, s := range states {
		if strings.HasPrefix(s.Name(), "kalypso-"+name+"-") {
			found = append(found, s.Name())
		}
		others = others || s.IsDir()
	}
	for _, folder := range append(onNode, volumes) {
		if _, err := os.Stat(folder); err == nil && !others {
			found = append(found, folder)
		}
	}
	return found
}

// A pod on a real node runs, answers behind its Service's name on another node,
// and is found by the API server's proxy.
func TestRealNodes(t *testing.T) {
	Require(t)
	c := Start(t, Options{Name: "real", Nodes: 2, Simulated: 1})
	server := filepath.Join(t.TempDir(), "hello")
	source := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(source, []byte(hello), 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-trimpath", "-o", server, source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	if err := c.Load(t.Context(), "example.org/hello:1", server); err != nil {
		t.Fatal(err)
	}
	apply(t, c, fmt.Sprintf(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: hello, namespace: default}
spec:
  selector: {matchLabels: {app: hello}}
  template:
    metadata: {labels: {app: hello}}
    spec:
      tolerations: [{operator: Exists}]
      nodeSelector: {%s: "true"}
      containers:
        - name: hello
          image: example.org/hello:1
          readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
          resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {memory: 64Mi}}
          securityContext: {capabilities: {add: [SYS_RESOURCE]}}
---
apiVersion: v1
kind: Service
metadata: {name: hello, namespace: default}
spec: {selector: {app: hello}, ports: [{name: http, port: 80, targetPort: 8080}]}
`, RealLabel))
	if _, err := c.Kubectl(t.Context(), "", "rollout", "status", "daemonset/hello", "--timeout=60s"); err != nil {
		t.Fatal(err)
	}
	// Each pod asks the Service by its name for who answers, which is one of them.
	list, err := c.Client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, pod := range list.Items {
		eventually(t, pod.Name+" reaches the Service", func(ctx context.Context) error {
			out, err := c.Client.CoreV1().RESTClient().Get().Namespace("default").Resource("pods").Name(pod.Name + ":8080").
				SubResource("proxy").Suffix("ask").Do(ctx).Raw()
			if err == nil && !strings.HasPrefix(string(out), "hello from hello-") {
				err = fmt.Errorf("it says %q", out)
			}
			return err
		})
	}
	if len(list.Items) != 2 {
		t.Errorf("%d pods run, want one on each real node", len(list.Items))
	}
	logs, err := c.Kubectl(t.Context(), "", "logs", "daemonset/hello")
	if err != nil || !strings.Contains(logs, "serving") {
		t.Errorf("logs are %q: %v", logs, err)
	}
}

const hello = `package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
)

func main() {
	name, _ := os.Hostname()
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "hello from %s", name) })
	http.HandleFunc("/ask", func(w http.ResponseWriter, r *http.Request) {
		answer, err := http.Get("http://hello.default.svc.cluster.local/")
		if err != nil {
			http.Error(w, err.Error(), 500)
			return
		}
		defer answer.Body.Close()
		io.Copy(w, answer.Body)
	})
	fmt.Println("serving")
	panic(http.ListenAndServe(":8080", nil))
}
`
