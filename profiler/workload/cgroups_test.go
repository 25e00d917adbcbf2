package workload

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/profiler"
)

// visible gives the hierarchies of this machine, where cgroups can be made.
func visible(t *testing.T) *Hierarchies {
	t.Helper()
	h := FindHierarchies()
	t.Cleanup(h.Close)
	if os.Geteuid() != 0 || h.unified.dir == "" {
		t.Skip("root and a whole hierarchy of cgroup v2 are needed")
	}
	return h
}

// makeCgroup makes a cgroup in the unified hierarchy and gives its folder and number.
func makeCgroup(t *testing.T, h *Hierarchies, path string) (dir string, id uint64) {
	t.Helper()
	dir = filepath.Join(h.unified.name, path)
	if err := os.Mkdir(dir, 0o755); err != nil {
		unable(t, "make a cgroup", err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) })
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	return dir, st.Ino
}

// TestCgroupsByNumber: one that was there before is found by its number, and known
// when it is gone; one that was told of is known though it was never looked at.
func TestCgroupsByNumber(t *testing.T) {
	h := visible(t)
	c := NewCgroups(h)
	path := fmt.Sprint("/kalypso-number-", os.Getpid())
	dir, id := makeCgroup(t, h, path)
	for range 2 {
		if p, ok := c.Place(IDs{id}); !ok || p != (Place{Path: path}) {
			t.Errorf("cgroup %d is %+v, %v; want %s", id, p, ok, path)
		}
		_ = os.Remove(dir)
	}
	if p, ok := NewCgroups(h).Place(IDs{id}); ok {
		t.Errorf("a cgroup that is gone, and was never met, is %+v", p)
	}
	if p, ok := c.Place(IDs{rootInode}); !ok || p.Path != "/" {
		t.Errorf("the root is %+v, %v", p, ok)
	}
	c.Made(1<<50, false, "/gone")
	if p, ok := c.Place(IDs{1 << 50}); !ok || p.Path != "/gone" {
		t.Errorf("a cgroup that was told of is %+v, %v", p, ok)
	}
}

// TestPlaceByNumbers: of two hierarchies, the one that names a container.
func TestPlaceByNumbers(t *testing.T) {
	container := "/docker/" + strings.Repeat("0123456789abcdef", 4)
	c := NewCgroups(new(Hierarchies))
	c.Made(10, false, "/system.slice/docker.service")
	c.Made(11, false, container)
	c.Made(20, true, container)
	c.Made(21, true, "/user.slice")
	for _, tt := range []struct {
		name string
		ids  IDs
		want Place
		ok   bool
	}{
		{"a unit", IDs{10}, Place{Path: "/system.slice/docker.service"}, true},
		{"a container of version 1", IDs{10, 20}, Place{container, true}, true},
		{"a container of version 1 where the other is not known", IDs{99, 20}, Place{container, true}, true},
		{"a container of version 2 where the other is not known", IDs{11, 99}, Place{Path: container}, true},
		{"in a unit, and it may be in a container", IDs{10, 99}, Place{}, false},
		{"version 1 only", IDs{1, 21}, Place{"/user.slice", true}, true},
		{"both have names", IDs{10, 21}, Place{Path: "/system.slice/docker.service"}, true},
		{"not known", IDs{99}, Place{}, false},
	} {
		if got, ok := c.Place(tt.ids); got != tt.want || ok != tt.ok {
			t.Errorf("%s: %+v, %v; want %+v, %v", tt.name, got, ok, tt.want, tt.ok)
		}
	}
}

// TestPlaceOfIsHeldToNumbers: what /proc says of a process counts only while it is
// in the cgroup that is asked about.
func TestPlaceOfIsHeldToNumbers(t *testing.T) {
	h := visible(t)
	path := fmt.Sprint("/kalypso-moves-", os.Getpid())
	dir, id := makeCgroup(t, h, path)
	cmd := exec.Command("/bin/sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	pid := profiler.PID(cmd.Process.Pid)
	c := NewCgroups(h)
	if p, ok := c.PlaceOf(pid, IDs{id}); ok {
		t.Errorf("before it is in it, it is in %+v", p)
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(fmt.Sprint(pid)), 0); err != nil {
		t.Fatal(err)
	}
	if p, ok := c.PlaceOf(pid, IDs{id}); !ok || p.Path != path {
		t.Errorf("it is in %+v, %v; want %s", p, ok, path)
	}
}

func TestCgroupsAreBounded(t *testing.T) {
	c := NewCgroups(new(Hierarchies))
	const often = 1 << 40
	c.Made(often, false, "/often")
	for i := range uint64(5 * keptCgroups) {
		c.Made(i+2, false, "/x")
		if i%keptCgroups == 0 {
			if p, ok := c.Place(IDs{often}); !ok || p.Path != "/often" {
				t.Fatalf("a cgroup that is asked for is forgotten after %d others", i)
			}
		}
	}
	if n := len(c.young) + len(c.old); n > 2*keptCgroups {
		t.Errorf("%d cgroups are remembered, want %d at most", n, 2*keptCgroups)
	}
	if _, ok := c.Place(IDs{5 * keptCgroups}); !ok {
		t.Error("the newest is forgotten")
	}
}

// TestHierarchiesOutliveTheirWitness: what is seen through a process is seen when
// it has ended.
func TestHierarchiesOutliveTheirWitness(t *testing.T) {
	h := visible(t)
	cmd := exec.Command("unshare", "--mount", "sleep", "60")
	if err := cmd.Start(); err != nil {
		unable(t, "make a namespace", err)
	}
	pid := fmt.Sprint(cmd.Process.Pid)
	seen := seenBy(pid)
	seen.unified.hold()
	defer seen.Close()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	_, id := makeCgroup(t, h, "/kalypso-witness-"+pid)
	if got, err := seen.ID(Place{Path: "/kalypso-witness-" + pid}); err != nil || got != id {
		t.Errorf("its number is %d (%v), want %d", got, err, id)
	}
	if p, ok := NewCgroups(seen).Place(IDs{id}); !ok || p.Path != "/kalypso-witness-"+pid {
		t.Errorf("by its number it is %+v, %v", p, ok)
	}
}
