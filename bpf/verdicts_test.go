package bpf_test

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/bpf/bpftest"
)

// hierarchy is one that a test makes cgroups in.
type hierarchy struct {
	mount     string
	old       bool
	subsystem bpf.Subsystem
}

// hierarchies are where they are mounted; else the test mounts them.
func hierarchies(t *testing.T) map[string]func(t *testing.T) hierarchy {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	mounted := func(kind, option string) string {
		for line := range strings.Lines(string(mounts)) {
			if f := strings.Fields(line); f[2] == kind && strings.Contains(","+f[3]+",", option) {
				return f[1]
			}
		}
		return ""
	}
	all := map[string]func(t *testing.T) hierarchy{
		"version 2": func(t *testing.T) hierarchy {
			h := hierarchy{mount: mounted("cgroup2", "")}
			if h.mount == "" {
				h.mount = mountCgroups(t, "cgroup2", "")
			}
			return h
		},
	}
	for option, subsystem := range map[string]bpf.Subsystem{"cpu": bpf.CPU, "memory": bpf.Memory, "pids": bpf.PIDs} {
		all["version 1, "+option] = func(t *testing.T) hierarchy {
			h := hierarchy{mounted("cgroup", ","+option+","), true, subsystem}
			if h.mount == "" {
				h.mount = mountCgroups(t, "cgroup", option)
			}
			return h
		}
	}
	return all
}

func mountCgroups(t *testing.T, kind, option string) string {
	dir := t.TempDir()
	if err := unix.Mount(kind, dir, kind, 0, option); err != nil {
		unable(t, "mount "+kind+" "+option, err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// unable ends a test that this machine cannot run: it skips, or fails where
// nothing may be lacking. What no set-up can mend is skipped there too: a kernel
// without the hierarchy, one that is in use in another version, a mount that is
// read-only.
func unable(t *testing.T, what string, err error) {
	t.Helper()
	if os.Getenv("KALYPSO_REQUIRE_BPF") == "1" && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EROFS) &&
		!errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		t.Fatalf("KALYPSO_REQUIRE_BPF=1, and %s: %v", what, err)
	}
	t.Skipf("%s: %v", what, err)
}

// group makes a cgroup and those in it; they are gone when the test ends.
func (h hierarchy) group(t *testing.T, names ...string) (dirs []string, ids []bpf.Cgroup) {
	t.Helper()
	dir := h.mount
	for i, name := range names {
		if dir = filepath.Join(dir, name); i == 0 {
			dir += fmt.Sprintf("-%d", os.Getpid())
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			unable(t, "make a cgroup", err)
		}
		here := dir
		t.Cleanup(func() { eventually(t, "the cgroup to go", func() bool { return os.Remove(here) == nil }) })
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			t.Fatal(err)
		}
		dirs, ids = append(dirs, dir), append(ids, bpf.Cgroup{ID: st.Ino, Old: h.old})
	}
	return dirs, ids
}

// spinIn burns CPU time in a cgroup until the test ends.
func spinIn(t *testing.T, dir string) (pid int) {
	t.Helper()
	child := as("deep")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(child) })
	move(t, child.Process.Pid, dir)
	return child.Process.Pid
}

func end(child *exec.Cmd) {
	_ = child.Process.Kill()
	_ = child.Wait()
}

func move(t *testing.T, pid int, dir string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(fmt.Sprint(pid)), 0); err != nil {
		t.Fatal(err)
	}
}

// sampled loads the kernel side for one process.
func sampled(t *testing.T, h hierarchy, pid int) *bpf.Kernel {
	t.Helper()
	k := load(t, bpf.Config{OnlyTargets: true, KernelStacks: true, Subsystem: h.subsystem})
	if err := k.AddTarget(uint32(pid)); err != nil {
		t.Fatal(err)
	}
	if err := k.Select(!h.old, h.old, 1); err != nil {
		t.Fatal(err)
	}
	return k
}

// count takes some samples and says how many were taken and left out. Counters are
// read one after the other, so they stand still for it. Nobody
// reads the ring buffer: what is lost is counted all the same.
func count(t *testing.T, k *bpf.Kernel, samples uint64) (c bpf.Counters) {
	t.Helper()
	before, err := k.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Attach(4999); err != nil {
		t.Fatal(err)
	}
	eventually(t, fmt.Sprint(samples, " samples"), func() bool {
		if c, err = k.Counters(); err != nil {
			t.Fatal(err)
		}
		return c.Samples-before.Samples >= samples
	})
	k.Detach()
	if c, err = k.Counters(); err != nil {
		t.Fatal(err)
	}
	c.Samples -= before.Samples
	c.Filtered -= before.Filtered
	c.Thinned -= before.Thinned
	c.RunNs -= before.RunNs
	return c
}

