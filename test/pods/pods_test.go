// Package pods runs our images on a real node: what charts have kalypsoctl do in
// pods it does there, as the user that it has there and with the rights that the
// chart gives it. What it installs goes to simulated nodes, from stand-ins of the
// upstream charts.
package pods

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kalypso-dev/kalypso/charts"
	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/test/cluster"
	"github.com/kalypso-dev/kalypso/test/cluster/upstream"
	"github.com/kalypso-dev/kalypso/test/internal/ours"
)

const (
	infraChart, namespace = "kalypso-infra", "kalypso-infra"
	// installLimit is far over what stand-ins on simulated nodes take.
	installLimit = 5 * time.Minute
)

func TestImagesAndInfra(t *testing.T) {
	cluster.Require(t)
	archive := ours.Images(t)
	c := cluster.Start(t, cluster.Options{Name: "pods", Nodes: 1, Simulated: 3})
	for _, program := range []string{"kalypso-agent", "kalypsoctl"} {
		if err := c.LoadArchive(t.Context(), archive(program)); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("each image has its program", func(t *testing.T) {
		for _, program := range []string{"kalypso-agent", "kalypsoctl"} {
			log := finished(t, c, versionJob(program), "default", "version-"+program)
			// What it prints and what it warns of are two streams of one log, in any order.
			lines := strings.Split(log, "\n")
			if want := program + " v0.0.0-test"; !slices.Contains(lines, want) {
				t.Errorf("%s version prints %q", program, log)
			}
			// This pod may read no release: one warning, not one for each.
			lines = slices.DeleteFunc(lines, func(line string) bool { return !strings.HasPrefix(line, "warning: ") })
			if want := map[string]int{"kalypsoctl": 1}[program]; len(lines) != want || want == 1 && !strings.Contains(lines[0], "no version of cert-manager, ") {
				t.Errorf("%s version warns of %q", program, lines)
			}
		}
	})
	t.Run("the Job of kalypso-minio makes the buckets", func(t *testing.T) { makesBuckets(t, c) })
	t.Run("kalypso-infra installs the stack", func(t *testing.T) { installs(t, c, upstream.Charts(t)) })
}

// versionJob prints the version of a program.
func versionJob(program string) string {
	return fmt.Sprintf(`apiVersion: batch/v1
kind: Job
metadata: {name: version-%[1]s, namespace: default}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      nodeSelector: {%[2]s: "true"}
      tolerations: [{operator: Exists}]
      containers:
        - {name: version, image: "ghcr.io/kalypso-dev/%[1]s:%[3]s", imagePullPolicy: Never, args: [version]}
`, program, cluster.RealLabel, ours.Tag)
}

func installs(t *testing.T, c *cluster.Cluster, upstreamCharts string) {
	values := helm.Values{
		"profile":      "small",
		"args":         []any{"--no-verify"}, // nothing answers on simulated nodes
		"charts":       helm.Values{"volume": helm.Values{"hostPath": helm.Values{"path": upstreamCharts}}},
		"image":        helm.Values{"pullPolicy": "Never"},
		"nodeSelector": helm.Values{cluster.RealLabel: "true"},
		"tolerations":  []any{helm.Values{"operator": "Exists"}},
		// Its pod on the real node would have no image.
		"settings": helm.Values{"collector": helm.Values{"enabled": false}},
	}
	apply(t, c, fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: %s}}", namespace))
	job := release(t, c, infraChart, namespace, values)
	log := finished(t, c, "", namespace, job)
	for _, want := range []string{"Plan for context in-cluster (profile small)", "Ready in "} {
		if !strings.Contains(log, want) {
			t.Errorf("its log does not have %q:\n%s", want, log)
		}
	}
	var want []string
	for _, comp := range component.All() {
		if comp.Name != "collector" {
			want = append(want, comp.Namespace+"/"+comp.Release)
		}
	}
	secrets, err := c.Client.CoreV1().Secrets("").List(t.Context(), metav1.ListOptions{LabelSelector: "owner=helm,status=deployed"})
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, namespace+"/"+infraChart)
	var got []string
	for _, s := range secrets.Items {
		got = append(got, s.Namespace+"/"+s.Labels["name"])
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("releases are %v, want %v", got, want)
	}

	// Wrong settings end it at once.
	values["settings"] = helm.Values{"lokki": helm.Values{}}
	job = release(t, c, infraChart, namespace, values)
	if log := failed(t, c, "", namespace, job); !strings.Contains(log, `there is no component "lokki"`) {
		t.Errorf("its log is %q", log)
	}
}

// store is an object store in a pod, and its Secret.
const store = `---
apiVersion: v1
kind: Secret
metadata: {name: kalypso-s3, namespace: store}
stringData: {rootUser: root-user, rootPassword: root-password}
---
apiVersion: v1
kind: Service
metadata: {name: s3, namespace: store}
spec: {selector: {app: s3}, ports: [{port: 7070}]}
---
apiVersion: v1
kind: Pod
metadata: {name: s3, namespace: store, labels: {app: s3}}
spec:
  nodeSelector: {kalypso.dev/real: "true"}
  tolerations: [{operator: Exists}]
  containers:
    - name: s3
      image: example.org/versitygw:1
      imagePullPolicy: Never
      args: [--access, root-user, --secret, root-password, --port, ":7070", posix, /data]
      volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {}}]
`

