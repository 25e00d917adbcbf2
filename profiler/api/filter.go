package api

import (
	"slices"
	"strings"

	"github.com/kalypso-dev/kalypso/exporter/format"
	"github.com/kalypso-dev/kalypso/profiler"
)

// Filter chooses samples. What is empty lets everything through.
type Filter struct {
	PID     profiler.PID
	Comm    string // of the process, whole
	Service string // the workload's service.name, whole
	Cgroup  string // this cgroup and those below it
	// Labels are attributes of the workload, such as k8s.pod.name. Those of one
	// key are alternatives; of each key, one has to fit.
	Labels []profiler.Attribute
}

func (f *Filter) empty() bool {
	return f.PID == 0 && f.Comm == "" && f.Service == "" && f.Cgroup == "" && len(f.Labels) == 0
}

// workload says whether the filter lets a workload through.
func (f *Filter) workload(p *profiler.Profile) bool {
	if f.Service != "" && service(p) != f.Service {
		return false
	}
	for _, l := range f.Labels {
		if !slices.ContainsFunc(f.Labels, func(a profiler.Attribute) bool {
			return a.Key == l.Key && p.Workload != nil && p.Workload.Attribute(a.Key) == a.Value
		}) {
			return false
		}
	}
	return true
}

// Apply gives the profiles with the samples that the filter lets through. Of a
// profile that stays whole it gives the same, and of one that loses samples a
// new one whose quality is counted again: of it only the number of samples that
// were lost is still that of all, because nobody knows whose they were.
func (f Filter) Apply(profiles []*profiler.Profile) []*profiler.Profile {
	if f.empty() {
		return profiles
	}
	var out []*profiler.Profile
	for _, p := range profiles {
		if !f.workload(p) {
			continue
		}
		if samples := f.samples(p.Samples); len(samples) < len(p.Samples) {
			some := *p
			some.Samples, some.Quality = samples, format.Quality(samples)
			some.Quality.Lost = p.Quality.Lost
			p = &some
		}
		out = append(out, p)
	}
	return out
}

func (f Filter) samples(samples []profiler.Sample) []profiler.Sample {
	if f.PID == 0 && f.Comm == "" && f.Cgroup == "" {
		return samples
	}
	var out []profiler.Sample
	for i := range samples {
		if f.process(samples[i].Process) {
			out = append(out, samples[i])
		}
	}
	return out
}

func (f Filter) process(p *profiler.Process) bool {
	if p == nil {
		return false
	}
	return (f.PID == 0 || p.PID == f.PID) && (f.Comm == "" || p.Comm == f.Comm) && f.cgroup(p.Cgroup)
}

func (f *Filter) cgroup(path string) bool {
	cgroup := strings.TrimSuffix(f.Cgroup, "/")
	return cgroup == "" || path == cgroup || strings.HasPrefix(path, cgroup+"/")
}

// Target says of a cgroup, by its path and the workload that it is of, whether the
// filter may let something in it through. It is nil where cgroups do not tell: a
// program that is in no unit and no container shares its cgroup with others.
func (f Filter) Target() func(cgroup string, w *profiler.Workload) bool {
	if f.Cgroup == "" && !slices.ContainsFunc(f.Labels, func(a profiler.Attribute) bool { return ofCgroup(a.Key) }) {
		return nil
	}
	return func(cgroup string, w *profiler.Workload) bool {
		return f.cgroup(cgroup) && f.workload(&profiler.Profile{Workload: w})
	}
}

// ofCgroup says that only what has a cgroup of its own has an attribute.
func ofCgroup(key string) bool {
	switch key {
	case "k8s.node.name", "k8s.cluster.name":
		return false
	case "container.id", "systemd.unit":
		return true
	}
	return strings.HasPrefix(key, "k8s.")
}

// service is the name of the service that a profile is of, empty when it is of
// no workload.
func service(p *profiler.Profile) string {
	if p.Workload == nil {
		return ""
	}
	return p.Workload.Attribute("service.name")
}
