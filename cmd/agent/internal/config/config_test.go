package config

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/pipeline"
)

// parsed gives flags as a command has them once they are parsed.
func parsed(t testing.TB, args ...string) *pflag.FlagSet {
	t.Helper()
	flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
	Flags(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return flags
}

// written is a file of settings.
func written(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func read(t testing.TB, environ []string, args ...string) *Config {
	t.Helper()
	c, err := Read(parsed(t, args...), environ)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// told is a fault as a person sees it, with the file's folder left out.
func told(err error, path string) string {
	var fault *profiler.Fault
	if !errors.As(err, &fault) {
		return fmt.Sprintf("no fault: %v", err)
	}
	text := "error: " + fault.What + "\n"
	if fault.Why != nil {
		text += "cause: " + fault.Why.Error() + "\n"
	}
	if fault.Fix != "" {
		text += "fix:   " + fault.Fix + "\n"
	}
	if path != "" {
		text = strings.ReplaceAll(text, filepath.Dir(path)+"/", "")
	}
	return text
}

func TestDefaults(t *testing.T) {
	got := read(t, nil)
	want := &Config{
		Export: []Export{{Kind: "otlp"}}, OTLP: OTLP{Protocol: "grpc", Timeout: 15 * time.Second},
		Frequency: 97, Window: 15 * time.Second, Kernel: true,
		Include: Filter{[]string{}, []string{}, []string{}, []string{}}, Exclude: Filter{[]string{}, []string{}, []string{}, []string{}},
		Kubernetes: Kubernetes{Source: "auto"},
		Labels:     []profiler.Attribute{}, Spool: Spool{"/var/lib/kalypso-agent/spool", 256 << 20, 59 * time.Minute},
		CPU: CPU{1}, Memory: Memory{128 << 20}, History: 15 * time.Minute, Listen: Listen{Address: "127.0.0.1:4041"},
		Telemetry: Telemetry{TelemetryOTLP{Protocol: "grpc"}}, Log: Log{slog.LevelInfo, "text"},
	}
	got.origins = nil
	if diff := cmp.Diff(got, want, cmp.AllowUnexported(Config{}, Watch{})); diff != "" {
		t.Errorf("defaults (-got +want):\n%s", diff)
	}
}

// sample is a value of a setting that is not its default.
func sample(s *setting) string {
	switch s.word {
	case "":
		return map[string]string{"true": "false", "false": "true"}[s.fallback]
	case "N":
		return "19"
	case "DURATION":
		return "2m"
	case "SIZE":
		return "1Gi"
	case "PERCENT":
		return "2.5%"
	case "HOST:PORT", "HOST:PORT|unix:PATH":
		return "127.0.0.1:4317"
	case "KEY=VALUE":
		return "team=shop"
	case "otlp|pprof|file:DIR":
		return "file:/var/profiles"
	}
	for choice := range strings.SplitSeq(s.word, "|") {
		if choice != s.fallback && strings.Contains(s.word, "|") {
			return choice
		}
	}
	return "some-name"
}

// leaves calls do with each field of a struct that is none itself.
func leaves(v reflect.Value, path string, do func(path string, v reflect.Value)) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		switch {
		case !f.IsExported():
		case f.Type.Kind() == reflect.Struct:
			leaves(v.Field(i), path+f.Name+".", do)
		default:
			do(path+f.Name, v.Field(i))
		}
	}
}

// TestTable: each setting has one field of its own, each field a setting, and
// nothing that people see of a setting is missing or taken.
func TestTable(t *testing.T) {
	table := settings()
	fields := map[string]string{}
	variables := map[string]string{}
	for i := range table {
		s := &table[i]
		before, after := defaults(table), defaults(table)
		if _, wrong := s.set(after, s.split(sample(s))); wrong != nil {
			t.Fatalf("%s cannot be %s: %v", s.name, sample(s), wrong.why)
		}
		was := map[string]any{}
		leaves(reflect.ValueOf(*before), "", func(path string, v reflect.Value) { was[path] = v.Interface() })
		var changed []string
		leaves(reflect.ValueOf(*after), "", func(path string, v reflect.Value) {
			if !reflect.DeepEqual(v.Interface(), was[path]) {
				changed = append(changed, path)
			}
		})
		if len(changed) != 1 {
			t.Errorf("%s changes the fields %v, want one", s.name, changed)
			continue
		}
		if other := fields[changed[0]]; other != "" {
			t.Errorf("%s and %s are the same field", s.name, other)
		}
		fields[changed[0]] = s.name
		if other := variables[envName(s.name)]; other != "" {
			t.Errorf("%s and %s have the same variable", s.name, other)
		}
		variables[envName(s.name)] = s.name
		if s.help == "" {
			t.Errorf("%s has no help", s.name)
		}
		if got := s.words(after); !slices.Equal(got, s.split(sample(s))) {
			t.Errorf("%s is written %q, want %q", s.name, got, sample(s))
		}
	}
	leaves(reflect.ValueOf(Config{}), "", func(path string, _ reflect.Value) {
		if fields[path] == "" {
			t.Errorf("no setting sets the field %s", path)
		}
	})
}

func TestSourcesRise(t *testing.T) {
	path := written(t, "frequency: 11\nwindow: 11s\nhistory: 11m\nkernel: false\nexport: [pprof, file:/a]\n")
	environ := []string{"PATH=/bin", "KALYPSO_AGENT_WINDOW=22s", "KALYPSO_AGENT_HISTORY=22m", "KALYPSO_AGENT_EXPORT=file:/b,file:/c"}
	c := read(t, environ, "--config", path, "--history", "33m", "--otlp.insecure", "--labels", "b=2,a=1", "--labels=c=3")
	at := func(line, column int) Origin { return Origin{FromFile, fmt.Sprintf("%s:%d:%d", path, line, column)} }
	tests := []struct {
		name   string
		got    any
		want   any
		origin Origin
	}{
		{"frequency", c.Frequency, 11, at(1, 1)},
		{"window", c.Window, 22 * time.Second, Origin{FromEnvironment, "KALYPSO_AGENT_WINDOW"}},
		{"history", c.History, 33 * time.Minute, Origin{FromFlag, "--history"}},
		{"kernel", c.Kernel, false, at(4, 1)},
		{"export", c.Export, []Export{{"file", "/b"}, {"file", "/c"}}, Origin{FromEnvironment, "KALYPSO_AGENT_EXPORT"}},
		{"otlp.insecure", c.OTLP.Insecure, true, Origin{FromFlag, "--otlp.insecure"}},
		{"labels", c.Labels, []profiler.Attribute{{Key: "a", Value: "1"}, {Key: "b", Value: "2"}, {Key: "c", Value: "3"}}, Origin{FromFlag, "--labels"}},
		{"spool.max", c.Spool.Max, Bytes(256 << 20), Origin{FromDefault, ""}},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.got, tt.want); diff != "" || c.Origin(tt.name) != tt.origin {
			t.Errorf("%s comes from %v, want %v (-got +want):\n%s", tt.name, c.Origin(tt.name), tt.origin, diff)
		}
	}
}

