package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/deploy/agents"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/profiler"
)

// scopeFlags are the flags of verbs that ask agents about a target.
type scopeFlags struct {
	clusterFlags
	namespace string
}

func (f *scopeFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVarP(&f.namespace, "namespace", "n", "", "namespace of the target (the context's, else default)")
	f.clusterFlags.register(fl)
	f.complete(cmd)
	cmd.ValidArgsFunction = f.completeTarget
}

// targetHelp is for the help of verbs that take one: agents.Forms, on lines of a
// terminal.
const targetHelp = `TARGET: deploy/NAME, sts/NAME, ds/NAME, job/NAME, pod/NAME, ns/NAME, node/NAME,
pid:N@NODE; none is the whole cluster.`

// oneTarget is the Args function of verbs that take a target or none.
func oneTarget(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return cli.Usage(cmd.CommandPath()+" deploy/NAME", "%s takes one target: what is %q?", cmd.Name(), args[1])
	}
	if len(args) == 1 {
		if _, err := agents.ParseTarget(args[0], ""); err != nil {
			return cli.Wrong(err)
		}
	}
	return nil
}

// open finds the target in the cluster and opens ways to its agents.
func (f *scopeFlags) open(ctx context.Context, text string) (*agents.Fleet, *kube.Cluster, error) {
	return f.openAs(ctx, text, agents.Find)
}

// finder is agents.Find or agents.FindPast.
type finder func(context.Context, kubernetes.Interface, agents.Target) (*agents.Scope, error)

func (f *scopeFlags) openAs(ctx context.Context, text string, find finder) (*agents.Fleet, *kube.Cluster, error) {
	cluster, err := f.connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	target, err := f.target(text)
	if err != nil {
		return nil, nil, err
	}
	scope, err := find(ctx, cluster.Client, target)
	if err != nil {
		return nil, nil, err
	}
	fleet, err := agents.Open(ctx, cluster.Client, agents.Forwarded{Cluster: cluster}, scope)
	return fleet, cluster, err
}

// target reads a target, in the namespace that was given or the context's.
func (f *scopeFlags) target(text string) (agents.Target, error) {
	namespace := f.namespace
	if namespace == "" {
		var err error
		if namespace, err = f.contextNamespace(); err != nil {
			return agents.Target{}, err
		}
	}
	target, err := agents.ParseTarget(text, namespace)
	if err != nil {
		return target, cli.Wrong(err)
	}
	return target, nil
}

// contextNamespace is the namespace of the context, as kubectl takes it.
func (f *scopeFlags) contextNamespace() (string, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = f.kubeconfig
	name, _, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: f.context}).Namespace()
	switch {
	case clientcmd.IsEmptyConfig(err): // a store can be asked without a cluster
		return metav1.NamespaceDefault, nil
	case err != nil:
		return "", fmt.Errorf("read the context's namespace: %w", err)
	}
	return name, nil
}

// completeTarget completes kinds, and names of those that are there.
func (f *scopeFlags) completeTarget(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	kind, _, ok := strings.Cut(typed, "/")
	if !ok {
		return []string{"deploy/", "sts/", "ds/", "job/", "pod/", "ns/", "node/", "pid:"}, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), 3*time.Second)
	defer cancel()
	cluster, err := f.connect(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	namespace := f.namespace
	if namespace == "" {
		namespace, _ = f.contextNamespace() // without one nothing is completed
	}
	var out []string
	for _, name := range agents.Names(ctx, cluster.Client, kind, namespace) {
		out = append(out, kind+"/"+name)
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// maxWarned is of how many nodes is told.
const maxWarned = 5

// warn tells of nodes whose agents could not be asked.
func warn(w io.Writer, missing []error) {
	for i, err := range missing {
		if i == maxWarned {
			_, _ = fmt.Fprintf(w, "warning: and %s\n", plural(len(missing)-i, "more node", "more nodes"))
			return
		}
		var fault *profiler.Fault
		if !errors.As(err, &fault) {
			_, _ = fmt.Fprintf(w, "warning: %v\n", err)
			continue
		}
		_, _ = fmt.Fprintf(w, "warning: %v\n", fault)
		if fault.Fix != "" {
			_, _ = fmt.Fprintf(w, "fix:     %s\n", fault.Fix)
		}
	}
}
