package service

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/exporter/otlp/otlptest"
)

// TestCPUBudget: under full load, with hundreds of short processes a second and
// a rate that costs too much, the agent stays within its budget, says at which
// rate it samples, and what it shows is right.
func TestCPUBudget(t *testing.T) {
	require(t)
	for range runtime.NumCPU() {
		spin(t, compile(t, "chain.c", "budget-chain"), "-seconds", "600")
	}
	// The long test is for a quiet machine; the short one has to hold on one that
	// is half as fast, where starting and ending programs costs the agent more
	// than samples do.
	budget, churn, settle, length, window, limit := "1%", "100", 25*time.Second, 15*time.Second, "5s", 1.3
	if inLong() {
		// The first ten seconds are what the agent does not count.
		budget, churn, settle, length, window, limit = "0.5%", "300", 10*time.Second, time.Minute, "15s", 0.6
	}
	spin(t, compile(t, "churn.c", "budget-churn"), "-seconds", "600", churn, "500")
	r := otlptest.Start(t, otlptest.Options{})
	a := start(t, command{endpoint: r.Endpoint(), args: []string{"--frequency", "999", "--cpu.budget", budget, "--window", window}})
	started, at0 := time.Now(), cpuTime(t, a.pid)
	time.Sleep(settle)
	begin, before := time.Now(), cpuTime(t, a.pid)
	time.Sleep(length)
	took, after := time.Since(begin), cpuTime(t, a.pid)
	if inLong() { // samples enough for the shares, if there can be: other programs may run
		for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(time.Second) {
			if usageOf(profiles(t, r), "budget-chain", time.Time{}, time.Time{}).samples > 1500 {
				break
			}
		}
	}
	all, ran := cpuTime(t, a.pid)-at0, time.Since(started)
	n := a.stop()
	account(t, r, n)
	node := func(cpu, over time.Duration) float64 {
		bpf := n.BPFTime.Seconds() * over.Seconds() / ran.Seconds()
		return 100 * (cpu.Seconds() + bpf) / (over.Seconds() * float64(runtime.NumCPU()))
	}
	cost := node(after-before, took)
	u := usageOf(profiles(t, r), "budget-chain", time.Time{}, time.Time{})
	t.Logf("%.3f %% of %d CPUs in %s that began %s after sampling did, want at most %.1f %%; %.3f %% in all of %s",
		cost, runtime.NumCPU(), took.Round(time.Second), settle, limit, node(all, ran), ran.Round(time.Second))
	t.Logf("%d changes of rate, %d samples of the chains, by period %v", n.RateChanges, u.samples, u.periods)
	if a.log.with(`"msg":"the CPU budget is passed`) != nil {
		t.Logf("at 1 Hz the rest alone takes more than %s here", budget)
		limit *= 1.8
	}
	if cost > limit {
		t.Errorf("the agent took %.3f %% of the node, want at most %.1f %%", cost, limit)
	}
	checkRates(t, a, u)
	checkShares(t, u, map[string]float64{"hot_60": 0.6, "hot_30": 0.3, "hot_10": 0.1})
}

// checkRates holds the periods of profiles against the rates that were logged.
func checkRates(t *testing.T, a *agent, u usage) {
	t.Helper()
	rates := map[time.Duration]bool{}
	note := func(line, key string) {
		_, rest, ok := strings.Cut(line, fmt.Sprintf("%q:", key))
		var hz int64
		if _, err := fmt.Sscan(strings.Trim(strings.SplitN(rest, ",", 2)[0], `"`), &hz); !ok || err != nil {
			t.Fatalf("no %s in %s", key, line)
		}
		rates[time.Second/time.Duration(hz)] = true
	}
	note(string(a.log.wait("sampling", 0)), "hz")
	changes := a.log.with(`"msg":"sampling rate changed"`)
	for _, line := range changes {
		note(line, "to")
	}
	for period := range u.periods {
		if !rates[period] {
			t.Errorf("a profile has the period %s, which no rate in the log has: %v", period, rates)
		}
	}
	if len(changes) == 0 {
		t.Error("the rate was never lowered")
	}
}
