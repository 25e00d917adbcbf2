package viewer

import (
	"cmp"
	"slices"
	"strconv"

	"github.com/kalypso-dev/kalypso/profiler"
)

// document is the profile as the page reads it (data.js). Repeated text is an
// index into Strings, and the samples are a tree: processes at the top, their
// threads where they are told apart, then frames, root first. Tables are flat
// lists of numbers because they parse and deflate best.
type document struct {
	Version   int          `json:"version"`
	Links     []Link       `json:"links,omitempty"`
	Meta      meta         `json:"meta"`
	Quality   quality      `json:"quality"`
	Strings   []string     `json:"strings"`
	Modules   []int        `json:"modules"`   // name, path, build ID
	Functions []int        `json:"functions"` // name, module, kind
	Frames    []int        `json:"frames"`    // function, file, inlined
	Processes []int        `json:"processes"` // PID, command, executable, cgroup
	Threads   []int        `json:"threads"`   // name
	Nodes     documentTree `json:"nodes"`
}

type meta struct {
	Host      string `json:"host"`
	Start     int64  `json:"start"` // ms since 1970, 0 when unknown
	Duration  int64  `json:"duration"`
	Period    int64  `json:"period"` // ns
	Frequency int    `json:"frequency"`
	Event     string `json:"event"`
	Time      string `json:"time"` // the start as the recording machine's clock wrote it
}

type quality struct {
	Samples  uint64    `json:"samples"`
	Lost     uint64    `json:"lost"`
	Stacks   uint64    `json:"stacks"`   // walks that were counted
	Complete uint64    `json:"complete"` // of those
	Stops    []counted `json:"stops"`    // the others, by reason
	Frames   uint64    `json:"frames"`
	Named    uint64    `json:"named"`
	Unnamed  []counted `json:"unnamed"` // by module
}

type counted struct {
	Text  string `json:"text"`
	Build string `json:"build,omitempty"`
	Count uint64 `json:"count"`
}

// documentTree lists nodes in preorder. A node's What is an index into
// Processes at depth 0, into Threads when it is negative (as -1-index), else
// into Frames.
type documentTree struct {
	Depth []int32  `json:"depth"`
	What  []int32  `json:"what"`
	Line  []int32  `json:"line"`
	Self  []uint64 `json:"self"`
}

// kinds of the page, in the order of profiler.FrameKind.
const kindMarker = int(profiler.KindMarker)

type builder struct {
	doc       *document
	strings   map[string]int
	modules   map[profiler.Module]int
	functions map[[3]int]int
	frames    map[[3]int]int
	located   map[*profiler.Location][][2]int // frame and line, root first
	processes map[*profiler.Process]*node
	threads   map[string]int
	roots     []*node
	nodes     int
}

type node struct {
	what, line  int32
	self, total uint64
	children    []*node
	index       map[[2]int32]*node // of children, where there are many
}

func newDocument(p *profiler.Profile, links []Link) *document {
	b := builder{
		doc: &document{
			Version: 1, Links: links,
			Meta: meta{
				Host: profiler.Printable(p.Host), Duration: p.Duration.Nanoseconds(), Period: p.Period().Nanoseconds(),
				Frequency: p.Frequency, Event: profiler.Printable(p.Event),
			},
			// The page reads all tables without asking whether they are there.
			Modules: []int{}, Functions: []int{}, Frames: []int{}, Processes: []int{}, Threads: []int{},
		},
		strings:   make(map[string]int),
		modules:   make(map[profiler.Module]int),
		functions: make(map[[3]int]int),
		frames:    make(map[[3]int]int),
		located:   make(map[*profiler.Location][][2]int),
		processes: make(map[*profiler.Process]*node),
		threads:   make(map[string]int),
	}
	if !p.Start.IsZero() {
		b.doc.Meta.Start = p.Start.UnixMilli()
		b.doc.Meta.Time = p.Start.Format("2 Jan 2006, 15:04:05 MST")
	}
	b.text("") // so that 0 is "no text" in every table
	for i := range p.Samples {
		b.sample(&p.Samples[i])
	}
	b.quality(p)
	sortNodes(b.roots)
	b.doc.Nodes = documentTree{
		Depth: make([]int32, 0, b.nodes), What: make([]int32, 0, b.nodes), Line: make([]int32, 0, b.nodes), Self: make([]uint64, 0, b.nodes),
	}
	for _, n := range b.roots {
		b.emit(n, 0)
	}
	return b.doc
}

func (b *builder) sample(s *profiler.Sample) {
	n := b.process(s.Process)
	n.total += s.Count
	if s.TID != 0 || s.Thread != "" {
		n = b.child(n, -1-b.thread(s), 0, s.Count)
	}
	if s.Stack != nil {
		if m := s.Stack.Stop.Marker(); m != "" {
			n = b.child(n, b.frame(b.function(m, -1, kindMarker), "", false), 0, s.Count)
		}
		for i := len(s.Stack.Locations) - 1; i >= 0; i-- {
			for _, f := range b.location(s.Stack.Locations[i]) {
				n = b.child(n, f[0], f[1], s.Count)
			}
		}
	}
	n.self += s.Count
}

// manyChildren is from where on a map finds a child faster. Most nodes have one
// child, and a map for each of them was half of the memory of a page.
const manyChildren = 16

func (b *builder) child(n *node, what, line int, count uint64) *node {
	c := n.find(int32(what), int32(line))
	if c == nil {
		c = &node{what: int32(what), line: int32(line)}
		b.nodes++
		n.children = append(n.children, c)
		if len(n.children) == manyChildren {
			n.index = make(map[[2]int32]*node, 2*manyChildren)
			for _, c := range n.children {
				n.index[[2]int32{c.what, c.line}] = c
			}
		} else if n.index != nil {
			n.index[[2]int32{c.what, c.line}] = c
		}
	}
	c.total += count
	return c
}

