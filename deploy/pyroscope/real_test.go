package pyroscope

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/deploy/agents"
	"github.com/kalypso-dev/kalypso/exporter"
	"github.com/kalypso-dev/kalypso/exporter/format"
	"github.com/kalypso-dev/kalypso/exporter/otlp"
	push "github.com/kalypso-dev/kalypso/exporter/pyroscope"
	"github.com/kalypso-dev/kalypso/exporter/pyroscope/pyroscopetest"
	"github.com/kalypso-dev/kalypso/exporter/transport"
	"github.com/kalypso-dev/kalypso/profiler"
)

// TestRealPyroscope asks a real server for what the agents' own exporters sent it:
// the checkout of namespace shop over OTLP from one node and by the native push from
// another, and that of namespace test, whose samples must be in nothing of shop's.
func TestRealPyroscope(t *testing.T) {
	if testing.Short() {
		t.Skip("starting a server takes seconds")
	}
	server := pyroscopetest.Start(t)
	at := time.Now().Add(-time.Minute)
	config := transport.Config{Endpoint: server.Endpoint(), Insecure: true}
	over, err := otlp.NewSender(config, otlp.GRPC)
	if err != nil {
		t.Fatal(err)
	}
	defer over.Close()
	send(t, otlp.NewEncoder(otlp.EncoderConfig{}), over, work(at, "shop", "birch", 60, 40), work(at, "test", "birch", 500, 0))
	native, err := push.NewSender(config)
	if err != nil {
		t.Fatal(err)
	}
	defer native.Close()
	send(t, push.NewEncoder(push.EncoderConfig{}), native, work(at, "shop", "larch", 20, 80))

	client, err := New(transport.Config{Endpoint: "http://" + server.Endpoint()}, "the store")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, c := range []struct {
		target        string
		seconds, hot  float64
		whole, unsure float64 // shares of stacks
	}{
		{"deploy/checkout", 2, 40, 90, 10},
		{"pod/checkout-birch", 1, 60, 90, 10},
		{"ns/shop", 2, 40, 90, 10},
		{"node/larch", 1, 20, 90, 10},
		{"", 7, 83, 90, 10},
		{"deploy/none", 0, 0, 0, 0},
	} {
		target, err := agents.ParseTarget(c.target, "shop")
		if err != nil {
			t.Fatal(err)
		}
		p, err := client.Profile(t.Context(), Query{target, at.Add(-time.Minute), time.Now()})
		if err != nil {
			t.Fatalf("%s: %v", target, err)
		}
		n := format.Samples(p)
		if got := float64(n) / 1000; math.Abs(got-c.seconds) > 0.005 {
			t.Errorf("%s: %.3f s of CPU time, want %.3f", target, got, c.seconds)
		}
		if n == 0 {
			continue
		}
		for _, r := range format.Top(p) {
			if share := float64(r.Self) / float64(n) * 100; r.Function == "price" && math.Abs(share-c.hot) > 1 {
				t.Errorf("%s: price has %.1f %%, want %.0f", target, share, c.hot)
			}
		}
		if q := p.Quality; math.Abs(float64(q.Stops[profiler.StopNoRow])/float64(q.Samples)*100-c.unsure) > 1 || q.FramesNamed == q.Frames {
			t.Errorf("%s: quality %+v", target, q)
		}
	}
	shares(t, client, at)
}

func shares(t *testing.T, client *Client, at time.Time) {
	t.Helper()
	q := Query{agents.Target{Kind: agents.Namespace, Name: "shop"}, at.Add(-time.Hour), time.Now()}
	step := q.Step(120)
	series, err := client.Series(t.Context(), q, step, "namespace", "pod")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]time.Duration{}
	for _, s := range series {
		for _, p := range s.Points {
			got[s.Values[0]+"/"+s.Values[1]] += p.CPU
		}
	}
	if diff := cmp.Diff(got, map[string]time.Duration{"shop/checkout-birch": time.Second, "shop/checkout-larch": time.Second}); diff != "" {
		t.Errorf("CPU time by pod (-got +want):\n%s", diff)
	}
	spans := Spans(series, step)
	if len(spans) != 1 || spans[0].From.After(at) || spans[0].To.Before(at.Truncate(time.Millisecond)) || spans[0].To.Sub(spans[0].From) > 3*step {
		t.Errorf("there is something in %v, want once, at %v", spans, at)
	}
}

// work is a second of a checkout with two functions; one stack in ten is not whole,
// and its frame has no name.
func work(at time.Time, namespace, node string, price, sell uint64) *profiler.Profile {
	exe := &profiler.Module{Path: "/usr/bin/checkout", BuildID: "c0ffee"}
	stack := func(stop profiler.Stop, address uint64, names ...string) *profiler.Stack {
		s := &profiler.Stack{Stop: stop}
		for i, name := range names {
			s.Locations = append(s.Locations, &profiler.Location{Module: exe, Address: address + uint64(i), Frames: []profiler.Frame{{Function: name}}})
		}
		return s
	}
	process := &profiler.Process{PID: 7, Comm: "checkout", Exe: exe.Path}
	attributes := []profiler.Attribute{
		{Key: "k8s.deployment.name", Value: "checkout"}, {Key: "k8s.namespace.name", Value: namespace},
		{Key: "k8s.node.name", Value: node}, {Key: "k8s.pod.name", Value: "checkout-" + node}, {Key: "service.name", Value: "checkout"},
	}
	p := &profiler.Profile{
		Workload: &profiler.Workload{Attributes: attributes}, Start: at, Duration: 10 * time.Second, Frequency: 100, Event: "cpu-clock",
	}
	add := func(count uint64, s *profiler.Stack) {
		if count > 0 {
			p.Samples = append(p.Samples, profiler.Sample{Process: process, Stack: s, Count: count})
		}
	}
	all := price + sell
	add(price-all/10, stack(profiler.StopRoot, 0x1000, "price", "main"))
	add(sell, stack(profiler.StopRoot, 0x2000, "sell", "main"))
	add(all/10, stack(profiler.StopNoRow, 0x3000, "price", ""))
	return p
}

func send(t *testing.T, e exporter.Encoder, s exporter.Sender, profiles ...*profiler.Profile) {
	t.Helper()
	requests, dropped, err := e.Encode(profiles)
	if err != nil || dropped != 0 {
		t.Fatalf("encode: %v, %d dropped", err, dropped)
	}
	for _, r := range requests {
		if receipt, err := s.Send(t.Context(), r); err != nil || receipt.RejectedProfiles != 0 {
			t.Fatalf("send: %v, %+v", err, receipt)
		}
	}
}
