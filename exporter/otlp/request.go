package otlp

import (
	"fmt"

	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pprofile"
	"go.opentelemetry.io/collector/pdata/pprofile/pprofileotlp"

	"github.com/kalypso-dev/kalypso/exporter"
	"github.com/kalypso-dev/kalypso/exporter/pyroscope/limits"
	"github.com/kalypso-dev/kalypso/profiler"
)

// scope names what made the profiles.
const scope = "github.com/kalypso-dev/kalypso"

// request makes the message of a batch. It is marshalled as an ExportRequest:
// ProtoMarshaler would replace the labels by references into the string table,
// which Pyroscope does not read.
func (e *Encoder) request(t *table, b batch) (*exporter.Request, error) {
	out := pprofile.NewProfiles()
	d := newDictionary(t, out.Dictionary())
	r := &exporter.Request{Profiles: len(b)}
	resources := out.ResourceProfiles()
	resources.EnsureCapacity(len(b))
	for i := range b {
		p := &b[i]
		rp := resources.AppendEmpty()
		resource := rp.Resource().Attributes()
		resource.EnsureCapacity(len(p.labels))
		for _, l := range p.labels {
			resource.PutStr(l.Key, l.Value)
		}
		sp := rp.ScopeProfiles().AppendEmpty()
		sp.Scope().SetName(scope)
		sp.Scope().SetVersion(e.config.Version)
		r.Samples += fill(sp.Profiles().AppendEmpty(), d, p)
		if end := p.profile.Start.Add(p.profile.Duration); i == 0 || end.Before(r.Time) {
			r.Time = end
		}
	}
	body, err := pprofileotlp.NewExportRequestFromProfiles(out).MarshalProto()
	if err != nil {
		return nil, fmt.Errorf("encode %d profiles: %w", len(b), err)
	}
	r.Body = body
	return r, nil
}

// fill writes one profile and gives the number of its samples. Its value is a
// count, and its period says how long one sample is: Pyroscope multiplies them
// and shows CPU time. No timestamps: Pyroscope drops them, and refuses several
// values in a sample of this type.
func fill(out pprofile.Profile, d *dictionary, p *piece) uint64 {
	setTime(out, p)
	setType(out.SampleType(), d, "samples", "count")
	setType(out.PeriodType(), d, "cpu", "nanoseconds")
	out.SetPeriod(p.profile.Period().Nanoseconds())
	attributes := make([]int32, len(p.labels))
	for i, l := range p.labels {
		attributes[i] = d.attribute(l.Key, l.Value)
	}
	samples := out.Samples()
	samples.EnsureCapacity(len(p.samples))
	var n uint64
	for _, s := range p.samples {
		to := samples.AppendEmpty()
		to.SetStackIndex(d.stack(s.stack))
		to.Values().Append(int64(s.count))
		to.AttributeIndices().FromRaw(attributes)
		n += s.count
	}
	return n
}

func setTime(out pprofile.Profile, p *piece) {
	if start := limits.Time(p.profile.Start, p.part); !start.IsZero() {
		out.SetTime(pcommon.NewTimestampFromTime(start))
	}
	out.SetDurationNano(uint64(max(p.profile.Duration, 0)))
}

func setType(out pprofile.ValueType, d *dictionary, name, unit string) {
	out.SetTypeStrindex(d.text(name))
	out.SetUnitStrindex(d.text(unit))
}

// dictionary is the part of a table that one request needs. Index 0 of each of
// its tables is empty, as OTLP wants it; so 0 in the slices here is "not yet".
type dictionary struct {
	table *table
	out   pprofile.ProfilesDictionary

	strings, functions, mappings, locations, stacks []int32 // index here by index in table

	attributes map[profiler.Attribute]int32
}

func newDictionary(t *table, out pprofile.ProfilesDictionary) *dictionary {
	out.StringTable().Append("")
	out.FunctionTable().AppendEmpty()
	out.MappingTable().AppendEmpty()
	out.LocationTable().AppendEmpty()
	out.StackTable().AppendEmpty()
	out.AttributeTable().AppendEmpty()
	out.LinkTable().AppendEmpty()
	return &dictionary{
		table: t, out: out,
		strings:    make([]int32, len(t.strings)),
		functions:  make([]int32, len(t.functions)),
		mappings:   make([]int32, len(t.mappings)),
		locations:  make([]int32, len(t.locations)),
		stacks:     make([]int32, len(t.stacks)),
		attributes: map[profiler.Attribute]int32{},
	}
}

