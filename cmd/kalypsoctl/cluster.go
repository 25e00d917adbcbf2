package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/near"
	"github.com/kalypso-dev/kalypso/cmd/internal/term"
	"github.com/kalypso-dev/kalypso/deploy/check"
	"github.com/kalypso-dev/kalypso/deploy/cluster"
	"github.com/kalypso-dev/kalypso/profiler"
)

func newClusterCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cluster",
		Short: "a local cluster where eBPF works: create, start, stop, delete, status",
		Example: `  kalypsoctl cluster create                           a local K3s with eBPF
  kalypsoctl cluster stop                             it keeps its data and gives its memory back
  kalypsoctl cluster delete                           with all its data`,
	}
	cmd.AddCommand(newClusterCreateCommand(), newClusterStartCommand(), newClusterStopCommand(), newClusterDeleteCommand(), newClusterStatusCommand())
	cli.Group(cmd)
	return cmd
}

// localFlags are those that all verbs of clusters have.
type localFlags struct {
	name    string
	dryRun  bool
	timeout time.Duration
}

func (f *localFlags) register(flags *pflag.FlagSet) {
	flags.SortFlags = false
	flags.StringVar(&f.name, "name", cluster.Default, "`NAME` of the cluster")
}

func (f *localFlags) registerWork(flags *pflag.FlagSet, limit time.Duration) {
	flags.BoolVar(&f.dryRun, "dry-run", false, "print the commands, and run none")
	flags.DurationVar(&f.timeout, "timeout", limit, "give up after this time")
}

func (f *localFlags) check() error {
	if err := cluster.CheckName(f.name); err != nil {
		return cli.Wrong(&profiler.Fault{What: fmt.Sprintf("--name cannot be %q", f.name), Why: err, Fix: "--name " + cluster.Default})
	}
	return nil
}

// clusters are those of this user.
func (f *localFlags) clusters(cmd *cobra.Command) (*cluster.Clusters, error) {
	settings, err := os.UserConfigDir()
	if err != nil {
		return nil, &profiler.Fault{What: "there is no folder for the records of clusters", Why: err, Fix: "set $HOME"}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, &profiler.Fault{What: "there is no folder for downloads", Why: err, Fix: "set $HOME"}
	}
	errOut := cmd.ErrOrStderr()
	style := term.For(errOut, os.Getenv)
	marks := check.Style{ASCII: style.ASCII, Width: len("pid_namespace")}
	return &cluster.Clusters{
		Dir: filepath.Join(settings, "kalypso", "clusters"), Host: cluster.ThisHost(filepath.Join(cache, "kalypso")),
		In: cmd.InOrStdin(), Show: errOut,
		OnStep:  func(s cluster.Step) { announce(errOut, s) },
		OnCheck: func(r check.Result) { _ = marks.Print(errOut, r) },
		OnFail: func(err error) {
			_, _ = fmt.Fprint(errOut, wrap("failed: "+err.Error()+"; taking back what was made", "", "  "))
		},
	}, nil
}

// textWidth is that of a terminal that nobody made wider.
const textWidth = 80

// announce tells of a step that is about to be taken: why, and the command
// where it prints for itself.
func announce(w io.Writer, s cluster.Step) {
	_, _ = fmt.Fprint(w, wrap(s.Reason, "- ", "  "))
	if len(s.Argv) == 0 || s.Read != nil {
		return
	}
	argv := slices.Clone(s.Argv)
	for i, word := range argv {
		if strings.Contains(word, "\n") {
			argv[i] = "…" // a script; --dry-run has it whole
		}
	}
	_, _ = fmt.Fprintf(w, "  $ %s\n", strings.ReplaceAll(cluster.Shell(argv, textWidth-len("  $ ")), "\n", "\n  "))
}

