package otlptest

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/collector/pdata/pprofile"
)

// Profile is one of a request, as a test looks at it.
type Profile struct {
	Service    string            // its service.name
	Attributes map[string]string // of its resource
	Start      time.Time
	Duration   time.Duration
	Period     time.Duration
	Stacks     []Stack
}

// Stack is the samples of one stack, root first.
type Stack struct {
	Frames []Frame
	Count  uint64
}

// Frame is one call of a stack.
type Frame struct {
	Name   string
	Module string // base name of the mapping's file
}

// Profiles reads the profiles of a request.
func Profiles(request pprofile.Profiles) []Profile {
	var out []Profile
	d := request.Dictionary()
	for _, rp := range request.ResourceProfiles().All() {
		attributes := map[string]string{}
		for k, v := range rp.Resource().Attributes().All() {
			attributes[k] = v.Str()
		}
		for _, sp := range rp.ScopeProfiles().All() {
			for _, p := range sp.Profiles().All() {
				out = append(out, readProfile(d, p, attributes))
			}
		}
	}
	return out
}

func readProfile(d pprofile.ProfilesDictionary, p pprofile.Profile, attributes map[string]string) Profile {
	text := func(i int32) string { return d.StringTable().At(int(i)) }
	out := Profile{
		Service: attributes["service.name"], Attributes: attributes,
		Start: p.Time().AsTime(), Duration: time.Duration(p.DurationNano()), Period: time.Duration(p.Period()),
	}
	for _, s := range p.Samples().All() {
		var st Stack
		for _, v := range s.Values().All() {
			st.Count += uint64(v)
		}
		indices := d.StackTable().At(int(s.StackIndex())).LocationIndices()
		for i := indices.Len() - 1; i >= 0; i-- {
			l := d.LocationTable().At(int(indices.At(i)))
			module := path.Base(strings.TrimSuffix(text(d.MappingTable().At(int(l.MappingIndex())).FilenameStrindex()), " (deleted)"))
			for j := l.Lines().Len() - 1; j >= 0; j-- {
				fn := d.FunctionTable().At(int(l.Lines().At(j).FunctionIndex()))
				st.Frames = append(st.Frames, Frame{text(fn.NameStrindex()), module})
			}
		}
		out.Stacks = append(out.Stacks, st)
	}
	return out
}

// Samples is how many there are.
func (p *Profile) Samples() uint64 {
	var n uint64
	for i := range p.Stacks {
		n += p.Stacks[i].Count
	}
	return n
}

// In says whether the stack has a frame of a module.
func (s *Stack) In(module string) bool {
	return slices.ContainsFunc(s.Frames, func(f Frame) bool { return f.Module == module })
}

// Runs says whether the stack has a function.
func (s *Stack) Runs(function string) bool {
	return slices.ContainsFunc(s.Frames, func(f Frame) bool { return f.Name == function })
}

func (s *Stack) String() string {
	names := make([]string, len(s.Frames))
	for i, f := range s.Frames {
		names[i] = f.Name
	}
	return fmt.Sprintf("%d x %s", s.Count, strings.Join(names, ";"))
}
