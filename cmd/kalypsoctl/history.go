package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/cmd/internal/term"
	"github.com/kalypso-dev/kalypso/deploy/agents"
	"github.com/kalypso-dev/kalypso/deploy/pyroscope"
	"github.com/kalypso-dev/kalypso/exporter/format"
	"github.com/kalypso-dev/kalypso/exporter/transport"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/api"
)

// period is a range of the past, as it is typed: --from -1h --to now, and the store
// that has what agents do not remember.
type period struct {
	from, to  string
	pyroscope string // URL; empty: the one in the cluster
	headers   string
}

func (p *period) register(fl *pflag.FlagSet) {
	fl.StringVar(&p.from, "from", "", "what was recorded since `TIME`: -1h, 2006-01-02T15:04:05Z")
	fl.StringVar(&p.to, "to", "", "until `TIME` (now); with --from")
	fl.StringVar(&p.pyroscope, "pyroscope", "", "read it from the Pyroscope at `URL`, not from the cluster's")
	fl.StringVar(&p.headers, "pyroscope-headers", "", "`FILE` with what Pyroscope wants to be told, one Name: value a line")
}

func (p *period) given() bool { return p.from != "" || p.to != "" }

func (p *period) parse(now time.Time) (from, to time.Time, err error) {
	if p.from == "" {
		return from, to, cli.Usage("--from -15m --to now", "--to is given, and not --from when")
	}
	if from, err = moment("from", p.from, now); err != nil {
		return from, to, err
	}
	if to, err = moment("to", p.to, now); err != nil {
		return from, to, err
	}
	switch {
	case !from.Before(now):
		return from, to, cli.Usage("--from -15m", "--from is not in the past")
	case !from.Before(to):
		return from, to, cli.Usage("--from -15m --to now", "--from is not before --to")
	case to.After(now):
		to = now
	}
	return from, to, nil
}

// moment reads "now", "-15m", "-2d" and RFC 3339.
func moment(flag, text string, now time.Time) (time.Time, error) {
	if text == "" || text == "now" {
		return now, nil
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if d, err := time.ParseDuration(days + "h"); err == nil && d < 0 {
			return now.Add(24 * d), nil
		}
	}
	if d, err := time.ParseDuration(text); err == nil && d < 0 {
		return now.Add(d), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, cli.Usage("--"+flag+" -15m, --"+flag+" now and --"+flag+" 2006-01-02T15:04:05Z are times", "--%s cannot be %q", flag, text)
	}
	return t, nil
}

// isStored says that Pyroscope is asked: because it is named, or for what is older
// than agents remember.
func (p *period) isStored(from, now time.Time) bool {
	return p.pyroscope != "" || now.Sub(from) > api.DefaultKeep+time.Minute
}

// check is what can be said of the flags before anything is asked.
func (p *period) check(now time.Time) error {
	if !p.given() {
		if p.pyroscope != "" || p.headers != "" {
			return cli.Usage("--from -1h", "Pyroscope has what was: since when?")
		}
		return nil
	}
	_, _, err := p.parse(now)
	return err
}

// recorded is what a target did, wherever it was read.
type recorded struct {
	profile *profiler.Profile
	shares  []agents.Share
	facts   []string // in place of what the profile says of itself; none: it says it
}

