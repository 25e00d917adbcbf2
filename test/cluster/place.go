package cluster

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// place is a set of namespaces that stands for a machine: the control plane's, or
// a real node's. A process that sleeps holds them.
type place struct {
	name string
	pid  int
}

//go:embed place.sh
var placeScript string

func (c *Cluster) makePlace(ctx context.Context, name string) (*place, error) {
	pid, err := c.spawn(name, "unshare", "--net", "--mount", "--uts", "--propagation", "private", "--", "sleep", "infinity")
	if err != nil {
		return nil, err
	}
	p := &place{name, pid}
	err = wait(ctx, "make the namespaces of "+name, func(context.Context) error {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err == nil && string(comm) != "sleep\n" {
			err = fmt.Errorf("process %d is still %s", pid, bytes.TrimSpace(comm))
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	_, err = p.script(ctx, placeScript, append([]string{c.state, name}, c.folders()...)...)
	return p, err
}

// enter is the command line that runs another in the place. "ip netns exec" would
// not do: it mounts a /sys without cgroups.
func (p *place) enter(command ...string) []string {
	return append([]string{"nsenter", "--target", strconv.Itoa(p.pid), "--net", "--mount", "--uts", "--"}, command...)
}

// script runs a shell script in the place and gives what it writes.
func (p *place) script(ctx context.Context, text string, args ...string) (string, error) {
	return p.run(ctx, strings.NewReader(text), append([]string{"sh", "-eu", "-s", "--"}, args...)...)
}

func (p *place) run(ctx context.Context, stdin *strings.Reader, command ...string) (string, error) {
	line := p.enter(command...)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	if stdin != nil {
		cmd.Stdin = stdin
	}
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s in %s: %w: %s", command[0], p.name, err, stderrOf(err))
	}
	return string(out), nil
}

// start starts a process of the cluster in a place.
func (c *Cluster) start(p *place, process string, command ...string) error {
	_, err := c.spawn(process, p.enter(command...)...)
	return err
}

// spawn starts a process in the cluster's cgroup; what it writes goes to a file
// of its name in logs/.
func (c *Cluster) spawn(process string, command ...string) (pid int, err error) {
	log, err := os.Create(c.logFile(process))
	if err != nil {
		return 0, err
	}
	defer log.Close()
	procs := filepath.Join(c.groups[0].path, c.group(), "system", "cgroup.procs")
	cmd := exec.Command("sh", append([]string{"-c", `echo $$ >"$0" && exec "$@"`, procs}, command...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start %s: %w", process, err)
	}
	c.mu.Lock()
	c.pids[process] = cmd.Process.Pid
	c.mu.Unlock()
	c.waits.Go(func() {
		err := cmd.Wait()
		text := strings.TrimSpace(c.Log(process))
		c.fail(fmt.Errorf("%s ended: %v: %s", process, err, tail(text, 600)))
	})
	return cmd.Process.Pid, nil
}

// tail is the end of a text, from the start of a line where it can be.
func tail(text string, n int) string {
	if len(text) <= n {
		return text
	}
	text = text[len(text)-n:]
	if _, rest, ok := strings.Cut(text, "\n"); ok {
		return rest
	}
	return text
}
