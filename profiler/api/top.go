package api

import (
	"cmp"
	"slices"

	"github.com/kalypso-dev/kalypso/exporter/format"
	"github.com/kalypso-dev/kalypso/profiler"
)

// spanOf tells of a range and of whole, which is all of it as one profile.
func spanOf(r *Range, whole *profiler.Profile) Span {
	s := Span{
		From: r.From, To: r.To, Cut: r.Cut, Seconds: whole.Duration.Seconds(), Host: whole.Host, Event: whole.Event,
		Frequency: whole.Frequency, Lowest: r.Lowest, Samples: format.Samples(whole), Lost: whole.Quality.Lost,
	}
	seen := make(map[*profiler.Process]bool)
	for i := range whole.Samples {
		seen[whole.Samples[i].Process] = true
	}
	s.Processes = len(seen)
	s.Cores = s.cores(s.Samples)
	return s
}

// cores is how many CPUs so many samples kept busy.
func (s *Span) cores(samples uint64) float64 {
	if s.Seconds <= 0 || s.Frequency <= 0 {
		return 0
	}
	return float64(samples) / float64(s.Frequency) / s.Seconds
}

func (s *Span) percent(samples uint64) float64 {
	if s.Samples == 0 {
		return 0
	}
	return float64(samples) / float64(s.Samples) * 100
}

// newTop makes at most limit rows; 0 means all.
func newTop(r *Range, by By, limit int) *Top {
	whole := r.Whole()
	t := &Top{Schema: schemaTop, Span: spanOf(r, whole), By: by}
	switch by {
	case ByFunction:
		t.Rows = functionRows(whole)
	case ByModule:
		t.Rows = moduleRows(whole)
	case ByProcess:
		t.Rows = processRows(r)
	case ByService:
		t.Rows = workloadRows(r, service)
	case ByPod:
		t.Rows = workloadRows(r, pod)
	}
	for i := range t.Rows {
		row := &t.Rows[i]
		row.SelfPercent, row.TotalPercent = t.percent(row.SelfSamples), t.percent(row.TotalSamples)
		row.SelfCores, row.TotalCores = t.cores(row.SelfSamples), t.cores(row.TotalSamples)
	}
	slices.SortStableFunc(t.Rows, func(a, b TopRow) int {
		return cmp.Or(cmp.Compare(b.SelfSamples, a.SelfSamples), cmp.Compare(b.TotalSamples, a.TotalSamples), cmp.Compare(a.Name, b.Name), cmp.Compare(a.PID, b.PID))
	})
	if limit > 0 && len(t.Rows) > limit {
		t.More = len(t.Rows) - limit
		t.Rows = t.Rows[:limit]
	}
	return t
}

func functionRows(whole *profiler.Profile) []TopRow {
	rows := []TopRow{}
	for _, r := range format.Top(whole) {
		rows = append(rows, TopRow{Name: r.Function, Kind: r.Kind.String(), Module: r.Module, SelfSamples: r.Self, TotalSamples: r.Total})
	}
	return rows
}

// moduleRows has the executable of each innermost call, and those of its callers
// in total. A sample without a stack counts for its marker.
func moduleRows(whole *profiler.Profile) []TopRow {
	rows, last := make(map[string]*TopRow), make(map[string]int)
	add := func(sample int, name string, count, self uint64) {
		row := rows[name]
		if row == nil {
			row = &TopRow{Name: name}
			rows[name], last[name] = row, -1
		}
		row.SelfSamples += self
		if last[name] != sample {
			last[name] = sample
			row.TotalSamples += count
		}
	}
	for i := range whole.Samples {
		s := &whole.Samples[i]
		if s.Stack == nil || len(s.Stack.Locations) == 0 {
			add(i, noStack(s), s.Count, s.Count)
			continue
		}
		self := s.Count
		for _, l := range s.Stack.Locations {
			add(i, moduleName(l), s.Count, self)
			self = 0
		}
	}
	return values(rows)
}

func noStack(s *profiler.Sample) string {
	if s.Stack != nil && s.Stack.Stop.Marker() != "" {
		return s.Stack.Stop.Marker()
	}
	return "[no stack]"
}

func moduleName(l *profiler.Location) string {
	if l.Module == nil || l.Module.Path == "" {
		return "[unknown]"
	}
	return profiler.Printable(l.Module.Path)
}

