package scripts

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/test/internal/script"
)

func agent(args ...string) *exec.Cmd {
	return exec.Command(filepath.Join(script.Dir(), "kalypso-agent"), args...)
}

// run runs a command to its end and gives its output and exit code.
func run(t *testing.T, cmd *exec.Cmd) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", cmd, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// compile builds a C program.
func compile(t *testing.T, name, source string, flags ...string) string {
	t.Helper()
	dir := t.TempDir()
	c, out := filepath.Join(dir, "x.c"), filepath.Join(dir, name)
	if err := os.WriteFile(c, []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	if text, err := exec.Command("gcc", append([]string{"-O2", "-g", "-o", out, c}, flags...)...).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, text)
	}
	return out
}

// start runs a program until the test ends; it has written a byte when this
// returns.
func start(t *testing.T, path string, args ...string) int {
	t.Helper()
	var cmd *exec.Cmd
	var out io.ReadCloser
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		cmd = exec.Command(path, args...)
		var err error
		if out, err = cmd.StdoutPipe(); err != nil {
			t.Fatal(err)
		}
		if err = cmd.Start(); err == nil {
			break
		}
		// A child that a parallel test has just forked may still hold the file
		// that was written a moment ago (golang.org/issue/22315).
		if !errors.Is(err, syscall.ETXTBSY) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

const spinner = `#include <unistd.h>
static volatile unsigned long sink;
__attribute__((noinline)) void hot(void) { for (int i = 0; i < 1000000; i++) sink += i; }
int main(void) { write(1, "\n", 1); for (;;) hot(); }
`

// files gives the names in a folder.
func files(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// recording starts the agent on a spinning process and returns when it samples:
// it has its perf events open.
func recording(t *testing.T, dir string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	pid := start(t, compile(t, "spinner", spinner))
	cmd := agent(append([]string{"record", "-p", fmt.Sprint(pid), "-d", "60s", "-F", "499"}, args...)...)
	cmd.Dir = dir
	stderr := &bytes.Buffer{}
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	waitSampling(t, cmd.Process.Pid)
	return cmd, stderr
}

// waitSampling waits until the process has perf events beside those that tell
// it of other processes: twice as many as CPUs.
func waitSampling(t *testing.T, pid int) {
	t.Helper()
	cpus := 0
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		if err != nil {
			t.Fatal(err)
		}
		cpus = 0
		for _, l := range links {
			if to, err := os.Readlink(l); err == nil && strings.Contains(to, "perf_event") {
				cpus++
			}
		}
		online, err := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*")
		if err != nil {
			t.Fatal(err)
		}
		if cpus > len(online) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("PID %d has %d perf events after 20 s", pid, cpus)
		}
	}
}

func TestRecordSignals(t *testing.T) {
	if !canUseBPF(t) {
		t.Skip("recording takes root")
	}
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(signal.String()+" ends early and writes", func(t *testing.T) {
			dir := t.TempDir()
			cmd, stderr := recording(t, dir, "-o", "x.folded", "--stats", "x.json")
			time.Sleep(500 * time.Millisecond) // some samples
			began := time.Now()
			_ = cmd.Process.Signal(signal)
			if err := cmd.Wait(); err != nil {
				t.Errorf("%v\n%s", err, stderr)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("it took %v to end", took)
			}
			text, err := os.ReadFile(filepath.Join(dir, "x.folded"))
			if err != nil || !strings.Contains(string(text), "main;hot ") || !bytes.HasSuffix(text, []byte("\n")) {
				t.Errorf("%v, wrote %q", err, text)
			}
			if got := files(t, dir); got != "x.folded x.json" {
				t.Errorf("files %s", got)
			}
		})
	}
	t.Run("SIGKILL leaves nothing, and what was there", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "x.html"), []byte("before"), 0o644); err != nil {
			t.Fatal(err)
		}
		cmd, _ := recording(t, dir, "-o", "x.html", "--stats", "x.json")
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if text, _ := os.ReadFile(filepath.Join(dir, "x.html")); string(text) != "before" {
			t.Errorf("the file that was there is %q", text)
		}
		if got := files(t, dir); got != "x.html" && !noTmpfile(t, dir) {
			t.Errorf("files %s", got)
		}
	})
	t.Run("a command that goes on after -d is asked to end", func(t *testing.T) {
		cmd := agent("record", "-d", "200ms", "-o", "x.folded", "--", "sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.05; done")
		cmd.Dir = t.TempDir()
		stderr, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(stderr)
		for lines.Scan() && !strings.HasPrefix(lines.Text(), "wrote") {
		}
		_ = cmd.Process.Signal(syscall.SIGINT)
		_, _ = io.Copy(io.Discard, stderr)
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 9 {
			t.Errorf("exit code %d, want the command's 9", code)
		}
	})
}

