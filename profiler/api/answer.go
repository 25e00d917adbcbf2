package api

import (
	"errors"
	"maps"
	"net/http"
	"sync/atomic"

	"github.com/kalypso-dev/kalypso/profiler"
)

// chunkBytes is how much of an answer is allocated at a time. The first of each
// answer is not counted, so that small answers can be made whatever large ones
// wait to be read: 4 MiB on all connections together.
const chunkBytes = 64 << 10

var errUnread = errors.New("others have not read what they were answered")

// answer is an answer that is being made, in memory. Bytes beyond the first chunk
// count as unsent, those of all answers together are limited.
type answer struct {
	header http.Header
	status int
	chunks [][]byte
	unsent *atomic.Int64 // of all answers
	most   int64         // of unsent
	err    error         // it does not fit
}

// Header is the header that it will have.
func (a *answer) Header() http.Header { return a.header }

// WriteHeader sets its status.
func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
}

// Write adds to it.
func (a *answer) Write(b []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	n := len(b)
	for len(b) > 0 && a.err == nil {
		last := len(a.chunks) - 1
		if last < 0 || len(a.chunks[last]) == chunkBytes {
			a.err = a.grow()
			continue
		}
		c := a.chunks[last]
		k := min(len(b), chunkBytes-len(c))
		a.chunks[last] = append(c, b[:k]...)
		b = b[k:]
	}
	return n - len(b), a.err
}

func (a *answer) grow() error {
	if len(a.chunks) == 0 {
		a.chunks = append(a.chunks, nil) // most answers are much smaller than a chunk
		return nil
	}
	if a.unsent.Add(chunkBytes) > a.most {
		a.unsent.Add(-chunkBytes)
		return a.tooLarge()
	}
	a.chunks = append(a.chunks, make([]byte, 0, chunkBytes))
	return nil
}

func (a *answer) tooLarge() error {
	if a.counted()+chunkBytes > a.most {
		return sayTooLarge(ErrTooLarge)
	}
	return &statusError{status: http.StatusServiceUnavailable, err: &profiler.Fault{
		What: "the agent has not the memory to answer this now", Why: errUnread, Fix: "try again in a few seconds",
	}}
}

// counted is how much of it counts as unsent.
func (a *answer) counted() int64 { return int64(max(len(a.chunks)-1, 0)) * chunkBytes }

// send sends it. An error is the client's: nobody is left to be told.
func (a *answer) send(w http.ResponseWriter) {
	clear(w.Header())
	maps.Copy(w.Header(), a.header)
	if a.status != 0 {
		w.WriteHeader(a.status)
	}
	for _, c := range a.chunks {
		if _, err := w.Write(c); err != nil {
			return
		}
	}
}

// forget lets go of it, sent or not.
func (a *answer) forget() {
	a.unsent.Add(-a.counted())
	a.chunks = nil
}
