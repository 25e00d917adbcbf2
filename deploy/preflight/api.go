package preflight

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/kalypso-dev/kalypso/deploy/check"
	"github.com/kalypso-dev/kalypso/deploy/kube"
)

// api asks whether the server is ready to serve, not only there.
func (p *Preflight) api(ctx context.Context) check.Outcome {
	started := time.Now()
	body, err := p.Cluster.Client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
	switch {
	case apierrors.IsForbidden(err) || apierrors.IsNotFound(err): // an anonymous user, or a proxy in front
		return check.Pass("the server answers in %d ms", p.Cluster.Answer.Milliseconds())
	case err != nil:
		return check.Fail("%s is not ready: %s", p.Cluster.Server, strings.TrimSpace(string(body))).WithFix("kubectl get --raw '/readyz?verbose'     names the part that is not")
	}
	return check.Pass("the server answers in %d ms", time.Since(started).Milliseconds())
}

func (p *Preflight) version(context.Context) check.Outcome {
	if p.Cluster.TooOld() {
		return check.Fail("Kubernetes %s, and the charts need 1.%d", p.Cluster.Version, kube.OldestMinor)
	}
	return check.Pass("Kubernetes %s (need >= 1.%d)", p.Cluster.Version, kube.OldestMinor)
}

// right is something that one has to be allowed.
type right struct {
	group, resource, namespace string // no namespace: cluster-wide
	verbs                      string // joined by commas, so that a right can be a key
}

// kind is how kubectl names what the right is about.
func (r right) kind() string {
	if r.group == "" {
		return r.resource
	}
	return r.resource + "." + r.group
}

func (r right) String() string {
	name := r.kind()
	if r.namespace == "" {
		return fmt.Sprintf("%s %s, cluster-wide", r.verbs, name)
	}
	return fmt.Sprintf("%s %s in %s", r.verbs, name, r.namespace)
}

// askAtOnce is how many questions are under way at a time.
const askAtOnce = 16

// rbac asks the API server for each kind that an installation makes.
func (p *Preflight) rbac(ctx context.Context) check.Outcome {
	if may, err := p.may(ctx, right{group: "*", resource: "*", verbs: "*"}); err != nil {
		return unseen(err)
	} else if may {
		return check.Pass("you may do everything")
	}
	rights, err := p.rights(ctx)
	if err != nil {
		return unseen(err)
	}
	var (
		mu      sync.Mutex
		missing []right
	)
	group, limited := errgroup.WithContext(ctx)
	group.SetLimit(askAtOnce)
	for _, r := range rights {
		group.Go(func() error {
			var lacking []string
			for _, verb := range strings.Split(r.verbs, ",") {
				one := r
				one.verbs = verb
				may, err := p.may(limited, one)
				if err != nil {
					return err
				}
				if !may {
					lacking = append(lacking, verb)
				}
			}
			if len(lacking) > 0 {
				r.verbs = strings.Join(lacking, ",")
				mu.Lock()
				missing = append(missing, r)
				mu.Unlock()
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return unseen(err)
	}
	if len(missing) == 0 {
		return check.Pass("you may make what %s hold (%s)", kube.Count(len(p.Stack.Parts), "chart"), kube.Count(len(rights), "rule"))
	}
	return check.Fail("you may not:\n%s", strings.Join(joined(missing), "\n")).WithFix("%s", p.grant(ctx))
}

// joined tells rights in as few lines as they take: all kinds that the same is
// missing for in one place are one.
func joined(rights []right) []string {
	type where struct{ namespace, verbs string }
	kinds := map[where][]string{}
	for _, r := range rights {
		w := where{r.namespace, r.verbs}
		kinds[w] = append(kinds[w], r.kind())
	}
	type what struct {
		kinds, verbs string
		everywhere   bool
	}
	places := map[what][]string{}
	for w, names := range kinds {
		slices.Sort(names)
		k := what{strings.Join(names, " "), w.verbs, w.namespace == ""}
		places[k] = append(places[k], w.namespace)
	}
	var out []string
	for k, namespaces := range places {
		slices.Sort(namespaces)
		where := "in " + strings.Join(namespaces, " ")
		if k.everywhere {
			where = "cluster-wide"
		}
		out = append(out, fmt.Sprintf("%s %s: %s", k.verbs, where, k.kinds))
	}
	slices.Sort(out)
	return out
}

// grant is what somebody who may do everything types.
func (p *Preflight) grant(ctx context.Context) string {
	const fix = "an administrator types: kubectl create clusterrolebinding kalypsoctl --clusterrole cluster-admin "
	who, err := p.Cluster.Client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return fix + "--user YOU"
	}
	name := who.Status.UserInfo.Username
	if account, ok := strings.CutPrefix(name, "system:serviceaccount:"); ok {
		return fix + "--serviceaccount " + account
	}
	return fix + "--user '" + name + "'"
}

func (p *Preflight) may(ctx context.Context, r right) (bool, error) {
	review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
		ResourceAttributes: &authorizationv1.ResourceAttributes{Group: r.group, Resource: r.resource, Namespace: r.namespace, Verb: r.verbs},
	}}
	answer, err := p.Cluster.Client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return false, fmt.Errorf("ask for your rights: %w", err)
	}
	return answer.Status.Allowed, nil
}

