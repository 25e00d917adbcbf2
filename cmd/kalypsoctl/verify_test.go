package main

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/cmd/internal/checks"
	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/deploy/check"
)

// run is a proof with these outcomes.
func run(outcomes ...check.Outcome) *proof {
	p := &proof{kept: map[string]string{}}
	for i, id := range []string{"metrics", "logs", "mesh"}[:len(outcomes)] {
		p.checks = append(p.checks, check.Check{
			ID: id, Title: "title of " + id, Effect: "logs are not stored, or cannot be read", Fix: "kalypsoctl logs loki",
			Run: func(context.Context) check.Outcome { return outcomes[i] },
		})
	}
	return p
}

func TestProofIsPrinted(t *testing.T) {
	t.Setenv("LC_ALL", "C.UTF-8")
	t.Setenv("TERM", "xterm")
	written := check.Pass("series written and read back from Mimir")
	tests := []struct {
		name    string
		proof   *proof
		want    string
		verdict string
	}{
		{
			"what passes has its time", run(written, check.Pass("line written and read back from Loki")),
			`  ✓ metrics  series written and read back from Mimir              0.0 s
  ✓ logs     line written and read back from Loki                 0.0 s
`, "the stack works (0.0 s)",
		},
		{
			"what fails says what to do", run(written, check.Fail("no line could be written:\nloki-gateway.loki:80 does not answer: not in time"), check.Skip("istiod is not installed")),
			`  ✓ metrics  series written and read back from Mimir              0.0 s
  ✗ logs     no line could be written:
             loki-gateway.loki:80 does not answer: not in time
             effect  logs are not stored, or cannot be read
             fix     kalypsoctl logs loki
  – mesh     istiod is not installed
`, "not proved: logs (0.0 s)",
		},
		{
			"what was skipped is not claimed", run(check.Skip("mimir is not installed")),
			"  – metrics  mimir is not installed\n", "what is installed works, as far as it was tried (0.0 s)",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			synctest.Test(t, func(t *testing.T) { // nothing takes any time
				if err := tt.proof.print(t.Context(), &out); err != nil {
					t.Fatal(err)
				}
			})
			if diff := cmp.Diff(out.String(), tt.want); diff != "" {
				t.Errorf("(-got +want):\n%s", diff)
			}
			if got := tt.proof.verdict(); got != tt.verdict {
				t.Errorf("verdict %q, want %q", got, tt.verdict)
			}
			for line := range strings.Lines(out.String()) {
				if utf8.RuneCountInString(line) > 81 {
					t.Errorf("longer than a terminal: %q", line)
				}
			}
		})
	}
}

func TestKeptIDsArePrinted(t *testing.T) {
	p := run(check.Pass("series written and read back from Mimir"))
	p.kept["metrics"] = "0123456789abcdef0123456789abcdef"
	var text, data bytes.Buffer
	if err := p.print(t.Context(), &text); err != nil || !strings.Contains(text.String(), p.kept["metrics"]) {
		t.Errorf("%v: no id in\n%s", err, &text)
	}
	if err := cli.WriteJSON(&data, p.document("here")); err != nil {
		t.Fatal(err)
	}
	var doc verifyReport
	if err := json.Unmarshal(data.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	want := verifyReport{
		Schema: "kalypso.verify/v1", Context: "here", Healthy: true,
		Proofs: []verifyProof{{
			Row:  checks.Row{ID: "metrics", Title: "title of metrics", Severity: "required", State: "passed", Detail: "series written and read back from Mimir"},
			Kept: p.kept["metrics"],
		}},
	}
	if diff := cmp.Diff(doc, want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}
