package sampler

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kalypso-dev/kalypso/bpf"
	"github.com/kalypso-dev/kalypso/bpf/bpftest"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/lang"
	"github.com/kalypso-dev/kalypso/profiler/lang/golang"
	"github.com/kalypso-dev/kalypso/profiler/lang/native"
	"github.com/kalypso-dev/kalypso/profiler/process"
	"github.com/kalypso-dev/kalypso/profiler/unwind"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tally keeps what a sampler gives.
type tally struct {
	mu     sync.Mutex
	added  map[Key]uint64
	counts map[Key]uint64
	stops  map[profiler.Stop]uint64
	stacks []Stack // without their slices, but for the last
	wrong  int     // stacks whose hash is not that of their frames
	sample string  // one of these
}

func newTally() *tally {
	return &tally{added: map[Key]uint64{}, counts: map[Key]uint64{}, stops: map[profiler.Stop]uint64{}}
}

func (s *tally) Add(x *Stack, n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.added[x.Key] += n
	s.stops[x.Stop] += n
	c := *x
	c.Kernel, c.User = slices.Clone(x.Kernel), slices.Clone(x.User)
	s.stacks = append(s.stacks, c)
	if hash(x) != x.Key.Hash {
		s.wrong++
		s.sample = fmt.Sprintf("%s: %d kernel and %d user frames, %s: hash %x, want %x", x.Comm, len(x.Kernel), len(x.User), x.Stop, x.Key.Hash, hash(x))
	}
}

func (s *tally) Count(k Key, n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[k] += n
}

// still is an unwinder that waits to be let go.
type still struct{ gate chan struct{} }

func (u still) Walk(dst []uint64, _ profiler.PID, _ *unwind.Copy) ([]uint64, profiler.Stop, error) {
	<-u.gate
	return append(dst, 77), profiler.StopRoot, nil
}
func (still) Sync() error { return nil }

func TestQueueOverflow(t *testing.T) {
	for name, stack := range map[string]int{"small": 64, "large": 64 << 10} {
		t.Run(name, func(t *testing.T) {
			var j job
			j.set(&Copy{Copy: unwind.Copy{Stack: make([]byte, stack)}}, make([]uint64, 3))
			testQueueOverflow(t, stack, uint64(min(queued, queuedBytes/j.bytes())))
		})
	}
}

// testQueueOverflow sends more copies of stack bytes than there is room for.
func testQueueOverflow(t *testing.T, stack int, room uint64) {
	sink, gate := newTally(), make(chan struct{})
	s := New(Config{Sink: sink, Unwinder: still{gate}, Failed: func(err error) { t.Error(err) }})
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.unwindCopies()
	}()
	const extra = 5
	raw := copyRecord(flagExact, []uint64{1, 2}, []uint64{3}, make([]byte, stack))
	var words []uint64
	for range room + extra + 1 { // one more may be in the unwinder's hands
		words, _ = s.record(raw, words)
	}
	if held := s.held.Load(); held > 2<<20 {
		t.Errorf("copies of %d bytes wait, more than 2 MiB", held)
	}
	over := s.Stats().Overflowed
	if over != extra && over != extra+1 {
		t.Errorf("%d copies overflowed, want %d or one more", over, extra)
	}
	if sink.stops[profiler.StopNoTable] != over || sink.wrong != 0 {
		t.Errorf("stops %v, %d wrong hashes: %s", sink.stops, sink.wrong, sink.sample)
	}
	for _, x := range sink.stacks {
		if !slices.Equal(x.Kernel, []uint64{1, 2}) || !slices.Equal(x.User, []uint64{3}) {
			t.Errorf("an overflowed copy keeps kernel frames %v and user frames %v", x.Kernel, x.User)
		}
	}
	close(gate)
	close(s.copies)
	<-done
	if st := s.Stats(); st.Copies != room+extra+1-over || sink.stops[profiler.StopRoot] != st.Copies {
		t.Errorf("%d copies unwound, %v", st.Copies, sink.stops)
	}
	if sink.wrong != 0 {
		t.Error(sink.sample)
	}
	if held := s.held.Load(); held != 0 {
		t.Errorf("%d bytes are said to wait", held)
	}
}

// A copy that waits while the rate changes is of the rate that it was taken at, and
// is no sample of the same stack taken later.
func TestCopyThatWaitsKeepsItsRate(t *testing.T) {
	sink, gate := &kept{}, make(chan struct{})
	close(gate)
	s := New(Config{Sink: sink, Unwinder: still{gate}, Failed: func(err error) { t.Error(err) }})
	raw := copyRecord(0, nil, []uint64{3}, nil)
	s.SetRate(999)
	s.record(raw, nil)
	s.SetRate(97)
	s.record(raw, nil)
	close(s.copies)
	s.unwindCopies()
	if len(sink.stacks) != 2 || sink.stacks[0].Late != 999 || sink.stacks[1].Late != 0 {
		t.Fatalf("%+v", sink.stacks)
	}
	if sink.stacks[0].Key == sink.stacks[1].Key {
		t.Error("samples of two rates are one stack")
	}
}

// kept is a sink that keeps what it gets.
type kept struct{ stacks []Stack }

func (k *kept) Add(s *Stack, _ uint64) { k.stacks = append(k.stacks, *s) }
func (k *kept) Count(Key, uint64)      {}

func TestBadRecordIsCounted(t *testing.T) {
	var told error
	s := New(Config{Sink: newTally(), Failed: func(err error) { told = err }})
	if _, counted := s.record([]byte{1, 2, 3}, nil); counted || s.Stats().BadRecords != 1 || !errors.Is(told, ErrTruncated) {
		t.Errorf("counted %v, stats %+v, told %v", counted, s.Stats(), told)
	}
}

