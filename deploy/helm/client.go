package helm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/release"
	"helm.sh/helm/v3/pkg/releaseutil"
	"helm.sh/helm/v3/pkg/storage/driver"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"sigs.k8s.io/yaml"
)

// Labels of a release, on the Secret that Helm keeps it in.
const (
	ManagedBy = "app.kubernetes.io/managed-by" // Manager, of what kalypsoctl made
	Manager   = "kalypsoctl"
	ofProfile = "kalypso.io/profile"
)

// historyLimit is how many revisions of a release are kept, each with its chart:
// up to 300 KiB.
const historyLimit = 5

// finishLimit is how long an action may go on that was asked to end: it sends
// objects, and what it is in the middle of is recorded as interrupted otherwise.
const finishLimit = 20 * time.Second

// Client acts on the releases of one namespace.
type Client struct {
	cfg       *action.Configuration
	namespace string
}

// NewClient makes a client for a namespace. Charts are rendered for kubeVersion
// and for the API of a plain cluster of it, as Render does: what else a cluster
// has must not change what is installed. note, when not nil, is told of hooks
// that are waited for.
func NewClient(getter genericclioptions.RESTClientGetter, namespace, kubeVersion string, note func(string)) (*Client, error) {
	caps, err := capabilities(kubeVersion)
	if err != nil {
		return nil, err
	}
	log := func(format string, args ...any) {
		if note != nil && strings.HasPrefix(format, "Watching for changes to") && len(args) >= 2 {
			note(fmt.Sprintf("hook %v %v", args[0], args[1]))
		}
	}
	c := &Client{cfg: new(action.Configuration), namespace: namespace}
	if err := c.cfg.Init(getter, namespace, "secret", log); err != nil {
		return nil, fmt.Errorf("make a client for releases: %w", err)
	}
	c.cfg.Capabilities = caps
	// With it Helm would answer a chart's lookups from the cluster, and install
	// something else than Render shows.
	c.cfg.RESTClientGetter = nil
	return c, nil
}

// Installed is a release as a cluster has it, in its newest revision.
type Installed struct {
	Name      string
	Namespace string
	Chart     string
	Version   string // of the chart
	App       string // the version of what is in it, as the chart says
	Revision  int
	Status    string // deployed, failed, pending-install …: Helm's words
	Why       string // what Helm says of the status
	Updated   time.Time
	Profile   string // that it was installed with; empty where others installed it
	Managed   bool   // by kalypsoctl
	Worked    bool   // some revision of it was deployed
	Values    Values // that the user gave, beyond chart and profile
	Objects   []Object
	Hooks     []Object
}

// Deployed says whether the newest revision went through.
func (i *Installed) Deployed() bool { return i.Status == release.StatusDeployed.String() }

// Same says whether two looks at a release, of which each may be nil, saw the same
// revision in the same state.
func (i *Installed) Same(other *Installed) bool {
	if i == nil || other == nil {
		return i == other
	}
	return i.Chart == other.Chart && i.Revision == other.Revision && i.Status == other.Status && i.Updated.Equal(other.Updated)
}

// Interrupted says whether the newest revision was begun and neither went
// through nor failed.
func (i *Installed) Interrupted() bool {
	s := release.Status(i.Status)
	return s.IsPending() || s == release.StatusUninstalling
}

