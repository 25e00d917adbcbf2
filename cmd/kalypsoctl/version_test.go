package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
)

func TestVersionPage(t *testing.T) {
	agents := func(list ...string) (out []agentVersion) {
		for i, v := range list {
			out = append(out, agentVersion{fmt.Sprintf("node-%d", i), v})
		}
		return out
	}
	tests := []struct {
		name     string
		agents   []agentVersion
		charts   []chartVersion
		program  string
		out      string
		warnings string
	}{
		{"all of one version", agents("v0.2.0", "v0.2.0"), []chartVersion{{"loki", "0.2.0", "3.7.6", true}, {"agent", "0.2.0", "0.2.0", true}}, "v0.2.0", `
cluster home, Kubernetes v1.33.4
agents  v0.2.0  node-0, node-1
charts  0.2.0  loki, agent
`, ""},
		{"nothing is installed", nil, nil, "v0.2.0", `
cluster home, Kubernetes v1.33.4
agents  none
charts  none
`, ""},
		{"what is older wants an upgrade, and what is on its way is told", agents("v0.1.9", "v0.2.0", "v0.1.9"), []chartVersion{{"loki", "0.1.9", "3.7.6", true}, {"agent", "0.2.0", "0.2.0", true}}, "v0.2.0", `
cluster home, Kubernetes v1.33.4
agents  v0.2.0  node-1
        v0.1.9  node-0, node-2
charts  0.2.0  agent
        0.1.9  loki
`, `warning: charts on the cluster are older than those of this kalypsoctl, 0.2.0: loki
fix:     kalypsoctl upgrade
warning: agents are older than this kalypsoctl, v0.2.0: node-0, node-2
fix:     kalypsoctl upgrade agent
warning: agents are of 2 versions: an upgrade is on its way, or does not get on
fix:     kalypsoctl status
`},
		{"what is newer wants another kalypsoctl", agents("v0.3.0"), []chartVersion{{"agent", "0.3.0", "0.3.0", true}}, "v0.2.0", `
cluster home, Kubernetes v1.33.4
agents  v0.3.0  node-0
charts  0.3.0  agent
`, `warning: charts on the cluster are newer than those of this kalypsoctl, 0.2.0: agent
fix:     use the kalypsoctl of that version
warning: agents are newer than this kalypsoctl, v0.2.0: node-0
fix:     use the kalypsoctl of that version
`},
		{"releases of others and builds between releases are not compared", agents("v0.2.0-dev.0123456789ab"), []chartVersion{{"loki", "6.0.0", "3.0.0", false}}, "v0.2.0-dev.ba9876543210", `
cluster home, Kubernetes v1.33.4
agents  v0.2.0-dev.0123456789ab  node-0
charts  6.0.0  loki
`, ""},
		{"many nodes are counted", agents("v0.2.0", "v0.2.0", "v0.2.0", "v0.2.0", "v0.2.0", "v0.2.0", "v0.2.0"), nil, "(devel)", `
cluster home, Kubernetes v1.33.4
agents  v0.2.0  node-0, node-1, node-2, node-3, node-4 and 2 more
charts  none
`, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := &clusterVersions{Context: "home", Kubernetes: "v1.33.4", Agents: tt.agents, Charts: tt.charts}
			v.judge(tt.program, "0.2.0")
			build := cli.BuildInfo{Version: tt.program, Commit: "0123", Go: "go1.26.8", Arch: "linux/amd64"}
			var out, errs strings.Builder
			if err := (versionReport{BuildInfo: build, Cluster: v}).print(&out, &errs); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(out.String(), build.Text("kalypsoctl")+tt.out); diff != "" {
				t.Errorf("(-got +want):\n%s", diff)
			}
			if diff := cmp.Diff(errs.String(), tt.warnings); diff != "" {
				t.Errorf("warnings (-got +want):\n%s", diff)
			}
		})
	}
}

func TestEmbeddedVersion(t *testing.T) {
	if v := embeddedVersion(); older(v, "0.0.0") != 1 {
		t.Errorf("the charts are of version %q", v)
	}
}
