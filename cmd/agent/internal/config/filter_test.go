package config

import (
	"testing"

	"github.com/kalypso-dev/kalypso/profiler/workload"
)

func TestPodFilter(t *testing.T) {
	pod := func(namespace, app, enabled string) *workload.Pod {
		p := &workload.Pod{Namespace: namespace, Labels: map[string]string{"app": app}, Annotations: map[string]string{}}
		if enabled != "" {
			p.Annotations[workload.EnabledAnnotation] = enabled
		}
		return p
	}
	for _, tt := range []struct {
		name        string
		flags       []string
		pod         *workload.Pod
		want        bool
		wantOutside bool
	}{
		{"all are wanted", nil, pod("shop", "web", ""), true, true},
		{"a pod that is not known", nil, nil, true, true},
		{"a pod that says no", nil, pod("shop", "web", "false"), false, true},
		{"a pod that says something else", nil, pod("shop", "web", "perhaps"), true, true},
		{"a namespace", []string{"--include.namespace", "shop*,web"}, pod("shop-1", "web", ""), true, false},
		{"another namespace", []string{"--include.namespace", "shop"}, pod("bank", "web", ""), false, false},
		{"not this namespace", []string{"--exclude.namespace", "kube-*"}, pod("kube-system", "web", ""), false, true},
		{"any but this namespace", []string{"--exclude.namespace", "kube-*"}, pod("shop", "web", ""), true, true},
		{"who is not known might be of that namespace", []string{"--exclude.namespace", "kube-*"}, nil, false, true},
		{"labels", []string{"--kubernetes.selector", "app in (web,api)"}, pod("shop", "web", ""), true, true},
		{"other labels", []string{"--kubernetes.selector", "app!=web"}, pod("shop", "web", ""), false, true},
		{"a pod that is selected and says no", []string{"--kubernetes.selector", "app"}, pod("shop", "web", "false"), false, true},
		{"only who says yes, who says nothing", []string{"--kubernetes.opt-in"}, pod("shop", "web", ""), false, true},
		{"only who says yes, who does", []string{"--kubernetes.opt-in"}, pod("shop", "web", "true"), true, true},
		{"who says yes is held to the rest", []string{"--kubernetes.opt-in", "--exclude.namespace", "shop"}, pod("shop", "web", "true"), false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			wants, outside := read(t, nil, tt.flags...).PodFilter()
			if got := wants(tt.pod); got != tt.want || outside != tt.wantOutside {
				t.Errorf("wanted: %v, outside of pods: %v; want %v, %v", got, outside, tt.want, tt.wantOutside)
			}
		})
	}
}

func TestCgroupFilter(t *testing.T) {
	for _, tt := range []struct {
		name        string
		flags       []string
		cgroup      string
		wanted, all bool
	}{
		{"a unit that is left out", []string{"--exclude.cgroup", "system.slice/cron.service"}, "/system.slice/cron.service", false, true},
		{"what is below it", []string{"--exclude.cgroup", "system.slice/cron.service"}, "/system.slice/cron.service/job", false, true},
		{"what is above it", []string{"--exclude.cgroup", "system.slice/cron.service"}, "/system.slice", true, false},
		{"a unit that is not one of those", []string{"--include.cgroup", "*/nginx.service"}, "/system.slice", false, false},
		{"a unit that is", []string{"--include.cgroup", "*/nginx.service"}, "/system.slice/nginx.service", true, false},
		{"out wins over in", []string{"--include.cgroup", "system.slice", "--exclude.cgroup", "*.mount"}, "/system.slice/a.mount", false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if wanted, below := read(t, nil, tt.flags...).CgroupFilter()(tt.cgroup); wanted != tt.wanted || below != tt.all {
				t.Errorf("wanted: %v, all below alike: %v; want %v, %v", wanted, below, tt.wanted, tt.all)
			}
		})
	}
	if read(t, nil).CgroupFilter() != nil {
		t.Error("cgroups are asked about where none are picked")
	}
}

func TestSelectorIsChecked(t *testing.T) {
	_, err := Read(parsed(t, "--kubernetes.selector", "app in (web"), nil)
	if got := told(err, ""); err == nil || len(got) < 10 {
		t.Errorf("a selector without its end: %v", err)
	} else {
		t.Log(got)
	}
}
