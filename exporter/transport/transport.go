// Package transport is how a backend is reached: its address, TLS, who we say
// we are, and for how long an answer is waited for. Both gRPC and HTTP are
// made from one Config, so that a flag means the same for every exporter.
//
// Secrets come from files only. They are read again for every request, and
// certificates for every connection, so that a rotated token or certificate
// holds without a restart. Neither errors nor anything else that leaves this
// package has their contents.
//
// It does not know what is sent, and tries nothing twice.
package transport

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
)

// DefaultTimeout is how long one request may take. Pyroscope answers when what
// it took is stored, which takes 0.5 s where nothing else happens.
const DefaultTimeout = 15 * time.Second

// Config says how a backend is reached.
type Config struct {
	// Endpoint is HOST:PORT, or a URL. The scheme http of a URL is the same as
	// Insecure. The path of a URL is put before the path of each HTTP request;
	// gRPC has no use for it.
	Endpoint string
	Insecure bool // no TLS

	CAFile     string // PEM; empty: the system's certificate authorities
	CertFile   string // PEM, the client certificate; with KeyFile
	KeyFile    string
	ServerName string // expected in the server's certificate; empty: the endpoint's host

	Username     string // basic authentication; with PasswordFile
	PasswordFile string
	TokenFile    string // bearer token
	HeadersFile  string // one "Name: value" a line
	Tenant       string // X-Scope-OrgID

	Timeout time.Duration // of one request with its answer; 0: DefaultTimeout
	// UserAgent is what requests say they come from; empty: "kalypso-agent".
	UserAgent string
}

// endpoint is a Config's Endpoint, taken apart.
type endpoint struct {
	address string // HOST:PORT
	host    string
	path    string // without a slash at its end
	tls     bool
}

// endpoint takes Endpoint apart. A URL without a port has its scheme's; in
// HOST:PORT the port must be told, since backends have no common one.
func (c *Config) endpoint() (endpoint, error) {
	e := endpoint{address: c.Endpoint, tls: !c.Insecure}
	if c.Endpoint == "" {
		return e, errors.New("it is empty")
	}
	if strings.Contains(c.Endpoint, "://") {
		u, err := url.Parse(c.Endpoint)
		switch {
		case err != nil:
			// The error of url.Parse has the URL in it, which may have a password.
			return e, errors.New("it is no URL")
		case u.Scheme != "http" && u.Scheme != "https":
			return e, fmt.Errorf("the scheme %q is neither http nor https", u.Scheme)
		case u.User != nil:
			return e, errors.New("it has a user in it; secrets come from files only")
		case u.RawQuery != "" || u.Fragment != "":
			return e, errors.New("it has a query or a fragment")
		case u.Scheme == "https" && c.Insecure:
			return e, errors.New("https and no TLS contradict each other")
		}
		e.tls = u.Scheme == "https"
		e.path = strings.TrimRight(u.Path, "/")
		port := u.Port()
		if port == "" {
			port = map[bool]string{false: "80", true: "443"}[e.tls]
		}
		e.address = net.JoinHostPort(u.Hostname(), port)
	}
	host, port, err := net.SplitHostPort(e.address)
	if n, portErr := strconv.ParseUint(port, 10, 16); err != nil || portErr != nil || n == 0 || host == "" || strings.ContainsAny(host, "/@ ") {
		return e, errors.New("it is neither HOST:PORT nor a URL")
	}
	e.host = host
	return e, nil
}

// Validate says what is wrong with c. It reads the files, so that a mistake in
// one is told at the start and not when the first profile is due.
func (c *Config) Validate() error {
	e, err := c.endpoint()
	if err != nil {
		what := "cannot send profiles: no endpoint"
		if c.Endpoint != "" {
			what = "cannot send profiles to this endpoint"
		}
		return &profiler.Fault{What: what, Why: err, Fix: "name it as HOST:PORT, such as pyroscope.example.org:4040, or as a URL"}
	}
	if c.Timeout < 0 {
		return &profiler.Fault{What: fmt.Sprintf("cannot wait %s for an answer", c.Timeout), Fix: "leave the timeout out: the default is 15s"}
	}
	if err := c.validateTLS(e); err != nil {
		return err
	}
	return c.validateIdentity()
}

func (c *Config) validateTLS(e endpoint) error {
	if !e.tls && (c.CAFile != "" || c.CertFile != "" || c.KeyFile != "" || c.ServerName != "") {
		return &profiler.Fault{
			What: "cannot use certificates without TLS",
			Why:  fmt.Errorf("the connection to %s is to be insecure, and there are TLS options", e.address),
			Fix:  "leave out either the one or the other",
		}
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		return &profiler.Fault{
			What: "cannot use a client certificate",
			Why:  errors.New("certificate and key belong together, and one is missing"),
			Fix:  "name the files of both",
		}
	}
	if _, err := c.tlsConfig(e); err != nil {
		return &profiler.Fault{What: "cannot use the TLS files", Why: err, Fix: "they are PEM files that the agent's user must be able to read"}
	}
	return nil
}

func (c *Config) validateIdentity() error {
	if (c.Username == "") != (c.PasswordFile == "") {
		return &profiler.Fault{
			What: "cannot use basic authentication",
			Why:  errors.New("user and password belong together, and one is missing"),
			Fix:  "name the user and the file of the password",
		}
	}
	if c.Username != "" && c.TokenFile != "" {
		return &profiler.Fault{
			What: "cannot use basic authentication and a bearer token at once",
			Why:  errors.New("both are told in the same header"),
			Fix:  "leave one of them out",
		}
	}
	if strings.Contains(c.Username, ":") {
		return &profiler.Fault{What: "cannot use basic authentication", Why: errors.New("the user's name has a colon in it, which ends it")}
	}
	if _, err := c.headers(); err != nil {
		return &profiler.Fault{What: "cannot tell the backend who we are", Why: err, Fix: "correct the file, or name another"}
	}
	return nil
}

// timeout is Timeout, or its default.
func (c *Config) timeout() time.Duration {
	if c.Timeout == 0 {
		return DefaultTimeout
	}
	return c.Timeout
}

func (c *Config) userAgent() string {
	if c.UserAgent == "" {
		return "kalypso-agent"
	}
	return c.UserAgent
}

// tlsConfig reads the certificates. It is nil where there is no TLS.
func (c *Config) tlsConfig(e endpoint) (*tls.Config, error) {
	if !e.tls {
		return nil, nil
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName}
	if out.ServerName == "" {
		out.ServerName = e.host
	}
	if c.CAFile != "" {
		pem, err := readFile(c.CAFile)
		if err != nil {
			return nil, err
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("no certificate in %s", c.CAFile)
		}
	}
	if c.CertFile != "" {
		certificate, err := c.clientCertificate()
		if err != nil {
			return nil, err
		}
		out.Certificates = []tls.Certificate{certificate}
	}
	return out, nil
}

func (c *Config) clientCertificate() (tls.Certificate, error) {
	certificate, err := readFile(c.CertFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := readFile(c.KeyFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate %s with key %s: %w", c.CertFile, c.KeyFile, err)
	}
	return pair, nil
}

// fileLimit is far above any token, header or bundle of certificates (the
// system's own has 220 kB).
const fileLimit = 1 << 20

func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > fileLimit {
		return nil, fmt.Errorf("%s is no regular file of at most 1 MiB", path)
	}
	return os.ReadFile(path)
}
