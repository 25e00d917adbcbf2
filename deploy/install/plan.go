package install

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/deploy/plan"
	"github.com/kalypso-dev/kalypso/deploy/secret"
	"github.com/kalypso-dev/kalypso/profiler"
)

// Plan is what has to be done for a cluster to have a stack.
type Plan struct {
	Waves   [][]*Step
	Secrets []secret.Made
	Lacking []string // "mimir needs minio": what is neither there nor in the plan
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
	if err := s.checkStore(steps); err != nil {
		return nil, err
	}
	if p.Lacking, err = s.lacking(ctx); err != nil {
		return nil, err
	}
	p.Secrets, err = secret.Look(ctx, s.Cluster.Client, s.components(), s.store())
	return p, err
}

// lacking tells what the parts need and will not find.
func (s *Stack) lacking(ctx context.Context) ([]string, error) {
	var out []string
	there := map[string]bool{}
	for _, p := range s.Parts {
		there[p.Name] = true
	}
	if s.Store {
		there["minio"] = true // another store takes its place
	}
	for _, need := range component.All() {
		if there[need.Name] || !slices.ContainsFunc(s.Parts, func(p Part) bool { return slices.Contains(p.Needs, need.Name) }) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		client, err := s.releases(need.Namespace, nil)
		if err != nil {
			return nil, err
		}
		now, err := client.Find(need.Release)
		if err != nil {
			return nil, rights(need.Name, err)
		}
		for _, p := range s.Parts {
			if now == nil && slices.Contains(p.Needs, need.Name) {
				out = append(out, p.Name+" needs "+need.Name)
			}
		}
	}
	return out, nil
}

// checkStore refuses parts that keep their data in our object store where there
// is none, because another is used.
func (s *Stack) checkStore(steps []*Step) error {
	if !s.Store {
		return nil
	}
	all := component.All()
	ours := all[slices.IndexFunc(all, func(c component.Component) bool { return c.Name == "minio" })]
	host := ours.Serves[0].Name + "." + ours.Namespace + "."
	var names []string
	for _, step := range steps {
		if step.Name != ours.Name && slices.ContainsFunc(step.Manifests.Objects, func(o helm.Object) bool { return strings.Contains(o.YAML, host) }) {
			names = append(names, step.Name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return &profiler.Fault{
		What: strings.Join(names, ", ") + " would store in " + ours.Host(ours.Serves[0]) + ", which is not part of this stack",
		Why:  errors.New("minio is switched off, or its objectStore.kind is external, and their values still name it"),
		Fix:  fmt.Sprintf("give them the other store's address: kalypsoctl config show %s | grep -n %s     shows where", names[0], ours.Serves[0].Name),
	}
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
	if err := s.render(step); err != nil {
		return nil, fmt.Errorf("render %s: %w", step.Name, err)
	}
	found, err := look.at(ctx, step)
	if err != nil {
		return nil, err
	}
	step.Missing, step.Foreign = found.missing, found.foreign
	if err := look.volumes(ctx, step); err != nil {
		return nil, err
	}
	if err := s.fixed(step); err != nil {
		return nil, err
	}
	step.Differences = append(step.Differences, found.crds...)
	step.Action = s.action(step, found)
	return found.foreign, nil
}

// render makes the objects of a step and compares them with those that its
// release has: as an upgrade makes them, which is what would be sent, and as an
// installation does, which is what the release may still have.
func (s *Stack) render(step *Step) error {
	modes := []bool{true, false}
	if step.Now == nil {
		modes = []bool{false}
	}
	for _, upgrade := range modes {
		manifests, err := helm.Render(step.Chart, s.Archives,
			helm.Release{Name: step.Release, Namespace: step.Namespace, KubeVersion: s.Cluster.Version, Upgrade: upgrade},
			helm.Merge(step.Base, step.Values))
		if err != nil {
			return err
		}
		var differences []helm.Difference
		if step.Now != nil {
			before, after := slices.Concat(step.Now.Objects, step.Now.Hooks), slices.Concat(manifests.Objects, manifests.Hooks)
			if differences, err = helm.Diff(before, after); err != nil {
				return err
			}
		}
		if step.Manifests == nil || len(differences) == 0 {
			step.Manifests, step.Differences = manifests, differences
		}
		if len(differences) == 0 {
			break
		}
	}
	return nil
}

// fixed refuses to change what Kubernetes lets nobody change in a StatefulSet,
// before anything is sent: the size of its volumes, mostly.
func (s *Stack) fixed(step *Step) error {
	if step.Now == nil {
		return nil
	}
	for _, d := range step.Differences {
		is := func(o helm.Object) bool { return o.Kind == "StatefulSet" && o.Name == d.Name }
		before := slices.IndexFunc(step.Now.Objects, is)
		after := slices.IndexFunc(step.Manifests.Objects, is)
		if d.Kind != "StatefulSet" || before < 0 || after < 0 || slices.ContainsFunc(step.Missing, is) {
			continue
		}
		field, err := changedForever(step.Now.Objects[before], step.Manifests.Objects[after])
		if err != nil {
			return err
		}
		if field == "" {
			continue
		}
		f := &profiler.Fault{
			What: fmt.Sprintf("StatefulSet %s of %s cannot become what these values say", d.Name, step.Name),
			Why:  fmt.Errorf("its %s is fixed once it is there; Kubernetes takes no change", field),
			Fix:  fmt.Sprintf("kubectl -n %s delete statefulset %s --cascade=orphan     leaves pods and volumes; then run this again: what is new holds for new volumes", step.Namespace, d.Name),
		}
		if step.Now.Profile != "" && step.Now.Profile != s.Profile {
			f.Fix = fmt.Sprintf("--profile %s     keeps what it was installed with; or: %s", step.Now.Profile, f.Fix)
		}
		return f
	}
	return nil
}

// changedForever names a field of a StatefulSet that differs and may not: all of
// spec but these (API reference, StatefulSet; validation of updates).
func changedForever(before, after helm.Object) (string, error) {
	was, err := before.Tree()
	if err != nil {
		return "", err
	}
	is, err := after.Tree()
	if err != nil {
		return "", err
	}
	old, _ := was["spec"].(map[string]any)
	fresh, _ := is["spec"].(map[string]any)
	for _, field := range []string{"volumeClaimTemplates", "serviceName", "podManagementPolicy", "selector"} {
		if !reflect.DeepEqual(old[field], fresh[field]) {
			return field, nil
		}
	}
	return "", nil
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

// Profile gives the profile that the stack was installed with, "" where there is
// none: that of the release that was changed last and went through. One that
// failed may have failed for its profile.
func Profile(ctx context.Context, cluster *kube.Cluster) (string, error) {
	s := &Stack{Cluster: cluster}
	var last *helm.Installed
	for _, c := range component.All() {
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
		if now == nil || !now.Managed {
			continue
		}
		if last == nil || now.Deployed() && !last.Deployed() || now.Deployed() == last.Deployed() && now.Updated.After(last.Updated) {
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
