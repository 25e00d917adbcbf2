package telemetry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// samples is a counter with a value that the test sets.
func samples(value float64) Metric {
	return Metric{
		Name: "kalypso_agent_samples_total", Unit: "{sample}", Kind: Counter, Description: "Samples taken.",
		Read: func(observe Observe) { observe(value) },
	}
}

func start(t testing.TB, cfg Config, metrics ...Metric) *Telemetry {
	t.Helper()
	tel, err := New(context.Background(), cfg, metrics)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tel.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return tel
}

func scrape(t testing.TB, tel *Telemetry) string {
	t.Helper()
	w := httptest.NewRecorder()
	tel.Page().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

// withoutOwn leaves out the lines of the metrics that every agent has.
func withoutOwn(page string) string {
	var kept strings.Builder
	for line := range strings.Lines(page) {
		if !strings.Contains(line, "kalypso_agent_metrics_pushes_") && !strings.Contains(line, "kalypso_agent_log_") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

func TestPage(t *testing.T) {
	tel := start(t, Config{Version: "v1.2.3", Host: "node-7"},
		Metric{Name: "kalypso_agent_samples_total", Unit: "{sample}", Kind: Counter, Description: "Samples taken.",
			Read: func(observe Observe) { observe(1 << 40) }},
		Metric{Name: "kalypso_agent_stacks_total", Unit: "{sample}", Kind: Counter, Labels: []string{"stop", "arch"}, Description: "Samples by how the walk ended.",
			Read: func(observe Observe) {
				observe(41, "root", "x86")
				observe(1, "no \"row\"\n", "x86")
			}},
		Metric{Name: "kalypso_agent_spool_bytes", Unit: "By", Kind: Gauge, Description: "Bytes that wait on disk.",
			Read: func(observe Observe) { observe(4096) }},
		Metric{Name: "kalypso_agent_cpu_seconds_total", Unit: "s", Kind: Counter, Description: "CPU time of the agent.",
			Read: func(observe Observe) { observe(1.25) }},
		Metric{Name: "kalypso_agent_cache_used_ratio", Unit: "1", Kind: Gauge, Description: "How full the cache is.",
			Read: func(observe Observe) { observe(0.5) }},
	)
	want := `# HELP kalypso_agent_cache_used_ratio How full the cache is.
# TYPE kalypso_agent_cache_used_ratio gauge
kalypso_agent_cache_used_ratio 0.5
# HELP kalypso_agent_cpu_seconds_total CPU time of the agent.
# TYPE kalypso_agent_cpu_seconds_total counter
kalypso_agent_cpu_seconds_total 1.25
# HELP kalypso_agent_samples_total Samples taken.
# TYPE kalypso_agent_samples_total counter
kalypso_agent_samples_total 1.099511627776e+12
# HELP kalypso_agent_spool_bytes Bytes that wait on disk.
# TYPE kalypso_agent_spool_bytes gauge
kalypso_agent_spool_bytes 4096
# HELP kalypso_agent_stacks_total Samples by how the walk ended.
# TYPE kalypso_agent_stacks_total counter
kalypso_agent_stacks_total{arch="x86",stop="no \"row\"\n"} 1
kalypso_agent_stacks_total{arch="x86",stop="root"} 41
# HELP target_info Target metadata
# TYPE target_info gauge
target_info{host_name="node-7",service_instance_id="node-7",service_name="kalypso-agent",service_version="v1.2.3"} 1
`
	if diff := cmp.Diff(withoutOwn(scrape(t, tel)), want); diff != "" {
		t.Errorf("page (-got +want):\n%s", diff)
	}
}

// brokenWriter is a connection that cannot be written to.
type brokenWriter struct {
	*httptest.ResponseRecorder
	err error
}

func (w brokenWriter) Write([]byte) (int, error) { return 0, w.err }

func TestPagesThatAreNotWritten(t *testing.T) {
	tests := []struct {
		name, want string
		err        error
	}{
		{"a reader that went away is no warning", "level=DEBUG msg=\"a reader of the metrics went away\"",
			&net.OpError{Op: "write", Net: "tcp", Err: os.NewSyscallError("write", syscall.EPIPE)}},
		{"nor is one that is too slow", "level=DEBUG msg=\"a reader of the metrics went away\"",
			&net.OpError{Op: "write", Net: "tcp", Err: os.ErrDeadlineExceeded}},
		{"what else goes wrong is", "level=WARN msg=\"metrics are not whole\"", errors.New("no such thing")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			log := NewLogger(&out, slog.LevelDebug, Text)
			defer log.Close()
			tel := start(t, Config{Log: log}, samples(1))
			tel.Page().ServeHTTP(brokenWriter{httptest.NewRecorder(), tt.err}, httptest.NewRequest(http.MethodGet, "/metrics", nil))
			got := lines(out.String())
			if len(got) == 0 || slices.ContainsFunc(got, func(line string) bool { return !strings.HasPrefix(line, tt.want) }) {
				t.Errorf("got %q, want %s", got, tt.want)
			}
		})
	}
}

func TestValuesAreReadWhenAskedFor(t *testing.T) {
	reads, snapshots := 0, 0
	metric := samples(0)
	metric.Read = func(observe Observe) {
		if snapshots != reads+1 {
			t.Errorf("read %d comes after %d snapshots", reads+1, snapshots)
		}
		reads++
		observe(float64(reads))
	}
	tel := start(t, Config{Snapshot: func() { snapshots++ }}, metric)
	if reads != 0 {
		t.Errorf("read %d times before anybody asked", reads)
	}
	for want := 1; want <= 3; want++ {
		if line := fmt.Sprintf("\nkalypso_agent_samples_total %d\n", want); !strings.Contains(scrape(t, tel), line) {
			t.Errorf("scrape %d has no line %q", want, line)
		}
	}
}

func TestSeriesThatEndLeaveThePage(t *testing.T) {
	values := []string{"a", "b"}
	metric := Metric{Name: "kalypso_agent_waiting", Kind: Gauge, Labels: []string{"backend"}, Description: "x.",
		Read: func(observe Observe) {
			for i, v := range values {
				observe(float64(i), v)
			}
		}}
	tel := start(t, Config{}, metric)
	if page := scrape(t, tel); !strings.Contains(page, `{backend="b"} 1`) {
		t.Errorf("no series b:\n%s", page)
	}
	values = values[:1]
	if page := scrape(t, tel); strings.Contains(page, `backend="b"`) || !strings.Contains(page, `backend="a"`) {
		t.Errorf("want only series a:\n%s", page)
	}
}

// TestSeriesAreBounded: an owner that lets foreign words become labels costs
// neither memory nor a page without end.
func TestSeriesAreBounded(t *testing.T) {
	round := 0
	metric := Metric{Name: "kalypso_agent_modules", Kind: Gauge, Labels: []string{"module"}, Description: "x.",
		Read: func(observe Observe) {
			for i := range 3 * seriesLimit {
				observe(1, fmt.Sprintf("lib%d-%d.so", round, i))
			}
			round++
		}}
	tel := start(t, Config{}, metric)
	for range 3 {
		page := scrape(t, tel)
		if n := strings.Count(page, "\nkalypso_agent_modules{"); n > seriesLimit {
			t.Errorf("%d series, want at most %d", n, seriesLimit)
		}
		if !strings.Contains(page, `otel_metric_overflow="true"`) {
			t.Error("the page does not say that series were left out")
		}
		for _, s := range tel.sources {
			if len(s.known) > seriesLimit {
				t.Errorf("%d attribute sets kept of %s", len(s.known), s.metric.Name)
			}
		}
	}
}

func TestWrongNumberOfLabels(t *testing.T) {
	var out bytes.Buffer
	log := NewLogger(&out, nil, Text)
	metric := Metric{Name: "kalypso_agent_waiting", Kind: Gauge, Labels: []string{"backend"}, Description: "x.",
		Read: func(observe Observe) { observe(1); observe(2, "b") }}
	page := scrape(t, start(t, Config{Log: log}, metric))
	log.Close()
	if !strings.Contains(page, "kalypso_agent_waiting{backend=\"b\"} 2\n") || strings.Contains(page, "kalypso_agent_waiting 1") {
		t.Errorf("want the value with a label only:\n%s", page)
	}
	if !strings.Contains(out.String(), "metric=kalypso_agent_waiting") {
		t.Errorf("the log does not name the metric: %q", &out)
	}
}

func TestConcurrentScrapes(t *testing.T) {
	inside := 0 // not atomic: the race detector is part of the test
	metric := samples(0)
	metric.Read = func(observe Observe) { inside++; observe(float64(inside)) }
	tel := start(t, Config{}, metric)
	server := httptest.NewServer(tel.Page())
	defer server.Close()
	var group sync.WaitGroup
	for range scrapesAtOnce {
		group.Go(func() {
			for range 20 {
				resp, err := server.Client().Get(server.URL)
				if err != nil {
					t.Error(err)
					return
				}
				body, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if err != nil || !bytes.Contains(body, []byte("kalypso_agent_samples_total ")) {
					t.Errorf("status %s, %v", resp.Status, err)
				}
			}
		})
	}
	group.Wait()
}

func TestOwnMetrics(t *testing.T) {
	log := NewLogger(io.Discard, nil, Text)
	defer log.Close()
	health := NewHealth()
	health.Stage("sampler", 1)
	tel := start(t, Config{Log: log, Health: health})
	log.Info("begun")
	log.Warn("slow")
	log.Warn("slow")
	page := scrape(t, tel)
	for _, want := range []string{
		`kalypso_agent_log_records_total{level="info"} 1`, `kalypso_agent_log_records_total{level="warn"} 2`,
		`kalypso_agent_log_records_folded_total 1`, `kalypso_agent_stage_progress_age_seconds{stage="sampler"} `,
		`kalypso_agent_metrics_pushes_total{outcome="failed"} 0`,
	} {
		if !strings.Contains(page, want) {
			t.Errorf("no %s in\n%s", want, page)
		}
	}
}

func TestMetricsThatAreRefused(t *testing.T) {
	read := func(Observe) {}
	tests := []struct {
		name    string
		metrics []Metric
		want    string
	}{
		{"capitals", []Metric{{Name: "Samples_total", Description: "x", Read: read}}, "lower-case"},
		{"no description", []Metric{{Name: "a_total", Read: read}}, "no description"},
		{"nobody to read from", []Metric{{Name: "a_total", Description: "x"}}, "read it from"},
		{"counter without _total", []Metric{{Name: "a", Description: "x", Read: read}}, "must end in _total"},
		{"gauge with _total", []Metric{{Name: "a_total", Kind: Gauge, Description: "x", Read: read}}, "must not end in _total"},
		{"unknown unit", []Metric{{Name: "a_total", Unit: "KiB", Description: "x", Read: read}}, `"KiB" is none of`},
		{"unit that the name does not have", []Metric{{Name: "a_total", Unit: "By", Description: "x", Read: read}}, "go together"},
		{"name with a unit that is not given", []Metric{{Name: "a_seconds", Kind: Gauge, Description: "x", Read: read}}, "go together"},
		{"label twice", []Metric{{Name: "a_total", Labels: []string{"x", "x"}, Description: "x", Read: read}}, `label "x"`},
		{"name twice", []Metric{samples(1), samples(2)}, "two metrics kalypso_agent_samples_total"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(context.Background(), Config{}, tt.metrics)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
		})
	}
}

// BenchmarkScrape is one scrape of as many metrics as an agent has: 60, with
// 180 series.
func BenchmarkScrape(b *testing.B) {
	var metrics []Metric
	for i := range 60 {
		m := Metric{Name: fmt.Sprintf("kalypso_agent_thing%d_total", i), Kind: Counter, Description: "Things of this kind.",
			Read: func(observe Observe) { observe(12345) }}
		if i%6 == 0 {
			m.Labels = []string{"reason"}
			m.Read = func(observe Observe) {
				for _, reason := range []string{"root", "truncated", "no_mapping", "no_table", "no_row", "unsupported",
					"bad_read", "bad_frame", "no_registers", "compat", "no_user", "gone", "late"} {
					observe(54321, reason)
				}
			}
		}
		metrics = append(metrics, m)
	}
	tel := start(b, Config{}, metrics...)
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		tel.Page().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		if w.Body.Len() < 10_000 {
			b.Fatal(w.Body)
		}
	}
}
