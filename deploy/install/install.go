// Package install brings the stack onto a cluster, and takes it away.
//
// A Stack is what is wanted: components with their charts and values. Plan looks
// at the cluster and says what has to be done for it, Apply does that, wave
// after wave, and tells of each step as it goes. Both can be done again at any
// time: what is as it should be is left alone, and what an earlier run left half
// done is finished.
//
// Nothing that others made is touched unless it is named in Stack.Adopt. The
// package owns the order, the waiting and what happens on failure; it knows
// nothing of the command line and prints nothing.
package install

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/client-go/metadata"

	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/kube"
)

// Kinds of faults, for those who decide on them.
var (
	ErrTerminating = errors.New("a namespace is being deleted")
	ErrForeign     = errors.New("things are there that others made")
)

// Stack is what a cluster is to have.
type Stack struct {
	Cluster  *kube.Cluster
	Archives *helm.Archives
	Profile  string
	Parts    []Part        // in the order of the catalogue
	Adopt    []string      // components whose things are taken over from whoever made them
	Reset    bool          // forget values that were given earlier
	Store    bool          // the object store is somebody else's
	RollBack bool          // a wave that fails
	Timeout  time.Duration // for one component to be installed and get ready
}

// Part is a component with its chart and values.
type Part struct {
	component.Component
	Chart  *helm.Chart
	Base   helm.Values // of the profile
	Values helm.Values // that the user gives now
}

// Action is what has to be done for a component.
type Action uint8

// The actions.
const (
	Keep    Action = iota // it is as it should be
	Install               // it is not there
	Upgrade               // another version, other values, or objects that are missing
	Finish                // an earlier run was interrupted, or failed
	Adopt                 // others installed it
)

// String is the word for people.
func (a Action) String() string {
	switch a {
	case Keep:
		return "keep (unchanged)"
	case Install:
		return "install"
	case Upgrade:
		return "upgrade"
	case Finish:
		return "finish"
	case Adopt:
		return "adopt"
	}
	return "unknown"
}

// Word is the word for programs.
func (a Action) Word() string {
	if a == Keep {
		return "keep"
	}
	return a.String()
}

// State is how far a step is.
type State uint8

// The states of a step, in their order; it ends in one of the last five.
const (
	Waiting  State = iota // for the waves before it
	Sending               // its objects
	Starting              // its objects are there, and not all are ready
	Done
	Kept       // it was as it should be, and is ready
	Failed     // it cannot be brought about
	Stopped    // something else failed, or the run was interrupted
	RolledBack // it failed, and is as it was before
)

// String is the word for programs.
func (s State) String() string {
	words := [...]string{Waiting: "waiting", Sending: "sending", Starting: "starting", Done: "done", Kept: "kept", Failed: "failed", Stopped: "stopped", RolledBack: "rolled back"}
	if int(s) < len(words) {
		return words[s]
	}
	return "unknown"
}

// Event is that a step is in another state than before, or says something else.
type Event struct {
	Component string
	State     State
	Detail    string // why it is not further: what is waited for, what went wrong
	Took      time.Duration
}

// metadata gives what looks at objects without reading them.
func (s *Stack) metadata() (metadata.Interface, error) {
	client, err := metadata.NewForConfig(s.Cluster.REST)
	if err != nil {
		return nil, fmt.Errorf("make a client for metadata: %w", err)
	}
	return client, nil
}

// releases gives a client for the releases of a namespace.
func (s *Stack) releases(namespace string, note func(string)) (*helm.Client, error) {
	return helm.NewClient(s.Cluster.Getter(namespace), namespace, s.Cluster.Version, note)
}

// forget drops what was learnt of the cluster's API: its kinds change as
// components bring theirs.
func (s *Stack) forget() error {
	client, err := s.Cluster.Getter("").ToDiscoveryClient()
	if err != nil {
		return fmt.Errorf("ask for the API of the cluster: %w", err)
	}
	client.Invalidate()
	return nil
}

// adopts says whether a component may take over what others made.
func (s *Stack) adopts(name string) bool { return slices.Contains(s.Adopt, name) }

// parallel is how many components are looked at, or removed, at a time.
const parallel = 4
