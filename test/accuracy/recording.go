// Package accuracy holds what the agent records to what the recorded programs
// say of themselves. It reads pprof files as a user of them would: function
// names, labels, counts. It knows nothing of how the agent makes them.
//
// The tests build the programs of test/workloads, run the real
// `kalypso-agent record` on each and print one table of figures. They need
// root, eBPF and compilers; each skips with the reason when something is
// missing, and fails instead under KALYPSO_REQUIRE_BPF=1 and
// KALYPSO_REQUIRE_TOOLS=1.
package accuracy

import (
	"fmt"
	"os"
	"path"
	"regexp"
	"strings"

	"github.com/google/pprof/profile"
)

// frame is one source-level call of a stack.
type frame struct {
	name    string
	file    string
	line    int64
	module  string // path of the mapping's file; empty for a marker
	inlined bool   // into the frame before it, its caller
}

// unnamed is what a frame without a symbol is called: module+0xoffset.
var unnamed = regexp.MustCompile(`\+0x[0-9a-f]+$`)

func (f *frame) named() bool { return f.name != "" && !unnamed.MatchString(f.name) }

// stack is one sample of the file: frames root first, and how often.
type stack struct {
	frames  []frame
	marker  string // why the stack is not whole; empty when it is
	count   int64
	process string
	thread  string
	pid     int64
}

// recording is a pprof file in the terms of this package.
type recording struct {
	stacks []stack
	total  int64
}

// readRecording reads a pprof file written by `record -o FILE.pb.gz`.
func readRecording(name string) (*recording, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only: nothing can be lost
	p, err := profile.Parse(f)
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", name, err)
	}
	if err := p.CheckValid(); err != nil {
		return nil, fmt.Errorf("check %s: %w", name, err)
	}
	return newRecording(p)
}

func newRecording(p *profile.Profile) (*recording, error) {
	counts := -1
	for i, t := range p.SampleType {
		if t.Type == "samples" {
			counts = i
		}
	}
	if counts < 0 {
		return nil, fmt.Errorf("no value of type samples among %v", p.SampleType)
	}
	r := &recording{}
	for _, s := range p.Sample {
		st := stack{count: s.Value[counts]}
		if l := s.Label["process"]; len(l) > 0 {
			st.process = l[0]
		}
		if l := s.Label["thread"]; len(l) > 0 {
			st.thread = l[0]
		}
		if l := s.NumLabel["pid"]; len(l) > 0 {
			st.pid = l[0]
		}
		for i := len(s.Location) - 1; i >= 0; i-- {
			l := s.Location[i]
			module := ""
			if l.Mapping != nil {
				module = l.Mapping.File
			}
			for j := len(l.Line) - 1; j >= 0; j-- {
				fn := l.Line[j].Function
				if fn == nil {
					return nil, fmt.Errorf("location %d has a line without a function", l.ID)
				}
				st.frames = append(st.frames, frame{
					name: fn.Name, file: fn.Filename, line: l.Line[j].Line,
					module: module, inlined: j < len(l.Line)-1,
				})
			}
		}
		// A marker stands at the root end, in no module.
		if len(st.frames) > 0 {
			if f := &st.frames[0]; f.module == "" && strings.HasPrefix(f.name, "[") {
				st.marker = f.name
				st.frames = st.frames[1:]
			}
		}
		r.total += st.count
		r.stacks = append(r.stacks, st)
	}
	return r, nil
}

// A chain is a row of callers and callees, root first. "*" stands for any
// number of frames; anything else is a function's name as the source writes it.
type chain []*pattern

// A pattern matches a function's name. It remembers its answers: a recording
// has few names and many frames.
type pattern struct {
	expression *regexp.Regexp
	known      map[string]bool
}

// function gives the pattern of a function's name: alone, behind a namespace or
// package, before parameters, type arguments or a compiler's suffix.
func function(name string) *pattern {
	return &pattern{
		expression: regexp.MustCompile(`(^|[:. *~^+])` + regexp.QuoteMeta(name) + `($|[<(\[:. ])`),
		known:      make(map[string]bool),
	}
}

func (p *pattern) match(name string) bool {
	m, ok := p.known[name]
	if !ok {
		m = p.expression.MatchString(name)
		p.known[name] = m
	}
	return m
}

func newChain(names ...string) chain {
	c := make(chain, len(names))
	for i, n := range names {
		if n != "*" {
			c[i] = function(n)
		}
	}
	return c
}

// in says whether the frames hold the chain, starting and ending anywhere.
func (c chain) in(frames []frame) bool {
	for i := range frames {
		if c.at(frames[i:]) {
			return true
		}
	}
	return len(c) == 0
}