// noTmpfile says that the file system has no files without names, where the
// agent has to use a temporary one.
func noTmpfile(t *testing.T, dir string) bool {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY, 0o600)
	if err != nil {
		return true
	}
	_ = unix.Close(fd)
	return false
}

func TestRecordStats(t *testing.T) {
	if !canUseBPF(t) {
		t.Skip("recording takes root")
	}
	pid := start(t, compile(t, "spinner", spinner))
	dir := t.TempDir()
	_, stderr, code := run(t, agent("record", "-p", fmt.Sprint(pid), "-d", "1500ms", "-F", "499",
		"-o", filepath.Join(dir, "x.folded"), "--stats", filepath.Join(dir, "x.json")))
	if code != 0 {
		t.Fatalf("exit code %d\n%s", code, stderr)
	}
	text, err := os.ReadFile(filepath.Join(dir, "x.json"))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]any{}
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	number := func(key string, low, high float64) float64 {
		t.Helper()
		v, ok := got[key].(float64)
		if !ok || v < low || v > high {
			t.Errorf("%s is %v, want %v to %v", key, got[key], low, high)
		}
		return v
	}
	samples := number("samples", 50, 1000) // of one thread, on a busy machine
	number("lost", 0, 0)
	number("distinct_stacks", 1, samples)
	complete := number("stacks_complete", 0.9*samples, samples)
	frames := number("frames", 2*samples, 100*samples)
	// One of five has no name where the debug symbols of libc are not installed:
	// __libc_start_call_main is no exported function.
	number("frames_named", 0.75*frames, frames)
	number("agent_cpu_seconds", 0.01, 10)
	number("start_cpu_seconds", 0.01, 10)
	number("bpf_run_seconds", 0, 1.5)
	number("rss_peak_bytes", 5<<20, 500<<20)
	number("bpf_map_bytes", 1<<20, 100<<20)
	number("first_sample_seconds", 0.001, 10)
	number("duration_seconds", 1.4, 10)
	number("unwind_pages_built", 1, 100)
	for _, key := range []string{"bpf_runs", "stacks_copied", "stacks_merged", "copies_dropped", "unwind_pages_evicted",
		"unwind_pages_refused", "unwind_rows", "unwind_rules", "unwind_build_seconds", "process_events_lost"} {
		number(key, 0, 1e9)
	}
	if got["schema"] != "kalypso.record-stats/v1" || got["frequency"] != 499.0 || got["event"] != "cpu-clock" && got["event"] != "cycles" {
		t.Errorf("schema %v, frequency %v, event %v", got["schema"], got["frequency"], got["event"])
	}
	reasons, ok := got["stacks_by_reason"].(map[string]any)
	sum := 0.0
	for _, n := range reasons {
		sum += n.(float64)
	}
	if !ok || sum != samples || reasons["root"] != complete {
		t.Errorf("stacks_by_reason %v of %v samples, %v complete", got["stacks_by_reason"], samples, complete)
	}
	if _, ok := got["unnamed_by_module"].(map[string]any); !ok {
		t.Errorf("unnamed_by_module is %v", got["unnamed_by_module"])
	}
}

