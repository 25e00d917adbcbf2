package telemetry

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// ask gives the status and the text of a handler.
func ask(h http.Handler) (int, string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	return w.Code, w.Body.String()
}

func TestHealthz(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		health := NewHealth()
		check := func(when string, status int, text string) {
			t.Helper()
			gotStatus, gotText := ask(health.Healthz())
			if diff := cmp.Diff(gotText, text); gotStatus != status || diff != "" {
				t.Errorf("%s: status %d, want %d (-got +want):\n%s", when, gotStatus, status, diff)
			}
		}
		check("without stages", 200, "healthy\n")

		sampler := health.Stage("sampler", 10*time.Second)
		exporter := health.Stage("exporter", time.Minute)
		check("begun", 200, "healthy\nexporter    0s ago, limit 1m0s\nsampler     0s ago, limit 10s\n")

		time.Sleep(10 * time.Second)
		check("at its limit", 200, "healthy\nexporter    10s ago, limit 1m0s\nsampler     10s ago, limit 10s\n")

		time.Sleep(2500 * time.Millisecond)
		check("over its limit", 503, "stuck: sampler has made no progress for 13s\nexporter    13s ago, limit 1m0s\nsampler     13s ago, limit 10s\n")

		sampler.Tick()
		time.Sleep(100 * time.Millisecond)
		check("on its way again", 200, "healthy\nexporter    13s ago, limit 1m0s\nsampler     100ms ago, limit 10s\n")

		time.Sleep(time.Minute)
		check("both", 503, "stuck: exporter has made no progress for 1m13s, sampler has made no progress for 1m0s\n"+
			"exporter    1m13s ago, limit 1m0s\nsampler     1m0s ago, limit 10s\n")

		exporter.Tick()
		sampler.End()
		time.Sleep(30 * time.Second)
		check("one has ended", 200, "healthy\nexporter    30s ago, limit 1m0s\n")
	})
}

func TestReadyz(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		time.Sleep(5 * time.Minute)
		ago := func(d time.Duration) time.Time { return time.Now().Add(-d) }
		refused := errors.New("connection refused")
		tests := []struct {
			name   string
			state  Readiness
			status int
			text   string
		}{
			{"nothing yet", Readiness{}, 503, "not ready\nprograms    not attached\nsampling    not begun\n"},
			{"attached is not enough", Readiness{Attached: true}, 503, "not ready\nprograms    attached\nsampling    not begun\n"},
			{"sampling", Readiness{Attached: true, Sampling: begin}, 200, "ready\nprograms    attached\nsampling    for 5m0s\n"},
			{"programs were detached", Readiness{Sampling: begin}, 503, "not ready\nprograms    not attached\nsampling    for 5m0s\n"},
			{"ready before anything was sent", Readiness{Attached: true, Sampling: begin, Backends: []Backend{{Name: "otlp", Endpoint: "pyroscope:4040"}}}, 200,
				"ready\nprograms    attached\nsampling    for 5m0s\nbackend     otlp pyroscope:4040: not tried yet; nothing waits\n"},
			{"the backend takes it", Readiness{Attached: true, Sampling: begin, Backends: []Backend{
				{Name: "otlp", Endpoint: "pyroscope:4040", Tried: ago(4 * time.Second), Delivered: ago(4 * time.Second)}}}, 200,
				"ready\nprograms    attached\nsampling    for 5m0s\nbackend     otlp pyroscope:4040: reachable, delivered 4s ago; nothing waits\n"},
			{"ready while the backend is away", Readiness{Attached: true, Sampling: begin, Backends: []Backend{
				{Name: "otlp", Endpoint: "pyroscope:4040", Tried: ago(time.Second), Err: refused, Delivered: ago(80 * time.Second), Oldest: ago(61 * time.Second)}}}, 200,
				"ready\nprograms    attached\nsampling    for 5m0s\nbackend     otlp pyroscope:4040: last attempt failed 1s ago: connection refused; last delivery 1m20s ago; the oldest window that waits ended 1m1s ago\n"},
			{"ready when the backend never was there", Readiness{Attached: true, Sampling: begin, Backends: []Backend{
				{Name: "otlp", Endpoint: "pyroscope:4040", Tried: ago(time.Second), Err: refused, Oldest: ago(61 * time.Second)},
				{Name: "file", Endpoint: "/var/profiles"}}}, 200,
				"ready\nprograms    attached\nsampling    for 5m0s\nbackend     otlp pyroscope:4040: last attempt failed 1s ago: connection refused; nothing was delivered yet; the oldest window that waits ended 1m1s ago\n" +
					"backend     file /var/profiles: not tried yet; nothing waits\n"},
			{"a backend's words do not steer a terminal", Readiness{Backends: []Backend{
				{Name: "otlp", Endpoint: "h:1", Tried: ago(0), Err: errors.New("\x1b[2Jgo\naway")}}}, 503,
				"not ready\nprograms    not attached\nsampling    not begun\nbackend     otlp h:1: last attempt failed 0s ago: \\x1b[2Jgo\\x0aaway; nothing was delivered yet; nothing waits\n"},
		}
		for _, tt := range tests {
			status, text := ask(Readyz(func() Readiness { return tt.state }))
			if diff := cmp.Diff(text, tt.text); status != tt.status || diff != "" {
				t.Errorf("%s: status %d, want %d (-got +want):\n%s", tt.name, status, tt.status, diff)
			}
		}
	})
}

func TestHealthIsOnlyRead(t *testing.T) {
	w := httptest.NewRecorder()
	NewHealth().Healthz().ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/healthz", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("status %d, want %d", w.Code, http.StatusMethodNotAllowed)
	}
}

func BenchmarkTick(b *testing.B) {
	stage := NewHealth().Stage("sampler", time.Second)
	b.ReportAllocs()
	for b.Loop() {
		stage.Tick()
	}
}
