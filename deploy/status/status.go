// Package status looks how the stack on a cluster is: which components are
// there, whether their objects are ready, and what happened to them lately.
//
// It looks at releases and at the objects that they hold, and changes nothing.
// What is not answered in time is unknown: the package never gives an earlier
// answer for a newer one. How it is shown is for the caller.
package status

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/profiler"
)

// Health is how a component is.
type Health uint8

// The states of health.
const (
	Unknown  Health = iota // no answer
	Absent                 // not installed
	Healthy                //
	Starting               // not ready, and nothing says that it will not be
	Broken                 // not ready, and that will not heal; or its release failed
)

// String gives the word used in JSON.
func (h Health) String() string {
	switch h {
	case Unknown:
		return "unknown"
	case Absent:
		return "absent"
	case Healthy:
		return "healthy"
	case Starting:
		return "starting"
	case Broken:
		return "broken"
	}
	return "unknown"
}

// Component is one component as it was at one moment.
type Component struct {
	component.Component
	Health   Health
	Release  *helm.Installed // nil where there is none, or it is not known
	Ready    int             // pods
	Want     int
	Since    time.Time // when it became healthy, or stopped to be
	Note     string    // why it is not healthy
	Fix      string    // what to do about it; may be empty
	Warnings []string  // what happened lately to one that is healthy
	Asked    time.Time // when it was asked
}

const (
	// lookLimit is how long one component may take to be looked at.
	lookLimit = 10 * time.Second
	// atOnce is how many are looked at at a time.
	atOnce = 8
	// lately is how old what happened may be, to be told.
	lately = time.Hour
)

// Look asks for each component, all at the same time, in their order.
func Look(ctx context.Context, cluster *kube.Cluster, components []component.Component) []Component {
	out := make([]Component, len(components))
	var group errgroup.Group
	group.SetLimit(atOnce)
	for i, c := range components {
		group.Go(func() error {
			limited, cancel := context.WithTimeout(ctx, lookLimit)
			defer cancel()
			out[i] = look(limited, cluster, c)
			return nil
		})
	}
	_ = group.Wait() // nobody gives an error
	return out
}

// look asks for one component.
func look(ctx context.Context, cluster *kube.Cluster, c component.Component) Component {
	s := Component{Component: c, Asked: time.Now()}
	release, err := find(ctx, cluster, c)
	if err != nil {
		return s.unknown(ctx, err)
	}
	if release == nil {
		s.Health = Absent
		return s
	}
	s.Release = release
	states, err := cluster.Readiness(ctx, Refs(release))
	if err != nil {
		return s.unknown(ctx, err)
	}
	s.judge(states)
	return s
}

// find reads the release. Helm's client takes no context: one that does not
// come back in time is left to its own end.
func find(ctx context.Context, cluster *kube.Cluster, c component.Component) (*helm.Installed, error) {
	client, err := helm.NewClient(cluster.Getter(c.Namespace), c.Namespace, cluster.Version, nil)
	if err != nil {
		return nil, err
	}
	type answer struct {
		release *helm.Installed
		err     error
	}
	answers := make(chan answer, 1)
	go func() {
		release, err := client.Find(c.Release)
		answers <- answer{release, err}
	}()
	select {
	case a := <-answers:
		return a.release, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s Component) unknown(ctx context.Context, err error) Component {
	s.Health, s.Note = Unknown, err.Error()
	var fault *profiler.Fault
	switch {
	case ctx.Err() != nil:
		s.Note = fmt.Sprintf("no answer in %s", kube.Age(time.Since(s.Asked)))
	case errors.As(err, &fault):
		s.Note, s.Fix = fault.What, fault.Fix
	}
	return s
}

// Refs are the objects of a release whose readiness tells how it is.
func Refs(release *helm.Installed) []kube.Ref {
	var out []kube.Ref
	for _, o := range release.Objects {
		r := kube.Ref{APIVersion: o.APIVersion, Kind: o.Kind, Namespace: o.Namespace, Name: o.Name}
		switch o.Kind {
		case "Deployment", "StatefulSet", "DaemonSet", "PersistentVolumeClaim", "Pod":
			if r.Namespace == "" {
				r.Namespace = release.Namespace
			}
		case "ValidatingWebhookConfiguration", "MutatingWebhookConfiguration", "APIService":
			r.Namespace = ""
		default: // a Job may be gone when it is done
			continue
		}
		out = append(out, r)
	}
	return out
}

// judge makes one health of the states of a component's objects.
func (s *Component) judge(states []kube.State) {
	s.Health, s.Since = Healthy, s.Release.Updated
	for _, o := range states {
		s.Ready, s.Want = s.Ready+o.Pods, s.Want+o.Want
		switch {
		case o.Stuck() && s.Health != Broken:
			s.Health, s.Note, s.Fix, s.Since = Broken, o.Reason, o.Hurdle.Fix, o.Since
		case !o.Ready && s.Health == Healthy:
			s.Health, s.Note, s.Since = Starting, o.Reason, o.Since
			if s.Since.IsZero() {
				s.Since = s.Release.Updated
			}
		case o.Ready && s.Health == Healthy && o.Since.After(s.Since):
			s.Since = o.Since
		}
		if o.Restarts > 0 && time.Since(o.Last.At) < lately {
			s.Warnings = append(s.Warnings, fmt.Sprintf("%s restarted %s ago (%s)", o.Last.Pod, kube.Age(time.Since(o.Last.At)), o.Last.Why))
		}
	}
	switch r := s.Release; {
	case r.Interrupted():
		s.Health, s.Note, s.Fix = Broken, "release "+r.Status+" since "+kube.Age(time.Since(r.Updated)), "kalypsoctl install     goes on from there"
	case !r.Deployed():
		s.Health, s.Fix = Broken, "kalypsoctl install     goes on from there"
		s.Note = "release " + r.Status
		if r.Why != "" {
			s.Note += ": " + r.Why
		}
	}
}

// Installed are those that are there, or may be.
func Installed(all []Component) []Component {
	return slices.DeleteFunc(slices.Clone(all), func(c Component) bool { return c.Health == Absent })
}
