package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/deploy/secret"
	"github.com/kalypso-dev/kalypso/profiler"
)

const (
	// webhookLimit is for webhooks that were installed a wave before and do not
	// answer yet: their certificates have to reach the API server.
	webhookLimit = 2 * time.Minute
	// againAfter is how long between two tries of the same.
	againAfter = 2 * time.Second
	// terminatingLimit is for a namespace that is being deleted: an ordinary one
	// is gone in seconds.
	terminatingLimit = time.Minute
)

// Apply does what a plan says; p is made anew if another run was at work since.
// It tells of every step as it goes, and ends with
// the first thing that cannot heal: what is being sent then is finished, and
// what was installed stays, so that the next run goes on from there.
//
// An error is a profiler.Fault where a person is to mend something, a Timeout
// of this package or of kube when a component did not work in time, and the
// cause of ctx when that ended.
func (s *Stack) Apply(ctx context.Context, p *Plan, report func(Event)) error {
	if len(p.Waves) == 0 {
		return nil
	}
	ctx, unlock, err := s.lock(ctx, func(what string) {
		report(Event{Component: p.Waves[0][0].Name, State: Waiting, Detail: what})
	})
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.refresh(ctx, p); err != nil {
		return err
	}
	for _, step := range p.Steps() {
		if err := s.ensureNamespace(ctx, step, report); err != nil {
			return err
		}
	}
	if _, err := secret.Ensure(ctx, s.Cluster.Client, s.components(), s.store()); err != nil {
		return err
	}
	for _, wave := range p.Waves {
		group, limited := errgroup.WithContext(ctx)
		for _, step := range wave {
			group.Go(func() error { return s.run(limited, step, report) })
		}
		if err := group.Wait(); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if s.RollBack {
				s.rollBack(ctx, wave, report)
			}
			return err
		}
	}
	return nil
}

// refresh makes a plan anew if another run has changed a release since it was
// made.
func (s *Stack) refresh(ctx context.Context, p *Plan) error {
	for _, step := range p.Steps() {
		client, err := s.releases(step.Namespace, nil)
		if err != nil {
			return err
		}
		now, err := client.Find(step.Release)
		if err != nil {
			return rights(step.Name, err)
		}
		if now.Same(step.Now) {
			continue
		}
		fresh, err := s.Plan(ctx)
		if err != nil {
			return err
		}
		*p = *fresh
		return nil
	}
	return nil
}

// run brings one component to where it is ready, and tells how it ended.
func (s *Stack) run(ctx context.Context, step *Step, report func(Event)) error {
	started := time.Now()
	say := func(state State, detail string) {
		report(Event{Component: step.Name, State: state, Detail: detail, Took: time.Since(started)})
	}
	limited, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	err := s.bring(limited, step, say)
	switch {
	case err == nil && step.Action == Keep:
		say(Kept, "")
	case err == nil:
		say(Done, "")
	case ctx.Err() != nil: // another failed, or somebody pressed ^C
		say(Stopped, "")
		return context.Cause(ctx)
	default:
		say(Failed, reason(err))
	}
	return err
}

// reason is an error on one line: what is said below it says the rest.
func reason(err error) string {
	var fault *profiler.Fault
	if errors.As(err, &fault) {
		return fault.What
	}
	return err.Error()
}

// bring sends a component's objects, if they are not what they should be, and
// waits until it works.
func (s *Stack) bring(ctx context.Context, step *Step, say func(State, string)) error {
	if step.Action != Keep {
		say(Sending, "")
		if err := s.applyCRDs(ctx, step); err != nil {
			return err
		}
		if err := s.send(ctx, step, say); err != nil {
			return err
		}
	}
	if step.Now != nil { // also if they were sent before: the run that did it may have been interrupted
		if err := s.replaceStuck(ctx, step, step.Manifests.Objects); err != nil {
			return err
		}
	}
	if err := s.wait(ctx, refsOf(slices.Concat(step.Manifests.CRDs, step.Manifests.Objects), step.Namespace), say); err != nil {
		return err
	}
	return s.admit(ctx, step, say)
}

