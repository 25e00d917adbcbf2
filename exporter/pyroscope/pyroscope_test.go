package pyroscope

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	pprof "github.com/google/pprof/profile"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kalypso-dev/kalypso/exporter"
	"github.com/kalypso-dev/kalypso/exporter/pyroscope/limits"
	"github.com/kalypso-dev/kalypso/exporter/pyroscope/pyroscopetest"
	"github.com/kalypso-dev/kalypso/exporter/transport"
	"github.com/kalypso-dev/kalypso/profiler"
)

// shop is a workload with inlined calls, kernel frames, a frame without a
// name, an incomplete stack, and several processes and threads.
func shop(name string) *profiler.Profile {
	server := &profiler.Module{Path: "/srv/checkout", BuildID: "0123456789abcdef"}
	main := &profiler.Location{Module: server, Address: 0x1000, Frames: []profiler.Frame{{Function: "main", File: "main.cc", Line: 12}}}
	price := &profiler.Location{Module: server, Address: 0x1200, Frames: []profiler.Frame{
		{Function: "round", File: "money.h", Line: 7, Inlined: true}, {Function: "total", Linkage: "_Z5totalv", File: "price.cc", Line: 90}}}
	kernel := &profiler.Location{Module: &profiler.Module{Path: "[kernel]"}, Address: 0xffffffff81000100, Frames: []profiler.Frame{{Function: "copy_user_generic", Kind: profiler.KindKernel}}}
	nameless := &profiler.Location{Module: &profiler.Module{Path: "/lib/libfoo.so.1"}, Address: 0x2345, Frames: []profiler.Frame{{Start: 0x2300}}}
	hostile := &profiler.Location{Module: server, Address: 0x1300, Frames: []profiler.Frame{{Function: "evil\xff\x00" + strings.Repeat("x", 3000)}}}
	stack := func(stop profiler.Stop, leafFirst ...*profiler.Location) *profiler.Stack {
		return &profiler.Stack{Locations: leafFirst, Stop: stop}
	}
	one, two := &profiler.Process{PID: 1, Comm: "checkout", Cgroup: "/a"}, &profiler.Process{PID: 2, Comm: "checkout"}
	return &profiler.Profile{
		Workload: &profiler.Workload{Attributes: []profiler.Attribute{
			{Key: "k8s.namespace.name", Value: "shop"}, {Key: "k8s.pod.name", Value: "checkout-7d9f"}, {Key: "service.name", Value: name},
		}},
		Start: time.Now().Add(-15 * time.Second), Duration: 15 * time.Second, Frequency: 100, Host: "node-1", Event: "cpu-clock",
		Samples: []profiler.Sample{
			{Process: one, Stack: stack(profiler.StopRoot, price, main), Count: 50},
			{Process: two, TID: 3, Thread: "worker", Stack: stack(profiler.StopRoot, price, main), Count: 10},
			{Process: one, Stack: stack(profiler.StopRoot, kernel, main), Count: 30},
			{Process: one, Stack: stack(profiler.StopNoRow, nameless), Count: 6},
			{Process: one, Stack: stack(profiler.StopRoot, hostile, main), Count: 4},
		},
	}
}

// shopStacks is what must be seen of shop: nanoseconds by stack, root first.
func shopStacks() map[string]int64 {
	const ms = int64(time.Millisecond)
	return map[string]int64{
		"main main.cc:12;total price.cc:90;round money.h:7":                        600 * ms,
		"main main.cc:12;copy_user_generic":                                        300 * ms,
		"[unwind: no information];libfoo.so.1+0x2300":                              60 * ms,
		"main main.cc:12;" + limits.Name(`evil\xff\x00`+strings.Repeat("x", 3000)): 40 * ms,
	}
}

func shopLabels(name string) map[string]string {
	return map[string]string{
		"k8s_namespace_name": "shop", "namespace": "shop", "k8s_pod_name": "checkout-7d9f", "pod": "checkout-7d9f", "service_name": name,
	}
}

func stacks(p *pprof.Profile) map[string]int64 {
	out := map[string]int64{}
	for _, s := range p.Sample {
		var calls []string
		for _, l := range s.Location {
			for _, line := range l.Line {
				text := line.Function.Name
				if line.Function.Filename != "" {
					text += fmt.Sprintf(" %s:%d", line.Function.Filename, line.Line)
				}
				calls = append(calls, text)
			}
		}
		slices.Reverse(calls)
		out[strings.Join(calls, ";")] += s.Value[0]
	}
	return out
}

