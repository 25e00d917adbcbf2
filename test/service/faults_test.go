package service

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/exporter/otlp/otlptest"
)

// scene is an agent, its backend, and what goes wrong between them.
type scene struct {
	t *testing.T
	r *otlptest.Receiver
	a *agent

	protocol string
}

// fault is something that goes wrong.
type fault struct {
	name     string
	receiver otlptest.Options
	args     []string
	tls      bool // with the receiver's authority
	// twice: the backend takes requests and its answer is lost, so that they
	// are sent again.
	twice  bool
	during func(s *scene)
	check  func(s *scene, n *totals) // beside the accounts
}

// outage is how long faults last.
const outage = 3 * time.Second

// faults are what a backend may do.
func faults() []fault {
	none := func(s *scene, n *totals) {
		if lost := n.Undelivered(); lost > 0 || n.OTLP.Waiting > 0 || n.OTLP.Refused > 0 {
			s.t.Errorf("%d samples lost, %d waiting, %d refused; want none: %+v", lost, n.OTLP.Waiting, n.OTLP.Refused, *n)
		}
		if n.OTLP.Retries == 0 {
			s.t.Error("nothing failed: the fault was none")
		}
	}
	refused := func(s *scene, n *totals) {
		if n.OTLP.Refused == 0 || n.OTLP.Retries > 0 {
			s.t.Errorf("%d samples refused after %d retries; want some after none", n.OTLP.Refused, n.OTLP.Retries)
		}
		if lost := n.Undelivered(); lost > 0 || n.OTLP.Waiting > 0 {
			s.t.Errorf("%d samples lost, %d waiting", lost, n.OTLP.Waiting)
		}
		aside := spooled(s.t, filepath.Join(s.a.spool, "otlp", "rejected"))
		if aside.samples != n.OTLP.Refused {
			s.t.Errorf("%d samples in files set aside, %d refused", aside.samples, n.OTLP.Refused)
		}
	}
	return []fault{
		{
			name: "away at start", receiver: otlptest.Options{Away: true}, check: none,
			during: func(s *scene) {
				s.says("nothing listens there (connection refused)")
				time.Sleep(outage)
				back := time.Now()
				s.back(s.r.Listen)
				first := profiles(s.t, s.r)[0].Start
				s.t.Logf("the first window begins %s after the agent", first.Sub(s.a.began).Round(time.Millisecond))
				if first.After(back.Add(-outage / 2)) {
					s.t.Errorf("sampling began %s after the agent: it waited for the backend", first.Sub(s.a.began))
				}
			},
		},
		{
			name: "away for a while", check: none,
			during: func(s *scene) {
				s.catchUp(time.Now())
				s.r.Leave()
				if inLong() {
					time.Sleep(time.Minute)
				} else {
					time.Sleep(outage)
				}
				s.back(s.r.Listen)
			},
		},
		{
			name: "flapping", check: none,
			during: func(s *scene) {
				for range 4 {
					s.r.Leave()
					time.Sleep(1300 * time.Millisecond)
					s.r.Listen()
					time.Sleep(700 * time.Millisecond)
				}
				s.back(func() {})
			},
		},
		{
			name: "429 without a word on when to come again", receiver: otlptest.Options{Mode: otlptest.RateLimit}, check: none,
			during: func(s *scene) {
				s.pause(500 * time.Millisecond)
				s.back(s.accept)
			},
		},
		{
			name: "429 with Retry-After", receiver: otlptest.Options{Mode: otlptest.RateLimitAfter, RetryAfter: 3 * time.Second}, check: none,
			during: func(s *scene) {
				s.pause(3 * time.Second)
				s.back(s.accept)
			},
		},
		{
			name: "unavailable", receiver: otlptest.Options{Mode: otlptest.Unavailable}, check: none,
			during: func(s *scene) {
				s.attempts(1)
				time.Sleep(outage)
				s.back(s.accept)
			},
		},
		{
			name: "connections reset", receiver: otlptest.Options{Mode: otlptest.Reset}, check: none,
			during: func(s *scene) {
				s.says("it closed the connection")
				time.Sleep(outage)
				s.back(s.accept)
			},
		},
		{
			name: "answers lost", receiver: otlptest.Options{Mode: otlptest.LoseAnswer}, check: none, twice: true,
			during: func(s *scene) {
				s.attempts(1)
				time.Sleep(outage)
				s.back(s.accept)
			},
		},
		{
			name: "no answer at all", receiver: otlptest.Options{Mode: otlptest.Stall}, args: []string{"--otlp.timeout", "1s"}, check: none,
			during: func(s *scene) {
				s.says("it did not answer in time")
				time.Sleep(outage)
				s.back(s.accept)
			},
		},
		{
			name: "tenant not accepted", receiver: otlptest.Options{Mode: otlptest.Unauthenticated}, check: none,
			during: func(s *scene) {
				s.says("it does not accept who we say we are")
				time.Sleep(outage)
				s.back(s.accept)
			},
		},
		{
			name: "refused for good", receiver: otlptest.Options{Mode: otlptest.Refuse}, check: refused,
			during: func(s *scene) { s.attempts(2); s.back(s.accept) },
		},
		{
			name: "refused for good under another code", receiver: otlptest.Options{Mode: otlptest.RefuseOddly}, check: refused,
			during: func(s *scene) { s.attempts(2); s.back(s.accept) },
		},
		{
			name: "too large for the server", receiver: otlptest.Options{Mode: otlptest.TooLarge}, check: refused,
			during: func(s *scene) { s.attempts(2); s.back(s.accept) },
		},
		{
			name: "half accepted", receiver: otlptest.Options{Mode: otlptest.HalfAccept},
			during: func(s *scene) { s.attempts(4) },
			check: func(s *scene, n *totals) {
				if n.OTLP.PartlyAccepted == 0 || s.r.Rejected() == 0 || n.OTLP.Retries > 0 || n.Undelivered() > 0 {
					s.t.Errorf("%d samples left out, %+v", s.r.Rejected(), n.OTLP)
				}
			},
		},
		{
			name: "certificate expired", receiver: otlptest.Options{TLS: true, Expired: true}, tls: true, check: none,
			during: func(s *scene) {
				s.says("its certificate has expired or is not yet valid")
				time.Sleep(outage)
				s.back(func() { s.r.Renew(false) })
			},
		},
	}
}

