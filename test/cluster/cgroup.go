package cluster

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// hierarchy is one mounted tree of cgroups: the only one of cgroup v2, one of
// several of v1, or both where a machine has both.
type hierarchy struct {
	path string
	v2   bool
}

// hierarchies are those below /sys/fs/cgroup. The first is the one that holds
// every process of a cluster: v2's where it is mounted, whatever it controls.
func hierarchies() ([]hierarchy, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []hierarchy
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw": proc(5)
		before, after, _ := strings.Cut(lines.Text(), " - ")
		kind, _, _ := strings.Cut(after, " ")
		fields := strings.Fields(before)
		if len(fields) < 5 || kind != "cgroup" && kind != "cgroup2" {
			continue
		}
		if path := fields[4]; path == "/sys/fs/cgroup" || strings.HasPrefix(path, "/sys/fs/cgroup/") {
			all = append(all, hierarchy{path, kind == "cgroup2"})
		}
	}
	for i, h := range all {
		if h.v2 {
			all[0], all[i] = all[i], all[0]
		}
	}
	if len(all) == 0 {
		return nil, errors.New("no cgroups are mounted below /sys/fs/cgroup")
	}
	return all, nil
}

// The weight of a cluster is that of ten busy processes outside of any cgroup: it
// stands for machines of its own, which what else runs here would not starve.
const (
	sharesV1 = "10240"
	weightV2 = "1000"
)

// makeGroup makes a cluster's cgroup and one in it, in every hierarchy, so that a
// kubelet can be told to put its pods there.
func makeGroup(all []hierarchy, cluster, name string) error {
	for _, h := range all {
		group := filepath.Join(h.path, cluster)
		child := filepath.Join(group, name)
		if err := os.MkdirAll(child, 0o755); err != nil {
			return err
		}
		switch {
		case h.v2 && len(all) == 1:
			// Controllers are handed down level by level.
			for _, parent := range []string{h.path, group} {
				if err := handDown(parent); err != nil {
					return fmt.Errorf("hand cgroup controllers down from %s: %w", parent, err)
				}
			}
		case !h.v2:
			// A cpuset takes no process before it has CPUs and memory.
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				data, err := os.ReadFile(filepath.Join(h.path, file))
				if errors.Is(err, os.ErrNotExist) {
					continue
				}
				for _, g := range []string{group, child} {
					err = errors.Join(err, os.WriteFile(filepath.Join(g, file), data, 0))
				}
				if err != nil {
					return err
				}
			}
		}
		if err := weigh(group); err != nil {
			return err
		}
	}
	return nil
}

// weigh gives a cluster its weight, where the hierarchy has the CPUs.
func weigh(group string) error {
	for file, weight := range map[string]string{"cpu.shares": sharesV1, "cpu.weight": weightV2} {
		path := filepath.Join(group, file)
		if _, err := os.Stat(path); err != nil {
			continue
		}
		if err := os.WriteFile(path, []byte(weight), 0); err != nil {
			return err
		}
	}
	return nil
}

// handDown lets the children of a v2 cgroup have all controllers that it has.
func handDown(group string) error {
	data, err := os.ReadFile(filepath.Join(group, "cgroup.controllers"))
	if err != nil {
		return err
	}
	var words []string
	for _, c := range strings.Fields(string(data)) {
		words = append(words, "+"+c)
	}
	return os.WriteFile(filepath.Join(group, "cgroup.subtree_control"), []byte(strings.Join(words, " ")), 0)
}
