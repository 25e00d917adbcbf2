package kubernetes

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/workload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	uidA = "5cd8b7a1-0c2d-4e5f-8a9b-1c2d3e4f5a6b"
	uidB = "6ce9b7a1-0c2d-4e5f-8a9b-1c2d3e4f5a6b"
)

// container is the ID of the nth container, and group its cgroup.
func container(n int) string         { return fmt.Sprintf("%064x", n) }
func group(uid string, n int) string { return "/kubepods/pod" + uid + "/" + container(n) }

// podJSON is a pod as the API has it, with what is not read around what is.
func podJSON(uid, name string, n int) string {
	return fmt.Sprintf(`{"metadata":{"uid":%q,"name":%q,"namespace":"shop","resourceVersion":"%d","creationTimestamp":"2026-11-26T14:17:02Z",
		"labels":{"app":"web"},"annotations":{"resource.opentelemetry.io/service.name":"shop-web","other":"x"},
		"ownerReferences":[{"kind":"Other","name":"o"},{"kind":"StatefulSet","name":"web","controller":true}]},
		"spec":{"containers":[{"name":"server","env":[{"name":"PASSWORD","value":"hunter2"}]}]},
		"status":{"phase":"Running","containerStatuses":[{"name":"server","image":"web:1","containerID":"containerd://%s",
			"state":{"running":{"startedAt":"2026-11-26T14:17:04Z"}},"lastState":{"terminated":{"exitCode":1,"containerID":"containerd://%s"}}}],
			"initContainerStatuses":[{"name":"init","image":"init:1","containerID":"cri-o://%s","state":{"terminated":{"containerID":"cri-o://%[6]s"}}}]}}`,
		uid, name, n, container(n), container(n-1), container(n+1000))
}

func TestReadList(t *testing.T) {
	text := `{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"42"},"items":[` + podJSON(uidA, "web-0", 10) + `,
		{"metadata":{"name":"kube-proxy","uid":"` + uidB + `","ownerReferences":[{"kind":"Node","name":"n1","controller":true}],
			"annotations":{"kubernetes.io/config.hash":"0123456789abcdef0123456789abcdef","kubernetes.io/config.mirror":"0123456789abcdef0123456789abcdef"}}},
		{"metadata":{"name":"usurper","uid":"` + uidB + `","annotations":{"kubernetes.io/config.hash":"` + uidA + `"}}},
		{"metadata":{"name":"copy","uid":"` + uidB + `","ownerReferences":[{"kind":"ReplicaSet","name":"r","controller":true}],
			"annotations":{"kubernetes.io/config.hash":"` + uidA + `","kubernetes.io/config.mirror":"` + uidA + `"}}}]}`
	pods, version, err := readList(strings.NewReader(text))
	if err != nil || version != "42" {
		t.Fatal(version, err)
	}
	want := []*workload.Pod{
		{
			UID: uidA, Namespace: "shop", Name: "web-0", Created: time.Date(2026, 11, 26, 14, 17, 2, 0, time.UTC),
			Owner: workload.Owner{Kind: "StatefulSet", Name: "web"}, Labels: map[string]string{"app": "web"},
			Annotations: map[string]string{"resource.opentelemetry.io/service.name": "shop-web"},
			Containers: []workload.PodContainer{
				{ID: container(10), Name: "server", Image: "web:1"}, {ID: container(9), Name: "server", Image: "web:1"},
				{ID: container(1010), Name: "init", Image: "init:1"},
			},
			Told: true,
		},
		// A static pod, by the UID that the kubelet has for it; others are what they are.
		{UID: "0123456789abcdef0123456789abcdef", Name: "kube-proxy", Owner: workload.Owner{Kind: "Node", Name: "n1"}},
		{UID: uidB, Name: "usurper"},
		{UID: uidB, Name: "copy", Owner: workload.Owner{Kind: "ReplicaSet", Name: "r"}},
	}
	if diff := cmp.Diff(pods, want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	for _, nothing := range []string{`{"items":null,"metadata":{}}`, `{"items":[]}`, `{}`} {
		if pods, _, err := readList(strings.NewReader(nothing)); err != nil || len(pods) != 0 {
			t.Errorf("%s: %v, %v", nothing, pods, err)
		}
	}
	for _, bad := range []string{"", "<html>", `{"items":[{]}`, `{"items":{}}`, `{"items":[{"metadata":3}]}`, `{"items":[` + podJSON(uidA, "web-0", 1), `[]`} {
		if _, _, err := readList(strings.NewReader(bad)); err == nil {
			t.Errorf("%q is a list of pods", bad)
		}
	}
}

func FuzzReadList(f *testing.F) {
	f.Add(`{"metadata":{"resourceVersion":"42"},"items":[` + podJSON(uidA, "web-0", 10) + `]}`)
	f.Fuzz(func(t *testing.T, text string) {
		pods, _, err := readList(strings.NewReader(text))
		for _, p := range pods {
			if p.UID == "" && err == nil {
				t.Errorf("a pod without UID of %q", text)
			}
		}
	})
}

// server is an API server, or a kubelet, as far as one is asked.
type server struct {
	*httptest.Server
	mu      sync.Mutex
	asked   []string // paths and queries
	tokens  []string
	status  int    // of answers; 0: 200
	list    string // pods of it, with commas
	version int
	events  chan string // of watches; a closed one ends the watch
}

func serve(t *testing.T) *server {
	s := &server{version: 42, events: make(chan string)}
	s.Server = httptest.NewTLSServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *server) set(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked = append(s.asked, r.URL.String())
	s.tokens = append(s.tokens, r.Header.Get("Authorization"))
	status, list, version, events := s.status, s.list, s.version, s.events
	s.mu.Unlock()
	if status != 0 {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, `{"kind":"Status","message":"pods is forbidden"}`)
		return
	}
	if r.URL.Query().Get("watch") == "" {
		_, _ = fmt.Fprintf(w, `{"metadata":{"resourceVersion":"%d"},"items":[%s]}`, version, list)
		return
	}
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	for {
		select {
		case e, open := <-events:
			if !open {
				return
			}
			_, _ = io.WriteString(w, e+"\n")
			w.(http.Flusher).Flush()
		case <-r.Context().Done():
			return
		}
	}
}