func TestFaults(t *testing.T) {
	require(t)
	t.Parallel()
	for _, f := range faults() {
		for _, protocol := range []string{"grpc", "http"} {
			t.Run(f.name+"/"+protocol, func(t *testing.T) {
				t.Parallel()
				r := otlptest.Start(t, f.receiver)
				args := append([]string{"--otlp.protocol", protocol}, f.args...)
				if f.tls {
					args = append(args, "--otlp.tls.ca", r.CAFile())
				}
				s := &scene{t, r, start(t, command{endpoint: r.Endpoint(), args: args}), protocol}
				f.during(s)
				n := s.a.stop()
				f.check(s, &n)
				if !f.twice {
					account(t, r, n)
					return
				}
				n.Check(t)
				again, _ := repeated(t, r)
				t.Logf("%d samples came again; %+v", again, n)
				if again == 0 || r.Samples()-again != n.OTLP.Delivered {
					t.Errorf("the receiver took %d samples, %d of them again; %d were delivered", r.Samples(), again, n.OTLP.Delivered)
				}
			})
		}
	}
}

// says waits until the agent says why it cannot send.
func (s *scene) says(why string) {
	s.t.Helper()
	until(s.t, time.Minute, "the log says "+why, func() bool { return len(s.a.log.with(`"level":"WARN"`, why)) > 0 })
}

// accept ends a fault of the receiver.
func (s *scene) accept() { s.r.Fail(otlptest.Accept) }

// attempts waits for so many more requests.
func (s *scene) attempts(n int) {
	s.t.Helper()
	n += s.r.Attempts()
	until(s.t, 30*time.Second, fmt.Sprintf("%d requests", n), func() bool { return s.r.Attempts() >= n })
}

