package service

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/exporter/otlp/otlptest"
)

// wideFunctions makes 1.2 million unwind rows and 300,000 symbols.
const wideFunctions = 310_000

// compileWide builds the program that is hot all over.
func compileWide(t *testing.T, functions int) string {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skip("wide.S is written for x86-64")
	}
	return compile(t, "wide.c", "wide", "-DWIDE="+strconv.Itoa(functions), filepath.Join("..", "workloads", "wide.S"))
}

// copies makes programs that differ in their build ID only.
func copies(t *testing.T, from, name string, n int) []string {
	t.Helper()
	file, err := elf.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	section := file.Section(".note.gnu.build-id")
	if section == nil {
		t.Skip("gcc writes no build IDs here")
	}
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	id := text[section.Offset+16 : section.Offset+section.Size] // behind the note's header and "GNU"
	dir := t.TempDir()
	var out []string
	for i := range n {
		binary.LittleEndian.PutUint32(id, uint32(i))
		path := filepath.Join(dir, fmt.Sprintf("%s-%d", name, i))
		if err := os.WriteFile(path, text, 0o755); err != nil {
			t.Fatal(err)
		}
		out = append(out, path)
	}
	return out
}

// footprint is the memory of an agent, in bytes.
type footprint struct {
	resident, anonymous, file, shared, maps int64
}

func (f footprint) total() int64 { return f.resident + f.maps }

func (f footprint) String() string {
	const mib = 1 << 20
	return fmt.Sprintf("%.1f MiB: %.1f resident (%.1f anonymous, %.1f of files, %.1f shared) and %.1f of BPF maps",
		float64(f.total())/mib, float64(f.resident)/mib, float64(f.anonymous)/mib, float64(f.file)/mib, float64(f.shared)/mib, float64(f.maps)/mib)
}

// memory measures the agent.
func (a *agent) memory() footprint {
	a.t.Helper()
	kib := func(key string) int64 { return int64(a.status(key)) << 10 }
	return footprint{kib("VmRSS"), kib("RssAnon"), kib("RssFile"), kib("RssShmem"), a.mapBytes()}
}

// mapBytes is the memory of the agent's BPF maps, as the kernel tells.
func (a *agent) mapBytes() int64 {
	a.t.Helper()
	infos, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", a.pid))
	if err != nil {
		a.t.Fatal(err)
	}
	var sum int64
	seen := map[string]bool{}
	for _, name := range infos {
		text, err := os.ReadFile(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			a.t.Fatal(err)
		}
		values := map[string]string{}
		for line := range strings.Lines(string(text)) {
			key, value, _ := strings.Cut(line, ":")
			values[key] = strings.TrimSpace(value)
		}
		if id := values["map_id"]; id == "" || seen[id] {
			continue
		}
		seen[values["map_id"]] = true
		n, err := strconv.ParseInt(values["memlock"], 10, 64)
		if err != nil {
			a.t.Fatalf("%s: %v", name, err)
		}
		sum += n
	}
	return sum
}

// TestMemoryBudget: hundreds of different programs in turn, and one that has
// more than a million unwind rows and is hot all over, stay within the budget.
func TestMemoryBudget(t *testing.T) {
	require(t)
	wide := compileWide(t, wideFunctions)
	many := copies(t, compile(t, "churn.c", "many", "-g"), "many", 300)
	rows := execute(t, program(), "unwind", wide, "--stats")
	var count int
	for line := range strings.Lines(rows) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "rows" {
			count, _ = strconv.Atoi(f[1])
		}
	}
	if count < 1_000_000 {
		t.Fatalf("the program has %d unwind rows, want a million:\n%s", count, rows)
	}
	spin(t, wide, "-seconds", "600")
	r := otlptest.Start(t, otlptest.Options{})
	a := start(t, command{endpoint: r.Endpoint(), args: []string{"--frequency", "199", "--memory.budget", "96Mi"}})
	var peak footprint
	stop := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		for tick := time.NewTicker(50 * time.Millisecond); ; {
			select {
			case <-stop:
				tick.Stop()
				return
			case <-tick.C:
				if m := a.memory(); m.total() > peak.total() {
					peak = m
				}
			}
		}
	})
	begin := time.Now()
	for _, path := range many {
		var out bytes.Buffer
		cmd := exec.Command(path, "child", "20000") // microseconds
		cmd.Stderr = &out
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s: %v\n%s", path, err, &out)
		}
	}
	t.Logf("%d programs in %s", len(many), time.Since(begin).Round(time.Second))
	close(stop)
	watching.Wait()
	high, last := int64(a.status("VmHWM"))<<10, a.memory()
	n := a.stop()
	account(t, r, n)
	list := profiles(t, r)
	seen := 0
	for _, path := range many {
		if usageOf(list, filepath.Base(path), time.Time{}, time.Time{}).samples > 0 {
			seen++
		}
	}
	u := usageOf(list, "wide", time.Time{}, time.Time{})
	var named uint64
	for name, samples := range u.function {
		if strings.HasPrefix(name, "wide_function_number_") {
			named += samples
		}
	}
	t.Logf("peak %s; at the end %s; the highest resident was %.1f MiB", peak, last, float64(high)/(1<<20))
	t.Logf("%d of %d programs were seen; of %d samples of the large one %d have a function, in %d of them; %d stacks are cut",
		seen, len(many), u.samples, named, len(u.function), u.cut)
	for _, line := range a.log.with(`"level":"WARN"`) {
		t.Log(line)
	}
	const budget = 96 << 20
	if most := high + last.maps; most > budget {
		t.Errorf("the agent took %.1f MiB, want at most 96", float64(most)/(1<<20))
	}
	if seen < len(many)*9/10 {
		t.Errorf("%d of %d programs were seen", seen, len(many))
	}
	if float64(named) < 0.97*float64(u.samples) {
		t.Errorf("of %d samples of the large program, %d are in one of its functions", u.samples, named)
	}
}
