// Package pyroscope asks a Pyroscope server what a part of a cluster did in the
// past: one profile, its shares by pod or node, and in which times there is
// anything at all.
//
// It knows Pyroscope's query API (querier.v1.QuerierService, a POST with a message
// as Connect has it) and the labels that the agents' exporters give profiles
// (docs/reference/exporting.md). How the server is reached is for the caller, by a
// transport.Config.
package pyroscope

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kalypso-dev/kalypso/deploy/agents"
	"github.com/kalypso-dev/kalypso/exporter/format"
	"github.com/kalypso-dev/kalypso/exporter/transport"
	"github.com/kalypso-dev/kalypso/profiler"
)

const (
	// cpuType is how Pyroscope calls profiles of CPU time.
	cpuType = "process_cpu:cpu:nanoseconds:cpu:nanoseconds"
	service = "/querier.v1.QuerierService/"
	// answerLimit is that of a file which is read as a profile.
	answerLimit = 64 << 20
	// queryTimeout is what a server takes at most for what we ask: a day of a
	// cluster takes seconds.
	queryTimeout = time.Minute
	// Longest is the longest range that a server takes unless it is told otherwise
	// (querier.max-query-length), and that our chart lets it take.
	Longest = 24 * time.Hour
)

// Client asks one server. Its errors are faults for people.
type Client struct {
	http *transport.HTTP
	name string // of the server, for people
}

// New is a client of the server that c leads to, which people know by a name.
func New(c transport.Config, name string) (*Client, error) {
	c.Timeout, c.UserAgent = queryTimeout, "kalypsoctl"
	h, err := transport.NewHTTP(c)
	if err != nil {
		return nil, err
	}
	return &Client{h, name}, nil
}

// Close closes the connections.
func (c *Client) Close() { c.http.Close() }

// Query is what is asked for: a target, or of a cluster all, in a time.
type Query struct {
	Target   agents.Target
	From, To time.Time
}

// Profile gives all CPU time of the query as one profile. The store does not tell
// how many samples and which processes that was, and what was lost; its samples are
// counted in milliseconds (format.ReadPprof), and its one process is called like
// the target. Without samples there was nothing.
func (c *Client) Profile(ctx context.Context, q Query) (*profiler.Profile, error) {
	selectors, err := selectors(q.Target)
	if err != nil {
		return nil, err
	}
	name := q.Target.Name
	if name == "" {
		name = "cluster"
	}
	process := &profiler.Process{Comm: name}
	m := format.Merger{Whole: true}
	for _, s := range selectors {
		p, err := c.merged(ctx, q, s)
		if errors.Is(err, errDots) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for i := range p.Samples {
			p.Samples[i].Process = process
		}
		p.Event, p.Start, p.Duration = "", q.From, q.To.Sub(q.From)
		m.Add(p)
	}
	if all := m.Profiles(); len(all) > 0 {
		return all[0], nil
	}
	return &profiler.Profile{Start: q.From, Duration: q.To.Sub(q.From)}, nil
}

// merged is what one selector finds: querier.v1.SelectMergeProfileRequest has type,
// selector, start and end in milliseconds, and the answer is a pprof file.
func (c *Client) merged(ctx context.Context, q Query, selector string) (*profiler.Profile, error) {
	request := protowire.AppendTag(nil, 1, protowire.BytesType)
	request = protowire.AppendString(request, cpuType)
	request = protowire.AppendTag(request, 2, protowire.BytesType)
	request = protowire.AppendString(request, selector)
	request = protowire.AppendTag(request, 3, protowire.VarintType)
	request = protowire.AppendVarint(request, uint64(q.From.UnixMilli()))
	request = protowire.AppendTag(request, 4, protowire.VarintType)
	request = protowire.AppendVarint(request, uint64(q.To.UnixMilli()))
	answer, err := c.ask(ctx, "SelectMergeProfile", "application/proto", request)
	if err != nil {
		return nil, err
	}
	if !hasSamples(answer) { // then it may not even say what it counts
		return &profiler.Profile{}, nil
	}
	p, err := format.ReadPprof(bytes.NewReader(answer))
	if err != nil {
		return nil, c.foreign(err)
	}
	return p, nil
}

// hasSamples looks for field 2 of a pprof file.
func hasSamples(file []byte) bool {
	for len(file) > 0 {
		number, _, n := protowire.ConsumeField(file)
		if n < 0 || number == 2 {
			return true // what is wrong with it is found by who reads it
		}
		file = file[n:]
	}
	return false
}

