// Package pyroscope sends profiles the way that Pyroscope's own clients do:
// pprof with free labels, by PusherService/Push over Connect. It is the way for
// servers with another version of OTLP's profiles, of which Pyroscope takes
// just one at a time: this message has not changed since 1.0.
//
// The message's few fields are written here (api/push/v1/push.proto and
// api/types/v1/types.proto of Pyroscope), since the module that has them is the
// server's. What a server takes is in package limits.
package pyroscope

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	pprof "github.com/google/pprof/profile"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kalypso-dev/kalypso/exporter"
	"github.com/kalypso-dev/kalypso/exporter/format"
	"github.com/kalypso-dev/kalypso/exporter/internal/gz"
	"github.com/kalypso-dev/kalypso/exporter/pyroscope/limits"
	"github.com/kalypso-dev/kalypso/profiler"
)

// EncoderConfig is how profiles are encoded. Its zero value works.
type EncoderConfig struct {
	// PushBytes is what one request may be charged; 0: limits.PushBytes.
	PushBytes int
}

// Encoder makes push requests of profiles. It keeps nothing from one call to
// the next.
type Encoder struct{ config EncoderConfig }

// NewEncoder makes an encoder.
func NewEncoder(c EncoderConfig) *Encoder {
	if c.PushBytes == 0 {
		c.PushBytes = limits.PushBytes
	}
	return &Encoder{c}
}

// Encode makes one request of the profiles, or more where a server would
// refuse one of that size. The samples that it drops are those of a profile
// without a rate, and those whose stack alone is too large for a request.
func (e *Encoder) Encode(profiles []*profiler.Profile) ([]*exporter.Request, uint64, error) {
	var out []*exporter.Request
	var dropped uint64
	charge := 0
	parts := make(map[string]int)
	for _, p := range profiles {
		series, lost, err := e.series(p, parts)
		if err != nil {
			return nil, 0, err
		}
		dropped += lost
		for _, s := range series {
			if len(out) == 0 || charge+s.charge > e.config.PushBytes {
				out, charge = append(out, &exporter.Request{}), 0
			}
			r := out[len(out)-1]
			if end := p.Start.Add(p.Duration); r.Profiles == 0 || end.Before(r.Time) {
				r.Time = end
			}
			charge += s.charge
			r.Profiles++
			r.Samples += s.samples
			r.Body = appendMessage(r.Body, 1, s.message)
		}
	}
	return out, dropped, nil
}

// series is one profile, or a piece of one, with its labels.
type series struct {
	message []byte
	samples uint64
	charge  int // uncompressed, with the labels
}

// series encodes a profile. One that is too large is cut in two until its
// pieces are not: the backend adds up what it has of the same labels. Each has
// a number among those of its labels, in parts.
func (e *Encoder) series(p *profiler.Profile, parts map[string]int) (out []series, dropped uint64, err error) {
	labels := limits.Plain(limits.Labels(p.Workload))
	charge := 0
	for _, l := range labels {
		charge += len(l.Key) + len(l.Value)
	}
	key := fmt.Sprint(labels)
	pieces := [][]profiler.Sample{merged(p.Samples)}
	for len(pieces) > 0 {
		samples := pieces[len(pieces)-1]
		pieces = pieces[:len(pieces)-1]
		if len(samples) == 0 {
			continue
		}
		count := sum(samples)
		if p.Period() <= 0 {
			dropped += count
			continue
		}
		var raw bytes.Buffer
		if len(samples) <= limits.SamplesPerProfile {
			if err := piece(p, samples, parts[key]).WriteUncompressed(&raw); err != nil {
				return nil, 0, fmt.Errorf("encode pprof: %w", err)
			}
		}
		switch size := raw.Len() + charge; {
		case size <= e.config.PushBytes && raw.Len() > 0:
			message, err := message(labels, raw.Bytes())
			if err != nil {
				return nil, 0, err
			}
			out = append(out, series{message, count, size})
			parts[key]++
		case len(samples) == 1:
			dropped += count
		default:
			half := len(samples) / 2
			pieces = append(pieces, samples[half:], samples[:half])
		}
	}
	return out, dropped, nil
}

func sum(samples []profiler.Sample) (n uint64) {
	for i := range samples {
		n += samples[i].Count
	}
	return n
}

// merged gives the samples without process and thread, each stack once, with
// stacks as they may be sent.
func merged(samples []profiler.Sample) []profiler.Sample {
	out := make([]profiler.Sample, 0, len(samples))
	numbers := make(map[*profiler.Location]uint32)
	at := make(map[string]int, len(samples))
	var key []byte
	for i := range samples {
		if samples[i].Count == 0 {
			continue
		}
		locations := limits.Locations(nil, samples[i].Stack)
		key = key[:0]
		for _, l := range locations {
			n, ok := numbers[l]
			if !ok {
				n = uint32(len(numbers))
				numbers[l] = n
			}
			key = binary.LittleEndian.AppendUint32(key, n)
		}
		if j, ok := at[string(key)]; ok {
			out[j].Count += samples[i].Count
			continue
		}
		at[string(key)] = len(out)
		// The stack's markers are locations already.
		out = append(out, profiler.Sample{Stack: &profiler.Stack{Locations: locations, Stop: profiler.StopRoot}, Count: samples[i].Count})
	}
	return out
}

// piece makes pprof of some samples: CPU time only, since each type of a sample
// becomes a series of its own, and without labels, since each label of a
// sample does so too.
func piece(p *profiler.Profile, samples []profiler.Sample, part int) *pprof.Profile {
	from := *p
	from.Samples, from.Start = samples, limits.Time(p.Start, part)
	out := format.PprofProfile(&from)
	time := slices.IndexFunc(out.SampleType, func(v *pprof.ValueType) bool { return v.Type == "cpu" })
	out.SampleType = out.SampleType[time : time+1]
	out.DefaultSampleType = ""
	out.Comments = nil
	for _, s := range out.Sample {
		s.Value = s.Value[time : time+1]
		s.Label, s.NumLabel, s.NumUnit = nil, nil, nil
	}
	for _, l := range out.Location {
		l.Address = 0 // every location has a name, and the server drops it
	}
	for _, f := range out.Function {
		f.Name, f.Filename = limits.Name(f.Name), limits.Name(f.Filename)
		f.SystemName = f.Name
	}
	for _, m := range out.Mapping {
		m.File, m.BuildID = limits.Name(m.File), limits.Name(m.BuildID)
	}
	return out
}

// profileName makes the profile's type process_cpu:cpu:nanoseconds:cpu:nanoseconds.
const profileName = "process_cpu"

// message makes a RawProfileSeries of one sample.
func message(labels []profiler.Attribute, raw []byte) ([]byte, error) {
	var zipped bytes.Buffer
	if err := gz.Write(&zipped, gz.Small, raw); err != nil {
		return nil, fmt.Errorf("write pprof: %w", err)
	}
	label := func(name, value string) []byte {
		return appendMessage(appendMessage(nil, 1, []byte(name)), 2, []byte(value))
	}
	out := appendMessage(nil, 1, label("__name__", profileName))
	for _, l := range labels {
		out = appendMessage(out, 1, label(l.Key, l.Value))
	}
	return appendMessage(out, 2, appendMessage(nil, 1, zipped.Bytes())), nil
}

// appendMessage appends a field of bytes: a message, or a string.
func appendMessage(dst []byte, field protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(dst, field, protowire.BytesType), value)
}
