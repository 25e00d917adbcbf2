package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/exporter/otlp/otlptest"
	"github.com/kalypso-dev/kalypso/profiler"
)

// file writes a file of the test's own.
func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestValidate(t *testing.T) {
	secret := file(t, "secret", "s3cr3t\n")
	for _, test := range []struct {
		name string
		c    Config
		want string // in the error; empty: none
	}{
		{"HOST:PORT", Config{Endpoint: "pyroscope:4040"}, ""},
		{"an address of IPv6", Config{Endpoint: "[::1]:4040"}, ""},
		{"a URL", Config{Endpoint: "https://profiles.example.org/otlp"}, ""},
		{"a URL without TLS", Config{Endpoint: "http://pyroscope:4040", Insecure: true}, ""},
		{"every secret at once", Config{Endpoint: "a:1", Username: "me", PasswordFile: secret, HeadersFile: file(t, "h", "X-A: b\n"), Tenant: "shop"}, ""},
		{"no endpoint", Config{}, "no endpoint"},
		{"no port", Config{Endpoint: "pyroscope"}, "neither HOST:PORT nor a URL"},
		{"no host", Config{Endpoint: ":4040"}, "neither HOST:PORT nor a URL"},
		{"a path without a scheme", Config{Endpoint: "pyroscope:4040/otlp"}, "neither HOST:PORT nor a URL"},
		{"another scheme", Config{Endpoint: "grpc://pyroscope:4040"}, `the scheme "grpc"`},
		{"a password in the URL", Config{Endpoint: "https://me:s3cr3t@pyroscope"}, "secrets come from files only"},
		{"a password in what is no URL", Config{Endpoint: "https://me:s3cr3t@pyro scope:x"}, "it is no URL"},
		{"a query", Config{Endpoint: "https://pyroscope/?a=b"}, "a query"},
		{"https without TLS", Config{Endpoint: "https://pyroscope", Insecure: true}, "contradict"},
		{"certificates without TLS", Config{Endpoint: "a:1", Insecure: true, CAFile: "ca.pem"}, "without TLS"},
		{"a certificate without a key", Config{Endpoint: "a:1", CertFile: "c.pem"}, "one is missing"},
		{"an authority's file that is not there", Config{Endpoint: "a:1", CAFile: "/none/ca.pem"}, "/none/ca.pem"},
		{"an authority's file without a certificate", Config{Endpoint: "a:1", CAFile: secret}, "no certificate in"},
		{"a certificate that is none", Config{Endpoint: "a:1", CertFile: secret, KeyFile: secret}, "certificate " + secret},
		{"a user without a password", Config{Endpoint: "a:1", Username: "me"}, "one is missing"},
		{"a user with a colon", Config{Endpoint: "a:1", Username: "m:e", PasswordFile: secret}, "colon"},
		{"basic and bearer", Config{Endpoint: "a:1", Username: "me", PasswordFile: secret, TokenFile: secret}, "at once"},
		{"a token file that is not there", Config{Endpoint: "a:1", TokenFile: "/none/token"}, "/none/token"},
		{"an empty token file", Config{Endpoint: "a:1", TokenFile: file(t, "empty", "\n")}, "is empty"},
		{"a token of two lines", Config{Endpoint: "a:1", TokenFile: file(t, "two", "s3cr3t\nX-Other: s3cr3t")}, "no header can carry"},
		{"a token that is a folder", Config{Endpoint: "a:1", TokenFile: t.TempDir()}, "no regular file"},
		{"a token that is a device", Config{Endpoint: "a:1", TokenFile: "/dev/zero"}, "no regular file"},
		{"a tenant of two lines", Config{Endpoint: "a:1", Tenant: "a\nX: b"}, "the tenant"},
		{"a header without a colon", Config{Endpoint: "a:1", HeadersFile: file(t, "h", "\n# c\ns3cr3t\n")}, `line 3 is not "Name: value"`},
		{"a header of another alphabet", Config{Endpoint: "a:1", HeadersFile: file(t, "h", "X-A: s3cr3t\xff")}, `line 1 is not "Name: value"`},
		{"a header of the protocol", Config{Endpoint: "a:1", HeadersFile: file(t, "h", "content-length: 5")}, "belongs to the protocol"},
		{"a header twice", Config{Endpoint: "a:1", HeadersFile: file(t, "h", "X-A: 1\nx-a: 2")}, "for the second time"},
		{"a header that an option sets", Config{Endpoint: "a:1", TokenFile: secret, HeadersFile: file(t, "h", "authorization: s3cr3t")}, "another option sets"},
		{"a timeout below nothing", Config{Endpoint: "a:1", Timeout: -1}, "cannot wait"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := test.c.Validate()
			if test.want == "" {
				if err != nil {
					t.Errorf("got %v, want nothing", err)
				}
				return
			}
			var fault *profiler.Fault
			if !errors.As(err, &fault) || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want a fault with %q", err, test.want)
			}
			if strings.Contains(err.Error()+fault.Fix, "s3cr3t") {
				t.Errorf("a secret is in %q", err.Error()+fault.Fix)
			}
		})
	}
}

