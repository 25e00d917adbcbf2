package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const agentName = "kalypso-agent"

// namingLimit bounds perf's second step, which takes minutes for large files.
const namingLimit = 60 * time.Second

// result holds the figures of one tool under one load. Negative: not known.
type result struct {
	Tool          string  `json:"tool"`
	Load          string  `json:"load"`
	Hertz         int     `json:"hertz"`
	CPUPercent    float64 `json:"cpu_percent"`           // of one core, from the first sample for the recording's length
	StartCPU      float64 `json:"start_cpu_seconds"`     // up to the first sample
	CPUSeconds    float64 `json:"cpu_seconds"`           // in all
	NamingCPU     float64 `json:"naming_cpu_seconds"`    // perf script afterwards; the agent's is part of cpu_seconds
	BPFMicros     float64 `json:"bpf_us_per_sample"`     // from a run of its own, with kernel.bpf_stats_enabled
	RSSBytes      int64   `json:"rss_peak_bytes"`        // VmHWM
	BufferBytes   int64   `json:"buffer_bytes"`          // BPF maps; perf's ring buffers
	FirstSample   float64 `json:"first_sample_seconds"`  // after the tool's start
	WrittenBytes  int64   `json:"written_bytes"`         // the output file
	Samples       int64   `json:"samples"`               //
	OthersPercent float64 `json:"others_percent_of_cpu"` // CPU time of all CPUs that neither workload nor tool used: noise
}

// A recorder is one of the tools that are compared.
type recorder interface {
	name() string
	// args is the command that records pid (0: the machine) for d into out.
	args(b *bench, pid int, d time.Duration, out string) []string
	// finish adds the figures that the tool's own output tells. began is the
	// monotonic clock at the tool's start.
	finish(ctx context.Context, r *result, b *bench, out string, began time.Duration) error
}

func tools(agent string, perf bool) []recorder {
	list := []recorder{kalypso{agent}}
	if perf {
		list = append(list, perfRecorder{"perf dwarf", "dwarf"}, perfRecorder{"perf -g", "fp"})
	}
	return list
}

// bench is one recording to be measured.
type bench struct {
	dir, workload string
	duration      time.Duration
	hertz         int
	busy, machine bool
}

// reading is a tool's CPU time at one moment since its start.
type reading struct{ at, cpu time.Duration }

func (b *bench) measure(ctx context.Context, tool recorder) (r result, err error) {
	r = result{Tool: tool.name(), Hertz: b.hertz, NamingCPU: -1, BPFMicros: -1, FirstSample: -1, StartCPU: -1, CPUPercent: -1}
	pid := 0
	if b.busy {
		w, err := b.start(ctx)
		if err != nil {
			return r, err
		}
		defer w.end()
		pid = w.pid()
	}
	target := pid
	if b.machine {
		target = 0
	}
	out := filepath.Join(b.dir, "out.pb.gz")
	args := tool.args(b, target, b.duration, out)
	busyBefore, err := busyTime()
	if err != nil {
		return r, err
	}
	workloadBefore := cpuTime(pid)
	began, err := now()
	if err != nil {
		return r, err
	}
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	var output bytes.Buffer
	c.Stdout, c.Stderr = &output, &output
	if err := c.Start(); err != nil {
		return r, err
	}
	done := make(chan error, 1)
	go func() { done <- c.Wait() }()
	readings := watch(c.Process.Pid, began, done, &r)
	if err := readings.err; err != nil {
		return r, fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(output.Bytes()))
	}
	busyAfter, err := busyTime()
	if err != nil {
		return r, err
	}
	ended, err := now()
	if err != nil {
		return r, err
	}
	total := c.ProcessState.UserTime() + c.ProcessState.SystemTime()
	r.CPUSeconds = total.Seconds()
	others := busyAfter - busyBefore - total - (cpuTime(pid) - workloadBefore)
	r.OthersPercent = max(0, 100*others.Seconds()/(ended-began).Seconds())
	info, err := os.Stat(out)
	if err != nil {
		return r, fmt.Errorf("%s wrote no file: %w: %s", tool.name(), err, bytes.TrimSpace(output.Bytes()))
	}
	r.WrittenBytes = info.Size()
	if err := tool.finish(ctx, &r, b, out, began); err != nil {
		return r, err
	}
	if r.FirstSample >= 0 {
		first := time.Duration(r.FirstSample * float64(time.Second))
		start := readings.cpuAt(first)
		r.StartCPU = start.Seconds()
		r.CPUPercent = 100 * (readings.cpuAt(first+b.duration) - start).Seconds() / b.duration.Seconds()
	} else {
		// No sample on an idle machine: the start cannot be told apart.
		r.CPUPercent = 100 * total.Seconds() / b.duration.Seconds()
	}
	if k, ok := tool.(kalypso); ok && b.busy {
		r.BPFMicros, err = k.bpfMicros(ctx, b, target)
	}
	return r, err
}

