package pipeline

import (
	"cmp"
	"maps"
	"slices"
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
		s.kernelNames.Store(s.symbols.Kernel)
	}
	beat := time.NewTicker(stuckNamingAfter / 10)
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
	s.who.settle(s.ticks.naming, s.awaited)
	s.mu.Lock()
	keep := s.cfg.Keep
	s.mu.Unlock()
	list, orphans, filtered := s.profiles(seg.window, seg.Frequency, s.who.of, keep)
	seg.window = nil
	seg.Lost += orphans
	seg.Filtered += filtered
	for _, p := range list {
		p.Start, p.Duration, p.Event, p.Host = seg.Start, seg.Duration, s.event, s.host
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
	st.Early += seg.Early
	st.NamingTime += took
	st.Workloads = len(seg.Profiles)
	for _, p := range seg.Profiles {
		st.Samples += p.Quality.Samples
		s.quality.Merge(&p.Quality)
	}
	s.quality.Lost = st.Lost
	if len(s.quality.UnnamedByModule) > maxUnnamed {
		s.quality.UnnamedByModule = most(s.quality.UnnamedByModule, maxUnnamed/2)
	}
}

// maxUnnamed bounds the modules of which it is known how many frames have no
// name; over it, the half with the fewest is forgotten.
const maxUnnamed = 1000

func most(counts map[string]uint64, n int) map[string]uint64 {
	names := slices.SortedFunc(maps.Keys(counts), func(a, b string) int { return cmp.Compare(counts[b], counts[a]) })
	kept := make(map[string]uint64, n)
	for _, name := range names[:n] {
		kept[name] = counts[name]
	}
	return kept
}

// Quality is that of all profiles since the service was started.
func (s *Service) Quality() profiler.Quality {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.quality
	q.UnnamedByModule = maps.Clone(q.UnnamedByModule)
	return q
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
