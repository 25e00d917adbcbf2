package agents

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/test/cluster"
	"github.com/kalypso-dev/kalypso/test/internal/ledger"
)

// truth is what ran where, as the nodes themselves have it: it needs no API server.
type truth struct {
	c *cluster.Cluster

	mu         sync.Mutex
	containers map[string]cluster.Container // by ID
	logs       map[string]*os.File          // of agents, by path; a file outlives its pod
}

// watch looks each half second until the test ends.
func watch(t *testing.T, c *cluster.Cluster) *truth {
	t.Helper()
	w := &truth{c: c, containers: map[string]cluster.Container{}, logs: map[string]*os.File{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for {
			if err := w.look(); err != nil {
				t.Error(err)
				return
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		for _, f := range w.logs {
			_ = f.Close() // only read from
		}
	})
	return w
}

func (w *truth) look() error {
	all, err := w.c.Containers()
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range all {
		w.containers[c.ID] = c
	}
	for _, node := range nodes() {
		files, err := filepath.Glob(w.c.NodePath(node, "/var/log/pods/kalypso_kalypso-agent-*/agent/*.log"))
		if err != nil {
			return err
		}
		for _, path := range files {
			if w.logs[path] != nil {
				continue
			}
			if w.logs[path], err = os.Open(path); err != nil {
				delete(w.logs, path) // gone meanwhile
			}
		}
	}
	return nil
}

func nodes() []string { return []string{"node-1", "node-2"} }

// of gives the container with an ID.
func (w *truth) of(id string) (cluster.Container, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c, ok := w.containers[id]
	return c, ok
}

// hasPod says whether a pod was on a node.
func (w *truth) hasPod(node, namespace, name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.containers {
		if c.Node == node && c.Namespace == namespace && c.Pod == name {
			return true
		}
	}
	return false
}

// agents are the agents' containers that have a process.
func (w *truth) agents() []cluster.Container {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []cluster.Container
	for _, id := range slices.Sorted(maps.Keys(w.containers)) {
		if c := w.containers[id]; c.Namespace == "kalypso" && len(running(id)) > 0 {
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b cluster.Container) int { return strings.Compare(a.Node, b.Node) })
	return all
}

// running are the processes of a container.
func running(id string) []int {
	var pids []int
	files, _ := filepath.Glob("/proc/[0-9]*/cgroup") // the pattern is right
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err == nil && bytes.Contains(text, []byte(id)) {
			pid, _ := strconv.Atoi(strings.Split(f, "/")[2]) // digits
			pids = append(pids, pid)
		}
	}
	return pids
}

// logged is what agents wrote of a message, by their logs' paths.
func (w *truth) logged(message string) (map[string][]json.RawMessage, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string][]json.RawMessage{}
	for path, f := range w.logs {
		out[path] = nil
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		text, err := io.ReadAll(f)
		if err != nil {
			return nil, err
		}
		// "2026-11-26T16:57:46.000000000Z stderr F {...}": the runtime's format
		for line := range strings.Lines(string(text)) {
			_, entry, _ := strings.Cut(line, " F ")
			if strings.Contains(entry, fmt.Sprintf(`"msg":%q`, message)) {
				out[path] = append(out[path], json.RawMessage(strings.TrimSpace(entry)))
			}
		}
	}
	return out, nil
}

// podOf is where an agent's log belongs to.
var podOf = regexp.MustCompile(`/(node-\d)/var/log/pods/kalypso_(kalypso-agent-\w+)_[^/]+/agent/(\d+)\.log$`)

// totals are those of every run of an agent, by node, the oldest first. A run that
// has not said them is one that is not counted.
func (w *truth) totals(t *testing.T) map[string][]ledger.Totals {
	t.Helper()
	logged, err := w.logged("ended")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]ledger.Totals{}
	paths := slices.SortedFunc(maps.Keys(logged), func(a, b string) int { return strings.Compare(w.began(a), w.began(b)) })
	for _, path := range paths {
		m := podOf.FindStringSubmatch(path)
		if len(logged[path]) != 1 {
			t.Errorf("%s of %s said %d times what it did", m[2], m[1], len(logged[path]))
			continue
		}
		var n ledger.Totals
		if err := json.Unmarshal(logged[path][0], &n); err != nil {
			t.Fatal(err)
		}
		out[m[1]] = append(out[m[1]], n)
	}
	return out
}

// began is the time stamp of a log's first line.
func (w *truth) began(path string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	stamp := make([]byte, len("2006-01-02T15:04:05.000000000"))
	_, _ = w.logs[path].ReadAt(stamp, 0) // an empty log is none
	return string(stamp)
}
