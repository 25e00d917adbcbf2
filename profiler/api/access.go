package api

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/viewer"
)

// statusError is an error with the status that it is answered with.
type statusError struct {
	status int
	err    error
	retry  time.Duration // when to try again; 0: some seconds
}

// Error is the error.
func (e *statusError) Error() string { return e.err.Error() }

// Unwrap gives it, so that a profiler.Fault inside is answered whole.
func (e *statusError) Unwrap() error { return e.err }

// answerFault makes an error for a person, with its status.
func answerFault(status int, fix, format string, args ...any) error {
	return &statusError{status: status, err: &profiler.Fault{What: fmt.Sprintf(format, args...), Fix: fix}}
}

// openPath says what other machines may read where that is allowed: how the
// agent is doing, and nothing of what runs beside it.
func openPath(path string) bool {
	return path == "/metrics" || path == "/healthz" || path == "/readyz"
}

// admit says why a request is not answered, nil when it is.
//
// Answered are programs of this machine that ask for it by a name of its own,
// and whoever can open the Unix socket. A browser is a program of this machine
// too, but does what pages of others tell it: what it asks for on behalf of
// another origin is refused, also where that page could not read the answer,
// because a recording costs something.
func (s *server) admit(r *http.Request) error {
	switch local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr); {
	case local != nil && local.Network() == "unix":
	case s.AllowRemote && openPath(r.URL.Path):
	case !viewer.Local(r):
		return &statusError{status: http.StatusForbidden, err: &profiler.Fault{
			What: "this agent answers its own machine only", Why: errors.New("the request comes from elsewhere, or asks for another host"),
			Fix: "on the machine itself: curl http://localhost:PORT" + r.URL.Path,
		}}
	}
	if crossOrigin(r) {
		return answerFault(http.StatusForbidden, "type the address into the browser", "a page of another origin asked for this")
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return answerFault(http.StatusMethodNotAllowed, "ask with GET", "%s is not done here: there is nothing to change", profiler.Printable(r.Method))
	}
	if r.ContentLength != 0 {
		return answerFault(http.StatusBadRequest, "put the parameters into the address", "a request here has no body")
	}
	return nil
}

// crossOrigin says whether a browser asks for somebody else. All that are in use
// send Sec-Fetch-Site; "none" is an address that a person typed. Origin is for
// older ones, which send it with what scripts ask for.
func crossOrigin(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "none", "same-origin":
	default:
		return true
	}
	origin := r.Header.Get("Origin")
	if origin == "" {
		return false
	}
	u, err := url.Parse(origin)
	return err != nil || u.Host != r.Host
}

// ServeHTTP answers whom admit admits.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	viewer.Harden(w.Header())
	// Not every writer has deadlines: one in memory has none.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	if err := s.admit(r); err != nil {
		s.refuse(w, err)
		return
	}
	s.mux.ServeHTTP(w, r)
}