// rights are those that an installation needs, each once, sorted.
func (p *Preflight) rights(ctx context.Context) ([]right, error) {
	all, err := p.manifests(ctx)
	if err != nil {
		return nil, err
	}
	mapper, err := p.Cluster.Getter("default").ToRESTMapper()
	if err != nil {
		return nil, err
	}
	const change = "get,create,patch,delete"
	seen := map[right]bool{
		{resource: "namespaces", verbs: "get,create,patch"}:                                                      true,
		{resource: "nodes", verbs: "list"}:                                                                       true,
		{group: "apiextensions.k8s.io", resource: "customresourcedefinitions", verbs: "list"}:                    true,
		{group: "coordination.k8s.io", resource: "leases", namespace: "kube-system", verbs: "get,create,update"}: true, // one run at a time
	}
	for _, part := range p.Stack.Parts {
		for _, r := range []right{
			{resource: "secrets", verbs: "get,list,create,update,delete"}, // where Helm keeps its releases
			{resource: "pods", verbs: "get,list,watch,delete"},            // those of a StatefulSet that never got ready
			{resource: "events", verbs: "list,watch"},
			{resource: "persistentvolumeclaims", verbs: "list,watch"}, // to wait for, as what follows
			{group: "apps", resource: "deployments", verbs: "list,watch"},
			{group: "apps", resource: "replicasets", verbs: "list,watch"},
			{group: "apps", resource: "statefulsets", verbs: "list,watch"},
			{group: "apps", resource: "daemonsets", verbs: "list,watch"},
			{group: "batch", resource: "jobs", verbs: "list,watch"},
		} {
			r.namespace = part.Namespace
			seen[r] = true
		}
		m := all[part.Name]
		for _, o := range slices.Concat(m.CRDs, m.Objects, m.Hooks) {
			kind := schema.FromAPIVersionAndKind(o.APIVersion, o.Kind)
			resource, namespaced := resourceOf(mapper, kind)
			r := right{group: kind.Group, resource: resource, verbs: change}
			if namespaced {
				if r.namespace = o.Namespace; r.namespace == "" {
					r.namespace = part.Namespace
				}
			}
			seen[r] = true
		}
	}
	out := make([]right, 0, len(seen))
	for r := range seen {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b right) int { return strings.Compare(a.String(), b.String()) })
	return out, nil
}

// resourceOf is the resource of a kind. Of one that the server does not know
// yet, whose CRD comes with the charts, it is guessed; these have a namespace,
// but for issuers of whole clusters.
func resourceOf(mapper meta.RESTMapper, kind schema.GroupVersionKind) (resource string, namespaced bool) {
	mapping, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		plural, _ := meta.UnsafeGuessKindToResource(kind)
		return plural.Resource, !strings.HasPrefix(kind.Kind, "Cluster")
	}
	return mapping.Resource.Resource, mapping.Scope.Name() == meta.RESTScopeNameNamespace
}

// namespaces looks for those that are being deleted: they take nothing new.
func (p *Preflight) namespaces(ctx context.Context) check.Outcome {
	var stuck []string
	fix, there := "", 0
	seen := map[string]bool{}
	for _, c := range p.components() {
		if seen[c.Namespace] {
			continue
		}
		seen[c.Namespace] = true
		ns, err := p.Cluster.Client.CoreV1().Namespaces().Get(ctx, c.Namespace, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			continue
		case err != nil:
			return unseen(err)
		}
		there++
		if ns.Status.Phase == corev1.NamespaceTerminating {
			stuck = append(stuck, fmt.Sprintf("%s is being deleted, since %s: %s", ns.Name, since(ns.DeletionTimestamp), kube.Remains(ns)))
			if fix == "" {
				fix = p.release(ctx, ns)
			}
		}
	}
	if len(stuck) > 0 {
		return check.Fail("%s", lines(stuck)).WithFix("%s", fix)
	}
	return check.Pass("%d of %d are there, none is being deleted", there, len(seen))
}

func since(t *metav1.Time) string {
	if t == nil {
		return "some time"
	}
	return kube.Age(time.Since(t.Time))
}

