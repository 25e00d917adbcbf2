package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"io/fs"
	"maps"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/kalypso-dev/kalypso/exporter/format"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/viewer"
)

// Config says what is served. Source and History must be there.
type Config struct {
	Source  Source
	History *History
	Metrics http.Handler // of /metrics; nil: there is none
	Healthz http.Handler
	Readyz  http.Handler
	// AllowRemote lets other machines read /metrics, /healthz and /readyz. The
	// rest is for this machine in any case.
	AllowRemote bool
	// Working, if set, is called when profiles begin to be added up or drawn, and
	// done when that has ended.
	Working func() (done func())
	// Running, if set, lists the processes that are there, sampled or not.
	Running func() ([]Running, error)
	// Refusals, if set, counts requests that are refused.
	Refusals *Refusals
}

// Limits of what may be asked for.
const (
	maxRecord     = time.Minute // of new samples; memory is needed for all of them
	maxHertz      = 1000
	maxHistory    = time.Hour
	maxRows       = 10000
	maxRecordings = 2 // at a time
	pprofPart     = 4 // of what a page may show: pprof's pages take four times as much
	maxWaiting    = 10 * time.Second
)

type server struct {
	Config
	mux        *http.ServeMux
	recordings chan struct{} // one for each that runs
	drawing    chan struct{} // whoever adds up or draws profiles holds it
	unsent     atomic.Int64  // bytes of answers that are made
	allowance  allowance
}

// NewServer makes the handler of all routes. It may be served on several
// listeners at once.
func NewServer(c Config) http.Handler {
	s := &server{Config: c, mux: http.NewServeMux(), recordings: make(chan struct{}, maxRecordings), drawing: make(chan struct{}, 1), allowance: newAllowance()}
	s.handle("/v1/profile", s.profile)
	s.handle("/v1/top", s.top)
	s.handle("/v1/processes", s.processes)
	s.handle("/v1/quality", s.quality)
	s.handle("/v1/dump", s.dump)
	s.handle("/{$}", s.page)
	s.handle("/pprof", s.pprofStart)
	s.handle("/pprof/{$}", s.pprofStart)
	s.handle("/pprof/{range}/{page...}", s.pprof)
	s.handle("/", func(_ http.ResponseWriter, r *http.Request) error {
		return answerFault(http.StatusNotFound, "/ is the page for people; /v1/top, /v1/profile, /v1/processes, /v1/quality and /v1/dump are for programs",
			"there is no %s", profiler.Printable(r.URL.Path))
	})
	for path, h := range map[string]http.Handler{"/metrics": c.Metrics, "/healthz": c.Healthz, "/readyz": c.Readyz} {
		if h != nil {
			s.mux.Handle(path, h)
		}
	}
	return s
}

// handle makes the whole answer and sends it then: whoever reads slowly holds up
// nobody but himself.
func (s *server) handle(pattern string, h func(http.ResponseWriter, *http.Request) error) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		a := &answer{header: w.Header().Clone(), unsent: &s.unsent, most: 2 * s.History.mostRead()}
		defer a.forget()
		err := h(a, r)
		if err == nil {
			err = a.err
		}
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout)) // as in ServeHTTP
		if err != nil {
			s.refuse(w, err)
			return
		}
		a.send(w)
	})
}

// refuse answers with a fault.
func (s *server) refuse(w http.ResponseWriter, err error) {
	f := failure{Schema: schemaError, Error: strings.ReplaceAll(err.Error(), "\n", ": ")} // of joined errors
	var fault *profiler.Fault
	if errors.As(err, &fault) {
		f.Error, f.Fix = fault.What, fault.Fix
		if fault.Why != nil {
			f.Cause = fault.Why.Error()
		}
	}
	status := http.StatusInternalServerError
	var with *statusError
	switch {
	case errors.As(err, &with):
		status = with.status
	case errors.Is(err, ErrBusy):
		status = http.StatusTooManyRequests
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ESRCH):
		status = http.StatusNotFound
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		status = http.StatusServiceUnavailable // the agent ends, or the client is gone
	}
	switch status {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		retry := 5 * time.Second
		if with != nil && with.retry > 0 {
			retry = with.retry
		}
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(retry.Seconds()))))
	case http.StatusMethodNotAllowed:
		w.Header().Set("Allow", "GET, HEAD")
	}
	s.Refusals.count(status)
	_ = writeJSON(w, status, f) // the client is gone: nobody is left to be told
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// draw begins to add up or draw profiles, if there is an allowance for it. The
// function that it gives ends it.
func (s *server) draw(ctx context.Context) (end func(), err error) {
	if end, err = s.drawAnyway(ctx); err != nil {
		return nil, err
	}
	if err := s.allowance.check(time.Now()); err != nil { // now: those before have spent of it
		end()
		return nil, err
	}
	return end, nil
}

