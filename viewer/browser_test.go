package viewer

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/kalypso-dev/kalypso/profiler"
)

// tab is a page in a real browser, used as a person would: by pointing,
// typing and reading.
type tab struct {
	*testing.T
	ctx context.Context
	mu  sync.Mutex
	bad []string // requests, errors and exceptions
}

// browser finds Chromium, and without one skips the test, or fails it where
// KALYPSO_REQUIRE_BROWSER=1 says that there must be one.
func browser(t *testing.T) string {
	t.Helper()
	for _, path := range []string{"/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"} {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	if os.Getenv("KALYPSO_REQUIRE_BROWSER") == "1" {
		t.Fatal("no Chromium in /usr/bin, and KALYPSO_REQUIRE_BROWSER=1")
	}
	t.Skip("no Chromium in /usr/bin")
	return ""
}

// open shows the profile from a file on disk. At the end it fails the test if
// the page asked for anything or had an error.
func open(t *testing.T, p *profiler.Profile, width, height int64, scheme string, links ...Link) *tab {
	t.Helper()
	path := browser(t)
	file := filepath.Join(t.TempDir(), "profile.html")
	if err := os.WriteFile(file, page(t, p, links...), 0o600); err != nil {
		t.Fatal(err)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true))
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	ctx, stop := chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(stop)
	ctx, closeTab := chromedp.NewContext(ctx)
	t.Cleanup(closeTab)
	b := &tab{T: t, ctx: ctx}
	note := func(format string, a ...any) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.bad = append(b.bad, fmt.Sprintf(format, a...))
	}
	err := chromedp.Listen(ctx, func(ev any) {
		switch e := ev.(type) {
		case *network.EventRequestWillBeSent:
			if e.Request.URL != "file://"+file && !strings.HasPrefix(e.Request.URL, "data:") && !strings.HasPrefix(e.Request.URL, "blob:") {
				note("request for %s", e.Request.URL)
			}
		case *runtime.EventExceptionThrown:
			note("exception: %s %v", e.ExceptionDetails.Text, e.ExceptionDetails.Exception)
		case *runtime.EventConsoleAPICalled:
			note("console.%s", e.Type)
		case *log.EventEntryAdded:
			// This one is about the tests' own reading of pixels.
			if !strings.Contains(e.Entry.Text, "willReadFrequently") {
				note("%s: %s", e.Entry.Level, e.Entry.Text)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, s := range b.bad {
			t.Error(s)
		}
	})
	b.do(chromedp.EmulateViewport(width, height),
		chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
			if _, err := chromedp.Call(ctx, network.Enable, network.EnableParams{}); err != nil {
				return err
			}
			_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
				{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"},
			}})
			return err
		}),
		chromedp.Navigate("file://"+file),
		chromedp.WaitReady(chromedp.CSS(`html[data-ready="true"]`)))
	b.settle()
	return b
}

func (b *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.Helper()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		b.Fatal(err)
	}
}

func ask[T any](b *tab, expression string) T {
	b.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		b.Fatalf("%s: %v", expression, err)
	}
	return v
}

// settle waits until the page has drawn what changed.
func (b *tab) settle() {
	b.Helper()
	ask[bool](b, `new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))`)
}

func (b *tab) click(selector string) {
	b.Helper()
	b.do(chromedp.Click(chromedp.CSS(selector)))
	b.settle()
}

func (b *tab) press(keys ...string) {
	b.Helper()
	for _, k := range keys {
		b.do(chromedp.KeyEvent(k))
	}
	b.settle()
}

// text is what a person reads in an element: nothing when it is not shown.
func (b *tab) text(selector string) string {
	b.Helper()
	return ask[string](b, fmt.Sprintf(`(() => { const e = document.querySelector(%q); return e && e.checkVisibility() ? e.innerText.replace(/\s+/g, " ").trim() : ""; })()`, selector))
}

// reads waits until an element shows the text.
func (b *tab) reads(selector, want string) {
	b.Helper()
	var got string
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); b.settle() {
		if got = b.text(selector); strings.Contains(got, want) {
			b.settle() // the graph is painted after the text is there
			return
		}
	}
	b.Errorf("%s reads %q, want %q in it", selector, got, want)
}

