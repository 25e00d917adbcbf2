package verify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/kalypso-dev/kalypso/deploy/check"
	"github.com/kalypso-dev/kalypso/profiler"
)

// patience is short where a test waits for something that does not come.
const patience = time.Second

// prove runs the proof with this id.
func prove(t *testing.T, c Config, id string) check.Outcome {
	t.Helper()
	selected, unknown := check.Select(Proofs(c), []string{id})
	if unknown != "" {
		t.Fatalf("no proof %q", unknown)
	}
	return selected[0].Run(t.Context())
}

// wants compares an outcome with what it has to say. An empty fix: any.
func wants(t *testing.T, got check.Outcome, state check.State, detail []string, fix string) {
	t.Helper()
	if got.State != state {
		t.Fatalf("%v, want %v: %+v", got.State, state, got)
	}
	for _, text := range detail {
		if !strings.Contains(got.Detail, text) {
			t.Errorf("the detail lacks %q:\n%s", text, got.Detail)
		}
	}
	if fix != "" && !strings.Contains(got.Fix, fix) {
		t.Errorf("fix %q, want one with %q", got.Fix, fix)
	}
}

func TestProofsAreThese(t *testing.T) {
	var got []string
	for _, c := range Proofs(Config{}) {
		got = append(got, c.ID)
		if c.Title == "" || c.Effect == "" || c.Fix == "" {
			t.Errorf("%s lacks a title, an effect or a fix: %+v", c.ID, c)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(IDs()) {
		t.Errorf("proofs %v, IDs %v", got, IDs())
	}
}

func TestWhatIsNotInstalledIsSkipped(t *testing.T) {
	for _, id := range IDs() {
		if got := prove(t, Config{}, id); got.State != check.Skipped || !strings.Contains(got.Detail, "is not installed") {
			t.Errorf("%s: %+v", id, got)
		}
	}
}

func TestLogs(t *testing.T) {
	const gateway, collector = "loki-gateway.loki:80", "kalypso-collector.otel-system:4318"
	// serving gives the addresses of a Loki, and of a collector that hands on.
	serving := func(t *testing.T, loki *store, hands bool) addresses {
		return addresses{
			gateway: serve(t, loki.ServeHTTP),
			collector: serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/v1/logs" {
					http.NotFound(w, r)
				} else if hands {
					loki.write(w, r)
				}
			}),
		}
	}
	tests := []struct {
		name   string
		loki   *store
		hands  bool
		lacks  string // a Service that is not there
		only   bool   // no collector is installed
		state  check.State
		detail []string
		fix    string
	}{
		{"a line comes back through the collector", &store{}, true, "", false, check.Passed, []string{"line written and read back from Loki"}, ""},
		{"a line comes back without a collector", &store{}, false, "", true, check.Passed, []string{"line written and read back from Loki"}, ""},
		{"a store that is not ready yet is asked again", &store{refuses: 1}, true, "", true, check.Passed, nil, ""},
		{
			"a Loki that loses the line is told", &store{loses: true}, true, "", false, check.Failed,
			[]string{"a line that the collector took did not come to Loki:\nloki-gateway.loki:80 does not have it after 1s", "nor did one that was written to Loki itself"}, "kalypsoctl logs loki",
		},
		{
			"a Loki that loses the line is told, without a collector too", &store{loses: true}, true, "", true, check.Failed,
			[]string{"a line that loki-gateway.loki:80 took was not found"}, "kalypsoctl logs loki",
		},
		{
			"a collector that does not hand on is found out", &store{}, false, "", false, check.Failed,
			[]string{"a line that the collector took did not come to Loki", "one that was written to Loki itself did: the collector does not deliver"}, "kalypsoctl logs collector",
		},
		{
			"a store that stays unready is told in its own words", &store{refuses: 1000}, true, "", true, check.Failed,
			[]string{"no line could be written:\nloki-gateway.loki:80 answers 503 Service Unavailable: empty ring"}, "kalypsoctl logs loki",
		},
		{
			"what was rejected of a request that was accepted is told", &store{rejects: "entry too far behind"}, true, "", true, check.Failed,
			[]string{"no line could be written:\nit was not taken: entry too far behind"}, "kalypsoctl logs loki",
		},
		{
			"no pod is told at once", &store{}, true, gateway, true, check.Failed,
			[]string{"no line could be written:\nreach loki-gateway.loki:80: no pod of Service loki-gateway in namespace loki is ready"}, "kalypsoctl logs loki",
		},
		{
			"no pod to ask is told once", &store{}, true, gateway, false, check.Failed,
			[]string{"a line that kalypso-collector.otel-system:4318 took was not found:\nreach loki-gateway.loki:80: no pod"}, "kalypsoctl logs loki",
		},
		{
			"no pod of the collector is the collector's", &store{}, true, collector, false, check.Failed,
			[]string{"reach kalypso-collector.otel-system:4318"}, "kalypsoctl logs collector",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			to := serving(t, tt.loki, tt.hands)
			delete(to, tt.lacks)
			names := []string{"loki", "collector"}
			if tt.only {
				names = names[:1]
			}
			got := prove(t, Config{Components: stack(t, names...), Forwarder: to, Patience: patience}, "logs")
			wants(t, got, tt.state, tt.detail, tt.fix)
		})
	}
}

