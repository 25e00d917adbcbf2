package config

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/kalypso-dev/kalypso/cmd/internal/input"
	"github.com/kalypso-dev/kalypso/cmd/internal/near"
	"github.com/kalypso-dev/kalypso/profiler"
)

// fileLimit is far over what all settings take.
const fileLimit = 1 << 20

// readFile takes the settings of a YAML file.
func readFile(c *Config, table []setting, path string) error {
	data, err := input.Read(path, fileLimit)
	if err != nil {
		return &profiler.Fault{What: "cannot read the settings in " + path, Why: err, Fix: "--config FILE names another file"}
	}
	c.file = Watch{path, sha256.Sum256(data)}
	return readYAML(c, table, path, data)
}

// yamlLine is how the YAML library begins its messages.
var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// readYAML takes the settings of a YAML text; path is what places are told by.
func readYAML(c *Config, table []setting, path string, data []byte) error {
	r := &yamlReader{c: c, table: table, path: path, seen: map[string]string{}}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var document, second yaml.Node
	err := decoder.Decode(&document)
	if errors.Is(err, io.EOF) { // nothing, or comments only
		return nil
	}
	if err == nil {
		if err = decoder.Decode(&second); err == nil {
			return r.fault(&second, "a second document begins here", "", "one file has one document: take out the line ---")
		}
	}
	if !errors.Is(err, io.EOF) {
		what := "cannot read the settings in " + path
		if m := yamlLine.FindStringSubmatch(err.Error()); m != nil && m[1] != "" {
			what += " near line " + m[1]
		}
		return &profiler.Fault{What: what, Why: errors.New(yamlLine.ReplaceAllString(err.Error(), "")),
			Fix: "YAML wants spaces, not tabs, for indentation, and a space after each colon"}
	}
	root := document.Content[0]
	if null(root) {
		return nil
	}
	if root.Kind != yaml.MappingNode {
		return r.fault(root, "this is no setting", "a file of settings holds lines such as  frequency: 97", "")
	}
	return r.section("", root)
}

// yamlReader goes through the tree of a file.
type yamlReader struct {
	c     *Config
	table []setting
	path  string
	seen  map[string]string // setting → place
}

func (r *yamlReader) place(n *yaml.Node) string {
	return fmt.Sprintf("%s:%d:%d", r.path, n.Line, n.Column)
}

// fault says what is wrong at a node.
func (r *yamlReader) fault(n *yaml.Node, what, why, fix string) error {
	f := &profiler.Fault{What: r.place(n) + ": " + what, Fix: fix}
	if why != "" {
		f.Why = errors.New(why)
	}
	return f
}

func null(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == tagNull }

// section reads a mapping of settings and of further sections. A key may also
// be a dotted path: "listen.allow-remote" stands beside "listen", which has a
// value of its own and can hold no section.
func (r *yamlReader) section(prefix string, mapping *yaml.Node) error {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		key, value := mapping.Content[i], mapping.Content[i+1]
		if key.Kind != yaml.ScalarNode || key.ShortTag() != tagText || key.Value == "" {
			return r.fault(key, "this is not the name of a setting", "", "names are plain text, such as  frequency: 97")
		}
		if err := r.entry(prefix+key.Value, key, value); err != nil {
			return err
		}
	}
	return nil
}

// entry reads one setting or section.
func (r *yamlReader) entry(name string, key, value *yaml.Node) error {
	s, isSection := find(r.table, name), section(r.table, name)
	switch {
	case value.Kind == yaml.AliasNode || value.Anchor != "":
		return r.alias(value)
	case isSection && (value.Kind == yaml.MappingNode || s == nil && null(value)):
		return r.section(name+".", value)
	case s != nil:
		return r.setting(s, key, value)
	case isSection:
		return r.fault(value, name+" cannot be "+shown(value), "it is a section, which holds "+strings.Join(r.below(name), ", "), "")
	}
	fix := "kalypso-agent config show     prints all settings"
	if word := near.Word(name, names(r.table, same)); word != "" {
		fix = "did you mean " + word + "?"
	}
	return r.fault(key, "there is no setting "+quoted(name), "", fix)
}

