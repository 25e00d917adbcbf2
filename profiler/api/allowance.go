package api

import (
	"errors"
	"net/http"
	"time"

	"golang.org/x/time/rate"

	"github.com/kalypso-dev/kalypso/profiler"
)

// What answers may take: so much at once, and so much of a second each second.
// top by function, of 6,000 stacks of 30 frames in 30 s, takes 60 ms every two
// seconds, which is 3 %; the page of as many takes 140 ms.
const (
	allowedAtOnce = 10 * time.Second
	allowedShare  = 0.05                  // of one CPU
	allowedLeast  = 50 * time.Millisecond // must be there to begin: what a second gives
)

// allowance is the time that adding up and drawing profiles may take, because
// every user of this machine can ask for it. It is a token bucket with a token
// for each microsecond. An answer that is begun takes as long as it takes: what
// it spends over the rest is owed.
type allowance struct{ tokens *rate.Limiter }

func newAllowance() allowance {
	return allowance{rate.NewLimiter(rate.Limit(allowedShare*1e6), int(allowedAtOnce.Microseconds()))}
}

// left is how much may be spent now.
func (a allowance) left(now time.Time) time.Duration {
	return time.Duration(a.tokens.TokensAt(now)) * time.Microsecond
}

// check says why nothing may be begun now, nil when something may.
func (a allowance) check(now time.Time) error {
	left := a.left(now)
	if left >= allowedLeast {
		return nil
	}
	return &statusError{
		status: http.StatusTooManyRequests,
		err: &profiler.Fault{
			What: "the agent answers no more of this now", Why: errors.New("answers took so much time that what is left is for sampling"),
			Fix: "ask again when Retry-After says, and less often; one long range costs less than many short ones",
		},
		retry: time.Duration(float64(allowedLeast-left) / allowedShare),
	}
}

// spend takes of it, at most what it holds at once.
func (a allowance) spend(now time.Time, d time.Duration) {
	a.tokens.ReserveN(now, int(min(d, allowedAtOnce).Microseconds()))
}
