package spool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/exporter"
)

// Time in these tests is that of testing/synctest; the files are real ones.

// both runs a test with a folder and with none.
func both(t *testing.T, test func(t *testing.T, dir string)) {
	t.Run("folder", func(t *testing.T) {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) { test(t, dir) })
	})
	t.Run("memory", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { test(t, "") })
	})
}

func TestRequestsAreSentInOrder(t *testing.T) {
	both(t, func(t *testing.T, dir string) {
		b := &backend{}
		s := open(t, Config{Sender: b, Dir: dir})
		samples := put(t, s, upTo(20)...)
		run(t, s)
		synctest.Wait()
		samples += put(t, s, 20)
		synctest.Wait()
		if diff := cmp.Diff(upTo(21), b.taken()); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		st := balance(t, s, b)
		if st.Delivered != (Count{21, samples}) || st.Retries != 0 || st.Backend != BackendReachable || !st.LastSuccess.Equal(time.Now()) {
			t.Errorf("%+v", st)
		}
		if dir != "" && len(spoolFiles(t, dir)) > 0 {
			t.Errorf("left in the folder: %v", spoolFiles(t, dir))
		}
	})
}

func TestAnEntryIsOnDiskUntilItIsDelivered(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		during := -1
		b := &backend{answer: func(context.Context, int, *exporter.Request) (exporter.Receipt, error) {
			during = len(spoolFiles(t, dir))
			return exporter.Receipt{}, nil
		}}
		s := open(t, Config{Sender: b, Dir: dir})
		run(t, s)
		put(t, s, 1)
		synctest.Wait()
		if during != 1 {
			t.Errorf("%d files while it was sent", during)
		}
		if st := balance(t, s, b); st.Disk.Requests != 0 || len(spoolFiles(t, dir)) != 0 {
			t.Errorf("not gone after it was sent: %+v", st)
		}
	})
}

func TestNothingIsLostWhileTheBackendIsAway(t *testing.T) {
	both(t, func(t *testing.T, dir string) {
		start := time.Now()
		b := &backend{answer: func(context.Context, int, *exporter.Request) (exporter.Receipt, error) {
			if time.Since(start) < time.Minute {
				return exporter.Receipt{}, errAway
			}
			return exporter.Receipt{}, nil
		}}
		log, text := logTo(t)
		s := open(t, Config{Sender: b, Dir: dir, Log: log})
		run(t, s)
		var samples uint64
		for n := range 6 {
			time.Sleep(15 * time.Second)
			samples += put(t, s, n)
		}
		synctest.Wait()
		if diff := cmp.Diff(upTo(6), b.taken()); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		st := balance(t, s, b)
		if st.Delivered.Samples != samples || st.Retries == 0 {
			t.Errorf("%d samples put, %+v", samples, st)
		}
		if n, m := text.count("takes no requests"), text.count("takes requests again"); n != 1 || m != 1 {
			t.Errorf("said %d times that it is away, %d times that it is back", n, m)
		}
	})
}

func TestBackendThatFlaps(t *testing.T) {
	both(t, func(t *testing.T, dir string) {
		b := &backend{answer: func(_ context.Context, attempt int, _ *exporter.Request) (exporter.Receipt, error) {
			if attempt%3 != 0 {
				return exporter.Receipt{}, errAway
			}
			return exporter.Receipt{}, nil
		}}
		s := open(t, Config{Sender: b, Dir: dir})
		run(t, s)
		var samples uint64
		for n := range 100 {
			time.Sleep(15 * time.Second)
			samples += put(t, s, n)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if diff := cmp.Diff(upTo(100), b.taken()); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		if st := balance(t, s, b); st.Delivered.Samples != samples {
			t.Errorf("%d samples put, %+v", samples, st)
		}
	})
}

func TestPausesGrowAndAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &backend{answer: func(context.Context, int, *exporter.Request) (exporter.Receipt, error) {
			return exporter.Receipt{}, errAway
		}}
		s := open(t, Config{Sender: b})
		run(t, s)
		put(t, s, 1)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		gaps := b.gaps()
		if len(gaps) < 20 {
			t.Fatalf("only %d attempts in ten minutes", len(gaps)+1)
		}
		different := false
		for i, gap := range gaps {
			want := min(time.Second<<min(i, 10), 20*time.Second)
			if gap < want/2 || gap > want*3/2 {
				t.Errorf("pause %d is %s, want %s give or take half", i, gap, want)
			}
			different = different || i > 10 && gap != gaps[10]
		}
		if !different {
			t.Error("pauses are all the same: agents would come back together")
		}
		if st := balance(t, s, b); st.Backend != BackendUnreachable || st.SendError != errAway.Error() || int(st.Retries) != len(gaps)+1 {
			t.Errorf("%+v", st)
		}
	})
}