func (s *Stack) wait(ctx context.Context, refs []kube.Ref, say func(State, string)) error {
	return s.Cluster.WaitReady(ctx, refs, func(p kube.Progress) {
		if p.Ready < p.Total {
			say(Starting, p.String())
		}
	})
}

// send has Helm apply a release, again while what has to let its objects in does
// not answer.
func (s *Stack) send(ctx context.Context, step *Step, say func(State, string)) error {
	var at atomic.Pointer[string] // what was being waited for
	client, err := s.releases(step.Namespace, func(what string) {
		at.Store(&what)
		say(Sending, what)
	})
	if err != nil {
		return err
	}
	giveUp := time.Now().Add(webhookLimit)
	for {
		limit := s.Timeout
		if deadline, ok := ctx.Deadline(); ok {
			limit = time.Until(deadline)
		}
		if err := s.forget(); err != nil {
			return err
		}
		err := client.Apply(ctx, helm.Change{
			Name: step.Release, Chart: step.Chart, Archives: s.Archives, Profile: s.Profile,
			Base: step.Base, Values: step.Values, Adopt: s.adopts(step.Name), Timeout: limit,
		})
		switch {
		case err == nil:
			return nil
		case errors.Is(ctx.Err(), context.DeadlineExceeded):
			return s.sentInVain(step, at.Load())
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !helm.Transient(err) || time.Now().After(giveUp):
			return sendFault(step, err)
		}
		say(Sending, "again: "+oneLine(err))
		if err := pause(ctx, againAfter); err != nil {
			return sendFault(step, err)
		}
	}
}

// sentInVain says that a release was not through in time.
func (s *Stack) sentInVain(step *Step, at *string) error {
	f := &profiler.Fault{
		What: fmt.Sprintf("%s was not sent within %s", step.Name, s.Timeout), Why: errors.New("the API server takes long to answer"),
		Fix: "kalypsoctl install     goes on from here; --timeout 20m waits longer",
	}
	if at != nil {
		f.Why = fmt.Errorf("%s does not end", *at)
		f.Fix = fmt.Sprintf("kubectl -n %s get jobs,pods     shows it; ", step.Namespace) + f.Fix
	}
	return &Timeout{f}
}

// pause waits, or less when ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

var (
	failedHook = regexp.MustCompile(`failed (pre|post)-(install|upgrade)|(pre|post)-(install|upgrade) hooks failed`)
	failedJob  = regexp.MustCompile(`job (\S+) failed`)
	// What admission refuses is "forbidden", too: quotas, limit ranges, pod security.
	refusedByPolicy = regexp.MustCompile(`exceeded quota|violates PodSecurity|(minimum|maximum) (cpu|memory|storage) usage per`)
)

// sendFault says why a release could not be applied.
func sendFault(step *Step, err error) error {
	var fault *profiler.Fault
	if errors.As(err, &fault) {
		return err
	}
	text := oneLine(err)
	f := &profiler.Fault{What: "cannot install " + step.Name, Why: errors.New(text), Fix: "kalypsoctl install     goes on from here when it is mended"}
	switch {
	case failedHook.MatchString(text):
		f.What = "a hook of " + step.Name + " failed"
		if job := failedJob.FindStringSubmatch(text); job != nil {
			f.Fix = fmt.Sprintf("kubectl -n %s logs job/%s     says why; kalypsoctl install goes on from here", step.Namespace, job[1])
		}
	case strings.Contains(text, "failed calling webhook"):
		f.What = fmt.Sprintf("a webhook does not let the objects of %s in", step.Name)
		f.Fix = "kubectl get validatingwebhookconfigurations,mutatingwebhookconfigurations     lists them; is what serves it running?"
	case strings.Contains(text, "cannot be imported into the current release"):
		f.What = fmt.Sprintf("cannot install %s: something is there that kalypsoctl did not make", step.Name)
		f.Fix, f.Kind = "--adopt "+step.Name+"     takes it over", ErrForeign
	case strings.Contains(text, "because it is being terminated"):
		f.What = fmt.Sprintf("cannot install %s: its namespace is being deleted", step.Name)
		f.Kind = ErrTerminating
	case refusedByPolicy.MatchString(text): // rights are not what is missing
		f.What = "a policy of the cluster does not let " + step.Name + " in"
	case strings.Contains(text, "is forbidden"):
		f.What = "you may not install " + step.Name
		f.Fix, f.Kind = "kalypsoctl preflight --only rbac     lists the rights that are needed", kube.ErrForbidden
	case strings.Contains(text, "Too long: must have at most"):
		f.Why = errors.New("a release is kept in a Secret, which takes 1 MiB, and this one is larger")
	}
	return f
}

