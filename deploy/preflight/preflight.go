// Package preflight is the list of checks that tell whether a cluster can run
// the stack: what the API server says of its nodes, rights, storage and of what
// is there already, held against the objects that an installation would make.
//
// The checks change nothing: where they have to try, they try in a dry run. They
// ask the API server alone, so they need no internet and no pod. Nodes, which is
// asked for by itself, does: it has the agent's own checks run on the nodes, and
// takes away what it made for that. Each failure comes with a fix that can be
// typed. Running and printing the list is deploy/check's.
package preflight

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kalypso-dev/kalypso/deploy/check"
	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/install"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/profiler"
)

// Config is what the checks are about.
type Config struct {
	Cluster *kube.Cluster
	Stack   *install.Stack
	// Smaller are profiles that ask for less, largest first.
	Smaller func() []*install.Stack
	// Command is how a person would type a command of kalypsoctl with the flags
	// that were given: Command("install", "--profile", "small").
	Command func(words ...string) string
}

// New makes the checks of a cluster.
func New(c Config) *Preflight { return &Preflight{Config: c} }

// Checks are those that there are, in order: what others depend on comes first.
func (p *Preflight) Checks() []check.Check {
	return []check.Check{
		{ID: "api", Title: "the API server answers", Severity: check.Required, Run: p.api,
			Effect: "nothing can be installed"},
		{ID: "version", Title: "Kubernetes is not too old", Severity: check.Required, Run: p.version,
			Effect: "charts refuse to be installed", Fix: "upgrade the cluster"},
		{ID: "rbac", Title: "you may make what the charts hold", Severity: check.Required, Run: p.rbac,
			Effect: "the installation stops half-way"},
		{ID: "nodes", Title: "nodes take pods", Severity: check.Required, Run: p.nodes,
			Effect: "no pod starts"},
		{ID: "node_kernel", Title: "the nodes' kernels can be profiled", Severity: check.Limit, Run: p.kernels,
			Effect: "the agent does not run on these nodes"},
		{ID: "memory", Title: "nodes have the memory that is asked for", Severity: check.Required, Run: p.memory,
			Effect: "pods find no node, and the installation stops"},
		{ID: "cpu", Title: "nodes have the CPU time that is asked for", Severity: check.Required, Run: p.cpu,
			Effect: "pods find no node, and the installation stops"},
		{ID: "storage", Title: "volumes can be made", Severity: check.Required, Run: p.storage,
			Effect: "volumes are not made, and the stores do not start"},
		{ID: "disk", Title: "nodes have the disk space that is asked for", Severity: check.Limit, Run: p.disk,
			Effect: "the stores stop when the disk is full"},
		{ID: "namespaces", Title: "no namespace is being deleted", Severity: check.Required, Run: p.namespaces,
			Effect: "nothing can be made in it"},
		{ID: "ownership", Title: "nothing belongs to somebody else", Severity: check.Required, Run: p.ownership,
			Effect: "install refuses to touch it"},
		{ID: "pod_security", Title: "the cluster lets the agent's pods in", Severity: check.Required, Run: p.podSecurity,
			Effect: "the agent does not start"},
		{ID: "webhooks", Title: "webhooks that can refuse objects answer", Severity: check.Required, Run: p.webhooks,
			Effect: "the API server refuses objects"},
		{ID: "apiservices", Title: "all of the API is served", Severity: check.Limit, Run: p.apiServices,
			Effect: "namespaces cannot be deleted, and tools complain"},
		{ID: "dns", Title: "Services are found by the names in the charts", Severity: check.Required, Run: p.dns,
			Effect: "parts of the stack do not find each other"},
	}
}

// Preflight remembers what several checks want to know. They run one after
// another.
type Preflight struct {
	Config
	steps   []*install.Step // by the cluster; nil until asked for
	stepErr error
	demand  *demand
	nodeSet []*kube.Node
}

// Steps are what there is to install, held against the cluster.
func (p *Preflight) Steps(ctx context.Context) ([]*install.Step, error) {
	if p.steps == nil && p.stepErr == nil {
		p.steps, p.stepErr = steps(ctx, p.Stack)
	}
	return p.steps, p.stepErr
}

// steps plans with leave to take everything over, so that nothing is refused:
// what is somebody else's is told by one check.
func steps(ctx context.Context, stack *install.Stack) ([]*install.Step, error) {
	s := *stack
	s.Adopt = nil
	for _, part := range s.Parts {
		s.Adopt = append(s.Adopt, part.Name)
	}
	plan, err := s.Plan(ctx)
	if err != nil {
		return nil, err
	}
	return plan.Steps(), nil
}

// manifests are the objects of each part. Where the cluster does not let itself
// be looked at, values that were given earlier are not among what they are made
// of.
func (p *Preflight) manifests(ctx context.Context) (map[string]*helm.Manifests, error) {
	steps, err := p.Steps(ctx)
	if err != nil {
		return rendered(p.Stack)
	}
	out := map[string]*helm.Manifests{}
	for _, s := range steps {
		out[s.Name] = s.Manifests
	}
	return out, nil
}

// rendered are the objects of each part, without a look at the cluster.
func rendered(stack *install.Stack) (map[string]*helm.Manifests, error) {
	out := map[string]*helm.Manifests{}
	for _, part := range stack.Parts {
		m, err := render(stack, part)
		if err != nil {
			return nil, err
		}
		out[part.Name] = m
	}
	return out, nil
}

func render(stack *install.Stack, part install.Part) (*helm.Manifests, error) {
	m, err := helm.Render(part.Chart, stack.Archives,
		helm.Release{Name: part.Release, Namespace: part.Namespace, KubeVersion: stack.Cluster.Version}, helm.Merge(part.Base, part.Values))
	if err != nil {
		return nil, fmt.Errorf("render %s: %w", part.Name, err)
	}
	return m, nil
}

// install is the command that does away with all that install itself can do
// away with: others' things, and too large a profile.
func (p *Preflight) install(ctx context.Context) string {
	words := []string{"install"}
	if profile := p.fits(ctx); profile != "" {
		words = append(words, "--profile", profile)
	}
	if names := p.foreign(ctx); len(names) > 0 {
		words = append(words, "--adopt", strings.Join(names, ","))
	}
	return p.Command(words...)
}

// foreign are the components that others' things are in the way of.
func (p *Preflight) foreign(ctx context.Context) []string {
	steps, err := p.Steps(ctx)
	if err != nil {
		return nil
	}
	var names []string
	for _, s := range steps {
		if len(s.Foreign) > 0 && !slices.Contains(p.Stack.Adopt, s.Name) {
			names = append(names, s.Name)
		}
	}
	return names
}

func (p *Preflight) components() []component.Component {
	out := make([]component.Component, len(p.Stack.Parts))
	for i, part := range p.Stack.Parts {
		out[i] = part.Component
	}
	return out
}

// unseen is the outcome of a check whose question was not answered, with what to do
// where that is known.
func unseen(err error) check.Outcome {
	var fault *profiler.Fault
	switch {
	case errors.As(err, &fault) && fault.Fix != "":
		return check.Skip("not known: %v\n%s", err, fault.Fix)
	case errors.Is(err, context.DeadlineExceeded):
		return check.Skip("not known: no answer in time: %v", err)
	}
	return check.Skip("not known: %v", err)
}

// lines puts things below each other, and counts what is too much to read.
func lines(things []string) string {
	const limit = 5
	if len(things) > limit {
		things = append(slices.Clone(things[:limit]), fmt.Sprintf("and %d more", len(things)-limit))
	}
	return strings.Join(things, "\n")
}
