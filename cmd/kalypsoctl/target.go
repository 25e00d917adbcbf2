package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"

	"github.com/kalypso-dev/kalypso/cmd/internal/near"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/profiler"
)

// clusterFlags are the flags of verbs that talk to a cluster.
type clusterFlags struct {
	kubeconfig string
	context    string
	timeout    time.Duration // zero is no limit
	verbose    bool
	command    *cobra.Command // whose flags they are
}

// register adds them; complete has to follow.
func (f *clusterFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.context, "context", "", "context of the kubeconfig (the current one)")
	flags.StringVar(&f.kubeconfig, "kubeconfig", "", "`FILE` that says how to reach clusters ($KUBECONFIG, ~/.kube/config)")
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "print each request to the API server, on standard error")
}

// registerTimeout is for verbs that wait.
func (f *clusterFlags) registerTimeout(flags *pflag.FlagSet, limit time.Duration, what string) {
	f.timeout = limit
	flags.Var((*patience)(&f.timeout), "timeout", what)
}

// patience is how long something is waited for; 0 is for ever.
type patience time.Duration

// String is the duration as Go writes it.
func (p *patience) String() string { return time.Duration(*p).String() }

// Type has the flag look like any other of a duration.
func (p *patience) Type() string { return "duration" }

// Set refuses what no clock shows.
func (p *patience) Set(text string) error {
	d, err := time.ParseDuration(text)
	if err == nil && d < 0 {
		err = errors.New("it is negative")
	}
	*p = patience(d)
	return err
}

// complete completes the names of contexts.
func (f *clusterFlags) complete(cmd *cobra.Command) {
	f.command = cmd
	_ = cmd.RegisterFlagCompletionFunc("context", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return kube.Contexts(f.config()), cobra.ShellCompDirectiveNoFileComp
	})
}

func (f *clusterFlags) config() kube.Config {
	c := kube.Config{Kubeconfig: f.kubeconfig, Context: f.context}
	if f.verbose {
		c.Said = func(method, path, answer string, took time.Duration) {
			_, _ = fmt.Fprintf(f.command.ErrOrStderr(), "%s  %-6s %s  %s  %d ms\n", time.Now().UTC().Format(time.RFC3339), method, path, answer, took.Milliseconds())
		}
	}
	return c
}

// connect reaches the cluster, and refuses one that is too old for the stack.
func (f *clusterFlags) connect(ctx context.Context) (*kube.Cluster, error) {
	cluster, err := kube.Connect(quiet(ctx), f.config())
	return cluster, nearContext(err)
}

// limited is ctx until --timeout is over.
func (f *clusterFlags) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	if f.timeout <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, f.timeout)
}

// quiet silences the log of client-go, which tells of every retry. What matters
// comes as an error.
func quiet(ctx context.Context) context.Context {
	klog.SetLogger(logr.Discard())
	return ctx
}

// nearContext adds the context that was probably meant.
func nearContext(err error) error {
	var unknown *kube.ContextError
	var fault *profiler.Fault
	if !errors.As(err, &unknown) || !errors.As(err, &fault) {
		return err
	}
	if word := near.Word(unknown.Name, unknown.Contexts); word != "" {
		better := *fault
		better.Fix = "--context " + word
		return &better
	}
	return err
}