func (n *node) find(what, line int32) *node {
	if n.index != nil {
		return n.index[[2]int32{what, line}]
	}
	for _, c := range n.children {
		if c.what == what && c.line == line {
			return c
		}
	}
	return nil
}

func (b *builder) process(p *profiler.Process) *node {
	if n, ok := b.processes[p]; ok {
		return n
	}
	n := &node{what: int32(len(b.doc.Processes) / 4)}
	b.nodes++
	var pid int
	comm, exe, cgroup := "[unknown]", "", ""
	if p != nil {
		pid, exe, cgroup = int(p.PID), profiler.Printable(p.Exe), profiler.Printable(p.Cgroup)
		comm = profiler.Printable(p.Comm)
		if comm == "" {
			comm = "[pid " + strconv.Itoa(pid) + "]"
		}
	}
	b.doc.Processes = append(b.doc.Processes, pid, b.text(comm), b.text(exe), b.text(cgroup))
	b.processes[p] = n
	b.roots = append(b.roots, n)
	return n
}

func (b *builder) thread(s *profiler.Sample) int {
	name := profiler.Printable(s.Thread)
	if s.TID != 0 {
		if name == "" {
			name = "thread"
		}
		name += " (" + strconv.FormatUint(uint64(s.TID), 10) + ")"
	}
	n, ok := b.threads[name]
	if !ok {
		n = len(b.doc.Threads)
		b.threads[name] = n
		b.doc.Threads = append(b.doc.Threads, b.text(name))
	}
	return n
}

func (b *builder) location(l *profiler.Location) [][2]int {
	if out, ok := b.located[l]; ok {
		return out
	}
	module := -1
	if l.Module != nil {
		module = b.module(*l.Module)
	}
	out := make([][2]int, 0, len(l.Frames))
	for i := len(l.Frames) - 1; i >= 0; i-- {
		f := &l.Frames[i]
		fn := b.function(profiler.FrameName(l, f), module, int(f.Kind))
		out = append(out, [2]int{b.frame(fn, profiler.Printable(f.File), f.Inlined), f.Line})
	}
	if len(l.Frames) == 0 {
		out = append(out, [2]int{b.frame(b.function(profiler.FrameName(l, nil), module, int(profiler.KindNative)), "", false), 0})
	}
	b.located[l] = out
	return out
}

func (b *builder) text(s string) int {
	n, ok := b.strings[s]
	if !ok {
		n = len(b.doc.Strings)
		b.strings[s] = n
		b.doc.Strings = append(b.doc.Strings, s)
	}
	return n
}

func (b *builder) module(m profiler.Module) int {
	n, ok := b.modules[m]
	if !ok {
		n = len(b.doc.Modules) / 3
		b.modules[m] = n
		b.doc.Modules = append(b.doc.Modules,
			b.text(profiler.Printable(m.Name())), b.text(profiler.Printable(m.Path)), b.text(profiler.Printable(m.BuildID)))
	}
	return n
}

func (b *builder) function(name string, module, kind int) int {
	k := [3]int{b.text(name), module, kind}
	n, ok := b.functions[k]
	if !ok {
		n = len(b.doc.Functions) / 3
		b.functions[k] = n
		b.doc.Functions = append(b.doc.Functions, k[:]...)
	}
	return n
}

func (b *builder) frame(function int, file string, inlined bool) int {
	k := [3]int{function, b.text(file), 0}
	if inlined {
		k[2] = 1
	}
	n, ok := b.frames[k]
	if !ok {
		n = len(b.doc.Frames) / 3
		b.frames[k] = n
		b.doc.Frames = append(b.doc.Frames, k[:]...)
	}
	return n
}

func (b *builder) emit(n *node, depth int) {
	t := &b.doc.Nodes
	t.Depth = append(t.Depth, int32(depth))
	t.What = append(t.What, n.what)
	t.Line = append(t.Line, n.line)
	t.Self = append(t.Self, n.self)
	sortNodes(n.children)
	for _, c := range n.children {
		b.emit(c, depth+1)
	}
}

// sortNodes puts the heaviest first, as the page shows them; ties keep the
// order in which they were seen.
func sortNodes(nodes []*node) {
	slices.SortStableFunc(nodes, func(a, b *node) int { return cmp.Compare(b.total, a.total) })
}

func (b *builder) quality(p *profiler.Profile) {
	q := &p.Quality
	out := &b.doc.Quality
	*out = quality{
		Samples: q.Samples, Lost: q.Lost, Complete: q.Complete(), Frames: q.Frames, Named: q.FramesNamed,
		Stops: []counted{}, Unnamed: []counted{},
	}
	for i, n := range q.Stops {
		out.Stacks += n
		if s := profiler.Stop(i); n > 0 && !s.Complete() {
			out.Stops = append(out.Stops, counted{Text: s.Marker(), Count: n})
		}
	}
	builds := make(map[string]string)
	for m := range b.modules {
		if m.BuildID != "" && m.BuildID > builds[m.Path] {
			builds[m.Path] = m.BuildID
		}
	}
	for path, n := range q.UnnamedByModule {
		if n > 0 {
			if path == "" {
				path = "unknown memory"
			}
			out.Unnamed = append(out.Unnamed, counted{Text: profiler.Printable(path), Build: profiler.Printable(builds[path]), Count: n})
		}
	}
	most := func(a, b counted) int { return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Text, b.Text)) }
	slices.SortFunc(out.Stops, most)
	slices.SortFunc(out.Unnamed, most)
}
