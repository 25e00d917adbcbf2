package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	xterm "golang.org/x/term"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/term"
	"github.com/kalypso-dev/kalypso/deploy/agents"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/deploy/status"
	"github.com/kalypso-dev/kalypso/profiler"
)

// watchEvery is how often --watch looks.
const watchEvery = 2 * time.Second

type statusFlags struct {
	clusterFlags
	output cli.Output
	wait   bool
	watch  bool
}

func newStatusCommand() *cobra.Command {
	f := &statusFlags{}
	cmd := &cobra.Command{
		Use:   "status [flags]",
		Short: "how is the stack? on one screen",
		Long: `How is the stack? One line for each component: pods that are ready, version of
what runs and of its chart, since when, and what is wrong. What does not answer in time is shown as unknown.
Exit code 0: all that is installed is healthy. 3: something is not. 5: --wait waited in
vain.`,
		Example: `  kalypsoctl status                                   health at a glance
  kalypsoctl status --wait --timeout 5m               come back when everything is ready
  kalypsoctl status --watch                           again every 2 seconds
  kalypsoctl status -o json                           for a program to read`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.output.Check(cmd); err != nil {
				return err
			}
			if f.watch && (!f.output.Text() || f.wait) {
				return cli.Usage(cmd.CommandPath()+" --watch", "--watch is for people on a terminal: not together with -o or --wait")
			}
			return f.run(cmd)
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	f.output.Register(fl)
	fl.BoolVar(&f.wait, "wait", false, "wait until everything is ready")
	fl.BoolVar(&f.watch, "watch", false, "look again every 2 seconds, until ^C")
	f.register(fl)
	f.registerTimeout(fl, 10*time.Minute, "how long --wait waits (0: no limit)")
	quietly(cmd)
	f.complete(cmd)
	return cmd
}

func (f *statusFlags) run(cmd *cobra.Command) error {
	ctx := cmd.Context()
	cluster, err := f.connect(ctx)
	if err != nil {
		return err
	}
	ways := agents.Keep(cluster)
	defer ways.Close()
	if f.watch {
		return f.again(ctx, cmd.OutOrStdout(), cluster, ways)
	}
	all, asked := look(ctx, cluster, ways)
	var waiting error
	if f.wait {
		if waiting = f.until(ctx, cmd.ErrOrStderr(), cluster, all); ctx.Err() == nil {
			all, asked = look(ctx, cluster, ways)
		}
	}
	if ctx.Err() != nil {
		return cli.Exit(cli.ExitInterrupted)
	}
	p := page{cluster: cluster, all: all, agents: asked, now: time.Now()}
	if f.output.Text() {
		err = p.print(cmd.OutOrStdout())
	} else {
		err = f.output.Write(cmd.OutOrStdout(), p.report())
	}
	var late *kube.Timeout
	switch {
	case err != nil:
		return fmt.Errorf("print the status: %w", err)
	case errors.As(waiting, &late):
		return cli.TimedOut(waiting)
	case !p.healthy():
		return cli.Exit(cli.ExitNotHealthy)
	}
	return waiting
}

// until waits until all objects of what is installed are ready.
func (f *statusFlags) until(ctx context.Context, progress io.Writer, cluster *kube.Cluster, all []status.Component) error {
	var refs []kube.Ref
	for _, c := range status.Installed(all) {
		if c.Release != nil {
			refs = append(refs, status.Refs(c.Release)...)
		}
	}
	limited, cancel := f.limited(ctx)
	defer cancel()
	said := ""
	err := cluster.WaitReady(limited, refs, func(p kube.Progress) {
		if p.Reason != said { // each reason once
			said = p.Reason
			_, _ = fmt.Fprintln(progress, p)
		}
	})
	var fault *profiler.Fault
	if errors.As(err, &fault) {
		var late *kube.Timeout
		if !errors.As(err, &late) {
			return nil // the page says what is broken
		}
	}
	return err
}

// again looks until it is interrupted.
func (f *statusFlags) again(ctx context.Context, out io.Writer, cluster *kube.Cluster, ways *agents.Kept) error {
	file, ok := out.(*os.File)
	if !ok || !xterm.IsTerminal(int(file.Fd())) {
		return cli.Usage("kalypsoctl status --wait", "--watch is for people on a terminal, and standard output is none")
	}
	answered := map[string]time.Time{}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		all, asked := look(ctx, cluster, ways)
		if ctx.Err() != nil {
			return cli.Exit(cli.ExitInterrupted)
		}
		p := page{cluster: cluster, all: all, agents: asked, now: time.Now(), answered: answered}
		var text strings.Builder
		if err := p.write(&text, term.For(out, os.Getenv), columns(out)); err != nil {
			return err
		}
		for _, c := range all {
			if c.Health != status.Unknown {
				answered[c.Name] = p.now
			}
		}
		if _, err := io.WriteString(out, "\x1b[H\x1b[J"+text.String()); err != nil {
			return fmt.Errorf("print the status: %w", err)
		}
		select {
		case <-ctx.Done():
			return cli.Exit(cli.ExitInterrupted)
		case <-tick.C:
		}
	}
}

