package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/kalypso-dev/kalypso/profiler"
)

func TestReport(t *testing.T) {
	fault := &profiler.Fault{What: "there is no process 7", Why: errors.New("open /proc/7/maps: no such file"), Fix: "pgrep name"}
	kind := errors.New("of one program")
	ofKind := &profiler.Fault{What: "no room", Fix: "make some", Kind: kind}
	codes := []Code{{Exit: 21, Is: func(err error) bool { return errors.Is(err, kind) }}}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	tests := []struct {
		name string
		ctx  context.Context
		err  error
		code int
		text string
	}{
		{"no error", context.Background(), nil, 0, ""},
		{"a plain error is one line", context.Background(), errors.New("write x: no space"), 1, "error: write x: no space\n"},
		{"a fault is three", context.Background(), fault, 1,
			"error: there is no process 7\ncause: open /proc/7/maps: no such file\nfix:   pgrep name\n"},
		{"a wrapped fault too", context.Background(), fmt.Errorf("record: %w", fault), 1,
			"error: there is no process 7\ncause: open /proc/7/maps: no such file\nfix:   pgrep name\n"},
		{"usage", context.Background(), Usage("type b", "a is wrong"), 2, "error: a is wrong\nfix:   type b\n"},
		{"waited in vain", context.Background(), TimedOut(fault), 5,
			"error: there is no process 7\ncause: open /proc/7/maps: no such file\nfix:   pgrep name\n"},
		{"a code that only this program has", context.Background(), fmt.Errorf("install: %w", ofKind), 21, "error: no room\nfix:   make some\n"},
		{"wrong usage is wrong usage, whatever it is about", context.Background(), Wrong(ofKind), 2, "error: no room\nfix:   make some\n"},
		{"a code of its own, silently", context.Background(), Exit(77), 77, ""},
		{"a wrapped code too", context.Background(), fmt.Errorf("command: %w", Exit(77)), 77, ""},
		{"the reader went away", context.Background(), fmt.Errorf("write: %w", syscall.EPIPE), 1, ""},
		{"interrupted", ended, fmt.Errorf("sample: %w", context.Canceled), 130, ""},
		{"cancelled by ourselves is an error", context.Background(), context.Canceled, 1, "error: context canceled\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var stderr bytes.Buffer
			if code := Report(tt.ctx, tt.err, &stderr, codes...); code != tt.code || stderr.String() != tt.text {
				t.Errorf("code %d, want %d; printed %q, want %q", code, tt.code, &stderr, tt.text)
			}
		})
	}
}
