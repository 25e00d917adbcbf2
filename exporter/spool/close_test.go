package spool

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/exporter"
)

func TestCloseSendsWhatIsLeft(t *testing.T) {
	both(t, func(t *testing.T, dir string) {
		b := &backend{}
		s := open(t, Config{Sender: b, Dir: dir})
		put(t, s, 0, 1, 2)
		drain(t, s)
		if diff := cmp.Diff(upTo(3), b.taken()); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		balance(t, s, b)
		if err := s.Put(request(3)); !errors.Is(err, ErrClosed) {
			t.Errorf("Put after Close: %v", err)
		}
		s.Run(t.Context()) // ends at once
		drain(t, s)
		if st := balance(t, s, b); st.Put.Requests != 3 {
			t.Errorf("%+v", st)
		}
	})
}

func TestCloseInTheMiddleOfASend(t *testing.T) {
	t.Run("waits for the answer, and does not send again", func(t *testing.T) {
		both(t, func(t *testing.T, dir string) {
			b := &backend{answer: func(ctx context.Context, _ int, _ *exporter.Request) (exporter.Receipt, error) {
				select {
				case <-time.After(3 * time.Second):
					return exporter.Receipt{}, nil
				case <-ctx.Done():
					return exporter.Receipt{}, ctx.Err()
				}
			}}
			s := open(t, Config{Sender: b, Dir: dir})
			run(t, s)
			samples := put(t, s, 0, 1)
			time.Sleep(time.Second)
			start := time.Now()
			drain(t, s)
			if took := time.Since(start); took != 5*time.Second {
				t.Errorf("took %s", took)
			}
			if diff := cmp.Diff([]int{0, 1}, b.attempts()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if st := balance(t, s, b); st.Delivered.Samples != samples {
				t.Errorf("%+v", st)
			}
		})
	})
	t.Run("begins none in the second half of its time, where a folder keeps them", func(t *testing.T) {
		both(t, func(t *testing.T, dir string) {
			b := &backend{answer: func(ctx context.Context, _ int, _ *exporter.Request) (exporter.Receipt, error) {
				select {
				case <-time.After(3 * time.Second):
					return exporter.Receipt{}, nil
				case <-ctx.Done():
					return exporter.Receipt{}, ctx.Err()
				}
			}}
			s := open(t, Config{Sender: b, Dir: dir})
			run(t, s)
			put(t, s, 0, 1, 2, 3)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			start := time.Now()
			err := s.Close(ctx)
			took, attempts := time.Since(start), len(b.attempts())
			st := balance(t, s, b)
			if dir != "" && (err != nil || took != 6*time.Second || attempts != 2 || st.Disk.Requests != 2) {
				t.Errorf("%v after %s and %d attempts: %+v", err, took, attempts, st)
			}
			if dir == "" && (err == nil || took != 10*time.Second || attempts != 4 || st.Lost.Requests != 1) {
				t.Errorf("%v after %s and %d attempts: %+v", err, took, attempts, st)
			}
		})
	})
	t.Run("ends with its context, and the request waits for the next start", func(t *testing.T) {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			stalled := &backend{answer: func(ctx context.Context, _ int, _ *exporter.Request) (exporter.Receipt, error) {
				<-ctx.Done()
				return exporter.Receipt{}, ctx.Err()
			}}
			s := open(t, Config{Sender: stalled, Dir: dir})
			run(t, s)
			put(t, s, 0, 1)
			synctest.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			start := time.Now()
			if err := s.Close(ctx); err != nil {
				t.Error(err)
			}
			if took := time.Since(start); took != 5*time.Second {
				t.Errorf("took %s", took)
			}
			if st := balance(t, s, stalled); st.Disk.Requests != 2 || st.Retries != 0 {
				t.Errorf("%+v", st)
			}
			b := &backend{}
			s = open(t, Config{Sender: b, Dir: dir})
			drain(t, s)
			if diff := cmp.Diff([]int{0, 1}, b.taken()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	})
	t.Run("does not wait for a pause to be over", func(t *testing.T) {
		both(t, func(t *testing.T, dir string) {
			b := &backend{answer: func(_ context.Context, attempt int, _ *exporter.Request) (exporter.Receipt, error) {
				if attempt == 0 {
					return exporter.Receipt{}, &exporter.BusyError{Err: errAway, After: time.Minute}
				}
				return exporter.Receipt{}, nil
			}}
			s := open(t, Config{Sender: b, Dir: dir})
			run(t, s)
			put(t, s, 0, 1)
			time.Sleep(time.Second)
			start := time.Now()
			drain(t, s)
			if took := time.Since(start); took != 0 {
				t.Errorf("took %s", took)
			}
			if st := balance(t, s, b); st.Delivered.Requests != 2 {
				t.Errorf("%+v", st)
			}
		})
	})
}

func TestCloseOfASpoolThatHeldNothingIsSilent(t *testing.T) {
	log, text := logTo(t)
	dir := t.TempDir()
	drain(t, open(t, Config{Sender: &backend{}, Dir: dir, Log: log}))
	if n := text.count("level="); n != 0 {
		t.Errorf("%d lines in the log, want none", n)
	}
	s := open(t, Config{Sender: &backend{}, Dir: dir, Log: log})
	put(t, s, 0)
	drain(t, s)
	if n := text.count("the spool is closed"); n != 1 {
		t.Errorf("said %d times that a spool with a request is closed, want once", n)
	}
}

func TestCloseSaysWhatIsLostForWantOfAFolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, text := logTo(t)
		b := &backend{answer: func(context.Context, int, *exporter.Request) (exporter.Receipt, error) {
			return exporter.Receipt{}, errAway
		}}
		s := open(t, Config{Sender: b, Log: log})
		put(t, s, 0, 1)
		if err := s.Close(t.Context()); err == nil || !strings.Contains(err.Error(), "2001 samples in 2 requests") {
			t.Errorf("got %v", err)
		}
		if st := balance(t, s, b); st.Lost != (Count{2, 2001}) || st.Evicted != (Count{}) || len(b.attempts()) != 1 {
			t.Errorf("%+v", st)
		}
		if n, m := text.count("samples=2001 reason=\"there is no folder\""), text.count("no room in the spool"); n != 1 || m != 0 {
			t.Errorf("said %d times what is lost, and %d times that there is no room", n, m)
		}
	})
}

