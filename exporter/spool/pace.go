package spool

import (
	"context"

	"golang.org/x/time/rate"
)

// drainSeconds is how long the longest backlog takes to send. The rate rises
// above the one that was asked for where that is needed: else a node that
// makes more than the rate would stay behind for ever, and the newest samples
// with it.
const drainSeconds = 15 * 60

// pace spreads requests in time: at most a second's worth at once. A backend
// that is busy halves the rate, down to a sixteenth; each request that gets
// through gives a sixteenth back. Many agents come back from an outage at the
// same moment, and none of them knows of the others.
type pace struct {
	limiter *rate.Limiter
	full    rate.Limit // bytes a second
	now     rate.Limit
}

const paceSteps = 16

func newPace(bytesPerSecond int64) *pace {
	full := rate.Limit(bytesPerSecond)
	return &pace{limiter: rate.NewLimiter(full, int(bytesPerSecond)), full: full, now: full}
}

// wait waits until n bytes may be sent, with as many waiting behind them.
func (p *pace) wait(ctx context.Context, n int, backlog int64) error {
	p.limiter.SetLimit(max(p.now, rate.Limit(backlog)/drainSeconds))
	for n > 0 {
		some := min(n, p.limiter.Burst())
		if err := p.limiter.WaitN(ctx, some); err != nil {
			return err
		}
		n -= some
	}
	return nil
}

func (p *pace) slower() { p.now = max(p.now/2, p.full/paceSteps) }

func (p *pace) faster() { p.now = min(p.now+p.full/paceSteps, p.full) }
