package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/exporter/format"
	"github.com/kalypso-dev/kalypso/profiler"
)

// agent stands in for the kernel: it gives what the test says that it samples.
type agent struct {
	mu       sync.Mutex
	segments []Segment
	asked    []string
	running  int
	gate     chan struct{} // if set, a recording waits for it
	dump     *Dump         // of PID 7
	err      error
}

func (a *agent) Record(ctx context.Context, d time.Duration, hz int, _ Filter) ([]Segment, error) {
	a.mu.Lock()
	a.running++
	a.asked = append(a.asked, fmt.Sprintf("%v at %d Hz", d, hz))
	gate := a.gate
	a.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.running--
	return a.segments, a.err
}

func (a *agent) recordings() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.running
}

func (a *agent) Status() Status {
	st := Status{
		Version: "v1", Host: "larch<", Event: "cpu-clock", Started: begin(), Frequency: 49, WantedFrequency: 97,
		Cost: Cost{CPU: 2 * time.Second, BPF: time.Second, Share: 0.005, Budget: 0.01, RSSBytes: 50, MapBytes: 60, MemoryBudget: 200},
	}
	st.Quality = profiler.Quality{Samples: 100, Lost: 3, Frames: 50, FramesNamed: 40, UnnamedByModule: map[string]uint64{}}
	st.Quality.Stops[profiler.StopRoot], st.Quality.Stops[profiler.StopTruncated] = 90, 10
	for i := range 150 {
		st.Quality.UnnamedByModule[fmt.Sprintf("/lib/%03d.so", i)] = uint64(i)
	}
	return st
}

func (a *agent) Dump(_ context.Context, pid profiler.PID) (*Dump, error) {
	if pid != 7 {
		return nil, &profiler.Fault{What: fmt.Sprintf("cannot dump PID %d", pid), Why: syscall.ESRCH, Fix: "pgrep -l NAME lists PIDs"}
	}
	return a.dump, a.err
}

// served is a server with half a minute of history.
func served(t *testing.T) (*agent, *History, http.Handler) {
	t.Helper()
	h := NewHistory(DefaultKeep, 1<<20)
	for n := range 3 {
		add(t, h, segment(n, 100,
			workload("cart", 1, map[string]uint64{"price": 600, "walk": 200, "[kernel]": 200}),
			workload("shop", 2, map[string]uint64{"sell": 1000})))
	}
	a := &agent{}
	return a, h, NewServer(Config{Source: a, History: h, Metrics: says("metrics"), Healthz: says("healthy"), Readyz: says("ready")})
}

func says(text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) })
}

