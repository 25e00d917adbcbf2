package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kalypso-dev/kalypso/profiler"
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

// lock is held until unlock is called, or until held ends because somebody else
// has it: after a machine slept, say. Who may not write Leases goes without. say
// is told of whom it waits for.
//
// Whether a Lease is alive is told by whether it changes while it is watched: the
// clocks of two machines need not agree.
func (s *Stack) lock(ctx context.Context, say func(string)) (held context.Context, unlock func(), err error) {
	leases := s.Cluster.Client.CoordinationV1().Leases(lockSpace)
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	me := fmt.Sprintf("%s, process %d", host, os.Getpid())
	began := time.Now()
	version, changed := "", time.Now()
	for {
		lease, err := leases.Get(ctx, lockName, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			lease = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: lockName, Labels: map[string]string{managedBy: manager, partOf: "kalypso"}}}
			lease, err = leases.Create(ctx, renewed(lease, me), metav1.CreateOptions{})
		case err == nil:
			if lease.ResourceVersion != version {
				version, changed = lease.ResourceVersion, time.Now()
			}
			if time.Since(changed) < lockTime {
				if s.Timeout > 0 && time.Since(began) > s.Timeout {
					return nil, nil, &Timeout{busy(lease)}
				}
				say("waiting for another run, of " + holder(lease))
				if err := pause(ctx, time.Second); err != nil {
					return nil, nil, err
				}
				continue
			}
			lease, err = leases.Update(ctx, renewed(lease, me), metav1.UpdateOptions{})
		}
		switch {
		case err == nil:
			held, unlock = s.hold(ctx, lease, me)
			return held, unlock, nil
		case apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err): // somebody was faster
		case apierrors.IsForbidden(err):
			return ctx, func() {}, nil
		case ctx.Err() != nil:
			return nil, nil, context.Cause(ctx)
		default:
			return nil, nil, fmt.Errorf("take the Lease %s/%s: %w", lockSpace, lockName, err)
		}
	}
}

// busy says that another run does not end.
func busy(lease *coordinationv1.Lease) *profiler.Fault {
	return &profiler.Fault{
		What: "another run is at work, and does not end", Why: fmt.Errorf("%s renews the Lease %s/%s", holder(lease), lockSpace, lockName),
		Fix: "wait for it, or end it; --timeout 30m waits longer",
	}
}

// hold renews a Lease until it is let go of. held ends when the Lease is
// somebody else's.
func (s *Stack) hold(ctx context.Context, lease *coordinationv1.Lease, me string) (held context.Context, unlock func()) {
	leases := s.Cluster.Client.CoordinationV1().Leases(lockSpace)
	held, lose := context.WithCancelCause(ctx)
	renewing, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for pause(renewing, lockRenew) == nil {
			now, err := leases.Update(renewing, renewed(lease, me), metav1.UpdateOptions{})
			switch {
			case err == nil:
				lease = now
			case apierrors.IsConflict(err) || apierrors.IsNotFound(err):
				lose(&profiler.Fault{
					What: "another run has begun", Why: errors.New("this one stood still for longer than " + lockTime.String()),
					Fix: "wait for the other one, then do this again",
				})
				return
			}
			// When the server is away, what is done here fails too.
		}
	}()
	return held, func() {
		cancel()
		<-done
		lose(nil)
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lockAtMost)
		defer cancel()
		// What cannot be deleted ends by itself; what another run has taken is its own.
		_ = leases.Delete(last, lockName, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &lease.UID, ResourceVersion: &lease.ResourceVersion}})
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
