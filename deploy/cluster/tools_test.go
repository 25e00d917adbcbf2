package cluster

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// machine is a folder of programs that answer as the real ones do, as far as
// these tests ask, and write down how they were called. None of the real ones
// runs where tests do: they make virtual machines and containers.
type machine struct {
	t       *testing.T
	dir     string // state of the programs
	server  string // URL of an API server with one node
	cluster *Clusters
}

// newMachine makes the programs of all drivers. server answers for the API
// server of whatever they make.
func newMachine(t *testing.T) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir()}
	api := httptest.NewServer(apiServer())
	t.Cleanup(api.Close)
	m.server = api.URL
	bin := filepath.Join(m.dir, "bin")
	for name, script := range toolScripts {
		m.write(filepath.Join("bin", name), "#!/bin/sh\n"+recordScript+script, 0o755)
	}
	t.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	t.Setenv("STATE", m.dir)
	t.Setenv("KUBECONFIG", filepath.Join(m.dir, "kubeconfig"))
	for _, context := range []string{"default", "colima-kalypso", "k3d-kalypso", "kind-kalypso"} {
		m.write("kubeconfig."+context, m.kubeconfig(context), 0o600)
	}
	m.cluster = &Clusters{
		Dir: filepath.Join(m.dir, "records"), Show: testWriter{t}, In: strings.NewReader(""),
		Host: Host{OS: "linux", Arch: "amd64", CPUs: 8, MemoryBytes: 32 << 30, Root: true, CacheDir: filepath.Join(m.dir, "cache")},
	}
	return m
}

func (m *machine) write(name, text string, mode os.FileMode) {
	m.t.Helper()
	path := filepath.Join(m.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) has(name string) bool {
	_, err := os.Stat(filepath.Join(m.dir, name))
	return err == nil
}

// called are the commands that were run, as Shell writes them. Those that only
// ask for the state are left out.
func (m *machine) called() []string {
	m.t.Helper()
	data, err := os.ReadFile(filepath.Join(m.dir, "calls"))
	if err != nil && !os.IsNotExist(err) {
		m.t.Fatal(err)
	}
	var calls []string
	for call := range strings.SplitSeq(string(data), "\x1e") {
		if call == "" {
			continue
		}
		line := Shell(strings.Split(call, "\x1f"), 0)
		if !strings.Contains(line, " list") && !strings.Contains(line, "container ls") && !strings.HasPrefix(line, "systemctl show") {
			calls = append(calls, line)
		}
	}
	return calls
}

func (m *machine) kubeconfig(context string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: %[1]s
clusters: [{name: %[1]s, cluster: {server: %[2]q}}]
contexts: [{name: %[1]s, context: {cluster: %[1]s, user: %[1]s}}]
users: [{name: %[1]s, user: {token: t}}]
`, context, m.server)
}

// recordScript appends what the program was called with.
const recordScript = `{ printf %s "${0##*/}"; for a; do printf '\037%s' "$a"; done; printf '\036'; } >>"$STATE/calls"
[ ! -f "$STATE/fail.${0##*/}.$1" ] || { cat "$STATE/fail.${0##*/}.$1" >&2; exit 1; }
[ ! -f "$STATE/hang.${0##*/}.$1" ] || { touch "$STATE/hangs"; exec sleep 60; }
`

// toolScripts are the programs. What they print is what the versions of the
// comments print.
var toolScripts = map[string]string{
	// Colima 0.10, with Lima's words for states.
	"colima": `case $1 in
list) [ ! -f "$STATE/vm" ] || printf '{"name":"%s","status":"%s","arch":"x86_64","cpus":8,"memory":15032385536,"disk":42949672960,"runtime":"containerd+k3s"}\n' kalypso "$(cat "$STATE/vm")" ;;
start) echo Running >"$STATE/vm"; cp "$STATE/kubeconfig.colima-kalypso" "$KUBECONFIG" ;;
stop) echo Stopped >"$STATE/vm" ;;
delete) rm -f "$STATE/vm" ;;
ssh) shift 4; [ ! -f "$STATE/facts" ] || [ "$1" = sudo ] || { cat "$STATE/facts"; exit; }; exec "$@" ;;
esac
`,
	"limactl": "", "kubectl": "", "curl": "",
	"sudo": "",
	// k3d 5.9.
	"k3d": `case $2 in
list) if [ -f "$STATE/k3d" ]; then printf '[{"name":"other","serversRunning":0,"serversCount":1},{"name":"kalypso","nodes":[],"serversRunning":%s,"serversCount":1,"agentsRunning":0,"agentsCount":0}]\n' "$(cat "$STATE/k3d")"; else echo '[]'; fi ;;
create|start) echo 1 >"$STATE/k3d"; cp "$STATE/kubeconfig.k3d-kalypso" "$KUBECONFIG" ;;
stop) echo 0 >"$STATE/k3d" ;;
delete) rm -f "$STATE/k3d" ;;
esac
`,
	"kind": `case $1 in
create) echo running >"$STATE/container"; cp "$STATE/kubeconfig.kind-kalypso" "$KUBECONFIG" ;;
delete) rm -f "$STATE/container" ;;
esac
`,
	"docker": `case $1 in
container) [ ! -f "$STATE/container" ] || cat "$STATE/container" ;;
start) echo running >"$STATE/container" ;;
stop) echo exited >"$STATE/container" ;;
exec) shift 2; [ ! -f "$STATE/facts" ] || { cat "$STATE/facts"; exit; }; exec "$@" ;;
esac
`,
	// systemd 252.
	"systemctl": `case $1 in
show) if [ -f "$STATE/service" ]; then echo LoadState=loaded; echo "ActiveState=$(cat "$STATE/service")"; else echo LoadState=not-found; echo ActiveState=inactive; fi ;;
start) echo active >"$STATE/service" ;;
esac
`,
}

// apiServer answers what is asked of a new cluster: its version, its nodes.
func apiServer() http.Handler {
	mux := http.NewServeMux()
	answer := func(path, text string) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(text))
		})
	}
	answer("/version", `{"major":"1","minor":"35","gitVersion":"v1.35.0+k3s1"}`)
	answer("/api/v1/nodes", `{"kind":"NodeList","apiVersion":"v1","items":[{"metadata":{"name":"n"},"status":{"conditions":[{"type":"Ready","status":"True"}]}}]}`)
	return mux
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

// shell runs a script and gives what it printed.
func shell(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", script).Output()
	if err != nil {
		t.Fatalf("sh: %v\n%s", err, script)
	}
	return string(out)
}