func TestFileIsNamedByVariableOrFlag(t *testing.T) {
	a, b := written(t, "frequency: 11\n"), written(t, "frequency: 22\n")
	if got := read(t, []string{"KALYPSO_AGENT_CONFIG=" + a}).Frequency; got != 11 {
		t.Errorf("by variable: %d, want 11", got)
	}
	if got := read(t, []string{"KALYPSO_AGENT_CONFIG=" + a}, "--config", b).Frequency; got != 22 {
		t.Errorf("by both: %d, want the flag's 22", got)
	}
}

func TestYAMLIsATree(t *testing.T) {
	c := read(t, nil, "--config", written(t, `# comment
otlp:
  endpoint: pyroscope:4040
  tls: {ca: /ca.pem, server-name: pyroscope}
  tls.cert: /cert.pem
otlp.timeout: 30s
spool:
listen: unix:/run/agent.sock
listen.allow-remote: true
labels: {team: shop, service.namespace: "a=b,c"}
include:
  comm:
  - nginx
  - "kworker*"
export: file:/a,b
`))
	want := OTLP{Endpoint: "pyroscope:4040", Protocol: "grpc", TLS: TLS{CA: "/ca.pem", Cert: "/cert.pem", ServerName: "pyroscope"}, Timeout: 30 * time.Second}
	if diff := cmp.Diff(c.OTLP, want); diff != "" {
		t.Errorf("otlp (-got +want):\n%s", diff)
	}
	if want := (Listen{"unix:/run/agent.sock", true}); c.Listen != want || c.Listen.Socket() != "/run/agent.sock" {
		t.Errorf("listen %+v, want %+v", c.Listen, want)
	}
	if diff := cmp.Diff(c.Labels, []profiler.Attribute{{Key: "service.namespace", Value: "a=b,c"}, {Key: "team", Value: "shop"}}); diff != "" {
		t.Errorf("labels (-got +want):\n%s", diff)
	}
	if diff := cmp.Diff(c.Include.Comm, []string{"nginx", "kworker*"}); diff != "" {
		t.Errorf("include.comm (-got +want):\n%s", diff)
	}
	if diff := cmp.Diff(c.Export, []Export{{"file", "/a,b"}}); diff != "" {
		t.Errorf("export (-got +want):\n%s", diff)
	}
	for _, nothing := range []string{"", "# only a comment\n", "---\n", "null\n"} {
		if c := read(t, nil, "--config", written(t, nothing)); c.Frequency != 97 {
			t.Errorf("%q: frequency %d", nothing, c.Frequency)
		}
	}
}

