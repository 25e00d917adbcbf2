package guest

import (
	"os"
	"path/filepath"
	"testing"
)

func TestCompilation(t *testing.T) {
	dir := t.TempDir()
	a, same, other := filepath.Join(dir, "a.c"), filepath.Join(dir, "same.c"), filepath.Join(dir, "other.c")
	for path, text := range map[string]string{a: "int x;", same: "int x;", other: "int y;"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	name, out, err := Compilation([]string{"-O2", "-pthread", "-o", "x", a})
	if err != nil || out != "x" {
		t.Fatalf("%q, %v", out, err)
	}
	tests := []struct {
		name string
		args []string
		same bool
	}{
		{"flags in another order", []string{"-pthread", a, "-O2", "-o", "x"}, true},
		{"another place to write to", []string{"-O2", "-pthread", "-o", "y", a}, true},
		{"the same text under another name", []string{"-O2", "-pthread", "-o", "x", same}, true},
		{"another text", []string{"-O2", "-pthread", "-o", "x", other}, false},
		{"another flag", []string{"-O2", "-o", "x", a}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, _, err := Compilation(tt.args)
			if err != nil || (got == name) != tt.same {
				t.Errorf("%s, %v; the first is %s", got, err, name)
			}
		})
	}
	if _, _, err := Compilation([]string{"-O2", a}); err == nil {
		t.Error("nobody says where it goes")
	}
	if _, _, err := Compilation([]string{"-o", "x", filepath.Join(dir, "none.c")}); err == nil {
		t.Error("there is no such source")
	}
}
