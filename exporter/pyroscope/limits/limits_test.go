package limits

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/profiler"
)

func TestLabels(t *testing.T) {
	type attributes = []profiler.Attribute
	many := attributes{{Key: "service.name", Value: "shop"}}
	for i := range 40 {
		many = append(many, profiler.Attribute{Key: fmt.Sprintf("a.label%02d", i), Value: "v"})
	}
	many = append(many, profiler.Attribute{Key: "k8s.pod.name", Value: "p"})
	for _, test := range []struct {
		name string
		in   attributes
		want map[string]string
	}{
		{
			"a service without a name has one that says so",
			nil,
			map[string]string{"service.name": "unknown_service"},
		},
		{
			"what people search by has a short name too",
			attributes{
				{Key: "k8s.container.name", Value: "c"}, {Key: "k8s.namespace.name", Value: "n"}, {Key: "k8s.node.name", Value: "o"},
				{Key: "k8s.pod.name", Value: "p"}, {Key: "service.name", Value: "s"}, {Key: "service.namespace", Value: "n"},
			},
			map[string]string{
				"k8s.container.name": "c", "container": "c", "k8s.namespace.name": "n", "namespace": "n", "k8s.node.name": "o", "node": "o",
				"k8s.pod.name": "p", "pod": "p", "service.name": "s", "service.namespace": "n", "service_namespace": "n",
			},
		},
		{
			"a short name that is taken stays",
			attributes{{Key: "k8s.pod.name", Value: "p"}, {Key: "pod", Value: "mine"}, {Key: "service.name", Value: "s"}},
			map[string]string{"k8s.pod.name": "p", "pod": "mine", "service.name": "s"},
		},
		{
			"processes and threads are no series",
			attributes{{Key: "process.pid", Value: "1"}, {Key: "service.name", Value: "s"}, {Key: "thread.id", Value: "2"}, {Key: "thread.name", Value: "w"}, {Key: "tid", Value: "2"}},
			map[string]string{"service.name": "s"},
		},
		{
			"names that the server sets are not sent",
			attributes{{Key: "", Value: "v"}, {Key: "__name__", Value: "v"}, {Key: "__otel__", Value: "v"}, {Key: "service.name", Value: "s"}, {Key: "service_name", Value: "other"}},
			map[string]string{"service.name": "s"},
		},
		{
			"names have only what every server takes",
			attributes{{Key: "1st", Value: "v"}, {Key: "k8s.pod.label.app.kubernetes.io/part-of", Value: "v"}, {Key: "naïve", Value: "v"}, {Key: "service.name", Value: "s"}},
			map[string]string{"_st": "v", "k8s.pod.label.app.kubernetes.io_part_of": "v", "na__ve": "v", "service.name": "s"},
		},
		{
			"names that an old server takes for one have one value",
			attributes{{Key: "a.b", Value: "1"}, {Key: "a_b", Value: "2"}, {Key: "c.d", Value: "1"}, {Key: "c_d", Value: "1"}, {Key: "service.name", Value: "s"}},
			map[string]string{"a.b": "1", "c.d": "1", "c_d": "1", "service.name": "s"},
		},
		{
			"values are printable, and nothing is no value",
			attributes{{Key: "a", Value: ""}, {Key: "b", Value: "x\xff\x00y"}, {Key: "service.name", Value: "s"}},
			map[string]string{"b": `x\xff\x00y`, "service.name": "s"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := map[string]string{}
			last := ""
			for _, a := range Labels(&profiler.Workload{Attributes: test.in}) {
				if a.Key <= last {
					t.Errorf("%q comes after %q", a.Key, last)
				}
				last = a.Key
				got[a.Key] = a.Value
			}
			if diff := cmp.Diff(got, test.want); diff != "" {
				t.Errorf("(-got +want):\n%s", diff)
			}
		})
	}
	t.Run("of too many the service and the short names stay", func(t *testing.T) {
		all := Labels(&profiler.Workload{Attributes: many})
		if len(all) != LabelNames {
			t.Errorf("%d labels, want %d", len(all), LabelNames)
		}
		w := profiler.Workload{Attributes: all}
		if w.Attribute("service.name") != "shop" || w.Attribute("pod") != "p" || w.Attribute("k8s.pod.name") != "p" {
			t.Errorf("left are %v", all)
		}
	})
	t.Run("long values end in an ellipsis, between characters", func(t *testing.T) {
		w := profiler.Workload{Attributes: Labels(&profiler.Workload{Attributes: attributes{{Key: "service.name", Value: strings.Repeat("é", 2000)}}})}
		if v := w.Attribute("service.name"); len(v) > LabelBytes || !utf8.ValidString(v) || !strings.HasSuffix(v, "é…") {
			t.Errorf("%d bytes that end in %q", len(v), v[len(v)-8:])
		}
	})
}

