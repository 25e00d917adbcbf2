package helm

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/release"
	"helm.sh/helm/v3/pkg/releaseutil"
	"sigs.k8s.io/yaml"

	"github.com/kalypso-dev/kalypso/profiler"
)

// DefaultKubeVersion is what charts are rendered for where no cluster says
// otherwise. Helm's own would be 1.20: it takes it from build flags that
// nobody sets.
const DefaultKubeVersion = "v1.33.4"

// Release is where a chart goes.
type Release struct {
	Name        string
	Namespace   string
	KubeVersion string // DefaultKubeVersion when empty
	Upgrade     bool   // some charts render otherwise then: Istio's leave a policy to istiod
}

// Manifests is what a chart renders to.
type Manifests struct {
	CRDs    []Object // of the charts' crds folders: applied first, never deleted
	Objects []Object // in the order that Helm installs them
	Hooks   []Object // run at certain times, not part of the release; those of "helm test" are left out
	Notes   string   // NOTES.txt of our chart
}

// Object is one Kubernetes object.
type Object struct {
	APIVersion string
	Kind       string
	Namespace  string // empty where the template does not say
	Name       string
	Template   string   // the file that it comes from
	Events     []string // of a hook: when it runs
	YAML       string
}

// ValuesError is what a chart's schema says of values.
type ValuesError struct{ err error }

// Error is what the schema says.
func (e *ValuesError) Error() string { return e.err.Error() }

// Unwrap gives the profiler.Fault.
func (e *ValuesError) Unwrap() error { return e.err }

// Render makes the objects of a release, with the charts that it depends on
// from archives. The same input gives the same bytes. An error is a
// profiler.Fault where the values or the archives are at fault.
func Render(c *Chart, archives *Archives, r Release, values Values) (*Manifests, error) {
	loaded, err := c.withDependencies(archives, values)
	if err != nil {
		return nil, err
	}
	caps, err := capabilities(r.KubeVersion)
	if err != nil {
		return nil, err
	}
	if err := chartutil.ProcessDependenciesWithMerge(loaded, values); err != nil {
		return nil, c.fault(r, err)
	}
	top, err := chartutil.ToRenderValues(loaded, values, chartutil.ReleaseOptions{Name: r.Name, Namespace: r.Namespace, Revision: 1, IsInstall: !r.Upgrade, IsUpgrade: r.Upgrade}, caps)
	if err != nil {
		return nil, &ValuesError{c.fault(r, err)}
	}
	if need := loaded.Metadata.KubeVersion; need != "" && !chartutil.IsCompatibleRange(need, caps.KubeVersion.Version) {
		return nil, &profiler.Fault{What: fmt.Sprintf("%s needs Kubernetes %s", c.Name(), need), Why: errors.New("it is rendered for " + caps.KubeVersion.Version)}
	}
	files, err := engine.Engine{}.Render(loaded, top)
	if err != nil {
		return nil, c.fault(r, err)
	}
	m := &Manifests{Notes: takeNotes(files, path.Join(c.Name(), "templates", "NOTES.txt"))}
	for _, crd := range loaded.CRDObjects() {
		if err := appendObjects(&m.CRDs, crd.Filename, string(crd.File.Data)); err != nil {
			return nil, err
		}
	}
	hooks, generic, err := releaseutil.SortManifests(files, nil, releaseutil.InstallOrder)
	if err != nil {
		return nil, c.fault(r, err)
	}
	for _, g := range generic {
		if err := appendObjects(&m.Objects, g.Name, g.Content); err != nil {
			return nil, err
		}
	}
	for _, h := range hooks {
		o, err := hook(h)
		if err != nil {
			return nil, err
		}
		if len(o.Events) > 0 {
			m.Hooks = append(m.Hooks, o)
		}
	}
	return m, nil
}

// withDependencies is the chart with those that these values switch on.
func (c *Chart) withDependencies(archives *Archives, values Values) (*chart.Chart, error) {
	loaded, err := c.load()
	if err != nil {
		return nil, err
	}
	for _, d := range c.Dependencies(values) {
		dependency, err := archives.load(d)
		if err != nil {
			return nil, err
		}
		loaded.AddDependency(dependency)
	}
	return loaded, nil
}

// hook reads a hook; one that is for "helm test" alone has no Events.
func hook(h *release.Hook) (Object, error) {
	o, err := parse(h.Path, h.Manifest)
	for _, e := range h.Events {
		if e != release.HookTest {
			o.Events = append(o.Events, e.String())
		}
	}
	return o, err
}

// fault says that a chart cannot be rendered with its values.
func (c *Chart) fault(r Release, err error) error {
	return &profiler.Fault{What: "cannot render " + r.Name, Why: tidy(err), Fix: "kalypsoctl config show --origin     prints the values and where each came from"}
}

var blanks = regexp.MustCompile(`\s*\n\s*`)

// tidy puts an error of Helm's on one line.
func tidy(err error) error {
	return errors.New(blanks.ReplaceAllString(strings.TrimSpace(err.Error()), " "))
}

// CheckKubeVersion says whether charts can be rendered for a version.
func CheckKubeVersion(version string) error {
	_, err := capabilities(version)
	return err
}

func capabilities(version string) (*chartutil.Capabilities, error) {
	if version == "" {
		version = DefaultKubeVersion
	}
	parsed, err := chartutil.ParseKubeVersion(version)
	if err != nil {
		return nil, &profiler.Fault{What: fmt.Sprintf("there can be no Kubernetes %q", version), Fix: "give a version such as " + DefaultKubeVersion}
	}
	caps := chartutil.DefaultCapabilities.Copy()
	caps.KubeVersion = *parsed
	return caps, nil
}

// takeNotes takes the notes out of rendered files: those of a chart below ours
// speak of a release that is ours.
func takeNotes(files map[string]string, ours string) string {
	notes := strings.TrimSpace(files[ours])
	for name := range files {
		if path.Base(name) == "NOTES.txt" {
			delete(files, name)
		}
	}
	return notes
}

// appendObjects adds the objects of a file of YAML documents.
func appendObjects(to *[]Object, template, text string) error {
	documents := releaseutil.SplitManifests(text)
	keys := make([]string, 0, len(documents))
	for key := range documents {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b string) int { // manifest-2 before manifest-10
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	for _, key := range keys {
		o, err := parse(template, documents[key])
		if err != nil {
			return err
		}
		if o.Kind != "" {
			*to = append(*to, o)
		}
	}
	return nil
}

// parse reads what an object is. Comments alone are an Object without a kind.
func parse(template, text string) (Object, error) {
	var head struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   struct {
			Name      string `json:"name"`
			Namespace string `json:"namespace"`
		} `json:"metadata"`
	}
	if err := yaml.Unmarshal([]byte(text), &head); err != nil {
		return Object{}, fmt.Errorf("read what %s renders: %w", template, err)
	}
	return Object{
		APIVersion: head.APIVersion, Kind: head.Kind, Namespace: head.Metadata.Namespace, Name: head.Metadata.Name,
		Template: template, YAML: strings.TrimSpace(text) + "\n",
	}, nil
}
