package spool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"time"

	"github.com/kalypso-dev/kalypso/exporter"
)

const (
	// maxBusy bounds what a backend may ask to wait.
	maxBusy = 5 * time.Minute
	// maxUnread is how often a file is tried to be read. A disk may recover; an
	// agent that has no file descriptor left, too.
	maxUnread = 3
	// After suspectAfter failures of one request every other attempt is the
	// next one's: is it the backend, or the request? The pauses before add up
	// to two minutes. A shorter outage leaves the order as it was; in a longer
	// one a request may overtake another.
	suspectAfter = 10
	// A request that still fails when blamedAfter others got through is refused.
	// Where the backend is only busy it is tried until it is too old.
	blamedAfter = 5
)

var errOthersPass = errors.New("it fails while others get through")

// outcome is how one step of sending ended.
type outcome uint8

const (
	idle    outcome = iota // nothing waits
	settled                // a request is done with, whatever became of it
	failed                 // it is to be tried again, after a pause
	stopped                // a context ended
)

// Run sends requests until ctx ends or Close is called. End it by Close: ctx
// cuts off the request that is being sent, and it is then not known whether it
// arrived.
func (s *Spool) Run(ctx context.Context) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return
	}
	wait, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(s.closing, stop)()
	for wait.Err() == nil {
		switch s.step(wait, ctx) {
		case idle:
			select {
			case <-s.wake:
			case <-wait.Done():
			}
		case failed:
			sleep(wait, s.pause)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// step sends one request. The first context bounds the waiting before, the
// second the sending.
func (s *Spool) step(wait, ctx context.Context) outcome {
	if wait.Err() != nil {
		return stopped
	}
	e, r, err := s.take()
	switch {
	case err != nil:
		s.pause = s.backoff.NextBackOff()
		return failed
	case e == nil:
		return idle
	}
	defer s.release(e)
	s.mu.Lock()
	backlog := s.queue.body
	s.mu.Unlock()
	if err := s.pace.wait(wait, len(r.Body), backlog); err != nil {
		return stopped
	}
	s.attempts++
	receipt, err := s.send(ctx, r)
	if err != nil && !exporter.Refused(err) && (ctx.Err() != nil || s.aborting.Err() != nil) {
		return stopped
	}
	s.disk.Lock()
	defer s.unlock()
	return s.settle(e, receipt, err)
}

// take gives the request to send next, and keeps it from being dropped until
// it is released. The error says that its file cannot be read for now.
func (s *Spool) take() (*entry, *exporter.Request, error) {
	s.disk.Lock()
	defer s.unlock()
	s.expire()
	for {
		e := s.next()
		if e == nil {
			return nil, nil, nil
		}
		r, err := s.read(e)
		if err == nil {
			s.mu.Lock()
			e.sending = true
			s.mu.Unlock()
			return e, r, nil
		}
		e.unread++
		switch {
		case errors.Is(err, errCorrupt):
		case errors.Is(err, fs.ErrNotExist):
			err = errors.New("somebody removed it")
		case e.unread < maxUnread:
			s.troubled(err)
			return nil, nil, err
		}
		s.damaged(e.name(), e.header.count(), err)
		s.setAside(e, &s.stats.Unreadable)
	}
}

func (s *Spool) release(e *entry) {
	s.mu.Lock()
	e.sending = false
	s.mu.Unlock()
}

// next is the entry to send next: the oldest one, but see suspectAfter. What is
// in a folder that cannot be opened waits.
func (s *Spool) next() *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	var first *entry
	for _, e := range s.queue.entries {
		switch {
		case e.data == nil && s.folder.root == nil:
		case first != nil:
			return e
		case e.failed < suspectAfter || s.attempts%2 == 0:
			return e
		default:
			first = e
		}
	}
	return first
}

// read gives the request of an entry.
func (s *Spool) read(e *entry) (*exporter.Request, error) {
	data := e.data
	if data == nil {
		var err error
		if data, err = s.folder.read(e.name(), e.header.size()); err != nil {
			return nil, err
		}
	}
	return decode(data)
}

// send sends a request, within its time.
func (s *Spool) send(ctx context.Context, r *exporter.Request) (exporter.Receipt, error) {
	timed, cancel := context.WithTimeout(ctx, s.cfg.SendTimeout)
	defer cancel()
	defer context.AfterFunc(s.aborting, cancel)()
	receipt, err := s.cfg.Sender.Send(timed, r)
	if err != nil && errors.Is(timed.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %s: %w", s.cfg.SendTimeout, err)
	}
	return receipt, err
}

// settle does what the backend's answer asks for.
func (s *Spool) settle(e *entry, receipt exporter.Receipt, err error) outcome {
	switch {
	case err == nil:
		s.answered(nil)
		s.delivered(e, receipt)
		return settled
	case exporter.Refused(err):
		s.answered(err)
		s.refuse(e, err)
		return settled
	}
	e.failed++
	var busy *exporter.BusyError
	if errors.As(err, &busy) {
		s.pace.slower()
		s.failed(BackendBusy, err)
		// Agents that were told to come back at the same moment do not.
		s.pause = max(s.backoff.NextBackOff(), min(busy.After, maxBusy)+rand.N(s.cfg.MinBackoff))
		s.keepOne(e)
		return failed
	}
	s.failed(BackendUnreachable, err)
	if e.passed >= blamedAfter {
		s.refuse(e, fmt.Errorf("%w: %w", errOthersPass, err))
		return settled
	}
	s.pause = s.backoff.NextBackOff()
	s.keepOne(e)
	return failed
}

// delivered ends an entry that the backend took, if only some of its profiles.
func (s *Spool) delivered(e *entry, receipt exporter.Receipt) {
	s.pace.faster()
	s.mu.Lock()
	for _, older := range s.queue.entries {
		if older == e {
			break
		}
		if older.failed >= suspectAfter {
			older.passed++
		}
	}
	s.stats.RejectedProfiles += uint64(max(0, receipt.RejectedProfiles))
	s.mu.Unlock()
	switch {
	case receipt.RejectedProfiles <= 0:
		s.discard(e, &s.stats.Delivered)
	case receipt.RejectedProfiles >= e.header.profiles:
		s.refuse(e, errors.New(receipt.Message))
	default:
		s.cfg.Log.Warn("the backend left out profiles of a request", "profiles", receipt.RejectedProfiles, "of", e.header.profiles, "message", receipt.Message)
		s.discard(e, &s.stats.PartlyAccepted)
	}
}

// refuse ends an entry that the backend will not take.
func (s *Spool) refuse(e *entry, err error) {
	s.cfg.Log.Warn("a request was refused and is set aside", "file", e.name(), "samples", e.header.samples, "error", err)
	s.setAside(e, &s.stats.Refused)
}

// answered notes that the backend took a request, or refused it.
func (s *Spool) answered(refusal error) {
	s.backoff.Reset()
	s.mu.Lock()
	was := s.stats.Backend
	s.stats.Backend = BackendReachable
	if refusal == nil {
		s.stats.LastSuccess = time.Now()
	} else {
		s.stats.SendError = refusal.Error()
	}
	waiting := len(s.queue.entries)
	s.mu.Unlock()
	if was > BackendReachable {
		s.cfg.Log.Info("the backend takes requests again", "waiting", waiting)
	}
}

// failed notes that a request is to be sent again.
func (s *Spool) failed(now Backend, err error) {
	s.mu.Lock()
	was := s.stats.Backend
	s.stats.Backend = now
	s.stats.Retries++
	s.stats.SendError = err.Error()
	s.mu.Unlock()
	if was != now {
		s.cfg.Log.Warn("the backend takes no requests, they wait in the spool", "backend", now.String(), "error", err)
	}
}