func TestURL(t *testing.T) {
	for endpoint, want := range map[string]string{
		"pyroscope:4040":                    "https://pyroscope:4040/v1/x",
		"https://profiles.example.org":      "https://profiles.example.org:443/v1/x",
		"https://profiles.example.org/otlp": "https://profiles.example.org:443/otlp/v1/x",
		"http://pyroscope:4040/otlp/":       "http://pyroscope:4040/otlp/v1/x",
		"http://[::1]":                      "http://[::1]:80/v1/x",
	} {
		h, err := NewHTTP(Config{Endpoint: endpoint})
		if err != nil {
			t.Fatal(err)
		}
		if got := h.URL("/v1/x"); got != want {
			t.Errorf("%s: %s, want %s", endpoint, got, want)
		}
	}
}

func TestHeaders(t *testing.T) {
	c := Config{
		TokenFile: file(t, "token", "abc\r\n"), Tenant: "shop",
		HeadersFile: file(t, "headers", "# a comment\n\nx-team:  blue, green \nCF-Access: a:b:c\n"),
	}
	got, err := c.headers()
	if err != nil {
		t.Fatal(err)
	}
	want := []Header{{"X-Scope-Orgid", "shop"}, {"Authorization", "Bearer abc"}, {"X-Team", "blue, green"}, {"Cf-Access", "a:b:c"}}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}

func FuzzHeaders(f *testing.F) {
	f.Add("Name: value\n", "token\n")
	f.Add("# c\n:\nA:\xff\nB: c\r\n", "")
	f.Fuzz(func(t *testing.T, headers, token string) {
		c := Config{HeadersFile: file(t, "h", headers), TokenFile: file(t, "t", token)}
		all, err := c.headers()
		if err != nil {
			if len(token) > 8 && strings.Contains(err.Error(), token) && !strings.Contains(c.TokenFile, token) {
				t.Errorf("the token is in %q", err)
			}
			return
		}
		for _, h := range all {
			if !validName(h.Name) || !validValue(h.Value) {
				t.Errorf("header %q", h)
			}
		}
	})
}

// An authority or client certificate that was replaced holds for the next
// request over HTTP.
func TestCertificatesAreReadAgain(t *testing.T) {
	r := otlptest.Start(t, otlptest.Options{TLS: true, ClientCert: true})
	other := otlptest.Start(t, otlptest.Options{TLS: true})
	certificate, key := r.ClientFiles()
	right, err := os.ReadFile(r.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	wrong, err := os.ReadFile(other.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	ca := file(t, "ca.pem", string(right))
	h, err := NewHTTP(Config{Endpoint: r.Endpoint(), CAFile: ca, CertFile: certificate, KeyFile: key})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	ask := func() error {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.URL("/"), nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := h.RoundTrip(request)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, response.Body)
		response.Body.Close()
		return err
	}
	if err := ask(); err != nil {
		t.Errorf("with the right authority: %v", err)
	}
	replace(t, ca, wrong)
	if err := ask(); err == nil || !strings.Contains(Explain("x", err).Error(), "an authority that is not known here") {
		t.Errorf("with another authority: got %v", err)
	}
	if err := os.Remove(ca); err != nil {
		t.Fatal(err)
	}
	if err := ask(); err == nil || !strings.Contains(err.Error(), ca) {
		t.Errorf("without a file: got %v, want its name", err)
	}
	replace(t, ca, right)
	r.RenewClient("rotated")
	if err := ask(); err != nil {
		t.Errorf("with the right authority again: %v", err)
	}
}

// replace puts a file in another's place, as Kubernetes does.
func replace(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestExplain(t *testing.T) {
	for text, want := range map[string]string{
		"dial tcp: lookup pyroscope on 10.0.0.1:53: read udp 10.0.0.7:40112->10.0.0.1:53: read: connection refused": "the name server does not answer",
		"dial tcp: lookup pyroscope on 10.0.0.1:53: no such host":                                                   "its name is not known (no such host)",
		"dial tcp 10.0.0.1:4040: connect: connection refused":                                                       "nothing listens there (connection refused)",
		"read tcp 10.0.0.2:53211->10.0.0.1:4040: read: connection reset by peer":                                    "it closed the connection",
		"Post \"https://x\": EOF": "it closed the connection",
		"x509: certificate has expired or is not yet valid: current time 2026-01-01T00:00:00Z is after": "its certificate has expired or is not yet valid",
		"context deadline exceeded (Client.Timeout exceeded while awaiting headers)":                    "it did not answer in time",
		"something\nelse \x1b[31m": `something else \x1b[31m`,
	} {
		err := Explain("backend:1", errors.New(text))
		if got := err.Error(); got != "cannot send to backend:1: "+want {
			t.Errorf("%q: %s", text, got)
		}
	}
	wrapped := fmt.Errorf("send: %w", context.Canceled)
	if err := Explain("backend:1", wrapped); !errors.Is(err, context.Canceled) || err != wrapped {
		t.Errorf("the caller's own end: %v", err)
	}
	cause := errors.New("cause")
	if !errors.Is(Explain("backend:1", cause), cause) {
		t.Error("the cause is lost")
	}
}

func TestLine(t *testing.T) {
	long := strings.Repeat("a", 400) + strings.Repeat("é", 400) + " the reason"
	got := Line("  two\n\tlines  " + long)
	if len(got) > 600 || !strings.HasPrefix(got, "two lines aaa") || !strings.HasSuffix(got, "é the reason") || strings.Contains(got, `\x`) {
		t.Errorf("%d bytes: %q", len(got), got)
	}
}
