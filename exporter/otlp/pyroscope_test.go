package otlp

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	pprof "github.com/google/pprof/profile"

	"github.com/kalypso-dev/kalypso/exporter"
	"github.com/kalypso-dev/kalypso/exporter/pyroscope/pyroscopetest"
	"github.com/kalypso-dev/kalypso/exporter/transport"
	"github.com/kalypso-dev/kalypso/profiler"
)

// The tests here push to a real Pyroscope server and ask it what it has. They
// run where PYROSCOPE_BIN names its program. HTTP 200 proves nothing with this
// server: what it does not understand, it drops without a word.

// stacks gives a profile's nanoseconds by stack, as collapse writes it.
func stacks(p *pprof.Profile) map[string]int64 {
	out := map[string]int64{}
	for _, s := range p.Sample {
		var calls []call
		for _, l := range s.Location {
			for _, line := range l.Line {
				calls = append(calls, call{line.Function.Name, line.Function.Filename, line.Line})
			}
		}
		slices.Reverse(calls)
		out[collapse(calls)] += s.Value[0]
	}
	return out
}

func total(p *pprof.Profile) int64 {
	var n int64
	for _, s := range p.Sample {
		n += s.Value[0]
	}
	return n
}

func TestRealPyroscope(t *testing.T) {
	if testing.Short() {
		t.Skip("starting a server takes seconds")
	}
	server := pyroscopetest.Start(t)
	eachProtocol(t, func(t *testing.T, p Protocol) {
		name := map[Protocol]string{GRPC: "grpc", HTTP: "http"}[p]
		c := transport.Config{Endpoint: server.Endpoint(), Insecure: true}
		t.Run("names, lines, inlined calls, values and labels arrive", func(t *testing.T) {
			realShop(t, server, sender(t, p, c), name)
		})
		t.Run("as many labels as we send, and as long ones, are taken", func(t *testing.T) {
			service := "labels-" + name
			profile := shop(time.Now().Add(-15 * time.Second))[1]
			profile.Workload = &profiler.Workload{Attributes: []profiler.Attribute{{Key: "service.name", Value: service}}}
			for i := range 40 {
				profile.Workload.Attributes = append(profile.Workload.Attributes, profiler.Attribute{
					Key: fmt.Sprintf("k8s.pod.label.%d.%s", i, strings.Repeat("l", 500)), Value: strings.Repeat("é", 3000),
				})
			}
			for _, r := range encode(t, EncoderConfig{}, []*profiler.Profile{profile}) {
				if _, err := sender(t, p, c).Send(t.Context(), r); err != nil {
					t.Fatal(err)
				}
			}
			if got, want := total(server.Profile(fmt.Sprintf(`{service_name="%s"}`, service))), 3*profile.Period().Nanoseconds(); got != want {
				t.Errorf("%d ns, want %d", got, want)
			}
		})
		t.Run("pods that have rates of their own add up to CPU time", func(t *testing.T) {
			realRates(t, server, sender(t, p, c), name)
		})
		t.Run("a window is charged what we reckon", func(t *testing.T) {
			realCharge(t, server, sender(t, p, c))
		})
		t.Run("the parts of a profile add up", func(t *testing.T) {
			realParts(t, server, sender(t, p, c), name)
		})
		t.Run("what was stored of a request above the rate is not sent again", func(t *testing.T) {
			realPartial(t, server, sender(t, p, c), name)
		})
		t.Run("what is too old is refused for good", func(t *testing.T) {
			requests := encode(t, EncoderConfig{}, shop(time.Now().Add(-2*time.Hour)))
			_, err := sender(t, p, c).Send(t.Context(), requests[0])
			if !exporter.Refused(err) || !strings.Contains(err.Error(), "ingestion window") {
				t.Errorf("got %v, want a refusal that names the ingestion window", err)
			}
		})
		t.Run("what is above the rate is for later", func(t *testing.T) {
			s := sender(t, p, c)
			requests := encode(t, EncoderConfig{PushBytes: 8 << 20}, window(1, 15000, 100, 15000, time.Now().Add(-15*time.Second)))
			_, err := s.Send(t.Context(), requests[0])
			if !strings.HasPrefix(outcome(err), "busy") {
				t.Errorf("a profile above the burst: %s, want busy: %v", outcome(err), err)
			}
		})
	})
}

