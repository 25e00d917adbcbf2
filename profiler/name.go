package profiler

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// FrameName is what a frame of a location is shown as, in every output: the
// function, and "module+0xoffset" when it has none. The offset is that of the
// function's start where that is known, so that its samples stay together. It
// holds no control characters, whatever the symbol table said.
func FrameName(l *Location, f *Frame) string {
	if f != nil && f.Function != "" {
		return Printable(f.Function)
	}
	module := "[unknown]"
	if l.Module != nil && l.Module.Path != "" {
		module = Printable(l.Module.Name())
	}
	at := l.Address
	if f != nil && f.Start != 0 {
		at = f.Start
	}
	return module + "+0x" + strconv.FormatUint(at, 16)
}

// Printable gives s with everything that could steer a terminal or mislead a
// reader written as an escape: control characters, line and paragraph
// separators, bidirectional overrides (CVE-2021-42574) and bytes that are not
// UTF-8. Names come from foreign files and processes. The escapes are for
// reading, not for undoing: a name that spells one out stays as it is, and so
// comes out the same as the name that needed it.
func Printable(s string) string {
	clean := true
	for _, r := range s {
		if hostile(r) {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			b.WriteString(`\x`)
			b.WriteString(hex(uint64(s[i]), 2))
		case !hostile(r) || r == utf8.RuneError:
			b.WriteString(s[i : i+n])
		case r < 0x100:
			b.WriteString(`\x`)
			b.WriteString(hex(uint64(r), 2))
		default:
			b.WriteString(`\u`)
			b.WriteString(hex(uint64(r), 4))
		}
		i += n
	}
	return b.String()
}

// hostile takes utf8.RuneError as well: ranging over a string gives it for
// bytes that are not UTF-8.
func hostile(r rune) bool {
	switch {
	case r < 0x20, r >= 0x7f && r < 0xa0, r == 0x2028, r == 0x2029, r == utf8.RuneError:
		return true
	}
	return r >= 0x80 && unicode.Is(unicode.Bidi_Control, r)
}

func hex(v uint64, width int) string {
	s := strconv.FormatUint(v, 16)
	for len(s) < width {
		s = "0" + s
	}
	return s
}
