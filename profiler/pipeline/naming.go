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
	n := namer{Service: s}
	for {
		s.ticks.naming()
		wait := stuckNamingAfter / 10
		if len(n.late) > 0 {
			wait = hurry
		}
		select {
		case seg, open := <-s.segments:
			if !open {
				n.catchUp(time.Now().Add(patience))
				return
			}
			n.name(seg)
		case <-time.After(wait):
			n.catchUp(time.Now())
		}
	}
}

// namer is the goroutine that names.
type namer struct {
	*Service
	late []lateSegment // the oldest first
}

// lateSegment is one that somebody who records has, and that is not delivered yet.
type lateSegment struct {
	*segment
	begin time.Time // of its naming: the containers that were met by then are to be known
}

// name names one segment and delivers it. Where somebody records and names of
// containers are still to come, that one gets the segment as it is, and it is
// delivered with the names: to look on changes nothing of what is stored.
func (n *namer) name(seg *segment) {
	begin := time.Now()
	if !n.who.settle(n.ticks.naming, n.awaited) {
		n.publish(n.named(seg))
		n.late = append(n.late, lateSegment{seg, begin})
		n.catchUp(time.Now())
		return
	}
	n.catchUp(begin.Add(patience)) // what was met before it is known, too
	n.publish(n.deliver(seg, begin))
}

// catchUp delivers, in their order, segments whose containers are known or will have
// been waited for long enough at a time.
func (n *namer) catchUp(at time.Time) {
	for len(n.late) > 0 && n.who.waitFor(n.late[0].begin, at) <= 0 {
		first := n.late[0]
		n.late = n.late[1:]
		n.deliver(first.segment, first.begin)
	}
}

// named makes the profiles of a segment, by what is known now.
func (n *namer) named(seg *segment) Segment {
	n.mu.Lock()
	keep := n.cfg.Keep
	n.mu.Unlock()
	list, orphans, filtered := n.profiles(seg.window, seg.Frequency, n.who.of, keep)
	out := seg.Segment
	out.Lost += orphans
	out.Filtered += filtered
	for _, p := range list {
		p.Start, p.Duration, p.Event, p.Host = seg.Start, seg.Duration, n.event, n.host
	}
	out.Profiles = list
	return out
}

// deliver names a segment for good, delivers it, and lets go of what nobody needs.
func (n *namer) deliver(seg *segment, begin time.Time) Segment {
	out := n.named(seg)
	seg.window = nil
	n.tally(&out, time.Since(begin))
	n.cfg.Deliver(out)
	// What is queued may hold numbers of files that a sweep would give away.
	if out.Last && len(n.segments)+len(n.late) == 0 {
		n.sweep()
	}
	n.memory.named()
	return out
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
