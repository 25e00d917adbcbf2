// Package config holds the settings of "kalypso-agent run": one table of them
// (settings), from which come the flags, the names of environment variables,
// the tree of the YAML file, the reference page and what "config show" prints.
//
// Values come from three sources, each over the one before: a YAML file, the
// environment (KALYPSO_AGENT_…), flags. The package is strict: what it does not
// know it refuses, and says where it stands and what was probably meant. Every
// value remembers where it came from. It reads no file but that one: passwords,
// tokens and headers are in files whose names are settings, so that no secret
// can be printed from here. It does not know what the settings do.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
)

// Config is what the agent runs by. It is made by Load or Read and not changed
// afterwards.
type Config struct {
	Export      []Export
	OTLP        OTLP
	Frequency   int // samples a second and CPU
	Window      time.Duration
	Kernel      bool
	Include     Filter
	Exclude     Filter
	Labels      []profiler.Attribute // sorted by key, no key twice
	Service     Service
	Kubernetes  Kubernetes
	Spool       Spool
	CPU         CPU
	Memory      Memory
	History     time.Duration // 0: none is kept
	Listen      Listen
	Telemetry   Telemetry
	Log         Log
	VerifierLog string // file; empty: none is written
	WatchFile   bool   // of settings

	origins map[string]Origin
	file    Watch // the file of settings as it was read; no path: there is none
}

// OTLP says how the backend is reached: for the export otlp, and for pprof too.
type OTLP struct {
	Endpoint        string // HOST:PORT or a URL
	Protocol        string // "grpc" or "http"
	Insecure        bool   // no TLS
	TLS             TLS
	Basic           Basic
	BearerTokenFile string
	HeadersFile     string
	Tenant          string // X-Scope-OrgID
	Timeout         time.Duration
}

// TLS names the files of certificates.
type TLS struct {
	CA         string
	Cert       string
	Key        string
	ServerName string // expected in the server's certificate; empty: the endpoint's host
}

// Basic is HTTP's basic authentication.
type Basic struct {
	User         string
	PasswordFile string
}

// Filter picks processes by patterns, in which * stands for anything. A kind
// without patterns lets all pass.
type Filter struct {
	Namespace []string // of Kubernetes
	Service   []string // of service.name
	Comm      []string // of the process's name, as in /proc/PID/comm
	Cgroup    []string // of a cgroup path; what is below it belongs to it
}

// Service names what has no name of its own.
type Service struct {
	Name string // service.name of processes in no unit and no container; empty: the program's name
}

// Kubernetes says how the pods of this node are learnt, and which are wanted.
type Kubernetes struct {
	Source   string // "auto", "api", "kubelet" or "off"
	Node     string // name of the node; empty: it is in no cluster
	Selector string // of labels, as kubectl takes it; empty: all pods
	OptIn    bool   // only pods whose annotation says so
	Kubelet  Kubelet
}

// Kubelet says how the node's kubelet is reached.
type Kubelet struct {
	Address    string // HOST:PORT; empty: port 10250 of the node's name
	CA         string
	SkipVerify bool
}

// Spool bounds what waits for the backend.
type Spool struct {
	Dir    string // empty: in memory only
	Max    Bytes
	MaxAge time.Duration
}

// CPU is what the agent may take of the node.
type CPU struct {
	Budget Percent // of all CPUs together
}

// Memory is what the agent may take of memory, BPF maps included.
type Memory struct {
	Budget Bytes
}

// Listen is where the agent answers.
type Listen struct {
	Address     string // HOST:PORT or unix:PATH; empty: nowhere
	AllowRemote bool
}

// Socket is the path of the Unix socket to listen on; empty when Address is no
// socket.
func (l Listen) Socket() string {
	if path, ok := strings.CutPrefix(l.Address, "unix:"); ok {
		return path
	}
	return ""
}

// Telemetry says where the agent's own metrics are pushed to.
type Telemetry struct {
	OTLP TelemetryOTLP
}

// TelemetryOTLP is a backend for metrics. It shares nothing with OTLP:
// credentials for one host are not shown to another.
type TelemetryOTLP struct {
	Endpoint    string // empty: metrics are not pushed
	Protocol    string
	Insecure    bool
	CA          string
	HeadersFile string
}

