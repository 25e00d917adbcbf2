package backends

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kalypso-dev/kalypso/deploy/bucket"
	"github.com/kalypso-dev/kalypso/deploy/check"
	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/verify"
)

// The keys that the Secret kalypso-s3 would have.
const accessKey, secretKey = "kalypso", "of-the-test-and-nobody-else"

// Forward gives the address of a Service of the test.
func (n network) Forward(_ context.Context, namespace, service string, port int) (string, func(), error) {
	addr, err := n.address(namespace, service, port)
	return addr, func() {}, err
}

// prove runs one proof of deploy/verify.
func prove(t *testing.T, c verify.Config, id string) check.Outcome {
	t.Helper()
	selected, unknown := check.Select(verify.Proofs(c), []string{id})
	if unknown != "" {
		t.Fatalf("there is no proof %q", unknown)
	}
	began := time.Now()
	outcome := selected[0].Run(t.Context())
	t.Logf("%s: %s in %.1f s: %s", id, outcome.State, time.Since(began).Seconds(), outcome.Detail)
	return outcome
}

func passes(t *testing.T, got check.Outcome) {
	t.Helper()
	if got.State != check.Passed {
		t.Errorf("%s: %s\nfix: %s", got.State, got.Detail, got.Fix)
	}
}

func fails(t *testing.T, got check.Outcome, with, fix string) {
	t.Helper()
	if got.State != check.Failed || !strings.Contains(got.Detail, with) || !strings.Contains(got.Fix, fix) {
		t.Errorf("%s: %s\nfix: %s\nwant a failure with %q and a fix with %q", got.State, got.Detail, got.Fix, with, fix)
	}
}

// objectStore is a server that speaks S3, with the bucket made as the stack's
// own Job makes it. It gives the folder that the bucket is.
func (n network) objectStore(t *testing.T, name string) (folder string) {
	t.Helper()
	bin, dir := program(t, "versitygw"), t.TempDir()
	port := ports(t, 1)[0]
	data, beside := filepath.Join(dir, "data"), filepath.Join(dir, "beside")
	for _, d := range []string{data, beside} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run(t, dir, []string{"ROOT_ACCESS_KEY=" + accessKey, "ROOT_SECRET_KEY=" + secretKey}, bin, "--port", loopback(port), "--quiet", "posix", "--sidecar", beside, data)
	store, err := bucket.Open(bucket.Config{Endpoint: "http://" + loopback(port), AccessKey: accessKey, SecretKey: secretKey})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), readyLimit)
	defer cancel()
	if _, err := store.Ensure(ctx, name, func(reason error) { t.Log(reason) }); err != nil {
		t.Fatal(err)
	}
	n["kalypso-minio.minio:9000"] = loopback(port)
	return filepath.Join(data, name)
}

// pyroscope is the server that PYROSCOPE_BIN names, with the configuration of the
// chart. Only where it listens is the test's.
func (n network) pyroscope(t *testing.T, configuration, secret string) {
	t.Helper()
	dir, p := t.TempDir(), ports(t, 4)
	file := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(file, []byte(n.local(t, configuration)), 0o600); err != nil {
		t.Fatal(err)
	}
	s := run(t, dir, []string{"AWS_ACCESS_KEY_ID=" + accessKey, "AWS_SECRET_ACCESS_KEY=" + secret}, os.Getenv("PYROSCOPE_BIN"),
		"-target=all", "-architecture.storage=v2", "-config.file="+file, "-config.expand-env=true",
		"-self-profiling.disable-push=true", "-tracing.enabled=false",
		"-server.http-listen-address=127.0.0.1", fmt.Sprintf("-server.http-listen-port=%d", p[0]),
		"-server.grpc-listen-address=127.0.0.1", fmt.Sprintf("-server.grpc-listen-port=%d", p[1]),
		"-memberlist.bind-addr=127.0.0.1", fmt.Sprintf("-memberlist.bind-port=%d", p[2]), "-memberlist.advertise-addr=127.0.0.1",
		"-metastore.address="+loopback(p[1]), "-query-backend.address="+loopback(p[1]),
		"-metastore.raft.bind-address="+loopback(p[3]), "-metastore.raft.advertise-address="+loopback(p[3]), "-metastore.raft.server-id="+loopback(p[3]),
		"-metastore.data-dir="+dir+"/metastore/data", "-metastore.raft.dir="+dir+"/metastore/raft", "-metastore.raft.snapshots-dir="+dir+"/metastore/raft",
		"-metastore.min-ready-duration=1s", "-segment-writer.min-ready-duration=1s",
		"-segment-writer.lifecycler.addr=127.0.0.1", "-distributor.ring.instance-addr=127.0.0.1",
		"-query-frontend.instance-addr=127.0.0.1", "-overrides-exporter.ring.instance-addr=127.0.0.1",
	)
	s.ready("http://" + loopback(p[0]) + "/ready")
	n["pyroscope.pyroscope:4040"] = loopback(p[0])
}

