package pipeline

import "testing"

// TestCPUBudget plays an agent whose cost has a fixed part and one that grows
// with the rate, and looks at what it spends over a minute.
func TestCPUBudget(t *testing.T) {
	const limit = 0.005
	for _, tt := range []struct {
		name      string
		base      int
		fixed     float64 // share of the node
		perHertz  float64 // share of the node for each sample a second
		startCost float64 // in the first second
		wantLow   int     // the rate after a minute
		wantHigh  int
	}{
		{"cheap: the rate that was asked for", 97, 0.0005, 0.00001, 0.01, 97, 97},
		{"an odd rate is reached again", 1000, 0.0005, 0.000003, 0.05, 1000, 1000},
		{"too dear at 999 Hz", 999, 0.001, 0.00002, 0.05, 100, 200},
		{"far too dear: one step after the other", 999, 0.001, 0.0001, 0.05, 17, 40},
		{"the fixed part alone is over the limit", 97, 0.007, 0.0001, 0.05, 1, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newCPUBudget(limit, tt.base)
			rate, sum := b.rate, 0.0
			changes := 0
			for second := range 60 {
				share := tt.fixed + tt.perHertz*float64(rate)
				if second == 0 {
					share += tt.startCost
				}
				sum += share
				next := b.observe(share)
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

func TestCPUBudgetRisesAgain(t *testing.T) {
	b := newCPUBudget(0.01, 97)
	rate := 97
	for range 30 { // a storm of short processes: nothing that the rate helps against
		rate = b.observe(0.03)
	}
	if rate != 1 {
		t.Fatalf("%d Hz at three times the limit, want 1", rate)
	}
	seconds := 0
	for ; rate != 97 && seconds < 300; seconds++ {
		rate = b.observe(0.0005 + 0.00002*float64(rate))
	}
	if rate != 97 {
		t.Errorf("%d Hz five minutes later, want 97", rate)
	}
	if seconds > 150 {
		t.Errorf("it took %d s until the rate was back", seconds)
	}
	b.reset(0, 499)
	if got := b.observe(0.9); got != 499 {
		t.Errorf("without a limit the rate is %d, want 499", got)
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
		{"where little is left the rate pays", 0.0085, 0, 1, 31, 67},
		{"again and again", 0.004, 5, 1, 1, 47},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newCPUBudget(limit, 97)
			rate, low, sum := 97, 97, 0.0
			const seconds, at = 300, 20
			for second := range seconds {
				share := tt.usual * float64(rate) / 97
				since := second - at
				if tt.every > 0 && since > 0 {
					since %= tt.every
				}
				if since >= 0 && since < tt.seconds {
					share += 0.25
				}
				sum += share
				rate = b.observe(share)
				low = min(low, rate)
			}
			if low < tt.wantLow || low > tt.wantMax {
				t.Errorf("the lowest rate was %d Hz, want %d to %d", low, tt.wantLow, tt.wantMax)
			}
			if spent := sum / seconds; tt.every == 0 && spent > limit {
				t.Errorf("%.4f of the node was spent, the limit is %.4f", spent, limit)
			}
			if tt.every == 0 && rate != 97 {
				t.Errorf("%d Hz at the end, want 97", rate)
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
