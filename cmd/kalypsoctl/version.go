package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/semver"

	"github.com/kalypso-dev/kalypso/charts"
	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/deploy/agents"
	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/deploy/status"
)

// versionLimit is how long the cluster may take to say what is on it.
const versionLimit = 40 * time.Second

type versionFlags struct {
	clusterFlags
	output cli.Output
	client bool
}

func newVersionCommand() *cobra.Command {
	f := &versionFlags{}
	cmd := &cobra.Command{
		Use:   "version [flags]",
		Short: "which version is this, and which are on the cluster?",
		Long: `Print the version of kalypsoctl, of the agents and of the charts on the cluster, and
warn where they do not belong together. Where there is no kubeconfig only the first.`,
		Example: `  kalypsoctl version                                  this one, agents, charts; warns where they differ
  kalypsoctl version --client                         which build is this?
  kalypsoctl version -o json                          for a program to read`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.output.Check(cmd); err != nil {
				return err
			}
			return f.run(cmd)
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	f.output.Register(fl)
	fl.BoolVar(&f.client, "client", false, "only this kalypsoctl: ask no cluster")
	f.register(fl)
	f.complete(cmd)
	return cmd
}

func (f *versionFlags) run(cmd *cobra.Command) error {
	report := versionReport{BuildInfo: cli.ReadBuildInfo(version, commit)}
	var failed error
	if !f.client {
		report.Cluster, failed = f.look(cmd.Context())
		if f.kubeconfig == "" && f.context == "" && errors.Is(failed, kube.ErrKubeconfig) {
			failed = nil // there is none to ask
		}
	}
	if report.Cluster != nil {
		report.Cluster.judge(report.Version, embeddedVersion())
	}
	var err error
	if !f.output.Text() {
		err = f.output.Write(cmd.OutOrStdout(), report)
	} else {
		err = report.print(cmd.OutOrStdout(), cmd.ErrOrStderr())
	}
	if err != nil {
		return fmt.Errorf("print the version: %w", err)
	}
	if report.Cluster != nil {
		warn(cmd.ErrOrStderr(), report.Cluster.missing)
	}
	return failed
}

// look asks what is on the cluster.
func (f *versionFlags) look(ctx context.Context) (*clusterVersions, error) {
	ctx, cancel := context.WithTimeout(ctx, versionLimit)
	defer cancel()
	cluster, err := kube.Open(quiet(ctx), f.config())
	if err != nil {
		return nil, nearContext(err)
	}
	v := &clusterVersions{Context: cluster.Context, Kubernetes: cluster.Version, Agents: []agentVersion{}, Charts: []chartVersion{}}
	installed := false
	var unread, notes []string // releases that could not be read, for one reason most of the time
	for _, c := range status.Installed(status.Look(ctx, cluster, component.All())) {
		if c.Release == nil {
			unread, notes = append(unread, c.Name), append(notes, c.Note)
			continue
		}
		installed = installed || c.Name == "agent"
		v.Charts = append(v.Charts, chartVersion{c.Name, c.Release.Version, c.Release.App, c.Release.Managed})
	}
	if len(unread) > 0 {
		v.missing = append(v.missing, fmt.Errorf("no version of %s: %s", someNames(unread), notes[0]))
	}
	if installed {
		v.askAgents(ctx, cluster)
	}
	return v, nil
}

func (v *clusterVersions) askAgents(ctx context.Context, cluster *kube.Cluster) {
	scope, err := agents.Find(ctx, cluster.Client, agents.Target{Kind: agents.Cluster})
	if err != nil {
		v.missing = append(v.missing, err)
		return
	}
	fleet, err := agents.Open(ctx, cluster.Client, agents.Forwarded{Cluster: cluster}, scope)
	if err != nil {
		v.missing = append(v.missing, err)
		return
	}
	defer fleet.Close()
	answers, err := fleet.Versions(ctx)
	if err != nil {
		v.missing = append(v.missing, err)
		return
	}
	v.missing = append(v.missing, fleet.Missing...)
	for _, a := range answers {
		v.Agents = append(v.Agents, agentVersion{a.Node, a.Version})
	}
}

// embeddedVersion is that of the charts in this program: all have one.
func embeddedVersion() string {
	for _, c := range component.All() {
		files, err := charts.Open(c.Chart)
		if err != nil {
			continue
		}
		if chart, err := helm.Open(files); err == nil {
			return chart.Version()
		}
	}
	return ""
}

// versionReport is kalypso.version/v1. Fields are added, not changed.
type versionReport struct {
	cli.BuildInfo
	Cluster *clusterVersions `json:"cluster,omitempty"`
}

type clusterVersions struct {
	Context    string         `json:"context"`
	Kubernetes string         `json:"kubernetes"`
	Agents     []agentVersion `json:"agents"`
	Charts     []chartVersion `json:"charts"`
	Skew       []skew         `json:"skew"`
	missing    []error        // what was not answered
}

type agentVersion struct {
	Node    string `json:"node"`
	Version string `json:"version"`
}

type chartVersion struct {
	Component string `json:"component"`
	Version   string `json:"version"`
	App       string `json:"app_version,omitempty"`
	Managed   bool   `json:"managed"`
}

// skew is what does not belong together, and what to do about it.
type skew struct {
	What string `json:"what"`
	Fix  string `json:"fix"`
}

// judge finds what is of another version than this program and its charts.
func (v *clusterVersions) judge(program, ours string) {
	v.Skew = []skew{}
	order := []struct {
		sign int
		is   string
		fix  string
	}{{-1, "older", "kalypsoctl upgrade"}, {+1, "newer", "use the kalypsoctl of that version"}}
	for _, o := range order {
		var others []string
		for _, c := range v.Charts {
			if c.Managed && older(c.Version, ours) == o.sign {
				others = append(others, c.Component)
			}
		}
		if len(others) > 0 {
			v.Skew = append(v.Skew, skew{fmt.Sprintf("charts on the cluster are %s than those of this kalypsoctl, %s: %s", o.is, ours, someNames(others)), o.fix})
		}
	}
	for _, o := range order {
		var others []string
		for _, a := range v.Agents {
			if older(a.Version, program) == o.sign {
				others = append(others, a.Node)
			}
		}
		if len(others) > 0 {
			fix := o.fix
			if o.sign < 0 {
				fix += " agent"
			}
			v.Skew = append(v.Skew, skew{fmt.Sprintf("agents are %s than this kalypsoctl, %s: %s", o.is, program, someNames(others)), fix})
		}
	}
	if all := byVersion(v.Agents, func(a agentVersion) (string, string) { return a.Version, a.Node }); len(all) > 1 {
		v.Skew = append(v.Skew, skew{fmt.Sprintf("agents are of %d versions: an upgrade is on its way, or does not get on", len(all)), "kalypsoctl status"})
	}
}

// older compares the numbers of two versions, -1 where the first is before the
// second. Builds between releases are taken for the release that they are before,
// and what is no version for the same.
func older(a, b string) int {
	number := func(v string) string {
		v = "v" + strings.TrimPrefix(v, "v")
		if !semver.IsValid(v) {
			return ""
		}
		return strings.TrimSuffix(strings.TrimSuffix(v, semver.Build(v)), semver.Prerelease(v))
	}
	x, y := number(a), number(b)
	if x == "" || y == "" {
		return 0
	}
	return semver.Compare(x, y)
}

// sameVersion is what has one version.
type sameVersion struct {
	version string
	names   []string
}

// byVersion gathers by version, newest first.
func byVersion[T any](list []T, of func(T) (version, name string)) []sameVersion {
	var out []sameVersion
	for _, item := range list {
		version, name := of(item)
		i := slices.IndexFunc(out, func(g sameVersion) bool { return g.version == version })
		if i < 0 {
			out, i = append(out, sameVersion{version: version}), len(out)
		}
		out[i].names = append(out[i].names, name)
	}
	slices.SortStableFunc(out, func(a, b sameVersion) int {
		return cmp.Or(-older(a.version, b.version), cmp.Compare(a.version, b.version))
	})
	return out
}

// maxNames is how many names a line has.
const maxNames = 5

func someNames(names []string) string {
	if more := len(names) - maxNames; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:maxNames], ", "), more)
	}
	return strings.Join(names, ", ")
}

