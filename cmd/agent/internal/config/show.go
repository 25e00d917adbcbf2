package config

import (
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/kalypso-dev/kalypso/cmd/internal/cli"
)

// WriteYAML writes every setting as a file that --config would read the same
// values from, with a comment on each that says where it came from if origins
// are asked for.
func (c *Config) WriteYAML(w io.Writer, origins bool) error {
	table := settings()
	root := &yaml.Node{Kind: yaml.MappingNode}
	for i := range table {
		s := &table[i]
		mapping, name := root, s.name
		for {
			head, rest, found := strings.Cut(name, ".")
			prefix := strings.TrimSuffix(s.name, name) + head
			// What has a value of its own holds no section: what is below it
			// stands beside it, under its whole name.
			if !found || find(table, prefix) != nil {
				break
			}
			mapping, name = child(mapping, head), rest
		}
		key, value := &yaml.Node{Kind: yaml.ScalarNode, Tag: tagText, Value: name}, s.node(c)
		if origins {
			comment := "# " + c.Origin(s.name).String()
			if value.Kind == yaml.MappingNode && len(value.Content) > 0 {
				key.LineComment = comment
			} else {
				value.LineComment = comment
			}
		}
		mapping.Content = append(mapping.Content, key, value)
	}
	encoder := yaml.NewEncoder(w)
	encoder.SetIndent(2)
	if err := encoder.Encode(root); err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	return encoder.Close()
}

// child gives the section of a mapping, which is the last thing in it or new.
func child(mapping *yaml.Node, name string) *yaml.Node {
	if n := len(mapping.Content); n > 0 && mapping.Content[n-2].Value == name {
		return mapping.Content[n-1]
	}
	section := &yaml.Node{Kind: yaml.MappingNode}
	mapping.Content = append(mapping.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: tagText, Value: name}, section)
	return section
}

// node is the setting's value in YAML.
func (s *setting) node(c *Config) *yaml.Node {
	text := func(value string) *yaml.Node {
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: tagText, Value: value}
	}
	words := s.words(c)
	switch s.shape {
	case list:
		out := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
		for _, word := range words {
			out.Content = append(out.Content, text(word))
		}
		return out
	case pairs:
		out := &yaml.Node{Kind: yaml.MappingNode}
		for _, word := range words {
			key, value, _ := strings.Cut(word, "=")
			out.Content = append(out.Content, text(key), text(value))
		}
		return out
	}
	out := text(words[0])
	if s.yaml != "" {
		out.Tag = s.yaml
	}
	return out
}

// shownConfig is kalypso.config/v1. Fields are added, not changed.
type shownConfig struct {
	Schema   string         `json:"schema"`
	Settings []shownSetting `json:"settings"`
}

type shownSetting struct {
	Name   string `json:"name"`
	Value  any    `json:"value"`           // true, a number, text with its unit, a list, or names with values
	Origin Source `json:"origin"`          // default, file, environment, flag
	Place  string `json:"place,omitempty"` // FILE:LINE:COLUMN, a variable, a flag
}

// WriteJSON writes every setting and where it came from.
func (c *Config) WriteJSON(w io.Writer) error {
	table := settings()
	doc := shownConfig{Schema: "kalypso.config/v1"}
	for i := range table {
		s := &table[i]
		var value any
		if err := s.node(c).Decode(&value); err != nil {
			return fmt.Errorf("write setting %s: %w", s.name, err)
		}
		from := c.Origin(s.name)
		doc.Settings = append(doc.Settings, shownSetting{s.name, value, from.Source, from.Place})
	}
	return cli.WriteJSON(w, doc)
}
