package limits

import (
	"cmp"
	"slices"
	"strings"

	"github.com/kalypso-dev/kalypso/profiler"
)

const (
	// LabelNames is how many labels we send. The server takes 30 and adds up to
	// four of its own.
	LabelNames = 25

	// LabelBytes is how long a label's value gets
	// (validation.max-length-label-value).
	LabelBytes = 2048

	// labelNameBytes is how long a label's name gets
	// (validation.max-length-label-name is 1024).
	labelNameBytes = 256
)

// twins are the short names under which people look for what OpenTelemetry
// names at length. From 2.0 on Pyroscope hides names with dots from clients
// that do not ask for them.
var twins = map[string]string{
	"k8s.namespace.name": "namespace",
	"k8s.pod.name":       "pod",
	"k8s.container.name": "container",
	"k8s.node.name":      "node",
	"service.namespace":  "service_namespace",
}

// never are attributes that would make a series of every process or thread.
// A server's memory goes by the number of series.
func never(key string) bool {
	switch key {
	case "process.pid", "process.parent_pid", "process.vpid", "pid", "tid":
		return true
	}
	return strings.HasPrefix(key, "thread.") || key == "thread"
}

// reserved are names that the server sets itself; twice is once too often, and
// it refuses the profile.
func reserved(key string) bool {
	return key == "" || strings.HasPrefix(key, "__") || plain(key) == "service_name" && key != "service.name"
}

// Labels gives what a workload is known by, as it may be sent: the attributes
// under their OpenTelemetry names and, for those that people search by, under
// short ones as well. Sorted by key. "service.name" is always among them.
//
// Where there are too many, the service, Kubernetes and short names stay.
func Labels(w *profiler.Workload) []profiler.Attribute {
	var l labels
	if w != nil {
		for _, a := range w.Attributes {
			l.add(a.Key, a.Value)
		}
		for _, a := range w.Attributes {
			if short, ok := twins[a.Key]; ok {
				l.add(short, a.Value)
			}
		}
	}
	l.add("service.name", "unknown_service")
	if len(l.all) > LabelNames {
		slices.SortStableFunc(l.all, func(a, b profiler.Attribute) int { return cmp.Compare(rank(a.Key), rank(b.Key)) })
		l.all = l.all[:LabelNames]
	}
	slices.SortFunc(l.all, func(a, b profiler.Attribute) int { return cmp.Compare(a.Key, b.Key) })
	return l.all
}

// rank says what is to stay where there are too many labels.
func rank(key string) int {
	switch {
	case key == "service.name":
		return 0
	case key == "namespace", key == "pod", key == "container", key == "node":
		return 1
	case strings.HasPrefix(key, "service"):
		return 2
	case strings.HasPrefix(key, "k8s.") && strings.HasSuffix(key, ".name"):
		return 3
	case strings.HasPrefix(key, "host."), strings.HasPrefix(key, "container."):
		return 4
	}
	return 5
}

// Plain gives labels the names that Prometheus allows: service_name and not
// service.name. That is what servers before 2.0 do to them.
func Plain(all []profiler.Attribute) []profiler.Attribute {
	var out []profiler.Attribute
	for _, a := range all {
		name := plain(a.Key)
		if !slices.ContainsFunc(out, func(o profiler.Attribute) bool { return o.Key == name }) {
			out = append(out, profiler.Attribute{Key: name, Value: a.Value})
		}
	}
	slices.SortFunc(out, func(a, b profiler.Attribute) int { return cmp.Compare(a.Key, b.Key) })
	return out
}

func plain(key string) string { return strings.ReplaceAll(key, ".", "_") }

type labels struct{ all []profiler.Attribute }

// add adds a label unless there is nothing to say, it may not be sent, or one
// of that name is there. Names that differ only in dots and underscores are
// one name to servers before 2.0, which refuse a profile in which they have
// different values.
func (l *labels) add(key, value string) {
	key, value = labelName(key), shorten(profiler.Printable(value), LabelBytes)
	if value == "" || reserved(key) || never(key) {
		return
	}
	for _, a := range l.all {
		if a.Key == key || plain(a.Key) == plain(key) && a.Value != value {
			return
		}
	}
	l.all = append(l.all, profiler.Attribute{Key: key, Value: value})
}

// labelName writes an underscore for everything that servers before 2.0 refuse
// in a name: what is neither a letter, a digit, an underscore nor a dot, and a
// digit at the start.
func labelName(s string) string {
	if len(s) > labelNameBytes {
		s = s[:labelNameBytes]
	}
	valid := func(i int, c byte) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' || c == '.' || c >= '0' && c <= '9' && i > 0
	}
	for i := 0; i < len(s); i++ {
		if !valid(i, s[i]) {
			out := []byte(s)
			for j := i; j < len(out); j++ {
				if !valid(j, out[j]) {
					out[j] = '_'
				}
			}
			return string(out)
		}
	}
	return s
}
