package install

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"

	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/profiler"
)

// Labels and annotations.
const (
	managedBy     = helm.ManagedBy
	manager       = helm.Manager
	partOf        = "app.kubernetes.io/part-of"
	adopted       = "kalypso.io/adopted" // a namespace that others made and --adopt named
	keepPolicy    = "helm.sh/resource-policy"
	crdDigest     = "kalypso.io/sha256" // of a CRD as the chart has it
	releaseName   = "meta.helm.sh/release-name"
	releaseSpace  = "meta.helm.sh/release-namespace"
	helmManager   = "Helm" // what Helm has for managed-by
	crdKind       = "CustomResourceDefinition"
	lookAtObjects = 16 // at a time
)

// look sees which objects are on the cluster, and whose they are.
type look struct {
	stack  *Stack
	client metadata.Interface
	mapper meta.RESTMapper

	mu         sync.Mutex
	namespaces map[string]*space
}

// space is a namespace.
type space struct {
	once    sync.Once
	exists  bool
	foreign string // whose it is, in words; empty if it is ours or holds nothing
	err     error
}

// found is what is on the cluster for a step.
type found struct {
	foreign []string // in words
	missing []helm.Object
	crds    []helm.Difference // of crds folders
}

func (s *Stack) newLook() (*look, error) {
	client, err := s.metadata()
	if err != nil {
		return nil, err
	}
	if err := s.forget(); err != nil {
		return nil, err
	}
	mapper, err := s.Cluster.Getter("").ToRESTMapper()
	if err != nil {
		return nil, fmt.Errorf("ask for the API of the cluster: %w", err)
	}
	return &look{stack: s, client: client, mapper: mapper, namespaces: map[string]*space{}}, nil
}

// at looks for everything that a step has to do with.
func (l *look) at(ctx context.Context, step *Step) (*found, error) {
	f := &found{}
	ns, err := l.namespace(ctx, step.Namespace)
	if err != nil {
		return nil, err
	}
	if ns.foreign != "" {
		f.foreign = append(f.foreign, ns.foreign)
	}
	if now := step.Now; now != nil && !now.Managed {
		f.foreign = append(f.foreign, fmt.Sprintf("release %s in namespace %s was installed with Helm on %s (chart %s %s)", now.Name, now.Namespace, day(now.Updated), now.Chart, now.Version))
	}
	states, err := l.objects(ctx, step.Namespace, step.Manifests.Objects)
	if err != nil {
		return nil, err
	}
	owners := map[string][]string{}
	ours := map[string]bool{}
	if step.Now != nil {
		for _, o := range step.Now.Objects {
			ours[o.Kind+"/"+o.Namespace+"/"+o.Name] = true
		}
	}
	for i, o := range step.Manifests.Objects {
		switch owner := owner(states[i], step); {
		case states[i] == nil && ours[o.Kind+"/"+o.Namespace+"/"+o.Name]:
			f.missing = append(f.missing, o)
		case owner != "":
			owners[owner] = append(owners[owner], o.Kind+" "+o.Name)
		}
	}
	if err := l.crds(ctx, step, f, owners); err != nil {
		return nil, err
	}
	for _, owner := range sortedKeys(owners) {
		f.foreign = append(f.foreign, few(owners[owner])+" "+owner)
	}
	return f, nil
}

// crds looks at the CRDs of crds folders, which Helm would never change again.
func (l *look) crds(ctx context.Context, step *Step, f *found, owners map[string][]string) error {
	states, err := l.objects(ctx, step.Namespace, step.Manifests.CRDs)
	if err != nil {
		return err
	}
	for i, o := range step.Manifests.CRDs {
		switch state := states[i]; {
		case state == nil && step.Now != nil:
			f.missing = append(f.missing, o)
		case state == nil:
		case state.Labels[managedBy] != manager:
			owners["others made"] = append(owners["others made"], o.Kind+" "+o.Name)
		case state.Annotations[crdDigest] != digest(o):
			f.crds = append(f.crds, helm.Difference{Object: o, Before: "another version\n", After: "the version of " + step.Chart.Name() + "\n"})
		}
	}
	return nil
}

// volumes refuses to delete a volume because a chart does not have it any more:
// another chart's release that is adopted, mostly.
func (l *look) volumes(ctx context.Context, step *Step) error {
	var gone []helm.Object
	for _, d := range step.Differences {
		if d.After == "" && d.Kind == "PersistentVolumeClaim" {
			gone = append(gone, d.Object)
		}
	}
	states, err := l.objects(ctx, step.Namespace, gone)
	if err != nil {
		return err
	}
	for i, o := range gone {
		if states[i] != nil && states[i].Annotations[keepPolicy] != "keep" {
			return &profiler.Fault{
				What: fmt.Sprintf("version %s of %s would delete volume %s/%s", step.Chart.Version(), step.Name, states[i].Namespace, o.Name),
				Why:  fmt.Errorf("release %s has it, and chart %s with these values has not", step.Release, step.Chart.Name()),
				Fix:  fmt.Sprintf("kubectl -n %s annotate pvc %s %s=keep     keeps it; then run this again", states[i].Namespace, o.Name, keepPolicy),
			}
		}
	}
	return nil
}

func digest(o helm.Object) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(o.YAML))) }

// owner says in words whose an object is, or nothing if it may be changed.
func owner(o *metav1.PartialObjectMetadata, step *Step) string {
	if o == nil {
		return ""
	}
	name, namespace := o.Annotations[releaseName], o.Annotations[releaseSpace]
	switch {
	case name == "" && o.Labels[managedBy] == helmManager:
		return "others made with Helm"
	case name == "":
		return "others made"
	case name != step.Release || namespace != step.Namespace:
		return fmt.Sprintf("belongs to release %s of namespace %s", name, namespace)
	case o.Labels[managedBy] != helmManager:
		return "others made"
	}
	return ""
}

