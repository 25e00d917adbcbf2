package agents

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/collector/pdata/pprofile/pprofileotlp"

	"github.com/kalypso-dev/kalypso/exporter/otlp/otlptest"
)

// profiles are all that the backend took.
func (b *bench) profiles(t *testing.T) []otlptest.Profile {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(b.received, "*.pb"))
	if err != nil {
		t.Fatal(err)
	}
	var all []otlptest.Profile
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		request := pprofileotlp.NewExportRequest()
		if err := request.UnmarshalProto(data); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		all = append(all, otlptest.Profiles(request.Profiles())...)
	}
	return all
}

// periods are when not everything could be known.
type periods struct {
	chosen  span // store-0 was left out, and probe had a rate of its own
	away    span // nobody was heard of pods
	renamed span // store-0 had two names
	drained span // there were two of store-0, with a name each
}

// named holds the names of every profile against what ran.
func (b *bench) named(t *testing.T, all []otlptest.Profile, when periods) {
	t.Helper()
	wrong := map[string]uint64{} // samples by what is wrong with them
	say := func(p *otlptest.Profile, format string, args ...any) {
		wrong[fmt.Sprintf(format, args...)] += p.Samples()
	}
	var of struct{ named, nameless, without, foreign, host, lost uint64 }
	met := map[string]bool{} // by the start of the pod's name
	for i := range all {
		p := &all[i]
		a := p.Attributes
		node := a["host.name"]
		if !slices.Contains(nodes(), node) {
			say(p, "%v is of no node", a)
			continue
		}
		ran, known := b.truth.of(a["container.id"])
		claimed := a["k8s.pod.name"] != ""
		switch {
		case claimed && !known: // its sandbox, which has no log
			of.host += p.Samples()
			b.sandbox(p, say)
		case !known:
			of.host += p.Samples()
			if n := ofPods(p); n > 0 {
				of.lost += n
				say(p, "%d samples of containers' programs, at the host: %v", n, a)
			}
		case ran.Node != node && (claimed || a["k8s.node.name"] != "" || a["k8s.namespace.name"] != ""):
			say(p, "%s claims %s of %s: %v", node, ran.Pod, ran.Node, a)
		case ran.Node != node:
			of.foreign += p.Samples()
		case !claimed && when.away.touches(p.Start, p.Start.Add(p.Duration)):
			of.without += p.Samples()
			if a["k8s.namespace.name"] != "" || a["k8s.container.name"] != "" {
				say(p, "half a name: %v", a)
			}
		default:
			of.named += p.Samples()
			got := [...]string{a["k8s.namespace.name"], a["k8s.pod.name"], a["k8s.container.name"], a["k8s.node.name"]}
			want := [...]string{ran.Namespace, ran.Pod, ran.Name, ran.Node}
			if got[2] == "" {
				want[2] = ""
				if !when.away.touches(p.Start, p.Start.Add(p.Duration)) {
					of.nameless += p.Samples()
				}
			}
			if got != want {
				say(p, "%v of %s, want %v", got, p.Start.Format(time.TimeOnly), want)
			}
			owned(p, when, say)
			for prefix := range identities() {
				met[prefix] = met[prefix] || strings.HasPrefix(a["k8s.pod.name"], prefix)
			}
		}
	}
	for prefix := range identities() {
		if !met[prefix] {
			t.Errorf("no sample is of a pod %s", prefix)
		}
	}
	for what, n := range wrong {
		t.Errorf("%d samples: %s", n, what)
	}
	t.Logf("%d samples have the names of their pod, %d of them not that of a container that had just been made; %d of the outage have none, %d are of the other node's containers, %d of no container, %d of them of containers' programs",
		of.named, of.nameless, of.without, of.foreign, of.host, of.lost)
	// Where the machine is busy a kubelet tells of a container late.
	if of.nameless > of.named/100 {
		t.Errorf("%d samples of %d have no container's name", of.nameless, of.named)
	}
	if of.named == 0 || of.foreign == 0 {
		t.Error("there is not everything that is looked for")
	}
}