// drawAnyway waits until no one else adds up or draws profiles, so that the
// memory of one such answer is all that is needed. The time until the end is
// spent of the allowance.
func (s *server) drawAnyway(ctx context.Context) (end func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, maxWaiting)
	defer cancel()
	select {
	case s.drawing <- struct{}{}:
	case <-ctx.Done():
		return nil, answerFault(http.StatusServiceUnavailable, "try again in a few seconds", "others are being answered, one at a time")
	}
	done := func() {}
	if s.Working != nil {
		done = s.Working()
	}
	begin := time.Now()
	return func() {
		now := time.Now()
		s.allowance.spend(now, now.Sub(begin))
		done()
		<-s.drawing
	}, nil
}

// read reads a range of the history. There is something in it.
func (s *server) read(ctx context.Context, from, to time.Time, sel Selection) (*Range, error) {
	st := s.History.Stats()
	if st.Segments == 0 {
		return nil, s.nothing(st)
	}
	r, err := s.History.Between(ctx, from, to, sel)
	if err == nil && len(r.Profiles) == 0 {
		const layout = time.RFC3339
		err = answerFault(http.StatusNotFound, fmt.Sprintf("what is kept goes from %s to %s", st.From.UTC().Format(layout), st.To.UTC().Format(layout)),
			"nothing is kept of that time")
	}
	return r, sayTooLarge(err)
}

func sayTooLarge(err error) error {
	if !errors.Is(err, ErrTooLarge) {
		return err
	}
	return &statusError{status: http.StatusServiceUnavailable, err: &profiler.Fault{
		What: "the agent has not the memory to show this", Why: err, Fix: "choose some of it: service=NAME, comm=NAME, pid=PID, or a shorter time",
	}}
}

// nothing says why the history is empty.
func (s *server) nothing(st HistoryStats) error {
	f := &profiler.Fault{What: "there is no profile yet", Why: errors.New("the first is there when the first window ends"), Fix: "try again in some seconds"}
	switch {
	case s.History.keep <= 0:
		f.What, f.Why, f.Fix = "this agent keeps no profiles", errors.New("it was started so"), "/v1/profile?seconds=10 records from now on"
		return &statusError{status: http.StatusNotFound, err: f}
	case st.Budget <= 0 && st.Evicted.Budget > 0:
		f.What, f.Why = "this agent keeps no profiles now", errors.New("its memory budget is used up by what it needs more")
	}
	return &statusError{status: http.StatusServiceUnavailable, err: f}
}

// profile is /v1/profile: what is sampled from now on for ?seconds, or what was
// between ?from and ?to.
func (s *server) profile(w http.ResponseWriter, r *http.Request) error {
	q := newQuery(r.URL.RawQuery, time.Now(), slices.Concat(rangeNames(), filterNames(), []string{"format", "hz"})...)
	out := outputOf(q.word("format", "pprof", "folded", "html", "speedscope"))
	f := q.filter()
	hz := q.number("hz", 0, maxHertz)
	var got *Range
	var end func()
	var err error
	if q.has("from") || q.has("to") {
		if q.has("hz") {
			q.fail("leave hz out", "what was recorded has the rate that it had")
		}
		from, to := q.between(s.History, 0)
		if q.err != nil {
			return q.err
		}
		if end, err = s.draw(r.Context()); err != nil {
			return err
		}
		defer end()
		if got, err = s.read(r.Context(), from, to, Selection{Filter: f, Whole: out.whole}); err != nil {
			return err
		}
	} else {
		d := q.seconds("seconds", 10*time.Second, maxRecord)
		if q.err != nil {
			return q.err
		}
		if got, end, err = s.record(r.Context(), d, hz, f, out.whole); err != nil {
			return err
		}
		defer end()
	}
	h := w.Header()
	h.Set("Content-Type", out.media)
	h.Set("Content-Disposition", "attachment; filename=profile"+out.format.Ending())
	h.Set("Kalypso-From", got.From.UTC().Format(time.RFC3339Nano))
	h.Set("Kalypso-To", got.To.UTC().Format(time.RFC3339Nano))
	return out.write(w, got)
}

