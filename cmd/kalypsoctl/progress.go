package main

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	xterm "golang.org/x/term"

	"github.com/kalypso-dev/kalypso/cmd/internal/term"
	"github.com/kalypso-dev/kalypso/deploy/install"
	"github.com/kalypso-dev/kalypso/deploy/kube"
)

// progress tells how components come along. On a terminal those at work have a
// line each, which is written anew; anywhere else every change is a line with
// the time in front.
type progress struct {
	out   io.Writer
	file  *os.File // nil where lines cannot be written anew
	style term.Style
	width int // of the names

	mu    sync.Mutex
	rows  []row // at work, in the order in which they began
	drawn int   // lines on the terminal that are written anew
	stop  chan struct{}
	done  chan struct{}
}

// row is a component at work.
type row struct {
	install.Event
	began time.Time
	said  time.Time // when a line was last written, where each change is one
	text  string    // of it
}

const (
	redraw    = 500 * time.Millisecond
	sameState = 10 * time.Second // between two lines of one component in one state
	sameText  = time.Minute      // and if they say the same: a log that stands still looks dead
)

func newProgress(out io.Writer, names []string) *progress {
	p := &progress{out: out, style: term.For(out, os.Getenv), stop: make(chan struct{}), done: make(chan struct{})}
	for _, name := range names {
		p.width = max(p.width, len(name))
	}
	if file, ok := out.(*os.File); ok && xterm.IsTerminal(int(file.Fd())) && os.Getenv("TERM") != "dumb" {
		p.file = file
	}
	go p.loop()
	return p
}

// loop keeps times on a terminal true, and elsewhere writes what has not changed
// since it was too soon for a line.
func (p *progress) loop() {
	defer close(p.done)
	tick := time.NewTicker(redraw)
	defer tick.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-tick.C:
			p.mu.Lock()
			p.draw("")
			for i := range p.rows {
				if r := &p.rows[i]; p.file == nil {
					p.log(r, r.Event, p.line(r))
				}
			}
			p.mu.Unlock()
		}
	}
}

// say puts a line above those that are written anew.
func (p *progress) say(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file == nil {
		_, _ = fmt.Fprintf(p.out, "%s  %s\n", time.Now().UTC().Format(time.RFC3339), text)
		return
	}
	p.draw(text + "\n")
}

// end leaves what is finished on the terminal.
func (p *progress) end() {
	close(p.stop)
	<-p.done
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rows = nil
	p.draw("")
}

// event takes what install tells.
func (p *progress) event(e install.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := -1
	for i := range p.rows {
		if p.rows[i].Component == e.Component {
			at = i
		}
	}
	if at < 0 {
		p.rows = append(p.rows, row{began: time.Now().Add(-e.Took)})
		at = len(p.rows) - 1
	}
	r := &p.rows[at]
	before := r.Event
	r.Event = e
	ended := e.State >= install.Done
	line := p.line(r)
	if p.file == nil {
		p.log(r, before, line)
	}
	if ended {
		p.rows = append(p.rows[:at], p.rows[at+1:]...)
	}
	switch {
	case p.file != nil && ended:
		p.draw(line + "\n")
	case p.file != nil:
		p.draw("")
	}
}

var age = regexp.MustCompile(` \([^()]*\)$`)

// log writes a line for what is another state, or says something else for a
// while.
func (p *progress) log(r *row, before install.Event, line string) {
	text := age.ReplaceAllString(r.Detail, "")
	changed := before.Component == "" || before.State != r.State
	quiet := sameState
	if text == r.text || text == "" {
		quiet = sameText
	}
	if !changed && time.Since(r.said) < quiet {
		return
	}
	r.said, r.text = time.Now(), text
	_, _ = fmt.Fprintf(p.out, "%s%s\n", time.Now().UTC().Format(time.RFC3339), line)
}

// line is what is said of a component.
func (p *progress) line(r *row) string {
	mark, took := "–", kube.Age(time.Since(r.began))
	detail := r.Detail
	switch r.State {
	case install.Done:
		mark = "✓"
	case install.Kept:
		mark, took, detail = "✓", "unchanged", ""
	case install.Failed:
		mark = "✗"
	case install.RolledBack:
		mark = "!"
	case install.Stopped:
		mark, detail = "!", "stopped"
	case install.Sending:
		if detail == "" {
			detail = "sending its objects"
		}
	}
	if p.style.ASCII {
		mark = map[string]string{"–": "-", "✓": "ok", "✗": "x", "!": "!"}[mark]
		mark = fmt.Sprintf("%-2s", mark)
	}
	if p.style.Colour {
		mark = map[string]string{"✓": "\x1b[32m✓\x1b[0m", "✗": "\x1b[31m✗\x1b[0m"}[mark] + strings.Trim(mark, "✓✗")
	}
	text := fmt.Sprintf("  %s %-*s  %s", mark, p.width, r.Component, took)
	if detail != "" {
		text = fmt.Sprintf("  %s %-*s  %-6s %s", mark, p.width, r.Component, took, detail)
	}
	return text
}

// draw writes the lines of those at work over what they were, with text above
// them that stays.
func (p *progress) draw(stays string) {
	if p.file == nil || p.drawn == 0 && len(p.rows) == 0 && stays == "" {
		return
	}
	columns, _, err := xterm.GetSize(int(p.file.Fd()))
	if err != nil || columns < 20 {
		columns = 80
	}
	var b strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", p.drawn)
	}
	b.WriteString("\r\x1b[J" + stays)
	for i := range p.rows {
		b.WriteString(cut(p.line(&p.rows[i]), columns-1) + "\n")
	}
	p.drawn = len(p.rows)
	_, _ = io.WriteString(p.out, b.String())
}

// cut shortens a line to what fits: one that wraps cannot be written over. Codes
// of colours take no room.
func cut(line string, columns int) string {
	if utf8.RuneCountInString(escapes.ReplaceAllString(line, "")) <= columns {
		return line
	}
	var b strings.Builder
	for room := columns - 1; line != "" && room > 0; {
		if code := escapes.FindString(line); code != "" && strings.HasPrefix(line, code) {
			b.WriteString(code)
			line = line[len(code):]
			continue
		}
		r, size := utf8.DecodeRuneInString(line)
		b.WriteRune(r)
		line = line[size:]
		room--
	}
	return b.String() + "…"
}

var escapes = regexp.MustCompile("\x1b\\[[0-9;]*m")
