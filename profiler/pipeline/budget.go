package pipeline

import (
	"math"
	"time"
)

// cpuBudget chooses the sampling rate so that the agent's own CPU time, with
// that of its BPF programs, stays within a share of the node's. What was spent
// over the limit is paid back, so the limit holds on average and not only from
// the moment on that it was noticed.
//
// A lower rate costs precision, so it has to bring something. What is spent once
// (at the start, for one huge executable) is paid back out of what later seconds
// leave; seconds are judged by their mean over a whole window, at whose end names
// are looked up; and samples themselves may always take a part of the limit:
// where the rest takes more than all of it, fewer samples do not help.
type cpuBudget struct {
	limit  float64 // share of all CPUs; 0: no limit
	base   int     // the rate that is wanted, samples a second and CPU
	rate   int     // the rate that is held
	window int     // seconds at a rate before its cost is believed

	age    int     // seconds seen
	bank   float64 // seconds of the node's time saved, below zero owed
	recent []spent // since the last change, a window of them at most
	burst  int     // seconds with a burst in them since nothing was owed
	fallen bool    // the rate was lowered, and has not risen to what is wanted since
}

// spent is what a second cost, as shares of all CPUs.
type spent struct {
	all     float64
	samples float64 // of that, to take and read samples: it goes with the rate
	hz      int     // the rate that they were taken at; 0: the one that was chosen
}

// at is what the second would have cost at another rate. A recording takes more
// samples than were chosen, and where memory is short it is fewer.
func (s spent) at(rate int) spent {
	if s.hz == 0 || s.hz == rate {
		return s
	}
	samples := s.samples * float64(rate) / float64(s.hz)
	return spent{all: s.all - s.samples + samples, samples: samples}
}

// Figures of the control loop, in seconds unless they say otherwise.
const (
	startSeconds  = 10     // to load the programs and learn what runs; no rate helps against that
	surelySeconds = 3      // of a cost over the limit, names aside
	raiseSeconds  = 5      // a cost that low for this long lets the rate rise at first; once it fell, a window does
	saveSeconds   = 10     // of the limit: what can be saved for a burst
	oweSeconds    = 30     // of the limit: what is paid back
	burstSeconds  = 3      // of a burst, before the rate has to do something about it
	burstTimes    = 10     // of the limit and of the cost so far: more is a burst
	samplesPart   = 0.0625 // of the limit, which samples may always take: 97 Hz on two CPUs take 0.05 to 0.15 % of them
	payBack       = 0.7    // of the limit may be spent while something is owed
	raiseTo       = 0.9    // of the limit may be expected of a higher rate
	maxFall       = 4      // times lower at once: what costs now may be over in a moment
	maxRise       = 2      // times higher at once
	minWindow     = 10
)

// rates are the steps, primes some 0.7 apart: none marches in step with a timer.
var rates = [...]int{1, 2, 3, 5, 7, 11, 17, 23, 31, 47, 67, 97, 139, 199, 283, 401, 571, 811, 1151, 1637, 2333, 3319, 4733, 6737}

// newCPUBudget begins no faster than by default where there is a limit: what a
// sample costs on this machine is not known yet.
func newCPUBudget(limit float64, base int, window time.Duration) *cpuBudget {
	b := &cpuBudget{limit: limit, base: base, rate: base, window: max(int(window.Seconds()), minWindow)}
	if limit > 0 {
		b.rate = min(base, DefaultFrequency)
	}
	return b
}

// observe takes what the last second cost and gives the rate to go on with.
func (b *cpuBudget) observe(s spent) int {
	if b.limit <= 0 {
		return b.change(b.base)
	}
	if b.age++; b.age <= startSeconds {
		return b.rate
	}
	b.bank = min(max(b.bank+b.limit-s.all, -oweSeconds*b.limit), saveSeconds*b.limit)
	s = s.at(b.rate)
	if b.bank >= 0 {
		b.burst = 0
	} else if b.burst < burstSeconds && len(b.recent) > 0 && s.all > burstTimes*max(b.limit, b.mean(raiseSeconds).all) {
		// One huge executable was opened, say. What is owed for it is paid back
		// out of what a second usually leaves, if that is enough; bursts that
		// come again before it is paid are what the agent costs here.
		b.burst++
		return b.rate
	}
	if len(b.recent) == b.window {
		b.recent = append(b.recent[:0], b.recent[1:]...)
	}
	b.recent = append(b.recent, s)
	seconds, mean, allowed := len(b.recent), b.mean(b.window), raiseTo*b.limit
	if b.bank < 0 {
		allowed = payBack * b.limit
	}
	// So many times the rate keep to that, or at least to what samples may
	// always take.
	times := max(allowed-(mean.all-mean.samples), samplesPart*b.limit) / mean.samples
	judged := seconds >= b.window && mean.all > b.limit
	switch {
	case b.bank < 0 && (judged || b.surely()) && times < 1:
		b.fallen = true
		return b.change(b.lower(times))
	case b.rate < b.base && (seconds >= b.window || seconds >= raiseSeconds && !b.fallen):
		return b.change(b.higher(times))
	}
	return b.rate
}

// unmet says that the limit is passed and that fewer samples would not help.
func (b *cpuBudget) unmet() bool {
	if b.limit <= 0 || len(b.recent) < b.window || b.bank > -oweSeconds/2*b.limit {
		return false
	}
	mean := b.mean(b.window)
	return mean.all > b.limit && (mean.samples <= samplesPart*b.limit || b.rate == rates[0])
}

// surely says that the limit is passed even if the end of a window is among the
// last seconds: by what samples took, and the cheapest second took besides.
func (b *cpuBudget) surely() bool {
	if len(b.recent) < surelySeconds {
		return false
	}
	rest := math.Inf(1)
	for _, s := range b.recent {
		rest = min(rest, s.all-s.samples)
	}
	return b.mean(b.window).samples+rest > b.limit
}

// mean is that of the last seconds at this rate.
func (b *cpuBudget) mean(seconds int) spent {
	last := b.recent[max(len(b.recent)-seconds, 0):]
	var sum spent
	for _, s := range last {
		sum.all += s.all
		sum.samples += s.samples
	}
	n := float64(len(last))
	return spent{all: sum.all / n, samples: sum.samples / n}
}

func (b *cpuBudget) change(rate int) int {
	if rate != b.rate {
		b.rate, b.recent = rate, b.recent[:0]
	}
	if rate == b.base {
		b.fallen = false
	}
	return rate
}

// lower is a rate whose samples cost by times as much: at least one step down.
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

// higher is a rate whose samples cost at most by times as much: the same if not
// even one step up does.
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
	free := b.limit <= 0
	b.limit, b.base, b.bank, b.recent = limit, base, min(b.bank, 0), b.recent[:0]
	if limit <= 0 {
		b.bank = 0
		b.change(base)
		return
	}
	if free { // nobody looked at what the rate costs
		b.change(min(base, b.rate, DefaultFrequency))
		return
	}
	b.change(min(base, b.rate)) // it rises again by steps
}
