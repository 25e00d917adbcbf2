package charts

import (
	"encoding/json"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// dataSources of Grafana by uid.
func dataSources(t *testing.T) map[string]map[string]any {
	t.Helper()
	out := map[string]map[string]any{}
	for _, d := range list(standInValues(t, "kalypso-grafana", ""), "datasources", "datasources.yaml", "datasources") {
		out[text(d, "uid")] = d.(map[string]any)
	}
	return out
}

// Where each data source leads from: traces to logs, metrics and profiles; logs
// and exemplars to traces.
func TestDataSources(t *testing.T) {
	sources := dataSources(t)
	leads := map[string][]string{}
	for uid, source := range sources {
		found := map[string]bool{}
		eachString(source["jsonData"], "", func(key, value string) {
			if key == "datasourceUid" {
				found[value] = true
			}
		})
		leads[uid] = slices.Sorted(maps.Keys(found))
	}
	want := map[string][]string{"mimir": {"tempo"}, "tempo": {"loki", "mimir", "pyroscope"}, "loki": {"tempo"}, "pyroscope": nil}
	if diff := cmp.Diff(leads, want); diff != "" {
		t.Errorf("links (-got +want):\n%s", diff)
	}
	for uid, source := range sources {
		eachString(source["jsonData"], "", func(_, value string) {
			if strings.Contains(strings.ReplaceAll(value, "$$", ""), "$") {
				t.Errorf("%s: in %q Grafana would expand a single $", uid, value)
			}
		})
	}
	for _, correlation := range []string{"tracesToLogsV2", "tracesToMetrics", "tracesToProfiles", "serviceMap", "lokiSearch"} {
		if at(sources["tempo"], "jsonData", correlation) == nil {
			t.Errorf("Tempo has no %s", correlation)
		}
	}
}

var agentMetric = regexp.MustCompile(`kalypso_agent_[a-z_]+`)

func TestDashboards(t *testing.T) {
	page, err := os.ReadFile("../../docs/reference/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	sources := dataSources(t)
	r := release{name: "kalypso-grafana", namespace: "grafana", chart: "kalypso-grafana"}
	uids := map[string]bool{}
	for _, o := range rendered(t, r, withStandIns) {
		if text(o.fields, "metadata", "labels", "grafana_dashboard") != "1" {
			continue
		}
		for name, contents := range at(o.fields, "data").(map[string]any) {
			var dashboard map[string]any
			if err := json.Unmarshal([]byte(contents.(string)), &dashboard); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			uids[text(dashboard, "uid")] = true
			checkDashboard(t, name, dashboard, sources)
			for _, metric := range agentMetric.FindAllString(contents.(string), -1) {
				if !strings.Contains(string(page), "`"+metric+"`") {
					t.Errorf("%s asks for %s, which the agent does not have", name, metric)
				}
			}
		}
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(uids)), []string{"kalypso-agent", "kalypso-profiling", "kalypso-stack"}); diff != "" {
		t.Errorf("dashboards (-got +want):\n%s", diff)
	}
	label := text(standInValues(t, "kalypso-grafana", ""), "sidecar", "dashboards", "label")
	if label != "grafana_dashboard" {
		t.Errorf("the sidecar looks for the label %q", label)
	}
}

func checkDashboard(t *testing.T, name string, dashboard map[string]any, sources map[string]map[string]any) {
	t.Helper()
	ids, taken := map[float64]bool{}, map[[2]int]string{}
	for _, p := range list(dashboard, "panels") {
		title := text(p, "title")
		id, _ := at(p, "id").(float64)
		if ids[id] {
			t.Errorf("%s: two panels have the id %v", name, id)
		}
		ids[id] = true
		number := func(key string) int { n, _ := at(p, "gridPos", key).(float64); return int(n) }
		for x := number("x"); x < number("x")+number("w"); x++ {
			for y := number("y"); y < number("y")+number("h"); y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%s: %q lies over %q or the edge", name, title, other)
				}
				taken[[2]int{x, y}] = title
			}
		}
		if text(p, "type") == "row" {
			continue
		}
		for _, target := range append(list(p, "targets"), p) {
			uid := text(target, "datasource", "uid")
			if source := sources[uid]; source == nil || source["type"] != text(target, "datasource", "type") {
				t.Errorf("%s: %q asks the data source %q, which there is not", name, title, uid)
			}
		}
		if len(list(p, "targets")) == 0 {
			t.Errorf("%s: %q asks nothing", name, title)
		}
	}
}
