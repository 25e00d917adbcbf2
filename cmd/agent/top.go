package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/api"
)

type topFlags struct {
	listen string
	by     string
	rows   int
	once   bool
	output string
}

func newTopCommand() *cobra.Command {
	f := &topFlags{}
	cmd := &cobra.Command{
		Use:   "top [flags]",
		Short: "what is hot on this machine now, as the running agent sees it",
		Long: `Where does CPU time go now? Asks the agent that runs on this machine
(kalypso-agent run) for the last 30 seconds, again every two seconds on a
terminal. q or Ctrl-C ends.`,
		Example: `  kalypso-agent top                                   hottest functions, live
  kalypso-agent top --by service -n 5                 the five busiest services
  kalypso-agent top --once                            one table, as in a pipe
  kalypso-agent top -o json                           for a program to read`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringVar(&f.by, "by", string(api.ByFunction), "what to list: function, process, service or module")
	fl.IntVarP(&f.rows, "rows", "n", 0, "rows at most; 20, or as many as fit on the terminal")
	fl.BoolVar(&f.once, "once", false, "print one table and end")
	fl.StringVar(&f.listen, "listen", api.DefaultAddress, "where the agent listens: `ADDRESS` is HOST:PORT or unix:PATH")
	fl.StringVarP(&f.output, "output", "o", "text", "text or json")
	return cmd
}

const (
	topRefresh = 2 * time.Second
	topTimeout = 10 * time.Second // of one question
	topRows    = 20               // where there is no terminal to fill
)

func (f *topFlags) run(cmd *cobra.Command) error {
	by := []string{string(api.ByFunction), string(api.ByProcess), string(api.ByService), string(api.ByModule)}
	if err := errors.Join(cli.OneOf(cmd, "by", f.by, by...), cli.OneOf(cmd, "output", f.output, "text", "json")); err != nil {
		return err
	}
	if f.rows < 0 {
		return cli.Usage("-n 20 lists twenty", "cannot list %d rows", f.rows)
	}
	client, err := api.NewClient(f.listen)
	if err != nil {
		return cli.Wrong(err)
	}
	defer client.Close()
	out := cmd.OutOrStdout()
	screen := newScreen(cmd.InOrStdin(), out)
	if f.output == "json" || f.once || screen == nil {
		t, err := f.ask(cmd.Context(), client, f.limit(topRows))
		if err != nil {
			return err
		}
		if f.output == "json" {
			enc := json.NewEncoder(out)
			enc.SetEscapeHTML(false)
			enc.SetIndent("", "  ")
			return printFault(enc.Encode(t))
		}
		_, err = io.WriteString(out, strings.Join(topLines(t, width(out)), "\n")+"\n")
		return printFault(err)
	}
	// A mistake in the address is better said than shown again and again.
	if _, err := f.ask(cmd.Context(), client, 1); err != nil && !notYet(err) {
		return err
	}
	return printFault(screen.run(cmd.Context(), func(ctx context.Context, columns, lines int) []string {
		t, err := f.ask(ctx, client, f.limit(max(lines-topHead, 1)))
		if err != nil {
			return faultLines(err)
		}
		return topLines(t, columns)
	}))
}

func (f *topFlags) limit(normally int) int {
	if f.rows > 0 {
		return f.rows
	}
	return normally
}

func (f *topFlags) ask(ctx context.Context, client *api.Client, limit int) (*api.Top, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, topTimeout, errSlow)
	defer cancel()
	t, err := client.Top(ctx, api.HistoryQuery{}, api.By(f.by), limit)
	if err == nil {
		return t, nil
	}
	if errors.Is(context.Cause(ctx), errSlow) {
		err = &profiler.Fault{What: "the agent at " + f.listen + " does not answer", Why: errSlow, Fix: "kalypso-agent top --listen ADDRESS     asks another one"}
	}
	return nil, err
}

var errSlow = fmt.Errorf("it took longer than %s", topTimeout)

// notYet says whether the agent runs and has no profile so far.
func notYet(err error) bool {
	var status *api.StatusError
	return errors.As(err, &status) && status.Status == http.StatusServiceUnavailable
}

func faultLines(err error) []string {
	var text strings.Builder
	cli.PrintError(&text, err)
	return strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
}

// topHead is how many lines stand above the rows of a table.
const topHead = 3

// topLines are the lines of a table, none wider than columns if that is not 0.
func topLines(t *api.Top, columns int) []string {
	lines := []string{topFacts(t), ""}
	switch t.By {
	case api.ByFunction:
		lines = append(lines, "    self    total  kind    function")
	case api.ByModule:
		lines = append(lines, "    self    total  module")
	case api.ByProcess:
		lines = append(lines, "   share   cores      PID  process")
	default:
		lines = append(lines, "   share   cores  "+string(t.By))
	}
	for i := range t.Rows {
		lines = append(lines, topLine(t.By, &t.Rows[i]))
	}
	if len(t.Rows) == 0 {
		lines = append(lines, "nothing ran on a CPU")
	}
	if columns > 0 {
		for i, l := range lines {
			lines[i] = cutLine(l, columns)
		}
	}
	return lines
}

// topFacts is the line above the table: what comes first is what is left on a
// narrow terminal.
func topFacts(t *api.Top) string {
	processes := strconv.Itoa(t.Processes) + " processes"
	if t.Processes == 1 {
		processes = "1 process"
	}
	rate := strconv.Itoa(t.Frequency)
	if t.Lowest != t.Frequency {
		rate = fmt.Sprintf("%d to %d", t.Lowest, t.Frequency)
	}
	parts := []string{
		fmt.Sprintf("%.2f cores busy", t.Cores), processes,
		fmt.Sprintf("%s %s Hz", profiler.Printable(t.Event), rate), "lost " + strconv.FormatUint(t.Lost, 10),
		fmt.Sprintf("%.0f s to %s", t.Seconds, t.To.Local().Format(time.TimeOnly)),
	}
	if t.Host != "" {
		parts = append(parts, profiler.Printable(t.Host))
	}
	return strings.Join(parts, " · ")
}

