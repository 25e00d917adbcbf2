// Package helm makes Kubernetes objects of our charts.
//
// A chart of ours wraps charts of others, which it names by version and
// repository and does not contain. The package joins the two: the wrapper comes
// from a file system (it is part of the binary), the others come packaged from
// a folder, where Pull has put them. Values go on top of each other here, and
// templates are rendered here, without a cluster.
//
// It does not know which components there are, in which order they go or who
// asked. It imports Helm's SDK so that others need not.
package helm

import (
	"fmt"
	"io/fs"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/strvals"
)

// Values is what a chart is told.
type Values = map[string]any

// Chart is a chart of ours without the charts that it depends on.
type Chart struct {
	files []*loader.BufferedFile
	meta  chart.Metadata

	// Defaults is its values.yaml.
	Defaults Values
}

// Open reads a chart of ours.
func Open(fsys fs.FS) (*Chart, error) {
	c := &Chart{}
	err := fs.WalkDir(fsys, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(fsys, path)
		if err == nil {
			c.files = append(c.files, &loader.BufferedFile{Name: path, Data: data})
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read a chart: %w", err)
	}
	loaded, err := c.load()
	if err != nil {
		return nil, err
	}
	c.meta, c.Defaults = *loaded.Metadata, loaded.Values
	return c, nil
}

// load makes Helm's form of the chart, anew each time: rendering changes it.
func (c *Chart) load() (*chart.Chart, error) {
	loaded, err := loader.LoadFiles(c.files)
	if err != nil {
		return nil, fmt.Errorf("load a chart: %w", err)
	}
	return loaded, nil
}

// Name and Version are those of Chart.yaml.
func (c *Chart) Name() string { return c.meta.Name }

// Version is that of Chart.yaml.
func (c *Chart) Version() string { return c.meta.Version }

// Profile reads the values of a profile, which a chart has where they differ
// from its defaults.
func (c *Chart) Profile(name string) (Values, error) {
	for _, f := range c.files {
		if f.Name == "profiles/"+name+".yaml" {
			v, err := ReadValues(f.Data)
			if err != nil {
				return nil, fmt.Errorf("read profile %s of %s: %w", name, c.Name(), err)
			}
			return v, nil
		}
	}
	return nil, nil
}

// Dependencies are the upstream charts that these values switch on.
func (c *Chart) Dependencies(values Values) []Dependency {
	merged := chartutil.Values(Merge(c.Defaults, values))
	var out []Dependency
	for _, d := range c.meta.Dependencies {
		if on, err := merged.PathValue(d.Condition); d.Condition != "" && err == nil && on == false {
			continue
		}
		out = append(out, Dependency{Name: d.Name, Version: d.Version, Repository: d.Repository})
	}
	return out
}

// Keys are the names that may stand first in the values of the chart: its own
// and those of the charts that it depends on.
func (c *Chart) Keys() []string {
	seen := map[string]bool{"global": true}
	keys := []string{"global"}
	add := func(key string) {
		if !seen[key] {
			seen[key] = true
			keys = append(keys, key)
		}
	}
	for key := range c.Defaults {
		add(key)
	}
	for _, d := range c.meta.Dependencies {
		if d.Alias != "" {
			add(d.Alias)
		} else {
			add(d.Name)
		}
	}
	return keys
}

// ReadValues reads values as Helm does.
func ReadValues(data []byte) (Values, error) { return chartutil.ReadValues(data) }

// WriteValues writes values as YAML, the same text every time.
func WriteValues(v Values) (string, error) { return chartutil.Values(v).YAML() }

// ParseSet adds what --set was given, such as "loki.replicas=2", to values.
func ParseSet(text string, to Values) error { return strvals.ParseInto(text, to) }

// Merge lays values on top of each other, later ones over earlier ones, and
// changes none of them. Mappings are merged, everything else is replaced.
func Merge(layers ...Values) Values {
	out := Values{}
	for _, layer := range layers {
		for key, value := range layer {
			below, isMap := out[key].(Values)
			above, isMapToo := value.(Values)
			switch {
			case isMap && isMapToo:
				out[key] = Merge(below, above)
			case isMapToo:
				out[key] = Merge(above)
			default:
				out[key] = value
			}
		}
	}
	return out
}