// pause holds the time between two attempts to at least d.
func (s *scene) pause(d time.Duration) {
	s.t.Helper()
	s.attempts(1)
	before := time.Now()
	s.attempts(1)
	if took := time.Since(before); took < d-200*time.Millisecond {
		s.t.Errorf("the next attempt came after %s, want at least %s", took, d)
	}
}

// back ends a fault and waits until the agent has sent what waited: it finds
// out by itself.
func (s *scene) back(end func()) {
	s.t.Helper()
	end()
	s.catchUp(time.Now())
}

// catchUp waits until the receiver has what was sampled up to a moment.
func (s *scene) catchUp(to time.Time) {
	s.t.Helper()
	until(s.t, 60*time.Second, "the receiver has what waited", func() bool {
		list := profiles(s.t, s.r)
		return len(list) > 0 && list[len(list)-1].Start.After(to)
	})
}

// TestSlowBackend: what a backend that takes longer than a window has not got
// when the agent ends is sent by the next one, and nothing comes twice.
func TestSlowBackend(t *testing.T) {
	require(t)
	t.Parallel()
	for _, protocol := range []string{"grpc", "http"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			r := otlptest.Start(t, otlptest.Options{Mode: otlptest.Slow, Delay: 3 * time.Second})
			a := start(t, command{endpoint: r.Endpoint(), args: []string{"--otlp.protocol", protocol}})
			s := &scene{t, r, a, protocol}
			s.attempts(3)
			first := a.stop()
			if first.OTLP.Waiting == 0 || first.OTLP.Delivered == 0 || first.Undelivered() > 0 {
				t.Errorf("slow, and %+v", first)
			}
			r.Fail(otlptest.Accept)
			s.a = start(t, command{endpoint: r.Endpoint(), spool: a.spool, args: []string{"--otlp.protocol", protocol}})
			s.catchUp(s.a.began)
			second := s.a.stop()
			if second.OTLP.Waiting > 0 || second.Undelivered() > 0 {
				t.Errorf("no longer slow, and %+v", second)
			}
			account(t, r, first, second)
		})
	}
}

// TestTerminatedWhileSending: the agent ends within its time while a request
// hangs. All is in the spool, and the next run delivers it once.
func TestTerminatedWhileSending(t *testing.T) {
	require(t)
	t.Parallel()
	for _, protocol := range []string{"grpc", "http"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			r := otlptest.Start(t, otlptest.Options{Mode: otlptest.Stall})
			a := start(t, command{endpoint: r.Endpoint(), args: []string{"--otlp.protocol", protocol, "--otlp.timeout", "60s"}})
			s := &scene{t, r, a, protocol}
			s.attempts(1)
			until(t, time.Minute, "three windows", func() bool { return spooled(t, filepath.Join(a.spool, "otlp")).files >= 3 })
			asked := time.Now()
			first := a.stop()
			if took := time.Since(asked); took > 25*time.Second {
				t.Errorf("it took %s to end", took)
			}
			if got := spooled(t, filepath.Join(a.spool, "otlp")).samples; got != first.Taken || first.OTLP.Waiting != got || r.Samples() > 0 {
				t.Errorf("%d samples in the spool, %d received: %+v", got, r.Samples(), first)
			}
			r.Fail(otlptest.Accept)
			s.a = start(t, command{endpoint: r.Endpoint(), spool: a.spool, args: []string{"--otlp.protocol", protocol}})
			s.catchUp(s.a.began)
			second := s.a.stop()
			if second.OTLP.Waiting > 0 || second.Undelivered() > 0 {
				t.Errorf("%+v", second)
			}
			account(t, r, first, second)
		})
	}
}