type failing struct{ still }

var errWalk = errors.New("no")

func (failing) Walk(dst []uint64, _ profiler.PID, _ *unwind.Copy) ([]uint64, profiler.Stop, error) {
	return dst, profiler.StopNoTable, errWalk
}

func TestWalkThatFailsKeepsTheSample(t *testing.T) {
	var told error
	sink := newTally()
	s := New(Config{Sink: sink, Unwinder: failing{}, Failed: func(err error) { told = err }})
	s.record(copyRecord(0, nil, []uint64{3}, nil), nil)
	close(s.copies)
	s.unwindCopies()
	if !errors.Is(told, errWalk) || sink.stops[profiler.StopNoTable] != 1 {
		t.Errorf("told %v, stops %v", told, sink.stops)
	}
}

// burn keeps n threads busy with stacks of many depths until the test ends.
func burn(t *testing.T, n int) {
	stop := make(chan struct{})
	var all sync.WaitGroup
	var sum atomic.Int64 // or the compiler may leave the work out
	for range n {
		all.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			for depth := 0; ; depth++ {
				select {
				case <-stop:
					return
				default:
					sum.Add(int64(spin(depth % 200)))
				}
			}
		})
	}
	t.Cleanup(func() {
		close(stop)
		all.Wait()
	})
}

func spin(depth int) int {
	if depth > 0 {
		return spin(depth-1) + 1
	}
	x := 0
	for i := range 20000 {
		x ^= i * i
	}
	return x
}

// TestConservation holds what arrives to what the kernel side took: no sample
// is lost or doubled between them.
func TestConservation(t *testing.T) {
	bpftest.Require(t)
	tests := []struct {
		name string
		cfg  bpf.Config
	}{
		{"the whole machine", bpf.Config{KernelStacks: true}},
		{"by thread", bpf.Config{KernelStacks: true, ByThread: true}},
		{"by tail calls, as before Linux 5.17", bpf.Config{TailCalls: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			kernel, err := bpf.Load(tt.cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer kernel.Close()
			events, err := bpf.OpenSideband()
			if err != nil {
				t.Fatal(err)
			}
			defer events.Close()
			table := process.NewTable(&kernel.Tables, events, []lang.Runtime{golang.Runtime{}, native.Runtime{}})
			defer table.Close()
			sink := newTally()
			s := New(Config{
				Kernel: kernel, Unwinder: table, Sink: sink, Arch: process.HostArch,
				ByThread: tt.cfg.ByThread, Failed: func(err error) { t.Error(err) },
			})
			ctx, stop := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- s.Run(ctx) }()
			if err := kernel.Attach(999); err != nil {
				t.Fatal(err)
			}
			burn(t, 4)
			// Short-lived processes, so that slots come and go.
			for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
				// What was taken before a cut is with the sink.
				before, err := kernel.Counters()
				if err != nil {
					t.Fatal(err)
				}
				var at uint64
				if err := s.Cut(func() { at = s.Stats().Received }); err != nil {
					t.Fatal(err)
				}
				if at+before.LostRing+queued+1 < before.Samples {
					t.Fatalf("a cut left %d of %d samples in the kernel", before.Samples-at, before.Samples)
				}
				if err := exec.Command("/bin/true").Run(); err != nil {
					t.Fatal(err)
				}
			}
			kernel.Detach()
			stop()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			c, err := kernel.Counters()
			if err != nil {
				t.Fatal(err)
			}
			var added, counted, orphans uint64
			for _, n := range sink.added {
				added += n
			}
			for k, n := range sink.counts {
				counted += n
				if sink.added[k] == 0 {
					orphans += n
				}
			}
			t.Logf("%d samples: %d stacks sent, %d counted, %d lost; %d deferred, %d uncounted", c.Samples, added, counted, c.LostRing, c.Deferred, c.Uncounted)
			if c.Samples < 500 {
				t.Errorf("only %d samples at 999 Hz", c.Samples)
			}
			// One that is merged while the counts of its stack are read and deleted on
			// another CPU is in neither.
			if missed := int64(c.Samples - added - counted - c.LostRing); missed < 0 || missed > 3 {
				t.Errorf("%d sent + %d counted + %d lost are not the %d samples", added, counted, c.LostRing, c.Samples)
			}
			if got := s.Stats().Received; got != added+counted {
				t.Errorf("%d samples are said to be received, the sink has %d", got, added+counted)
			}
			if err := s.Cut(func() { t.Error("cut after the end") }); !errors.Is(err, ErrEnded) {
				t.Errorf("a cut after the end says: %v", err)
			}
			if orphans > c.LostRing {
				t.Errorf("%d samples counted for stacks that never came", orphans)
			}
			if sink.wrong > 0 {
				t.Errorf("%d stacks have another hash than the kernel side computed: %s", sink.wrong, sink.sample)
			}
			st := s.Stats()
			if st.BadRecords != 0 || st.FirstSample.IsZero() || st.Copies+st.Overflowed != c.Deferred {
				t.Errorf("stats %+v with %d copies sent", st, c.Deferred)
			}
			threads := map[profiler.TID]bool{}
			for k := range sink.added {
				if k.PID == profiler.PID(os.Getpid()) {
					threads[k.TID] = true
				}
			}
			if many := len(threads) >= 4; many != tt.cfg.ByThread {
				t.Errorf("%d threads are told apart", len(threads))
			}
		})
	}
}