func (b *tab) readsNot(selector, bad string) {
	b.Helper()
	if got := b.text(selector); strings.Contains(got, bad) {
		b.Errorf("%s reads %q, want it without %q", selector, got, bad)
	}
}

// bar is where a frame is drawn, in the page's pixels.
type bar struct{ X, Y, Width float64 }

// bar finds the widest frame of a function in a graph.
func (b *tab) bar(graph, function string) bar {
	b.Helper()
	got := ask[*bar](b, fmt.Sprintf(`(() => {
		const v = document.documentElement.viewer, g = v[%q], t = g.tree, box = g.canvas.getBoundingClientRect();
		let best = null;
		for (let i = 0; i < t.size; i++) {
			if (v.profile.functions[t.fn[i]].name !== %q || t.depth[i] < g.skip) continue;
			const r = g.rect(i);
			if (r.width > 0 && (!best || r.width > best.Width)) best = { X: box.left + r.left, Y: box.top + r.top + r.height / 2, Width: r.width };
		}
		return best;
	})()`, graph, function))
	if got == nil {
		return bar{}
	}
	return *got
}

func (b *tab) clickBar(graph, function string) {
	b.Helper()
	r := b.bar(graph, function)
	if r.Width == 0 {
		b.Fatalf("%s is not drawn", function)
	}
	b.do(chromedp.MouseClickXY(r.X+r.Width/2, r.Y))
	b.settle()
}

// paint is a pixel of a frame, near its left edge where no text is.
func (b *tab) paint(graph, function string) [3]float64 {
	b.Helper()
	r := b.bar(graph, function)
	if r.Width == 0 {
		b.Fatalf("%s is not drawn", function)
	}
	c := ask[[]float64](b, fmt.Sprintf(`(() => {
		const g = document.documentElement.viewer[%q], box = g.canvas.getBoundingClientRect(), d = g.dpr;
		return [...g.context.getImageData(Math.round((%f - box.left + 3) * d), Math.round((%f - box.top - 6) * d), 1, 1).data];
	})()`, graph, r.X, r.Y))
	return [3]float64{c[0], c[1], c[2]}
}

// swatch is the colour that the legend shows for a kind.
func (b *tab) swatch(kind string) [3]float64 {
	b.Helper()
	css := ask[string](b, fmt.Sprintf(`getComputedStyle(document.querySelector('#legend [data-kind="%s"] .swatch')).backgroundColor`, kind))
	var c [3]float64
	if _, err := fmt.Sscanf(css, "rgb(%f, %f, %f)", &c[0], &c[1], &c[2]); err != nil {
		b.Fatalf("colour %q: %v", css, err)
	}
	return c
}

func distance(a, b [3]float64) float64 {
	return math.Sqrt(math.Pow(a[0]-b[0], 2) + math.Pow(a[1]-b[1], 2) + math.Pow(a[2]-b[2], 2))
}

// column is the texts of one column of the table, from the top.
func (b *tab) column(n int) string {
	b.Helper()
	return ask[string](b, fmt.Sprintf(`[...document.querySelectorAll("#rows tr")].map((r) => r.children[%d].innerText.trim()).join(" | ")`, n))
}

// row is the table's row of a function.
func (b *tab) row(function string) string {
	b.Helper()
	return ask[string](b, fmt.Sprintf(`([...document.querySelectorAll("#rows tr")].find((r) => r.children[2].innerText.includes(%q)) || { innerText: "" }).innerText.replace(/\s+/g, " ").trim()`, function))
}

func (b *tab) clickRow(function string) {
	b.Helper()
	at := ask[[]float64](b, fmt.Sprintf(`(() => { const r = [...document.querySelectorAll("#rows tr")].find((r) => r.children[2].innerText.includes(%q)).getBoundingClientRect(); return [r.left + r.width / 2, r.top + r.height / 2]; })()`, function))
	b.do(chromedp.MouseClickXY(at[0], at[1]))
	b.settle()
}

// search types into the field that "/" leads to.
func (b *tab) search(what string) {
	b.Helper()
	b.press("/")
	if id := ask[string](b, `document.activeElement.id`); id != "search" {
		b.Fatalf("/ leads to %q, want the search field", id)
	}
	// The protocol types the slash as well, which no keyboard does after a
	// key press that the page took.
	ask[string](b, `document.activeElement.value = ""`)
	b.do(chromedp.KeyEvent(what))
}