// get asks as curl on this machine does.
func get(h http.Handler, path string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.Host, r.RemoteAddr = "127.0.0.1:4041", "127.0.0.1:999"
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func getJSON[T any](t *testing.T, h http.Handler, path string) *T {
	t.Helper()
	w := get(h, path)
	if w.Code != http.StatusOK {
		t.Fatalf("%s: %d\n%s", path, w.Code, w.Body)
	}
	out := new(T)
	d := json.NewDecoder(w.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(out); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return out
}

func TestWhoIsAnswered(t *testing.T) {
	_, history, local := served(t)
	remote := NewServer(Config{Source: &agent{}, History: history, Metrics: says("metrics"), Healthz: says("healthy"), Readyz: says("ready"), AllowRemote: true})
	const here, elsewhere = "127.0.0.1:999", "192.0.2.1:999"
	for _, c := range []struct {
		name                     string
		h                        http.Handler
		method, path, host, peer string
		headers                  map[string]string
		want                     int
	}{
		{"a program of this machine", local, "GET", "/v1/top", "127.0.0.1:4041", here, nil, 200},
		{"over IPv6", local, "GET", "/v1/top", "[::1]:4041", "[::1]:999", nil, 200},
		{"by IPv4 in IPv6", local, "GET", "/v1/top", "localhost:4041", "[::ffff:127.0.0.1]:999", nil, 200},
		{"another machine", local, "GET", "/v1/top", "localhost:4041", elsewhere, nil, 403},
		{"another machine, for metrics", local, "GET", "/metrics", "10.0.0.7:4041", elsewhere, nil, 403},
		{"another machine, for its health", local, "GET", "/healthz", "10.0.0.7:4041", elsewhere, nil, 403},
		{"a rebound name", local, "GET", "/v1/top", "evil.example:4041", here, nil, 403},
		{"a rebound name, for the page", local, "GET", "/", "evil.example", here, nil, 403},
		{"a name that only begins well", local, "GET", "/v1/top", "localhost.evil.example", here, nil, 403},
		{"no host", local, "GET", "/v1/top", "", here, nil, 403},
		{"remote allowed: metrics", remote, "GET", "/metrics", "10.0.0.7:4041", elsewhere, nil, 200},
		{"remote allowed: health", remote, "GET", "/healthz", "agent.example", elsewhere, nil, 200},
		{"remote allowed: readiness", remote, "GET", "/readyz", "agent.example", elsewhere, nil, 200},
		{"remote allowed: no profiles", remote, "GET", "/v1/profile", "10.0.0.7:4041", elsewhere, nil, 403},
		{"remote allowed: no page", remote, "GET", "/", "10.0.0.7:4041", elsewhere, nil, 403},
		{"remote allowed: no path that begins so", remote, "GET", "/metrics/../v1/top", "10.0.0.7:4041", elsewhere, nil, 403},
		{"remote allowed: still no rebound name", remote, "GET", "/v1/top", "evil.example", here, nil, 403},
		{"a browser, typed", local, "GET", "/", "localhost:4041", here, map[string]string{"Sec-Fetch-Site": "none"}, 200},
		{"a browser, from the page", local, "GET", "/?seconds=60", "localhost:4041", here, map[string]string{"Sec-Fetch-Site": "same-origin"}, 200},
		{"a browser, for another origin", local, "GET", "/v1/profile", "localhost:4041", here, map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		{"a browser, for another port of localhost", local, "GET", "/v1/top", "localhost:4041", here, map[string]string{"Sec-Fetch-Site": "same-site"}, 403},
		{"a browser, for another origin, for metrics", remote, "GET", "/metrics", "agent.example", elsewhere, map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		{"an old browser's script", local, "GET", "/v1/top", "localhost:4041", here, map[string]string{"Origin": "https://evil.example"}, 403},
		{"an old browser's script of a file", local, "GET", "/v1/top", "localhost:4041", here, map[string]string{"Origin": "null"}, 403},
		{"an old browser's script of ours", local, "GET", "/v1/top", "localhost:4041", here, map[string]string{"Origin": "http://localhost:4041"}, 200},
		{"POST", local, "POST", "/v1/top", "localhost:4041", here, nil, 405},
		{"DELETE of metrics", local, "DELETE", "/metrics", "localhost:4041", here, nil, 405},
		{"HEAD", local, "HEAD", "/healthz", "localhost:4041", here, nil, 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := httptest.NewRequest(c.method, c.path, nil)
			r.Host, r.RemoteAddr = c.host, c.peer
			for k, v := range c.headers {
				r.Header.Set(k, v)
			}
			w := httptest.NewRecorder()
			c.h.ServeHTTP(w, r)
			if w.Code != c.want {
				t.Errorf("got status %d, want %d\n%s", w.Code, c.want, w.Body)
			}
			if w.Header().Get("Cross-Origin-Resource-Policy") != "same-origin" || w.Header().Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("headers %v", w.Header())
			}
			if c.want != 200 && !strings.Contains(w.Body.String(), `"schema": "kalypso.agent.error/v1"`) {
				t.Errorf("answered %s", w.Body)
			}
			if c.want == 405 && w.Header().Get("Allow") == "" {
				t.Error("the answer does not say what is allowed")
			}
		})
	}
	r := httptest.NewRequest(http.MethodGet, "/v1/top", strings.NewReader("x"))
	r.Host, r.RemoteAddr = "localhost", here
	w := httptest.NewRecorder()
	if local.ServeHTTP(w, r); w.Code != http.StatusBadRequest {
		t.Errorf("a request with a body: status %d", w.Code)
	}
}

func TestWhatIsWrongWithARequest(t *testing.T) {
	a, h, s := served(t)
	for path, want := range map[string]struct {
		status int
		text   string
	}{
		"/v1/nothing":                           {404, `there is no /v1/nothing`},
		"/v1/top?second=30":                     {400, `there is no parameter \"second\"`},
		"/v1/top?by=colour":                     {400, `by takes function, process, service, module`},
		"/v1/top?by=function&by=module":         {400, `the parameter by is given 2 times`},
		"/v1/top?limit=0":                       {400, `limit takes 1 to 10000`},
		"/v1/top?seconds=-1":                    {400, `seconds cannot be \"-1\"`},
		"/v1/top?seconds=NaN":                   {400, `seconds cannot be \"NaN\"`},
		"/v1/top?seconds=1e9":                   {400, `up to 3600`},
		"/v1/top?seconds=1&from=-5m":            {400, `from and seconds exclude each other`},
		"/v1/top?from=yesterday":                {400, `from cannot be \"yesterday\"`},
		"/v1/top?from=now&to=-5m":               {400, `from is not before to`},
		"/v1/top?to=-5m":                        {400, `to is given, and not from when`},
		"/v1/top?pid=x":                         {400, `pid cannot be \"x\"`},
		"/v1/top?x=%zz":                         {400, `cannot be read`},
		"/v1/top?from=-5m":                      {404, `what is kept goes from 2020-11-26T12:00:00Z to 2020-11-26T12:00:30Z`},
		"/v1/profile?format=svg":                {400, `format takes pprof, folded, html, speedscope`},
		"/v1/profile?seconds=61":                {400, `up to 60`},
		"/v1/profile?hz=1001":                   {400, `hz takes 1 to 1000`},
		"/v1/profile?from=-5m&hz=97":            {400, `what was recorded has the rate that it had`},
		"/v1/quality?seconds=1":                 {400, `there is no parameter`},
		"/v1/dump":                              {400, `which process`},
		"/v1/dump?pid=8":                        {404, `no such process`},
		"/pprof/from=1&to=2/flamegraph":         {404, `nothing is kept of that time`},
		"/pprof/seconds=60/graph":               {404, `an agent starts no programs`},
		"/pprof/seconds=60/source?f=price":      {404, ``},
		"/pprof/seconds=60/saveconfig?config=x": {404, ``},
	} {
		w := get(s, path)
		if w.Code != want.status || !strings.Contains(w.Body.String(), want.text) {
			t.Errorf("%s: %d %s, want %d and %q", path, w.Code, w.Body, want.status, want.text)
		}
	}
	a.err = errors.Join(ErrBusy, errors.New("it is behind"))
	w := get(s, "/v1/profile?seconds=1")
	if w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") == "" || !strings.Contains(w.Body.String(), `"busy: it is behind"`) {
		t.Errorf("a busy source: %d %v %s", w.Code, w.Header(), w.Body)
	}
	a.err = errors.New("the kernel is gone")
	if w := get(s, "/v1/profile?seconds=1"); w.Code != http.StatusInternalServerError || !strings.Contains(w.Body.String(), "the kernel is gone") {
		t.Errorf("a broken source: %d %s", w.Code, w.Body)
	}
	h.SetBudget(0)
	if w := get(s, "/v1/top"); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "its memory budget is used up") {
		t.Errorf("without a budget: %d %s", w.Code, w.Body)
	}
	off := NewServer(Config{Source: a, History: NewHistory(0, 1<<20)})
	if w := get(off, "/v1/top"); w.Code != http.StatusNotFound || !strings.Contains(w.Body.String(), "it was started so") {
		t.Errorf("without history: %d %s", w.Code, w.Body)
	}
	s = NewServer(Config{Source: a, History: NewHistory(DefaultKeep, 1<<20)})
	if w := get(s, "/v1/top"); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "there is no profile yet") {
		t.Errorf("before the first window: %d %s", w.Code, w.Body)
	}
	if w := get(s, "/"); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "larch&lt; samples at 49 Hz") {
		t.Errorf("the page without history: %d %s", w.Code, w.Body)
	}
}

