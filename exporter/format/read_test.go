package format

import (
	"bytes"
	"compress/gzip"
	"errors"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	rpprof "runtime/pprof"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	pprof "github.com/google/pprof/profile"

	"github.com/kalypso-dev/kalypso/profiler"
)

func read(t *testing.T, file []byte) *profiler.Profile {
	t.Helper()
	p, err := ReadPprof(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// odd is a profile with what seldom is: times of a zone, no process, no stack,
// a start that is known of a function without a name, a location without
// frames, code of no module, kinds that no file name tells, thread 0.
func odd() *profiler.Profile {
	p := shop()
	p.Start = p.Start.In(time.FixedZone("ACST", 9*3600+1800))
	p.Workload = &profiler.Workload{Attributes: []profiler.Attribute{{Key: "host.name", Value: "larch"}, {Key: "service.name", Value: "cart\x1b"}}}
	exe := p.Samples[0].Stack.Locations[0].Module
	start := &profiler.Location{Module: exe, Address: 0x1410, Frames: []profiler.Frame{{Start: 0x1400, Kind: profiler.KindGo}}}
	none := &profiler.Location{Module: exe, Address: 0x1500}
	nowhere := &profiler.Location{Module: &profiler.Module{}, Address: 0x77, Frames: []profiler.Frame{{Kind: profiler.KindJIT}}}
	named := &profiler.Location{Module: exe, Address: 0x1600, Frames: []profiler.Frame{{Function: "[truncated]", Linkage: "[truncated]"}}}
	stack := func(stop profiler.Stop, l ...*profiler.Location) *profiler.Stack {
		return &profiler.Stack{Locations: l, Stop: stop}
	}
	p.Samples = append(p.Samples,
		profiler.Sample{Count: 1},
		profiler.Sample{Count: 2, Process: &profiler.Process{PID: 9}, TID: 9, Stack: stack(profiler.StopRoot, start, none, nowhere)},
		profiler.Sample{Count: 3, Process: &profiler.Process{Comm: "pid 0"}, Thread: "no tid", Stack: stack(profiler.StopNone, named)},
		profiler.Sample{Count: 4, Process: p.Samples[0].Process, Stack: stack(profiler.StopRoot, start, named)},
	)
	return p
}

func TestReadPprofLosesNothingThatIsShown(t *testing.T) {
	for name, p := range map[string]*profiler.Profile{
		"shop": shop(), "threads": threads(), "cgroups": cgroups(), "hostile": hostile(), "odd": odd(), "unaccounted": unaccounted(), "empty": {},
	} {
		first := written(t, Pprof{}, p)
		got := read(t, first)
		for _, f := range Formats() {
			if !bytes.Equal(written(t, f, got), written(t, f, p)) {
				t.Errorf("%s: %s differs after reading back", name, f.Ending())
			}
		}
		var a, b bytes.Buffer
		if err := errors.Join(WriteTable(&a, got, Table{}), WriteTable(&b, p, Table{})); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(a.String(), b.String()); diff != "" {
			t.Errorf("%s: the table differs (-got +want):\n%s", name, diff)
		}
	}
}

func TestReadPprofGivesTheSameProfile(t *testing.T) {
	want := shop()
	want.Workload = odd().Workload
	want.Workload.Attributes[1].Value = "cart"
	want.Remarks = []string{"node larch · 49 Hz · 3m0s", "and 2 more"}
	got := read(t, written(t, Pprof{}, want))
	for i := range want.Samples { // as every reader sees it
		want.Samples[i].Process = &profiler.Process{PID: want.Samples[i].Process.PID, Comm: profiler.Printable(want.Samples[i].Process.Comm), Exe: want.Samples[i].Process.Exe}
	}
	want.Samples[8].Stack.Locations = []*profiler.Location{}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}

func TestReadProfilesKeepsWorkloadsApart(t *testing.T) {
	one, two := shop(), threads()
	one.Workload = &profiler.Workload{Attributes: []profiler.Attribute{{Key: "service.name", Value: "one"}}}
	two.Workload = &profiler.Workload{Attributes: []profiler.Attribute{{Key: "service.name", Value: "two"}}}
	two.Frequency = 50
	idle := &profiler.Profile{Start: one.Start, Duration: one.Duration, Frequency: 100}
	in := []*profiler.Profile{one, two, idle}
	var file bytes.Buffer
	if err := WriteProfiles(&file, in); err != nil {
		t.Fatal(err)
	}
	parsed, err := pprof.ParseData(file.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	var cpu int64
	services := map[string]int64{}
	for _, s := range parsed.Sample {
		cpu += s.Value[1]
		services[s.Label["service.name"][0]] += s.Value[1]
	}
	if want := map[string]int64{"one": 10e9, "two": 11e9}; !cmp.Equal(services, want) || cpu != 21e9 {
		t.Errorf("%d ns of CPU time, by service %v, want %v", cpu, services, want)
	}
	got, err := ReadProfiles(bytes.NewReader(file.Bytes()))
	if err != nil || len(got) != len(in) {
		t.Fatalf("%d profiles, %v", len(got), err)
	}
	for i := range in {
		if !bytes.Equal(written(t, Pprof{}, got[i]), written(t, Pprof{}, in[i])) {
			t.Errorf("profile %d differs after reading back", i)
		}
	}
	whole := read(t, file.Bytes())
	if got, want := cpuTime(whole), 21*time.Second; got != want || whole.Workload != nil {
		t.Errorf("as one profile: %v of CPU time of %v, want %v of no workload", got, whole.Workload, want)
	}
}

func cpuTime(p *profiler.Profile) time.Duration {
	var n uint64
	for i := range p.Samples {
		n += p.Samples[i].Count
	}
	return time.Duration(n) * p.Period()
}

// TestReadPprofAfterAnotherTool: pprof's own merge joins the notes of files and
// keeps neither their order nor their number of samples.
func TestReadPprofAfterAnotherTool(t *testing.T) {
	var both []*pprof.Profile
	for _, p := range []*profiler.Profile{shop(), threads()} {
		parsed, err := pprof.ParseData(written(t, Pprof{}, p))
		if err != nil {
			t.Fatal(err)
		}
		both = append(both, parsed)
	}
	merged, err := pprof.Merge(both)
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if err := merged.Write(&file); err != nil {
		t.Fatal(err)
	}
	p := read(t, file.Bytes())
	if got, want := cpuTime(p), 15500*time.Millisecond; got != want {
		t.Errorf("%v of CPU time, want %v", got, want)
	}
	var folded bytes.Buffer
	if err := (Folded{}).Write(&folded, p); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"cart;__libc_start_main;main;ksys_read 100\n", "cart;[truncated];walk;walk 20\n", "wor:ker-43"} {
		if !strings.Contains(folded.String(), want) {
			t.Errorf("no %q in\n%s", want, folded.String())
		}
	}
}

// ownCPU is the CPU time of this program.
func ownCPU(t *testing.T) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestReadPprofOfGo(t *testing.T) {
	var file bytes.Buffer
	if err := rpprof.StartCPUProfile(&file); err != nil {
		t.Skip(err) // "go test -cpuprofile" runs
	}
	// By CPU time: others may keep the machine busy.
	for end, x := ownCPU(t)+300*time.Millisecond, 0.0; ownCPU(t) < end; {
		for range 10_000 {
			x = math.Sqrt(x + 2)
		}
		runtime.KeepAlive(x)
	}
	rpprof.StopCPUProfile()
	p := read(t, file.Bytes())
	if p.Frequency != 100 || p.Event != "cpu" || p.Duration < 250*time.Millisecond || time.Since(p.Start) > time.Minute {
		t.Errorf("%s at %d Hz, %v from %v", p.Event, p.Frequency, p.Duration, p.Start)
	}
	if got := cpuTime(p); got < 100*time.Millisecond || got > 2*time.Second {
		t.Errorf("%v of CPU time", got)
	}
	rows := Top(p)
	found := false
	for _, r := range rows {
		found = found || strings.HasSuffix(r.Function, "format.TestReadPprofOfGo") && r.Kind == profiler.KindGo
	}
	if !found {
		t.Errorf("this test is not among %+v", rows)
	}
	if pr := p.Samples[0].Process; pr == nil || pr.Comm != filepath.Base(os.Args[0]) {
		t.Errorf("process %+v", pr)
	}
}

// foreign is a file as other programs write them.
func foreign(edit func(*pprof.Profile)) []byte {
	kernel := &pprof.Mapping{ID: 1, Start: 0xffffffff80000000, Limit: 0xffffffffc0000000, File: "[kernel.kallsyms]_stext"}
	exe := &pprof.Mapping{ID: 2, Start: 0x400000, Limit: 0x500000, Offset: 0x1000, File: "/usr/bin/shop"}
	fn := &pprof.Function{ID: 1, Name: "price", Filename: "/src/price.c"}
	call := &pprof.Function{ID: 2, Name: "read"}
	p := &pprof.Profile{
		SampleType: []*pprof.ValueType{{Type: "samples", Unit: "count"}, {Type: "cpu", Unit: "nanoseconds"}},
		PeriodType: &pprof.ValueType{Type: "cpu", Unit: "nanoseconds"}, Period: 1e7,
		Mapping: []*pprof.Mapping{kernel, exe}, Function: []*pprof.Function{fn, call},
		Location: []*pprof.Location{
			{ID: 1, Mapping: exe, Address: 0x400123},
			{ID: 2, Mapping: exe, Address: 0x400200, Line: []pprof.Line{{Function: fn, Line: 7}}},
			{ID: 3, Mapping: kernel, Address: 0xffffffff80000100, Line: []pprof.Line{{Function: call}}},
		},
	}
	p.Sample = []*pprof.Sample{
		{Location: []*pprof.Location{p.Location[0]}, Value: []int64{2, 2e7}},
		{Location: []*pprof.Location{p.Location[2], p.Location[1]}, Value: []int64{3, 3e7}},
	}
	edit(p)
	var b bytes.Buffer
	if err := p.Write(&b); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func TestReadForeignPprof(t *testing.T) {
	for name, c := range map[string]struct {
		edit   func(*pprof.Profile)
		folded string
		time   time.Duration
	}{
		"addresses become those of the file": {func(*pprof.Profile) {}, "[kernel.kallsyms]_stext;price;read 3\n[kernel.kallsyms]_stext;shop+0x1123 2\n", 50 * time.Millisecond},
		"CPU time decides over the number of samples": {func(p *pprof.Profile) {
			p.Sample[0].Value[1], p.Sample[1].Value[1] = 1e9, 2e9
		}, "price;read 200\n", 3 * time.Second},
		"a count without a period has no time": {func(p *pprof.Profile) {
			p.SampleType, p.PeriodType, p.Period = p.SampleType[:1], nil, 0
			p.Sample[0].Value, p.Sample[1].Value = []int64{5}, []int64{6}
		}, "price;read 6\n", 0},
		"time without a period is counted in its unit": {func(p *pprof.Profile) {
			p.SampleType, p.Period = []*pprof.ValueType{{Type: "cpu", Unit: "microseconds"}}, 0
			p.Sample[0].Value, p.Sample[1].Value = []int64{5}, []int64{6}
		}, "price;read 6\n", 11 * time.Microsecond},
		"what is less than a period is not lost": {func(p *pprof.Profile) {
			p.Sample = nil
			for range 10 {
				p.Sample = append(p.Sample, &pprof.Sample{Location: p.Location[1:2], Value: []int64{1, 4e6}})
			}
		}, "price 4\n", 40 * time.Millisecond},
		"what Pyroscope added up is counted in milliseconds": {func(p *pprof.Profile) {
			p.SampleType, p.Period = p.SampleType[1:], 1e9
			p.Sample[0].Value, p.Sample[1].Value = []int64{20e6}, []int64{30e6}
		}, "price;read 30\n", 50 * time.Millisecond},
		"a marker has a mapping of nothing after Pyroscope": {func(p *pprof.Profile) {
			none := &pprof.Mapping{ID: 3}
			end := &pprof.Function{ID: 3, Name: profiler.StopNoRow.Marker()}
			p.Mapping, p.Function = append(p.Mapping, none), append(p.Function, end)
			p.Location = append(p.Location, &pprof.Location{ID: 4, Mapping: none, Line: []pprof.Line{{Function: end}}})
			p.Sample[1].Location = append(p.Sample[1].Location, p.Location[3])
		}, profiler.StopNoRow.Marker() + ";price;read 3\n", 50 * time.Millisecond},
		"a process and its cgroup": {func(p *pprof.Profile) {
			p.Sample = p.Sample[1:]
			p.Sample[0].Label = map[string][]string{"process": {"cart"}, "cgroup": {"/a"}}
		}, "/a;cart;price;read 3\n", 30 * time.Millisecond},
		"perf's samples": {func(p *pprof.Profile) {
			p.SampleType, p.PeriodType = []*pprof.ValueType{{Type: "cycles_event", Unit: "count"}, {Type: "cycles_sample", Unit: "count"}}, nil
			p.Sample[0].Value, p.Sample[1].Value = []int64{1e9, 4}, []int64{2e9, 6}
		}, "price;read 6\n", 0},
	} {
		t.Run(name, func(t *testing.T) {
			p := read(t, foreign(c.edit))
			folded := string(written(t, Folded{}, p))
			if !strings.Contains(folded, c.folded) {
				t.Errorf("folded\n%swant %q in it", folded, c.folded)
			}
			if !p.Quality.LostUnknown {
				t.Error("it is said to know what was lost")
			}
			if got := cpuTime(p); got != c.time {
				t.Errorf("%v of CPU time, want %v", got, c.time)
			}
			for _, r := range Top(p) {
				if want := map[string]profiler.FrameKind{"read": profiler.KindKernel}[r.Function]; r.Kind != want {
					t.Errorf("%s is %v code, want %v", r.Function, r.Kind, want)
				}
			}
			again := written(t, Pprof{}, p)
			if !bytes.Equal(written(t, Pprof{}, read(t, again)), again) {
				t.Error("written, read and written again, it differs")
			}
		})
	}
}

func TestReadPprofSaysWhatIsWrong(t *testing.T) {
	plain := inflated(t, written(t, Pprof{}, shop()))
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	for range maxPprofBytes>>20 + 1 {
		if _, err := z.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		file []byte
		want string
	}{
		"nothing":             {nil, "the file is empty"},
		"text":                {[]byte("--- heapz 1 ---\n"), "not a pprof profile"},
		"a cut file":          {plain[:len(plain)/2], "not a pprof profile"},
		"a cut gzip":          {written(t, Pprof{}, shop())[:200], "inflate: unexpected EOF"},
		"64 MiB of nothing":   {bomb.Bytes(), "larger than any profile"},
		"many small messages": {bytes.Repeat([]byte{0x32, 0}, maxPprofMessages+1), "larger than any profile"},
		"nothing but strings": {bytes.Repeat([]byte{0x32, 0}, 9), "not a pprof profile: it does not say what its samples count"},
		"two of one number":   {foreign(func(p *pprof.Profile) { p.Function[1].ID = 1 }), "not a pprof profile: it has two things under one number"},
		"a heap profile": {foreign(func(p *pprof.Profile) {
			p.SampleType = []*pprof.ValueType{{Type: "inuse_objects", Unit: "count"}, {Type: "inuse_space", Unit: "bytes"}}
		}), "it holds no CPU time: its samples have inuse_objects in count, inuse_space in bytes"},
		"a difference": {foreign(func(p *pprof.Profile) { p.Sample[1].Value[1] = -3 }), "the difference of two profiles"},
		"a sample of nowhere": {foreign(func(p *pprof.Profile) {
			p.Sample[1].Location = []*pprof.Location{{ID: 99}}
		}), "it refers to something that is not in it"},
	} {
		_, err := ReadPprof(bytes.NewReader(c.file))
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "read pprof profile: ") {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	if _, err := ReadPprof(failingReader{}); !errors.Is(err, errFull) {
		t.Errorf("got %v, want the reader's error", err)
	}
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errFull }

func inflated(t testing.TB, file []byte) []byte {
	t.Helper()
	out, err := inflate(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// FuzzReadPprof: whatever is read can be written, and what was written is read
// back as it is.
func FuzzReadPprof(f *testing.F) {
	for _, p := range []*profiler.Profile{shop(), threads(), cgroups(), odd()} {
		var b bytes.Buffer
		if err := (Pprof{}).Write(&b, p); err != nil {
			f.Fatal(err)
		}
		f.Add(inflated(f, b.Bytes()))
		f.Add(b.Bytes())
	}
	f.Add(inflated(f, foreign(func(*pprof.Profile) {})))
	f.Fuzz(func(t *testing.T, file []byte) {
		profiles, err := ReadProfiles(bytes.NewReader(file))
		if err != nil {
			return
		}
		var first, second bytes.Buffer
		if err := WriteProfiles(&first, profiles); err != nil {
			t.Fatal(err)
		}
		again, err := ReadProfiles(bytes.NewReader(first.Bytes()))
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if err := WriteProfiles(&second, again); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first.Bytes(), second.Bytes()) {
			a, _ := pprof.ParseData(first.Bytes())
			b, _ := pprof.ParseData(second.Bytes())
			t.Errorf("(-second +first):\n%s", cmp.Diff(b.String(), a.String()))
		}
		Merge(profiles...)
	})
}

func TestPprofOfOursIsReadByGo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "two.pb.gz")
	one, two := shop(), threads()
	one.Workload = &profiler.Workload{Attributes: []profiler.Attribute{{Key: "service.name", Value: "one"}}}
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(WriteProfiles(file, []*profiler.Profile{one, two}), file.Close()); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "tool", "pprof", "-top", "-tagfocus=service.name=one", path)
	cmd.Env = append(os.Environ(), "PPROF_TMPDIR="+t.TempDir(), "TZ=UTC")
	out, err := cmd.Output()
	if err != nil || !strings.Contains(string(out), "Total samples = 15.50s") || !strings.Contains(string(out), "Showing nodes accounting for 10s") {
		t.Errorf("%v:\n%s", err, out)
	}
	if strings.Contains(string(out), "kalypso.pprof") {
		t.Errorf("pprof shows the note:\n%s", out)
	}
}
