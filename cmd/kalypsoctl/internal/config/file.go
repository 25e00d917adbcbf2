package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/kalypso-dev/kalypso/cmd/internal/input"
	"github.com/kalypso-dev/kalypso/deploy/helm"
	"github.com/kalypso-dev/kalypso/profiler"
)

// fileLimit is far over what the values of all charts take.
const fileLimit = 4 << 20

// document is what a file says.
type document struct {
	profile    string
	components map[string]helm.Values
	places     map[string]string // path → FILE:LINE:COLUMN
}

// yamlLine is how the YAML library begins its messages.
var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// readFile reads a kalypso.yaml: the profile, and a section of values for each
// component that differs from it.
func readFile(path string, names []string) (document, error) {
	doc := document{components: map[string]helm.Values{}, places: map[string]string{}}
	data, err := input.Read(path, fileLimit)
	if err != nil {
		return doc, &profiler.Fault{What: "cannot read " + path, Why: err, Fix: "-f FILE names another file"}
	}
	var root yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	if err := decoder.Decode(&root); errors.Is(err, io.EOF) { // nothing, or comments only
		return doc, nil
	} else if err != nil {
		return doc, notYAML(path, err)
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return doc, &profiler.Fault{What: path + " has a second document", Fix: "one file has one document: take out the line ---"}
	}
	top := root.Content[0]
	if top.Kind != yaml.MappingNode {
		if top.ShortTag() == "!!null" {
			return doc, nil
		}
		return doc, &profiler.Fault{What: fmt.Sprintf("%s:%d:%d: this names no component", path, top.Line, top.Column), Fix: "a file of settings holds lines such as  profile: small"}
	}
	// The tree has the places, Helm's reader the types that charts expect.
	values, err := helm.ReadValues(data)
	if err != nil {
		return doc, notYAML(path, err)
	}
	r := fileReader{path: path, doc: &doc}
	return doc, r.read(top, values, names)
}

func notYAML(path string, err error) error {
	what := "cannot read " + path
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil && m[1] != "" {
		what += " near line " + m[1]
	}
	return &profiler.Fault{What: what, Why: errors.New(yamlLine.ReplaceAllString(err.Error(), "")),
		Fix: "YAML wants spaces, not tabs, for indentation, and a space after each colon"}
}

type fileReader struct {
	path string
	doc  *document
}

func (r *fileReader) place(n *yaml.Node) string {
	return fmt.Sprintf("%s:%d:%d", r.path, n.Line, n.Column)
}

// read takes the tree and the values of the same file.
func (r *fileReader) read(root *yaml.Node, values helm.Values, names []string) error {
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		if err := r.put(key.Value, key); err != nil {
			return err
		}
		if key.Value == profileKey {
			if err := checkProfile(r.place(value), value.Value); err != nil {
				return err
			}
			r.doc.profile = value.Value
			continue
		}
		if !slices.Contains(names, key.Value) {
			return unknownComponent(r.place(key), key.Value, append(names, profileKey))
		}
		section, ok := values[key.Value].(helm.Values)
		if !ok {
			return &profiler.Fault{What: fmt.Sprintf("%s: %s holds no values", r.place(value), key.Value), Fix: "kalypsoctl config show " + key.Value + "     prints what it can hold"}
		}
		r.doc.components[key.Value] = section
		if err := r.note(key.Value, value); err != nil {
			return err
		}
	}
	return nil
}

// note remembers where each value stands.
func (r *fileReader) note(path string, n *yaml.Node) error {
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		below := path + "." + n.Content[i].Value
		if err := r.put(below, n.Content[i]); err != nil {
			return err
		}
		if err := r.note(below, n.Content[i+1]); err != nil {
			return err
		}
	}
	return nil
}

// put remembers where a key stands, which it may do once.
func (r *fileReader) put(path string, key *yaml.Node) error {
	if before := r.doc.places[path]; before != "" {
		return &profiler.Fault{What: fmt.Sprintf("%s: %s is set again", r.place(key), path), Why: errors.New("it is also set at " + before), Fix: "leave one of them out"}
	}
	r.doc.places[path] = r.place(key)
	return nil
}
