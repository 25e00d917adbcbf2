package plan

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kalypso-dev/kalypso/deploy/component"
)

// parts makes components of lines such as "loki: minio, cert-manager".
func parts(lines ...string) []component.Component {
	var out []component.Component
	for _, line := range lines {
		name, needs, _ := strings.Cut(line, ":")
		c := component.Component{Name: name}
		for need := range strings.SplitSeq(needs, ",") {
			if need = strings.TrimSpace(need); need != "" {
				c.Needs = append(c.Needs, need)
			}
		}
		out = append(out, c)
	}
	return out
}

func TestWaves(t *testing.T) {
	tests := []struct {
		name  string
		parts []component.Component
		want  []string
		err   string
	}{
		{"nothing is no wave", nil, nil, ""},
		{"what needs nothing goes at once", parts("a", "b"), []string{"a b"}, ""},
		{"a need comes before, whatever the order of the list", parts("b: a", "a"), []string{"a", "b"}, ""},
		{"the longest way counts", parts("a", "b: a", "c: a, b", "d: a"), []string{"a", "b d", "c"}, ""},
		{"a need that was left out is taken to be there", parts("b: a", "c: b"), []string{"b", "c"}, ""},
		{"a cycle is named", parts("x", "a: x, b", "b: c", "c: a"), nil, "order components: each needs the next: a → b → c → a"},
		{"a component that needs itself is a cycle", parts("a: a"), nil, "order components: each needs the next: a → a"},
		{"a name stands once", parts("a", "a"), nil, "order components: a is there twice"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			waves, err := Waves(tt.parts)
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Fatalf("error %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, w := range waves {
				got = append(got, strings.Join(component.Names(w), " "))
			}
			if diff := cmp.Diff(got, tt.want); diff != "" {
				t.Errorf("(-got +want):\n%s", diff)
			}
		})
	}
}

// TestCatalogue: the order that was found to work, one release after another,
// on a real cluster.
func TestCatalogue(t *testing.T) {
	waves, err := Waves(component.All())
	if err != nil {
		t.Fatal(err)
	}
	wave := map[string]int{}
	for i, w := range waves {
		for _, c := range w {
			wave[c.Name] = i
		}
	}
	for _, pair := range [][2]string{
		{"cert-manager", "otel-operator"},
		{"istio-base", "istiod"},
		{"istiod", "istio-gateway"},
		{"minio", "mimir"}, {"minio", "tempo"}, {"minio", "loki"}, {"minio", "pyroscope"},
		{"mimir", "grafana"}, {"tempo", "grafana"}, {"loki", "grafana"}, {"pyroscope", "grafana"},
		{"mimir", "collector"}, {"tempo", "collector"}, {"loki", "collector"}, {"pyroscope", "collector"},
	} {
		if wave[pair[0]] >= wave[pair[1]] {
			t.Errorf("%s is in wave %d, %s, which needs it, in wave %d", pair[0], wave[pair[0]], pair[1], wave[pair[1]])
		}
	}
}
