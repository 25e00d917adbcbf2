// Package sysdump gathers what somebody needs who is to find out what is wrong
// with a stack, and is not there: one archive, with a summary that begins with
// what is wrong.
//
// It reads the cluster and changes nothing. Secrets are listed by name and
// never written: of those that the catalogue names, the values are read for one
// purpose, to take them out of whatever else has them. Everything that is
// written goes through the redactor.
//
// A cluster that is asked for a dump is half broken: each collector has a time
// limit, and what it could not get is a line of the summary. The package does
// not judge health; deploy/status does.
package sysdump

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kalypso-dev/kalypso/deploy/agents"
	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/kube"
	"github.com/kalypso-dev/kalypso/deploy/status"
)

// Options say what is wanted.
type Options struct {
	Components []component.Component
	Since      time.Duration // of logs and events
	MaxBytes   int64         // of the archive
	Profile    time.Duration // how long nodes are profiled; 0 is not at all
	Folder     string        // that everything is in, inside the archive
	Tool       string        // which kalypsoctl this is
	Started    func(what string)
}

// Report tells what became of a dump.
type Report struct {
	Files   int
	Bytes   int64    // of the archive
	Wrong   []string // what the summary begins with, worst first
	LeftOut []string // what is not in it by choice: limits of size, age, time
	Failed  []string // what could not be had
	Nothing error    // why nothing of the cluster could be read; nil if anything was
	Took    time.Duration
}

// collector gets one kind of thing.
type collector struct {
	name string
	has  string // for --list
	run  func(*dump, context.Context) error
}

// collectors in order of their worth: what comes later is left out first.
func collectors() []collector {
	return []collector{
		{"versions", "kalypsoctl, Kubernetes, nodes with kernel, runtime and room", (*dump).versions},
		{"plan", "components, waves, what each needs", (*dump).plan},
		{"releases", "Helm releases: chart, revision, status; values that were given", (*dump).releases},
		{"events", "events of the namespaces and of nodes", (*dump).events},
		{"objects", "all objects of the namespaces but Secrets, of which the names", (*dump).objects},
		{"logs", "logs of each container, and of the one before it", (*dump).logs},
		{"agent", "counters and quality of each agent that runs", (*dump).agents},
		{"profile", "where CPU time goes on the nodes, a few seconds of it", (*dump).profile},
	}
}

// collectLimit bounds one collector. All of them take seconds on a cluster that
// answers.
const collectLimit = time.Minute

// Contents are what a dump would have, a row each: name, and what it is.
func Contents() [][]string {
	rows := [][]string{{summaryName, "what is wrong, first; what was left out, last"}}
	for _, c := range collectors() {
		rows = append(rows, []string{c.name, c.has})
	}
	return rows
}

// dump is one that is being made.
type dump struct {
	*archive
	cluster *kube.Cluster
	reach   agents.Reacher
	opts    Options
	health  []status.Component
	nodes   []corev1.Node
	failed  []failure
	tallies map[string]int // warnings of events, by what they say
}

// Write makes a dump of a cluster. It gives an error only where the archive
// cannot be written, or ctx was canceled: a broken cluster makes a dump that says
// so.
func Write(ctx context.Context, cluster *kube.Cluster, w io.Writer, o Options) (*Report, error) {
	began := time.Now()
	d := &dump{
		cluster: cluster, reach: agents.Forwarded{Cluster: cluster}, opts: o, tallies: map[string]int{},
		archive: &archive{folder: o.Folder, at: began, limit: o.MaxBytes, redact: newRedactor(nil)},
	}
	d.redact = newRedactor(d.credentials(ctx))
	d.started("health")
	d.health = status.Look(ctx, cluster, o.Components)
	for _, c := range collectors() {
		if err := ctx.Err(); err != nil {
			d.leftOut("%s: the time was over", c.name)
			continue
		}
		d.started(c.name)
		limited, cancel := context.WithTimeout(ctx, collectLimit)
		if err := c.run(d, limited); err != nil {
			d.fail(c.name, err)
		}
		cancel()
	}
	if errors.Is(ctx.Err(), context.Canceled) { // the deadline is no reason to write nothing
		return nil, ctx.Err()
	}
	r := &Report{Files: len(d.members) + 1, Wrong: d.wrongLines(), LeftOut: d.left, Failed: d.failures(), Nothing: d.nothing()}
	var err error
	r.Bytes, err = d.write(w, d.redact.text(d.summary(began)))
	r.Took = time.Since(began)
	return r, err
}

