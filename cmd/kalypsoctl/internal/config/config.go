// Package config says what the stack is to be: which components, which profile,
// which values. It lays four layers on top of each other and remembers which
// one each value is from: the charts' defaults, the profile, the file
// (kalypso.yaml), --set.
//
// What it does not know is refused with its place and the nearest right word.
// Whether a value suits its chart is for the chart's schema to say, when it is
// rendered.
package config

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/kalypso-dev/kalypso/charts"
	"github.com/kalypso-dev/kalypso/cmd/internal/near"
	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/profiler"
)

// Profiles are the sizes that the charts come in, smallest first. The charts'
// own defaults are the profile "default".
func Profiles() []string { return []string{"small", defaultProfile, "ha"} }

const defaultProfile = "default"

// The keys that are no values of a chart.
const (
	profileKey = "profile"
	enabledKey = "enabled"
)

// Options are where settings come from. Empty is not given.
type Options struct {
	File       string
	Profile    string
	ProfileVia string // how Profile was given, for messages: --profile, or a variable
	Set        []string
}

// Config is what the stack is to be.
type Config struct {
	Profile       string
	profileOrigin string
	parts         []part // in the order of the catalogue
}

// part is a component with its values.
type part struct {
	component.Component
	chart  *helm.Chart
	layers []layer // lowest first
	on     bool
}

// layer is values of one origin.
type layer struct {
	origin string
	values helm.Values
	places map[string]string // path → where in the file, for a layer of a file
}

// Load reads the settings. An error is a profiler.Fault where a person is to
// mend something.
func Load(o Options) (*Config, error) {
	c := &Config{Profile: defaultProfile, profileOrigin: "default"}
	names := component.Names(component.All())
	var file document
	if o.File != "" {
		var err error
		if file, err = readFile(o.File, names); err != nil {
			return nil, err
		}
		if file.profile != "" {
			c.Profile, c.profileOrigin = file.profile, file.places[profileKey]
		}
	}
	if o.Profile != "" {
		if err := checkProfile(o.ProfileVia, o.Profile); err != nil {
			return nil, err
		}
		c.Profile, c.profileOrigin = o.Profile, o.ProfileVia
	}
	set, err := readSet(o.Set, names)
	if err != nil {
		return nil, err
	}
	for _, comp := range component.All() {
		p, err := c.open(comp, layer{values: file.components[comp.Name], places: file.places}, layer{origin: "--set", values: set[comp.Name]})
		if err != nil {
			return nil, err
		}
		c.parts = append(c.parts, p)
	}
	return c, nil
}

// open reads a component's chart and lays the layers on it.
func (c *Config) open(comp component.Component, given ...layer) (part, error) {
	p := part{Component: comp, on: true}
	fsys, err := charts.Open(comp.Chart)
	if err != nil {
		return p, err
	}
	if p.chart, err = helm.Open(fsys); err != nil {
		return p, fmt.Errorf("open %s: %w", comp.Chart, err)
	}
	profile, err := p.chart.Profile(c.Profile)
	if err != nil {
		return p, err
	}
	p.layers = append([]layer{{origin: "default", values: p.chart.Defaults}, {origin: "profile " + c.Profile, values: profile}}, given...)
	for _, l := range given {
		if err := p.check(l); err != nil {
			return p, err
		}
	}
	return p, nil
}

// check refuses what the chart of a component does not know, and takes
// "enabled" out: it is not the chart's.
func (p *part) check(l layer) error {
	keys := append(p.chart.Keys(), enabledKey)
	for _, key := range sorted(l.values) {
		if slices.Contains(keys, key) {
			_, holds := p.chart.Defaults[key].(helm.Values)
			if _, held := l.values[key].(helm.Values); holds && !held {
				path := p.Name + "." + key
				return &profiler.Fault{What: fmt.Sprintf("%s: %s cannot be %v", l.place(path), path, l.values[key]), Why: errors.New("it holds values"), Fix: "kalypsoctl config show " + p.Name + "     prints all of them"}
			}
			continue
		}
		f := &profiler.Fault{What: fmt.Sprintf("%s: %s has no value %q", l.place(p.Name+"."+key), p.Name, key), Fix: "kalypsoctl config show " + p.Name + "     prints all values"}
		if word := near.Word(key, keys); word != "" {
			f.Fix = "did you mean " + word + "?"
		}
		return f
	}
	value, given := l.values[enabledKey]
	if !given {
		return nil
	}
	on, ok := value.(bool)
	if !ok {
		return &profiler.Fault{What: fmt.Sprintf("%s: %s.enabled cannot be %v", l.place(p.Name+".enabled"), p.Name, value), Fix: "it is true or false"}
	}
	p.on = on
	return nil
}

