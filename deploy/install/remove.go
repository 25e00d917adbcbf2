package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"

	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/plan"
	"github.com/kalypso-dev/kalypso/profiler"
)

// Removal is what has to be done for a cluster not to have components.
type Removal struct {
	Waves   [][]*Gone // last installed first
	Foreign []string  // releases that others made, in words; they stay
	Needed  []string  // "mimir needs minio": what stays and will miss something
	stay    []component.Component
	named   []component.Component // what was asked for, there or not
	options RemoveOptions
}

// RemoveOptions say what goes beside the releases.
type RemoveOptions struct {
	Data    bool // volumes and credentials
	CRDs    bool // and with them every object of these kinds, whoever made it
	Timeout time.Duration
}

// Gone is a component that is taken away.
type Gone struct {
	component.Component
	Now *helm.Installed
}

// Left is what stays on the cluster, and the command that removes it.
type Left struct {
	What    string // volumes, CRDs …
	Names   []string
	Command string
}

// PlanRemoval looks which of these components are there. It changes nothing.
func (s *Stack) PlanRemoval(ctx context.Context, names []string, o RemoveOptions) (*Removal, error) {
	r := &Removal{options: o}
	there := map[string]*helm.Installed{}
	for _, c := range component.All() {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		client, err := s.releases(c.Namespace, nil)
		if err != nil {
			return nil, err
		}
		now, err := client.Find(c.Release)
		if err != nil {
			return nil, rights(c.Name, err)
		}
		if now != nil {
			there[c.Name] = now
		}
	}
	var going []component.Component
	for _, c := range component.All() {
		now := there[c.Name]
		if slices.Contains(names, c.Name) {
			r.named = append(r.named, c)
		}
		switch {
		case now == nil:
		case !slices.Contains(names, c.Name):
			r.stay = append(r.stay, c)
			for _, need := range c.Needs {
				if there[need] != nil && slices.Contains(names, need) {
					r.Needed = append(r.Needed, c.Name+" needs "+need)
				}
			}
		case !now.Managed:
			r.stay = append(r.stay, c)
			r.Foreign = append(r.Foreign, fmt.Sprintf("release %s in namespace %s, which was installed with Helm on %s", now.Name, now.Namespace, day(now.Updated)))
		default:
			going = append(going, c)
		}
	}
	waves, err := plan.Waves(going)
	if err != nil {
		return nil, err
	}
	for _, wave := range slices.Backward(waves) {
		var gone []*Gone
		for _, c := range wave {
			gone = append(gone, &Gone{c, there[c.Name]})
		}
		r.Waves = append(r.Waves, gone)
	}
	return r, nil
}

// Remove takes the components of a removal away, wave after wave, then their
// namespaces, and with the options more. It gives what it leaves.
func (s *Stack) Remove(ctx context.Context, r *Removal, report func(Event)) ([]Left, error) {
	ctx, unlock, err := s.lock(ctx, func(what string) {
		for _, wave := range r.Waves {
			report(Event{Component: wave[0].Name, State: Waiting, Detail: what})
			return
		}
	})
	if err != nil {
		return nil, err
	}
	defer unlock()
	// Another run may have been at work since it was planned.
	if r, err = s.PlanRemoval(ctx, component.Names(r.named), r.options); err != nil {
		return nil, err
	}
	for _, wave := range r.Waves {
		group, limited := errgroup.WithContext(ctx)
		for _, gone := range wave {
			group.Go(func() error { return s.remove(limited, gone, r.options.Timeout, report) })
		}
		if err := group.Wait(); err != nil {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			return nil, err
		}
	}
	started := time.Now()
	say := func(state State, detail string) {
		report(Event{Component: "namespaces", State: state, Detail: detail, Took: time.Since(started)})
	}
	say(Sending, "deleting those that nobody needs any more")
	left, err := s.clear(ctx, r)
	switch {
	case err == nil:
		say(Done, "")
	case ctx.Err() != nil:
		say(Stopped, "")
		err = context.Cause(ctx)
	default:
		say(Failed, reason(err))
	}
	return left, err
}

