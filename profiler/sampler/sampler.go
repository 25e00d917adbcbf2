// Package sampler turns what the kernel side sends into samples. It owns the
// ring buffer and the copies of stacks on their way to be unwound; it knows
// nothing of names.
//
// Two goroutines: one empties the ring buffer and never waits for anything
// else, the other unwinds copies, which may mean reading files. Between them
// is a bounded queue: what does not fit is kept as a sample without its user
// frames, and counted.
package sampler

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/unwind"
)

// Sink takes samples. Its methods are called from two goroutines.
type Sink interface {
	// Add takes n samples of a stack, whose slices it must copy.
	Add(s *Stack, n uint64)
	// Count takes n more samples of a stack that was or will be given to Add.
	Count(k Key, n uint64)
}

// Unwinder walks copied stacks.
type Unwinder interface {
	Walk(dst []uint64, pid profiler.PID, c *unwind.Copy) ([]uint64, profiler.Stop, error)
	Sync() error
}

// Config of a Sampler.
type Config struct {
	Kernel   *bpf.Kernel
	Unwinder Unwinder
	Sink     Sink
	Arch     unwind.Arch
	ByThread bool
	// Failed is told of errors that cost samples or precision, not more.
	Failed func(error)
	// Tick, if set, is called once a second while samples are read, Made for each
	// cgroup that is made, before the samples of what is in it.
	Tick func()
	Made func(c bpf.Cgroup, path string)
}

// Sampler reads samples until it is stopped.
type Sampler struct {
	Config
	copies chan *job
	held   atomic.Int64 // bytes of the copies that are queued or being unwound
	rate   atomic.Int64 // that events fire at, as far as it was told
	pool   sync.Pool

	cutting sync.Mutex    // one at a time
	cuts    chan cut      // holds one
	syncs   chan struct{} // holds one: the process table is to be kept fresh
	ended   chan struct{} // closed when nothing is read any more

	mu    sync.Mutex
	stats Stats
}

// Stats count what went through.
type Stats struct {
	FirstSample time.Time // when the first one was read
	Received    uint64    // samples handed to the sink
	Copies      uint64    // stacks unwound in user space
	Overflowed  uint64    // copies dropped because the queue was full: samples without user frames
	BadRecords  uint64
	Busy        time.Duration // CPU time to read and unwind samples: see maxBusy
}

// job is a copy in memory of its own.
type job struct {
	Copy
	words []uint64
	stack []byte
	rate  int64 // that events fired at
}

func (j *job) bytes() int64 { return int64(unsafe.Sizeof(*j)) + int64(8*cap(j.words)+cap(j.stack)) }

// set takes c over; words holds its frames.
func (j *job) set(c *Copy, words []uint64) {
	j.Copy, j.words, j.stack = *c, append(j.words[:0], words...), append(j.stack[:0], c.Copy.Stack...)
	kernel := len(c.Kernel)
	j.Kernel, j.User, j.Copy.Copy.Stack = j.words[:kernel:kernel], j.words[kernel:], j.stack
}

// cut is something to be done between two records.
type cut struct {
	fn   func()
	done chan error
}

// ErrEnded says that the sampler does not run any more.
var ErrEnded = errors.New("sampling has ended")

// What waits to be unwound at most. A copy has 64 KiB at most and mostly a few
// KiB, so it is their bytes that are bounded: where all CPUs are taken the first
// table of a program takes long to build, and samples go on to come.
const (
	queued      = 1024
	queuedBytes = 2 << 20
	pooledBytes = 8 << 10 // a larger one is not kept for the next copy
)

// poll is how often the ring buffer is looked into when it fills slowly: what
// needs no haste does not wake us. Where nothing runs it is less often, down to
// slowPoll, because a wake-up costs more than all that it finds.
const (
	poll     = 100 * time.Millisecond
	slowPoll = 800 * time.Millisecond
)

// maxBusy is the most that counts of one sample. A copied stack takes 20 to 50
// µs to unwind; what takes longer read a file and built rows that no other sample
// will have to.
const maxBusy = 100 * time.Microsecond

