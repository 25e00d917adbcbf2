package pipeline

import (
	"context"
	"errors"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
)

// recorder collects the segments of somebody who wants to know what runs from
// now on.
type recorder struct {
	hz       int
	target   Target
	wanted   Wanted
	from     uint64 // the first segment that is wanted
	to       uint64 // the last one, once it is known
	known    bool
	segments []Segment
	bytes    int64 // of segments
	err      error // why it ended early
	done     chan struct{}
}

// Target says whether a recording is of a cgroup, by its path and the workload that
// it is of, nil where a path names none. Events fire on all CPUs, so the rate of
// what is not the target is kept by taking a share of its samples. nil: of all.
type Target func(cgroup string, w *profiler.Workload) bool

// Wanted gives those of a segment's profiles that a recording is to have, and of
// their samples. What others run takes no room in it then. nil: all.
type Wanted func([]*profiler.Profile) []*profiler.Profile

// ErrBehind says that a recording cannot begin: naming is far behind.
var ErrBehind = errors.New("the agent is still naming what was sampled before: try again in a few seconds")

// ErrTooLarge says that a recording ended, because it grew over its share of the
// memory budget.
var ErrTooLarge = errors.New("too many stacks for one recording")

// A recording may take an eighth of the memory budget: 16 MiB of 128 MiB. A
// sample takes about 1 KiB, its stack included; names and locations are the
// symbolizer's.
const (
	recordingShare = 8
	sampleBytes    = 1 << 10
	segmentBytes   = 4 << 10 // of one without samples
)

// endAgain is how long it takes until a recording that could not be ended, since
// naming was behind, is tried to be ended again.
const endAgain = 10 * time.Millisecond

// Record gives what is sampled from now on for a while, the target at a rate of at
// least hz where the memory allows it; then the rate is what it was. The segments
// are those that are delivered, too, with what is wanted of their profiles: what is no
// target at its own rate. Names of containers that are still to come are waited for
// less long. A context that ends early is no error.
func (s *Service) Record(ctx context.Context, d time.Duration, hz int, target Target, wanted Wanted) ([]Segment, error) {
	if hz != 0 && (hz < MinFrequency || hz > MaxFrequency) {
		return nil, badFrequency(hz)
	}
	r := &recorder{hz: hz, target: target, wanted: wanted, done: make(chan struct{})}
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
	case <-r.done:
	case <-s.ended:
	}
	if s.untilEnded(r) {
		select {
		case <-r.done:
		case <-s.ended:
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return r.segments, r.err
}

// untilEnded has the loop end a recording, again and again until it can. It is
// false when the service ended, which delivers everything before.
func (s *Service) untilEnded(r *recorder) bool {
	for {
		var ended bool
		if err := s.do(context.Background(), func() { ended = s.endRecording(r) }); err != nil {
			return false
		}
		if ended {
			return true
		}
		select {
		case <-time.After(endAgain):
		case <-s.ended:
			return false
		}
	}
}

// owingFrequency is the most that a recording gets while the CPU budget is owed
// something: somebody waits for the answer, and it is over in a minute at most.
const owingFrequency = 100

// beginRecording and endRecording run in the loop.
func (s *Service) beginRecording(r *recorder) error {
	if !s.cut(false) {
		return ErrBehind
	}
	r.from = s.seq
	if s.budget.limit > 0 && s.budget.bank < 0 {
		r.hz = min(r.hz, owingFrequency)
	}
	s.mu.Lock()
	s.recording[r] = true
	s.mu.Unlock()
	s.setRates(s.dueRates())
	return nil
}

// endRecording ends a recording with the current segment. It is false when that
// cannot be cut yet, and the rate stays until it can.
func (s *Service) endRecording(r *recorder) bool {
	s.mu.Lock()
	ended := r.err != nil
	if !r.known {
		r.to, r.known = s.seq, true
	}
	s.mu.Unlock()
	r.hz = 0
	// Somebody else may have cut it since the last attempt.
	ended = ended || s.seq > r.to || s.cut(false)
	s.setRates(s.dueRates())
	return ended || s.seq > r.to // a change of the rate is a cut, too
}

// dueRates are the rates that are due. Recordings raise them and do not lower them:
// what they get is delivered to everybody. Memory goes before them.
func (s *Service) dueRates() frequencies {
	r := frequencies{rest: s.budget.rate}
	s.mu.Lock()
	for rec := range s.recording {
		if rec.target == nil {
			r.all = max(r.all, rec.hz)
		}
	}
	r.rest = max(r.rest, r.all)
	r.hz = r.rest
	for rec := range s.recording {
		if rec.target != nil && rec.hz > 0 { // a slow one, too: its target may have a rate of its own
			r.raised = append(r.raised, raised{s.memory.rate(rec.hz), s.who.target(rec.target)})
			r.hz = max(r.hz, rec.hz)
		}
	}
	s.mu.Unlock()
	r.hz, r.rest = s.memory.rate(r.hz), s.memory.rate(r.rest)
	return r
}

// awaited says whether somebody records.
func (s *Service) awaited() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.recording) > 0
}

// publish gives a named segment to the recordings that want it.
func (s *Service) publish(seg Segment) {
	most := s.memory.size() / recordingShare
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := range s.recording {
		if seg.Seq >= r.from && (!r.known || seg.Seq <= r.to) {
			r.add(seg, most)
		}
		if r.err != nil || r.known && seg.Seq >= r.to {
			delete(s.recording, r)
			close(r.done)
		}
	}
}

// add adds a segment, or gives up when that is too much.
func (r *recorder) add(seg Segment, most int64) {
	if r.wanted != nil {
		seg.Profiles = r.wanted(seg.Profiles)
	}
	r.bytes += segmentBytes
	for _, p := range seg.Profiles {
		r.bytes += int64(len(p.Samples)) * sampleBytes
	}
	if r.bytes > most {
		r.segments, r.err = nil, ErrTooLarge
		return
	}
	r.segments = append(r.segments, seg)
}
