package ours

import (
	"os"
	"strings"
	"testing"
)

func TestTagIsTheVersion(t *testing.T) {
	version, err := os.ReadFile("../../../VERSION")
	if err != nil {
		t.Fatal(err)
	}
	if v := strings.TrimSpace(string(version)); v != Tag {
		t.Errorf("Tag is %s, VERSION has %s", Tag, v)
	}
}
