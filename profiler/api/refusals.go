package api

import (
	"net/http"
	"sync/atomic"
)

// Refusals counts requests that a server refused. It is there before the server
// is, for whoever reports it.
type Refusals struct{ forbidden, tooMany, unavailable atomic.Uint64 }

// RefusalStats are counts by HTTP status.
type RefusalStats struct {
	Forbidden       uint64 // 403: from another machine, or for another origin
	TooManyRequests uint64 // 429: over the allowance, two recordings run, or the agent is behind
	Unavailable     uint64 // 503: nothing is there yet, or no memory to show it
}

// Stats counts.
func (r *Refusals) Stats() RefusalStats {
	return RefusalStats{Forbidden: r.forbidden.Load(), TooManyRequests: r.tooMany.Load(), Unavailable: r.unavailable.Load()}
}

func (r *Refusals) count(status int) {
	if r == nil {
		return
	}
	switch status {
	case http.StatusForbidden:
		r.forbidden.Add(1)
	case http.StatusTooManyRequests:
		r.tooMany.Add(1)
	case http.StatusServiceUnavailable:
		r.unavailable.Add(1)
	}
}
