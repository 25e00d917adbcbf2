package format

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	pprof "github.com/google/pprof/profile"

	"github.com/kalypso-dev/kalypso/profiler"
)

var update = flag.Bool("update", false, "write the golden files")

// shop is a profile with one of everything: two processes, the kernel, native,
// Go and JIT code, inlined calls, recursion, a module without symbols, a stack
// that was cut and one that has no frames at all.
func shop() *profiler.Profile {
	kernel := &profiler.Module{Path: "[kernel]", BuildID: "4b1d"}
	libc := &profiler.Module{Path: "/usr/lib/x86_64-linux-gnu/libc.so.6", BuildID: "c0ffee"}
	foo := &profiler.Module{Path: "/opt/lib/libfoo.so", BuildID: "9f3c0011223344556677"}
	exe := &profiler.Module{Path: "/usr/bin/shop", BuildID: "aa55"}
	anon := &profiler.Module{Path: "[anon]"}

	start := &profiler.Location{Module: libc, Address: 0x271f0, Frames: []profiler.Frame{{Function: "__libc_start_main"}}}
	main := &profiler.Location{Module: exe, Address: 0x1100, Frames: []profiler.Frame{{Function: "main", File: "/src/shop.c", Line: 40}}}
	price := &profiler.Location{Module: exe, Address: 0x1210, Frames: []profiler.Frame{
		{Function: "clamp", File: "/src/clamp.h", Line: 7, Inlined: true},
		{Function: "round_to(int, int)", Linkage: "_Z8round_toii", File: "/src/price.c", Line: 12, Inlined: true},
		{Function: "price", File: "/src/price.c", Line: 31},
	}}
	walk := &profiler.Location{Module: exe, Address: 0x1300, Frames: []profiler.Frame{{Function: "walk", File: "/src/tree.c", Line: 9}}}
	unnamed := &profiler.Location{Module: foo, Address: 0x4d2, Frames: []profiler.Frame{{}}}
	read := &profiler.Location{Module: kernel, Address: 0xffffffff81234567, Frames: []profiler.Frame{{Function: "ksys_read", Kind: profiler.KindKernel}}}
	secret := &profiler.Location{Module: kernel, Address: 0xffffffffc0000010, Frames: []profiler.Frame{{Kind: profiler.KindKernel}}}
	goexit := &profiler.Location{Module: exe, Address: 0x8000, Frames: []profiler.Frame{{Function: "runtime.goexit", File: "/go/asm.s", Line: 1, Kind: profiler.KindGo}}}
	scan := &profiler.Location{Module: exe, Address: 0x8100, Frames: []profiler.Frame{{Function: "encoding/json.(*decodeState).scanWhile", File: "/go/decode.go", Line: 5, Kind: profiler.KindGo}}}
	jit := &profiler.Location{Module: anon, Address: 0x7f0000001000, Frames: []profiler.Frame{{Function: "LazyCompile:*sum /app/a.js:3", Kind: profiler.KindJIT}}}

	cart := &profiler.Process{PID: 41, Comm: "cart", Exe: "/usr/bin/shop"}
	node := &profiler.Process{PID: 42, Comm: "node; rm -rf\n/", Exe: "/usr/bin/node"}
	stack := func(stop profiler.Stop, leafFirst ...*profiler.Location) *profiler.Stack {
		return &profiler.Stack{Locations: leafFirst, Stop: stop}
	}
	p := &profiler.Profile{
		Start: time.Date(2026, 11, 22, 20, 31, 0, 0, time.UTC), Duration: 10 * time.Second,
		Frequency: 100, Event: "cpu-clock", Host: "larch",
		Samples: []profiler.Sample{
			{Process: cart, Stack: stack(profiler.StopRoot, price, main, start), Count: 400},
			{Process: cart, Stack: stack(profiler.StopRoot, walk, walk, walk, main, start), Count: 150},
			{Process: cart, Stack: stack(profiler.StopRoot, read, main, start), Count: 100},
			{Process: cart, Stack: stack(profiler.StopRoot, scan, goexit), Count: 200},
			{Process: cart, Stack: stack(profiler.StopNoRow, unnamed), Count: 60},
			{Process: cart, Stack: stack(profiler.StopTruncated, walk, walk), Count: 20},
			{Process: node, Stack: stack(profiler.StopRoot, jit, start), Count: 50},
			{Process: node, Stack: stack(profiler.StopNoUser, secret), Count: 15},
			{Process: node, Stack: stack(profiler.StopNoRegisters), Count: 5},
		},
	}
	p.Quality = profiler.Quality{
		Samples: 1000, Lost: 12, DistinctStacks: 9, Frames: 2975, FramesNamed: 2900,
		UnnamedByModule: map[string]uint64{foo.Path: 60, kernel.Path: 15},
	}
	for i := range p.Samples {
		p.Quality.Stops[p.Samples[i].Stack.Stop] += p.Samples[i].Count
	}
	return p
}

