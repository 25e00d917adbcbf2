package helm

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"sigs.k8s.io/yaml"
)

// Difference is an object that is not as it was.
type Difference struct {
	Object        // as it will be, or as it was if it goes
	Before string // its text without what is secret or says nothing; empty if it is new
	After  string // likewise; empty if it goes
	Pods   bool   // pods are made anew of it
}

// Diff compares two sets of objects of one release.
func Diff(before, after []Object) ([]Difference, error) {
	var out []Difference
	old := map[string]Object{}
	for _, o := range before {
		old[o.key()] = o
	}
	for _, o := range after {
		was, there := old[o.key()]
		delete(old, o.key())
		if there && was.YAML == o.YAML {
			continue
		}
		d, err := difference(was, o)
		if err != nil {
			return nil, err
		}
		if d != nil {
			out = append(out, *d)
		}
	}
	for _, o := range before {
		if gone, ok := old[o.key()]; ok {
			d, err := difference(gone, Object{})
			if err != nil {
				return nil, err
			}
			out = append(out, *d)
		}
	}
	return out, nil
}

// key tells objects of a release from each other.
func (o *Object) key() string {
	group, _, grouped := strings.Cut(o.APIVersion, "/")
	if !grouped {
		group = ""
	}
	return strings.Join([]string{group, o.Kind, o.Namespace, o.Name}, "/")
}

// decode reads the object into a struct with the fields that are wanted.
func (o *Object) decode(to any) error {
	if err := yaml.Unmarshal([]byte(o.YAML), to); err != nil {
		return fmt.Errorf("read %s %s: %w", o.Kind, o.Name, err)
	}
	return nil
}

// Tree is the object as maps and lists.
func (o *Object) Tree() (map[string]any, error) {
	var tree map[string]any
	err := o.decode(&tree)
	return tree, err
}

// difference is nil where both say the same in other words.
func difference(before, after Object) (*Difference, error) {
	var was, is map[string]any
	if err := before.decode(&was); err != nil {
		return nil, err
	}
	if err := after.decode(&is); err != nil {
		return nil, err
	}
	if canonical(was) == canonical(is) {
		return nil, nil
	}
	d := &Difference{Object: after}
	if after.Kind == "" {
		d.Object = before
	}
	d.Pods = was != nil && is != nil && canonical(template(was)) != canonical(template(is))
	hide(was, is)
	for _, o := range []map[string]any{was, is} {
		quiet(o)
	}
	d.Before, d.After = canonical(was), canonical(is)
	return d, nil
}

// Text is a unified diff, empty where nothing is left to show.
func (d *Difference) Text() string {
	text := string(diff.Diff("a", []byte(d.Before), "b", []byte(d.After)))
	// Three lines of header: the command, and two names.
	for range 3 {
		_, text, _ = strings.Cut(text, "\n")
	}
	return text
}

// canonical is one text for all ways to write the same.
func canonical(v map[string]any) string {
	if v == nil {
		return ""
	}
	data, err := yaml.Marshal(v)
	if err != nil {
		panic(err) // it was read from YAML
	}
	return string(data)
}

// template is what a workload makes pods of, nil for what makes none.
func template(o map[string]any) map[string]any {
	spec, _ := o["spec"].(map[string]any)
	t, _ := spec["template"].(map[string]any)
	return t
}

// hide replaces what Secrets hold, so that it shows only whether it changes.
func hide(before, after map[string]any) {
	if kind(before) != "Secret" && kind(after) != "Secret" {
		return
	}
	for _, field := range []string{"data", "stringData"} {
		was, _ := before[field].(map[string]any)
		is, _ := after[field].(map[string]any)
		for key, value := range was {
			same := fmt.Sprint(value) == fmt.Sprint(is[key])
			was[key] = "(hidden)"
			if _, there := is[key]; there && same {
				is[key] = "(hidden)"
			} else if there {
				is[key] = "(hidden, another)"
			}
		}
		for key, value := range is {
			if text, _ := value.(string); !strings.HasPrefix(text, "(hidden") || was[key] == nil {
				is[key] = "(hidden)"
			}
		}
	}
}

func kind(o map[string]any) string {
	k, _ := o["kind"].(string)
	return k
}

// quiet takes out what changes with every version and says nothing.
func quiet(v any) {
	switch v := v.(type) {
	case map[string]any:
		if metadata, ok := v["metadata"].(map[string]any); ok {
			for _, field := range []string{"labels", "annotations"} {
				entries, _ := metadata[field].(map[string]any)
				for key := range entries {
					if key == "helm.sh/chart" || strings.HasPrefix(key, "checksum/") {
						delete(entries, key)
					}
				}
			}
		}
		for _, below := range v {
			quiet(below)
		}
	case []any:
		for _, below := range v {
			quiet(below)
		}
	}
}

// Equal says whether two sets of values are the same.
func Equal(a, b Values) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && (slices.Equal(x, y) || len(a) == 0 && len(b) == 0)
}
