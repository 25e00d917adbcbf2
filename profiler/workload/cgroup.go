// Package workload says what a process belongs to. So far that is its cgroup:
// the name that systemd, container runtimes and Kubernetes give it.
package workload

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/profiler"
)

// CgroupOf gives the cgroup path of a process, as in /proc/PID/cgroup: that of
// the unified hierarchy, unless only version 1 says more than "/", or has a
// container in it: older runtimes put a container into version 1 alone where
// there are both, and its processes stay in their own service's unified cgroup.
func CgroupOf(pid profiler.PID) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", fmt.Errorf("read cgroup of PID %d: %w", pid, err)
	}
	return parseCgroup(string(text)), nil
}

// parseCgroup reads lines of cgroups(7): "0::/unified/path" for version 2,
// "4:cpu,cpuacct:/path" for version 1.
func parseCgroup(text string) string {
	unified, old := "/", "/"
	for line := range strings.Lines(text) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		controllers, path, ok := strings.Cut(rest, ":")
		if !ok || path == "" || path == "/" {
			continue
		}
		switch {
		case controllers == "":
			unified = path
		case old == "/" || strings.Contains(controllers, "cpu"):
			old = path
		}
	}
	if saysMore(old, unified) {
		return old
	}
	return unified
}

// saysMore says that a process is known by its cgroup of version 1, and not by
// its unified one.
func saysMore(old, unified string) bool {
	return unified == "/" || old != unified && len(Containers(old)) > 0 && len(Containers(unified)) == 0
}

// Cgroup is a cgroup of the unified hierarchy as the kernel side filters by it.
type Cgroup struct {
	ID    uint64
	Level uint32 // depth below the root of the hierarchy
}

// FindCgroup looks up a cgroup by its path below the mount point of the
// unified hierarchy, or by its whole path.
func FindCgroup(path string) (Cgroup, error) {
	mount, err := unifiedMount()
	if err != nil {
		return Cgroup{}, err
	}
	rel := strings.Trim(strings.TrimPrefix(filepath.Clean("/"+path), mount), "/")
	full := filepath.Join(mount, rel)
	st, err := os.Stat(full)
	if err == nil && !st.IsDir() {
		err = unix.ENOTDIR
	}
	var handle unix.FileHandle
	if err == nil {
		handle, _, err = unix.NameToHandleAt(unix.AT_FDCWD, full, 0)
	}
	if err != nil {
		return Cgroup{}, &profiler.Fault{
			What: fmt.Sprintf("cgroup %q not found", path),
			Why:  fmt.Errorf("look at %s: %w", full, reason(err)),
			Fix:  "take a path from /proc/PID/cgroup (the line that starts with 0::) or from below " + mount,
		}
	}
	c := Cgroup{ID: binary.LittleEndian.Uint64(handle.Bytes())}
	if rel != "" {
		c.Level = uint32(strings.Count(rel, "/") + 1)
	}
	return c, nil
}

// reason is the error without the path that it is about.
func reason(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// unifiedMount is where cgroup version 2 is mounted.
func unifiedMount() (string, error) {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", fmt.Errorf("find the cgroup file system: %w", err)
	}
	return parseMounts(string(text))
}

// errNotMounted says that there is no such hierarchy.
var errNotMounted = errors.New("it is not mounted")

// mountOf finds a hierarchy in lines of /proc/PID/mounts, by its kind and, of
// version 1, its controller: "none /path type options 0 0", with spaces as \040
// (proc(5), fstab(5)).
func mountOf(text, kind, controller string) (string, error) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 3 || f[2] != kind {
			continue
		}
		if controller == "" || len(f) > 3 && slices.Contains(strings.Split(f[3], ","), controller) {
			return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(f[1]), nil
		}
	}
	return "", errNotMounted
}

// parseMounts finds the unified hierarchy in lines of /proc/PID/mounts.
func parseMounts(text string) (string, error) {
	if dir, err := mountOf(text, "cgroup2", ""); err == nil {
		return dir, nil
	}
	return "", &profiler.Fault{
		What: "cannot filter by cgroup",
		Why:  fmt.Errorf("cgroup version 2 is not mounted"),
		Fix:  "mount -t cgroup2 none /sys/fs/cgroup/unified     or filter with -p PID",
	}
}
