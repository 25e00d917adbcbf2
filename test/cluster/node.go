package cluster

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// RealLabel is on real nodes, with the value true. Where there are simulated nodes
// too it is also a taint, so that only pods that tolerate it run for real.
const RealLabel = "kalypso.dev/real"

const (
	pauseImage = "registry.k8s.io/pause:kalypso"
	dnsImage   = "registry.k8s.io/coredns/coredns:kalypso"
)

//go:embed coredns.yaml
var coredns string

// startNodes starts the real nodes, and the cluster's DNS on them.
func (c *Cluster) startNodes(ctx context.Context) error {
	if c.options.Nodes == 0 {
		return nil
	}
	for i := range c.options.Nodes {
		if err := c.startNode(ctx, i); err != nil {
			return fmt.Errorf("start %s: %w", nodeName(i), err)
		}
	}
	if _, err := c.Kubectl(ctx, coredns, "apply", "-f", "-"); err != nil {
		return err
	}
	if err := c.waitNodes(ctx, RealLabel, c.options.Nodes); err != nil {
		return err
	}
	_, err := c.Kubectl(ctx, "", "--namespace=kube-system", "rollout", "status", "deployment/coredns", "--timeout="+time.Minute.String())
	return err
}

// startNode starts what runs on a node: containerd, kubelet, kube-proxy.
func (c *Cluster) startNode(ctx context.Context, i int) error {
	name, ip, pods := nodeName(i), nodeIP(i), fmt.Sprintf("%s.%d.0/24", podNet, i+1)
	p, err := c.makePlace(ctx, name)
	if err != nil {
		return err
	}
	c.nodes = append(c.nodes, p)
	_, err = c.control.script(ctx, `
		ip link add "$1" type veth peer name eth0 netns "$2"
		ip link set "$1" master fabric up
		ip route add "$3" via "$4"`, name, fmt.Sprint(p.pid), pods, ip)
	if err != nil {
		return err
	}
	_, err = p.script(ctx, `
		ip addr add "$1/24" dev eth0
		ip link set eth0 up
		ip route add default via "$2"`, ip, controlIP)
	if err != nil {
		return err
	}
	if err := c.configureNode(name, ip, pods); err != nil {
		return err
	}
	own := func(file string) string { return filepath.Join(c.state, name, file) }
	if err := c.start(p, "containerd-"+name, "containerd", "--config", own("containerd.toml")); err != nil {
		return err
	}
	err = wait(ctx, "wait for containerd", func(ctx context.Context) error {
		_, err := p.run(ctx, nil, "ctr", "version")
		return err
	})
	if err != nil {
		return err
	}
	for image, binary := range map[string]string{pauseImage: "pause", dnsImage: "coredns"} {
		if err := p.load(ctx, image, filepath.Join(c.bin, binary)); err != nil {
			return err
		}
	}
	err = c.component(p, "kubelet-"+name, "kubelet", "--config="+own("kubelet.json"), "--kubeconfig="+c.pki.file(name+".conf"),
		"--hostname-override="+name, "--node-ip="+ip, "--node-labels="+RealLabel+"=true")
	if err != nil {
		return err
	}
	return c.component(p, "kube-proxy-"+name, "kube-proxy", "--config="+own("kube-proxy.json"))
}

