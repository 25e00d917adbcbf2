package service

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// agent is one that runs.
type agent struct {
	t     *testing.T
	pid   int
	spool string // its folder
	log   *journal
	began time.Time // its process

	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // with which; after done
}

// command is how an agent is started.
type command struct {
	endpoint string
	spool    string   // empty: a folder of its own
	under    []string // a command that starts it, and ends by exec
	args     []string // over the tests' own
}

// start starts an agent, which samples when this returns. It ends with the
// test.
func start(t *testing.T, c command) *agent {
	t.Helper()
	a := launch(t, c)
	a.log.wait("sampling", 30*time.Second)
	return a
}

// launch starts an agent and does not wait for anything.
func launch(t *testing.T, c command) *agent {
	t.Helper()
	if c.spool == "" {
		c.spool = filepath.Join(t.TempDir(), "spool")
	}
	args := slices.Concat(c.under, []string{
		program(), "run", "--otlp.endpoint", c.endpoint, "--window", "1s", "--cpu.budget", "100%",
		"--spool.dir", c.spool, "--history", "0s", "--listen", "", "--log.format", "json",
	}, c.args)
	a := &agent{t: t, spool: c.spool, done: make(chan struct{}), began: time.Now()}
	a.log = &journal{t: t, changed: make(chan struct{}), ended: a.done}
	a.cmd = exec.Command(args[0], args[1:]...)
	a.cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "KALYPSO_AGENT_") })
	a.cmd.Stderr = a.log
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	a.pid = a.cmd.Process.Pid
	go func() {
		a.err = a.cmd.Wait()
		close(a.done)
	}()
	t.Cleanup(func() {
		_ = a.cmd.Process.Kill()
		<-a.done
		if t.Failed() {
			t.Logf("the agent's log:\n%s", a.log.text())
		}
	})
	return a
}

// signal sends a signal to the agent.
func (a *agent) signal(s syscall.Signal) {
	a.t.Helper()
	if err := a.cmd.Process.Signal(s); err != nil {
		a.t.Fatalf("signal %s: %v", s, err)
	}
}

// stop ends the agent as systemd does and gives its totals.
func (a *agent) stop() totals {
	a.t.Helper()
	a.signal(syscall.SIGTERM)
	if code := a.wait(30 * time.Second); code != 0 {
		a.t.Fatalf("the agent ended with %v", a.err)
	}
	return a.totals()
}

// totals is what an agent that has ended logged last.
func (a *agent) totals() totals {
	a.t.Helper()
	var last totals
	if err := json.Unmarshal(a.log.wait("ended", 0), &last); err != nil {
		a.t.Fatal(err)
	}
	return last
}

// kill ends the agent at once.
func (a *agent) kill() {
	a.t.Helper()
	a.signal(syscall.SIGKILL)
	a.wait(10 * time.Second)
}

// wait waits for the agent's end and gives its exit code.
func (a *agent) wait(within time.Duration) int {
	a.t.Helper()
	select {
	case <-a.done:
	case <-time.After(within):
		a.t.Fatalf("the agent has not ended within %s", within)
	}
	var exit *exec.ExitError
	if a.err != nil && !errors.As(a.err, &exit) {
		a.t.Fatal(a.err)
	}
	return a.cmd.ProcessState.ExitCode()
}

// status gives a line of /proc/PID/status in its first unit.
func (a *agent) status(key string) int {
	a.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.pid))
	if err != nil {
		a.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "\n"+key+":")
	var n int
	if _, err := fmt.Sscan(rest, &n); err != nil {
		a.t.Fatalf("no %s in the status of PID %d: %v", key, a.pid, err)
	}
	return n
}

// files is the number of files that the agent has open.
func (a *agent) files() int {
	a.t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", a.pid))
	if err != nil {
		a.t.Fatal(err)
	}
	return len(list)
}

// journal keeps the lines that an agent logs.
type journal struct {
	t     *testing.T
	ended <-chan struct{} // no line will come any more

	mu      sync.Mutex
	partial []byte
	lines   []string
	changed chan struct{} // closed and made anew at each line
}

// Write takes what the agent writes.
func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.partial = append(j.partial, p...)
	for {
		i := bytes.IndexByte(j.partial, '\n')
		if i < 0 {
			return len(p), nil
		}
		j.lines = append(j.lines, string(j.partial[:i]))
		j.partial = j.partial[i+1:]
		close(j.changed)
		j.changed = make(chan struct{})
	}
}

