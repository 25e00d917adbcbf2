package config

import "strings"

// Wants says whether a process is to be profiled: every kind of include that
// has patterns has one that fits, and no exclude fits. A comma-separated list
// is any of its members; different kinds narrow each other.
func (c *Config) Wants(service, comm, cgroup string) bool {
	in, out := &c.Include, &c.Exclude
	return (len(in.Service) == 0 || anyFits(in.Service, service)) && !anyFits(out.Service, service) &&
		(len(in.Comm) == 0 || anyFits(in.Comm, comm)) && !anyFits(out.Comm, comm) &&
		(len(in.Cgroup) == 0 || anyHolds(in.Cgroup, cgroup)) && !anyHolds(out.Cgroup, cgroup)
}

func anyFits(patterns []string, name string) bool {
	for _, p := range patterns {
		if fits(p, name) {
			return true
		}
	}
	return false
}

// anyHolds says whether a cgroup is one of those meant, or below one. The first
// slash of a pattern may be left out.
func anyHolds(patterns []string, cgroup string) bool {
	for _, p := range patterns {
		p = strings.Trim(p, "/")
		if !strings.HasPrefix(p, "*") {
			p = "/" + p
		}
		if p == "/" || fits(p, cgroup) || fits(p+"/*", cgroup) {
			return true
		}
	}
	return false
}

// fits says whether a name is like a pattern, in which * stands for any number
// of characters, slashes too.
func fits(pattern, name string) bool {
	head, rest, star := strings.Cut(pattern, "*")
	name, ok := strings.CutPrefix(name, head)
	if !ok || !star {
		return ok && name == ""
	}
	parts := strings.Split(rest, "*")
	for _, part := range parts[:len(parts)-1] {
		i := strings.Index(name, part)
		if i < 0 {
			return false
		}
		name = name[i+len(part):]
	}
	return strings.HasSuffix(name, parts[len(parts)-1])
}