// print writes versions to out and warnings to errs.
func (r versionReport) print(out, errs io.Writer) error {
	text := r.Text("kalypsoctl")
	if v := r.Cluster; v != nil {
		text += fmt.Sprintf("\ncluster %s, Kubernetes %s\n", v.Context, v.Kubernetes)
		text += versionRows("agents", byVersion(v.Agents, func(a agentVersion) (string, string) { return a.Version, a.Node }))
		text += versionRows("charts", byVersion(v.Charts, func(c chartVersion) (string, string) { return c.Version, c.Component }))
	}
	if _, err := io.WriteString(out, text); err != nil || r.Cluster == nil {
		return err
	}
	for _, s := range r.Cluster.Skew {
		if _, err := fmt.Fprintf(errs, "warning: %s\nfix:     %s\n", s.What, s.Fix); err != nil {
			return err
		}
	}
	return nil
}

// versionRows is a line for each version of something.
func versionRows(title string, all []sameVersion) string {
	if len(all) == 0 {
		return title + "  none\n"
	}
	width := 0
	for _, g := range all {
		width = max(width, len(g.version))
	}
	var b strings.Builder
	for _, g := range all {
		fmt.Fprintf(&b, "%-6s  %-*s  %s\n", title, width, g.version, someNames(g.names))
		title = ""
	}
	return b.String()
}