// ofPods is how many samples are of programs that run in containers only: they have
// a function that no other program of this machine has, the test's own least of all.
func ofPods(p *otlptest.Profile) (n uint64) {
	functions := []string{"hot_child"} // of burst
	for _, of := range shares() {
		functions = slices.AppendSeq(functions, maps.Keys(of))
	}
	for i := range p.Stacks {
		if slices.ContainsFunc(functions, p.Stacks[i].Runs) {
			n += p.Stacks[i].Count
		}
	}
	return n
}

// sandbox is a container that no status tells of. Its samples have the names of
// the pod on the same node, and no container's.
func (b *bench) sandbox(p *otlptest.Profile, say func(*otlptest.Profile, string, ...any)) {
	a := p.Attributes
	if n := ofPods(p); n > 0 {
		say(p, "%d samples of a container's program, in a sandbox: %v", n, a)
	}
	if a["k8s.container.name"] != "" {
		say(p, "container %s of %s, of which the node does not know", a["k8s.container.name"], a["k8s.pod.name"])
	}
	if a["k8s.node.name"] != a["host.name"] || !b.truth.hasPod(a["host.name"], a["k8s.namespace.name"], a["k8s.pod.name"]) {
		say(p, "a pod that is not on %s: %v", a["host.name"], a)
	}
}

// owned looks at the owner and the service's name of a pod of shop.
func owned(p *otlptest.Profile, when periods, say func(*otlptest.Profile, string, ...any)) {
	a := p.Attributes
	if a["k8s.namespace.name"] != "shop" {
		return
	}
	for prefix, want := range identities() {
		if !strings.HasPrefix(a["k8s.pod.name"], prefix) {
			continue
		}
		services := []string{want.service}
		if prefix == "store-" {
			end := p.Start.Add(p.Duration)
			switch {
			case when.renamed.touches(p.Start, end), when.drained.touches(p.Start, end):
				services = []string{want.service, "renamed"}
			case p.Start.After(when.renamed.to) && end.Before(when.drained.from):
				services = []string{"renamed"}
			}
		}
		if !slices.Contains(services, a["service.name"]) {
			say(p, "%s of %s has the service %s, want %v", a["k8s.pod.name"], p.Start.Format(time.TimeOnly), a["service.name"], services)
		}
		for _, key := range []string{"k8s.deployment.name", "k8s.statefulset.name", "k8s.daemonset.name", "k8s.cronjob.name", "k8s.job.name", "k8s.replicaset.name"} {
			name := ""
			if key == want.owner {
				name = want.name
			}
			if a[key] != name {
				say(p, "%s has %s %q, want %q", a["k8s.pod.name"], key, a[key], name)
			}
		}
		return
	}
	say(p, "a pod that nobody made: %v", a)
}

// shared holds the shares of functions of each workload against what they are by
// design, to 3 points.
func shared(t *testing.T, all []otlptest.Profile) {
	t.Helper()
	for prefix, want := range shares() {
		function := map[string]float64{} // CPU seconds
		var sum float64
		var samples uint64
		for i := range all {
			p := &all[i]
			if p.Attributes["k8s.namespace.name"] != "shop" || !strings.HasPrefix(p.Attributes["k8s.pod.name"], prefix) {
				continue
			}
			for j := range p.Stacks {
				s := &p.Stacks[j]
				for name := range want {
					if s.Runs(name) {
						function[name] += float64(s.Count) * p.Period.Seconds()
						sum += float64(s.Count) * p.Period.Seconds()
						samples += s.Count
					}
				}
			}
		}
		for name, share := range want {
			got := function[name] / max(sum, 1e-9)
			t.Logf("%s %s: %.1f %% of %.1f CPU seconds (%d samples), want %.0f %%", prefix, name, 100*got, sum, samples, 100*share)
			if math.Abs(got-share) > 0.03 {
				t.Errorf("%s of %s has %.1f %% of %d samples, want %.0f %%", name, prefix, 100*got, samples, 100*share)
			}
		}
	}
}

// spent is what a container that ended wrote of its CPU time.
type spent struct {
	CPUSeconds    float64 `json:"cpu_seconds"`
	OwnCPUSeconds float64 `json:"own_cpu_seconds"`
}

