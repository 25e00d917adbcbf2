// Package top lays out what used the CPUs (api.Top) as lines for a terminal. It
// asks nobody.
package top

import (
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/kalypso-dev/kalypso/cmd/internal/term"
	"github.com/kalypso-dev/kalypso/exporter/format"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/api"
)

// Head is how many lines stand above the rows of a table.
const Head = 3

// Lines are the lines of a table, none wider than columns if that is not 0.
func Lines(t *api.Top, columns int) []string {
	lines := []string{facts(t, columns), ""}
	node := nodeWidth(t.Rows)
	switch t.By {
	case api.ByFunction:
		lines = append(lines, "    self    total  kind    function")
	case api.ByModule:
		lines = append(lines, "    self    total  module")
	case api.ByProcess:
		head := "   share   cores      PID  "
		if node > 0 {
			head += fmt.Sprintf("%-*s  ", node, "node")
		}
		lines = append(lines, head+"process")
	default:
		lines = append(lines, "   share   cores  "+string(t.By))
	}
	for i := range t.Rows {
		lines = append(lines, row(t.By, &t.Rows[i], node))
	}
	if len(t.Rows) == 0 {
		lines = append(lines, "nothing ran on a CPU")
	}
	if columns > 0 {
		for i, l := range lines {
			lines[i] = term.Cut(l, columns)
		}
	}
	return lines
}

// facts is the line above the table: of parts that do not fit the first stay.
func facts(t *api.Top, columns int) string {
	processes := format.Grouped(uint64(t.Processes)) + " processes"
	if t.Processes == 1 {
		processes = "1 process"
	}
	rate := strconv.Itoa(t.Frequency)
	if t.Lowest != t.Frequency {
		rate = fmt.Sprintf("%d to %d", t.Lowest, t.Frequency)
	}
	parts := []string{
		fmt.Sprintf("%.2f cores busy", t.Cores), processes,
		fmt.Sprintf("%s %s Hz", profiler.Printable(t.Event), rate), "lost " + strconv.FormatUint(t.Lost, 10),
		fmt.Sprintf("%.0f s to %s", t.Seconds, t.To.Local().Format(time.TimeOnly)),
	}
	if t.Host != "" {
		parts = append(parts, profiler.Printable(t.Host))
	}
	line := parts[0]
	for _, part := range parts[1:] {
		next := line + " · " + part
		if columns > 0 && utf8.RuneCountInString(next) > columns {
			break
		}
		line = next
	}
	return line
}

// nodeWidth is how many columns the names of nodes take; 0 where no row has one.
func nodeWidth(rows []api.TopRow) (width int) {
	for i := range rows {
		if name := rows[i].Node; name != "" {
			width = max(width, utf8.RuneCountInString(profiler.Printable(name)), len("node"))
		}
	}
	return width
}

func row(by api.By, r *api.TopRow, node int) string {
	name := profiler.Printable(r.Name)
	switch by {
	case api.ByFunction:
		if r.Module != "" {
			name += " (" + profiler.Printable(r.Module) + ")"
		}
		return fmt.Sprintf("%8s %8s  %-6s  %s", share(r.SelfPercent), share(r.TotalPercent), r.Kind, name)
	case api.ByModule:
		return fmt.Sprintf("%8s %8s  %s", share(r.SelfPercent), share(r.TotalPercent), name)
	case api.ByProcess:
		if r.Service != "" && r.Service != r.Name {
			name += " (" + profiler.Printable(r.Service) + ")"
		}
		if node > 0 {
			name = fmt.Sprintf("%-*s  %s", node, profiler.Printable(r.Node), name)
		}
		return fmt.Sprintf("%8s %7.2f  %7d  %s", share(r.SelfPercent), r.SelfCores, r.PID, name)
	}
	return fmt.Sprintf("%8s %7.2f  %s", share(r.SelfPercent), r.SelfCores, name)
}

// share writes what is there but rounds to nothing as more than nothing.
func share(percent float64) string {
	if percent > 0 && percent < 0.05 {
		return "<0.1 %"
	}
	return strconv.FormatFloat(percent, 'f', 1, 64) + " %"
}