func TestYAMLIsStrict(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"unknown key", "frequncy: 97\n", "error: agent.yaml:1:1: there is no setting \"frequncy\"\nfix:   did you mean frequency?\n"},
		{"unknown key of a section", "otlp:\n  tls:\n    sever-name: x\n", "error: agent.yaml:3:5: there is no setting \"otlp.tls.sever-name\"\nfix:   did you mean otlp.tls.server-name?\n"},
		{"unknown key that is like nothing", "colour: red\n", "error: agent.yaml:1:1: there is no setting \"colour\"\nfix:   kalypso-agent config show     prints all settings\n"},
		{"no unit", "memory:\n  budget: 128\n", "error: agent.yaml:2:11: memory.budget cannot be \"128\"\ncause: a size is a number and its unit: 128Mi, 1GiB, 500MB\nfix:   budget: 128Mi\n"},
		{"out of bounds", "frequency: 0\n", "error: agent.yaml:1:12: frequency cannot be \"0\"\ncause: it must be between 1 and 10000\nfix:   frequency: 1\n"},
		{"a number in quotes", "frequency: \"97\"\n", "error: agent.yaml:1:12: frequency cannot be \"97\"\ncause: in quotes it is text\nfix:   write it without quotes\n"},
		{"a word for a number", "frequency: often\n", "error: agent.yaml:1:12: frequency cannot be \"often\"\ncause: it takes a whole number\nfix:   frequency: 97     is the default\n"},
		{"a fraction", "frequency: 97.5\n", "error: agent.yaml:1:12: frequency cannot be \"97.5\"\ncause: it takes a whole number\nfix:   frequency: 97     is the default\n"},
		{"a number for text", "otlp: {tenant: 0123}\n", "error: agent.yaml:1:16: otlp.tenant cannot be \"0123\"\ncause: to YAML that is no text\nfix:   write it in quotes: \"0123\"\n"},
		{"yes", "kernel: yes\n", "error: agent.yaml:1:9: kernel cannot be \"yes\"\ncause: it takes true and false\nfix:   kernel: true\n"},
		{"true in quotes", "kernel: 'true'\n", "error: agent.yaml:1:9: kernel cannot be \"true\"\ncause: in quotes it is text\nfix:   write it without quotes\n"},
		{"no value", "frequency:\n", "error: agent.yaml:1:1: frequency has no value\nfix:   leave the line out for the default:  frequency: 97\n"},
		{"a list for one value", "frequency: [97]\n", "error: agent.yaml:1:12: frequency cannot be a list\ncause: it takes a single value here\nfix:   kalypso-agent config show     prints all settings as they are written\n"},
		{"a mapping for one value", "window: {seconds: 15}\n", "error: agent.yaml:1:9: window cannot be a mapping\ncause: it takes a single value here\nfix:   kalypso-agent config show     prints all settings as they are written\n"},
		{"a mapping in a list", "export: [otlp, {file: x}]\n", "error: agent.yaml:1:16: export cannot be a mapping\ncause: it takes a single value here\nfix:   kalypso-agent config show     prints all settings as they are written\n"},
		{"a value for a section", "otlp: pyroscope:4040\n", "error: agent.yaml:1:7: otlp cannot be \"pyroscope:4040\"\ncause: it is a section, which holds endpoint, protocol, insecure, tls.ca, tls.cert, tls.key, tls.server-name, basic.user, basic.password-file, bearer-token-file, headers-file, tenant, timeout\n"},
		{"a wrong member of a list", "export: [otlp, ptlp]\n", "error: agent.yaml:1:16: export cannot be \"ptlp\"\ncause: it takes otlp, pprof and file:DIR\nfix:   export: [otlp]\n"},
		{"text for labels", "labels: team=shop\n", "error: agent.yaml:1:9: labels takes names and values\nfix:   labels: {team: shop}\n"},
		{"a number for a label", "labels: {shard: 7}\n", "error: agent.yaml:1:17: labels cannot be \"7\"\ncause: to YAML that is no text\nfix:   write it in quotes: \"7\"\n"},
		{"an equals sign in a label's key", "labels: {a=b: c}\n", "error: agent.yaml:1:10: \"a=b\" cannot be a name in labels\ncause: it has an equals sign\n"},
		{"a label's key twice", "labels: {a: b, a: c}\n", "error: agent.yaml:1:19: labels cannot be \"a=c\"\ncause: the key a is there twice\nfix:   labels: {KEY: VALUE}\n"},
		{"service.name as a label", "labels: {service.name: c}\n", "error: agent.yaml:1:24: labels cannot be \"service.name=c\"\ncause: --service.name sets it\nfix:   labels: {KEY: VALUE}\n"},
		{"twice", "frequency: 97\nwindow: 15s\nfrequency: 98\n", "error: agent.yaml:3:1: frequency is set again\ncause: it is also set at agent.yaml:1:1\nfix:   leave one of them out\n"},
		{"twice, once with dots", "otlp:\n  endpoint: a:1\notlp.endpoint: b:1\n", "error: agent.yaml:3:1: otlp.endpoint is set again\ncause: it is also set at agent.yaml:2:3\nfix:   leave one of them out\n"},
		{"a section twice", "otlp: {tenant: a}\notlp: {tenant: b}\n", "error: agent.yaml:2:8: otlp.tenant is set again\ncause: it is also set at agent.yaml:1:8\nfix:   leave one of them out\n"},
		{"two documents", "frequency: 97\n---\nwindow: 1s\n", "error: agent.yaml:2:1: a second document begins here\nfix:   one file has one document: take out the line ---\n"},
		{"a list", "- otlp\n", "error: agent.yaml:1:1: this is no setting\ncause: a file of settings holds lines such as  frequency: 97\n"},
		{"an alias", "otlp: &o {tenant: a}\n", "error: agent.yaml:1:7: this is an anchor or an alias\ncause: settings are few, and each is told in its own place\nfix:   write the value itself\n"},
		{"a merge", "<<: {frequency: 97}\n", "error: agent.yaml:1:1: this is not the name of a setting\nfix:   names are plain text, such as  frequency: 97\n"},
		{"a number for a name", "97: frequency\n", "error: agent.yaml:1:1: this is not the name of a setting\nfix:   names are plain text, such as  frequency: 97\n"},
		{"no YAML", "frequency: 97\n\twindow: 15s\n", "error: cannot read the settings in agent.yaml near line 2\ncause: found a tab character that violates indentation\nfix:   YAML wants spaces, not tabs, for indentation, and a space after each colon\n"},
		{"a password in the endpoint is not repeated", "otlp:\n  endpoint: https://user:secret@pyroscope\n", "error: agent.yaml:2:13: otlp.endpoint cannot be \"…\"\ncause: it has a user or a query in it; secrets are in files only\nfix:   endpoint: HOST:PORT\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := written(t, tt.text)
			_, err := Read(parsed(t, "--config", path), nil)
			if diff := cmp.Diff(told(err, path), tt.want); diff != "" {
				t.Errorf("(-got +want):\n%s", diff)
			}
		})
	}
}

