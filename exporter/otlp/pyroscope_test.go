package otlp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	pprof "github.com/google/pprof/profile"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kalypso-dev/kalypso/exporter"
	"github.com/kalypso-dev/kalypso/exporter/transport"
	"github.com/kalypso-dev/kalypso/profiler"
)

// The tests here push to a real Pyroscope server and ask it what it has. They
// run where PYROSCOPE_BIN names its program. HTTP 200 proves nothing with this
// server: what it does not understand, it drops without a word.

// cpuProfile is how Pyroscope names profiles of CPU time.
const cpuProfile = "process_cpu:cpu:nanoseconds:cpu:nanoseconds"

// pyroscope is a running server.
type pyroscope struct {
	t    *testing.T
	addr string
}

// startPyroscope starts a server on the loopback interface, with its data in a
// folder of the test's own and without its reports to its makers.
func startPyroscope(t *testing.T) *pyroscope {
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
	)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, logFile, logFile
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	p := &pyroscope{t, at(0)}
	p.poll("the server to be ready", func() bool {
		response, err := http.Get("http://" + p.addr + "/ready")
		if err != nil {
			return false
		}
		response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return p
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

func (p *pyroscope) poll(what string, done func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(90 * time.Second); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if done() {
			return
		}
	}
	p.t.Fatalf("waited 90 s for %s", what)
}

// ask calls a method of the server's query API.
func (p *pyroscope) ask(method, contentType string, body []byte) []byte {
	p.t.Helper()
	request, err := http.NewRequest(http.MethodPost, "http://"+p.addr+"/querier.v1.QuerierService/"+method, bytes.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	request.Header.Set("Content-Type", contentType)
	request.Header.Set("Accept", "*/*; allow-utf8-labelnames=true")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		p.t.Fatal(err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		p.t.Fatalf("%s: HTTP %d, %v: %s", method, response.StatusCode, err, answer)
	}
	return answer
}

// profile is what the server has of the last hour that a selector finds.
func (p *pyroscope) profile(selector string) *pprof.Profile {
	p.t.Helper()
	// SelectMergeProfileRequest: type, selector, start and end in milliseconds.
	request := protowire.AppendTag(nil, 1, protowire.BytesType)
	request = protowire.AppendString(request, cpuProfile)
	request = protowire.AppendTag(request, 2, protowire.BytesType)
	request = protowire.AppendString(request, selector)
	request = protowire.AppendTag(request, 3, protowire.VarintType)
	request = protowire.AppendVarint(request, uint64(time.Now().Add(-time.Hour).UnixMilli()))
	request = protowire.AppendTag(request, 4, protowire.VarintType)
	request = protowire.AppendVarint(request, uint64(time.Now().Add(time.Minute).UnixMilli()))
	out, err := pprof.ParseUncompressed(p.ask("SelectMergeProfile", "application/proto", request))
	if err != nil {
		p.t.Fatalf("parse the profile of %s: %v", selector, err)
	}
	return out
}

// labels are those of every series of the last hour.
func (p *pyroscope) labels() []map[string]string {
	p.t.Helper()
	request := fmt.Sprintf(`{"start":%d,"end":%d}`, time.Now().Add(-time.Hour).UnixMilli(), time.Now().Add(time.Minute).UnixMilli())
	var answer struct {
		LabelsSet []struct {
			Labels []struct{ Name, Value string }
		}
	}
	if err := json.Unmarshal(p.ask("Series", "application/json", []byte(request)), &answer); err != nil {
		p.t.Fatal(err)
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

// stacks gives a profile's nanoseconds by stack, as collapse writes it.
func stacks(p *pprof.Profile) map[string]int64 {
	out := map[string]int64{}
	for _, s := range p.Sample {
		var calls []call
		for _, l := range s.Location {
			for _, line := range l.Line {
				calls = append(calls, call{line.Function.Name, line.Function.Filename, line.Line})
			}
		}
		slices.Reverse(calls)
		out[collapse(calls)] += s.Value[0]
	}
	return out
}

func total(p *pprof.Profile) int64 {
	var n int64
	for _, s := range p.Sample {
		n += s.Value[0]
	}
	return n
}

func TestRealPyroscope(t *testing.T) {
	if testing.Short() {
		t.Skip("starting a server takes half a minute")
	}
	server := startPyroscope(t)
	eachProtocol(t, func(t *testing.T, p Protocol) {
		name := map[Protocol]string{GRPC: "grpc", HTTP: "http"}[p]
		c := transport.Config{Endpoint: server.addr, Insecure: true}
		t.Run("names, lines, inlined calls, values and labels arrive", func(t *testing.T) {
			realShop(t, server, sender(t, p, c), name)
		})
		t.Run("a window is charged what we reckon", func(t *testing.T) {
			realCharge(t, server, sender(t, p, c))
		})
		t.Run("the parts of a profile add up", func(t *testing.T) {
			realParts(t, server, sender(t, p, c), name)
		})
		t.Run("what is too old is refused for good", func(t *testing.T) {
			requests := encode(t, EncoderConfig{}, shop(time.Now().Add(-2*time.Hour)))
			_, err := sender(t, p, c).Send(t.Context(), requests[0])
			if !exporter.Refused(err) || !strings.Contains(err.Error(), "ingestion window") {
				t.Errorf("got %v, want a refusal that names the ingestion window", err)
			}
		})
		t.Run("what is above the rate is for later", func(t *testing.T) {
			s := sender(t, p, c)
			requests := encode(t, EncoderConfig{PushBytes: 8 << 20}, window(1, 15000, 100, 15000, time.Now().Add(-15*time.Second)))
			_, err := s.Send(t.Context(), requests[0])
			if !strings.HasPrefix(outcome(err), "busy") {
				t.Errorf("a profile above the burst: %s, want busy: %v", outcome(err), err)
			}
		})
	})
}

func encode(t *testing.T, c EncoderConfig, profiles []*profiler.Profile) []*exporter.Request {
	t.Helper()
	requests, dropped, err := NewEncoder(c).Encode(profiles)
	if err != nil || dropped != 0 || len(requests) == 0 {
		t.Fatalf("encode: %d requests, %d dropped, %v", len(requests), dropped, err)
	}
	return requests
}

// realShop pushes shop under names of the protocol's own and asks for it.
func realShop(t *testing.T, server *pyroscope, s exporter.Sender, name string) {
	profiles := shop(time.Now().Add(-15 * time.Second))
	for _, p := range profiles {
		a := p.Workload.Attributes
		i := slices.IndexFunc(a, func(a profiler.Attribute) bool { return a.Key == "service.name" })
		a[i].Value += "-" + name
	}
	for _, r := range encode(t, EncoderConfig{}, profiles) {
		if _, err := s.Send(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	for service, want := range shopStacks() {
		selector := fmt.Sprintf(`{service_name="%s-%s"}`, service, name)
		if diff := cmp.Diff(stacks(server.profile(selector)), want); diff != "" {
			t.Errorf("%s: stacks (-got +want):\n%s", selector, diff)
		}
		labels := shopLabels()[service]
		labels["service.name"] += "-" + name
		labels["service_name"] = labels["service.name"]
		var got map[string]string
		for _, series := range server.labels() {
			if series["service_name"] == labels["service_name"] && got == nil {
				got = series
			} else if series["service_name"] == labels["service_name"] {
				t.Errorf("%s has more than one series", selector)
			}
		}
		for key := range got {
			if strings.HasPrefix(key, "__") {
				delete(got, key)
			}
		}
		if diff := cmp.Diff(got, labels); diff != "" {
			t.Errorf("%s: labels (-got +want):\n%s", selector, diff)
		}
		if len(labels) > 30 {
			t.Errorf("%s: %d labels", selector, len(labels))
		}
	}
	// People look by the short names, in every combination.
	if got := total(server.profile(fmt.Sprintf(`{namespace="shop",pod="checkout-7d9f",container="server",node="node-1",service_namespace="shop",service_name="checkout-%s"}`, name))); got != int64(time.Second) {
		t.Errorf("by short names: %d ns, want 1 s", got)
	}
}

// realCharge compares what the server charges with what we reckoned.
func realCharge(t *testing.T, server *pyroscope, s exporter.Sender) {
	const charged = "pyroscope_distributor_received_decompressed_bytes_sum"
	for _, profiles := range [][]*profiler.Profile{
		window(20, 2800, 26, 10000, time.Now().Add(-15*time.Second)),
		window(3, 1500, 60, 4000, time.Now().Add(-15*time.Second)),
		window(1, 4500, 30, 4500, time.Now().Add(-15*time.Second)),
	} {
		p := plan{config: &EncoderConfig{PushBytes: 2 << 20}, table: newTable()}
		for _, profile := range profiles {
			p.profile(profile)
		}
		before := server.metric(charged)
		for _, r := range encode(t, EncoderConfig{PushBytes: 2 << 20}, profiles) {
			server.send(t, s, r)
		}
		got := int(server.metric(charged) - before)
		t.Logf("charged %d, reckoned %d", got, p.charge)
		if len(p.batches) != 1 || p.charge < got || p.charge > got*13/10 {
			t.Errorf("charged %d, reckoned %d in %d requests: want at least as much, and at most 1.3 times that", got, p.charge, len(p.batches))
		}
	}
}

// send waits for the rate limit to let a request pass.
func (p *pyroscope) send(t *testing.T, s exporter.Sender, r *exporter.Request) {
	t.Helper()
	p.poll("a request to be taken", func() bool {
		_, err := s.Send(t.Context(), r)
		if err != nil && !strings.HasPrefix(outcome(err), "busy") {
			t.Fatal(err)
		}
		return err == nil
	})
}

func (p *pyroscope) metric(name string) (sum float64) {
	p.t.Helper()
	response, err := http.Get("http://" + p.addr + "/metrics")
	if err != nil {
		p.t.Fatal(err)
	}
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(page)) {
		if rest, ok := strings.CutPrefix(line, name+"{"); ok {
			var v float64
			if _, err := fmt.Sscan(rest[strings.LastIndex(rest, " ")+1:], &v); err != nil {
				p.t.Fatalf("read %q: %v", line, err)
			}
			sum += v
		}
	}
	return sum
}

// realParts sends one profile in parts: within one request, as where it has
// too many samples, and in several.
func realParts(t *testing.T, server *pyroscope, s exporter.Sender, name string) {
	profiles := window(1, 900, 26, 3000, time.Now().Add(-15*time.Second))
	attributes := profiles[0].Workload.Attributes
	i := slices.IndexFunc(attributes, func(a profiler.Attribute) bool { return a.Key == "service.name" })
	attributes[i].Value = "parts-" + name
	requests := encode(t, EncoderConfig{PushBytes: 80 << 10}, profiles)
	if len(requests) < 3 {
		t.Fatalf("%d requests, want 3 at least", len(requests))
	}
	var samples uint64
	for _, r := range requests {
		samples += r.Samples
		server.send(t, s, r)
	}
	if samples != 3000 {
		t.Errorf("%d samples in %d requests, want 3000", samples, len(requests))
	}
	want := 3000 * profiles[0].Period().Nanoseconds()
	if got := total(server.profile(fmt.Sprintf(`{service_name="parts-%s"}`, name))); got != want {
		t.Errorf("the parts add up to %d ns, want %d", got, want)
	}
}
