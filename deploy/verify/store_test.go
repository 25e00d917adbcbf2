package verify

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kalypso-dev/kalypso/deploy/component"
)

// The servers here keep what they are sent and answer as the stores do, or lose
// it, or refuse it. The proofs are tried on real servers in test/backends.

// addresses are what a test's Services answer at.
type addresses map[string]string

// Forward gives the address of a Service that the test has.
func (a addresses) Forward(_ context.Context, namespace, service string, port int) (string, func(), error) {
	addr, ok := a[fmt.Sprintf("%s.%s:%d", service, namespace, port)]
	if !ok {
		return "", nil, fmt.Errorf("no pod of Service %s in namespace %s is ready", service, namespace)
	}
	return addr, func() {}, nil
}

// serve gives the address of a server that ends with the test.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// stack are the components with these names.
func stack(t *testing.T, names ...string) []component.Component {
	t.Helper()
	var out []component.Component
	for _, c := range component.All() {
		if slices.Contains(names, c.Name) {
			out = append(out, c)
		}
	}
	if len(out) != len(names) {
		t.Fatalf("components %v: found %d", names, len(out))
	}
	return out
}

// store keeps lines that come over OTLP and answers as Loki does.
type store struct {
	mu    sync.Mutex
	lines []string

	loses   bool
	refuses int // how many writes are answered 503 before the first is taken
	rejects string
}

// write takes a message of OTLP logs.
func (s *store) write(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuses > 0 {
		s.refuses--
		http.Error(w, "empty ring", http.StatusServiceUnavailable)
		return
	}
	if s.rejects != "" {
		fmt.Fprintf(w, `{"partialSuccess":{"rejectedLogRecords":"1","errorMessage":%q}}`, s.rejects)
		return
	}
	var message struct {
		ResourceLogs []struct {
			ScopeLogs []struct {
				LogRecords []struct {
					Body struct{ StringValue string }
				}
			}
		}
	}
	body, err := io.ReadAll(r.Body)
	if err == nil {
		err = json.Unmarshal(body, &message)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for _, resource := range message.ResourceLogs {
		for _, scope := range resource.ScopeLogs {
			for _, record := range scope.LogRecords {
				if !s.loses {
					s.lines = append(s.lines, record.Body.StringValue)
				}
			}
		}
	}
	fmt.Fprint(w, `{"partialSuccess":{}}`)
}

// read answers a query of the form {service_name="…"} |= "…".
func (s *store) read(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, want, ok := strings.Cut(r.URL.Query().Get("query"), `|= "`)
	if !ok {
		http.Error(w, "parse error", http.StatusBadRequest)
		return
	}
	values := [][]string{}
	for _, line := range s.lines {
		if strings.Contains(line, strings.TrimSuffix(want, `"`)) {
			values = append(values, []string{"1", line})
		}
	}
	result := []object{}
	if len(values) > 0 {
		result = append(result, object{"stream": object{"service_name": serviceName}, "values": values})
	}
	_ = json.NewEncoder(w).Encode(object{"status": "success", "data": object{"resultType": "streams", "result": result}})
}

// ServeHTTP is Loki's gateway.
func (s *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/otlp/v1/logs":
		s.write(w, r)
	case "/loki/api/v1/query_range":
		s.read(w, r)
	default:
		http.NotFound(w, r)
	}
}

// adminSecret is Grafana's.
func adminSecret(password string) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "grafana", Name: "kalypso-grafana-admin"},
		Data:       map[string][]byte{"admin-user": []byte("admin"), "admin-password": []byte(password)},
	}
}
