// Package pyroscopetest runs a real Pyroscope server for tests and asks it what
// it has: with this server HTTP 200 proves nothing, since what it does not
// understand it drops without a word. The program is the one that PYROSCOPE_BIN
// names; tests are skipped where it names none. PYROSCOPE_FLAGS may have more flags,
// such as those for the storage of Pyroscope 1 (-architecture.storage=v1
// -write-path=ingester).
package pyroscopetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pprof "github.com/google/pprof/profile"
	"google.golang.org/protobuf/encoding/protowire"
)

// CPUProfile is how Pyroscope names profiles of CPU time.
const CPUProfile = "process_cpu:cpu:nanoseconds:cpu:nanoseconds"

// Server is a running server.
type Server struct {
	t    *testing.T
	addr string
}

// Start starts a server on the loopback interface, with its data in a
// folder of the test's own and without its reports to its makers.
func Start(t *testing.T) *Server {
	t.Helper()
	bin := os.Getenv("PYROSCOPE_BIN")
	if bin == "" {
		t.Skip("PYROSCOPE_BIN does not name the program of a Pyroscope server")
	}
	dir := t.TempDir()
	ports := freePorts(t, 4)
	at := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", ports[i]) }
	logFile, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { logFile.Close() })
	cmd := exec.Command(bin, "-target=all", "-architecture.storage=v2",
		"-usage-stats.enabled=false", "-self-profiling.disable-push=true", "-tracing.enabled=false",
		"-server.http-listen-address=127.0.0.1", fmt.Sprintf("-server.http-listen-port=%d", ports[0]),
		"-server.grpc-listen-address=127.0.0.1", fmt.Sprintf("-server.grpc-listen-port=%d", ports[1]),
		"-memberlist.bind-addr=127.0.0.1", fmt.Sprintf("-memberlist.bind-port=%d", ports[2]), "-memberlist.advertise-addr=127.0.0.1",
		"-metastore.address="+at(1), "-query-backend.address="+at(1),
		"-metastore.raft.bind-address="+at(3), "-metastore.raft.advertise-address="+at(3), "-metastore.raft.server-id="+at(3),
		"-metastore.data-dir="+dir+"/metastore/data", "-metastore.raft.dir="+dir+"/metastore/raft", "-metastore.raft.snapshots-dir="+dir+"/metastore/raft",
		"-metastore.min-ready-duration=1s", "-segment-writer.min-ready-duration=1s",
		"-storage.backend=filesystem", "-storage.filesystem.dir="+dir+"/shared",
		"-segment-writer.lifecycler.addr=127.0.0.1", "-distributor.ring.instance-addr=127.0.0.1",
		"-query-frontend.instance-addr=127.0.0.1", "-overrides-exporter.ring.instance-addr=127.0.0.1",
		// Those of Pyroscope 1.
		"-ingester.min-ready-duration=1s", "-ingester.lifecycler.addr=127.0.0.1", "-query-scheduler.ring.instance-addr=127.0.0.1",
		"-store-gateway.sharding-ring.instance-addr=127.0.0.1", "-compactor.ring.instance-addr=127.0.0.1",
	)
	cmd.Args = append(cmd.Args, strings.Fields(os.Getenv("PYROSCOPE_FLAGS"))...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, logFile, logFile
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	s := &Server{t, at(0)}
	s.Poll("the server to be ready", func() bool {
		response, err := http.Get("http://" + s.addr + "/ready")
		if err != nil {
			return false
		}
		response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return s
}

func freePorts(t *testing.T, n int) []int {
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

// Endpoint is HOST:PORT of the server, for gRPC and HTTP.
func (s *Server) Endpoint() string { return s.addr }

// Storage1 says whether the server stores as Pyroscope 1 does.
func (s *Server) Storage1() bool {
	return strings.Contains(os.Getenv("PYROSCOPE_FLAGS"), "-architecture.storage=v1")
}

// Poll waits until something is done, and fails the test if it never is.
func (s *Server) Poll(what string, done func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(90 * time.Second); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if done() {
			return
		}
	}
	s.t.Fatalf("waited 90 s for %s", what)
}

// ask calls a method of the server's query API.
func (s *Server) ask(method, contentType string, body []byte) []byte {
	s.t.Helper()
	request, err := http.NewRequest(http.MethodPost, "http://"+s.addr+"/querier.v1.QuerierService/"+method, bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	request.Header.Set("Content-Type", contentType)
	request.Header.Set("Accept", "*/*; allow-utf8-labelnames=true")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		s.t.Fatalf("%s: HTTP %d, %v: %s", method, response.StatusCode, err, answer)
	}
	return answer
}

// Profile is what the server has of the last hour that a selector finds.
func (s *Server) Profile(selector string) *pprof.Profile {
	s.t.Helper()
	// SelectMergeProfileRequest: type, selector, start and end in milliseconds.
	request := protowire.AppendTag(nil, 1, protowire.BytesType)
	request = protowire.AppendString(request, CPUProfile)
	request = protowire.AppendTag(request, 2, protowire.BytesType)
	request = protowire.AppendString(request, selector)
	request = protowire.AppendTag(request, 3, protowire.VarintType)
	request = protowire.AppendVarint(request, uint64(time.Now().Add(-time.Hour).UnixMilli()))
	request = protowire.AppendTag(request, 4, protowire.VarintType)
	request = protowire.AppendVarint(request, uint64(time.Now().Add(time.Minute).UnixMilli()))
	out, err := pprof.ParseUncompressed(s.ask("SelectMergeProfile", "application/proto", request))
	if err != nil {
		s.t.Fatalf("parse the profile of %s: %v", selector, err)
	}
	return out
}

// Names are the frames of the flame graph that the server draws of a selector.
func (s *Server) Names(selector string) []string {
	s.t.Helper()
	query := url.Values{"query": {CPUProfile + selector}, "from": {"now-1h"}, "until": {"now"}, "format": {"json"}}
	response, err := http.Get("http://" + s.addr + "/pyroscope/render?" + query.Encode())
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	var answer struct{ Flamebearer struct{ Names []string } }
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		s.t.Fatalf("render %s: %v", selector, err)
	}
	return answer.Flamebearer.Names
}

// Labels are those of every series of the last hour.
func (s *Server) Labels() []map[string]string {
	s.t.Helper()
	request := fmt.Sprintf(`{"start":%d,"end":%d}`, time.Now().Add(-time.Hour).UnixMilli(), time.Now().Add(time.Minute).UnixMilli())
	var answer struct {
		LabelsSet []struct {
			Labels []struct{ Name, Value string }
		}
	}
	if err := json.Unmarshal(s.ask("Series", "application/json", []byte(request)), &answer); err != nil {
		s.t.Fatal(err)
	}
	var out []map[string]string
	for _, set := range answer.LabelsSet {
		one := map[string]string{}
		for _, l := range set.Labels {
			one[l.Name] = l.Value
		}
		out = append(out, one)
	}
	return out
}

// Metric sums up a metric of the server's own over its labels.
func (s *Server) Metric(name string) (sum float64) {
	s.t.Helper()
	response, err := http.Get("http://" + s.addr + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(page)) {
		if rest, ok := strings.CutPrefix(line, name+"{"); ok {
			var v float64
			if _, err := fmt.Sscan(rest[strings.LastIndex(rest, " ")+1:], &v); err != nil {
				s.t.Fatalf("read %q: %v", line, err)
			}
			sum += v
		}
	}
	return sum
}