func TestABusyBackendIsLeftAlone(t *testing.T) {
	for _, tt := range []struct {
		asks, min, max time.Duration
	}{
		{40 * time.Second, 40 * time.Second, 41 * time.Second},
		{time.Hour, maxBusy, maxBusy + time.Second},
		{0, time.Second / 2, 3 * time.Second / 2},
		{-time.Hour, time.Second / 2, 3 * time.Second / 2},
	} {
		t.Run(tt.asks.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &backend{answer: func(_ context.Context, attempt int, _ *exporter.Request) (exporter.Receipt, error) {
					if attempt == 0 {
						return exporter.Receipt{}, fmt.Errorf("send: %w", &exporter.BusyError{Err: errors.New("429"), After: tt.asks})
					}
					return exporter.Receipt{}, nil
				}}
				s := open(t, Config{Sender: b})
				run(t, s)
				put(t, s, 1)
				synctest.Wait()
				if st := s.Stats(); st.Backend != BackendBusy {
					t.Errorf("%+v", st)
				}
				time.Sleep(6 * time.Minute)
				if gaps := b.gaps(); len(gaps) != 1 || gaps[0] < tt.min || gaps[0] > tt.max {
					t.Errorf("waited %v, want %s to %s", gaps, tt.min, tt.max)
				}
				if st := balance(t, s, b); st.Delivered.Requests != 1 || st.Backend != BackendReachable {
					t.Errorf("%+v", st)
				}
			})
		})
	}
}

func TestARefusedRequestIsSetAsideAndNotRetried(t *testing.T) {
	both(t, func(t *testing.T, dir string) {
		b := &backend{answer: func(_ context.Context, _ int, r *exporter.Request) (exporter.Receipt, error) {
			if number(r) == 1 {
				return exporter.Receipt{}, fmt.Errorf("send: %w", &exporter.RefusedError{Err: errors.New("too many label names")})
			}
			return exporter.Receipt{}, nil
		}}
		log, text := logTo(t)
		s := open(t, Config{Sender: b, Dir: dir, Log: log})
		put(t, s, 0, 1, 2)
		run(t, s)
		time.Sleep(time.Hour)
		synctest.Wait()
		if diff := cmp.Diff([]int{0, 1, 2}, b.attempts()); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		st := balance(t, s, b)
		if st.Refused != (Count{1, 1001}) || st.Retries != 0 || st.Backend != BackendReachable || !strings.Contains(st.SendError, "too many label names") {
			t.Errorf("%+v", st)
		}
		if text.count("too many label names") != 1 {
			t.Error("the log does not say why, or says so more than once")
		}
		if dir == "" {
			return
		}
		aside := spoolFiles(t, filepath.Join(dir, rejectedDir))
		if len(aside) != 1 || st.SetAsideFiles != 1 || st.SetAsideBytes == 0 {
			t.Fatalf("set aside: %v, %+v", aside, st)
		}
		file, err := os.ReadFile(filepath.Join(dir, rejectedDir, aside[0]))
		if err != nil {
			t.Fatal(err)
		}
		if r, err := decode(file); err != nil || number(r) != 1 {
			t.Errorf("not the request that was refused: %v, %v", r, err)
		}
	})
}

func TestAPartlyAcceptedRequestIsNotSentAgain(t *testing.T) {
	both(t, func(t *testing.T, dir string) {
		b := &backend{answer: func(_ context.Context, _ int, r *exporter.Request) (exporter.Receipt, error) {
			if number(r) == 1 {
				return exporter.Receipt{RejectedProfiles: 2, Message: "too old"}, nil
			}
			return exporter.Receipt{}, nil
		}}
		s := open(t, Config{Sender: b, Dir: dir})
		put(t, s, 0, 1, 2)
		run(t, s)
		time.Sleep(time.Hour)
		if diff := cmp.Diff([]int{0, 1, 2}, b.attempts()); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		st := balance(t, s, b)
		if st.PartlyAccepted != (Count{1, 1001}) || st.RejectedProfiles != 2 || st.Delivered.Requests != 2 || st.SetAsideFiles != 0 {
			t.Errorf("%+v", st)
		}
	})
}

