package main

import (
	"bytes"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/install"
)

func TestProgressInAPipe(t *testing.T) {
	t.Setenv("LC_ALL", "C.UTF-8")
	t.Setenv("TERM", "xterm")
	var out bytes.Buffer
	p := newProgress(&out, []string{"mimir", "cert-manager"})
	tell := func(component string, state install.State, detail string, took time.Duration) {
		p.event(install.Event{Component: component, State: state, Detail: detail, Took: took})
	}
	tell("cert-manager", install.Sending, "", 0)
	tell("cert-manager", install.Starting, "", 2*time.Second)
	tell("mimir", install.Kept, "", time.Second)
	// An age that grows is no change, nor is every step of the same state a line.
	tell("cert-manager", install.Starting, "1/3 ready; a: pulling image (1 s)", 3*time.Second)
	tell("cert-manager", install.Starting, "1/3 ready; a: pulling image (2 s)", 4*time.Second)
	tell("cert-manager", install.Failed, "a cannot be pulled", 4*time.Second)
	p.end()
	got := regexp.MustCompile(`(?m)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`).ReplaceAllString(out.String(), "TIME")
	got = regexp.MustCompile(`\d s`).ReplaceAllString(got, "N s")
	want := `TIME  – cert-manager  N s    sending its objects
TIME  – cert-manager  N s
TIME  ✓ mimir         unchanged
TIME  ✗ cert-manager  N s    a cannot be pulled
`
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("in a pipe (-got +want):\n%s", diff)
	}
}

func TestCut(t *testing.T) {
	for name, test := range map[string]struct {
		line string
		want string
	}{
		"a line that fits stays":             {"1234567890", "1234567890"},
		"a longer one ends with an ellipsis": {"12345678901", "123456789…"},
		"letters count, not bytes":           {"äöüäöüäöüä", "äöüäöüäöüä"},
		"colours take no room":               {"\x1b[32m1234567890\x1b[0m", "\x1b[32m1234567890\x1b[0m"},
		"a colour that begins is kept":       {"\x1b[32m12345678901\x1b[0m", "\x1b[32m123456789…"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := cut(test.line, 10); got != test.want {
				t.Errorf("cut to %q, want %q", got, test.want)
			}
		})
	}
}

func TestNeeds(t *testing.T) {
	// istio-gateway needs istiod, which needs istio-base; nothing needs grafana.
	all := component.All()
	chosen := slices.DeleteFunc(component.All(), func(c component.Component) bool { return c.Name != "istio-gateway" })
	if diff := cmp.Diff(component.Names(needed(all, chosen)), []string{"istio-base", "istiod", "istio-gateway"}); diff != "" {
		t.Errorf("needed (-got +want):\n%s", diff)
	}
}
