package install

import (
	"context"
	"fmt"
	"os"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// One run at a time changes a cluster: a second one would take a release that
// the first is in the middle of for one that was interrupted. A Lease says who
// is at work. It ends by itself, so that a run that was killed is in nobody's
// way for long.
const (
	lockName   = "kalypsoctl"
	lockSpace  = "kube-system"
	lockTime   = 15 * time.Second
	lockRenew  = 5 * time.Second
	lockAtMost = 5 * time.Second // for letting go of it, when everything else is over
)

// lock is held until unlock is called. Who may not write Leases goes without.
// say is told of whom it waits for.
func (s *Stack) lock(ctx context.Context, say func(string)) (unlock func(), err error) {
	leases := s.Cluster.Client.CoordinationV1().Leases(lockSpace)
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	me := fmt.Sprintf("%s, process %d", host, os.Getpid())
	for {
		lease, err := leases.Get(ctx, lockName, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			lease = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: lockName, Labels: map[string]string{managedBy: manager, partOf: "kalypso"}}}
			lease, err = leases.Create(ctx, renewed(lease, me), metav1.CreateOptions{})
		case err == nil && lease.Spec.RenewTime != nil && time.Since(lease.Spec.RenewTime.Time) < lockTime:
			say("waiting for another run, of " + holder(lease))
			if err := pause(ctx, time.Second); err != nil {
				return nil, err
			}
			continue
		case err == nil:
			lease, err = leases.Update(ctx, renewed(lease, me), metav1.UpdateOptions{})
		}
		switch {
		case err == nil:
			return s.hold(lease, me), nil
		case apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err): // somebody was faster
		case apierrors.IsForbidden(err):
			return func() {}, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		default:
			return nil, fmt.Errorf("take the Lease %s/%s: %w", lockSpace, lockName, err)
		}
	}
}

// hold renews a Lease until it is let go of.
func (s *Stack) hold(lease *coordinationv1.Lease, me string) (unlock func()) {
	leases := s.Cluster.Client.CoordinationV1().Leases(lockSpace)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for pause(ctx, lockRenew) == nil {
			// When the server is away the Lease ends, and what is done here fails too.
			if now, err := leases.Update(ctx, renewed(lease, me), metav1.UpdateOptions{}); err == nil {
				lease = now
			}
		}
	}()
	return func() {
		cancel()
		<-done
		last, cancel := context.WithTimeout(context.Background(), lockAtMost)
		defer cancel()
		// What cannot be deleted ends by itself.
		_ = leases.Delete(last, lockName, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &lease.UID}})
	}
}

func renewed(lease *coordinationv1.Lease, me string) *coordinationv1.Lease {
	l := lease.DeepCopy()
	seconds, now := int32(lockTime.Seconds()), metav1.NewMicroTime(time.Now())
	l.Spec.HolderIdentity, l.Spec.LeaseDurationSeconds, l.Spec.RenewTime = &me, &seconds, &now
	return l
}

func holder(lease *coordinationv1.Lease) string {
	if lease.Spec.HolderIdentity == nil {
		return "somebody"
	}
	return *lease.Spec.HolderIdentity
}
