// Package spool is a queue between the agent and a backend: bounded, ordered,
// and on disk, so that neither an outage of the backend nor the end of the
// agent loses samples. Put takes a request and never waits for the network;
// Run sends what waits, oldest first, one request at a time.
//
// Each request is one file from before it is sent until it is known what
// became of it. The package knows requests as bytes with a few figures beside
// them (exporter.Request), and nothing of protocols: whether a request is to be
// sent again is what the Sender's error says. It accounts for every sample: see
// Stats.
//
// A folder that does not work is no reason to stop. Requests are then kept in
// memory, within a bound of their own, and go to the folder once it works.
package spool

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/kalypso-dev/kalypso/exporter"
)

// Defaults of Config.
const (
	DefaultMaxBytes    = 256 << 20
	DefaultMemoryBytes = 8 << 20
	// Pyroscope refuses profiles that are older than an hour by their start and
	// by its own clock. The minute is for the window, the sending and the clocks.
	DefaultMaxAge      = 59 * time.Minute
	DefaultSendTimeout = 30 * time.Second
	// DefaultRate is a quarter of what Pyroscope takes of one tenant. It counts
	// the profiles as it stores them, which may be several times the request.
	DefaultRate       = 1 << 20
	DefaultMinBackoff = time.Second
	DefaultMaxBackoff = 20 * time.Second
)

// ErrClosed is what Put gives once Close was called.
var ErrClosed = errors.New("the spool is closed")

// Config says how a spool works. Only Sender has no default.
type Config struct {
	Sender exporter.Sender // not closed by the spool

	Dir         string        // "": requests are kept in memory only
	MaxBytes    int64         // that the folder's files may take, those set aside included
	MemoryBytes int64         // that requests may take in memory, compressed
	MaxAge      time.Duration // of a request: older ones are dropped

	SendTimeout time.Duration // how long one request may take
	Rate        int64         // bytes of requests a second, before compression
	MinBackoff  time.Duration // the pause after the first failure; each next one is twice as long
	MaxBackoff  time.Duration // and at most this; pauses are up to half longer or shorter, at random

	Log *slog.Logger // nil: nothing is logged
}