func near(got, want float64) bool { return math.Abs(got-want) <= 2 }

func TestBrowserShowsWhatWasProfiled(t *testing.T) {
	b := open(t, shop(), 1440, 900, "light")
	b.reads("h1", "CPU profile of larch")
	for _, want := range []string{"22 Nov 2026, 20:31:00 UTC", "10.00 s", "cpu-clock at 100 Hz", "1,000 samples", "1.00 cores busy"} {
		b.reads("#facts", want)
	}
	b.reads("#quality", "! Fair quality")
	b.reads("#quality", "95.0 % of stacks complete · 100.0 % of frames named · no samples lost")
	b.click("#quality summary")
	b.reads("#causes", "5.0 % [truncated]")
	for _, want := range []string{"native 25.0 %", "inlined 40.0 %", "Go 15.0 %", "JIT 10.0 %", "kernel 10.0 %", "cut stack"} {
		b.reads("#legend", want)
	}
	b.readsNot("header", "pprof")
}

func TestBrowserLossesThatNobodyTold(t *testing.T) {
	p := shop()
	p.Quality.LostUnknown = true
	open(t, p, 1440, 900, "light").reads("#quality", "100.0 % of frames named · losses not known")
}

func TestBrowserLinksOfAServedPage(t *testing.T) {
	b := open(t, shop(), 1440, 900, "light", Link{Text: "1 min", Href: "/?seconds=60"}, Link{Text: "5 min", Href: "/?seconds=300", Current: true}, Link{Text: "pprof", Href: "/pprof/x/"})
	b.reads("#links", "1 min5 min")
	b.reads("#links", "pprof")
	if got := ask[string](b, `[...document.querySelectorAll("#links a")].map((a) => a.getAttribute("href") + " " + a.getAttribute("aria-current")).join("|")`); got != "/?seconds=60 null|/?seconds=300 page|/pprof/x/ null" {
		t.Errorf("the links are %s", got)
	}
}

func TestBrowserGoodQualityIsGreenAndSaysSo(t *testing.T) {
	p := shop()
	p.Quality.Stops = [profiler.Stops]uint64{profiler.StopRoot: 1000}
	b := open(t, p, 1000, 700, "light")
	b.reads("#grade", "✓ Good quality")
	c := ask[string](b, `getComputedStyle(document.getElementById("grade")).color`)
	var red, green, blue float64
	if _, err := fmt.Sscanf(c, "rgb(%f, %f, %f)", &red, &green, &blue); err != nil || green <= red || green <= blue {
		t.Errorf("the grade's colour is %s, want a green (%v)", c, err)
	}
}

func TestBrowserZoom(t *testing.T) {
	b := open(t, shop(), 1440, 900, "light")
	whole := b.bar("flame", "all samples").Width
	if got := b.bar("flame", "price").Width / whole; math.Abs(got-0.4) > 0.01 {
		t.Errorf("price is %.3f of the graph wide, want 0.4", got)
	}
	b.clickBar("flame", "price")
	if got := b.bar("flame", "price").Width; !near(got, whole) {
		t.Errorf("price is %.0f wide after a click on it, want all %.0f", got, whole)
	}
	if got := b.bar("flame", "walk").Width; got != 0 {
		t.Errorf("walk is still drawn, %.0f wide", got)
	}
	b.reads("#crumbs", "all samples › cart › start › main › price")
	b.reads("#selection", "self 0.0 % · total 40.0 % · 4.00 s · native · /usr/bin/shop")

	b.press(kb.Backspace)
	if got := b.bar("flame", "main").Width; !near(got, whole) {
		t.Errorf("main is %.0f wide after Backspace, want all %.0f", got, whole)
	}
	b.do(chromedp.Reload(), chromedp.WaitReady(chromedp.CSS(`html[data-ready="true"]`)))
	b.settle()
	if got := b.bar("flame", "main").Width; !near(got, whole) {
		t.Errorf("main is %.0f wide after a reload, want all %.0f: the address should keep the zoom", got, whole)
	}
	b.click("#reset")
	if got := b.bar("flame", "price").Width / whole; math.Abs(got-0.4) > 0.01 {
		t.Errorf("price is %.3f of the graph wide after the reset, want 0.4", got)
	}
	b.do(chromedp.NavigateBack())
	b.settle()
	if got := b.bar("flame", "main").Width; !near(got, whole) {
		t.Errorf("main is %.0f wide after the browser's Back, want all %.0f", got, whole)
	}
}

