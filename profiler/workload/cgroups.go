package workload

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/profiler"
)

// IDs are the kernel's numbers of the cgroups that a task is in: that of the
// unified hierarchy, and that of version 1 by whose controller cgroups are told
// apart; 0: none. The kernel gives no number twice while the machine runs.
type IDs [2]uint64

// Cgroups gives the paths of cgroups by their numbers. It knows those that it was
// told of when they were made, also when they are gone, and finds others by their
// number as long as they are there.
type Cgroups struct {
	hierarchies *Hierarchies

	mu sync.Mutex
	// Two generations: what is asked for comes into the young one, and when that is
	// full the old one is forgotten.
	young, old map[cgroupID]string
}

type cgroupID struct {
	id  uint64
	old bool
}

// keptCgroups is how many are remembered at least; up to twice as many are. A path
// in a pod has some 200 bytes: 1 MiB at most.
const keptCgroups = 2048

// NewCgroups knows no cgroups.
func NewCgroups(h *Hierarchies) *Cgroups {
	return &Cgroups{hierarchies: h, young: map[cgroupID]string{}}
}

// Made tells of a cgroup, by its path from the root of its hierarchy on.
func (c *Cgroups) Made(id uint64, old bool, path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.note(cgroupID{id, old}, path)
}

// note remembers a path. c.mu is held.
func (c *Cgroups) note(id cgroupID, path string) {
	if len(c.young) >= keptCgroups {
		c.young, c.old = map[cgroupID]string{}, c.young
	}
	c.young[id] = path
}

// path gives that of a cgroup.
func (c *Cgroups) path(id cgroupID) (string, bool) {
	if id.id == rootInode {
		return "/", true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	path, ok := c.young[id]
	if ok {
		return path, true
	}
	if path, ok = c.old[id]; !ok {
		path, ok = c.hierarchies.tree(id.old).byHandle(id.id)
	}
	if ok {
		c.note(id, path)
	}
	return path, ok
}

// fileHandleKernfs is what says that a file handle is the number of a cgroup:
// FILEID_KERNFS, include/linux/exportfs.h.
const fileHandleKernfs = 0xfe

// byHandle opens a cgroup by its number and asks what it is called. This takes
// CAP_DAC_READ_SEARCH.
func (t tree) byHandle(id uint64) (path string, ok bool) {
	if t.file == nil || t.name == "" {
		return "", false
	}
	handle := unix.NewFileHandle(fileHandleKernfs, binary.NativeEndian.AppendUint64(nil, id))
	fd, err := unix.OpenByHandleAt(int(t.file.Fd()), handle, unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return "", false
	}
	defer func() { _ = unix.Close(fd) }()
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil || strings.HasSuffix(name, " (deleted)") {
		return "", false
	}
	path, ok = strings.CutPrefix(name, strings.TrimSuffix(t.name, "/"))
	return path, ok && strings.HasPrefix(path, "/")
}

// Place gives the cgroup that a process in these is known by, as far as the
// numbers tell; false: they are of cgroups that are not known.
func (c *Cgroups) Place(ids IDs) (Place, bool) {
	unified, known := c.path(cgroupID{ids[0], false})
	if ids[1] == 0 || known && len(Containers(unified)) > 0 {
		return Place{Path: unified}, known
	}
	old, knownOld := c.path(cgroupID{ids[1], true})
	switch {
	case knownOld && known && saysMore(old, unified), knownOld && len(Containers(old)) > 0:
		return Place{Path: old, Old: old != unified}, true
	case knownOld && known:
		return Place{Path: unified}, true
	}
	return Place{}, false
}

// PlaceOf gives the cgroup of a process as /proc tells it, if it still is in the
// cgroups that the numbers are of. It says more than these do where version 1 is
// mounted, whose hierarchies are many.
func (c *Cgroups) PlaceOf(pid profiler.PID, ids IDs) (Place, bool) {
	file, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return Place{}, false
	}
	text := string(file)
	if !c.is(ids[0], Place{Path: unifiedLine(text)}) {
		return Place{}, false
	}
	if h := c.hierarchies; h.Controller != "" {
		if _, path := controllerLine(text, h.Controller); !c.is(ids[1], Place{path, true}) {
			return Place{}, false
		}
	}
	return c.hierarchies.place(text), true
}

// is says whether a number is that of a place, which is as this process sees it.
// Where the hierarchy is not to be seen, there is nothing against it.
func (c *Cgroups) is(id uint64, p Place) bool {
	if id == 0 {
		return true
	}
	n := cgroupID{id, p.Old}
	p = c.hierarchies.fromRoot(p)
	if path, ok := c.path(n); ok {
		return path == p.Path || c.hierarchies.tree(p.Old).dir == ""
	}
	found, err := c.hierarchies.ID(p)
	if err == nil && found == id {
		c.Made(id, p.Old, p.Path)
		return true
	}
	return errors.Is(err, ErrNoHierarchy)
}
