package daemon

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spf13/pflag"

	"github.com/kalypso-dev/kalypso/cmd/agent/internal/config"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/telemetry"
)

// TestAReloadThatHangsDoesNotHoldUpTheEnd: the settings may be on a file system
// that does not answer any more.
func TestAReloadThatHangsDoesNotHoldUpTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangup, answer := make(chan os.Signal, 1), make(chan struct{})
		asked := 0
		d := &daemon{log: telemetry.NewLogger(t.Output(), nil, telemetry.Text), Config: Config{
			Settings: &config.Config{}, Hangup: hangup,
			Reload: func() (*config.Config, error) {
				asked++
				<-answer
				return nil, errors.New("no answer")
			},
		}}
		defer d.log.Close()
		ctx, end := context.WithCancel(t.Context())
		ended := false
		go func() {
			d.reload(ctx)
			ended = true
		}()
		hangup <- syscall.SIGHUP
		synctest.Wait()
		end()
		synctest.Wait()
		if asked != 1 || !ended {
			t.Errorf("settings were read %d times, ended %t; want once and true", asked, ended)
		}
		close(answer)
	})
}

// TestAChangedFileIsReadAgainOnce: one with a mistake, too, and not every few seconds.
func TestAChangedFileIsReadAgainOnce(t *testing.T) {
	dir := t.TempDir()
	version := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	link := filepath.Join(dir, "agent.yaml")
	if err := os.Symlink(version("one", "frequency: 97\n"), link); err != nil {
		t.Fatal(err)
	}
	flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
	config.Flags(flags)
	if err := flags.Parse([]string{"--config", link, "--config.watch"}); err != nil {
		t.Fatal(err)
	}
	settings, err := config.Read(flags, nil)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		var log bytes.Buffer
		hangup := make(chan os.Signal, 1)
		d := &daemon{log: telemetry.NewLogger(&log, nil, telemetry.Text), Config: Config{
			Settings: settings, Hangup: hangup,
			Reload: func() (*config.Config, error) {
				asked++
				return config.Load(flags, nil)
			},
		}}
		defer d.log.Close()
		go d.reload(t.Context())
		after := func(what string, want int) {
			t.Helper()
			time.Sleep(3 * watchEvery) // of the bubble's clock
			synctest.Wait()
			if asked != want {
				t.Errorf("%s: the settings were read %d times, want %d", what, asked, want)
			}
		}
		after("nothing changed", 0)
		next := filepath.Join(dir, "next")
		if err := os.Symlink(version("two", "frequency: many\n"), next); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, link); err != nil {
			t.Fatal(err)
		}
		after("the link leads to a mistake", 1)
		hangup <- syscall.SIGHUP
		after("SIGHUP", 2)
		if !strings.Contains(log.String(), "settings are not reloaded; what was in force stays so") {
			t.Errorf("the log does not tell of the mistake:\n%s", &log)
		}
	})
}

// TestATakenAddressIsAllThatIsTold: a second agent on the machine leaves the log
// empty and the folders as they are, and ends with the reason.
func TestWhereTheFlameGraphIs(t *testing.T) {
	for want, a := range map[string]net.Addr{
		"http://127.0.0.1:4041/": &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 4041},
		"unix:/run/agent.sock":   &net.UnixAddr{Net: "unix", Name: "/run/agent.sock"},
	} {
		if got := at(a); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func TestATakenAddressIsAllThatIsTold(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := filepath.Join(t.TempDir(), "profiles")
	var log bytes.Buffer
	err = Run(t.Context(), Config{Log: &log, Settings: &config.Config{
		Export: []config.Export{{Kind: "file", Dir: dir}}, Listen: config.Listen{Address: l.Addr().String()},
	}})
	var fault *profiler.Fault
	if !errors.As(err, &fault) {
		t.Errorf("got the error %v, want a fault", err)
	}
	if log.Len() > 0 {
		t.Errorf("the log has\n%s", &log)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the folder of profiles: %v, want none", err)
	}
}

func TestAnAgeThatPyroscopeRefusesIsWarnedOf(t *testing.T) {
	tests := []struct {
		name   string
		age    time.Duration
		export string
		warns  bool
	}{
		{"an hour", time.Hour, "otlp", false},
		{"more, over OTLP", time.Hour + time.Second, "otlp", true},
		{"more, to Pyroscope itself", 24 * time.Hour, "pprof", true},
		{"more, to files", 24 * time.Hour, "file", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			d := &daemon{log: telemetry.NewLogger(&out, nil, telemetry.Text), settings: &config.Config{
				Export: []config.Export{{Kind: tt.export}}, Spool: config.Spool{MaxAge: tt.age},
			}}
			defer d.log.Close()
			d.warn()
			if got := strings.Contains(out.String(), "level=WARN"); got != tt.warns {
				t.Errorf("warns: %t, want %t\n%s", got, tt.warns, &out)
			}
		})
	}
}