// account is a folder with the credentials of a service account for a server.
func account(t *testing.T, s *server) string {
	dir := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	for name, data := range map[string][]byte{"token": []byte("first\n"), "ca.crt": ca} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// run has a watcher ask until the test ends.
func run(t *testing.T, cfg Config) *workload.Pods {
	t.Helper()
	cfg.Node, cfg.Pods = "node-1", workload.NewPods()
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	w, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		w.client.CloseIdleConnections()
		w.kubelet.CloseIdleConnections()
	})
	return cfg.Pods
}

// name is that of the pod which a cgroup lies in; await waits until it is one.
func name(pods *workload.Pods, cgroup string) string {
	if c, ok := pods.Find(cgroup); ok {
		return c.Pod.Name + "/" + c.Name
	}
	return ""
}

func await(t *testing.T, what, want string, get func() string) {
	t.Helper()
	var got string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if got = get(); got == want {
			return
		}
	}
	t.Fatalf("%s: %q, want %q", what, got, want)
}

func TestWatch(t *testing.T) {
	s := serve(t)
	s.list = podJSON(uidA, "web-0", 10)
	pods := run(t, Config{Source: API, API: s.URL, Credentials: account(t, s)})
	await(t, "a pod of the list", "web-0/server", func() string { return name(pods, group(uidA, 10)) })

	s.events <- `{"type":"ADDED","object":` + podJSON(uidB, "web-1", 50) + `}`
	await(t, "a pod that is new", "web-1/server", func() string { return name(pods, group(uidB, 50)) })
	s.events <- `{"type":"MODIFIED","object":` + podJSON(uidA, "web-0", 11) + `}`
	await(t, "a container that was started again", "web-0/server", func() string { return name(pods, group(uidA, 11)) })
	s.events <- `{"type":"DELETED","object":` + podJSON(uidB, "web-1", 51) + `}`
	await(t, "pods", "1 1", func() string { there, gone := pods.Len(); return fmt.Sprint(there, " ", gone) })
	if got := name(pods, group(uidB, 51)); got != "web-1/server" {
		t.Errorf("the last container of a pod that is gone is %q", got)
	}

	s.events <- `{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"77"}}}`
	s.set(func() { events := s.events; s.events = make(chan string); close(events) })
	await(t, "the next watch begins at", "77", func() string {
		s.mu.Lock()
		defer s.mu.Unlock()
		_, after, _ := strings.Cut(s.asked[len(s.asked)-1], "resourceVersion=")
		version, _, _ := strings.Cut(after, "&")
		return version
	})
	for _, asked := range s.asked {
		if !strings.Contains(asked, "fieldSelector=spec.nodeName%3Dnode-1") {
			t.Errorf("more than this node's pods are asked for: %s", asked)
		}
	}

	// What the server has forgotten is asked for anew, from where it is certain.
	s.set(func() { s.list = podJSON(uidB, "web-2", 90) })
	s.events <- `{"type":"ERROR","object":{"code":410,"message":"too old resource version"}}`
	await(t, "a pod of the list after that", "web-2/server", func() string { return name(pods, group(uidB, 90)) })
	if there, gone := pods.Len(); there != 1 || gone != 1 {
		t.Errorf("%d pods are there and %d gone, want one each", there, gone)
	}
}

