package term

import (
	"errors"
	"strings"
	"testing"
)

// TestNotes: a pipe gets no live line and no control codes, and each warning once.
func TestNotes(t *testing.T) {
	var text strings.Builder
	n := NewNotes(&text)
	n.Line("7 samples")
	n.Failed(errors.New("one"))
	n.Failed(errors.New("one"))
	n.Line("8 samples")
	n.Failed(errors.New("two"))
	n.End()
	if text.String() != "warning: one\nwarning: two\n" {
		t.Errorf("printed %q", text.String())
	}

	text.Reset()
	n = NewNotes(&text)
	n.live = true // as on a terminal
	n.Line("7 samples")
	n.Failed(errors.New("one"))
	n.End()
	want := "\r\x1b[K7 samples\r\x1b[Kwarning: one\n"
	if text.String() != want {
		t.Errorf("printed %q, want %q", text.String(), want)
	}
}
