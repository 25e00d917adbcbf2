package output

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kalypso-dev/kalypso/profiler"
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

func TestFile(t *testing.T) {
	put := func(text string) func(io.Writer) error {
		return func(w io.Writer) error { _, err := io.WriteString(w, text); return err }
	}
	t.Run("appears whole", func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "x")
		o, err := NewFile(path)
		if err != nil {
			t.Fatal(err)
		}
		err = o.Write(func(w io.Writer) error {
			if got := names(t, dir); got != "" && !strings.HasPrefix(got, ".kalypso-") {
				t.Errorf("files while it is written: %s", got)
			}
			return put("text")(w)
		})
		o.Discard()
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
		o, err := NewFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if text, _ := os.ReadFile(path); string(text) != "longer than the new" {
			t.Errorf("the file is %q before the new one is written", text)
		}
		err = o.Write(put("new"))
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
		o, err := NewFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want := errors.New("no")
		err = o.Write(func(w io.Writer) error { _ = put("half")(w); return want })
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
		o, err := NewFile(filepath.Join(dir, "x"))
		if err != nil {
			t.Fatal(err)
		}
		o.Discard()
		o.Discard()
		if got := names(t, dir); got != "" {
			t.Errorf("files %s", got)
		}
	})
	t.Run("two in one folder", func(t *testing.T) {
		dir := t.TempDir()
		a, errA := NewFile(filepath.Join(dir, "a"))
		b, errB := NewFile(filepath.Join(dir, "b"))
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if err := errors.Join(a.Write(put("1")), b.Write(put("2"))); err != nil || names(t, dir) != "a b" {
			t.Errorf("%v, files %s", err, names(t, dir))
		}
	})
	t.Run("a name as long as names may be", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), strings.Repeat("x", 255))
		o, err := NewFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := o.Write(put("text")); err != nil {
			t.Error(err)
		}
	})
	t.Run("none wanted", func(t *testing.T) {
		o, err := NewFile("")
		if err != nil || o.Write(put("text")) != nil {
			t.Error(err)
		}
	})
	t.Run("a folder that goes while recording", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "gone")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		o, err := NewFile(filepath.Join(dir, "x"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		var fault *profiler.Fault
		if err := o.Write(put("text")); !errors.As(err, &fault) || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("error %v", err)
		}
	})
}

func TestExplain(t *testing.T) {
	if err := Explain(nil); err != nil {
		t.Errorf("no error becomes %v", err)
	}
	full := fmt.Errorf("write: %w", &os.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.ENOSPC})
	var fault *profiler.Fault
	if err := Explain(full); !errors.As(err, &fault) || fault.What != "cannot write to /dev/stdout" || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("error %v", err)
	}
	gone := &os.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.EPIPE}
	if err := Explain(gone); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("a reader that went away is not known as such: %v", err)
	}
}
