package agents

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kalypso-dev/kalypso/exporter/otlp/otlptest"
)

// span is from one moment to another.
type span struct{ from, to time.Time }

func (s span) touches(from, to time.Time) bool { return from.Before(s.to) && to.After(s.from) }

// chosenHz is the rate that a pod asks for.
const chosenHz = 20

// choose has a pod left out and others sampled at a rate of their own, for two
// windows, by annotations.
func (b *bench) choose(t *testing.T) span {
	t.Helper()
	b.kubectl(t, "-n", "shop", "annotate", "pod", "store-0", "profiles.kalypso.io/enabled=false")
	b.kubectl(t, "-n", "shop", "annotate", "pod", "-l", "app=probe", fmt.Sprintf("profiles.kalypso.io/frequency=%d", chosenHz))
	b.pass(t, 2*time.Second) // watches tell of it, and the table changes
	began := time.Now()
	b.pass(t, 3*window)
	ended := time.Now()
	b.kubectl(t, "-n", "shop", "annotate", "pod", "store-0", "profiles.kalypso.io/enabled-")
	b.kubectl(t, "-n", "shop", "annotate", "pod", "-l", "app=probe", "profiles.kalypso.io/frequency-")
	return span{began, ended}
}

// liveLabel is given to profiles while the agents run.
const liveLabel = "stage"

// live changes a setting that agents take in while they run, and waits until both
// have: their kubelets bring the file, which takes about a minute.
func (b *bench) live(t *testing.T) {
	t.Helper()
	before := b.truth.agents()
	b.install(t, "api", "labels: {"+liveLabel+": live}")
	began := time.Now()
	b.until(t, "both agents have read their settings again", func(context.Context) error {
		logged, err := b.truth.logged("settings are reloaded")
		if err != nil {
			return err
		}
		told := 0
		for _, lines := range logged {
			if len(lines) > 0 {
				told++
			}
		}
		if told != 2 {
			return fmt.Errorf("%d have", told)
		}
		return nil
	})
	t.Logf("after %s", time.Since(began).Round(time.Second))
	if now := b.truth.agents(); !slices.Equal(before, now) {
		t.Errorf("the agents were %v and are %v", before, now)
	}
	b.pass(t, 2*window)
}

// labelled looks for the label that came while the agents ran.
func labelled(t *testing.T, all []otlptest.Profile) {
	t.Helper()
	nodes := map[string]uint64{}
	for i := range all {
		if all[i].Attributes[liveLabel] == "live" {
			nodes[all[i].Attributes["host.name"]] += all[i].Samples()
		}
	}
	t.Logf("samples with it by node: %v", nodes)
	if len(nodes) != 2 {
		t.Errorf("samples with the label by node: %v", nodes)
	}
}

// away is how long nobody answers.
const away = time.Minute

// outage has the API server and the kubelet of node-2 answer nobody, and ends the
// agent of node-1, which its kubelet starts again meanwhile.
func (b *bench) outage(t *testing.T) span {
	t.Helper()
	began := time.Now()
	var resume []func() error
	for _, process := range []string{"kube-apiserver", "kubelet-node-2"} {
		again, err := b.Pause(process)
		if err != nil {
			t.Fatal(err)
		}
		resume = append(resume, again)
	}
	before := b.truth.agents()[0]
	b.terminate(t, before.ID)
	b.until(t, "the agent of node-1 is started again", func(context.Context) error {
		now := b.truth.agents()
		if len(now) != 2 || now[0].ID == before.ID {
			return fmt.Errorf("agents are %v", now)
		}
		return nil
	})
	t.Logf("without an API server the agent was started again after %s", time.Since(began).Round(time.Second))
	b.pass(t, away-time.Since(began))
	for _, again := range resume {
		if err := again(); err != nil {
			t.Fatal(err)
		}
	}
	b.until(t, "nodes and pods are ready", func(ctx context.Context) error {
		if _, err := b.Kubectl(ctx, "", "wait", "--timeout=1s", "--for=condition=Ready", "nodes", "--all"); err != nil {
			return err
		}
		_, err := b.Kubectl(ctx, "", "-n", "kalypso", "wait", "--timeout=1s", "--for=condition=Ready", "pods", "--all")
		return err
	})
	learnt := time.Now()
	t.Logf("all is well %s after it began", learnt.Sub(began).Round(time.Second))
	return span{began, learnt}
}

// terminate ends an agent as a kubelet does.
func (b *bench) terminate(t *testing.T, id string) {
	t.Helper()
	for _, pid := range running(id) {
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
}

// drain moves what it can from node-2 to node-1 and lets node-2 have pods again.
func (b *bench) drain(t *testing.T) span {
	t.Helper()
	began := time.Now()
	b.kubectl(t, "drain", "node-2", "--ignore-daemonsets", "--force", "--delete-emptydir-data", "--timeout="+limit.String())
	b.until(t, "both pods of checkout are on node-1", func(ctx context.Context) error {
		list, err := b.Client.CoreV1().Pods("shop").List(ctx, metav1.ListOptions{LabelSelector: "app=checkout"})
		if err != nil {
			return err
		}
		var where []string
		for _, p := range list.Items {
			if p.DeletionTimestamp == nil {
				where = append(where, p.Spec.NodeName+" "+string(p.Status.Phase))
			}
		}
		if want := "node-1 " + string(corev1.PodRunning); strings.Join(where, ",") != want+","+want {
			return fmt.Errorf("they are %v", where)
		}
		return nil
	})
	b.kubectl(t, "uncordon", "node-2")
	return span{began, time.Now()}
}

// end uninstalls the agents and waits until each has said what it did.
func (b *bench) end(t *testing.T) {
	t.Helper()
	b.ctl(t, "uninstall", "agent", "--yes").code(t, 0)
	b.until(t, "the agents have ended", func(context.Context) error {
		if left := b.truth.agents(); len(left) > 0 {
			return fmt.Errorf("%v are left", left)
		}
		return nil
	})
}
