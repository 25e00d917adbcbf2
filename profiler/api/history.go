package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/kalypso-dev/kalypso/exporter/format"
	"github.com/kalypso-dev/kalypso/profiler"
)

// DefaultKeep is how long a History keeps what was recorded.
const DefaultKeep = 15 * time.Minute

// Segment is what was sampled in one stretch of time, at one rate.
type Segment struct {
	Start     time.Time
	Duration  time.Duration
	Frequency int
	Lost      uint64              // samples that were taken and lost; they are in no profile
	Profiles  []*profiler.Profile // one per workload; none when nothing ran
}

// History is the last minutes of what was recorded, in memory. It keeps each
// segment as a pprof file: a distinct stack takes some 120 bytes then, names
// included, and 1 KiB as profiler.Sample. What is older than it keeps, or over
// its budget of bytes, is evicted, the oldest first, and counted.
type History struct {
	keep time.Duration

	mu      sync.Mutex
	budget  int64
	bytes   int64
	kept    []*kept // in the order in which they were added
	evicted Evicted
}

// kept is a segment as it is kept. It is not changed once made.
type kept struct {
	from, to  time.Time
	frequency int
	samples   uint64
	lost      uint64
	file      []byte // of format.WriteProfilesFast; empty when nothing ran
}

// keptBytes is what a segment takes beside its file: the struct, its place in
// the list and the slack of its allocation.
const keptBytes = 256

func (k *kept) bytes() int64 { return int64(cap(k.file)) + keptBytes }

// Evicted counts segments that left a History.
type Evicted struct {
	Age    uint64 `json:"age"`    // older than what is kept
	Budget uint64 `json:"budget"` // the oldest of more bytes than the budget
}

// NewHistory is a history that keeps segments so long, and no more bytes than
// the budget.
func NewHistory(keep time.Duration, budget int64) *History {
	return &History{keep: keep, budget: budget}
}

// Add adds a closed segment. Its profiles are neither changed nor kept.
func (h *History) Add(s Segment) error {
	k := &kept{from: s.Start, to: s.Start.Add(s.Duration), frequency: s.Frequency, lost: s.Lost}
	if len(s.Profiles) > 0 {
		var file bytes.Buffer
		if err := format.WriteProfilesFast(&file, s.Profiles); err != nil {
			return fmt.Errorf("add to history: %w", err)
		}
		k.file = bytes.Clone(file.Bytes()) // without the buffer's slack
	}
	for _, p := range s.Profiles {
		k.samples += p.Quality.Samples
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.kept = append(h.kept, k)
	h.bytes += k.bytes()
	h.evict()
	return nil
}

// SetBudget changes how many bytes are kept, at once.
func (h *History) SetBudget(bytes int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.budget = bytes
	h.evict()
}

// evict takes away what is too much. Ages are counted from the end of the newest
// segment, not from now: what was last seen before sampling stopped stays to be
// looked at. A clock that was set back makes what is newer than the newest old.
func (h *History) evict() {
	for len(h.kept) > 0 {
		k, newest := h.kept[0], h.kept[len(h.kept)-1]
		switch {
		case newest.to.Sub(k.from) > h.keep || k.from.After(newest.to):
			h.evicted.Age++
		case h.bytes > h.budget:
			h.evicted.Budget++
		default:
			return
		}
		h.bytes -= k.bytes()
		h.kept = slices.Delete(h.kept, 0, 1) // which forgets the file
	}
}

// HistoryStats is what a History holds and what left it.
type HistoryStats struct {
	Segments int       `json:"segments"`
	From     time.Time `json:"from,omitzero"`
	To       time.Time `json:"to,omitzero"`
	Bytes    int64     `json:"bytes"`
	Budget   int64     `json:"budget_bytes"`
	Evicted  Evicted   `json:"evicted"`
}

// Stats counts.
func (h *History) Stats() HistoryStats {
	h.mu.Lock()
	defer h.mu.Unlock()
	st := HistoryStats{Segments: len(h.kept), Bytes: h.bytes, Budget: h.budget, Evicted: h.evicted}
	if len(h.kept) > 0 {
		st.From, st.To = h.kept[0].from, h.kept[len(h.kept)-1].to
	}
	return st
}

// Rates gives the rates of what is kept, the oldest first: segments that follow
// each other at one rate are one.
func (h *History) Rates() []Rate {
	h.mu.Lock()
	defer h.mu.Unlock()
	rates := []Rate{}
	for _, k := range h.kept {
		if n := len(rates); n > 0 && rates[n-1].Frequency == k.frequency {
			rates[n-1].To = k.to
			rates[n-1].Samples += k.samples
			rates[n-1].Lost += k.lost
			continue
		}
		rates = append(rates, Rate{From: k.from, To: k.to, Frequency: k.frequency, Samples: k.samples, Lost: k.lost})
	}
	return rates
}

// Range is what was recorded in some time, added up.
type Range struct {
	From, To time.Time // what the profiles cover; zero when nothing was recorded
	Lowest   int       // rate in it; the profiles have the highest
	// Cut says that it begins later than it was asked for, because there are too
	// many distinct stacks before.
	Cut bool
	// Profiles are one per workload, each over the whole range, or one of all.
	// There is always one when something was recorded. Samples that were lost are
	// counted in the first: nobody knows whose they were.
	Profiles []*profiler.Profile
}

// Whole is the range as one profile.
func (r *Range) Whole() *profiler.Profile {
	if len(r.Profiles) == 1 {
		return r.Profiles[0]
	}
	return format.Merge(r.Profiles...)
}

// What a distinct stack takes until it is on a page: to be added up, with names
// and locations, and to be drawn. One of 30 frames takes 2.6 KiB. So much is read
// at once as takes one and a half times what a history keeps, and never so little
// that a minute of a small machine is too much.
const (
	stackBytes   = 512
	frameBytes   = 72
	minReadBytes = 12 << 20
)

// Selection says what of a range is wanted, and how.
type Selection struct {
	Filter
	Whole bool // as one profile, not one per workload
	// Part is the part of what is read at once that may be read, as 1/Part: of
	// what takes more memory to be shown than a page. 0 is all of it.
	Part int64
}

// Between gives what was recorded from one time to another, added up. A segment
// is taken whole or not at all: when at least half of it, or of the range, lies
// in the other. One at a time is inflated, the newest first. When there are too
// many distinct stacks, what is older is left out. The newest is always read, and
// ErrTooLarge is the answer when it alone is over twice the limit.
//
// The memory is that of one call. Whoever calls it for others sees to it that
// they do so one after the other.
func (h *History) Between(ctx context.Context, from, to time.Time, sel Selection) (*Range, error) {
	list := h.within(from, to)
	most := h.mostRead() / max(sel.Part, 1)
	s := summer{Merger: format.Merger{Whole: sel.Whole}, filter: sel.Filter}
	cut := false
	for i, k := range slices.Backward(list) {
		if cut = i < len(list)-1 && s.bytes() >= most; cut {
			break
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		seg := Segment{Start: k.from, Duration: k.to.Sub(k.from), Frequency: k.frequency, Lost: k.lost}
		if len(k.file) > 0 {
			var err error
			if seg.Profiles, err = format.ReadProfiles(bytes.NewReader(k.file)); err != nil {
				return nil, fmt.Errorf("read history: %w", err)
			}
		}
		s.add(seg)
		list[i] = nil // evicted meanwhile, it may go
	}
	if err := s.fits(most); err != nil {
		return nil, err
	}
	r := s.sum()
	r.Cut = cut
	return r, nil
}

// mostRead is how many bytes what is read at once may need.
func (h *History) mostRead() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return max(h.budget*3/2, minReadBytes)
}

// within gives the segments of a range.
func (h *History) within(from, to time.Time) (list []*kept) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, k := range h.kept {
		begin, end := k.from, k.to
		if from.After(begin) {
			begin = from
		}
		if to.Before(end) {
			end = to
		}
		if common := end.Sub(begin); common > 0 && 2*common >= min(k.to.Sub(k.from), to.Sub(from)) {
			list = append(list, k)
		}
	}
	return list
}

