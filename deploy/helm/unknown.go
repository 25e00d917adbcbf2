package helm

import (
	"regexp"
	"slices"
	"strings"

	"helm.sh/helm/v3/pkg/chart"
)

// Unknown is a value that was given to an upstream chart and is nowhere in it.
type Unknown struct {
	Chart Dependency
	Keys  []string // the way to it, from the values of our chart
	Known []string // what else may stand in its place
	// Sure says that nothing can read it. Below the first level a chart may hand
	// a whole mapping to the program that it runs, whose settings it does not
	// name.
	Sure bool
}

// Unknowns finds values that the charts which c depends on do not know. Values
// that c or its profile set themselves, and what is below mappings that charts
// take as they are, is not looked at. An error is that of reading a chart.
func (c *Chart) Unknowns(archives *Archives, base, given Values) ([]Unknown, error) {
	var out []Unknown
	for _, d := range c.meta.Dependencies {
		key := d.Alias
		if key == "" {
			key = d.Name
		}
		below, ok := given[key].(Values)
		if !ok || len(below) == 0 {
			continue
		}
		upstream, err := archives.load(Dependency{Name: d.Name, Version: d.Version, Repository: d.Repository})
		if err != nil {
			return nil, err
		}
		ours, _ := Merge(c.Defaults, base)[key].(Values)
		u := unknowns{chart: Dependency{Name: d.Name, Version: d.Version, Repository: d.Repository}, text: allText(upstream)}
		for _, sub := range upstream.Metadata.Dependencies {
			u.subcharts = append(u.subcharts, sub.Name, sub.Alias)
		}
		u.walk([]string{key}, below, Merge(defaults(upstream), ours))
		out = append(out, u.found...)
	}
	return out, nil
}

// defaults are the values of a chart. Istio's has most of its own below a key of
// another name, and puts them where they belong when it is rendered.
func defaults(c *chart.Chart) Values {
	inner, _ := c.Values["_internal_defaults_do_not_set"].(Values)
	return Merge(c.Values, inner)
}

type unknowns struct {
	chart     Dependency
	text      string // of all that reads values
	subcharts []string
	found     []Unknown
}

// asItIs is how charts call mappings that they hand on: to Kubernetes, or to the
// program that they run.
var asItIs = regexp.MustCompile(`(?i)label|annotation|selector|affinity|toleration|topology|context|resource|limit|request|probe|lifecycle|strategy|policy|env|config|setting|extra|data|secret|args|flags|ini$|overrides|rules|headers|values|matcher`)

func (u *unknowns) walk(path []string, given, known Values) {
	for _, key := range sortedKeys(given) {
		here := append(slices.Clone(path), key)
		value, there := known[key]
		if !there {
			if !u.mentions(key) {
				u.found = append(u.found, Unknown{Chart: u.chart, Keys: here, Known: sortedKeys(known), Sure: len(path) == 1})
			}
			continue
		}
		below, isMap := given[key].(Values)
		knows, isMapToo := value.(Values)
		others := key == "global" || slices.Contains(u.subcharts, key) // other charts read it
		if isMap && isMapToo && len(knows) > 0 && !others && !asItIs.MatchString(key) {
			u.walk(here, below, knows)
		}
	}
}

// mentions says whether a key stands anywhere in the chart as templates read
// values (.key, "key"), or as a comment of its values has it (key:).
func (u *unknowns) mentions(key string) bool {
	if key == "global" || slices.Contains(u.subcharts, key) {
		return true
	}
	for rest := u.text; ; {
		i := strings.Index(rest, key)
		if i < 0 {
			return false
		}
		end := i + len(key)
		before, after := byte(' '), byte(' ')
		if i > 0 {
			before = rest[i-1]
		}
		if end < len(rest) {
			after = rest[end]
		}
		if !wordByte(before) && !wordByte(after) && (strings.IndexByte(".\"'`", before) >= 0 || after == ':') {
			return true
		}
		rest = rest[end:]
	}
}

func wordByte(b byte) bool {
	return b == '_' || '0' <= b && b <= '9' || 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z'
}

// allText is what of a chart, and of those in it, can read or tell of values.
func allText(c *chart.Chart) string {
	var b strings.Builder
	for _, f := range c.Templates {
		b.Write(f.Data)
	}
	for _, f := range c.Raw {
		if f.Name == "values.yaml" {
			b.Write(f.Data)
		}
	}
	for _, f := range c.Files { // what templates read in, and the chart's own manual
		if !strings.HasPrefix(f.Name, "crds/") {
			b.Write(f.Data)
		}
	}
	b.Write(c.Schema)
	for _, sub := range c.Dependencies() {
		b.WriteString(allText(sub))
	}
	return b.String()
}

func sortedKeys(v Values) []string {
	keys := make([]string, 0, len(v))
	for key := range v {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