// bursts is the CPU time that the short containers used, as each wrote it.
func (b *bench) bursts(t *testing.T) float64 {
	t.Helper()
	var total float64
	for line := range strings.Lines(b.kubectl(t, "-n", "shop", "logs", "-l", "app=burst", "--tail=1", "--max-log-requests=40")) {
		var s spent
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		total += s.CPUSeconds + s.OwnCPUSeconds
	}
	return total
}

// short holds what short containers used against what is said of their pods.
func (b *bench) short(t *testing.T, all []otlptest.Profile, used float64) {
	t.Helper()
	var got float64
	var samples uint64
	for i := range all {
		p := &all[i]
		if _, known := b.truth.of(p.Attributes["container.id"]); known && p.Attributes["k8s.job.name"] == "burst" {
			got += float64(p.Samples()) * p.Period.Seconds()
			samples += p.Samples()
		}
	}
	t.Logf("short containers used %.2f s, and their pods have %.2f s of it, %.1f %% (%d samples)", used, got, 100*got/used, samples)
	// Where containers share a core, it is by chance which of them a sample meets.
	chance := 3 * math.Sqrt(0.5/float64(max(samples, 1)))
	if got < (0.95-chance)*used || got > (1.1+chance)*used {
		t.Errorf("short containers used %.2f s, and their pods have %.2f s", used, got)
	}
}

// asked holds what was sampled while pods had annotations against these.
func (b *bench) asked(t *testing.T, all []otlptest.Profile, when span) {
	t.Helper()
	rates := map[time.Duration]uint64{} // samples of probe by period
	for i := range all {
		p := &all[i]
		if p.Start.Before(when.from) || p.Start.Add(p.Duration).After(when.to) {
			continue
		}
		switch p.Attributes["k8s.pod.name"] {
		case "store-0":
			t.Errorf("%d samples of a pod that asked to be left out, from %s on", p.Samples(), p.Start.Format(time.TimeOnly))
		default:
			if p.Attributes["k8s.daemonset.name"] == "probe" {
				rates[p.Period] += p.Samples()
			}
		}
	}
	if len(rates) != 1 || rates[time.Second/chosenHz] == 0 {
		t.Errorf("samples of the pods that asked for %d Hz by period: %v", chosenHz, rates)
	}
	var filtered uint64
	for _, runs := range b.truth.totals(t) {
		for i := range runs {
			filtered += runs[i].Filtered
		}
	}
	t.Logf("%d samples were left out, probe's by period: %v", filtered, rates)
	if filtered == 0 {
		t.Error("no sample was left out")
	}
}

// accounted adds up what the agents say of their samples, and holds what they
// delivered against what the backend has.
func (b *bench) accounted(t *testing.T, all []otlptest.Profile) {
	t.Helper()
	var received, delivered, taken, lost uint64
	seen := map[string]bool{}
	for i := range all {
		p := &all[i]
		received += p.Samples()
		key := fmt.Sprint(p.Start.UnixNano(), p.Period, p.Attributes)
		if seen[key] {
			t.Errorf("%d samples came twice: %s %v", p.Samples(), p.Start.Format(time.TimeOnly), p.Attributes)
		}
		seen[key] = true
	}
	for node, runs := range b.truth.totals(t) {
		var left uint64
		for i := range runs {
			n := &runs[i]
			n.Check(t)
			if n.OTLP.Recovered != left {
				t.Errorf("run %d on %s found %d samples in the spool, the one before left %d", i, node, n.OTLP.Recovered, left)
			}
			left = n.OTLP.Waiting
			delivered, taken, lost = delivered+n.OTLP.Delivered, taken+n.Taken, lost+n.Lost
			if n.Undelivered() != n.Lost {
				t.Errorf("run %d on %s did not deliver everything: %+v", i, node, *n)
			}
		}
		t.Logf("%s: %d runs, the last: %+v", node, len(runs), runs[len(runs)-1])
		if left > 0 {
			t.Errorf("%d samples wait on %s", left, node)
		}
	}
	if received != delivered {
		t.Errorf("the backend has %d samples, the agents delivered %d", received, delivered)
	}
	t.Logf("%d samples were taken, %d of them lost; %d delivered, %d received", taken, lost, delivered, received)
}