// Newest gives the time of the newest segments that cover d, or all there are.
// Both ends are zero when there are none.
func (h *History) Newest(d time.Duration) (from, to time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, k := range slices.Backward(h.kept) {
		if to.IsZero() {
			to = k.to
		}
		from = k.from
		// A segment that began some milliseconds late is not worth another one.
		if to.Sub(from) >= d-d/20 {
			break
		}
	}
	return from, to
}

// summer adds up segments.
type summer struct {
	format.Merger
	filter  Filter
	r       Range
	covered time.Duration
	rate    int
	lost    uint64
}

func (s *summer) add(seg Segment) {
	lowest := seg.Frequency // a share of them has a lower rate of its own
	for _, p := range s.filter.Apply(seg.Profiles) {
		s.Add(p)
		lowest = min(lowest, p.Frequency)
	}
	if s.r.From.IsZero() || seg.Start.Before(s.r.From) {
		s.r.From = seg.Start
	}
	if end := seg.Start.Add(seg.Duration); end.After(s.r.To) {
		s.r.To = end
	}
	s.covered += seg.Duration
	s.rate = max(s.rate, seg.Frequency)
	if s.r.Lowest == 0 || lowest < s.r.Lowest {
		s.r.Lowest = lowest
	}
	s.lost += seg.Lost
}

// bytes is what it will take to draw what was added.
func (s *summer) bytes() int64 {
	samples, frames := s.Size()
	return int64(samples)*stackBytes + int64(frames)*frameBytes
}

// ErrTooLarge says that there are too many stacks, or too deep ones.
var ErrTooLarge = errors.New("too many stacks, or too deep ones")

// fits says whether what was added is not far over the limit: a segment may go
// over it.
func (s *summer) fits(most int64) error {
	if n := s.bytes(); n > 2*most {
		return fmt.Errorf("%w: it would take %d MiB", ErrTooLarge, n>>20)
	}
	return nil
}

func (s *summer) sum() *Range {
	if s.covered > 0 {
		s.r.Profiles = s.Profiles()
		if len(s.r.Profiles) == 0 {
			s.r.Profiles = []*profiler.Profile{{Frequency: s.rate}}
		}
		s.r.Profiles[0].Quality.Lost += s.lost
	}
	// A workload that ran in a part of the range used no CPU in the rest.
	for _, p := range s.r.Profiles {
		p.Start, p.Duration = s.r.From, s.covered
	}
	return &s.r
}
