// Command soak runs kalypso-agent run for a long time on a machine that is kept
// busy, reads its /metrics, and writes what it saw as a table (CSV) and a chart
// (SVG): memory, CPU time, sampling rate, whole stacks and lost samples.
//
//	soak -agent FILE [-d 1h] [-every 10s] [-load COMMAND] [-csv FILE] [-svg FILE] [-- flags of run]
//
// The load is a shell command that is started again whenever it ends. With
// -check it ends with 1 when memory grew (the last quarter's mean over 1.05 of
// the second's) or when a sample that was taken is in no count.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

type config struct {
	agent    string
	length   time.Duration
	every    time.Duration
	load     string
	csv, svg string
	check    bool
	flags    []string
}

// grown is how much the last quarter's memory may be over the second's: the
// first one fills caches.
const grown = 1.05

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var c config
	flag.StringVar(&c.agent, "agent", "bin/kalypso-agent", "the agent")
	flag.DurationVar(&c.length, "d", time.Hour, "how long")
	flag.DurationVar(&c.every, "every", 10*time.Second, "how often its metrics are read")
	flag.StringVar(&c.load, "load", "", "what keeps the machine busy, for a shell; started again when it ends")
	flag.StringVar(&c.csv, "csv", "", "write the table here")
	flag.StringVar(&c.svg, "svg", "", "write the chart here")
	flag.BoolVar(&c.check, "check", false, "exit with 1 when memory grew or a sample is in no count")
	flag.Parse()
	c.flags = flag.Args()
	bad, err := c.run(ctx)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		os.Exit(1)
	}
	if bad && c.check {
		os.Exit(1)
	}
}

