package telemetry

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// Push says where metrics are sent over OTLP. The SDK's environment variables
// (OTEL_EXPORTER_OTLP_…) count for nothing: what the agent does is in its own
// settings. OTEL_RESOURCE_ATTRIBUTES adds to what the agent says of itself.
type Push struct {
	Endpoint string            // HOST:PORT, or a URL, whose scheme then says whether there is TLS
	HTTP     bool              // POST to /v1/metrics, below the URL's path, in place of gRPC
	Insecure bool              // no TLS
	TLS      *tls.Config       // nil: the system's certificates
	Headers  map[string]string // sent along, for authentication and tenants
	Interval time.Duration     // 0: a minute
}

// pushTimeout is how long one push may take. The values are totals: what one
// push did not say the next one will, so none is tried twice.
const pushTimeout = 10 * time.Second

// reader makes the reader that pushes. Nothing is connected to before the
// first push.
func (p *Push) reader(ctx context.Context, log *slog.Logger, counts *pushes) (sdk.Reader, error) {
	exporter, err := p.exporter(ctx)
	if err != nil {
		return nil, err
	}
	return sdk.NewPeriodicReader(&countedExporter{exporter, p.Endpoint, log, counts},
		sdk.WithInterval(cmp.Or(p.Interval, time.Minute)), sdk.WithTimeout(pushTimeout)), nil
}

// exporter sets all that the SDK would take from its environment otherwise.
func (p *Push) exporter(ctx context.Context) (sdk.Exporter, error) {
	url := p.Endpoint
	if !strings.Contains(url, "://") {
		url = map[bool]string{true: "http://", false: "https://"}[p.Insecure] + url
	}
	config, transport := (*tls.Config)(nil), insecure.NewCredentials()
	if strings.HasPrefix(url, "https:") {
		config = cmp.Or(p.TLS, &tls.Config{MinVersion: tls.VersionTLS12})
		transport = credentials.NewTLS(config)
	}
	url = strings.TrimSuffix(url, "/") + "/v1/metrics"
	if p.HTTP {
		return otlpmetrichttp.New(ctx,
			otlpmetrichttp.WithEndpointURL(url),
			otlpmetrichttp.WithTLSClientConfig(config),
			otlpmetrichttp.WithHeaders(p.Headers),
			otlpmetrichttp.WithTimeout(pushTimeout),
			otlpmetrichttp.WithRetry(otlpmetrichttp.RetryConfig{}),
			otlpmetrichttp.WithCompression(otlpmetrichttp.GzipCompression),
			otlpmetrichttp.WithTemporalitySelector(sdk.DefaultTemporalitySelector))
	}
	return otlpmetricgrpc.New(ctx,
		otlpmetricgrpc.WithEndpointURL(url),
		otlpmetricgrpc.WithTLSCredentials(transport),
		otlpmetricgrpc.WithHeaders(p.Headers),
		otlpmetricgrpc.WithTimeout(pushTimeout),
		otlpmetricgrpc.WithRetry(otlpmetricgrpc.RetryConfig{}),
		otlpmetricgrpc.WithCompressor("gzip"),
		otlpmetricgrpc.WithTemporalitySelector(sdk.DefaultTemporalitySelector))
}

// pushes counts how pushes ended.
type pushes struct{ delivered, failed atomic.Uint64 }

// countedExporter counts and logs what becomes of pushes.
type countedExporter struct {
	sdk.Exporter
	endpoint string
	log      *slog.Logger
	counts   *pushes
}

// Export pushes and says nothing of failure to its caller, who could do nothing
// about it.
func (e *countedExporter) Export(ctx context.Context, metrics *metricdata.ResourceMetrics) error {
	err := e.Exporter.Export(ctx, metrics)
	switch {
	case err == nil:
		e.counts.delivered.Add(1)
	case errors.Is(ctx.Err(), context.Canceled):
		// Close broke it off: the last push, which follows, says the same.
	default:
		e.counts.failed.Add(1)
		e.log.Warn("metrics not pushed", "endpoint", e.endpoint, "error", err)
	}
	return nil
}

// MarshalLog keeps headers out of what the SDK logs of its parts.
func (e *countedExporter) MarshalLog() any { return fmt.Sprintf("metrics to %s", e.endpoint) }
