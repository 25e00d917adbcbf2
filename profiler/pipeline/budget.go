package pipeline

// cpuBudget chooses the sampling rate so that the agent's own CPU time, with
// that of its BPF programs, stays within a share of the node's. What was spent
// over the limit is paid back, so the limit holds on average and not only from
// the moment on that it was noticed.
type cpuBudget struct {
	limit float64 // share of all CPUs; 0: no limit
	base  int     // the rate that is wanted, samples a second and CPU
	rate  int     // the rate that is held

	bank    float64 // seconds of the node's time saved, below zero owed
	average float64 // of the shares since the last change, the last seconds most
	seconds int     // since the last change
	started bool
	burst   int // seconds with a burst in them since nothing was owed
}

// Figures of the control loop, in seconds unless they say otherwise.
const (
	settleSeconds = 3   // after a change, before the cost is believed: reading symbols costs for a moment
	raiseSeconds  = 5   // a cost that low for this long lets the rate rise
	saveSeconds   = 10  // of the limit: what can be saved for a burst
	oweSeconds    = 30  // of the limit: what is paid back; starting the agent takes less
	burstSeconds  = 3   // of a burst, before the rate has to do something about it
	burstTimes    = 3   // of the limit and of the cost so far: more is a burst
	payBack       = 0.7 // of the limit may be spent while something is owed
	raiseTo       = 0.9 // of the limit may be expected of a higher rate
	maxFall       = 2   // times lower at once: what costs now may be over in a moment
	maxRise       = 2   // times higher at once
)

// rates are the steps, primes some 0.7 apart: none marches in step with a timer.
var rates = [...]int{1, 2, 3, 5, 7, 11, 17, 23, 31, 47, 67, 97, 139, 199, 283, 401, 571, 811, 1151, 1637, 2333, 3319, 4733, 6737}

// newCPUBudget begins no faster than by default where there is a limit: what a
// sample costs on this machine is not known yet.
func newCPUBudget(limit float64, base int) *cpuBudget {
	b := &cpuBudget{limit: limit, base: base, rate: base}
	if limit > 0 {
		b.rate = min(base, DefaultFrequency)
	}
	return b
}

// observe takes the share of the node that the last second cost and gives the
// rate to go on with.
func (b *cpuBudget) observe(share float64) int {
	if b.limit <= 0 {
		return b.change(b.base)
	}
	b.bank = min(max(b.bank+b.limit-share, -oweSeconds*b.limit), saveSeconds*b.limit)
	if !b.started { // loading the programs and reading symbols: no rate helps against that
		b.started = true
		return b.rate
	}
	if b.bank >= 0 {
		b.burst = 0
	} else if b.seconds > 0 && b.burst < burstSeconds && share > burstTimes*max(b.limit, b.average) {
		// One huge executable was opened, say. What is owed for it is paid back
		// out of what a second usually leaves, if that is enough; bursts that
		// come again before it is paid are what the agent costs here.
		b.burst++
		return b.rate
	}
	b.seconds++
	b.average += (share - b.average) / float64(min(b.seconds, raiseSeconds))
	allowed := raiseTo * b.limit
	if b.bank < 0 {
		allowed = payBack * b.limit
	}
	switch {
	case b.seconds >= settleSeconds && b.bank < 0 && b.average > allowed:
		return b.change(b.lower(allowed / b.average))
	case b.seconds >= raiseSeconds && b.rate < b.base:
		return b.change(b.higher(allowed / b.average))
	}
	return b.rate
}

func (b *cpuBudget) change(rate int) int {
	if rate != b.rate {
		b.rate, b.average, b.seconds = rate, 0, 0
	}
	return rate
}

// lower is a rate that costs by times as much, if samples are all that costs:
// at least one step down.
func (b *cpuBudget) lower(by float64) int {
	want := float64(b.rate) * max(by, 1.0/maxFall)
	best := rates[0]
	for _, r := range rates {
		if r < b.rate && float64(r) <= max(want, float64(rates[0])) {
			best = r
		}
	}
	return min(best, b.rate)
}

// higher is a rate that costs at most by times as much: the same if not even
// one step up does.
func (b *cpuBudget) higher(by float64) int {
	want := float64(b.rate) * min(by, maxRise)
	best := b.rate
	for _, r := range rates {
		if r > best && float64(r) <= want {
			best = r
		}
	}
	// The last step is the rate that was asked for.
	if best > b.base || float64(b.base) <= want {
		best = b.base
	}
	return best
}

// reset changes what is wanted.
func (b *cpuBudget) reset(limit float64, base int) {
	if b.limit == limit && b.base == base {
		return
	}
	b.limit, b.base, b.bank = limit, base, min(b.bank, 0)
	if limit <= 0 {
		b.bank = 0
		b.change(base)
		return
	}
	b.change(min(base, b.rate)) // it rises again by steps
}
