// Package limits is what a Pyroscope server takes, by whichever protocol:
// which labels, how deep a stack, how long a name, how much in one piece. The
// figures are the defaults of Pyroscope 1.20 to 2.2.1; what goes beyond them is
// refused, or cut by the server in ways that mislead. So the encoders keep to
// them, and where something is cut here, it can be seen.
//
// It knows profiles, and nothing of how they are encoded or sent.
package limits

import (
	"strings"
	"time"
	"unicode/utf8"

	"github.com/kalypso-dev/kalypso/profiler"
)

const (
	// SamplesPerProfile is how many samples one profile may have
	// (validation.max-profile-stacktrace-samples).
	SamplesPerProfile = 16000

	// BurstBytes is the most that one tenant may be charged at once
	// (distributor.ingestion-burst-size-mb). It counts what a profile is as
	// pprof, uncompressed, with its labels. A profile above it never passes.
	BurstBytes = 2 << 20

	// PushBytes is what we let one request be charged. Profiles of a request are
	// charged one by one at the same moment, and after a refusal of one the
	// others are stored: to be sent again is to be counted twice. Three quarters
	// of the burst leave room for other senders of the tenant.
	PushBytes = BurstBytes / 4 * 3

	// Depth is how many locations a stack may have
	// (validation.max-profile-stacktrace-depth). The server keeps the callers
	// and drops what they called, which is where the time went.
	Depth = 1000

	// NameBytes is how long a name of a function or file gets. The server's own
	// limit (65,535) keeps the end of a name and may cut through a character,
	// after which it refuses the whole profile. Nobody reads 2 KiB of template
	// arguments, and a few hundred of them would fill a request.
	NameBytes = 2048
)

// Time gives the parts of a profile times of their own, and so does it for
// profiles of one window that have the same labels: the storage of Pyroscope 1
// takes two of the same labels and millisecond for one that came twice, and
// keeps one.
func Time(start time.Time, part int) time.Time {
	if start.IsZero() {
		return start
	}
	return start.Add(time.Duration(part) * time.Millisecond)
}

// cut is what the end of a name is that was too long.
const cut = "…"

// Name is s as it may be sent: printable, and not too long.
func Name(s string) string { return shorten(profiler.Printable(s), NameBytes) }

// shorten cuts between characters.
func shorten(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	end := limit - len(cut)
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return strings.Clone(s[:end]) + cut
}

// Locations appends the locations of a stack as they may be sent, leaf first.
// What is missing is a location of its own with the name of the marker: at the
// root end where the walk did not reach the root, and in the middle of a stack
// that is too deep, which keeps the half next to the root and the half next to
// the leaf: recursion is deep in the middle. There is at least one location,
// because a sample without any is counted but seen nowhere.
func Locations(dst []*profiler.Location, s *profiler.Stack) []*profiler.Location {
	if s == nil {
		return append(dst, markers.unknown)
	}
	root := markers.stops[min(int(s.Stop), profiler.Stops)]
	room := Depth
	if root != nil {
		room--
	}
	if n := len(s.Locations); n > room {
		leaf := (room - 1) / 2
		dst = append(dst, s.Locations[:leaf]...)
		dst = append(dst, markers.stops[profiler.StopTruncated])
		dst = append(dst, s.Locations[n-(room-1-leaf):]...)
	} else {
		dst = append(dst, s.Locations...)
	}
	switch {
	case root != nil:
		dst = append(dst, root)
	case len(s.Locations) == 0:
		dst = append(dst, markers.unknown)
	}
	return dst
}

// markers are the locations that stand for what is missing.
var markers = newMarkers()

type markerLocations struct {
	stops   [profiler.Stops + 1]*profiler.Location // nil: the stack is complete; the last is for reasons unknown here
	unknown *profiler.Location
}

func newMarkers() markerLocations {
	m := markerLocations{unknown: marker("[unknown]")}
	for i := range m.stops {
		if name := profiler.Stop(i).Marker(); name != "" {
			m.stops[i] = marker(name)
		}
	}
	return m
}

func marker(name string) *profiler.Location {
	return &profiler.Location{Frames: []profiler.Frame{{Function: name, Kind: profiler.KindMarker}}}
}
