package charts

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v3/pkg/chartutil"
)

const agentChart = "kalypso-agent"

// agentObjects renders the agent's chart with values over the profile's.
func agentObjects(t *testing.T, profile string, values map[string]any) []object {
	t.Helper()
	r := release{name: agentChart, namespace: "kalypso", chart: agentChart, profile: profile}
	manifest, err := render(load(t, agentChart), r, chartutil.CoalesceTables(values, profileValues(t, r)))
	if err != nil {
		t.Fatal(err)
	}
	manifest, _, _ = strings.Cut(manifest, "\x00")
	return decode(t, manifest, r)
}

// It has the six capabilities that docs/reference/capabilities.md measures, and
// nothing beside them.
func TestAgentPrivileges(t *testing.T) {
	spec := podSpec(find(t, agentObjects(t, "", map[string]any{}), "DaemonSet", agentChart))
	page, err := os.ReadFile("../../docs/reference/capabilities.md")
	if err != nil {
		t.Fatal(err)
	}
	var measured []any
	for _, m := range regexp.MustCompile("(?m)^\\| `([A-Z_]+)` \\|").FindAllStringSubmatch(string(page), -1) {
		measured = append(measured, m[1])
	}
	c := list(spec, "containers")[0]
	want := map[string]any{
		"privileged": false, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsUser": 0,
		"capabilities":    map[string]any{"drop": []any{"ALL"}, "add": measured},
		"seccompProfile":  map[string]any{"type": "Unconfined"},
		"appArmorProfile": map[string]any{"type": "Unconfined"},
	}
	if diff := cmp.Diff(at(c, "securityContext"), any(want)); diff != "" {
		t.Errorf("security context (-got +want):\n%s", diff)
	}
	for key, want := range map[string]any{"hostPID": true, "hostNetwork": nil, "hostIPC": nil, "automountServiceAccountToken": true} {
		if spec[key] != want {
			t.Errorf("%s is %v, want %v", key, spec[key], want)
		}
	}
	for _, v := range list(spec, "volumes") {
		if path := text(v, "hostPath", "path"); path != "" && path != "/var/lib/kalypso-agent/spool" {
			t.Errorf("it mounts %s of the node", path)
		}
	}
}

// Profiles of seccomp and AppArmor are those of the values, and what no pod could have
// is refused before one is tried.
func TestAgentProfiles(t *testing.T) {
	tests := []struct {
		name       string
		values     map[string]any
		annotation string // of AppArmor
		refused    bool
	}{
		{name: "those of the runtime", values: map[string]any{"type": "RuntimeDefault"}, annotation: "runtime/default"},
		{name: "the node's own", values: map[string]any{"type": "Localhost", "localhostProfile": "agent"}, annotation: "localhost/agent"},
		{name: "none", values: map[string]any{"type": "Unconfined"}, annotation: "unconfined"},
		{name: "the node's own without a name", values: map[string]any{"type": "Localhost"}, refused: true},
		{name: "a name of none", values: map[string]any{"type": "RuntimeDefault", "localhostProfile": "agent"}, refused: true},
		{name: "another word", values: map[string]any{"type": "unconfined"}, refused: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := release{name: agentChart, namespace: "kalypso", chart: agentChart}
			manifest, err := render(load(t, agentChart), r, map[string]any{"seccompProfile": tt.values, "appArmorProfile": tt.values})
			if (err != nil) != tt.refused {
				t.Fatalf("refused: %v", err)
			}
			if err != nil {
				return
			}
			manifest, _, _ = strings.Cut(manifest, "\x00")
			o := find(t, decode(t, manifest, r), "DaemonSet", agentChart)
			context := at(list(podSpec(o), "containers")[0], "securityContext")
			for _, key := range []string{"seccompProfile", "appArmorProfile"} {
				if diff := cmp.Diff(at(context, key), any(tt.values)); diff != "" {
					t.Errorf("%s (-got +want):\n%s", key, diff)
				}
			}
			if got := text(o.fields, "spec", "template", "metadata", "annotations", "container.apparmor.security.beta.kubernetes.io/agent"); got != tt.annotation {
				t.Errorf("to Kubernetes before 1.30 it is %q, want %q", got, tt.annotation)
			}
		})
	}
}