// fields reads the fields of bytes that a message has.
func fields(t *testing.T, message []byte) map[protowire.Number][][]byte {
	t.Helper()
	out := map[protowire.Number][][]byte{}
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 || kind != protowire.BytesType {
			t.Fatalf("field %d of type %d: %v", number, kind, protowire.ParseError(n))
		}
		value, m := protowire.ConsumeBytes(message[n:])
		if m < 0 {
			t.Fatal(protowire.ParseError(m))
		}
		out[number] = append(out[number], value)
		message = message[n+m:]
	}
	return out
}

type pushed struct {
	labels  map[string]string
	profile *pprof.Profile
	size    int // uncompressed
}

func read(t *testing.T, body []byte) []pushed {
	t.Helper()
	var out []pushed
	for _, series := range fields(t, body)[1] {
		f := fields(t, series)
		p := pushed{labels: map[string]string{}}
		for _, label := range f[1] {
			pair := fields(t, label)
			p.labels[string(pair[1][0])] = string(pair[2][0])
		}
		if len(f[2]) != 1 {
			t.Fatalf("%d samples in a series, want 1", len(f[2]))
		}
		profile, err := pprof.ParseData(fields(t, f[2][0])[1][0])
		if err != nil {
			t.Fatal(err)
		}
		p.profile = profile
		var raw bytes.Buffer
		if err := profile.WriteUncompressed(&raw); err != nil {
			t.Fatal(err)
		}
		p.size = raw.Len()
		out = append(out, p)
	}
	return out
}

func TestEncode(t *testing.T) {
	p := shop("checkout")
	requests, dropped, err := NewEncoder(EncoderConfig{}).Encode([]*profiler.Profile{p, shop("cart")})
	if err != nil || dropped != 0 || len(requests) != 1 {
		t.Fatalf("%d requests, %d dropped, %v", len(requests), dropped, err)
	}
	r := requests[0]
	if r.Profiles != 2 || r.Samples != 200 || !r.Time.Equal(p.Start.Add(p.Duration)) {
		t.Errorf("the request says %d profiles, %d samples, %s", r.Profiles, r.Samples, r.Time)
	}
	got := read(t, r.Body)[0]
	want := shopLabels("checkout")
	want["__name__"] = "process_cpu"
	if diff := cmp.Diff(got.labels, want); diff != "" {
		t.Errorf("labels (-got +want):\n%s", diff)
	}
	if diff := cmp.Diff(stacks(got.profile), shopStacks()); diff != "" {
		t.Errorf("stacks (-got +want):\n%s", diff)
	}
	if len(got.profile.SampleType) != 1 || got.profile.SampleType[0].Type != "cpu" || got.profile.Period != 10_000_000 {
		t.Errorf("types %v, period %d", got.profile.SampleType, got.profile.Period)
	}
	for _, s := range got.profile.Sample {
		if len(s.Label)+len(s.NumLabel) > 0 {
			t.Errorf("a sample has labels %v %v: each value of one would be a series", s.Label, s.NumLabel)
		}
	}
	if len(got.profile.Sample) != 4 {
		t.Errorf("%d samples, want 4: equal stacks of several processes are one", len(got.profile.Sample))
	}
}

func TestSplit(t *testing.T) {
	p := shop("checkout")
	p.Samples = nil
	for i := range 3000 {
		l := &profiler.Location{Frames: []profiler.Frame{{Function: fmt.Sprintf("function-%d-%s", i, strings.Repeat("x", 50)), File: "a.c", Line: i}}}
		p.Samples = append(p.Samples, profiler.Sample{Stack: &profiler.Stack{Locations: []*profiler.Location{l}, Stop: profiler.StopRoot}, Count: 2})
	}
	monster := &profiler.Stack{Stop: profiler.StopRoot}
	for i := range 1000 {
		monster.Locations = append(monster.Locations, &profiler.Location{Frames: []profiler.Frame{{Function: fmt.Sprint(i, strings.Repeat("y", 2000))}}})
	}
	p.Samples = append(p.Samples, profiler.Sample{Stack: monster, Count: 9})
	noRate := shop("cart")
	noRate.Frequency = 0
	const limit = 100 << 10
	requests, dropped, err := NewEncoder(EncoderConfig{PushBytes: limit}).Encode([]*profiler.Profile{p, noRate})
	if err != nil {
		t.Fatal(err)
	}
	if dropped != 9+100 {
		t.Errorf("%d dropped, want 109: the stack that is too large, and the profile without a rate", dropped)
	}
	var samples uint64
	var ns int64
	for _, r := range requests {
		samples += r.Samples
		size := 0
		for _, s := range read(t, r.Body) {
			size += s.size
			for _, v := range stacks(s.profile) {
				ns += v
			}
		}
		if size > limit {
			t.Errorf("a request is charged %d, want at most %d", size, limit)
		}
	}
	if samples != 6000 || ns != 6000*10_000_000 || len(requests) < 3 {
		t.Errorf("%d samples and %d ns in %d requests, want 6000 samples in several", samples, ns, len(requests))
	}
}

