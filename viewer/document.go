package viewer

import (
	"bufio"
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
	Version   int      `json:"version"`
	Links     []Link   `json:"links,omitempty"`
	Meta      meta     `json:"meta"`
	Quality   quality  `json:"quality"`
	Strings   []string `json:"strings"`
	Modules   []int    `json:"modules"`   // name, path, build ID
	Functions []int    `json:"functions"` // name, module, kind
	Frames    []int    `json:"frames"`    // function, file, inlined
	Processes []int    `json:"processes"` // PID, command, executable, cgroup
	Threads   []int    `json:"threads"`   // name

	top node // whose children are the processes; written as "nodes": see writeNodes
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
	Samples     uint64    `json:"samples"`
	Lost        uint64    `json:"lost"`
	LostUnknown bool      `json:"lostUnknown,omitempty"`
	Stacks      uint64    `json:"stacks"`   // walks that were counted
	Complete    uint64    `json:"complete"` // of those
	Stops       []counted `json:"stops"`    // the others, by reason
	Frames      uint64    `json:"frames"`
	Named       uint64    `json:"named"`
	Unnamed     []counted `json:"unnamed"` // by module
}

type counted struct {
	Text  string `json:"text"`
	Build string `json:"build,omitempty"`
	Count uint64 `json:"count"`
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
}

// node is a call and what was called from it. Most have one child, which a slice
// or a map for each would take more memory for than all the rest.
type node struct {
	what, line  int32
	self, total uint64
	first, next *node              // its children, and the next one of its parent's
	index       map[[2]int32]*node // of children, where there are many
}

// manyChildren is from where on a map finds a child faster.
const manyChildren = 16

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
	b.doc.top.sort(nil)
	return b.doc
}

func (b *builder) sample(s *profiler.Sample) {
	n := b.process(s.Process)
	n.total += s.Count
	if s.TID != 0 || s.Thread != "" {
		n = n.child(-1-b.thread(s), 0, s.Count)
	}
	if s.Stack != nil {
		if m := s.Stack.Stop.Marker(); m != "" {
			n = n.child(b.frame(b.function(m, -1, kindMarker), "", false), 0, s.Count)
		}
		for i := len(s.Stack.Locations) - 1; i >= 0; i-- {
			for _, f := range b.location(s.Stack.Locations[i]) {
				n = n.child(f[0], f[1], s.Count)
			}
		}
	}
	n.self += s.Count
}

// child gives the child that is the call, a new one if there is none yet.
func (n *node) child(what, line int, count uint64) *node {
	key := [2]int32{int32(what), int32(line)}
	c, children := n.index[key], 0
	if n.index == nil {
		for c = n.first; c != nil && key != [2]int32{c.what, c.line}; c = c.next {
			children++
		}
	}
	if c == nil {
		c = &node{what: key[0], line: key[1]}
		n.add(c, children+1 == manyChildren)
	}
	c.total += count
	return c
}

func (n *node) add(c *node, many bool) {
	c.next, n.first = n.first, c
	switch {
	case many:
		n.index = make(map[[2]int32]*node, 2*manyChildren)
		for c := n.first; c != nil; c = c.next {
			n.index[[2]int32{c.what, c.line}] = c
		}
	case n.index != nil:
		n.index[[2]int32{c.what, c.line}] = c
	}
}

func (b *builder) process(p *profiler.Process) *node {
	if n, ok := b.processes[p]; ok {
		return n
	}
	n := &node{what: int32(len(b.doc.Processes) / 4)}
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
	b.doc.top.add(n, false)
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

// writeNodes writes the tree as four lists of numbers, one for each thing that is
// known of a node, in preorder. A node's "what" is an index into Processes at
// depth 0, into Threads when it is negative (as -1-index), else into Frames. The
// lists are written number by number: there are a hundred thousand nodes.
func (d *document) writeNodes(w *bufio.Writer) {
	w.WriteString(`"nodes":{`)
	for i, list := range []struct {
		name  string
		value func(n *node, depth int) int64
	}{
		{"depth", func(_ *node, depth int) int64 { return int64(depth) }},
		{"what", func(n *node, _ int) int64 { return int64(n.what) }},
		{"line", func(n *node, _ int) int64 { return int64(n.line) }},
		{"self", func(n *node, _ int) int64 { return int64(n.self) }},
	} {
		if i > 0 {
			w.WriteByte(',')
		}
		w.WriteString(strconv.Quote(list.name) + ":[")
		first := true
		walk(d.top.first, 0, func(n *node, depth int) {
			if !first {
				w.WriteByte(',')
			}
			first = false
			w.Write(strconv.AppendInt(w.AvailableBuffer(), list.value(n, depth), 10))
		})
		w.WriteByte(']')
	}
	w.WriteByte('}')
}

// walk calls f for a node, those after it and all below, a node before its
// children.
func walk(n *node, depth int, f func(n *node, depth int)) {
	for ; n != nil; n = n.next {
		f(n, depth)
		walk(n.first, depth+1, f)
	}
}

// sort puts the heaviest first, as the page shows them, at every depth; ties are
// in the order in which they were seen. It uses the memory of list.
func (n *node) sort(list []*node) []*node {
	list = list[:0]
	for c := n.first; c != nil; c = c.next {
		list = append(list, c)
	}
	slices.Reverse(list) // the last that was seen is the first
	slices.SortStableFunc(list, func(a, b *node) int { return cmp.Compare(b.total, a.total) })
	n.first = nil
	for _, c := range slices.Backward(list) {
		c.next, n.first = n.first, c
	}
	for c := n.first; c != nil; c = c.next {
		list = c.sort(list)
	}
	return list
}

func (b *builder) quality(p *profiler.Profile) {
	q := &p.Quality
	out := &b.doc.Quality
	*out = quality{
		Samples: q.Samples, Lost: q.Lost, LostUnknown: q.LostUnknown, Complete: q.Complete(), Frames: q.Frames, Named: q.FramesNamed,
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
