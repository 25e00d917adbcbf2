// Package api is the local HTTP API of a running agent and its client: profiles
// of the last minutes and from now on, what is hot, what was sampled, how far
// that can be trusted, and where every thread of a process is. docs/reference/
// api.md lists the routes.
//
// It owns the history in memory, the routes, what they answer, and who is
// answered: programs of this machine, and nobody else. It does not know how
// profiles are made. They come by History.Add and from a Source, and go out by
// package format and the viewer.
package api

import (
	"context"
	"errors"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
)

// DefaultAddress is where an agent listens unless it is told otherwise.
const DefaultAddress = "127.0.0.1:4041"

// Source is the agent as far as the API asks it.
type Source interface {
	// Record gives what is sampled from now on for a while, at a rate of its own
	// where hz is not 0, which may be that of what f lets through only. A context
	// that ends early is no error.
	Record(ctx context.Context, d time.Duration, hz int, f Filter) ([]Segment, error)
	Status() Status
	// Dump gives the stacks of every thread of a process right now. An error
	// that is fs.ErrNotExist or syscall.ESRCH says that there is no such process.
	Dump(ctx context.Context, pid profiler.PID) (*Dump, error)
}

// ErrBusy in an error of a Source says that the same may work a little later.
var ErrBusy = errors.New("busy")

// Status is how the agent is doing.
type Status struct {
	Version         string
	Host            string
	Event           string // "cpu-clock" or "cycles"
	Started         time.Time
	Frequency       int // samples a second and CPU, now
	WantedFrequency int // what was asked for; the CPU budget may not allow it
	Quality         profiler.Quality
	Cost            Cost
	Pods            *Pods // nil: nobody is asked for them
	Exports         []Export
}

// Running is a process that is there, and the workload that it is of.
type Running struct {
	Process  profiler.Process
	Workload *profiler.Workload
}

// Pods is what the agent knows of the pods of its node.
type Pods struct {
	Known    int  `json:"known"`
	Learning bool `json:"learning"` // somebody tells of them now
}

// Export is one way out of the agent.
type Export struct {
	Name      string     `json:"name"`
	Endpoint  string     `json:"endpoint"`
	Error     string     `json:"error,omitempty"`      // why the backend takes nothing now
	Delivered *time.Time `json:"delivered,omitempty"`  // last; nil: never
	Waiting   int        `json:"waiting"`              // requests
	Oldest    *time.Time `json:"oldest,omitempty"`     // of them
	Dropped   uint64     `json:"samples_dropped"`      // that no backend will have, since the start
	DroppedAt *time.Time `json:"dropped_at,omitempty"` // the last of them; nil: none
}

// Cost is what the agent takes of the machine.
type Cost struct {
	CPU          time.Duration // user and system time since it was started
	BPF          time.Duration // of its programs in the kernel, since then
	Share        float64       // of all CPUs, both together, now
	Budget       float64       // of all CPUs; 0: no limit
	RSSBytes     int64
	MapBytes     int64 // kernel memory of BPF maps
	MemoryBudget int64 // bytes; 0: none
	Unmet        bool  // the CPU budget is passed, and fewer samples would not help
	Pressure     int   // how many things are given up for the memory budget
}

// By is what a Top has rows of.
type By string

// What a Top may have rows of.
const (
	ByFunction By = "function"
	ByProcess  By = "process"
	ByService  By = "service"
	ByModule   By = "module"
	ByPod      By = "pod"
)

// Schemas of the answers. Fields are added to them, not changed.
const (
	schemaTop       = "kalypso.agent.top/v1"
	schemaProcesses = "kalypso.agent.processes/v1"
	schemaQuality   = "kalypso.agent.quality/v1"
	schemaDump      = "kalypso.agent.dump/v1"
	schemaError     = "kalypso.agent.error/v1"
)

// Span is the time that an answer is about, and what was sampled in it.
type Span struct {
	From      time.Time `json:"from"`
	To        time.Time `json:"to"`
	Seconds   float64   `json:"seconds"`       // that were recorded in it
	Cut       bool      `json:"cut,omitempty"` // it begins later than asked for: see Range
	Host      string    `json:"host,omitempty"`
	Event     string    `json:"event,omitempty"`
	Frequency int       `json:"frequency"`        // samples a second and CPU: the highest in it
	Lowest    int       `json:"lowest_frequency"` // samples at a lower rate than the highest are weighed
	Samples   uint64    `json:"samples"`          // as many as the highest rate would have given
	Lost      uint64    `json:"lost"`
	Cores     float64   `json:"cores"` // CPUs that were busy, on average
	Processes int       `json:"processes"`
}

