package telemetry

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
)

// referenceHead is what docs/reference/metrics.md says before the table.
const referenceHead = `# Metrics of the agent

<!-- Generated from the metrics themselves. A test compares; with -update it writes the page anew. -->

` + "`kalypso-agent run`" + ` serves them at ` + "`/metrics`" + ` of its ` + "`--listen`" + ` address, in Prometheus's text format, and pushes them over OTLP to
` + "`--telemetry.otlp.endpoint`" + ` if that is set. A counter is a total since the agent began. What is left out of a profile is in one of
these counters: nothing is dropped that is not counted.

`

// WriteReference writes the page that documents metrics: these and the ones
// that every agent has from this package.
func WriteReference(w io.Writer, metrics []Metric) error {
	all := append(slices.Clone(metrics), own(nil, nil, nil)...)
	if err := validate(all); err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b Metric) int { return strings.Compare(a.Name, b.Name) })
	out := bufio.NewWriter(w)
	_, _ = out.WriteString(referenceHead + "| metric | type | unit | labels | |\n|---|---|---|---|---|\n") // Flush tells of errors
	for i := range all {
		m := &all[i]
		_, _ = fmt.Fprintf(out, "| `%s` | %s | %s | %s | %s |\n", m.Name, m.Kind, unitWord(m.Unit), code(m.Labels), cell(m.Description))
	}
	return out.Flush()
}

// unitWord is a unit as people call it.
func unitWord(unit string) string {
	switch unit {
	case "By":
		return "bytes"
	case "s":
		return "seconds"
	case "1":
		return "ratio"
	}
	return cell(strings.Trim(unit, "{}"))
}

func code(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = "`" + w + "`"
	}
	return strings.Join(quoted, ", ")
}

// cell is text that does not end a table's cell.
func cell(text string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ").Replace(text)
}
