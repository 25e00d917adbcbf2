// Package exporter is the way that profiles take out of the agent: an Encoder
// turns the profiles of a window into requests, a Sender delivers a request.
// Between them may stand a queue (package spool), which knows requests only as
// bytes with a few figures beside them.
//
// Exporters know profiles, not how they are made. The figures beside the bytes
// let every sample be accounted for: delivered, or dropped for a reason.
package exporter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
)

// Request is one message to a backend. It is small enough for the backend's
// limits and never changed after it was made.
type Request struct {
	Time     time.Time // when its oldest profile ended: backends refuse what is too old
	Profiles int       // profiles in it
	Samples  uint64    // samples in all of them
	Body     []byte    // the protocol's message, not compressed
}

// Encoder makes requests for one kind of backend.
type Encoder interface {
	// Encode turns the profiles of one window into as few requests as the
	// backend's limits allow. What no request could carry is counted in
	// dropped, in samples. The profiles are not changed and not kept.
	Encode(profiles []*profiler.Profile) (requests []*Request, dropped uint64, err error)
}

// Sender delivers requests to a backend.
type Sender interface {
	// Send delivers a request and waits for the answer. An error that is
	// neither a RefusedError nor a BusyError means: not delivered as far as is
	// known, try again.
	Send(ctx context.Context, r *Request) (Receipt, error)
	Close() error
}

// Receipt is what a backend that took a request said of it.
type Receipt struct {
	RejectedProfiles int    // of the request's; they are not to be sent again
	Message          string // why, in the backend's words
}

// RefusedError says that a backend will not take a request however often it is
// sent.
type RefusedError struct{ Err error }

// Error is the backend's answer.
func (e *RefusedError) Error() string { return "refused for good: " + e.Err.Error() }

// Unwrap gives the answer.
func (e *RefusedError) Unwrap() error { return e.Err }

// BusyError says that a backend wants to be left alone for a while.
type BusyError struct {
	Err   error
	After time.Duration // what it asked for; 0: it did not say
}

// Error is the backend's answer.
func (e *BusyError) Error() string {
	if e.After > 0 {
		return fmt.Sprintf("%v (asks to wait %s)", e.Err, e.After)
	}
	return e.Err.Error()
}

// Unwrap gives the answer.
func (e *BusyError) Unwrap() error { return e.Err }

// Refused says whether err means that the request is not to be sent again.
func Refused(err error) bool {
	var refused *RefusedError
	return errors.As(err, &refused)
}