// TestNameNotKnown: the name server does not answer, and then the endpoint's
// name is known. The agent has hosts and a name server of its own.
func TestNameNotKnown(t *testing.T) {
	require(t)
	requireTools(t, "unshare", "mount")
	t.Parallel()
	for _, protocol := range []string{"grpc", "http"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			r := otlptest.Start(t, otlptest.Options{})
			dir := t.TempDir()
			hosts, resolver := filepath.Join(dir, "hosts"), filepath.Join(dir, "resolv.conf")
			write(t, hosts, "127.0.0.1 localhost\n")
			write(t, resolver, "nameserver 127.0.0.1\noptions attempts:1 timeout:1\n")
			_, port, _ := strings.Cut(r.Endpoint(), ":")
			script := fmt.Sprintf("mount --bind %s /etc/hosts && mount --bind %s /etc/resolv.conf && exec \"$@\"", hosts, resolver)
			a := start(t, command{
				endpoint: "backend.test:" + port, under: []string{"unshare", "--mount", "sh", "-c", script, "sh"},
				args: []string{"--otlp.protocol", protocol, "--otlp.insecure"},
			})
			s := &scene{t, r, a, protocol}
			s.says("the name server does not answer")
			time.Sleep(outage)
			write(t, hosts, "127.0.0.1 localhost backend.test\n")
			s.back(func() {})
			n := a.stop()
			if n.Undelivered() > 0 || n.OTLP.Waiting > 0 || n.OTLP.Retries == 0 {
				t.Errorf("%+v", n)
			}
			account(t, r, n)
		})
	}
}

// TestKilled: of an agent that is killed, no more is lost than what was not
// stored yet: the open window. The next run delivers the rest.
func TestKilled(t *testing.T) {
	require(t)
	t.Parallel()
	r := otlptest.Start(t, otlptest.Options{Away: true})
	path := compile(t, "chain.c", "killed-chain")
	a := start(t, command{endpoint: r.Endpoint(), args: []string{"--frequency", "199"}})
	w := spin(t, path, "-seconds", "600")
	folder := filepath.Join(a.spool, "otlp")
	until(t, time.Minute, "four windows", func() bool { return spooled(t, folder).files >= 4 })
	before := spooled(t, folder).files
	until(t, time.Minute, "one more", func() bool { return spooled(t, folder).files > before })
	time.Sleep(400 * time.Millisecond) // the middle of a window
	killed := time.Now()
	used := cpuTime(t, w.pid)
	a.kill()
	left := spooled(t, folder)
	r.Listen()
	b := start(t, command{endpoint: r.Endpoint(), spool: a.spool, args: []string{"--frequency", "199"}})
	(&scene{t, r, b, "grpc"}).catchUp(b.began)
	n := b.stop()
	n.Check(t)
	received(t, r, n.OTLP.Delivered, 0)
	if n.OTLP.Recovered != left.samples || n.Undelivered() > 0 || n.OTLP.Waiting > 0 {
		t.Errorf("%d samples were in the spool; %+v", left.samples, n)
	}
	list := profiles(t, r)
	u := usageOf(list, "killed-chain", time.Time{}, killed)
	var end time.Time
	for _, p := range list {
		if e := p.Start.Add(p.Duration); e.Before(killed) && e.After(end) {
			end = e
		}
	}
	t.Logf("the workload had used %s when the agent was killed, %s of it are in profiles, the last of which ended %s before",
		used.Round(time.Millisecond), u.cpu.Round(time.Millisecond), killed.Sub(end).Round(time.Millisecond))
	if gap := killed.Sub(end); gap > 1500*time.Millisecond {
		t.Errorf("the last profile ended %s before the agent did, want at most a window of 1 s that was open", gap)
	}
	if lost := used - u.cpu; lost > time.Second+used/10 {
		t.Errorf("%s of CPU time are lost, want at most those of a window of 1 s", lost)
	}
}

// spool files, as they are counted from outside.
type files struct {
	files   int
	names   []string
	samples uint64
}

// spooled reads the headers of the spool files in a folder.
func spooled(t *testing.T, dir string) files {
	t.Helper()
	var out files
	names, err := filepath.Glob(filepath.Join(dir, "*.spool"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		n, ok := samplesIn(t, name)
		if !ok {
			continue
		}
		out.files++
		out.names = append(out.names, name)
		out.samples += n
	}
	slices.Sort(out.names)
	return out
}

func write(t *testing.T, name, text string) {
	t.Helper()
	// In place: a bind mount shows the file that it was made for.
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
