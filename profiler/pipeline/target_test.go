package pipeline

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/lang"
	"github.com/kalypso-dev/kalypso/profiler/lang/golang"
	"github.com/kalypso-dev/kalypso/profiler/lang/native"
)

func openPerfMap(pid profiler.PID, root string) (PerfMap, error) {
	return native.OpenPerfMap(pid, root)
}

func testRuntimes() []lang.Runtime { return []lang.Runtime{golang.Runtime{}, native.Runtime{}} }

func TestParseStatus(t *testing.T) {
	const tail = " 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 99 100"
	tests := []struct {
		name, line string
		want       status
		bad        bool
	}{
		{"plain", "12 (sleep) S 7" + tail, status{'S', 7, 3, false, 99}, false},
		{"spaces and brackets in the name", "12 (a ) R 1 (x) S 7" + tail, status{'S', 7, 3, false, 99}, false},
		{"a line feed in the name", "12 (a\nb) Z 7" + tail, status{'Z', 7, 3, false, 99}, false},
		{"a kernel thread", "12 (kworker/0:1) I 2 0 0 0 -1 69238880 0 0 0 0 0 0 0 0 20 0 1 0 5", status{'I', 2, 1, true, 5}, false},
		{"cut", "12 (sleep) S 7", status{}, true},
		{"no name", "12 S 7" + tail, status{}, true},
		{"empty", "", status{}, true},
		{"no numbers", "12 (a) S x" + tail, status{}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseStatus(tt.line)
			if (err != nil) != tt.bad || err == nil && got != tt.want {
				t.Errorf("got %+v, %v; want %+v", got, err, tt.want)
			}
		})
	}
}

func FuzzParseStatus(f *testing.F) {
	f.Add("12 (a ) b) S 7 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 99 100")
	f.Fuzz(func(t *testing.T, line string) {
		if st, err := parseStatus(line); err == nil && !strings.Contains(line, string(rune(st.state))) && st.state < 0x80 {
			t.Errorf("state %q is not in %q", st.state, line)
		}
	})
}

// zombie gives the PID of a process that ended and that nobody waited for.
func zombie(t *testing.T) profiler.PID {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() })
	pid := profiler.PID(cmd.Process.Pid)
	for deadline := time.Now().Add(5 * time.Second); ; {
		st, err := readStatus(pid)
		if err != nil {
			t.Fatal(err)
		}
		if st.state == 'Z' {
			return pid
		}
		if time.Now().After(deadline) {
			t.Fatalf("PID %d does not end", pid)
		}
	}
}

// thread gives the ID of a thread of this process that is not its first.
func thread(t *testing.T) profiler.PID {
	t.Helper()
	threads, err := filepath.Glob("/proc/self/task/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range threads {
		if tid := number(t, filepath.Base(path)); tid != os.Getpid() {
			return profiler.PID(tid)
		}
	}
	t.Fatal("this process has one thread")
	return 0
}

func TestValidate(t *testing.T) {
	good := func(change func(*Config)) Config {
		c := Config{Runtimes: testRuntimes(), OpenPerfMap: openPerfMap, Frequency: 97, Duration: time.Second}
		change(&c)
		return c
	}
	pid := func(pids ...profiler.PID) Config { return good(func(c *Config) { c.PIDs = pids }) }
	own := profiler.PID(os.Getpid())
	tests := []struct {
		name            string
		cfg             Config
		what, why, hint string // substrings; what empty: no error
	}{
		{"good", good(func(*Config) {}), "", "", ""},
		{"the zero value", Config{}, "cannot sample at 0 Hz", "between 1 and 10000", "97"},
		{"too often", good(func(c *Config) { c.Frequency = 10001 }), "cannot sample at 10001 Hz", "between 1 and 10000", "97"},
		{"no time", good(func(c *Config) { c.Duration = -time.Second }), "cannot record for -1s", "", "-d 10s"},
		{"no runtimes", good(func(c *Config) { c.Runtimes = nil }), "no language runtimes", "", ""},
		{"own PID", pid(own), "", "", ""},
		{"no such PID", pid(own, 1<<30), "cannot record PID 1073741824", "no such process", "pgrep"},
		{"PID 0 is no process but a group", pid(0), "cannot record PID 0", "no such process", "pgrep"},
		{"a PID that the kernel reads as -1, all processes", pid(1<<32 - 1), "cannot record PID 4294967295", "no such process", "pgrep"},
		{"a PID that ended", pid(zombie(t)), "cannot record PID", "it has ended", "pgrep"},
		{"a thread", pid(thread(t)), "cannot record PID", "it is a thread of PID", "--by thread"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.cfg.Validate()
			if tt.what == "" {
				if err != nil {
					t.Errorf("error %v", err)
				}
				return
			}
			var fault *profiler.Fault
			if !errors.As(err, &fault) {
				if err == nil || tt.hint != "" || !strings.Contains(err.Error(), tt.what) {
					t.Errorf("error %v, want %q with what to do", err, tt.what)
				}
				return
			}
			why := ""
			if fault.Why != nil {
				why = fault.Why.Error()
			}
			if !strings.Contains(fault.What, tt.what) || !strings.Contains(why, tt.why) || !strings.Contains(fault.Fix, tt.hint) {
				t.Errorf("%q, %q, %q; want %q, %q, %q", fault.What, why, fault.Fix, tt.what, tt.why, tt.hint)
			}
		})
	}
}

// noted is the targets that were added.
type noted map[uint32]bool

func (n noted) AddTarget(pid uint32) error { n[pid] = true; return nil }

func TestAddTargetsTakesChildren(t *testing.T) {
	// What a shell runs in the background has no standard input of its own.
	cmd := exec.Command("sh", "-c", "exec 3<&0; sh -c 'echo $$; read x <&3' & read x")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	buffer := make([]byte, 64)
	n, err := out.Read(buffer)
	if err != nil {
		t.Fatal(err)
	}
	child := uint32(number(t, strings.Fields(string(buffer[:n]))[0]))

	got := noted{}
	if err := addTargets(got, []profiler.PID{profiler.PID(cmd.Process.Pid)}); err != nil {
		t.Fatal(err)
	}
	if !got[uint32(cmd.Process.Pid)] || !got[child] || got[uint32(os.Getpid())] || got[1] {
		t.Errorf("targets %v; want PID %d and its child %d, not its parent", got, cmd.Process.Pid, child)
	}
	got = noted{}
	if err := addTargets(got, nil); err != nil || len(got) != 0 {
		t.Errorf("targets %v of none, %v", got, err)
	}
}