func TestTraces(t *testing.T) {
	const in, out = "tempo.tempo:4318", "tempo.tempo:3200"
	takes := func(http.ResponseWriter, *http.Request) {}
	tests := []struct {
		name   string
		read   http.HandlerFunc
		state  check.State
		detail string
	}{
		{"a span comes back", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"batches":[{"value":{"stringValue":"%s"}}]}`, r.URL.Path[len("/api/traces/"):])
		}, check.Passed, "span written and read back from Tempo"},
		{"a Tempo that loses the span is told", http.NotFound, check.Failed, "tempo.tempo:3200 does not have it after 1s"},
		{"another trace is not ours", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"batches":[]}`) }, check.Failed, "does not have it"},
		{"an error is told in its own words", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no bucket", 500) }, check.Failed, "answers 500 Internal Server Error: no bucket"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := Config{Components: stack(t, "tempo"), Patience: patience, Forwarder: addresses{in: serve(t, takes), out: serve(t, tt.read)}}
			wants(t, prove(t, c, "traces"), tt.state, []string{tt.detail}, "")
		})
	}
}

func TestWhatIsInterruptedIsNoFailure(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	silent := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // so that the end of the connection is seen
		cancel()
		<-r.Context().Done()
	})
	c := Config{Components: stack(t, "loki"), Forwarder: addresses{"loki-gateway.loki:80": silent}, Patience: time.Minute}
	if got := c.signal(logs()).Run(ctx); got.State != check.Skipped {
		t.Errorf("%+v", got)
	}
}

func TestWhoIsSilentIsTold(t *testing.T) {
	silent := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	c := Config{Components: stack(t, "loki"), Forwarder: addresses{"loki-gateway.loki:80": silent}, Patience: patience}
	wants(t, prove(t, c, "logs"), check.Failed, []string{"no line could be written:\nloki-gateway.loki:80 does not answer: not in time"}, "")
}

func TestEachIDIsAnother(t *testing.T) {
	var loki store
	var kept []string
	c := Config{
		Components: stack(t, "loki"), Forwarder: addresses{"loki-gateway.loki:80": serve(t, loki.ServeHTTP)}, Patience: 10 * time.Second,
		Keep: true, Kept: func(proof, id string) { kept = append(kept, proof+" "+id) },
	}
	for range 2 {
		wants(t, prove(t, c, "logs"), check.Passed, nil, "")
	}
	if len(kept) != 2 || kept[0] == kept[1] || len(kept[0]) != len("logs ")+32 {
		t.Fatalf("kept %q, want two ids of 128 bits", kept)
	}
	for _, line := range loki.lines {
		if !strings.Contains(strings.Join(kept, "\n"), line[strings.LastIndex(line, " ")+1:]) {
			t.Errorf("the line %q has none of the ids %q", line, kept)
		}
	}
}

func TestAnswersOfMimir(t *testing.T) {
	tests := []struct {
		name   string
		answer string
		found  bool
		err    string
	}{
		{"no series yet", `{"status":"success","data":{"resultType":"vector","result":[]}}`, false, ""},
		{"the series", `{"data":{"result":[{"metric":{},"value":[1.5,"1.5"]}]}}`, true, ""},
		{"another value is not ours", `{"data":{"result":[{"metric":{},"value":[1.5,"0"]}]}}`, false, "1 series, the first with the value 0"},
		{"two series are one too many", `{"data":{"result":[{"value":[1,"1.5"]},{"value":[1,"1.5"]}]}}`, false, "2 series"},
		{"a page of a proxy is no answer", `<html>`, false, "no result of a query"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			found, err := hasSeries("", []byte(tt.answer))
			if found != tt.found || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%v, %v; want %v, %q", found, err, tt.found, tt.err)
			}
		})
	}
}

