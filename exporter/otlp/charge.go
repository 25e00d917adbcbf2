package otlp

import (
	"math/bits"

	"github.com/kalypso-dev/kalypso/profiler"
)

// What a server charges for a profile is its size after conversion to pprof:
// one profile of its own with its own strings, and, as the conversion goes
// (Pyroscope, pkg/ingester/otlp/convert.go), for every sample a fresh mapping
// for each module that its stack touches. The sums here come out some 15 % too
// high; a test against a server compares them.

const (
	// idBytes is the size of an index below 2^14. A profile with more functions
	// or strings than that is over the limit by them alone.
	idBytes = 2

	// profileCharge is what a profile has apart from samples, strings and labels:
	// types, times, period.
	profileCharge = 160
	// mappingCharge is header, file name, build ID and three flags, without the ID.
	mappingCharge = 2 + 2*(1+idBytes) + 6 + 1
	// functionCharge is header, ID, name and file.
	functionCharge = 2 + 3*(1+idBytes)
	// sampleCharge is what a sample has apart from locations and labels: its
	// header, that of the locations, and its value, which is nanoseconds.
	sampleCharge = 3 + 3 + 2 + 5
	// labelCharge is a label of a sample: header, key, value. Their strings are
	// the first of the profile.
	labelCharge = 2 + 2*(1+1)
)

func stringCharge(s string) int { return 1 + uvarintBytes(uint64(len(s))) + len(s) }

func locationCharge(l *location) int {
	n := 2 * (1 + idBytes)
	if l.address != 0 {
		n += 1 + uvarintBytes(l.address)
	}
	for _, line := range l.lines {
		n += 2 + 1 + idBytes + 1 + uvarintBytes(uint64(line.number))
	}
	return n + 1 + uvarintBytes(uint64(n))
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
