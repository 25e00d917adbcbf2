package term

import (
	"io"
	"strings"
	"unicode/utf8"
)

// Table writes rows below a header, each column as wide as its widest cell.
// Cells are not cut: a name that is not whole is none.
func (s Style) Table(w io.Writer, header []string, rows [][]string) error {
	widths := make([]int, len(header))
	for _, row := range append([][]string{header}, rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	head := line(header, widths)
	if s.Colour {
		head = "\x1b[1m" + head + "\x1b[0m"
	}
	b.WriteString(head + "\n")
	for _, row := range rows {
		b.WriteString(line(row, widths) + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func line(cells []string, widths []int) string {
	var b strings.Builder
	for i, cell := range cells {
		b.WriteString(cell)
		if i < len(cells)-1 {
			b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
		}
	}
	return strings.TrimRight(b.String(), " ")
}

// Passed is the mark of what went well.
func (s Style) Passed() string {
	if s.ASCII {
		return "ok"
	}
	return "✓"
}
