package install

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/profiler"
)

// lease is one that another machine renewed at a time of its own clock.
func lease(version int, renew time.Time) *coordinationv1.Lease {
	who, at := "another, process 1", metav1.NewMicroTime(renew)
	return &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: lockSpace, Name: lockName, UID: "1", ResourceVersion: strconv.Itoa(version)},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &who, RenewTime: &at},
	}
}

func TestALeaseThatIsNotRenewedIsTaken(t *testing.T) {
	for name, ahead := range map[string]time.Duration{"a clock that is ahead": 2 * time.Hour, "one that is behind": -2 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &Stack{Cluster: &kube.Cluster{Client: fake.NewClientset(lease(1, time.Now().Add(ahead)))}, Timeout: time.Minute}
				began, said := time.Now(), ""
				_, unlock, err := s.lock(t.Context(), func(what string) { said = what })
				if err != nil {
					t.Fatal(err)
				}
				defer unlock()
				if took := time.Since(began); took < lockTime || took > lockTime+3*time.Second {
					t.Errorf("it was taken after %s", took)
				}
				if !strings.Contains(said, "another, process 1") {
					t.Errorf("it says %q", said)
				}
			})
		})
	}
}

func TestALeaseThatIsRenewedIsWaitedForNotForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(lease(1, time.Now()))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			for version := 2; pause(ctx, lockRenew) == nil; version++ {
				_ = client.Tracker().Update(schema.GroupVersionResource{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"}, lease(version, time.Now()), lockSpace)
			}
		}()
		s := &Stack{Cluster: &kube.Cluster{Client: client}, Timeout: time.Minute}
		_, _, err := s.lock(ctx, func(string) {})
		var late *Timeout
		if !errors.As(err, &late) {
			t.Fatalf("got %v, want a Timeout", err)
		}
		cancel()
	})
}

func TestARunThatLostItsLeaseEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		var taken atomic.Bool // by another run
		client.PrependReactor("update", "leases", func(clienttesting.Action) (bool, runtime.Object, error) {
			return taken.Load(), nil, apierrors.NewConflict(schema.GroupResource{Resource: "leases"}, lockName, errors.New("it changed"))
		})
		s := &Stack{Cluster: &kube.Cluster{Client: client}, Timeout: time.Minute}
		held, unlock, err := s.lock(t.Context(), func(string) {})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(4 * lockRenew)
		if held.Err() != nil {
			t.Fatalf("nobody else is there, and it ends: %v", context.Cause(held))
		}
		taken.Store(true)
		time.Sleep(2 * lockRenew)
		var fault *profiler.Fault
		if !errors.As(context.Cause(held), &fault) {
			t.Errorf("the run goes on: %v", context.Cause(held))
		}
		unlock()
		for _, a := range client.Actions() {
			if d, ok := a.(clienttesting.DeleteActionImpl); ok && d.DeleteOptions.Preconditions.ResourceVersion == nil {
				t.Error("it deletes a Lease whoever has it")
			}
		}
	})
}