func TestPlain(t *testing.T) {
	got := Plain(Labels(&profiler.Workload{Attributes: []profiler.Attribute{
		{Key: "k8s.pod.name", Value: "p"}, {Key: "service.name", Value: "s"}, {Key: "service.namespace", Value: "n"},
	}}))
	want := []profiler.Attribute{
		{Key: "k8s_pod_name", Value: "p"}, {Key: "pod", Value: "p"}, {Key: "service_name", Value: "s"}, {Key: "service_namespace", Value: "n"},
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}

func TestName(t *testing.T) {
	for name, test := range map[string]struct{ in, want string }{
		"a name stays":                     {"main", "main"},
		"what is not UTF-8 is printable":   {"a\xffb", `a\xffb`},
		"as long as allowed stays":         {strings.Repeat("x", NameBytes), strings.Repeat("x", NameBytes)},
		"too long is cut and says so":      {strings.Repeat("x", NameBytes+1), strings.Repeat("x", NameBytes-3) + "…"},
		"the cut is not inside characters": {strings.Repeat("é", NameBytes), strings.Repeat("é", (NameBytes-3)/2) + "…"},
		"escapes count for the length too": {strings.Repeat("\xff", NameBytes), strings.Repeat(`\xff`, (NameBytes-3)/4) + `\` + "…"},
	} {
		if got := Name(test.in); got != test.want {
			t.Errorf("%s: got %d bytes %.20q…, want %d", name, len(got), got, len(test.want))
		}
	}
}

func TestLocations(t *testing.T) {
	stack := func(n int, stop profiler.Stop) *profiler.Stack {
		s := &profiler.Stack{Stop: stop}
		for i := range n {
			s.Locations = append(s.Locations, &profiler.Location{Address: uint64(i), Frames: []profiler.Frame{{Function: "f"}}})
		}
		return s
	}
	// text is the addresses, with markers where there are any.
	text := func(all []*profiler.Location) string {
		var out []string
		for i, l := range all {
			switch {
			case l.Frames[0].Kind == profiler.KindMarker:
				out = append(out, l.Frames[0].Function)
			case i == 0 || i+1 == len(all) || all[i-1].Frames[0].Kind == profiler.KindMarker || all[i+1].Frames[0].Kind == profiler.KindMarker:
				out = append(out, fmt.Sprint(l.Address))
			}
		}
		return strings.Join(out, " ")
	}
	for _, test := range []struct {
		name  string
		stack *profiler.Stack
		n     int
		want  string // the first, the last, markers and their neighbours
	}{
		{"a complete stack stays", stack(3, profiler.StopRoot), 3, "0 2"},
		{"a kernel thread's stack is complete", stack(3, profiler.StopNoUser), 3, "0 2"},
		{"an incomplete stack has a marker at the root end", stack(3, profiler.StopBadRead), 4, "0 2 [unwind: stack not readable]"},
		{"as deep as allowed stays", stack(1000, profiler.StopRoot), 1000, "0 999"},
		{"the middle of a deeper one is left out", stack(1001, profiler.StopRoot), 1000, "0 498 [truncated] 501 1000"},
		{"the marker at the root counts", stack(1000, profiler.StopTruncated), 1000, "0 498 [truncated] 501 999 [truncated]"},
		{"a stack of nothing is its marker", stack(0, profiler.StopNoRegisters), 1, "[unwind: registers not readable]"},
		{"a complete stack of nothing is unknown", stack(0, profiler.StopRoot), 1, "[unknown]"},
		{"no stack is unknown", nil, 1, "[unknown]"},
		{"a reason that nobody knows is one", stack(1, 200), 2, "0 [unwind: unknown]"},
	} {
		got := Locations(nil, test.stack)
		if len(got) != test.n || text(got) != test.want {
			t.Errorf("%s: %d locations, %s; want %d, %s", test.name, len(got), text(got), test.n, test.want)
		}
	}
}
