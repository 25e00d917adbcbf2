package pyroscope

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/deploy/agents"
	"github.com/kalypso-dev/kalypso/exporter/transport"
	"github.com/kalypso-dev/kalypso/profiler"
)

func TestSelector(t *testing.T) {
	for _, c := range []struct {
		name, target, owner, want string
	}{
		{"a cluster is what its nodes sent", "", "", `{node!=""}`},
		{"a namespace", "ns/shop", "", `{namespace="shop"}`},
		{"a node", "node/worker-1", "", `{node="worker-1"}`},
		{"a pod is one of its namespace", "pod/cart-0", "", `{namespace="shop",pod="cart-0"}`},
		{"names with dots are quoted", "deploy/cart", "k8s.deployment.name", `{namespace="shop","k8s.deployment.name"="cart"}`},
		{"names of the native push are not", "deploy/cart", "k8s_deployment_name", `{namespace="shop",k8s_deployment_name="cart"}`},
		{"a StatefulSet", "sts/cart", "k8s.statefulset.name", `{namespace="shop","k8s.statefulset.name"="cart"}`},
		{"a DaemonSet", "ds/cart", "k8s.daemonset.name", `{namespace="shop","k8s.daemonset.name"="cart"}`},
		{"a Job's pods are named for it", "job/send.mail", "", `{namespace="shop",pod=~"send\\.mail-([0-9]+-)?[a-z0-9]{5}"}`},
		{"a value cannot end the selector", `pod/a"}`, "", `{namespace="shop",pod="a\"}"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			target, err := agents.ParseTarget(c.target, "shop")
			if err != nil {
				t.Fatal(err)
			}
			got, err := selector(target, c.owner)
			if diff := cmp.Diff(got, c.want); err != nil || diff != "" {
				t.Errorf("%v (-got +want):\n%s", err, diff)
			}
		})
	}
	_, err := selector(agents.Target{Kind: agents.Process, Name: "worker-1", PID: 7}, "")
	var fault *profiler.Fault
	if !errors.As(err, &fault) || fault.Fix == "" {
		t.Errorf("a process: %v", err)
	}
}

func TestSpans(t *testing.T) {
	const step = time.Minute
	begin := time.Unix(1e9, 0)
	point := func(minute int) Point { return Point{begin.Add(time.Duration(minute) * time.Minute), time.Second} }
	got := Spans([]Series{{Points: []Point{point(9), point(1), point(2)}}, {Points: []Point{point(4), point(2)}}}, step)
	want := []Span{{begin, point(4).At}, {begin.Add(8 * time.Minute), point(9).At}}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	if got := Spans(nil, step); got != nil {
		t.Errorf("of nothing: %v", got)
	}
}

// TestRefusals: what a server answers becomes a sentence and a way out.
func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name, answer string
		status       int
		what, fix    string
	}{
		{"no tenant", `{"code":"unauthenticated","message":"no org id"}`, 401, "the store wants to know who asks", "--pyroscope-headers FILE"},
		{"too long", `{"code":"invalid_argument","message":"the query time range exceeds the limit (max_query_length, actual: 30h0m0s, limit: 1d)"}`, 400, "the store takes no range that long", "--from -24h"},
		{"not Pyroscope", "404 page not found", 404, "the store does not answer as Pyroscope does", "--pyroscope URL"},
		{"broken", `{"code":"unavailable","message":"no leader"}`, 503, "the store could not answer", "kalypsoctl logs pyroscope"},
		{"no words", "", 502, "the store could not answer", "try again"},
		{"not JSON", "<html>", 200, "the store does not answer as Pyroscope does", "--pyroscope URL"},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Accept") == "" || r.Method != http.MethodPost {
					t.Errorf("%s with %v", r.Method, r.Header)
				}
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.answer)
			}))
			defer server.Close()
			client, err := New(transport.Config{Endpoint: server.URL}, "the store")
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			_, err = client.Profile(t.Context(), Query{agents.Target{Kind: agents.Deployment, Name: "x", Namespace: "y"}, time.Now().Add(-time.Hour), time.Now()})
			var fault *profiler.Fault
			if !errors.As(err, &fault) || fault.What != c.what || !strings.Contains(fault.Fix, c.fix) || fault.Why == nil {
				t.Errorf("%v, fix %+v", err, fault)
			}
		})
	}
	client, err := New(transport.Config{Endpoint: "http://127.0.0.1:1"}, "the store")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_, err = client.Profile(t.Context(), Query{agents.Target{Kind: agents.Cluster}, time.Now().Add(-time.Hour), time.Now()})
	if err == nil || err.Error() != "the store does not answer: nothing listens there (connection refused)" {
		t.Errorf("nobody listens: %v", err)
	}
}

// TestOldServer: one that cannot read names with dots is asked for the others.
func TestOldServer(t *testing.T) {
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		if body, _ := io.ReadAll(r.Body); strings.Contains(string(body), `"k8s.`) {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"code":"invalid_argument","message":"1:18: parse error: unexpected character inside braces: '\"'"}`)
		}
	}))
	defer server.Close()
	client, err := New(transport.Config{Endpoint: server.URL}, "the store")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	p, err := client.Profile(t.Context(), Query{agents.Target{Kind: agents.Deployment, Name: "x", Namespace: "y"}, time.Now().Add(-time.Hour), time.Now()})
	if err != nil || len(p.Samples) != 0 || asked != 2 {
		t.Errorf("%v, asked %d times", err, asked)
	}
}