func TestBrowserTooltip(t *testing.T) {
	b := open(t, shop(), 1440, 900, "light")
	r := b.bar("flame", "clamp")
	b.do(chromedp.MouseEvent("mouseMoved", r.X+r.Width/2, r.Y))
	for _, want := range []string{"clamp", "/src/clamp.h:7", "inlined, native code · /usr/bin/shop", "total 40.0 % 400 samples 4.00 s", "self 40.0 % 400 samples 4.00 s"} {
		b.reads("#tip", want)
	}
	b.do(chromedp.MouseEvent("mouseMoved", 5, 5))
	b.settle()
	if got := b.text("#tip"); got != "" {
		t.Errorf("the tooltip stays: %q", got)
	}
}

func TestBrowserSearch(t *testing.T) {
	b := open(t, shop(), 1440, 900, "light")
	before := b.paint("flame", "main")
	b.search("WALK")
	// 200 below main, where it recurses, and 50 in the cut stack.
	b.reads("#matched", "matches 25.0 % of samples")
	if got := b.paint("flame", "main"); distance(got, before) < 30 {
		t.Errorf("main matches nothing and keeps its colour %v", got)
	}
	if got := b.paint("flame", "walk"); distance(got, b.swatch("native")) > 40 {
		t.Errorf("walk matches and has lost its colour: %v", got)
	}
	b.press(kb.Escape)
	b.reads("#matched", "")
	if got := b.paint("flame", "main"); distance(got, before) > 1 {
		t.Errorf("main has colour %v after the search, want %v", got, before)
	}
	b.search("^(sum|.*scanWhile)$")
	b.reads("#matched", "matches 0.0 % of samples")
	b.click("#regex")
	b.reads("#matched", "matches 25.0 % of samples")
	b.do(chromedp.KeyEvent("("))
	b.reads("#matched", "not a regular expression")
}

func TestBrowserTable(t *testing.T) {
	b := open(t, shop(), 1440, 900, "light")
	if got, want := b.column(0), "40.0 % | 25.0 % | 15.0 % | 10.0 % | 10.0 % | 0.0 % | 0.0 % | 0.0 % | 0.0 % | 0.0 %"; got != want {
		t.Errorf("by self: %s, want %s", got, want)
	}
	b.click(`[data-sort="total"]`)
	if got, want := b.column(1), "80.0 % | 70.0 % | 40.0 % | 40.0 % | 25.0 % | 15.0 % | 15.0 % | 10.0 % | 10.0 % | 5.0 %"; got != want {
		t.Errorf("by total: %s, want %s", got, want)
	}
	b.click(`[data-sort="total"]`)
	if got := b.column(1); !strings.HasPrefix(got, "5.0 %") {
		t.Errorf("by total, turned round: %s", got)
	}
	b.click(`[data-sort="name"]`)
	if got := b.column(2); !strings.HasPrefix(got, "[truncated]") || !strings.HasSuffix(got, "walk shop") {
		t.Errorf("by name: %s", got)
	}
	if got, want := b.row("walk"), "25.0 % 25.0 % walk shop"; got != want {
		t.Errorf("a recursive function reads %q, want %q", got, want)
	}
	b.click("#filter")
	b.do(chromedp.KeyEvent("json"))
	b.reads("#count", "1 function")
	if got := b.column(2); got != "encoding/json.(*decodeState).scanWhile shop" {
		t.Errorf("filtered: %s", got)
	}
	b.clickRow("scanWhile")
	b.reads("#selection", "self 15.0 % · total 15.0 % · 1.50 s · Go")
}

