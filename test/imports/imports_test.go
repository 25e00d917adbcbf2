// Package imports keeps the dependency rules of docs/architecture.md over the
// packages as "go list" sees them.
package imports

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/kalypso-dev/kalypso"

// goPackage is what we need of one "go list -json" document.
type goPackage struct {
	ImportPath string
	Standard   bool
	Imports    []string
	Deps       []string
}

// list runs "go list -deps" over the module for one platform and gives its
// own packages by path relative to the module, and which import paths belong
// to the standard library.
func list(t *testing.T, goarch string) (own map[string]goPackage, standard map[string]bool) {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Standard,Imports,Deps", module+"/...")
	cmd.Env = append(cmd.Environ(), "GOOS=linux", "GOARCH="+goarch, "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	own, standard = map[string]goPackage{}, map[string]bool{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("go list: %v", err)
		}
		standard[p.ImportPath] = p.Standard
		if rel, ok := relative(p.ImportPath); ok {
			own[rel] = p
		}
	}
	if len(own) == 0 {
		t.Fatal("go list found no package of the module")
	}
	return own, standard
}

func relative(path string) (string, bool) {
	return strings.CutPrefix(path, module+"/")
}

// within says whether the package is the folder or below it.
func within(pkg, folder string) bool {
	return pkg == folder || strings.HasPrefix(pkg, folder+"/")
}

// A rule forbids the packages in from to depend on those in to, directly or
// through others.
type rule struct {
	name   string
	from   func(pkg string) bool
	to     func(from, pkg string) bool
	except []string
}

func in(folders ...string) func(string) bool {
	return func(pkg string) bool {
		for _, f := range folders {
			if within(pkg, f) {
				return true
			}
		}
		return false
	}
}

func reaches(folders ...string) func(string, string) bool {
	inside := in(folders...)
	return func(_, pkg string) bool { return inside(pkg) }
}

func rules() []rule {
	return []rule{
		{
			name: "profiler imports no other package of ours",
			from: func(pkg string) bool { return pkg == "profiler" },
			to:   func(string, string) bool { return true },
		},
		{
			name: "nothing imports cmd",
			from: func(pkg string) bool { return !within(pkg, "cmd") },
			to:   reaches("cmd"),
		},
		{
			name: "exporters and the viewer know profiles, not how they are made",
			from: in("exporter", "viewer"),
			to: func(_, pkg string) bool {
				return within(pkg, "bpf") || strings.HasPrefix(pkg, "profiler/")
			},
		},
		{
			name: "deploy knows nothing of BPF and of sampling",
			from: in("deploy"),
			to: func(_, pkg string) bool {
				return within(pkg, "bpf") || strings.HasPrefix(pkg, "profiler/") && !within(pkg, "profiler/api")
			},
		},
		{
			name: "kalypsoctl sees profiles through the agent's API",
			from: in("cmd/kalypsoctl"),
			to: func(_, pkg string) bool {
				return within(pkg, "bpf") || within(pkg, "cmd/agent") || strings.HasPrefix(pkg, "profiler/") && !within(pkg, "profiler/api")
			},
		},
		{
			name: "what is said of the stack knows no Helm",
			from: in("deploy/component", "deploy/plan", "deploy/argocd", "deploy/secret", "charts"),
			to:   reaches("deploy/helm"),
		},
		{
			name: "runtimes do not know each other",
			from: func(pkg string) bool { return strings.HasPrefix(pkg, "profiler/lang/") },
			to: func(from, pkg string) bool {
				return strings.HasPrefix(pkg, "profiler/lang/") && runtimeOf(pkg) != runtimeOf(from)
			},
		},
		{
			name: "runtimes, files and names are testable without BPF",
			from: in("profiler/lang", "profiler/elffile", "profiler/cfi", "profiler/dwarf", "profiler/symbolize"),
			to:   reaches("bpf"),
		},
		{
			name: "files and rows are below processes and names",
			from: in("profiler/elffile", "profiler/cfi", "profiler/dwarf"),
			to:   reaches("profiler/process", "profiler/lang", "profiler/symbolize", "profiler/sampler", "profiler/pipeline"),
		},
		{
			name: "only the agent starts the profiler",
			from: func(pkg string) bool { return !within(pkg, "cmd/agent") && !within(pkg, "test") },
			to:   reaches("profiler/pipeline"),
			// The package itself and what is below it.
			except: []string{"profiler/pipeline"},
		},
	}
}

// runtimeOf is "python" of profiler/lang/python/offsets.
func runtimeOf(pkg string) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(pkg, "profiler/lang/"), "/")
	return name
}