func TestARequestOfWhichNothingIsAcceptedCountsAsRefused(t *testing.T) {
	both(t, func(t *testing.T, dir string) {
		b := &backend{answer: func(context.Context, int, *exporter.Request) (exporter.Receipt, error) {
			return exporter.Receipt{RejectedProfiles: 3, Message: "too old"}, nil
		}}
		s := open(t, Config{Sender: b, Dir: dir})
		put(t, s, 1)
		run(t, s)
		time.Sleep(time.Hour)
		st := balance(t, s, nil)
		if st.Refused != (Count{1, 1001}) || st.RejectedProfiles != 3 || len(b.attempts()) != 1 || (st.SetAsideFiles == 1) != (dir != "") {
			t.Errorf("%+v", st)
		}
	})
}

func TestWhatIsTooOldIsDroppedAndSaid(t *testing.T) {
	both(t, func(t *testing.T, dir string) {
		b, back := switched()
		log, text := logTo(t)
		s := open(t, Config{Sender: b, Dir: dir, Log: log})
		run(t, s)
		var samples uint64
		for n := range 100 {
			samples += put(t, s, n)
			time.Sleep(time.Minute)
		}
		st := balance(t, s, b)
		if st.Expired.Requests < 40 || st.Expired.Requests > 42 || time.Since(st.Oldest) > time.Hour {
			t.Errorf("after 100 minutes: %+v", st)
		}
		if text.count("older than the backend accepts") == 0 {
			t.Error("the log does not say so")
		}
		back()
		time.Sleep(time.Minute)
		synctest.Wait()
		st = balance(t, s, b)
		if st.Delivered.Samples+st.Expired.Samples != samples || st.Delivered.Requests < 58 {
			t.Errorf("%d samples put, %+v", samples, st)
		}
		if !slices.IsSorted(b.taken()) {
			t.Errorf("out of order: %v", b.taken())
		}
	})
}

func TestNothingTooOldIsSent(t *testing.T) {
	both(t, func(t *testing.T, dir string) {
		b, back := switched()
		s := open(t, Config{Sender: b, Dir: dir})
		run(t, s)
		put(t, s, 0)
		time.Sleep(time.Hour)
		synctest.Wait()
		back()
		time.Sleep(time.Hour)
		if st := balance(t, s, b); st.Expired != (Count{1, 1000}) || st.Delivered.Requests != 0 {
			t.Errorf("%+v", st)
		}
	})
}

func TestARequestThatGrowsTooOldWhileItIsSentCountsAsWhatBecomesOfIt(t *testing.T) {
	both(t, func(t *testing.T, dir string) {
		b := &backend{answer: func(context.Context, int, *exporter.Request) (exporter.Receipt, error) {
			time.Sleep(2 * time.Hour)
			return exporter.Receipt{}, nil
		}}
		s := open(t, Config{Sender: b, Dir: dir})
		run(t, s)
		put(t, s, 0)
		time.Sleep(90 * time.Minute)
		put(t, s, 1)
		time.Sleep(5 * time.Hour)
		if st := balance(t, s, b); st.Delivered.Requests != 2 {
			t.Errorf("%+v", st)
		}
	})
}

func TestASendThatStallsIsEnded(t *testing.T) {
	both(t, func(t *testing.T, dir string) {
		b := &backend{answer: func(ctx context.Context, attempt int, _ *exporter.Request) (exporter.Receipt, error) {
			if attempt < 2 {
				<-ctx.Done()
				return exporter.Receipt{}, errors.New("stream ended") // as gRPC: not a context's error
			}
			return exporter.Receipt{}, nil
		}}
		s := open(t, Config{Sender: b, Dir: dir, SendTimeout: 15 * time.Second})
		run(t, s)
		put(t, s, 1)
		time.Sleep(16 * time.Second)
		if st := balance(t, s, b); !strings.Contains(st.SendError, "no answer within 15s") || st.Backend != BackendUnreachable {
			t.Errorf("%+v", st)
		}
		time.Sleep(time.Minute)
		if st := balance(t, s, b); st.Delivered.Requests != 1 || st.Retries != 2 {
			t.Errorf("%+v", st)
		}
	})
}

