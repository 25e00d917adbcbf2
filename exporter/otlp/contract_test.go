package otlp

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	collector "go.opentelemetry.io/proto/otlp/collector/profiles/v1development"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	profiles "go.opentelemetry.io/proto/otlp/profiles/v1development"
	"google.golang.org/protobuf/proto"
)

// These tests read requests with the module that Pyroscope 1.20 to 2.2.1 links
// (profiles/v1development v0.3.0), and by its rules: attribute keys and values
// stand inline, sample values are field 4, and what a table's index does not
// find is silently nothing. They are what tells after an update of pdata that
// labels or values would vanish on a server that answers 200.

// seen is what a server sees of one profile.
type seen struct {
	labels  map[string]string // of the resource
	sample  map[string]string // that every sample has
	stacks  map[string]int64  // nanoseconds
	period  int64
	samples int
	time    time.Time
	seconds float64
}

func decode(t *testing.T, body []byte) *collector.ExportProfilesServiceRequest {
	t.Helper()
	var request collector.ExportProfilesServiceRequest
	if err := proto.Unmarshal(body, &request); err != nil {
		t.Fatalf("decode as Pyroscope does: %v", err)
	}
	return &request
}

func see(t *testing.T, body []byte) []seen {
	t.Helper()
	request := decode(t, body)
	var out []seen
	for _, rp := range request.ResourceProfiles {
		for _, sp := range rp.ScopeProfiles {
			for _, p := range sp.Profiles {
				out = append(out, seeProfile(t, request.Dictionary, rp.Resource.GetAttributes(), p))
			}
		}
	}
	return out
}

func seeProfile(t *testing.T, d *profiles.ProfilesDictionary, resource []*common.KeyValue, p *profiles.Profile) seen {
	t.Helper()
	s := seen{
		labels: map[string]string{}, stacks: map[string]int64{}, period: p.Period, samples: len(p.Samples),
		time: time.Unix(0, int64(p.TimeUnixNano)), seconds: time.Duration(p.DurationNano).Seconds(),
	}
	kind := func(v *profiles.ValueType) string {
		return d.StringTable[v.GetTypeStrindex()] + "/" + d.StringTable[v.GetUnitStrindex()]
	}
	if got := kind(p.SampleType) + " " + kind(p.PeriodType); got != "samples/count cpu/nanoseconds" {
		t.Errorf("types are %s", got)
	}
	for _, kv := range resource {
		value, ok := kv.GetValue().GetValue().(*common.AnyValue_StringValue)
		if kv.Key == "" || !ok || value.StringValue == "" {
			t.Errorf("resource attribute %q is not an inline string: %v", kv.Key, kv.Value)
			continue
		}
		s.labels[kv.Key] = value.StringValue
	}
	for i, sample := range p.Samples {
		if len(sample.Values) != 1 || len(sample.TimestampsUnixNano) != 0 || sample.LinkIndex != 0 {
			t.Errorf("sample %d has values %v and timestamps %v", i, sample.Values, sample.TimestampsUnixNano)
			continue
		}
		labels := map[string]string{}
		for _, a := range sample.AttributeIndices {
			kv := d.AttributeTable[a]
			labels[d.StringTable[kv.KeyStrindex]] = kv.GetValue().GetStringValue()
		}
		if i == 0 {
			s.sample = labels
		} else if diff := cmp.Diff(labels, s.sample); diff != "" {
			t.Errorf("sample %d has other labels than sample 0 (-got +want):\n%s", i, diff)
		}
		s.stacks[collapse(seeStack(t, d, d.StackTable[sample.StackIndex]))] += sample.Values[0] * p.Period
	}
	return s
}

func seeStack(t *testing.T, d *profiles.ProfilesDictionary, s *profiles.Stack) []call {
	t.Helper()
	var out []call
	for _, i := range s.LocationIndices {
		for _, l := range d.LocationTable[i].Lines {
			f := d.FunctionTable[l.FunctionIndex]
			out = append(out, call{d.StringTable[f.NameStrindex], d.StringTable[f.FilenameStrindex], l.Line})
		}
	}
	if len(s.LocationIndices) > 1000 {
		t.Errorf("a stack has %d locations: the server would drop its leaf", len(s.LocationIndices))
	}
	slices.Reverse(out)
	return out
}

