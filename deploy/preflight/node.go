package preflight

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kalypso-dev/kalypso/deploy/check"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/kube"
)

// nodes looks whether there are any, and whether our images run on them.
func (p *Preflight) nodes(ctx context.Context) check.Outcome {
	all, err := p.Cluster.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return unseen(err)
	}
	able, err := p.nodesOnce(ctx)
	if err != nil {
		return unseen(err)
	}
	var odd []string
	archs := map[string]int{}
	for i := range all.Items {
		n := &all.Items[i]
		archs[n.Status.NodeInfo.Architecture]++
		for _, c := range n.Status.Conditions {
			switch {
			case c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue:
				odd = append(odd, fmt.Sprintf("%s is not ready: %s", n.Name, c.Message))
			case strings.HasSuffix(string(c.Type), "Pressure") && c.Status == corev1.ConditionTrue:
				odd = append(odd, fmt.Sprintf("%s has %s: %s", n.Name, c.Type, c.Message))
			}
		}
	}
	if len(able) == 0 {
		what := append([]string{fmt.Sprintf("none of %s takes pods", kube.Count(len(all.Items), "node"))}, odd...)
		fix := "kubectl describe nodes     tells of taints and conditions"
		if i := slices.IndexFunc(all.Items, func(n corev1.Node) bool { return n.Spec.Unschedulable }); i >= 0 {
			fix = "kubectl uncordon " + all.Items[i].Name
		}
		return check.Fail("%s", lines(what)).WithFix("%s", fix)
	}
	var names []string
	for arch := range archs {
		names = append(names, arch)
	}
	slices.Sort(names)
	said := fmt.Sprintf("%d of %s take pods (%s)", len(able), kube.Count(len(all.Items), "node"), strings.Join(names, ", "))
	return check.Pass("%s", strings.Join(append([]string{said}, odd...), "\n"))
}

// The agent's oldest kernel, and the oldest that it is tested on: docs/checks/kernel.md.
const (
	oldestKernel = "5.15"
	testedKernel = "6.1"
)

var kernelVersion = regexp.MustCompile(`^(\d+)\.(\d+)`)

// kernels reads what the kubelets tell of their machines.
func (p *Preflight) kernels(ctx context.Context) check.Outcome {
	nodes, err := p.nodesOnce(ctx)
	if err != nil {
		return unseen(err)
	}
	var old []string
	seen := map[string]bool{}
	for _, n := range nodes {
		info := n.Status.NodeInfo
		m := kernelVersion.FindStringSubmatch(info.KernelVersion)
		switch {
		case info.OperatingSystem != "" && info.OperatingSystem != "linux":
			old = append(old, fmt.Sprintf("%s runs %s", n.Name, info.OperatingSystem))
		case info.Architecture != "" && info.Architecture != "amd64" && info.Architecture != "arm64":
			old = append(old, fmt.Sprintf("%s is %s; the agent runs on amd64 and arm64", n.Name, info.Architecture))
		case m == nil: // a node that is none tells nothing
		case olderThan(m, oldestKernel):
			old = append(old, fmt.Sprintf("%s has Linux %s", n.Name, info.KernelVersion))
		default:
			seen[info.KernelVersion] = true
		}
	}
	switch {
	case len(old) > 0:
		return check.Fail("%s (need >= %s, tested from %s on)", lines(old), oldestKernel, testedKernel).WithFix("upgrade the nodes' systems, or leave the agent out: %s", p.Command("install", "--skip", "agent"))
	case len(seen) == 0:
		return check.Skip("the nodes do not tell their kernel's version")
	}
	var versions []string
	for v := range seen {
		versions = append(versions, v)
	}
	slices.Sort(versions)
	return check.Pass("Linux %s (need >= %s, tested from %s on)", few(versions), oldestKernel, testedKernel)
}

func olderThan(m []string, floor string) bool {
	f := kernelVersion.FindStringSubmatch(floor)
	number := func(s string) int { n, _ := strconv.Atoi(s); return n } // digits, by the pattern
	if a, b := number(m[1]), number(f[1]); a != b {
		return a < b
	}
	return number(m[2]) < number(f[2])
}

const defaultClass = "storageclass.kubernetes.io/is-default-class"

