package telemetry

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// push is a request that a receiver got, with the headers it came with.
type push struct {
	request *collector.ExportMetricsServiceRequest
	tenant  []string
}

// value gives the value of a metric in a push and how it is described.
func (p push) value(t *testing.T, name string) (float64, *metricspb.Metric) {
	t.Helper()
	for _, r := range p.request.GetResourceMetrics() {
		for _, s := range r.GetScopeMetrics() {
			for _, m := range s.GetMetrics() {
				if m.GetName() == name {
					return m.GetSum().GetDataPoints()[0].GetAsDouble(), m
				}
			}
		}
	}
	t.Fatalf("no metric %s in %v", name, p.request)
	return 0, nil
}

// grpcReceiver is a server of OTLP metrics over gRPC.
type grpcReceiver struct {
	collector.UnimplementedMetricsServiceServer
	pushes chan push
	err    error
}

func (r *grpcReceiver) Export(ctx context.Context, request *collector.ExportMetricsServiceRequest) (*collector.ExportMetricsServiceResponse, error) {
	headers, _ := metadata.FromIncomingContext(ctx)
	r.pushes <- push{request, headers.Get("x-scope-orgid")}
	return &collector.ExportMetricsServiceResponse{}, r.err
}

func serveGRPC(t *testing.T, r *grpcReceiver) (endpoint string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	collector.RegisterMetricsServiceServer(server, r)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// httpReceiver is a handler of OTLP metrics over HTTP.
func httpReceiver(t *testing.T, pushes chan<- push) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || !strings.HasSuffix(r.URL.Path, "/v1/metrics") || r.Header.Get("Content-Encoding") != "gzip" {
			t.Errorf("got %s %s, encoding %q", r.Method, r.URL, r.Header.Get("Content-Encoding"))
		}
		request := &collector.ExportMetricsServiceRequest{}
		unzipped, err := gzip.NewReader(r.Body)
		if err == nil {
			var body []byte
			if body, err = io.ReadAll(unzipped); err == nil {
				err = proto.Unmarshal(body, request)
			}
		}
		if err != nil {
			t.Error(err)
		}
		pushes <- push{request, r.Header.Values("X-Scope-Orgid")}
	})
}

func next(t *testing.T, pushes <-chan push) push {
	t.Helper()
	select {
	case p := <-pushes:
		return p
	case <-time.After(10 * time.Second):
		t.Fatal("nothing was pushed within 10 s")
	}
	return push{}
}

func TestPush(t *testing.T) {
	// What the SDK would read for itself: none of it may count.
	for name, value := range map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": "http://192.0.2.1:1", "OTEL_EXPORTER_OTLP_HEADERS": "x-scope-orgid=environment",
		"OTEL_EXPORTER_OTLP_INSECURE": "true", "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta",
		"OTEL_EXPORTER_OTLP_COMPRESSION": "none", "OTEL_METRIC_EXPORT_INTERVAL": "1", "OTEL_SERVICE_NAME": "environment",
	} {
		t.Setenv(name, value)
	}
	plain, below, secured := make(chan push, 8), make(chan push, 8), make(chan push, 8)
	paths := http.NewServeMux()
	paths.Handle("/v1/metrics", httpReceiver(t, plain))
	paths.Handle("/otlp/v1/metrics", httpReceiver(t, below))
	web := httptest.NewServer(paths)
	defer web.Close()
	webTLS := httptest.NewTLSServer(httpReceiver(t, secured))
	defer webTLS.Close()
	roots := x509.NewCertPool()
	roots.AddCert(webTLS.Certificate())
	receiver := &grpcReceiver{pushes: make(chan push, 8)}
	tests := []struct {
		name   string
		push   Push
		pushes chan push
	}{
		{"gRPC", Push{Endpoint: serveGRPC(t, receiver), Insecure: true}, receiver.pushes},
		{"HTTP", Push{Endpoint: web.Listener.Addr().String(), Insecure: true, HTTP: true}, plain},
		{"HTTP below a path", Push{Endpoint: web.URL + "/otlp/", HTTP: true}, below},
		{"HTTP with TLS", Push{Endpoint: webTLS.Listener.Addr().String(), HTTP: true, TLS: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}, secured},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.push.Headers = map[string]string{"X-Scope-OrgID": "shop"}
			tt.push.Interval = 50 * time.Millisecond
			tel := start(t, Config{Host: "node-7", Push: &tt.push}, samples(1234))
			var got push
			for range 2 { // totals, not differences
				got = next(t, tt.pushes)
				value, m := got.value(t, "kalypso_agent_samples_total")
				if value != 1234 || m.GetUnit() != "{sample}" || m.GetDescription() != "Samples taken." || !m.GetSum().GetIsMonotonic() {
					t.Errorf("value %v of %v", value, m)
				}
			}
			if len(got.tenant) != 1 || got.tenant[0] != "shop" {
				t.Errorf("tenant header %q, want shop", got.tenant)
			}
			resource := got.request.GetResourceMetrics()[0].GetResource().String()
			for _, want := range []string{`"kalypso-agent"`, `"node-7"`} {
				if !strings.Contains(resource, want) {
					t.Errorf("no %s in the resource %s", want, resource)
				}
			}
			if page := scrape(t, tel); !strings.Contains(page, "kalypso_agent_samples_total 1234\n") {
				t.Errorf("the page beside it has no samples:\n%s", page)
			}
		})
	}
}

func TestPushFails(t *testing.T) {
	t.Run("refused", func(t *testing.T) {
		receiver := &grpcReceiver{pushes: make(chan push, 1000), err: status.Error(codes.Unauthenticated, "no such tenant")}
		pushFails(t, Push{Endpoint: serveGRPC(t, receiver), Insecure: true}, "no such tenant")
	})
	t.Run("nobody there", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		pushFails(t, Push{Endpoint: l.Addr().String(), Insecure: true}, "connection refused")
	})
	t.Run("a server whose certificate is not trusted", func(t *testing.T) {
		server := httptest.NewUnstartedServer(http.NotFoundHandler())
		server.Config.ErrorLog = log.New(io.Discard, "", 0)
		server.StartTLS()
		defer server.Close()
		pushFails(t, Push{Endpoint: server.Listener.Addr().String(), HTTP: true}, "certificate")
	})
}

// pushFails wants failed pushes to be counted, logged once, and to end.
func pushFails(t *testing.T, p Push, reason string) {
	t.Helper()
	var out bytes.Buffer
	logger := NewLogger(&out, nil, Text)
	p.Interval = 10 * time.Millisecond
	tel, err := New(context.Background(), Config{Log: logger, Push: &p}, []Metric{samples(1)})
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		page := scrape(t, tel)
		if _, after, _ := strings.Cut(page, `outcome="failed"} `); !strings.HasPrefix(after, "0") && !strings.HasPrefix(after, "1\n") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no two failed pushes counted within 10 s:\n%s", page)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := tel.Close(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	logger.Close()
	if n := strings.Count(out.String(), "metrics not pushed"); n < 1 || n > 2 || !strings.Contains(out.String(), reason) {
		t.Errorf("want one line, one count and %q in the log:\n%s", reason, &out)
	}
}
