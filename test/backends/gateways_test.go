package backends

import (
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/verify"
)

// recorder takes everything, has nothing, and remembers what it was asked.
type recorder struct {
	mu    sync.Mutex
	paths []string
}

// ServeHTTP remembers a path.
func (r *recorder) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(r.paths, q.URL.Path) {
		r.paths = append(r.paths, q.URL.Path)
	}
	if q.Method == http.MethodGet {
		http.NotFound(w, q)
	}
}

// location is the head of a block of nginx that hands requests on.
var location = regexp.MustCompile(`(?m)^\s*location (=|\^~)?\s*(\S+) \{\n(?:[ \t]*[^ \t}\n].*\n|[ \t]*\n)*?[ \t]*proxy_pass`)

// What the proofs ask of a gateway is what the gateway of the chart hands on.
func TestGatewaysHandOn(t *testing.T) {
	tests := []struct{ component, configMap, service, proof string }{
		{"loki", "loki-gateway", "loki-gateway.loki:80", "logs"},
		{"mimir", "mimir-gateway-nginx", "mimir-gateway.mimir:80", "metrics"},
	}
	for _, tt := range tests {
		t.Run(tt.component, func(t *testing.T) {
			nginx := configuration(t, tt.component, tt.configMap, "nginx.conf")
			asked := &recorder{}
			prove(t, verify.Config{
				Components: []component.Component{catalogued(t, tt.component)},
				Forwarder:  network{tt.service: serve(t, asked)}, Patience: time.Second,
			}, tt.proof)
			if len(asked.paths) != 2 {
				t.Fatalf("asked for %q, want a way in and a way out", asked.paths)
			}
			for _, path := range asked.paths {
				handed := slices.ContainsFunc(location.FindAllStringSubmatch(nginx, -1), func(m []string) bool {
					return m[2] == path || m[1] != "=" && m[2] != "/" && strings.HasPrefix(path, m[2])
				})
				if !handed {
					t.Errorf("%s is handed on to nobody", path)
				}
			}
		})
	}
}
