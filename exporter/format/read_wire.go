package format

import (
	"errors"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kalypso-dev/kalypso/profiler"
)

// pprofFile is a pprof file taken apart: numbers and texts are read, the tables
// are left as the bytes that they are in the file.
type pprofFile struct {
	types                                               []valueType // of a sample's values
	periodType                                          valueType
	period, start, duration                             int64
	comments                                            []string
	strings                                             []string
	rawMappings, rawFunctions, rawLocations, rawSamples [][]byte
}

type valueType struct{ name, unit string }

var (
	errReference = errors.New("it refers to something that is not in it")
	errTwice     = errors.New("it has two things under one number")
)

// wireField is one field of a message: a number, or bytes.
type wireField struct {
	id     protowire.Number
	number uint64
	bytes  []byte // nil: it is a number
}

// eachField calls f for each field of a message but those of fixed length and
// groups: profiles have none.
func eachField(message []byte, f func(wireField) error) error {
	for len(message) > 0 {
		id, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		field := wireField{id: id}
		switch kind {
		case protowire.VarintType:
			field.number, n = protowire.ConsumeVarint(message)
		case protowire.BytesType:
			field.bytes, n = protowire.ConsumeBytes(message)
		default:
			field.id = 0
			n = protowire.ConsumeFieldValue(id, kind, message)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		if field.id == 0 {
			continue
		}
		if err := f(field); err != nil {
			return err
		}
	}
	return nil
}

// numbers appends the elements of a repeated field, which may be packed.
func (f wireField) numbers(dst []uint64) ([]uint64, error) {
	if f.bytes == nil {
		return append(dst, f.number), nil
	}
	for rest := f.bytes; len(rest) > 0; {
		v, n := protowire.ConsumeVarint(rest)
		if n < 0 {
			return dst, protowire.ParseError(n)
		}
		dst, rest = append(dst, v), rest[n:]
	}
	return dst, nil
}

// takeApart reads what is no more than the limits allow.
func takeApart(data []byte) (*pprofFile, error) {
	if len(data) == 0 {
		return nil, errors.New("the file is empty")
	}
	p := &pprofFile{}
	var types, periodTypes [][]byte
	var comments []uint64
	messages := 0
	err := eachField(data, func(f wireField) (err error) {
		if messages++; messages > maxPprofMessages {
			return ErrTooLarge
		}
		switch f.id {
		case profileSampleType:
			types = append(types, f.bytes)
		case profilePeriodType:
			periodTypes = append(periodTypes, f.bytes)
		case profileSample:
			p.rawSamples = append(p.rawSamples, f.bytes)
		case profileMapping:
			p.rawMappings = append(p.rawMappings, f.bytes)
		case profileLocation:
			p.rawLocations = append(p.rawLocations, f.bytes)
		case profileFunction:
			p.rawFunctions = append(p.rawFunctions, f.bytes)
		case profileString:
			p.strings = append(p.strings, string(f.bytes))
		case profileComment:
			comments, err = f.numbers(comments)
		case profileTime:
			p.start = int64(f.number)
		case profileDuration:
			p.duration = int64(f.number)
		case profilePeriod:
			p.period = int64(f.number)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, message := range types {
		t, err := p.readType(message)
		if err != nil {
			return nil, err
		}
		p.types = append(p.types, t)
	}
	if len(types) == 0 {
		return nil, errors.New("it does not say what its samples count")
	}
	if n := len(periodTypes); n > 0 {
		if p.periodType, err = p.readType(periodTypes[n-1]); err != nil {
			return nil, err
		}
	}
	for _, i := range comments {
		c, err := p.text(i)
		if err != nil {
			return nil, err
		}
		p.comments = append(p.comments, c)
	}
	return p, nil
}

// text gives an entry of the string table.
func (p *pprofFile) text(i uint64) (string, error) {
	if i >= uint64(len(p.strings)) {
		return "", errReference
	}
	return p.strings[i], nil
}

func (p *pprofFile) readType(message []byte) (t valueType, err error) {
	err = eachField(message, func(f wireField) (err error) {
		switch f.id {
		case typeName:
			t.name, err = p.text(f.number)
		case typeUnit:
			t.unit, err = p.text(f.number)
		}
		return err
	})
	return t, err
}

// wireMapping is a mapping with its file and build ID as profiles have them.
type wireMapping struct {
	start, offset uint64
	module        profiler.Module
}

func (p *pprofFile) readMapping(message []byte) (id uint64, m wireMapping, err error) {
	err = eachField(message, func(f wireField) (err error) {
		switch f.id {
		case mappingID:
			id = f.number
		case mappingStart:
			m.start = f.number
		case mappingOffset:
			m.offset = f.number
		case mappingFile:
			m.module.Path, err = p.text(f.number)
		case mappingBuildID:
			m.module.BuildID, err = p.text(f.number)
		}
		return err
	})
	m.module.Path, m.module.BuildID = profiler.Printable(m.module.Path), profiler.Printable(m.module.BuildID)
	return id, m, err
}

// wireFunction is a function with texts as profiles have them.
type wireFunction struct {
	name, linkage, file string
	kind                profiler.FrameKind
	kindKnown           bool
}

func (p *pprofFile) readFunction(message []byte) (id uint64, fn wireFunction, err error) {
	err = eachField(message, func(f wireField) (err error) {
		switch f.id {
		case functionID:
			id = f.number
		case functionName:
			fn.name, err = p.text(f.number)
		case functionLinkage:
			fn.linkage, err = p.text(f.number)
		case functionFile:
			fn.file, err = p.text(f.number)
		}
		return err
	})
	if fn.linkage == fn.name {
		fn.linkage = ""
	}
	fn.name, fn.linkage, fn.file = profiler.Printable(fn.name), profiler.Printable(fn.linkage), profiler.Printable(fn.file)
	return id, fn, err
}

type wireLocation struct {
	mapping, address uint64 // 0: in no mapping
	lines            []wireLine
}

type wireLine struct {
	function uint64
	number   int64
}

func (p *pprofFile) readLocation(message []byte) (id uint64, l wireLocation, err error) {
	err = eachField(message, func(f wireField) error {
		switch f.id {
		case locationID:
			id = f.number
		case locationMapping:
			l.mapping = f.number
		case locationAddress:
			l.address = f.number
		case locationLine:
			var line wireLine
			err := eachField(f.bytes, func(f wireField) error {
				switch f.id {
				case lineFunction:
					line.function = f.number
				case lineNumber:
					line.number = int64(f.number)
				}
				return nil
			})
			l.lines = append(l.lines, line)
			return err
		}
		return nil
	})
	return id, l, err
}

// wireSample is a sample with those of its labels that profiles have.
type wireSample struct {
	locations, values       []uint64
	process, cgroup, thread string
	pid, tid                uint32
	hasPID                  bool
}

// readSample reads into s, whose slices it uses again.
func (p *pprofFile) readSample(s *wireSample, message []byte) error {
	*s = wireSample{locations: s.locations[:0], values: s.values[:0]}
	return eachField(message, func(f wireField) (err error) {
		switch f.id {
		case sampleLocation:
			s.locations, err = f.numbers(s.locations)
		case sampleValue:
			s.values, err = f.numbers(s.values)
		case sampleLabel:
			err = p.readLabel(s, f.bytes)
		}
		return err
	})
}

func (p *pprofFile) readLabel(s *wireSample, message []byte) error {
	var key, text string
	var number int64
	err := eachField(message, func(f wireField) (err error) {
		switch f.id {
		case labelKey:
			key, err = p.text(f.number)
		case labelText:
			text, err = p.text(f.number)
		case labelNumber:
			number = int64(f.number)
		}
		return err
	})
	if err != nil {
		return err
	}
	id, fits := uint32(number), number >= 0 && number <= int64(^uint32(0))
	switch {
	case key == tagProcess && s.process == "":
		s.process = profiler.Printable(text)
	case key == tagCgroup && s.cgroup == "":
		s.cgroup = profiler.Printable(text)
	case key == tagThread && s.thread == "":
		s.thread = profiler.Printable(text)
	case key == tagPID && text == "" && fits:
		s.pid, s.hasPID = id, true
	case key == tagTID && text == "" && fits:
		s.tid = id
	}
	return nil
}