func TestDependenciesPointDown(t *testing.T) {
	for _, goarch := range []string{"amd64", "arm64"} {
		own, standard := list(t, goarch)
		for name, p := range own {
			for _, r := range rules() {
				if !r.from(name) || in(r.except...)(name) {
					continue
				}
				for _, dep := range p.Deps {
					if to, ours := relative(dep); ours && to != name && r.to(name, to) {
						t.Errorf("%s: %s depends on %s: %s", goarch, name, to, r.name)
					}
				}
			}
		}
		for _, bottom := range []string{"profiler", "deploy/check", "deploy/component", "charts", "docs"} {
			p, ok := own[bottom]
			if !ok {
				t.Fatalf("%s: no package %s", goarch, bottom)
			}
			for _, dep := range p.Imports {
				if !standard[dep] {
					t.Errorf("%s: %s imports %s: it may import only the standard library", goarch, bottom, dep)
				}
			}
		}
	}
}

// TestRulesBite shows each rule a dependency that it must forbid, and one
// that it must let pass.
func TestRulesBite(t *testing.T) {
	forbidden := map[string][2]string{
		"profiler imports no other package of ours":                     {"profiler", "viewer"},
		"nothing imports cmd":                                           {"profiler/process", "cmd/agent/internal/doctor"},
		"exporters and the viewer know profiles, not how they are made": {"exporter/format", "profiler/elffile"},
		"deploy knows nothing of BPF and of sampling":                   {"deploy/check", "bpf"},
		"kalypsoctl sees profiles through the agent's API":              {"cmd/kalypsoctl", "profiler/pipeline"},
		"what is said of the stack knows no Helm":                       {"deploy/plan", "deploy/helm"},
		"runtimes do not know each other":                               {"profiler/lang/golang", "profiler/lang/native"},
		"runtimes, files and names are testable without BPF":            {"profiler/lang/native", "bpf"},
		"files and rows are below processes and names":                  {"profiler/cfi", "profiler/process"},
		"only the agent starts the profiler":                            {"viewer", "profiler/pipeline"},
	}
	for _, r := range rules() {
		pair, ok := forbidden[r.name]
		if !ok {
			t.Errorf("no example of what %q forbids", r.name)
			continue
		}
		if !r.from(pair[0]) || !r.to(pair[0], pair[1]) {
			t.Errorf("%q lets %s depend on %s", r.name, pair[0], pair[1])
		}
		if pair[0] != "profiler" && r.from(pair[0]) && r.to(pair[0], "profiler") {
			t.Errorf("%q forbids %s to depend on profiler", r.name, pair[0])
		}
	}
}

// TestLibrariesHaveOneRoom: what changes with every release is imported in one
// place.
func TestLibrariesHaveOneRoom(t *testing.T) {
	own, _ := list(t, "amd64")
	for library, rooms := range map[string][]string{
		"go.opentelemetry.io/collector/pdata/":    {"exporter/otlp"},
		"go.opentelemetry.io/otel/":               {"profiler/telemetry"},
		"github.com/prometheus/":                  {"profiler/telemetry"},
		"google.golang.org/grpc":                  {"exporter/otlp", "exporter/transport", "profiler/telemetry"},
		"github.com/cilium/ebpf":                  {"bpf", "profiler/sampler", "cmd/agent/internal/doctor"},
		"go.yaml.in/yaml/":                        {"cmd/internal/cli", "cmd/agent/internal/config", "cmd/kalypsoctl/internal/config", "release"},
		"helm.sh/helm/":                           {"deploy/helm"},
		"github.com/minio/minio-go/":              {"deploy/bucket"},
		"k8s.io/client-go/":                       {"deploy", "cmd/kalypsoctl"}, // 44 MB, too much for every node
		"github.com/google/go-containerregistry/": {"deploy/image", "docker/images", "release"},
		"sigs.k8s.io/yaml":                        {"deploy/helm", "deploy/argocd"},
		"github.com/google/pprof/":                {"exporter/format", "viewer", "exporter/pyroscope", "exporter/file"},
		"github.com/ianlancetaylor/demangle":      {"profiler/demangle"},
		"github.com/spf13/":                       {"cmd"},
		"google.golang.org/protobuf/":             {"exporter", "deploy/pyroscope"},
		"go.opentelemetry.io/proto/otlp/":         {}, // for tests only
	} {
		for name, p := range own {
			for _, dep := range p.Imports {
				if strings.HasPrefix(dep, library) && !in(append(rooms, "test")...)(name) {
					t.Errorf("%s imports %s, which belongs to %s", name, dep, strings.Join(rooms, ", "))
				}
			}
		}
	}
}