// unaccounted is a profile of which nobody told what was lost.
func unaccounted() *profiler.Profile {
	p := shop()
	p.Quality.Lost, p.Quality.LostUnknown = 0, true
	return p
}

// threads is a recording by thread.
func threads() *profiler.Profile {
	p := shop()
	p.Samples = p.Samples[:2]
	p.Samples[0].TID, p.Samples[0].Thread = 41, "cart"
	p.Samples[1].TID, p.Samples[1].Thread = 43, "wor;ker"
	return p
}

// cgroups is a recording by cgroup: two processes of one cgroup, and one that
// was gone before its cgroup was read.
func cgroups() *profiler.Profile {
	p := shop()
	p.Samples[0].Process.Cgroup = "/system.slice/cart.service"
	helper := &profiler.Process{PID: 43, Comm: "helper", Cgroup: "/system.slice/cart.service"}
	p.Samples[4].Process = helper
	p.Samples = append(p.Samples, profiler.Sample{
		Process: &profiler.Process{PID: 44, Comm: "cart", Cgroup: "/user;slice\nx"}, Stack: p.Samples[0].Stack, Count: 7,
	})
	return p
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(got), string(want)); diff != "" {
		t.Errorf("%s (-got +want):\n%s", name, diff)
	}
}

func written(t *testing.T, f Format, p *profiler.Profile) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := f.Write(&b, p); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestForPath(t *testing.T) {
	for _, f := range Formats() {
		got, err := ForPath("/tmp/some.dir/profile" + f.Ending())
		if err != nil || got.Ending() != f.Ending() {
			t.Errorf("%s: got %v, %v", f.Ending(), got, err)
		}
	}
	_, err := ForPath("profile.svg")
	var fault *profiler.Fault
	if !errors.As(err, &fault) {
		t.Fatalf("got %v, want a fault", err)
	}
	for _, f := range Formats() {
		if !strings.Contains(fault.Why.Error(), f.Ending()) {
			t.Errorf("%q does not name the ending %s", fault.Why, f.Ending())
		}
	}
}

func TestFolded(t *testing.T) {
	golden(t, "shop.folded", written(t, Folded{}, shop()))
	golden(t, "threads.folded", written(t, Folded{}, threads()))
	golden(t, "cgroups.folded", written(t, Folded{}, cgroups()))
}

func TestFoldedOneLinePerStackWhateverTheNames(t *testing.T) {
	p := hostile()
	out := string(written(t, Folded{}, p))
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if len(lines) != len(p.Samples) {
		t.Fatalf("%d lines for %d stacks:\n%s", len(lines), len(p.Samples), out)
	}
	for _, l := range lines {
		stack, count, ok := strings.Cut(l, " 7")
		if !ok || count != "" {
			t.Errorf("no count at the end of %q", l)
		}
		if n := strings.Count(stack, ";"); n != 1 {
			t.Errorf("%d separators in %q, want 1", n, l)
		}
		for _, r := range l {
			if r < ' ' || r == 0x7f {
				t.Errorf("control character in %q", l)
			}
		}
	}
}

func hostile() *profiler.Profile {
	p := &profiler.Profile{Frequency: 97, Duration: time.Second}
	for i, name := range []string{"a;b;c", "a\nb 5", "\x1b]0;owned\a", "\xff\xfe", "</script><script>alert(1)</script>", `"},{"`, "\u202eevil", strings.Repeat("x", 1<<16)} {
		p.Samples = append(p.Samples, profiler.Sample{
			Process: &profiler.Process{PID: profiler.PID(i), Comm: name},
			Stack: &profiler.Stack{Stop: profiler.StopRoot, Locations: []*profiler.Location{{
				Module: &profiler.Module{Path: name, BuildID: name},
				Frames: []profiler.Frame{{Function: name, File: name, Linkage: name}},
			}}},
			Count: 7,
		})
	}
	return p
}

func TestSameProfileSameBytes(t *testing.T) {
	for _, f := range Formats() {
		if a, b := written(t, f, shop()), written(t, f, shop()); !bytes.Equal(a, b) {
			t.Errorf("%s: two writes differ", f.Ending())
		}
	}
}

func TestEmptyProfile(t *testing.T) {
	for _, f := range Formats() {
		written(t, f, &profiler.Profile{})
	}
	var b bytes.Buffer
	if err := WriteTable(&b, &profiler.Profile{}, Table{}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "nothing ran on a CPU") {
		t.Errorf("the table of an empty profile does not say that it is empty:\n%s", b.String())
	}
}

func TestWriteError(t *testing.T) {
	for _, f := range Formats() {
		if err := f.Write(failing{}, shop()); !errors.Is(err, errFull) {
			t.Errorf("%s: got %v, want the writer's error", f.Ending(), err)
		}
	}
	if err := WriteTable(failing{}, shop(), Table{}); !errors.Is(err, errFull) {
		t.Errorf("table: got %v, want the writer's error", err)
	}
}

var errFull = errors.New("disk full")

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errFull }

func TestPprof(t *testing.T) {
	for name, p := range map[string]*profiler.Profile{"shop": shop(), "threads": threads(), "cgroups": cgroups(), "hostile": hostile()} {
		got, err := pprof.Parse(bytes.NewReader(written(t, Pprof{}, p)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := got.CheckValid(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if name != "hostile" {
			golden(t, name+".pprof.txt", []byte(got.String()))
		}
	}
}

func TestPprofTop(t *testing.T) {
	p := shop()
	p.Samples[0].Process.Cgroup = "/system.slice/cart.service"
	path := filepath.Join(t.TempDir(), "shop.pb.gz")
	if err := os.WriteFile(path, written(t, Pprof{}, p), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		cmd := exec.Command("go", append([]string{"tool", "pprof"}, append(args, path)...)...)
		cmd.Env = append(os.Environ(), "PPROF_TMPDIR="+t.TempDir(), "TZ=UTC")
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, errs.String())
		}
		if errs.Len() > 0 {
			t.Errorf("%v complains:\n%s", cmd.Args, errs.String())
		}
		return string(out)
	}
	top := run("-top")
	for _, want := range []string{"Type: cpu", "Duration: 10s, Total samples = 10s", "libfoo.so+0x4d2", "[kernel]+0xffffffffc0000010", "[truncated]"} {
		if !strings.Contains(top, want) {
			t.Errorf("pprof -top lacks %q:\n%s", want, top)
		}
	}
	// clamp is inlined twice over and still the leaf; walk recurses and still counts once.
	for _, want := range [][]string{{"4s", "40.00%", "4s", "40.00%", "clamp", "(inline)"}, {"1.70s", "17.00%", "1.70s", "17.00%", "walk"}} {
		found := false
		for l := range strings.Lines(top) {
			f := strings.Fields(l)
			if len(f) > 3 {
				f = append(f[:2:2], f[3:]...) // the running sum says nothing here
			}
			found = found || cmp.Equal(f, want)
		}
		if !found {
			t.Errorf("pprof -top lacks the row %v:\n%s", want, top)
		}
	}
	if tags := run("-tags"); !strings.Contains(tags, " 41\n") || !strings.Contains(tags, "/system.slice/cart.service") {
		t.Errorf("pprof -tags shows no pid or cgroup:\n%s", tags)
	}
}

func TestSpeedscope(t *testing.T) {
	for name, p := range map[string]*profiler.Profile{"shop": shop(), "cgroups": cgroups()} {
		raw := written(t, Speedscope{}, p)
		var pretty bytes.Buffer
		if err := json.Indent(&pretty, raw, "", " "); err != nil {
			t.Fatal(err)
		}
		golden(t, name+".speedscope.json", pretty.Bytes())
		checkSpeedscope(t, raw, p)
	}
	checkSpeedscope(t, written(t, Speedscope{}, hostile()), hostile())
	checkSpeedscope(t, written(t, Speedscope{}, threads()), threads())
}

// checkSpeedscope holds a file against what the schema asks of a sampled
// profile: known fields only, indices inside the frame table, as many weights
// as samples.
func checkSpeedscope(t *testing.T, raw []byte, p *profiler.Profile) {
	t.Helper()
	var file struct {
		Schema   string `json:"$schema"`
		Exporter string `json:"exporter"`
		Name     string `json:"name"`
		Active   int    `json:"activeProfileIndex"`
		Shared   struct {
			Frames []struct {
				Name string `json:"name"`
				File string `json:"file"`
			} `json:"frames"`
		} `json:"shared"`
		Profiles []struct {
			Type       string  `json:"type"`
			Name       string  `json:"name"`
			Unit       string  `json:"unit"`
			StartValue int     `json:"startValue"`
			EndValue   int64   `json:"endValue"`
			Samples    [][]int `json:"samples"`
			Weights    []int64 `json:"weights"`
		} `json:"profiles"`
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&file); err != nil {
		t.Fatal(err)
	}
	if file.Schema != "https://www.speedscope.app/file-format-schema.json" {
		t.Errorf("schema is %q", file.Schema)
	}
	var total uint64
	for _, s := range p.Samples {
		total += s.Count
	}
	if got, want := file.Profiles[0].EndValue, int64(total)*p.Period().Nanoseconds(); got != want {
		t.Errorf("the first profile ends at %d ns, want all %d", got, want)
	}
	for _, pr := range file.Profiles {
		if pr.Type != "sampled" || pr.Unit != "nanoseconds" || len(pr.Samples) != len(pr.Weights) {
			t.Errorf("profile %q: type %q, unit %q, %d samples, %d weights", pr.Name, pr.Type, pr.Unit, len(pr.Samples), len(pr.Weights))
		}
		var sum int64
		for i, s := range pr.Samples {
			sum += pr.Weights[i]
			for _, f := range s {
				if f < 0 || f >= len(file.Shared.Frames) {
					t.Fatalf("profile %q: frame %d of %d", pr.Name, f, len(file.Shared.Frames))
				}
			}
		}
		if sum != pr.EndValue {
			t.Errorf("profile %q: weights add up to %d, it ends at %d", pr.Name, sum, pr.EndValue)
		}
	}
}

func TestTop(t *testing.T) {
	rows := make(map[string]TopRow)
	for _, r := range Top(shop()) {
		rows[r.Function] = r
	}
	for _, want := range []TopRow{
		{Function: "clamp", Module: "shop", Self: 400, Total: 400},
		{Function: "price", Module: "shop", Self: 0, Total: 400},
		{Function: "walk", Module: "shop", Self: 170, Total: 170},
		{Function: "main", Module: "shop", Self: 0, Total: 650},
		{Function: "libfoo.so+0x4d2", Self: 60, Total: 60},
		{Function: "ksys_read", Kind: profiler.KindKernel, Self: 100, Total: 100},
		{Function: "[unwind: registers not readable]", Kind: profiler.KindMarker, Self: 5, Total: 5},
	} {
		if diff := cmp.Diff(rows[want.Function], want); diff != "" {
			t.Errorf("%s (-got +want):\n%s", want.Function, diff)
		}
	}
	if r, ok := rows["[truncated]"]; ok {
		t.Errorf("a marker above frames is listed as a function: %+v", r)
	}
}

func TestTable(t *testing.T) {
	for name, c := range map[string]struct {
		profile *profiler.Profile
		table   Table
	}{
		"table.txt":              {shop(), Table{}},
		"table-narrow.txt":       {shop(), Table{Width: 50, Rows: 3}},
		"table-cgroups.txt":      {cgroups(), Table{Width: 34, Rows: 3}},
		"table-store.txt":        {unaccounted(), Table{Width: 60, Rows: 2, Facts: []string{"deploy/shop · 12:00:00 to 13:00:00 · from Pyroscope", "9.9 s of CPU time · 0.01 cores busy"}}},
		"table-cgroups-many.txt": {manyCgroups(), Table{Rows: 1}},
	} {
		var b bytes.Buffer
		if err := WriteTable(&b, c.profile, c.table); err != nil {
			t.Fatal(err)
		}
		golden(t, name, b.Bytes())
		for l := range strings.Lines(b.String()) {
			// A word is never broken: only lines of one part may be wider.
			if n := len([]rune(strings.TrimSuffix(l, "\n"))); c.table.Width > 0 && n > c.table.Width && strings.Contains(l, " · ") {
				t.Errorf("%s: %d columns in %q", name, n, l)
			}
		}
	}
	var b bytes.Buffer
	if err := WriteTable(&b, hostile(), Table{}); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(b.String(), "\x1b\a\r\u202e") {
		t.Errorf("a hostile name reaches the terminal: %q", b.String())
	}
}

// TestFewSamples: a table of an idle machine says why there is so little in it.
func TestFewSamples(t *testing.T) {
	for n, want := range map[uint64]bool{1: true, fewSamples - 1: true, fewSamples: false} {
		p := shop()
		p.Samples = p.Samples[:1]
		p.Samples[0].Count = n
		var b bytes.Buffer
		if err := WriteTable(&b, p, Table{}); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(b.String(), "\nfew samples, "); got != want {
			t.Errorf("%d samples: said %t, want %t\n%s", n, got, want, b.String())
		}
	}
}

// manyCgroups is more cgroups than the table lists.
func manyCgroups() *profiler.Profile {
	p := shop()
	s := p.Samples[0]
	p.Samples = nil
	for i := range 13 {
		s.Process = &profiler.Process{PID: profiler.PID(i + 1), Comm: "pod", Cgroup: fmt.Sprintf("/kubepods.slice/pod%d.slice", i)}
		s.Count = uint64(100 - i)
		p.Samples = append(p.Samples, s)
	}
	return p
}

func BenchmarkWrite(b *testing.B) {
	p := shop()
	for i := range 20000 {
		s := p.Samples[i%5]
		s.Stack = &profiler.Stack{Stop: s.Stack.Stop, Locations: append([]*profiler.Location{{
			Module: s.Stack.Locations[0].Module, Address: uint64(i), Frames: []profiler.Frame{{Function: fmt.Sprint("f", i%3000)}},
		}}, s.Stack.Locations...)}
		p.Samples = append(p.Samples, s)
	}
	for _, f := range Formats() {
		b.Run(f.Ending(), func(b *testing.B) {
			for b.Loop() {
				if err := f.Write(io.Discard, p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