// Series is the CPU time of one value of the labels that were asked for.
type Series struct {
	Values []string // of the labels, in their order
	Points []Point
}

// Point is the CPU time of one step, which ends at a time.
type Point struct {
	At  time.Time
	CPU time.Duration
}

// Series gives the CPU time of the query by labels, step by step: the sum where
// none are named. Steps without any are left out.
func (c *Client) Series(ctx context.Context, q Query, step time.Duration, labels ...string) ([]Series, error) {
	selectors, err := selectors(q.Target)
	if err != nil {
		return nil, err
	}
	var out []Series
	for _, s := range selectors {
		some, err := c.series(ctx, q, s, step, labels)
		if errors.Is(err, errDots) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, some...)
	}
	return out, nil
}

// seriesAnswer is querier.v1.SelectSeriesResponse. Numbers of 64 bits are strings.
type seriesAnswer struct {
	Series []struct {
		Labels []struct{ Name, Value string }
		Points []struct {
			Value     float64
			Timestamp string
		}
	}
}

func (c *Client) series(ctx context.Context, q Query, selector string, step time.Duration, labels []string) ([]Series, error) {
	var answer seriesAnswer
	err := c.askJSON(ctx, "SelectSeries", map[string]any{
		"profileTypeID": cpuType, "labelSelector": selector, "start": q.From.UnixMilli(), "end": q.To.UnixMilli(),
		"step": step.Seconds(), "groupBy": labels,
	}, &answer)
	if err != nil {
		return nil, err
	}
	var out []Series
	for _, s := range answer.Series {
		one := Series{Values: make([]string, len(labels))}
		for i, name := range labels {
			for _, l := range s.Labels {
				if l.Name == name {
					one.Values[i] = l.Value
				}
			}
		}
		for _, p := range s.Points {
			at, err := strconv.ParseInt(p.Timestamp, 10, 64)
			if err != nil {
				return nil, c.foreign(err)
			}
			if p.Value > 0 {
				one.Points = append(one.Points, Point{time.UnixMilli(at), time.Duration(p.Value)})
			}
		}
		out = append(out, one)
	}
	return out, nil
}

func (c *Client) askJSON(ctx context.Context, method string, question, answer any) error {
	body, err := json.Marshal(question)
	if err != nil {
		return err
	}
	text, err := c.ask(ctx, method, "application/json", body)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return c.foreign(err)
	}
	return nil
}

func (c *Client) ask(ctx context.Context, method, kind string, body []byte) ([]byte, error) {
	limited, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(limited, http.MethodPost, c.http.URL(service+method), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	// From 2.0 on names with dots are hidden from those that do not ask for them.
	r.Header = http.Header{"Content-Type": {kind}, "Connect-Protocol-Version": {"1"}, "Accept": {"*/*; allow-utf8-labelnames=true"}}
	response, err := c.http.RoundTrip(r)
	if err != nil {
		return nil, c.unreachable(ctx, limited, err)
	}
	defer func() { _ = response.Body.Close() }() // only read from
	answer, err := io.ReadAll(io.LimitReader(response.Body, answerLimit+1))
	switch {
	case err != nil:
		return nil, c.unreachable(ctx, limited, err)
	case len(answer) > answerLimit:
		return nil, &profiler.Fault{
			What: c.name + " has more than can be read", Why: fmt.Errorf("its answer is larger than %d MiB", answerLimit>>20),
			Fix: "ask for less: a shorter time, or one Deployment",
		}
	case response.StatusCode != http.StatusOK:
		return nil, c.refused(response.StatusCode, answer)
	}
	return answer, nil
}

// unreachable says why there is no answer.
func (c *Client) unreachable(ctx, limited context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	fix := "--pyroscope http://HOST:4040 is the server that Grafana asks for profiles; kalypsoctl status     tells of the cluster's"
	if errors.Is(limited.Err(), context.DeadlineExceeded) {
		return &profiler.Fault{What: c.name + " does not answer", Why: fmt.Errorf("no answer in %s", queryTimeout), Fix: "ask for a shorter time, or one Deployment"}
	}
	var fault *profiler.Fault
	if err = transport.Explain(c.http.Address(), err); errors.As(err, &fault) && fault.Why != nil {
		err = fault.Why
	}
	return &profiler.Fault{What: c.name + " does not answer", Why: err, Fix: fix}
}

// foreign says that something answers, but not as Pyroscope does.
func (c *Client) foreign(err error) error {
	return &profiler.Fault{What: c.name + " does not answer as Pyroscope does", Why: err, Fix: "--pyroscope URL names the server that Grafana asks for profiles"}
}
