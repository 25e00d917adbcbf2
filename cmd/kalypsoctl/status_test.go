package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/cmd/internal/term"
	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/deploy/status"
)

func TestStatusPage(t *testing.T) {
	now := time.Date(2026, 11, 26, 13, 0, 0, 0, time.UTC)
	ours := &helm.Installed{Version: "0.1.0", App: "v3.7.6", Managed: true}
	part := func(name string, h status.Health, ready, want int) status.Component {
		return status.Component{Component: component.Component{Name: name}, Health: h, Release: ours, Ready: ready, Want: want, Since: now.Add(-3 * 24 * time.Hour)}
	}
	healthy, gateway := part("mimir", status.Healthy, 12, 12), part("istio-base", status.Healthy, 0, 0)
	restarted := part("loki", status.Healthy, 7, 7)
	restarted.Warnings = []string{"loki-read-0 restarted 12m ago (OOMKilled, limit 512Mi)"}
	starting := part("tempo", status.Starting, 0, 1)
	starting.Note, starting.Since = "tempo-0: pulling image grafana/tempo:2.10.8", now.Add(-48*time.Second)
	broken := part("grafana", status.Broken, 0, 1)
	broken.Note, broken.Fix = `kalypso-grafana-6f: secret "kalypso-grafana-admin" not found`, "kalypsoctl install"
	unknown := status.Component{Component: component.Component{Name: "agent"}, Note: "no answer in 10 s"}
	foreign := part("minio", status.Healthy, 1, 1)
	foreign.Release = &helm.Installed{Version: "5.4.0", App: "2.1"}
	absent := status.Component{Component: component.Component{Name: "pyroscope"}, Health: status.Absent}

	tests := []struct {
		name     string
		all      []status.Component
		answered map[string]time.Time
		width    int
		healthy  bool
		want     string
	}{
		{"all is well", []status.Component{gateway, healthy}, nil, 0, true, `kalypso on home: healthy
component   ready  version  chart  since  notes
istio-base  -      3.7.6    0.1.0  3d
mimir       12/12  3.7.6    0.1.0  3d
`},
		{"what happened lately is a warning", []status.Component{restarted, foreign}, nil, 0, true, `kalypso on home: healthy, 1 warning
component  ready  version  chart  since  notes
loki       7/7    3.7.6    0.1.0  3d     ! loki-read-0 restarted 12m ago (OOMKilled, limit 512Mi)
minio      1/1    2.1      5.4.0  3d     installed by others
`},
		{"what is wrong, and what is not there", []status.Component{starting, broken, absent}, nil, 60, false, `kalypso on home: not healthy: 1 broken, 1 starting
component  ready  version  chart  since  notes
tempo      0/1    3.7.6    0.1.0  48 s   tempo-0: pulling i…
grafana    0/1    3.7.6    0.1.0  3d     ✗ kalypso-grafana-…
not installed: pyroscope

grafana: kalypso-grafana-6f: secret "kalypso-grafana-admin" not found
fix: kalypsoctl install
`},
		{"unknown is not healthy", []status.Component{unknown}, nil, 0, false, `kalypso on home: not healthy: 1 unknown
component  ready  version  chart  since  notes
agent      ?                             ? unknown: no answer in 10 s
`},
		{"unknown has its age, where it was known before", []status.Component{unknown}, map[string]time.Time{"agent": now.Add(-72 * time.Second)}, 0, false, `kalypso on home: not healthy: 1 unknown
component  ready  version  chart  since  notes
agent      ?                             ? unknown for 1m12s: no answer in 10 s
`},
		{"nothing is installed", []status.Component{absent}, nil, 0, false, `kalypso on home: not installed

  kalypsoctl preflight     can this cluster run it?
  kalypsoctl install       bring it here
`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := page{cluster: &kube.Cluster{Context: "home"}, all: tt.all, now: now, answered: tt.answered}
			var b strings.Builder
			if err := p.write(&b, term.Style{}, tt.width); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(b.String(), tt.want); diff != "" {
				t.Errorf("(-got +want):\n%s", diff)
			}
			if p.healthy() != tt.healthy {
				t.Errorf("healthy: %v", p.healthy())
			}
		})
	}
}
