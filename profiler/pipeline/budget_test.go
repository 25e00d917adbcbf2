package pipeline

import (
	"testing"
	"time"
)

// TestCPUBudget plays an agent whose cost has a fixed part and one that grows
// with the rate, and looks at what it spends in the minute after the start.
func TestCPUBudget(t *testing.T) {
	const limit = 0.005
	for _, tt := range []struct {
		name      string
		base      int
		fixed     float64 // share of the node
		perHertz  float64 // share of the node for each sample a second
		startCost float64 // in the first second
		wantLow   int     // the rate after that minute
		wantHigh  int
	}{
		{"cheap: the rate that was asked for", 97, 0.0005, 0.00001, 0.01, 97, 97},
		{"an odd rate is reached again", 1000, 0.0005, 0.000003, 0.05, 1000, 1000},
		{"too dear at 999 Hz", 999, 0.001, 0.00002, 0.05, 100, 200},
		{"far too dear: one step after the other", 999, 0.001, 0.0001, 0.05, 17, 40},
		{"the fixed part alone is over the limit: samples have their part", 97, 0.007, 0.00002, 0.05, 11, 11},
		{"and a tenth of a sample's cost", 97, 0.02, 0.000002, 0.05, 97, 97},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newCPUBudget(limit, tt.base, 15*time.Second)
			rate, sum := b.rate, 0.0
			changes := 0
			for second := range startSeconds + 60 {
				s := costs(tt.fixed, tt.perHertz*float64(rate))
				if second == 0 {
					s.all += tt.startCost
				}
				if second >= startSeconds {
					sum += s.all
				}
				next := b.observe(s)
				if next != rate {
					changes++
				}
				if next < 1 || next > tt.base {
					t.Fatalf("second %d: %d Hz", second, next)
				}
				rate = next
			}
			if rate < tt.wantLow || rate > tt.wantHigh {
				t.Errorf("%d Hz after a minute, want %d to %d", rate, tt.wantLow, tt.wantHigh)
			}
			if spent := sum / 60; tt.fixed < limit && spent > 1.2*limit {
				t.Errorf("%.4f of the node was spent over a minute, the limit is %.4f", spent, limit)
			}
			if changes > 20 {
				t.Errorf("the rate changed %d times in a minute", changes)
			}
		})
	}
}

// costs is a second with a fixed part and one that goes with the rate.
func costs(fixed, samples float64) spent { return spent{all: fixed + samples, samples: samples} }

func TestCPUBudgetRisesAgain(t *testing.T) {
	b := newCPUBudget(0.01, 97, 15*time.Second)
	rate := 97
	for range 60 { // a storm: each sample is one of a new process
		rate = b.observe(costs(0.001, 0.002*float64(rate)))
	}
	if rate > 5 {
		t.Fatalf("%d Hz where a sample costs a tenth of the limit, want 5 at most", rate)
	}
	seconds := 0
	for ; rate != 97 && seconds < 300; seconds++ {
		rate = b.observe(costs(0.0005, 0.00002*float64(rate)))
	}
	if rate != 97 {
		t.Errorf("%d Hz five minutes later, want 97", rate)
	}
	if seconds > 150 {
		t.Errorf("it took %d s until the rate was back", seconds)
	}
	b.reset(0.01, 997)
	if b.reset(0, 499); b.rate != 499 {
		t.Errorf("without a limit the rate is %d, want 499", b.rate)
	}
	if b.reset(0.01, 499); b.rate != 97 {
		t.Errorf("with a limit again the rate is %d, want 97: what 499 Hz cost nobody saw", b.rate)
	}
	b.reset(0, 499)
	if got := b.observe(costs(0.9, 0)); got != 499 {
		t.Errorf("without a limit the rate is %d, want 499", got)
	}
}

// TestCPUBudgetOfARecording: what a recording at a higher rate costs is owed, and
// is not taken for the price of the rate that was chosen.
func TestCPUBudgetOfARecording(t *testing.T) {
	const limit, fixed, perHertz = 0.01, 0.004, 0.00002
	b := newCPUBudget(limit, 97, 15*time.Second)
	for second := range 300 {
		hz := b.rate
		if second >= 60 && second < 90 {
			hz = 999
		}
		s := costs(fixed, perHertz*float64(hz))
		s.hz = hz
		if rate := b.observe(s); rate != 97 {
			t.Fatalf("second %d: %d Hz, want 97", second, rate)
		}
		if second == 89 && b.bank > -0.1*limit {
			t.Error("what the recording cost is not owed")
		}
	}
}