// release tells how a namespace gets free: by taking the finalizers off what is
// left in it, whose owners are gone.
func (p *Preflight) release(ctx context.Context, ns *corev1.Namespace) string {
	for _, c := range ns.Status.Conditions {
		if c.Type == corev1.NamespaceDeletionDiscoveryFailure && c.Status == corev1.ConditionTrue {
			return "kubectl get apiservices     names the part of the API that is not served: delete it, or what serves it has to run again"
		}
	}
	if resource, name := p.held(ctx, ns); name != "" {
		return fmt.Sprintf("kubectl -n %s patch %s %s --type merge -p '{\"metadata\":{\"finalizers\":null}}'", ns.Name, resource, name)
	}
	return fmt.Sprintf("wait for it: kubectl wait --for=delete namespace/%s --timeout=2m", ns.Name)
}

// held finds an object in a namespace that waits for its finalizers.
func (p *Preflight) held(ctx context.Context, ns *corev1.Namespace) (resource, name string) {
	lists, _ := p.Cluster.Client.Discovery().ServerPreferredResources() // those that are served
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			continue
		}
		for _, r := range list.APIResources {
			if !r.Namespaced || !slices.Contains(r.Verbs, "list") || !slices.Contains(r.Verbs, "patch") {
				continue
			}
			objects, err := p.Cluster.Dynamic.Resource(gv.WithResource(r.Name)).Namespace(ns.Name).List(ctx, metav1.ListOptions{Limit: 20})
			if err != nil {
				continue
			}
			i := slices.IndexFunc(objects.Items, func(o unstructured.Unstructured) bool {
				return len(o.GetFinalizers()) > 0 && o.GetDeletionTimestamp() != nil
			})
			if i < 0 {
				continue
			}
			resource = r.Name
			if gv.Group != "" {
				resource += "." + gv.Group
			}
			return resource, objects.Items[i].GetName()
		}
	}
	return "", ""
}

// ownership tells of what others made and install would have to change.
func (p *Preflight) ownership(ctx context.Context) check.Outcome {
	steps, err := p.Steps(ctx)
	if err != nil {
		return unseen(err)
	}
	var found []string
	for _, s := range steps {
		if slices.Contains(p.Stack.Adopt, s.Name) {
			continue
		}
		for _, line := range s.Foreign {
			if !slices.Contains(found, line) {
				found = append(found, line)
			}
		}
	}
	if len(found) > 0 {
		return check.Fail("%s", lines(found)).WithFix("%s", p.install(ctx))
	}
	return check.Pass("nothing that others made is in the way")
}

// webhooks: one that fails what it is not asked about, and that nobody answers
// for, is what a removed installation leaves behind.
func (p *Preflight) webhooks(ctx context.Context) check.Outcome {
	var refs []kube.Ref
	for _, kind := range []string{"ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"} {
		mapping := schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: strings.ToLower(kind) + "s"}
		list, err := p.Cluster.Dynamic.Resource(mapping).List(ctx, metav1.ListOptions{})
		if err != nil {
			return unseen(err)
		}
		for _, o := range list.Items {
			refs = append(refs, kube.Ref{APIVersion: "admissionregistration.k8s.io/v1", Kind: kind, Name: o.GetName()})
		}
	}
	return p.answer(ctx, refs, "webhook", "kubectl delete %s %s     if nothing of it is installed any more")
}

// apiServices: a part of the API that nobody serves.
func (p *Preflight) apiServices(ctx context.Context) check.Outcome {
	list, err := p.Cluster.Dynamic.Resource(schema.GroupVersionResource{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"}).List(ctx, metav1.ListOptions{})
	if err != nil {
		return unseen(err)
	}
	var refs []kube.Ref
	for _, o := range list.Items {
		if _, served, _ := unstructured.NestedMap(o.Object, "spec", "service"); served {
			refs = append(refs, kube.Ref{APIVersion: "apiregistration.k8s.io/v1", Kind: "APIService", Name: o.GetName()})
		}
	}
	return p.answer(ctx, refs, "added API", "kubectl delete %s %s     if what served it is gone")
}

func (p *Preflight) answer(ctx context.Context, refs []kube.Ref, thing, fix string) check.Outcome {
	states, err := p.Cluster.Readiness(ctx, refs)
	if err != nil {
		return unseen(err)
	}
	var silent []string
	var first kube.Ref
	for _, s := range states {
		if !s.Ready {
			silent = append(silent, s.Name+": "+strings.TrimPrefix(s.Reason, s.Name+": "))
			if first.Name == "" {
				first = s.Ref
			}
		}
	}
	if len(silent) > 0 {
		return check.Fail("%s", lines(silent)).WithFix(fix, strings.ToLower(first.Kind), first.Name)
	}
	if len(refs) == 0 {
		return check.Pass("there is no %s", thing)
	}
	return check.Pass("%s, none of them silent", kube.Count(len(refs), thing))
}

// errNothing is that no node could be asked.
var errNothing = errors.New("no node answers for its settings")