// followCPUs is how often the list of CPUs is looked at.
const followCPUs = 5 * time.Second

// New makes a sampler.
func New(c Config) *Sampler {
	s := &Sampler{Config: c, copies: make(chan *job, queued), cuts: make(chan cut, 1), syncs: make(chan struct{}, 1), ended: make(chan struct{})}
	s.pool.New = func() any { return &job{} }
	return s
}

// Stats tells what went through so far.
func (s *Sampler) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// Run reads until ctx ends, then reads what is left and gives the last counts
// to the sink. The caller has stopped the events by then.
func (s *Sampler) Run(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.unwindCopies()
	}()
	// The reader may be waiting for samples that will not come.
	awake := context.AfterFunc(ctx, func() { _ = s.Kernel.Flush() }) // if it fails, the end takes a moment longer
	err := s.read(ctx)
	awake()
	close(s.ended)
	close(s.copies)
	<-done
	return err
}

// SetRate tells the rate that events fire at from now on. What was taken before it
// and is still being unwound is marked with the rate that it was taken at.
func (s *Sampler) SetRate(hz int) { s.rate.Store(int64(hz)) }

// Cut calls fn between two samples: what was taken before is with the sink by
// then, but for copies of stacks that are still being unwound. It waits for fn.
func (s *Sampler) Cut(fn func()) error {
	s.cutting.Lock()
	defer s.cutting.Unlock()
	c := cut{fn, make(chan error, 1)}
	select {
	case s.cuts <- c:
	case <-s.ended:
		return ErrEnded
	}
	// The reader may be waiting for the ring buffer to fill. If it cannot be
	// woken it comes by itself, a moment later.
	flushed := s.Kernel.Flush()
	select {
	case err := <-c.done:
		return err
	case <-s.ended:
		if flushed != nil {
			return fmt.Errorf("cut the stream of samples: %w", errors.Join(ErrEnded, flushed))
		}
		return ErrEnded
	}
}

// cut does what waits to be done.
func (s *Sampler) cut() {
	select {
	case c := <-s.cuts:
		err := s.drain()
		c.fn()
		c.done <- err
	default:
	}
}

func (s *Sampler) read(ctx context.Context) error {
	var rec ringbuf.Record
	var words []uint64
	fresh := 0 // stacks that the kernel side counts and we have not asked about
	const drainAt = 8192
	tick, synced, followed := time.Now(), time.Now(), time.Now()
	pause := poll
	for {
		s.Kernel.SetDeadline(time.Now().Add(pause))
		err := s.Kernel.Read(&rec)
		switch {
		case errors.Is(err, ringbuf.ErrFlushed):
			s.cut()
			if ctx.Err() != nil {
				return s.drain()
			}
		case errors.Is(err, os.ErrDeadlineExceeded):
			s.cut()
			if ctx.Err() != nil {
				return s.drain()
			}
			pause = min(2*pause, slowPoll)
		case err != nil:
			return fmt.Errorf("read samples: %w", err)
		default:
			pause = poll
			var counted bool
			began := threadTime()
			if words, counted = s.record(rec.RawSample, words); counted {
				fresh++
			}
			s.busy(began)
		}
		if fresh >= drainAt {
			fresh = 0
			if err := s.drain(); err != nil {
				return err
			}
		}
		now := time.Now()
		if now.Sub(synced) >= poll {
			synced = now
			select {
			case s.syncs <- struct{}{}:
			default: // it is at it, or behind
			}
		}
		if now.Sub(tick) > time.Second {
			tick = now
			if s.Tick != nil {
				s.Tick()
			}
			if err := s.Kernel.Tick(); err != nil {
				s.Failed(err)
			}
		}
		if now.Sub(followed) > followCPUs {
			followed = now
			if err := s.Kernel.SyncCPUs(); err != nil {
				s.Failed(err)
			}
		}
	}
}

