package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/api"
)

func TestDumpedPID(t *testing.T) {
	cmd := newDumpCommand()
	for _, tt := range []struct {
		text string
		want profiler.PID
		what string
	}{
		{"17", 17, ""},
		{"", 0, "which process?"},
		{"0", 0, `there can be no PID "0"`},
		{"-1", 0, `there can be no PID "-1"`},
		{"2147483648", 0, `there can be no PID "2147483648"`},
		{"bash", 0, `there can be no PID "bash"`},
	} {
		got, err := dumpedPID(cmd, tt.text)
		wrong := cli.Report(t.Context(), err, io.Discard) == cli.ExitUsage
		if got != tt.want || wrong != (tt.what != "") || err != nil && !strings.Contains(err.Error(), tt.what) {
			t.Errorf("%q: PID %d, error %v", tt.text, got, err)
		}
	}
}

// dumpSource stands in for the kernel: there is one process, which waits.
type dumpSource struct{ quietSource }

func (dumpSource) Dump(_ context.Context, pid profiler.PID) (*api.Dump, error) {
	if pid != 40 {
		return nil, &profiler.Fault{What: fmt.Sprintf("cannot dump PID %d", pid), Why: unix.ESRCH, Fix: "pgrep -l NAME lists PIDs"}
	}
	stack := &profiler.Stack{Stop: profiler.StopRoot, Locations: []*profiler.Location{
		{Module: &profiler.Module{Path: "[kernel]"}, Frames: []profiler.Frame{{Function: "futex_wait", Kind: profiler.KindKernel}}},
		{Module: &profiler.Module{Path: "/srv/app"}, Frames: []profiler.Frame{{Function: "work"}}},
	}}
	return api.NewDump(pid, "/srv/app", time.Now(), time.Millisecond, []api.ThreadStack{{TID: 40, Name: "app", State: "sleeping", Stack: stack}}), nil
}

// asked is what dump -p does where this process may not take stacks.
func asked(t *testing.T, ctx context.Context, f *dumpFlags, pid profiler.PID, refusal error) (stdout, stderr string, err error) {
	t.Helper()
	client, err := api.NewClient(f.listen)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var out, notes bytes.Buffer
	cmd := newDumpCommand()
	cmd.SetContext(ctx)
	cmd.SetErr(&notes)
	d, err := f.ask(cmd, client, pid, refusal)
	if err == nil {
		err = f.write(&out, d)
	}
	return out.String(), notes.String(), err
}

func TestDumpFromTheAgent(t *testing.T) {
	s := httptest.NewServer(api.NewServer(api.Config{Source: dumpSource{}, History: api.NewHistory(0, 0)}))
	defer s.Close()
	address := s.Listener.Addr().String()
	refusal := &profiler.Fault{What: "cannot dump PID 40", Why: fmt.Errorf("not running as root: %w", unix.EPERM), Fix: "sudo kalypso-agent dump -p 40"}
	note := "asked the agent at " + address + ": not running as root: operation not permitted\n"
	const head, kernel, rest = "PID 40 · app · /srv/app · 1 thread\n\n40 \"app\" · sleeping\n", "    kernel  futex_wait\n", "    native  work (app)\n\nquality  1 of 1 stack complete · "
	for _, tt := range []struct {
		name string
		f    dumpFlags
		want string
	}{
		{"all", dumpFlags{output: "text", kernel: true}, head + kernel + rest + "2 of 2 frames named\n"},
		{"--kernel=false leaves out what the agent says of the kernel", dumpFlags{output: "text"}, head + rest + "1 of 1 frame named\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.f.listen = address
			stdout, stderr, err := asked(t, t.Context(), &tt.f, 40, refusal)
			if err != nil || stderr != note {
				t.Errorf("error %v, stderr %q", err, stderr)
			}
			if diff := cmp.Diff(stdout, tt.want); diff != "" {
				t.Errorf("text (-got +want):\n%s", diff)
			}
		})
	}
	t.Run("JSON is the agent's", func(t *testing.T) {
		stdout, _, err := asked(t, t.Context(), &dumpFlags{output: "json", listen: address, kernel: true}, 40, refusal)
		var d api.Dump
		if err != nil || json.Unmarshal([]byte(stdout), &d) != nil || d.Schema != "kalypso.agent.dump/v1" || d.PID != 40 || len(d.Threads) != 1 || len(d.Threads[0].Frames) != 2 {
			t.Errorf("error %v, output %s", err, stdout)
		}
	})
	t.Run("what the agent says is wrong is what is said", func(t *testing.T) {
		_, stderr, err := asked(t, t.Context(), &dumpFlags{output: "text", listen: address}, 41, refusal)
		var fault *profiler.Fault
		if !errors.As(err, &fault) || fault.Error() != "cannot dump PID 41: no such process" || fault.Fix != "pgrep -l NAME lists PIDs" || stderr != note {
			t.Errorf("error %v, stderr %q", err, stderr)
		}
	})
	t.Run("an interrupt is an interrupt", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, _, err := asked(t, ctx, &dumpFlags{output: "text", listen: address}, 40, refusal); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
}

func TestDumpWithoutPrivilegesAndAgent(t *testing.T) {
	const start = "start the agent, which is then asked: sudo kalypso-agent run --otlp.endpoint HOST:PORT"
	for _, tt := range []struct {
		name     string
		refusal  error
		why, fix string
	}{
		{"both ways are named", &profiler.Fault{What: "cannot dump PID 40", Why: fmt.Errorf("not running as root: %w", unix.EPERM), Fix: "sudo kalypso-agent dump -p 40"},
			"not running as root: operation not permitted; ", "sudo kalypso-agent dump -p 40     or " + start},
		{"one is, where the other is not known", fmt.Errorf("iterate over threads: %w", unix.EPERM), "iterate over threads: operation not permitted; ", start},
	} {
		t.Run(tt.name, func(t *testing.T) {
			stdout, stderr, err := asked(t, t.Context(), &dumpFlags{output: "text", listen: "127.0.0.1:1"}, 40, tt.refusal)
			var fault *profiler.Fault
			if !errors.As(err, &fault) {
				t.Fatalf("error %v", err)
			}
			want := profiler.Fault{What: "cannot dump PID 40", Why: errors.New(tt.why + "no agent answers at 127.0.0.1:1: nothing listens there"), Fix: tt.fix}
			if fault.Error() != want.Error() || fault.Fix != want.Fix || stdout+stderr != "" {
				t.Errorf("error %v, fix %q, output %q", err, fault.Fix, stdout+stderr)
			}
		})
	}
}