// objects gives what the cluster knows of each object, nil for those that are
// not there.
func (l *look) objects(ctx context.Context, namespace string, objects []helm.Object) ([]*metav1.PartialObjectMetadata, error) {
	out := make([]*metav1.PartialObjectMetadata, len(objects))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(lookAtObjects)
	for i, o := range objects {
		group.Go(func() (err error) {
			out[i], err = l.object(ctx, namespace, o)
			return err
		})
	}
	return out, group.Wait()
}

func (l *look) object(ctx context.Context, namespace string, o helm.Object) (*metav1.PartialObjectMetadata, error) {
	mapping, err := l.mapper.RESTMapping(schema.FromAPIVersionAndKind(o.APIVersion, o.Kind).GroupKind(), versionOf(o.APIVersion))
	if meta.IsNoMatchError(err) {
		return nil, nil // an object of a kind that is not known yet
	}
	if err != nil {
		return nil, fmt.Errorf("ask for the API of the cluster: %w", err)
	}
	var resource metadata.ResourceInterface = l.client.Resource(mapping.Resource)
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		if o.Namespace != "" {
			namespace = o.Namespace
		}
		ns, err := l.namespace(ctx, namespace)
		if err != nil {
			return nil, err
		}
		if !ns.exists {
			return nil, nil
		}
		resource = l.client.Resource(mapping.Resource).Namespace(namespace)
	}
	state, err := resource.Get(ctx, o.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, rights(o.Kind+" "+o.Name, err)
	}
	return state, nil
}

func versionOf(apiVersion string) string {
	_, version, grouped := strings.Cut(apiVersion, "/")
	if !grouped {
		return apiVersion
	}
	return version
}

// namespace looks at a namespace once.
func (l *look) namespace(ctx context.Context, name string) (*space, error) {
	l.mu.Lock()
	ns, ok := l.namespaces[name]
	if !ok {
		ns = &space{}
		l.namespaces[name] = ns
	}
	l.mu.Unlock()
	ns.once.Do(func() { ns.exists, ns.foreign, ns.err = l.stack.lookAtNamespace(ctx, name) })
	return ns, ns.err
}

// lookAtNamespace says whether a namespace is there and, if others made it and
// run something there, what. An empty one that others made is theirs and may be
// used.
func (s *Stack) lookAtNamespace(ctx context.Context, name string) (exists bool, foreign string, err error) {
	ns, err := s.Cluster.Client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, "", nil
	}
	if err != nil {
		return false, "", rights("namespace "+name, err)
	}
	if ns.Labels[managedBy] == manager || ns.Labels[adopted] == "true" || name == "default" || strings.HasPrefix(name, "kube-") {
		return true, "", nil
	}
	client, err := s.releases(name, nil)
	if err != nil {
		return true, "", err
	}
	releases, err := client.List()
	if err != nil {
		return true, "", rights("namespace "+name, err)
	}
	for _, r := range releases {
		if !r.Managed {
			return true, fmt.Sprintf("namespace %s is not kalypsoctl's: release %s was installed there on %s", name, r.Name, day(r.Updated)), nil
		}
	}
	pods, err := s.Cluster.Client.CoreV1().Pods(name).List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return true, "", rights("namespace "+name, err)
	}
	if len(pods.Items) > 0 && len(releases) == 0 {
		return true, fmt.Sprintf("namespace %s is not kalypsoctl's: pods run there, such as %s", name, pods.Items[0].Name), nil
	}
	return true, "", nil
}

// refuse is the error for what others made and nobody adopts.
func (s *Stack) refuse(steps []*Step, foreign map[string][]string) error {
	var names, lines []string
	for _, step := range steps {
		if s.adopts(step.Name) || len(foreign[step.Name]) == 0 {
			continue
		}
		names = append(names, step.Name)
		for _, line := range foreign[step.Name] {
			if line = step.Name + ": " + line; !slices.Contains(lines, line) {
				lines = append(lines, line)
			}
		}
	}
	if len(names) == 0 {
		return nil
	}
	what := "cannot install " + names[0] + ": something is there that kalypsoctl did not make"
	if len(names) > 1 {
		what = fmt.Sprintf("cannot install %d components: things are there that kalypsoctl did not make", len(names))
	}
	return &profiler.Fault{
		What: what,
		Why:  errors.New(strings.Join(lines, "\n       ")),
		Fix:  fmt.Sprintf("--adopt %s     takes it over, --skip %s leaves it as it is", strings.Join(names, ","), strings.Join(names, ",")),
		Kind: ErrForeign,
	}
}

// few names the first of several things.
func few(things []string) string {
	if len(things) == 1 {
		return things[0]
	}
	return fmt.Sprintf("%s and %d more", things[0], len(things)-1)
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02") }

// rights makes an error of missing rights one that says so.
func rights(of string, err error) error {
	if apierrors.IsForbidden(err) {
		return &profiler.Fault{What: "you may not look at " + of, Why: err, Fix: "kalypsoctl preflight --only rbac     lists the rights that are needed", Kind: kube.ErrForbidden}
	}
	return err
}

// terminating says what holds a namespace that is being deleted.
func terminating(ns *corev1.Namespace) string {
	var holds []string
	for _, c := range ns.Status.Conditions {
		if c.Status == corev1.ConditionTrue {
			holds = append(holds, c.Message)
		}
	}
	if len(holds) == 0 && len(ns.Spec.Finalizers) > 0 {
		var names []string
		for _, f := range ns.Spec.Finalizers {
			names = append(names, string(f))
		}
		return "finalizer " + strings.Join(names, ", ") + " is not done"
	}
	return strings.Join(holds, "; ")
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