// withDefaults is the config with its defaults filled in.
func (c Config) withDefaults() (Config, error) {
	if c.Sender == nil {
		return c, errors.New("a spool without a sender")
	}
	for _, n := range []struct {
		value  *int64
		normal int64
	}{
		{&c.MaxBytes, DefaultMaxBytes},
		{&c.MemoryBytes, DefaultMemoryBytes},
		{&c.Rate, DefaultRate},
		{(*int64)(&c.MaxAge), int64(DefaultMaxAge)},
		{(*int64)(&c.SendTimeout), int64(DefaultSendTimeout)},
		{(*int64)(&c.MinBackoff), int64(DefaultMinBackoff)},
		{(*int64)(&c.MaxBackoff), int64(DefaultMaxBackoff)},
	} {
		if *n.value < 0 {
			return c, errors.New("a negative limit of the spool")
		}
		if *n.value == 0 {
			*n.value = n.normal
		}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// Spool is the queue. Its methods may be called from any goroutine.
type Spool struct {
	cfg Config

	closing    context.Context // ended by Close
	beginClose context.CancelFunc
	aborting   context.Context // ended by the end of Close's context
	abort      context.CancelFunc

	turn chan struct{} // holds one element while somebody sends
	wake chan struct{} // holds one element after a Put

	// disk is held while files are touched, and by Put from its begin to its
	// end. It is taken before mu.
	disk     sync.Mutex
	folder   *folder // nil: memory only
	zip      *gzip.Writer
	sequence uint64 // the last that was given
	leftover []file // files of entries that are gone, which could not be removed
	full     bool   // the last write failed for want of room
	closed   bool

	// mu is held for moments only, never while a file is touched.
	mu    sync.Mutex
	queue queue
	stats Stats

	// Of whoever has the turn.
	backoff  *backoff.ExponentialBackOff
	pace     *pace
	attempts int
	pause    time.Duration // after a failure
}

// Open opens a spool and takes up what an earlier run left in its folder. A
// folder that another agent uses or that cannot be a folder is an error; one
// whose disk is full, read-only or broken is not.
func Open(cfg Config) (*Spool, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	zip, err := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed)
	if err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	s := &Spool{
		cfg:     cfg,
		turn:    make(chan struct{}, 1),
		wake:    make(chan struct{}, 1),
		zip:     zip,
		backoff: backoff.NewExponentialBackOff(),
		pace:    newPace(cfg.Rate),
	}
	s.backoff.InitialInterval, s.backoff.MaxInterval, s.backoff.Multiplier = cfg.MinBackoff, cfg.MaxBackoff, 2
	s.backoff.Reset()
	s.closing, s.beginClose = context.WithCancel(context.Background())
	s.aborting, s.abort = context.WithCancel(context.Background())
	if cfg.Dir == "" {
		return s, nil
	}
	s.disk.Lock()
	defer s.unlock()
	s.folder = &folder{dir: cfg.Dir, maxAside: cfg.MaxBytes / 8}
	if err := s.openFolder(); err != nil {
		if fault := faultOf(cfg.Dir, err); fault != nil {
			s.folder.close()
			return nil, fault
		}
		s.diskFailed(err)
	}
	return s, nil
}

// Put takes a request into the queue. It may wait for the disk, never for the
// network. Once it returned nil, the request outlives the agent wherever the
// folder works.
func (s *Spool) Put(r *exporter.Request) error {
	if len(r.Body) > MaxBody {
		return fmt.Errorf("put a request of %d bytes into the spool: it takes %d at most", len(r.Body), MaxBody)
	}
	s.disk.Lock()
	defer s.unlock()
	if s.closing.Err() != nil {
		return ErrClosed
	}
	h, data := encode(r, s.zip)
	limit := s.cfg.MemoryBytes
	if s.folder != nil {
		limit = s.cfg.MaxBytes
	}
	if room := onDisk(h.size()); room > limit {
		return fmt.Errorf("put a request that takes %d bytes into the spool: it has room for %d", room, limit)
	}
	s.expire()
	s.sequence = max(s.sequence+1, uint64(time.Now().UnixMicro()))
	s.mu.Lock()
	s.stats.Put.add(h.count())
	s.queue.add(&entry{sequence: s.sequence, header: h, data: data})
	s.mu.Unlock()
	s.store()
	s.boundMemory()
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return nil
}

// Stats gives the figures of this moment.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Disk, st.Memory = s.queue.disk, s.queue.memory
	for _, e := range s.queue.entries {
		if st.Oldest.IsZero() || e.header.time.Before(st.Oldest) {
			st.Oldest = e.header.time
		}
	}
	return st
}

// Close ends Run, sends what it can until ctx ends or a request fails, brings
// the rest to the folder, and gives the folder free. A request that is being
// sent is waited for until ctx ends; where the folder keeps the rest, none is
// begun in the second half of that time, so that one which takes long is not cut
// off before its answer and sent again by the next run. The error says what is
// lost for want of a folder.
func (s *Spool) Close(ctx context.Context) error {
	s.beginClose()
	defer context.AfterFunc(ctx, s.abort)()
	begin, cancel := s.halfOf(ctx)
	defer cancel()
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	for s.step(begin, ctx) == settled {
	}
	s.disk.Lock()
	defer s.unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	s.store()
	lost := s.loseMemory()
	if s.folder != nil {
		s.keep()
		s.folder.close()
	}
	st := s.Stats()
	if st.Put.Requests+st.Recovered.Requests > 0 {
		s.cfg.Log.Info("the spool is closed", "requests_left", st.Disk.Requests, "samples_left", st.Disk.Samples)
	}
	if lost.Requests > 0 {
		return fmt.Errorf("close the spool: %d samples in %d requests were neither sent nor stored", lost.Samples, lost.Requests)
	}
	return nil
}

// halfOf is the first half of ctx's time where a folder keeps what is not sent,
// else all of it.
func (s *Spool) halfOf(ctx context.Context) (context.Context, context.CancelFunc) {
	s.mu.Lock()
	kept := s.folder != nil && s.stats.DiskError == ""
	s.mu.Unlock()
	if end, bounded := ctx.Deadline(); bounded && kept {
		return context.WithTimeout(ctx, time.Until(end)/2)
	}
	return context.WithCancel(ctx)
}
