package service

import (
	"slices"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/exporter/otlp/otlptest"
)

// TestSoak: hundreds of short processes a second leave nothing behind in the
// agent, and their samples are where they belong.
func TestSoak(t *testing.T) {
	require(t)
	t.Parallel()
	// A heap that is collected every few seconds is not the same at each look,
	// and in the first seconds files are opened for the first time.
	length, noiseKiB, noiseFiles := 20*time.Second, 8<<10, 24
	if inLong() {
		length, noiseKiB, noiseFiles = 5*time.Minute, 4<<10, 8
	}
	spin(t, compile(t, "churn.c", "soak-churn"), "-seconds", "600", "300", "500")
	r := otlptest.Start(t, otlptest.Options{})
	a := start(t, command{endpoint: r.Endpoint()})
	began := time.Now()
	var resident, open []int
	for time.Since(began) < length {
		time.Sleep(250 * time.Millisecond)
		resident, open = append(resident, a.status("VmRSS")), append(open, a.files())
	}
	n := a.stop()
	account(t, r, n)
	if n.Lost > 0 {
		t.Errorf("%d samples lost", n.Lost)
	}
	quarter := func(values []int, i int) int {
		q := slices.Sorted(slices.Values(values[i*len(values)/4 : (i+1)*len(values)/4]))
		return q[len(q)/2]
	}
	t.Logf("median of each quarter: resident %d %d %d %d KiB, open files %d %d %d %d", quarter(resident, 0), quarter(resident, 1),
		quarter(resident, 2), quarter(resident, 3), quarter(open, 0), quarter(open, 1), quarter(open, 2), quarter(open, 3))
	if second, last := quarter(resident, 1), quarter(resident, 3); last > second*105/100+noiseKiB {
		t.Errorf("%d KiB resident in the last quarter, %d in the second", last, second)
	}
	if second, last := quarter(open, 1), quarter(open, 3); last > second*105/100+noiseFiles {
		t.Errorf("%d files open in the last quarter, %d in the second", last, second)
	}
	u := usageOf(profiles(t, r), "soak-churn", began, time.Time{})
	t.Logf("%d samples of short processes, %d of them in their function, in the services %v", u.samples, u.function["hot_short"], u.services)
	want := serviceOf(t, "soak-churn")
	if u.samples == 0 || u.services[want] < u.samples*98/100 {
		t.Errorf("of %d samples %d are in the service %s: %v", u.samples, u.services[want], want, u.services)
	}
	// A third of a short process's time is exec, the dynamic loader and exit.
	if u.function["hot_short"] < u.samples/4 {
		t.Errorf("%d of %d samples are in hot_short", u.function["hot_short"], u.samples)
	}
}
