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

// apply gives the profiles with the samples that the filter lets through. Of a
// profile that stays whole it gives the same, and of one that loses samples a
// new one whose quality is counted again: of it only the number of samples that
// were lost is still that of all, because nobody knows whose they were.
func (f Filter) apply(profiles []*profiler.Profile) []*profiler.Profile {
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
	cgroup := strings.TrimSuffix(f.Cgroup, "/")
	return (f.PID == 0 || p.PID == f.PID) && (f.Comm == "" || p.Comm == f.Comm) &&
		(cgroup == "" || p.Cgroup == cgroup || strings.HasPrefix(p.Cgroup, cgroup+"/"))
}

// service is the name of the service that a profile is of, empty when it is of
// no workload.
func service(p *profiler.Profile) string {
	if p.Workload == nil {
		return ""
	}
	return p.Workload.Attribute("service.name")
}