// series is what watch saw.
type series struct {
	readings []reading
	err      error // how the tool ended
}

// cpuAt is the CPU time used up to a moment, by linear interpolation.
func (s series) cpuAt(at time.Duration) time.Duration {
	var last reading
	for _, r := range s.readings {
		if r.at >= at {
			if r.at == last.at {
				return r.cpu
			}
			return last.cpu + time.Duration(float64(r.cpu-last.cpu)*float64(at-last.at)/float64(r.at-last.at))
		}
		last = r
	}
	return last.cpu
}

// watch reads the tool's CPU clock, memory and ring buffers until it ends. A
// reading every 20 ms costs 0.2 % of a core, none of it the tool's.
func watch(pid int, began time.Duration, done <-chan error, r *result) series {
	var s series
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case s.err = <-done:
			return s
		case <-tick.C:
		}
		at, err := now()
		if err != nil {
			continue
		}
		if cpu := cpuTime(pid); cpu > 0 {
			s.readings = append(s.readings, reading{at - began, cpu})
		}
		r.RSSBytes = max(r.RSSBytes, peakRSS(pid))
		if len(s.readings)%10 == 1 {
			r.BufferBytes = max(r.BufferBytes, ringBuffers(pid))
		}
	}
}

// now is the monotonic clock, the one perf stamps samples with under -k.
func now() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0, fmt.Errorf("read the monotonic clock: %w", err)
	}
	return time.Duration(t.Nano()), nil
}

// cpuTime is the CPU time of a process with all its threads, to the
// nanosecond; 0 when it is gone. The clock's ID is clock_getcpuclockid(3)'s:
// the inverted PID above three bits, of which 2 means scheduler time.
func cpuTime(pid int) time.Duration {
	if pid == 0 {
		return 0
	}
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

func peakRSS(pid int) int64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(raw), "\n") {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(rest, "kB")), 10, 64)
			if err != nil {
				return 0
			}
			return kib * 1024
		}
	}
	return 0
}

// ringBuffers is the size of the perf buffers that a process has mapped.
func ringBuffers(pid int) int64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0
	}
	var sum int64
	for _, line := range strings.Split(string(raw), "\n") {
		if !strings.Contains(line, "anon_inode:[perf_event]") {
			continue
		}
		var from, to int64
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err == nil {
			sum += to - from
		}
	}
	return sum
}

// busyTime is the time that all CPUs together have not been idle.
func busyTime() (time.Duration, error) {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	fields := strings.Fields(line)
	if len(fields) < 8 {
		return 0, fmt.Errorf("read /proc/stat: %q", line)
	}
	var ticks int64
	for i, f := range fields[1:8] {
		if i == 3 || i == 4 { // idle and iowait: proc_stat(5)
			continue
		}
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read /proc/stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil // USER_HZ is 100 on every architecture we build for
}

// process is the running workload.
type process struct{ cmd *exec.Cmd }

func (b *bench) start(ctx context.Context) (*process, error) {
	c := exec.CommandContext(ctx, b.workload, "-seconds", "600")
	if err := c.Start(); err != nil {
		return nil, err
	}
	// It is at work when it has used CPU time beyond its own start.
	p := &process{c}
	deadline := time.Now().Add(10 * time.Second)
	for cpuTime(p.pid()) < 50*time.Millisecond {
		if time.Now().After(deadline) {
			p.end()
			return nil, errors.New("the workload used no CPU time for 10 s")
		}
		time.Sleep(5 * time.Millisecond)
	}
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) end() {
	_ = p.cmd.Process.Kill() // it may have ended
	_ = p.cmd.Wait()         // killed: its status says nothing
}

// kalypso is the agent.
type kalypso struct{ path string }

func (kalypso) name() string { return agentName }

func (k kalypso) args(b *bench, pid int, d time.Duration, out string) []string {
	args := []string{k.path, "record", "-F", strconv.Itoa(b.hertz), "-d", d.String(), "-o", out, "--stats", out + ".stats"}
	if pid == 0 {
		return append(args, "-a")
	}
	return append(args, "-p", strconv.Itoa(pid))
}

// agentStats are the keys of `record --stats` that are used here.
type agentStats struct {
	Samples            int64    `json:"samples"`
	BPFRunSeconds      float64  `json:"bpf_run_seconds"`
	BPFMapBytes        int64    `json:"bpf_map_bytes"`
	FirstSampleSeconds *float64 `json:"first_sample_seconds"`
}

func readStats(path string) (agentStats, error) {
	var s agentStats
	raw, err := os.ReadFile(path)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return s, fmt.Errorf("read %s: %w", path, err)
	}
	return s, nil
}

