package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/checks"
	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/term"
	"github.com/kalypso-dev/kalypso/cmd/kalypsoctl/internal/config"
	"github.com/kalypso-dev/kalypso/deploy/check"
	"github.com/kalypso-dev/kalypso/deploy/install"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/deploy/preflight"
)

// preflightLimit is for one check; most take milliseconds, and planning against
// a slow cluster some seconds.
const preflightLimit = 30 * time.Second

// preflightFlags are its flags.
type preflightFlags struct {
	targetFlags
	output     cli.Output
	only       []string
	components []string
	short      bool
	nodes      bool
}

func newPreflightCommand() *cobra.Command {
	f := &preflightFlags{}
	cmd := &cobra.Command{
		Use:   "preflight [flags]",
		Short: "can this cluster run the stack?",
		Long: `Can this cluster run the stack? Holds what an installation with the same flags
would make against what the API server says: rights, nodes, memory, volumes, what is
there already. Changes nothing, starts no pod, needs no internet. Before charts pull,
what depends on the charts is not known.

With --nodes it also starts kalypso-agent doctor in a pod, with the image and the rights
that the agent would have, on one node of each system (kernel, distribution, runtime),
and takes the pods away again.
Exit code 0: it can. 3: it cannot; each failure has a fix to type.`,
		Example: `  kalypsoctl preflight                                can this cluster run the stack?
  kalypsoctl preflight --profile small                and a small one?
  kalypsoctl preflight --nodes                        and will eBPF work on its nodes?
  kalypsoctl preflight --short                        only what is wrong
  kalypsoctl preflight --only memory,storage          some checks
  kalypsoctl preflight -o json                        for a program to read`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.output.Check(cmd); err != nil {
				return err
			}
			// What is typed wrong is said before a cluster is asked.
			if _, err := checks.Select(cmd, preflight.New(preflight.Config{}).Checks(), f.only); err != nil {
				return err
			}
			if err := known(cmd, f.components); err != nil {
				return err
			}
			return f.run(cmd)
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	f.output.Register(fl)
	fl.StringSliceVar(&f.only, "only", nil, "run only the checks with these `ID`s")
	fl.StringSliceVar(&f.components, "component", nil, "only for these `COMPONENT`s and what they need")
	fl.BoolVar(&f.short, "short", false, "print only what does not work, and the last line")
	fl.BoolVar(&f.nodes, "nodes", false, "try on the nodes whether the agent can run there, in a pod")
	f.register(fl)
	f.cluster.registerTimeout(fl, 90*time.Second, "for --nodes: how long a node may take, with the pull of the image (0: no limit)")
	f.registerAdopt(fl)
	quietly(cmd)
	f.cluster.complete(cmd)
	return cmd
}

func (f *preflightFlags) run(cmd *cobra.Command) error {
	began := time.Now()
	stack, err := f.openLeniently(cmd)
	if err != nil {
		return err
	}
	all := preflight.New(preflight.Config{
		Cluster: stack.Cluster, Stack: stack,
		Smaller: func() []*install.Stack { return f.smaller(cmd, stack) },
		Command: func(words ...string) string { return f.command(cmd, words) },
	})
	list, err := checks.Select(cmd, all.Checks(), f.only)
	if err != nil {
		return err
	}
	out, ctx := cmd.OutOrStdout(), quiet(cmd.Context())
	if !f.output.Text() {
		out = io.Discard
	}
	if _, err = fmt.Fprintf(out, "Context %s (Kubernetes %s, profile %s)\n", stack.Cluster.Context, stack.Cluster.Version, stack.Profile); err != nil {
		return fmt.Errorf("print the checks: %w", err)
	}
	report, err := checks.Print(ctx, out, list, preflightLimit, f.short, nil)
	if err != nil {
		return fmt.Errorf("print the checks: %w", err)
	}
	sum, nodes := *report, []preflight.Node(nil)
	var failed error // what was seen is told all the same
	if f.nodes && ctx.Err() == nil {
		nodes, failed = f.tryNodes(ctx, out, all)
		for _, n := range nodes {
			sum.Results = append(sum.Results, n.Report.Results...)
		}
		sum.Took = time.Since(began)
	}
	if f.output.Text() {
		_, err = fmt.Fprintln(out, preflightVerdict(&sum))
	} else {
		err = f.output.Write(cmd.OutOrStdout(), preflightDocument(stack, report, &sum, nodes))
	}
	switch {
	case err != nil:
		return fmt.Errorf("print the checks: %w", err)
	case failed != nil:
		return failed
	case ctx.Err() != nil:
		return cli.Exit(cli.ExitInterrupted)
	case !sum.Healthy():
		return cli.Exit(cli.ExitNotHealthy)
	}
	return nil
}

// tryNodes has the agent's doctor look at the nodes, and prints what it says of
// each as it comes.
func (f *preflightFlags) tryNodes(ctx context.Context, out io.Writer, all *preflight.Preflight) ([]preflight.Node, error) {
	limit := f.cluster.timeout
	if limit <= 0 {
		limit = forever
	}
	var nodes []preflight.Node
	var failed error
	err := all.Nodes(ctx, limit, func(n preflight.Node) {
		nodes = append(nodes, n)
		if err := f.printNode(out, n); failed == nil {
			failed = err
		}
	})
	slices.SortFunc(nodes, func(a, b preflight.Node) int { return strings.Compare(a.Name, b.Name) })
	if err == nil && failed != nil {
		err = fmt.Errorf("print the checks: %w", failed)
	}
	return nodes, err
}

func (f *preflightFlags) printNode(out io.Writer, n preflight.Node) error {
	list := make([]check.Check, len(n.Report.Results)) // for the width of their column
	worth := !f.short
	for i, r := range n.Report.Results {
		list[i].ID = r.ID
		worth = worth || r.State == check.Failed
	}
	if !worth {
		return nil
	}
	like := ""
	if len(n.Like) > 0 {
		like = "; like " + strings.Join(n.Like, ", ")
		if len(n.Like) > 2 {
			like = fmt.Sprintf("; like %d more", len(n.Like))
		}
	}
	if _, err := fmt.Fprintf(out, "node %s (%s%s)\n", n.Name, n.System, like); err != nil {
		return err
	}
	style := check.Style{Short: f.short, ASCII: term.ASCII(os.Getenv)}.Fit(list)
	for _, r := range n.Report.Results {
		if err := style.Print(out, r); err != nil {
			return err
		}
	}
	return nil
}

// openLeniently opens the stack also for those who may not see what is
// installed: which rights are missing is one of the findings.
func (f *preflightFlags) openLeniently(cmd *cobra.Command) (*install.Stack, error) {
	ask := f.targetFlags
	ask.reset = true   // asks for no earlier profile
	ask.lenient = true // what needs the charts is not known without them
	stack, err := ask.open(cmd, f.components, true)
	if err != nil {
		return nil, err
	}
	stack.Reset = false
	c, err := f.stack.load()
	if err != nil || c.ProfileGiven() {
		return stack, err
	}
	if profile, err := install.Profile(cmd.Context(), stack.Cluster); err == nil && profile != "" && profile != stack.Profile {
		ask.stack.profile = profile
		if stack, err = ask.open(cmd, f.components, true); err != nil {
			return nil, err
		}
		stack.Reset = false
	}
	return stack, nil
}

// smaller gives the stack in the profiles below its own, largest first.
func (f *preflightFlags) smaller(cmd *cobra.Command, stack *install.Stack) []*install.Stack {
	var out []*install.Stack
	profiles := config.Profiles() // smallest first
	for i := slices.Index(profiles, stack.Profile) - 1; i >= 0; i-- {
		ask := f.targetFlags
		ask.stack.profile, ask.reset, ask.lenient = profiles[i], true, true
		if s, err := ask.open(cmd, f.components, true); err == nil {
			out = append(out, s)
		}
	}
	return out
}

// command is a command line with the flags that were given here and matter
// there; words given now win.
func (f *preflightFlags) command(cmd *cobra.Command, words []string) string {
	line := append([]string{cmd.Root().Name()}, words...)
	for _, name := range []string{"context", "kubeconfig", "charts", "file", "profile", "adopt", "skip", "set"} {
		flag := cmd.Flags().Lookup(name)
		if flag == nil || !flag.Changed || slices.Contains(words, "--"+name) {
			continue
		}
		values := []string{flag.Value.String()}
		switch name {
		case "adopt":
			values = []string{strings.Join(f.adopt, ",")}
		case "skip":
			values = []string{strings.Join(f.skip, ",")}
		case "set":
			values = f.stack.set
		}
		for _, value := range values {
			line = append(line, "--"+name, shellWord(value))
		}
	}
	return strings.Join(line, " ")
}

// shellWord is a value as a shell takes it.
func shellWord(value string) string {
	if value != "" && !strings.ContainsAny(value, " \t\n'\"\\$`&|;<>()*?[]{}#~!") {
		return value
	}
	return "'" + strings.ReplaceAll(value, "'", `'\''`) + "'"
}

// preflightVerdict is the last line.
func preflightVerdict(r *check.Report) string {
	states := map[check.State]int{}
	for _, res := range r.Results {
		states[res.State]++
	}
	broken, limits := r.Failures(check.Required), r.Failures(check.Limit)
	line := fmt.Sprintf("%d passed, %d failed", states[check.Passed], len(broken))
	if n := len(limits); n > 0 {
		line += ", " + kube.Count(n, "limitation")
	}
	if n := states[check.Skipped]; n > 0 {
		line += fmt.Sprintf(", %d not tried", n)
	}
	line += fmt.Sprintf(" in %.1f s", r.Took.Seconds())
	if failed := append(broken, limits...); len(failed) > 0 {
		line += "     more: kalypsoctl explain " + failed[0].ID
	}
	return line
}

// preflightReport is kalypso.preflight/v1. Fields are added, not changed.
type preflightReport struct {
	Schema      string          `json:"schema"`
	Context     string          `json:"context"`
	Kubernetes  string          `json:"kubernetes"`
	Profile     string          `json:"profile"`
	Healthy     bool            `json:"healthy"`
	Limitations int             `json:"limitations"`
	DurationMS  int64           `json:"duration_ms"`
	Checks      []checks.Row    `json:"checks"`
	Nodes       []preflightNode `json:"nodes,omitempty"` // with --nodes
}

type preflightNode struct {
	Name   string       `json:"name"`
	System string       `json:"system"`
	Like   []string     `json:"like,omitempty"` // nodes of the same system, which were not asked
	Checks []checks.Row `json:"checks"`
}

func preflightDocument(stack *install.Stack, cluster, sum *check.Report, nodes []preflight.Node) preflightReport {
	doc := preflightReport{
		Schema: "kalypso.preflight/v1", Context: stack.Cluster.Context, Kubernetes: stack.Cluster.Version, Profile: stack.Profile,
		Healthy: sum.Healthy(), Limitations: len(sum.Failures(check.Limit)), DurationMS: sum.Took.Milliseconds(), Checks: checks.Rows(cluster),
	}
	for _, n := range nodes {
		doc.Nodes = append(doc.Nodes, preflightNode{Name: n.Name, System: n.System, Like: n.Like, Checks: checks.Rows(n.Report)})
	}
	return doc
}
