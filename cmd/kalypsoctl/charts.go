package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/term"
	"github.com/kalypso-dev/kalypso/cmd/kalypsoctl/internal/config"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/kube"
)

func newChartsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "charts",
		Short: "the upstream charts that the stack is made of",
		Example: `  kalypsoctl charts pull                              download them, and pin each by its SHA-256
  kalypsoctl charts pull -d DIR                       the same into a folder, to bring it elsewhere
  kalypsoctl charts list                              which ones, from where, and which are here`,
	}
	cmd.AddCommand(newChartsListCommand(), newChartsPullCommand())
	cli.Group(cmd)
	return cmd
}

func newChartsListCommand() *cobra.Command {
	var (
		f      stackFlags
		dir    string
		output cli.Output
	)
	cmd := &cobra.Command{
		Use:   "list [flags]",
		Short: "which upstream charts, from where, and which are here",
		Example: `  kalypsoctl charts list                              which ones, from where, and which are here
  kalypsoctl charts list --charts DIR                 does this folder have all?
  kalypsoctl charts list -o json                      for a program to read`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.Check(cmd); err != nil {
				return err
			}
			c, err := f.load()
			if err != nil {
				return err
			}
			where, err := archivesDir(dir)
			if err != nil {
				return err
			}
			list := listCharts(c, where)
			if output.Text() {
				err = list.print(cmd)
			} else {
				err = output.Write(cmd.OutOrStdout(), list)
			}
			if err != nil {
				return fmt.Errorf("print the charts: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().SortFlags = false
	output.Register(cmd.Flags())
	chartsFlag(cmd.Flags(), &dir, "folder to look for them in")
	f.register(cmd.Flags())
	return cmd
}

// chartList is kalypso.charts/v1. Fields are added, not changed.
type chartList struct {
	Schema string       `json:"schema"`
	Dir    string       `json:"dir"`
	Charts []chartEntry `json:"charts"`
}

type chartEntry struct {
	helm.Dependency
	Component string `json:"component"`
	Here      bool   `json:"here"`
}

func listCharts(c *config.Config, dir string) chartList {
	list := chartList{Schema: "kalypso.charts/v1", Dir: dir, Charts: []chartEntry{}}
	for _, comp := range c.Components() {
		for _, d := range c.Chart(comp.Name).Dependencies(c.Values(comp.Name)) {
			list.Charts = append(list.Charts, chartEntry{d, comp.Name, helm.Packaged(dir, d)})
		}
	}
	return list
}

func (l chartList) print(cmd *cobra.Command) error {
	out := cmd.OutOrStdout()
	var rows [][]string
	missing := 0
	for _, e := range l.Charts {
		here := "yes"
		if !e.Here {
			here = "no"
			missing++
		}
		rows = append(rows, []string{e.Name, e.Version, e.Component, here, e.Repository})
	}
	if err := term.For(out, os.Getenv).Table(out, []string{"chart", "version", "component", "here", "repository"}, rows); err != nil {
		return err
	}
	text := "\nall of them are in " + l.Dir
	if missing > 0 {
		text = fmt.Sprintf("\n%d of %d are not in %s:  kalypsoctl charts pull", missing, len(l.Charts), l.Dir)
		if cmd.Flags().Changed("charts") {
			text += " -d " + l.Dir
		}
	}
	_, err := fmt.Fprintln(out, text)
	return err
}

func newChartsPullCommand() *cobra.Command {
	var (
		f   stackFlags
		dir string
	)
	cmd := &cobra.Command{
		Use:   "pull [flags]",
		Short: "download them, and pin each by its SHA-256",
		Long: `Download the upstream charts that the stack is made of. The first time each is
pinned in DIR/charts.lock by its SHA-256; one that is another file later is
refused. What is there and as it was pinned is not asked for again.

For a machine without internet: bring the folder there and give it as --charts.`,
		Example: `  kalypsoctl charts pull                              download them, and pin each by its SHA-256
  kalypsoctl charts pull -d DIR                       the same into a folder, to bring it elsewhere`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.load()
			if err != nil {
				return err
			}
			where, err := archivesDir(dir)
			if err != nil {
				return err
			}
			return pull(cmd, upstream(c), where)
		},
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().StringVarP(&dir, "dir", "d", "", "folder to fill, `DIR` ($"+config.ChartsVariable+"; by default one that other verbs look in)")
	f.register(cmd.Flags())
	return cmd
}

// upstream are the charts that the stack is made of, each once: two components
// can be of one chart.
func upstream(c *config.Config) []helm.Dependency {
	var out []helm.Dependency
	seen := map[helm.Dependency]bool{}
	for _, comp := range c.Components() {
		for _, d := range c.Chart(comp.Name).Dependencies(c.Values(comp.Name)) {
			if !seen[d] {
				seen[d] = true
				out = append(out, d)
			}
		}
	}
	return out
}

func pull(cmd *cobra.Command, deps []helm.Dependency, dir string) error {
	out := cmd.OutOrStdout()
	mark := term.For(out, os.Getenv).Passed()
	width, kept := 0, 0
	for _, d := range deps {
		width = max(width, len(d.String()))
	}
	var failed error
	err := helm.Pull(cmd.Context(), deps, dir, func(p helm.Pulled) {
		what := fmt.Sprintf("%d KiB", (p.Bytes+1023)/1024)
		if p.Kept {
			kept++
			what = "unchanged"
		}
		if _, err := fmt.Fprintf(out, "  %s %-*s  sha256 %.12s…  %s\n", mark, width, p.Dependency, p.SHA256, what); failed == nil {
			failed = err
		}
	})
	if err != nil {
		return err
	}
	if failed == nil {
		_, failed = fmt.Fprintf(out, "%s in %s, %d of them new\n", kube.Count(len(deps), "chart"), dir, len(deps)-kept)
	}
	if failed != nil {
		return fmt.Errorf("print the charts: %w", failed)
	}
	return nil
}