func (kalypso) finish(_ context.Context, r *result, _ *bench, out string, _ time.Duration) error {
	s, err := readStats(out + ".stats")
	if err != nil {
		return err
	}
	r.Samples, r.BufferBytes = s.Samples, s.BPFMapBytes
	if s.Samples > 0 && s.FirstSampleSeconds != nil {
		r.FirstSample = *s.FirstSampleSeconds
	}
	return nil
}

// bpfMicros records once more while the kernel counts BPF run time, which
// itself costs two clock readings a run, and restores the setting.
func (k kalypso) bpfMicros(ctx context.Context, b *bench, pid int) (us float64, err error) {
	const knob = "/proc/sys/kernel/bpf_stats_enabled"
	before, err := os.ReadFile(knob)
	if err != nil {
		return -1, nil //nolint:nilerr // a kernel without BPF statistics: the figure is not known
	}
	if err := os.WriteFile(knob, []byte("1"), 0); err != nil {
		return -1, err
	}
	defer func() { err = errors.Join(err, os.WriteFile(knob, before, 0)) }()
	out := filepath.Join(b.dir, "bpf.pb.gz")
	args := k.args(b, pid, b.duration, out)
	if err := command(ctx, args[0], args[1:]...); err != nil {
		return -1, err
	}
	s, err := readStats(out + ".stats")
	if err != nil {
		return -1, err
	}
	if s.Samples == 0 {
		return -1, errors.New("no samples in the run that measures BPF time")
	}
	return s.BPFRunSeconds * 1e6 / float64(s.Samples), nil
}

// perfRecorder is perf record with one way to take stacks.
type perfRecorder struct{ title, callGraph string }

func (p perfRecorder) name() string { return p.title }

// The software clock, as the agent uses where the hardware does not count, and
// the monotonic clock in the file, to know when the first sample came.
func (p perfRecorder) args(b *bench, pid int, d time.Duration, out string) []string {
	args := []string{
		"perf", "record", "-q", "-e", "cpu-clock", "-F", strconv.Itoa(b.hertz), "-k", "CLOCK_MONOTONIC",
		"--call-graph", p.callGraph, "-o", out,
	}
	if pid == 0 {
		args = append(args, "-a")
	} else {
		args = append(args, "-p", strconv.Itoa(pid))
	}
	return append(args, "--", "sleep", strconv.FormatFloat(d.Seconds(), 'f', 3, 64))
}

func (p perfRecorder) finish(ctx context.Context, r *result, b *bench, out string, began time.Duration) error {
	raw, err := exec.CommandContext(ctx, "perf", "script", "-i", out, "-F", "time", "--ns").Output()
	if err != nil {
		return fmt.Errorf("perf script: %w", err)
	}
	first := time.Duration(-1)
	for _, line := range strings.Split(string(raw), "\n") {
		stamp := strings.TrimSuffix(strings.TrimSpace(line), ":")
		seconds, fraction, ok := strings.Cut(stamp, ".")
		if !ok {
			continue
		}
		s, err1 := strconv.ParseInt(seconds, 10, 64)
		ns, err2 := strconv.ParseInt(fraction, 10, 64)
		if err1 != nil || err2 != nil || len(fraction) != 9 {
			return fmt.Errorf("perf script gave the time %q", stamp)
		}
		r.Samples++
		if at := time.Duration(s)*time.Second + time.Duration(ns); first < 0 || at < first {
			first = at
		}
	}
	if first >= 0 {
		r.FirstSample = (first - began).Seconds()
	}
	if !b.busy || p.callGraph != "dwarf" {
		return nil
	}
	// What the agent does while it records is perf's second step: unwinding
	// the copied stacks and naming them, here without inlined calls.
	limited, cancel := context.WithTimeout(ctx, namingLimit)
	defer cancel()
	c := exec.CommandContext(limited, "perf", "script", "-i", out, "--no-inline", "-F", "comm,pid,ip,sym,dso")
	err = c.Run()
	if limited.Err() != nil && ctx.Err() == nil {
		return nil // took longer than the limit: the figure stays unknown
	}
	if err != nil {
		return fmt.Errorf("perf script: %w", err)
	}
	r.NamingCPU = (c.ProcessState.UserTime() + c.ProcessState.SystemTime()).Seconds()
	return nil
}