// remove takes one component away and waits until its objects are gone.
func (s *Stack) remove(ctx context.Context, gone *Gone, limit time.Duration, report func(Event)) error {
	started := time.Now()
	say := func(state State, detail string) {
		report(Event{Component: gone.Name, State: state, Detail: detail, Took: time.Since(started)})
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	say(Sending, "deleting its objects")
	client, err := s.releases(gone.Namespace, func(what string) { say(Sending, what) })
	if err == nil {
		err = client.Uninstall(limited, gone.Release, limit)
	}
	if err == nil {
		err = s.waitGone(limited, gone, say)
	}
	switch {
	case err == nil:
		say(Done, "")
		return nil
	case ctx.Err() != nil:
		say(Stopped, "")
		return context.Cause(ctx)
	}
	say(Failed, reason(err))
	var fault *profiler.Fault
	if errors.As(err, &fault) {
		return err
	}
	return &profiler.Fault{What: "cannot remove " + gone.Name, Why: errors.New(oneLine(err)), Fix: "kalypsoctl uninstall     goes on from here when it is mended"}
}

// waitGone waits until the objects of a release are gone, its pods with them:
// what they need is taken away next.
func (s *Stack) waitGone(ctx context.Context, gone *Gone, say func(State, string)) error {
	look, err := s.newLook()
	if err != nil {
		return err
	}
	left := slices.DeleteFunc(slices.Clone(gone.Now.Objects), func(o helm.Object) bool { return o.Kept() })
	for {
		states, err := look.objects(ctx, gone.Namespace, left)
		if err != nil && ctx.Err() == nil {
			return err
		}
		if err == nil {
			var still []helm.Object
			for i, o := range left {
				if states[i] != nil {
					still = append(still, o)
				}
			}
			if left = still; len(left) == 0 {
				return nil
			}
		}
		what := fmt.Sprintf("%s %s", left[0].Kind, left[0].Name)
		if ctx.Err() == nil {
			say(Starting, fmt.Sprintf("%d left; %s", len(left), what))
		}
		if pause(ctx, goneEvery) != nil {
			return &Timeout{&profiler.Fault{
				What: "cannot remove " + gone.Name + ": " + what + " does not go",
				Why:  fmt.Errorf("it is being deleted, and %s are over", s.Timeout),
				Fix:  fmt.Sprintf("kubectl -n %s get %s %s -o yaml     names its finalizers; what owns them has to run", gone.Namespace, strings.ToLower(left[0].Kind), left[0].Name),
			}}
		}
	}
}

// clear deletes what the options name and namespaces that nobody needs any
// more, and gives what is left.
func (s *Stack) clear(ctx context.Context, r *Removal) ([]Left, error) {
	var (
		left  []Left
		mu    sync.Mutex
		space []string
	)
	crds, err := s.crds(ctx, r)
	if err != nil {
		return nil, err
	}
	if len(crds) > 0 {
		left = append(left, Left{"CRDs", crds, "kalypsoctl uninstall --delete-crds"})
	}
	for _, c := range r.named { // of others nobody spoke, though they may be gone already
		used := slices.ContainsFunc(r.stay, func(stays component.Component) bool { return stays.Namespace == c.Namespace })
		if !used && !slices.Contains(space, c.Namespace) {
			space = append(space, c.Namespace)
		}
	}
	// What is of a kind that nobody here has heard of is somebody's all the same.
	kinds, err := s.Cluster.Kinds()
	if err != nil && !discovery.IsGroupDiscoveryFailedError(err) {
		return nil, fmt.Errorf("ask for the kinds of objects: %w", err)
	}
	volumes, secrets, spaces, others := Left{What: "volumes"}, Left{What: "Secrets"}, Left{What: "namespaces"}, []Left{}
	group, limited := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for _, name := range space {
		group.Go(func() error {
			n, err := s.clearNamespace(limited, r, name, kinds)
			mu.Lock()
			defer mu.Unlock()
			volumes.Names = append(volumes.Names, n.volumes...)
			secrets.Names = append(secrets.Names, n.secrets...)
			if n.kept {
				spaces.Names = append(spaces.Names, name)
			}
			if n.foreign != "" {
				others = append(others, Left{"namespace " + name, []string{n.foreign}, "kubectl delete namespace " + name})
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for _, l := range []Left{volumes, secrets, spaces} {
		if len(l.Names) > 0 {
			slices.Sort(l.Names)
			l.Command = "kalypsoctl uninstall --delete-data"
			left = append(left, l)
		}
	}
	slices.SortFunc(others, func(a, b Left) int { return strings.Compare(a.What, b.What) })
	return append(left, others...), nil
}

// leftover is what a namespace still holds.
type leftover struct {
	volumes, secrets []string
	kept             bool   // it is ours, and stays for what it holds of ours
	foreign          string // what it holds of others; for that it stays too
}

// clearNamespace deletes a namespace that kalypsoctl made and that holds nothing
// worth keeping.
func (s *Stack) clearNamespace(ctx context.Context, r *Removal, name string, kinds []schema.GroupVersionResource) (leftover, error) {
	var left leftover
	o := r.options
	core := s.Cluster.Client.CoreV1()
	ns, err := core.Namespaces().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && ns.Status.Phase == corev1.NamespaceTerminating {
		return left, nil
	}
	if err != nil {
		return left, rights("namespace "+name, err)
	}
	ours := ns.Labels[managedBy] == manager
	claims, err := core.PersistentVolumeClaims(name).List(ctx, metav1.ListOptions{})
	if err != nil {
		return left, rights("volumes of namespace "+name, err)
	}
	for _, claim := range claims.Items {
		if !r.owns(name, &claim.ObjectMeta) {
			continue // it is found to be foreign below
		}
		if !o.Data {
			size := claim.Spec.Resources.Requests[corev1.ResourceStorage]
			left.volumes = append(left.volumes, fmt.Sprintf("%s/%s (%s)", name, claim.Name, size.String()))
			continue
		}
		if err := core.PersistentVolumeClaims(name).Delete(ctx, claim.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return left, fmt.Errorf("delete volume %s/%s: %w", name, claim.Name, err)
		}
		err := vanished(ctx, o.Timeout, "pvc -n "+name+" "+claim.Name, func() (string, error) {
			_, err := core.PersistentVolumeClaims(name).Get(ctx, claim.Name, metav1.GetOptions{})
			return "", err
		})
		if err != nil {
			return left, err
		}
	}
	if left.foreign, err = s.foreignIn(ctx, r, name, kinds); err != nil {
		return left, err
	}
	keep := len(left.volumes) > 0 || left.foreign != "" || !ours
	if left.secrets, err = s.clearSecrets(ctx, name, keep && !o.Data); err != nil {
		return left, err
	}
	if !ours {
		left.foreign = ""
		return left, nil
	}
	if keep {
		left.kept = left.foreign == ""
		return left, nil
	}
	if err := core.Namespaces().Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return left, fmt.Errorf("delete namespace %s: %w", name, err)
	}
	return left, vanished(ctx, o.Timeout, "namespace "+name, func() (string, error) {
		ns, err := core.Namespaces().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		return terminating(ns), nil
	})
}

// vanished waits until what is being deleted is gone; look says what holds it.
func vanished(ctx context.Context, limit time.Duration, what string, look func() (string, error)) error {
	giveUp := time.Now().Add(limit)
	for {
		holds, err := look()
		switch {
		case apierrors.IsNotFound(err):
			return nil
		case err != nil:
			return fmt.Errorf("look whether %s is gone: %w", what, err)
		case time.Now().After(giveUp):
			if holds == "" {
				holds = "its finalizers are not done"
			}
			return &Timeout{&profiler.Fault{
				What: what + " is being deleted, and that does not end", Why: errors.New(holds),
				Fix: "kubectl get " + what + " -o yaml     names its finalizers; what owns them has to run",
			}}
		}
		if err := pause(ctx, goneEvery); err != nil {
			return err
		}
	}
}

// goneEvery is how often it is looked whether something is gone.
const goneEvery = 300 * time.Millisecond

// clearSecrets deletes the credentials of a namespace, or names them where they
// stay: what is in the volumes was made with them.
func (s *Stack) clearSecrets(ctx context.Context, namespace string, keep bool) ([]string, error) {
	secrets := s.Cluster.Client.CoreV1().Secrets(namespace)
	list, err := secrets.List(ctx, metav1.ListOptions{LabelSelector: managedBy + "=" + manager + "," + partOf + "=kalypso,owner!=helm"})
	if err != nil {
		return nil, rights("Secrets of namespace "+namespace, err)
	}
	var kept []string
	for _, secret := range list.Items {
		if keep {
			kept = append(kept, namespace+"/"+secret.Name)
			continue
		}
		if err := secrets.Delete(ctx, secret.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("delete Secret %s/%s: %w", namespace, secret.Name, err)
		}
	}
	return kept, nil
}

// foreignIn names something in a namespace that is not of the stack, "" if there
// is nothing.
func (s *Stack) foreignIn(ctx context.Context, r *Removal, namespace string, kinds []schema.GroupVersionResource) (string, error) {
	client, err := s.metadata()
	if err != nil {
		return "", err
	}
	for _, kind := range kinds {
		list, err := client.Resource(kind).Namespace(namespace).List(ctx, metav1.ListOptions{})
		if apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err) {
			continue // its CRD has just gone
		}
		if err != nil {
			return "", rights(kind.Resource+" of namespace "+namespace, err)
		}
		for _, item := range list.Items {
			if item.DeletionTimestamp == nil && !r.owns(namespace, &item.ObjectMeta) && !byproduct(kind.Resource, &item) {
				return fmt.Sprintf("%s %s is not of the stack", strings.TrimSuffix(kind.Resource, "s"), item.Name), nil
			}
		}
	}
	return "", nil
}

// owns says whether an object that outlives its release is of a component that
// was asked for: a StatefulSet's volumes, a hook's account.
func (r *Removal) owns(namespace string, o *metav1.ObjectMeta) bool {
	return slices.ContainsFunc(r.named, func(c component.Component) bool {
		return c.Namespace == namespace && (o.Labels["app.kubernetes.io/instance"] == c.Release ||
			o.Labels["release"] == c.Release || o.Annotations[releaseName] == c.Release)
	})
}

// byproduct says whether an object is one that Kubernetes or a part of the stack
// made while it ran, and that nobody misses.
func byproduct(resource string, o *metav1.PartialObjectMetadata) bool {
	if len(o.OwnerReferences) > 0 {
		return true // goes with its owner
	}
	switch o.Labels[managedBy] {
	case manager, "cert-manager", "opentelemetry-operator":
		return true
	}
	switch resource {
	case "endpoints", "endpointslices":
		return true // Kubernetes makes them of Services, and forgets them late
	case "serviceaccounts":
		return o.Name == "default"
	case "configmaps":
		return o.Name == "kube-root-ca.crt" || strings.HasPrefix(o.Name, "istio")
	case "secrets":
		return o.Name == "cert-manager-webhook-ca" || o.Name == "istio-ca-secret" ||
			strings.HasPrefix(o.Annotations["cert-manager.io/certificate-name"], "opentelemetry-operator")
	}
	return false
}

// crds deletes the CRDs of components that are gone, or names them.
func (s *Stack) crds(ctx context.Context, r *Removal) ([]string, error) {
	client, err := s.metadata()
	if err != nil {
		return nil, err
	}
	list, err := client.Resource(crdResource).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, rights("CRDs", err)
	}
	var kept, deleted []string
	for _, crd := range list.Items {
		owns := func(c component.Component) bool {
			return crd.Annotations[releaseName] == c.Release && crd.Annotations[releaseSpace] == c.Namespace
		}
		if !slices.ContainsFunc(r.named, owns) || slices.ContainsFunc(r.stay, owns) {
			continue
		}
		if !r.options.CRDs {
			kept = append(kept, crd.Name)
			continue
		}
		if err := client.Resource(crdResource).Delete(ctx, crd.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("delete CRD %s: %w", crd.Name, err)
		}
		deleted = append(deleted, crd.Name)
	}
	for _, name := range deleted {
		err := vanished(ctx, r.options.Timeout, "crd "+name, func() (string, error) {
			_, err := client.Resource(crdResource).Get(ctx, name, metav1.GetOptions{})
			return "", err
		})
		if err != nil {
			return nil, err
		}
	}
	return kept, nil
}
