package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/cmd/internal/term"
	"github.com/kalypso-dev/kalypso/deploy/agents"
	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/deploy/status"
	"github.com/kalypso-dev/kalypso/profiler/api"
)

func reportOf(node string, hz int, troubles ...agents.Trouble) agents.Report {
	return agents.Report{Node: node, Pod: "agent-" + node, Troubles: troubles, Quality: &api.Quality{
		Frequency: hz, WantedFrequency: 97, StacksComplete: 981, StacksByReason: map[string]uint64{"root": 981, "truncated": 19},
		Frames: 1000, FramesNamed: 992, Rates: []api.Rate{{Samples: 10000, Lost: 1}},
		Cost: api.CostReport{CPUPercent: float64(hz) / 160, RSSBytes: 90 << 20, MapBytes: int64(hz) << 20},
	}}
}

// TestStatusOfAgents: one screen, of one agent and of many.
func TestStatusOfAgents(t *testing.T) {
	now := time.Date(2026, 11, 26, 13, 0, 0, 0, time.UTC)
	agent := status.Component{
		Component: component.Component{Name: "agent"}, Health: status.Healthy, Ready: 2, Want: 2, Since: now.Add(-time.Hour),
		Release: &helm.Installed{Version: "0.1.0", Managed: true},
	}
	slow := agents.Trouble{What: "it samples 23 times a second and not 97: its CPU budget of 1 % allows no more", Fix: `kalypsoctl upgrade agent --set 'agent.config.cpu\.budget=2%'`}
	silent := agents.Report{Node: "fir", Troubles: []agents.Trouble{{What: "node fir has no agent: no pod of kalypso-agent is on it", Fix: "kalypsoctl status"}}}
	away := func(node, pod string) agents.Report {
		return agents.Report{Node: node, Troubles: []agents.Trouble{{
			What: "cannot forward a port to pod kalypso/agent-" + pod + ": connection refused", Fix: "kubectl -n kalypso describe pod agent-" + pod,
		}}}
	}
	var many []agents.Report
	for i := range 30 {
		r := reportOf(fmt.Sprintf("worker-%02d", i), 97)
		if i < 3 {
			r = reportOf(fmt.Sprintf("worker-%02d", i), 23, slow)
		}
		many = append(many, r)
	}
	for _, c := range []struct {
		name    string
		reports []agents.Report
		width   int
		want    string
	}{
		{"one agent is in its line", []agents.Report{reportOf("larch", 97)}, 0, `kalypso on home: healthy
component  ready  version  chart  since  notes
agent      2/2             0.1.0  60m    97 Hz, 0.6 % CPU, 187 MiB, lost 0.01 %
profiling quality: 98.1 % of stacks complete · 1.9 % truncated · 99.2 % of frames named · lost 0.01 %
`},
		{"several have a line each, and what is wrong is said in full", []agents.Report{silent, reportOf("larch", 23, slow), reportOf("birch", 97)}, 80, `kalypso on home: healthy, 2 warnings
component  ready  version  chart  since  notes
agent      2/2             0.1.0  60m

node   rate   CPU    memory   lost    stacks  notes
fir    ?                                      ! node fir has no agent
larch  23 Hz  0.1 %  113 MiB  0.01 %  98.1 %  ! it samples 23 times a second an…
birch  97 Hz  0.6 %  187 MiB  0.01 %  98.1 %
profiling quality: 98.1 % of stacks complete · 1.9 % truncated
  99.2 % of frames named · lost 0.01 %

node fir has no agent: no pod of kalypso-agent is on it
fix: kalypsoctl status

agent on larch: it samples 23 times a second and not 97: its CPU budget of 1 % allows no more
fix: kalypsoctl upgrade agent --set 'agent.config.cpu\.budget=2%'
`},
		{"what is the same of several is said once, whatever their pods are called", []agents.Report{away("a", "x7"), away("b", "y9")}, 0, `kalypso on home: healthy, 2 warnings
component  ready  version  chart  since  notes
agent      2/2             0.1.0  60m

node  rate  CPU  memory  lost  stacks  notes
a     ?                                ! cannot forward a port to pod kalypso/agent-x7
b     ?                                ! cannot forward a port to pod kalypso/agent-y9

agents on 2 nodes (a, …): cannot forward a port to pod kalypso/agent-x7: connection refused
fix: kubectl -n kalypso describe pod agent-x7
`},
		{"of many those that are not as they should be", many, 80, `kalypso on home: healthy, 3 warnings
component  ready  version  chart  since  notes
agent      2/2             0.1.0  60m

node       rate   CPU    memory   lost    stacks  notes
worker-00  23 Hz  0.1 %  113 MiB  0.01 %  98.1 %  ! it samples 23 times a secon…
worker-01  23 Hz  0.1 %  113 MiB  0.01 %  98.1 %  ! it samples 23 times a secon…
worker-02  23 Hz  0.1 %  113 MiB  0.01 %  98.1 %  ! it samples 23 times a secon…
27 more agents: 97 Hz, 0.6 % CPU, 187 MiB, lost 0.01 %
profiling quality: 98.1 % of stacks complete · 1.9 % truncated
  99.2 % of frames named · lost 0.01 %

agents on 3 nodes (worker-00, …): it samples 23 times a second and not 97: its CPU budget of 1 % allows no more
fix: kalypsoctl upgrade agent --set 'agent.config.cpu\.budget=2%'
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := page{cluster: &kube.Cluster{Context: "home"}, all: []status.Component{agent}, agents: fleet{reports: c.reports}, now: now}
			var b strings.Builder
			if err := p.write(&b, term.Style{}, c.width); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(b.String(), c.want); diff != "" {
				t.Errorf("(-got +want):\n%s", diff)
			}
			table, _, _ := strings.Cut(b.String(), "profiling quality")
			for line := range strings.Lines(table) {
				if c.width > 0 && utf8.RuneCountInString(strings.TrimSuffix(line, "\n")) > c.width {
					t.Errorf("wider than %d: %s", c.width, line)
				}
			}
			if !p.healthy() {
				t.Error("not healthy")
			}
		})
	}
	text, err := json.Marshal((&fleet{reports: []agents.Report{silent, reportOf("larch", 23, slow)}}).json())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"node":"fir","answered":false`, `"frequency":23,"wanted_frequency":97`, `"memory_bytes":118489088`, `"stacks_complete_percent":98.1`, `"warnings":[{"what":"it samples 23`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
}

// That no stack is whole is shown; that there are none yet is no figure.
func TestQualityOfNothing(t *testing.T) {
	none, broken := reportOf("birch", 97), reportOf("larch", 97)
	none.Quality.StacksComplete, none.Quality.StacksByReason = 0, nil
	broken.Quality.StacksComplete, broken.Quality.StacksByReason = 0, map[string]uint64{"truncated": 500}
	for _, tt := range []struct {
		name          string
		report        agents.Report
		line, ofAgent string
	}{
		{"no stack yet", none, "", ""},
		{"no stack is whole", broken, "profiling quality: 0.0 % of stacks complete", "0.0 %"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := fleet{reports: []agents.Report{tt.report}}
			line, _, _ := strings.Cut(f.quality(0), " · ")
			if got := agentRow(&tt.report)[5]; got != tt.ofAgent || line != tt.line {
				t.Errorf("it is %q and %q, want %q and %q", got, line, tt.ofAgent, tt.line)
			}
		})
	}
}
