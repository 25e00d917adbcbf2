package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/term"
	"github.com/kalypso-dev/kalypso/cmd/kalypsoctl/internal/config"
	"github.com/kalypso-dev/kalypso/cmd/kalypsoctl/internal/tree"
	"github.com/kalypso-dev/kalypso/deploy/argocd"
	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/deploy/plan"
	"github.com/kalypso-dev/kalypso/profiler"
)

// The shapes that argocd writes.
const (
	modeSet  = "applicationset"
	modeApps = "app-of-apps"
)

func newArgoCDCommand() *cobra.Command {
	var (
		f     targetFlags
		o     argocd.Options
		mode  string
		dir   string
		check bool
	)
	cmd := &cobra.Command{
		Use:   "argocd [flags]",
		Short: "the stack for Argo CD: an AppProject and an ApplicationSet",
		Long: `Write the stack down for Argo CD: an AppProject, and an ApplicationSet that brings
one component after another, in the order of what they need (RollingSync). Commit
DIR to the repository at --repo, then apply what is in it.

RollingSync has to be switched on in Argo CD:
applicationsetcontroller.enable.progressive.syncs: "true" in argocd-cmd-params-cm.
For servers without it: --mode app-of-apps, which orders by sync waves and needs
resource.customizations.health.argoproj.io_Application in argocd-cm.

The charts come from the repository of kalypsoctl, at the version of the charts that
it has in it; --chart-repo and --chart-revision name others. Without -d the objects
are printed; the values that they refer to are written only with -d.

With --check nothing is written: it tells what Argo CD would change on a cluster on
which kalypsoctl install was, with these settings. Values that were given to install
and are not in them are such a change. Exit code 4: there are changes.`,
		Example: `  kalypsoctl argocd --repo URL -d DIR                 AppProject, ApplicationSet, and the values of each component
  kalypsoctl argocd --repo URL --path stack -d DIR    DIR will be the folder stack of the repository
  kalypsoctl argocd --repo URL --mode app-of-apps     for an Argo CD without RollingSync
  kalypsoctl argocd --check -f kalypso.yaml           what would it change on this cluster?`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.OneOf(cmd, "mode", mode, modeSet, modeApps); err != nil {
				return err
			}
			if check {
				// What decides where files go decides nothing here.
				for _, name := range []string{"repo", "revision", "path", "dir", "mode", "chart-repo", "chart-revision", "namespace"} {
					if cmd.Flags().Changed(name) {
						return cli.Usage(cmd.CommandPath()+" --check", "--check writes nothing: it takes no --%s", name)
					}
				}
				return checkArgo(cmd, f)
			}
			if o.Repo == "" && dir != "" {
				o.Repo = origin(cmd.Context(), dir)
			}
			if o.Repo == "" {
				return cli.Usage(cmd.CommandPath()+" --repo https://github.com/OWNER/REPO.git", "argocd needs --repo: where will Argo CD read the files from?")
			}
			c, err := f.stack.load()
			if err != nil {
				return err
			}
			if o.ChartRevision == "" {
				o.ChartRevision = "v" + c.Chart(component.All()[0].Name).Version()
			}
			files, err := argoFiles(c, o, mode)
			if err != nil {
				return err
			}
			return writeArgo(cmd, c, o, files, dir)
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringVar(&o.Repo, "repo", "", "`URL` of the Git repository that the files are committed to (default: origin of the one that DIR is in)")
	fl.StringVar(&o.Revision, "revision", "HEAD", "its branch or tag")
	fl.StringVar(&o.Path, "path", "", "the folder in it that will have the files")
	fl.StringVarP(&dir, "dir", "d", "", "write files into `DIR`")
	fl.StringVar(&mode, "mode", modeSet, modeSet+" or "+modeApps)
	fl.StringVar(&o.ChartRepo, "chart-repo", "https://github.com/kalypso-dev/kalypso.git", "`URL` of the Git repository that has charts/")
	fl.StringVar(&o.ChartRevision, "chart-revision", "", "its branch or tag (default: the version of the charts)")
	fl.StringVar(&o.Namespace, "namespace", "argocd", "namespace of Argo CD")
	f.stack.register(fl)
	fl.BoolVar(&check, "check", false, "tell what Argo CD would change on a cluster, and write nothing")
	chartsFlag(fl, &f.charts, "for --check: folder of packaged upstream charts")
	f.cluster.register(fl)
	f.cluster.complete(cmd)
	return cmd
}

// checkArgo tells what Argo CD would change of what kalypsoctl installed.
func checkArgo(cmd *cobra.Command, f targetFlags) error {
	f.reset = true // Argo CD knows of no values but those that are written down
	stack, err := f.open(cmd, nil, false)
	if err != nil {
		return err
	}
	if err := stack.OnlyInstalled(cmd.Context()); err != nil {
		return err
	}
	if len(stack.Parts) == 0 {
		return &profiler.Fault{
			What: "kalypsoctl installed nothing on " + stack.Cluster.Context, Why: errors.New("what Argo CD installs has no Helm release"),
			Fix: "argocd app diff kalypso-loki     compares what Argo CD installed",
		}
	}
	p, err := stack.Plan(cmd.Context())
	if err != nil {
		return err
	}
	if !p.Changes() {
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "No differences: Argo CD would change nothing on %s.\n", stack.Cluster.Context)
	} else {
		err = printDiff(cmd.OutOrStdout(), p)
	}
	if err != nil {
		return fmt.Errorf("print the differences: %w", err)
	}
	if p.Changes() {
		return cli.Exit(cli.ExitChanges)
	}
	return nil
}

