package pyroscope

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/kalypso-dev/kalypso/exporter/transport"
	"github.com/kalypso-dev/kalypso/profiler"
)

// refused explains an answer that says no.
func (c *Client) refused(status int, answer []byte) error {
	var said struct{ Message string }
	if json.Unmarshal(answer, &said) != nil || said.Message == "" {
		said.Message = string(answer)
	}
	if strings.TrimSpace(said.Message) == "" {
		said.Message = http.StatusText(status)
	}
	f := &profiler.Fault{What: c.name + " refuses the question", Why: fmt.Errorf("%s (HTTP %d)", transport.Line(said.Message), status)}
	switch {
	case status == http.StatusBadRequest && strings.Contains(said.Message, "unexpected character inside braces: '\"'"):
		return errDots
	case status == http.StatusUnauthorized, status == http.StatusForbidden, strings.Contains(said.Message, "no org id"):
		f.What = c.name + " wants to know who asks"
		f.Fix = "--pyroscope-headers FILE     with lines such as X-Scope-OrgID: TENANT or Authorization: Basic …"
	case status == http.StatusNotFound, status == http.StatusMethodNotAllowed, status == http.StatusUnsupportedMediaType:
		return c.foreign(f.Why)
	case strings.Contains(said.Message, "max_query_length"):
		f.What = c.name + " takes no range that long"
		f.Fix = "ask for less: --from -24h is what most servers take; the limit is max_query_length"
	case strings.Contains(said.Message, "max_query_lookback"):
		f.What = c.name + " looks no further back"
		f.Fix = "begin later; the limit is max_query_lookback"
	case status >= http.StatusInternalServerError, status == http.StatusTooManyRequests:
		f.What = c.name + " could not answer"
		f.Fix = "try again; its log tells what is wrong with it: of the stack's own, kalypsoctl logs pyroscope"
	}
	return f
}