func topLine(by api.By, r *api.TopRow) string {
	name := profiler.Printable(r.Name)
	switch by {
	case api.ByFunction:
		if r.Module != "" {
			name += " (" + profiler.Printable(r.Module) + ")"
		}
		return fmt.Sprintf("%8s %8s  %-6s  %s", share(r.SelfPercent), share(r.TotalPercent), r.Kind, name)
	case api.ByModule:
		return fmt.Sprintf("%8s %8s  %s", share(r.SelfPercent), share(r.TotalPercent), name)
	case api.ByProcess:
		if r.Service != "" && r.Service != r.Name {
			name += " (" + profiler.Printable(r.Service) + ")"
		}
		return fmt.Sprintf("%8s %7.2f  %7d  %s", share(r.SelfPercent), r.SelfCores, r.PID, name)
	}
	return fmt.Sprintf("%8s %7.2f  %s", share(r.SelfPercent), r.SelfCores, name)
}

// share writes what is there but rounds to nothing as more than nothing.
func share(percent float64) string {
	if percent > 0 && percent < 0.05 {
		return "<0.1 %"
	}
	return strconv.FormatFloat(percent, 'f', 1, 64) + " %"
}

// cutLine keeps the start of a line that is too wide.
func cutLine(s string, columns int) string {
	if utf8.RuneCountInString(s) <= columns {
		return s
	}
	return string([]rune(s)[:columns-1]) + "…"
}

// screen is a terminal that shows lines which change.
type screen struct {
	in, out *os.File // in is nil when it is no terminal
}

// newScreen is nil where there is no terminal that can be written over.
func newScreen(in io.Reader, out io.Writer) *screen {
	o, ok := out.(*os.File)
	if !ok || !term.IsTerminal(int(o.Fd())) || os.Getenv("TERM") == "dumb" {
		return nil
	}
	s := &screen{out: o}
	if i, ok := in.(*os.File); ok && term.IsTerminal(int(i.Fd())) {
		s.in = i
	}
	return s
}

// What xterm and all that come after it understand: the alternate screen, which
// leaves what was there before as it was, and the cursor.
const (
	screenBegin = "\x1b[?1049h\x1b[?25l"
	screenEnd   = "\x1b[?25h\x1b[?1049l"
	screenHome  = "\x1b[H"
	lineEnd     = "\x1b[K"
	restEnd     = "\x1b[J"
)

// run shows what draw gives every two seconds, at once when the terminal gets
// another size, until ctx ends or somebody presses q. It leaves the terminal as
// it was.
func (s *screen) run(ctx context.Context, draw func(ctx context.Context, columns, lines int) []string) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	restore, err := s.quiet()
	if err != nil {
		return err
	}
	defer restore()
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)
	if _, err := io.WriteString(s.out, screenBegin); err != nil {
		return err
	}
	defer func() { _, _ = io.WriteString(s.out, screenEnd) }()
	var keys sync.WaitGroup
	defer keys.Wait()
	defer stop()
	keys.Go(func() { s.readKeys(ctx, stop) })

	tick := time.NewTicker(topRefresh)
	defer tick.Stop()
	for {
		columns, lines, err := term.GetSize(int(s.out.Fd()))
		if err != nil || columns < 1 || lines < 1 {
			columns, lines = 80, 24
		}
		shown := draw(ctx, columns, lines)
		if ctx.Err() != nil {
			return nil
		}
		if err := s.show(shown, columns, lines); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-resized:
		}
	}
}

// show writes over what is on the screen, in one go so that nothing flickers.
func (s *screen) show(shown []string, columns, lines int) error {
	var b strings.Builder
	b.WriteString(screenHome)
	for i, l := range shown[:min(len(shown), lines)] {
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString(cutLine(l, columns))
		b.WriteString(lineEnd)
	}
	b.WriteString(restEnd)
	_, err := io.WriteString(s.out, b.String())
	return err
}

// quiet lets the terminal neither write what is typed nor wait for the end of a
// line, and not stop the program (Ctrl-Z) in the middle of the other screen.
// Ctrl-C stays a signal.
func (s *screen) quiet() (restore func(), err error) {
	if s.in == nil {
		return func() {}, nil
	}
	fd := int(s.in.Fd())
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("read the terminal's settings: %w", err)
	}
	with := *old
	with.Lflag &^= unix.ECHO | unix.ICANON
	with.Cc[unix.VSUSP] = 0
	with.Cc[unix.VMIN], with.Cc[unix.VTIME] = 0, 1 // a read ends after 0.1 s
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &with); err != nil {
		return nil, fmt.Errorf("change the terminal's settings: %w", err)
	}
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETSF, old) }, nil
}

// readKeys calls quit when q is pressed. It looks ten times a second whether ctx
// has ended, because nothing else ends a read of a terminal.
func (s *screen) readKeys(ctx context.Context, quit func()) {
	if s.in == nil {
		return
	}
	key := make([]byte, 16)
	for ctx.Err() == nil {
		n, err := unix.Read(int(s.in.Fd()), key)
		if err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return
		}
		if n > 0 && strings.ContainsAny(string(key[:n]), "qQ") {
			quit()
		}
	}
}
