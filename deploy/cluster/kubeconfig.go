package cluster

import (
	"context"
	"fmt"

	"k8s.io/client-go/tools/clientcmd"
)

// mergeKubeconfig adds the one cluster of a kubeconfig to that of the user,
// under the name of a context, and chooses it. Files are found as kubectl finds
// them.
func mergeKubeconfig(data []byte, name string) error {
	from, err := clientcmd.Load(data)
	if err != nil {
		return fmt.Errorf("read the kubeconfig of the cluster: %w", err)
	}
	made := from.Contexts[from.CurrentContext]
	if made == nil || from.Clusters[made.Cluster] == nil || from.AuthInfos[made.AuthInfo] == nil {
		return fmt.Errorf("read the kubeconfig of the cluster: context %q is not whole", from.CurrentContext)
	}
	options := clientcmd.NewDefaultPathOptions()
	to, err := options.GetStartingConfig()
	if err != nil {
		return fmt.Errorf("read your kubeconfig: %w", err)
	}
	to.Clusters[name] = from.Clusters[made.Cluster]
	to.AuthInfos[name] = from.AuthInfos[made.AuthInfo]
	made.Cluster, made.AuthInfo = name, name
	to.Contexts[name] = made
	to.CurrentContext = name
	if err := clientcmd.ModifyConfig(options, *to, true); err != nil {
		return fmt.Errorf("write your kubeconfig: %w", err)
	}
	return nil
}

// dropContext takes out what mergeKubeconfig added.
func dropContext(name string) func(context.Context) error {
	return func(context.Context) error {
		options := clientcmd.NewDefaultPathOptions()
		c, err := options.GetStartingConfig()
		if err != nil {
			return fmt.Errorf("read your kubeconfig: %w", err)
		}
		delete(c.Contexts, name)
		delete(c.Clusters, name)
		delete(c.AuthInfos, name)
		if c.CurrentContext == name {
			c.CurrentContext = ""
		}
		if err := clientcmd.ModifyConfig(options, *c, true); err != nil {
			return fmt.Errorf("write your kubeconfig: %w", err)
		}
		return nil
	}
}
