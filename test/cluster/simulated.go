package cluster

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Outcome is the annotation of a pod that says what becomes of it on a simulated
// node. Without it the pod is ready at once, and complete if a Job owns it.
const Outcome = "test.kalypso.dev/outcome"

// Values of Outcome.
const (
	Slow          = "slow"            // ready after 3 s
	NotReady      = "not-ready"       // runs, and its readiness probe fails
	Starting      = "starting"        // its containers are never made
	Failed        = "failed"          // its process ends with exit code 1, for good
	CrashLoop     = "crash-loop"      // it ended five times and waits to be started again
	ImageNotFound = "image-not-found" // the registry has no such image
	NoConfig      = "no-config"       // a ConfigMap that it reads is not there
)

const simulatedLabel = "kalypso.dev/simulated"

//go:embed stages.yaml
var stages []byte

// startSimulated starts kwok and makes its nodes.
func (c *Cluster) startSimulated(ctx context.Context) error {
	if c.options.Simulated == 0 {
		return nil
	}
	config := filepath.Join(c.state, "stages.yaml")
	if err := os.WriteFile(config, stages, 0o600); err != nil {
		return err
	}
	err := c.component(c.control, "kwok", "kwok", "--kubeconfig="+c.pki.file("kwok.conf"), "--config="+config,
		"--manage-nodes-with-label-selector="+simulatedLabel, "--node-lease-duration-seconds=40",
		"--cidr="+simulated, "--node-ip="+controlIP)
	if err != nil {
		return err
	}
	for i := range c.options.Simulated {
		if _, err := c.Client.CoreV1().Nodes().Create(ctx, c.simulatedNode(i), metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	if err := c.waitNodes(ctx, simulatedLabel, c.options.Simulated); err != nil {
		return err
	}
	c.webhook, err = startWebhooks(c)
	return err
}

func (c *Cluster) simulatedNode(i int) *corev1.Node {
	name := fmt.Sprintf("simulated-%d", i+1)
	quantity := func(given, otherwise string) resource.Quantity {
		if given == "" {
			given = otherwise
		}
		return resource.MustParse(given)
	}
	room := corev1.ResourceList{
		corev1.ResourceCPU:              quantity(c.options.CPU, "32"),
		corev1.ResourceMemory:           quantity(c.options.Memory, "64Gi"),
		corev1.ResourceEphemeralStorage: resource.MustParse("1Ti"),
		corev1.ResourcePods:             resource.MustParse("110"),
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name:   name,
			Labels: map[string]string{simulatedLabel: "true", corev1.LabelHostname: name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64"},
		},
		Status: corev1.NodeStatus{Allocatable: room, Capacity: room},
	}
}