// The Job is there before the store and before its Secret, and waits for both. A
// Job of the same buckets later leaves them.
func makesBuckets(t *testing.T, c *cluster.Cluster) {
	binary := os.Getenv("KALYPSO_S3_SERVER")
	if filepath.Base(binary) != "versitygw" {
		t.Skip("KALYPSO_S3_SERVER names no versitygw")
	}
	if err := c.Load(t.Context(), "example.org/versitygw:1", binary); err != nil {
		t.Fatal(err)
	}
	values := helm.Values{
		"objectStore":     helm.Values{"kind": "external", "external": helm.Values{"endpoint": "http://s3.store.svc.cluster.local:7070"}},
		"imagePullPolicy": "Never",
		"nodeSelector":    helm.Values{cluster.RealLabel: "true"},
		"tolerations":     []any{helm.Values{"operator": "Exists"}},
	}
	objects, job := render(t, "kalypso-minio", "store", values)
	if _, err := c.Kubectl(t.Context(), objects, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	if log := finished(t, c, objects+store, "store", job); strings.Count(log, " made\n") != 8 {
		t.Errorf("it wrote:\n%s", log)
	}
	values["tolerations"] = []any{helm.Values{"key": cluster.RealLabel, "operator": "Exists"}}
	objects, job = render(t, "kalypso-minio", "store", values)
	if log := finished(t, c, objects, "store", job); strings.Count(log, " is there\n") != 8 {
		t.Errorf("the second time it wrote:\n%s", log)
	}
}

// release installs a chart of ours, or upgrades it, as Helm does, and gives the name
// of the Job in it.
func release(t *testing.T, c *cluster.Cluster, chartName, namespace string, values helm.Values) (job string) {
	t.Helper()
	k, err := kube.Connect(t.Context(), kube.Config{Kubeconfig: c.Kubeconfig})
	if err != nil {
		t.Fatal(err)
	}
	client, err := helm.NewClient(k.Getter(namespace), namespace, k.Version, nil)
	if err != nil {
		t.Fatal(err)
	}
	fsys, err := charts.Open(chartName)
	if err != nil {
		t.Fatal(err)
	}
	chart, err := helm.Open(fsys)
	if err != nil {
		t.Fatal(err)
	}
	err = client.Apply(t.Context(), helm.Change{Name: chartName, Chart: chart, Values: values, Timeout: installLimit})
	if err != nil {
		t.Fatal(err)
	}
	_, job = render(t, chartName, namespace, values)
	return job
}

// render gives the objects of a chart of ours, with its namespace, and the name of
// the Job among them.
func render(t *testing.T, chartName, namespace string, values helm.Values) (objects, job string) {
	t.Helper()
	m := ours.Render(t, chartName, namespace, values)
	for _, o := range m.Objects {
		if o.Kind == "Job" {
			job = o.Name
		}
	}
	return ours.YAML(namespace, "{}", m), job
}

func apply(t *testing.T, c *cluster.Cluster, objects string) {
	t.Helper()
	if _, err := c.Kubectl(t.Context(), objects, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// finished applies objects, if any, waits until a Job among them has done its work, and
// gives its log.
func finished(t *testing.T, c *cluster.Cluster, objects, namespace, job string) string {
	t.Helper()
	kind, log := ends(t, c, objects, namespace, job)
	if kind != batchv1.JobComplete {
		t.Fatalf("Job %s is %s; it wrote:\n%s", job, kind, log)
	}
	return log
}

// failed is the same for a Job that is to fail.
func failed(t *testing.T, c *cluster.Cluster, objects, namespace, job string) string {
	t.Helper()
	kind, log := ends(t, c, objects, namespace, job)
	if kind != batchv1.JobFailed {
		t.Fatalf("Job %s is %s; it wrote:\n%s", job, kind, log)
	}
	return log
}

func ends(t *testing.T, c *cluster.Cluster, objects, namespace, job string) (batchv1.JobConditionType, string) {
	t.Helper()
	if objects != "" {
		apply(t, c, objects)
	}
	ctx, cancel := context.WithTimeout(t.Context(), installLimit)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		j, err := c.Client.BatchV1().Jobs(namespace).Get(ctx, job, metav1.GetOptions{})
		if err != nil {
			t.Fatalf("Job %s: %v; it wrote:\n%s", job, err, logOf(t, c, namespace, job))
		}
		for _, condition := range j.Status.Conditions {
			if condition.Status == corev1.ConditionTrue && (condition.Type == batchv1.JobComplete || condition.Type == batchv1.JobFailed) {
				return condition.Type, logOf(t, c, namespace, job)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

func logOf(t *testing.T, c *cluster.Cluster, namespace, job string) string {
	t.Helper()
	log, err := c.Kubectl(context.WithoutCancel(t.Context()), "", "-n", namespace, "logs", "job/"+job, "--all-containers")
	if err != nil {
		t.Logf("logs of %s: %v", job, err)
	}
	return log
}