// Timeout is that something was not there in time. It wraps a profiler.Fault.
type Timeout struct{ fault *profiler.Fault }

// Error is that of the fault.
func (t *Timeout) Error() string { return t.fault.Error() }

// Unwrap gives the fault.
func (t *Timeout) Unwrap() error { return t.fault }

// oneLine puts an error on one line, and cuts it: API servers put whole objects
// into theirs.
func oneLine(err error) string {
	const limit = 500
	text := strings.Join(strings.Fields(err.Error()), " ")
	if runes := []rune(text); len(runes) > limit {
		text = string(runes[:limit/2]) + " … " + string(runes[len(runes)-limit/2:])
	}
	return text
}

// refsOf are the objects of a release whose readiness can be waited for.
func refsOf(objects []helm.Object, namespace string) []kube.Ref {
	var out []kube.Ref
	for _, o := range objects {
		r := kube.Ref{APIVersion: o.APIVersion, Kind: o.Kind, Namespace: o.Namespace, Name: o.Name}
		switch o.Kind {
		case crdKind, "ValidatingWebhookConfiguration", "MutatingWebhookConfiguration", "APIService":
			r.Namespace = ""
		case "Deployment", "StatefulSet", "DaemonSet", "Job", "Pod", "PersistentVolumeClaim":
			if r.Namespace == "" {
				r.Namespace = namespace
			}
		default:
			continue
		}
		out = append(out, r)
	}
	return out
}

var crdResource = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// applyCRDs makes or brings up to date what a chart has in its crds folders.
// Helm makes them and never touches them again, so that a newer chart would run
// with older CRDs.
func (s *Stack) applyCRDs(ctx context.Context, step *Step) error {
	for _, o := range step.Manifests.CRDs {
		crd, err := object(o)
		if err != nil {
			return err
		}
		crd.SetLabels(with(crd.GetLabels(), map[string]string{managedBy: manager, partOf: "kalypso"}))
		crd.SetAnnotations(with(crd.GetAnnotations(), map[string]string{crdDigest: digest(o), releaseName: step.Release, releaseSpace: step.Namespace}))
		_, err = s.Cluster.Dynamic.Resource(crdResource).Apply(ctx, o.Name, crd, metav1.ApplyOptions{FieldManager: manager, Force: true})
		if err != nil {
			return sendFault(step, fmt.Errorf("apply %s %s: %w", o.Kind, o.Name, err))
		}
	}
	return nil
}

func with(to, more map[string]string) map[string]string {
	if to == nil {
		to = map[string]string{}
	}
	for key, value := range more {
		to[key] = value
	}
	return to
}

func object(o helm.Object) (*unstructured.Unstructured, error) {
	tree, err := o.Tree()
	if err != nil {
		return nil, err
	}
	return &unstructured.Unstructured{Object: tree}, nil
}

