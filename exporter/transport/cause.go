package transport

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/kalypso-dev/kalypso/profiler"
)

// A cause is what went wrong between us and a backend, in words that do not
// change from one try to the next: no port of ours, no time of day, so that
// repeats can be folded in a log.
type cause struct {
	phrase string // in the text of the error
	why    string
	fix    string
}

// causes are looked for in this order. gRPC gives its errors as text only, so
// text is what is looked at for both protocols.
var causes = []cause{
	{"no such host", "its name is not known (no such host)", "check the endpoint's name and the node's DNS"},
	{"produced zero addresses", "its name is not known (no such host)", "check the endpoint's name and the node's DNS"}, // gRPC's resolver
	{"server misbehaving", "the name server does not answer properly", "check the node's DNS"},
	{"lookup ", "the name server does not answer", "check the node's DNS"}, // whatever came between it and us
	{"connection refused", "nothing listens there (connection refused)", "is the backend running, and is the port right?"},
	{"network is unreachable", "there is no route to it", "check the node's network"},
	{"no route to host", "there is no route to it", "check the node's network"},
	{"certificate has expired or is not yet valid", "its certificate has expired or is not yet valid", "renew the certificate; check the clocks"},
	{"signed by unknown authority", "its certificate is signed by an authority that is not known here", "name the authority's certificate with --otlp.tls.ca"},
	{"certificate is valid for", "its certificate is for another name", "use the name in the certificate, or --otlp.tls.server-name"},
	{"certificate is not valid for any names", "its certificate is for another name", "use the name in the certificate, or --otlp.tls.server-name"},
	{"cannot validate certificate for", "its certificate is for another name", "use the name in the certificate, or --otlp.tls.server-name"},
	{"certificate required", "it wants a client certificate", "name one with --otlp.tls.cert and --otlp.tls.key"},
	{"bad certificate", "it does not accept the client certificate", "check --otlp.tls.cert and who signed it"},
	{"unknown certificate authority", "it does not accept the client certificate", "check --otlp.tls.cert and who signed it"},
	{"expired certificate", "the client certificate has expired", "renew the certificate"},
	{"first record does not look like a TLS handshake", "it does not speak TLS", "use --otlp.insecure, if the network may be trusted"},
	{"server gave HTTP response to HTTPS client", "it does not speak TLS", "use --otlp.insecure, if the network may be trusted"},
	{"error reading server preface", "it does not speak gRPC, or only with TLS", "is the port the right one for --otlp.protocol? is --otlp.insecure right?"},
	{"malformed HTTP response", "it does not speak HTTP, or only with TLS", "is the port the right one for --otlp.protocol? is --otlp.insecure right?"},
	{"handshake", "TLS could not be agreed on", "check the versions of TLS that the backend takes"},
	{"connection reset by peer", "it closed the connection", ""},
	{"broken pipe", "it closed the connection", ""},
	{"EOF", "it closed the connection", ""},
	{"client conn could not be established", "it closed the connection", ""},
	{"the connection is draining", "it closed the connection", ""},
	{"transport is closing", "it closed the connection", ""},
	{"stream terminated by RST_STREAM", "it broke the request off", ""},
	{"stream error", "it broke the request off", ""},
	{"context deadline exceeded", "it did not answer in time", "is the backend overloaded?"},
	{"Client.Timeout", "it did not answer in time", "is the backend overloaded?"},
	{"i/o timeout", "it did not answer in time", "check the network between here and there"},
	{"connection timed out", "it did not answer in time", "check the network between here and there"},
}

// Explain says in plain words why a request did not reach the backend, or its
// answer did not reach us. What has no words here comes as it is. That the
// caller ended the request is given back as such.
func Explain(address string, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	out := &profiler.Fault{What: "cannot send to " + address}
	text := err.Error()
	for _, c := range causes {
		if strings.Contains(text, c.phrase) {
			out.Why, out.Fix = &explained{c.why, err}, c.fix
			return out
		}
	}
	out.Why = &explained{Line(text), err}
	return out
}

// explained has words of its own and keeps the error that they are about.
type explained struct {
	text string
	err  error
}

func (e *explained) Error() string { return e.text }
func (e *explained) Unwrap() error { return e.err }

// What is repeated of a stranger's words: the beginning, and more of the end,
// where Pyroscope has its reason after all labels of the profile.
const (
	lineHead = 150
	lineTail = 350
)

// Line is a backend's answer as one printable line of bounded length.
func Line(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > lineHead+lineTail {
		s = strings.ToValidUTF8(s[:lineHead], "") + " … " + strings.ToValidUTF8(s[len(s)-lineTail:], "")
	}
	return profiler.Printable(s)
}

// Said is what a backend answered, in its own words.
type Said struct{ Text string }

// Error is the answer as one line.
func (s *Said) Error() string { return Line(s.Text) }

// Answered is the error of a backend that was reached and said no.
func Answered(address string, why error, fix string) error {
	return &profiler.Fault{What: address + " does not take the profiles", Why: why, Fix: fix}
}

// Unaccepted is the error of a backend that does not accept who we say we are.
// It says nothing of the data: a token may have been rotated a moment too soon.
func Unaccepted(address string, said error) error {
	return Answered(address, fmt.Errorf("it does not accept who we say we are: %w", said),
		"check the user, token or tenant; they are read again before each request")
}

// Missing is the error of a backend that does not have what is asked for.
func Missing(address, what string) error {
	return Answered(address, fmt.Errorf("it has no %s", what), "is it Pyroscope, which takes gRPC at its HTTP port too (4040), or a collector with --feature-gates=service.profilesSupport?")
}

// Invalid finds the words of Pyroscope for a message that no retry helps, where
// its answer has another code.
func Invalid(text string) bool {
	return strings.Contains(text, "InvalidArgument") || strings.Contains(text, "invalid_argument")
}