func TestPutDoesNotWaitForTheBackend(t *testing.T) {
	both(t, func(t *testing.T, dir string) {
		b := &backend{answer: func(ctx context.Context, _ int, _ *exporter.Request) (exporter.Receipt, error) {
			<-ctx.Done()
			return exporter.Receipt{}, ctx.Err()
		}}
		s := open(t, Config{Sender: b, Dir: dir, SendTimeout: time.Hour})
		run(t, s)
		start := time.Now()
		put(t, s, 0)
		synctest.Wait()
		put(t, s, 1, 2, 3)
		if d := time.Since(start); d != 0 {
			t.Errorf("took %s", d)
		}
		if st := balance(t, s, b); st.Disk.Requests+st.Memory.Requests != 4 {
			t.Errorf("%+v", st)
		}
	})
}

func TestASlowBackendLosesNothing(t *testing.T) {
	both(t, func(t *testing.T, dir string) {
		b := &backend{answer: func(ctx context.Context, _ int, _ *exporter.Request) (exporter.Receipt, error) {
			select {
			case <-time.After(10 * time.Second):
				return exporter.Receipt{}, nil
			case <-ctx.Done():
				return exporter.Receipt{}, ctx.Err()
			}
		}}
		s := open(t, Config{Sender: b, Dir: dir})
		run(t, s)
		var samples uint64
		for n := range 40 {
			samples += put(t, s, n)
			time.Sleep(15 * time.Second)
		}
		if st := balance(t, s, b); st.Delivered.Samples != samples || st.Retries != 0 {
			t.Errorf("%d samples put, %+v", samples, st)
		}
	})
}

func TestARequestThatNeverGetsThroughDoesNotHoldUpTheOthers(t *testing.T) {
	both(t, func(t *testing.T, dir string) {
		b := &backend{answer: func(_ context.Context, _ int, r *exporter.Request) (exporter.Receipt, error) {
			if number(r) == 3 {
				return exporter.Receipt{}, errors.New("HTTP 500: index out of range")
			}
			return exporter.Receipt{}, nil
		}}
		s := open(t, Config{Sender: b, Dir: dir})
		run(t, s)
		var samples uint64
		for n := range 40 {
			samples += put(t, s, n)
			time.Sleep(15 * time.Second)
		}
		st := balance(t, s, b)
		if st.Refused != (Count{1, 1003}) || st.Delivered.Samples != samples-1003 {
			t.Errorf("%d samples put, %+v", samples, st)
		}
		want := slices.DeleteFunc(upTo(40), func(n int) bool { return n == 3 })
		if diff := cmp.Diff(want, b.taken()); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		if took := b.when()[slices.Index(b.attempts(), 20)]; time.Since(took) < 4*time.Minute {
			t.Error("those behind it waited for minutes")
		}
	})
}

func TestARequestTooLargeForTheRateLimitDoesNotHoldUpTheOthers(t *testing.T) {
	both(t, func(t *testing.T, dir string) {
		b := &backend{answer: func(_ context.Context, _ int, r *exporter.Request) (exporter.Receipt, error) {
			if number(r) == 3 {
				return exporter.Receipt{}, &exporter.BusyError{Err: errors.New("429 Too Many Requests")}
			}
			return exporter.Receipt{}, nil
		}}
		s := open(t, Config{Sender: b, Dir: dir})
		run(t, s)
		var samples uint64
		for n := range 400 {
			samples += put(t, s, n)
			time.Sleep(15 * time.Second)
		}
		st := balance(t, s, b)
		if st.Expired != (Count{1, 1003}) || st.Refused.Requests != 0 || st.Delivered.Samples != samples-1003 {
			t.Errorf("%d samples put, %+v", samples, st)
		}
	})
}

