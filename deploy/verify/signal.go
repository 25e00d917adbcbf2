package verify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/kalypso-dev/kalypso/deploy/check"
	"github.com/kalypso-dev/kalypso/deploy/component"
)

// signal is what is written over OTLP, and where it is read.
type signal struct {
	id     string
	title  string
	effect string
	datum  string // what one of it is called
	store  string // the component that keeps it
	name   string // what people call the store

	path    string // of OTLP over HTTP at a collector
	direct  port   // the same at the store itself
	read    int    // the port that answers questions
	message func(id string, at time.Time) object
	query   func(id string, at time.Time) string
	found   func(id string, answer []byte) (bool, error)
	absent  int                                  // the status that says that it is not there; 0: an answer says so
	end     func(id string, at time.Time) object // nil: there is no way
}

// port is where a message goes in.
type port struct {
	number int
	path   string
}

// collectorPort is that of OTLP over HTTP.
const collectorPort = 4318

func metrics() signal {
	return signal{
		id: "metrics", title: "a series is written and read back from Mimir", datum: "series", store: "mimir", name: "Mimir",
		effect: "metrics of applications and of the stack are not stored, or cannot be read",
		path:   "/v1/metrics", direct: port{80, "/otlp/v1/metrics"}, read: 80,
		message: gauge, end: stale,
		query: func(id string, at time.Time) string {
			return "/prometheus/api/v1/query?" + url.Values{
				"query": {fmt.Sprintf(`%s{%s="%s"}`, metricName, idLabel, id)},
				// The clock that the series was written by is this machine's.
				"time": {seconds(at.Add(time.Second))},
			}.Encode()
		},
		found: hasSeries,
	}
}

func logs() signal {
	return signal{
		id: "logs", title: "a line is written and read back from Loki", datum: "line", store: "loki", name: "Loki",
		effect: "logs are not stored, or cannot be read",
		path:   "/v1/logs", direct: port{80, "/otlp/v1/logs"}, read: 80,
		message: line,
		query: func(id string, at time.Time) string {
			return "/loki/api/v1/query_range?" + url.Values{
				"query": {fmt.Sprintf(`{service_name="%s"} |= "%s"`, serviceName, id)},
				"start": {nano(at.Add(-time.Minute))}, "end": {nano(at.Add(time.Minute))}, "limit": {"1"},
			}.Encode()
		},
		found: hasLine,
	}
}

func traces() signal {
	return signal{
		id: "traces", title: "a span is written and read back from Tempo", datum: "span", store: "tempo", name: "Tempo",
		effect: "traces are not stored, or cannot be read",
		path:   "/v1/traces", direct: port{4318, "/v1/traces"}, read: 3200,
		message: span,
		query:   func(id string, _ time.Time) string { return "/api/traces/" + id },
		absent:  http.StatusNotFound,
		found: func(id string, answer []byte) (bool, error) {
			// As the attribute's value: the trace ID is in another form.
			return strings.Contains(string(answer), `"`+id+`"`), nil
		},
	}
}