// script prints steps so that a shell would take them.
func script(w io.Writer, steps []cluster.Step) error {
	b := bufio.NewWriter(w)
	for i, s := range steps {
		if i > 0 {
			fmt.Fprintln(b)
		}
		reason := s.Reason
		if s.Do != nil {
			reason = "kalypsoctl does this itself: " + reason
		}
		fmt.Fprint(b, wrap(reason, "# ", "# "))
		if len(s.Argv) > 0 {
			fmt.Fprintln(b, cluster.Shell(s.Argv, textWidth))
		}
	}
	if err := b.Flush(); err != nil {
		return fmt.Errorf("print the commands: %w", err)
	}
	return nil
}

// wrap breaks text between words into lines of textWidth.
func wrap(text, first, next string) string {
	var b strings.Builder
	line := first
	for i, word := range strings.Fields(text) {
		switch {
		case i == 0:
			line += word
		case len([]rune(line))+1+len([]rune(word)) > textWidth:
			b.WriteString(line + "\n")
			line = next + word
		default:
			line += " " + word
		}
	}
	return b.String() + line + "\n"
}

type createFlags struct {
	localFlags
	driver            string
	cpu, memory, disk int
	yes, keep         bool
}

func newClusterCreateCommand() *cobra.Command {
	f := &createFlags{}
	cmd := &cobra.Command{
		Use:   "create [flags]",
		Short: "make a cluster, look whether eBPF works on it, choose its context",
		Long: `Make a local cluster with a tool that is on this machine, wait until it is ready,
look whether its kernel lets itself be profiled, and choose its context in the
kubeconfig. When something fails, what was made is taken back.

  colima  K3s in a virtual machine; the default on macOS
  k3s     K3s as a service of this machine; the default on Linux, and Linux only
  k3d     K3s in a container; shares the kernel of the machine that Docker runs on
  kind    Kubernetes in a container; the agent cannot profile there`,
		Example: `  kalypsoctl cluster create                           a local K3s with eBPF
  kalypsoctl cluster create --cpu 4 --memory 8        a smaller virtual machine, for --profile small
  kalypsoctl cluster create --driver k3d --dry-run    which commands would be run?`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.create(cmd) },
	}
	fl := cmd.Flags()
	f.register(fl)
	fl.StringVar(&f.driver, "driver", "", strings.Join(cluster.Names(), ", ")+" (the default is that of the system)")
	fl.IntVar(&f.cpu, "cpu", 0, "CPUs of the virtual machine (8, or what there are)")
	fl.IntVar(&f.memory, "memory", 0, "its memory in GiB (14, on a small machine 8)")
	fl.IntVar(&f.disk, "disk", 0, "its disk in GiB (40)")
	f.registerWork(fl, 20*time.Minute)
	fl.BoolVarP(&f.yes, "yes", "y", false, "do not ask")
	fl.BoolVar(&f.keep, "keep", false, "leave what was made when something fails, for a look")
	_ = cmd.RegisterFlagCompletionFunc("driver", cobra.FixedCompletions(cluster.Names(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// spec makes what was typed into what is wanted.
func (f *createFlags) spec(cmd *cobra.Command, h cluster.Host) (cluster.Driver, cluster.Spec, error) {
	s := cluster.Spec{Name: f.name}
	if f.driver == "" {
		f.driver = cluster.DefaultDriver(h.OS)
	}
	d, ok := cluster.Named(f.driver)
	if !ok {
		return d, s, cli.OneOf(cmd, "driver", f.driver, cluster.Names()...)
	}
	if err := f.check(); err != nil {
		return d, s, err
	}
	sizes := []struct {
		flag  string
		typed int
		to    *int
	}{{"cpu", f.cpu, &s.CPUs}, {"memory", f.memory, &s.MemoryGiB}, {"disk", f.disk, &s.DiskGiB}}
	if d.Sized {
		s.CPUs, s.MemoryGiB, s.DiskGiB = h.Sizes()
	}
	for _, size := range sizes {
		switch {
		case !cmd.Flags().Changed(size.flag):
		case !d.Sized:
			return d, s, cli.Usage(cmd.CommandPath()+" --driver "+d.Name, "--%s has no effect with %s: its node is as large as the machine", size.flag, d.Name)
		case size.typed < 1:
			return d, s, cli.Usage(fmt.Sprintf("--%s %d", size.flag, *size.to), "--%s cannot be %d", size.flag, size.typed)
		default:
			*size.to = size.typed
		}
	}
	return d, s, f.fits(h, s)
}

// fits refuses a virtual machine that is larger than the machine.
func (f *createFlags) fits(h cluster.Host, s cluster.Spec) error {
	if s.CPUs > h.CPUs {
		return cli.Usage(fmt.Sprintf("--cpu %d", h.CPUs), "--cpu cannot be %d: this machine has %d", s.CPUs, h.CPUs)
	}
	if has := int(h.MemoryBytes >> 30); has > 0 && s.MemoryGiB > has {
		return cli.Usage(fmt.Sprintf("--memory %d", max(1, has/2)), "--memory cannot be %d: this machine has %d GiB", s.MemoryGiB, has)
	}
	return nil
}

func (f *createFlags) create(cmd *cobra.Command) error {
	all, err := f.clusters(cmd)
	if err != nil {
		return err
	}
	d, s, err := f.spec(cmd, all.Host)
	if err != nil {
		return err
	}
	if f.dryRun {
		if err := d.Check(all.Host, exec.LookPath); err != nil {
			cli.PrintError(cmd.ErrOrStderr(), err)
		}
		return script(cmd.OutOrStdout(), all.Planned(d, s))
	}
	ctx, cancel := context.WithTimeout(quiet(cmd.Context()), f.timeout)
	defer cancel()
	found, err := all.Check(ctx, d, s)
	if err != nil {
		return f.late(err)
	}
	if found != nil {
		return f.thereAlready(cmd, s, found)
	}
	if err := f.agree(cmd, d); err != nil {
		return err
	}
	errOut := cmd.ErrOrStderr()
	_, _ = fmt.Fprintf(errOut, "Cluster %s: %s%s\n", s.Name, d.Title, sizes(s))
	began := time.Now()
	if err := all.Create(ctx, d, s, f.keep); err != nil {
		return f.late(f.failed(cmd, err))
	}
	return f.next(cmd, s, fmt.Sprintf("Cluster %s is ready after %s: context %s is chosen.", s.Name, time.Since(began).Round(time.Second), d.Context(s.Name)))
}

func sizes(s cluster.Spec) string {
	if s.CPUs == 0 {
		return ""
	}
	return fmt.Sprintf(", %d CPUs, %d GiB of memory, %d GiB of disk", s.CPUs, s.MemoryGiB, s.DiskGiB)
}

// agree asks for what a driver does to this machine, or will not do.
func (f *createFlags) agree(cmd *cobra.Command, d cluster.Driver) error {
	if d.Lost != "" {
		_, _ = fmt.Fprint(cmd.ErrOrStderr(), wrap("warning: "+d.Lost, "", "         "))
	}
	if d.Asks != "" {
		_, _ = fmt.Fprint(cmd.ErrOrStderr(), wrap(d.Asks, "", ""))
	}
	if d.Lost == "" && d.Asks == "" || f.yes {
		return nil
	}
	if err := mayAsk(cmd, f.yes); err != nil {
		return err
	}
	return confirm(cmd, "Create it?")
}

// thereAlready tells of a cluster that somebody wants to make again.
func (f *createFlags) thereAlready(cmd *cobra.Command, s cluster.Spec, found *cluster.Status) error {
	if !found.Running {
		return &profiler.Fault{
			What: "cluster " + f.name + " is there already, and does not run",
			Fix:  "kalypsoctl cluster start" + nameFlag(f.name),
		}
	}
	return f.next(cmd, s, fmt.Sprintf("Cluster %s is there already, and runs: nothing was changed. Its context is %s.", f.name, found.Context))
}

// next names what to type after a cluster was made.
func (f *createFlags) next(cmd *cobra.Command, s cluster.Spec, what string) error {
	install := "kalypsoctl install"
	if s.Profile() != "default" {
		install += " --profile " + s.Profile()
	}
	rows := [][]string{
		{"  " + install, "the whole stack, in order"},
		{"  kalypsoctl cluster stop" + nameFlag(f.name), "when you are done: data stays, memory is free"},
	}
	w := bufio.NewWriter(cmd.OutOrStdout())
	fmt.Fprint(w, wrap(what, "", ""))
	for _, row := range rows {
		fmt.Fprintf(w, "%-36s  %s\n", row[0], row[1])
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print what is next: %w", err)
	}
	return nil
}

// nameFlag is what has to be typed where a cluster has another name than the
// usual one.
func nameFlag(name string) string {
	if name == cluster.Default {
		return ""
	}
	return " --name " + name
}

// failed tells what became of a cluster that was not made.
func (f *createFlags) failed(cmd *cobra.Command, err error) error {
	var e *cluster.CreateError
	if !errors.As(err, &e) {
		return err
	}
	fault := &profiler.Fault{What: "cluster " + f.name + " was not made; what was made of it is gone again", Why: e.Err}
	switch {
	case e.Kept:
		fault.What = "cluster " + f.name + " was not made; what there is of it stays (--keep)"
		fault.Fix = "kalypsoctl cluster delete" + nameFlag(f.name)
	case e.Left != nil:
		fault.What = "cluster " + f.name + " was not made, and not everything could be taken back"
		fault.Why = fmt.Errorf("%w; then: %w", e.Err, e.Left)
		fault.Fix = "kalypsoctl cluster delete" + nameFlag(f.name)
	case errors.Is(e.Err, cluster.ErrKernel):
		fault.Fix = "another --driver, or another kernel: kalypsoctl explain kernel"
	default:
		fault.Fix = cmd.CommandPath() + " --keep     leaves it for a look"
	}
	if errors.Is(err, context.Canceled) {
		// cli.Report says nothing of an interruption.
		_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "interrupted: %s\n", fault.What)
		return err
	}
	return fault
}

// late gives what took too long the exit code of waiting in vain.
func (f *localFlags) late(err error) error {
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	var fault *profiler.Fault
	if !errors.As(err, &fault) {
		fault = &profiler.Fault{What: "gave up", Fix: "--timeout " + (2 * f.timeout).String()}
	}
	why := fmt.Sprintf("it took longer than %s (--timeout)", f.timeout)
	if fault.Why != nil {
		// What was waited for stands behind the word of the context.
		if _, last, ok := strings.Cut(fault.Why.Error(), context.DeadlineExceeded.Error()+": "); ok {
			why += "; " + last
		}
	}
	fault.Why = errors.New(why)
	return cli.TimedOut(fault)
}

// found gives the cluster of --name, which kalypsoctl has to have made.
func (f *localFlags) found(cmd *cobra.Command) (*cluster.Clusters, cluster.Status, cluster.Driver, error) {
	if err := f.check(); err != nil {
		return nil, cluster.Status{}, cluster.Driver{}, err
	}
	all, err := f.clusters(cmd)
	if err != nil {
		return nil, cluster.Status{}, cluster.Driver{}, err
	}
	s, d, err := all.Find(quiet(cmd.Context()), f.name)
	if errors.Is(err, cluster.ErrUnknown) {
		err = cli.Wrong(f.nearName(all, err))
	}
	return all, s, d, err
}

// nearName adds the cluster that was probably meant.
func (f *localFlags) nearName(all *cluster.Clusters, err error) error {
	var names []string
	for _, r := range all.Records() {
		names = append(names, r.Name)
	}
	var fault *profiler.Fault
	if word := near.Word(f.name, names); word != "" && errors.As(err, &fault) {
		better := *fault
		better.Fix = "--name " + word
		return &better
	}
	return err
}

func newClusterStartCommand() *cobra.Command {
	f := &localFlags{}
	cmd := &cobra.Command{
		Use:     "start [flags]",
		Short:   "start a cluster that was stopped, and wait until it is ready",
		Example: "  kalypsoctl cluster start                            start it again, with its data",
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.work(cmd, "Cluster %s runs; its context is %s.",
				func(all *cluster.Clusters, d cluster.Driver, s cluster.Status) []cluster.Step {
					return all.Starting(d, s.Name)
				},
				func(ctx context.Context, all *cluster.Clusters, d cluster.Driver, s cluster.Status) error {
					return all.Start(ctx, d, s.Name)
				})
		},
	}
	f.register(cmd.Flags())
	f.registerWork(cmd.Flags(), 10*time.Minute)
	return cmd
}

func newClusterStopCommand() *cobra.Command {
	f := &localFlags{}
	cmd := &cobra.Command{
		Use:     "stop [flags]",
		Short:   "stop a cluster; its data stays",
		Example: "  kalypsoctl cluster stop                             it keeps its data and gives its memory back",
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.work(cmd, "Cluster %s is stopped; kalypsoctl cluster start brings context %s back.",
				func(all *cluster.Clusters, d cluster.Driver, s cluster.Status) []cluster.Step {
					return d.Stop(all.Host, s.Name)
				},
				func(ctx context.Context, all *cluster.Clusters, d cluster.Driver, s cluster.Status) error {
					return all.Stop(ctx, d, s.Name)
				})
		},
	}
	f.register(cmd.Flags())
	f.registerWork(cmd.Flags(), 10*time.Minute)
	return cmd
}

