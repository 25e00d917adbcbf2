package otlp

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/exporter"
	"github.com/kalypso-dev/kalypso/exporter/otlp/otlptest"
	"github.com/kalypso-dev/kalypso/exporter/transport"
	"github.com/kalypso-dev/kalypso/profiler"
)

var protocols = map[string]Protocol{"grpc": GRPC, "http": HTTP}

// small is a request of two profiles and ten samples.
func small(t *testing.T) *exporter.Request {
	t.Helper()
	leaf := &profiler.Location{Module: &profiler.Module{Path: "/bin/a"}, Frames: []profiler.Frame{{Function: "work", File: "a.c", Line: 3}}}
	profile := func(name string, count uint64) *profiler.Profile {
		return &profiler.Profile{
			Workload: &profiler.Workload{Attributes: []profiler.Attribute{{Key: "service.name", Value: name}}},
			Start:    time.Now().Add(-15 * time.Second), Duration: 15 * time.Second, Frequency: 97,
			Samples: []profiler.Sample{{Stack: &profiler.Stack{Locations: []*profiler.Location{leaf}, Stop: profiler.StopRoot}, Count: count}},
		}
	}
	requests, dropped, err := NewEncoder(EncoderConfig{}).Encode([]*profiler.Profile{profile("one", 6), profile("two", 4)})
	if err != nil || dropped != 0 || len(requests) != 1 {
		t.Fatalf("encode: %d requests, %d dropped, %v", len(requests), dropped, err)
	}
	return requests[0]
}

