package term

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func env(pairs ...string) func(string) string {
	return func(name string) string {
		for _, p := range pairs {
			if k, v, _ := strings.Cut(p, "="); k == name {
				return v
			}
		}
		return ""
	}
}

func TestASCII(t *testing.T) {
	tests := []struct {
		name string
		env  []string
		want bool
	}{
		{"nothing set shows everything", nil, false},
		{"UTF-8 shows everything", []string{"LANG=de_DE.UTF-8"}, false},
		{"utf8 is the same", []string{"LANG=C.utf8"}, false},
		{"C shows ASCII", []string{"LANG=C"}, true},
		{"the first that is set decides", []string{"LC_ALL=C", "LANG=C.UTF-8"}, true},
		{"a dumb terminal shows ASCII", []string{"TERM=dumb", "LANG=C.UTF-8"}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := ASCII(env(tt.env...)); got != tt.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestAPipeIsNoTerminal(t *testing.T) {
	if got := For(&bytes.Buffer{}, env("LANG=C.UTF-8")); got != (Style{}) {
		t.Errorf("got %+v", got)
	}
}

func TestTable(t *testing.T) {
	rows := [][]string{{"a", "long cell", "x"}, {"ünï", "", ""}}
	tests := []struct {
		name  string
		style Style
		want  string
	}{
		{"columns are as wide as their widest cell, and lines end where their text does", Style{},
			"one  two        three\na    long cell  x\nünï\n"},
		{"the header is bold where there is colour", Style{Colour: true},
			"\x1b[1mone  two        three\x1b[0m\na    long cell  x\nünï\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			if err := tt.style.Table(&b, []string{"one", "two", "three"}, rows); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(b.String(), tt.want); diff != "" {
				t.Errorf("(-got +want):\n%s", diff)
			}
		})
	}
}
