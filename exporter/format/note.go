package format

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
)

// pprofNote is what profiles have and pprof has no place for. It is a comment
// of the file that starts with "#", because pprof's pages leave such comments
// out. Its texts went through profiler.Printable, as all in the file.
type pprofNote struct {
	// Kinds are those of the file's functions in the file's order, each with
	// how many follow each other: "native 12 kernel 3 native 1".
	Kinds string `json:"kinds,omitempty"`
	// Processes are those of which the executable is known.
	Processes []noteProcess `json:"processes,omitempty"`
	// Profiles share out the file's samples in the file's order.
	Profiles []noteProfile `json:"profiles"`
}

const notePrefix = "#kalypso.pprof/v1 "

type noteProcess struct {
	PID    profiler.PID `json:"pid"`
	Name   string       `json:"name"`
	Cgroup string       `json:"cgroup,omitempty"`
	Exe    string       `json:"exe"`
}

type noteProfile struct {
	Entries    int         `json:"entries"` // how many of the file's samples are its
	Workload   [][2]string `json:"workload,omitempty"`
	Start      int64       `json:"start,omitempty"` // ns since 1970
	Zone       string      `json:"zone,omitempty"`
	ZoneOffset int         `json:"zone_offset,omitempty"` // seconds east of UTC
	Duration   int64       `json:"duration"`              // ns
	Frequency  int         `json:"frequency"`
	Event      string      `json:"event,omitempty"`
	Host       string      `json:"host,omitempty"`
	Remarks    []string    `json:"remarks,omitempty"`
	Quality    noteQuality `json:"quality"`
}

type noteQuality struct {
	Samples     uint64            `json:"samples"`
	Lost        uint64            `json:"lost"`
	LostUnknown bool              `json:"lost_unknown,omitempty"`
	Distinct    uint64            `json:"distinct_stacks"`
	Frames      uint64            `json:"frames"`
	Named       uint64            `json:"frames_named"`
	Stops       map[string]uint64 `json:"stops,omitempty"`
	Unnamed     map[string]uint64 `json:"unnamed_by_module,omitempty"`
}

// processKey tells processes of a file apart, by what their samples' labels say.
type processKey struct {
	pid          profiler.PID
	name, cgroup string
}

func keyOf(p *profiler.Process) processKey {
	if p == nil {
		return processKey{name: ProcessName(nil)}
	}
	return processKey{p.PID, ProcessName(p), profiler.Printable(p.Cgroup)}
}

// exesOf gives the executables that are known: of two that processes of one
// key had, the first.
func exesOf(p *profiler.Profile) map[processKey]string {
	exes := make(map[processKey]string)
	var last *profiler.Process
	for i := range p.Samples {
		if pr := p.Samples[i].Process; pr != nil && pr != last && pr.Exe != "" {
			if k := keyOf(pr); exes[k] == "" {
				exes[k] = profiler.Printable(pr.Exe)
			}
			last = pr
		}
	}
	return exes
}

func newPprofNote(profiles []*profiler.Profile, exes map[processKey]string, kinds []profiler.FrameKind) *pprofNote {
	n := &pprofNote{Kinds: packKinds(kinds), Profiles: make([]noteProfile, 0, len(profiles))}
	noted := make(map[processKey]bool)
	for _, p := range profiles {
		for i := range p.Samples {
			k := keyOf(p.Samples[i].Process)
			if exe := exes[k]; exe != "" && !noted[k] {
				noted[k] = true
				n.Processes = append(n.Processes, noteProcess{k.pid, k.name, k.cgroup, exe})
			}
		}
		n.Profiles = append(n.Profiles, newNoteProfile(p))
	}
	return n
}

func newNoteProfile(p *profiler.Profile) noteProfile {
	q := &p.Quality
	n := noteProfile{
		Entries: len(p.Samples), Duration: p.Duration.Nanoseconds(), Frequency: p.Frequency,
		Event: profiler.Printable(p.Event), Host: profiler.Printable(p.Host),
		Quality: noteQuality{
			Samples: q.Samples, Lost: q.Lost, LostUnknown: q.LostUnknown, Distinct: q.DistinctStacks, Frames: q.Frames, Named: q.FramesNamed,
			Stops: make(map[string]uint64), Unnamed: make(map[string]uint64),
		},
	}
	for _, r := range p.Remarks {
		n.Remarks = append(n.Remarks, profiler.Printable(r))
	}
	if !p.Start.IsZero() {
		n.Start = p.Start.UnixNano()
		n.Zone, n.ZoneOffset = p.Start.Zone()
		n.Zone = profiler.Printable(n.Zone)
	}
	if p.Workload != nil {
		n.Workload = make([][2]string, 0, len(p.Workload.Attributes))
		for _, a := range p.Workload.Attributes {
			n.Workload = append(n.Workload, [2]string{profiler.Printable(a.Key), profiler.Printable(a.Value)})
		}
	}
	for s, count := range q.Stops {
		if count > 0 {
			n.Quality.Stops[profiler.Stop(s).String()] = count
		}
	}
	for path, count := range q.UnnamedByModule {
		n.Quality.Unnamed[profiler.Printable(path)] += count
	}
	return n
}