// output is a format of /v1/profile.
type output struct {
	format format.Format
	media  string
	whole  bool // it does not tell workloads apart
}

func outputOf(name string) output {
	switch name {
	case "folded":
		return output{format.Folded{}, "text/plain; charset=utf-8", true}
	case "html":
		return output{format.HTML{}, "text/html; charset=utf-8", true}
	case "speedscope":
		return output{format.Speedscope{}, "application/json", true}
	}
	return output{format.Pprof{}, "application/octet-stream", false}
}

func (o output) write(w io.Writer, r *Range) error {
	if o.whole {
		return o.format.Write(w, r.Whole())
	}
	return format.WriteProfiles(w, r.Profiles)
}

// record records, if there is an allowance for what is due then. Where there is
// no error, what is recorded may be drawn until end is called.
func (s *server) record(ctx context.Context, d time.Duration, hz int, f Filter, whole bool) (got *Range, end func(), err error) {
	if err := s.allowance.check(time.Now()); err != nil {
		return nil, nil, err
	}
	select {
	case s.recordings <- struct{}{}:
		defer func() { <-s.recordings }()
	default:
		return nil, nil, &statusError{status: http.StatusTooManyRequests, err: &profiler.Fault{
			What: "cannot record", Why: fmt.Errorf("%d recordings run already", maxRecordings), Fix: "try again when they have ended; from=-1m reads what was recorded anyway",
		}}
	}
	segments, err := s.Source.Record(ctx, d, hz, f)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, nil, sayTooLarge(err)
	}
	if end, err = s.drawAnyway(ctx); err != nil {
		return nil, nil, err
	}
	if got, err = s.addUp(segments, f, whole); err != nil {
		end()
		return nil, nil, err
	}
	return got, end, nil
}

// addUp makes one range of what was recorded.
func (s *server) addUp(segments []Segment, f Filter, whole bool) (*Range, error) {
	sum := summer{Merger: format.Merger{Whole: whole}, filter: f}
	for _, seg := range segments {
		sum.add(seg)
	}
	if err := sum.fits(s.History.mostRead()); err != nil {
		return nil, sayTooLarge(err)
	}
	got := sum.sum()
	if len(got.Profiles) == 0 {
		return nil, answerFault(http.StatusServiceUnavailable, "try again", "nothing was recorded: the agent is ending")
	}
	return got, nil
}

// top is /v1/top.
func (s *server) top(w http.ResponseWriter, r *http.Request) error {
	q := newQuery(r.URL.RawQuery, time.Now(), slices.Concat(rangeNames(), filterNames(), []string{"by", "limit"})...)
	by := By(q.word("by", string(ByFunction), string(ByProcess), string(ByService), string(ByModule), string(ByPod)))
	limit := q.number("limit", 50, maxRows)
	whole := by == ByFunction || by == ByModule
	return s.newest(w, r, q, whole, func(got *Range) any { return newTop(got, by, limit) })
}

// processes is /v1/processes.
func (s *server) processes(w http.ResponseWriter, r *http.Request) error {
	q := newQuery(r.URL.RawQuery, time.Now(), slices.Concat(rangeNames(), filterNames(), []string{"of"})...)
	if q.word("of", "sampled", "all") == "all" && s.Running != nil {
		return s.allProcesses(w, r, q)
	}
	return s.newest(w, r, q, false, func(got *Range) any { return newProcesses(got) })
}

// allProcesses is /v1/processes?of=all. What runs is listed even where nothing is
// kept of it, or of anything.
func (s *server) allProcesses(w http.ResponseWriter, r *http.Request, q *query) error {
	from, to := q.between(s.History, 30*time.Second)
	f := q.filter()
	if q.err != nil {
		return q.err
	}
	end, err := s.draw(r.Context())
	if err != nil {
		return err
	}
	defer end()
	out := &Processes{Schema: schemaProcesses, Span: Span{From: from, To: to}}
	if s.History.Stats().Segments > 0 {
		got, err := s.read(r.Context(), from, to, Selection{Filter: f})
		var status *statusError
		switch {
		case err == nil:
			out = newProcesses(got)
		case !errors.As(err, &status) || status.status != http.StatusNotFound: // nothing of that time
			return err
		}
	}
	running, err := s.Running()
	if err != nil {
		return err
	}
	out.add(running, f)
	return writeJSON(w, http.StatusOK, out)
}