func encode(t *testing.T, c EncoderConfig, profiles []*profiler.Profile) []*exporter.Request {
	t.Helper()
	requests, dropped, err := NewEncoder(c).Encode(profiles)
	if err != nil || dropped != 0 || len(requests) == 0 {
		t.Fatalf("encode: %d requests, %d dropped, %v", len(requests), dropped, err)
	}
	return requests
}

// realShop pushes shop under names of the protocol's own and asks for it.
func realShop(t *testing.T, server *pyroscopetest.Server, s exporter.Sender, name string) {
	profiles := shop(time.Now().Add(-15 * time.Second))
	for _, p := range profiles {
		a := p.Workload.Attributes
		i := slices.IndexFunc(a, func(a profiler.Attribute) bool { return a.Key == "service.name" })
		a[i].Value += "-" + name
	}
	for _, r := range encode(t, EncoderConfig{}, profiles) {
		if _, err := s.Send(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	for service, want := range shopStacks() {
		selector := fmt.Sprintf(`{service_name="%s-%s"}`, service, name)
		if diff := cmp.Diff(stacks(server.Profile(selector)), want); diff != "" {
			t.Errorf("%s: stacks (-got +want):\n%s", selector, diff)
		}
		labels := shopLabels()[service]
		labels["service.name"] += "-" + name
		labels["service_name"] = labels["service.name"]
		var got map[string]string
		for _, series := range server.Labels() {
			if series["service_name"] == labels["service_name"] && got == nil {
				got = series
			} else if series["service_name"] == labels["service_name"] {
				t.Errorf("%s has more than one series", selector)
			}
		}
		for key := range got {
			if strings.HasPrefix(key, "__") {
				delete(got, key)
			}
		}
		if server.Storage1() { // shows no names with dots
			maps.DeleteFunc(labels, func(key, _ string) bool { return strings.Contains(key, ".") })
		}
		if diff := cmp.Diff(got, labels); diff != "" {
			t.Errorf("%s: labels (-got +want):\n%s", selector, diff)
		}
		if len(labels) > 30 {
			t.Errorf("%s: %d labels", selector, len(labels))
		}
	}
	names := server.Names(fmt.Sprintf(`{service_name="checkout-%s"}`, name))
	for _, want := range []string{"main", "total", "price", "round", "copy_user_generic", "libfoo.so.1+0x2300", "[unwind: no information]", `evil\x00\xff\x1b[31m\u202ename`} {
		if !slices.Contains(names, want) {
			t.Errorf("%q is not in the flame graph: %q", want, names)
		}
	}
	// People look by the short names, in every combination.
	if got := total(server.Profile(fmt.Sprintf(`{namespace="shop",pod="checkout-7d9f",container="server",node="node-1",service_namespace="shop",service_name="checkout-%s"}`, name))); got != int64(time.Second) {
		t.Errorf("by short names: %d ns, want 1 s", got)
	}
}

// realRates pushes two pods of one service at different rates, and one of them at
// another rate later.
func realRates(t *testing.T, server *pyroscopetest.Server, s exporter.Sender, name string) {
	start := time.Now().Add(-30 * time.Second)
	var profiles []*profiler.Profile
	var want int64
	for i, r := range []struct {
		pod string
		hz  int
	}{{"a", 97}, {"b", 20}, {"b", 97}} {
		p := shop(start.Add(time.Duration(i) * 5 * time.Second))[1]
		p.Frequency = r.hz
		p.Workload = &profiler.Workload{Attributes: []profiler.Attribute{
			{Key: "k8s.pod.name", Value: r.pod}, {Key: "service.name", Value: "rates-" + name},
		}}
		profiles = append(profiles, p)
		want += 3 * p.Period().Nanoseconds()
	}
	for _, r := range encode(t, EncoderConfig{}, profiles) {
		if _, err := s.Send(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	if got := total(server.Profile(fmt.Sprintf(`{service_name="rates-%s"}`, name))); got != want {
		t.Errorf("%d ns of CPU time, want %d", got, want)
	}
}

// realCharge compares what the server charges with what we reckoned.
func realCharge(t *testing.T, server *pyroscopetest.Server, s exporter.Sender) {
	const charged = "pyroscope_distributor_received_decompressed_bytes_sum"
	for _, profiles := range [][]*profiler.Profile{
		window(20, 2800, 26, 10000, time.Now().Add(-15*time.Second)),
		window(3, 1500, 60, 4000, time.Now().Add(-15*time.Second)),
		window(1, 4500, 30, 4500, time.Now().Add(-15*time.Second)),
	} {
		p := newPlan(&EncoderConfig{PushBytes: 2 << 20})
		for _, profile := range profiles {
			p.profile(profile)
		}
		before := server.Metric(charged)
		for _, r := range encode(t, EncoderConfig{PushBytes: 2 << 20}, profiles) {
			sendPatiently(t, server, s, r)
		}
		got := int(server.Metric(charged) - before)
		t.Logf("charged %d, reckoned %d", got, p.charge)
		if len(p.batches) != 1 || p.charge < got || p.charge > got*13/10 {
			t.Errorf("charged %d, reckoned %d in %d requests: want at least as much, and at most 1.3 times that", got, p.charge, len(p.batches))
		}
	}
}

// sendPatiently waits for the rate limit to let a request pass.
func sendPatiently(t *testing.T, server *pyroscopetest.Server, s exporter.Sender, r *exporter.Request) {
	t.Helper()
	server.Poll("a request to be taken", func() bool {
		_, err := s.Send(t.Context(), r)
		if err != nil && !strings.HasPrefix(outcome(err), "busy") {
			t.Fatal(err)
		}
		return err == nil
	})
}

// realPartial sends a request of which the rate limit lets only some profiles
// pass, again and again until all have.
func realPartial(t *testing.T, server *pyroscopetest.Server, s exporter.Sender, name string) {
	const workloads = 6
	profiles := window(workloads, 24000, 80, 24000, time.Now().Add(-15*time.Second))
	for w, p := range profiles {
		p.Workload = &profiler.Workload{Attributes: []profiler.Attribute{{Key: "service.name", Value: fmt.Sprintf("partial-%s-%d", name, w)}}}
	}
	requests := encode(t, EncoderConfig{PushBytes: 100 << 20}, profiles)
	if len(requests) != 1 {
		t.Fatalf("%d requests, want 1", len(requests))
	}
	if _, err := s.Send(t.Context(), requests[0]); !strings.HasPrefix(outcome(err), "busy") {
		t.Errorf("the first try: %s, want busy: the test needs a larger request", outcome(err))
	}
	sendPatiently(t, server, s, requests[0])
	for w, p := range profiles {
		want := int64(samplesOf([]*profiler.Profile{p})) * p.Period().Nanoseconds()
		if got := total(server.Profile(fmt.Sprintf(`{service_name="partial-%s-%d"}`, name, w))); got != want {
			t.Errorf("workload %d has %d ns, want %d", w, got, want)
		}
	}
}

// realParts sends one profile in parts: within one request, as where it has
// too many samples, and in several.
func realParts(t *testing.T, server *pyroscopetest.Server, s exporter.Sender, name string) {
	profiles := window(1, 900, 26, 3000, time.Now().Add(-15*time.Second))
	attributes := profiles[0].Workload.Attributes
	i := slices.IndexFunc(attributes, func(a profiler.Attribute) bool { return a.Key == "service.name" })
	attributes[i].Value = "parts-" + name
	requests := encode(t, EncoderConfig{PushBytes: 80 << 10}, profiles)
	if len(requests) < 3 {
		t.Fatalf("%d requests, want 3 at least", len(requests))
	}
	var samples uint64
	for _, r := range requests {
		samples += r.Samples
		sendPatiently(t, server, s, r)
	}
	if samples != 3000 {
		t.Errorf("%d samples in %d requests, want 3000", samples, len(requests))
	}
	want := 3000 * profiles[0].Period().Nanoseconds()
	if got := total(server.Profile(fmt.Sprintf(`{service_name="parts-%s"}`, name))); got != want {
		t.Errorf("the parts add up to %d ns, want %d", got, want)
	}
}