func TestTopByFunction(t *testing.T) {
	_, _, s := served(t)
	got := getJSON[Top](t, s, "/v1/top?limit=3")
	want := &Top{
		Schema: "kalypso.agent.top/v1", By: ByFunction, More: 3,
		Span: Span{From: begin(), To: begin().Add(30 * time.Second), Seconds: 30, Host: "larch", Event: "cpu-clock", Frequency: 100, Lowest: 100, Samples: 6000, Cores: 2, Processes: 2},
		Rows: []TopRow{
			{Name: "sell", Kind: "native", Module: "shop", SelfSamples: 3000, TotalSamples: 3000, SelfPercent: 50, TotalPercent: 50, SelfCores: 1, TotalCores: 1},
			{Name: "price", Kind: "native", Module: "cart", SelfSamples: 1800, TotalSamples: 1800, SelfPercent: 30, TotalPercent: 30, SelfCores: 0.6, TotalCores: 0.6},
			{Name: "ksys_read", Kind: "kernel", SelfSamples: 600, TotalSamples: 600, SelfPercent: 10, TotalPercent: 10, SelfCores: 0.2, TotalCores: 0.2},
		},
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}

func TestTopByOtherThings(t *testing.T) {
	_, _, s := served(t)
	row := func(name string, self, total float64) TopRow {
		return TopRow{
			Name: name, SelfSamples: uint64(self * 60), TotalSamples: uint64(total * 60),
			SelfPercent: self, TotalPercent: total, SelfCores: self / 50, TotalCores: total / 50,
		}
	}
	cart, shop := row("cart", 50, 50), row("shop", 50, 50)
	cart.PID, cart.Service, shop.PID, shop.Service = 1, "cart", 2, "shop"
	for path, want := range map[string][]TopRow{
		"/v1/top?by=process": {cart, shop},
		"/v1/top?by=service": {row("cart", 50, 50), row("shop", 50, 50)},
		"/v1/top?by=module":  {row("/usr/bin/shop", 50, 50), row("/usr/bin/cart", 40, 50), row("[kernel]", 10, 10)},
		"/v1/top?by=service&from=1606392000&to=1606392010": {row2("cart"), row2("shop")},
	} {
		if diff := cmp.Diff(getJSON[Top](t, s, path).Rows, want); diff != "" {
			t.Errorf("%s (-got +want):\n%s", path, diff)
		}
	}
	if got := getJSON[Top](t, s, "/v1/top?service=cart&by=function"); got.Samples != 3000 || got.Cores != 1 || got.Processes != 1 || got.Rows[0].SelfPercent != 60 {
		t.Errorf("of one service: %+v", got)
	}
	if got := getJSON[Top](t, s, "/v1/top?service=none"); got.Samples != 0 || len(got.Rows) != 0 || got.Seconds != 30 {
		t.Errorf("of a service that does not run: %+v", got)
	}
}

// row2 is a service that had all of one CPU for 10 s.
func row2(name string) TopRow {
	return TopRow{Name: name, SelfSamples: 1000, TotalSamples: 1000, SelfPercent: 50, TotalPercent: 50, SelfCores: 1, TotalCores: 1}
}

func TestTopWhereTheRateFell(t *testing.T) {
	h := NewHistory(DefaultKeep, 1<<20)
	add(t, h, segment(0, 100, workload("cart", 1, map[string]uint64{"price": 1000})), segment(1, 50, workload("shop", 2, map[string]uint64{"sell": 500})))
	s := NewServer(Config{Source: &agent{}, History: h})
	for _, by := range []By{ByFunction, ByProcess, ByService, ByModule} {
		got := getJSON[Top](t, s, "/v1/top?by="+string(by))
		if got.Frequency != 100 || got.Lowest != 50 || got.Cores != 1 || len(got.Rows) < 2 || got.Rows[0].SelfCores != 0.5 || got.Rows[1].SelfCores != 0.5 {
			t.Errorf("by %s: %+v, want half a core each", by, got)
		}
	}
	for _, p := range getJSON[Processes](t, s, "/v1/processes").List {
		if p.Cores != 0.5 {
			t.Errorf("%+v, want half a core", p)
		}
	}
}

func TestProcesses(t *testing.T) {
	_, _, s := served(t)
	got := getJSON[Processes](t, s, "/v1/processes")
	want := []Process{
		{PID: 1, Comm: "cart", Exe: "/usr/bin/cart", Cgroup: "/system.slice/cart.service", Service: "cart", Samples: 3000, Cores: 1},
		{PID: 2, Comm: "shop", Exe: "/usr/bin/shop", Cgroup: "/system.slice/shop.service", Service: "shop", Samples: 3000, Cores: 1},
	}
	if diff := cmp.Diff(got.List, want); diff != "" || got.Schema != "kalypso.agent.processes/v1" {
		t.Errorf("%s (-got +want):\n%s", got.Schema, diff)
	}
}

func TestAllProcesses(t *testing.T) {
	a, h, s := served(t)
	if got := getJSON[Processes](t, s, "/v1/processes?of=all"); len(got.List) != 2 { // nobody tells of the others
		t.Errorf("%+v", got.List)
	}
	running := func() ([]Running, error) {
		shop := workload("shop", 0, nil).Workload
		return []Running{
			{profiler.Process{PID: 30, Comm: "waits", Exe: "/usr/bin/waits", Cgroup: "/a"}, shop}, {profiler.Process{PID: 1, Comm: "cart"}, shop},
			{profiler.Process{PID: 4, Comm: "other"}, nil},
		}, nil
	}
	names := func(s http.Handler, query string) (out []string) {
		for _, p := range getJSON[Processes](t, s, "/v1/processes?of=all"+query).List {
			out = append(out, fmt.Sprintf("%d %s %s", p.PID, p.Comm, p.Service))
		}
		return out
	}
	s = NewServer(Config{Source: a, History: h, Running: running})
	fresh := NewServer(Config{Source: a, History: NewHistory(DefaultKeep, 1<<20), Running: running})
	for name, got := range map[string][2][]string{
		"the busiest come first, the others by PID":  {names(s, ""), {"1 cart cart", "2 shop shop", "4 other ", "30 waits shop"}},
		"filters are for all":                        {names(s, "&service=shop"), {"2 shop shop", "1 cart shop", "30 waits shop"}},
		"by cgroup":                                  {names(s, "&cgroup=/a"), {"30 waits shop"}},
		"what runs is there before anything is kept": {names(fresh, "&service=shop"), {"1 cart shop", "30 waits shop"}},
	} {
		if diff := cmp.Diff(got[0], got[1]); diff != "" {
			t.Errorf("%s (-got +want):\n%s", name, diff)
		}
	}
}

func TestQuality(t *testing.T) {
	_, _, s := served(t)
	got := getJSON[Quality](t, s, "/v1/quality")
	if len(got.UnnamedByModule) != 100 || got.UnnamedByModule["/lib/149.so"] != 149 || got.UnnamedByModule["/lib/049.so"] != 0 {
		t.Errorf("unnamed: %v", got.UnnamedByModule)
	}
	got.UnnamedByModule = nil
	if got.History.Bytes == 0 || got.History.Segments != 3 {
		t.Errorf("history %+v", got.History)
	}
	got.History = HistoryStats{}
	want := &Quality{
		Schema: "kalypso.agent.quality/v1", Version: "v1", Host: "larch<", Event: "cpu-clock", Started: begin(), Frequency: 49, WantedFrequency: 97,
		Samples: 100, Lost: 3, StacksComplete: 90, StacksByReason: map[string]uint64{"root": 90, "truncated": 10}, Frames: 50, FramesNamed: 40,
		Rates: []Rate{{From: begin(), To: begin().Add(30 * time.Second), Frequency: 100, Samples: 6000}},
		Cost:  CostReport{CPUSeconds: 2, BPFSeconds: 1, CPUPercent: 0.5, CPUBudget: 1, RSSBytes: 50, MapBytes: 60, MemoryBudget: 200},
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}

func TestProfileOfTheHistory(t *testing.T) {
	_, _, s := served(t)
	from := fmt.Sprintf("from=%d&to=%d", begin().Unix(), begin().Add(20*time.Second).Unix())
	for kind, want := range map[string]string{
		"folded": "\ncart;main;price 1200\n", "html": "<!doctype html>", "speedscope": `"endValue":40000000000`,
	} {
		w := get(s, "/v1/profile?format="+kind+"&"+from)
		if w.Code != http.StatusOK || !strings.Contains("\n"+w.Body.String(), want) && kind != "folded" {
			t.Errorf("%s: %d\n%s", kind, w.Code, w.Body)
		}
		if kind == "folded" && !strings.Contains(w.Body.String(), "/system.slice/cart.service;cart;main;price 1200\n") {
			t.Errorf("folded:\n%s", w.Body)
		}
		if got := w.Header().Get("Kalypso-From"); got != "2020-11-26T12:00:00Z" {
			t.Errorf("%s: from %q", kind, got)
		}
	}
	w := get(s, "/v1/profile?"+from)
	profiles, err := format.ReadProfiles(w.Body)
	if err != nil || len(profiles) != 2 {
		t.Fatalf("%d profiles, %v", len(profiles), err)
	}
	if p := profiles[0]; service(p) != "cart" || format.Samples(p) != 2000 || p.Duration != 20*time.Second || p.Quality.Stops[profiler.StopRoot] != 2000 {
		t.Errorf("%s with %d samples in %v", service(p), format.Samples(p), p.Duration)
	}
	if got := w.Header().Get("Content-Disposition"); got != "attachment; filename=profile.pb.gz" {
		t.Errorf("a browser gets %q", got)
	}
}

func TestProfileFromNowOn(t *testing.T) {
	a, _, s := served(t)
	one, two := segment(0, 97, workload("cart", 1, map[string]uint64{"price": 7})), segment(1, 97, workload("cart", 1, map[string]uint64{"price": 2}))
	one.Lost = 1
	a.segments = []Segment{one, two}
	w := get(s, "/v1/profile?seconds=2.5&hz=199&comm=cart")
	profiles, err := format.ReadProfiles(w.Body)
	if err != nil || len(profiles) != 1 || format.Samples(profiles[0]) != 9 || profiles[0].Quality.Lost != 1 || profiles[0].Duration != 20*time.Second {
		t.Errorf("%+v, %v", profiles, err)
	}
	w = get(s, "/v1/profile?seconds=1&comm=shop&format=folded")
	if w.Code != http.StatusOK || w.Body.Len() != 0 {
		t.Errorf("of a name that does not run: %d %q", w.Code, w.Body)
	}
	get(s, "/v1/profile")
	if diff := cmp.Diff(a.asked, []string{"2.5s at 199 Hz", "1s at 0 Hz", "10s at 0 Hz"}); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	a.segments = nil
	if w := get(s, "/v1/profile?seconds=1"); w.Code != http.StatusServiceUnavailable {
		t.Errorf("when the agent ends: %d %s", w.Code, w.Body)
	}
}

// TestRecordingsAreLimited: so many at a time run, and the next may begin when
// one has ended.
func TestRecordingsAreLimited(t *testing.T) {
	a, _, s := served(t)
	a.segments = []Segment{segment(0, 97, workload("cart", 1, map[string]uint64{"price": 7}))}
	a.gate = make(chan struct{})
	var wg sync.WaitGroup
	for range maxRecordings {
		wg.Go(func() {
			if w := get(s, "/v1/profile?seconds=1"); w.Code != http.StatusOK {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
	}
	poll(t, func() bool { return a.recordings() == maxRecordings })
	if w := get(s, "/v1/profile?seconds=1"); w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") == "" {
		t.Errorf("one more: %d %s", w.Code, w.Body)
	}
	close(a.gate)
	wg.Wait()
	if w := get(s, "/v1/profile?seconds=1"); w.Code != http.StatusOK {
		t.Errorf("afterwards: %d %s", w.Code, w.Body)
	}
}

func poll(t *testing.T, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not come about in 10 s")
		}
	}
}

func TestPages(t *testing.T) {
	_, _, s := served(t)
	w := get(s, "/?service=cart")
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "<title>CPU profile of larch</title>") {
		t.Fatalf("%d\n%.2000s", w.Code, w.Body)
	}
	if got := w.Header().Get("Content-Type"); got != "text/html; charset=utf-8" {
		t.Errorf("type %s", got)
	}
	w = get(s, "/pprof/?cgroup=/system.slice/cart.service")
	start := w.Header().Get("Location")
	if w.Code != http.StatusFound || !strings.HasSuffix(start, "/flamegraph") {
		t.Fatalf("%d to %q", w.Code, start)
	}
	if w = get(s, "/pprof"); w.Code != http.StatusFound {
		t.Errorf("/pprof: %d", w.Code)
	}
	for _, page := range []string{"flamegraph", "top", "peek?f=price"} {
		w := get(s, strings.TrimSuffix(start, "flamegraph")+page)
		if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "price") || strings.Contains(w.Body.String(), "sell") {
			t.Errorf("%s: %d, without price or with sell", page, w.Code)
		}
	}
	w = get(s, strings.TrimSuffix(start, "flamegraph"))
	if w.Code != http.StatusMovedPermanently || w.Header().Get("Location") != "flamegraph" {
		t.Errorf("pprof's start: %d to %q", w.Code, w.Header().Get("Location"))
	}
}