// admit waits until the object by which a component shows that its webhook
// works is let in, in a dry run. That pods are ready does not show it: the
// webhook's certificate may not have come yet, and who builds on the component
// is refused until then.
func (s *Stack) admit(ctx context.Context, step *Step, say func(State, string)) error {
	if step.Trial == "" {
		return nil
	}
	tree, err := helm.ReadValues([]byte(step.Trial))
	if err != nil {
		return fmt.Errorf("read the trial of %s: %w", step.Name, err)
	}
	trial := &unstructured.Unstructured{Object: tree}
	for {
		if err := s.forget(); err != nil {
			return err
		}
		mapper, err := s.Cluster.Getter(step.Namespace).ToRESTMapper()
		if err != nil {
			return fmt.Errorf("ask for the API of the cluster: %w", err)
		}
		gvk := trial.GroupVersionKind()
		mapping, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
		if err == nil {
			_, err = s.Cluster.Dynamic.Resource(mapping.Resource).Namespace(step.Namespace).
				Create(ctx, trial, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		}
		switch {
		case err == nil || apierrors.IsAlreadyExists(err):
			return nil
		case apierrors.IsForbidden(err):
			return sendFault(step, err)
		}
		why := oneLine(err)
		if ctx.Err() == nil {
			say(Starting, "its webhook lets nothing in yet: "+why)
		}
		if pause(ctx, againAfter) != nil {
			return &Timeout{&profiler.Fault{
				What: fmt.Sprintf("the webhook of %s does not work", step.Name),
				Why:  fmt.Errorf("it let no %s in within %s: %s", gvk.Kind, s.Timeout, why),
				Fix:  "kalypsoctl logs " + step.Name,
			}}
		}
	}
}

// ensureNamespace makes a namespace that is not there, and waits for one that
// is being deleted.
func (s *Stack) ensureNamespace(ctx context.Context, step *Step, report func(Event)) error {
	namespaces := s.Cluster.Client.CoreV1().Namespaces()
	giveUp := time.Now().Add(terminatingLimit)
	for {
		ns, err := namespaces.Get(ctx, step.Namespace, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			labels := with(podSecurity(step.Namespace), map[string]string{managedBy: manager, partOf: "kalypso"})
			_, err := namespaces.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: step.Namespace, Labels: labels}}, metav1.CreateOptions{})
			if apierrors.IsAlreadyExists(err) {
				continue
			}
			if err != nil {
				return sendFault(step, fmt.Errorf("make namespace %s: %w", step.Namespace, err))
			}
			return nil
		case err != nil:
			return rights("namespace "+step.Namespace, err)
		case ns.Status.Phase != corev1.NamespaceTerminating:
			return s.labelNamespace(ctx, step, ns)
		}
		holds := terminating(ns)
		if time.Now().After(giveUp) {
			return &profiler.Fault{
				What: "namespace " + step.Namespace + " is being deleted, and that does not end",
				Why:  errors.New(holds),
				Fix:  "kubectl get namespace " + step.Namespace + " -o yaml     names what is left: delete that, or have what owns its finalizers run again",
				Kind: ErrTerminating,
			}
		}
		report(Event{Component: step.Name, State: Waiting, Detail: "namespace " + step.Namespace + " is being deleted: " + holds})
		if err := pause(ctx, againAfter); err != nil {
			return err
		}
	}
}

// podSecurity are the labels that let a namespace's pods be made on clusters
// that enforce Pod Security.
func podSecurity(namespace string) map[string]string {
	for _, c := range component.All() {
		if c.Namespace == namespace && c.Privileged {
			return map[string]string{"pod-security.kubernetes.io/enforce": "privileged"}
		}
	}
	return nil
}

// labelNamespace gives a namespace the labels that it lacks: one of ours those
// of Pod Security, one that is adopted the mark that it may be used.
func (s *Stack) labelNamespace(ctx context.Context, step *Step, ns *corev1.Namespace) error {
	labels := podSecurity(ns.Name)
	switch {
	case ns.Labels[managedBy] == manager:
	case s.adopts(step.Name):
		labels = with(labels, map[string]string{adopted: "true", partOf: "kalypso"})
	default:
		return nil
	}
	same := true
	for key, value := range labels {
		same = same && ns.Labels[key] == value
	}
	if same {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels}})
	if err != nil {
		return err
	}
	if _, err := s.Cluster.Client.CoreV1().Namespaces().Patch(ctx, ns.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return sendFault(step, fmt.Errorf("label namespace %s: %w", ns.Name, err))
	}
	return nil
}
