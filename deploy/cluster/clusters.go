package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/kalypso-dev/kalypso/deploy/check"
	"github.com/kalypso-dev/kalypso/profiler"
)

// Clusters are those that this program made on this machine.
type Clusters struct {
	Dir  string    // where their records are
	Host Host      // ThisHost, but for tests
	In   io.Reader // handed to the programs that are started
	Show io.Writer // where they print

	// Told of each step before it is done, of each check after it, and of why a
	// creation is taken back. Each may be nil.
	OnStep  func(Step)
	OnCheck func(check.Result)
	OnFail  func(error)
}

// Planned are the steps that make a cluster, in order; the same that Create
// takes.
func (c *Clusters) Planned(d Driver, s Spec) []Step {
	return c.steps(d, s, func(kernelFacts) error { return nil })
}

// Deletion are the steps that delete a cluster: what undoes those that made it,
// last one first.
func (c *Clusters) Deletion(d Driver, s Spec) []Step {
	return undo(d.Create(c.Host, s))
}

// Starting are the steps that start a cluster.
func (c *Clusters) Starting(d Driver, name string) []Step {
	return append(d.Start(c.Host, name), waitStep(d, name))
}

func (c *Clusters) steps(d Driver, s Spec, told func(kernelFacts) error) []Step {
	steps, look := d.Create(c.Host, s), d.look(s.Name, told)
	if len(d.Inside(s.Name)) == 0 {
		// The kernel is there already: look before anything is made.
		steps = append([]Step{look}, steps...)
	} else {
		steps = append(steps, look)
	}
	return append(steps, waitStep(d, s.Name))
}

func waitStep(d Driver, name string) Step {
	return Step{Reason: "wait until the server answers in context " + d.Context(name) + " and its nodes are ready", Do: ready(d.Context(name))}
}

func undo(steps []Step) []Step {
	var back []Step
	for _, s := range slices.Backward(steps) {
		back = append(back, s.Undo...)
	}
	return back
}

// Records are those of all clusters; what cannot be read is left out.
func (c *Clusters) Records() []Record {
	all, _ := records(c.Dir).all()
	return all
}

// Status is a cluster of ours and what its driver says of it.
type Status struct {
	Record
	State
	Err error // why the driver did not tell
}

// List tells of all clusters that have a record.
func (c *Clusters) List(ctx context.Context) ([]Status, error) {
	all, err := records(c.Dir).all()
	if err != nil {
		return nil, err
	}
	var out []Status
	for _, r := range all {
		s := Status{Record: r}
		if d, ok := Named(r.Driver); ok {
			s.State, s.Err = c.state(ctx, d, r.Name)
		} else {
			s.Err = fmt.Errorf("there is no driver %q", r.Driver)
		}
		out = append(out, s)
	}
	return out, nil
}

// Find gives the cluster of a name and its driver, or says that it is not ours.
func (c *Clusters) Find(ctx context.Context, name string) (Status, Driver, error) {
	r, err := records(c.Dir).read(name)
	if err != nil {
		return Status{}, Driver{}, err
	}
	if r == nil {
		return Status{}, Driver{}, c.unknown(name)
	}
	d, ok := Named(r.Driver)
	if !ok {
		return Status{}, Driver{}, fmt.Errorf("read the record of cluster %s: there is no driver %q", name, r.Driver)
	}
	if err := d.Check(c.Host, exec.LookPath); err != nil {
		return Status{}, Driver{}, err
	}
	s := Status{Record: *r}
	if s.State, err = c.state(ctx, d, name); err != nil {
		return Status{}, Driver{}, err
	}
	return s, d, nil
}

// ErrUnknown says that kalypsoctl made no cluster of a name.
var ErrUnknown = errors.New("kalypsoctl made no cluster of this name")

func (c *Clusters) unknown(name string) error {
	f := &profiler.Fault{What: "there is no cluster " + name, Why: ErrUnknown, Fix: "kalypsoctl cluster create"}
	if len(c.Records()) > 0 {
		f.Fix = "kalypsoctl cluster status     lists those that it made"
	}
	return f
}

// state asks the driver for one cluster.
func (c *Clusters) state(ctx context.Context, d Driver, name string) (State, error) {
	out, err := c.runner().output(ctx, d.State.Argv(name))
	if err == nil {
		var s State
		if s, err = d.State.Parse(out, name); err == nil {
			return s, nil
		}
	}
	if ctx.Err() != nil {
		return State{}, ctx.Err()
	}
	return State{}, &profiler.Fault{What: d.Name + " does not tell of its clusters", Why: err, Fix: d.Unwell}
}

func (c *Clusters) runner() runner { return runner{in: c.In, show: c.Show} }