// TestRecordWithoutCapabilities: three lines say what happened, why and what to
// do, or the recording goes on without what the capability is for.
func TestRecordWithoutCapabilities(t *testing.T) {
	if !canUseBPF(t) {
		t.Skip("dropping capabilities takes root")
	}
	if _, err := exec.LookPath("capsh"); err != nil {
		if os.Getenv("KALYPSO_REQUIRE_BPF") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	binary := filepath.Join(script.Dir(), "kalypso-agent")
	tests := []struct {
		name, capsh string
		code        int
		stderr      string // pattern of the whole
	}{
		{"CAP_BPF", "--drop=cap_bpf,cap_sys_admin", 1,
			`^error: cannot start sampling\ncause: running as root, but without CAP_BPF: operation not permitted\nfix:   .*\n$`},
		{"CAP_PERFMON", "--drop=cap_perfmon,cap_sys_admin", 1,
			`^error: cannot start sampling\ncause: running as root, but without CAP_PERFMON: operation not permitted\nfix:   .*\n$`},
		{"both", "--drop=cap_bpf,cap_perfmon,cap_sys_admin", 1,
			`^error: cannot start sampling\ncause: running as root, but without CAP_BPF and CAP_PERFMON: operation not permitted\nfix:   .*\n$`},
		{"root", "--user=nobody", 1,
			`^error: cannot start sampling\ncause: not running as root, and without CAP_BPF and CAP_PERFMON: operation not permitted\nfix:   sudo .*kalypso-agent record -d 200ms --comm 'two words'\n$`},
		{"CAP_SYSLOG", "--drop=cap_syslog,cap_sys_admin", 0, `^warning: kernel functions cannot be named: .*CAP_SYSLOG\n$`},
		{"CAP_SYS_PTRACE", "--drop=cap_sys_ptrace", 0, `^$`},
		{"CAP_SYS_ADMIN", "--drop=cap_sys_admin", 0, `^$`},
		{"CAP_SYS_RESOURCE", "--drop=cap_sys_resource,cap_ipc_lock", 0, `^$`},
	}
	for _, tt := range tests {
		t.Run("without "+tt.name, func(t *testing.T) {
			t.Parallel()
			stdout, stderr, code := run(t, exec.Command("capsh", tt.capsh, "--", "-c", binary+" record -d 200ms --comm 'two words'"))
			if code != tt.code || !regexp.MustCompile(tt.stderr).MatchString(stderr) {
				t.Errorf("exit code %d, want %d; said\n%swant %s", code, tt.code, stderr, tt.stderr)
			}
			if (stdout != "") != (code == 0) {
				t.Errorf("printed %q", stdout)
			}
		})
	}
}

// jit makes code at run time that spins, with the perf map that it is told of.
const jit = `#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
int main(int argc, char **argv)
{
	unsigned char *code = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
#if defined(__x86_64__)
	memcpy(code, "\x90\x90\xeb\xfc", 4); /* nop; nop; jmp -4 */
#else
	memcpy(code, "\x1f\x20\x03\xd5\xff\xff\xff\x17", 8); /* nop; b -4 */
#endif
	__builtin___clear_cache((char *)code, (char *)code + 4096);
	printf("%p\n", (void *)code);
	fflush(stdout);
	getchar();
	((void (*)(void))code)();
	return 0;
}
`

// TestRecordHostilePerfMap: what a process puts into /tmp for us to read.
func TestRecordHostilePerfMap(t *testing.T) {
	if !canUseBPF(t) {
		t.Skip("recording takes root")
	}
	path := compile(t, "jit", jit)
	secret := filepath.Join(t.TempDir(), "secret")
	tests := []struct {
		name string
		make func(t *testing.T, file, addr string)
		want string // the frame in folded stacks
	}{
		{"a map", func(t *testing.T, file, addr string) { write(t, file, addr+" 1000 spin\n") }, `;spin [0-9]+$`},
		{"names with line feeds, escapes and semicolons", func(t *testing.T, file, addr string) {
			write(t, file, addr+" 1000 a;b\x1b[31mred\rc\x00d 7\n")
		}, `;a[^;\x1b\r\x00]+ [0-9]+$`},
		{"a link to a secret", func(t *testing.T, file, addr string) {
			write(t, secret, addr+" 1000 secret\n")
			if err := os.Symlink(secret, file); err != nil {
				t.Fatal(err)
			}
		}, `;\[anon\]\+0x[0-9a-f]+ [0-9]+$`},
		{"a FIFO that nobody writes to", func(t *testing.T, file, _ string) {
			if err := syscall.Mkfifo(file, 0o644); err != nil {
				t.Fatal(err)
			}
		}, `;\[anon\]\+0x[0-9a-f]+ [0-9]+$`},
		{"a gigabyte of nothing", func(t *testing.T, file, _ string) {
			write(t, file, "")
			if err := os.Truncate(file, 1<<30); err != nil {
				t.Fatal(err)
			}
		}, `;\[anon\]\+0x[0-9a-f]+ [0-9]+$`},
		{"garbage", func(t *testing.T, file, _ string) {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = byte(i * i >> 3)
			}
			write(t, file, string(b))
		}, `;\[anon\]\+0x[0-9a-f]+ [0-9]+$`},
		{"a folder", func(t *testing.T, file, _ string) {
			if err := os.Mkdir(file, 0o755); err != nil {
				t.Fatal(err)
			}
		}, `;\[anon\]\+0x[0-9a-f]+ [0-9]+$`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(path)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
			addr, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			file := fmt.Sprintf("/tmp/perf-%d.map", cmd.Process.Pid)
			defer os.RemoveAll(file)
			tt.make(t, file, strings.TrimPrefix(strings.TrimSpace(addr), "0x"))
			if _, err := in.Write([]byte("\n")); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			record := agent("record", "-p", fmt.Sprint(cmd.Process.Pid), "-d", "700ms", "-F", "299", "--kernel=false", "-o", "-",
				"--stats", filepath.Join(t.TempDir(), "x.json"))
			stdout, stderr, code := run(t, record)
			if code != 0 || stderr != "" {
				t.Errorf("exit code %d\n%s", code, stderr)
			}
			if took := time.Since(began); took > 15*time.Second {
				t.Errorf("it took %v", took)
			}
			matched := false
			for _, line := range strings.Split(strings.TrimSuffix(stdout, "\n"), "\n") {
				if !regexp.MustCompile(`^jit;[^\x00-\x1f]* [0-9]+$`).MatchString(line) {
					t.Errorf("line %q", line)
				}
				matched = matched || regexp.MustCompile(tt.want).MatchString(line)
			}
			if !matched || strings.Contains(stdout, "secret") {
				t.Errorf("recorded %q, want %s", stdout, tt.want)
			}
			if usage, ok := record.ProcessState.SysUsage().(*syscall.Rusage); ok && usage.Maxrss > 400<<10 {
				t.Errorf("%d MiB resident", usage.Maxrss>>10)
			}
		})
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestRecordCorruptFiles: what runs need not be what its headers say.
func TestRecordCorruptFiles(t *testing.T) {
	if !canUseBPF(t) {
		t.Skip("recording takes root")
	}
	good, err := os.ReadFile(compile(t, "prog", spinner))
	if err != nil {
		t.Fatal(err)
	}
	unnamed := `^prog;.*prog\+0x[0-9a-f]+`
	tests := []struct {
		name    string
		corrupt func(b []byte) []byte
		want    string // in a line of folded stacks
	}{
		{"nothing wrong", func(b []byte) []byte { return b }, `;main;hot [0-9]+$`},
		{"section headers past the end", func(b []byte) []byte { return put64(b, 40, 1<<40) }, unnamed},
		{"section headers of garbage", func(b []byte) []byte {
			return fill(b, int(get64(b, 40)), len(b))
		}, unnamed},
		{"65535 section headers", func(b []byte) []byte { b[60], b[61] = 0xff, 0xff; return b }, unnamed},
		{"cut after what is loaded", func(b []byte) []byte { return b[:int(get64(b, 40))] }, unnamed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "prog")
			if err := os.WriteFile(path, tt.corrupt(bytes.Clone(good)), 0o755); err != nil {
				t.Fatal(err)
			}
			pid := start(t, path)
			stdout, stderr, code := run(t, agent("record", "-p", fmt.Sprint(pid), "-d", "500ms", "-F", "299", "--kernel=false", "-o", "-"))
			if code != 0 || stderr != "" {
				t.Errorf("exit code %d\n%s", code, stderr)
			}
			if !regexp.MustCompile(`(?m)` + tt.want).MatchString(stdout) {
				t.Errorf("recorded\n%swant %s", stdout, tt.want)
			}
		})
	}

	t.Run("debug information cut or garbled", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		path := filepath.Join(dir, "prog")
		debug := filepath.Join(dir, "prog.debug")
		if err := os.WriteFile(path, good, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{
			{"objcopy", "--only-keep-debug", path, debug},
			{"strip", path},
			{"objcopy", "--add-gnu-debuglink=" + debug, path},
		} {
			if text, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %v\n%s", args, err, text)
			}
		}
		whole, err := os.ReadFile(debug)
		if err != nil {
			t.Fatal(err)
		}
		pid := start(t, path)
		for name, text := range map[string][]byte{
			"half":    whole[:len(whole)/2],
			"empty":   {},
			"garbage": fill(bytes.Clone(whole), 64, int(get64(whole, 40))),
		} {
			if err := os.WriteFile(debug, text, 0o644); err != nil {
				t.Fatal(err)
			}
			stdout, stderr, code := run(t, agent("record", "-p", fmt.Sprint(pid), "-d", "500ms", "-F", "299", "--kernel=false", "-o", "-"))
			if code != 0 || stderr != "" || !regexp.MustCompile(`(?m)`+unnamed).MatchString(stdout) {
				t.Errorf("%s: exit code %d\n%s%s", name, code, stderr, stdout)
			}
		}
	})
}

// fill writes a pattern that is no header of anything.
func fill(b []byte, from, to int) []byte {
	for i := from; i < min(to, len(b)); i++ {
		b[i] = byte(i*131 + i>>5 | 0x81)
	}
	return b
}

func get64(b []byte, at int) (v uint64) {
	for i := range 8 {
		v |= uint64(b[at+i]) << (8 * i)
	}
	return v
}

func put64(b []byte, at int, v uint64) []byte {
	for i := range 8 {
		b[at+i] = byte(v >> (8 * i))
	}
	return b
}