// TestCPUBudgetOfABurst: a cost that the rate did not cause does not lower the
// rate where the debt is paid without, and is paid back all the same.
func TestCPUBudgetOfABurst(t *testing.T) {
	const limit = 0.01
	for _, tt := range []struct {
		name    string
		usual   float64 // share of the node in any other second
		every   int     // a burst each so many seconds; 0: one
		seconds int     // of a burst
		wantLow int     // the lowest rate
		wantMax int     // and how high that may be
	}{
		{"one huge executable", 0.004, 0, 1, 97, 97},
		{"one that takes three seconds", 0.004, 0, 3, 97, 97},
		{"five seconds are no burst", 0.004, 0, 5, 1, 67},
		{"paid out of the little that is left", 0.0085, 0, 1, 97, 97},
		{"where nothing is left the rate pays", 0.0105, 0, 1, 31, 67},
		{"again and again", 0.004, 5, 1, 1, 47},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newCPUBudget(limit, 97, 15*time.Second)
			rate, low, sum := 97, 97, 0.0
			const seconds, at = 300, 20
			for second := range seconds {
				s := costs(0, tt.usual*float64(rate)/97)
				since := second - at
				if tt.every > 0 && since > 0 {
					since %= tt.every
				}
				if since >= 0 && since < tt.seconds {
					s.all += 0.25
				}
				sum += s.all
				rate = b.observe(s)
				low = min(low, rate)
			}
			if low < tt.wantLow || low > tt.wantMax {
				t.Errorf("the lowest rate was %d Hz, want %d to %d", low, tt.wantLow, tt.wantMax)
			}
			if spent := sum / seconds; tt.every == 0 && spent > limit {
				t.Errorf("%.4f of the node was spent, the limit is %.4f", spent, limit)
			}
			if tt.every == 0 && tt.usual < limit && rate != 97 {
				t.Errorf("%d Hz at the end, want 97", rate)
			}
		})
	}
}

// TestCPUBudgetOfNames: names are looked up at the ends of windows, dear ones at
// first. As long as the mean over a window is within the limit, or would be
// without samples, that is not the rate's doing.
func TestCPUBudgetOfNames(t *testing.T) {
	const limit = 0.01
	for _, tt := range []struct {
		name    string
		usual   float64
		ends    []float64 // what the seconds at the ends of windows cost; the last holds
		samples float64   // of usual, at 97 Hz
		wantLow int
		wantOne bool // a lower rate does not help, and that is said
	}{
		{"a server of 140 MB", 0.003, []float64{0.09, 0.08, 0.053, 0.038, 0.026, 0.033}, 0.002, 97, false},
		{"on a host half as fast", 0.006, []float64{0.2, 0.105, 0.076, 0.06, 0.04}, 0.0035, 23, false},
		{"more than the limit, whatever the rate", 0.01, []float64{0.2, 0.1}, 0.0006, 97, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newCPUBudget(limit, 97, 15*time.Second)
			b.observe(costs(0.17, 0))
			rate, low, full := 97, 97, 0
			const seconds = 600
			unmet := 0
			for second := range seconds {
				samples := tt.samples * float64(rate) / 97
				s := costs(tt.usual-tt.samples, samples)
				if second%15 == 4 {
					s.all += tt.ends[min(second/15, len(tt.ends)-1)]
				}
				rate = b.observe(s)
				low = min(low, rate)
				if rate == 97 {
					full++
				}
				if b.unmet() {
					unmet++
				}
			}
			if low < tt.wantLow {
				t.Errorf("the lowest rate was %d Hz, want %d", low, tt.wantLow)
			}
			if full < seconds*3/4 {
				t.Errorf("the full rate for %d of %d seconds", full, seconds)
			}
			if tt.wantOne != (unmet > seconds*3/4) || !tt.wantOne && unmet > 0 {
				t.Errorf("for %d of %d seconds fewer samples would not have helped, want %t", unmet, seconds, tt.wantOne)
			}
		})
	}
}

func TestRatesAreSteps(t *testing.T) {
	for i := 1; i < len(rates); i++ {
		if rates[i] <= rates[i-1] || i > 3 && float64(rates[i])/float64(rates[i-1]) > 1.6 {
			t.Errorf("%d follows %d", rates[i], rates[i-1])
		}
	}
}