// While the server is away, what is known stays; the token is read again.
func TestServerAway(t *testing.T) {
	s := serve(t)
	s.list = podJSON(uidA, "web-0", 10)
	dir := account(t, s)
	pods := run(t, Config{Source: API, API: s.URL, Credentials: dir})
	await(t, "a pod", "web-0/server", func() string { return name(pods, group(uidA, 10)) })
	s.set(func() { s.status, s.list = http.StatusServiceUnavailable, podJSON(uidB, "web-1", 50) })
	s.CloseClientConnections()
	await(t, "it is asked again", "true", func() string { s.mu.Lock(); defer s.mu.Unlock(); return fmt.Sprint(len(s.asked) >= 3) })
	await(t, "it is heard of pods", "false", func() string { return fmt.Sprint(pods.Learning()) })
	if got := name(pods, group(uidA, 10)); got != "web-0/server" {
		t.Errorf("while the server is away the pod is %q", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte("second"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.set(func() { s.status = 0 })
	await(t, "a pod once it is back", "web-1/server", func() string { return name(pods, group(uidB, 50)) })
	await(t, "it is heard of pods", "true", func() string { return fmt.Sprint(pods.Learning()) })
	s.mu.Lock()
	defer s.mu.Unlock()
	if first, last := s.tokens[0], s.tokens[len(s.tokens)-1]; first != "Bearer first" || last != "Bearer second" {
		t.Errorf("tokens: first %q, last %q", first, last)
	}
}

func TestKubelet(t *testing.T) {
	s := serve(t)
	s.list = podJSON(uidA, "web-0", 10)
	pods := run(t, Config{Source: Kubelet, KubeletAddress: s.URL + "/", Credentials: account(t, s)})
	await(t, "a pod", "web-0/server", func() string { return name(pods, group(uidA, 10)) })
	s.set(func() { s.list = podJSON(uidB, "web-1", 50) })
	pods.Want() // within a second, and not only at the next turn
	await(t, "a pod that is new", "web-1/server", func() string { return name(pods, group(uidB, 50)) })
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked[0] != "/pods" {
		t.Errorf("the kubelet is asked for %s", s.asked[0])
	}
}

// Whom the API server refuses asks the kubelet, if that is left open.
func TestRefused(t *testing.T) {
	refuses, kubelet := serve(t), serve(t)
	refuses.status, kubelet.list = http.StatusForbidden, podJSON(uidA, "web-0", 10)
	dir := account(t, refuses) // one certificate for both: net/http/httptest has one
	pods := run(t, Config{Source: Auto, API: refuses.URL, KubeletAddress: strings.TrimPrefix(kubelet.URL, "https://"), Credentials: dir})
	await(t, "a pod", "web-0/server", func() string { return name(pods, group(uidA, 10)) })
	if len(refuses.asked) != 1 {
		t.Errorf("who refused is asked %d times", len(refuses.asked))
	}
}

func TestNew(t *testing.T) {
	s := serve(t)
	dir := account(t, s)
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for _, tt := range []struct {
		name, want string // of the fault; empty: none
		cfg        Config
		watcher    bool
	}{
		{"off", "", Config{Source: Off, Credentials: dir, Node: "n"}, false},
		{"no pod, and nothing said", "", Config{Source: Auto, Credentials: t.TempDir()}, false},
		{"no pod, and the API server wanted", "cannot ask for pods", Config{Source: API, Credentials: t.TempDir()}, false},
		{"no node, and nothing said", "", Config{Source: Auto, Credentials: dir, API: s.URL}, false},
		{"no node", "the pods of this node", Config{Source: API, Credentials: dir, API: s.URL}, false},
		{"no server", "the API server", Config{Source: API, Credentials: dir, Node: "n"}, false},
		{"the kubelet without a server", "", Config{Source: Kubelet, Credentials: dir, Node: "n"}, true},
		{"in a pod", "", Config{Source: Auto, Credentials: dir, Node: "n", API: s.URL}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
			w, err := New(tt.cfg)
			var fault *profiler.Fault
			if errors.As(err, &fault) != (tt.want != "") || fault != nil && (!strings.Contains(fault.What, tt.want) || fault.Fix == "" || fault.Why == nil) {
				t.Errorf("%v, want one that says %q", err, tt.want)
			}
			if (w != nil) != tt.watcher {
				t.Errorf("watcher: %v", w)
			}
		})
	}
}

// What nobody reads is not kept: a pod of Kubernetes's own size takes little.
func BenchmarkTake(b *testing.B) {
	w := Watcher{cfg: Config{Pods: workload.NewPods()}}
	e := event{Type: "MODIFIED", Object: json.RawMessage(podJSON(uidA, "web-0", 10))}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.take(&e); err != nil {
			b.Fatal(err)
		}
	}
}