func newClusterDeleteCommand() *cobra.Command {
	f := &localFlags{}
	var yes bool
	cmd := &cobra.Command{
		Use:   "delete [flags]",
		Short: "delete a cluster with all its data; asks first",
		Example: `  kalypsoctl cluster delete                           with all its data
  kalypsoctl cluster delete --dry-run                 which commands would be run?`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.work(cmd, "Cluster %s and its context %s are gone.",
				func(all *cluster.Clusters, d cluster.Driver, s cluster.Status) []cluster.Step {
					return all.Deletion(d, s.Spec())
				},
				func(ctx context.Context, all *cluster.Clusters, d cluster.Driver, s cluster.Status) error {
					if err := mayDelete(cmd, d, s, yes); err != nil {
						return err
					}
					return all.Delete(ctx, d, s)
				})
		},
	}
	f.register(cmd.Flags())
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	f.registerWork(cmd.Flags(), 10*time.Minute)
	return cmd
}

// mayDelete asks before data is lost.
func mayDelete(cmd *cobra.Command, d cluster.Driver, s cluster.Status, yes bool) error {
	if yes {
		return nil
	}
	if err := mayAsk(cmd, yes); err != nil {
		return err
	}
	_, _ = fmt.Fprint(cmd.ErrOrStderr(), wrap(fmt.Sprintf("Cluster %s (%s, %s) will be deleted, with every volume and all that is stored in them.", s.Name, d.Title, stateWord(s)), "", ""))
	return confirm(cmd, "Delete it?")
}

