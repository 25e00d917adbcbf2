package install

import (
	"context"
	"fmt"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/kube"
)

// rollBack brings the releases of a wave that failed back to what they were when
// they were last sent whole. What never was stays as it is, so that somebody can look
// at it; waves that came before work, and stay.
func (s *Stack) rollBack(ctx context.Context, wave []*Step, report func(Event)) {
	var all sync.WaitGroup
	for _, step := range wave {
		if step.Now == nil || !step.Now.Worked || step.Action == Keep {
			continue
		}
		all.Go(func() {
			started := time.Now()
			say := func(state State, detail string) {
				report(Event{Component: step.Name, State: state, Detail: detail, Took: time.Since(started)})
			}
			limited, cancel := context.WithTimeout(ctx, s.Timeout)
			defer cancel()
			switch to, err := s.goBack(limited, step, say); {
			case err != nil:
				say(Failed, "cannot go back: "+reason(err))
			case to != nil:
				say(RolledBack, fmt.Sprintf("as it was before: chart %s, revision %d", to.Version, to.Revision))
			}
		})
	}
	all.Wait()
}

// goBack brings one release back, if it was sent, and waits until it is ready. to is
// what it is again.
func (s *Stack) goBack(ctx context.Context, step *Step, say func(State, string)) (to *helm.Installed, err error) {
	client, err := s.releases(step.Namespace, func(what string) { say(Sending, what) })
	if err != nil {
		return nil, err
	}
	now, err := client.Find(step.Release)
	if err != nil || now.Same(step.Now) {
		return nil, err
	}
	if to, err = client.Before(step.Release, step.Now.Revision); err != nil || to == nil {
		return nil, err
	}
	say(Sending, fmt.Sprintf("going back to revision %d", to.Revision))
	if err := client.RollBack(ctx, step.Release, to.Revision, s.Timeout); err != nil {
		return nil, err
	}
	if err := s.replaceStuck(ctx, step, to.Objects); err != nil {
		return nil, err
	}
	return to, s.wait(ctx, refsOf(to.Objects, step.Namespace), say)
}

// replaceStuck deletes pods that a StatefulSet among objects made as it is not any
// more and that are not ready: it waits for them for ever, and does not replace
// them (Kubernetes, StatefulSets, Forced rollback). Without it a value that is
// mended after a failure changes nothing.
func (s *Stack) replaceStuck(ctx context.Context, step *Step, objects []helm.Object) error {
	for _, o := range objects {
		if o.Kind != "StatefulSet" {
			continue
		}
		set, err := s.observed(ctx, step.Namespace, o.Name)
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		if set.Spec.UpdateStrategy.Type == appsv1.OnDeleteStatefulSetStrategyType {
			continue // when they go is somebody's own affair
		}
		pods := s.Cluster.Client.CoreV1().Pods(set.Namespace)
		selector, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
		if err != nil {
			return fmt.Errorf("read the selector of StatefulSet %s: %w", o.Name, err)
		}
		list, err := pods.List(ctx, metav1.ListOptions{LabelSelector: selector.String()})
		if err != nil {
			return rights("pods of "+step.Name, err)
		}
		for i := range list.Items {
			p := &list.Items[i]
			if p.Labels[appsv1.StatefulSetRevisionLabel] == set.Status.UpdateRevision || kube.PodReady(p) {
				continue
			}
			if err := pods.Delete(ctx, p.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("delete pod %s, which is not ready and of an older revision: %w", p.Name, err)
			}
		}
	}
	return nil
}

// observed gives a StatefulSet when its controller has seen what it is now.
func (s *Stack) observed(ctx context.Context, namespace, name string) (*appsv1.StatefulSet, error) {
	for {
		set, err := s.Cluster.Client.AppsV1().StatefulSets(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil || set.Status.ObservedGeneration >= set.Generation {
			return set, err
		}
		if err := pause(ctx, goneEvery); err != nil {
			return nil, err
		}
	}
}
