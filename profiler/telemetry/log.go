package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
)

// Format is how log lines look.
type Format string

// The formats.
const (
	Text Format = "text" // key=value, what is not printable quoted
	JSON Format = "json" // one object a line
)

// foldWindow is for how long repeats of a line are only counted.
const foldWindow = time.Minute

// foldLimit is how many different lines are remembered. Beyond it, lines with
// the same level and message count as the same; messages are constants, so
// those are few.
const foldLimit = 512

// levelNames are the values of a level in metrics.
var levelNames = [...]string{"debug", "info", "warn", "error"}

// Log is a logger that folds repeats: of lines that are the same within a
// minute the first is written, and at the end of the minute one more with
// repeated=N and the time and attributes of the last; since is the time of the
// line before. While they go on, so does that: a line a minute.
//
// Lines are the same when level, message and attributes are. Of warnings and
// errors, numbers, durations and times do not count: they are figures of the
// same trouble. Nor do the digits in an error's text, which are ports and PIDs.
// Below, figures are what a line is about, such as a new sampling rate.
type Log struct {
	*slog.Logger

	mu     sync.Mutex
	open   map[string]*repeat
	closed bool

	records [len(levelNames)]atomic.Uint64
	folded  atomic.Uint64
}

// NewLogger makes a logger that writes lines of level and above to w. A
// *slog.LevelVar changes the level while it runs. Close writes the counts that
// wait.
func NewLogger(w io.Writer, level slog.Leveler, format Format) *Log {
	options := &slog.HandlerOptions{Level: level}
	var next slog.Handler = slog.NewTextHandler(w, options)
	if format == JSON {
		next = slog.NewJSONHandler(w, options)
	}
	l := &Log{open: map[string]*repeat{}}
	l.Logger = slog.New(&foldHandler{next: next, log: l})
	return l
}

// Close writes the counts of lines that were folded. What is logged later is
// written and not folded.
func (l *Log) Close() {
	l.mu.Lock()
	open := l.open
	l.open, l.closed = nil, true
	l.mu.Unlock()
	for _, r := range open {
		r.timer.Stop()
		r.write()
	}
}

// repeat is a line that was written, and how often it came since.
type repeat struct {
	handler slog.Handler
	since   time.Time // of the line that was written
	last    slog.Record
	n       int
	timer   *time.Timer
}

// write writes the line with its count, if it came again.
func (r *repeat) write() {
	if r.n == 0 {
		return
	}
	line := r.last.Clone()
	line.AddAttrs(slog.Int("repeated", r.n), slog.Time("since", r.since))
	_ = r.handler.Handle(context.Background(), line) // a log that cannot be written has nowhere to say so
}

// fold says whether the record is a repeat, and so to be counted only.
func (l *Log) fold(key, coarse string, handler slog.Handler, record slog.Record) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	if l.open[key] == nil && len(l.open) >= foldLimit {
		key = coarse
	}
	if r := l.open[key]; r != nil {
		r.handler, r.last = handler, record.Clone()
		r.n++
		l.folded.Add(1)
		return true
	}
	if len(l.open) < 2*foldLimit {
		l.open[key] = &repeat{handler: handler, since: record.Time, timer: time.AfterFunc(foldWindow, func() { l.due(key) })}
	}
	return false
}

// due ends a minute of a line. The next begins at once if the line came again.
func (l *Log) due(key string) {
	l.mu.Lock()
	r := l.open[key]
	if r == nil { // closed meanwhile
		l.mu.Unlock()
		return
	}
	ended := *r
	r.n, r.last = 0, slog.Record{}
	if ended.n == 0 {
		delete(l.open, key)
	} else {
		r.since = ended.last.Time
		r.timer.Reset(foldWindow)
	}
	l.mu.Unlock()
	ended.write()
}

// foldHandler hands on what is not a repeat.
type foldHandler struct {
	next slog.Handler
	log  *Log
	// Attributes and groups that all its records have, as they stand in keys.
	prefix keyText
}

// Enabled implements slog.Handler.
func (h *foldHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (h *foldHandler) Handle(ctx context.Context, record slog.Record) error {
	h.log.records[levelIndex(record.Level)].Add(1)
	if fix := fixOf(record); fix != "" {
		record = record.Clone()
		record.AddAttrs(slog.String("fix", fix))
	}
	coarse := record.Level.String() + "\x00" + record.Message
	figures := record.Level < slog.LevelWarn
	var key strings.Builder
	key.WriteString(coarse + "\x00" + h.prefix.of(figures))
	record.Attrs(func(a slog.Attr) bool {
		writeKey(&key, a, figures)
		return true
	})
	if h.log.fold(key.String(), coarse, h.next, record) {
		return nil
	}
	return h.next.Handle(ctx, record)
}

// fixOf is what helps against the error that a record tells of, if that is known.
func fixOf(record slog.Record) (fix string) {
	record.Attrs(func(a slog.Attr) bool {
		err, _ := a.Value.Any().(error)
		var fault *profiler.Fault
		if errors.As(err, &fault) {
			fix = fault.Fix
		}
		return fix == ""
	})
	return fix
}

// WithAttrs implements slog.Handler.
func (h *foldHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	var whole, bare strings.Builder
	for _, a := range attrs {
		writeKey(&whole, a, true)
		writeKey(&bare, a, false)
	}
	return &foldHandler{h.next.WithAttrs(attrs), h.log, keyText{h.prefix.whole + whole.String(), h.prefix.bare + bare.String()}}
}

// WithGroup implements slog.Handler.
func (h *foldHandler) WithGroup(name string) slog.Handler {
	return &foldHandler{h.next.WithGroup(name), h.log, keyText{h.prefix.whole + name + "\x01", h.prefix.bare + name + "\x01"}}
}

// keyText is a part of a key, with figures in it and without.
type keyText struct{ whole, bare string }

func (k keyText) of(figures bool) string {
	if figures {
		return k.whole
	}
	return k.bare
}

func levelIndex(level slog.Level) int {
	switch {
	case level < slog.LevelInfo:
		return 0
	case level < slog.LevelWarn:
		return 1
	case level < slog.LevelError:
		return 2
	}
	return 3
}

// writeKey writes what of an attribute tells a line from another: figures are
// part of that or not.
func writeKey(key *strings.Builder, a slog.Attr, figures bool) {
	key.WriteString(a.Key)
	key.WriteByte('=')
	switch v := a.Value.Resolve(); v.Kind() {
	case slog.KindString, slog.KindBool:
		key.WriteString(v.String())
	case slog.KindGroup:
		for _, member := range v.Group() {
			writeKey(key, member, figures)
		}
	case slog.KindAny:
		if err, ok := v.Any().(error); ok && !figures {
			key.WriteString(strings.Map(withoutDigits, err.Error()))
		} else {
			fmt.Fprint(key, v.Any())
		}
	default:
		if figures {
			key.WriteString(v.String())
		}
	}
	key.WriteByte(0)
}

func withoutDigits(r rune) rune {
	if r >= '0' && r <= '9' {
		return -1
	}
	return r
}
