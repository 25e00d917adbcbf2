package format

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/kalypso-dev/kalypso/profiler"
)

// TopRow is one function of a profile.
type TopRow struct {
	Function string // as shown, see FrameName
	Module   string // file name of native code, empty for other kinds
	Kind     profiler.FrameKind
	Self     uint64 // samples whose innermost call it was
	Total    uint64 // samples that had it anywhere in their stack, recursion counted once
}

// Top gives every function of the profile, the one with the most self samples
// first. Markers of incomplete stacks are no functions: one is listed only
// where it is all that a sample has.
func Top(p *profiler.Profile) []TopRow {
	type key struct {
		function, module string
		kind             profiler.FrameKind
	}
	rows := make(map[key]*TopRow)
	seen := make(map[*TopRow]int) // the last sample that had the row
	var calls []call
	for i := range p.Samples {
		s := &p.Samples[i]
		calls = appendCalls(calls[:0], s.Stack)
		for n, c := range calls {
			leaf := n == len(calls)-1
			k := key{function: c.name, kind: c.kind()}
			if k.kind == profiler.KindMarker && !leaf {
				continue
			}
			if k.kind == profiler.KindNative && c.frame != nil && c.frame.Function != "" && c.loc.Module != nil {
				k.module = profiler.Printable(c.loc.Module.Name())
			}
			r, ok := rows[k]
			if !ok {
				r = &TopRow{Function: k.function, Module: k.module, Kind: k.kind}
				rows[k] = r
			}
			if last, ok := seen[r]; !ok || last != i {
				r.Total += s.Count
				seen[r] = i
			}
			if leaf {
				r.Self += s.Count
			}
		}
	}
	out := make([]TopRow, 0, len(rows))
	for _, r := range rows {
		out = append(out, *r)
	}
	slices.SortFunc(out, func(a, b TopRow) int {
		return cmp.Or(
			cmp.Compare(b.Self, a.Self),
			cmp.Compare(b.Total, a.Total),
			cmp.Compare(a.Function, b.Function),
			cmp.Compare(a.Module, b.Module),
			cmp.Compare(a.Kind, b.Kind),
		)
	})
	return out
}

// Table says how WriteTable lays out its text.
type Table struct {
	Width int // columns of the terminal; 0 cuts nothing, as in a pipe
	Rows  int // functions at most; 0 means 20
	// NoCgroups leaves the list of cgroups out.
	NoCgroups bool
	// Facts, if there are any, stand where otherwise is what was profiled and how
	// much came of it: what a store added up does not tell how many samples and
	// processes that were.
	Facts []string
}

// WriteTable writes what a person wants to know first: what was profiled, the
// hottest functions, and how far the figures can be trusted. A recording by
// cgroup has the busiest cgroups before the functions.
func WriteTable(w io.Writer, p *profiler.Profile, t Table) error {
	if t.Rows <= 0 {
		t.Rows = 20
	}
	var samples uint64
	for i := range p.Samples {
		samples += p.Samples[i].Count
	}
	b := bufio.NewWriter(w)
	head := t.Facts
	if len(head) == 0 {
		head = facts(p)
	}
	for _, line := range head {
		t.wrap(b, "", line, "")
	}
	b.WriteByte('\n')
	if samples == 0 {
		t.wrap(b, "", "nothing ran on a CPU while it was recorded, or nothing that the filter let through", "")
		return b.Flush()
	}

	if byCgroup(p) && !t.NoCgroups {
		t.cgroups(b, p, samples)
	}
	rows := Top(p)
	b.WriteString("    self    total  kind    function\n")
	for i, r := range rows {
		if i == t.Rows || r.Self == 0 {
			break
		}
		name := r.Function
		if r.Module != "" {
			name += " (" + r.Module + ")"
		}
		const before = 27
		if t.Width > before {
			name = cut(name, t.Width-before)
		}
		fmt.Fprintf(b, "%8s %8s  %-6s  %s\n", percent(r.Self, samples), percent(r.Total, samples), r.Kind, name)
	}
	var rest, restSelf uint64
	for i, r := range rows {
		if i >= t.Rows {
			rest++
			restSelf += r.Self
		}
	}
	if restSelf > 0 {
		fmt.Fprintf(b, "%8s %8s  %-6s  %s\n", percent(restSelf, samples), "", "", "in "+count(rest)+" more functions")
	}
	b.WriteByte('\n')
	lines := quality(p)
	for i, l := range lines {
		head := "         "
		if i == 0 {
			head = "quality  "
		}
		t.wrap(b, head, l, "         ")
	}
	if samples < fewSamples && len(t.Facts) == 0 {
		b.WriteByte('\n')
		t.wrap(b, "", "few samples, so that shares say little: record while something runs, or for longer", "")
	}
	return b.Flush()
}

