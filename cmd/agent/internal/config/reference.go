package config

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// Example is a file of settings as the reference shows it.
const Example = `otlp:
  endpoint: pyroscope.example.org:4040
  bearer-token-file: /etc/kalypso-agent/token
  tenant: shop
frequency: 97
labels:
  team: checkout
exclude:
  comm: [stress-ng, "kworker*"]
cpu.budget: 0.5%
memory.budget: 96Mi
`

const referenceHead = `# Settings of the agent

<!-- Generated from the table of settings. A test compares; with -update it writes the page anew. -->

` + "`kalypso-agent run`" + ` takes its settings from three sources, each over the one before:

1. a YAML file: ` + "`--config FILE`, or the variable `KALYPSO_AGENT_CONFIG`" + `;
2. the environment: ` + "`otlp.tls.server-name` is `KALYPSO_AGENT_OTLP_TLS_SERVER_NAME`" + `;
3. flags: ` + "`--otlp.tls.server-name NAME`" + `.

A value replaces the one before as a whole: lists are not joined. What is not known is refused, with its place and the name that
was probably meant; so is a value of the wrong kind, and a variable ` + "`KALYPSO_AGENT_…`" + ` that is no setting (except the ones that Kubernetes
makes of a Service). ` + "`kalypso-agent config show --origin`" + ` takes the same flags as ` + "`run`" + ` and prints every value and where it came from.

In the file a name is a path, nested or with dots:

` + "```yaml\n" + Example + "```" + `

Lists are sequences in the file. In flags and variables commas part them, and a flag may be given again. Sizes, durations and
percentages need their unit: ` + "`128Mi`, `15s`, `1%`" + `. Secrets are never values, only the names of files that hold them.

SIGHUP reads the file again; with config.watch a change of its text does, too. What is marked *live* then changes at once;
anything else that differs is named in a warning and waits for a restart. A file with a mistake changes nothing, and the log says so.

`

// WriteReference writes the page that documents the settings.
func WriteReference(w io.Writer) error {
	out := bufio.NewWriter(w)
	_, _ = out.WriteString(referenceHead + "| setting | value | default | | |\n|---|---|---|---|---|\n") // Flush tells of errors
	for _, s := range settings() {
		word, fallback, live := s.word, "", ""
		if word == "" {
			word = "true|false"
		}
		if s.shape != scalar {
			word += ",…"
		}
		if s.fallback != "" {
			fallback = "`" + s.fallback + "`"
		}
		if s.live {
			live = "live"
		}
		_, _ = fmt.Fprintf(out, "| `%s` | %s | %s | %s | %s |\n", s.name, cell(word), fallback, live, cell(s.help))
	}
	return out.Flush()
}

// cell is text that does not end a table's cell.
func cell(text string) string {
	return strings.NewReplacer("|", `\|`, "*", `\*`).Replace(text)
}
