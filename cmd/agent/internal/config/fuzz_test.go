package config

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/kalypso-dev/kalypso/profiler"
)

// FuzzUnits: what is taken for a value is written back as one that means the
// same, and what is refused comes with a value that would be taken.
func FuzzUnits(f *testing.F) {
	for _, seed := range []string{"128Mi", "1.5GiB", "500MB", "1%", "0.5%", "15s", "1h30m", "-1s", "128", "128m", "2d", "9999999999Ti", "", "%", "1e9%", "0x1Mi", "∞"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		again(t, size(), text)
		again(t, percent(), text)
		again(t, duration(), text)
	})
}

func again[T comparable](t *testing.T, k kind[T], text string) {
	t.Helper()
	value, wrong := k.parse(text)
	if wrong != nil {
		if wrong.why == nil {
			t.Errorf("%s %q is refused without a reason", k.word, text)
		}
		if _, still := k.parse(wrong.better); wrong.better != "" && still != nil && !strings.Contains(still.why.Error(), "more than any disk") {
			t.Errorf("%s %q: the better value %q is refused too: %v", k.word, text, wrong.better, still.why)
		}
		return
	}
	if back, wrong := k.parse(k.text(value)); wrong != nil || back != value {
		t.Errorf("%s %q is written %q, which is %v, %+v", k.word, text, k.text(value), back, wrong)
	}
}

// FuzzYAML: a file is read or refused with its place and a reason, and what was
// read is written as a file that gives the same settings.
func FuzzYAML(f *testing.F) {
	for _, seed := range []string{
		Example, "otlp: {endpoint: a:1, tls: {ca: x}}\n", "listen: unix:/a\nlisten.allow-remote: true\n", "labels: {a: b, c.d: \"e=f\"}\n",
		"export: [otlp, file:/x]\n", "frequncy: 1\n", "frequency: [1]\n", "a: &a [*a]\n", "<<: {}\n", "? [a]\n: b\n", "---\n---\n", "\t", "- a\n", "kernel: TRUE\n",
		"otlp: !!binary aGk=\n", "frequency: !!int \"97\"\n", "frequency: !x 97\n", "window: 15s # c\n", "otlp:\n  tenant: |\n    a\n    b\n", "\xff\xfe", "labels: {~: a}\n",
	} {
		f.Add([]byte(seed))
	}
	table := settings()
	f.Fuzz(func(t *testing.T, data []byte) {
		c := defaults(table)
		if err := readYAML(c, table, "agent.yaml", data); err != nil {
			var fault *profiler.Fault
			if !errors.As(err, &fault) || !strings.Contains(fault.What, "agent.yaml") || strings.Contains(fault.What, "\n") {
				t.Errorf("refused with %q", err)
			}
			return
		}
		for _, origins := range []bool{false, true} {
			var text bytes.Buffer
			if err := c.WriteYAML(&text, origins); err != nil {
				t.Fatal(err)
			}
			back := defaults(table)
			if err := readYAML(back, table, "agent.yaml", text.Bytes()); err != nil {
				t.Fatalf("what was written is refused: %v\n%s", err, &text)
			}
			if changes := Changes(c, back); len(changes) > 0 {
				t.Errorf("changed by writing and reading: %v\n%s", changes, &text)
			}
		}
	})
}