// TestBrowserTableKeepsTheEndOfGoNames: what tells functions of one module
// apart is in sight where the whole name is not.
func TestBrowserTableKeepsTheEndOfGoNames(t *testing.T) {
	b := open(t, shop(), 1440, 900, "light")
	b.click("#filter")
	b.do(chromedp.KeyEvent("scanWhile"))
	b.reads("#count", "1 function")
	seen := func() (cut bool, end float64) {
		at := ask[[]float64](b, `(() => {
			const td = document.querySelector("#rows td.f"), text = td.querySelector("bdi").getBoundingClientRect(), box = td.getBoundingClientRect();
			return [text.left < box.left ? 1 : 0, box.right - text.right];
		})()`)
		return at[0] == 1, at[1]
	}
	if cut, end := seen(); cut || end < 0 {
		t.Errorf("with room: cut %v, the name ends %.0f before the cell does", cut, end)
	}
	ask[bool](b, `(document.querySelector("#functions table").style.width = "260px", true)`)
	if cut, end := seen(); !cut || end < 0 {
		t.Errorf("without room: cut at its beginning %v, the name ends %.0f before the cell does", cut, end)
	}
}

func TestBrowserSandwich(t *testing.T) {
	b := open(t, shop(), 1440, 900, "light")
	b.click("#tab-sandwich")
	b.reads("#empty", "Choose a function")
	b.clickRow("walk")
	b.reads("#callees-caption", "walk and its callees · 25.0 % of samples, 25.0 % in itself")
	whole := b.bar("callees", "walk").Width
	if got := b.bar("callers", "main").Width / whole; math.Abs(got-0.8) > 0.01 {
		t.Errorf("main is %.3f of walk's callers, want 0.8", got)
	}
	if got := b.bar("callers", "[truncated]").Width / whole; math.Abs(got-0.2) > 0.01 {
		t.Errorf("the cut stack is %.3f of walk's callers, want 0.2", got)
	}
	b.clickBar("callers", "main")
	b.reads("#callees-caption", "main and its callees · 70.0 % of samples, 0.0 % in itself")
	if got := b.bar("callees", "price").Width / b.bar("callees", "main").Width; math.Abs(got-4.0/7) > 0.01 {
		t.Errorf("price is %.3f of main's callees, want %.3f", got, 4.0/7)
	}
	if up, down := b.bar("callers", "start"), b.bar("callees", "main"); up.Y >= down.Y {
		t.Errorf("the caller is drawn at %.0f, below the function at %.0f", up.Y, down.Y)
	}
}

func TestBrowserProcesses(t *testing.T) {
	b := open(t, shop(), 1440, 900, "light")
	b.reads("#processes", "All 2 processes")
	b.click("#processes")
	b.reads("#process-list", "cart 41 90.0 % only node 42 10.0 %")
	b.click(`[data-process="0"] input`)
	b.reads("#processes", "1 of 2 processes")
	if got := b.bar("flame", "price").Width; got != 0 {
		t.Errorf("price of the process that is off is drawn, %.0f wide", got)
	}
	if got, want := b.row("sum"), "100.0 % 100.0 % sum [anon]"; got != want {
		t.Errorf("the table reads %q, want %q", got, want)
	}
	b.click("#process-none")
	b.press(kb.Escape)
	b.reads("#empty", "every process is filtered out")
	b.click("#processes")
	b.click("#process-all")
	b.press(kb.Escape)
	b.do(chromedp.SetValue(chromedp.CSS("#group"), "process"))
	ask[bool](b, `document.getElementById("group").dispatchEvent(new Event("change"))`)
	b.settle()
	if b.bar("flame", "cart (41)").Width == 0 {
		t.Error("grouped by process, no bar names process 41")
	}
}

func TestBrowserThreads(t *testing.T) {
	p := shop()
	for i := range p.Samples {
		p.Samples[i].TID, p.Samples[i].Thread = profiler.TID(100+i), "worker"
	}
	b := open(t, p, 1440, 900, "light")
	if got := b.bar("flame", "worker (100)").Width / b.bar("flame", "all samples").Width; math.Abs(got-0.4) > 0.01 {
		t.Errorf("thread 100 is %.3f wide, want 0.4", got)
	}
}

