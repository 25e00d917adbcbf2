package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/profiler"
)

// lines gives what was written without the times of each line.
func lines(written string) []string {
	var out []string
	for line := range strings.Lines(written) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		rest, _, _ = strings.Cut(rest, " since=")
		out = append(out, rest)
	}
	return out
}

func TestRepeatsAreFolded(t *testing.T) {
	refused := errors.New("dial tcp 10.0.0.1:4040: connection refused")
	tests := []struct {
		name string
		do   func(log *slog.Logger)
		want []string
	}{
		{"one line is one line", func(log *slog.Logger) {
			log.Info("begun")
			time.Sleep(10 * time.Minute)
		}, []string{"level=INFO msg=begun"}},
		{"an error with a fix tells it", func(log *slog.Logger) {
			log.Warn("window not delivered", "error", fmt.Errorf("send: %w", &profiler.Fault{What: "it is full", Fix: "empty it"}))
			time.Sleep(10 * time.Minute)
		}, []string{`level=WARN msg="window not delivered" error="send: it is full" fix="empty it"`}},
		{"the first at once, the rest as a count after a minute", func(log *slog.Logger) {
			for range 30 {
				log.Warn("window not delivered", "error", refused)
				time.Sleep(time.Second)
			}
			time.Sleep(10 * time.Minute)
		}, []string{
			`level=WARN msg="window not delivered" error="dial tcp 10.0.0.1:4040: connection refused"`,
			`level=WARN msg="window not delivered" error="dial tcp 10.0.0.1:4040: connection refused" repeated=29`,
		}},
		{"a line a minute while it goes on", func(log *slog.Logger) {
			for range 120 {
				log.Warn("slow")
				time.Sleep(1001 * time.Millisecond) // never at the very end of a minute
			}
			time.Sleep(10 * time.Minute)
		}, []string{"level=WARN msg=slow", "level=WARN msg=slow repeated=59", "level=WARN msg=slow repeated=60"}},
		{"after a quiet minute it is new", func(log *slog.Logger) {
			log.Warn("slow")
			time.Sleep(2 * time.Minute)
			log.Warn("slow")
		}, []string{"level=WARN msg=slow", "level=WARN msg=slow"}},
		{"figures differ, the last are written", func(log *slog.Logger) {
			for i := range 3 {
				log.Warn("over budget", "bytes", i, "took", time.Duration(i)*time.Second, "share", float64(i)/4, "module", "libc.so.6")
			}
			time.Sleep(time.Hour)
		}, []string{
			`level=WARN msg="over budget" bytes=0 took=0s share=0 module=libc.so.6`,
			`level=WARN msg="over budget" bytes=2 took=2s share=0.5 module=libc.so.6 repeated=2`,
		}},
		{"below a warning, figures are what a line is about", func(log *slog.Logger) {
			log.With("cpu", 1).Info("rate changed", "to", 49)
			log.With("cpu", 1).Info("rate changed", "to", 24)
			log.With("cpu", 2).Info("rate changed", "to", 24)
			log.With("cpu", 2).Info("rate changed", "to", 24)
			time.Sleep(time.Hour)
		}, []string{`level=INFO msg="rate changed" cpu=1 to=49`, `level=INFO msg="rate changed" cpu=1 to=24`,
			`level=INFO msg="rate changed" cpu=2 to=24`, `level=INFO msg="rate changed" cpu=2 to=24 repeated=1`}},
		{"other text is another line", func(log *slog.Logger) {
			log.Warn("skipped", "module", "liba.so.1")
			log.Warn("skipped", "module", "liba.so.2")
			log.Warn("skipped", "whole", true)
			log.Warn("skipped", "whole", false)
		}, []string{"level=WARN msg=skipped module=liba.so.1", "level=WARN msg=skipped module=liba.so.2",
			"level=WARN msg=skipped whole=true", "level=WARN msg=skipped whole=false"}},
		{"another level is another line", func(log *slog.Logger) {
			log.Warn("slow")
			log.Error("slow")
		}, []string{"level=WARN msg=slow", "level=ERROR msg=slow"}},
		{"errors that differ in digits are the same", func(log *slog.Logger) {
			log.Warn("lost", "error", errors.New("read 127.0.0.1:41001: reset"))
			log.Warn("lost", "error", errors.New("read 127.0.0.1:41002: reset"))
			log.Warn("lost", "error", errors.New("read 127.0.0.1:41002: eof"))
			time.Sleep(time.Hour)
		}, []string{`level=WARN msg=lost error="read 127.0.0.1:41001: reset"`, `level=WARN msg=lost error="read 127.0.0.1:41002: eof"`,
			`level=WARN msg=lost error="read 127.0.0.1:41002: reset" repeated=1`}},
		{"what a logger was made with counts", func(log *slog.Logger) {
			log.With("stage", "a").Warn("slow")
			log.With("stage", "b").Warn("slow")
			log.WithGroup("g").Warn("slow", "x", "1")
			log.Warn("slow", slog.Group("g", "x", "1"))
			log.With("stage", "a").Warn("slow")
			time.Sleep(time.Hour)
		}, []string{"level=WARN msg=slow stage=a", "level=WARN msg=slow stage=b", "level=WARN msg=slow g.x=1", "level=WARN msg=slow g.x=1",
			"level=WARN msg=slow stage=a repeated=1"}},
		{"what is below the level is not counted", func(log *slog.Logger) {
			log.Debug("sample")
			log.Debug("sample")
			time.Sleep(time.Hour)
		}, nil},
		{"what is not printable is quoted", func(log *slog.Logger) {
			log.Warn("skipped", "module", "a\x1b[2J\nlevel=ERROR \u202e")
		}, []string{`level=WARN msg=skipped module="a\x1b[2J\nlevel=ERROR \u202e"`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out bytes.Buffer
				log := NewLogger(&out, slog.LevelInfo, Text)
				tt.do(log.Logger)
				synctest.Wait()
				log.Close()
				if diff := cmp.Diff(lines(out.String()), tt.want); diff != "" {
					t.Errorf("lines (-got +want):\n%s", diff)
				}
			})
		})
	}
}

func TestARepeatHasItsOwnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := NewLogger(&out, nil, JSON)
		begin := time.Now()
		for i := range 4 { // at 0, 25, 50 and 75 seconds
			log.Warn("slow", "bytes", i)
			time.Sleep(25 * time.Second)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		log.Close()
		type line struct {
			Time, Since time.Time
			Bytes       int
			Repeated    int
		}
		at := func(seconds int) time.Time { return begin.Add(time.Duration(seconds) * time.Second) }
		want := []line{{Time: at(0)}, {at(50), at(0), 2, 2}, {at(75), at(50), 3, 1}}
		var got []line
		for dec := json.NewDecoder(&out); ; {
			var l line
			if err := dec.Decode(&l); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			got = append(got, l)
		}
		if diff := cmp.Diff(got, want); diff != "" {
			t.Errorf("lines (-got +want):\n%s", diff)
		}
	})
}

func TestCloseWritesWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := NewLogger(&out, nil, JSON)
		log.Error("broken")
		time.Sleep(5 * time.Second)
		log.Error("broken")
		log.Error("broken")
		log.Close()
		log.Close()
		log.Error("broken") // after the end nothing would write a count
		log.Error("broken")
		var got []any
		for dec := json.NewDecoder(&out); ; {
			var line map[string]any
			if err := dec.Decode(&line); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			got = append(got, line["repeated"])
		}
		if diff := cmp.Diff(got, []any{nil, 2.0, nil, nil}); diff != "" {
			t.Errorf("repeated (-got +want):\n%s", diff)
		}
	})
}

func TestLevelChangesWhileRunning(t *testing.T) {
	var (
		out   bytes.Buffer
		level slog.LevelVar
	)
	log := NewLogger(&out, &level, Text)
	defer log.Close()
	log.Debug("before")
	level.Set(slog.LevelDebug)
	log.Debug("after")
	if diff := cmp.Diff(lines(out.String()), []string{"level=DEBUG msg=after"}); diff != "" {
		t.Errorf("lines (-got +want):\n%s", diff)
	}
}

// TestDifferentLinesAreBounded: lines that are all different cost bounded
// memory, and from some point on are counted by their message.
func TestDifferentLinesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := NewLogger(&out, nil, Text)
		const all = 10 * foldLimit
		for i := range all {
			log.Warn("skipped", "module", fmt.Sprintf("lib%d.so", i))
			log.Warn(fmt.Sprintf("message %d is no constant", i))
		}
		if n := len(log.open); n > 2*foldLimit {
			t.Errorf("%d lines remembered, want at most %d", n, 2*foldLimit)
		}
		log.Close()
		if n := strings.Count(out.String(), "msg=skipped"); n > foldLimit+2 {
			t.Errorf("%d lines of one message, want at most %d", n, foldLimit+2)
		}
		if n := strings.Count(out.String(), "is no constant"); n != all {
			t.Errorf("%d of %d different messages were written", n, all)
		}
		if want := fmt.Sprintf("msg=skipped module=lib%d.so repeated=", all-1); !strings.Contains(out.String(), want) {
			t.Errorf("no %q", want)
		}
	})
}

func TestConcurrentLogging(t *testing.T) {
	var out bytes.Buffer
	log := NewLogger(&out, nil, Text)
	var group sync.WaitGroup
	const writers, each = 4, 500
	for w := range writers {
		group.Go(func() {
			for range each {
				log.Warn("same")
				log.Warn("mine", "writer", fmt.Sprint(w))
			}
		})
	}
	group.Wait()
	log.Close()
	total := 0
	for _, line := range lines(out.String()) {
		total++
		if _, n, ok := strings.Cut(line, "repeated="); ok {
			var repeated int
			if _, err := fmt.Sscan(n, &repeated); err != nil {
				t.Fatal(err)
			}
			total += repeated - 1
		}
	}
	if total != 2*writers*each {
		t.Errorf("%d lines and repeats, want %d", total, 2*writers*each)
	}
}

func BenchmarkRepeat(b *testing.B) {
	log := NewLogger(io.Discard, nil, Text)
	defer log.Close()
	err := errors.New("dial tcp 10.0.0.1:4040: connection refused")
	b.ReportAllocs()
	for b.Loop() {
		log.LogAttrs(context.Background(), slog.LevelWarn, "window not delivered", slog.Any("error", err))
	}
}