func TestShareOfTheHotFunction(t *testing.T) {
	graph := func(total string, levels ...string) string {
		return `{"flamegraph":{"names":["total","main","kalypso_probe_hot","kalypso_probe_cold"],"total":` + total + `,"levels":[` + strings.Join(levels, ",") + `]}}`
	}
	root, main := `{"values":["0","100","0","0"]}`, `{"values":["0","100","0","1"]}`
	tests := []struct {
		name    string
		answer  string
		percent float64
		found   bool
		wrong   bool
	}{
		{"as it was written", graph(`"100"`, root, main, `{"values":["0","26","26","3","0","74","74","2"]}`), 74, true, false},
		{"without the hot function", graph(`"100"`, root, main, `{"values":["0","100","100","3"]}`), 0, true, false},
		{"nothing yet", `{"flamegraph":{}}`, 0, false, false},
		{"nothing yet, with a zero", graph(`"0"`), 0, false, false},
		{"a name that is not there is nobody's", graph(`"100"`, `{"values":["0","100","100","9"]}`), 0, true, false},
		{"half a bar is none", graph(`"100"`, `{"values":["0","100","100"]}`), 0, true, false},
		{"no flame graph", `[]`, 0, false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			percent, found, err := share([]byte(tt.answer), hotFunction)
			if percent != tt.percent || found != tt.found || (err != nil) != tt.wrong {
				t.Errorf("%g, %v, %v; want %g, %v, error %v", percent, found, err, tt.percent, tt.found, tt.wrong)
			}
		})
	}
}

func TestPyroscopeWithoutLeader(t *testing.T) {
	addr := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprint(w, `{"code":"unavailable","message":"node is not the leader"}`)
	})
	c := Config{Forwarder: addresses{"pyroscope.pyroscope:4040": addr}, Patience: patience}
	from := c.open(stack(t, "pyroscope")[0], pyroscopePort)
	defer from.Close()
	_, err := c.awaitHot(t.Context(), from, newID(), time.Now())
	if err == nil || !strings.Contains(err.Error(), "node is not the leader") {
		t.Fatalf("got %v", err)
	}
	if fix := c.fix(from.component, err); !strings.Contains(fix, "architecture.storage.v1=true") {
		t.Errorf("fix %q", fix)
	}
}

// grafanaServer answers as Grafana's API does.
func grafanaServer(t *testing.T, password string, states map[string]string) string {
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		if _, given, _ := r.BasicAuth(); given != password {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, `{"message":"Invalid username or password"}`)
			return
		}
		if r.URL.Path == "/api/datasources" {
			list := []object{}
			for uid := range states {
				list = append(list, object{"uid": uid, "name": uid})
			}
			_ = json.NewEncoder(w).Encode(list)
			return
		}
		uid := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/api/datasources/uid/"), "/health")
		if states[uid] != "" {
			w.WriteHeader(http.StatusBadRequest)
			_ = json.NewEncoder(w).Encode(object{"status": "ERROR", "message": states[uid]})
			return
		}
		fmt.Fprint(w, `{"status":"OK","message":"works"}`)
	})
}

