package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/api"
)

// quietSource stands in for the kernel: it has a status, and records nothing.
type quietSource struct{}

func (quietSource) Record(context.Context, time.Duration, int, api.Filter) ([]api.Segment, error) {
	return nil, nil
}
func (quietSource) Status() api.Status { return api.Status{Host: "larch", Frequency: 97} }
func (quietSource) Dump(context.Context, profiler.PID) (*api.Dump, error) {
	return nil, nil
}

// topAgent is an agent's API with a history, and what ends it.
func topAgent(t *testing.T) (address string, history *api.History, end func()) {
	t.Helper()
	history = api.NewHistory(api.DefaultKeep, 1<<20)
	l, err := api.Listen("127.0.0.1:0", false)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- api.Serve(ctx, l, api.NewServer(api.Config{Source: quietSource{}, History: history}), slog.New(slog.DiscardHandler))
	}()
	end = sync.OnceFunc(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(end)
	return l.Addr().String(), history, end
}

// remember adds half a minute in which a function of a service had 60 % of a
// CPU, and 30 others had the rest.
func remember(t *testing.T, h *api.History, n int, service, function string) {
	t.Helper()
	p := &profiler.Profile{
		Workload: &profiler.Workload{Attributes: []profiler.Attribute{{Key: "service.name", Value: service}}},
		Start:    time.Date(2026, 11, 26, 12, n/2, n%2*30, 0, time.UTC), Duration: 30 * time.Second, Frequency: 100, Event: "cpu-clock", Host: "larch",
	}
	sample := func(function string, count uint64) {
		p.Samples = append(p.Samples, profiler.Sample{
			Process: &profiler.Process{PID: 4711, Comm: "server"}, Count: count,
			Stack: &profiler.Stack{Stop: profiler.StopRoot, Locations: []*profiler.Location{{
				Module: &profiler.Module{Path: "/usr/bin/server"}, Frames: []profiler.Frame{{Function: function}},
			}}},
		})
		p.Quality.Add(p.Samples[len(p.Samples)-1].Stack, count)
	}
	sample(function, 1800)
	for i := range 30 {
		sample(fmt.Sprintf("other_%02d_%s", i, strings.Repeat("x", 200)), 40)
	}
	if err := h.Add(api.Segment{Start: p.Start, Duration: p.Duration, Frequency: 100, Profiles: []*profiler.Profile{p}}); err != nil {
		t.Fatal(err)
	}
}

// TestTopChild is no test: it is the program, in the terminal of TestTopLive.
func TestTopChild(t *testing.T) {
	args := os.Getenv("KALYPSO_TEST_TOP")
	if args == "" {
		t.Skip("started by TestTopLive")
	}
	os.Exit(run(strings.Fields(args), os.Stdout, os.Stderr))
}

// terminal is what a person has before them: it understands as much as top uses
// of what xterm does.
type terminal struct {
	*testing.T
	master, slave *os.File
	cmd           *exec.Cmd
	read          sync.WaitGroup

	mu        sync.Mutex
	lines     []string
	row       int
	alternate bool
	hidden    bool // the cursor
	odd       string
}

func openTerminal(t *testing.T, columns, lines uint16, args string) *terminal {
	t.Helper()
	// pty(7): the slave of a master is unlocked, then opened by its number.
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{T: t, master: master, slave: slave, lines: make([]string, 100)}
	term.resize(columns, lines)
	term.cmd = exec.Command(os.Args[0], "-test.run=^TestTopChild$")
	term.cmd.Env = append(os.Environ(), "KALYPSO_TEST_TOP="+args, "TERM=xterm", "TZ=UTC")
	term.cmd.Stdin, term.cmd.Stdout, term.cmd.Stderr = slave, slave, slave
	term.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := term.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	term.read.Go(func() {
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			if err != nil {
				return // the slave is closed
			}
			term.mu.Lock()
			term.take(string(b[:n]))
			term.mu.Unlock()
		}
	})
	return term
}

func (t *terminal) resize(columns, lines uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(t.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: lines}); err != nil {
		t.Fatal(err)
	}
}

var terminalToken = regexp.MustCompile(`^(\x1b\[\??[0-9]*[a-zA-Z]|\r|\n|[^\x1b\r\n]+)`)

// take does what output says. The program writes whole sequences in one go.
func (t *terminal) take(output string) {
	for output != "" {
		token := terminalToken.FindString(output)
		if token == "" {
			t.odd += output
			return
		}
		output = output[len(token):]
		switch token {
		case "\x1b[?1049h":
			t.alternate = true
			clear(t.lines)
		case "\x1b[?1049l":
			t.alternate = false
		case "\x1b[?25l", "\x1b[?25h":
			t.hidden = token == "\x1b[?25l"
		case "\x1b[H":
			t.row = 0
			t.lines[0] = ""
		case "\x1b[K":
		case "\x1b[J":
			clear(t.lines[t.row+1:])
		case "\n":
			t.row++
			t.lines[t.row] = ""
		case "\r":
		default:
			if token[0] == '\x1b' {
				t.odd += token
			}
			t.lines[t.row] += token
		}
	}
}

