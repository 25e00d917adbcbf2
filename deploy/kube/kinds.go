package kube

import (
	"slices"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
)

// Kinds are the kinds of objects that a namespace can hold and that can be
// listed, but for those that Kubernetes writes by itself all the time: events,
// leases, measurements. Where the server of one group does not
// answer, the others are given, with an error.
func (c *Cluster) Kinds() ([]schema.GroupVersionResource, error) {
	lists, err := discovery.ServerPreferredNamespacedResources(c.Client.Discovery())
	var out []schema.GroupVersionResource
	for _, list := range lists {
		version, failed := schema.ParseGroupVersion(list.GroupVersion)
		if failed != nil {
			continue
		}
		for _, r := range list.APIResources {
			if slices.Contains(r.Verbs, "list") && !transient(version.Group, r.Name) {
				out = append(out, version.WithResource(r.Name))
			}
		}
	}
	return out, err
}

func transient(group, resource string) bool {
	switch resource {
	case "events", "leases", "controllerrevisions":
		return true
	}
	return group == "metrics.k8s.io"
}
