// Package daemon is "kalypso-agent run": it joins the sampling service, the
// exporters with their spools, the history, the local API and the agent's own
// telemetry, starts them in order and ends them so that nothing is lost. It
// decides nothing about any of them: settings come from package config.
package daemon

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/cmd/agent/internal/config"
	"github.com/kalypso-dev/kalypso/exporter/transport"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/api"
	"github.com/kalypso-dev/kalypso/profiler/lang"
	"github.com/kalypso-dev/kalypso/profiler/pipeline"
	"github.com/kalypso-dev/kalypso/profiler/telemetry"
	"github.com/kalypso-dev/kalypso/profiler/workload"
	"github.com/kalypso-dev/kalypso/profiler/workload/kubernetes"
)

// Config is what a daemon needs beside its settings.
type Config struct {
	Settings    *config.Config
	Runtimes    []lang.Runtime
	OpenPerfMap func(pid profiler.PID, root string) (pipeline.PerfMap, error)
	// SetDebugInfo is told whether there is memory for lines and inlined calls.
	SetDebugInfo func(on bool)
	// Reload reads the settings anew; Hangup says when that is wanted.
	Reload  func() (*config.Config, error)
	Hangup  <-chan os.Signal
	Version string
	Log     io.Writer
}

// flush is how long the end of the agent may take: Kubernetes kills after 30 s,
// and what is not sent by then waits in the spool. No request is begun in its
// second half, so that one that takes 10 s arrives once.
const flush = 20 * time.Second

type daemon struct {
	Config
	level     slog.LevelVar
	log       *telemetry.Log
	health    *telemetry.Health
	pods      *workload.Pods
	watcher   *kubernetes.Watcher // nil: nobody is asked for pods
	service   *pipeline.Service
	telemetry *telemetry.Telemetry
	outlets   []*outlet
	history   *api.History
	refusals  api.Refusals
	listener  net.Listener   // nil: nothing is served
	sending   sync.WaitGroup // of the outlets

	mu       sync.Mutex
	settings *config.Config
	began    time.Time // sampling; zero: not yet

	// Of the goroutine that delivers.
	pending []*profiler.Profile // of the open window
}

// Run runs the agent until ctx ends.
func Run(ctx context.Context, cfg Config) (err error) {
	d := &daemon{Config: cfg, settings: cfg.Settings, health: telemetry.NewHealth()}
	d.level.Set(cfg.Settings.Log.Level)
	d.log = telemetry.NewLogger(cfg.Log, &d.level, telemetry.Format(cfg.Settings.Log.Format))
	defer d.log.Close()
	if err := d.open(ctx); err != nil {
		return errors.Join(err, d.close())
	}
	defer func() {
		err = errors.Join(err, d.close())
		d.logTotals()
	}()
	return d.run(ctx)
}

// open makes everything, and starts nothing.
func (d *daemon) open(ctx context.Context) error {
	s := d.settings
	var err error
	if s.Listen.Address != "" { // first: it fails most often, where another agent runs
		if d.listener, err = api.Listen(s.Listen.Address, s.Listen.AllowRemote); err != nil {
			return err
		}
	}
	for _, e := range s.Export {
		o, err := d.newOutlet(e)
		if err != nil {
			return err
		}
		d.outlets = append(d.outlets, o)
	}
	d.warn()
	if err := d.openPods(); err != nil {
		return err
	}
	d.history = api.NewHistory(s.History, 0) // the service gives it its budget
	d.service, err = pipeline.NewService(pipeline.ServiceConfig{
		Settings: d.pipelineSettings(s), Pods: d.pods, Node: s.Kubernetes.Node, Runtimes: d.Runtimes, OpenPerfMap: d.OpenPerfMap, Kernel: s.Kernel,
		Window: s.Window, SetDebugInfo: d.SetDebugInfo, SetHistory: d.history.SetBudget,
		Deliver: d.deliver, Log: d.log.Logger, Health: d.health,
	})
	if err != nil {
		d.keepVerifierLog(err)
		return err
	}
	own := pipeline.NewMetrics(d.service)
	host, _ := d.service.Describe()
	push, err := pushOf(s.Telemetry.OTLP)
	if err != nil {
		return err
	}
	d.telemetry, err = telemetry.New(ctx, telemetry.Config{
		Version: d.Version, Host: host, Snapshot: own.Snapshot, Log: d.log, Health: d.health, Push: push,
	}, Metrics(own, d.outlets, d.history, &d.refusals))
	return err
}

// pyroscopeAge is what Pyroscope takes by default.
const pyroscopeAge = time.Hour

