package config

import (
	"bytes"
	"fmt"
	"io"

	"go.yaml.in/yaml/v3"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
	"github.com/kalypso-dev/kalypso/deploy/helm"
)

// WriteYAML prints the settings as a kalypso.yaml that leaves nothing to
// defaults, of all components or of those with these names. With origin each
// value says where it came from.
func (c *Config) WriteYAML(w io.Writer, names []string, origin bool) error {
	root := &yaml.Node{Kind: yaml.MappingNode}
	profile := text(c.Profile)
	if origin {
		profile.LineComment = c.profileOrigin
	}
	root.Content = append(root.Content, text(profileKey), profile)
	for _, name := range names {
		p := c.find(name)
		node, err := p.tree(p.shown(), name, nil, origin)
		if err != nil {
			return err
		}
		root.Content = append(root.Content, text(name), node)
	}
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(root); err != nil {
		return err
	}
	_, err := w.Write(b.Bytes())
	return err
}

// WriteJSON prints the same for a program.
func (c *Config) WriteJSON(w io.Writer, names []string) error {
	doc := struct {
		Schema     string                 `json:"schema"`
		Profile    string                 `json:"profile"`
		Components map[string]helm.Values `json:"components"`
	}{"kalypso.config/v1", c.Profile, map[string]helm.Values{}}
	for _, name := range names {
		doc.Components[name] = c.find(name).shown()
	}
	return cli.WriteJSON(w, doc)
}

// shown is all values of a component.
func (p *part) shown() helm.Values {
	v := p.merged(0)
	v[enabledKey] = p.on
	return v
}

func text(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	return n
}

// tree makes the YAML of values. keys is the way to them from the component.
func (p *part) tree(values helm.Values, path string, keys []string, origin bool) (*yaml.Node, error) {
	node := &yaml.Node{Kind: yaml.MappingNode}
	for _, name := range sorted(values) {
		key := text(name)
		below, here := path+"."+name, append(keys[:len(keys):len(keys)], name)
		var (
			value *yaml.Node
			err   error
		)
		if inner, ok := values[name].(helm.Values); ok && len(inner) > 0 {
			value, err = p.tree(inner, below, here, origin)
		} else {
			value, err = cli.Node(values[name])
			if err != nil {
				return nil, fmt.Errorf("print %s: %w", below, err)
			}
			if origin && value.Kind == yaml.SequenceNode && len(value.Content) > 0 {
				key.LineComment = p.origin(below, here)
			} else if origin {
				value.LineComment = p.origin(below, here)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("print %s: %w", below, err)
		}
		node.Content = append(node.Content, key, value)
	}
	return node, nil
}

// origin tells which layer a value is from: the highest that has it.
func (p *part) origin(path string, keys []string) string {
	for i := len(p.layers) - 1; i >= 0; i-- {
		if has(p.layers[i].values, keys) {
			return p.layers[i].place(path)
		}
	}
	return "default" // "enabled", which no chart sets
}

func has(values helm.Values, keys []string) bool {
	for i, key := range keys {
		value, ok := values[key]
		if !ok {
			return false
		}
		if i == len(keys)-1 {
			return true
		}
		if values, ok = value.(helm.Values); !ok {
			return false
		}
	}
	return false
}
