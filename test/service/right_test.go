package service

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/exporter/otlp/otlptest"
	"github.com/kalypso-dev/kalypso/profiler"
	wl "github.com/kalypso-dev/kalypso/profiler/workload"
)

// serviceOf is the service.name of a program that a test starts: its own, or
// that of the unit or container in which the tests run.
func serviceOf(t *testing.T, program string) string {
	t.Helper()
	cgroup, err := wl.CgroupOf(profiler.PID(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	if name := wl.Identify(cgroup).Service(); name != "" {
		return name
	}
	return program
}

// cgroups gives a function that makes cgroups below the root of the unified
// hierarchy. A unit of its own is what a workload is known by, whatever else
// of it can be read.
func cgroups(t *testing.T) func(name string) *os.File {
	t.Helper()
	mount := t.TempDir()
	if err := unix.Mount("kalypso", mount, "cgroup2", 0, ""); err != nil {
		t.Fatalf("mount cgroup2: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(mount, unix.MNT_DETACH) })
	return func(name string) *os.File {
		t.Helper()
		path := filepath.Join(mount, name+".service")
		if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatalf("make a cgroup: %v", err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			f.Close()
			// Its process may need a moment to be gone.
			until(t, 10*time.Second, "the cgroup can be removed", func() bool { return os.Remove(path) == nil })
		})
		return f
	}
}

// TestRightProfiles: what arrives over either protocol tells the shares of a
// program's functions, its CPU time and the rate.
func TestRightProfiles(t *testing.T) {
	require(t)
	path := compile(t, "chain.c", "chain")
	cgroup := cgroups(t)("klp-right")
	agents, receivers := map[string]*agent{}, map[string]*otlptest.Receiver{}
	for _, protocol := range []string{"grpc", "http"} {
		receivers[protocol] = otlptest.Start(t, otlptest.Options{})
		agents[protocol] = start(t, command{
			endpoint: receivers[protocol].Endpoint(), args: []string{"--otlp.protocol", protocol, "--frequency", "199"},
		})
	}
	begin := time.Now()
	truth := within(t, cgroup, syscall.SysProcAttr{}, path, "-seconds", "7").wait()
	took := time.Since(begin)
	for protocol, a := range agents {
		r := receivers[protocol]
		n := a.stop()
		account(t, r, n)
		u := usageOf(ofService(profiles(t, r), "klp-right"), "", time.Time{}, time.Time{})
		if period := time.Second / 199; u.periods[period] != u.samples {
			t.Errorf("%s: %d samples, by period %v; want all at %s", protocol, u.samples, u.periods, period)
		}
		// A program that shares its CPU is sampled at random: see test/accuracy.
		noise := 2 * math.Sqrt(max(0, 1-truth.CPUSeconds/took.Seconds())/float64(max(u.samples, 1)))
		off := u.cpu.Seconds()/truth.CPUSeconds - 1
		t.Logf("%s: %.2f s of CPU time shown, %.2f s used: %+.1f %%, of which %.1f may be noise", protocol, u.cpu.Seconds(), truth.CPUSeconds, 100*off, 100*noise)
		if math.Abs(off) > 0.05+noise {
			t.Errorf("%s: %.2f s of CPU time are shown, the program used %.2f s", protocol, u.cpu.Seconds(), truth.CPUSeconds)
		}
		checkShares(t, u, truth.Shares)
		t.Logf("%s: %d of %d stacks do not begin at the program's start", protocol, u.cut, u.samples)
		if u.cut > u.samples/20 {
			t.Errorf("%s: %d of %d stacks do not begin at the program's start", protocol, u.cut, u.samples)
		}
	}
}
