package term

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

const refresh = 2 * time.Second

// Cut keeps the start of a line that is too wide.
func Cut(s string, columns int) string {
	if utf8.RuneCountInString(s) <= columns {
		return s
	}
	return string([]rune(s)[:columns-1]) + "…"
}

// Screen is a terminal that shows lines which change.
type Screen struct {
	in, out *os.File // in is nil when it is no terminal
}

// NewScreen is nil where there is no terminal that can be written over.
func NewScreen(in io.Reader, out io.Writer) *Screen {
	o, ok := out.(*os.File)
	if !ok || !term.IsTerminal(int(o.Fd())) || os.Getenv("TERM") == "dumb" {
		return nil
	}
	s := &Screen{out: o}
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

// Run shows what draw gives every two seconds, at once when the terminal gets
// another size, until ctx ends or somebody presses q. It leaves the terminal as
// it was.
func (s *Screen) Run(ctx context.Context, draw func(ctx context.Context, columns, lines int) []string) error {
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

	tick := time.NewTicker(refresh)
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
func (s *Screen) show(shown []string, columns, lines int) error {
	var b strings.Builder
	b.WriteString(screenHome)
	for i, l := range shown[:min(len(shown), lines)] {
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString(Cut(l, columns))
		b.WriteString(lineEnd)
	}
	b.WriteString(restEnd)
	_, err := io.WriteString(s.out, b.String())
	return err
}

// quiet lets the terminal neither write what is typed nor wait for the end of a
// line, and not stop the program (Ctrl-Z) in the middle of the other screen.
// Ctrl-C stays a signal.
func (s *Screen) quiet() (restore func(), err error) {
	if s.in == nil {
		return func() {}, nil
	}
	fd := int(s.in.Fd())
	old, err := unix.IoctlGetTermios(fd, getTermios)
	if err != nil {
		return nil, fmt.Errorf("read the terminal's settings: %w", err)
	}
	with := *old
	with.Lflag &^= unix.ECHO | unix.ICANON
	with.Cc[unix.VSUSP] = 0
	with.Cc[unix.VMIN], with.Cc[unix.VTIME] = 0, 1 // a read ends after 0.1 s
	if err := unix.IoctlSetTermios(fd, setTermios, &with); err != nil {
		return nil, fmt.Errorf("change the terminal's settings: %w", err)
	}
	return func() { _ = unix.IoctlSetTermios(fd, setTermiosFlush, old) }, nil
}

// readKeys calls quit when q is pressed. It looks ten times a second whether ctx
// has ended, because nothing else ends a read of a terminal.
func (s *Screen) readKeys(ctx context.Context, quit func()) {
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