// TestBetterValuesAreTaken: what a message says instead of a value is right.
func TestBetterValuesAreTaken(t *testing.T) {
	table := settings()
	c := defaults(table)
	for i := range table {
		s := &table[i]
		for _, text := range []string{"0", "1", "-1", "8", "128", "200", "900", "3600", "134217728", "99999999999999",
			"0%", "0.01%", "0Mi", "1kb", "9Gi", "0s", "1d", "30d", "yes", "/a"} {
			_, wrong := s.set(c, []string{text})
			if wrong == nil || wrong.better == "" {
				continue
			}
			if _, still := s.set(c, []string{wrong.better}); still != nil {
				t.Errorf("--%s %s: %s is to be better, and is refused: %v", s.name, text, wrong.better, still.why)
			}
		}
	}
}

func TestFilesThatCannotBeRead(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "agent.yaml")
	large := written(t, "# "+strings.Repeat("x", fileLimit))
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, path, want string }{
		{"no file", missing, "error: cannot read the settings in agent.yaml\ncause: no such file or directory\nfix:   --config FILE names another file\n"},
		{"a folder", t.TempDir(), "cause: is a directory\n"},
		{"a pipe that nobody writes to", pipe, "cause: it is no regular file\n"},
		{"a large file", large, "cause: it has more than 1048576 bytes\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Read(parsed(t, "--config", tt.path), nil)
			if got := told(err, tt.path); !strings.Contains(got, tt.want) {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestEnvironmentIsStrict(t *testing.T) {
	tests := []struct {
		name     string
		variable string
		want     string
	}{
		{"unknown", "KALYPSO_AGENT_OTLP_ENDPONT=a:1", "error: there is no setting for the variable KALYPSO_AGENT_OTLP_ENDPONT\nfix:   did you mean KALYPSO_AGENT_OTLP_ENDPOINT?\n"},
		{"like nothing", "KALYPSO_AGENT_COLOUR=red", "error: there is no setting for the variable KALYPSO_AGENT_COLOUR\nfix:   kalypso-agent config show     prints all settings\n"},
		{"of the file", "KALYPSO_AGENT_CONFG=a.yaml", "error: there is no setting for the variable KALYPSO_AGENT_CONFG\nfix:   did you mean KALYPSO_AGENT_CONFIG?\n"},
		{"wrong value", "KALYPSO_AGENT_CPU_BUDGET=1", "error: KALYPSO_AGENT_CPU_BUDGET cannot be \"1\"\ncause: a percentage is a number and %: 1%, 0.5%\nfix:   KALYPSO_AGENT_CPU_BUDGET=1%\n"},
		{"empty", "KALYPSO_AGENT_FREQUENCY=", "error: KALYPSO_AGENT_FREQUENCY cannot be \"\"\ncause: it takes a whole number\nfix:   KALYPSO_AGENT_FREQUENCY=97     is the default\n"},
		{"the second of a list", "KALYPSO_AGENT_EXPORT=otlp,file:", "error: KALYPSO_AGENT_EXPORT cannot be \"file:\"\ncause: it takes otlp, pprof and file:DIR\nfix:   KALYPSO_AGENT_EXPORT=otlp     is the default\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Read(parsed(t), []string{"HOME=/", tt.variable})
			if diff := cmp.Diff(told(err, ""), tt.want); diff != "" {
				t.Errorf("(-got +want):\n%s", diff)
			}
		})
	}
}

func TestVariablesThatAreNobodysSettings(t *testing.T) {
	c := read(t, []string{
		"KALYPSO_AGENT=x", "KALYPSO_REQUIRE_BPF=1", "kalypso_agent_frequency=1",
		// What Kubernetes makes of the Services kalypso-agent and kalypso-agent-api.
		"KALYPSO_AGENT_SERVICE_HOST=10.0.0.1", "KALYPSO_AGENT_SERVICE_PORT=4041", "KALYPSO_AGENT_SERVICE_PORT_HTTP=4041",
		"KALYPSO_AGENT_PORT=tcp://10.0.0.1:4041", "KALYPSO_AGENT_PORT_4041_TCP=tcp://10.0.0.1:4041", "KALYPSO_AGENT_PORT_4041_TCP_PROTO=tcp",
		"KALYPSO_AGENT_PORT_4041_TCP_PORT=4041", "KALYPSO_AGENT_PORT_4041_TCP_ADDR=10.0.0.1",
		"KALYPSO_AGENT_API_SERVICE_HOST=10.0.0.2", "KALYPSO_AGENT_API_PORT_80_TCP_ADDR=10.0.0.2",
	})
	if got := c.Service.Name; got != "" {
		t.Errorf("service.name is %q", got)
	}
}

func TestFlagsAreStrict(t *testing.T) {
	tests := []struct {
		name string
		args string
		want string
	}{
		{"no unit", "--memory.budget=128", "error: --memory.budget cannot be \"128\"\ncause: a size is a number and its unit: 128Mi, 1GiB, 500MB\nfix:   --memory.budget 128Mi\n"},
		{"lower case", "--spool.max=128mi", "error: --spool.max cannot be \"128mi\"\ncause: a size is a number and its unit: 128Mi, 1GiB, 500MB\nfix:   --spool.max 128Mi\n"},
		{"below zero", "--spool.max=-1Mi", "error: --spool.max cannot be \"-1Mi\"\ncause: it must be between 1Mi and 1Ti\nfix:   --spool.max 1Mi\n"},
		{"huge", "--spool.max=9999999999Ti", "error: --spool.max cannot be \"9999999999Ti\"\ncause: it is more than any disk holds\nfix:   --spool.max 256Mi     is the default\n"},
		{"over its bound", "--cpu.budget=101%", "error: --cpu.budget cannot be \"101%\"\ncause: it must be between 0.05% and 100%\nfix:   --cpu.budget 100%\n"},
		{"nothing", "--cpu.budget=0%", "error: --cpu.budget cannot be \"0%\"\ncause: it must be between 0.05% and 100%\nfix:   --cpu.budget 0.05%\n"},
		{"duration without unit", "--window=15", "error: --window cannot be \"15\"\ncause: a duration is a number and its unit: 500ms, 10s, 5m, 1h\nfix:   --window 15s\n"},
		{"days", "--spool.max-age=2d", "error: --spool.max-age cannot be \"2d\"\ncause: a duration is a number and its unit: 500ms, 10s, 5m, 1h\nfix:   --spool.max-age 48h\n"},
		{"duration over its bound", "--window=1h", "error: --window cannot be \"1h\"\ncause: it must be between 1s and 10m\nfix:   --window 10m\n"},
		{"soon", "--window=soon", "error: --window cannot be \"soon\"\ncause: a duration is a number and its unit: 500ms, 10s, 5m, 1h\nfix:   --window 15s     is the default\n"},
		{"a word that is none of the few", "--otlp.protocol=gprc", "error: --otlp.protocol cannot be \"gprc\"\ncause: it takes grpc, http\nfix:   --otlp.protocol grpc\n"},
		{"a level that is none", "--log.level=warning", "error: --log.level cannot be \"warning\"\ncause: it takes debug, info, warn, error\nfix:   --log.level info     is the default\n"},
		{"a port is missing", "--otlp.endpoint=pyroscope", "error: --otlp.endpoint cannot be \"pyroscope\"\ncause: it is HOST:PORT, or a URL that begins with http:// or https://\nfix:   --otlp.endpoint pyroscope:4040\n"},
		{"a host is missing", "--otlp.endpoint=:4040", "error: --otlp.endpoint cannot be \":4040\"\ncause: it is HOST:PORT, or a URL that begins with http:// or https://\nfix:   --otlp.endpoint 127.0.0.1:4040\n"},
		{"a port that is none", "--otlp.endpoint=pyroscope:70000", "error: --otlp.endpoint cannot be \"pyroscope:70000\"\ncause: it is HOST:PORT, or a URL that begins with http:// or https://\nfix:   --otlp.endpoint HOST:PORT\n"},
		{"another scheme", "--otlp.endpoint=grpc://pyroscope:4040", "error: --otlp.endpoint cannot be \"grpc://pyroscope:4040\"\ncause: it is HOST:PORT, or a URL that begins with http:// or https://\nfix:   --otlp.endpoint HOST:PORT\n"},
		{"a token in the endpoint is not repeated", "--otlp.endpoint=https://pyroscope/?token=secret", "error: --otlp.endpoint cannot be \"…\"\ncause: it has a user or a query in it; secrets are in files only\nfix:   --otlp.endpoint HOST:PORT\n"},
		{"an address without a port", "--telemetry.otlp.endpoint=::1", "error: --telemetry.otlp.endpoint cannot be \"::1\"\ncause: it is HOST:PORT, or a URL that begins with http:// or https://\nfix:   --telemetry.otlp.endpoint [::1]:4317\n"},
		{"port 0 of a backend", "--otlp.endpoint=a:0", "error: --otlp.endpoint cannot be \"a:0\"\ncause: it is HOST:PORT, or a URL that begins with http:// or https://\nfix:   --otlp.endpoint HOST:PORT\n"},
		{"nothing to listen on", "--listen=4041", "error: --listen cannot be \"4041\"\ncause: it is HOST:PORT, the port a number up to 65535, or unix:PATH\nfix:   --listen 127.0.0.1:4041     is the default\n"},
		{"an empty pattern", "--include.comm=a,", "error: --include.comm cannot be \"\"\ncause: a pattern is a name, in which * stands for anything\nfix:   --include.comm PATTERN\n"},
		{"a socket without its word", "--listen=/run/agent.sock", "error: --listen cannot be \"/run/agent.sock\"\ncause: a socket is written unix:PATH\nfix:   --listen unix:/run/agent.sock\n"},
		{"a socket somewhere", "--listen=unix:agent.sock", "error: --listen cannot be \"unix:agent.sock\"\ncause: the path of a socket begins with / and has at most 107 bytes\nfix:   --listen unix:/run/kalypso-agent.sock\n"},
		{"a folder without its word", "--export=/var/profiles", "error: --export cannot be \"/var/profiles\"\ncause: it takes otlp, pprof and file:DIR\nfix:   --export file:/var/profiles\n"},
		{"a name longer than the kernel keeps", "--include.comm=a-very-long-process", "error: --include.comm cannot be \"a-very-long-process\"\ncause: the kernel keeps 15 bytes of a process's name, this has 19\nfix:   --include.comm a-very-long-pro\n"},
		{"a label without a value", "--labels=team", "error: --labels cannot be \"team\"\ncause: a label is KEY=VALUE\nfix:   --labels KEY=VALUE\n"},
		{"a label's key", "--labels=1st=x", "error: --labels cannot be \"1st=x\"\ncause: a key begins with a letter, goes on with letters, digits, dots and underscores, and has at most 128\nfix:   --labels KEY=VALUE\n"},
		{"too many labels", "--labels=a=1,b=2,c=3,d=4,e=5,f=6,g=7,h=8,i=9", "error: --labels cannot be \"i=9\"\ncause: there may be 8 labels, these are 9: backends bound how many a series has\nfix:   --labels KEY=VALUE\n"},
		{"neither true nor false", "--kernel=maybe", "error: --kernel cannot be \"maybe\"\ncause: it takes true and false\nfix:   --kernel=true     is the default\n"},
		{"control characters", "--otlp.tenant=a\x1bb", "error: --otlp.tenant cannot be \"a\\x1bb\"\ncause: it holds characters that cannot be printed\nfix:   --otlp.tenant NAME\n"},
		{"a long value is not repeated whole", "--frequency=" + strings.Repeat("9", 100), "error: --frequency cannot be \"" + strings.Repeat("9", 60) + "…\"\ncause: it takes a whole number\nfix:   --frequency 97     is the default\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Read(parsed(t, tt.args), nil)
			if diff := cmp.Diff(told(err, ""), tt.want); diff != "" {
				t.Errorf("(-got +want):\n%s", diff)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want string // empty: it is right
	}{
		{"no backend", nil, "there is no backend to send profiles to"},
		{"a backend", []string{"--otlp.endpoint=a:4040"}, ""},
		{"files need none", []string{"--export=file:/var/profiles"}, ""},
		{"pprof needs one", []string{"--export=pprof"}, "there is no backend"},
		{"a backend and files", []string{"--export=otlp", "--export=file:/a", "--otlp.endpoint=a:4040"}, ""},
		{"both protocols", []string{"--export=otlp,pprof", "--otlp.endpoint=a:4040"}, "otlp and pprof exclude each other"},
		{"the same folder twice", []string{"--export=file:/a,file:/a"}, `the export "file:/a" is there twice`},
		{"every address", []string{"--export=file:/a", "--listen=:4041"}, "other machines can reach the address :4041"},
		{"an address of the network", []string{"--export=file:/a", "--listen=10.0.0.1:4041"}, "other machines can reach"},
		{"the same, allowed", []string{"--export=file:/a", "--listen=10.0.0.1:4041", "--listen.allow-remote"}, ""},
		{"this machine by IPv6", []string{"--export=file:/a", "--listen=[::1]:0"}, ""},
		{"this machine by name", []string{"--export=file:/a", "--listen=localhost:4041"}, ""},
		{"a socket", []string{"--export=file:/a", "--listen=unix:/run/a.sock"}, ""},
		{"nowhere", []string{"--export=file:/a", "--listen="}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Load(parsed(t, tt.args...), nil)
			switch {
			case tt.want == "" && err != nil:
				t.Error(told(err, ""))
			case tt.want != "" && !strings.Contains(told(err, ""), tt.want):
				t.Errorf("got %q, want %q in it", told(err, ""), tt.want)
			case (c == nil) != (err != nil):
				t.Errorf("settings %v with the error %v", c, err)
			}
		})
	}
}

func TestInsecureFollowsFromTheEndpoint(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want bool
	}{
		{"no endpoint", nil, false},
		{"this machine", []string{"--otlp.endpoint=127.0.0.1:4040"}, true},
		{"this machine by IPv6", []string{"--otlp.endpoint=[::1]:4040"}, true},
		{"this machine by name", []string{"--otlp.endpoint=localhost:4040"}, true},
		{"this machine, but told not to", []string{"--otlp.endpoint=127.0.0.1:4040", "--otlp.insecure=false"}, false},
		{"this machine with certificates", []string{"--otlp.endpoint=127.0.0.1:4040", "--otlp.tls.ca=ca.pem"}, false},
		{"another machine", []string{"--otlp.endpoint=pyroscope:4040"}, false},
		{"another machine, told so", []string{"--otlp.endpoint=pyroscope:4040", "--otlp.insecure"}, true},
		{"a name that begins like this machine's", []string{"--otlp.endpoint=127.0.0.1.example.org:4040"}, false},
		{"a URL says it itself", []string{"--otlp.endpoint=https://127.0.0.1:4040"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := read(t, nil, tt.args...)
			if c.OTLP.Insecure != tt.want {
				t.Errorf("insecure is %v, want %v", c.OTLP.Insecure, tt.want)
			}
			for i, arg := range tt.args {
				tt.args[i] = strings.Replace(arg, "--otlp", "--telemetry.otlp", 1)
			}
			if c := read(t, nil, tt.args...); c.Telemetry.OTLP.Insecure != tt.want {
				t.Errorf("of telemetry it is %v, want %v", c.Telemetry.OTLP.Insecure, tt.want)
			}
		})
	}
}

func TestWants(t *testing.T) {
	tests := []struct {
		name                  string
		args                  []string
		service, comm, cgroup string
		want                  bool
	}{
		{"all pass without patterns", nil, "nginx", "nginx", "/system.slice/nginx.service", true},
		{"a service", []string{"--include.service=nginx"}, "nginx", "x", "/", true},
		{"another service", []string{"--include.service=nginx"}, "nginx2", "nginx", "/", false},
		{"one of several", []string{"--include.service=a,nginx"}, "nginx", "x", "/", true},
		{"a star at the end", []string{"--include.service=container-*"}, "container-0123", "x", "/", true},
		{"a star in the middle", []string{"--include.comm=kworker*u*"}, "", "kworker/u8:1", "/", true},
		{"a star for nothing", []string{"--include.comm=nginx*"}, "", "nginx", "/", true},
		{"stars that would overlap", []string{"--include.comm=ab*ba"}, "", "aba", "/", false},
		{"kinds narrow each other", []string{"--include.service=nginx", "--include.comm=worker"}, "nginx", "master", "/", false},
		{"excluded", []string{"--exclude.comm=stress*"}, "", "stress-ng", "/", false},
		{"exclude wins", []string{"--include.service=nginx", "--exclude.comm=nginx"}, "nginx", "nginx", "/", false},
		{"a cgroup", []string{"--include.cgroup=/system.slice"}, "", "", "/system.slice", true},
		{"below a cgroup", []string{"--include.cgroup=/system.slice"}, "", "", "/system.slice/nginx.service", true},
		{"beside a cgroup", []string{"--include.cgroup=/system.slice"}, "", "", "/system.slice2/x", false},
		{"without the first slash", []string{"--include.cgroup=system.slice/"}, "", "", "/system.slice/nginx.service", true},
		{"a star before", []string{"--exclude.cgroup=*/docker-*"}, "", "", "/system.slice/docker-01.scope/init", false},
		{"the root is all", []string{"--include.cgroup=/"}, "", "", "/user.slice", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := read(t, nil, tt.args...).Wants(tt.service, tt.comm, tt.cgroup); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestChanges(t *testing.T) {
	before := read(t, nil, "--otlp.endpoint=a:1", "--frequency=97", "--labels=team=shop", "--config", written(t, "include: {comm: [x]}"))
	path := written(t, "memory: {budget: 96Mi}\nlog: {level: debug}\nwindow: 30s\nlabels: {team: cart}\n")
	after := read(t, nil, "--otlp.endpoint=b:1", "--frequency=97", "--config", path)
	at := func(place string) Origin { return Origin{FromFile, path + place} }
	want := []Change{
		{"otlp.endpoint", "a:1", "b:1", Origin{FromFlag, "--otlp.endpoint"}, true},
		{"window", "15s", "30s", at(":3:1"), true},
		{"include.comm", "x", "", Origin{FromDefault, ""}, false},
		{"labels", "team=shop", "team=cart", at(":4:1"), false},
		{"memory.budget", "128Mi", "96Mi", at(":1:10"), false},
		{"log.level", "info", "debug", at(":2:7"), false},
	}
	if diff := cmp.Diff(Changes(before, after), want); diff != "" {
		t.Errorf("changes (-got +want):\n%s", diff)
	}
	now := Running(before, after)
	if now.OTLP.Endpoint != "a:1" || now.Window != 15*time.Second || now.Memory.Budget != 96<<20 || now.Log.Level != slog.LevelDebug || len(now.Include.Comm) != 0 {
		t.Errorf("running: %+v", now)
	}
	if got := now.Origin("window"); got != before.Origin("window") {
		t.Errorf("window comes from %v", got)
	}
	for _, c := range Changes(now, after) {
		if !c.Restart {
			t.Errorf("%s is still to change", c.Name)
		}
	}
	if changes := Changes(before, before); len(changes) != 0 {
		t.Errorf("nothing changed, and %v did", changes)
	}
}

// TestLiveSettings is the promise of the reference: these and no others.
func TestLiveSettings(t *testing.T) {
	var live []string
	for _, s := range settings() {
		if s.live {
			live = append(live, s.name)
		}
	}
	want := []string{"frequency", "include.service", "include.comm", "include.cgroup",
		"include.namespace", "exclude.namespace", "exclude.service", "exclude.comm", "exclude.cgroup",
		"labels", "service.name", "kubernetes.selector", "kubernetes.opt-in", "cpu.budget", "memory.budget", "log.level"}
	if diff := cmp.Diff(live, want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}

// TestBounds: what is refused here is what the service would refuse.
func TestBounds(t *testing.T) {
	minMemory := Bytes(pipeline.MinMemoryBudget)
	for flag, right := range map[string]bool{
		fmt.Sprintf("--frequency=%d", pipeline.MinFrequency):   true,
		fmt.Sprintf("--frequency=%d", pipeline.MinFrequency-1): false,
		fmt.Sprintf("--frequency=%d", pipeline.MaxFrequency):   true,
		fmt.Sprintf("--frequency=%d", pipeline.MaxFrequency+1): false,
		"--memory.budget=" + minMemory.String():                true,
		"--memory.budget=" + (minMemory - 1).String():          false,
	} {
		if _, err := Read(parsed(t, flag), nil); (err == nil) != right {
			t.Errorf("%s: %v", flag, err)
		}
	}
}

// TestWrittenSettingsAreReadAgain: what "config show" prints is a file that
// gives the same settings, with and without origins.
func TestWrittenSettingsAreReadAgain(t *testing.T) {
	table := settings()
	var args []string
	for i := range table {
		args = append(args, "--"+table[i].name+"="+sample(&table[i]))
	}
	for _, args := range [][]string{nil, args, {"--labels=a=true,b=1,c=x y: #", "--otlp.tenant=null", "--include.comm=*,12", "--listen="}} {
		before := read(t, nil, args...)
		for _, origins := range []bool{false, true} {
			var text bytes.Buffer
			if err := before.WriteYAML(&text, origins); err != nil {
				t.Fatal(err)
			}
			after := read(t, nil, "--config", written(t, text.String()))
			if changes := Changes(before, after); len(changes) > 0 {
				t.Errorf("changed by writing and reading: %v\n%s", changes, &text)
			}
		}
	}
}

var update = flag.Bool("update", false, "write docs/reference/configuration.md anew")

func TestReference(t *testing.T) {
	const page = "../../../../docs/reference/configuration.md"
	var want bytes.Buffer
	if err := WriteReference(&want); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(page, want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(got), want.String()); diff != "" {
		t.Errorf("%s is not what the table says; go test ./cmd/agent/internal/config -update (-got +want):\n%s", page, diff)
	}
	if _, err := Load(parsed(t, "--config", written(t, Example)), nil); err != nil {
		t.Errorf("the example is wrong: %s", told(err, ""))
	}
}
