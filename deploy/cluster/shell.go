package cluster

import (
	"regexp"
	"strings"
	"unicode/utf8"
)

// plain is what no shell reads anything into. A leading = is the name of a
// program to zsh, and a leading ~ a folder.
var plain = regexp.MustCompile(`^[A-Za-z0-9_./:@%+,-][A-Za-z0-9_./:@%+,=-]*$`)

// quote writes one word so that a shell reads it as it is.
func quote(word string) string {
	if plain.MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// Shell writes a command as it is typed, broken between words where a line
// would be longer than width; 0 does not break it.
func Shell(argv []string, width int) string {
	const more = " \\\n    "
	var b strings.Builder
	column := 0
	for i, word := range argv {
		word = quote(word)
		first, _, _ := strings.Cut(word, "\n")
		switch {
		case i == 0:
		case width > 0 && column+1+utf8.RuneCountInString(first)+len(` \`) > width:
			b.WriteString(more)
			column = len("    ")
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		if last := strings.LastIndexByte(word, '\n'); last >= 0 {
			column = 0
			word = word[last+1:]
		}
		column += utf8.RuneCountInString(word)
	}
	return b.String()
}
