package main

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/spf13/cobra"

	"github.com/kalypso-dev/kalypso/cmd/internal/checks"
	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/deploy/install"
	"github.com/kalypso-dev/kalypso/profiler"
)

// documented runs a verb that changes a cluster. Where -o asks for a document,
// what a person would read goes to standard error, and the document is printed
// when the verb has ended, also in failure.
func documented(cmd *cobra.Command, o *cli.Output, document func(error) any, run func() error) error {
	if o.Text() {
		return run()
	}
	stdout := cmd.OutOrStdout()
	cmd.SetOut(cmd.ErrOrStderr())
	err := run()
	if cli.IsUsage(err) {
		return err
	}
	if failed := o.Write(stdout, document(err)); err == nil {
		err = failed
	}
	return err
}

// fault is the three lines of an error, for a program.
type fault struct {
	What string `json:"error"`
	Why  string `json:"cause,omitempty"`
	Fix  string `json:"fix,omitempty"`
}

// ending is how a verb ended. Fields are added, not changed.
type ending struct {
	Result string `json:"result"` // planned, done, failed, not healthy, timed out, interrupted
	Error  *fault `json:"error,omitempty"`
}

// end tells how a verb ended; planned is that it was only to show what it would
// do.
func end(ctx context.Context, planned bool, err error) ending {
	var code interface {
		error
		ExitCode() int
	}
	var exit cli.Exit
	switch {
	case err == nil && planned:
		return ending{Result: "planned"}
	case err == nil:
		return ending{Result: "done"}
	case ctx.Err() != nil:
		return ending{Result: "interrupted"}
	case errors.As(err, &exit) && exit == cli.ExitNotHealthy:
		return ending{Result: "not healthy"}
	}
	e := ending{Result: "failed", Error: &fault{What: err.Error()}}
	if errors.As(err, &code) && code.ExitCode() == cli.ExitTimedOut {
		e.Result = "timed out"
	}
	var f *profiler.Fault
	if errors.As(err, &f) {
		e.Error = &fault{What: f.What, Fix: f.Fix}
		if f.Why != nil {
			e.Error.Why = f.Why.Error()
		}
	}
	return e
}

// states notes how far each component came.
type states struct {
	mu   sync.Mutex
	last map[string]install.Event
}

func (s *states) note(e install.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil {
		s.last = map[string]install.Event{}
	}
	s.last[e.Component] = e
}

// stateReport is how far one component came. Fields are added, not changed.
type stateReport struct {
	State      string `json:"state,omitempty"` // waiting, sending, starting, done, kept, failed, stopped, rolled back; nothing where it was not begun
	Detail     string `json:"detail,omitempty"`
	DurationMS int64  `json:"duration_ms,omitempty"`
}

func (s *states) of(name string) stateReport {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.last[name]
	if !ok {
		return stateReport{}
	}
	return stateReport{e.State.String(), e.Detail, e.Took.Milliseconds()}
}

// installReport is kalypso.install/v1, and kalypso.upgrade/v1. Fields are added,
// not changed.
type installReport struct {
	Schema     string             `json:"schema"`
	Context    string             `json:"context"`
	Kubernetes string             `json:"kubernetes"`
	Profile    string             `json:"profile"`
	Components []installComponent `json:"components"`
	Secrets    []string           `json:"new_secrets"`
	Warnings   []string           `json:"warnings,omitempty"`
	Proofs     []verifyProof      `json:"proofs,omitempty"`
	ending
}

type installComponent struct {
	Name      string `json:"name"`
	Wave      int    `json:"wave"`
	Namespace string `json:"namespace"`
	Release   string `json:"release"`
	Version   string `json:"version"`
	Installed string `json:"installed_version,omitempty"`
	Action    string `json:"action"` // keep, install, upgrade, finish, adopt
	Changed   int    `json:"objects_changed,omitempty"`
	Missing   int    `json:"objects_missing,omitempty"`
	stateReport
}

// installing is a run of install or upgrade, as its report needs it.
type installing struct {
	stack  *install.Stack
	plan   *install.Plan
	states states
	proof  *proof
	dryRun bool
}

func (i *installing) report(ctx context.Context, schema string, err error) installReport {
	r := installReport{Schema: schema, Components: []installComponent{}, Secrets: []string{}, ending: end(ctx, i.dryRun, err)}
	if i.stack != nil {
		r.Context, r.Kubernetes, r.Profile = i.stack.Cluster.Context, i.stack.Cluster.Version, i.stack.Profile
	}
	if i.plan == nil {
		return r
	}
	for _, step := range i.plan.Steps() {
		c := installComponent{
			Name: step.Name, Wave: step.Wave, Namespace: step.Namespace, Release: step.Release, Version: step.Chart.Version(),
			Action: step.Action.Word(), Changed: len(step.Differences), Missing: len(step.Missing), stateReport: i.states.of(step.Name),
		}
		if step.Now != nil {
			c.Installed = step.Now.Version
		}
		r.Components = append(r.Components, c)
	}
	for _, s := range i.plan.Secrets {
		if s.Created {
			r.Secrets = append(r.Secrets, s.String())
		}
	}
	for _, what := range i.plan.Lacking {
		r.Warnings = append(r.Warnings, what+", which is neither there nor in this plan")
	}
	if i.proof != nil && i.proof.report != nil {
		for _, row := range checks.Rows(i.proof.report) {
			r.Proofs = append(r.Proofs, verifyProof{Row: row})
		}
	}
	return r
}

