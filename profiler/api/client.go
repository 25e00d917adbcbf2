package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kalypso-dev/kalypso/exporter/format"
	"github.com/kalypso-dev/kalypso/profiler"
)

// Client asks an agent. Its errors are faults for people.
type Client struct {
	address string
	base    string
	http    *http.Client
}

// maxAnswer bounds what is read of an answer. The largest are pprof files of a
// busy machine, of some MiB.
const maxAnswer = 64 << 20

// NewClient is a client of the agent at HOST:PORT or unix:PATH.
func NewClient(address string) (*Client, error) {
	c := &Client{address: address, base: "http://" + address}
	// No proxy: the agent is here.
	transport := &http.Transport{MaxIdleConns: 2, IdleConnTimeout: idleTimeout, DisableCompression: true}
	if path, ok := strings.CutPrefix(address, socketPrefix); ok {
		c.base = "http://localhost"
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}
	} else if _, _, err := net.SplitHostPort(address); err != nil {
		return nil, &profiler.Fault{
			What: fmt.Sprintf("there can be no agent at %q", address), Why: errors.New("an address is HOST:PORT, or unix:PATH"),
			Fix: "--listen " + DefaultAddress + " is the default",
		}
	}
	c.http = &http.Client{Transport: transport}
	return c, nil
}

// Close ends the client's connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// HistoryQuery chooses a part of the history: From and To, or the newest
// Seconds; when all are zero, the agent decides.
type HistoryQuery struct {
	From, To time.Time
	Newest   time.Duration
	Filter   Filter
}

func (q HistoryQuery) values() url.Values {
	v := q.Filter.values()
	if q.Newest > 0 {
		v.Set("seconds", seconds(q.Newest))
	}
	if !q.From.IsZero() {
		v.Set("from", unixSeconds(q.From))
	}
	if !q.To.IsZero() {
		v.Set("to", unixSeconds(q.To))
	}
	return v
}

func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) }

// Top gives what used the CPUs; at most limit rows, 0 means as the agent does.
func (c *Client) Top(ctx context.Context, q HistoryQuery, by By, limit int) (*Top, error) {
	v := q.values()
	if by != "" {
		v.Set("by", string(by))
	}
	if limit > 0 {
		v.Set("limit", strconv.Itoa(limit))
	}
	out := &Top{}
	return out, c.json(ctx, "/v1/top", v, out)
}

// Processes gives what was sampled.
func (c *Client) Processes(ctx context.Context, q HistoryQuery) (*Processes, error) {
	out := &Processes{}
	return out, c.json(ctx, "/v1/processes", q.values(), out)
}

// AllProcesses gives what was sampled, the busiest first, and what else runs. An
// agent that does not know of the others refuses (http.StatusBadRequest).
func (c *Client) AllProcesses(ctx context.Context, q HistoryQuery) (*Processes, error) {
	v := q.values()
	v.Set("of", "all")
	out := &Processes{}
	return out, c.json(ctx, "/v1/processes", v, out)
}

// Quality gives how far profiles can be trusted and what they cost.
func (c *Client) Quality(ctx context.Context) (*Quality, error) {
	out := &Quality{}
	return out, c.json(ctx, "/v1/quality", nil, out)
}

// Dump gives the stacks of every thread of a process right now.
func (c *Client) Dump(ctx context.Context, pid profiler.PID) (*Dump, error) {
	out := &Dump{}
	return out, c.json(ctx, "/v1/dump", url.Values{"pid": {strconv.FormatUint(uint64(pid), 10)}}, out)
}

// Record gives what is sampled from now on for a while, one profile per
// workload; at the agent's own rate where hz is 0.
func (c *Client) Record(ctx context.Context, d time.Duration, hz int, f Filter) ([]*profiler.Profile, error) {
	v := f.values()
	v.Set("seconds", seconds(d))
	if hz > 0 {
		v.Set("hz", strconv.Itoa(hz))
	}
	return c.profiles(ctx, v)
}

// History gives what was recorded from one time to another, one profile per
// workload.
func (c *Client) History(ctx context.Context, from, to time.Time, f Filter) ([]*profiler.Profile, error) {
	return c.profiles(ctx, HistoryQuery{From: from, To: to, Filter: f}.values())
}

func (c *Client) profiles(ctx context.Context, v url.Values) ([]*profiler.Profile, error) {
	body, err := c.get(ctx, "/v1/profile", v)
	if err != nil {
		return nil, err
	}
	profiles, err := format.ReadProfiles(bytes.NewReader(body))
	if err != nil {
		return nil, c.foreign(err)
	}
	return profiles, nil
}

func (c *Client) json(ctx context.Context, path string, v url.Values, out any) error {
	body, err := c.get(ctx, path, v)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, out); err != nil {
		return c.foreign(err)
	}
	return nil
}

func (c *Client) get(ctx context.Context, path string, v url.Values) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path+"?"+v.Encode(), nil)
	if err != nil {
		return nil, c.foreign(err)
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	defer func() { _ = resp.Body.Close() }() // only read from
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, c.unreachable(ctx, err)
	case len(body) > maxAnswer:
		return nil, c.foreign(fmt.Errorf("its answer is larger than %d MiB", maxAnswer>>20))
	case resp.StatusCode != http.StatusOK:
		return nil, c.refused(resp.StatusCode, body)
	}
	return body, nil
}

// StatusError is what an agent answered in place of what was asked for.
type StatusError struct {
	Status int // of HTTP
	Fault  *profiler.Fault
}

// Error is what happened and why.
func (e *StatusError) Error() string { return e.Fault.Error() }

// Unwrap gives the fault.
func (e *StatusError) Unwrap() error { return e.Fault }

// refused gives the agent's own words.
func (c *Client) refused(status int, body []byte) error {
	var f failure
	if json.Unmarshal(body, &f) != nil || f.Schema != schemaError {
		return c.foreign(fmt.Errorf("it answers %d %s", status, http.StatusText(status)))
	}
	fault := &profiler.Fault{What: profiler.Printable(f.Error), Fix: profiler.Printable(f.Fix)}
	if f.Cause != "" {
		fault.Why = errors.New(profiler.Printable(f.Cause))
	}
	return &StatusError{status, fault}
}

// foreign says that something answers, but not as an agent does.
func (c *Client) foreign(err error) error {
	return &profiler.Fault{
		What: "no kalypso-agent answers at " + c.address, Why: err,
		Fix: "give the address that the agent was started with: --listen HOST:PORT or --listen unix:PATH",
	}
}

func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	f := &profiler.Fault{
		What: "no agent answers at " + c.address, Why: reason(err),
		Fix: "give the address that the agent was started with: --listen HOST:PORT or --listen unix:PATH",
	}
	var network *net.OpError
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		f.Why = errors.New("nothing listens there")
		f.Fix = "kalypso-agent run     starts one; --listen ADDRESS asks one that listens elsewhere"
	case errors.Is(err, syscall.EACCES):
		f.Fix = "run it as the user that the agent runs as"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		f.Why, f.Fix = errors.New("it ended in the middle of its answer"), "ask again, and see in its log why it ended"
	case !errors.As(err, &network):
		f.Why = errors.New("what listens there speaks no HTTP")
	}
	return f
}
