package cluster

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Addresses that exist inside a cluster only. The machines' are of a range that
// is for documentation, so that none leads anywhere.
const (
	machines    = "198.51.100" // the control plane is .1, real node N is .(10+N)
	controlIP   = machines + ".1"
	controlURL  = "https://" + controlIP + ":6443"
	podNet      = "10.244" // real node N has its pods in .N.0/24
	simulated   = "10.245.0.0/16"
	serviceCIDR = "10.96.0.0/16"
	apiIP       = "10.96.0.1"
	dnsIP       = "10.96.0.10"
	etcdURL     = "http://127.0.0.1:2379"
)

func nodeIP(i int) string { return machines + "." + strconv.Itoa(11+i) }

// component starts one of the programs in the binary kubernetes.
func (c *Cluster) component(p *place, process, name string, flags ...string) error {
	return c.start(p, process, append([]string{filepath.Join(c.bin, "kubernetes"), name}, flags...)...)
}

func (c *Cluster) startControlPlane(ctx context.Context) error {
	var err error
	if c.control, err = c.makePlace(ctx, "control"); err != nil {
		return err
	}
	// The default route leads nowhere, but components look for one. Whatever is
	// sent to a simulated pod ends in this place: see webhooks.go.
	_, err = c.control.script(ctx, `
		ip link add fabric type bridge
		ip addr add "$1/24" dev fabric
		ip link set fabric up
		ip route add default dev fabric
		ip route add local "$2" dev lo`, controlIP, simulated)
	if err != nil {
		return err
	}
	port, stop, err := forward(c.control.pid, controlIP+":6443")
	if err != nil {
		return err
	}
	c.closers = append(c.closers, stop)
	c.port = port
	if err := c.certify(); err != nil {
		return err
	}
	if err := c.startServer(); err != nil {
		return err
	}
	if err := c.connect(); err != nil {
		return err
	}
	if err := wait(ctx, "wait for the API server", c.serverReady); err != nil {
		return err
	}
	if err := c.startControllers(); err != nil {
		return err
	}
	_, err = c.Client.StorageV1().StorageClasses().Create(ctx, &storagev1.StorageClass{
		ObjectMeta:  metav1.ObjectMeta{Name: "standard", Annotations: map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}},
		Provisioner: "kubernetes.io/host-path",
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	// Without it no pod can be made in the namespace default.
	return wait(ctx, "wait for the controllers", func(ctx context.Context) error {
		if err := c.fault(); err != nil {
			return err
		}
		_, err := c.Client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

func (c *Cluster) serverReady(ctx context.Context) error {
	if err := c.fault(); err != nil {
		return err
	}
	var code int
	err := c.Client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).StatusCode(&code).Error()
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("it answers %d", code)
	}
	return err
}

// certify writes certificates and kubeconfigs.
func (c *Cluster) certify() error {
	var err error
	if c.pki, err = newPKI(filepath.Join(c.state, "pki")); err != nil {
		return err
	}
	server := subject{
		name: "kube-apiserver",
		dns:  []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
		ips:  []string{"127.0.0.1", controlIP, apiIP},
	}
	admin := subject{name: "kubernetes-admin", groups: []string{"system:masters"}}
	for _, issue := range []struct {
		by   *authority
		file string
		to   subject
	}{
		{c.pki.ca, "apiserver", server},
		{c.pki.ca, "apiserver-kubelet-client", admin},
		{c.pki.front, "front-proxy-client", subject{name: "front-proxy-client"}},
	} {
		if err := c.pki.issue(issue.by, issue.file, issue.to); err != nil {
			return err
		}
	}
	for file, who := range map[string]subject{
		"controller-manager": {name: "system:kube-controller-manager"},
		"scheduler":          {name: "system:kube-scheduler"},
		"proxy":              {name: "system:kube-proxy"},
		"kwok":               admin,
	} {
		if _, err := c.pki.kubeconfig(file, "control", controlURL, who); err != nil {
			return err
		}
	}
	if err := c.pki.serviceAccounts(); err != nil {
		return err
	}
	c.Kubeconfig, err = c.pki.kubeconfig("admin", c.options.Name, c.outside(), admin)
	return err
}

// outside is where the API server is reached from the machine.
func (c *Cluster) outside() string { return "https://127.0.0.1:" + strconv.Itoa(c.port) }

// startServer starts the API server and what it stores in.
func (c *Cluster) startServer() error {
	err := c.component(c.control, "etcd", "etcd", "--name=etcd", "--data-dir="+filepath.Join(c.state, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL, "--listen-peer-urls=http://127.0.0.1:2380", "--log-level=warn")
	if err != nil {
		return err
	}
	return c.component(c.control, "kube-apiserver", "kube-apiserver",
		"--etcd-servers="+etcdURL, "--advertise-address="+controlIP, "--secure-port=6443",
		"--service-cluster-ip-range="+serviceCIDR, "--allow-privileged=true",
		// Webhooks and API services are called at their pods: there is no kube-proxy
		// beside the API server.
		"--enable-aggregator-routing=true",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--tls-cert-file="+c.pki.file("apiserver.crt"), "--tls-private-key-file="+c.pki.file("apiserver.key"),
		"--client-ca-file="+c.pki.file("ca.crt"),
		"--kubelet-certificate-authority="+c.pki.file("ca.crt"),
		"--kubelet-client-certificate="+c.pki.file("apiserver-kubelet-client.crt"),
		"--kubelet-client-key="+c.pki.file("apiserver-kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+c.pki.file("sa.pub"), "--service-account-signing-key-file="+c.pki.file("sa.key"),
		"--requestheader-client-ca-file="+c.pki.file("front-proxy-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--proxy-client-cert-file="+c.pki.file("front-proxy-client.crt"), "--proxy-client-key-file="+c.pki.file("front-proxy-client.key"))
}

// startControllers starts what works on the API server's objects. It ends by
// itself where the API server has not made its roles yet.
func (c *Cluster) startControllers() error {
	as := func(name string) []string {
		file := c.pki.file(name + ".conf")
		return []string{"--leader-elect=false", "--kubeconfig=" + file, "--authentication-kubeconfig=" + file, "--authorization-kubeconfig=" + file}
	}
	err := c.component(c.control, "kube-controller-manager", "kube-controller-manager", append(as("controller-manager"),
		"--use-service-account-credentials=true", "--root-ca-file="+c.pki.file("ca.crt"),
		"--service-account-private-key-file="+c.pki.file("sa.key"),
		"--cluster-signing-cert-file="+c.pki.file("ca.crt"), "--cluster-signing-key-file="+c.pki.file("ca.key"),
		"--enable-hostpath-provisioner=true")...)
	if err != nil {
		return err
	}
	return c.component(c.control, "kube-scheduler", "kube-scheduler", as("scheduler")...)
}

// User is somebody with fewer rights than the administrator, or none any more.
type User struct {
	Name    string
	Groups  []string
	Expired bool // the certificate was valid until an hour ago
}

// KubeconfigFor writes a kubeconfig for somebody and gives its path. What he may
// do is up to RBAC.
func (c *Cluster) KubeconfigFor(u User) (string, error) {
	return c.pki.kubeconfig("user-"+u.Name, c.options.Name, c.outside(), subject{name: u.Name, groups: u.Groups, expired: u.Expired})
}

// waitNodes waits until so many nodes of a label are ready.
func (c *Cluster) waitNodes(ctx context.Context, label string, count int) error {
	return wait(ctx, fmt.Sprintf("wait for %d nodes", count), func(ctx context.Context) error {
		if err := c.fault(); err != nil {
			return err
		}
		list, err := c.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: label})
		if err != nil {
			return err
		}
		ready := 0
		for _, n := range list.Items {
			for _, condition := range n.Status.Conditions {
				if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue {
					ready++
				}
			}
		}
		if ready < count {
			return fmt.Errorf("%d of %d are ready", ready, count)
		}
		return nil
	})
}
