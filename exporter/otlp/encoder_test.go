package otlp

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/kalypso-dev/kalypso/exporter/internal/gz"
	"github.com/kalypso-dev/kalypso/exporter/pyroscope/limits"
	"github.com/kalypso-dev/kalypso/profiler"
)

func samplesOf(profiles []*profiler.Profile) (n uint64) {
	for _, p := range profiles {
		for _, s := range p.Samples {
			n += s.Count
		}
	}
	return n
}

func TestSplit(t *testing.T) {
	start := time.Now().Add(-15 * time.Second)
	flat := func(n int) *profiler.Profile {
		p := &profiler.Profile{Start: start, Frequency: 97}
		for i := range n {
			l := &profiler.Location{Frames: []profiler.Frame{{Function: "f", Line: i + 1}}}
			p.Samples = append(p.Samples, profiler.Sample{Stack: &profiler.Stack{Locations: []*profiler.Location{l}, Stop: profiler.StopRoot}, Count: 2})
		}
		return p
	}
	for _, test := range []struct {
		name     string
		profiles []*profiler.Profile
		limit    int
		requests int
		pieces   int
	}{
		{"a window that fits is one request, and each workload one profile", window(20, 2800, 26, 10000, start), 0, 1, 20},
		{"nothing makes no request", nil, 0, 0, 0},
		{"a profile without samples makes no request", []*profiler.Profile{{Start: start, Frequency: 97}}, 0, 0, 0},
		{"workloads too large for one request make two", window(2, 2000, 26, 10000, start), 300 << 10, 2, 3},
		{"a profile too large for one request is split by its samples", window(1, 2800, 26, 10000, start), 200 << 10, 3, 3},
		{"workloads with the same labels are told apart by time", append(window(1, 10, 26, 10, start), flat(1), flat(2)), 0, 1, 3},
		{"a profile of too many samples is split within a request", []*profiler.Profile{flat(limits.SamplesPerProfile + 1)}, 8 << 20, 1, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			requests, dropped, err := NewEncoder(EncoderConfig{PushBytes: test.limit}).Encode(test.profiles)
			if err != nil || dropped != 0 {
				t.Fatalf("%d dropped, %v", dropped, err)
			}
			pieces, samples := 0, uint64(0)
			byService := map[string]int64{}
			times := map[string]bool{}
			for _, r := range requests {
				all := see(t, r.Body)
				pieces += len(all)
				samples += r.Samples
				if r.Profiles != len(all) {
					t.Errorf("a request says %d profiles and has %d", r.Profiles, len(all))
				}
				for _, s := range all {
					if s.samples > limits.SamplesPerProfile {
						t.Errorf("a profile has %d samples", s.samples)
					}
					service := s.labels["service.name"]
					if at := s.time.Sub(start); at < 0 || at > time.Second || times[service+at.String()] {
						t.Errorf("a part of %s is %s after the start: want a time of its own close to it", service, at)
					} else {
						times[service+at.String()] = true
					}
					for _, ns := range s.stacks {
						byService[service] += ns / s.period
					}
				}
				if want := max(test.limit, limits.PushBytes); len(r.Body) > want {
					t.Errorf("a request has %d bytes, want at most %d", len(r.Body), want)
				}
			}
			if len(requests) != test.requests || pieces != test.pieces {
				t.Errorf("%d requests with %d profiles, want %d with %d", len(requests), pieces, test.requests, test.pieces)
			}
			if want := samplesOf(test.profiles); samples != want {
				t.Errorf("%d samples in the requests, want %d", samples, want)
			}
			for _, p := range test.profiles {
				service := "unknown_service"
				if p.Workload != nil {
					service = p.Workload.Attribute("service.name")
				}
				byService[service] -= int64(samplesOf([]*profiler.Profile{p}))
			}
			for service, n := range byService {
				if n != 0 {
					t.Errorf("%s: %d samples too many", service, n)
				}
			}
		})
	}
}

// monster is a stack that alone is more than a request may be: every location
// has inlined calls with names of the full length.
func monster() *profiler.Stack {
	s := &profiler.Stack{Stop: profiler.StopRoot}
	for i := range limits.Depth {
		l := &profiler.Location{Module: &profiler.Module{Path: "/bin/monster"}}
		for j := range 4 {
			l.Frames = append(l.Frames, profiler.Frame{Function: fmt.Sprint(i, j, strings.Repeat("x", 5000))})
		}
		s.Locations = append(s.Locations, l)
	}
	return s
}

func TestDroppedIsCounted(t *testing.T) {
	good := shop(time.Now())
	bad := shop(time.Now())[0]
	bad.Samples = append([]profiler.Sample{{Stack: monster(), Count: 7}}, bad.Samples...)
	noRate := shop(time.Now())[1]
	noRate.Frequency = 0
	requests, dropped, err := NewEncoder(EncoderConfig{}).Encode([]*profiler.Profile{good[0], bad, noRate, good[1]})
	if err != nil {
		t.Fatal(err)
	}
	if want := uint64(7 + 3); dropped != want {
		t.Errorf("%d dropped, want %d: of the stack that is too large, and of the profile without a rate", dropped, want)
	}
	var sent uint64
	for _, r := range requests {
		sent += r.Samples
		if len(r.Body) > 10000 {
			t.Errorf("a request has %d bytes: something of what was dropped is in it", len(r.Body))
		}
	}
	if sent != 203 {
		t.Errorf("%d sent, want 203", sent)
	}
}

