package api

import (
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
)

// query reads the parameters of a request. It keeps the first mistake.
type query struct {
	values url.Values
	now    time.Time
	err    error
}

// newQuery takes the parameters that a route has; any other is a mistake.
func newQuery(text string, now time.Time, known ...string) *query {
	values, err := url.ParseQuery(text)
	q := &query{values: values, now: now}
	if err != nil {
		q.fail("write the address as ?name=value&name=value", "the parameters cannot be read")
		return q
	}
	for name, given := range values {
		switch {
		case !slices.Contains(known, name):
			q.fail("there are "+strings.Join(known, ", "), "there is no parameter %q", name)
		case len(given) > 1 && name != "label":
			q.fail("give it once", "the parameter %s is given %d times", name, len(given))
		}
	}
	return q
}

func (q *query) fail(fix, format string, args ...any) {
	if q.err == nil {
		q.err = answerFault(http.StatusBadRequest, fix, format, args...)
	}
}

func (q *query) has(name string) bool { return q.values.Get(name) != "" }

// seconds reads a length of time, of up to most.
func (q *query) seconds(name string, normally, most time.Duration) time.Duration {
	text := q.values.Get(name)
	if text == "" {
		return normally
	}
	n, err := strconv.ParseFloat(text, 64)
	// Written so that it is false for what is not a number.
	if err != nil || !(n > 0 && n <= most.Seconds()) {
		q.fail(fmt.Sprintf("%s=%g", name, normally.Seconds()), "%s cannot be %q: it is a number of seconds above 0, up to %g", name, text, most.Seconds())
		return normally
	}
	return time.Duration(n * float64(time.Second))
}

// number reads a whole number from 1 to most.
func (q *query) number(name string, normally, most int) int {
	text := q.values.Get(name)
	if text == "" {
		return normally
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > most {
		q.fail(fmt.Sprintf("%s takes 1 to %d", name, most), "%s cannot be %q", name, text)
		return normally
	}
	return n
}

// word reads one of a few words; the first is the normal one.
func (q *query) word(name string, words ...string) string {
	text := q.values.Get(name)
	if text == "" {
		return words[0]
	}
	if !slices.Contains(words, text) {
		q.fail(fmt.Sprintf("%s takes %s", name, strings.Join(words, ", ")), "%s cannot be %q", name, text)
	}
	return text
}

// filterNames are the parameters that filter reads.
func filterNames() []string { return []string{"pid", "comm", "service", "cgroup", "label"} }

func (q *query) filter() Filter {
	return Filter{
		PID: profiler.PID(q.number("pid", 0, math.MaxInt32)), Comm: q.values.Get("comm"),
		Service: q.values.Get("service"), Cgroup: q.values.Get("cgroup"), Labels: q.labels(),
	}
}

// labels reads attributes of workloads: ?label=KEY=VALUE, once or more.
func (q *query) labels() []profiler.Attribute {
	var out []profiler.Attribute
	for _, text := range q.values["label"] {
		key, value, ok := strings.Cut(text, "=")
		if !ok || key == "" || value == "" {
			q.fail("label=k8s.namespace.name=shop", "label cannot be %q: it is a key, = and a value", text)
			continue
		}
		out = append(out, profiler.Attribute{Key: key, Value: value})
	}
	return out
}

// time reads a moment: "now", "-5m", seconds since 1970, or RFC 3339.
func (q *query) time(name string) time.Time {
	text := q.values.Get(name)
	t, ok := parseTime(text, q.now)
	if !ok {
		q.fail(name+"=-5m, "+name+"=2006-01-02T15:04:05Z and "+name+"=1136214245 are times", "%s cannot be %q", name, text)
	}
	return t
}

func parseTime(text string, now time.Time) (t time.Time, ok bool) {
	if text == "" || text == "now" {
		return now, true
	}
	if d, err := time.ParseDuration(text); err == nil && d < 0 {
		return now.Add(d), true
	}
	// Up to the year 2286, so that nanoseconds fit.
	if s, err := strconv.ParseFloat(text, 64); err == nil && s >= 0 && s < 1e10 {
		return time.UnixMilli(int64(math.Round(s * 1000))), true
	}
	t, err := time.Parse(time.RFC3339, text)
	return t, err == nil
}

// rangeNames are the parameters that between reads.
func rangeNames() []string { return []string{"from", "to", "seconds"} }

// between reads a range of the history: ?from and ?to, or the newest ?seconds.
func (q *query) between(h *History, newest time.Duration) (from, to time.Time) {
	d := q.seconds("seconds", newest, maxHistory)
	if !q.has("from") {
		if q.has("to") {
			q.fail("give from as well: from=-5m&to=-1m", "to is given, and not from when")
		}
		return h.Newest(d)
	}
	if q.has("seconds") {
		q.fail("from=-5m, or seconds=300", "from and seconds exclude each other")
	}
	from, to = q.time("from"), q.time("to")
	if q.err == nil && !from.Before(to) {
		q.fail("from=-5m&to=now", "from is not before to")
	}
	return from, to
}

// historyQuery writes a range and a filter as parameters.
func historyQuery(from, to time.Time, f Filter) url.Values {
	v := f.values()
	v.Set("from", unixSeconds(from))
	v.Set("to", unixSeconds(to))
	return v
}

func unixSeconds(t time.Time) string {
	return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', -1, 64)
}

func (f Filter) values() url.Values {
	v := url.Values{}
	if f.PID != 0 {
		v.Set("pid", strconv.FormatUint(uint64(f.PID), 10))
	}
	for name, value := range map[string]string{"comm": f.Comm, "service": f.Service, "cgroup": f.Cgroup} {
		if value != "" {
			v.Set(name, value)
		}
	}
	for _, l := range f.Labels {
		v.Add("label", l.Key+"="+l.Value)
	}
	return v
}