// work does something with the cluster of --name, or prints its commands.
func (f *localFlags) work(cmd *cobra.Command, done string,
	planned func(*cluster.Clusters, cluster.Driver, cluster.Status) []cluster.Step,
	do func(context.Context, *cluster.Clusters, cluster.Driver, cluster.Status) error,
) error {
	all, s, d, err := f.found(cmd)
	if err != nil {
		return err
	}
	if f.dryRun {
		return script(cmd.OutOrStdout(), planned(all, d, s))
	}
	ctx, cancel := context.WithTimeout(quiet(cmd.Context()), f.timeout)
	defer cancel()
	if err := do(ctx, all, d, s); err != nil {
		return f.late(err)
	}
	if _, err := fmt.Fprint(cmd.OutOrStdout(), wrap(fmt.Sprintf(done, s.Name, s.Context), "", "")); err != nil {
		return fmt.Errorf("print what was done: %w", err)
	}
	return nil
}

func newClusterStatusCommand() *cobra.Command {
	var output cli.Output
	cmd := &cobra.Command{
		Use:   "status [flags]",
		Short: "the clusters that kalypsoctl made, and whether they run",
		Long: `List the clusters that kalypsoctl made on this machine, and whether they run. Ends
with exit code 3 unless there is one and all run.`,
		Example: `  kalypsoctl cluster status                           which clusters, do they run?
  kalypsoctl cluster status -o json                   for a program to read`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.Check(cmd); err != nil {
				return err
			}
			f := &localFlags{}
			all, err := f.clusters(cmd)
			if err != nil {
				return err
			}
			list, err := all.List(quiet(cmd.Context()))
			if err != nil {
				return err
			}
			if err := printClusters(cmd.OutOrStdout(), list, output); err != nil {
				return fmt.Errorf("print the clusters: %w", err)
			}
			for _, s := range list {
				if !s.Running {
					return cli.Exit(cli.ExitNotHealthy)
				}
			}
			if len(list) == 0 {
				return cli.Exit(cli.ExitNotHealthy)
			}
			return nil
		},
	}
	cmd.Flags().SortFlags = false
	output.Register(cmd.Flags())
	return cmd
}

