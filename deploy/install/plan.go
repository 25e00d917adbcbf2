package install

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/deploy/plan"
	"github.com/kalypso-dev/kalypso/deploy/secret"
)

// Plan is what has to be done for a cluster to have a stack.
type Plan struct {
	Waves   [][]*Step
	Secrets []secret.Made
}

// Step is what has to be done for one component.
type Step struct {
	Part
	Wave   int // counted from 1
	Action Action
	Now    *helm.Installed // nil where there is no release
	Values helm.Values     // the user's, earlier ones included

	Manifests   *helm.Manifests
	Differences []helm.Difference // from what the release has; of an installation none
	Missing     []helm.Object     // that the release has and the cluster has not
	Foreign     []string          // what others made and is in its way, in words
}

// Steps are those of all waves, in their order.
func (p *Plan) Steps() []*Step { return slices.Concat(p.Waves...) }

// Changes says whether there is anything to do.
func (p *Plan) Changes() bool {
	return slices.ContainsFunc(p.Steps(), func(s *Step) bool { return s.Action != Keep }) ||
		slices.ContainsFunc(p.Secrets, func(m secret.Made) bool { return m.Created })
}

// Plan looks at the cluster and changes nothing. An error is a profiler.Fault
// where a person is to mend something, such as things that others made.
func (s *Stack) Plan(ctx context.Context) (*Plan, error) {
	waves, err := plan.Waves(s.components())
	if err != nil {
		return nil, err
	}
	p := &Plan{}
	for i, wave := range waves {
		var steps []*Step
		for _, c := range wave {
			steps = append(steps, &Step{Part: s.part(c.Name), Wave: i + 1})
		}
		p.Waves = append(p.Waves, steps)
	}
	steps := p.Steps()
	look, err := s.newLook()
	if err != nil {
		return nil, err
	}
	var (
		mu      sync.Mutex
		foreign = map[string][]string{}
	)
	group, limited := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for _, step := range steps {
		group.Go(func() error {
			found, err := s.plan(limited, look, step)
			mu.Lock()
			defer mu.Unlock()
			foreign[step.Name] = found
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	if err := s.refuse(steps, foreign); err != nil {
		return nil, err
	}
	p.Secrets, err = secret.Look(ctx, s.Cluster.Client, s.components(), s.store())
	return p, err
}

func (s *Stack) components() []component.Component {
	out := make([]component.Component, len(s.Parts))
	for i, p := range s.Parts {
		out[i] = p.Component
	}
	return out
}

func (s *Stack) part(name string) Part {
	i := slices.IndexFunc(s.Parts, func(p Part) bool { return p.Name == name })
	return s.Parts[i]
}

func (s *Stack) store() secret.Store {
	if s.Store {
		return secret.ForeignStore
	}
	return secret.OwnStore
}

// plan fills in a step and gives what others made and is in its way, in words.
func (s *Stack) plan(ctx context.Context, look *look, step *Step) (foreign []string, err error) {
	client, err := s.releases(step.Namespace, nil)
	if err != nil {
		return nil, err
	}
	if step.Now, err = client.Find(step.Release); err != nil {
		return nil, rights(step.Name, err)
	}
	// Values of another chart mean something else.
	if !s.Reset && step.Now != nil && step.Now.Chart == step.Chart.Name() {
		step.Values = step.Now.Values
	}
	step.Values = helm.Merge(step.Values, step.Part.Values)
	step.Manifests, err = helm.Render(step.Chart, s.Archives,
		helm.Release{Name: step.Release, Namespace: step.Namespace, KubeVersion: s.Cluster.Version}, helm.Merge(step.Base, step.Values))
	if err != nil {
		return nil, fmt.Errorf("render %s: %w", step.Name, err)
	}
	found, err := look.at(ctx, step)
	if err != nil {
		return nil, err
	}
	step.Missing, step.Foreign = found.missing, found.foreign
	if step.Now != nil {
		before, after := slices.Concat(step.Now.Objects, step.Now.Hooks), slices.Concat(step.Manifests.Objects, step.Manifests.Hooks)
		if step.Differences, err = helm.Diff(before, after); err != nil {
			return nil, err
		}
	}
	if err := look.volumes(ctx, step); err != nil {
		return nil, err
	}
	step.Differences = append(step.Differences, found.crds...)
	step.Action = s.action(step, found)
	return found.foreign, nil
}

// action decides what a step does.
func (s *Stack) action(step *Step, found *found) Action {
	now := step.Now
	switch {
	case now == nil && len(found.foreign) > 0 || now != nil && !now.Managed:
		return Adopt
	case now == nil:
		return Install
	case !now.Deployed():
		return Finish
	case len(step.Differences) > 0 || len(step.Missing) > 0 || len(found.foreign) > 0,
		now.Version != step.Chart.Version(), now.Chart != step.Chart.Name(), now.Profile != s.Profile,
		!helm.Equal(now.Values, step.Values):
		return Upgrade
	}
	return Keep
}

// Profile gives the profile that components were installed with, "" where none
// of them is: that of the release that was changed last.
func Profile(ctx context.Context, cluster *kube.Cluster, components []component.Component) (string, error) {
	s := &Stack{Cluster: cluster}
	var last *helm.Installed
	for _, c := range components {
		if err := ctx.Err(); err != nil {
			return "", context.Cause(ctx)
		}
		client, err := s.releases(c.Namespace, nil)
		if err != nil {
			return "", err
		}
		now, err := client.Find(c.Release)
		if err != nil {
			return "", rights(c.Name, err)
		}
		if now != nil && now.Managed && (last == nil || now.Updated.After(last.Updated)) {
			last = now
		}
	}
	if last == nil {
		return "", nil
	}
	return last.Profile, nil
}

// OnlyInstalled leaves out the parts that the cluster does not have.
func (s *Stack) OnlyInstalled(ctx context.Context) error {
	var parts []Part
	for _, p := range s.Parts {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		client, err := s.releases(p.Namespace, nil)
		if err != nil {
			return err
		}
		now, err := client.Find(p.Release)
		if err != nil {
			return rights(p.Name, err)
		}
		if now != nil {
			parts = append(parts, p)
		}
	}
	s.Parts = parts
	return nil
}