// List gives the releases of the namespace, by name.
func (c *Client) List() ([]*Installed, error) {
	all, err := c.cfg.Releases.ListReleases()
	if err != nil {
		return nil, fmt.Errorf("list the releases of namespace %s: %w", c.namespace, err)
	}
	byName := map[string][]*release.Release{}
	for _, r := range all {
		byName[r.Name] = append(byName[r.Name], r)
	}
	var out []*Installed
	for _, revisions := range byName {
		i, err := installed(revisions)
		if err != nil {
			return nil, err
		}
		out = append(out, i)
	}
	slices.SortFunc(out, func(a, b *Installed) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Find gives the release with this name, or nil.
func (c *Client) Find(name string) (*Installed, error) {
	revisions, err := c.history(name)
	if err != nil || len(revisions) == 0 {
		return nil, err
	}
	return installed(revisions)
}

// Before gives a release as it was in the newest revision up to this one that Helm
// sent whole, or nil.
func (c *Client) Before(name string, revision int) (*Installed, error) {
	revisions, err := c.history(name)
	if err != nil {
		return nil, err
	}
	for i := len(revisions) - 1; i >= 0; i-- {
		if revisions[i].Version <= revision && worked(revisions[i:i+1]) {
			return installed(revisions[:i+1])
		}
	}
	return nil, nil
}

// history gives the revisions of a release, oldest first.
func (c *Client) history(name string) ([]*release.Release, error) {
	revisions, err := c.cfg.Releases.History(name)
	if errors.Is(err, driver.ErrReleaseNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read release %s of namespace %s: %w", name, c.namespace, err)
	}
	releaseutil.SortByRevision(revisions)
	return revisions, nil
}

func installed(revisions []*release.Release) (*Installed, error) {
	releaseutil.SortByRevision(revisions)
	last := revisions[len(revisions)-1]
	i := &Installed{
		Name: last.Name, Namespace: last.Namespace, Revision: last.Version,
		Profile: last.Labels[ofProfile], Managed: last.Labels[ManagedBy] == Manager,
		Worked: worked(revisions), Values: last.Config,
	}
	if last.Chart != nil && last.Chart.Metadata != nil {
		i.Chart, i.Version, i.App = last.Chart.Metadata.Name, last.Chart.Metadata.Version, last.Chart.Metadata.AppVersion
	}
	if last.Info != nil {
		i.Status, i.Why, i.Updated = last.Info.Status.String(), last.Info.Description, last.Info.LastDeployed.Time
	}
	if err := appendObjects(&i.Objects, "", last.Manifest); err != nil {
		return nil, fmt.Errorf("read release %s: %w", last.Name, err)
	}
	for _, h := range last.Hooks {
		o, err := hook(h)
		if err != nil {
			return nil, fmt.Errorf("read release %s: %w", last.Name, err)
		}
		if len(o.Events) > 0 {
			i.Hooks = append(i.Hooks, o)
		}
	}
	return i, nil
}

// worked says whether a revision was deployed at some time.
func worked(revisions []*release.Release) bool {
	return slices.ContainsFunc(revisions, func(r *release.Release) bool {
		return r.Info != nil && (r.Info.Status == release.StatusDeployed || r.Info.Status == release.StatusSuperseded)
	})
}

// Change is a release as it is to be.
type Change struct {
	Name     string
	Chart    *Chart
	Archives *Archives
	Profile  string // recorded with the release
	Base     Values // of the profile: on the chart's own, below the user's
	Values   Values // that the user gave, these and earlier ones
	Adopt    bool   // objects that others made, too
	Timeout  time.Duration
}

// Apply makes the cluster have a release, from whatever state an earlier try
// left it in. It waits for hooks and for nothing else. Objects of crds folders
// are not its business. When ctx ends, what is being sent is finished.
func (c *Client) Apply(ctx context.Context, ch Change) error {
	loaded, err := ch.Chart.withDependencies(ch.Archives, Merge(ch.Base, ch.Values))
	if err != nil {
		return err
	}
	loaded.Values = Merge(loaded.Values, ch.Base)
	return c.finish(ctx, func() error { return c.apply(ch, loaded) })
}

// finish runs an action of Helm's, none of which can be asked to end.
func (c *Client) finish(ctx context.Context, do func() error) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	timer := time.NewTimer(finishLimit)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return context.Cause(ctx)
	}
}

func (c *Client) apply(ch Change, loaded *chart.Chart) error {
	revisions, err := c.recover(ch.Name, ch.Timeout)
	if err != nil {
		return err
	}
	labels := map[string]string{ManagedBy: Manager, "app.kubernetes.io/part-of": "kalypso", ofProfile: ch.Profile}
	if worked(revisions) {
		up := action.NewUpgrade(c.cfg)
		up.Namespace, up.Timeout, up.MaxHistory = c.namespace, ch.Timeout, historyLimit
		up.ResetValues = true // the caller has laid the user's earlier values below the new ones
		up.SkipCRDs, up.TakeOwnership, up.Labels = true, ch.Adopt, labels
		_, err := up.Run(ch.Name, loaded, ch.Values)
		return err
	}
	// One that never worked is installed again, not upgraded: hooks that run at
	// an installation are due.
	in := action.NewInstall(c.cfg)
	in.ReleaseName, in.Namespace, in.Timeout = ch.Name, c.namespace, ch.Timeout
	in.Replace, in.SkipCRDs, in.TakeOwnership, in.Labels = true, true, ch.Adopt, labels
	now, err := in.Run(loaded, ch.Values)
	if err != nil {
		return err
	}
	return c.deleteGone(revisions, now)
}