// newest answers with what make makes of a range of the history, the newest 30 s
// unless the query says something else.
func (s *server) newest(w http.ResponseWriter, r *http.Request, q *query, whole bool, make func(*Range) any) error {
	from, to := q.between(s.History, 30*time.Second)
	f := q.filter()
	if q.err != nil {
		return q.err
	}
	end, err := s.draw(r.Context())
	if err != nil {
		return err
	}
	defer end()
	got, err := s.read(r.Context(), from, to, Selection{Filter: f, Whole: whole})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, make(got))
}

// quality is /v1/quality.
func (s *server) quality(w http.ResponseWriter, r *http.Request) error {
	if q := newQuery(r.URL.RawQuery, time.Now()); q.err != nil {
		return q.err
	}
	return writeJSON(w, http.StatusOK, newQuality(s.Source.Status(), s.History))
}

func newQuality(st Status, h *History) *Quality {
	const most = 100
	q := &st.Quality
	out := &Quality{
		Schema: schemaQuality, Version: st.Version, Host: st.Host, Event: st.Event, Started: st.Started.UTC(),
		Frequency: st.Frequency, WantedFrequency: st.WantedFrequency,
		Samples: q.Samples, Lost: q.Lost, StacksComplete: q.Complete(), StacksByReason: make(map[string]uint64),
		Frames: q.Frames, FramesNamed: q.FramesNamed, UnnamedByModule: make(map[string]uint64),
		Rates: h.Rates(), History: h.Stats(),
		Cost: CostReport{
			CPUSeconds: st.Cost.CPU.Seconds(), BPFSeconds: st.Cost.BPF.Seconds(), CPUPercent: st.Cost.Share * 100,
			CPUBudget: st.Cost.Budget * 100, RSSBytes: st.Cost.RSSBytes, MapBytes: st.Cost.MapBytes, MemoryBudget: st.Cost.MemoryBudget,
			Unmet: st.Cost.Unmet, Pressure: st.Cost.Pressure,
		},
		Pods: st.Pods, Exports: st.Exports,
	}
	for i, n := range q.Stops {
		if n > 0 {
			out.StacksByReason[profiler.Stop(i).String()] = n
		}
	}
	modules := slices.SortedFunc(maps.Keys(q.UnnamedByModule), func(a, b string) int {
		return cmp.Or(cmp.Compare(q.UnnamedByModule[b], q.UnnamedByModule[a]), cmp.Compare(a, b))
	})
	for _, m := range modules[:min(len(modules), most)] {
		out.UnnamedByModule[profiler.Printable(m)] += q.UnnamedByModule[m]
	}
	return out
}

// dump is /v1/dump.
func (s *server) dump(w http.ResponseWriter, r *http.Request) error {
	q := newQuery(r.URL.RawQuery, time.Now(), "pid", "format")
	kind := q.word("format", "json", "text")
	pid := q.number("pid", 0, 1<<31-1)
	if pid == 0 {
		q.fail("/v1/processes lists PIDs", "which process? dump takes its pid")
	}
	if q.err != nil {
		return q.err
	}
	end, err := s.draw(r.Context())
	if err != nil {
		return err
	}
	defer end()
	d, err := s.Source.Dump(r.Context(), profiler.PID(pid))
	if err != nil {
		return err
	}
	if kind == "text" {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		return WriteDump(w, d)
	}
	return writeJSON(w, http.StatusOK, d)
}

// pages are the lengths of time that the page leads to.
func pages() []struct {
	text string
	d    time.Duration
} {
	return []struct {
		text string
		d    time.Duration
	}{{"1 min", time.Minute}, {"5 min", 5 * time.Minute}, {"15 min", 15 * time.Minute}}
}

