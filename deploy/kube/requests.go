package kube

import (
	"net/http"
	"time"
)

// logged tells of each request when it is answered: what was asked, what the
// answer was, and how long it took. A watch is told when it is begun.
type logged struct {
	next http.RoundTripper
	say  func(method, path, answer string, took time.Duration)
}

// RoundTrip implements http.RoundTripper.
func (l *logged) RoundTrip(r *http.Request) (*http.Response, error) {
	began := time.Now()
	response, err := l.next.RoundTrip(r)
	answer := ""
	if err != nil {
		answer = oneLine(err).Error()
	} else {
		answer = response.Status
	}
	l.say(r.Method, r.URL.RequestURI(), answer, time.Since(began))
	return response, err
}

// WrappedRoundTripper gives what is below; port-forwards look for the
// connection's own.
func (l *logged) WrappedRoundTripper() http.RoundTripper { return l.next }
