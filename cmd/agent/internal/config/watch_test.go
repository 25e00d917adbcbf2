package config

import (
	"os"
	"path/filepath"
	"testing"
)

// mounted is a file as a kubelet mounts a ConfigMap: a link to one below ..data,
// which is a link to the folder of a version.
func mounted(t *testing.T, text string) (path string, bring func(text string)) {
	t.Helper()
	dir := t.TempDir()
	bring = func(text string) {
		t.Helper()
		version, err := os.MkdirTemp(dir, "..version")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(version, "agent.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		next := filepath.Join(dir, "..data_tmp")
		if err := os.Symlink(filepath.Base(version), next); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	bring(text)
	path = filepath.Join(dir, "agent.yaml")
	if err := os.Symlink(filepath.Join("..data", "agent.yaml"), path); err != nil {
		t.Fatal(err)
	}
	return path, bring
}

func TestWatch(t *testing.T) {
	path, bring := mounted(t, "frequency: 49\n")
	c := read(t, nil, "--config", path, "--config.watch")
	w := c.Watched()
	steps := []struct {
		name    string
		do      func()
		changed bool
	}{
		{"nothing is done", func() {}, false},
		{"the link leads to another text", func() { bring("frequency: 50\n") }, true},
		{"it was told", func() {}, false},
		{"the link leads to the same text", func() { bring("frequency: 50\n") }, false},
		{"the file is away", func() { _ = os.Remove(path) }, true},
		{"it stays away", func() {}, false},
	}
	for _, s := range steps {
		if s.do(); w.Changed() != s.changed {
			t.Errorf("%s: changed is %t", s.name, !s.changed)
		}
	}
	t.Run("a text that came between reading and watching counts", func(t *testing.T) {
		path, bring := mounted(t, "frequency: 49\n")
		c := read(t, nil, "--config", path, "--config.watch")
		bring("frequency: 50\n")
		if !c.Watched().Changed() {
			t.Error("it is missed")
		}
	})
}

func TestWatchedOnlyIfAsked(t *testing.T) {
	if w := read(t, nil, "--config", written(t, "frequency: 49\n")).Watched(); w != nil {
		t.Error("a file is watched that nobody asked to watch")
	}
	_, err := Load(parsed(t, "--config.watch", "--otlp.endpoint=a:1"), nil)
	want := "error: there is no file of settings to watch\ncause: config.watch is set, and --config is not (--config.watch)\nfix:   --config FILE\n"
	if got := told(err, ""); got != want {
		t.Errorf("without a file: got\n%s\nwant\n%s", got, want)
	}
}