// recover brings a release that was interrupted into a state that Helm goes on
// from, and gives its revisions.
func (c *Client) recover(name string, timeout time.Duration) ([]*release.Release, error) {
	revisions, err := c.history(name)
	if err != nil || len(revisions) == 0 {
		return nil, err
	}
	last := revisions[len(revisions)-1]
	switch {
	case last.Info.Status.IsPending():
		last.SetStatus(release.StatusFailed, "interrupted")
		if err := c.cfg.Releases.Update(last); err != nil {
			return nil, fmt.Errorf("record that release %s was interrupted: %w", name, err)
		}
	case last.Info.Status == release.StatusUninstalling || last.Info.Status == release.StatusUninstalled:
		if err := c.uninstall(name, timeout); err != nil {
			return nil, err
		}
		return nil, nil
	}
	return revisions, nil
}

// deleteGone deletes what tries that never worked made and the one that did
// does not have.
func (c *Client) deleteGone(before []*release.Release, now *release.Release) error {
	kept, err := c.cfg.KubeClient.Build(bytes.NewBufferString(now.Manifest), false)
	if err != nil {
		return err
	}
	for _, r := range before {
		old, err := c.cfg.KubeClient.Build(bytes.NewBufferString(r.Manifest), false)
		if err != nil {
			return err
		}
		if gone := old.Difference(kept); len(gone) > 0 {
			if _, errs := c.cfg.KubeClient.Delete(gone); len(errs) > 0 {
				return errors.Join(errs...)
			}
		}
	}
	return nil
}

// RollBack makes a release what an earlier revision of it was. What is being sent
// is finished when ctx ends.
func (c *Client) RollBack(ctx context.Context, name string, revision int, timeout time.Duration) error {
	return c.finish(ctx, func() error {
		back := action.NewRollback(c.cfg)
		back.Version, back.Timeout, back.MaxHistory, back.CleanupOnFail = revision, timeout, historyLimit, true
		return back.Run(name)
	})
}

// Uninstall deletes a release and its objects, but for CRDs, with which every
// object of their kinds would go, and those that its chart says to keep. One that
// is not there is no error.
func (c *Client) Uninstall(ctx context.Context, name string, timeout time.Duration) error {
	return c.finish(ctx, func() error { return c.uninstall(name, timeout) })
}

func (c *Client) uninstall(name string, timeout time.Duration) error {
	if err := c.keepCRDs(name); err != nil {
		return err
	}
	u := action.NewUninstall(c.cfg)
	u.Timeout, u.IgnoreNotFound, u.DeletionPropagation = timeout, true, "foreground"
	_, err := u.Run(name)
	return err
}

// keepCRDs writes into a release that its CRDs are to be kept. Helm asks nothing
// else before it deletes an object, and not every chart says it.
func (c *Client) keepCRDs(name string) error {
	last, err := c.cfg.Releases.Last(name)
	if errors.Is(err, driver.ErrReleaseNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var objects []Object
	if err := appendObjects(&objects, "", last.Manifest); err != nil {
		return err
	}
	var b strings.Builder
	changed := false
	for _, o := range objects {
		if o.Kind == "CustomResourceDefinition" {
			if o.YAML, err = withKeep(o); err != nil {
				return err
			}
			changed = true
		}
		fmt.Fprintf(&b, "---\n%s\n", o.YAML)
	}
	if !changed {
		return nil
	}
	last.Manifest = b.String()
	return c.cfg.Releases.Update(last)
}

// withKeep is an object with the annotation that has Helm leave it.
func withKeep(o Object) (string, error) {
	tree, err := o.Tree()
	if err != nil {
		return "", err
	}
	metadata, _ := tree["metadata"].(map[string]any)
	annotations, _ := metadata["annotations"].(map[string]any)
	if annotations == nil {
		annotations = map[string]any{}
		metadata["annotations"] = annotations
	}
	annotations[resourcePolicy] = keep
	out, err := yaml.Marshal(tree)
	return string(out), err
}

const (
	resourcePolicy = "helm.sh/resource-policy"
	keep           = "keep"
)

// Kept says whether an object outlives its release: it is a CRD, or its chart says
// so.
func (o *Object) Kept() bool {
	if o.Kind == "CustomResourceDefinition" {
		return true
	}
	var head struct {
		Metadata struct {
			Annotations map[string]string `json:"annotations"`
		} `json:"metadata"`
	}
	return o.decode(&head) == nil && head.Metadata.Annotations[resourcePolicy] == keep
}

// Transient says whether an error is of those that pass: what has to answer for
// an object to be let in has only just been started.
func Transient(err error) bool {
	if err == nil {
		return false
	}
	text := err.Error()
	return slices.ContainsFunc([]string{
		"failed calling webhook",
		"no endpoints available for service",
		"no matches for kind", // a CRD that the server has only just learnt
		"the object has been modified",
		"etcdserver: request timed out",
		"connection refused",
		"connection reset by peer",
		"Internal error occurred: failed calling",
	}, func(part string) bool { return strings.Contains(text, part) })
}
