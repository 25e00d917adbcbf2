package accuracy

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/pprof/profile"
)

func frames(names ...string) []frame {
	f := make([]frame, len(names))
	for i, n := range names {
		f[i].name = n
	}
	return f
}

func TestChain(t *testing.T) {
	for _, tt := range []struct {
		name   string
		chain  []string
		frames []string
		want   bool
	}{
		{"a chain may start and end anywhere", []string{"run", "hot_60"}, []string{"_start", "main", "run", "hot_60", "clock_gettime"}, true},
		{"a skipped caller breaks it", []string{"main", "run", "hot_60"}, []string{"_start", "main", "hot_60"}, false},
		{"a frame too many breaks it", []string{"main", "run"}, []string{"main", "other", "run"}, false},
		{"a star takes any number of frames", []string{"main", "*", "hot_60"}, []string{"main", "a", "b", "hot_60"}, true},
		{"a star takes no frame", []string{"main", "*", "hot_60"}, []string{"main", "hot_60"}, true},
		{"what comes after a star must come", []string{"main", "*", "hot_60"}, []string{"main", "a"}, false},
		{"order counts", []string{"a", "b"}, []string{"b", "a"}, false},
		{"a C++ name matches without namespace and parameters", []string{"hot_60"}, []string{"(anonymous namespace)::hot_60(unsigned long)"}, true},
		{"type arguments are told apart", []string{"Layer<1>::step"}, []string{"Layer<11>::step(Turn const&)"}, false},
		{"a Rust name matches without crate and hash", []string{"hot_60"}, []string{"chain_rs::hot_60::h0123456789abcdef"}, true},
		{"a Go name matches without package", []string{"hot60"}, []string{"main.hot60"}, true},
		{"a longer name is another function", []string{"hot_6"}, []string{"hot_60"}, false},
		{"a name's end is another function", []string{"hot"}, []string{"not_hot"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := newChain(tt.chain...).in(frames(tt.frames...)); got != tt.want {
				t.Errorf("%q in %q: got %v, want %v", tt.chain, tt.frames, got, tt.want)
			}
		})
	}
}

// handMade is a profile of three stacks: a whole one with an inlined call, one
// cut at the root end, and one of a stripped program.
func handMade() *profile.Profile {
	fn := func(id uint64, name, file string) *profile.Function {
		return &profile.Function{ID: id, Name: name, SystemName: name, Filename: file}
	}
	exe := &profile.Mapping{ID: 1, Limit: 1 << 47, File: "/tmp/x/prog (deleted)"}
	lib := &profile.Mapping{ID: 2, Limit: 1 << 47, File: "/lib/libc.so.6"}
	fs := []*profile.Function{
		fn(1, "main", "a.c"), fn(2, "hot", "a.c"), fn(3, "inner", "a.h"),
		fn(4, "[truncated]", ""), fn(5, "libc.so.6+0x123", ""),
	}
	ls := []*profile.Location{
		{ID: 1, Mapping: exe, Address: 16, Line: []profile.Line{{Function: fs[0], Line: 3}}},
		{ID: 2, Mapping: exe, Address: 32, Line: []profile.Line{{Function: fs[2], Line: 9}, {Function: fs[1], Line: 5}}},
		{ID: 3, Line: []profile.Line{{Function: fs[3]}}},
		{ID: 4, Mapping: lib, Address: 0x123, Line: []profile.Line{{Function: fs[4]}}},
	}
	return &profile.Profile{
		SampleType: []*profile.ValueType{{Type: "samples", Unit: "count"}, {Type: "cpu", Unit: "nanoseconds"}},
		Mapping:    []*profile.Mapping{exe, lib}, Function: fs, Location: ls,
		Sample: []*profile.Sample{
			{
				Location: []*profile.Location{ls[1], ls[0]}, Value: []int64{90, 900},
				Label: map[string][]string{"process": {"prog"}, "thread": {"worker"}}, NumLabel: map[string][]int64{"pid": {7}},
			},
			{Location: []*profile.Location{ls[1], ls[2]}, Value: []int64{6, 60}},
			{Location: []*profile.Location{ls[3], ls[0]}, Value: []int64{4, 40}},
		},
	}
}

func TestRecording(t *testing.T) {
	r, err := newRecording(handMade())
	if err != nil {
		t.Fatal(err)
	}
	inlined := newChain("main", "hot", "inner")
	for _, tt := range []struct {
		name string
		got  share
		want share
	}{
		{"all samples count", share{r.total, r.total}, share{100, 100}},
		{"a marker makes a stack incomplete", r.whole(), share{94, 100}},
		{"a chain is looked for among the samples of its function", r.among([]string{"hot"}, func(s *stack) bool { return inlined.in(s.frames) }), share{90, 96}},
		{"a deleted file keeps its name; inlined calls are no frames of it", r.names("prog"), share{190, 190}},
		{"an offset is no name", r.names("libc.so.6"), share{0, 4}},
		{"a line needs its file", r.lines("inner", "a.h"), share{96, 96}},
		{"another file is no match", r.lines("inner", "a.c"), share{0, 96}},
		{"labels are read", r.count(func(s *stack) bool { return s.process == "prog" && s.thread == "worker" && s.pid == 7 }), share{90, 100}},
	} {
		if diff := cmp.Diff(tt.got, tt.want, cmp.AllowUnexported(share{})); diff != "" {
			t.Errorf("%s (-got +want):\n%s", tt.name, diff)
		}
	}
	if diff := cmp.Diff(r.markers(), map[string]int64{"[truncated]": 6}); diff != "" {
		t.Errorf("markers (-got +want):\n%s", diff)
	}
	all := func(*stack) bool { return true }
	if diff := cmp.Diff(r.examples(2, all), []string{"90 x main;hot;inner", "6 x [truncated];hot;inner"}); diff != "" {
		t.Errorf("examples (-got +want):\n%s", diff)
	}
}

func TestRecordingWithoutSamplesValue(t *testing.T) {
	p := handMade()
	p.SampleType[0].Type = "alloc_space"
	if _, err := newRecording(p); err == nil {
		t.Error("a profile without a samples value was read without error")
	}
}
