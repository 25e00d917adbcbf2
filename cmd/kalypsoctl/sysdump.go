package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/term"
	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/deploy/sysdump"
	"github.com/kalypso-dev/kalypso/profiler"
)

type sysdumpFlags struct {
	clusterFlags
	since     time.Duration
	maxSize   string
	profile   time.Duration
	component []string
	output    string
	list      bool
}

func newSysdumpCommand() *cobra.Command {
	f := &sysdumpFlags{}
	cmd := &cobra.Command{
		Use:   "sysdump [flags]",
		Short: "one file for whoever is to find out what is wrong",
		Long: `Gather what tells what is wrong with the stack into one .tar.gz. SUMMARY.md in it
begins with what is broken. No value of a Secret is written; what looks like a
credential elsewhere is redacted. Look into it before you send it to somebody.`,
		Example: `  kalypsoctl sysdump                                  all of the stack, logs of the last hour
  kalypsoctl sysdump --component loki --since 15m     one component
  kalypsoctl sysdump --list                           what would be in it?`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.DurationVar(&f.since, "since", time.Hour, "how old logs and events may be")
	fl.DurationVar(&f.profile, "profile", 5*time.Second, "profile the nodes for so long, where agents run (0: not at all; 1m at most)")
	fl.StringVar(&f.maxSize, "max-size", "50Mi", "how large the file may become")
	fl.StringSliceVar(&f.component, "component", nil, "only this `COMPONENT`; may be repeated")
	fl.StringVarP(&f.output, "output", "o", "", "`FILE`, or - for standard output (default kalypso-sysdump-TIME.tar.gz)")
	fl.BoolVar(&f.list, "list", false, "print what it would have in it, and gather nothing")
	f.register(fl)
	f.registerTimeout(fl, 2*time.Minute, "write what there is after this time (0: no limit)")
	f.complete(cmd)
	_ = cmd.RegisterFlagCompletionFunc("component", completeComponents)
	return cmd
}

// smallestDump has room for the summary.
const smallestDump = 1 << 20

// options makes what was typed into what is wanted.
func (f *sysdumpFlags) options(cmd *cobra.Command) (sysdump.Options, error) {
	o := sysdump.Options{Components: component.All(), Since: f.since, Profile: f.profile}
	if f.profile < 0 || f.profile > time.Minute {
		return o, cli.Usage("--profile 5s     0 for none, 1m at most", "--profile cannot be %s", f.profile)
	}
	if f.since <= 0 {
		return o, cli.Usage("--since 1h", "--since cannot be %s", f.since)
	}
	q, err := resource.ParseQuantity(f.maxSize)
	if err != nil || q.Value() < smallestDump {
		return o, cli.Usage("--max-size 50Mi     1Mi at least", "--max-size cannot be %q", f.maxSize)
	}
	o.MaxBytes = q.Value()
	if err := known(cmd, f.component); err != nil {
		return o, err
	}
	if len(f.component) > 0 {
		o.Components = nil
		for _, name := range f.component {
			o.Components = append(o.Components, componentNamed(name))
		}
	}
	build := cli.ReadBuildInfo(version, commit)
	o.Tool = fmt.Sprintf("%s (%s, %s, %s)", build.Version, build.Commit, build.Go, build.Arch)
	return o, nil
}

func (f *sysdumpFlags) run(cmd *cobra.Command) error {
	o, err := f.options(cmd)
	if err != nil {
		return err
	}
	if f.list {
		return f.contents(cmd.OutOrStdout(), o)
	}
	cluster, err := kube.Open(quiet(cmd.Context()), f.config()) // an old one too
	if err != nil {
		return nearContext(err)
	}
	o.Folder = "kalypso-sysdump-" + time.Now().Format("20060102-150405")
	if f.output == "" {
		f.output = o.Folder + ".tar.gz"
	}
	ctx, cancel := f.limited(cmd.Context())
	defer cancel()
	errOut := cmd.ErrOrStderr()
	_, _ = fmt.Fprintf(errOut, "gathering from %s:", cluster.Context)
	o.Started = func(what string) { _, _ = fmt.Fprintf(errOut, " %s", what) }
	report, err := f.write(ctx, cmd.OutOrStdout(), cluster, o)
	_, _ = fmt.Fprintln(errOut)
	if err != nil {
		return err
	}
	told := cmd.OutOrStdout()
	if f.output == "-" {
		told = errOut
	}
	if err := f.tell(told, o, report); err != nil {
		return fmt.Errorf("print what was gathered: %w", err)
	}
	if report.Nothing != nil {
		return unreadable(cluster, report.Nothing)
	}
	return nil
}

// unreadable says that a dump has nothing of the cluster in it.
func unreadable(cluster *kube.Cluster, why error) error {
	f := &profiler.Fault{
		What: "nothing of the stack could be read in context " + cluster.Context, Why: why,
		Fix: "kalypsoctl sysdump     again, when the cluster answers",
	}
	if apierrors.IsForbidden(why) {
		f.Kind = kube.ErrForbidden
		f.Fix = "ask who runs the cluster for the ClusterRole view, and for Secrets to be read in the namespaces of the stack: Helm keeps its releases in them"
	}
	return f
}

// write writes the archive to where --output says. A file appears whole or not
// at all, and only its owner may read it.
func (f *sysdumpFlags) write(ctx context.Context, stdout io.Writer, cluster *kube.Cluster, o sysdump.Options) (*sysdump.Report, error) {
	if f.output == "-" {
		return sysdump.Write(ctx, cluster, stdout, o)
	}
	temp, err := os.CreateTemp(filepath.Dir(f.output), ".kalypso-sysdump-*")
	if err != nil {
		return nil, &profiler.Fault{What: "cannot write " + f.output, Why: err, Fix: "-o FILE in a folder that you may write to"}
	}
	defer os.Remove(temp.Name())
	report, err := sysdump.Write(ctx, cluster, temp, o)
	if closed := temp.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return nil, err
	}
	if err := os.Rename(temp.Name(), f.output); err != nil {
		return nil, &profiler.Fault{What: "cannot write " + f.output, Why: err, Fix: "-o FILE in a folder that you may write to"}
	}
	return report, nil
}