// warn says what of the settings is right, and does not do what it seems to.
func (d *daemon) warn() {
	s := d.settings
	if s.Spool.MaxAge > pyroscopeAge && (s.Exports("otlp") || s.Exports("pprof")) {
		d.log.Warn("Pyroscope refuses profiles that are older than an hour, unless it is told otherwise: spool.max-age is more",
			"spool.max-age", s.Spool.MaxAge, "from", s.Origin("spool.max-age").String())
	}
}

// run starts everything and waits for the end.
func (d *daemon) run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	aux, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	for _, o := range d.outlets {
		// Ended by close: cut off here, the request that is being sent would be
		// sent again.
		d.sending.Go(func() { o.spool.Run(context.WithoutCancel(ctx)) })
	}
	if d.listener != nil {
		all.Go(func() { d.serve(aux) })
	}
	if d.watcher != nil {
		all.Go(func() { d.watcher.Run(aux) })
	}
	all.Go(func() { d.begin(aux) })
	all.Go(func() { d.reload(aux) })
	return d.service.Run(ctx)
}

// serve answers until ctx ends.
func (d *daemon) serve(ctx context.Context) {
	handler := api.NewServer(api.Config{
		Source: source{d}, History: d.history, Metrics: d.telemetry.Page(), Healthz: d.health.Healthz(),
		Readyz: telemetry.Readyz(d.readiness), AllowRemote: d.Settings.Listen.AllowRemote,
		Working: d.service.Working, Running: source{d}.running, Refusals: &d.refusals,
	})
	listener := d.listener
	d.listener = nil // Serve closes it
	d.log.Info("flame graph, profiles and metrics", "at", at(listener.Addr()))
	if err := api.Serve(ctx, listener, handler, d.log.Logger); err != nil {
		d.log.Error("the API is not served any more", "reason", err)
	}
}

// at is what a browser opens, or curl: a socket has no page.
func at(a net.Addr) string {
	if a.Network() == "unix" {
		return "unix:" + a.String()
	}
	return "http://" + a.String() + "/"
}

// begin does what is due once sampling has begun.
func (d *daemon) begin(ctx context.Context) {
	select {
	case <-d.service.Ready():
	case <-ctx.Done():
		return
	}
	d.mu.Lock()
	d.began = time.Now()
	d.mu.Unlock()
	if err := dropPrivileges(); err != nil {
		d.log.Warn("privileges are not given up", "reason", err)
	}
}

// close ends what open made: profiles that wait are sent, or stay in the spool.
func (d *daemon) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), flush)
	defer cancel()
	errs := make([]error, len(d.outlets))
	for i, o := range d.outlets {
		d.sending.Go(func() { errs[i] = o.close(ctx) })
	}
	d.sending.Wait()
	if d.listener != nil { // nothing was served
		errs = append(errs, d.listener.Close())
	}
	if d.telemetry != nil {
		if err := d.telemetry.Close(ctx); err != nil {
			d.log.Warn("metrics", "reason", err)
		}
	}
	return errors.Join(errs...)
}

// deliver takes a segment; at the end of a window everything goes out at once.
func (d *daemon) deliver(seg pipeline.Segment) {
	if d.Settings.History > 0 {
		if err := d.history.Add(apiSegment(&seg)); err != nil {
			d.log.Warn("the history has a gap", "reason", err)
		}
	}
	d.pending = append(d.pending, seg.Profiles...)
	if !seg.Last {
		return
	}
	for _, o := range d.outlets {
		o.put(d.pending)
	}
	d.pending = nil
}

// openPods makes what is asked for the names of containers, if anybody is.
func (d *daemon) openPods() error {
	k := &d.Settings.Kubernetes
	pods := workload.NewPods()
	var err error
	d.watcher, err = kubernetes.New(kubernetes.Config{
		Source: kubernetes.Source(k.Source), Node: k.Node, KubeletAddress: k.Kubelet.Address, KubeletCA: k.Kubelet.CA,
		KubeletSkipVerify: k.Kubelet.SkipVerify, Pods: pods, Log: d.log.Logger,
	})
	if d.watcher != nil {
		d.pods = pods
	}
	return err
}

// pipelineSettings are those that the service can change while it runs.
func (d *daemon) pipelineSettings(s *config.Config) pipeline.Settings {
	budget := float64(s.CPU.Budget) / 100
	if budget >= 1 {
		budget = 0 // all of the node is no limit
	}
	wantsPod, outside := s.PodFilter()
	return pipeline.Settings{
		Frequency: s.Frequency, CPUBudget: budget, MemoryBudget: int64(s.Memory.Budget), ServiceName: s.Service.Name, Labels: s.Labels,
		Select: &pipeline.Select{
			Pod: wantsPod, Outside: outside, Cgroup: s.CgroupFilter(),
		},
		Keep: func(w *profiler.Workload, p *profiler.Process) bool {
			if !s.Wants(w.Attribute("service.name"), p.Comm, p.Cgroup) {
				return false
			}
			if c, ok := d.pods.Find(p.Cgroup); ok {
				return wantsPod(c.Pod)
			}
			if workload.InPod(p.Cgroup) {
				return wantsPod(nil)
			}
			return outside
		},
	}
}

