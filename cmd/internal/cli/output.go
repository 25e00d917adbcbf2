package cli

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// Output is the flag -o of a verb: text for people, JSON or YAML for programs.
type Output struct{ format string }

// Register adds the flag.
func (o *Output) Register(flags *pflag.FlagSet) {
	flags.StringVarP(&o.format, "output", "o", "text", "text, json or yaml")
}

// Check refuses what is no format.
func (o *Output) Check(cmd *cobra.Command) error {
	return OneOf(cmd, "output", o.format, "text", "json", "yaml")
}

// Text says whether it is for people.
func (o *Output) Text() bool { return o.format != "json" && o.format != "yaml" }

// Write prints a document for a program. Keys are in the order of its fields.
func (o *Output) Write(w io.Writer, document any) error {
	if o.format != "yaml" {
		return WriteJSON(w, document)
	}
	node, err := Node(document)
	if err != nil {
		return err
	}
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(node); err != nil {
		return fmt.Errorf("write YAML: %w", err)
	}
	return enc.Close()
}

// Node is a document as YAML has it, with the names of its JSON.
func Node(document any) (*yaml.Node, error) {
	// By way of JSON, which every document can be written as and YAML contains.
	data, err := json.Marshal(document)
	if err != nil {
		return nil, fmt.Errorf("write YAML: %w", err)
	}
	node := &yaml.Node{}
	if err := yaml.Unmarshal(data, node); err != nil {
		return nil, fmt.Errorf("write YAML: %w", err)
	}
	node = node.Content[0]
	plain(node)
	return node, nil
}

// plain takes JSON's brackets and quotes away, where YAML needs none.
func plain(n *yaml.Node) {
	isText := n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str"
	if len(n.Content) > 0 || isText {
		n.Style = 0
	}
	if isText {
		n.SetString(n.Value) // keeps it text: "true" stays in quotes
	}
	for _, below := range n.Content {
		plain(below)
	}
}
