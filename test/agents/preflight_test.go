package agents

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kalypso-dev/kalypso/test/cluster"
	"github.com/kalypso-dev/kalypso/test/cluster/upstream"
	"github.com/kalypso-dev/kalypso/test/internal/ours"
)

// Whether eBPF works on a node is tried there, with the rights of the agent; what
// was made for that is gone afterwards. A node that only says that a pod ran is
// told from one on which it did.
func TestPreflightNodes(t *testing.T) {
	c := cluster.Start(t, cluster.Options{Name: "doctor", Nodes: 1, Simulated: 2})
	if err := c.LoadArchive(t.Context(), ours.Images(t)("kalypso-agent")); err != nil {
		t.Fatal(err)
	}
	b := &bench{Cluster: c, charts: upstream.Charts(t)}
	const real = `agent.nodeSelector.kubernetes\.io/hostname=node-1`

	t.Run("a node on which it ran", func(t *testing.T) {
		r := b.ctl(t, "preflight", "--nodes", "--only", "api", "--set", real, "-o", "json")
		var doc struct {
			Nodes []struct {
				Name   string
				System string
				Checks []struct{ ID, Severity, State, Detail string }
			}
		}
		if err := json.Unmarshal(r.stdout.Bytes(), &doc); err != nil {
			t.Fatalf("%v\n%s", err, r.text())
		}
		if len(doc.Nodes) != 1 || doc.Nodes[0].Name != "node-1" || !strings.HasPrefix(doc.Nodes[0].System, "Linux ") {
			t.Fatalf("nodes: %+v\n%s", doc.Nodes, r.text())
		}
		state := map[string]string{}
		for _, c := range doc.Nodes[0].Checks {
			state[c.ID] = c.State
			if c.Severity == "required" && c.State != "passed" {
				t.Errorf("%s: %s, where the agents of the other tests run: %s", c.ID, c.State, c.Detail)
			}
		}
		// In the container, with its capabilities: the checks that need them. But for
		// cap_sys_ptrace, as some machines shut their first process to everybody.
		for _, id := range []string{"btf", "cap_bpf", "cap_perfmon", "programs", "unwind", "cap_syslog", "cap_dac_read_search", "cap_checkpoint_restore", "pid_namespace"} {
			if state[id] != "passed" {
				t.Errorf("%s is %q\n%s", id, state[id], r.text())
			}
		}
		r.code(t, 0)
		b.noDoctor(t)
	})
	t.Run("nodes on which nothing ran, one of each system", func(t *testing.T) {
		r := b.ctl(t, "preflight", "--nodes", "--only", "api", "--timeout", "1m")
		r.code(t, 3)
		for _, words := range []string{"node node-1 (Linux ", "✓ programs", "node simulated-1 (", "like simulated-2", "✗ doctor  no sign that the pod ran on simulated-1", "effect  whether the agent runs there is not known", "fix     kubectl describe node simulated-1", "more: kalypsoctl explain doctor"} {
			if !strings.Contains(r.text(), words) {
				t.Errorf("%q is not in:\n%s", words, r.text())
			}
		}
		b.noDoctor(t)
	})
	t.Run("an image that is not there", func(t *testing.T) {
		r := b.ctl(t, "preflight", "--nodes", "--only", "api", "--short", "--timeout", "1m", "--set", real, "--set", "agent.image.pullPolicy=Never", "--set", "agent.image.tag=none")
		r.code(t, 3)
		if !strings.Contains(r.text(), "kalypso-agent:none") {
			t.Errorf("the image is not named:\n%s", r.text())
		}
		b.noDoctor(t)
	})
	t.Run("beside agents that run", func(t *testing.T) { besideAgents(t, b, real) })
	t.Run("^C takes away what there is", func(t *testing.T) {
		cmd := b.command(t, "preflight", "--nodes", "--only", "api", "--timeout", "0", "--set", real, "--set", "agent.image.tag=none")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		b.until(t, "a pod is there", func(ctx context.Context) error {
			pods, err := b.Kubectl(ctx, "", "get", "pods", "-A", "-l", "app.kubernetes.io/name=kalypso-preflight", "-o", "name")
			if err == nil && pods == "" {
				err = errors.New("there is none")
			}
			return err
		})
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // the exit code is looked at
		if code := cmd.ProcessState.ExitCode(); code != 130 {
			t.Errorf("exit code %d:\n%s", code, &out)
		}
		b.noDoctor(t)
	})
}

// With agents that run the doctor looks beside them, in their namespace, and a
// sysdump has what they did.
func besideAgents(t *testing.T, b *bench, real string) {
	b.ctl(t, "install", "--yes", "--no-verify", "--only", "agent", "--set", real, "--timeout", limit.String()).code(t, 0)
	r := b.ctl(t, "preflight", "--nodes", "--only", "api", "--short")
	r.code(t, 0)
	b.noDoctor(t)
	if pods := strings.Fields(b.kubectl(t, "-n", "kalypso", "get", "pods", "-o", "name")); len(pods) != 1 {
		t.Errorf("the agents are %v", pods)
	}
	file := filepath.Join(t.TempDir(), "dump.tgz")
	r = b.ctl(t, "sysdump", "--profile", "2s", "-o", file)
	r.code(t, 0)
	out, err := exec.CommandContext(t.Context(), "tar", "-tzf", file).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/profile/cluster.pb.gz\n", "/profile/functions.txt\n", "/agent/node-1/", "/logs/kalypso/"} {
		if !strings.Contains(string(out), name) {
			t.Errorf("there is no %s in:\n%s\n%s", name, out, r.text())
		}
	}
}

// noDoctor checks that nothing is left, or is on its way out.
func (b *bench) noDoctor(t *testing.T) {
	t.Helper()
	b.until(t, "everything is taken away", func(ctx context.Context) error {
		left, err := b.Kubectl(ctx, "", "get", "namespaces,jobs,pods", "-A", "-l", "app.kubernetes.io/name=kalypso-preflight", "-o", "name")
		if names := strings.Fields(left); err == nil && len(slices.Compact(names)) > 0 {
			err = errors.New(left)
		}
		return err
	})
}
