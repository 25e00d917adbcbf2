package config

import (
	"strings"

	kubelabels "k8s.io/apimachinery/pkg/labels"

	"github.com/kalypso-dev/kalypso/profiler/workload"
)

// Wants says whether a process is to be profiled: every kind of include that
// has patterns has one that fits, and no exclude fits. A comma-separated list
// is any of its members; different kinds narrow each other.
func (c *Config) Wants(service, comm, cgroup string) bool {
	in, out := &c.Include, &c.Exclude
	return (len(in.Service) == 0 || anyFits(in.Service, service)) && !anyFits(out.Service, service) &&
		(len(in.Comm) == 0 || anyFits(in.Comm, comm)) && !anyFits(out.Comm, comm) &&
		(len(in.Cgroup) == 0 || anyHolds(in.Cgroup, cgroup)) && !anyHolds(out.Cgroup, cgroup)
}

// CgroupFilter gives what says whether processes in a cgroup can be wanted, as far
// as its path tells, and if not, whether none below it can be either. It is nil
// where cgroups are not picked by their paths.
func (c *Config) CgroupFilter() func(cgroup string) (wanted, below bool) {
	in, out := c.Include.Cgroup, c.Exclude.Cgroup
	if len(in) == 0 && len(out) == 0 {
		return nil
	}
	return func(cgroup string) (wanted, below bool) {
		if anyHolds(out, cgroup) {
			return false, true
		}
		return len(in) == 0 || anyHolds(in, cgroup), false
	}
}

// PodFilter gives what says whether a pod is to be profiled. A pod that is not
// known is nil: where pods are picked at all it is left out, since it might be one
// of those that are not to be seen. Processes in no pod are not asked about, but
// for outside: whether they are profiled.
func (c *Config) PodFilter() (wants func(*workload.Pod) bool, outside bool) {
	in, out, k := c.Include.Namespace, c.Exclude.Namespace, &c.Kubernetes
	picks, err := kubelabels.Parse(k.Selector)
	if err != nil { // it was parsed when it was set
		picks = kubelabels.Nothing()
	}
	picky := len(in) > 0 || len(out) > 0 || k.Selector != "" || k.OptIn
	return func(p *workload.Pod) bool {
		if p == nil {
			return !picky
		}
		enabled, said := p.Enabled()
		return (len(in) == 0 || anyFits(in, p.Namespace)) && !anyFits(out, p.Namespace) &&
			(enabled || !said && !k.OptIn) && picks.Matches(kubelabels.Set(p.Labels))
	}, len(in) == 0
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
