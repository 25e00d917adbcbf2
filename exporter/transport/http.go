package transport

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// Connections that are not used are closed after a while: longer than the
// longest usual window (60 s), so that one connection serves all requests.
const idleTimeout = 90 * time.Second

// dialTimeout leaves most of a request's time to the request.
const dialTimeout = 5 * time.Second

// connections are kept for requests that go out at once.
const connections = 8

// answerHeaderLimit bounds what a strange server makes us keep.
const answerHeaderLimit = 64 << 10

// HTTP reaches a backend over HTTP. It is safe for use by several goroutines.
type HTTP struct {
	config   Config
	endpoint endpoint

	mu     sync.Mutex
	files  []stamp
	client *http.Transport
}

// NewHTTP makes the way to a backend. It does not connect yet.
func NewHTTP(c Config) (*HTTP, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	e, err := c.endpoint()
	if err != nil {
		return nil, err
	}
	return &HTTP{config: c, endpoint: e}, nil
}

// Timeout is how long one request may take.
func (h *HTTP) Timeout() time.Duration { return h.config.timeout() }

// Address is HOST:PORT of the backend.
func (h *HTTP) Address() string { return h.endpoint.address }

// URL is where a path of the backend is. The path begins with a slash.
func (h *HTTP) URL(path string) string {
	scheme := "http"
	if h.endpoint.tls {
		scheme = "https"
	}
	return scheme + "://" + h.endpoint.address + h.endpoint.path + path
}

// RoundTrip sends a request with what says who we are. The request is not
// changed.
func (h *HTTP) RoundTrip(r *http.Request) (*http.Response, error) {
	headers, err := h.config.headers()
	if err != nil {
		return nil, fmt.Errorf("tell who we are: %w", err)
	}
	client, err := h.transport()
	if err != nil {
		return nil, fmt.Errorf("read TLS files: %w", err)
	}
	r = r.Clone(r.Context())
	for _, header := range headers {
		r.Header.Set(header.Name, header.Value)
	}
	r.Header.Set("User-Agent", h.config.userAgent())
	return client.RoundTrip(r)
}

// Close closes the connections.
func (h *HTTP) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.client != nil {
		h.client.CloseIdleConnections()
	}
}

// transport gives the connections, new ones if a certificate changed.
func (h *HTTP) transport() (*http.Transport, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	files := stamps(h.config.CAFile, h.config.CertFile, h.config.KeyFile)
	if h.client != nil && same(files, h.files) {
		return h.client, nil
	}
	tlsConfig, err := h.config.tlsConfig(h.endpoint)
	if err != nil {
		return nil, err
	}
	if h.client != nil {
		h.client.CloseIdleConnections()
	}
	h.files = files
	h.client = &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:        tlsConfig,
		TLSHandshakeTimeout:    dialTimeout,
		IdleConnTimeout:        idleTimeout,
		MaxIdleConnsPerHost:    connections,
		MaxResponseHeaderBytes: answerHeaderLimit,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true,
	}
	return h.client, nil
}

// stamp tells one state of a file from the next: a secret that Kubernetes
// mounts changes by another file under the same name.
type stamp struct {
	info os.FileInfo
}

func stamps(paths ...string) []stamp {
	var out []stamp
	for _, path := range paths {
		if path == "" {
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			info = nil // reading it says why
		}
		out = append(out, stamp{info})
	}
	return out
}

func same(a, b []stamp) bool {
	for i := range a {
		x, y := a[i].info, b[i].info
		if x == nil || y == nil || !os.SameFile(x, y) || x.Size() != y.Size() || !x.ModTime().Equal(y.ModTime()) {
			return false
		}
	}
	return true
}