func (d *dictionary) stack(i int32) int32 {
	if i == 0 || d.stacks[i] != 0 {
		return d.stacks[i]
	}
	from := d.table.stacks[i].locations
	indices := d.out.StackTable().AppendEmpty().LocationIndices()
	indices.EnsureCapacity(len(from))
	for _, l := range from {
		indices.Append(d.location(l))
	}
	d.stacks[i] = int32(d.out.StackTable().Len() - 1)
	return d.stacks[i]
}

func (d *dictionary) location(i int32) int32 {
	if i == 0 || d.locations[i] != 0 {
		return d.locations[i]
	}
	from := &d.table.locations[i]
	to := d.out.LocationTable().AppendEmpty()
	to.SetMappingIndex(d.mapping(from.mapping))
	to.SetAddress(from.address)
	if kind := frameType(from.kind); kind != "" {
		to.AttributeIndices().Append(d.attribute("profile.frame.type", kind))
	}
	to.Lines().EnsureCapacity(len(from.lines))
	for _, l := range from.lines {
		line := to.Lines().AppendEmpty()
		line.SetFunctionIndex(d.function(l.function))
		line.SetLine(int64(l.number))
	}
	d.locations[i] = int32(d.out.LocationTable().Len() - 1)
	return d.locations[i]
}

// frameType is OpenTelemetry's word for a kind of frame, empty where it has
// none. Pyroscope ignores it.
func frameType(k profiler.FrameKind) string {
	switch k {
	case profiler.KindNative, profiler.KindKernel, profiler.KindGo:
		return k.String()
	}
	return ""
}

func (d *dictionary) function(i int32) int32 {
	if i == 0 || d.functions[i] != 0 {
		return d.functions[i]
	}
	from := d.table.functions[i]
	to := d.out.FunctionTable().AppendEmpty()
	to.SetNameStrindex(d.string(from.name))
	to.SetFilenameStrindex(d.string(from.file))
	d.functions[i] = int32(d.out.FunctionTable().Len() - 1)
	return d.functions[i]
}

func (d *dictionary) mapping(i int32) int32 {
	if i == 0 || d.mappings[i] != 0 {
		return d.mappings[i]
	}
	from := d.table.mappings[i]
	to := d.out.MappingTable().AppendEmpty()
	to.SetFilenameStrindex(d.string(from.file))
	if id := d.table.strings[from.buildID]; id != "" {
		to.AttributeIndices().Append(d.attribute(buildIDKey(id), id))
	}
	d.mappings[i] = int32(d.out.MappingTable().Len() - 1)
	return d.mappings[i]
}

// buildIDKey tells GNU's build IDs, which are hex digits, from those of Go,
// which are not. Pyroscope takes no notice of the latter.
func buildIDKey(id string) string {
	for i := 0; i < len(id); i++ {
		if c := id[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return "process.executable.build_id.go"
		}
	}
	return "process.executable.build_id.gnu"
}

func (d *dictionary) attribute(key, value string) int32 {
	a := profiler.Attribute{Key: key, Value: value}
	if i, ok := d.attributes[a]; ok {
		return i
	}
	to := d.out.AttributeTable().AppendEmpty()
	to.SetKeyStrindex(d.text(key))
	to.Value().SetStr(value)
	i := int32(d.out.AttributeTable().Len() - 1)
	d.attributes[a] = i
	return i
}

// string gives the index of a string of the table.
func (d *dictionary) string(i int32) int32 {
	if i == 0 || d.strings[i] != 0 {
		return d.strings[i]
	}
	d.out.StringTable().Append(d.table.strings[i])
	d.strings[i] = int32(d.out.StringTable().Len() - 1)
	return d.strings[i]
}

// text gives the index of a string that the table may not have yet.
func (d *dictionary) text(s string) int32 {
	i := d.table.string(s)
	d.strings = grow(d.strings, len(d.table.strings))
	return d.string(i)
}