// columns is the width of a terminal; a pipe has none.
func columns(out io.Writer) int {
	file, ok := out.(*os.File)
	if !ok {
		return 0
	}
	width, _, err := xterm.GetSize(int(file.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// page is what status shows.
type page struct {
	cluster  *kube.Cluster
	all      []status.Component
	agents   fleet
	now      time.Time
	answered map[string]time.Time // when each component answered last, where it is looked again and again
}

func (p *page) installed() []status.Component { return status.Installed(p.all) }

// healthy says whether something is installed and nothing is wrong with it.
func (p *page) healthy() bool {
	installed := p.installed()
	for _, c := range installed {
		if c.Health != status.Healthy {
			return false
		}
	}
	return len(installed) > 0
}

func (p *page) print(out io.Writer) error {
	return p.write(out, term.For(out, os.Getenv), columns(out))
}

// write prints the page. Lines are not longer than width, if that is not zero.
func (p *page) write(out io.Writer, style term.Style, width int) error {
	installed := p.installed()
	if len(installed) == 0 {
		_, err := fmt.Fprintf(out, "kalypso on %s: not installed\n\n  kalypsoctl preflight     can this cluster run it?\n  kalypsoctl install       bring it here\n", p.cluster.Context)
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "kalypso on %s: %s\n", p.cluster.Context, p.verdict())
	var rows [][]string
	for _, c := range installed {
		rows = append(rows, p.row(c, style))
	}
	if err := style.Table(&b, []string{"component", "ready", "version", "chart", "since", "notes"}, rows); err != nil {
		return err
	}
	if absent := p.absent(); len(absent) > 0 {
		fmt.Fprintf(&b, "not installed: %s\n", strings.Join(absent, ", "))
	}
	if err := p.agents.table(&b, style); err != nil {
		return err
	}
	for line := range strings.Lines(b.String()) {
		if line = strings.TrimSuffix(line, "\n"); width > 0 {
			line = cut(line, width)
		}
		if _, err := fmt.Fprintln(out, line); err != nil {
			return err
		}
	}
	if _, err := io.WriteString(out, p.agents.quality(width)); err != nil {
		return err
	}
	if err := writeBroken(out, installed); err != nil {
		return err
	}
	return p.agents.writeTroubles(out)
}

// writeBroken says in full what does not heal, which the table may have cut, and
// what to do about it.
func writeBroken(out io.Writer, installed []status.Component) error {
	for _, c := range installed {
		if c.Health != status.Broken && c.Fix == "" {
			continue
		}
		if _, err := fmt.Fprintf(out, "\n%s: %s\n", c.Name, c.Note); err != nil {
			return err
		}
		if c.Fix != "" {
			if _, err := fmt.Fprintf(out, "fix: %s\n", c.Fix); err != nil {
				return err
			}
		}
	}
	return nil
}

// row is the line of one component.
func (p *page) row(c status.Component, style term.Style) []string {
	ready, version, chart, since := "?", "", "", ""
	if c.Health != status.Unknown {
		ready = "-"
		if c.Want > 0 {
			ready = fmt.Sprintf("%d/%d", c.Ready, c.Want)
		}
		since = kube.Age(p.now.Sub(c.Since))
	}
	if c.Release != nil {
		version, chart = strings.TrimPrefix(c.Release.App, "v"), c.Release.Version
	}
	return []string{c.Name, ready, version, chart, since, p.note(c, style)}
}

// note is the most important thing to say of a component.
func (p *page) note(c status.Component, style term.Style) string {
	switch c.Health {
	case status.Broken:
		if style.ASCII {
			return "x " + c.Note
		}
		return "✗ " + c.Note
	case status.Starting:
		return c.Note
	case status.Unknown:
		note := "? unknown: " + c.Note
		if last, ok := p.answered[c.Name]; ok {
			note = fmt.Sprintf("? unknown for %s: %s", kube.Age(p.now.Sub(last)), c.Note)
		}
		return note
	}
	if len(c.Warnings) > 0 {
		return "! " + strings.Join(c.Warnings, "; ")
	}
	if c.Release != nil && !c.Release.Managed {
		return "installed by others"
	}
	if c.Name == "agent" {
		return p.agents.note()
	}
	return ""
}

func (p *page) absent() []string {
	var names []string
	for _, c := range p.all {
		if c.Health == status.Absent {
			names = append(names, c.Name)
		}
	}
	return names
}

// verdict is the first line's answer.
func (p *page) verdict() string {
	counts, warnings := map[status.Health]int{}, p.agents.warnings()
	for _, c := range p.installed() {
		counts[c.Health]++
		if c.Health == status.Healthy {
			warnings += len(c.Warnings)
		}
	}
	var parts []string
	for _, h := range []status.Health{status.Broken, status.Starting, status.Unknown} {
		if n := counts[h]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, h))
		}
	}
	switch {
	case len(parts) > 0:
		return "not healthy: " + strings.Join(parts, ", ")
	case warnings > 0:
		return "healthy, " + kube.Count(warnings, "warning")
	}
	return "healthy"
}

