package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/checks"
	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/near"
	"github.com/kalypso-dev/kalypso/deploy/check"
	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/deploy/verify"
	"github.com/kalypso-dev/kalypso/profiler"
)

type verifyFlags struct {
	clusterFlags
	output cli.Output
	keep   bool
}

func newVerifyCommand() *cobra.Command {
	f := &verifyFlags{}
	cmd := &cobra.Command{
		Use:   "verify [flags] [" + strings.Join(verify.IDs(), "|") + "]…",
		Short: "prove that the stack works: write one datum of each signal, read it back",
		Long: `Prove that the stack works. Writes a series, a log line, a span and a profile the
way that applications and the agent do, and reads each back from its store; asks
Grafana for the health of each data source, and istiod for its proxy.
Exit code 0: all is proved. 3: something is not.`,
		Example: `  kalypsoctl verify                                   what goes in comes out: each signal, Grafana, the mesh
  kalypsoctl verify logs profiles                     only these
  kalypsoctl verify --keep                            and tell by which ids to find it in Grafana
  kalypsoctl verify -o json                           for a program to read`,
		ValidArgs: verify.IDs(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.output.Check(cmd); err != nil {
				return err
			}
			if err := checkProofs(cmd, args); err != nil {
				return err
			}
			return f.run(cmd, args)
		},
	}
	cmd.Flags().SortFlags = false
	f.output.Register(cmd.Flags())
	cmd.Flags().BoolVar(&f.keep, "keep", false, "print the ids of what was written, and do not end the series")
	f.register(cmd.Flags())
	f.registerTimeout(cmd.Flags(), verify.DefaultPatience, "how long one datum is waited for")
	quietly(cmd)
	f.complete(cmd)
	return cmd
}

// checkProofs refuses what is no proof.
func checkProofs(cmd *cobra.Command, ids []string) error {
	for _, id := range ids {
		if slices.Contains(verify.IDs(), id) {
			continue
		}
		fix := "the proofs are " + strings.Join(verify.IDs(), ", ")
		if word := near.Word(id, verify.IDs()); word != "" {
			fix = cmd.CommandPath() + " " + word
		}
		return cli.Usage(fix, "there is no proof %q", id)
	}
	return nil
}

func (f *verifyFlags) run(cmd *cobra.Command, ids []string) error {
	ctx := cmd.Context()
	cluster, err := f.connect(ctx)
	if err != nil {
		return err
	}
	installed, err := f.installed(ctx, cluster, ids)
	if err != nil {
		return err
	}
	p := newProof(cluster, installed)
	p.config.Keep, p.config.Patience = f.keep, f.timeout
	if err := p.only(ids); err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if !f.output.Text() {
		p.report = check.Run(ctx, p.checks, p.config.Limit(), nil)
		err = f.output.Write(out, p.document(cluster.Context))
	} else {
		err = p.print(ctx, out)
		if err == nil {
			_, err = fmt.Fprintln(out, p.verdict())
		}
	}
	switch {
	case err != nil:
		return fmt.Errorf("print the proofs: %w", err)
	case ctx.Err() != nil:
		return cli.Exit(cli.ExitInterrupted)
	case !p.report.Healthy():
		return cli.Exit(cli.ExitNotHealthy)
	}
	return nil
}

// installed are the components that are there. None, or not one that was named,
// leaves nothing to prove.
func (f *verifyFlags) installed(ctx context.Context, cluster *kube.Cluster, ids []string) ([]component.Component, error) {
	there, err := verify.Installed(ctx, cluster.Client, component.All())
	if err != nil {
		return nil, err
	}
	names := component.Names(there)
	for _, id := range ids {
		if of := verify.ComponentOf(id); !slices.Contains(names, of) {
			return nil, &profiler.Fault{What: fmt.Sprintf("%s cannot be proved: %s is not installed in context %s", id, of, cluster.Context), Fix: "kalypsoctl install " + of}
		}
	}
	if len(there) == 0 {
		return nil, &profiler.Fault{What: "there is no stack in context " + cluster.Context, Fix: "kalypsoctl install"}
	}
	return there, nil
}

// proof is a run of the proofs, for a person or a program.
type proof struct {
	config verify.Config
	checks []check.Check
	report *check.Report
	kept   map[string]string // ids by proof
}

