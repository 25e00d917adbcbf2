package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kalypso-dev/kalypso/cmd/agent/internal/config"
	"github.com/kalypso-dev/kalypso/exporter"
	"github.com/kalypso-dev/kalypso/exporter/file"
	"github.com/kalypso-dev/kalypso/exporter/otlp"
	"github.com/kalypso-dev/kalypso/exporter/pyroscope"
	"github.com/kalypso-dev/kalypso/exporter/spool"
	"github.com/kalypso-dev/kalypso/exporter/transport"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/api"
	"github.com/kalypso-dev/kalypso/profiler/telemetry"
)

// outlet is one way out of the agent: an encoder, a queue, a sender.
type outlet struct {
	kind     string // of the export
	name     string // as in --export
	endpoint string
	encoder  exporter.Encoder
	sender   exporter.Sender
	spool    *spool.Spool
	log      *slog.Logger

	encoded atomic.Uint64 // samples that went into requests
	dropped atomic.Uint64 // samples that no request could carry, or the spool did not take
	bytes   atomic.Uint64 // of requests, before compression

	loss loss
}

// loss is when the last sample was given up.
type loss struct {
	mu      sync.Mutex
	samples uint64 // that were given up by then
	at      time.Time
}

// last notes how many samples are given up by now, and gives when the last was;
// zero: none.
func (l *loss) last(samples uint64, now time.Time) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if samples > l.samples {
		l.samples, l.at = samples, now
	}
	return l.at
}

func (d *daemon) newOutlet(e config.Export) (*outlet, error) {
	s := d.settings
	o := &outlet{kind: e.Kind, name: e.String(), endpoint: s.OTLP.Endpoint, log: d.log.With("export", e.String())}
	dir := spoolDir(s, e.Kind)
	if e.Kind == "file" { // its spool is in memory: no second disk to be safe from the first
		dir = ""
	}
	for _, into := range []string{e.Dir, dir} {
		if err := checkWritable(into); err != nil {
			return nil, err
		}
	}
	var err error
	switch e.Kind {
	case "otlp":
		protocol := otlp.GRPC
		if s.OTLP.Protocol == "http" {
			protocol = otlp.HTTP
		}
		o.encoder = otlp.NewEncoder(otlp.EncoderConfig{Version: d.Version})
		o.sender, err = otlp.NewSender(d.transport(), protocol)
	case "pprof":
		o.encoder = pyroscope.NewEncoder(pyroscope.EncoderConfig{})
		o.sender, err = pyroscope.NewSender(d.transport())
	case "file":
		o.endpoint, o.encoder = e.Dir, file.Encoder{}
		o.sender, err = file.Open(file.Config{Dir: e.Dir})
	default:
		err = fmt.Errorf("no export of the kind %q", e.Kind)
	}
	if err != nil {
		return nil, err
	}
	o.spool, err = spool.Open(spool.Config{
		Sender: o.sender, Dir: dir, MaxBytes: int64(s.Spool.Max), MemoryBytes: spoolMemory(s), MaxAge: s.Spool.MaxAge,
		SendTimeout: 2 * s.OTLP.Timeout, Log: o.log,
	})
	if err != nil {
		return nil, errors.Join(err, o.sender.Close())
	}
	return o, nil
}

// spoolMemory is what may wait in memory where there is no folder, or it does
// not work: a sixteenth of the agent's memory.
func spoolMemory(s *config.Config) int64 { return max(int64(s.Memory.Budget)/16, 1<<20) }

// transport is how the backend is reached.
func (d *daemon) transport() transport.Config {
	o := d.settings.OTLP
	return transport.Config{
		Endpoint: o.Endpoint, Insecure: o.Insecure,
		CAFile: o.TLS.CA, CertFile: o.TLS.Cert, KeyFile: o.TLS.Key, ServerName: o.TLS.ServerName,
		Username: o.Basic.User, PasswordFile: o.Basic.PasswordFile, TokenFile: o.BearerTokenFile, HeadersFile: o.HeadersFile,
		Tenant: o.Tenant, Timeout: o.Timeout, UserAgent: "kalypso-agent/" + d.Version,
	}
}

// put encodes the profiles of a window and queues the requests.
func (o *outlet) put(profiles []*profiler.Profile) {
	if len(profiles) == 0 {
		return
	}
	requests, dropped, err := o.encoder.Encode(profiles)
	if err != nil {
		for _, p := range profiles {
			dropped += p.Quality.Samples
		}
		o.log.Error("a window is lost: it cannot be encoded", "samples", dropped, "reason", err)
	} else if dropped > 0 {
		o.log.Warn("samples are too large for any request", "samples", dropped)
	}
	for _, r := range requests {
		o.encoded.Add(r.Samples)
		o.bytes.Add(uint64(len(r.Body)))
		if err := o.spool.Put(r); err != nil {
			dropped += r.Samples
			o.log.Error("a request is lost", "samples", r.Samples, "reason", err)
		}
	}
	o.dropped.Add(dropped)
	st := o.spool.Stats()
	o.loss.last(o.givenUp(&st), time.Now())
}

// givenUp is how many samples were given up, which no backend will have.
func (o *outlet) givenUp(st *spool.Stats) uint64 {
	return o.dropped.Load() + st.Refused.Samples + st.Expired.Samples + st.Evicted.Samples + st.Unreadable.Samples
}

// close sends what it can, and leaves the rest on disk.
func (o *outlet) close(ctx context.Context) error {
	return errors.Join(o.spool.Close(ctx), o.sender.Close())
}

// backend is what /readyz tells of the outlet.
func (o *outlet) backend() telemetry.Backend {
	st := o.spool.Stats()
	b := telemetry.Backend{Name: o.kind, Endpoint: o.endpoint, Delivered: st.LastSuccess, Oldest: st.Oldest, Tried: st.LastSuccess}
	if st.Backend == spool.BackendUnreachable || st.Backend == spool.BackendBusy {
		b.Err, b.Tried = errors.New(st.SendError), time.Now()
	}
	return b
}

// status is what the API tells of the outlet.
func (o *outlet) status() api.Export {
	st := o.spool.Stats()
	out := api.Export{
		Name: o.kind, Endpoint: o.endpoint, Waiting: st.Disk.Requests + st.Memory.Requests,
		Dropped: o.givenUp(&st),
	}
	if at := o.loss.last(out.Dropped, time.Now()); !at.IsZero() {
		at = at.UTC()
		out.DroppedAt = &at
	}
	if st.Backend == spool.BackendUnreachable || st.Backend == spool.BackendBusy {
		out.Error = profiler.Printable(st.SendError)
	}
	if !st.LastSuccess.IsZero() {
		at := st.LastSuccess.UTC()
		out.Delivered = &at
	}
	if !st.Oldest.IsZero() {
		at := st.Oldest.UTC()
		out.Oldest = &at
	}
	return out
}
