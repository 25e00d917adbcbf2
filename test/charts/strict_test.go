package charts

import (
	"encoding/json"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
)

// unknownField says whether an object has a field that its kind does not: an API
// server drops such a field, and what it was to do does not happen. Custom
// resources are not known here.
func unknownField(o object) error {
	data, err := json.Marshal(o.fields)
	if err != nil {
		return err
	}
	strict := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	if _, _, err = strict.Decode(data, nil, nil); runtime.IsNotRegisteredError(err) {
		return nil
	}
	return err
}

func TestUnknownField(t *testing.T) {
	for name, test := range map[string]struct {
		fields string
		found  bool
	}{
		"a field in the wrong place": {"{apiVersion: v1, kind: Pod, spec: {readOnlyRootFilesystem: true}}", true},
		"a value of another type":    {"{apiVersion: v1, kind: Pod, spec: {hostPID: yes please}}", true},
		"a field that there is":      {"{apiVersion: v1, kind: Pod, spec: {hostPID: true}}", false},
		"a custom resource":          {"{apiVersion: example.org/v1, kind: X, spec: 1}", false},
	} {
		if err := unknownField(object{fields: parseYAML(t, test.fields)}); (err != nil) != test.found {
			t.Errorf("%s: %v, want found %v", name, err, test.found)
		}
	}
}
