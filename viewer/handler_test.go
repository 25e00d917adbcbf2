package viewer_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/exporter/format"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/viewer"
)

func handler(t *testing.T) http.Handler {
	t.Helper()
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CONFIG_HOME", home)
	t.Setenv("PPROF_TMPDIR", home)
	p := &profiler.Profile{Frequency: 100, Duration: time.Second, Host: "larch", Samples: []profiler.Sample{{
		Process: &profiler.Process{PID: 1, Comm: "cart"}, Count: 100,
		Stack: &profiler.Stack{Stop: profiler.StopRoot, Locations: []*profiler.Location{{
			Module: &profiler.Module{Path: "/bin/cart"}, Frames: []profiler.Frame{{Function: "hot_100"}},
		}}},
	}}}
	h, err := viewer.Handler(p, format.PprofProfile(p))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, err := os.ReadDir(home)
		if err != nil || len(left) > 0 {
			t.Errorf("left in the home folder: %v, %v", left, err)
		}
	})
	return h
}

func TestHandler(t *testing.T) {
	h := handler(t)
	for _, c := range []struct {
		name, method, path, host, peer string
		want                           int
		text                           string
	}{
		{"the page", "GET", "/", "localhost:4041", "127.0.0.1:999", 200, "CPU profile of larch"},
		{"the page by address", "GET", "/", "127.0.0.1:4041", "127.0.0.1:999", 200, ""},
		{"the page over IPv6", "GET", "/", "[::1]:4041", "[::1]:999", 200, ""},
		{"pprof's table", "GET", "/pprof/top", "localhost:4041", "127.0.0.1:999", 200, "hot_100"},
		{"pprof's flame graph", "GET", "/pprof/flamegraph", "localhost:4041", "127.0.0.1:999", 200, "hot_100"},
		{"pprof's start leads to its flame graph", "GET", "/pprof/", "localhost:4041", "127.0.0.1:999", 301, ""},
		{"pprof cannot write settings", "GET", "/pprof/saveconfig?config=x", "localhost:4041", "127.0.0.1:999", 404, ""},
		{"pprof shows no file that a profile names", "GET", "/pprof/source?f=hot", "localhost:4041", "127.0.0.1:999", 404, ""},
		{"nothing else is there", "GET", "/etc/passwd", "localhost:4041", "127.0.0.1:999", 404, ""},
		{"nothing is taken", "POST", "/", "localhost:4041", "127.0.0.1:999", 405, ""},
		{"a rebound name gets nothing", "GET", "/", "evil.example:4041", "127.0.0.1:999", 403, "http://localhost"},
		{"a name that only starts well gets nothing", "GET", "/", "localhost.evil.example", "127.0.0.1:999", 403, ""},
		{"a rebound name gets no pprof either", "GET", "/pprof/top", "evil.example", "127.0.0.1:999", 403, ""},
		{"another machine gets nothing", "GET", "/", "localhost:4041", "192.0.2.1:999", 403, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := httptest.NewRequest(c.method, c.path, nil)
			r.Host, r.RemoteAddr = c.host, c.peer
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != c.want {
				t.Errorf("got status %d, want %d", w.Code, c.want)
			}
			if !strings.Contains(w.Body.String(), c.text) {
				t.Errorf("the answer lacks %q", c.text)
			}
			if c.want == 301 && w.Header().Get("Location") != "flamegraph" {
				t.Errorf("leads to %q", w.Header().Get("Location"))
			}
		})
	}
}