// below names what a section holds.
func (r *yamlReader) below(name string) []string {
	var out []string
	for i := range r.table {
		if rest, ok := strings.CutPrefix(r.table[i].name, name+"."); ok {
			out = append(out, rest)
		}
	}
	return out
}

// shown is a value as a message repeats it.
func shown(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	return quoted(n.Value)
}

// setting reads the value of a setting.
func (r *yamlReader) setting(s *setting, key, value *yaml.Node) error {
	if before := r.seen[s.name]; before != "" {
		return r.fault(key, s.name+" is set again", "it is also set at "+before, "leave one of them out")
	}
	r.seen[s.name] = r.place(key)
	words, nodes, err := r.words(s, key, value)
	if err != nil {
		return err
	}
	i, wrong := s.set(r.c, words)
	if wrong != nil {
		at, text := value, value.Value
		if i < len(nodes) {
			at, text = nodes[i], words[i]
		}
		return s.fault(wrong, fmt.Sprintf("%s: %s", r.place(at), s.name), text, func(better string) string { return r.spell(s, key, better) })
	}
	r.c.origins[s.name] = Origin{FromFile, r.place(key)}
	return nil
}

// spell writes a setting's value as it would stand in the file.
func (r *yamlReader) spell(s *setting, key *yaml.Node, value string) string {
	switch {
	case s.shape == pairs:
		return key.Value + ": {" + strings.Replace(value, "=", ": ", 1) + "}"
	case s.shape == list:
		return key.Value + ": [" + value + "]"
	case s.yaml == tagText && value == "":
		value = `""`
	}
	return key.Value + ": " + value
}

// words gives the words of a value and where each stands.
func (r *yamlReader) words(s *setting, key, value *yaml.Node) (words []string, nodes []*yaml.Node, err error) {
	if null(value) {
		return nil, nil, r.fault(key, s.name+" has no value", "", "leave the line out for the default:  "+r.spell(s, key, s.fallback))
	}
	switch {
	case s.shape == pairs && value.Kind == yaml.MappingNode:
		for i := 0; i+1 < len(value.Content); i += 2 {
			k, v := value.Content[i], value.Content[i+1]
			if err := r.scalar(s, k); err != nil {
				return nil, nil, err
			}
			if err := r.scalar(s, v); err != nil {
				return nil, nil, err
			}
			if strings.Contains(k.Value, "=") {
				return nil, nil, r.fault(k, shown(k)+" cannot be a name in "+s.name, "it has an equals sign", "")
			}
			words, nodes = append(words, k.Value+"="+v.Value), append(nodes, v)
		}
		return words, nodes, nil
	case s.shape == list && value.Kind == yaml.SequenceNode:
		for _, v := range value.Content {
			if err := r.scalar(s, v); err != nil {
				return nil, nil, err
			}
			words, nodes = append(words, v.Value), append(nodes, v)
		}
		return words, nodes, nil
	case s.shape == pairs:
		return nil, nil, r.fault(value, s.name+" takes names and values", "", key.Value+": {team: shop}")
	}
	if err := r.scalar(s, value); err != nil {
		return nil, nil, err
	}
	return []string{value.Value}, []*yaml.Node{value}, nil
}

// scalar checks that a node is one value, and of the right type: what YAML
// takes for a number is no text until it is quoted.
func (r *yamlReader) scalar(s *setting, n *yaml.Node) error {
	what := s.name + " cannot be " + shown(n)
	inQuotes := n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		return r.alias(n)
	case n.Kind != yaml.ScalarNode:
		return r.fault(n, what, "it takes a single value here", "kalypso-agent config show     prints all settings as they are written")
	case s.yaml == "" || n.ShortTag() == s.yaml:
		return nil
	case s.yaml == tagText && null(n):
		return r.fault(n, what, "to YAML that is nothing", `""`)
	case s.yaml == tagText:
		return r.fault(n, what, "to YAML that is no text", "write it in quotes: "+quoted(n.Value))
	case inQuotes:
		return r.fault(n, what, "in quotes it is text", "write it without quotes")
	}
	return nil // the kind's own words are better than YAML's
}

func (r *yamlReader) alias(n *yaml.Node) error {
	return r.fault(n, "this is an anchor or an alias", "settings are few, and each is told in its own place", "write the value itself")
}