// storage looks whether each volume that is asked for would be made.
func (p *Preflight) storage(ctx context.Context) check.Outcome {
	d, err := p.need(ctx)
	if err != nil {
		return unseen(err)
	}
	if len(d.claims) == 0 {
		return check.Pass("no volumes are asked for")
	}
	list, err := p.Cluster.Client.StorageV1().StorageClasses().List(ctx, metav1.ListOptions{})
	if err != nil {
		return unseen(err)
	}
	var names, defaults, missing []string
	for _, c := range list.Items {
		names = append(names, c.Name)
		if c.Annotations[defaultClass] == "true" {
			defaults = append(defaults, c.Name)
		}
	}
	unnamed := 0
	for _, v := range d.claims {
		switch {
		case v.class == nil || *v.class == "":
			unnamed += v.count
		case !slices.Contains(names, *v.class):
			missing = append(missing, fmt.Sprintf("%s asks for storage class %s, which is not there", v.name, *v.class))
		}
	}
	switch {
	case len(missing) > 0:
		return check.Fail("%s", lines(missing)).WithFix("kubectl get storageclass     lists those that there are")
	case unnamed > 0 && len(defaults) == 0:
		return p.noDefault(ctx, list.Items, unnamed)
	case unnamed > 0:
		said := fmt.Sprintf("default class %s, for %s of volumes", defaults[0], kube.Bytes(*resource.NewQuantity(d.volumes(), resource.BinarySI)))
		if len(defaults) > 1 {
			said = fmt.Sprintf("%d default classes (%s): the newest is taken", len(defaults), strings.Join(defaults, ", "))
		}
		return check.Pass("%s", said)
	}
	return check.Pass("every volume names its class")
}

// volumes adds up the sizes of all volumes, in bytes.
func (d *demand) volumes() int64 {
	var sum int64
	for _, v := range d.claims {
		sum += v.size.Value() * int64(v.count)
	}
	return sum
}

// localPath makes volumes of folders of the node: what K3s comes with.
const localPath = "https://raw.githubusercontent.com/rancher/local-path-provisioner/v0.0.31/deploy/local-path-storage.yaml"

// noDefault tells how there gets to be a default storage class.
func (p *Preflight) noDefault(ctx context.Context, classes []storagev1.StorageClass, volumes int) check.Outcome {
	const patch = `kubectl patch storageclass %s -p '{"metadata":{"annotations":{"` + defaultClass + `":"true"}}}'`
	if len(classes) > 0 {
		return check.Fail("no storage class is the default (there is %s), and %s", classes[0].Name, wanted(volumes)).WithFix(patch, classes[0].Name)
	}
	failed := check.Fail("there is no storage class, and %s", wanted(volumes))
	if provisioner := p.provisioner(ctx); provisioner != "" {
		return failed.WithFix(`echo '{"apiVersion":"storage.k8s.io/v1","kind":"StorageClass","metadata":{"name":"standard","annotations":{"%s":"true"}},"provisioner":"%s"}' | kubectl apply -f -`, defaultClass, provisioner)
	}
	return failed.WithFix("kubectl apply -f %s && "+patch, localPath, "local-path")
}

// provisioner is something on the cluster that makes volumes: a driver, or what
// has made one.
func (p *Preflight) provisioner(ctx context.Context) string {
	if drivers, err := p.Cluster.Client.StorageV1().CSIDrivers().List(ctx, metav1.ListOptions{}); err == nil && len(drivers.Items) == 1 {
		return drivers.Items[0].Name
	}
	volumes, err := p.Cluster.Client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return ""
	}
	for _, v := range volumes.Items {
		if by := v.Annotations["pv.kubernetes.io/provisioned-by"]; by != "" {
			return by
		}
	}
	return ""
}

// onNode are provisioners whose volumes are folders of a node.
var onNode = []string{"rancher.io/local-path", "kubernetes.io/host-path", "k8s.io/minikube-hostpath", "docker.io/hostpath", "microk8s.io/hostpath"}

// disk compares the volumes with the disks of the nodes, where volumes are on
// them: sizes of such volumes are wishes, nobody holds them.
func (p *Preflight) disk(ctx context.Context) check.Outcome {
	d, err := p.need(ctx)
	if err != nil {
		return unseen(err)
	}
	list, err := p.Cluster.Client.StorageV1().StorageClasses().List(ctx, metav1.ListOptions{})
	if err != nil {
		return unseen(err)
	}
	i := slices.IndexFunc(list.Items, func(c storagev1.StorageClass) bool { return c.Annotations[defaultClass] == "true" })
	switch {
	case i < 0:
		return check.Skip("no storage class is the default: see storage")
	case !slices.Contains(onNode, list.Items[i].Provisioner):
		return check.Skip("volumes of class %s are not on the nodes' disks", list.Items[i].Name)
	}
	nodes, err := p.nodesOnce(ctx)
	if err != nil {
		return unseen(err)
	}
	var free int64
	for _, n := range nodes {
		free += p.freeDisk(ctx, n.Node)
	}
	if free == 0 {
		return check.Skip("the nodes do not tell what is free on their disks")
	}
	bytes := func(n int64) string { return kube.Bytes(*resource.NewQuantity(n, resource.BinarySI)) }
	said := fmt.Sprintf("volumes of %s; %s free on the disks of %s", bytes(d.volumes()), bytes(free), kube.Count(len(nodes), "node"))
	if d.volumes() > free {
		fix := "give the nodes larger disks, or keep data for a shorter time: " + p.Command("config", "show", "--origin") + " | grep retention"
		if profile, isColima := strings.CutPrefix(p.Cluster.Context, "colima"); isColima {
			profile = strings.TrimPrefix(profile, "-")
			fix = strings.TrimSpace(fmt.Sprintf("colima stop %s && colima start %s --disk %d", profile, profile, (d.volumes()+gib-1)/gib+20))
		}
		return check.Fail("%s", said).WithFix("%s", fix)
	}
	return check.Pass("%s", said)
}