func TestTheEndOfItsContextEndsRun(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := &backend{answer: func(ctx context.Context, attempt int, _ *exporter.Request) (exporter.Receipt, error) {
			if attempt == 0 {
				<-ctx.Done()
				return exporter.Receipt{}, ctx.Err()
			}
			return exporter.Receipt{}, nil
		}}
		s := open(t, Config{Sender: b, Dir: dir})
		put(t, s, 0, 1)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		s.Run(ctx)
		if st := balance(t, s, b); st.Disk.Requests != 2 || st.Retries != 0 {
			t.Errorf("%+v", st)
		}
		run(t, s)
		synctest.Wait()
		if st := balance(t, s, b); st.Delivered.Requests != 2 {
			t.Errorf("%+v", st)
		}
	})
}

// TestEverythingAtOnce is for the race detector, and checks the sums.
func TestEverythingAtOnce(t *testing.T) {
	const putters, each = 4, 40
	b := &backend{answer: func(_ context.Context, attempt int, _ *exporter.Request) (exporter.Receipt, error) {
		switch attempt % 5 {
		case 1:
			return exporter.Receipt{}, errAway
		case 2:
			return exporter.Receipt{RejectedProfiles: 1}, nil
		case 3:
			return exporter.Receipt{}, &exporter.RefusedError{Err: errors.New("no")}
		}
		return exporter.Receipt{}, nil
	}}
	s := open(t, Config{
		Sender: b, Dir: t.TempDir(), MaxBytes: 60 * block,
		MinBackoff: time.Microsecond, MaxBackoff: time.Millisecond,
	})
	run(t, s)
	var wg sync.WaitGroup
	for p := range putters {
		wg.Go(func() {
			for n := range each {
				if err := s.Put(request(p*each + n)); err != nil {
					t.Error(err)
				}
				s.Stats()
			}
		})
	}
	wg.Wait()
	until(t, "nothing waits", func() bool { return s.Stats().Disk.Requests == 0 })
	n := uint64(putters * each)
	if st := balance(t, s, b); st.Put != (Count{n, 1000*n + n*(n-1)/2}) || st.Refused.Requests == 0 || st.PartlyAccepted.Requests == 0 {
		t.Errorf("%+v", st)
	}
}