// Its service account may do what the agent does to learn of pods, and without
// that has no token.
func TestAgentRights(t *testing.T) {
	rule := func(resource string, verbs ...any) any {
		return []any{map[string]any{"apiGroups": []any{""}, "resources": []any{resource}, "verbs": verbs}}
	}
	for source, want := range map[string]any{
		"api": rule("pods", "list", "watch"), "kubelet": rule("nodes/pods", "get"), "off": nil,
	} {
		objects := agentObjects(t, "", nest([]string{"kubernetes", "source"}, source))
		var got any
		for _, o := range objects {
			switch o.kind {
			case "ClusterRole":
				got = o.fields["rules"]
			case "ServiceAccount":
				if o.fields["automountServiceAccountToken"] != false {
					t.Errorf("%s: every pod of the account gets a token", source)
				}
			case "Role", "RoleBinding":
				t.Errorf("%s: there is %v", source, o)
			}
		}
		if diff := cmp.Diff(got, want); diff != "" {
			t.Errorf("%s: rules (-got +want):\n%s", source, diff)
		}
		if mounted := podSpec(find(t, objects, "DaemonSet", agentChart))["automountServiceAccountToken"]; mounted != (source != "off") {
			t.Errorf("%s: a token is mounted: %v", source, mounted)
		}
	}
}

func TestAgentNetworkPolicy(t *testing.T) {
	for _, o := range agentObjects(t, "", map[string]any{}) {
		if o.kind == "NetworkPolicy" {
			t.Error("there is a NetworkPolicy by default")
		}
	}
	o := find(t, agentObjects(t, "", nest([]string{"networkPolicy", "enabled"}, true)), "NetworkPolicy", agentChart)
	if rules := list(o.fields, "spec", "ingress"); len(rules) != 1 || text(list(rules[0], "ports")[0], "port") != "http" {
		t.Errorf("it lets in %v", rules)
	}
}

// What the chart writes is what the agent reads, in every profile.
func TestAgentAcceptsItsSettings(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "kalypso-agent")
	if out, err := exec.Command("go", "build", "-trimpath", "-o", binary, "../../cmd/agent").CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	for _, profile := range profiles {
		for name, values := range map[string]map[string]any{
			"as it is":       {},
			"the kubelet":    nest([]string{"kubernetes", "source"}, "kubelet"),
			"no Kubernetes":  nest([]string{"kubernetes", "source"}, "off"),
			"other settings": {"port": 9999, "config": map[string]any{"exclude.comm": []any{"stress-ng"}, "otlp.protocol": "http"}, "labels": map[string]any{"team": "checkout, and more"}},
		} {
			objects := agentObjects(t, profile, values)
			path := filepath.Join(dir, "agent.yaml")
			if err := os.WriteFile(path, []byte(text(find(t, objects, "ConfigMap", agentChart).fields, "data", "agent.yaml")), 0o600); err != nil {
				t.Fatal(err)
			}
			c := list(podSpec(find(t, objects, "DaemonSet", agentChart)), "containers")[0]
			show := exec.Command(binary, "config", "show", "--config", path)
			for _, e := range list(c, "env") {
				value := strings.ReplaceAll(text(e, "value"), "$(NODE_IP)", "10.0.0.7")
				if text(e, "valueFrom", "fieldRef", "fieldPath") == "spec.nodeName" {
					value = "node-1"
				}
				show.Env = append(show.Environ(), text(e, "name")+"="+value)
			}
			out, err := show.CombinedOutput()
			if err != nil {
				t.Errorf("profile %q, %s: %v\n%s", profile, name, err, out)
			}
			if !strings.Contains(string(out), "node-1") {
				t.Errorf("profile %q, %s: no setting has the node's name:\n%s", profile, name, out)
			}
		}
	}
}

