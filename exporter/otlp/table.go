package otlp

import (
	"encoding/binary"
	"slices"

	"github.com/kalypso-dev/kalypso/exporter/pyroscope/limits"
	"github.com/kalypso-dev/kalypso/profiler"
)

// table holds everything of a window once, whichever profiles have it. A
// request's dictionary is made of the part that the request needs. Index 0 of
// each is the empty one, as in OTLP.
type table struct {
	strings   []string
	functions []function
	mappings  []mapping
	locations []location
	stacks    []stack

	stringOf   map[string]int32
	functionOf map[function]int32
	mappingOf  map[profiler.Module]int32
	locationOf map[string]int32 // by the bytes of key
	stackOf    map[string]int32
	pointerOf  map[*profiler.Location]int32

	key     []byte
	scratch []*profiler.Location
	indices []int32
	seen    []int32
}

type function struct{ name, file int32 }

type mapping struct{ file, buildID int32 }

type line struct {
	function int32
	number   int
}

type location struct {
	mapping int32
	address uint64
	kind    profiler.FrameKind
	lines   []line
	charge  int // bytes as pprof
}

type stack struct {
	locations []int32 // leaf first
	modules   int     // different ones in them
}

func newTable() *table {
	return &table{
		strings:    []string{""},
		functions:  []function{{}},
		mappings:   []mapping{{}},
		locations:  []location{{}},
		stacks:     []stack{{}},
		stringOf:   map[string]int32{"": 0},
		functionOf: map[function]int32{},
		mappingOf:  map[profiler.Module]int32{},
		locationOf: map[string]int32{},
		stackOf:    map[string]int32{},
		pointerOf:  map[*profiler.Location]int32{},
	}
}

// stack gives the index of a stack. Stacks that differ in nothing that is sent
// are one: of several processes, or of several addresses in one line.
func (t *table) stack(s *profiler.Stack) int32 {
	t.scratch = limits.Locations(t.scratch[:0], s)
	t.indices, t.key = t.indices[:0], t.key[:0]
	for _, l := range t.scratch {
		i, ok := t.pointerOf[l]
		if !ok {
			i = t.location(l)
			t.pointerOf[l] = i
		}
		t.indices = append(t.indices, i)
	}
	for _, i := range t.indices {
		t.key = binary.LittleEndian.AppendUint32(t.key, uint32(i))
	}
	if i, ok := t.stackOf[string(t.key)]; ok {
		return i
	}
	i := int32(len(t.stacks))
	t.stacks = append(t.stacks, stack{append([]int32(nil), t.indices...), t.modules(t.indices)})
	t.stackOf[string(t.key)] = i
	return i
}

// modules counts the different modules in a stack.
func (t *table) modules(locations []int32) int {
	t.seen = t.seen[:0]
	for _, l := range locations {
		if m := t.locations[l].mapping; !slices.Contains(t.seen, m) {
			t.seen = append(t.seen, m)
		}
	}
	return len(t.seen)
}

// location gives the index of a location. The address is sent only where there
// is no name: elsewhere the server drops it, and without it all addresses of a
// line are one location.
func (t *table) location(l *profiler.Location) int32 {
	out := location{mapping: t.mapping(l.Module), lines: make([]line, 0, max(1, len(l.Frames)))}
	if len(l.Frames) == 0 {
		out.address = l.Address
		out.lines = append(out.lines, line{function: t.function(profiler.FrameName(l, nil), "")})
	}
	for i := range l.Frames {
		f := &l.Frames[i]
		if f.Function == "" {
			out.address = l.Address
		}
		out.lines = append(out.lines, line{t.function(profiler.FrameName(l, f), f.File), max(f.Line, 0)})
		out.kind = f.Kind
	}
	key := binary.AppendUvarint(nil, uint64(out.mapping))
	key = binary.AppendUvarint(key, out.address)
	key = append(key, byte(out.kind))
	for _, n := range out.lines {
		key = binary.AppendUvarint(key, uint64(n.function))
		key = binary.AppendUvarint(key, uint64(n.number))
	}
	if i, ok := t.locationOf[string(key)]; ok {
		return i
	}
	out.charge = locationCharge(&out)
	i := int32(len(t.locations))
	t.locations = append(t.locations, out)
	t.locationOf[string(key)] = i
	return i
}

func (t *table) function(name, file string) int32 {
	f := function{t.string(limits.Name(name)), t.string(limits.Name(file))}
	if i, ok := t.functionOf[f]; ok {
		return i
	}
	i := int32(len(t.functions))
	t.functions = append(t.functions, f)
	t.functionOf[f] = i
	return i
}

// mapping gives the index of a module, 0 for none.
func (t *table) mapping(m *profiler.Module) int32 {
	if m == nil {
		return 0
	}
	if i, ok := t.mappingOf[*m]; ok {
		return i
	}
	i := int32(len(t.mappings))
	t.mappings = append(t.mappings, mapping{t.string(limits.Name(m.Path)), t.string(limits.Name(m.BuildID))})
	t.mappingOf[*m] = i
	return i
}

func (t *table) string(s string) int32 {
	if i, ok := t.stringOf[s]; ok {
		return i
	}
	i := int32(len(t.strings))
	t.strings = append(t.strings, s)
	t.stringOf[s] = i
	return i
}