func seconds(t time.Time) string { return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', 3, 64) }

// hasSeries looks for the one series with the value that was written.
func hasSeries(_ string, answer []byte) (bool, error) {
	var said struct {
		Data struct {
			Result []struct {
				Value [2]any // time, and the value as a string
			}
		}
	}
	if err := json.Unmarshal(answer, &said); err != nil {
		return false, fmt.Errorf("the answer is no result of a query: %w", err)
	}
	if len(said.Data.Result) == 0 {
		return false, nil
	}
	want := strconv.FormatFloat(metricValue, 'g', -1, 64)
	if got := fmt.Sprint(said.Data.Result[0].Value[1]); got != want || len(said.Data.Result) > 1 {
		return false, &permanentError{fmt.Errorf("%d series, the first with the value %s: one with %s was written", len(said.Data.Result), got, want)}
	}
	return true, nil
}

func hasLine(id string, answer []byte) (bool, error) {
	var said struct {
		Data struct {
			Result []struct {
				Values [][]any // time, line, and perhaps more
			}
		}
	}
	if err := json.Unmarshal(answer, &said); err != nil {
		return false, fmt.Errorf("the answer is no result of a query: %w", err)
	}
	for _, stream := range said.Data.Result {
		for _, value := range stream.Values {
			if len(value) > 1 && strings.Contains(fmt.Sprint(value[1]), id) {
				return true, nil
			}
		}
	}
	return false, nil
}

// signal makes the check.
func (c *Config) signal(s signal) check.Check {
	return check.Check{
		ID: s.id, Title: s.title, Severity: check.Required, Effect: s.effect, Fix: "kalypsoctl logs " + s.store,
		Run: c.needs(s.store, func(ctx context.Context, store component.Component) check.Outcome {
			return c.prove(ctx, &s, store)
		}),
	}
}

// entry is a way into a store.
type entry struct {
	service *service
	path    string
}

// prove writes a datum where applications write it, and reads it.
func (c *Config) prove(ctx context.Context, s *signal, store component.Component) check.Outcome {
	direct := entry{c.open(store, s.direct.number), s.direct.path}
	in := direct
	collector, collected := c.installed("collector")
	if collected {
		in = entry{c.open(collector, collectorPort), s.path}
	}
	out := c.open(store, s.read)
	for _, one := range []*service{direct.service, in.service, out} {
		defer one.Close()
	}

	id, at := newID(), time.Now()
	if err := c.write(ctx, in, s.message(id, at)); err != nil {
		return check.Fail("no %s could be written:\n%v", s.datum, err).WithFix("%s", c.fix(in.service.component, err))
	}
	err := c.await(ctx, s, out, id, at)
	switch {
	case err == nil:
		c.tidy(ctx, s, in, id)
		return check.Pass("%s written and read back from %s", s.datum, s.name)
	case !collected || !out.reached || ctx.Err() != nil:
		return check.Fail("a %s that %s took was not found:\n%v", s.datum, in.service, err).WithFix("%s", c.fix(store, err))
	}
	return c.locate(ctx, s, direct, out, err)
}

// locate finds out who lost what went in at the collector and did not come out
// of the store: the same is written to the store itself.
func (c *Config) locate(ctx context.Context, s *signal, direct entry, out *service, lost error) check.Outcome {
	detail := fmt.Sprintf("a %s that the collector took did not come to %s:\n%v", s.datum, s.name, lost)
	id, at := newID(), time.Now()
	err := c.write(ctx, direct, s.message(id, at))
	if err == nil {
		err = c.await(ctx, s, out, id, at)
	}
	if err != nil {
		return check.Fail("%s\nnor did one that was written to %s itself:\n%v", detail, s.name, err).WithFix("kalypsoctl logs %s", s.store)
	}
	c.tidy(ctx, s, direct, id)
	return check.Fail("%s\none that was written to %s itself did: the collector does not deliver", detail, s.name).WithFix("kalypsoctl logs collector")
}

// write delivers a message. Who is busy is asked again.
func (c *Config) write(ctx context.Context, to entry, message object) error {
	ctx, cancel := context.WithTimeout(ctx, c.Patience)
	defer cancel()
	done, err := poll(ctx, func(ctx context.Context) (bool, error) {
		answer, err := to.service.post(ctx, to.path, message)
		if err == nil {
			err = refused(answer)
		}
		return err == nil, err
	})
	if !done && err == nil {
		err = fmt.Errorf("%s does not answer", to.service)
	}
	return err
}

// await reads until the datum is there.
func (c *Config) await(ctx context.Context, s *signal, from *service, id string, at time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, c.Patience)
	defer cancel()
	done, err := poll(ctx, func(ctx context.Context) (bool, error) {
		answer, err := from.get(ctx, s.query(id, at))
		var said *answerError
		switch {
		case errors.As(err, &said) && said.status == s.absent:
			return false, nil
		case err != nil:
			return false, err
		}
		return s.found(id, answer)
	})
	switch {
	case done:
		c.keep(s.id, id)
		return nil
	case err == nil:
		return fmt.Errorf("%s does not have it after %s", from, c.Patience)
	}
	return err
}

// tidy ends the series. That it could not is no reason to say that anything is
// wrong: it ends by itself five minutes later.
func (c *Config) tidy(ctx context.Context, s *signal, in entry, id string) {
	if s.end != nil && !c.Keep {
		_, _ = in.service.post(ctx, in.path, s.end(id, time.Now()))
	}
}