// Top is what used the CPUs, the one that used most first.
type Top struct {
	Schema string `json:"schema"`
	Span
	By   By       `json:"by"`
	Rows []TopRow `json:"rows"`
	More int      `json:"more"` // rows over the limit
}

// TopRow is a function, a process, a service or a module.
type TopRow struct {
	Name         string       `json:"name"`
	Kind         string       `json:"kind,omitempty"`    // of a function
	Module       string       `json:"module,omitempty"`  // file name of a native function
	PID          profiler.PID `json:"pid,omitempty"`     // of a process
	Node         string       `json:"node,omitempty"`    // of a process, where several were asked
	Service      string       `json:"service,omitempty"` // of a process
	SelfSamples  uint64       `json:"self_samples"`      // whose innermost call it was
	TotalSamples uint64       `json:"total_samples"`     // that had it anywhere in their stack
	SelfPercent  float64      `json:"self_percent"`
	TotalPercent float64      `json:"total_percent"`
	SelfCores    float64      `json:"self_cores"`
	TotalCores   float64      `json:"total_cores"`
}

// Processes is what was sampled, the busiest first, and where that is asked for
// what runs besides.
type Processes struct {
	Schema string `json:"schema"`
	Span
	List []Process `json:"list"`
}

// Process is one process that was sampled.
type Process struct {
	PID     profiler.PID `json:"pid"`
	Comm    string       `json:"comm"`
	Exe     string       `json:"exe,omitempty"`
	Cgroup  string       `json:"cgroup,omitempty"`
	Service string       `json:"service,omitempty"`
	Samples uint64       `json:"samples"`
	Cores   float64      `json:"cores"`
}

// Quality is how far profiles can be trusted and what they cost. Counts are
// since the agent was started.
type Quality struct {
	Schema          string            `json:"schema"`
	Version         string            `json:"version"`
	Host            string            `json:"host"`
	Event           string            `json:"event"`
	Started         time.Time         `json:"started"`
	Frequency       int               `json:"frequency"`
	WantedFrequency int               `json:"wanted_frequency"`
	Samples         uint64            `json:"samples"`
	Lost            uint64            `json:"lost"`
	StacksComplete  uint64            `json:"stacks_complete"`
	StacksByReason  map[string]uint64 `json:"stacks_by_reason"`
	Frames          uint64            `json:"frames"`
	FramesNamed     uint64            `json:"frames_named"`
	UnnamedByModule map[string]uint64 `json:"unnamed_by_module"` // the 100 with most
	Rates           []Rate            `json:"rates"`
	Cost            CostReport        `json:"cost"`
	History         HistoryStats      `json:"history"`
	Pods            *Pods             `json:"pods,omitempty"`
	Exports         []Export          `json:"exports,omitempty"`
}

// Rate is a time in which one rate was used.
type Rate struct {
	From      time.Time `json:"from"`
	To        time.Time `json:"to"`
	Frequency int       `json:"frequency"`
	Samples   uint64    `json:"samples"`
	Lost      uint64    `json:"lost"`
}

// CostReport is Cost with its units in its names.
type CostReport struct {
	CPUSeconds   float64 `json:"cpu_seconds"`
	BPFSeconds   float64 `json:"bpf_seconds"`
	CPUPercent   float64 `json:"cpu_percent"`        // of all CPUs, now
	CPUBudget    float64 `json:"cpu_budget_percent"` // 0: no limit
	RSSBytes     int64   `json:"rss_bytes"`
	MapBytes     int64   `json:"bpf_map_bytes"`
	MemoryBudget int64   `json:"memory_budget_bytes"` // 0: none
	Unmet        bool    `json:"cpu_budget_unmet"`
	Pressure     int     `json:"memory_pressure"`
}

// failure is an error as it is answered: a profiler.Fault in JSON.
type failure struct {
	Schema string `json:"schema"`
	Error  string `json:"error"`
	Cause  string `json:"cause,omitempty"`
	Fix    string `json:"fix,omitempty"`
}
