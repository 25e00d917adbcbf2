package spool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kalypso-dev/kalypso/exporter"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		child(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

var errAway = errors.New("connection refused")

// request is a request that says which one it is. Every one has another number
// of samples.
func request(n int) *exporter.Request {
	return &exporter.Request{
		Time:     time.Now(),
		Profiles: 3,
		Samples:  uint64(1000 + n),
		Body:     fmt.Appendf(nil, "request %d", n),
	}
}

// incompressible is a request whose file is about as long as it says.
func incompressible(n, size int) *exporter.Request {
	r := request(n)
	x := uint64(n)*2862933555777941757 + 3037000493
	for len(r.Body) < size {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		r.Body = append(r.Body, byte(x>>32))
	}
	return r
}

// number is the n of the request.
func number(r *exporter.Request) int {
	var n int
	if _, err := fmt.Sscanf(string(r.Body), "request %d", &n); err != nil {
		return -1
	}
	return n
}

// backend is a Sender that answers as it is told, and keeps account.
type backend struct {
	// answer is asked for each attempt, the first being 0; nil takes all.
	answer func(ctx context.Context, attempt int, r *exporter.Request) (exporter.Receipt, error)

	mu       sync.Mutex
	asked    []int       // numbers of requests, by attempt
	times    []time.Time // of attempts
	took     []int       // numbers of requests, as they were taken
	samples  uint64      // of those
	closings int
}

func (b *backend) Send(ctx context.Context, r *exporter.Request) (exporter.Receipt, error) {
	b.mu.Lock()
	attempt := len(b.asked)
	b.asked = append(b.asked, number(r))
	b.times = append(b.times, time.Now())
	b.mu.Unlock()
	var receipt exporter.Receipt
	if b.answer != nil {
		var err error
		if receipt, err = b.answer(ctx, attempt, r); err != nil {
			return receipt, err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.took = append(b.took, number(r))
	b.samples += r.Samples
	return receipt, nil
}

func (b *backend) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closings++
	return nil
}

// switched is a backend that is away until it is told to be back.
func switched() (b *backend, back func()) {
	var here atomic.Bool
	return &backend{answer: func(context.Context, int, *exporter.Request) (exporter.Receipt, error) {
		if !here.Load() {
			return exporter.Receipt{}, errAway
		}
		return exporter.Receipt{}, nil
	}}, func() { here.Store(true) }
}

// taken are the numbers of the requests that were taken, in order.
func (b *backend) taken() []int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.took)
}

// attempts are the numbers of the requests that came, in order.
func (b *backend) attempts() []int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.asked)
}

// when are the times of the attempts.
func (b *backend) when() []time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.times)
}

// gaps are the times between attempts.
func (b *backend) gaps() []time.Duration {
	var out []time.Duration
	times := b.when()
	for i := 1; i < len(times); i++ {
		out = append(out, times[i].Sub(times[i-1]))
	}
	return out
}

// lines is a logger's output.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) count(message string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), message)
}

// logTo gives a logger whose lines the test can count and a failed test shows.
func logTo(t *testing.T) (*slog.Logger, *lines) {
	l := &lines{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("\n" + l.text.String())
		}
	})
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug})), l
}

// open opens a spool that does not slow down a test, and closes it with the
// test.
func open(t *testing.T, cfg Config) *Spool {
	t.Helper()
	if cfg.Rate == 0 {
		cfg.Rate = 1 << 30
	}
	if cfg.Log == nil {
		cfg.Log, _ = logTo(t)
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		_ = s.Close(ended)
	})
	return s
}

// put puts requests by number and gives the sum of their samples.
func put(t *testing.T, s *Spool, numbers ...int) uint64 {
	t.Helper()
	var samples uint64
	for _, n := range numbers {
		r := request(n)
		samples += r.Samples
		if err := s.Put(r); err != nil {
			t.Fatal(err)
		}
	}
	return samples
}

// run runs the spool until the test ends.
func run(t *testing.T, s *Spool) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

// drain closes the spool once it has sent all that it can.
func drain(t *testing.T, s *Spool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
}

// balance checks that every sample is in one place, and that the spool and the
// backend agree on what arrived. It gives the figures.
func balance(t *testing.T, s *Spool, b *backend) Stats {
	t.Helper()
	st := s.Stats()
	in := st.Put
	in.add(st.Recovered)
	var out Count
	for _, n := range []Count{st.Delivered, st.PartlyAccepted, st.Refused, st.Expired, st.Evicted, st.Unreadable, st.Lost} {
		out.add(n)
	}
	for _, h := range []Held{st.Disk, st.Memory} {
		out.add(Count{uint64(h.Requests), h.Samples})
	}
	if in != out {
		t.Errorf("%+v came in, %+v is accounted for: %+v", in, out, st)
	}
	if b != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		if got := st.Delivered.Samples + st.PartlyAccepted.Samples; got != b.samples {
			t.Errorf("the spool counts %d samples as delivered, the backend took %d", got, b.samples)
		}
		if b.closings > 0 {
			t.Error("the spool closed a sender that is not its own")
		}
	}
	return st
}

// until polls for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never came true: %s", what)
		}
	}
}

func upTo(n int) []int {
	var out []int
	for i := range n {
		out = append(out, i)
	}
	return out
}

// names are what is in a folder.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// spoolFiles are the files of requests in a folder.
func spoolFiles(t *testing.T, dir string) []string {
	t.Helper()
	return slices.DeleteFunc(names(t, dir), func(name string) bool { return filepath.Ext(name) != ending })
}
