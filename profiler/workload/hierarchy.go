package workload

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/profiler"
)

// Place is a cgroup by its path from the root of its hierarchy on.
type Place struct {
	Path string
	Old  bool // the hierarchy is one of version 1
}

// Hierarchies are the trees of cgroups that processes are told apart by: the
// unified one, and where version 1 is mounted the one of a controller that every
// container is in. They are seen as a process of the machine's own sees them, so that an
// agent in a container knows all of them (it shares the host's PIDs then).
type Hierarchies struct {
	Controller   string // of version 1: "cpu", "memory" or "pids"; empty: not mounted
	Number       uint32 // of its hierarchy, as in /proc/PID/cgroup
	unified, old tree
}

// tree is one hierarchy.
type tree struct {
	dir  string   // where all of it is seen; empty: nowhere
	own  string   // path of what this process takes for the root
	file *os.File // dir, if it is held open
	name string   // what the kernel calls it then
}

// rootInode is that of the root of every hierarchy (fs/kernfs/mount.c). What has
// another one is a part of it.
const rootInode = 1

// controllers of version 1, one of which is taken: every container is in all.
var controllers = []string{"cpu", "memory", "pids"}

// FindHierarchies looks where they are. What is not to be seen is left out.
func FindHierarchies() *Hierarchies {
	h := &Hierarchies{}
	for _, pid := range witnesses() {
		seen := seenBy(pid)
		if h.old.dir == "" || seen.unified.dir != "" {
			h = seen
		}
		// What the first process does not have, the machine does not have.
		if h.unified.dir != "" || pid == "1" && h.old.dir != "" {
			break
		}
	}
	if !sameNamespace() {
		own := mountsOf("self")
		h.unified.settle(own.dir("cgroup2", ""))
		h.old.settle(own.dir("cgroup", h.Controller))
	}
	h.unified.hold()
	h.old.hold()
	if text, err := os.ReadFile("/proc/self/cgroup"); err == nil && h.Controller != "" {
		h.Number, _ = controllerLine(string(text), h.Controller)
	}
	return h
}

// Close lets go of them.
func (h *Hierarchies) Close() {
	for _, t := range []*tree{&h.unified, &h.old} {
		if t.file != nil {
			_ = t.file.Close() // read from
		}
	}
}

// controllerLine finds the line of a controller in the text of /proc/PID/cgroup.
func controllerLine(text, controller string) (number uint32, path string) {
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) == 3 && slices.Contains(strings.Split(f[1], ","), controller) {
			n, _ := strconv.ParseUint(f[0], 10, 32) // the kernel's own
			return uint32(n), f[2]
		}
	}
	return 0, "/"
}

// maxAsked is how many processes are asked for what they see, beside the first and
// this one. The first is one of the machine's own, but a security module may keep
// it from being looked at.
const maxAsked = 64

// witnesses are the processes to ask, in this order.
func witnesses() []string {
	var pids []int
	for _, name := range readNames("/proc") {
		if pid, err := strconv.Atoi(name); err == nil && pid > 1 {
			if _, kernel := os.Readlink("/proc/" + name + "/exe"); kernel == nil { // its threads see nothing
				pids = append(pids, pid)
			}
		}
	}
	slices.Sort(pids)
	list := []string{"1", "self"}
	for _, pid := range pids[:min(len(pids), maxAsked)] {
		list = append(list, strconv.Itoa(pid))
	}
	return list
}

// seenBy are the hierarchies that a process sees as a whole.
func seenBy(pid string) *Hierarchies {
	m := mountsOf(pid)
	h := &Hierarchies{unified: tree{dir: m.dir("cgroup2", ""), own: "/"}}
	if inode(h.unified.dir) != rootInode {
		h.unified.dir = ""
	}
	for _, c := range controllers {
		if dir := m.dir("cgroup", c); inode(dir) == rootInode {
			h.Controller, h.old = c, tree{dir: dir, own: "/"}
			break
		}
	}
	return h
}

// mounts are those of a process: the text of its file, and where its root is.
type mounts struct{ text, root string }

func mountsOf(pid string) mounts {
	text, _ := os.ReadFile("/proc/" + pid + "/mounts") // it may be gone, or not to be looked at
	if pid == "self" {
		return mounts{string(text), "/"}
	}
	return mounts{string(text), "/proc/" + pid + "/root"}
}

// dir is where a hierarchy is mounted; empty: nowhere.
func (m mounts) dir(kind, controller string) string {
	dir, err := mountOf(m.text, kind, controller)
	if err != nil {
		return ""
	}
	return filepath.Join(m.root, dir)
}

// settle finds the path of what this process takes for the root: the root of what
// is mounted for it. Where it is not found, the hierarchy is of no use.
func (t *tree) settle(mounted string) {
	if t.dir == "" {
		return
	}
	if t.own = t.find(inode(mounted)); t.own == "" {
		*t = tree{}
	}
}

// hold keeps the folder open: the process that shows it may end.
func (t *tree) hold() {
	if t.dir == "" {
		return
	}
	f, err := os.Open(t.dir)
	if err != nil {
		return // the way to it is as good, for as long as the process lives
	}
	dir := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	t.file, t.dir = f, dir
	t.name, _ = os.Readlink(dir) // without it, cgroups are not found by their numbers
}