// Profiles go into the bucket that the chart names, with the keys of the Secret.
func TestProfiles(t *testing.T) {
	if os.Getenv("PYROSCOPE_BIN") == "" {
		t.Skip("PYROSCOPE_BIN does not name the program of a Pyroscope server")
	}
	config := configuration(t, "pyroscope", "pyroscope-config", "config.yaml")
	start := func(t *testing.T, configuration, secret string) (verify.Config, string) {
		n := network{}
		folder := n.objectStore(t, "pyroscope-data")
		n.pyroscope(t, configuration, secret)
		return verify.Config{Components: []component.Component{catalogued(t, "pyroscope")}, Forwarder: n}, folder
	}
	t.Run("as the chart has it", func(t *testing.T) {
		c, folder := start(t, config, secretKey)
		passes(t, prove(t, c, "profiles"))
		if entries, err := os.ReadDir(folder); err != nil || len(entries) == 0 {
			t.Errorf("nothing is in the bucket: %v", err)
		}
		passes(t, prove(t, c, "profiles")) // another id
	})
	t.Run("a bucket that is not there is found out", func(t *testing.T) {
		other := strings.Replace(config, "pyroscope-data", "pyroscope-dato", 1)
		if other == config {
			t.Fatal("the chart names another bucket")
		}
		c, _ := start(t, other, secretKey)
		c.Patience = 5 * time.Second
		fails(t, prove(t, c, "profiles"), "pyroscope.pyroscope:4040 does not take it", "object store")
	})
	t.Run("a wrong key is found out", func(t *testing.T) {
		c, _ := start(t, config, "another")
		c.Patience = 5 * time.Second
		fails(t, prove(t, c, "profiles"), "pyroscope.pyroscope:4040 does not take it", "object store")
	})
}

// mimir is Prometheus with the paths of Mimir's gateway before its own.
func (n network) mimir(t *testing.T) (query string) {
	t.Helper()
	dir, addr := t.TempDir(), loopback(ports(t, 1)[0])
	file := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(file, []byte("global: {scrape_interval: 1h}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := run(t, dir, nil, program(t, "prometheus"), "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+addr, "--web.enable-otlp-receiver")
	s.ready("http://" + addr + "/-/ready")
	at := func(path string) http.Handler {
		return httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr, Path: path})
	}
	mux := http.NewServeMux()
	mux.Handle("/otlp/", http.StripPrefix("/otlp", at("/api/v1/otlp")))
	mux.Handle("/prometheus/", http.StripPrefix("/prometheus", at("/")))
	n["mimir-gateway.mimir:80"] = serve(t, mux)
	return "http://" + addr + "/api/v1/query?query=kalypso_probe"
}

// The series is there, and is ended unless it is to be kept.
func TestMetrics(t *testing.T) {
	n := network{}
	query := n.mimir(t)
	c := verify.Config{Components: []component.Component{catalogued(t, "mimir")}, Forwarder: n}
	passes(t, prove(t, c, "metrics"))
	if answer := ask(t, query); !strings.Contains(answer, `"result":[]`) {
		t.Errorf("the series lives on: %s", answer)
	}
	c.Keep = true
	var kept string
	c.Kept = func(_, id string) { kept = id }
	passes(t, prove(t, c, "metrics"))
	if answer := ask(t, query); kept == "" || !strings.Contains(answer, kept) {
		t.Errorf("the series %q is not kept: %s", kept, answer)
	}
}
