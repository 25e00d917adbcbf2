package verify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/kalypso-dev/kalypso/deploy/component"
)

const (
	requestLimit = 15 * time.Second // of one request with its answer
	answerLimit  = 4 << 20          // bytes; the largest answer wanted is a flame graph of two stacks
	wordsLimit   = 200              // characters that are repeated of a server's own words
)

// service is one port of a component, reached when it is first asked.
type service struct {
	forwarder Forwarder
	component component.Component
	port      int
	header    http.Header

	addr    string // empty: not reached yet, or not any more
	close   func()
	reached bool // it once was
	client  http.Client
}

// open prepares for a port of a component's first Service.
func (c *Config) open(to component.Component, port int) *service {
	return &service{
		forwarder: c.Forwarder,
		component: to,
		port:      port,
		header:    http.Header{},
		client: http.Client{
			Timeout: requestLimit,
			// Connections of our own, which end with the tunnel. No proxy: the address
			// is on this machine.
			Transport: &http.Transport{},
		},
	}
}

// Close lets go of the tunnel.
func (s *service) Close() {
	s.client.CloseIdleConnections()
	if s.close != nil {
		s.close()
	}
	s.addr, s.close = "", nil
}

// String is how people know it: loki-gateway.loki:80.
func (s *service) String() string {
	return fmt.Sprintf("%s.%s:%d", s.component.Serves[0].Name, s.component.Namespace, s.port)
}

// reach makes the tunnel. That it cannot be made is final the first time: the
// Service is not there, or no pod behind it is ready. Later on a pod may be on
// its way back.
func (s *service) reach(ctx context.Context) error {
	if s.addr != "" {
		return nil
	}
	addr, closes, err := s.forwarder.Forward(ctx, s.component.Namespace, s.component.Serves[0].Name, s.port)
	if err != nil && !s.reached {
		return &permanentError{fmt.Errorf("reach %s: %w", s, err)}
	}
	if err != nil {
		return fmt.Errorf("reach %s: %w", s, err)
	}
	s.addr, s.close, s.reached = addr, closes, true
	return nil
}

// get asks for a path, which may have a query.
func (s *service) get(ctx context.Context, path string) ([]byte, error) {
	return s.do(ctx, http.MethodGet, path, nil)
}

// post sends a message as JSON.
func (s *service) post(ctx context.Context, path string, message any) ([]byte, error) {
	body, err := json.Marshal(message)
	if err != nil {
		return nil, &permanentError{err}
	}
	return s.do(ctx, http.MethodPost, path, body)
}

// do makes one request. An answer that is none of success is an *answerError.
func (s *service) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	if err := s.reach(ctx); err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://"+s.addr+path, bytes.NewReader(body))
	if err != nil {
		return nil, &permanentError{err}
	}
	for name, values := range s.header {
		r.Header[name] = values
	}
	r.Header.Set("Accept", "application/json")
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	response, err := s.client.Do(r)
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("%s does not answer: %w", s, cause(err))
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, answerLimit))
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("%s does not answer to the end: %w", s, cause(err))
	}
	if response.StatusCode/100 != 2 {
		return nil, &answerError{service: s.String(), status: response.StatusCode, words: words(answer)}
	}
	return answer, nil
}

// answerError is an answer that says no.
type answerError struct {
	service string
	status  int
	words   string
}

// Error is the status and the server's own words.
func (e *answerError) Error() string {
	text := fmt.Sprintf("%s answers %d %s", e.service, e.status, http.StatusText(e.status))
	if e.words != "" {
		text += ": " + e.words
	}
	return text
}

// permanentError is one that no waiting heals.
type permanentError struct{ err error }

// Error is the error's own.
func (e *permanentError) Error() string { return e.err.Error() }

// Unwrap gives the error.
func (e *permanentError) Unwrap() error { return e.err }

// permanent says whether to try again is of no use: nobody is there, or the
// request itself is what is wrong. 404 is what a store says of what it does not
// have yet, 429 and all from 500 on pass.
func permanent(err error) bool {
	var final *permanentError
	if errors.As(err, &final) {
		return true
	}
	var said *answerError
	return errors.As(err, &said) && said.status < 500 && said.status != http.StatusNotFound && said.status != http.StatusTooManyRequests
}

// errNotInTime stands for the words of package context.
var errNotInTime = errors.New("not in time")

// cause leaves out the address on this machine, which says nothing to anybody.
func cause(err error) error {
	var wrapped *url.Error
	if errors.Is(err, context.DeadlineExceeded) {
		return errNotInTime
	}
	if errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}

// words are the first line of what a server said, of its field "message" or
// "error" where it spoke JSON.
func words(answer []byte) string {
	text := string(answer)
	var said struct{ Message, Error string }
	if json.Unmarshal(answer, &said) == nil && said.Message+said.Error != "" {
		text = said.Message
		if text == "" {
			text = said.Error
		}
	}
	text, _, _ = strings.Cut(strings.TrimSpace(text), "\n")
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	if runes := []rune(text); len(runes) > wordsLimit {
		text = string(runes[:wordsLimit]) + "…"
	}
	return text
}