func (n *pprofNote) comment() string {
	var b bytes.Buffer
	b.WriteString(notePrefix)
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(n); err != nil {
		panic(err) // text and numbers always encode
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// findNote gives the note of a file, nil where there is none to rely on: a
// foreign file, or what another tool made of files of ours, with other samples.
func findNote(comments []string, samples int) *pprofNote {
	var n *pprofNote
	for _, c := range comments {
		text, ok := strings.CutPrefix(c, notePrefix)
		if !ok {
			continue
		}
		if n != nil {
			return nil
		}
		n = &pprofNote{}
		if json.Unmarshal([]byte(text), n) != nil {
			return nil
		}
	}
	if n == nil {
		return nil
	}
	for i := range n.Profiles {
		entries := n.Profiles[i].Entries
		if entries < 0 || entries > samples {
			return nil
		}
		samples -= entries
	}
	if samples != 0 {
		return nil
	}
	return n
}

func (n *noteProfile) profile() *profiler.Profile {
	q := &n.Quality
	p := &profiler.Profile{
		Duration: time.Duration(max(n.Duration, 0)), Frequency: max(n.Frequency, 0),
		Event: profiler.Printable(n.Event), Host: profiler.Printable(n.Host),
		Quality: profiler.Quality{
			Samples: q.Samples, Lost: q.Lost, LostUnknown: q.LostUnknown, DistinctStacks: q.Distinct, Frames: q.Frames, FramesNamed: q.Named,
			UnnamedByModule: make(map[string]uint64, len(q.Unnamed)),
		},
	}
	for _, r := range n.Remarks {
		p.Remarks = append(p.Remarks, profiler.Printable(r))
	}
	if n.Start != 0 {
		p.Start = time.Unix(0, n.Start).In(zone(n.Zone, n.ZoneOffset))
	}
	if n.Workload != nil {
		p.Workload = &profiler.Workload{}
		for _, a := range n.Workload {
			p.Workload.Attributes = append(p.Workload.Attributes, profiler.Attribute{Key: profiler.Printable(a[0]), Value: profiler.Printable(a[1])})
		}
	}
	for s := range q.Stops {
		if stop, ok := stopNamed(s); ok {
			p.Quality.Stops[stop] = q.Stops[s]
		}
	}
	for path, count := range q.Unnamed {
		p.Quality.UnnamedByModule[profiler.Printable(path)] += count
	}
	return p
}

// zone is the time zone that a start was written in. No zone is a day or more
// away from UTC.
func zone(name string, offset int) *time.Location {
	const day = 24 * 60 * 60
	if offset <= -day || offset >= day {
		return time.UTC
	}
	return time.FixedZone(profiler.Printable(name), offset)
}

func stopNamed(name string) (profiler.Stop, bool) {
	for s := range profiler.Stops {
		if profiler.Stop(s).String() == name {
			return profiler.Stop(s), true
		}
	}
	return 0, false
}

// packKinds writes kinds as words, each with how often it follows itself.
func packKinds(kinds []profiler.FrameKind) string {
	var b strings.Builder
	for i := 0; i < len(kinds); {
		n := 1
		for i+n < len(kinds) && kinds[i+n] == kinds[i] {
			n++
		}
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(kinds[i].String())
		b.WriteByte(' ')
		b.WriteString(strconv.Itoa(n))
		i += n
	}
	return b.String()
}

// unpackKinds reads what packKinds wrote. It is nil when that is not about so
// many functions.
func unpackKinds(text string, functions int) []profiler.FrameKind {
	words := strings.Fields(text)
	kinds := make([]profiler.FrameKind, 0, functions)
	for i := 0; i+1 < len(words); i += 2 {
		n, err := strconv.Atoi(words[i+1])
		if err != nil || n < 0 || n > functions-len(kinds) {
			return nil
		}
		k := kindNamed(words[i])
		for range n {
			kinds = append(kinds, k)
		}
	}
	if len(kinds) != functions {
		return nil
	}
	return kinds
}

// kindNamed is native for a word of a later version.
func kindNamed(word string) profiler.FrameKind {
	unknown := profiler.FrameKind(255).String()
	for k := profiler.FrameKind(0); k.String() != unknown; k++ {
		if k.String() == word {
			return k
		}
	}
	return profiler.KindNative
}