// TestBrowserCgroups: a recording by cgroup opens grouped by cgroup, and names
// the command below it.
func TestBrowserCgroups(t *testing.T) {
	p := shop()
	p.Samples[0].Process.Cgroup = "/system.slice/cart.service"
	b := open(t, p, 1440, 900, "light")
	if got := ask[string](b, `document.getElementById("group").value`); got != "cgroup" {
		t.Errorf("the page opens grouped by %s", got)
	}
	all := b.bar("flame", "all samples").Width
	for name, want := range map[string]float64{"/system.slice/cart.service": 0.9, "cart": 0.9, "[unknown cgroup]": 0.1, "node": 0.1} {
		if got := b.bar("flame", name).Width / all; math.Abs(got-want) > 0.01 {
			t.Errorf("%s is %.3f wide, want %.1f", name, got, want)
		}
	}
	if got := ask[string](b, `location.hash`); strings.Contains(got, "by=") {
		t.Errorf("the address %q names the grouping that is there anyway", got)
	}
}

func TestBrowserKinds(t *testing.T) {
	for _, scheme := range []string{"light", "dark"} {
		b := open(t, shop(), 1440, 900, scheme)
		kinds := map[string]string{"native": "main", "kernel": "ksys_read", "go": "runtime.goexit", "inlined": "clamp", "jit": "sum"}
		for kind, function := range kinds {
			paint := b.paint("flame", function)
			for other := range kinds {
				if d, own := distance(paint, b.swatch(other)), distance(paint, b.swatch(kind)); other != kind && d <= own {
					t.Errorf("%s: %s is painted %v, nearer to %s than to %s", scheme, function, paint, other, kind)
				}
			}
		}
		b.click(`#legend [data-kind="kernel"]`)
		if got := b.bar("flame", "ksys_read").Width; got != 0 {
			t.Errorf("hidden kernel frames are drawn, %.0f wide", got)
		}
		if got, want := b.row("main"), "10.0 % 70.0 % main shop"; got != want {
			t.Errorf("the caller of hidden frames reads %q, want %q", got, want)
		}
		b.reads("#legend", "kernel 10.0 %")
	}
}

func TestBrowserInverted(t *testing.T) {
	b := open(t, shop(), 1440, 900, "light")
	b.click("#invert")
	leaf, caller := b.bar("flame", "clamp"), b.bar("flame", "price")
	if leaf.Width == 0 || caller.Width == 0 || leaf.Y >= caller.Y {
		t.Errorf("clamp at %.0f, its caller at %.0f: want the leaf above", leaf.Y, caller.Y)
	}
}

func TestBrowserKeyboard(t *testing.T) {
	b := open(t, shop(), 1440, 900, "light")
	whole := b.bar("flame", "all samples").Width
	b.press(kb.ArrowDown, kb.ArrowDown, kb.ArrowDown, kb.ArrowDown)
	b.reads("#live", "main, total 70.0 %")
	b.press(kb.ArrowDown, kb.ArrowRight)
	b.reads("#live", "walk, total 20.0 %")
	b.press(kb.ArrowLeft, kb.ArrowUp)
	b.reads("#live", "main, total 70.0 %")
	b.press(kb.Enter)
	if got := b.bar("flame", "main").Width; !near(got, whole) {
		t.Errorf("main is %.0f wide after Enter, want all %.0f", got, whole)
	}
	b.press(kb.Escape)
	if got := b.bar("flame", "main").Width; near(got, whole) {
		t.Error("Escape does not zoom out")
	}
	b.press("s")
	b.reads("#callees-caption", "main and its callees")
	b.press("f", "?")
	b.reads("#keys", "move in the graph")
	b.click("#keys-close")
	if got := b.text("#keys"); got != "" {
		t.Errorf("the help stays: %q", got)
	}
}

func TestBrowserTheme(t *testing.T) {
	luminance := func(b *tab) float64 {
		var c [3]float64
		css := ask[string](b, `getComputedStyle(document.body).backgroundColor`)
		if _, err := fmt.Sscanf(css, "rgb(%f, %f, %f)", &c[0], &c[1], &c[2]); err != nil {
			b.Fatal(css, err)
		}
		return (c[0] + c[1] + c[2]) / 3
	}
	light, dark := open(t, shop(), 900, 600, "light"), open(t, shop(), 900, 600, "dark")
	if l, d := luminance(light), luminance(dark); l < 200 || d > 60 {
		t.Errorf("the background has %.0f in light and %.0f in dark", l, d)
	}
	if l, d := light.paint("flame", "main"), dark.paint("flame", "main"); distance(l, d) < 60 {
		t.Errorf("the graph has the same colours in light and dark: %v, %v", l, d)
	}
	before := light.paint("flame", "main")
	light.click("#theme")
	if got := luminance(light); got > 60 {
		t.Errorf("the background has %.0f after the switch to dark", got)
	}
	if distance(before, light.paint("flame", "main")) < 60 {
		t.Error("the graph does not follow the switch to dark")
	}
}