// The container is asked for what the agent is told to keep to, and may have
// twice that.
func TestAgentResourcesAreBudgets(t *testing.T) {
	for _, profile := range profiles {
		objects := agentObjects(t, profile, map[string]any{})
		settings := parseYAML(t, text(find(t, objects, "ConfigMap", agentChart).fields, "data", "agent.yaml"))
		budget := text(settings, "memory.budget")
		c := list(podSpec(find(t, objects, "DaemonSet", agentChart)), "containers")[0]
		if got := text(c, "resources", "requests", "memory"); got != budget {
			t.Errorf("profile %q: it requests %s of memory, and its budget is %s", profile, got, budget)
		}
		limit := map[string]string{"96Mi": "192Mi", "128Mi": "256Mi"}[budget]
		if got := text(c, "resources", "limits", "memory"); got != limit {
			t.Errorf("profile %q: its limit is %s, and its budget is %s", profile, got, budget)
		}
	}
}

// Kubernetes and the collector find what the agent serves.
func TestAgentIsProbedAndScraped(t *testing.T) {
	objects := agentObjects(t, "", map[string]any{"port": 9999})
	settings := parseYAML(t, text(find(t, objects, "ConfigMap", agentChart).fields, "data", "agent.yaml"))
	if settings["listen"] != "0.0.0.0:9999" || settings["listen.allow-remote"] != true {
		t.Errorf("it listens at %v, from elsewhere: %v", settings["listen"], settings["listen.allow-remote"])
	}
	o := find(t, objects, "DaemonSet", agentChart)
	c := list(podSpec(o), "containers")[0]
	for probe, path := range map[string]string{"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"} {
		if got := text(c, probe, "httpGet", "path"); got != path {
			t.Errorf("%s asks %q, want %q", probe, got, path)
		}
	}
	annotations := at(o.fields, "spec", "template", "metadata", "annotations")
	for key, want := range map[string]string{"prometheus.io/scrape": "true", "prometheus.io/port": "9999", "prometheus.io/path": "/metrics"} {
		if got := text(annotations, key); got != want {
			t.Errorf("annotation %s is %q, want %q", key, got, want)
		}
	}
}

// A changed setting restarts the pods where the agent cannot take it in while it runs,
// and nowhere else: what the chart lists is what the reference marks live.
func TestAgentRestartsForSettings(t *testing.T) {
	template := func(values map[string]any) any {
		return at(find(t, agentObjects(t, "", values), "DaemonSet", agentChart).fields, "spec", "template")
	}
	page, err := os.ReadFile("../../docs/reference/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	before := template(map[string]any{})
	live := 0
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z.-]+)` \\| [^\n]+? \\| (?:`[^`]*`)? \\| (live)? \\| ").FindAllStringSubmatch(string(page), -1) {
		name, restart := row[1], row[2] == ""
		values := map[string]any{"config": map[string]any{name: "something else"}}
		switch name {
		case "labels":
			values = map[string]any{"labels": map[string]any{"team": "checkout"}}
		case "listen", "listen.allow-remote", "spool.dir", "config.watch", "kubernetes.source", "kubernetes.node",
			"kubernetes.kubelet.address", "kubernetes.kubelet.skip-verify": // the chart's own
			continue
		}
		if !restart {
			live++
		}
		if changed := !cmp.Equal(template(values), before); changed != restart {
			t.Errorf("%s: the pods restart: %t, want %t", name, changed, restart)
		}
	}
	if live < 10 {
		t.Errorf("only %d live settings were found in the reference", live)
	}
}

func TestAgentSpool(t *testing.T) {
	for kind, field := range map[string]string{"hostPath": "hostPath", "emptyDir": "emptyDir"} {
		o := find(t, agentObjects(t, "", nest([]string{"spool", "kind"}, kind)), "DaemonSet", agentChart)
		if !slices.ContainsFunc(list(podSpec(o), "volumes"), func(v any) bool { return text(v, "name") == "spool" && at(v, field) != nil }) {
			t.Errorf("spool.kind %s: no volume of that kind", kind)
		}
	}
}
