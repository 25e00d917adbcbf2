// Package verify proves that the stack does its work: it writes one datum of
// each signal the way that the stack's own clients do, under an id that nobody
// can guess, and reads it back from the store.
//
// A proof is a check of deploy/check. The package owns what is written, where it
// goes in and where it has to come out. How a Service is reached is its caller's
// affair: through a tunnel into a cluster, or straight to a process in a test.
// Of a cluster it knows the Secret with Grafana's password, whether a Pod would be
// let in, and which releases there are.
//
// What is left behind is small and goes with the stores' own retention: a log
// line, a span, a profile of two stacks. None of the stores can take out one of
// these at once. The series is marked stale, so that it is in no graph.
package verify

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/kalypso-dev/kalypso/deploy/check"
	"github.com/kalypso-dev/kalypso/deploy/component"
)

// Forwarder gives an address at which a Service answers.
type Forwarder interface {
	Forward(ctx context.Context, namespace, service string, port int) (addr string, close func(), err error)
}

// Config says which stack is to be proved.
type Config struct {
	Components []component.Component // what is installed; a proof of what is not is skipped
	Forwarder  Forwarder
	Client     kubernetes.Interface

	// Patience is how long one datum is waited for, and how long a store that
	// does not take it yet is asked again; 0: DefaultPatience.
	Patience time.Duration
	// Keep leaves the series alive. The ids are given to Kept, if it is not nil.
	Keep bool
	Kept func(proof, id string)
}

// DefaultPatience is many times what it takes where nothing is wrong: under a
// second for metrics, logs and traces, and for profiles until a segment is
// written. A ring that forms needs up to half a minute.
const DefaultPatience = 45 * time.Second

// Limit is how long a proof takes at most: its patience to write and to read,
// and both once more to find out where the datum was lost.
func (c Config) Limit() time.Duration {
	if c.Patience == 0 {
		c.Patience = DefaultPatience
	}
	return 4*c.Patience + requestLimit
}

// IDs of the proofs, in their order.
func IDs() []string {
	return []string{"metrics", "logs", "traces", "profiles", "grafana", "mesh"}
}

// Proofs are the checks of a stack.
func Proofs(c Config) []check.Check {
	if c.Patience == 0 {
		c.Patience = DefaultPatience
	}
	return []check.Check{
		c.signal(metrics()),
		c.signal(logs()),
		c.signal(traces()),
		c.profiles(),
		c.grafana(),
		c.mesh(),
	}
}

// installed gives a component of the stack by its name.
func (c *Config) installed(name string) (component.Component, bool) {
	for _, one := range c.Components {
		if one.Name == name {
			return one, true
		}
	}
	return component.Component{}, false
}

// needs is a check that is skipped where the component is not installed, and when
// it is interrupted.
func (c *Config) needs(name string, run func(context.Context, component.Component) check.Outcome) func(context.Context) check.Outcome {
	return func(ctx context.Context) check.Outcome {
		one, ok := c.installed(name)
		if !ok {
			return check.Skip("%s is not installed", name)
		}
		outcome := run(ctx, one)
		if outcome.State == check.Failed && errors.Is(context.Cause(ctx), context.Canceled) {
			return check.Skip("interrupted")
		}
		return outcome
	}
}

// keep tells of what was left, if it was to be left.
func (c *Config) keep(proof, id string) {
	if c.Keep && c.Kept != nil {
		c.Kept(proof, id)
	}
}

// newID is 128 random bits in hex: also a trace ID.
func newID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails: crypto/rand ends the program instead
	return hex.EncodeToString(id[:])
}

// interval is how long a store is left alone between two questions.
const interval = 300 * time.Millisecond

// poll tries until it is done, or permanent, or ctx ends. The error is the last
// one of try; nil with done false: try knew nothing of any.
func poll(ctx context.Context, try func(context.Context) (done bool, err error)) (done bool, last error) {
	for {
		done, err := try(ctx)
		switch {
		case done || permanent(err):
			return done, err
		case ctx.Err() == nil:
			last = err
		case last == nil:
			last = err
		}
		select {
		case <-ctx.Done():
			return false, last
		case <-time.After(interval):
		}
	}
}
