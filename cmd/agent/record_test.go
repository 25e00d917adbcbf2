package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/pipeline"
)

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return strings.Join(list, " ")
}

func TestOutputFile(t *testing.T) {
	put := func(text string) func(io.Writer) error {
		return func(w io.Writer) error { _, err := io.WriteString(w, text); return err }
	}
	t.Run("appears whole", func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "x")
		o, err := newOutputFile(path)
		if err != nil {
			t.Fatal(err)
		}
		err = o.write(func(w io.Writer) error {
			if got := names(t, dir); got != "" && !strings.HasPrefix(got, ".kalypso-") {
				t.Errorf("files while it is written: %s", got)
			}
			return put("text")(w)
		})
		o.discard()
		if text, _ := os.ReadFile(path); err != nil || string(text) != "text" || names(t, dir) != "x" {
			t.Errorf("%v, wrote %q, files %s", err, text, names(t, dir))
		}
	})
	t.Run("replaces a file", func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "x")
		if err := os.WriteFile(path, []byte("longer than the new"), 0o600); err != nil {
			t.Fatal(err)
		}
		o, err := newOutputFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if text, _ := os.ReadFile(path); string(text) != "longer than the new" {
			t.Errorf("the file is %q before the new one is written", text)
		}
		err = o.write(put("new"))
		if text, _ := os.ReadFile(path); err != nil || string(text) != "new" || names(t, dir) != "x" {
			t.Errorf("%v, wrote %q, files %s", err, text, names(t, dir))
		}
	})
	t.Run("an error leaves what was there", func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "x")
		if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		o, err := newOutputFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want := errors.New("no")
		err = o.write(func(w io.Writer) error { _ = put("half")(w); return want })
		var fault *profiler.Fault
		if !errors.As(err, &fault) || !errors.Is(err, want) || fault.What != "cannot write "+path || fault.Fix == "" {
			t.Errorf("error %v", err)
		}
		if text, _ := os.ReadFile(path); string(text) != "old" || names(t, dir) != "x" {
			t.Errorf("the file is %q, files %s", text, names(t, dir))
		}
	})
	t.Run("discarded", func(t *testing.T) {
		dir := t.TempDir()
		o, err := newOutputFile(filepath.Join(dir, "x"))
		if err != nil {
			t.Fatal(err)
		}
		o.discard()
		o.discard()
		if got := names(t, dir); got != "" {
			t.Errorf("files %s", got)
		}
	})
	t.Run("two in one folder", func(t *testing.T) {
		dir := t.TempDir()
		a, errA := newOutputFile(filepath.Join(dir, "a"))
		b, errB := newOutputFile(filepath.Join(dir, "b"))
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if err := errors.Join(a.write(put("1")), b.write(put("2"))); err != nil || names(t, dir) != "a b" {
			t.Errorf("%v, files %s", err, names(t, dir))
		}
	})
	t.Run("a name as long as names may be", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), strings.Repeat("x", 255))
		o, err := newOutputFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := o.write(put("text")); err != nil {
			t.Error(err)
		}
	})
	t.Run("none wanted", func(t *testing.T) {
		o, err := newOutputFile("")
		if err != nil || o.write(put("text")) != nil {
			t.Error(err)
		}
	})
	t.Run("a folder that goes while recording", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "gone")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		o, err := newOutputFile(filepath.Join(dir, "x"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		var fault *profiler.Fault
		if err := o.write(put("text")); !errors.As(err, &fault) || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("error %v", err)
		}
	})
}

func TestPrintFault(t *testing.T) {
	if err := printFault(nil); err != nil {
		t.Errorf("no error becomes %v", err)
	}
	full := fmt.Errorf("write: %w", &os.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.ENOSPC})
	var fault *profiler.Fault
	if err := printFault(full); !errors.As(err, &fault) || fault.What != "cannot write to /dev/stdout" || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("error %v", err)
	}
	gone := &os.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.EPIPE}
	if err := printFault(gone); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("a reader that went away is not known as such: %v", err)
	}
}

// TestNotes: a pipe gets no live line and no control codes, and each warning once.
func TestNotes(t *testing.T) {
	var text strings.Builder
	n := newNotes(&text)
	n.progress(pipeline.Progress{Elapsed: time.Second, Samples: 7})
	n.failed(errors.New("one"))
	n.failed(errors.New("one"))
	n.progress(pipeline.Progress{Elapsed: time.Second, Samples: 8})
	n.failed(errors.New("two"))
	n.end()
	if text.String() != "warning: one\nwarning: two\n" {
		t.Errorf("printed %q", text.String())
	}

	text.Reset()
	n = newNotes(&text)
	n.live = true // as on a terminal
	n.progress(pipeline.Progress{Elapsed: 1500 * time.Millisecond, Samples: 7, Lost: 1})
	n.failed(errors.New("one"))
	n.end()
	want := "\r\x1b[Krecording   1.5 s   7 samples   lost 1   Ctrl-C ends and writes\r\x1b[Kwarning: one\n"
	if text.String() != want {
		t.Errorf("printed %q, want %q", text.String(), want)
	}
}

func TestReportOfCommands(t *testing.T) {
	var text strings.Builder
	err := fmt.Errorf("record: %w", commandError{127, &profiler.Fault{What: "cannot run \"x\"", Fix: "look"}})
	if code := cli.Report(t.Context(), err, &text); code != 127 || text.String() != "error: cannot run \"x\"\nfix:   look\n" {
		t.Errorf("code %d, printed %q", code, text.String())
	}
}
