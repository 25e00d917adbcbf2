package term

import (
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/term"
)

// Width is how many columns w has; 0 where it is no terminal. One that nobody
// told its size, as script(1) and some editors make, is taken to have 80.
func Width(w io.Writer) int {
	file, ok := w.(*os.File)
	if !ok {
		return 0
	}
	columns, _, err := term.GetSize(int(file.Fd()))
	switch {
	case err != nil:
		return 0
	case columns <= 0:
		return 80
	}
	return columns
}

// Notes is what is said while recording: a line that is written over on a
// terminal, nothing in a pipe, and each warning once.
type Notes struct {
	w    io.Writer
	live bool

	mu   sync.Mutex
	line bool
	said map[string]bool
}

// NewNotes are notes on an output.
func NewNotes(w io.Writer) *Notes {
	file, ok := w.(*os.File)
	return &Notes{w: w, live: ok && term.IsTerminal(int(file.Fd())) && os.Getenv("TERM") != "dumb", said: map[string]bool{}}
}

// Line writes over the live line.
func (n *Notes) Line(text string) {
	if !n.live {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	_, _ = fmt.Fprint(n.w, "\r\x1b[K"+text)
	n.line = true
}

// Failed prints a warning, once.
func (n *Notes) Failed(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.said[err.Error()] {
		return
	}
	n.said[err.Error()] = true
	n.clear()
	_, _ = fmt.Fprintf(n.w, "warning: %v\n", err)
}

// End takes the live line away.
func (n *Notes) End() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.clear()
}

func (n *Notes) clear() {
	if n.line {
		_, _ = fmt.Fprint(n.w, "\r\x1b[K")
		n.line = false
	}
}
