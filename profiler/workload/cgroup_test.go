package workload

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/profiler"
)

func TestParseCgroup(t *testing.T) {
	container := "pod5cd8b7a1-0c2d-4e5f-8a9b-1c2d3e4f5a6b/" + strings.Repeat("0123456789abcdef", 4)
	tests := []struct{ name, text, want string }{
		{"version 2", "0::/user.slice/user-0.slice/session-1.scope\n", "/user.slice/user-0.slice/session-1.scope"},
		{"version 2, at the root", "0::/\n", "/"},
		{"version 1", "5:memory:/m\n4:cpu,cpuacct:/system.slice/ssh.service\n1:name=systemd:/s\n", "/system.slice/ssh.service"},
		{"version 1 without a cpu hierarchy", "5:memory:/m\n", "/m"},
		{"version 1, all at the root", "5:memory:/\n4:cpu,cpuacct:/\n", "/"},
		{"hybrid, named in both", "4:cpu,cpuacct:/old\n1:name=systemd:/a\n0::/system.slice/a.service\n", "/system.slice/a.service"},
		{"hybrid, the unified hierarchy says nothing", "4:cpu,cpuacct:/docker/0123\n0::/\n", "/docker/0123"},
		{"hybrid, a container in version 1 alone", "4:cpu,cpuacct:/kubepods/" + container + "\n1:name=systemd:/kubepods/" + container + "\n0::/system.slice/containerd.service\n",
			"/kubepods/" + container},
		{"hybrid, a container in both", "4:cpu,cpuacct:/old/" + container + "\n0::/new/" + container + "\n", "/new/" + container},
		{"hybrid, unified first", "0::/\n4:cpu,cpuacct:/docker/0123\n", "/docker/0123"},
		{"Kubernetes", "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-2.scope\n",
			"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-2.scope"},
		{"seen from inside a container's namespace", "0::/../../other\n", "/../../other"},
		{"a colon in the name", "0::/a:b/c\n", "/a:b/c"},
		{"no line feed at the end", "0::/a", "/a"},
		{"empty", "", "/"},
		{"no cgroup line", "hello\n:\n::\n", "/"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := parseCgroup(tt.text); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func FuzzParseCgroup(f *testing.F) {
	f.Add("4:cpu,cpuacct:/old\n0::/a\n")
	f.Fuzz(func(t *testing.T, text string) {
		got := parseCgroup(text)
		if got == "" || strings.Contains(got, "\n") || got != "/" && !strings.Contains(text, got) {
			t.Errorf("cgroup %q of %q", got, text)
		}
	})
}

func TestCgroupOf(t *testing.T) {
	own, err := CgroupOf(profiler.PID(os.Getpid()))
	if err != nil || !strings.HasPrefix(own, "/") {
		t.Errorf("own cgroup %q, %v", own, err)
	}
	if _, err := CgroupOf(1 << 30); err == nil || !strings.Contains(err.Error(), "PID 1073741824") {
		t.Errorf("error %v does not name the PID", err)
	}
}

func TestUnifiedMount(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"version 2 only", "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n", "/sys/fs/cgroup"},
		{"hybrid", "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n", "/sys/fs/cgroup/unified"},
		{"a space in the path", "none /mnt/my\\040cgroups cgroup2 rw 0 0\n", "/mnt/my cgroups"},
		{"version 1 only", "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n", ""},
		{"a path that looks like it", "cgroup2 /cgroup2 tmpfs rw 0 0\n", ""},
		{"garbage", "\n \ncgroup2\n", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseMounts(tt.text)
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			var fault *profiler.Fault
			if tt.want == "" && (!errors.As(err, &fault) || fault.Why == nil || fault.Fix == "") {
				t.Errorf("error %v does not say why and what to do", err)
			}
		})
	}
}

func TestFindCgroup(t *testing.T) {
	mount, err := unifiedMount()
	if err != nil {
		mount = t.TempDir()
		if err := unix.Mount("cgroup2", mount, "cgroup2", 0, ""); err != nil {
			unable(t, "mount cgroup2", err)
		}
		t.Cleanup(func() { _ = unix.Unmount(mount, unix.MNT_DETACH) })
	}
	root, err := FindCgroup("/")
	if err != nil || root.Level != 0 || root.ID == 0 {
		t.Errorf("the root: %+v, %v", root, err)
	}
	for _, path := range []string{"/no/such.slice", mount + "/no", "../../etc/passwd"} {
		_, err := FindCgroup(path)
		var fault *profiler.Fault
		if !errors.As(err, &fault) || !strings.Contains(fault.What, path) || fault.Fix == "" || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v does not say what, why and what to do", path, err)
		}
	}

	dir, err := os.MkdirTemp(mount, "kalypso-test-")
	if err != nil {
		unable(t, "make a cgroup", err)
	}
	inner := filepath.Join(dir, "inner")
	t.Cleanup(func() {
		_ = os.Remove(inner)
		_ = os.Remove(dir)
	})
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	name := "/" + filepath.Base(dir) + "/inner"
	// The kernel's number of a cgroup is that of its folder on 64-bit machines.
	var st unix.Stat_t
	if err := unix.Stat(inner, &st); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{name, strings.TrimPrefix(name, "/"), inner, inner + "/", "/" + filepath.Base(dir) + "//./inner"} {
		if got, err := FindCgroup(path); err != nil || got.Level != 2 || got.ID != st.Ino {
			t.Errorf("%s: %+v, %v; want level 2 and ID %d", path, got, err, st.Ino)
		}
	}
	// A file in the hierarchy is not a cgroup.
	if got, err := FindCgroup(name + "/cgroup.procs"); err == nil {
		t.Errorf("a file is taken for cgroup %+v", got)
	}
}

// unable ends a test that this machine cannot run: it skips, or fails where
// nothing may be lacking. What no set-up can mend, a kernel without cgroup v2 or
// a hierarchy mounted read-only, is skipped there too.
func unable(t *testing.T, what string, err error) {
	t.Helper()
	if os.Getenv("KALYPSO_REQUIRE_BPF") == "1" && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EROFS) {
		t.Fatalf("KALYPSO_REQUIRE_BPF=1, and %s: %v", what, err)
	}
	t.Skipf("%s: %v", what, err)
}