// place tells where a value of a layer stands.
func (l *layer) place(path string) string {
	if place := l.places[path]; place != "" {
		return place
	}
	return l.origin
}

// readSet takes what --set was given, component by component.
func readSet(set, names []string) (map[string]helm.Values, error) {
	all := helm.Values{}
	for _, text := range set {
		key, _, found := strings.Cut(text, "=")
		name, rest, dotted := strings.Cut(key, ".")
		switch {
		case !found || !dotted || rest == "":
			f := &profiler.Fault{What: fmt.Sprintf("--set cannot be %q", text), Fix: "--set component.key=value, such as  --set istio-gateway.enabled=false"}
			if name == profileKey && found {
				f.Fix = "--profile " + strings.TrimPrefix(text, profileKey+"=")
			}
			return nil, f
		case !slices.Contains(names, name):
			return nil, unknownComponent("--set", name, names)
		}
		if err := helm.ParseSet(text, all); err != nil {
			return nil, &profiler.Fault{What: fmt.Sprintf("--set cannot be %q", text), Why: err, Fix: "--set component.key=value; a comma in the value is written \\,"}
		}
	}
	out := map[string]helm.Values{}
	for name, v := range all {
		values, ok := v.(helm.Values)
		if !ok || !slices.Contains(names, name) { // after a comma: --set loki.a=1,b=2
			return nil, &profiler.Fault{What: fmt.Sprintf("--set %s=… names no component", name), Fix: "each value after a comma begins with its component; a comma in the value is written \\,"}
		}
		out[name] = values
	}
	return out, nil
}

func unknownComponent(place, name string, names []string) error {
	f := &profiler.Fault{What: fmt.Sprintf("%s: there is no component %q", place, name), Fix: "the components are " + strings.Join(names, ", ")}
	if word := near.Word(name, names); word != "" {
		f.Fix = "did you mean " + word + "?"
	}
	return f
}

func checkProfile(place, name string) error {
	if slices.Contains(Profiles(), name) {
		return nil
	}
	f := &profiler.Fault{What: fmt.Sprintf("%s: there is no profile %q", place, name), Fix: "the profiles are " + strings.Join(Profiles(), ", ")}
	if word := near.Word(name, Profiles()); word != "" {
		f.Fix = "did you mean " + word + "?"
	}
	return f
}

// Components are those that are not switched off.
func (c *Config) Components() []component.Component {
	var out []component.Component
	for i := range c.parts {
		if c.parts[i].on {
			out = append(out, c.parts[i].Component)
		}
	}
	return out
}

// Chart gives the chart of a component.
func (c *Config) Chart(name string) *helm.Chart { return c.find(name).chart }

// Values gives what the chart of a component is told beyond its defaults.
func (c *Config) Values(name string) helm.Values {
	v := c.find(name).merged(1)
	delete(v, enabledKey)
	return v
}

// Base gives what the profile tells the chart of a component.
func (c *Config) Base(name string) helm.Values { return helm.Merge(c.find(name).layers[1].values) }

// Given is what the file and --set tell the chart of a component.
func (c *Config) Given(name string) helm.Values {
	v := c.find(name).merged(2)
	delete(v, enabledKey)
	return v
}

// Place tells where a value of a component came from: "--set",
// "kalypso.yaml:5:28", "default".
func (c *Config) Place(name string, keys []string) string {
	return c.find(name).origin(name+"."+strings.Join(keys, "."), keys)
}

// ProfileGiven says whether somebody chose the profile.
func (c *Config) ProfileGiven() bool { return c.profileOrigin != "default" }

// merged lays layers on top of each other, beginning with this one.
func (p *part) merged(from int) helm.Values {
	var values []helm.Values
	for _, l := range p.layers[from:] {
		values = append(values, l.values)
	}
	return helm.Merge(values...)
}

// find gives a component of the catalogue; another name is the caller's fault.
func (c *Config) find(name string) *part {
	for i := range c.parts {
		if c.parts[i].Name == name {
			return &c.parts[i]
		}
	}
	panic("no component " + name)
}

func sorted(values helm.Values) []string {
	keys := make([]string, 0, len(values))
	for key := range values {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// The variables that stand for flags.
const (
	FileVariable    = "KALYPSO_FILE"
	ProfileVariable = "KALYPSO_PROFILE"
	ChartsVariable  = "KALYPSO_CHARTS"
)

// Or gives what a flag holds, or else its variable, and how it was given.
func Or(flag, value, variable string) (held, via string) {
	if value != "" {
		return value, flag
	}
	return os.Getenv(variable), variable
}
