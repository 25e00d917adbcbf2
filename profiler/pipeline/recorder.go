package pipeline

import (
	"context"
	"errors"
	"time"
)

// recorder collects the segments of somebody who wants to know what runs from
// now on.
type recorder struct {
	hz       int
	from     uint64 // the first segment that is wanted
	to       uint64 // the last one, once it is known
	known    bool
	segments []Segment
	done     chan struct{}
}

// Record gives what is sampled from now on for a while, at a rate of its own
// where hz is not 0; then the rate is what it was. The segments are those that
// are delivered, too. A context that ends early is no error.
func (s *Service) Record(ctx context.Context, d time.Duration, hz int) ([]Segment, error) {
	if hz != 0 && (hz < MinFrequency || hz > MaxFrequency) {
		return nil, badFrequency(hz)
	}
	r := &recorder{hz: hz, done: make(chan struct{})}
	var err error
	if e := s.do(ctx, func() { err = s.beginRecording(r) }); e != nil {
		return nil, e
	}
	if err != nil {
		return nil, err
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-s.ended:
	}
	if e := s.do(context.WithoutCancel(ctx), func() { s.endRecording(r) }); e != nil {
		s.mu.Lock() // the service ended, and delivered everything before
		defer s.mu.Unlock()
		return r.segments, nil
	}
	select {
	case <-r.done:
	case <-s.ended:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return r.segments, nil
}

// ErrBehind says that a recording cannot begin: naming is far behind.
var ErrBehind = errors.New("the agent is still naming what was sampled before: try again in a few seconds")

// beginRecording and endRecording run in the loop.
func (s *Service) beginRecording(r *recorder) error {
	if !s.cut(false) {
		return ErrBehind
	}
	r.from = s.seq
	s.mu.Lock()
	s.recording[r] = true
	s.mu.Unlock()
	s.setOverride()
	return nil
}

func (s *Service) endRecording(r *recorder) {
	s.mu.Lock()
	r.to, r.known = s.seq, true
	s.mu.Unlock()
	for !s.cut(false) { // naming goes on in the other goroutine
		time.Sleep(10 * time.Millisecond)
	}
	r.hz = 0
	s.setOverride()
}

// setOverride takes the highest rate that a recording asks for.
func (s *Service) setOverride() {
	s.override = 0
	s.mu.Lock()
	for r := range s.recording {
		s.override = max(s.override, r.hz)
	}
	s.mu.Unlock()
	if s.override > 0 {
		s.setRate(s.override)
	} else {
		s.setRate(s.budget.rate)
	}
}

// publish gives a named segment to the recordings that want it.
func (s *Service) publish(seg Segment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := range s.recording {
		if seg.Seq >= r.from && (!r.known || seg.Seq <= r.to) {
			r.segments = append(r.segments, seg)
		}
		if r.known && seg.Seq >= r.to {
			delete(s.recording, r)
			close(r.done)
		}
	}
}