// stored reads what Pyroscope has of a target.
func (f *profileFlags) stored(cmd *cobra.Command, text string, from, to time.Time, focus *regexp.Regexp) (*recorded, error) {
	if focus != nil && f.by != "" {
		return nil, cli.Usage("leave out one of them", "Pyroscope adds up what --by lists before --focus can choose")
	}
	ctx := cmd.Context()
	target, err := f.target(text)
	if err != nil {
		return nil, err
	}
	client, closeIt, err := f.openPyroscope(ctx)
	if err != nil {
		return nil, err
	}
	defer closeIt()
	notes := term.NewNotes(cmd.ErrOrStderr())
	end := live(notes, func(elapsed float64) string { return fmt.Sprintf("asking Pyroscope %4.1f s   %s", elapsed, target) })
	q := pyroscope.Query{Target: target, From: from, To: to}
	step := q.Step(120)
	p, series, err := askStore(ctx, client, q, step, storedLabels(f.by)...)
	end()
	notes.End()
	if err != nil {
		return nil, err
	}
	if len(p.Samples) == 0 {
		return nil, f.nothing(ctx, client, q)
	}
	if focus != nil {
		p.Samples = slices.DeleteFunc(p.Samples, func(s profiler.Sample) bool { return !fits(focus, &s) })
		if p.Quality = format.Quality(p.Samples); len(p.Samples) == 0 {
			return nil, f.unfocused(target)
		}
	}
	p.Host = target.String()
	samples := format.Samples(p)
	out := &recorded{profile: p, facts: []string{
		fmt.Sprintf("%s · %s · from Pyroscope", target, clock(from, to)),
		fmt.Sprintf("%s of CPU time · %.2f cores busy", cpuSeconds(p, samples), format.Cores(p, samples)),
	}}
	tellGaps(cmd.ErrOrStderr(), pyroscope.Spans(series, step), q, step)
	if f.by != "" {
		out.shares = storedShares(series, to.Sub(from))
	}
	return out, nil
}

// askStore asks for a profile, and for the times and parts that it is of: without
// labels that is for a note, which may be missing.
func askStore(ctx context.Context, client *pyroscope.Client, q pyroscope.Query, step time.Duration, labels ...string) (p *profiler.Profile, series []pyroscope.Series, err error) {
	var both errgroup.Group
	both.Go(func() (err error) {
		p, err = client.Profile(ctx, q)
		return err
	})
	both.Go(func() (err error) {
		if series, err = client.Series(ctx, q, step, labels...); len(labels) == 0 {
			return nil
		}
		return err
	})
	return p, series, both.Wait()
}

// openPyroscope reaches the store: the one that is named, else the cluster's.
func (f *profileFlags) openPyroscope(ctx context.Context) (*pyroscope.Client, func(), error) {
	config := transport.Config{Endpoint: f.pyroscope, HeadersFile: f.headers}
	if f.pyroscope != "" {
		if !strings.Contains(f.pyroscope, "://") {
			return nil, nil, cli.Usage("--pyroscope http://HOST:4040", "--pyroscope cannot be %q: it takes a URL", f.pyroscope)
		}
		client, err := pyroscope.New(config, "Pyroscope at "+f.pyroscope)
		if err != nil {
			return nil, nil, cli.Wrong(asFlag(err))
		}
		return client, client.Close, nil
	}
	cluster, err := f.connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	c := componentNamed("pyroscope")
	if _, err := cluster.Client.CoreV1().Services(c.Namespace).Get(ctx, c.Serves[0].Name, metav1.GetOptions{}); apierrors.IsNotFound(err) {
		return nil, nil, &profiler.Fault{
			What: "there is no Pyroscope in this cluster", Why: fmt.Errorf("agents remember %g minutes, what is older is stored there; namespace %s has no Service %s", api.DefaultKeep.Minutes(), c.Namespace, c.Serves[0].Name),
			Fix: "--from -15m reads what agents remember; --pyroscope URL names a server elsewhere; kalypsoctl install pyroscope",
		}
	}
	address, closeWay, err := cluster.Forward(ctx, c.Namespace, c.Serves[0].Name, c.Serves[0].Ports[0])
	if err != nil {
		return nil, nil, err
	}
	config.Endpoint = "http://" + address
	client, err := pyroscope.New(config, "Pyroscope")
	if err != nil {
		closeWay()
		return nil, nil, cli.Wrong(asFlag(err))
	}
	return client, func() { client.Close(); closeWay() }, nil
}

// asFlag says of which flag it is that a way to the store cannot be.
func asFlag(err error) error {
	var fault *profiler.Fault
	if !errors.As(err, &fault) {
		return err
	}
	return &profiler.Fault{What: "cannot ask Pyroscope so", Why: cmp.Or(fault.Why, errors.New(fault.What)), Fix: "--pyroscope http://HOST:4040 is a server, --pyroscope-headers FILE has lines such as X-Scope-OrgID: TENANT"}
}

