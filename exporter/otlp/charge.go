package otlp

import (
	"math/bits"

	"github.com/kalypso-dev/kalypso/profiler"
)

// What a server charges for a profile is its size after conversion to pprof:
// one profile of its own with its own strings, and, as the conversion goes
// (Pyroscope, pkg/ingester/otlp/convert.go), for every sample a fresh mapping
// for each module that its stack touches. The sums here come out up to a fifth
// too high, and never too low within the limits; a test against a server says
// so.

const (
	// idBytes is the size of an index below 2^14. A profile with more functions
	// or strings than that is over the limit by them alone.
	idBytes = 2
	// mappingIDBytes is the size of an index below 2^21. There is one for each
	// sample and module.
	mappingIDBytes = 3

	// profileCharge is what a profile has apart from samples, strings and labels:
	// types, times, period.
	profileCharge = 160
	// mappingCharge is header, ID, file name, build ID and three flags.
	mappingCharge = 2 + 1 + mappingIDBytes + 2*(1+idBytes) + 6
	// functionCharge is header, ID, name and file.
	functionCharge = 2 + 3*(1+idBytes)
	// valueCharge is the value of a sample: time in nanoseconds.
	valueCharge = 2 + 7
	// labelCharge is a label of a sample: header, key, value. Their strings are
	// the first of the profile.
	labelCharge = 2 + 2*(1+1)
)

func stringCharge(s string) int { return 1 + uvarintBytes(uint64(len(s))) + len(s) }

func locationCharge(l *location) int {
	n := 1 + idBytes + 1 + mappingIDBytes
	if l.address != 0 {
		n += 1 + uvarintBytes(l.address)
	}
	for _, line := range l.lines {
		n += 2 + 1 + idBytes + 1 + uvarintBytes(uint64(line.number))
	}
	return n + 1 + uvarintBytes(uint64(n))
}

// stackCharge is a sample without its value and labels, with the mappings that
// the conversion makes for it.
func (t *table) stackCharge(locations []int32) int {
	ids := len(locations) * idBytes
	n := 1 + uvarintBytes(uint64(ids)) + ids
	n += 1 + 2 // header
	var modules [32]int32
	seen := modules[:0]
next:
	for _, l := range locations {
		m := t.locations[l].mapping
		for _, s := range seen {
			if s == m {
				continue next
			}
		}
		n += mappingCharge
		seen = append(seen, m)
	}
	return n
}

// labelsCharge is what labels cost once for a profile: as such, and as the
// strings of its samples' labels.
func labelsCharge(labels []profiler.Attribute) int {
	n := 0
	for _, l := range labels {
		n += len(l.Key) + len(l.Value) + stringCharge(l.Key) + stringCharge(l.Value)
	}
	return n
}

func uvarintBytes(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }
