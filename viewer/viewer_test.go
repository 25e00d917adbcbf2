package viewer

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
)

// pageLimit is what a page may weigh without its data.
const pageLimit = 60_000

// shop is a profile whose figures are easy to know: 1,000 samples at 100 Hz.
//
//	cart 900:  start → main → price → clamp (inlined)      400
//	                       → walk → walk → walk            200
//	                       → ksys_read (kernel)            100
//	           goexit → scan (Go)                          150
//	           [truncated] → walk                           50
//	node 100:  start → sum (JIT)                           100
func shop() *profiler.Profile {
	exe := &profiler.Module{Path: "/usr/bin/shop", BuildID: "aa55"}
	libc := &profiler.Module{Path: "/usr/lib/libc.so.6", BuildID: "c0ffee"}
	kernel := &profiler.Module{Path: "[kernel]"}
	at := func(m *profiler.Module, address uint64, frames ...profiler.Frame) *profiler.Location {
		return &profiler.Location{Module: m, Address: address, Frames: frames}
	}
	start := at(libc, 1, profiler.Frame{Function: "start"})
	main := at(exe, 2, profiler.Frame{Function: "main", File: "/src/shop.c", Line: 40})
	price := at(exe, 3,
		profiler.Frame{Function: "clamp", File: "/src/clamp.h", Line: 7, Inlined: true},
		profiler.Frame{Function: "price", File: "/src/price.c", Line: 31})
	walk := at(exe, 4, profiler.Frame{Function: "walk", File: "/src/tree.c", Line: 9})
	read := at(kernel, 5, profiler.Frame{Function: "ksys_read", Kind: profiler.KindKernel})
	goexit := at(exe, 6, profiler.Frame{Function: "runtime.goexit", Kind: profiler.KindGo})
	scan := at(exe, 7, profiler.Frame{Function: "encoding/json.(*decodeState).scanWhile", Kind: profiler.KindGo})
	sum := at(&profiler.Module{Path: "[anon]"}, 8, profiler.Frame{Function: "sum", Kind: profiler.KindJIT})
	cart := &profiler.Process{PID: 41, Comm: "cart", Exe: "/usr/bin/shop"}
	node := &profiler.Process{PID: 42, Comm: "node", Exe: "/usr/bin/node"}

	p := &profiler.Profile{
		Start: time.Date(2026, 11, 22, 20, 31, 0, 0, time.UTC), Duration: 10 * time.Second,
		Frequency: 100, Event: "cpu-clock", Host: "larch",
	}
	add := func(pr *profiler.Process, n uint64, stop profiler.Stop, leafFirst ...*profiler.Location) {
		p.Samples = append(p.Samples, profiler.Sample{Process: pr, Count: n, Stack: &profiler.Stack{Locations: leafFirst, Stop: stop}})
		p.Quality.Samples += n
		p.Quality.Stops[stop] += n
		p.Quality.Frames += n * uint64(len(leafFirst))
		p.Quality.FramesNamed += n * uint64(len(leafFirst))
	}
	add(cart, 400, profiler.StopRoot, price, main, start)
	add(cart, 200, profiler.StopRoot, walk, walk, walk, main, start)
	add(cart, 100, profiler.StopRoot, read, main, start)
	add(cart, 150, profiler.StopRoot, scan, goexit)
	add(cart, 50, profiler.StopTruncated, walk)
	add(node, 100, profiler.StopRoot, sum, start)
	return p
}

// hostile has markup, script ends and control characters wherever a name can be.
func hostile() *profiler.Profile {
	p := &profiler.Profile{Frequency: 97, Duration: time.Second, Host: `</title><script>document.title="owned"</script>`, Event: "<b>"}
	for i, name := range []string{
		"</script><script>document.title='owned'</script>", `<img src=x onerror="document.title='owned'">`,
		"]]>-->", "\x00\x1b[31m", "\xff\xfe", "\u2028", "constructor", "__proto__", "@data@", strings.Repeat("x", 1<<16),
	} {
		p.Samples = append(p.Samples, profiler.Sample{
			Process: &profiler.Process{PID: profiler.PID(i + 1), Comm: name, Exe: name, Cgroup: name}, TID: profiler.TID(i + 1), Thread: name,
			Stack: &profiler.Stack{Stop: profiler.StopRoot, Locations: []*profiler.Location{{
				Module: &profiler.Module{Path: name, BuildID: name},
				Frames: []profiler.Frame{{Function: name, File: name, Kind: profiler.FrameKind(i % 4)}},
			}}},
			Count: 1,
		})
	}
	p.Quality.UnnamedByModule = map[string]uint64{"<img src=x onerror=alert(1)>": 4}
	p.Quality.Frames, p.Quality.Samples = 10, 10
	p.Quality.Stops[profiler.StopRoot] = 10
	return p
}

func page(t *testing.T, p *profiler.Profile, links ...Link) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, p, links...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestPageIsSmall(t *testing.T) {
	out := page(t, &profiler.Profile{})
	if len(out) > pageLimit {
		t.Errorf("the page without samples has %d bytes, over the limit of %d", len(out), pageLimit)
	}
	t.Logf("%d bytes", len(out))
}

func TestSameProfileSameBytes(t *testing.T) {
	if !bytes.Equal(page(t, shop()), page(t, shop())) {
		t.Error("two pages of one profile differ")
	}
}

func TestPageFillsEveryPlace(t *testing.T) {
	out := string(page(t, shop()))
	for _, place := range []string{"@policy@", "@title@", "@style@", "@script@", "@data@"} {
		if strings.Contains(out, place) {
			t.Errorf("%s is left in the page", place)
		}
	}
	if n := strings.Count(out, "</script>"); n != 2 {
		t.Errorf("%d script ends in the page, want those of the data and of the script", n)
	}
}

func TestHostileNamesLeaveTheMarkupAlone(t *testing.T) {
	out := string(page(t, hostile()))
	if n := strings.Count(out, "</script>"); n != 2 {
		t.Errorf("%d script ends in the page, want 2", n)
	}
	if n := strings.Count(out, "<script"); n != 2 {
		t.Errorf("%d script starts in the page, want 2", n)
	}
	if strings.Contains(out, "<img") || strings.Contains(out, "<b>") {
		t.Error("a name is in the page as markup")
	}
}

func TestSourcesLoadNothing(t *testing.T) {
	for _, name := range []string{"page.html", "style.css", "data.js", "model.js", "flame.js", "app.js"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, bad := range []string{"https://", "@import", "innerHTML", "insertAdjacentHTML", "eval(", "document.write"} {
			if bytes.Contains(b, []byte(bad)) {
				t.Errorf("%s has %q", name, bad)
			}
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	p := shop()
	for b.Loop() {
		if err := Write(bytes.NewBuffer(nil), p); err != nil {
			b.Fatal(err)
		}
	}
}
