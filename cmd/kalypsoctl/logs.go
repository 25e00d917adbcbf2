package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/deploy/status"
	"github.com/kalypso-dev/kalypso/profiler"
)

type logsFlags struct {
	clusterFlags
	follow   bool
	previous bool
	tail     int64
	since    time.Duration
}

func newLogsCommand() *cobra.Command {
	f := &logsFlags{}
	cmd := &cobra.Command{
		Use:   "logs [flags] COMPONENT",
		Short: "the logs of a component, of all its pods",
		Long: `Print the logs of all containers of a component. Where there are several, each line
begins with its pod and container. Pods that come later are not followed.`,
		Example: `  kalypsoctl logs loki                                the last lines of each container
  kalypsoctl logs agent -f                            and those that come, until ^C
  kalypsoctl logs mimir --previous                    of containers that ended: why did it crash?`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return cli.Usage(cmd.CommandPath()+" loki", "logs takes one component")
			}
			return known(cmd, args)
		},
		ValidArgsFunction: completeComponents,
		RunE:              func(cmd *cobra.Command, args []string) error { return f.run(cmd, args[0]) },
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.BoolVarP(&f.follow, "follow", "f", false, "print lines as they come, until ^C")
	fl.BoolVarP(&f.previous, "previous", "p", false, "logs of containers before they were started again")
	fl.Int64Var(&f.tail, "tail", 100, "how many lines of each container (-1: all)")
	fl.DurationVar(&f.since, "since", 0, "only lines that are not older, such as 5m")
	f.register(fl)
	f.complete(cmd)
	return cmd
}

func (f *logsFlags) run(cmd *cobra.Command, name string) error {
	ctx := cmd.Context()
	cluster, err := f.connect(ctx)
	if err != nil {
		return err
	}
	comp := componentNamed(name)
	pods, err := podsOf(ctx, cluster, comp)
	if err != nil {
		return err
	}
	var all []source
	for _, p := range pods {
		for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
			all = append(all, source{pod: p, container: c.Name})
		}
	}
	out := &lineWriter{w: cmd.OutOrStdout()}
	group, ctx := errgroup.WithContext(ctx)
	for _, s := range all {
		prefix := ""
		if len(all) > 1 {
			prefix = s.pod.Name + " " + s.container + " | "
		}
		group.Go(func() error {
			err := f.copy(ctx, cluster, s, out, prefix)
			if err != nil && ctx.Err() == nil && !out.broken() {
				// One that has no log yet is no reason to end the others.
				_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "%s %s: %s\n", s.pod.Name, s.container, noLog(err))
				return nil
			}
			return nil
		})
	}
	_ = group.Wait()
	switch {
	case out.err != nil:
		return fmt.Errorf("print the logs: %w", out.err)
	case cmd.Context().Err() != nil && !f.follow:
		return cli.Exit(cli.ExitInterrupted)
	case out.lines == 0 && cmd.Context().Err() == nil:
		return &profiler.Fault{What: "there are no logs of " + name, Fix: "kalypsoctl status     tells how its pods are"}
	}
	return nil
}

// componentNamed gives a component of the catalogue whose name was checked.
func componentNamed(name string) component.Component {
	all := component.All()
	return all[slices.IndexFunc(all, func(c component.Component) bool { return c.Name == name })]
}

// podsOf gives the pods of a component; none is an error that says why.
func podsOf(ctx context.Context, cluster *kube.Cluster, c component.Component) ([]*corev1.Pod, error) {
	client, err := helm.NewClient(cluster.Getter(c.Namespace), c.Namespace, cluster.Version, nil)
	if err != nil {
		return nil, err
	}
	release, err := client.Find(c.Release)
	if err != nil {
		return nil, err
	}
	if release == nil {
		return nil, &profiler.Fault{What: fmt.Sprintf("%s is not installed in context %s", c.Name, cluster.Context), Fix: "kalypsoctl install " + c.Name}
	}
	pods, err := cluster.Pods(ctx, status.Refs(release))
	if err != nil {
		return nil, err
	}
	if len(pods) == 0 {
		return nil, &profiler.Fault{What: c.Name + " has no pods", Fix: "kalypsoctl status     tells why"}
	}
	return pods, nil
}

// source is a container.
type source struct {
	pod       *corev1.Pod
	container string
}

// copy writes the log of one container.
func (f *logsFlags) copy(ctx context.Context, cluster *kube.Cluster, s source, out *lineWriter, prefix string) error {
	o := &corev1.PodLogOptions{Container: s.container, Follow: f.follow, Previous: f.previous}
	if f.tail >= 0 {
		o.TailLines = &f.tail
	}
	if f.since > 0 {
		seconds := max(int64(f.since.Seconds()), 1)
		o.SinceSeconds = &seconds
	}
	body, err := cluster.Client.CoreV1().Pods(s.pod.Namespace).GetLogs(s.pod.Name, o).Stream(ctx)
	if err != nil {
		return err
	}
	defer body.Close()
	for lines := bufio.NewReader(body); ; {
		line, err := lines.ReadString('\n')
		if line != "" {
			if failed := out.line(prefix + strings.TrimSuffix(line, "\n")); failed != nil {
				return failed
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// noLog is why a container has no log, without the name of the request.
func noLog(err error) string {
	text := err.Error()
	if _, rest, found := strings.Cut(text, " is waiting to start: "); found {
		return "not started: " + rest
	}
	if strings.Contains(text, "previous terminated container") {
		return "was not started before"
	}
	return text
}

// lineWriter takes whole lines from several containers.
type lineWriter struct {
	mu    sync.Mutex
	w     io.Writer
	err   error
	lines int
}

func (l *lineWriter) line(text string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.lines++
		_, l.err = fmt.Fprintln(l.w, text)
	}
	return l.err
}

func (l *lineWriter) broken() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err != nil
}