// TestVerdicts: the nearest verdict upwards decides, those above a process only
// where they hold for what is below; every sample is counted.
func TestVerdicts(t *testing.T) {
	bpftest.Require(t)
	none, below := bpf.Verdict{}, bpf.Verdict{Below: true}
	for name, open := range hierarchies(t) {
		t.Run(name, func(t *testing.T) {
			h := open(t)
			dirs, ids := h.group(t, "kalypso-verdicts", "pod", "container", "init.scope")
			k := sampled(t, h, spinIn(t, dirs[3]))
			for _, tt := range []struct {
				name     string
				verdicts map[int]bpf.Verdict // by depth
				want     float64             // share that is left out
			}{
				{"none", nil, 0},
				{"its own", map[int]bpf.Verdict{3: none}, 1},
				{"its container's", map[int]bpf.Verdict{2: below}, 1},
				{"its pod's", map[int]bpf.Verdict{1: below}, 1},
				{"one of the pod's own processes", map[int]bpf.Verdict{1: none}, 0},
				{"the container is wanted, not the pod", map[int]bpf.Verdict{1: below, 2: {Share: 1, Below: true}}, 0},
				{"the container's is its own, the pod's decides", map[int]bpf.Verdict{1: below, 2: {Share: 1}}, 1},
				{"a quarter is taken", map[int]bpf.Verdict{1: {Share: 0.25, Below: true}}, 0.75},
				{"none once more", nil, 0},
			} {
				for i, id := range ids {
					v, ok := tt.verdicts[i]
					err := k.DeleteVerdict(id)
					if ok {
						err = k.SetVerdict(id, v)
					}
					if err != nil {
						t.Fatal(err)
					}
				}
				n := uint64(25)
				if tt.want > 0 && tt.want < 1 {
					n = 400
				}
				c := count(t, k, n)
				off, slack := math.Abs(float64(c.Filtered)-tt.want*float64(c.Samples)), 0.0
				if n == 400 {
					slack = 0.12 * float64(c.Samples) // 5 standard deviations
				}
				if c.Thinned != 0 && tt.want == 1 || c.Thinned != c.Filtered && tt.want < 1 {
					t.Errorf("%s: of %d samples that are left out %d are by chance", tt.name, c.Filtered, c.Thinned)
				}
				if off > slack {
					t.Errorf("%s: %d of %d samples are left out, want %.0f %%", tt.name, c.Filtered, c.Samples, 100*tt.want)
				}
			}
			for _, tt := range []struct {
				name    string
				verdict bpf.Verdict
				rest    float64
				want    float64
			}{
				{"a quarter is taken of what no verdict is on", bpf.Verdict{Share: 1}, 0.25, 0.75},
				{"nothing is, and the pod's is all", bpf.Verdict{Share: 1, Below: true}, 0, 0},
			} {
				err := errors.Join(k.SetVerdict(ids[1], tt.verdict), k.Select(!h.old, h.old, tt.rest))
				if err != nil {
					t.Fatal(err)
				}
				c := count(t, k, 400)
				if off := math.Abs(float64(c.Filtered) - tt.want*float64(c.Samples)); off > 0.12*float64(c.Samples)*math.Ceil(tt.want) {
					t.Errorf("%s: %d of %d samples are left out, want %.0f %%", tt.name, c.Filtered, c.Samples, 100*tt.want)
				}
			}
			if err := k.Select(h.old, !h.old, 1); err != nil {
				t.Fatal(err)
			}
			if err := k.SetVerdict(ids[1], below); err != nil {
				t.Fatal(err)
			}
			if c := count(t, k, 50); c.Filtered > 0 {
				t.Errorf("%d samples are left out by a hierarchy that is not looked at", c.Filtered)
			}
		})
	}
}

// TestCostOfASampleThatIsNotWanted: it is over before anything is walked. The
// bound is what is promised; a busy host may steal time from any run, so the best
// of some is held to it.
func TestCostOfASampleThatIsNotWanted(t *testing.T) {
	bpftest.Require(t)
	const most = 2 * time.Microsecond
	all := hierarchies(t)
	for _, name := range []string{"version 2", "version 1, cpu"} {
		t.Run(name, func(t *testing.T) {
			h := all[name](t)
			// systemd in a container of a pod of the systemd driver
			dirs, ids := h.group(t, "kalypso-cost.slice", "burstable.slice", "pod.slice", "container.scope", "system.slice", "app.service")
			k := sampled(t, h, spinIn(t, dirs[5]))
			cost := func(v *bpf.Verdict, at int) (best time.Duration) {
				t.Helper()
				if v != nil {
					if err := k.SetVerdict(ids[at], *v); err != nil {
						t.Fatal(err)
					}
				}
				for range 4 {
					c := count(t, k, 100)
					if each := time.Duration(c.RunNs / c.Samples); best == 0 || each < best {
						best = each
					}
					if v != nil && v.Share == 0 && c.Filtered+2 < c.Samples {
						t.Errorf("%d of %d samples are left out", c.Filtered, c.Samples)
					}
				}
				return best
			}
			walked := cost(nil, 0)
			pod := cost(&bpf.Verdict{Below: true}, 2)
			own := cost(&bpf.Verdict{}, 5)
			for _, at := range []int{2, 5} {
				if err := k.DeleteVerdict(ids[at]); err != nil {
					t.Fatal(err)
				}
			}
			if err := k.Select(!h.old, h.old, 0); err != nil { // of what is not the target of a recording
				t.Fatal(err)
			}
			rest := cost(nil, 0)
			t.Logf("a sample takes %s; one that its own cgroup leaves out %s, one that its pod does, three above, %s, one without a verdict %s", walked, own, pod, rest)
			if own > most || pod > most || rest > most {
				t.Errorf("want %s at most", most)
			}
		})
	}
}

// TestVerdictsAreBounded: what does not fit is refused by an error of its own.
func TestVerdictsAreBounded(t *testing.T) {
	k := load(t, bpf.Config{})
	var err error
	n := uint64(0)
	for ; err == nil && n < 1<<16; n++ {
		err = k.SetVerdict(bpf.Cgroup{ID: n}, bpf.Verdict{})
	}
	if !errors.Is(err, bpf.ErrVerdictsFull) || n < 4096 {
		t.Errorf("after %d cgroups: %v", n, err)
	}
	if err := k.DeleteVerdict(bpf.Cgroup{ID: 1 << 40}); err != nil {
		t.Errorf("a cgroup that is not there cannot be forgotten: %v", err)
	}
}
