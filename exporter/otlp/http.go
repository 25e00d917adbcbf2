package otlp

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kalypso-dev/kalypso/exporter"
	"github.com/kalypso-dev/kalypso/exporter/transport"
)

// httpPath is where OTLP profiles are taken.
const httpPath = "/v1development/profiles"

// contentType is one of the three that Pyroscope takes, letter by letter.
const contentType = "application/x-protobuf"

// answerLimit bounds what is read of an answer.
const answerLimit = 64 << 10

type httpSender struct {
	transport *transport.HTTP
	client    *http.Client
}

func newHTTPSender(c transport.Config) (*httpSender, error) {
	t, err := transport.NewHTTP(c)
	if err != nil {
		return nil, err
	}
	return &httpSender{transport: t, client: &http.Client{
		Transport: t,
		Timeout:   t.Timeout(),
		// A redirected POST comes as a GET without the profiles.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Send sends a request and waits for the answer.
func (s *httpSender) Send(ctx context.Context, r *exporter.Request) (exporter.Receipt, error) {
	body, err := compress(r.Body)
	if err != nil {
		return exporter.Receipt{}, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.transport.URL(httpPath), bytes.NewReader(body))
	if err != nil {
		return exporter.Receipt{}, fmt.Errorf("send to %s: %w", s.transport.Address(), err)
	}
	request.Header.Set("Content-Type", contentType)
	request.Header.Set("Content-Encoding", "gzip")
	response, err := s.client.Do(request)
	if err != nil {
		if ctx.Err() != nil {
			return exporter.Receipt{}, ctx.Err()
		}
		return exporter.Receipt{}, transport.Explain(s.transport.Address(), err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, answerLimit))
	if response.StatusCode/100 == 2 {
		if err != nil {
			return exporter.Receipt{Message: "unreadable answer"}, nil
		}
		return receipt(answer)
	}
	return exporter.Receipt{}, s.classify(response, answer)
}

// Close closes the connections.
func (s *httpSender) Close() error {
	s.transport.Close()
	return nil
}

// classify says what an answer means for the request.
func (s *httpSender) classify(r *http.Response, answer []byte) error {
	said := words(r, answer)
	answered := func(fix, why string) error {
		return transport.Answered(s.transport.Address(), fmt.Sprintf("%s (HTTP %d)", why, r.StatusCode), fix)
	}
	switch r.StatusCode {
	case http.StatusBadRequest:
		// The words of Go's server and of nginx for a request without TLS.
		if strings.Contains(said, "HTTP request to an HTTPS server") || strings.Contains(said, "plain HTTP request was sent to HTTPS port") {
			return answered("leave --otlp.insecure out", "it speaks HTTP only with TLS")
		}
		return &exporter.RefusedError{Err: answered("", said)}
	case http.StatusRequestEntityTooLarge:
		return &exporter.RefusedError{Err: answered("raise the server's limit on body sizes", said)}
	case http.StatusUnauthorized, http.StatusForbidden:
		return answered("check the user, token or tenant; they are read again before each request", "it does not accept who we say we are: "+said)
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusUnsupportedMediaType:
		return answered("Pyroscope has one from 1.15 on, a collector with --feature-gates=service.profilesSupport", "it has no service for profiles")
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return &exporter.BusyError{Err: answered("", said), After: headerDelay(r.Header.Get("Retry-After"))}
	case http.StatusInternalServerError:
		// Pyroscope's answer to what it could not convert.
		if invalid(string(answer)) {
			return &exporter.RefusedError{Err: answered("", said)}
		}
	}
	if r.StatusCode/100 == 3 {
		return answered("name the address that it points to", "it points elsewhere: "+transport.Line(r.Header.Get("Location")))
	}
	return answered("", said)
}

// words is what the answer says: text, or a Status as OTLP wants it.
func words(r *http.Response, answer []byte) string {
	if strings.HasPrefix(r.Header.Get("Content-Type"), contentType) {
		var st status.Status
		if err := proto.Unmarshal(answer, &st); err == nil && st.GetMessage() != "" {
			return transport.Line(st.GetMessage())
		}
	}
	if text := transport.Line(string(answer)); text != "" {
		return text
	}
	return http.StatusText(r.StatusCode)
}

// headerDelay reads Retry-After: seconds or a date.
func headerDelay(value string) time.Duration {
	if seconds, err := strconv.Atoi(strings.TrimSpace(value)); err == nil {
		return retryAfter(time.Duration(min(max(seconds, 0), 1<<20)) * time.Second)
	}
	if at, err := http.ParseTime(value); err == nil {
		return retryAfter(time.Until(at))
	}
	return 0
}

// gzipLevel takes a third of the default's time for 3 % more bytes (610 kB:
// 5 ms and 159 kB, 15 ms and 153 kB).
const gzipLevel = 4

// A gzip.Writer has 800 kB of tables, so they are kept.
var gzipWriters = sync.Pool{New: func() any {
	w, err := gzip.NewWriterLevel(nil, gzipLevel)
	if err != nil {
		return nil
	}
	return w
}}

func compress(body []byte) ([]byte, error) {
	var out bytes.Buffer
	w, ok := gzipWriters.Get().(*gzip.Writer)
	if !ok {
		return nil, errors.New("no gzip writer")
	}
	defer gzipWriters.Put(w)
	w.Reset(&out)
	if _, err := w.Write(body); err != nil {
		return nil, fmt.Errorf("compress request: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("compress request: %w", err)
	}
	return out.Bytes(), nil
}