// shows waits until the screen is as is says.
func (t *terminal) shows(what string, is func(lines []string) bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		t.mu.Lock()
		last := len(t.lines)
		for last > 0 && t.lines[last-1] == "" {
			last--
		}
		lines := append([]string(nil), t.lines[:last]...)
		ok := t.alternate && is(lines)
		t.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: the screen shows\n%s", what, strings.Join(lines, "\n"))
		}
	}
}

func (t *terminal) types(keys string) {
	t.Helper()
	if _, err := t.master.WriteString(keys); err != nil {
		t.Fatal(err)
	}
}

// end waits for the program's end and looks at what it leaves behind.
func (t *terminal) end(code int) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		_ = t.cmd.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(15 * time.Second):
		t.Error("it does not end")
		_ = t.cmd.Process.Kill()
		<-done
	}
	settings, err := unix.IoctlGetTermios(int(t.slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	_ = t.slave.Close()
	t.read.Wait()
	_ = t.master.Close()
	if got := t.cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("exit code %d, want %d", got, code)
	}
	if t.alternate || t.hidden || t.odd != "" {
		t.Errorf("alternate screen %v, hidden cursor %v, not understood %q", t.alternate, t.hidden, t.odd)
	}
	if settings.Lflag&unix.ECHO == 0 || settings.Lflag&unix.ICANON == 0 || settings.Cc[unix.VSUSP] == 0 {
		t.Error("the terminal's settings are not what they were")
	}
}

func contains(lines []string, text string) bool {
	return strings.Contains(strings.Join(lines, "\n"), text)
}

func TestTopLive(t *testing.T) {
	address, history, endAgent := topAgent(t)
	term := openTerminal(t, 60, 10, "top --listen "+address)
	term.shows("before the first window", func(l []string) bool { return contains(l, "error: there is no profile yet") })
	remember(t, history, 0, "shop", "price")
	term.shows("the first window", func(l []string) bool {
		return len(l) > 3 && l[0] == "1.00 cores busy · 1 process · cpu-clock 100 Hz · lost 0" && l[3] == "  60.0 %   60.0 %  native  price (server)"
	})
	term.shows("what fits", func(l []string) bool {
		wide := 0
		for _, line := range l {
			wide = max(wide, len([]rune(line)))
		}
		return len(l) == 10 && wide == 60
	})
	remember(t, history, 1, "shop", "sell")
	term.shows("the next window", func(l []string) bool { return contains(l, "native  sell (server)") && !contains(l, "price") })
	term.resize(100, 6)
	term.shows("a smaller terminal", func(l []string) bool { return len(l) == 6 && strings.HasSuffix(l[0], " · 30 s to 12:01:00 · larch") })
	term.types("x\x1b[A\x1a") // keys that mean nothing, and Ctrl-Z
	endAgent()
	term.shows("without an agent", func(l []string) bool {
		return len(l) == 3 && l[0] == "error: no agent answers at "+address && l[1] == "cause: nothing listens there"
	})
	term.types("\x03")
	term.end(0)
}

func TestTopEndsWithQ(t *testing.T) {
	address, history, _ := topAgent(t)
	remember(t, history, 0, "shop", "price")
	term := openTerminal(t, 80, 24, "top -n 2 --by process --listen "+address)
	term.shows("the process", func(l []string) bool { return len(l) == 4 && l[3] == " 100.0 %    1.00     4711  server (shop)" })
	term.types("q")
	term.end(0)
}

func TestTopOnce(t *testing.T) {
	address, history, _ := topAgent(t)
	remember(t, history, 0, "shop", "price\x1b[2J")
	term := openTerminal(t, 40, 24, "top --once -n 1 --listen "+address)
	term.end(0)
	if got := strings.Join(term.lines, "\n"); !strings.HasPrefix(got, "1.00 cores busy · 1 process\n\n    self    total  kind    function\n  60.0 %   60.0 %  native  price\\x1b[2J…\n\n") {
		t.Errorf("printed\n%s", got)
	}
	for args, want := range map[string]string{
		"--by service":  ":30 · larch\n\n   share   cores  service\n 100.0 %    1.00  shop\n",
		"--by module":   "\n\n    self    total  module\n 100.0 %  100.0 %  /usr/bin/server\n",
		"--by process":  "\n\n   share   cores      PID  process\n 100.0 %    1.00     4711  server (shop)\n",
		"-n 1 -o json":  `"schema": "kalypso.agent.top/v1"`,
		"-n 1 --by=foo": "error: --by cannot be \"foo\"\n",
		"-n -1":         "error: cannot list -1 rows\n",
	} {
		var out strings.Builder
		run(append([]string{"top", "--listen", address}, strings.Fields(args)...), &out, &out)
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s printed\n%s\nwant\n%s", args, out.String(), want)
		}
	}
}
