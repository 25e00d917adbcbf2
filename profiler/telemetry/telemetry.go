// Package telemetry is how the agent speaks of itself: its metrics (a page for
// Prometheus, and pushes over OTLP where that is asked for), its health, and
// its log.
//
// It owns the OpenTelemetry SDK's instruments, the handlers of /metrics,
// /healthz and /readyz, and the folding of log lines that repeat. It refuses to
// know what is measured: whoever owns a counter hands in a Metric that reads
// it, a stage ticks its Stage, the exporters' owner describes its backends.
// Nothing is measured for telemetry's sake: a value is read when somebody asks.
//
// No secret comes here, so none is taken out: settings hold the names of files
// with secrets in them, and their readers do not log what they read.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/otlptranslator"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
)

// Config says who speaks and to whom. The zero value has a page and no push.
type Config struct {
	Service string // service.name; "kalypso-agent" when empty
	Version string // service.version
	Host    string // host.name and service.instance.id

	// Snapshot, if set, is called before the metrics of one scrape or push are
	// read, so that metrics which come from one place can be read of it once.
	Snapshot func()
	Log      *Log    // counted, and told of pushes that fail; may be nil
	Health   *Health // its stages are metrics too; may be nil
	Push     *Push   // nil: metrics are only to be fetched
}

// Telemetry holds the instruments of a running agent.
type Telemetry struct {
	provider *sdk.MeterProvider
	page     http.Handler
	snapshot func()
	log      *slog.Logger

	mu      sync.Mutex // one reading at a time: a scrape and a push may meet
	sources []*source
	current metric.Observer
}

// seriesLimit is how many combinations of label values a metric may have. What
// is beyond goes into one with the label otel_metric_overflow.
const seriesLimit = 500

// scrapesAtOnce is far over what an honest installation asks for.
const scrapesAtOnce = 4

// New makes the instruments. Close ends them. The SDK has one handler of errors
// for the whole process: from here on it writes to the log.
func New(ctx context.Context, cfg Config, metrics []Metric) (*Telemetry, error) {
	pushed := &pushes{}
	metrics = append(slices.Clone(metrics), own(cfg.Log, cfg.Health, pushed)...)
	if err := validate(metrics); err != nil {
		return nil, err
	}
	t := &Telemetry{snapshot: cfg.Snapshot, log: slog.New(slog.DiscardHandler)}
	if cfg.Log != nil {
		t.log = cfg.Log.Logger
		otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
			if !errors.Is(err, context.Canceled) { // Close breaks off what is under way
				t.log.Warn("metrics are not whole", "error", err)
			}
		}))
	}
	registry := prometheus.NewRegistry()
	options := []sdk.Option{sdk.WithResource(cfg.resource()), sdk.WithCardinalityLimit(seriesLimit)}
	// Names are valid for Prometheus as they are and hold their units; only the
	// resource's dots have to go.
	reader, err := otelprometheus.New(otelprometheus.WithRegisterer(registry), otelprometheus.WithoutScopeInfo(),
		otelprometheus.WithTranslationStrategy(otlptranslator.UnderscoreEscapingWithoutSuffixes))
	if err != nil {
		return nil, fmt.Errorf("make the metrics page: %w", err)
	}
	options = append(options, sdk.WithReader(reader))
	if cfg.Push != nil {
		reader, err := cfg.Push.reader(ctx, t.log, pushed)
		if err != nil {
			return nil, fmt.Errorf("push metrics to %s: %w", cfg.Push.Endpoint, err)
		}
		options = append(options, sdk.WithReader(reader))
	}
	t.provider = sdk.NewMeterProvider(options...)
	// Not compressed: 60 metrics are 12 kB and 0.6 ms, gzip takes 0.3 ms more
	// (BenchmarkScrape) and 800 kB of memory.
	t.page = promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		DisableCompression:  true,
		ErrorLog:            errorLog{t.log},
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: scrapesAtOnce,
	})
	if err := t.register(metrics); err != nil {
		_ = t.Close(ctx)
		return nil, err
	}
	return t, nil
}

// Page is the handler of /metrics, in Prometheus's text format.
func (t *Telemetry) Page() http.Handler { return t.page }