// TestPageSaysThatSamplesAreWeighed: a count is not of what was taken, where the
// rate changed, as it does for a recording.
func TestPageSaysThatSamplesAreWeighed(t *testing.T) {
	for want, rates := range map[string][]int{"samples are weighed: 97 to 499 Hz": {97, 499, 97}, "pprof": {97, 97}} {
		h := NewHistory(DefaultKeep, 1<<20)
		for n, hz := range rates {
			add(t, h, segment(n, hz, workload("cart", 1, map[string]uint64{"price": 10})))
		}
		from, to := h.Newest(time.Minute)
		r, err := h.Between(t.Context(), from, to, Selection{Whole: true})
		if err != nil {
			t.Fatal(err)
		}
		links := pageLinks(r, Filter{}, time.Minute)
		if got := links[len(links)-1].Text; got != want {
			t.Errorf("at %d Hz the last link is %q, want %q", rates, got, want)
		}
	}
}

// listening serves h on a listener until the test ends.
func listening(t *testing.T, address string, h http.Handler) string {
	t.Helper()
	l, err := Listen(address, false)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, h, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	if strings.HasPrefix(address, socketPrefix) {
		return address
	}
	return l.Addr().String()
}

func client(t *testing.T, address string) *Client {
	t.Helper()
	c, err := NewClient(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestClient(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", "unix:" + filepath.Join(t.TempDir(), "agent.sock")} {
		t.Run(address, func(t *testing.T) {
			if address == "[::1]:0" {
				if l, err := net.Listen("tcp", address); err != nil {
					t.Skip(err)
				} else if err := l.Close(); err != nil {
					t.Fatal(err)
				}
			}
			a, _, s := served(t)
			a.segments = []Segment{segment(0, 97, workload("cart", 1, map[string]uint64{"price": 7}))}
			c := client(t, listening(t, address, s))
			ctx := t.Context()
			if top, err := c.Top(ctx, HistoryQuery{Newest: 10 * time.Second, Filter: Filter{Service: "cart"}}, ByFunction, 1); err != nil || top.Rows[0].Name != "price" || top.More != 3 || top.Seconds != 10 {
				t.Errorf("top %+v, %v", top, err)
			}
			if p, err := c.Processes(ctx, HistoryQuery{}); err != nil || len(p.List) != 2 {
				t.Errorf("processes %+v, %v", p, err)
			}
			if q, err := c.Quality(ctx); err != nil || q.Samples != 100 {
				t.Errorf("quality %+v, %v", q, err)
			}
			if p, err := c.Record(ctx, time.Second, 97, Filter{PID: 1}); err != nil || len(p) != 1 || format.Samples(p[0]) != 7 {
				t.Errorf("record %+v, %v", p, err)
			}
			if p, err := c.History(ctx, begin().Add(10*time.Second), begin().Add(time.Hour), Filter{}); err != nil || len(p) != 2 || p[0].Duration != 20*time.Second {
				t.Errorf("history %+v, %v", p, err)
			}
			_, err := c.Dump(ctx, 8)
			var status *StatusError
			var fault *profiler.Fault
			if !errors.As(err, &status) || status.Status != http.StatusNotFound || !errors.As(err, &fault) || fault.What != "cannot dump PID 8" || fault.Fix == "" {
				t.Errorf("dump: %v", err)
			}
		})
	}
}

func TestClientWithoutAgent(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	other := httptest.NewServer(says("hello"))
	defer other.Close()
	wrong := httptest.NewServer(http.NotFoundHandler())
	defer wrong.Close()
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = raw.Close() }()
	if err := l.Close(); err != nil { // only now: none of the others has its port
		t.Fatal(err)
	}
	var accepting sync.WaitGroup
	defer accepting.Wait()
	accepting.Go(func() {
		for _, answer := range []string{"\x00\x00\x0c\x04", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"} {
			conn, err := raw.Accept()
			if err != nil {
				return
			}
			_, _ = http.ReadRequest(bufio.NewReader(conn))
			_, _ = io.WriteString(conn, answer+strings.Repeat("\n", 8))
			_ = conn.Close()
		}
	})
	for _, want := range []string{"what listens there speaks no HTTP", "it ended in the middle of its answer"} {
		if _, err := client(t, raw.Addr().String()).Quality(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	for address, want := range map[string]string{
		nobody:                                   "no agent answers at " + nobody + ": nothing listens there",
		"unix:" + t.TempDir() + "/nothing.sock":  "nothing listens there",
		strings.TrimPrefix(other.URL, "http://"): "no kalypso-agent answers at",
		strings.TrimPrefix(wrong.URL, "http://"): "it answers 404 Not Found",
	} {
		_, err := client(t, address).Quality(t.Context())
		var fault *profiler.Fault
		if !errors.As(err, &fault) || !strings.Contains(err.Error(), want) || fault.Fix == "" {
			t.Errorf("%s: %v, want %q", address, err, want)
		}
	}
	if _, err := NewClient("4041"); err == nil {
		t.Error("an address without a host is taken")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := client(t, nobody).Quality(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("after its context ended: %v", err)
	}
}

// TestRecordingEndsWithItsClient: nobody is left to read it.
func TestRecordingEndsWithItsClient(t *testing.T) {
	a, _, s := served(t)
	a.gate = make(chan struct{})
	c := client(t, listening(t, "127.0.0.1:0", s))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := c.Record(ctx, time.Minute, 0, Filter{})
		ended <- err
	}()
	poll(t, func() bool { return a.recordings() == 1 })
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	poll(t, func() bool { return a.recordings() == 0 })
}

// TestServeEndsRecordings: an agent that is to end does not wait for them.
func TestServeEndsRecordings(t *testing.T) {
	a, _, s := served(t)
	a.gate = make(chan struct{})
	l, err := Listen("127.0.0.1:0", false)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended, asked := make(chan error, 1), make(chan error, 1)
	go func() { ended <- Serve(ctx, l, s, slog.New(slog.DiscardHandler)) }()
	c := client(t, l.Addr().String())
	go func() {
		_, err := c.Record(t.Context(), time.Minute, 0, Filter{})
		asked <- err
	}()
	poll(t, func() bool { return a.recordings() == 1 })
	stop()
	if err := <-ended; err != nil {
		t.Errorf("serve: %v", err)
	}
	if err := <-asked; err == nil {
		t.Error("a recording that was ended is taken for whole")
	}
}

// TestAllowance: what answers may take is 10 s at once and 5 % in the long run.
func TestAllowance(t *testing.T) {
	for name, c := range map[string]struct {
		each, took time.Duration // every so often an answer of so long
		refused    bool
	}{
		"top that takes 90 ms every 2 s":       {2 * time.Second, 90 * time.Millisecond, false},
		"a page of 300 ms every 10 s":          {10 * time.Second, 300 * time.Millisecond, false},
		"a loop of answers of half a second":   {600 * time.Millisecond, 500 * time.Millisecond, true},
		"a loop of answers of 20 milliseconds": {30 * time.Millisecond, 20 * time.Millisecond, true},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAllowance()
			var took time.Duration
			refused := false
			end := begin().Add(time.Hour)
			for now := begin(); now.Before(end); now = now.Add(c.each) {
				if a.check(now) != nil {
					refused = true
					continue
				}
				a.spend(now.Add(c.took), c.took)
				took += c.took
			}
			if most := 10*time.Second + time.Hour/20 + c.took; refused != c.refused || took > most {
				t.Errorf("refused %v, want %v; %v in an hour, of %v", refused, c.refused, took, most)
			}
		})
	}
}

