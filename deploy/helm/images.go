package helm

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"

	"sigs.k8s.io/yaml"
)

// imageFlag is how operators are told which image to run:
// --acme-http01-solver-image=…, --collector-image=….
var imageFlag = regexp.MustCompile(`^--?[a-z0-9-]*image=(\S+)$`)

// resolvedByIstio is what a pod of Istio's has for an image until istiod's
// webhook puts the right one there.
const resolvedByIstio = "auto"

// Images are the container images that objects name, sorted, each once.
func Images(objects []Object) ([]string, error) {
	var found []string
	for _, o := range objects {
		var tree map[string]any
		if err := yaml.Unmarshal([]byte(o.YAML), &tree); err != nil {
			return nil, fmt.Errorf("read %s %s: %w", o.Kind, o.Name, err)
		}
		switch o.Kind {
		case "CustomResourceDefinition": // has words of a schema
		case "ConfigMap":
			found = append(found, injected(tree)...)
		default:
			walk(tree, &found)
		}
	}
	found = slices.DeleteFunc(found, func(image string) bool { return image == "" || image == resolvedByIstio })
	slices.Sort(found)
	return slices.Compact(found), nil
}

// walk finds images in the tree of an object.
func walk(value any, found *[]string) {
	switch v := value.(type) {
	case map[string]any:
		for key, below := range v {
			if image, ok := below.(string); ok && key == "image" {
				*found = append(*found, image)
				continue
			}
			walk(below, found)
		}
	case []any:
		for _, below := range v {
			walk(below, found)
		}
	case string:
		if m := imageFlag.FindStringSubmatch(v); m != nil {
			*found = append(*found, m[1])
		}
	}
}

// injected finds the image of the proxy that istiod puts into pods: it is in a
// ConfigMap, in the values that its templates are filled from.
func injected(configMap map[string]any) []string {
	data, _ := configMap["data"].(map[string]any)
	text, _ := data["values"].(string)
	var values struct {
		Global struct {
			Hub   string `json:"hub"`
			Tag   string `json:"tag"`
			Proxy struct {
				Image string `json:"image"`
			} `json:"proxy"`
		} `json:"global"`
	}
	if json.Unmarshal([]byte(text), &values) != nil || values.Global.Proxy.Image == "" {
		return nil // a ConfigMap of something else
	}
	g := values.Global
	return []string{fmt.Sprintf("%s/%s:%s", g.Hub, g.Proxy.Image, g.Tag)}
}
