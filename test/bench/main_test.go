package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/profiler"
)

func TestCPUAt(t *testing.T) {
	s := series{readings: []reading{
		{100 * time.Millisecond, 10 * time.Millisecond},
		{200 * time.Millisecond, 30 * time.Millisecond},
		{400 * time.Millisecond, 30 * time.Millisecond},
	}}
	for _, tt := range []struct {
		name     string
		at, want time.Duration
	}{
		{"before the first reading it grows from nothing", 50 * time.Millisecond, 5 * time.Millisecond},
		{"a reading is taken as it is", 200 * time.Millisecond, 30 * time.Millisecond},
		{"between readings it grows evenly", 150 * time.Millisecond, 20 * time.Millisecond},
		{"after the last reading it stays", time.Second, 30 * time.Millisecond},
	} {
		if got := s.cpuAt(tt.at); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestBudgets(t *testing.T) {
	held := make(map[string]bool)
	for _, b := range budgets([]result{
		{Tool: agentName, Load: "busy", Hertz: 999, CPUPercent: 6.1, StartCPU: 1, BPFMicros: 19, RSSBytes: 61e6, BufferBytes: 20e6, FirstSample: 1.2},
		{Tool: "perf dwarf", Load: "busy", Hertz: 999, CPUPercent: 50},
	}) {
		held[b.Figure] = b.Held
	}
	want := map[string]bool{
		"CPU while recording": false, "CPU to start": true, "BPF time": true,
		"resident memory": false, "BPF maps": true, "time to first sample": false,
	}
	if diff := cmp.Diff(held, want); diff != "" {
		t.Errorf("budgets held (-got +want):\n%s", diff)
	}
}

func TestText(t *testing.T) {
	r := report{Kernel: "6.1", Results: []result{
		{Tool: agentName, Load: "busy", Hertz: 97, CPUSeconds: 1, NamingCPU: -1, OthersPercent: 90},
		{Tool: "perf dwarf", Load: "busy", Hertz: 97, CPUSeconds: 4, NamingCPU: 2},
	}}
	text := r.text()
	for _, want := range []string{"busy, 97 Hz", "perf is not installed", "0.25\n", "Other programs used up to 90 %"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in:\n%s", want, text)
		}
	}
	for _, line := range strings.Split(text, "\n") {
		if strings.Contains(line, "CPU to name stacks") && strings.Count(line, " -") != 2 {
			t.Errorf("an unknown figure and its ratio are not dashes: %q", line)
		}
	}
}

func TestRunRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		c    config
	}{
		{"an unknown format", config{format: "xml", duration: time.Second}},
		{"a recording too short to measure", config{format: "text", duration: time.Millisecond}},
	} {
		var out bytes.Buffer
		_, err := tt.c.run(context.Background(), &out, &out)
		f := (*profiler.Fault)(nil)
		if !errors.As(err, &f) || f.Fix == "" {
			t.Errorf("%s: got %v, want a fault with a fix", tt.name, err)
		}
	}
}

func TestClocksOfThisProcess(t *testing.T) {
	pid := os.Getpid()
	before := cpuTime(pid)
	deadline := time.Now().Add(10 * time.Second)
	for cpuTime(pid) < before+20*time.Millisecond {
		if time.Now().After(deadline) {
			t.Fatal("the CPU clock of a busy process stands still")
		}
	}
	if rss := peakRSS(pid); rss < 1e6 {
		t.Errorf("peak memory of a Go program is %d bytes", rss)
	}
	if busy, err := busyTime(); err != nil || busy <= 0 {
		t.Errorf("busy time %v, error %v", busy, err)
	}
}

func TestServiceBudgets(t *testing.T) {
	held := map[string]bool{}
	for _, b := range budgets([]result{
		{Tool: serviceName, Load: "idle, service", Hertz: 97, CPUPercent: 0.6, RSSBytes: 100 << 20, BufferBytes: 29 << 20},
		{Tool: serviceName, Load: "busy, service", Hertz: 97, CPUPercent: 1.9, RSSBytes: 100 << 20, BufferBytes: 20 << 20},
	}) {
		held[b.Load+": "+b.Figure] = b.Held
	}
	want := map[string]bool{
		"idle, service 97 Hz: CPU once settled": false, "idle, service 97 Hz: memory and BPF maps": false,
		"busy, service 97 Hz: CPU once settled": true, "busy, service 97 Hz: memory and BPF maps": true,
	}
	if diff := cmp.Diff(held, want); diff != "" {
		t.Errorf("budgets held (-got +want):\n%s", diff)
	}
}

func TestParseFigures(t *testing.T) {
	got, err := parseFigures(strings.NewReader("# HELP a_total x\n# TYPE a_total counter\na_total 12\nb{export=\"otlp\"} 3\nc_seconds 1.5e-05\n"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, map[string]float64{"a_total": 12, "c_seconds": 1.5e-05}); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	if _, err := parseFigures(strings.NewReader("a_total many\n")); err == nil {
		t.Error("a value that is no number passes")
	}
}