func newProof(cluster *kube.Cluster, installed []component.Component) *proof {
	p := &proof{kept: map[string]string{}}
	p.config = verify.Config{
		Components: installed, Forwarder: cluster, Client: cluster.Client,
		Kept: func(proof, id string) { p.kept[proof] = id },
	}
	return p
}

// only makes the checks: those with these ids, or all.
func (p *proof) only(ids []string) error {
	p.checks = verify.Proofs(p.config)
	if len(ids) == 0 {
		return nil
	}
	selected, unknown := check.Select(p.checks, ids)
	if unknown != "" {
		return fmt.Errorf("there is no proof %q", unknown)
	}
	p.checks = selected
	return nil
}

// proveInstalled runs the proofs of what is installed, at the end of install.
func proveInstalled(cmd *cobra.Command, run *installing) error {
	ctx, out, cluster := cmd.Context(), cmd.OutOrStdout(), run.stack.Cluster
	installed, err := verify.Installed(ctx, cluster.Client, component.All())
	if err != nil {
		return err
	}
	p := newProof(cluster, installed)
	p.checks = slices.DeleteFunc(verify.Proofs(p.config), func(c check.Check) bool {
		return !slices.Contains(component.Names(installed), verify.ComponentOf(c.ID))
	})
	if len(p.checks) == 0 {
		return nil
	}
	run.proof = p
	if _, err := fmt.Fprintln(out, "\nProof"); err != nil {
		return fmt.Errorf("print the proofs: %w", err)
	}
	if err := p.print(ctx, out); err != nil {
		return fmt.Errorf("print the proofs: %w", err)
	}
	switch {
	case ctx.Err() != nil:
		return cli.Exit(cli.ExitInterrupted)
	case !p.report.Healthy():
		_, _ = fmt.Fprintf(out, "%s; kalypsoctl verify tries again\n", p.verdict())
		return cli.Exit(cli.ExitNotHealthy)
	}
	return nil
}

// detailWidth is where the column of times begins: with it a line has 72
// characters.
const detailWidth = 50

// print prints each result as it comes.
func (p *proof) print(ctx context.Context, out io.Writer) error {
	var err error
	p.report, err = checks.Print(ctx, out, p.checks, p.config.Limit(), false, func(r *check.Result) {
		if r.State == check.Passed {
			r.Detail = fmt.Sprintf("%-*s %5.1f s", detailWidth, r.Detail, r.Took.Seconds())
			if id := p.kept[r.ID]; id != "" {
				r.Detail += "\n" + id
			}
		}
	})
	return err
}

// verdict is the last line.
func (p *proof) verdict() string {
	var broken []string
	for _, r := range p.report.Failures(check.Required) {
		broken = append(broken, r.ID)
	}
	took := p.report.Took.Seconds()
	if len(broken) > 0 {
		return fmt.Sprintf("not proved: %s (%.1f s)", strings.Join(broken, ", "), took)
	}
	skipped := 0
	for _, r := range p.report.Results {
		if r.State == check.Skipped {
			skipped++
		}
	}
	if skipped > 0 {
		return fmt.Sprintf("what is installed works, as far as it was tried (%.1f s)", took)
	}
	return fmt.Sprintf("the stack works (%.1f s)", took)
}

// verifyReport is kalypso.verify/v1. Fields are added, not changed.
type verifyReport struct {
	Schema     string        `json:"schema"`
	Context    string        `json:"context"`
	Healthy    bool          `json:"healthy"`
	DurationMS int64         `json:"duration_ms"`
	Proofs     []verifyProof `json:"proofs"`
}

type verifyProof struct {
	checks.Row
	Kept string `json:"kept,omitempty"` // the datum's id, with --keep
}

func (p *proof) document(context string) verifyReport {
	doc := verifyReport{
		Schema: "kalypso.verify/v1", Context: context, Healthy: p.report.Healthy(),
		DurationMS: p.report.Took.Milliseconds(), Proofs: []verifyProof{},
	}
	for _, row := range checks.Rows(p.report) {
		doc.Proofs = append(doc.Proofs, verifyProof{row, p.kept[row.ID]})
	}
	return doc
}
