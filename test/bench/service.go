package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const serviceName = "kalypso-agent run"

// The service is measured after its start: the first windows name what runs,
// the later ones only what is new. A window of 5 s puts three times as many
// exports into a minute as the default does.
const (
	settle        = 12 * time.Second
	serviceWindow = "5s"
)

// measureService runs the agent as a service for a while, exporting to files,
// and gives what it took once it had settled.
func (b *bench) measureService(ctx context.Context, agent string) (r result, err error) {
	r = result{Tool: serviceName, Hertz: b.hertz, NamingCPU: -1, BPFMicros: -1, FirstSample: -1, StartCPU: -1}
	pid := 0
	if b.busy {
		w, err := b.start(ctx)
		if err != nil {
			return r, err
		}
		defer w.end()
		pid = w.pid()
	}
	dir, err := os.MkdirTemp(b.dir, "service-")
	if err != nil {
		return r, err
	}
	socket, out := filepath.Join(dir, "socket"), filepath.Join(dir, "profiles")
	c := exec.CommandContext(ctx, agent, "run", "--export", "file:"+out, "--spool.dir", filepath.Join(dir, "spool"), "--listen", "unix:"+socket,
		"--frequency", strconv.Itoa(b.hertz), "--window", serviceWindow, "--cpu.budget", "100%")
	var output bytes.Buffer
	c.Stdout, c.Stderr = &output, &output
	if err := c.Start(); err != nil {
		return r, err
	}
	done := make(chan error, 1)
	go func() { done <- c.Wait() }()
	defer func() {
		_ = c.Process.Signal(syscall.SIGTERM) // it may have ended
		if e := <-done; e != nil && err == nil {
			err = fmt.Errorf("%s: %w: %s", serviceName, e, bytes.TrimSpace(output.Bytes()))
		}
		r.WrittenBytes = bytesIn(out)
	}()
	agentPID := c.Process.Pid
	if err := pause(ctx, settle, done); err != nil {
		return r, errors.Join(err, errors.New(output.String()))
	}
	before, err := figures(ctx, socket)
	if err != nil {
		return r, err
	}
	r.StartCPU = cpuTime(agentPID).Seconds()
	cpu, load, workload := cpuTime(agentPID), busyTimeOr0(), cpuTime(pid)
	began := time.Now()
	if err := pause(ctx, 4*b.duration, done); err != nil {
		return r, errors.Join(err, errors.New(output.String()))
	}
	took := time.Since(began).Seconds()
	used := cpuTime(agentPID) - cpu
	r.OthersPercent = max(0, 100*(busyTimeOr0()-load-used-(cpuTime(pid)-workload)).Seconds()/took)
	after, err := figures(ctx, socket)
	if err != nil {
		return r, err
	}
	r.CPUSeconds, r.CPUPercent = cpuTime(agentPID).Seconds(), 100*used.Seconds()/took
	r.RSSBytes, r.BufferBytes = peakRSS(agentPID), int64(after["kalypso_agent_memory_maps_bytes"])
	taken := after["kalypso_agent_samples_taken_total"] - before["kalypso_agent_samples_taken_total"]
	r.Samples = int64(taken)
	if taken > 0 {
		r.BPFMicros = 1e6 * (after["kalypso_agent_bpf_seconds_total"] - before["kalypso_agent_bpf_seconds_total"]) / taken
	}
	return r, nil
}

func busyTimeOr0() time.Duration {
	t, err := busyTime()
	if err != nil {
		return 0
	}
	return t
}

// pause waits, unless the agent ends.
func pause(ctx context.Context, d time.Duration, done chan error) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case err := <-done:
		done <- err
		return errors.New("the agent has ended")
	}
}

// figures reads the metrics without labels off the agent's page.
func figures(ctx context.Context, socket string) (map[string]float64, error) {
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}, Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/metrics", nil)
	if err != nil {
		return nil, err
	}
	answer, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("read the agent's metrics: %w", err)
	}
	defer func() { _ = answer.Body.Close() }()
	return parseFigures(answer.Body)
}

func parseFigures(page io.Reader) (map[string]float64, error) {
	found := map[string]float64{}
	lines := bufio.NewScanner(page)
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), " ")
		if !ok || strings.HasPrefix(name, "#") || strings.Contains(name, "{") {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return nil, fmt.Errorf("read the agent's metrics: %q", lines.Text())
		}
		found[name] = v
	}
	return found, lines.Err()
}

// bytesIn is the size of all files of a folder.
func bytesIn(dir string) (sum int64) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	for _, e := range list {
		if info, err := e.Info(); err == nil {
			sum += info.Size()
		}
	}
	return sum
}