func TestProfilesAreNotChanged(t *testing.T) {
	start := time.Now()
	profiles := shop(start)
	if _, _, err := NewEncoder(EncoderConfig{}).Encode(profiles); err != nil {
		t.Fatal(err)
	}
	again, _, err := NewEncoder(EncoderConfig{}).Encode(profiles)
	if err != nil {
		t.Fatal(err)
	}
	fresh, _, err := NewEncoder(EncoderConfig{}).Encode(shop(start))
	if err != nil {
		t.Fatal(err)
	}
	if string(again[0].Body) != string(fresh[0].Body) {
		t.Error("the second request of the same profiles differs from that of fresh ones")
	}
}

// FuzzHostileNames puts foreign bytes everywhere that names can stand. Whatever
// they are, the request must be one that a server takes whole.
func FuzzHostileNames(f *testing.F) {
	f.Add("main", "main.c", "/bin/app", "abc", "service.name", "shop", uint64(0x1000), 3, 10)
	f.Add("\xff\xfe", "\x00", "", "\xff", "k8s.pod.label.a/b-c", "\u202e", uint64(1<<63), -5, 2000)
	f.Add(strings.Repeat("é", 4000), strings.Repeat("\xff", 9000), "\u2028", "A", "__name__", strings.Repeat("ü", 3000), uint64(0), 1<<31-1, 1)
	f.Fuzz(func(t *testing.T, function, file, path, buildID, key, value string, address uint64, line, depth int) {
		l := &profiler.Location{
			Module: &profiler.Module{Path: path, BuildID: buildID}, Address: address,
			Frames: []profiler.Frame{{Function: function, File: file, Line: line}},
		}
		s := &profiler.Stack{Stop: profiler.Stop(address)}
		for range min(max(depth, 0), 3000) {
			s.Locations = append(s.Locations, l)
		}
		p := &profiler.Profile{
			Workload:  &profiler.Workload{Attributes: []profiler.Attribute{{Key: key, Value: value}, {Key: "k8s.pod.name", Value: value}}},
			Frequency: 97, Samples: []profiler.Sample{{Stack: s, Count: 1}, {Count: 1}},
		}
		requests, dropped, err := NewEncoder(EncoderConfig{}).Encode([]*profiler.Profile{p})
		if err != nil || dropped != 0 || len(requests) != 1 || requests[0].Samples != 2 {
			t.Fatalf("%d requests, %d dropped, %v", len(requests), dropped, err)
		}
		checkStrings(t, requests[0].Body)
		for _, s := range see(t, requests[0].Body) {
			if s.labels["service.name"] == "" || len(s.labels) > limits.LabelNames {
				t.Errorf("labels are %q", s.labels)
			}
			for stack := range s.stacks {
				if stack == "" {
					t.Error("a stack without a frame is seen nowhere")
				}
			}
		}
	})
}

// checkStrings fails where a server would refuse the request for a string in it.
func checkStrings(t *testing.T, body []byte) {
	t.Helper()
	request := decode(t, body)
	for _, s := range request.Dictionary.StringTable {
		if !utf8.ValidString(s) || len(s) > 65535 {
			t.Errorf("string %q is not for a server", s)
		}
	}
	for _, rp := range request.ResourceProfiles {
		for _, kv := range rp.Resource.Attributes {
			if v := kv.Value.GetStringValue(); !utf8.ValidString(v) || len(v) > 2048 || v == "" {
				t.Errorf("the value %q of %s is not for a server", v, kv.Key)
			}
			if strings.Trim(kv.Key, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.") != "" || kv.Key == "" || strings.HasPrefix(kv.Key, "__") {
				t.Errorf("the key %q is not for a server", kv.Key)
			}
		}
	}
	for _, f := range request.Dictionary.FunctionTable[1:] {
		if f.NameStrindex == 0 {
			t.Error("a function has no name")
		}
	}
	for _, l := range request.Dictionary.LocationTable[1:] {
		if len(l.Lines) == 0 {
			t.Error("a location has no line")
		}
		for _, line := range l.Lines {
			if line.FunctionIndex <= 0 || line.Line < 0 {
				t.Errorf("a line is %v", line)
			}
		}
	}
}

// A message that newer pdata would write has references where Pyroscope reads
// strings. If the tests above do not see that, they see nothing.
func TestContractTestsCanFail(t *testing.T) {
	requests, _, err := NewEncoder(EncoderConfig{}).Encode(shop(time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	request := decode(t, requests[0].Body)
	for _, kv := range request.ResourceProfiles[0].Resource.Attributes {
		// Field 3 is the key's index in the string table, as of OTLP 1.10.
		kv.Key = ""
		kv.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 3, protowire.VarintType), 5))
	}
	body, err := proto.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range decode(t, body).ResourceProfiles[0].Resource.Attributes {
		if kv.Key != "" {
			t.Fatalf("key %q came from a reference: this module is not the one that Pyroscope links", kv.Key)
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	profiles := window(20, 2800, 26, 10000, time.Now())
	e := NewEncoder(EncoderConfig{})
	b.ReportAllocs()
	body, zipped := 0, 0
	for b.Loop() {
		requests, _, err := e.Encode(profiles)
		if err != nil || len(requests) != 1 {
			b.Fatalf("%d requests, %v", len(requests), err)
		}
		body = len(requests[0].Body)
		if zipped == 0 {
			var z bytes.Buffer
			if err := gz.Write(&z, gz.Small, requests[0].Body); err != nil {
				b.Fatal(err)
			}
			zipped = z.Len()
		}
	}
	b.ReportMetric(float64(body), "bytes")
	b.ReportMetric(float64(zipped), "gzip-bytes")
}

func BenchmarkCompress(b *testing.B) {
	requests, _, err := NewEncoder(EncoderConfig{}).Encode(window(20, 2800, 26, 10000, time.Now()))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := gz.Write(io.Discard, gz.Small, requests[0].Body); err != nil {
			b.Fatal(err)
		}
	}
}
