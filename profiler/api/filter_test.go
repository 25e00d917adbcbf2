package api

import (
	"testing"

	"github.com/kalypso-dev/kalypso/profiler"
)

// TestFilterTarget: what a filter says of cgroups, where these tell anything.
func TestFilterTarget(t *testing.T) {
	label := func(key string) Filter { return Filter{Labels: []profiler.Attribute{{Key: key, Value: "shop"}}} }
	w := func(key, value string) *profiler.Workload {
		return &profiler.Workload{Attributes: []profiler.Attribute{{Key: key, Value: value}}}
	}
	for name, f := range map[string]Filter{
		"all": {}, "a PID": {PID: 1}, "a program": {Comm: "web"}, "a service, which may be a program": {Service: "web"},
		"a node": label("k8s.node.name"), "a label of all": label("env"),
	} {
		if f.Target() != nil {
			t.Errorf("%s: told by cgroups", name)
		}
	}
	for _, tt := range []struct {
		name   string
		f      Filter
		cgroup string
		w      *profiler.Workload
		want   bool
	}{
		{"its pod", label("k8s.namespace.name"), "/kubepods/pod1", w("k8s.namespace.name", "shop"), true},
		{"another pod", label("k8s.namespace.name"), "/kubepods/pod2", w("k8s.namespace.name", "shopping"), false},
		{"no workload", label("systemd.unit"), "/", nil, false},
		{"below a path", Filter{Cgroup: "/a/"}, "/a/b", nil, true},
		{"the path", Filter{Cgroup: "/a"}, "/a", nil, true},
		{"another path", Filter{Cgroup: "/a"}, "/ab", nil, false},
		{"a program in a path", Filter{Cgroup: "/a", Comm: "web"}, "/a", nil, true},
		{"a service in a path", Filter{Cgroup: "/a", Service: "web"}, "/a", w("service.name", "db"), false},
	} {
		if got := tt.f.Target()(tt.cgroup, tt.w); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}