// origin is where the Git checkout that a folder lies in comes from, "" if it is
// in none. Credentials in the address are left out: the files are committed.
func origin(ctx context.Context, dir string) string {
	for _, err := os.Stat(dir); err != nil && filepath.Dir(dir) != dir; _, err = os.Stat(dir) {
		dir = filepath.Dir(dir) // it is made later
	}
	out, err := exec.CommandContext(ctx, "git", "-C", dir, "remote", "get-url", "origin").Output()
	if err != nil {
		return ""
	}
	address := strings.TrimSpace(string(out))
	if u, err := url.Parse(address); err == nil && strings.HasPrefix(u.Scheme, "http") {
		u.User = nil
		return u.String()
	}
	return address
}

// argoFiles are the objects, and the values of each component.
func argoFiles(c *config.Config, o argocd.Options, mode string) (argocd.Files, error) {
	waves, err := plan.Waves(c.Components())
	if err != nil {
		return nil, err
	}
	write := argocd.ApplicationSet
	if mode == modeApps {
		write = argocd.AppOfApps
	}
	files, err := write(o, waves)
	if err != nil {
		return nil, err
	}
	for _, comp := range c.Components() {
		text, err := helm.WriteValues(c.Values(comp.Name))
		if err != nil {
			return nil, fmt.Errorf("write the values of %s: %w", comp.Name, err)
		}
		files[argocd.ValuesFile(comp.Name)] = text
	}
	return files, nil
}

func writeArgo(cmd *cobra.Command, c *config.Config, o argocd.Options, files argocd.Files, dir string) error {
	if dir != "" {
		if err := tree.Write(dir, tree.Files(files)); err != nil {
			return err
		}
	}
	var err error
	if out := cmd.OutOrStdout(); dir != "" {
		err = nextSteps(out, c, o, files, dir)
	} else {
		err = printObjects(out, files)
	}
	if err != nil {
		return fmt.Errorf("print the objects: %w", err)
	}
	return nil
}

// printObjects prints what is no values, as YAML documents.
func printObjects(out io.Writer, files argocd.Files) error {
	w := bufio.NewWriter(out)
	for _, name := range sortedKeys(files) {
		if !strings.HasPrefix(name, "values/") {
			fmt.Fprintf(w, "---\n# %s\n%s", name, files[name])
		}
	}
	return w.Flush()
}

// nextSteps tells what is left to do by hand, in order.
func nextSteps(out io.Writer, c *config.Config, o argocd.Options, files argocd.Files, dir string) error {
	var secrets [][]string
	for _, comp := range c.Components() {
		for _, s := range comp.Secrets {
			secrets = append(secrets, []string{"  " + comp.Namespace, s.Name, strings.Join(s.Keys, ", ")})
		}
	}
	secrets = slices.CompactFunc(secrets, slices.Equal)
	where := o.Repo
	if o.Path != "" {
		where += ", folder " + o.Path
	}
	w := bufio.NewWriter(out)
	fmt.Fprintf(w, "%s of %s in %s\n\n1. commit them to %s\n", kube.Count(len(files), "file"), kube.Count(len(c.Components()), "component"), dir, where)
	if len(secrets) > 0 {
		fmt.Fprintln(w, "2. make these Secrets, which no chart holds (the values of S3 are the same everywhere)")
		if err := term.For(out, os.Getenv).Table(w, []string{"  namespace", "secret", "keys"}, secrets); err != nil {
			return err
		}
	}
	objects := "applicationset.yaml"
	if _, apps := files["application.yaml"]; apps {
		objects = "application.yaml"
	}
	fmt.Fprintf(w, "3. kubectl apply -f %s/appproject.yaml -f %s/%s\n", dir, dir, objects)
	return w.Flush()
}