// statusReport is kalypso.status/v1. Fields are added, not changed.
type statusReport struct {
	Schema     string            `json:"schema"`
	Context    string            `json:"context"`
	Kubernetes string            `json:"kubernetes"`
	Healthy    bool              `json:"healthy"`
	Components []statusComponent `json:"components"`
	Agents     []statusAgent     `json:"agents"`
}

type statusComponent struct {
	Name      string     `json:"name"`
	Health    string     `json:"health"` // healthy, starting, broken, unknown, absent
	Namespace string     `json:"namespace"`
	Release   string     `json:"release"`
	Version   string     `json:"version,omitempty"` // of the chart
	App       string     `json:"app_version,omitempty"`
	Revision  int        `json:"revision,omitempty"`
	Managed   bool       `json:"managed"`
	Ready     int        `json:"ready"`
	Want      int        `json:"want"`
	Since     *time.Time `json:"since,omitempty"`
	Note      string     `json:"note,omitempty"`
	Fix       string     `json:"fix,omitempty"`
	Warnings  []string   `json:"warnings,omitempty"`
	Asked     time.Time  `json:"asked"`
}

func (p *page) report() statusReport {
	doc := statusReport{Schema: "kalypso.status/v1", Context: p.cluster.Context, Kubernetes: p.cluster.Version, Healthy: p.healthy(), Components: []statusComponent{}, Agents: p.agents.json()}
	for _, c := range p.all {
		s := statusComponent{
			Name: c.Name, Health: c.Health.String(), Namespace: c.Namespace, Release: c.Component.Release,
			Ready: c.Ready, Want: c.Want, Note: c.Note, Fix: c.Fix, Warnings: c.Warnings, Asked: c.Asked.UTC(),
		}
		if c.Release != nil {
			s.Version, s.App, s.Revision, s.Managed = c.Release.Version, c.Release.App, c.Release.Revision, c.Release.Managed
		}
		if !c.Since.IsZero() {
			since := c.Since.UTC()
			s.Since = &since
		}
		doc.Components = append(doc.Components, s)
	}
	return doc
}
