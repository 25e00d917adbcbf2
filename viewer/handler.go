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
// same profile in pprof's types, below "/pprof/". It answers only what Local
// lets through.
func Handler(p *profiler.Profile, pp *pprof.Profile) (http.Handler, error) {
	var page bytes.Buffer
	if err := Write(&page, p, Link{Text: "pprof", Href: "pprof/"}); err != nil {
		return nil, err
	}
	pages, err := Pprof(pp)
	if err != nil {
		return nil, err
	}
	written := time.Now()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		http.ServeContent(w, r, "", written, bytes.NewReader(page.Bytes()))
	})
	mux.Handle("GET /pprof/", http.StripPrefix("/pprof", pages))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !Local(r) {
			http.Error(w, "this profile is for this machine only: open it as http://localhost", http.StatusForbidden)
			return
		}
		Harden(w.Header())
		mux.ServeHTTP(w, r)
	}), nil
}

// Local says whether a request comes from this machine and asks for it by one
// of its own names: a page on the internet whose name was made to resolve to
// 127.0.0.1 (DNS rebinding) does not.
func Local(r *http.Request) bool {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && peer.Addr().Unmap().IsLoopback() && localName(r.Host)
}

// Harden sets the headers that keep browsers from storing, framing and sharing
// an answer, and from taking it for something else than it is.
func Harden(h http.Header) {
	h.Set("Cache-Control", "no-store")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
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

// Pprof serves pprof's own pages of a profile, "/flamegraph", "/top" and so on.
// The driver wants to be a command: it gets flags of its own, a profile instead
// of a URL, and a web server that only takes the pages. It keeps settings in
// variables of its packages: only one call may run at a time.
func Pprof(p *pprof.Profile) (http.Handler, error) {
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
	for _, path := range []string{
		// These two write to pprof's settings in the home folder, on a plain GET.
		"/saveconfig", "/deleteconfig",
		// This one shows the files that the profile names as sources. Whoever
		// runs a program chooses those names, and we may be root.
		"/source",
		"/disasm", // no executables are opened
	} {
		delete(pages, path)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if page := pages[r.URL.Path]; page != nil {
			page.ServeHTTP(w, r)
			return
		}
		http.NotFound(w, r)
	}), nil
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
