package viewer

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/google/pprof/driver"
	pprof "github.com/google/pprof/profile"

	"github.com/kalypso-dev/kalypso/profiler"
)

// Handler serves the page at "/" and google/pprof's own pages, made from the
// same profile in pprof's types, below "/pprof/". It answers this machine
// only, and only when asked for by a name of this machine: a page on the
// internet whose name was made to resolve to 127.0.0.1 (DNS rebinding) gets
// nothing.
func Handler(p *profiler.Profile, pp *pprof.Profile) (http.Handler, error) {
	var page bytes.Buffer
	if err := write(&page, p, true); err != nil {
		return nil, err
	}
	pages, err := pprofPages(pp)
	if err != nil {
		return nil, err
	}
	written := time.Now()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		http.ServeContent(w, r, "", written, bytes.NewReader(page.Bytes()))
	})
	mux.HandleFunc("GET /pprof/", func(w http.ResponseWriter, r *http.Request) {
		h := pages[strings.TrimPrefix(r.URL.Path, "/pprof")]
		if h == nil {
			http.NotFound(w, r)
			return
		}
		http.StripPrefix("/pprof", h).ServeHTTP(w, r)
	})
	return localOnly(mux), nil
}

func localOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil || !peer.Addr().Unmap().IsLoopback() || !localName(r.Host) {
			http.Error(w, "this profile is for this machine only: open it as http://localhost", http.StatusForbidden)
			return
		}
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		next.ServeHTTP(w, r)
	})
}

// localName says whether a Host header names this machine.
func localName(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && addr.Unmap().IsLoopback()
}

// pprofPages gives pprof's own pages by their path. The driver wants to be a
// command: it gets flags of its own, a profile instead of a URL, and a web
// server that only takes the pages.
func pprofPages(p *pprof.Profile) (map[string]http.Handler, error) {
	var pages map[string]http.Handler
	err := driver.PProf(&driver.Options{
		Flagset: &pprofFlags{FlagSet: flag.NewFlagSet("pprof", flag.ContinueOnError)},
		Fetch:   pprofFetcher{p},
		Sym:     pprofSymbolizer{},
		Obj:     pprofObjects{},
		UI:      pprofUI{},
		HTTPServer: func(args *driver.HTTPServerArgs) error {
			pages = args.Handlers
			return nil
		},
	})
	if err != nil {
		return nil, fmt.Errorf("start pprof's pages: %w", err)
	}
	// These two write to pprof's settings in the home folder, on a plain GET.
	delete(pages, "/saveconfig")
	delete(pages, "/deleteconfig")
	return pages, nil
}

type pprofFlags struct{ *flag.FlagSet }

func (f *pprofFlags) StringList(name, def, usage string) *[]*string {
	return &[]*string{f.String(name, def, usage)}
}
func (*pprofFlags) ExtraUsage() string   { return "" }
func (*pprofFlags) AddExtraUsage(string) {}
func (f *pprofFlags) Parse(func()) []string {
	f.SetOutput(io.Discard)
	if err := f.FlagSet.Parse([]string{"-http=localhost:0", "-no_browser", "-symbolize=none", "profile"}); err != nil {
		return nil
	}
	return f.Args()
}

// pprofFetcher hands over the profile. With a source name the driver would
// keep a copy of it in the home folder.
type pprofFetcher struct{ profile *pprof.Profile }

func (f pprofFetcher) Fetch(string, time.Duration, time.Duration) (*pprof.Profile, string, error) {
	return f.profile.Copy(), "", nil
}

// All names are in the profile.
type pprofSymbolizer struct{}

func (pprofSymbolizer) Symbolize(string, driver.MappingSources, *pprof.Profile) error { return nil }

// pprofObjects opens no executables: looking for the tools that read them
// costs 200 ms, and disassembly is not this page's job.
type pprofObjects struct{}

var errNoObjects = errors.New("executables are not opened here")

func (pprofObjects) Open(string, uint64, uint64, uint64, string) (driver.ObjFile, error) {
	return nil, errNoObjects
}
func (pprofObjects) Disasm(string, uint64, uint64, bool) ([]driver.Inst, error) {
	return nil, errNoObjects
}

// pprofUI is nobody at a terminal.
type pprofUI struct{}

func (pprofUI) ReadLine(string) (string, error)     { return "", io.EOF }
func (pprofUI) Print(...any)                        {}
func (pprofUI) PrintErr(...any)                     {}
func (pprofUI) IsTerminal() bool                    { return false }
func (pprofUI) WantBrowser() bool                   { return false }
func (pprofUI) SetAutoComplete(func(string) string) {}