// freeDisk asks a kubelet what is free, and takes the size of the disk where it
// does not say.
func (p *Preflight) freeDisk(ctx context.Context, n *corev1.Node) int64 {
	var stats struct {
		Node struct {
			FS struct {
				AvailableBytes int64 `json:"availableBytes"`
			} `json:"fs"`
		} `json:"node"`
	}
	if p.kubelet(ctx, n.Name, "stats/summary", &stats) == nil && stats.Node.FS.AvailableBytes > 0 {
		return stats.Node.FS.AvailableBytes
	}
	size := n.Status.Allocatable[corev1.ResourceEphemeralStorage]
	return size.Value()
}

// kubelet asks the kubelet of a node, through the API server.
func (p *Preflight) kubelet(ctx context.Context, node, path string, to any) error {
	body, err := p.Cluster.Client.CoreV1().RESTClient().Get().Resource("nodes").Name(node).SubResource("proxy").Suffix(path).DoRaw(ctx)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, to)
}

// clusterDomain is what the names in the charts end in.
const clusterDomain = "cluster.local"

// dns asks a kubelet for the domain that pods look names up in.
func (p *Preflight) dns(ctx context.Context) check.Outcome {
	nodes, err := p.nodesOnce(ctx)
	if err != nil {
		return unseen(err)
	}
	for _, n := range nodes {
		var says struct {
			KubeletConfig struct {
				ClusterDomain string `json:"clusterDomain"`
			} `json:"kubeletconfig"`
		}
		if p.kubelet(ctx, n.Name, "configz", &says) != nil || says.KubeletConfig.ClusterDomain == "" {
			continue
		}
		if domain := strings.Trim(says.KubeletConfig.ClusterDomain, "."); domain != clusterDomain {
			return check.Fail("the cluster's domain is %s, and the charts name Services in %s", domain, clusterDomain).WithFix("set clusterDomain: %s in the kubelets' configuration and in CoreDNS's", clusterDomain)
		}
		return check.Pass("the cluster's domain is %s", clusterDomain)
	}
	return check.Skip("not known: %v", errNothing)
}

// podSecurity asks to let the agent's pod in, in a dry run: Pod Security, and
// any policy that others installed, has its say.
func (p *Preflight) podSecurity(ctx context.Context) check.Outcome {
	d, err := p.need(ctx)
	if err != nil {
		return unseen(err)
	}
	template := d.agentTemplate()
	if template == nil {
		return check.Skip("no pod with rights over its node is asked for")
	}
	namespace, name, labelled := "default", "default", true
	for _, c := range p.components() {
		if c.Name == "agent" {
			name = c.Namespace
		}
	}
	if ns, err := p.Cluster.Client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{}); err == nil {
		namespace, labelled = name, ns.Labels[helm.ManagedBy] == helm.Manager
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "kalypso-preflight-", Labels: template.Labels, Annotations: template.Annotations}, Spec: template.Spec}
	pod.Spec.ServiceAccountName, pod.Spec.DeprecatedServiceAccount = "", "" // its own is not there yet
	_, err = p.Cluster.Client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	switch {
	case err == nil:
		return check.Pass("a pod like the agent's is let into namespace %s", namespace)
	case apierrors.IsForbidden(err) && strings.Contains(err.Error(), "violates PodSecurity") && labelled:
		return check.Pass("Pod Security is enforced; install labels namespace %s as it has to be", name)
	case apierrors.IsForbidden(err) && strings.Contains(err.Error(), "violates PodSecurity"):
		return check.Fail("%s", refusal(err)).WithFix("kubectl label namespace %s pod-security.kubernetes.io/enforce=privileged --overwrite", name)
	case apierrors.IsForbidden(err) && strings.Contains(err.Error(), "cannot create resource"):
		return check.Skip("you may not make pods: see rbac")
	case apierrors.IsForbidden(err) && strings.Contains(err.Error(), "looking up service account"):
		return check.Skip("namespace %s is only just being made", namespace)
	case strings.Contains(err.Error(), "failed calling webhook"):
		return check.Skip("a webhook does not answer: see webhooks")
	}
	return check.Fail("%s", refusal(err)).WithFix("have a policy of the cluster make an exception for namespace %s", name)
}

// refusal is what the API server says, without the name that was made up.
func refusal(err error) string {
	text := err.Error()
	if _, rest, found := strings.Cut(text, "is forbidden: "); found {
		text = rest
	}
	if runes := []rune(text); len(runes) > 300 {
		text = string(runes[:300]) + "…"
	}
	return text
}

// wanted tells how many claims take the default class.
func wanted(claims int) string {
	if claims == 1 {
		return "1 claim wants one"
	}
	return fmt.Sprintf("%d claims want one", claims)
}