func (c *config) run(ctx context.Context) (bad bool, err error) {
	dir, err := os.MkdirTemp("", "kalypso-soak-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "agent.sock")
	args := append([]string{"run", "--export", "file:" + filepath.Join(dir, "profiles"), "--listen", "unix:" + socket, "--log.format", "json"}, c.flags...)
	var log bytes.Buffer
	agent := exec.Command(c.agent, args...)
	agent.Stdout, agent.Stderr = &log, &log
	if err := agent.Start(); err != nil {
		return false, err
	}
	ended := make(chan error, 1)
	go func() { ended <- agent.Wait() }()

	loadCtx, endLoad := context.WithCancel(ctx)
	var loading sync.WaitGroup
	if c.load != "" {
		loading.Go(func() { keepBusy(loadCtx, c.load) })
	}
	rows, err := c.watch(ctx, socket, ended)
	endLoad()
	loading.Wait()
	if !errors.Is(err, errEnded) {
		_ = agent.Process.Signal(syscall.SIGTERM) // it may have ended by itself
		err = errors.Join(err, <-ended)
	}
	if err != nil {
		return false, fmt.Errorf("%w\n%s", err, log.Bytes())
	}
	t, err := totalsOf(log.Bytes())
	if err != nil {
		return false, err
	}
	if err := c.write(rows); err != nil {
		return false, err
	}
	return report(os.Stdout, rows, t), nil
}

// keepBusy runs a shell command again and again.
func keepBusy(ctx context.Context, command string) {
	for ctx.Err() == nil {
		cmd := exec.CommandContext(ctx, "sh", "-c", command)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
		cmd.WaitDelay = 10 * time.Second
		began := time.Now()
		if out, err := cmd.CombinedOutput(); err != nil && ctx.Err() == nil {
			fmt.Fprintf(os.Stderr, "the load ended: %v\n%s", err, out)
		}
		if time.Since(began) < time.Second { // it does nothing
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	}
}

var errEnded = errors.New("the agent ended")

// row is what one look saw; counters are since the look before.
type row struct {
	at        time.Duration
	resident  float64 // bytes
	maps      float64 // bytes
	cpu       float64 // of the node, BPF included
	hertz     float64
	taken     float64
	lost      float64
	whole     float64 // share of stacks
	stacks    float64
	processes float64
}

func (c *config) watch(ctx context.Context, socket string, ended <-chan error) ([]row, error) {
	client := &http.Client{Timeout: c.every, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}
	defer client.CloseIdleConnections()
	var rows []row
	var last metrics
	began, lastAt := time.Now(), time.Now()
	tick := time.NewTicker(c.every)
	defer tick.Stop()
	for time.Since(began) < c.length {
		select {
		case <-ctx.Done():
			return rows, nil
		case err := <-ended:
			return nil, errors.Join(errEnded, err)
		case <-tick.C:
		}
		m, err := read(client)
		if err != nil {
			return nil, err
		}
		now := time.Now()
		if last != nil {
			rows = append(rows, m.since(last, now.Sub(began), now.Sub(lastAt)))
		}
		last, lastAt = m, now
	}
	return rows, nil
}

type metrics map[string]*dto.MetricFamily

func read(client *http.Client) (metrics, error) {
	resp, err := client.Get("http://agent/metrics")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("/metrics: %s", resp.Status)
	}
	p := expfmt.NewTextParser(model.UTF8Validation)
	return p.TextToMetricFamilies(resp.Body)
}

// sum adds the series of a metric whose reason is among those given, or all.
func (m metrics) sum(name string, reasons ...string) float64 {
	total := 0.0
	for _, s := range m[name].GetMetric() {
		wanted := len(reasons) == 0
		for _, l := range s.GetLabel() {
			for _, r := range reasons {
				wanted = wanted || l.GetName() == "reason" && l.GetValue() == r
			}
		}
		if wanted {
			total += s.GetCounter().GetValue() + s.GetGauge().GetValue()
		}
	}
	return total
}

func (m metrics) since(before metrics, at, took time.Duration) row {
	grew := func(name string, reasons ...string) float64 {
		return m.sum(name, reasons...) - before.sum(name, reasons...)
	}
	r := row{
		at:       at,
		resident: m.sum("kalypso_agent_memory_resident_bytes"), maps: m.sum("kalypso_agent_memory_maps_bytes"),
		cpu:   (grew("kalypso_agent_cpu_seconds_total") + grew("kalypso_agent_bpf_seconds_total")) / took.Seconds() / float64(runtime.NumCPU()),
		hertz: m.sum("kalypso_agent_frequency_hertz"), taken: grew("kalypso_agent_samples_taken_total"), lost: grew("kalypso_agent_samples_lost_total"),
		stacks: grew("kalypso_agent_stacks_total"), processes: m.sum("kalypso_agent_processes"),
	}
	if r.stacks > 0 {
		r.whole = grew("kalypso_agent_stacks_total", "root", "no_user") / r.stacks
	}
	return r
}

// totals are what the agent says when it ends.
type totals struct {
	Taken, Samples, Lost, Filtered uint64
}

func totalsOf(log []byte) (totals, error) {
	for line := range bytes.Lines(log) {
		var e struct {
			Msg string
			totals
		}
		if json.Unmarshal(line, &e) == nil && e.Msg == "ended" {
			return e.totals, nil
		}
	}
	return totals{}, fmt.Errorf("the agent did not say what it took:\n%s", log)
}

func (c *config) write(rows []row) error {
	for _, f := range []struct {
		path  string
		write func(io.Writer, []row) error
	}{{c.csv, writeCSV}, {c.svg, writeSVG}} {
		if f.path == "" {
			continue
		}
		var b bytes.Buffer
		if err := f.write(&b, rows); err != nil {
			return err
		}
		if err := os.WriteFile(f.path, b.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// report says whether something is wrong.
func report(w io.Writer, rows []row, t totals) bool {
	if len(rows) < 8 {
		fmt.Fprintln(w, "too short to judge")
		return true
	}
	quarter := func(i int) []row { return rows[len(rows)*i/4 : len(rows)*(i+1)/4] }
	mean := func(rows []row, of func(row) float64) float64 {
		sum := 0.0
		for _, r := range rows {
			sum += of(r)
		}
		return sum / float64(len(rows))
	}
	memory := func(r row) float64 { return r.resident + r.maps }
	fmt.Fprintf(w, "memory and maps, MB, by quarter  ")
	for i := range 4 {
		fmt.Fprintf(w, " %.1f", mean(quarter(i), memory)/1e6)
	}
	ratio := mean(quarter(3), memory) / mean(quarter(1), memory)
	fmt.Fprintf(w, "   the last is %.3f of the second\n", ratio)
	whole, stacks := 0.0, 0.0
	for _, r := range rows {
		whole += r.whole * r.stacks
		stacks += r.stacks
	}
	fmt.Fprintf(w, "CPU, %% of the node                %.2f\n", 100*mean(rows, func(r row) float64 { return r.cpu }))
	fmt.Fprintf(w, "rate, Hz                          %.0f\n", mean(rows, func(r row) float64 { return r.hertz }))
	fmt.Fprintf(w, "whole stacks, %%                   %.2f\n", 100*whole/stacks)
	uncounted := int64(t.Taken - t.Samples - t.Lost - t.Filtered)
	fmt.Fprintf(w, "samples                           %d taken = %d delivered + %d lost + %d filtered, %d in no count\n", t.Taken, t.Samples, t.Lost, t.Filtered, uncounted)
	return ratio > grown || uncounted != 0
}
