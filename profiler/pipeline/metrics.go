package pipeline

import (
	"sync"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/process"
	"github.com/kalypso-dev/kalypso/profiler/sampler"
	"github.com/kalypso-dev/kalypso/profiler/telemetry"
)

// Metrics are the counts of a service and its stages. They are read from one
// snapshot, which Snapshot takes.
type Metrics struct {
	service *Service

	mu      sync.Mutex
	quality profiler.Quality
	stats   ServiceStats
	kernel  bpf.Counters
	sampler sampler.Stats
	table   process.Stats
	pods    pods
}

// pods are how many pods of the node there are, how many more are still known,
// and whether it is heard of them.
type pods struct {
	there, gone int
	learning    bool
}

// NewMetrics makes the metrics of s, which may be nil for those that only want
// to know what there is.
func NewMetrics(s *Service) *Metrics { return &Metrics{service: s} }

// Snapshot takes the figures that the metrics tell until it is called again.
func (m *Metrics) Snapshot() {
	kernel, smp, table, err := m.service.stages()
	known := m.service.cfg.Pods
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pods.there, m.pods.gone = known.Len()
	m.pods.learning = known.Learning()
	m.stats, m.quality, m.sampler, m.table = m.service.Stats(), m.service.Quality(), smp, table
	if err == nil {
		m.kernel = kernel
	}
}

