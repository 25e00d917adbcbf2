package top

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/profiler/api"
)

func TestLines(t *testing.T) {
	span := api.Span{To: time.Date(2026, 11, 26, 12, 0, 0, 0, time.Local), Seconds: 30, Host: "larch", Event: "cpu-clock", Frequency: 97, Lowest: 49, Samples: 4000, Cores: 1.5, Processes: 2}
	for _, c := range []struct {
		name    string
		by      api.By
		row     api.TopRow
		columns int
		want    string
	}{
		{"a function of a file", api.ByFunction, api.TopRow{Name: "price", Kind: "native", Module: "shop", SelfPercent: 60, TotalPercent: 75}, 0, "  60.0 %   75.0 %  native  price (shop)"},
		{"what rounds to nothing is not nothing", api.ByModule, api.TopRow{Name: "/bin/sh", SelfPercent: 0.01, TotalPercent: 0.01}, 0, "  <0.1 %   <0.1 %  /bin/sh"},
		{"a process of a service", api.ByProcess, api.TopRow{Name: "server", PID: 4711, Service: "shop", SelfPercent: 100, SelfCores: 1}, 0, " 100.0 %    1.00     4711  server (shop)"},
		{"a process of one of several nodes", api.ByProcess, api.TopRow{Name: "server", PID: 4711, Node: "worker-1", SelfPercent: 100, SelfCores: 1}, 0, " 100.0 %    1.00     4711  worker-1  server"},
		{"no wider than the terminal", api.ByService, api.TopRow{Name: strings.Repeat("x", 50), SelfPercent: 100, SelfCores: 1}, 30, " 100.0 %    1.00  xxxxxxxxxxx…"},
		{"no control codes", api.ByService, api.TopRow{Name: "a\x1b[2J", SelfPercent: 100, SelfCores: 1}, 0, ` 100.0 %    1.00  a\x1b[2J`},
	} {
		t.Run(c.name, func(t *testing.T) {
			lines := Lines(&api.Top{Span: span, By: c.by, Rows: []api.TopRow{c.row}}, c.columns)
			if diff := cmp.Diff(lines[len(lines)-1], c.want); diff != "" || len(lines) != Head+1 {
				t.Errorf("(-got +want):\n%s", diff)
			}
		})
	}
	lines := Lines(&api.Top{Span: span, By: api.ByFunction}, 0)
	if got := lines[0]; got != "1.50 cores busy · 2 processes · cpu-clock 49 to 97 Hz · lost 0 · 30 s to 12:00:00 · larch" {
		t.Errorf("head %q", got)
	}
	if got := Lines(&api.Top{Span: span, By: api.ByFunction}, 60)[0]; got != "1.50 cores busy · 2 processes · cpu-clock 49 to 97 Hz" {
		t.Errorf("on 60 columns the head is %q", got)
	}
	if got := lines[len(lines)-1]; got != "nothing ran on a CPU" {
		t.Errorf("an empty table ends with %q", got)
	}
}