func TestGrafana(t *testing.T) {
	const password = "s3cr3t-of-the-test"
	healthy := map[string]string{"mimir": "", "tempo": "", "loki": "", "pyroscope": ""}
	tests := []struct {
		name   string
		secret string
		states map[string]string
		state  check.State
		detail string
		fix    string
	}{
		{"all are healthy", password, healthy, check.Passed, "4 data sources healthy", ""},
		{"one that is not is named", password, map[string]string{"mimir": "", "tempo": "", "loki": "connection refused", "pyroscope": ""}, check.Failed, "loki: connection refused", ""},
		{"one that lacks is named", password, map[string]string{"mimir": "", "tempo": "", "loki": ""}, check.Failed, "pyroscope: there is no such data source", ""},
		{"another password", "old", healthy, check.Failed, "401 Unauthorized: Invalid username or password", "reset-admin-password"},
		{"no password", "", healthy, check.Failed, "lacks admin-user or admin-password", "kalypsoctl install grafana"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := Config{
				Components: stack(t, "grafana", "mimir", "tempo", "loki", "pyroscope"), Patience: patience,
				Forwarder: addresses{"kalypso-grafana.grafana:80": grafanaServer(t, password, tt.states)},
				Client:    fake.NewClientset(adminSecret(tt.secret)),
			}
			got := prove(t, c, "grafana")
			wants(t, got, tt.state, []string{tt.detail}, tt.fix)
			if said := fmt.Sprintf("%+v", got); strings.Contains(said, password) {
				t.Errorf("the password is told: %s", said)
			}
		})
	}
}

func TestMesh(t *testing.T) {
	tests := []struct {
		name    string
		version string
		image   string // what the webhook makes of "auto"
		err     error
		state   check.State
		detail  string
		fix     string
	}{
		{"it serves and injects", "1.30.3-abcdef-Clean", "docker.io/istio/proxyv2:1.30.3", nil, check.Passed, "istiod 1.30.3 serves and injects its proxy", ""},
		{"the webhook is not asked", "1.30.3-abcdef-Clean", "auto", nil, check.Failed, "did not get it", "mutatingwebhookconfiguration"},
		{"the webhook fails", "1.30.3-abcdef-Clean", "", context.DeadlineExceeded, check.Failed, "is refused:\ncontext deadline exceeded", "kalypsoctl logs istiod"},
		{"something else answers", "<html>", "", nil, check.Failed, `tells no version but "<html>"`, "kalypsoctl logs istiod"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			client := fake.NewClientset()
			client.PrependReactor("create", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
				create := action.(clienttesting.CreateActionImpl)
				if fmt.Sprint(create.CreateOptions.DryRun) != "[All]" {
					t.Errorf("the pod would have been kept: %+v", create.CreateOptions)
				}
				pod := create.GetObject().(*corev1.Pod).DeepCopy()
				pod.Spec.Containers[0].Image = tt.image
				return true, pod, tt.err
			})
			c := Config{
				Components: stack(t, "istiod"), Patience: patience, Client: client,
				Forwarder: addresses{"istiod.istio-system:15014": serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, tt.version) })},
			}
			got := prove(t, c, "mesh")
			if got.Fix == "" {
				got.Fix = c.mesh().Fix
			}
			wants(t, got, tt.state, []string{tt.detail}, tt.fix)
		})
	}
}

func TestFixes(t *testing.T) {
	fault := &profiler.Fault{What: "no pod behind Service loki/loki-gateway is ready", Fix: "kalypsoctl status"}
	tests := []struct {
		name string
		of   string
		err  error
		fix  string
	}{
		{"what a cluster says is best", "loki", fmt.Errorf("reach loki: %w", fault), "kalypsoctl status"},
		{"a store that wants a tenant", "mimir", errors.New("mimir-gateway.mimir:80 answers 401 Unauthorized: no org id"), "multitenancy"},
		{"a bucket that is not there", "loki", errors.New("answers 500: NoSuchBucket: the specified bucket does not exist"), "the Secret kalypso-s3 of loki"},
		{"Pyroscope without its object store", "pyroscope", errors.New("code = Unavailable desc = service is unavailable"), "object store"},
		{"anything else is in the log", "tempo", errors.New("connection refused"), "kalypsoctl logs tempo"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := (&Config{}).fix(stack(t, tt.of)[0], tt.err); !strings.Contains(got, tt.fix) {
				t.Errorf("fix %q, want one with %q", got, tt.fix)
			}
		})
	}
}

func TestWordsOfServers(t *testing.T) {
	tests := []struct{ name, answer, want string }{
		{"the field message of JSON", `{"message":"not found","error":"x"}`, "not found"},
		{"the field error of JSON", `{"status":"error","error":"bad query"}`, "bad query"},
		{"the first line of text", "empty ring\nat main.go:1", "empty ring"},
		{"nothing that moves a cursor", "a\x1b[31mb\tc", "a [31mb c"},
		{"not more than fits", strings.Repeat("é", 300), strings.Repeat("é", 200) + "…"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := words([]byte(tt.answer)); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}