func (d *dump) started(what string) {
	if d.opts.Started != nil {
		d.opts.Started(what)
	}
}

// failure is what could not be had, and why.
type failure struct {
	what, why string
	err       error
}

// noRights is the reason of all that the server refuses: in its own words it is
// another one for each kind and namespace.
const noRights = "you may not read it (403 Forbidden)"

// addresses stand before the reason in errors of net/http, also in those that the
// API server passes on, and make each another one.
var addresses = regexp.MustCompile(`\b(?:Get|Post) "[^"]*": `)

// fail notes what could not be had.
func (d *dump) fail(what string, err error) {
	why := addresses.ReplaceAllString(err.Error(), "")
	if apierrors.IsForbidden(err) {
		why = noRights
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failed = append(d.failed, failure{what, string(d.redact.text([]byte(why))), err})
}

// nothing says why nothing of the cluster could be read, if so it is.
func (d *dump) nothing() error {
	seen := len(d.nodes) > 0 || slices.ContainsFunc(d.health, func(c status.Component) bool { return c.Health != status.Unknown }) ||
		slices.ContainsFunc(d.members, func(m member) bool {
			folder, _, _ := strings.Cut(m.name, "/")
			return slices.Contains([]string{"events", "objects", "logs", "agent", "profile"}, folder)
		})
	if seen {
		return nil
	}
	for _, f := range d.failed {
		if apierrors.IsForbidden(f.err) {
			return f.err
		}
	}
	if len(d.failed) > 0 {
		return d.failed[0].err
	}
	return errors.New("the time was over")
}

// namesShown is how many things are named that one reason kept from being had.
const namesShown = 3

// failures are what could not be had, a line for each reason.
func (d *dump) failures() []string {
	byReason := map[string][]string{}
	var reasons []string
	for _, f := range d.failed {
		if byReason[f.why] == nil {
			reasons = append(reasons, f.why)
		}
		byReason[f.why] = append(byReason[f.why], f.what)
	}
	var out []string
	for _, why := range reasons {
		names := byReason[why]
		slices.Sort(names)
		if more := len(names) - namesShown; more > 0 {
			names = append(names[:namesShown:namesShown], fmt.Sprintf("and %d more", more))
		}
		out = append(out, strings.Join(names, ", ")+": "+why)
	}
	return out
}

// namespaces are those of the components, in their order. What is broken comes
// first: it is taken before there is no room.
func (d *dump) namespaces() []string {
	var out []string
	for _, c := range d.ordered() {
		if c.Health != status.Absent && !slices.Contains(out, c.Namespace) {
			out = append(out, c.Namespace)
		}
	}
	return out
}

// ordered are the components, worst first.
func (d *dump) ordered() []status.Component {
	rank := []status.Health{status.Broken, status.Unknown, status.Starting, status.Healthy, status.Absent}
	all := slices.Clone(d.health)
	slices.SortStableFunc(all, func(a, b status.Component) int {
		return slices.Index(rank, a.Health) - slices.Index(rank, b.Health)
	})
	return all
}

// credentials are the values of the Secrets that the catalogue names. They are
// looked for, and never written. Who may not read them has none to lose: a
// component's log is redacted by names then.
func (d *dump) credentials(ctx context.Context) [][]byte {
	limited, cancel := context.WithTimeout(ctx, collectLimit)
	defer cancel()
	var values [][]byte
	for _, c := range d.opts.Components {
		for _, s := range c.Secrets {
			secret, err := d.cluster.Client.CoreV1().Secrets(c.Namespace).Get(limited, s.Name, metav1.GetOptions{})
			if err != nil {
				continue
			}
			for _, v := range secret.Data {
				values = append(values, v)
			}
		}
	}
	return values
}
