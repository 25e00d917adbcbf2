package transport

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kalypso-dev/kalypso/exporter"
)

// answerLimit bounds what is read of an answer.
const answerLimit = 64 << 10

// retryAfterLimit bounds how long a backend can make us wait: it refuses what
// is older than an hour.
const retryAfterLimit = 10 * time.Minute

// RetryAfter is how long to wait where a backend asks for d.
func RetryAfter(d time.Duration) time.Duration { return min(max(d, 0), retryAfterLimit) }

// Post sends a message and gives the answer of a backend that took it. What a
// backend says otherwise comes as an exporter.RefusedError, an
// exporter.BusyError, or an error that says nothing of the message.
func (h *HTTP) Post(ctx context.Context, path string, header http.Header, body []byte) ([]byte, error) {
	call, cancel := context.WithTimeout(ctx, h.Timeout())
	defer cancel()
	request, err := http.NewRequestWithContext(call, http.MethodPost, h.URL(path), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("send to %s: %w", h.Address(), err)
	}
	request.Header = header
	// No http.Client: it would follow a redirection, which makes a POST a GET.
	response, err := h.RoundTrip(request)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, Explain(h.Address(), err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, answerLimit))
	if response.StatusCode/100 != 2 {
		return nil, h.classify(path, response, answer)
	}
	if err != nil {
		// It was taken all the same, and sending it again would count it twice.
		return nil, nil
	}
	return answer, nil
}

// classify says what an answer means for the message.
func (h *HTTP) classify(path string, r *http.Response, answer []byte) error {
	said := words(r, answer)
	answered := func(fix string, why error) error {
		return Answered(h.Address(), fmt.Errorf("%w (HTTP %d)", why, r.StatusCode), fix)
	}
	switch r.StatusCode {
	case http.StatusBadRequest:
		// The words of Go's server and of nginx for a request without TLS.
		if strings.Contains(said.Text, "HTTP request to an HTTPS server") || strings.Contains(said.Text, "plain HTTP request was sent to HTTPS port") {
			return answered("leave --otlp.insecure out", errors.New("it speaks HTTP only with TLS"))
		}
		return &exporter.RefusedError{Err: answered("", said)}
	case http.StatusRequestEntityTooLarge:
		return &exporter.RefusedError{Err: answered("raise the server's limit on body sizes", said)}
	case http.StatusUnauthorized, http.StatusForbidden:
		return Unaccepted(h.Address(), said)
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusUnsupportedMediaType:
		return Missing(h.Address(), path)
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return &exporter.BusyError{Err: answered("", said), After: headerDelay(r.Header.Get("Retry-After"))}
	case http.StatusInternalServerError:
		if Invalid(said.Text) {
			return &exporter.RefusedError{Err: answered("", said)}
		}
	}
	if r.StatusCode/100 == 3 {
		return answered("name the address that it points to", fmt.Errorf("it points elsewhere: %s", Line(r.Header.Get("Location"))))
	}
	return answered("", said)
}

// words is what an answer says: text, the JSON of Connect, or a Status as OTLP
// wants it.
func words(r *http.Response, answer []byte) *Said {
	said := ""
	switch kind := r.Header.Get("Content-Type"); {
	case strings.HasPrefix(kind, "application/x-protobuf"):
		var st status.Status
		if err := proto.Unmarshal(answer, &st); err == nil {
			said = st.GetMessage()
		}
	case strings.HasPrefix(kind, "application/json"):
		var e struct{ Message string }
		if err := json.Unmarshal(answer, &e); err == nil {
			said = e.Message
		}
	}
	if said == "" {
		said = string(answer)
	}
	if strings.TrimSpace(said) == "" {
		said = http.StatusText(r.StatusCode)
	}
	return &Said{said}
}

// headerDelay reads Retry-After: seconds or a date.
func headerDelay(value string) time.Duration {
	if seconds, err := strconv.Atoi(strings.TrimSpace(value)); err == nil {
		return RetryAfter(time.Duration(min(max(seconds, 0), 1<<20)) * time.Second)
	}
	if at, err := http.ParseTime(value); err == nil {
		return RetryAfter(time.Until(at))
	}
	return 0
}
