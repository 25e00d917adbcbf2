package charts

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// An endpoint is a Service and one of its ports.
type endpoint struct {
	service, namespace string
	port               int
}

func (e endpoint) String() string {
	return fmt.Sprintf("%s.%s.svc.cluster.local:%d", e.service, e.namespace, e.port)
}

// A final dot keeps resolvers from trying search domains.
var endpointPattern = regexp.MustCompile(`([a-z0-9][a-z0-9-]*)\.([a-z0-9][a-z0-9-]*)\.svc(?:\.cluster\.local\.?)?:(\d+)`)

// endpoints that stand in any string of an object.
func endpoints(o object) []endpoint {
	var found []endpoint
	eachString(o.fields, "", func(_, s string) {
		for _, m := range endpointPattern.FindAllStringSubmatch(s, -1) {
			port, _ := strconv.Atoi(m[3]) // digits
			found = append(found, endpoint{m[1], m[2], port})
		}
	})
	return found
}

// served are the endpoints that an object is.
func served(o object) []endpoint {
	if o.kind != "Service" {
		return nil
	}
	var out []endpoint
	for _, p := range list(o.fields, "spec", "ports") {
		if port, ok := at(p, "port").(int); ok {
			out = append(out, endpoint{o.name, o.namespace, port})
		}
	}
	return out
}

// eachString goes through all strings of a value, each with its key.
func eachString(v any, key string, f func(key, value string)) {
	switch v := v.(type) {
	case string:
		f(key, v)
	case []any:
		for _, e := range v {
			eachString(e, key, f)
		}
	case map[string]any:
		for k, e := range v {
			eachString(e, k, f)
		}
	}
}

// forbiddenImage is what must never run: agents that this stack replaces, Kafka,
// images that are gone, and tags that change under one's feet.
func forbiddenImage(image string) string {
	name, tag := image, ""
	if i := strings.LastIndexByte(image, ':'); i > strings.LastIndexByte(image, '/') {
		name, tag = image[:i], image[i+1:]
	}
	for _, part := range []string{"alloy", "grafana/agent", "grafana-agent", "kafka", "minio/mc"} {
		if strings.Contains(name, part) {
			return "it is " + part
		}
	}
	switch {
	case image == "auto": // istiod's webhook replaces it
		return ""
	case tag == "latest":
		return "its tag is latest"
	case tag == "":
		return "it has no tag"
	}
	return ""
}

func TestForbiddenImage(t *testing.T) {
	for image, forbidden := range map[string]bool{
		"docker.io/grafana/alloy:v1.9.0":         true,
		"docker.io/grafana/agent:v0.44.2":        true,
		"apache/kafka-native:4.1.0":              true,
		"quay.io/minio/mc:RELEASE.2024":          true,
		"busybox:latest":                         true,
		"localhost:5000/busybox":                 true,
		"quay.io/minio/minio:RELEASE.2025-09-07": false,
		"localhost:5000/grafana/loki:3.7.6":      false,
		"auto":                                   false,
	} {
		if why := forbiddenImage(image); (why != "") != forbidden {
			t.Errorf("%s: %q, want forbidden %v", image, why, forbidden)
		}
	}
}

// credentialKey is a name whose value is a secret, spelled in any way.
var credentialKey = regexp.MustCompile(`(?i)(password|passwd|secret[_-]?(access[_-]?)?key|access[_-]?key([_-]?id)?|api[_-]?key|bearer[_-]?token)$`)

// defaultCredentials are those that upstream charts are known to come with.
var defaultCredentials = regexp.MustCompile(`console123|minio123|rootpass123|supersecret|grafana-mimir|prom-operator`)

// literalCredentials are values in an object that are secrets themselves. The
// name of a Secret, or a variable that is put in at run time, is none.
func literalCredentials(o object) []string {
	var found []string
	var walk func(key, value string)
	walk = func(key, value string) {
		switch {
		case defaultCredentials.MatchString(value) && !strings.Contains(value, "\n"):
			found = append(found, key+": a default of upstream")
		case credentialKey.MatchString(key) && value != "" && !strings.Contains(value, "${") && !strings.HasPrefix(value, "$__"):
			found = append(found, key+" has a literal value")
		case strings.Contains(value, "\n"):
			var inner map[string]any
			if yaml.Unmarshal([]byte(value), &inner) == nil {
				eachString(inner, "", walk)
			}
		}
	}
	switch o.kind {
	case "CustomResourceDefinition": // schemas, which describe such fields
		return nil
	case "Secret":
		for _, field := range []string{"data", "stringData"} {
			if m, _ := at(o.fields, field).(map[string]any); len(m) > 0 {
				found = append(found, "it is a Secret with "+field)
			}
		}
	}
	for _, c := range containers(o) {
		for _, e := range list(c, "env") {
			walk(text(e, "name"), text(e, "value"))
		}
	}
	eachString(at(o.fields, "data"), "", walk)
	return found
}

func TestLiteralCredentials(t *testing.T) {
	for name, test := range map[string]struct {
		object string
		found  bool
	}{
		"a key of S3 in a file of settings":  {"{kind: ConfigMap, data: {a.yaml: \"s3:\\n  secret_access_key: hunter2\\n\"}}", true},
		"a variable in a file of settings":   {"{kind: ConfigMap, data: {a.yaml: \"s3:\\n  secret_access_key: ${KEY}\\n\"}}", false},
		"a password in the environment":      {"{kind: Pod, spec: {containers: [{env: [{name: MINIO_ROOT_PASSWORD, value: x}]}]}}", true},
		"a reference in the environment":     {"{kind: Pod, spec: {containers: [{env: [{name: MINIO_ROOT_PASSWORD, valueFrom: {secretKeyRef: {name: s}}}]}]}}", false},
		"a Secret with contents":             {"{kind: Secret, data: {a: eA==}}", true},
		"a Secret that something else fills": {"{kind: Secret}", false},
	} {
		fields := parseYAML(t, test.object)
		if got := literalCredentials(object{kind: text(fields, "kind"), fields: fields}); (len(got) > 0) != test.found {
			t.Errorf("%s: %v, want found %v", name, got, test.found)
		}
	}
}

// missingResources of a container: the scheduler goes by requests, and a limit of
// memory keeps one part from taking the node's. Limits of CPU only throttle.
func missingResources(c map[string]any) []string {
	var missing []string
	for _, path := range [][]string{{"requests", "cpu"}, {"requests", "memory"}, {"limits", "memory"}} {
		if at(c, "resources", path[0], path[1]) == nil {
			missing = append(missing, strings.Join(path, "."))
		}
	}
	return missing
}
