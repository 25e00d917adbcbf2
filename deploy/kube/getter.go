package kube

import (
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
)

// Getter is the cluster as Helm wants it, with a namespace for what names none.
// All getters of a cluster share what was learnt of its API.
func (c *Cluster) Getter(namespace string) genericclioptions.RESTClientGetter {
	return &getter{c, namespace}
}

type getter struct {
	cluster   *Cluster
	namespace string
}

// ToRESTConfig gives a copy: Helm sets fields of it.
func (g *getter) ToRESTConfig() (*rest.Config, error) { return rest.CopyConfig(g.cluster.REST), nil }

// ToDiscoveryClient gives what asks the server for its API.
func (g *getter) ToDiscoveryClient() (discovery.CachedDiscoveryInterface, error) {
	return g.cluster.discovery, nil
}

// ToRESTMapper gives what knows the resource of a kind. It asks again when it
// does not know one, as after a CRD was made.
func (g *getter) ToRESTMapper() (meta.RESTMapper, error) { return g.cluster.mapper(), nil }

func (c *Cluster) mapper() meta.RESTMapper {
	return restmapper.NewDeferredDiscoveryRESTMapper(c.discovery)
}

// ToRawKubeConfigLoader gives the kubeconfig, with the getter's namespace.
func (g *getter) ToRawKubeConfigLoader() clientcmd.ClientConfig {
	return namespaced{g.cluster.loader, g.namespace}
}

type loader = clientcmd.ClientConfig

type namespaced struct {
	loader
	namespace string
}

// Namespace is the getter's.
func (n namespaced) Namespace() (string, bool, error) { return n.namespace, true, nil }