func (c chain) at(frames []frame) bool {
	for i, p := range c {
		if p == nil {
			for j := i; j <= len(frames); j++ {
				if c[i+1:].at(frames[j:]) {
					return true
				}
			}
			return false
		}
		if i >= len(frames) || !p.match(frames[i].name) {
			return false
		}
	}
	return true
}

// share is a number of samples among others.
type share struct{ part, whole int64 }

func (s share) ratio() float64 {
	if s.whole == 0 {
		return 0
	}
	return float64(s.part) / float64(s.whole)
}

func (s share) String() string {
	if s.whole == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f", 100*s.ratio())
}

func (s *share) add(o share) {
	s.part += o.part
	s.whole += o.whole
}

// count gives the samples for which keep holds, among all.
func (r *recording) count(keep func(*stack) bool) share {
	s := share{whole: r.total}
	for i := range r.stacks {
		if keep(&r.stacks[i]) {
			s.part += r.stacks[i].count
		}
	}
	return s
}

// runs gives a test for stacks with a frame that bears one of the names.
func runs(names ...string) func(*stack) bool {
	wanted := newChain(names...)
	return func(s *stack) bool {
		for i := range s.frames {
			for _, p := range wanted {
				if p.match(s.frames[i].name) {
					return true
				}
			}
		}
		return false
	}
}

// among gives the samples for which keep holds, among those that run one of
// the functions.
func (r *recording) among(functions []string, keep func(*stack) bool) share {
	var s share
	has := runs(functions...)
	for i := range r.stacks {
		st := &r.stacks[i]
		if !has(st) {
			continue
		}
		s.whole += st.count
		if keep(st) {
			s.part += st.count
		}
	}
	return s
}

// whole gives the samples whose stack reached its root.
func (r *recording) whole() share {
	return r.count(func(s *stack) bool { return s.marker == "" && len(s.frames) > 0 })
}

// markers lists why stacks are not whole, with their numbers of samples.
func (r *recording) markers() map[string]int64 {
	m := make(map[string]int64)
	for i := range r.stacks {
		if s := &r.stacks[i]; s.marker != "" {
			m[s.marker] += s.count
		}
	}
	return m
}

// names gives, of the machine frames in modules with one of the base names,
// those with a function name. Inlined calls do not count: they have a name or
// are not there.
func (r *recording) names(modules ...string) share {
	var s share
	for i := range r.stacks {
		for j := range r.stacks[i].frames {
			f := &r.stacks[i].frames[j]
			if f.inlined || !contains(modules, moduleBase(f.module)) {
				continue
			}
			s.whole += r.stacks[i].count
			if f.named() {
				s.part += r.stacks[i].count
			}
		}
	}
	return s
}

// lines gives, of the frames of a function, those with this file and a line.
func (r *recording) lines(fn, file string) share {
	var s share
	p := function(fn)
	for i := range r.stacks {
		for j := range r.stacks[i].frames {
			f := &r.stacks[i].frames[j]
			if !p.match(f.name) {
				continue
			}
			s.whole += r.stacks[i].count
			if path.Base(f.file) == file && f.line > 0 {
				s.part += r.stacks[i].count
			}
		}
	}
	return s
}

// moduleBase is a module's name without folders and without the kernel's
// " (deleted)".
func moduleBase(module string) string {
	return path.Base(strings.TrimSuffix(module, " (deleted)"))
}

func contains(list []string, s string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}

// text is the stack as one line, root first, for a failure's message.
func (s *stack) text() string {
	names := make([]string, 0, len(s.frames)+1)
	if s.marker != "" {
		names = append(names, s.marker)
	}
	last, repeated := "", 0
	flush := func() {
		if repeated > 1 {
			names[len(names)-1] += fmt.Sprintf(" (%d times)", repeated)
		}
	}
	for i := range s.frames {
		if s.frames[i].name == last {
			repeated++
			continue
		}
		flush()
		last, repeated = s.frames[i].name, 1
		names = append(names, last)
	}
	flush()
	if n := len(names); n > 24 {
		names = append(append(names[:12:12], fmt.Sprintf("… %d more …", n-24)), names[n-12:]...)
	}
	return strings.Join(names, ";")
}

// examples gives up to n of the most frequent stacks for which keep holds.
func (r *recording) examples(n int, keep func(*stack) bool) []string {
	var out []string
	used := make(map[int]bool)
	for len(out) < n {
		best := -1
		for i := range r.stacks {
			if !used[i] && keep(&r.stacks[i]) && (best < 0 || r.stacks[i].count > r.stacks[best].count) {
				best = i
			}
		}
		if best < 0 {
			break
		}
		used[best] = true
		out = append(out, fmt.Sprintf("%d x %s", r.stacks[best].count, r.stacks[best].text()))
	}
	return out
}
