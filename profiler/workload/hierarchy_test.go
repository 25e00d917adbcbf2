package workload

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/profiler"
)

// namespaced names the variable that makes the test binary say where it is.
const namespaced = "KALYPSO_WORKLOAD_TEST_ROLE"

func TestMain(m *testing.M) {
	if pid := os.Getenv(namespaced); pid != "" {
		os.Exit(inNamespace())
	}
	os.Exit(m.Run())
}

// inNamespace is run in a cgroup namespace of its own: it mounts what a container
// would see, and says what it makes of its own cgroup.
func inNamespace() int {
	dir := os.Getenv(namespaced)
	// What was mounted before shows all, which a container does not see.
	for range 20 {
		mount, err := unifiedMount()
		if err != nil {
			break
		}
		if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil {
			return 3
		}
	}
	if err := unix.Mount("cgroup2", dir, "cgroup2", 0, ""); err != nil {
		return 4
	}
	p, err := FindHierarchies().PlaceOf(profiler.PID(os.Getpid()))
	if err != nil {
		return 5
	}
	_, _ = os.Stdout.WriteString(p.Path)
	return 0
}

// TestPlacesInANamespace: an agent that sees its own cgroup as the root, as in a
// container, knows paths from the true root on.
func TestPlacesInANamespace(t *testing.T) {
	h := FindHierarchies()
	if os.Geteuid() != 0 || h.unified.dir == "" {
		t.Skip("root and a whole hierarchy of cgroup v2 are needed")
	}
	defer h.Close()
	dir, err := os.MkdirTemp(h.unified.name, "kalypso-test-") // h.unified.dir is this process's only
	if err != nil {
		unable(t, "make a cgroup", err)
	}
	defer os.Remove(dir)
	cmd := exec.Command("/bin/sh", "-c", `echo $$ > "$1/cgroup.procs" && exec unshare --mount --cgroup -- "$2"`, "sh", dir, "/proc/self/exe")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Args[len(cmd.Args)-1] = self
	cmd.Env = append(os.Environ(), namespaced+"="+t.TempDir())
	out, err := cmd.Output()
	if err != nil {
		unable(t, "make namespaces", err)
	}
	if got, want := string(out), "/"+filepath.Base(dir); got != want {
		t.Errorf("it takes itself to be in %q, want %q", got, want)
	}
}

func TestPlace(t *testing.T) {
	container := "/kubepods/pod5cd8b7a1-0c2d-4e5f-8a9b-1c2d3e4f5a6b/" + strings.Repeat("0123456789abcdef", 4)
	for _, tt := range []struct {
		name, own, text string
		want            Place
	}{
		{"version 2", "/", "0::/a.service\n", Place{Path: "/a.service"}},
		{"at the root of both", "/", "4:cpu:/\n0::/\n", Place{Path: "/"}},
		{"a container of version 1", "/", "4:cpu:" + container + "\n0::/system.slice/containerd.service\n", Place{container, true}},
		{"a container of version 1, no other", "/", "4:cpu:" + container + "\n", Place{container, true}},
		{"named in both", "/", "4:cpu:/old\n0::/a.service\n", Place{Path: "/a.service"}},
		{"in a namespace", "/kubepods/pod1/agent", "0::/../../pod2/server\n", Place{Path: "/kubepods/pod2/server"}},
		{"the agent itself, in a namespace", "/kubepods/pod1/agent", "0::/\n", Place{Path: "/kubepods/pod1/agent"}},
	} {
		h := &Hierarchies{unified: tree{own: tt.own}, old: tree{own: "/"}}
		if got := h.place(tt.text); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func TestUp(t *testing.T) {
	var got []string
	for _, p := range (Place{Path: "/a/b.slice/c"}).Up() {
		got = append(got, p.Path)
	}
	if want := []string{"/", "/a", "/a/b.slice", "/a/b.slice/c"}; !reflect.DeepEqual(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestPodPlace(t *testing.T) {
	for path, want := range map[string]string{
		"/kubepods/pod" + uidA + "/" + id(1) + "/init.scope":                                                   "/kubepods/pod" + uidA,
		"/kubepods.slice/kubepods-pod" + strings.ReplaceAll(uidA, "-", "_") + ".slice/cri-" + id(1) + ".scope": "/kubepods.slice/kubepods-pod" + strings.ReplaceAll(uidA, "-", "_") + ".slice",
		"/kubepods/pod" + uidB + "/" + id(2) + "/kubepods/pod" + uidA + "/" + id(1):                            "/kubepods/pod" + uidB + "/" + id(2) + "/kubepods/pod" + uidA,
		"/docker/" + id(1): "/docker/" + id(1),
	} {
		if got := (Place{Path: path}).PodPlace(uidA).Path; got != want {
			t.Errorf("of %s: %s, want %s", path, got, want)
		}
	}
}

// TestPodsIn makes what a kubelet makes and finds it.
func TestPodsIn(t *testing.T) {
	h := FindHierarchies()
	t.Cleanup(h.Close)
	if h.unified.dir == "" {
		t.Skip("no whole hierarchy of cgroup v2 is to be seen")
	}
	dir, err := os.MkdirTemp(h.unified.dir, "kalypso-test-")
	if err != nil {
		unable(t, "make a cgroup", err)
	}
	name := "/" + filepath.Base(dir)
	systemd := name + "/x-kubepods.slice/x-kubepods-besteffort.slice/x-kubepods-besteffort-pod" + strings.ReplaceAll(uidB, "-", "_") + ".slice"
	made := []string{name, name + "/x-kubepods.slice", name + "/x-kubepods.slice/x-kubepods-besteffort.slice", systemd,
		name + "/kubepods", name + "/kubepods/pod" + uidA, name + "/kubepods/pod" + uidA + "/kubepods"}
	for _, d := range made {
		if err := os.MkdirAll(filepath.Join(h.unified.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(filepath.Join(h.unified.dir, d)) })
	}
	pods, parents := map[string]Place{}, 0
	for _, parent := range h.PodParents() {
		if !strings.HasPrefix(parent.Path, name) {
			continue
		}
		parents++
		for uid, p := range h.PodsIn(parent) {
			pods[uid] = p
		}
	}
	if want := (map[string]Place{uidA: {Path: name + "/kubepods/pod" + uidA}, uidB: {Path: systemd}}); parents != 3 || !reflect.DeepEqual(pods, want) {
		t.Errorf("in %d cgroups %v, want in 3 %v", parents, pods, want)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(h.unified.dir, systemd), &st); err != nil {
		t.Fatal(err)
	}
	if got, err := h.ID(pods[uidB]); err != nil || got != st.Ino {
		t.Errorf("its number is %d (%v), want %d", got, err, st.Ino)
	}
	if _, err := h.ID(Place{Path: name + "/no"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a cgroup that is not there: %v", err)
	}
	if _, err := new(Hierarchies).ID(Place{Path: "/"}); !errors.Is(err, ErrNoHierarchy) {
		t.Errorf("a hierarchy that is not there: %v", err)
	}
}