// Check says why a cluster cannot be made: a driver that is not there, or
// something of the name that is not ours. There is one already, and it is whole,
// where found is not nil.
func (c *Clusters) Check(ctx context.Context, d Driver, s Spec) (found *Status, err error) {
	if err := d.Check(c.Host, exec.LookPath); err != nil {
		return nil, err
	}
	r, err := records(c.Dir).read(s.Name)
	if err != nil {
		return nil, err
	}
	if r != nil && r.Driver != d.Name {
		return nil, &profiler.Fault{
			What: fmt.Sprintf("cluster %s is there already, made with the driver %s", s.Name, r.Driver),
			Fix:  "kalypsoctl cluster delete --name " + s.Name + "     or give the new one another --name",
		}
	}
	state, err := c.state(ctx, d, s.Name)
	if err != nil {
		return nil, err
	}
	switch {
	case r != nil && r.Whole && state.Found:
		return &Status{Record: *r, State: state}, nil
	case r != nil && state.Found:
		return nil, &profiler.Fault{
			What: "cluster " + s.Name + " is half made",
			Why:  errors.New("an earlier kalypsoctl cluster create did not come to its end"),
			Fix:  "kalypsoctl cluster delete --name " + s.Name,
		}
	case state.Found:
		return nil, &profiler.Fault{
			What: fmt.Sprintf("%s has a cluster %s that kalypsoctl did not make", d.Name, s.Name),
			Why:  errors.New("what others made is not touched"),
			Fix:  "kalypsoctl cluster create --name OTHER     or use it: kalypsoctl preflight --context " + d.Context(s.Name),
		}
	}
	for _, file := range d.Owned {
		if _, err := os.Lstat(file); err == nil {
			return nil, &profiler.Fault{
				What: "this machine has " + file + " already",
				Why:  fmt.Errorf("it belongs to a Kubernetes that kalypsoctl did not make, and deleting a cluster of %s would remove it", d.Name),
				Fix:  "kalypsoctl cluster create --driver k3d     or use what is there: kalypsoctl preflight --kubeconfig FILE",
			}
		}
	}
	return nil, nil
}

// ErrKernel says that nothing can be profiled on the kernel of the nodes.
var ErrKernel = errors.New("the kernel of the nodes does not pass")

// Create makes a cluster that Check let pass. When a step fails or ctx ends,
// what was made is taken back, unless keep is set.
func (c *Clusters) Create(ctx context.Context, d Driver, s Spec, keep bool) error {
	r := Record{
		Schema: recordSchema, Name: s.Name, Driver: d.Name, Context: d.Context(s.Name), Created: time.Now().UTC().Truncate(time.Second),
		CPUs: s.CPUs, MemoryGiB: s.MemoryGiB, DiskGiB: s.DiskGiB,
	}
	if err := records(c.Dir).write(r); err != nil {
		return err
	}
	done, err := c.take(ctx, c.steps(d, s, func(f kernelFacts) error { return c.judge(ctx, f) }))
	if err == nil {
		r.Whole = true
		return records(c.Dir).write(r)
	}
	failure := &CreateError{Cluster: s.Name, Err: err, Kept: keep}
	if keep {
		return failure
	}
	if c.OnFail != nil {
		c.OnFail(err)
	}
	// The end of ctx must not keep us from cleaning up; rollback has its own.
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackLimit)
	defer cancel()
	_, failure.Left = c.remove(clean, d, s.Name, undo(done))
	return failure
}

// rollbackLimit bounds the taking back: deleting a virtual machine takes
// seconds, minutes on a machine that is out of memory.
const rollbackLimit = 5 * time.Minute

// CreateError says why a cluster was not made, and what became of it.
type CreateError struct {
	Cluster string
	Err     error
	Kept    bool
	Left    error // why something of it may be left; nil: nothing is
}

// Error is why it was not made.
func (e *CreateError) Error() string { return e.Err.Error() }

// Unwrap gives why it was not made.
func (e *CreateError) Unwrap() error { return e.Err }

// judge tells of the checks of a kernel, and refuses one that cannot be
// profiled at all.
func (c *Clusters) judge(ctx context.Context, f kernelFacts) error {
	report := check.Run(ctx, f.checks(), time.Second, c.OnCheck)
	if !report.Healthy() {
		return ErrKernel
	}
	return nil
}

// take takes steps until one fails, and gives those that were begun.
func (c *Clusters) take(ctx context.Context, steps []Step) (begun []Step, err error) {
	for i, s := range steps {
		if err := ctx.Err(); err != nil {
			return steps[:i], ctx.Err()
		}
		if c.OnStep != nil {
			c.OnStep(s)
		}
		if err := c.step(ctx, s); err != nil {
			return steps[:i+1], err
		}
	}
	return steps, nil
}

func (c *Clusters) step(ctx context.Context, s Step) error {
	switch {
	case s.Do != nil:
		return s.Do(ctx)
	case s.Read == nil:
		return c.runner().run(ctx, s.Argv)
	}
	out, err := c.runner().output(ctx, s.Argv)
	if err != nil {
		return err
	}
	return s.Read(out)
}

// remove takes all steps whatever becomes of each, then looks whether the
// cluster is gone. What failed matters to who deletes a whole cluster; a step
// that undoes what was never done fails, and may.
func (c *Clusters) remove(ctx context.Context, d Driver, name string, steps []Step) (failed []error, left error) {
	for _, s := range steps {
		if c.OnStep != nil {
			c.OnStep(s)
		}
		if err := c.step(ctx, s); err != nil {
			failed = append(failed, err)
		}
	}
	state, err := c.state(ctx, d, name)
	if err != nil {
		return failed, errors.Join(append(failed, err)...)
	}
	if state.Found {
		return failed, errors.Join(append(failed, fmt.Errorf("%s still has it", d.Name))...)
	}
	return failed, records(c.Dir).remove(name)
}

// Start starts a cluster of ours and waits until it is ready.
func (c *Clusters) Start(ctx context.Context, d Driver, name string) error {
	_, err := c.take(ctx, c.Starting(d, name))
	return err
}

// Stop stops a cluster of ours; its data stays.
func (c *Clusters) Stop(ctx context.Context, d Driver, name string) error {
	_, err := c.take(ctx, d.Stop(c.Host, name))
	return err
}

// Delete deletes a cluster of ours with all its data.
func (c *Clusters) Delete(ctx context.Context, d Driver, s Status) error {
	failed, left := c.remove(ctx, d, s.Name, c.Deletion(d, s.Spec()))
	if left != nil || !s.Found {
		return left
	}
	return errors.Join(failed...)
}