// linesShown is how much of a list is printed; the summary has all.
const linesShown = 5

// tell prints what is wrong, how large the file is, and what is not in it.
func (f *sysdumpFlags) tell(out io.Writer, o sysdump.Options, r *sysdump.Report) error {
	w := bufio.NewWriter(out)
	switch {
	case r.Nothing != nil: // the error says it
	case len(r.Wrong) == 0:
		fmt.Fprintln(w, "nothing is wrong with what is installed")
	default:
		few(w, "wrong     ", r.Wrong)
	}
	few(w, "left out  ", r.LeftOut)
	few(w, "not had   ", r.Failed)
	fmt.Fprintf(w, "\n%s: %s in %.1f MiB, %s\n", f.output, kube.Count(r.Files, "file"), float64(r.Bytes)/(1<<20), kube.Age(r.Took))
	if f.output != "-" {
		fmt.Fprintf(w, "  tar -xzOf %s %s/SUMMARY.md     what is wrong, and what is in it\n", f.output, o.Folder)
	}
	return w.Flush()
}

// few prints the first lines of a list beside its title.
func few(w io.Writer, title string, lines []string) {
	for i, line := range lines {
		if i == linesShown {
			line = fmt.Sprintf("%d more, in SUMMARY.md", len(lines)-i)
		}
		_, _ = fmt.Fprint(w, wrap(line, title, strings.Repeat(" ", len(title))))
		title = strings.Repeat(" ", len(title))
		if i == linesShown {
			return
		}
	}
}

// contents prints what a dump would have.
func (f *sysdumpFlags) contents(out io.Writer, o sysdump.Options) error {
	var namespaces []string
	seen := map[string]bool{}
	for _, c := range o.Components {
		if !seen[c.Namespace] {
			seen[c.Namespace] = true
			namespaces = append(namespaces, c.Namespace)
		}
	}
	w := bufio.NewWriter(out)
	err := term.For(out, os.Getenv).Table(w, []string{"what", ""}, sysdump.Contents())
	fmt.Fprint(w, "\n"+wrap(strings.Join(namespaces, ", "), "namespaces: ", "  "))
	fmt.Fprintf(w, "logs and events: of the last %s; all at most %s\n", kube.Age(f.since), f.maxSize)
	if err != nil {
		return fmt.Errorf("print the contents: %w", err)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print the contents: %w", err)
	}
	return nil
}