// diffReport is kalypso.diff/v1. Fields are added, not changed.
type diffReport struct {
	Schema     string          `json:"schema"`
	Context    string          `json:"context"`
	Profile    string          `json:"profile"`
	Changes    bool            `json:"changes"`
	Components []diffComponent `json:"components"` // those that change
	Secrets    []string        `json:"new_secrets"`
}

type diffComponent struct {
	Name    string       `json:"name"`
	Action  string       `json:"action"`
	Objects []diffObject `json:"objects"`
}

type diffObject struct {
	Kind      string `json:"kind"`
	Name      string `json:"name"`
	Namespace string `json:"namespace,omitempty"`
	Change    string `json:"change"` // changed, new, deleted, missing
	Pods      bool   `json:"pods_restart,omitempty"`
	Diff      string `json:"diff,omitempty"`
}

func newDiffReport(stack *install.Stack, p *install.Plan) diffReport {
	r := diffReport{Schema: "kalypso.diff/v1", Context: stack.Cluster.Context, Profile: stack.Profile, Changes: p.Changes(), Components: []diffComponent{}, Secrets: []string{}}
	for _, step := range p.Steps() {
		if step.Action == install.Keep {
			continue
		}
		c := diffComponent{Name: step.Name, Action: step.Action.Word(), Objects: []diffObject{}}
		if step.Now == nil {
			for _, o := range slices.Concat(step.Manifests.CRDs, step.Manifests.Objects, step.Manifests.Hooks) {
				c.Objects = append(c.Objects, diffObject{Kind: o.Kind, Name: o.Name, Namespace: o.Namespace, Change: "new"})
			}
		}
		for _, o := range step.Missing {
			c.Objects = append(c.Objects, diffObject{Kind: o.Kind, Name: o.Name, Namespace: o.Namespace, Change: "missing"})
		}
		for i := range step.Differences {
			d := &step.Differences[i]
			o := diffObject{Kind: d.Kind, Name: d.Name, Namespace: d.Namespace, Change: "changed", Pods: d.Pods, Diff: d.Text()}
			switch {
			case d.Before == "":
				o.Change, o.Diff = "new", ""
			case d.After == "":
				o.Change, o.Diff = "deleted", ""
			}
			c.Objects = append(c.Objects, o)
		}
		r.Components = append(r.Components, c)
	}
	for _, s := range p.Secrets {
		if s.Created {
			r.Secrets = append(r.Secrets, s.String())
		}
	}
	return r
}

// removalReport is kalypso.uninstall/v1. Fields are added, not changed.
type removalReport struct {
	Schema     string             `json:"schema"`
	Context    string             `json:"context"`
	Components []removalComponent `json:"components"`
	Stay       []string           `json:"stay,omitempty"` // what others made
	Warnings   []string           `json:"warnings,omitempty"`
	Left       []leftReport       `json:"left,omitempty"`
	ending
}

type removalComponent struct {
	Name      string `json:"name"`
	Wave      int    `json:"wave"`
	Namespace string `json:"namespace"`
	Release   string `json:"release"`
	Version   string `json:"version"`
	stateReport
}

type leftReport struct {
	What    string   `json:"what"`
	Names   []string `json:"names"`
	Command string   `json:"command"`
}

// removing is a run of uninstall, as its report needs it.
type removing struct {
	context string
	removal *install.Removal
	left    []install.Left
	states  states
	dryRun  bool
}

func (r *removing) report(ctx context.Context, err error) removalReport {
	out := removalReport{Schema: "kalypso.uninstall/v1", Context: r.context, Components: []removalComponent{}, ending: end(ctx, r.dryRun, err)}
	if r.removal == nil {
		return out
	}
	for i, wave := range r.removal.Waves {
		for _, gone := range wave {
			out.Components = append(out.Components, removalComponent{gone.Name, i + 1, gone.Namespace, gone.Now.Name, gone.Now.Version, r.states.of(gone.Name)})
		}
	}
	out.Stay, out.Warnings = r.removal.Foreign, r.removal.Needed
	for _, l := range r.left {
		out.Left = append(out.Left, leftReport{l.What, l.Names, l.Command})
	}
	return out
}
