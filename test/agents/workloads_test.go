package agents

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/kalypso-dev/kalypso/test/cluster"
	"github.com/kalypso-dev/kalypso/test/internal/ours"
)

// backend is a receiver of profiles in a pod, which keeps them in a folder of this
// machine.
const backend = `apiVersion: v1
kind: Namespace
metadata: {name: backend}
---
apiVersion: v1
kind: Service
metadata: {name: otlp, namespace: backend}
spec: {selector: {app: otlp}, ports: [{port: 4317}]}
---
apiVersion: v1
kind: Pod
metadata: {name: otlp, namespace: backend, labels: {app: otlp}}
spec:
  nodeSelector: {kubernetes.io/hostname: node-1}
  containers:
    - name: receiver
      image: example.org/receiver:1
      args: [-dir, /received]
      readinessProbe: {tcpSocket: {port: 4317}, periodSeconds: 1}
      volumeMounts: [{name: received, mountPath: /received}]
  volumes: [{name: received, hostPath: {path: %s}}]
`

// shop has one pod of each kind of owner: C without frame pointers and with a
// shared C library, the same without one, and Go. What is rare is short: report
// takes half a second of CPU time each minute, loop one each time it is started
// again, and burst 200 ms in each of its containers.
const shop = `apiVersion: v1
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
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: DoNotSchedule
          nodeTaintsPolicy: Honor
          labelSelector: {matchLabels: {app: checkout}}
      containers:
        - {name: server, image: "example.org/chain-shared:1", args: [-seconds, "100000", -round, "50"], resources: {requests: {cpu: 200m}, limits: {cpu: 300m}}}
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
      terminationGracePeriodSeconds: 1
      nodeSelector: {kubernetes.io/hostname: node-2}
      initContainers:
        - {name: migrate, image: "example.org/chain:1", args: [-seconds, "0.1"]}
      containers:
        - {name: db, image: "example.org/golang:1", args: [-seconds, "100000"], resources: {requests: {cpu: 100m}, limits: {cpu: 200m}}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: probe, namespace: shop}
spec:
  selector: {matchLabels: {app: probe}}
  template:
    metadata: {labels: {app: probe, app.kubernetes.io/instance: probe-a, app.kubernetes.io/name: probe}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - {name: check, image: "example.org/chain:1", args: [-seconds, "100000"], resources: {requests: {cpu: 50m}, limits: {cpu: 50m}}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: report, namespace: shop}
spec:
  schedule: "* * * * *"
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          containers:
            - {name: writer, image: "example.org/chain:1", args: [-seconds, "0.1"]}
---
apiVersion: v1
kind: Pod
metadata: {name: loop, namespace: shop, annotations: {resource.opentelemetry.io/service.name: looper}}
spec:
  nodeSelector: {kubernetes.io/hostname: node-1}
  containers:
    - {name: main, image: "example.org/chain:1", args: [-seconds, "0.1"]}
`

// burst is a Job of 20 containers of 200 ms.
const burst = `apiVersion: batch/v1
kind: Job
metadata: {name: burst, namespace: shop}
spec:
  completions: 20
  parallelism: 4
  template:
    metadata: {labels: {app: burst}}
    spec:
      restartPolicy: Never
      containers:
        - {name: short, image: "example.org/shortlived:1", args: [-seconds, "0.2"], resources: {requests: {cpu: 100m}}}
`

// identity is what a pod of shop goes by.
type identity struct{ service, owner, name string } // owner is an attribute, with its value

// identities by the start of the pod's name.
func identities() map[string]identity {
	return map[string]identity{
		"checkout-": {"checkout", "k8s.deployment.name", "checkout"},
		"store-":    {"shop-store", "k8s.statefulset.name", "store"},
		"probe-":    {"probe-a", "k8s.daemonset.name", "probe"},
		"report-":   {"report", "k8s.cronjob.name", "report"},
		"burst-":    {"burst", "k8s.job.name", "burst"},
		"loop":      {"looper", "", ""},
	}
}

// shares are those of functions, by the start of the pod's name.
func shares() map[string]map[string]float64 {
	c := map[string]float64{"hot_60": 0.6, "hot_30": 0.3, "hot_10": 0.1}
	return map[string]map[string]float64{
		"checkout-": c,
		"probe-":    c,
		"store-":    {"main.hot60": 0.6, "main.hot30": 0.3, "main.hot10.func1": 0.1},
	}
}

// loadImages builds programs and gives each to both nodes as an image. They start
// with the agent's, which is the one of make images.
func loadImages(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	if err := c.LoadArchive(t.Context(), ours.Images(t)("kalypso-agent")); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, build := range map[string][]string{
		"receiver":     {"go", "build", "-trimpath", "./receiver"},
		"golang":       {"go", "build", "../workloads/golang"},
		"chain":        {"gcc", "-O2", "-static", "-fomit-frame-pointer", "../workloads/chain.c"},
		"chain-shared": {"gcc", "-O2", "-fomit-frame-pointer", "../workloads/chain.c"},
		"shortlived":   {"gcc", "-O2", "-static", "-fomit-frame-pointer", "../workloads/shortlived.c"},
	} {
		out := filepath.Join(dir, name)
		last := len(build) - 1
		ours.Run(t, build[0], slices.Insert(slices.Clone(build[1:]), last-1, "-o", out)...)
		if err := c.Load(t.Context(), "example.org/"+name+":1", out, libraries(t, out)...); err != nil {
			t.Fatal(err)
		}
	}
}

// libraries are the loader and the shared libraries that a program needs.
func libraries(t *testing.T, program string) []string {
	t.Helper()
	f, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var loader string
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			data := make([]byte, p.Filesz)
			if _, err := p.ReadAt(data, 0); err != nil {
				t.Fatal(err)
			}
			loader = string(bytes.TrimRight(data, "\x00"))
		}
	}
	if loader == "" {
		return nil
	}
	out, err := exec.Command(loader, "--list", program).Output()
	if err != nil {
		t.Fatal(err)
	}
	all := []string{loader}
	for _, m := range regexp.MustCompile(`=> (/\S+)`).FindAllStringSubmatch(string(out), -1) {
		if _, err := os.Stat(m[1]); err != nil {
			t.Fatal(err)
		}
		all = append(all, m[1])
	}
	return all
}
