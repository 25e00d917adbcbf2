// Package web shows profiles in a browser: the viewer's page and pprof's own,
// on localhost, until somebody ends it. It knows nothing of where profiles come
// from.
package web

import (
	"context"
	"errors"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/kalypso-dev/kalypso/exporter/format"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/viewer"
)

// Page is a profile under a name.
type Page struct {
	Name    string
	Profile *profiler.Profile
}

// Config says where pages are shown.
type Config struct {
	Port      int // 0: any that is free
	NoBrowser bool
}

// Serve shows profiles on localhost until ctx ends, and says on text where. One
// is at "/"; of several there is a list, and each is below its number.
func Serve(ctx context.Context, text io.Writer, c Config, pages ...Page) error {
	handler, err := handlerOf(pages)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(c.Port)))
	if err != nil {
		return &profiler.Fault{What: fmt.Sprintf("cannot listen on port %d of localhost", c.Port), Why: reason(err), Fix: "leave the port out: any that is free is taken"}
	}
	url := "http://" + l.Addr().String() + "/"
	if _, err := io.WriteString(text, addresses(url, pages)); err != nil {
		_ = l.Close()
		return err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if !c.NoBrowser {
		Browse(url)
	}
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", url, err)
	}
	return nil
}

func reason(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

func addresses(url string, pages []Page) string {
	if len(pages) == 1 {
		return fmt.Sprintf("\nflame graph   %s\npprof         %spprof/\nCtrl-C ends\n", url, url)
	}
	return fmt.Sprintf("\n%d profiles    %s\nCtrl-C ends\n", len(pages), url)
}

func handlerOf(pages []Page) (http.Handler, error) {
	if len(pages) == 1 {
		return viewer.Handler(pages[0].Profile, format.PprofProfile(pages[0].Profile))
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { list(w, r, pages) })
	for i, p := range pages {
		h, err := viewer.Handler(p.Profile, format.PprofProfile(p.Profile))
		if err != nil {
			return nil, err
		}
		prefix := "/" + strconv.Itoa(i+1)
		mux.Handle("GET "+prefix+"/", http.StripPrefix(prefix, h))
	}
	return mux, nil
}

// list leads to each of several profiles.
func list(w http.ResponseWriter, r *http.Request, pages []Page) {
	viewer.Harden(w.Header())
	if !viewer.Local(r) {
		http.Error(w, "these profiles are for this machine only: open them as http://localhost", http.StatusForbidden)
		return
	}
	var b strings.Builder
	b.WriteString(`<!doctype html><html lang="en"><meta charset="utf-8"><title>Profiles</title>
<body style="font:16px/1.6 system-ui,sans-serif;max-width:40em;margin:3em auto;padding:0 1em;color-scheme:light dark"><h1>Profiles</h1><ol>
`)
	for i, p := range pages {
		fmt.Fprintf(&b, "<li><a href=\"%d/\">%s</a>\n", i+1, html.EscapeString(profiler.Printable(p.Name)))
	}
	b.WriteString("</ol>\n")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = io.WriteString(w, b.String()) // the browser is gone: nobody is left to be told
}

// Browse opens a browser where there is a display. That it fails is no harm: the
// address is on the terminal.
func Browse(url string) {
	name := "xdg-open"
	switch {
	case runtime.GOOS == "darwin":
		name = "open"
	case os.Getenv("DISPLAY") == "" && os.Getenv("WAYLAND_DISPLAY") == "":
		return
	}
	cmd := exec.Command(name, url)
	if cmd.Start() == nil {
		go func() { _ = cmd.Wait() }() // ends when the browser has taken the address
	}
}
