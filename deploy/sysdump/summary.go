package sysdump

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/deploy/status"
)

const summaryName = "SUMMARY.md"

// finding is one thing that is wrong.
type finding struct {
	what   string // one line
	why    string
	fix    string
	others []string // that wait for it
	look   []string // files
}

// findings are what is wrong, worst first: nodes, then components in the order
// of what they need, so that what others wait for comes before them.
func (d *dump) findings() []finding {
	var out []finding
	for i := range d.nodes {
		out = append(out, nodeFindings(&d.nodes[i])...)
	}
	for _, c := range d.ordered() {
		switch c.Health {
		case status.Broken, status.Starting, status.Unknown:
			out = append(out, d.finding(c))
		}
	}
	return out
}

func (d *dump) finding(c status.Component) finding {
	f := finding{what: fmt.Sprintf("%s is %s", c.Name, c.Health), why: c.Note, fix: c.Fix}
	if c.Health != status.Unknown && !c.Since.IsZero() {
		f.what += fmt.Sprintf(", %d of %d pods ready, since %s", c.Ready, c.Want, kube.Age(time.Since(c.Since)))
	}
	if c.Health == status.Starting {
		f.what = strings.Replace(f.what, "is starting", "is not ready", 1)
	}
	for _, other := range d.health {
		if other.Health != status.Absent && slices.Contains(other.Needs, c.Name) {
			f.others = append(f.others, other.Name)
		}
	}
	for _, file := range []string{"events/" + c.Namespace + ".txt", "objects/" + c.Namespace + "/", "logs/" + c.Namespace + "/"} {
		if slices.ContainsFunc(d.members, func(m member) bool { return strings.HasPrefix(m.name, file) }) {
			f.look = append(f.look, file)
		}
	}
	return f
}

// nodeFindings are conditions that a node should not have.
func nodeFindings(n *corev1.Node) []finding {
	var out []finding
	for _, c := range n.Status.Conditions {
		bad := corev1.ConditionTrue
		if c.Type == corev1.NodeReady {
			bad = corev1.ConditionFalse
		}
		if c.Status == bad || c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown {
			out = append(out, finding{what: fmt.Sprintf("node %s: %s is %s", n.Name, c.Type, c.Status), why: c.Message, fix: "kubectl describe node " + n.Name, look: []string{"versions.txt"}})
		}
	}
	return out
}

// wrongLines are the findings for a terminal.
func (d *dump) wrongLines() []string {
	var out []string
	for _, f := range d.findings() {
		line := f.what
		if f.why != "" {
			line += ": " + f.why
		}
		out = append(out, string(d.redact.text([]byte(line))))
	}
	return out
}

// warningsShown are those of events that were said most often.
const warningsShown = 15

// summary is SUMMARY.md.
func (d *dump) summary(at time.Time) []byte {
	var b strings.Builder
	found := d.findings()
	fmt.Fprintf(&b, "# kalypso on %s: %s\n\n", d.cluster.Context, d.verdict(found))
	for i, f := range found {
		f.write(&b, i+1)
	}
	fmt.Fprintf(&b, "%s · Kubernetes %s, %s · kalypsoctl %s\n\n", at.UTC().Format("2006-01-02 15:04 UTC"), d.cluster.Version, kube.Count(len(d.nodes), "node"), d.opts.Tool)
	d.components(&b)
	section(&b, "What happened lately", d.warnings())
	section(&b, "What could not be had", d.failures())
	section(&b, "What was left out", d.left)
	fmt.Fprintf(&b, "## Files\n\n")
	slices.SortFunc(d.members, func(x, y member) int { return strings.Compare(x.name, y.name) })
	for _, m := range d.members {
		fmt.Fprintf(&b, "- %s, %s\n", m.name, size(int64(m.bytes)))
	}
	fmt.Fprintf(&b, "\nValues of Secrets were not written. What looks like a credential is %s.\n", hidden)
	return []byte(b.String())
}

func (d *dump) verdict(found []finding) string {
	there := 0
	for _, c := range d.health {
		if c.Health != status.Absent {
			there++
		}
	}
	switch {
	case d.nothing() != nil:
		return "nothing could be read"
	case len(found) > 0:
		return fmt.Sprintf("%s wrong", kube.Count(len(found), "thing"))
	case there == 0:
		return "not installed"
	}
	return "healthy"
}

func (f finding) write(b *strings.Builder, number int) {
	fmt.Fprintf(b, "%d. **%s**\n", number, f.what)
	for _, row := range [][2]string{
		{"why", f.why}, {"fix", command(f.fix)},
		{"needed by", strings.Join(f.others, ", ")}, {"look at", strings.Join(f.look, ", ")},
	} {
		if row[1] != "" {
			fmt.Fprintf(b, "   - %s: %s\n", row[0], strings.Join(strings.Fields(row[1]), " "))
		}
	}
	b.WriteString("\n")
}

// command marks what is to be typed: a fix is a command, and after five spaces
// what it does; or a sentence.
func command(fix string) string {
	typed, does, _ := strings.Cut(fix, "     ")
	if strings.HasPrefix(typed, "kubectl ") || strings.HasPrefix(typed, "kalypsoctl ") {
		typed = "`" + typed + "`"
	}
	return strings.TrimSpace(typed + " " + strings.TrimSpace(does))
}

func (d *dump) components(b *strings.Builder) {
	b.WriteString("## Components\n\n| component | health | ready | chart | note |\n|---|---|---|---|---|\n")
	var absent []string
	for _, c := range d.ordered() {
		if c.Health == status.Absent {
			absent = append(absent, c.Name)
			continue
		}
		version := ""
		if c.Release != nil {
			version = c.Release.Version
		}
		note := c.Note
		if note == "" {
			note = strings.Join(c.Warnings, "; ")
		}
		fmt.Fprintf(b, "| %s | %s | %d/%d | %s | %s |\n", c.Name, c.Health, c.Ready, c.Want, version, strings.ReplaceAll(strings.Join(strings.Fields(note), " "), "|", `\|`))
	}
	b.WriteString("\n")
	if len(absent) > 0 {
		b.WriteString("Not installed: " + strings.Join(absent, ", ") + ".\n\n")
	}
}

// warnings are what events warn of, most often first.
func (d *dump) warnings() []string {
	texts := make([]string, 0, len(d.tallies))
	for text := range d.tallies {
		texts = append(texts, text)
	}
	slices.SortFunc(texts, func(x, y string) int {
		if n := d.tallies[y] - d.tallies[x]; n != 0 {
			return n
		}
		return strings.Compare(x, y)
	})
	var out []string
	for i, text := range texts {
		if i == warningsShown {
			out = append(out, fmt.Sprintf("and %d more in events/", len(texts)-i))
			break
		}
		out = append(out, fmt.Sprintf("%s (%s)", text, kube.Count(d.tallies[text], "time")))
	}
	return out
}

func section(b *strings.Builder, title string, lines []string) {
	if len(lines) == 0 {
		return
	}
	fmt.Fprintf(b, "## %s\n\n", title)
	for _, line := range lines {
		fmt.Fprintf(b, "- %s\n", strings.Join(strings.Fields(line), " "))
	}
	b.WriteString("\n")
}