func TestBrowserNarrow(t *testing.T) {
	b := open(t, shop(), 400, 800, "light")
	if w := ask[float64](b, `document.documentElement.scrollWidth`); w > 400 {
		t.Errorf("the page is %.0f wide on a screen of 400", w)
	}
	if b.bar("flame", "main").Width < 100 {
		t.Error("the graph has no room")
	}
	if got := b.text("#functions"); got != "" {
		t.Errorf("the table is beside the graph on a narrow screen: %.60q", got)
	}
	b.click("#tab-table")
	b.reads("#rows", "clamp")
}

func TestBrowserHiDPI(t *testing.T) {
	b := open(t, shop(), 800, 600, "light")
	b.do(chromedp.EmulateViewport(800, 600, chromedp.EmulateScale(2)))
	ask[bool](b, `window.dispatchEvent(new Event("resize"))`)
	b.settle()
	if got := ask[float64](b, `(() => { const c = document.documentElement.viewer.flame.canvas; return c.width / c.clientWidth; })()`); got != 2 {
		t.Errorf("the canvas has %.2f pixels per point on a screen of 2", got)
	}
}

func TestBrowserHostileNames(t *testing.T) {
	b := open(t, hostile(), 1440, 900, "light")
	if got := ask[string](b, `document.title`); !strings.HasPrefix(got, "CPU profile of </title><script>") {
		t.Errorf("the title is %q", got)
	}
	b.reads("h1", `</title><script>document.title="owned"</script>`)
	b.reads("#rows", `<img src=x onerror="document.title='owned'">`)
	b.clickRow("<img")
	b.reads("#selected-name", "<img src=x")
	b.click("#quality summary")
	b.reads("#causes", "<img src=x onerror=alert(1)>")
	b.click("#processes")
	b.reads("#process-list", "</script><script>")
	if n := ask[int](b, `document.querySelectorAll("img, b, main script").length`); n != 0 {
		t.Errorf("%d elements came from names", n)
	}
}

func TestBrowserEmptyProfile(t *testing.T) {
	b := open(t, &profiler.Profile{}, 1000, 700, "light")
	b.reads("#empty", "The profile is empty")
	b.reads("#quality", "Unknown quality")
}

func TestBrowserLargeProfile(t *testing.T) {
	p := &profiler.Profile{Frequency: 100, Duration: time.Minute}
	pr := &profiler.Process{PID: 1, Comm: "big"}
	m := &profiler.Module{Path: "/bin/big"}
	all := make([]*profiler.Location, 5000)
	for i := range all {
		all[i] = &profiler.Location{Module: m, Address: uint64(i), Frames: []profiler.Frame{{Function: fmt.Sprintf("f%d", i)}}}
	}
	for i := range 4000 {
		st := make([]*profiler.Location, 30)
		for d := range st {
			st[len(st)-1-d] = all[(i*i*d+i*d+d)%(len(all)>>uint(max(0, 12-d)))]
		}
		p.Samples = append(p.Samples, profiler.Sample{Process: pr, Stack: &profiler.Stack{Locations: st, Stop: profiler.StopRoot}, Count: uint64(i%9 + 1)})
	}
	b := open(t, p, 1440, 900, "light")
	size := ask[int](b, `document.documentElement.viewer.flame.tree.size`)
	if size < 50_000 {
		t.Fatalf("only %d nodes", size)
	}
	best := ask[float64](b, `(() => { const g = document.documentElement.viewer.flame; let best = 1e9; for (let i = 0; i < 10; i++) { const t = performance.now(); g.paint(); best = Math.min(best, performance.now() - t); } return best; })()`)
	t.Logf("%d nodes paint in %.1f ms", size, best)
	if best > 33 {
		t.Errorf("painting %d nodes takes %.1f ms, too long for 30 frames a second", size, best)
	}
}