// drain takes the counts out of the kernel.
func (s *Sampler) drain() error {
	return s.Kernel.DrainCounts(func(k bpf.Key, n uint64) {
		if n > 0 {
			s.Sink.Count(Key{Hash: k.Hash, PID: profiler.PID(k.PID), TID: profiler.TID(k.TID)}, n)
			s.received(n)
		}
	})
}

func (s *Sampler) received(n uint64) {
	s.mu.Lock()
	s.stats.Received += n
	s.mu.Unlock()
}

// busy counts what a sample took since began. The goroutine may have gone on in
// another thread, whose time is another: then it is anything up to maxBusy.
func (s *Sampler) busy(began time.Duration) {
	took := min(max(threadTime()-began, 0), maxBusy)
	s.mu.Lock()
	s.stats.Busy += took
	s.mu.Unlock()
}

// threadTime is the CPU time of this thread. The clock on the wall would count
// what waits for a CPU, too, where all are busy.
func threadTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// add hands one sample to the sink.
func (s *Sampler) add(st *Stack) {
	s.Sink.Add(st, 1)
	s.received(1)
}

// record handles one record; counted says that the kernel side now counts it.
func (s *Sampler) record(raw []byte, words []uint64) (_ []uint64, counted bool) {
	if len(raw) > 0 && raw[0] == recordMade {
		s.made(raw)
		return words, false
	}
	s.mu.Lock()
	if s.stats.FirstSample.IsZero() {
		s.stats.FirstSample = time.Now()
	}
	s.mu.Unlock()
	c, isCopy, words, err := decode(raw, words, s.ByThread)
	if err != nil {
		s.mu.Lock()
		s.stats.BadRecords++
		s.mu.Unlock()
		s.Failed(err)
		return words, false
	}
	if !isCopy {
		s.add(&c.Stack)
		return words, c.Counted
	}
	if !s.queue(&c, words) {
		s.mu.Lock()
		s.stats.Overflowed++
		s.mu.Unlock()
		c.Stop = profiler.StopNoTable
		c.Key.Hash = hash(&c.Stack)
		s.add(&c.Stack)
	}
	return words, false
}

// made tells of a cgroup that was made.
func (s *Sampler) made(raw []byte) {
	c, path, err := decodeMade(raw)
	switch {
	case err != nil:
		s.Failed(err)
	case s.Made != nil:
		s.Made(c, path)
	}
}

// queue has a copied stack unwound, if there is room for it.
func (s *Sampler) queue(c *Copy, words []uint64) bool {
	j := s.pool.Get().(*job)
	j.set(c, words)
	j.rate = s.rate.Load()
	if s.held.Add(j.bytes()) <= queuedBytes {
		select {
		case s.copies <- j:
			return true
		default:
		}
	}
	s.release(j)
	return false
}

func (s *Sampler) release(j *job) {
	bytes := j.bytes()
	s.held.Add(-bytes)
	if bytes <= pooledBytes {
		s.pool.Put(j)
	}
}

// unwindCopies unwinds what is queued, and keeps the process table fresh when
// nothing is.
func (s *Sampler) unwindCopies() {
	var user []uint64
	for {
		select {
		case j, open := <-s.copies:
			if !open {
				return
			}
			began := threadTime()
			user = s.unwind(j, user[:0])
			s.busy(began)
			s.release(j)
		case <-s.syncs:
			if err := s.Unwinder.Sync(); err != nil {
				s.Failed(err)
			}
		}
	}
}

func (s *Sampler) unwind(j *job, user []uint64) []uint64 {
	c := &j.Copy
	c.Arch = s.Arch
	user = append(user, c.User...)
	var err error
	user, c.Stop, err = s.Unwinder.Walk(user, c.Key.PID, &c.Copy)
	if err != nil {
		s.Failed(err)
	}
	c.User = user
	c.Key.Hash = hash(&c.Stack)
	if j.rate != s.rate.Load() {
		c.Late = int(j.rate)
		c.Key.Hash = mix(c.Key.Hash, uint64(j.rate))
	}
	s.mu.Lock()
	s.stats.Copies++
	s.mu.Unlock()
	s.add(&c.Stack)
	return user
}