func TestPyroscopeSeesWhatWasSampled(t *testing.T) {
	start := time.Now().Add(-15 * time.Second).Truncate(time.Microsecond)
	requests, dropped, err := NewEncoder(EncoderConfig{Version: "1.2.3"}).Encode(shop(start))
	if err != nil || dropped != 0 || len(requests) != 1 {
		t.Fatalf("%d requests, %d dropped, %v", len(requests), dropped, err)
	}
	r := requests[0]
	if r.Profiles != 2 || r.Samples != 103 || !r.Time.Equal(start.Add(15*time.Second)) {
		t.Errorf("the request says %d profiles, %d samples, %s", r.Profiles, r.Samples, r.Time)
	}
	all := see(t, r.Body)
	if len(all) != 2 {
		t.Fatalf("%d profiles, want 2", len(all))
	}
	for _, s := range all {
		service := s.labels["service.name"]
		if diff := cmp.Diff(s.stacks, shopStacks()[service]); diff != "" {
			t.Errorf("%s: stacks (-got +want):\n%s", service, diff)
		}
		want := shopLabels()[service]
		if diff := cmp.Diff(s.labels, want); diff != "" {
			t.Errorf("%s: labels of the resource (-got +want):\n%s", service, diff)
		}
		if diff := cmp.Diff(s.sample, want); diff != "" {
			t.Errorf("%s: labels of the samples (-got +want):\n%s", service, diff)
		}
		if !s.time.Equal(start) || s.seconds != 15 {
			t.Errorf("%s: %s for %gs, want %s for 15s", service, s.time, s.seconds, start)
		}
	}
	if all[0].period != 10_000_000 || all[1].period != int64(time.Second)/97 {
		t.Errorf("periods are %d and %d", all[0].period, all[1].period)
	}
	if all[0].samples != 5 {
		t.Errorf("%d samples of the first, want 5: equal stacks of several processes are one", all[0].samples)
	}
}

func TestDictionary(t *testing.T) {
	requests, _, err := NewEncoder(EncoderConfig{Version: "1.2.3"}).Encode(shop(time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	request := decode(t, requests[0].Body)
	d := request.Dictionary
	t.Run("index 0 of each table is empty", func(t *testing.T) {
		for name, empty := range map[string]bool{
			"strings":    d.StringTable[0] == "",
			"functions":  proto.Size(d.FunctionTable[0]) == 0,
			"mappings":   proto.Size(d.MappingTable[0]) == 0,
			"locations":  proto.Size(d.LocationTable[0]) == 0,
			"stacks":     proto.Size(d.StackTable[0]) == 0,
			"attributes": d.AttributeTable[0].KeyStrindex == 0,
			"links":      len(d.LinkTable) == 1,
		} {
			if !empty {
				t.Errorf("%s: it is not", name)
			}
		}
	})
	t.Run("nothing stands twice", func(t *testing.T) {
		twice(t, "string", d.StringTable)
		twice(t, "function", d.FunctionTable)
		twice(t, "mapping", d.MappingTable)
		twice(t, "location", d.LocationTable)
		twice(t, "stack", d.StackTable)
		twice(t, "attribute", d.AttributeTable)
	})
	t.Run("mappings have file names and build IDs", func(t *testing.T) {
		got := map[string]string{}
		for _, m := range d.MappingTable[1:] {
			id := ""
			for _, a := range m.AttributeIndices {
				id += d.StringTable[d.AttributeTable[a].KeyStrindex] + "=" + d.AttributeTable[a].Value.GetStringValue()
			}
			got[d.StringTable[m.FilenameStrindex]] = id
		}
		want := map[string]string{
			"[kernel]":             "",
			"/srv/checkout":        "process.executable.build_id.gnu=0123456789abcdef0123456789abcdef01234567",
			"/usr/lib/libfoo.so.1": "",
			"/srv/cart":            "process.executable.build_id.go=eXl1/abc/def/ghi",
		}
		if diff := cmp.Diff(got, want); diff != "" {
			t.Errorf("(-got +want):\n%s", diff)
		}
	})
	t.Run("addresses are sent where there is no name", func(t *testing.T) {
		for _, l := range d.LocationTable[1:] {
			name := d.StringTable[d.FunctionTable[l.Lines[0].FunctionIndex].NameStrindex]
			if want := map[bool]uint64{true: 0x2345}[name == "libfoo.so.1+0x2300"]; l.Address != want {
				t.Errorf("%s: address %#x, want %#x", name, l.Address, want)
			}
		}
	})
	t.Run("the scope says who made it", func(t *testing.T) {
		s := request.ResourceProfiles[0].ScopeProfiles[0].Scope
		if s.GetName() != scope || s.GetVersion() != "1.2.3" {
			t.Errorf("it says %q", s)
		}
	})
}

func twice[T any](t *testing.T, what string, all []T) {
	t.Helper()
	seen := map[string]bool{}
	for _, v := range all {
		var key string
		switch v := any(v).(type) {
		case string:
			key = v
		case proto.Message:
			b, err := proto.MarshalOptions{Deterministic: true}.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			key = string(b)
		}
		if seen[key] {
			t.Errorf("%s %q stands twice", what, key)
		}
		seen[key] = true
	}
}
