package backends

import (
	"compress/gzip"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	collectorlogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	collectortrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"github.com/kalypso-dev/kalypso/deploy/verify"
)

type object = map[string]any

// trimmed is the collector's configuration without what needs a node.
func trimmed(t *testing.T, configuration string) string {
	t.Helper()
	var c struct {
		Receivers, Processors, Exporters object
		Service                          struct {
			Pipelines map[string]struct{ Receivers, Processors, Exporters []string }
		}
	}
	if err := yaml.Unmarshal([]byte(configuration), &c); err != nil {
		t.Fatal(err)
	}
	processors := []string{"memory_limiter", "resource/node", "batch"}
	pipelines := object{}
	for _, signal := range []string{"metrics", "logs", "traces"} {
		p := c.Service.Pipelines[signal]
		for _, name := range processors {
			if !strings.Contains(strings.Join(p.Processors, " "), name) {
				t.Errorf("%s do not pass %s, but %v", signal, name, p.Processors)
			}
		}
		pipelines[signal] = object{"receivers": []string{"otlp"}, "processors": processors, "exporters": p.Exporters}
	}
	kept := object{}
	for _, name := range processors {
		kept[name] = c.Processors[name]
	}
	delete(c.Exporters, "otlp_grpc/pyroscope")
	text, err := yaml.Marshal(object{
		"receivers":  object{"otlp": c.Receivers["otlp"]},
		"processors": kept,
		"exporters":  c.Exporters,
		"service":    object{"pipelines": pipelines, "telemetry": object{"metrics": object{"level": "none"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// moved has the receiver at addresses of the test.
func moved(t *testing.T, configuration, grpcAddr, httpAddr string) string {
	t.Helper()
	for from, to := range map[string]string{"endpoint: :4317": "endpoint: " + grpcAddr, "endpoint: :4318": "endpoint: " + httpAddr} {
		if !strings.Contains(configuration, from) {
			t.Fatalf("the receiver is not at all addresses of its pod, where a tunnel comes in: no %q in\n%s", from, configuration)
		}
		configuration = strings.Replace(configuration, from, to, 1)
	}
	return configuration
}

// collector is one that is told what the chart's is.
func (n network) collector(t *testing.T, configuration string) {
	t.Helper()
	dir, p := t.TempDir(), ports(t, 2)
	file := filepath.Join(dir, "relay.yaml")
	text := n.local(t, moved(t, trimmed(t, configuration), loopback(p[0]), loopback(p[1])))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s := run(t, dir, []string{"K8S_NODE_NAME=node-of-the-test"}, program(t, "collector"), "--config", "file:"+file)
	s.listens(loopback(p[1]))
	n["kalypso-collector.otel-system:4318"] = loopback(p[1])
}

// listens waits until somebody answers at an address.
func (s *server) listens(addr string) {
	s.t.Helper()
	for deadline := time.Now().Add(readyLimit); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			return
		}
	}
	s.t.Fatalf("%s does not listen at %s", s.name, addr)
}

// lines keeps what comes over OTLP, in either form, and answers as Loki does.
type lines struct {
	mu   sync.Mutex
	logs []*collectorlogs.ExportLogsServiceRequest
}

// ServeHTTP is Loki's gateway.
func (l *lines) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch r.URL.Path {
	case "/otlp/v1/logs":
		message := &collectorlogs.ExportLogsServiceRequest{}
		if err := decode(r, message); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		l.logs = append(l.logs, message)
	case "/loki/api/v1/query_range":
		_, want, _ := strings.Cut(r.URL.Query().Get("query"), `|= "`)
		_ = json.NewEncoder(w).Encode(object{"data": object{"result": l.find(strings.TrimSuffix(want, `"`))}})
	default:
		http.NotFound(w, r)
	}
}

func (l *lines) find(text string) []object {
	found := []object{}
	for _, message := range l.logs {
		for _, resource := range message.ResourceLogs {
			for _, scope := range resource.ScopeLogs {
				for _, record := range scope.LogRecords {
					if body := record.Body.GetStringValue(); strings.Contains(body, text) {
						found = append(found, object{"values": [][]string{{fmt.Sprint(record.TimeUnixNano), body}}})
					}
				}
			}
		}
	}
	return found
}

func decode(r *http.Request, message proto.Message) error {
	var body io.Reader = r.Body
	if r.Header.Get("Content-Encoding") == "gzip" {
		var err error
		if body, err = gzip.NewReader(r.Body); err != nil {
			return err
		}
	}
	data, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	if r.Header.Get("Content-Type") == "application/json" {
		return protojson.Unmarshal(data, message)
	}
	return proto.Unmarshal(data, message)
}

// spans keeps traces that come over gRPC and answers as Tempo does.
type spans struct {
	collectortrace.UnimplementedTraceServiceServer
	mu     sync.Mutex
	traces map[string][]*trace.ResourceSpans
}

// Export takes spans.
func (s *spans) Export(_ context.Context, r *collectortrace.ExportTraceServiceRequest) (*collectortrace.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, resource := range r.ResourceSpans {
		for _, scope := range resource.ScopeSpans {
			for _, span := range scope.Spans {
				id := hex.EncodeToString(span.TraceId)
				s.traces[id] = append(s.traces[id], resource)
			}
		}
	}
	return &collectortrace.ExportTraceServiceResponse{}, nil
}

// ServeHTTP is Tempo's API.
func (s *spans) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	batches, ok := s.traces[strings.TrimPrefix(r.URL.Path, "/api/traces/")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	data, err := protojson.Marshal(&trace.TracesData{ResourceSpans: batches})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write(data)
}

func (n network) tempo(t *testing.T) {
	t.Helper()
	s := &spans{traces: map[string][]*trace.ResourceSpans{}}
	n["tempo.tempo:3200"] = serve(t, s)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	collectortrace.RegisterTraceServiceServer(g, s)
	go func() { _ = g.Serve(listener) }()
	t.Cleanup(g.Stop)
	n["tempo.tempo:4317"] = listener.Addr().String()
}

// What the proofs write is understood by a real collector, which hands it on with
// the pipelines and to the addresses that the chart gives it.
func TestThroughTheCollector(t *testing.T) {
	config := configuration(t, "collector", "kalypso-collector-agent", "relay")
	start := func(t *testing.T, configuration string) verify.Config {
		n := network{"loki-gateway.loki:80": serve(t, &lines{})}
		n.tempo(t)
		n.mimir(t)
		n.collector(t, configuration)
		c := verify.Config{Forwarder: n, Patience: 20 * time.Second}
		for _, name := range []string{"mimir", "loki", "tempo", "collector"} {
			c.Components = append(c.Components, catalogued(t, name))
		}
		return c
	}
	t.Run("as the chart has it", func(t *testing.T) {
		c := start(t, config)
		for _, id := range []string{"metrics", "logs", "traces"} {
			passes(t, prove(t, c, id))
		}
	})
	t.Run("a wrong address in the collector is found out", func(t *testing.T) {
		other := strings.Replace(config, "loki-gateway.loki.svc.cluster.local:80/otlp", "loki-gateway.loki.svc.cluster.local:80/otlq", 1)
		if other == config {
			t.Fatal("the chart has another address of Loki")
		}
		c := start(t, other)
		c.Patience = 3 * time.Second
		fails(t, prove(t, c, "logs"), "the collector does not deliver", "kalypsoctl logs collector")
		passes(t, prove(t, c, "traces"))
	})
}