func TestSend(t *testing.T) {
	var status int
	var answer string
	var got []byte
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		got, _ = io.ReadAll(q.Body)
		if q.URL.Path != "/push.v1.PusherService/Push" || q.Header.Get("Content-Type") != "application/proto" || q.Header.Get("X-Scope-OrgID") != "shop" {
			t.Errorf("asked for %s as %s by %q", q.URL, q.Header.Get("Content-Type"), q.Header.Get("X-Scope-OrgID"))
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, answer)
	}))
	defer backend.Close()
	requests, _, err := NewEncoder(EncoderConfig{}).Encode([]*profiler.Profile{shop("checkout")})
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSender(transport.Config{Endpoint: backend.Listener.Addr().(*net.TCPAddr).String(), Insecure: true, Tenant: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, test := range []struct {
		status  int
		answer  string
		refused bool
		says    string
	}{
		{200, "", false, ""},
		{400, `{"code":"invalid_argument","message":"profile is too old"}`, true, "profile is too old"},
		{500, `{"code":"internal","message":"rpc error: code = InvalidArgument desc = no"}`, true, "desc = no"},
		{500, `{"code":"unknown","message":"disk full"}`, false, "disk full (HTTP 500)"},
		{401, `{"code":"unauthenticated","message":"no org id"}`, false, "who we say we are: no org id"},
		{404, "404 page not found", false, "it has no /push.v1.PusherService/Push"},
		{302, "", false, "it points elsewhere"},
	} {
		status, answer = test.status, test.answer
		_, err := s.Send(t.Context(), requests[0])
		switch {
		case test.says == "" && err != nil, test.says != "" && err == nil:
			t.Errorf("HTTP %d: %v", test.status, err)
		case err != nil && (exporter.Refused(err) != test.refused || !strings.Contains(err.Error(), test.says)):
			t.Errorf("HTTP %d: %v, want %q, refused %t", test.status, err, test.says, test.refused)
		}
	}
	if !bytes.Equal(got, requests[0].Body) {
		t.Error("the body is not that of the request")
	}
}

func TestRealPyroscope(t *testing.T) {
	if testing.Short() {
		t.Skip("starting a server takes seconds")
	}
	server := pyroscopetest.Start(t)
	s, err := NewSender(transport.Config{Endpoint: server.Endpoint(), Insecure: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	send := func(c EncoderConfig, p *profiler.Profile) int {
		requests, dropped, err := NewEncoder(c).Encode([]*profiler.Profile{p})
		if err != nil || dropped != 0 {
			t.Fatalf("%d dropped, %v", dropped, err)
		}
		for _, r := range requests {
			if _, err := s.Send(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		return len(requests)
	}
	send(EncoderConfig{}, shop("whole"))
	if n := send(EncoderConfig{PushBytes: 2600}, shop("parts")); n < 2 {
		t.Errorf("%d requests, want several", n)
	}
	for _, name := range []string{"whole", "parts"} {
		if diff := cmp.Diff(stacks(server.Profile(`{service_name="`+name+`"}`)), shopStacks()); diff != "" {
			t.Errorf("%s: stacks (-got +want):\n%s", name, diff)
		}
		n := 0
		for _, series := range server.Labels() {
			if series["service_name"] != name {
				continue
			}
			n++
			for key := range series {
				if strings.HasPrefix(key, "__") {
					delete(series, key)
				}
			}
			if diff := cmp.Diff(series, shopLabels(name)); diff != "" {
				t.Errorf("%s: labels (-got +want):\n%s", name, diff)
			}
		}
		if n != 1 {
			t.Errorf("%s: %d series, want 1", name, n)
		}
	}
	old := shop("old")
	old.Start = old.Start.Add(-2 * time.Hour)
	requests, _, err := NewEncoder(EncoderConfig{}).Encode([]*profiler.Profile{old})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Send(t.Context(), requests[0]); !exporter.Refused(err) || !strings.Contains(err.Error(), "ingestion window") {
		t.Errorf("too old: got %v, want a refusal that says so", err)
	}
}
