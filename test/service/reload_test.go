package service

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/exporter/otlp/otlptest"
)

// TestReload: SIGHUP takes in what can change while the agent runs, names what
// cannot, and keeps everything where the file is wrong.
func TestReload(t *testing.T) {
	require(t)
	t.Parallel()
	spin(t, compile(t, "chain.c", "reload-wanted"), "-seconds", "600")
	spin(t, compile(t, "chain.c", "reload-other"), "-seconds", "600")
	r := otlptest.Start(t, otlptest.Options{})
	config := filepath.Join(t.TempDir(), "agent.yaml")
	write(t, config, "frequency: 97\nlabels: {stage: one}\n")
	a := start(t, command{endpoint: r.Endpoint(), args: []string{"--config", config}})
	reload := func(text, says string) time.Time {
		t.Helper()
		before := len(a.log.with(says))
		write(t, config, text)
		a.signal(syscall.SIGHUP)
		until(t, time.Minute, "the log says "+says, func() bool { return len(a.log.with(says)) > before })
		// A window that was open at the change still has the labels of before.
		return time.Now().Add(1100 * time.Millisecond)
	}
	// both gives what two windows from a moment on show of the programs.
	both := func(from time.Time) (wanted, other usage, labels []string) {
		t.Helper()
		until(t, time.Minute, "two more windows", func() bool {
			list := profiles(t, r)
			return len(list) > 0 && list[len(list)-1].Start.Sub(from) > 2*time.Second
		})
		list := profiles(t, r)
		for _, p := range list {
			if l := p.Attributes["stage"]; p.Start.After(from) && !slices.Contains(labels, l) {
				labels = append(labels, l)
			}
		}
		return usageOf(list, "reload-wanted", from, time.Time{}), usageOf(list, "reload-other", from, time.Time{}), labels
	}
	const rest = "frequency: 199\nexclude: {comm: [reload-other]}\n"
	done := func(changed string) string {
		return fmt.Sprintf(`"msg":"settings are reloaded","changed":%q`, changed)
	}
	wanted, other, labels := both(time.Now())
	if wanted.samples == 0 || other.samples == 0 || wanted.periods[time.Second/97] != wanted.samples || !slices.Equal(labels, []string{"one"}) {
		t.Fatalf("before: %+v, %+v, labels %q", wanted, other, labels)
	}

	at := reload(rest+"labels: {stage: two}\n", done("frequency exclude.comm labels"))
	wanted, other, labels = both(at)
	if wanted.samples == 0 || other.samples > 0 || wanted.periods[time.Second/199] != wanted.samples || !slices.Equal(labels, []string{"two"}) {
		t.Errorf("after a change of rate, filter and labels: %+v, %+v, labels %q", wanted, other, labels)
	}
	for _, setting := range []string{"frequency", "labels", "exclude.comm"} {
		if len(a.log.with(`"msg":"a setting changed"`, `"setting":"`+setting+`"`)) != 1 {
			t.Errorf("the log does not say that %s changed", setting)
		}
	}

	for _, bad := range []string{"frequency: many\n", "frequencyy: 10\n", "frequency: [\n"} {
		at = reload(bad, `"msg":"settings are not reloaded; what was in force stays so"`)
	}
	if wanted, other, labels = both(at); wanted.periods[time.Second/199] != wanted.samples || other.samples > 0 || !slices.Equal(labels, []string{"two"}) {
		t.Errorf("after files with mistakes: %+v, %+v, labels %q", wanted, other, labels)
	}

	reload(rest+"labels: {stage: two}\nkernel: false\nspool: {max: 2Mi}\n", done("kernel spool.max"))
	for _, setting := range []string{"kernel", "spool.max"} {
		if len(a.log.with(`"msg":"a setting holds after a restart only"`, `"setting":"`+setting+`"`)) != 1 {
			t.Errorf("the log does not say that %s takes a restart", setting)
		}
	}

	reload(rest+"labels: {stage: two}\nlog: {level: error}\n", `"setting":"log.level","from":"info","to":"error"`)
	write(t, config, rest+"labels: {stage: three}\nlog: {level: error}\n")
	a.signal(syscall.SIGHUP)
	until(t, time.Minute, "the third stage", func() bool {
		list := profiles(t, r)
		return list[len(list)-1].Attributes["stage"] == "three"
	})
	if len(a.log.with("three")) > 0 {
		t.Error("what is below the level is logged")
	}
	reload(rest+"labels: {stage: three}\nlog: {level: info}\n", done("log.level"))
	n := a.stop()
	if n.Filtered == 0 {
		t.Error("no sample was filtered")
	}
	account(t, r, n)
}

// TestWatchedSettings: a file that is exchanged as a kubelet exchanges that of a
// ConfigMap is read again without a signal, and one with a mistake is told of.
func TestWatchedSettings(t *testing.T) {
	require(t)
	t.Parallel()
	spin(t, compile(t, "chain.c", "watch-wanted"), "-seconds", "600")
	r := otlptest.Start(t, otlptest.Options{})
	dir := t.TempDir()
	versions := 0
	bring := func(text string) {
		t.Helper()
		versions++
		version := fmt.Sprintf("..%d", versions)
		for _, err := range []error{
			os.Mkdir(filepath.Join(dir, version), 0o700),
			os.WriteFile(filepath.Join(dir, version, "agent.yaml"), []byte(text), 0o600),
			os.Symlink(version, filepath.Join(dir, "..data_tmp")),
			os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	bring("frequency: 97\nconfig.watch: true\n")
	config := filepath.Join(dir, "agent.yaml")
	if err := os.Symlink(filepath.Join("..data", "agent.yaml"), config); err != nil {
		t.Fatal(err)
	}
	a := start(t, command{endpoint: r.Endpoint(), args: []string{"--config", config}})
	says := func(parts ...string) {
		t.Helper()
		until(t, 30*time.Second, "the log says "+parts[0], func() bool { return len(a.log.with(parts...)) > 0 })
	}
	bring("frequency: many\nconfig.watch: true\n")
	says(`"msg":"settings are not reloaded; what was in force stays so"`, "many")
	bring("frequency: 199\nconfig.watch: true\n")
	says(`"msg":"settings are reloaded","changed":"frequency"`)
	at := time.Now()
	until(t, time.Minute, "a window at the new rate", func() bool {
		return usageOf(profiles(t, r), "watch-wanted", at, time.Time{}).periods[time.Second/199] > 0
	})
	account(t, r, a.stop())
}