// stateWord is what became of a cluster, in a word or two.
func stateWord(s cluster.Status) string {
	switch {
	case s.Err != nil:
		return "unknown"
	case !s.Found:
		return "gone"
	case !s.Whole:
		return "half made"
	case s.Running:
		return "running"
	}
	return "stopped"
}

func printClusters(out io.Writer, list []cluster.Status, output cli.Output) error {
	if !output.Text() {
		return output.Write(out, clusterDocument(list))
	}
	if len(list) == 0 {
		_, err := fmt.Fprintln(out, "kalypsoctl made no cluster on this machine\n  kalypsoctl cluster create     makes one")
		return err
	}
	var rows [][]string
	for _, s := range list {
		size := ""
		if s.CPUs > 0 {
			size = fmt.Sprintf("%d CPUs, %d GiB, disk %d GiB", s.CPUs, s.MemoryGiB, s.DiskGiB)
		}
		rows = append(rows, []string{s.Name, s.Driver, stateWord(s), s.Context, s.Created.Format(time.DateOnly), size})
	}
	w := bufio.NewWriter(out)
	if err := term.For(out, os.Getenv).Table(w, []string{"name", "driver", "state", "context", "created", "size"}, rows); err != nil {
		return err
	}
	for _, s := range list {
		if s.Err != nil {
			fmt.Fprint(w, wrap(fmt.Sprintf("%s: %v", s.Name, s.Err), "", "  "))
		}
		if s.Err == nil && (!s.Found || !s.Whole) {
			fmt.Fprintf(w, "%s: kalypsoctl cluster delete%s     removes what is left\n", s.Name, nameFlag(s.Name))
		}
	}
	return w.Flush()
}

func clusterDocument(list []cluster.Status) any {
	type entry struct {
		Name    string    `json:"name"`
		Driver  string    `json:"driver"`
		State   string    `json:"state"`
		Error   string    `json:"error,omitempty"`
		Context string    `json:"context"`
		Created time.Time `json:"created"`
		CPUs    int       `json:"cpus,omitempty"`
		Memory  int       `json:"memory_gib,omitempty"`
		Disk    int       `json:"disk_gib,omitempty"`
	}
	doc := struct {
		Schema   string  `json:"schema"`
		Clusters []entry `json:"clusters"`
	}{"kalypso.cluster/v1", []entry{}}
	for _, s := range list {
		e := entry{Name: s.Name, Driver: s.Driver, State: stateWord(s), Context: s.Context, Created: s.Created, CPUs: s.CPUs, Memory: s.MemoryGiB, Disk: s.DiskGiB}
		if s.Err != nil {
			e.Error = s.Err.Error()
		}
		doc.Clusters = append(doc.Clusters, e)
	}
	return doc
}