// page is /: the flame graph of the newest minute, or of what is asked for.
func (s *server) page(w http.ResponseWriter, r *http.Request) error {
	q := newQuery(r.URL.RawQuery, time.Now(), slices.Concat(rangeNames(), filterNames())...)
	d := q.seconds("seconds", pages()[0].d, maxHistory)
	from, to := q.between(s.History, d)
	f := q.filter()
	if q.err != nil {
		return q.err
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if st := s.History.Stats(); st.Segments == 0 && st.Evicted == (Evicted{}) {
		return s.landing(w)
	}
	end, err := s.draw(r.Context())
	if err != nil {
		return err
	}
	defer end()
	got, err := s.read(r.Context(), from, to, Selection{Filter: f, Whole: true})
	if err != nil {
		return err
	}
	if q.has("from") {
		d = 0
	}
	return viewer.Write(w, got.Whole(), pageLinks(got, f, d)...)
}

// pageLinks are what the page leads to: what else there is to see, and why its
// counts are what they are.
func pageLinks(r *Range, f Filter, shown time.Duration) (links []viewer.Link) {
	for _, p := range pages() {
		v := f.values()
		v.Set("seconds", strconv.Itoa(int(p.d.Seconds())))
		l := viewer.Link{Text: p.text, Href: "/?" + v.Encode(), Current: p.d == shown}
		if l.Current && r.Cut {
			l.Text += fmt.Sprintf(", of which the last %.0f s fit", r.To.Sub(r.From).Seconds())
		}
		links = append(links, l)
	}
	links = append(links, viewer.Link{Text: "pprof", Href: pprofPath(r, f)})
	if highest := r.Profiles[0].Frequency; r.Lowest < highest {
		links = append(links, viewer.Link{Text: fmt.Sprintf("samples are weighed: %d to %d Hz", r.Lowest, highest), Href: "/v1/quality"})
	}
	return links
}

// landing is the page as long as there is nothing to show.
func (s *server) landing(w io.Writer) error {
	st := s.Source.Status()
	_, err := fmt.Fprintf(w, `<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="3"><title>kalypso-agent</title>
<body style="font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:4em auto;padding:0 1em"><h1>No profile yet</h1>
<p>The agent on %s samples at %d Hz. The first profile is here when its first window ends. This page looks again every three seconds.</p>
`, html.EscapeString(profiler.Printable(st.Host)), st.Frequency)
	return err
}

// pprofPath is where pprof's pages of a range are. The range is a part of the
// path, because the pages lead to each other by relative links.
func pprofPath(r *Range, f Filter) string {
	return "/pprof/" + url.PathEscape(historyQuery(r.From, r.To, f).Encode()) + "/"
}

// pprofStart is /pprof/: it leads to the pages of the newest minute, or of what
// is asked for.
func (s *server) pprofStart(w http.ResponseWriter, r *http.Request) error {
	q := newQuery(r.URL.RawQuery, time.Now(), slices.Concat(rangeNames(), filterNames())...)
	from, to := q.between(s.History, pages()[0].d)
	f := q.filter()
	if q.err != nil {
		return q.err
	}
	http.Redirect(w, r, pprofPath(&Range{From: from, To: to}, f)+"flamegraph", http.StatusFound)
	return nil
}

// pprof is one of pprof's pages. It is made anew each time: to keep what it is
// made of would take memory for as long as somebody might come back.
func (s *server) pprof(w http.ResponseWriter, r *http.Request) error {
	q := newQuery(r.PathValue("range"), time.Now(), slices.Concat(rangeNames(), filterNames())...)
	from, to := q.between(s.History, pages()[0].d)
	f := q.filter()
	if q.err != nil {
		return q.err
	}
	page := "/" + r.PathValue("page")
	if page == "/graph" {
		return answerFault(http.StatusNotFound, "go tool pprof -http : http://localhost:PORT/v1/profile?from=-1m draws it",
			"the graph is not drawn here: it takes Graphviz, and an agent starts no programs")
	}
	end, err := s.draw(r.Context())
	if err != nil {
		return err
	}
	defer end()
	got, err := s.read(r.Context(), from, to, Selection{Filter: f, Part: pprofPart})
	if err != nil {
		return err
	}
	h, err := viewer.Pprof(format.PprofProfile(got.Profiles...))
	if err != nil {
		return err
	}
	inner := r.Clone(r.Context())
	inner.URL.Path, inner.URL.RawPath = page, ""
	h.ServeHTTP(w, inner)
	return nil
}