// fewSamples is so few that the share of a function that has half of them is off by
// 10 points and more (one standard deviation, 50/√n).
const fewSamples = 25

// cgroups writes the busiest cgroups and their shares.
func (t Table) cgroups(b *bufio.Writer, p *profiler.Profile, samples uint64) {
	const most, before = 10, 10
	groups := groupByCgroup(p)
	b.WriteString("   share  cgroup\n")
	var rest uint64
	for i, g := range groups {
		if i >= most {
			rest += g.count
			continue
		}
		name := g.name
		if t.Width > before {
			name = cutStart(name, t.Width-before)
		}
		fmt.Fprintf(b, "%8s  %s\n", percent(g.count, samples), name)
	}
	if rest > 0 {
		fmt.Fprintf(b, "%8s  in %s\n", percent(rest, samples), plural(uint64(len(groups)-most), "more cgroup"))
	}
	b.WriteByte('\n')
}

// title is what was profiled, in one line.
func title(p *profiler.Profile) string {
	var parts []string
	if p.Host != "" {
		parts = append(parts, profiler.Printable(p.Host))
	}
	if p.Event != "" {
		parts = append(parts, fmt.Sprintf("%s %d Hz", profiler.Printable(p.Event), p.Frequency))
	}
	if p.Duration > 0 {
		parts = append(parts, seconds(p.Duration))
	}
	return strings.Join(parts, " · ")
}

// facts is what was profiled and how much came of it.
func facts(p *profiler.Profile) []string {
	var samples uint64
	processes := make(map[*profiler.Process]bool)
	threads := make(map[profiler.TID]bool)
	for i := range p.Samples {
		s := &p.Samples[i]
		samples += s.Count
		processes[s.Process] = true
		if s.TID != 0 {
			threads[s.TID] = true
		}
	}
	parts := []string{plural(samples, "sample")}
	if p.Duration > 0 && p.Frequency > 0 {
		parts = append(parts, fmt.Sprintf("%.2f cores busy", float64(samples)/float64(p.Frequency)/p.Duration.Seconds()))
	}
	many := plural(uint64(len(processes)), "process")
	if len(threads) > 0 {
		many += ", " + plural(uint64(len(threads)), "thread")
	}
	parts = append(parts, many)
	if !p.Quality.LostUnknown {
		parts = append(parts, "lost "+count(p.Quality.Lost))
	}
	lines := []string{strings.Join(parts, " · ")}
	if t := title(p); t != "" {
		lines = append([]string{t}, lines...)
	}
	for _, r := range p.Remarks {
		lines = append(lines, profiler.Printable(r))
	}
	return lines
}

// quality says how far the profile can be trusted, and what would make it
// better. The first line is always there.
func quality(p *profiler.Profile) []string {
	q := &p.Quality
	var walks uint64
	for _, n := range q.Stops {
		walks += n
	}
	var parts []string
	if walks > 0 {
		parts = append(parts, percentDown(q.Complete(), walks)+" of stacks complete")
		type stop struct {
			name string
			n    uint64
		}
		var stops []stop
		for s, n := range q.Stops {
			if s := profiler.Stop(s); n > 0 && !s.Complete() {
				stops = append(stops, stop{stopText(s), n})
			}
		}
		slices.SortStableFunc(stops, func(a, b stop) int { return cmp.Compare(b.n, a.n) })
		for _, s := range stops {
			parts = append(parts, percent(s.n, walks)+" "+s.name)
		}
	}
	if q.Frames > 0 {
		parts = append(parts, percentDown(q.FramesNamed, q.Frames)+" of frames named")
	}
	switch {
	case q.LostUnknown:
		parts = append(parts, "losses not known")
	case q.Lost > 0:
		parts = append(parts, fmt.Sprintf("lost %s of %s", plural(q.Lost, "sample"), count(q.Lost+q.Samples)))
	default:
		parts = append(parts, "lost none")
	}
	lines := []string{strings.Join(parts, " · ")}

	unnamed := unnamedModules(p)
	if len(unnamed) == 0 {
		return lines
	}
	const most = 4
	var names []string
	for i, m := range unnamed {
		if i == most {
			names = append(names, count(uint64(len(unnamed)-most))+" more")
			break
		}
		names = append(names, m.text+" "+percent(m.n, q.Frames))
	}
	lines = append(lines, "without symbols: "+strings.Join(names, " · "))
	return append(lines, "fix: "+unnamed[0].fix)
}

// stopText is a reason in words, for people who never read its definition.
func stopText(s profiler.Stop) string {
	switch s {
	case profiler.StopNone:
		return "ended without a reason"
	case profiler.StopNoTable:
		return "unwind table not built"
	case profiler.StopNoRow:
		return "no unwind information"
	case profiler.StopUnsupported:
		return "unsupported unwind rule"
	}
	return strings.TrimPrefix(strings.Trim(s.Marker(), "[]"), "unwind: ")
}