func (j *journal) text() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.lines, "\n")
}

// with gives the lines that have all the parts.
func (j *journal) with(parts ...string) []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []string
	for _, line := range j.lines {
		if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
			out = append(out, line)
		}
	}
	return out
}

// logged is closed when a line with this message was logged.
func (j *journal) logged(message string) <-chan struct{} {
	out := make(chan struct{})
	go func() {
		for {
			j.mu.Lock()
			changed := j.changed
			j.mu.Unlock()
			if len(j.with(fmt.Sprintf(`"msg":%q`, message))) > 0 {
				close(out)
				return
			}
			select {
			case <-changed:
			case <-j.ended:
				return
			}
		}
	}()
	return out
}

// wait waits for the first line with this message.
func (j *journal) wait(message string, within time.Duration) []byte {
	j.t.Helper()
	timeout := time.After(within)
	for {
		j.mu.Lock()
		changed := j.changed
		j.mu.Unlock()
		if found := j.with(fmt.Sprintf(`"msg":%q`, message)); len(found) > 0 {
			return []byte(found[0])
		}
		select {
		case <-changed:
			continue
		case <-j.ended:
			if found := j.with(fmt.Sprintf(`"msg":%q`, message)); len(found) > 0 {
				return []byte(found[0])
			}
			j.t.Fatalf("the agent ended and did not log %q", message)
		case <-timeout:
			j.t.Fatalf("the agent did not log %q within %s", message, within)
		}
	}
}

// until waits for a condition.
func until(t *testing.T, within time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", within, what)
		}
	}
}

// execute runs a command to its end and gives what it printed.
func execute(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, out, &stderr)
	}
	return string(out)
}

// compile builds a program of test/workloads under a name.
func compile(t *testing.T, source, name string, flags ...string) string {
	t.Helper()
	requireTools(t, "gcc")
	out := filepath.Join(t.TempDir(), name)
	execute(t, "gcc", slices.Concat([]string{
		"-O2", "-fomit-frame-pointer", "-fno-optimize-sibling-calls", "-o", out, filepath.Join("..", "workloads", source),
	}, flags)...)
	if err := os.Chmod(filepath.Dir(out), 0o755); err != nil {
		t.Fatal(err)
	}
	return out
}

// workload is a program of test/workloads that runs.
type workload struct {
	t   *testing.T
	pid int
	out bytes.Buffer
	cmd *exec.Cmd
	err chan error
}

// spin starts a workload; it ends with the test.
func spin(t *testing.T, path string, args ...string) *workload {
	t.Helper()
	return spinAs(t, &syscall.SysProcAttr{}, path, args...)
}

// spinAs starts a workload in a way of its own.
func spinAs(t *testing.T, attr *syscall.SysProcAttr, path string, args ...string) *workload {
	t.Helper()
	w := &workload{t: t, err: make(chan error, 1)}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		w.cmd = exec.Command(path, args...)
		w.cmd.Stdout, w.cmd.SysProcAttr = &w.out, attr
		err := w.cmd.Start()
		if err == nil {
			break
		}
		// A child that a parallel test has just forked may still hold the file
		// that was written a moment ago (golang.org/issue/22315).
		if !errors.Is(err, syscall.ETXTBSY) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	w.pid = w.cmd.Process.Pid
	go func() { w.err <- w.cmd.Wait() }()
	t.Cleanup(func() {
		_ = w.cmd.Process.Kill()
		w.err <- <-w.err
	})
	return w
}

// truth is what a workload prints at its end.
type truth struct {
	CPUSeconds    float64            `json:"cpu_seconds"`
	OwnCPUSeconds float64            `json:"own_cpu_seconds"`
	Processes     int                `json:"processes"`
	Shares        map[string]float64 `json:"shares"`
}

// wait waits for the workload's end.
func (w *workload) wait() truth {
	w.t.Helper()
	err := <-w.err
	w.err <- err
	if err != nil {
		w.t.Fatalf("%s: %v", w.cmd.Path, err)
	}
	var out truth
	if err := json.Unmarshal(w.out.Bytes(), &out); err != nil {
		w.t.Fatalf("%s printed %q: %v", w.cmd.Path, &w.out, err)
	}
	return out
}
