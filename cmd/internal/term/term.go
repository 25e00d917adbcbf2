// Package term knows what a terminal can show: which characters, and
// whether colours. Verbs ask it in place of looking at variables and file
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
	Colour bool // never the only signal
	ASCII  bool // glyphs have twins that every terminal shows
}

// For gives the style of an output. A pipe has no colour; NO_COLOR and TERM=dumb
// mean what they mean everywhere.
func For(w io.Writer, getenv func(string) string) Style {
	file, ok := w.(*os.File)
	return Style{
		Colour: ok && term.IsTerminal(int(file.Fd())) && getenv("NO_COLOR") == "" && getenv("TERM") != "dumb",
		ASCII:  ASCII(getenv),
	}
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