type unnamedModule struct {
	text, fix string
	n         uint64
}

// unnamedModules lists the modules without names, the one with the most
// frames first.
func unnamedModules(p *profiler.Profile) []unnamedModule {
	ids := make(map[string]string)
	for i := range p.Samples {
		if p.Samples[i].Stack == nil {
			continue
		}
		for _, l := range p.Samples[i].Stack.Locations {
			if l.Module != nil && l.Module.BuildID != "" && !l.Named() {
				ids[l.Module.Path] = l.Module.BuildID
			}
		}
	}
	var out []unnamedModule
	for path, n := range p.Quality.UnnamedByModule {
		if n == 0 {
			continue
		}
		m := profiler.Module{Path: path}
		u := unnamedModule{text: profiler.Printable(m.Name()), n: n}
		switch {
		case path == "[kernel]" || strings.HasPrefix(path, "[") && strings.Contains(path, "kernel"):
			u.fix = "let the agent read kernel names: CAP_SYSLOG, and kernel.kptr_restrict below 2"
		case path == "" || strings.HasPrefix(path, "[anon") || strings.HasPrefix(path, "//anon") || strings.HasPrefix(path, "/memfd:"):
			if path == "" {
				u.text = "unknown memory"
			}
			u.fix = "code made at run time has names in a perf map: node --perf-basic-prof, java -XX:+DumpPerfMapAtExit"
		default:
			if id := ids[path]; id != "" {
				u.text += " (build " + profiler.Printable(build(id)) + ")"
			}
			u.fix = "install the debug symbols of " + profiler.Printable(m.Name()) + " (its -dbg or -dbgsym package), or do not strip it"
		}
		out = append(out, u)
	}
	slices.SortFunc(out, func(a, b unnamedModule) int {
		return cmp.Or(cmp.Compare(b.n, a.n), cmp.Compare(a.text, b.text))
	})
	return out
}

// wrap writes parts separated by " · " as lines no wider than the terminal.
func (t Table) wrap(b *bufio.Writer, head, text, indent string) {
	line, used := head, false
	for _, part := range strings.Split(text, " · ") {
		next := line + part
		if used {
			next = line + " · " + part
		}
		if used && t.Width > 0 && utf8.RuneCountInString(next) > t.Width {
			b.WriteString(line)
			b.WriteByte('\n')
			next = indent + part
		}
		line, used = next, true
	}
	for t.Width > 0 && utf8.RuneCountInString(line) > t.Width { // a sentence: what to do about it
		head, rest, ok := breakLine(line, t.Width, len(indent))
		if !ok {
			break
		}
		b.WriteString(head)
		b.WriteByte('\n')
		line = indent + rest
	}
	b.WriteString(line)
	b.WriteByte('\n')
}

// breakLine breaks a line at the last space within its width that is behind its
// indent.
func breakLine(line string, width, indent int) (head, rest string, ok bool) {
	r := []rune(line)
	for i := min(width, len(r)-1); i > indent; i-- {
		if r[i] == ' ' {
			return string(r[:i]), string(r[i+1:]), true
		}
	}
	return line, "", false
}

// cut shortens a name to n columns. The start stays: templates and receivers
// tell more than the arguments at the end.
func cut(s string, n int) string {
	if n < 1 || utf8.RuneCountInString(s) <= n {
		return s
	}
	r := []rune(s)
	return string(r[:n-1]) + "…"
}

// cutStart shortens a path to n columns. The end stays: what a cgroup is for
// stands there, below slices that many share.
func cutStart(s string, n int) string {
	if n < 1 || utf8.RuneCountInString(s) <= n {
		return s
	}
	r := []rune(s)
	return "…" + string(r[len(r)-n+1:])
}

// percent is n of all with one decimal; what is there but rounds to nothing
// is not written as nothing.
func percent(n, all uint64) string {
	if all == 0 {
		return "–"
	}
	v := float64(n) / float64(all) * 100
	if n > 0 && v < 0.05 {
		return "<0.1 %"
	}
	return strconv.FormatFloat(v, 'f', 1, 64) + " %"
}

// percentDown rounds down, so that 100.0 % means all of them.
func percentDown(n, all uint64) string {
	if n < all && float64(n)/float64(all) >= 0.9995 {
		return "99.9 %"
	}
	return percent(n, all)
}

// Grouped writes thousands in groups: 1,234,567.
func Grouped(n uint64) string { return count(n) }

func count(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func plural(n uint64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	if strings.HasSuffix(noun, "s") {
		noun += "e"
	}
	return count(n) + " " + noun + "s"
}

func seconds(d time.Duration) string {
	return strconv.FormatFloat(d.Round(10*time.Millisecond).Seconds(), 'f', -1, 64) + " s"
}