// workloadRows has a row for each name that workloads have.
func workloadRows(r *Range, nameOf func(*profiler.Profile) string) []TopRow {
	rows := make(map[string]*TopRow)
	for _, p := range scaled(r) {
		n := format.Samples(p)
		if n == 0 {
			continue
		}
		name := cmp.Or(profiler.Printable(nameOf(p)), "[unknown]")
		if rows[name] == nil {
			rows[name] = &TopRow{Name: name}
		}
		rows[name].SelfSamples += n
		rows[name].TotalSamples += n
	}
	return values(rows)
}

// pod is NAMESPACE/NAME of the pod that a profile is of, "[no pod]" where it is of
// the node.
func pod(p *profiler.Profile) string {
	if p.Workload == nil || p.Workload.Attribute("k8s.pod.name") == "" {
		return "[no pod]"
	}
	return p.Workload.Attribute("k8s.namespace.name") + "/" + p.Workload.Attribute("k8s.pod.name")
}

func processRows(r *Range) []TopRow {
	rows := []TopRow{}
	for _, p := range processesOf(r) {
		rows = append(rows, TopRow{Name: p.Comm, PID: p.PID, Service: p.Service, SelfSamples: p.Samples, TotalSamples: p.Samples})
	}
	return rows
}

// newProcesses lists what was sampled.
func newProcesses(r *Range) *Processes {
	out := &Processes{Schema: schemaProcesses, Span: spanOf(r, r.Whole()), List: processesOf(r)}
	for i := range out.List {
		out.List[i].Cores = out.cores(out.List[i].Samples)
	}
	return out
}

// add adds what runs and is not in the list, by PID, as far as the filter lets it
// through.
func (p *Processes) add(running []Running, f Filter) {
	listed := make(map[profiler.PID]bool, len(p.List))
	for i := range p.List {
		listed[p.List[i].PID] = true
	}
	slices.SortFunc(running, func(a, b Running) int { return cmp.Compare(a.Process.PID, b.Process.PID) })
	for i := range running {
		one := &profiler.Profile{Workload: running[i].Workload}
		of := &running[i].Process
		if listed[of.PID] || !f.workload(one) || !f.process(of) {
			continue
		}
		p.List = append(p.List, Process{
			PID: of.PID, Comm: format.ProcessName(of), Exe: profiler.Printable(of.Exe), Cgroup: profiler.Printable(of.Cgroup),
			Service: profiler.Printable(service(one)),
		})
	}
}

func processesOf(r *Range) []Process {
	type key struct {
		*profiler.Process
		service string
	}
	byKey := make(map[key]*Process)
	for _, p := range scaled(r) {
		name := profiler.Printable(service(p))
		for i := range p.Samples {
			s := &p.Samples[i]
			k := key{s.Process, name}
			out := byKey[k]
			if out == nil {
				out = &Process{Comm: format.ProcessName(s.Process), Service: name}
				if s.Process != nil {
					out.PID, out.Exe, out.Cgroup = s.Process.PID, profiler.Printable(s.Process.Exe), profiler.Printable(s.Process.Cgroup)
				}
				byKey[k] = out
			}
			out.Samples += s.Count
		}
	}
	list := values(byKey)
	slices.SortFunc(list, func(a, b Process) int {
		return cmp.Or(cmp.Compare(b.Samples, a.Samples), cmp.Compare(a.PID, b.PID), cmp.Compare(a.Comm, b.Comm), cmp.Compare(a.Service, b.Service))
	})
	return list
}

// scaled gives the profiles of a range with counts of one rate, the highest.
func scaled(r *Range) []*profiler.Profile {
	highest := 0
	for _, p := range r.Profiles {
		highest = max(highest, p.Frequency)
	}
	out := make([]*profiler.Profile, len(r.Profiles))
	for i, p := range r.Profiles {
		out[i] = p
		if p.Frequency != highest {
			out[i] = format.Merge(p, &profiler.Profile{Workload: p.Workload, Frequency: highest})
		}
	}
	return out
}

func values[K comparable, V any](m map[K]*V) []V {
	out := make([]V, 0, len(m))
	for _, v := range m {
		out = append(out, *v)
	}
	return out
}