// initNamespace is the cgroup namespace that a machine begins with:
// PROC_CGROUP_INIT_INO, include/linux/proc_ns.h.
const initNamespace = "cgroup:[4026531835]"

// sameNamespace says whether this process sees paths of cgroups as the first one
// does. In a namespace of its own they begin at the cgroup that it was in when that
// was made, which is the root of what is mounted there.
func sameNamespace() bool {
	mine, err := os.Readlink("/proc/self/ns/cgroup")
	first, err2 := os.Readlink("/proc/1/ns/cgroup")
	return err != nil || mine == initNamespace || err2 == nil && mine == first
}

// find gives the path of a cgroup by its number, empty if there is none.
func (t tree) find(id uint64) (path string) {
	if id == 0 {
		return ""
	}
	t.walk("/", func(at string) bool {
		if path == "" && inode(t.dir+at) == id {
			path = at
		}
		return path == ""
	})
	return path
}

func inode(path string) uint64 {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	return st.Ino
}

// Bounds of a walk: a node with 110 pods has some 600 cgroups.
const (
	maxCgroups = 20000
	maxDepth   = 24
)

// walk calls fn for each cgroup below one, and goes below those for which it is
// true.
func (t tree) walk(from string, fn func(path string) bool) {
	left := maxCgroups
	var down func(at string, depth int)
	down = func(at string, depth int) {
		for _, name := range t.children(at) {
			if left--; left < 0 || depth > maxDepth {
				return
			}
			if child := path.Join(at, name); fn(child) {
				down(child, depth+1)
			}
		}
	}
	down(from, 1)
}

// children are the names of the cgroups right below one; none if it is gone.
func (t tree) children(at string) (names []string) {
	return readNames(filepath.Join(t.dir, at))
}

// readNames are the names of the folders in one.
func readNames(dir string) (names []string) {
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer f.Close()
	entries, err := f.ReadDir(maxCgroups)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

func (h *Hierarchies) tree(old bool) tree {
	if old {
		return h.old
	}
	return h.unified
}

// PlaceOf gives the cgroup of a process: the one that CgroupOf gives, by its path
// from the root on.
func (h *Hierarchies) PlaceOf(pid profiler.PID) (Place, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return Place{}, fmt.Errorf("read cgroup of PID %d: %w", pid, err)
	}
	return h.place(string(text)), nil
}

func (h *Hierarchies) place(text string) Place {
	p := Place{Path: parseCgroup(text)}
	p.Old = p.Path != unifiedLine(text)
	return h.fromRoot(p)
}

// unifiedLine is the path of the unified hierarchy.
func unifiedLine(text string) string {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSuffix(rest, "\n")
		}
	}
	return "/"
}

// fromRoot gives a path that this process sees as it is from the root on.
func (h *Hierarchies) fromRoot(p Place) Place {
	if own := h.tree(p.Old).own; own != "" && own != "/" {
		p.Path = path.Join(own, p.Path)
	}
	return p
}

// Hybrid says that there are two.
func (h *Hierarchies) Hybrid() bool { return h.unified.dir != "" && h.old.dir != "" }

// ErrNoHierarchy says that a hierarchy is not to be seen as a whole.
var ErrNoHierarchy = errors.New("no process shows its hierarchy as a whole")

// ID is the kernel's number of a cgroup.
func (h *Hierarchies) ID(p Place) (uint64, error) {
	t := h.tree(p.Old)
	if t.dir == "" {
		return 0, fmt.Errorf("find cgroup %s: %w", p.Path, ErrNoHierarchy)
	}
	if id := inode(filepath.Join(t.dir, p.Path)); id != 0 {
		return id, nil
	}
	return 0, fmt.Errorf("find cgroup %s: %w", p.Path, fs.ErrNotExist)
}

// PodParents are the cgroups that the kubelet makes those of pods in, as far as
// they are there: "kubepods" with any prefix, and one for each class of service
// below it.
func (h *Hierarchies) PodParents() (parents []Place) {
	for _, old := range []bool{false, true} {
		t := h.tree(old)
		if t.dir == "" {
			continue
		}
		t.walk("/", func(at string) bool {
			if InPod(at) {
				return false
			}
			if strings.Contains(at, "kubepods") {
				parents = append(parents, Place{at, old})
			}
			return true
		})
	}
	return parents
}

// PodsIn are the cgroups of pods right below one, by the pods' UID.
func (h *Hierarchies) PodsIn(parent Place) map[string]Place {
	pods := map[string]Place{}
	for _, name := range h.tree(parent.Old).children(parent.Path) {
		if m := podUID.FindStringSubmatch(name); m != nil {
			pods[podName(m[1])] = Place{path.Join(parent.Path, name), parent.Old}
		}
	}
	return pods
}

// PodPlace is the cgroup of a pod that a place is in, or the place itself where
// its path does not say so.
func (p Place) PodPlace(uid string) Place {
	for at := p.Path; at != "/" && at != "."; at = path.Dir(at) {
		if m := podUID.FindStringSubmatch(path.Base(at)); m != nil && podName(m[1]) == uid {
			return Place{at, p.Old}
		}
	}
	return p
}

// Up are a place and those above it, the root first.
func (p Place) Up() (all []Place) {
	for at := path.Clean("/" + p.Path); ; at = path.Dir(at) {
		all = append(all, Place{at, p.Old})
		if at == "/" {
			slices.Reverse(all)
			return all
		}
	}
}