// TestAnswersBeyondTheAllowance: they are refused until it has grown again, but
// for those that take next to nothing.
func TestAnswersBeyondTheAllowance(t *testing.T) {
	a, history, _ := served(t)
	a.dump = &Dump{}
	var working, worked int
	h := NewServer(Config{Source: a, History: history, Healthz: says("healthy"), Working: func() func() {
		working++
		return func() { working--; worked++ }
	}})
	s := h.(*server)
	if w := get(h, "/v1/top"); w.Code != http.StatusOK || worked != 1 || working != 0 {
		t.Fatalf("%d, worked %d times, %d of them still", w.Code, worked, working)
	}
	s.allowance.spend(time.Now(), allowedAtOnce)
	s.allowance.spend(time.Now(), time.Second) // is owed
	for _, path := range []string{"/v1/top", "/v1/processes", "/v1/profile?from=-5m", "/v1/profile?seconds=1", "/v1/dump?pid=7", "/", "/pprof/seconds=60/top"} {
		w := get(h, path)
		if w.Code != http.StatusTooManyRequests || len(w.Header().Get("Retry-After")) != 2 || !strings.Contains(w.Body.String(), "what is left is for sampling") {
			t.Errorf("%s: %d, again in %s s\n%.300s", path, w.Code, w.Header().Get("Retry-After"), w.Body)
		}
	}
	if len(a.asked) > 0 {
		t.Errorf("recorded: %v", a.asked)
	}
	for _, path := range []string{"/v1/quality", "/healthz"} {
		if w := get(h, path); w.Code != http.StatusOK {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
	if working != 0 {
		t.Errorf("%d answers are not ended", working)
	}
	s.allowance = newAllowance()
	end, err := s.draw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	poll(t, func() bool { return time.Since(begun) > 20*time.Millisecond })
	end()
	if left := s.allowance.left(time.Now()); left > allowedAtOnce-15*time.Millisecond {
		t.Errorf("%v are left after 20 ms", left)
	}
}

// TestRefusals: they are counted by why, and answers are not.
func TestRefusals(t *testing.T) {
	var counts Refusals
	h := NewServer(Config{Source: &agent{}, History: NewHistory(DefaultKeep, 1<<20), Refusals: &counts})
	r := httptest.NewRequest(http.MethodGet, "/v1/top", nil)
	r.Host = "evil.example"
	h.ServeHTTP(httptest.NewRecorder(), r)
	get(h, "/v1/top") // there is nothing yet
	get(h, "/v1/quality")
	get(h, "/v1/nothing")
	h.(*server).allowance.spend(time.Now(), allowedAtOnce)
	get(h, "/v1/top")
	get(h, "/v1/top")
	if diff := cmp.Diff(counts.Stats(), RefusalStats{Forbidden: 1, TooManyRequests: 2, Unavailable: 1}); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}

// TestErrorInTheMiddleOfAnAnswer: what was written before it is not sent, nor are
// the headers that it had.
func TestErrorInTheMiddleOfAnAnswer(t *testing.T) {
	_, _, h := served(t)
	s := h.(*server)
	s.handle("/broken", func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("Content-Disposition", "attachment")
		_, _ = io.WriteString(w, strings.Repeat("x", 200000))
		return errors.New("the rest is missing")
	})
	w := get(h, "/broken")
	if w.Code != http.StatusInternalServerError || !strings.Contains(w.Body.String(), "the rest is missing") ||
		strings.Contains(w.Body.String(), "xx") || w.Header().Get("Content-Disposition") != "" {
		t.Errorf("%d %v %.300s", w.Code, w.Header(), w.Body)
	}
	if n := s.unsent.Load(); n != 0 {
		t.Errorf("%d bytes count as unsent", n)
	}
}

// crowded is a server whose answers are large: 6,000 stacks of 30 frames.
func crowded(t *testing.T) http.Handler {
	t.Helper()
	h := NewHistory(DefaultKeep, 8<<20)
	add(t, h, busy(0, 2000), busy(1, 2000), busy(2, 2000))
	return NewServer(Config{Source: &agent{}, History: h})
}

// large is what crowded answers at length.
func large() string {
	return fmt.Sprintf("/v1/profile?format=folded&from=%d&to=%d", begin().Unix(), begin().Add(time.Minute).Unix())
}

// stall asks and reads no more than the first line of the answer.
func stall(t *testing.T, address, path string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, len("HTTP/1.1 200"))
	if _, err := io.ReadFull(conn, line); err != nil || string(line) != "HTTP/1.1 200" {
		t.Fatalf("%q, %v", line, err)
	}
}