// Close pushes once more, where metrics are pushed, and ends all goroutines.
// When ctx ends first, the push is given up.
func (t *Telemetry) Close(ctx context.Context) error {
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("end the metrics: %w", err)
	}
	return nil
}

func (c *Config) resource() *resource.Resource {
	service := c.Service
	if service == "" {
		service = "kalypso-agent"
	}
	attributes := []attribute.KeyValue{attribute.String("service.name", service)}
	if c.Version != "" {
		attributes = append(attributes, attribute.String("service.version", c.Version))
	}
	if c.Host != "" {
		attributes = append(attributes, attribute.String("host.name", c.Host), attribute.String("service.instance.id", c.Host))
	}
	return resource.NewSchemaless(attributes...)
}

// register makes an instrument of each metric, and one callback for all: one
// reading sees one state.
func (t *Telemetry) register(metrics []Metric) error {
	meter := t.provider.Meter("github.com/kalypso-dev/kalypso/profiler/telemetry")
	instruments := make([]metric.Observable, 0, len(metrics))
	for _, m := range metrics {
		s := &source{owner: t, metric: m, known: map[string][]metric.ObserveOption{}}
		var err error
		if m.Kind == Counter {
			s.instrument, err = meter.Float64ObservableCounter(m.Name, metric.WithUnit(m.Unit), metric.WithDescription(m.Description))
		} else {
			s.instrument, err = meter.Float64ObservableGauge(m.Name, metric.WithUnit(m.Unit), metric.WithDescription(m.Description))
		}
		if err != nil {
			return fmt.Errorf("make the instrument of metric %s: %w", m.Name, err)
		}
		s.observe = s.value
		t.sources = append(t.sources, s)
		instruments = append(instruments, s.instrument)
	}
	if _, err := meter.RegisterCallback(t.read, instruments...); err != nil {
		return fmt.Errorf("register the metrics: %w", err)
	}
	return nil
}

// read asks every owner for its values.
func (t *Telemetry) read(_ context.Context, observer metric.Observer) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.current = observer
	defer func() { t.current = nil }()
	if t.snapshot != nil {
		t.snapshot()
	}
	for _, s := range t.sources {
		s.metric.Read(s.observe)
	}
	return nil
}

// source is a metric and what was made of it.
type source struct {
	owner      *Telemetry
	metric     Metric
	instrument metric.Float64Observable
	observe    Observe
	// known keeps the attribute set of each combination of label values seen:
	// making one sorts and hashes. At most seriesLimit are kept.
	known map[string][]metric.ObserveOption
	key   []byte
}

// value takes one value of the metric; the owner's lock is held.
func (s *source) value(value float64, labelValues ...string) {
	if len(labelValues) != len(s.metric.Labels) {
		s.owner.log.Error("metric has a value with the wrong number of labels", "metric", s.metric.Name,
			"labels", len(labelValues), "want", len(s.metric.Labels))
		return
	}
	s.key = s.key[:0]
	for _, v := range labelValues {
		s.key = append(append(s.key, v...), 0)
	}
	options, ok := s.known[string(s.key)]
	if !ok {
		attributes := make([]attribute.KeyValue, len(labelValues))
		for i, v := range labelValues {
			attributes[i] = attribute.String(s.metric.Labels[i], v)
		}
		options = []metric.ObserveOption{metric.WithAttributeSet(attribute.NewSet(attributes...))}
		if len(s.known) >= seriesLimit {
			clear(s.known)
		}
		s.known[string(s.key)] = options
	}
	s.owner.current.ObserveFloat64(s.instrument, value, options...)
}

// errorLog tells the log what the page's handler finds wrong.
type errorLog struct{ log *slog.Logger }

// Println implements promhttp.Logger. A reader that goes away before it has the
// page takes nothing from the next one.
func (l errorLog) Println(v ...any) {
	for _, one := range v {
		var gone *net.OpError
		if err, ok := one.(error); ok && errors.As(err, &gone) {
			l.log.Debug("a reader of the metrics went away", "error", err)
			return
		}
	}
	l.log.Warn("metrics are not whole", "error", fmt.Sprint(v...))
}
