// Package backends holds tests against real servers: the proofs of deploy/verify
// have to pass there, and to fail where something is wrong.
//
// Servers are processes of this machine that listen on its loopback interface
// only. Two are built from the module in servers: an object store that checks
// signatures, and Prometheus, which takes OTLP and answers queries as Mimir does.
// A server that is not built here is named by the environment (PYROSCOPE_BIN).
//
// What a server is told comes from the object that our chart renders, with the
// addresses of the cluster replaced by those of the test: a wrong endpoint,
// bucket or key in a chart fails here.
package backends

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// program is one that was built from the module in servers.
func program(t *testing.T, name string) string {
	t.Helper()
	if os.Getenv("KALYPSO_TEST_BACKENDS") == "" {
		t.Skip("KALYPSO_TEST_BACKENDS is not set: make test-backends sets it")
	}
	path, err := filepath.Abs(filepath.Join("..", "..", "bin", "backends", name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: make test-backends builds it", err)
	}
	return path
}

// server is a process that runs until the test ends.
type server struct {
	t    *testing.T
	name string
	dir  string // its working directory
	log  string // what it says
}

// run starts a program. Its folder is made by the caller, who may have put files
// there.
func run(t *testing.T, dir string, env []string, path string, args ...string) *server {
	t.Helper()
	s := &server{t: t, name: filepath.Base(path), dir: dir}
	s.log = filepath.Join(dir, s.name+".log")
	out, err := os.Create(s.log)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, out
	cmd.Env = append(os.Environ(), env...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = out.Close()
		if t.Failed() {
			s.tell()
		}
	})
	return s
}

// tell prints the end of what the server said.
func (s *server) tell() {
	const last = 4000
	data, err := os.ReadFile(s.log)
	if err != nil {
		s.t.Log(err)
		return
	}
	s.t.Logf("%s said:\n%s", s.name, data[max(0, len(data)-last):])
}

// readyLimit is for servers that join rings of one before they are ready.
const readyLimit = 90 * time.Second

// ready waits until a path is answered with 200.
func (s *server) ready(url string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), readyLimit)
	defer cancel()
	for {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			s.t.Fatal(err)
		}
		if response, err := http.DefaultClient.Do(r); err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-ctx.Done():
			s.t.Fatalf("%s is not ready after %s", s.name, readyLimit)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// ports are numbers that nobody listens at.
func ports(t *testing.T, n int) []int {
	t.Helper()
	var out []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		out = append(out, l.Addr().(*net.TCPAddr).Port)
	}
	return out
}

// loopback is an address of this machine.
func loopback(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// serve gives the address of a handler that answers until the test ends.
func serve(t *testing.T, h http.Handler) string {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// ask gives the answer to a question.
func ask(t *testing.T, url string) string {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(answer)
}
