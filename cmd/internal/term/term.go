// Package term knows what a terminal can show: which characters, which
// colours, how wide. Verbs ask it in place of looking at variables and file
// descriptors themselves. It prints tables and knows nothing of what is in
// them.
package term

import (
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// Style says what may be written to an output.
type Style struct {
	Live   bool // lines may be written over: a person looks at it
	Colour bool // never the only signal
	ASCII  bool // glyphs have twins that every terminal shows
	Width  int  // columns; 0 where the output has no width
}

// For gives the style of an output. In a pipe and in CI (CI=true) nothing is
// written over; NO_COLOR and TERM=dumb mean what they mean everywhere.
func For(w io.Writer, getenv func(string) string) Style {
	s := Style{ASCII: ASCII(getenv)}
	file, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return s
	}
	if columns, _, err := term.GetSize(int(file.Fd())); err == nil {
		s.Width = columns
	}
	plain := getenv("TERM") == "dumb"
	s.Live = !plain && getenv("CI") == ""
	s.Colour = !plain && getenv("NO_COLOR") == ""
	return s
}

// ASCII says whether the terminal is known not to show other characters.
func ASCII(getenv func(string) string) bool {
	if getenv("TERM") == "dumb" {
		return true
	}
	// The first one that is set decides: locale(7).
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := strings.ToLower(getenv(name)); v != "" {
			return !strings.Contains(v, "utf-8") && !strings.Contains(v, "utf8")
		}
	}
	return false
}