func sender(t *testing.T, p Protocol, c transport.Config) exporter.Sender {
	t.Helper()
	s, err := NewSender(c, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func eachProtocol(t *testing.T, test func(t *testing.T, p Protocol)) {
	for name, p := range protocols {
		t.Run(name, func(t *testing.T) { test(t, p) })
	}
}

// outcome is what an answer means, in one word.
func outcome(err error) string {
	var busy *exporter.BusyError
	switch {
	case err == nil:
		return "taken"
	case exporter.Refused(err):
		return "refused"
	case errors.As(err, &busy):
		return "busy " + busy.After.String()
	}
	return "again"
}

func TestAnswers(t *testing.T) {
	for _, test := range []struct {
		name string
		mode otlptest.Mode
		want string
		says string // in the error
	}{
		{"a request that was taken is done", otlptest.Accept, "taken", ""},
		{"a slow answer is waited for", otlptest.Slow, "taken", ""},
		{"a partial success is not sent again", otlptest.HalfAccept, "taken", ""},
		{"an invalid argument is refused for good", otlptest.Refuse, "refused", "refused by the test"},
		{"an invalid argument under another code is refused for good", otlptest.RefuseOddly, "refused", "refused by the test"},
		{"a request that is too large is refused for good", otlptest.TooLarge, "refused", "does not take"},
		{"wrong credentials say nothing of the data", otlptest.Unauthenticated, "again", "who we say we are"},
		{"a rate limit is for later", otlptest.RateLimit, "busy 0s", "push rate limit"},
		{"a rate limit may say when", otlptest.RateLimitAfter, "busy 7s", "push rate limit"},
		{"a reset says nothing of the data", otlptest.Reset, "again", "it "},
		{"no answer says nothing of the data", otlptest.Stall, "again", "did not answer in time"},
	} {
		t.Run(test.name, func(t *testing.T) {
			eachProtocol(t, func(t *testing.T, p Protocol) {
				r := otlptest.Start(t, otlptest.Options{Mode: test.mode, Delay: 100 * time.Millisecond, RetryAfter: 7 * time.Second})
				s := sender(t, p, transport.Config{Endpoint: r.Endpoint(), Insecure: true, Timeout: map[bool]time.Duration{false: time.Minute, true: time.Second}[test.mode == otlptest.Stall]})
				receipt, err := s.Send(t.Context(), small(t))
				if got := outcome(err); got != test.want {
					t.Errorf("%s, want %s: %v", got, test.want, err)
				}
				if err != nil && !strings.Contains(err.Error(), test.says) {
					t.Errorf("says %q, want %q in it", err, test.says)
				}
				wantSamples, wantRejected := uint64(0), 0
				switch test.mode {
				case otlptest.Accept, otlptest.Slow:
					wantSamples = 10
				case otlptest.HalfAccept:
					wantSamples, wantRejected = 6, 1
				}
				if r.Samples() != wantSamples || receipt.RejectedProfiles != wantRejected {
					t.Errorf("took %d samples and rejected %d profiles, want %d and %d", r.Samples(), receipt.RejectedProfiles, wantSamples, wantRejected)
				}
				if r.Attempts() != 1 {
					t.Errorf("%d attempts, want 1: who sends again is not for the sender to decide", r.Attempts())
				}
			})
		})
	}
}

// One sender sees its backend go and come back in every way, and needs no help.
func TestSenderComesBackByItself(t *testing.T) {
	eachProtocol(t, func(t *testing.T, p Protocol) {
		r := otlptest.Start(t, otlptest.Options{TLS: true, Expired: true, Away: true})
		s := sender(t, p, transport.Config{Endpoint: r.Endpoint(), CAFile: r.CAFile()})
		for _, step := range []struct {
			name string
			do   func()
			want string // in the error; empty: taken
		}{
			{"away at the start", func() {}, "nothing listens there"},
			{"certificate has expired", r.Listen, "its certificate has expired"},
			{"certificate renewed", func() { r.Renew(false) }, ""},
			{"reset", func() { r.Fail(otlptest.Reset) }, "it "},
			{"accepts again", func() { r.Fail(otlptest.Accept) }, ""},
			{"away", r.Leave, "cannot send to"},
			{"there again", r.Listen, ""},
		} {
			step.do()
			_, err := s.Send(t.Context(), small(t))
			switch {
			case step.want == "" && err != nil:
				t.Errorf("%s: %v", step.name, err)
			case step.want != "" && (err == nil || !strings.Contains(err.Error(), step.want) || outcome(err) != "again"):
				t.Errorf("%s: got %v, want %q, to be tried again", step.name, err, step.want)
			}
		}
		if got := r.Samples(); got != 30 {
			t.Errorf("took %d samples, want 30", got)
		}
	})
}

// The same failure has the same words every time, so that a log folds it.
func TestErrorTextsDoNotChange(t *testing.T) {
	eachProtocol(t, func(t *testing.T, p Protocol) {
		for name, o := range map[string]otlptest.Options{
			"away": {Away: true}, "reset": {Mode: otlptest.Reset}, "expired": {TLS: true, Expired: true},
		} {
			r := otlptest.Start(t, o)
			c := transport.Config{Endpoint: r.Endpoint(), Insecure: !o.TLS}
			if o.TLS {
				c.CAFile = r.CAFile()
			}
			s := sender(t, p, c)
			_, first := s.Send(t.Context(), small(t))
			_, second := s.Send(t.Context(), small(t))
			if first == nil || second == nil || first.Error() != second.Error() {
				t.Errorf("%s: first %v, then %v", name, first, second)
			}
			if strings.Contains(first.Error(), "->127.0.0.1") || strings.Contains(first.Error(), "context deadline") {
				t.Errorf("%s: not plain: %v", name, first)
			}
		}
	})
}

func TestNameThatDoesNotResolve(t *testing.T) {
	eachProtocol(t, func(t *testing.T, p Protocol) {
		s := sender(t, p, transport.Config{Endpoint: "backend.invalid:4040", Insecure: true})
		_, err := s.Send(t.Context(), small(t))
		if outcome(err) != "again" || !strings.Contains(err.Error(), "cannot send to backend.invalid:4040: ") {
			t.Errorf("got %v, want one to be tried again that names the backend", err)
		}
		t.Log(err)
	})
}

func TestWrongKindOfServer(t *testing.T) {
	for name, test := range map[string]struct {
		o    otlptest.Options
		c    transport.Config
		want string
	}{
		"TLS to a server without":  {otlptest.Options{}, transport.Config{}, "it does not speak TLS"},
		"no TLS to a server with":  {otlptest.Options{TLS: true}, transport.Config{Insecure: true}, "only with TLS"},
		"an authority not known":   {otlptest.Options{TLS: true}, transport.Config{}, "an authority that is not known here"},
		"no client certificate":    {otlptest.Options{TLS: true, ClientCert: true}, transport.Config{CAFile: "ca"}, "it "}, // the alert may be lost with the connection
		"a name not in the server": {otlptest.Options{TLS: true}, transport.Config{CAFile: "ca", ServerName: "other"}, "its certificate is for another name"},
	} {
		t.Run(name, func(t *testing.T) {
			eachProtocol(t, func(t *testing.T, p Protocol) {
				r := otlptest.Start(t, test.o)
				c := test.c
				c.Endpoint = r.Endpoint()
				if c.CAFile != "" {
					c.CAFile = r.CAFile()
				}
				_, err := sender(t, p, c).Send(t.Context(), small(t))
				if outcome(err) != "again" || !strings.Contains(err.Error(), test.want) {
					t.Errorf("got %v, want %q", err, test.want)
				}
			})
		})
	}
}

func TestIdentityIsReadForEachRequest(t *testing.T) {
	eachProtocol(t, func(t *testing.T, p Protocol) {
		r := otlptest.Start(t, otlptest.Options{
			TLS: true, ClientCert: true,
			Header: http.Header{"Authorization": {"Bearer second"}, "X-Scope-Orgid": {"shop"}, "X-Team": {"blue, green"}},
		})
		dir := t.TempDir()
		token, headers := filepath.Join(dir, "token"), filepath.Join(dir, "headers")
		write(t, token, "first\n")
		write(t, headers, "# who pays\nx-team: blue, green\n")
		certificate, key := r.ClientFiles()
		s := sender(t, p, transport.Config{
			Endpoint: r.Endpoint(), CAFile: r.CAFile(), CertFile: certificate, KeyFile: key,
			TokenFile: token, HeadersFile: headers, Tenant: "shop",
		})
		_, err := s.Send(t.Context(), small(t))
		if outcome(err) != "again" || !strings.Contains(err.Error(), "who we say we are") {
			t.Errorf("with the old token: %v", err)
		}
		if err := os.Remove(token); err != nil {
			t.Fatal(err)
		}
		if _, err = s.Send(t.Context(), small(t)); outcome(err) != "again" || !strings.Contains(err.Error(), token) {
			t.Errorf("without a token: got %v, want the name of the file", err)
		}
		write(t, token, "second\n")
		r.RenewClient("rotated")
		if _, err := s.Send(t.Context(), small(t)); err != nil {
			t.Errorf("with the new token: %v", err)
		}
	})
}

func TestBasicAuthentication(t *testing.T) {
	eachProtocol(t, func(t *testing.T, p Protocol) {
		// The example of RFC 7617.
		r := otlptest.Start(t, otlptest.Options{Header: http.Header{"Authorization": {"Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="}}})
		password := filepath.Join(t.TempDir(), "password")
		write(t, password, "open sesame\n")
		s := sender(t, p, transport.Config{Endpoint: "http://" + r.Endpoint(), Username: "Aladdin", PasswordFile: password})
		if _, err := s.Send(t.Context(), small(t)); err != nil {
			t.Error(err)
		}
	})
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCallerEndsARequest(t *testing.T) {
	eachProtocol(t, func(t *testing.T, p Protocol) {
		r := otlptest.Start(t, otlptest.Options{Mode: otlptest.Stall})
		s := sender(t, p, transport.Config{Endpoint: r.Endpoint(), Insecure: true})
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := s.Send(ctx, small(t)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the context's error", err)
		}
	})
}

// The bytes of a request travel as they are: they may come from a spool that
// an older agent wrote.
func TestBytesTravelAsTheyAre(t *testing.T) {
	eachProtocol(t, func(t *testing.T, p Protocol) {
		r := otlptest.Start(t, otlptest.Options{})
		s := sender(t, p, transport.Config{Endpoint: r.Endpoint(), Insecure: true})
		request := small(t)
		// A field that this version does not know.
		request.Body = append(request.Body, 0xfa, 0x07, 0x03, 'n', 'e', 'w')
		if _, err := s.Send(t.Context(), request); err != nil {
			t.Fatal(err)
		}
		if got := r.Samples(); got != request.Samples {
			t.Errorf("took %d samples, want %d", got, request.Samples)
		}
	})
}