func TestAnOutageIsNoReasonToRefuse(t *testing.T) {
	both(t, func(t *testing.T, dir string) {
		start := time.Now()
		b := &backend{answer: func(context.Context, int, *exporter.Request) (exporter.Receipt, error) {
			if time.Since(start) < 40*time.Minute {
				return exporter.Receipt{}, errAway
			}
			return exporter.Receipt{}, nil
		}}
		s := open(t, Config{Sender: b, Dir: dir})
		run(t, s)
		var samples uint64
		for n := range 200 {
			samples += put(t, s, n)
			time.Sleep(15 * time.Second)
		}
		if st := balance(t, s, b); st.Delivered.Samples != samples || st.Refused.Requests != 0 {
			t.Errorf("%d samples put, %+v", samples, st)
		}
		// One request may come before the oldest: the one by which the return
		// of the backend was noticed.
		out := 0
		for i := 1; i < len(b.taken()); i++ {
			if b.taken()[i] < b.taken()[i-1] {
				out++
			}
		}
		if out > 1 {
			t.Errorf("%d requests out of order: %v", out, b.taken())
		}
	})
}

func TestReplayIsPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size, number = 500_000, 60
		b, back := switched()
		s := open(t, Config{Sender: b, Rate: DefaultRate, MemoryBytes: 1 << 30})
		run(t, s)
		var samples uint64
		for n := range number {
			r := request(n)
			r.Body = append(r.Body, make([]byte, size)...)
			samples += r.Samples
			if err := s.Put(r); err != nil {
				t.Fatal(err)
			}
			time.Sleep(15 * time.Second)
		}
		synctest.Wait()
		before := len(b.when())
		back()
		time.Sleep(number*size*time.Second/DefaultRate + time.Minute)
		if st := balance(t, s, b); st.Delivered.Samples != samples {
			t.Errorf("%d samples put, %+v", samples, st)
		}
		times := b.when()[before:]
		for i := range times {
			for j := i; j < len(times); j++ {
				sum := float64((j - i + 1) * size)
				took := times[j].Sub(times[i]).Seconds()
				if sum > DefaultRate*(took+1)+size {
					t.Fatalf("%.0f bytes in %.2f s", sum, took)
				}
			}
		}
	})
}

func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		took := func(p *pace, n int, backlog int64) time.Duration {
			t.Helper()
			time.Sleep(time.Hour) // the burst is there again
			start := time.Now()
			if err := p.wait(t.Context(), p.limiter.Burst(), backlog); err != nil {
				t.Fatal(err)
			}
			if err := p.wait(t.Context(), n, backlog); err != nil {
				t.Fatal(err)
			}
			return time.Since(start).Round(time.Millisecond)
		}
		p := newPace(1000)
		for _, tt := range []struct {
			name    string
			before  func()
			backlog int64
			want    time.Duration
		}{
			{"as asked for", func() {}, 0, 4 * time.Second},
			{"half after the backend was busy", func() { p.slower() }, 0, 8 * time.Second},
			{"a sixteenth at least", func() {
				for range 100 {
					p.slower()
				}
			}, 0, 64 * time.Second},
			{"a sixteenth more after each success", func() { p.faster() }, 0, 32 * time.Second},
			{"no more than was asked for", func() {
				for range 100 {
					p.faster()
				}
			}, 0, 4 * time.Second},
			{"more where a backlog would take over a quarter of an hour", func() {}, 4000 * drainSeconds, time.Second},
		} {
			tt.before()
			if got := took(p, 4000, tt.backlog); got != tt.want {
				t.Errorf("%s: 4000 bytes took %s, want %s", tt.name, got, tt.want)
			}
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := p.wait(ended, 4000, 0); err == nil {
			t.Error("does not end with its context")
		}
	})
}

func TestTheNewestIsSentWhereMoreIsMadeThanTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &backend{}
		s := open(t, Config{Sender: b, Rate: 1000, MemoryBytes: 1 << 30})
		run(t, s)
		for n := range 2 * 3600 / 15 {
			r := request(n)
			r.Body = append(r.Body, make([]byte, 30_000)...) // twice the rate
			if err := s.Put(r); err != nil {
				t.Fatal(err)
			}
			time.Sleep(15 * time.Second)
		}
		st := balance(t, s, b)
		if age := time.Since(st.Oldest); age > 20*time.Minute || st.Expired.Requests > 0 {
			t.Errorf("%s behind: %+v", age, st)
		}
	})
}