// configureNode writes the files that a node's processes read.
func (c *Cluster) configureNode(name, ip, pods string) error {
	if _, err := c.pki.kubeconfig(name, "control", controlURL, subject{name: "system:node:" + name, groups: []string{"system:nodes"}}); err != nil {
		return err
	}
	if err := c.pki.issue(c.pki.ca, "kubelet-"+name, subject{name: name, dns: []string{name}, ips: []string{ip}}); err != nil {
		return err
	}
	containerd := fmt.Sprintf(`version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = %q
# Where CAP_SYS_RESOURCE is lacking the score cannot be lowered.
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = %q
`, pauseImage, filepath.Join(c.bin, "runc"))
	if err := os.WriteFile(filepath.Join(c.state, name, "containerd.toml"), []byte(containerd), 0o600); err != nil {
		return err
	}
	for file, content := range map[string]any{
		"etc/cni/net.d/10-pods.conflist": network(pods),
		"kubelet.json":                   c.kubelet(name),
		"kube-proxy.json":                c.kubeProxy(name),
	} {
		data, err := json.MarshalIndent(content, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(c.state, name, file), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

type object map[string]any

// network routes each pod by an address of its own, without a bridge.
func network(pods string) object {
	return object{"cniVersion": "0.4.0", "name": "pods", "plugins": []object{
		{"type": "ptp", "ipam": object{"type": "host-local", "subnet": pods, "routes": []object{{"dst": "0.0.0.0/0"}}, "dataDir": "/run/cni"}},
		{"type": "portmap", "capabilities": object{"portMappings": true}},
	}}
}

func (c *Cluster) kubelet(name string) object {
	config := object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"authentication": object{
			"anonymous": object{"enabled": false}, "webhook": object{"enabled": true}, "x509": object{"clientCAFile": c.pki.file("ca.crt")},
		},
		"authorization":            object{"mode": "Webhook"},
		"tlsCertFile":              c.pki.file("kubelet-" + name + ".crt"),
		"tlsPrivateKeyFile":        c.pki.file("kubelet-" + name + ".key"),
		"containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
		"cgroupDriver":             "cgroupfs",
		"cgroupRoot":               "/" + c.group() + "/" + name,
		"failCgroupV1":             false, // refused by default since 1.35
		"failSwapOn":               false,
		"clusterDNS":               []string{dnsIP},
		"clusterDomain":            "cluster.local",
		"syncFrequency":            "10s", // how soon a pod's labels are in its files; a minute else
		// Images cannot be pulled again, and the disk is not this node's alone.
		"imageGCHighThresholdPercent": 100,
		"evictionHard": object{
			"memory.available": "50Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%", "imagefs.available": "1%", "imagefs.inodesFree": "1%",
		},
	}
	if c.options.Simulated > 0 {
		config["registerWithTaints"] = []object{{"key": RealLabel, "value": "true", "effect": "NoSchedule"}}
	}
	return config
}

func (c *Cluster) kubeProxy(name string) object {
	return object{
		"apiVersion":       "kubeproxy.config.k8s.io/v1alpha1",
		"kind":             "KubeProxyConfiguration",
		"clientConnection": object{"kubeconfig": c.pki.file("proxy.conf")},
		"hostnameOverride": name,
		"mode":             "nftables",
		"clusterCIDR":      podNet + ".0.0/16",
		// The limits of connection tracking are the machine's.
		"conntrack": object{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
	}
}

// Container is one that was made on a real node.
type Container struct{ Node, Namespace, Pod, Name, ID string }

// logLink is how a kubelet calls the link to a container's log.
var logLink = regexp.MustCompile(`^([^_]+)_([^_]+)_(.+)-([0-9a-f]{64})\.log$`)

// Containers are those of pods that there are on real nodes, sandboxes not among
// them, by the links that kubelets make to their logs: they can be read while the
// API server does not answer. A kubelet removes the link of one that ended and
// was made again within a minute or two.
func (c *Cluster) Containers() ([]Container, error) {
	var all []Container
	for _, p := range c.nodes {
		links, err := os.ReadDir(c.NodePath(p.name, "/var/log/containers"))
		if err != nil {
			return nil, err
		}
		for _, l := range links {
			if m := logLink.FindStringSubmatch(l.Name()); m != nil {
				all = append(all, Container{Node: p.name, Pod: m[1], Namespace: m[2], Name: m[3], ID: m[4]})
			}
		}
	}
	return all, nil
}

// NodePath is where a path in a folder that a real node has to itself is found on
// this machine: below those that Kubernetes's own programs use (/run,
// /var/lib/kubelet, /var/log/pods and so on) and Options.Folders.
func (c *Cluster) NodePath(node, path string) string { return filepath.Join(c.state, node, path) }
