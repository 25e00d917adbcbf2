package pipeline

import (
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
)

// nameAll names segments and delivers them, until there are no more. It is the
// only goroutine that names.
func (s *Service) nameAll() {
	if s.cfg.Kernel {
		if err := s.nameKernel(); err != nil {
			s.failed(err)
		}
	}
	beat := time.NewTicker(time.Second)
	defer beat.Stop()
	for {
		s.ticks.naming()
		select {
		case seg, open := <-s.segments:
			if !open {
				return
			}
			s.name(seg)
		case <-beat.C:
		}
	}
}

// name names one segment, delivers it, and lets go of what nobody needs.
func (s *Service) name(seg *segment) {
	begin := time.Now()
	s.mu.Lock()
	keep := s.cfg.Keep
	s.mu.Unlock()
	list, orphans, filtered := s.profiles(seg.window, s.who.of, keep)
	seg.window = nil
	seg.Lost += orphans
	seg.Filtered = filtered
	for _, p := range list {
		p.Start, p.Duration, p.Frequency, p.Event, p.Host = seg.Start, seg.Duration, seg.Frequency, s.event, s.host
	}
	seg.Profiles = list
	s.tally(&seg.Segment, time.Since(begin))
	s.cfg.Deliver(seg.Segment)
	s.publish(seg.Segment)
	// What is queued may hold numbers of files that a sweep would give away.
	if seg.Last && len(s.segments) == 0 {
		s.sweep()
	}
	s.memory.named()
}

func (s *Service) tally(seg *Segment, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &s.stats
	if seg.Last {
		st.Windows++
	}
	st.Lost += seg.Lost
	st.Filtered += seg.Filtered
	st.NamingTime += took
	st.Workloads = len(seg.Profiles)
	for _, p := range seg.Profiles {
		addQuality(st, &p.Quality)
	}
}

func addQuality(st *ServiceStats, q *profiler.Quality) {
	st.Samples += q.Samples
	st.Frames += q.Frames
	st.FramesNamed += q.FramesNamed
	for i, n := range q.Stops {
		st.Stops[i] += n
	}
}

// minIdle is how long files are kept that no process has mapped any more: a
// script that starts the same program every few seconds finds it open.
const minIdle = time.Minute

// sweep lets go of what belongs to processes that have ended.
func (s *Service) sweep() {
	swept := s.table.Sweep(max(minIdle, 4*s.cfg.Window))
	s.symbols.Forget(swept.Executables)
	s.perfMaps.end(swept.Processes)
	s.who.end(swept.Processes)
}