// List describes every metric, in the order of the way of a sample.
func (m *Metrics) List() []telemetry.Metric {
	list := []telemetry.Metric{
		m.counter("kalypso_agent_samples_taken_total", "{sample}", "Samples that the kernel side took.", func() float64 { return float64(m.kernel.Samples) }),
		m.counter("kalypso_agent_samples_total", "{sample}", "Samples in profiles that were handed to the exporters.", func() float64 { return float64(m.stats.Samples) }),
		m.counter("kalypso_agent_samples_lost_total", "{sample}", "Samples that were taken and are in no profile: the ring buffer was full, or a record could not be read.", func() float64 { return float64(m.stats.Lost) }),
		m.counter("kalypso_agent_samples_filtered_total", "{sample}", "Samples of workloads that the settings or their annotations leave out, and those that a rate of their own takes away.", func() float64 { return float64(m.stats.Filtered) }),
		m.counter("kalypso_agent_samples_filtered_early_total", "{sample}", "Of the filtered samples, those that were left out in the kernel, before their stack was walked.", func() float64 { return float64(m.stats.Early) }),
		m.gauge("kalypso_agent_cgroups_filtered", "{cgroup}", "Cgroups whose samples are left out in the kernel, or taken at a rate of their own.", func() float64 { return float64(m.stats.LeftOut) }),
		m.counter("kalypso_agent_samples_merged_total", "{sample}", "Samples that only added to a counter in the kernel, because their stack was known.", func() float64 { return float64(m.kernel.Merged) }),
		m.counter("kalypso_agent_samples_uncounted_total", "{sample}", "Samples that travelled with their whole stack because the kernel's table of counters was full.", func() float64 { return float64(m.kernel.Uncounted) }),
		m.counter("kalypso_agent_ring_buffer_lost_total", "{sample}", "Samples that were lost because the ring buffer was full.", func() float64 { return float64(m.kernel.LostRing) }),
		m.counter("kalypso_agent_records_bad_total", "{record}", "Records of the ring buffer that could not be read.", func() float64 { return float64(m.sampler.BadRecords) }),
		m.counter("kalypso_agent_sampling_seconds_total", "s", "CPU time spent on reading and unwinding samples, 100 µs of one at most.", func() float64 { return m.sampler.Busy.Seconds() }),
		m.counter("kalypso_agent_stacks_copied_total", "{stack}", "Stacks that were unwound in user space, because the kernel side had no table for them yet.", func() float64 { return float64(m.sampler.Copies) }),
		m.counter("kalypso_agent_stack_copies_dropped_total", "{stack}", "Copies of stacks that there was no room for: their samples have no user frames.", func() float64 { return float64(m.sampler.Overflowed + m.kernel.DeferSkipped) }),
		{
			Name: "kalypso_agent_stacks_total", Unit: "{sample}", Kind: telemetry.Counter, Labels: []string{"reason"},
			Description: "Samples in profiles by the reason why the walk of their stack ended; root and no_user are whole stacks.",
			Read: func(observe telemetry.Observe) {
				m.mu.Lock()
				defer m.mu.Unlock()
				for i, n := range m.quality.Stops {
					observe(float64(n), profiler.Stop(i).String())
				}
			},
		},
		m.counter("kalypso_agent_frames_total", "{frame}", "Frames of samples in profiles.", func() float64 { return float64(m.quality.Frames) }),
		m.counter("kalypso_agent_frames_named_total", "{frame}", "Frames of samples in profiles that have a function name.", func() float64 { return float64(m.quality.FramesNamed) }),
		m.counter("kalypso_agent_naming_seconds_total", "s", "Time spent on naming stacks.", func() float64 { return m.stats.NamingTime.Seconds() }),

		m.counter("kalypso_agent_windows_total", "{window}", "Windows that were handed to the exporters.", func() float64 { return float64(m.stats.Windows) }),
		m.counter("kalypso_agent_windows_late_total", "{window}", "Windows that went on because naming or exporting the ones before took too long.", func() float64 { return float64(m.stats.LongWindows) }),
		m.counter("kalypso_agent_windows_early_total", "{window}", "Windows that ended early because they grew over their share of the memory budget.", func() float64 { return float64(m.stats.EarlyWindows) }),
		m.gauge("kalypso_agent_workloads", "{workload}", "Workloads in the last window.", func() float64 { return float64(m.stats.Workloads) }),
		m.gauge("kalypso_agent_pods", "{pod}", "Pods of this node that are known; 0 where nobody is asked for them.", func() float64 { return float64(m.pods.there) }),
		m.gauge("kalypso_agent_pods_gone", "{pod}", "Pods that ended, and are still known for samples of theirs.", func() float64 { return float64(m.pods.gone) }),
		m.gauge("kalypso_agent_pods_learning", "", "1 while the API server or the kubelet tells of pods, 0 while neither answers: new pods have no name then.", func() float64 {
			if m.pods.learning {
				return 1
			}
			return 0
		}),

		m.gauge("kalypso_agent_frequency_hertz", "Hz", "Samples a second and CPU that are taken now.", func() float64 { return float64(m.stats.Frequency) }),
		m.counter("kalypso_agent_frequency_changes_total", "{change}", "Changes of the sampling rate: budgets, recordings, settings.", func() float64 { return float64(m.stats.RateChanges) }),
		m.gauge("kalypso_agent_cpu_budget_unmet", "", "1 while the CPU budget is passed and fewer samples would not help, else 0.", func() float64 {
			if m.stats.CPUUnmet {
				return 1
			}
			return 0
		}),
		m.gauge("kalypso_agent_cpu_share_ratio", "1", "Share of the node's CPU time that the agent and its BPF programs took in the last second.", func() float64 { return m.stats.CPUShare }),
		m.gauge("kalypso_agent_cpu_budget_ratio", "1", "Share of the node's CPU time that they may take; 0 where cpu.budget is 100%.", func() float64 { return m.stats.CPUBudget }),
		m.counter("kalypso_agent_cpu_seconds_total", "s", "CPU time of the agent's process.", func() float64 { return m.stats.AgentCPU.Seconds() }),
		m.counter("kalypso_agent_bpf_seconds_total", "s", "Time that the BPF programs ran, as they measure themselves: without entering and leaving them.", func() float64 { return m.stats.BPFTime.Seconds() }),

		m.gauge("kalypso_agent_memory_budget_bytes", "By", "Memory that the agent may take, BPF maps included.", func() float64 { return float64(m.stats.Memory.Budget) }),
		m.gauge("kalypso_agent_memory_resident_bytes", "By", "Resident memory of the agent.", func() float64 { return float64(m.stats.Memory.Resident) }),
		m.gauge("kalypso_agent_memory_maps_bytes", "By", "Kernel memory of the BPF maps.", func() float64 { return float64(m.stats.Memory.Maps) }),
		m.gauge("kalypso_agent_memory_go_limit_bytes", "By", "What the Go heap may take of the budget.", func() float64 { return float64(m.stats.Memory.GoLimit) }),
		m.gauge("kalypso_agent_memory_names_bytes", "By", "Symbol tables, debug information and unwind indexes of files.", func() float64 { return float64(m.stats.Memory.Names) }),
		m.gauge("kalypso_agent_memory_locations_bytes", "By", "Named addresses that are kept.", func() float64 { return float64(m.stats.Memory.Locations) }),
		m.gauge("kalypso_agent_memory_window_bytes", "By", "Stacks of the open window.", func() float64 { return float64(m.stats.Memory.Window) }),
		m.gauge("kalypso_agent_memory_perf_maps_bytes", "By", "Perf maps of processes that make code at run time.", func() float64 { return float64(m.stats.Memory.PerfMapsBytes) }),
		m.gauge("kalypso_agent_memory_pressure", "{step}", "How much is given up for the memory budget: 1 the history, 2 half of the caches of names, 3 lines and inlined calls, 4 three of four samples.", func() float64 { return float64(m.stats.Memory.Pressure) }),
		m.counter("kalypso_agent_memory_pressure_changes_total", "{change}", "How often something more was given up for the memory budget, or taken up again.", func() float64 { return float64(m.stats.Memory.Steps) }),
		m.counter("kalypso_agent_files_trimmed_total", "{file}", "Files that had to let go of names and tables that can be read again.", func() float64 { return float64(m.stats.Memory.Trims) }),
		m.counter("kalypso_agent_locations_evicted_total", "{location}", "Named addresses that were let go for the budget.", func() float64 { return float64(m.stats.Memory.LocationEvictions) }),

		m.gauge("kalypso_agent_processes", "{process}", "Processes that are known.", func() float64 { return float64(m.table.Processes) }),
		m.gauge("kalypso_agent_executables", "{file}", "Executables that samples hit.", func() float64 { return float64(m.table.Executables) }),
		m.counter("kalypso_agent_executables_refused_total", "{sample}", "Samples in files that no number was left for.", func() float64 { return float64(m.table.ExecutablesRefused) }),
		m.counter("kalypso_agent_files_poisoned_total", "{file}", "Executables that are not read any more, because reading them panicked or took more than 20 s of CPU time.", func() float64 { return float64(m.table.FilesPoisoned) }),
		m.counter("kalypso_agent_mapping_tables_refused_total", "{process}", "Processes whose mappings the kernel's table had no room for; their stacks are unwound in user space.", func() float64 { return float64(m.table.InstallsRefused) }),
		m.counter("kalypso_agent_process_events_lost_total", "{event}", "Process events that were lost; mappings are read from /proc instead.", func() float64 { return float64(m.table.EventsLost) }),
		m.gauge("kalypso_agent_unwind_rows", "{row}", "Unwind rows in the kernel's table.", func() float64 { return float64(m.table.Rows) }),
		m.gauge("kalypso_agent_unwind_rules", "{rule}", "Different unwind rules.", func() float64 { return float64(m.table.Rules) }),
		m.counter("kalypso_agent_unwind_rules_refused_total", "{row}", "Unwind rows that became gaps because the table of rules was full.", func() float64 { return float64(m.table.RulesRefused) }),
		m.counter("kalypso_agent_unwind_rules_forgotten_total", "{time}", "How often the full table of rules was emptied.", func() float64 { return float64(m.table.RulesForgotten) }),
		m.counter("kalypso_agent_unwind_pages_built_total", "{page}", "Pages of 64 KiB of code that unwind rows were built for.", func() float64 { return float64(m.table.PagesBuilt) }),
		m.counter("kalypso_agent_unwind_pages_evicted_total", "{page}", "Pages whose rows made room for others.", func() float64 { return float64(m.table.PagesEvicted) }),
		m.counter("kalypso_agent_unwind_pages_refused_total", "{page}", "Pages whose rows could not be built.", func() float64 { return float64(m.table.PagesRefused) }),
		m.counter("kalypso_agent_unwind_build_seconds_total", "s", "Time spent on opening executables and building unwind rows.", func() float64 { return m.table.BuildTime.Seconds() }),
	}
	return list
}

func (m *Metrics) counter(name, unit, description string, read func() float64) telemetry.Metric {
	return telemetry.Metric{Name: name, Unit: unit, Description: description, Kind: telemetry.Counter, Read: m.one(read)}
}

func (m *Metrics) gauge(name, unit, description string, read func() float64) telemetry.Metric {
	return telemetry.Metric{Name: name, Unit: unit, Description: description, Kind: telemetry.Gauge, Read: m.one(read)}
}

func (m *Metrics) one(read func() float64) func(telemetry.Observe) {
	return func(observe telemetry.Observe) {
		m.mu.Lock()
		defer m.mu.Unlock()
		observe(read())
	}
}