// TestSlowClientHoldsUpNobody: others are answered while it reads.
func TestSlowClientHoldsUpNobody(t *testing.T) {
	h := crowded(t)
	stall(t, listening(t, "127.0.0.1:0", h), large())
	asked := time.Now()
	if w := get(h, "/v1/top"); w.Code != http.StatusOK || time.Since(asked) > maxWaiting/2 {
		t.Errorf("after %v: %d %.300s", time.Since(asked), w.Code, w.Body)
	}
}

// TestUnreadAnswersAreBounded: large ones are refused when others have not been
// read, small ones are not.
func TestUnreadAnswersAreBounded(t *testing.T) {
	h := crowded(t)
	size := get(h, large()).Body.Len()
	t.Logf("%d MiB, of %d", size>>20, 2*h.(*server).History.mostRead()>>20)
	address := listening(t, "127.0.0.1:0", h)
	most := int(2 * h.(*server).History.mostRead())
	for range most / size {
		stall(t, address, large())
	}
	w := get(h, large())
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" || !strings.Contains(w.Body.String(), "others have not read") {
		t.Errorf("a large one: %d %.300s", w.Code, w.Body)
	}
	if w := get(h, "/v1/top"); w.Code != http.StatusOK {
		t.Errorf("a small one: %d %.300s", w.Code, w.Body)
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	for address, want := range map[string]string{
		"0.0.0.0:0":              "other machines can reach it",
		":0":                     "other machines can reach it",
		"[::]:0":                 "other machines can reach it",
		"192.0.2.1:0":            "other machines can reach it",
		"larch.example:0":        "other machines can reach it",
		"4041":                   "an address is HOST:PORT, or unix:PATH",
		"127.0.0.1:http-or-so":   "",
		taken.Addr().String():    "something listens there already",
		"unix:" + file:           "is there and is no socket",
		"unix:" + dir + "/no/no": "no such file or directory",
	} {
		_, err := Listen(address, false)
		var fault *profiler.Fault
		if !errors.As(err, &fault) || !strings.Contains(err.Error(), want) || fault.Fix == "" {
			t.Errorf("%s: %v, want %q", address, err, want)
		}
	}
	for _, address := range []string{"127.0.0.1:0", "localhost:0"} {
		l, err := Listen(address, false)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	l, err := Listen("0.0.0.0:0", true)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	address := "unix:" + path
	old := syscall.Umask(0) // the mode must not depend on it
	l, err := Listen(address, false)
	syscall.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if _, err := Listen(address, false); err == nil || !strings.Contains(err.Error(), "something listens there already") {
		t.Errorf("a second agent: %v", err)
	}
	// As after SIGKILL: the file stays.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Listen(address, false)
	if err != nil {
		t.Fatalf("where a socket was left: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}