// nothing explains that the store has no sample, and when it has some.
func (f *profileFlags) nothing(ctx context.Context, client *pyroscope.Client, q pyroscope.Query) error {
	fault := &profiler.Fault{
		What: fmt.Sprintf("Pyroscope has nothing of %s from %s", q.Target, clock(q.From, q.To)),
		Fix:  "kalypsoctl status     tells whether agents deliver; is the name right? -n names the namespace",
	}
	near := q
	if near.To = q.To.Add(pyroscope.Longest / 2); near.To.After(time.Now()) {
		near.To = time.Now()
	}
	near.From = near.To.Add(-pyroscope.Longest)
	step := near.Step(24 * 12)
	series, err := client.Series(ctx, near, step)
	if err != nil {
		return fault // what is asked more is no more than a help
	}
	spans := pyroscope.Spans(series, step)
	if len(spans) == 0 {
		fault.Why = fmt.Errorf("nor from %s", clock(near.From, near.To))
		return fault
	}
	const most = 3
	first := max(len(spans)-most, 0)
	var some []string
	for _, s := range spans[first:] {
		some = append(some, clock(s.From, s.To))
	}
	fault.Why = fmt.Errorf("it has some from %s", strings.Join(some, ", "))
	if first > 0 {
		fault.Why = fmt.Errorf("%w, and %s before that", fault.Why, plural(first, "time", "times"))
	}
	last := spans[len(spans)-1]
	fault.Fix = fmt.Sprintf("--from %s --to %s", last.From.UTC().Format(time.RFC3339), last.To.UTC().Format(time.RFC3339))
	return fault
}

// tellGaps says where a range is longer than what is there: what is said of cores
// is about the whole of it.
func tellGaps(w io.Writer, spans []pyroscope.Span, q pyroscope.Query, step time.Duration) {
	if len(spans) == 0 {
		return
	}
	first, last := spans[0].From, spans[len(spans)-1].To
	if first.Sub(q.From) > 2*step {
		_, _ = fmt.Fprintf(w, "note: there is nothing before %s\n", first.Local().Format(time.DateTime))
	}
	if q.To.Sub(last) > 2*step+time.Minute { // agents deliver windows, at their end
		_, _ = fmt.Fprintf(w, "note: there is nothing after %s\n", last.Local().Format(time.DateTime))
	}
}

// storedLabels are the labels that shares are by.
func storedLabels(by string) []string {
	switch by {
	case "pod":
		return []string{"namespace", "pod"}
	case "container":
		return []string{"namespace", "pod", "container"}
	case "service":
		return []string{"service_name"}
	case "node":
		return []string{"node"}
	}
	return nil
}

// storedShares are the shares of series, the largest first.
func storedShares(series []pyroscope.Series, length time.Duration) []agents.Share {
	seconds := map[string]float64{}
	for _, s := range series {
		name := strings.Join(s.Values, "/")
		switch {
		case strings.Trim(name, "/") == "":
			name = "[unknown]"
		case len(s.Values) > 1 && s.Values[1] == "":
			name = "[no pod]"
		}
		for _, p := range s.Points {
			seconds[name] += p.CPU.Seconds()
		}
	}
	return agents.SharesOf(seconds, length)
}

// clock writes a range in local time, with dates where one day does not have it.
func clock(from, to time.Time) string {
	from, to = from.Local(), to.Local()
	layout := time.TimeOnly
	if now := time.Now(); from.Format(time.DateOnly) != now.Format(time.DateOnly) || to.Format(time.DateOnly) != now.Format(time.DateOnly) {
		layout = time.DateTime
	}
	return from.Format(layout) + " to " + to.Format(layout)
}

// cpuSeconds is the CPU time that samples stand for.
func cpuSeconds(p *profiler.Profile, samples uint64) string {
	s := float64(samples) / float64(max(p.Frequency, 1))
	if s < 100 {
		return fmt.Sprintf("%.1f s", s)
	}
	return time.Duration(s * float64(time.Second)).Round(time.Second).String()
}