// watchEvery is how often the file of settings is looked at, where it is watched. A
// kubelet takes about a minute to bring a changed ConfigMap.
const watchEvery = 5 * time.Second

// reload takes in settings that can change while the agent runs.
func (d *daemon) reload(ctx context.Context) {
	file := d.Settings.Watched()
	var tick <-chan time.Time
	if file != nil {
		ticker := time.NewTicker(watchEvery)
		defer ticker.Stop()
		tick = ticker.C
	}
	for {
		wanted := false
		select {
		case <-ctx.Done():
			return
		case <-d.Hangup:
			wanted = true
		case <-tick:
		}
		if file != nil {
			changed, err := patiently(ctx, func() (bool, error) { return file.Changed(), nil })
			wanted = wanted || err == nil && changed
		}
		if !wanted {
			continue
		}
		if err := d.apply(ctx); err != nil && ctx.Err() == nil {
			d.log.Error("settings are not reloaded; what was in force stays so", "reason", err)
		}
	}
}

// patiently reads. A file system that does not answer holds up the reading and not
// the end of the agent, which leaves the reader behind.
func patiently[T any](ctx context.Context, read func() (T, error)) (T, error) {
	done := make(chan struct{})
	var got T
	var wrong error
	go func() {
		defer close(done)
		got, wrong = read()
	}()
	select {
	case <-done:
		return got, wrong
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

func (d *daemon) apply(ctx context.Context) error {
	fresh, err := patiently(ctx, d.Reload)
	if err != nil {
		return err
	}
	var names []string
	for _, c := range config.Changes(d.settings, fresh) {
		names = append(names, c.Name)
		if c.Restart {
			d.log.Warn("a setting holds after a restart only", "setting", c.Name, "now", c.Old, "then", c.New, "from", c.Origin.String())
		} else {
			d.log.Info("a setting changed", "setting", c.Name, "from", c.Old, "to", c.New, "origin", c.Origin.String())
		}
	}
	next := config.Running(d.settings, fresh)
	if err := d.service.Apply(ctx, d.pipelineSettings(next)); err != nil {
		return err
	}
	d.level.Set(next.Log.Level)
	d.mu.Lock()
	d.settings = next
	d.mu.Unlock()
	d.log.Info("settings are reloaded", "changed", strings.Join(names, " "))
	return nil
}

// readiness is what /readyz tells.
func (d *daemon) readiness() telemetry.Readiness {
	d.mu.Lock()
	r := telemetry.Readiness{Attached: !d.began.IsZero(), Sampling: d.began}
	d.mu.Unlock()
	for _, o := range d.outlets {
		r.Backends = append(r.Backends, o.backend())
	}
	return r
}

// spoolDir is the folder of one outlet's spool; empty: none.
func spoolDir(s *config.Config, kind string) string {
	if s.Spool.Dir == "" {
		return ""
	}
	return filepath.Join(s.Spool.Dir, kind)
}

// pushOf says where the agent's own metrics go; nil: nowhere. A token that is
// renewed while the agent runs takes a restart.
func pushOf(o config.TelemetryOTLP) (*telemetry.Push, error) {
	if o.Endpoint == "" {
		return nil, nil
	}
	to := transport.Config{Endpoint: o.Endpoint, Insecure: o.Insecure, CAFile: o.CA, HeadersFile: o.HeadersFile}
	certificates, headers, err := to.Static()
	if err != nil {
		return nil, err
	}
	return &telemetry.Push{
		Endpoint: o.Endpoint, HTTP: o.Protocol == "http", Insecure: o.Insecure, TLS: certificates, Headers: headers,
	}, nil
}

// keepVerifierLog writes what the verifier says of a program that it refused to
// the file of --verifier-log: thousands of lines, of which the error has the last.
func (d *daemon) keepVerifierLog(err error) {
	var refusal *bpf.Refusal
	if d.settings.VerifierLog == "" || !errors.As(err, &refusal) {
		return
	}
	text := strings.Join(refusal.Log, "\n") + "\n"
	if err := os.WriteFile(d.settings.VerifierLog, []byte(text), 0o600); err != nil {
		d.log.Warn("the verifier's log is not written", "reason", err)
	}
}