// Log is how much is logged, and how.
type Log struct {
	Level  slog.Level
	Format string // "text" or "json"
}

// Source is what kind of place a value came from.
type Source string

// The sources, in rising order.
const (
	FromDefault     Source = "default"
	FromFile        Source = "file"
	FromEnvironment Source = "environment"
	FromFlag        Source = "flag"
)

// Origin is where a value came from.
type Origin struct {
	Source Source
	Place  string // FILE:LINE:COLUMN, a variable, a flag; of a default why it is that
}

// String is the origin in words.
func (o Origin) String() string {
	switch {
	case o.Place == "":
		return string(o.Source)
	case o.Source == FromDefault:
		return "default: " + o.Place
	}
	return o.Place
}

// Origin says where the value of a setting came from.
func (c *Config) Origin(name string) Origin {
	return cmp.Or(c.origins[name], Origin{Source: FromDefault})
}

// Exports says whether profiles leave in this way: otlp, pprof or file.
func (c *Config) Exports(kind string) bool {
	return slices.ContainsFunc(c.Export, func(e Export) bool { return e.Kind == kind })
}

// derive sets what follows from other settings, unless it was set.
func (c *Config) derive() {
	// A connection that stays on this machine has nobody to hide from, and
	// servers that are run for a trial speak no TLS.
	here := Origin{FromDefault, "the endpoint is this machine"}
	if c.Origin("otlp.insecure").Source == FromDefault && c.OTLP.TLS == (TLS{}) && onThisMachine(c.OTLP.Endpoint) {
		c.OTLP.Insecure, c.origins["otlp.insecure"] = true, here
	}
	if c.Origin("telemetry.otlp.insecure").Source == FromDefault && c.Telemetry.OTLP.CA == "" && onThisMachine(c.Telemetry.OTLP.Endpoint) {
		c.Telemetry.OTLP.Insecure, c.origins["telemetry.otlp.insecure"] = true, here
	}
}

// onThisMachine says whether HOST:PORT is reached without a network. It is
// false for a URL, whose scheme says whether there is TLS.
func onThisMachine(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Validate says what is wrong with settings that are each right by themselves.
// What only those can find out who use them (files that cannot be read,
// certificates without keys) is theirs to say.
func (c *Config) Validate() error {
	if (c.Exports("otlp") || c.Exports("pprof")) && c.OTLP.Endpoint == "" {
		return &profiler.Fault{
			What: "there is no backend to send profiles to",
			Why:  errors.New("otlp.endpoint is not set"),
			Fix:  "--otlp.endpoint HOST:PORT     or --export file:DIR keeps them here",
		}
	}
	if c.Exports("otlp") && c.Exports("pprof") {
		return &profiler.Fault{
			What: "otlp and pprof exclude each other",
			Why:  fmt.Errorf("both go to otlp.endpoint, which would count every sample twice (%s)", c.Origin("export")),
			Fix:  "--export otlp",
		}
	}
	if c.WatchFile && c.file.path == "" {
		return &profiler.Fault{
			What: "there is no file of settings to watch",
			Why:  fmt.Errorf("config.watch is set, and --config is not (%s)", c.Origin("config.watch")),
			Fix:  "--config FILE",
		}
	}
	for i, e := range c.Export {
		if slices.Contains(c.Export[:i], e) {
			return &profiler.Fault{What: fmt.Sprintf("the export %q is there twice", e), Why: errors.New(c.Origin("export").String()), Fix: "leave one of them out"}
		}
	}
	if c.Listen.Address != "" && c.Listen.Socket() == "" && !onThisMachine(c.Listen.Address) && !c.Listen.AllowRemote {
		return &profiler.Fault{
			What: fmt.Sprintf("other machines can reach the address %s", c.Listen.Address),
			Why:  fmt.Errorf("the API is for this machine; others may at most read metrics and health, and only if that is allowed (listen: %s)", c.Origin("listen")),
			Fix:  "--listen 127.0.0.1:4041     or --listen.allow-remote, if the network may be trusted",
		}
	}
	return nil
}
