package workload

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestIdentify(t *testing.T) {
	const pod, static = "5cd8b7a1-0c2d-4e5f-8a9b-1c2d3e4f5a6b", "0123456789abcdef0123456789abcdef"
	slice := strings.ReplaceAll(pod, "-", "_")
	a, b := strings.Repeat("0123456789abcdef", 4), strings.Repeat("fedcba9876543210", 4)
	for _, tt := range []struct {
		name, path  string
		want        Identity
		wantService string
	}{
		{"no cgroup", "/", Identity{}, ""},
		{"a cgroup without a unit", "/build/42", Identity{}, ""},
		{"a service", "/system.slice/nginx.service", Identity{Unit: "nginx.service"}, "nginx"},
		{"a service's own groups", "/system.slice/nginx.service/workers/3", Identity{Unit: "nginx.service"}, "nginx"},
		{"an instance of a template", "/system.slice/system-getty.slice/getty@tty1.service", Identity{Unit: "getty@tty1.service"}, "getty@tty1"},
		{"an escaped name", `/system.slice/my\x2dapp.service`, Identity{Unit: "my-app.service"}, "my-app"},
		{"a broken escape", `/system.slice/my\xzz.service`, Identity{Unit: `my\xzz.service`}, `my\xzz`},
		{"a session of a user", "/user.slice/user-1000.slice/session-3.scope", Identity{Unit: "user-1000.slice"}, "user-1000"},
		{"a user's applications", "/user.slice/user-1000.slice/user@1000.service/app.slice/app-firefox-99.scope", Identity{Unit: "user-1000.slice"}, "user-1000"},
		{"init", "/init.scope", Identity{Unit: "init.scope"}, "init"},
		{"docker, systemd driver", "/system.slice/docker-" + a + ".scope", Identity{ContainerID: a}, "container-0123456789ab"},
		{"docker, cgroupfs driver", "/docker/" + a, Identity{ContainerID: a}, "container-0123456789ab"},
		{"docker in docker", "/docker/" + b + "/docker/" + a, Identity{ContainerID: a}, "container-0123456789ab"},
		{"neighbouring IDs", "/" + b + "/" + a, Identity{ContainerID: a}, "container-0123456789ab"},
		{"a container's own groups", "/docker/" + a + "/init.scope", Identity{ContainerID: a}, "container-0123456789ab"},
		{"systemd in a container", "/docker/" + a + "/system.slice/nginx.service", Identity{ContainerID: a}, "container-0123456789ab"},
		{"containerd, systemd driver", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + slice + ".slice/cri-containerd-" + a + ".scope", Identity{ContainerID: a, PodUID: pod}, "container-0123456789ab"},
		{"containerd, systemd driver, guaranteed", "/kubepods.slice/kubepods-pod" + slice + ".slice/cri-containerd-" + a + ".scope", Identity{ContainerID: a, PodUID: pod}, "container-0123456789ab"},
		{"containerd, cgroupfs driver", "/kubepods/besteffort/pod" + pod + "/" + a, Identity{ContainerID: a, PodUID: pod}, "container-0123456789ab"},
		{"containerd, cgroupfs driver, guaranteed", "/kubepods/pod" + pod + "/" + a, Identity{ContainerID: a, PodUID: pod}, "container-0123456789ab"},
		{"containerd told the driver of systemd, and having its own", "/system.slice/containerd.service/kubepods-burstable-pod" + slice + ".slice:cri-containerd:" + a, Identity{ContainerID: a, PodUID: pod}, "container-0123456789ab"},
		{"K3s in its service", "/system.slice/k3s.service/kubepods/burstable/pod" + pod + "/" + a, Identity{ContainerID: a, PodUID: pod}, "container-0123456789ab"},
		{"K3s, older", "/system.slice/k3s.service/kubepods/pod" + pod + "/cri-containerd:" + a, Identity{ContainerID: a, PodUID: pod}, "container-0123456789ab"},
		{"CRI-O", "/kubepods.slice/kubepods-pod" + slice + ".slice/crio-" + a + ".scope/container", Identity{ContainerID: a, PodUID: pod}, "container-0123456789ab"},
		{"CRI-O, cgroupfs driver", "/kubepods/burstable/pod" + pod + "/crio-" + a, Identity{ContainerID: a, PodUID: pod}, "container-0123456789ab"},
		{"CRI-O's monitor in the pod", "/kubepods.slice/kubepods-pod" + slice + ".slice/crio-conmon-" + a + ".scope", Identity{PodUID: pod}, "pod-" + pod},
		{"CRI-O's monitor with the system", "/system.slice/crio-conmon-" + a + ".scope", Identity{Unit: "crio-conmon.scope"}, "crio-conmon"},
		{"Docker under Kubernetes, systemd driver", "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + slice + ".slice/docker-" + a + ".scope", Identity{ContainerID: a, PodUID: pod}, "container-0123456789ab"},
		{"a node of Kind, seen from its machine", "/docker/" + b + "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod" + slice + ".slice/cri-containerd-" + a + ".scope", Identity{ContainerID: a, PodUID: pod}, "container-0123456789ab"},
		{"a node of Kind, seen from within", "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + slice + ".slice/cri-containerd-" + a + ".scope", Identity{ContainerID: a, PodUID: pod}, "container-0123456789ab"},
		{"a kubelet with a root of its own", "/nodes/node-1/kubepods/burstable/pod" + pod + "/" + a, Identity{ContainerID: a, PodUID: pod}, "container-0123456789ab"},
		{"a static pod", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + static + ".slice/cri-containerd-" + a + ".scope", Identity{ContainerID: a, PodUID: static}, "container-0123456789ab"},
		{"systemd in a pod", "/kubepods/pod" + pod + "/" + a + "/system.slice/nginx.service", Identity{ContainerID: a, PodUID: pod}, "container-0123456789ab"},
		{"docker in a pod", "/kubepods/pod" + pod + "/" + b + "/docker/" + a, Identity{ContainerID: a}, "container-0123456789ab"},
		{"seen from another cgroup namespace", "/../../pod" + pod + "/" + a, Identity{ContainerID: a, PodUID: pod}, "container-0123456789ab"},
		{"a UID that is too short", "/kubepods/pod" + pod[:35] + "/" + a, Identity{ContainerID: a}, "container-0123456789ab"},
		{"a word that ends in pod", "/kubepods/tripod" + pod + "/" + a, Identity{ContainerID: a}, "container-0123456789ab"},
		{"podman", "/machine.slice/libpod-" + a + ".scope/container", Identity{ContainerID: a}, "container-0123456789ab"},
		{"nspawn", `/machine.slice/machine-my\x2dbox.scope/payload`, Identity{ContainerID: "my-box"}, "container-my-box"},
		{"LXC", "/lxc/web/system.slice", Identity{ContainerID: "web"}, "container-web"},
		{"LXC, version 4", "/lxc.payload.web/system.slice/x.service", Identity{ContainerID: "web"}, "container-web"},
		{"hex that is too short for an ID", "/system.slice/docker-" + a[:63] + ".scope", Identity{Unit: "docker-" + a[:63] + ".scope"}, "docker-" + a[:63]},
		{"hex that is too long for an ID", "/docker/" + a + "0", Identity{}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Identify(tt.path)
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			if s := got.Service(); s != tt.wantService {
				t.Errorf("service %q, want %q", s, tt.wantService)
			}
		})
	}
}

// A container that runs containers is one of those that a process is in.
func TestContainers(t *testing.T) {
	const outer, inner = "5cd8b7a1-0c2d-4e5f-8a9b-1c2d3e4f5a6b", "6ce9b7a1-0c2d-4e5f-8a9b-1c2d3e4f5a6b"
	a, b := strings.Repeat("0123456789abcdef", 4), strings.Repeat("fedcba9876543210", 4)
	for path, want := range map[string][]Identity{
		"/":                               nil,
		"/system.slice/nginx.service":     nil,
		"/kubepods/pod" + outer + "/" + a: {{ContainerID: a, PodUID: outer}},
		"/kubepods/pod" + outer + "/" + a + "/docker/" + b: {{ContainerID: a, PodUID: outer}, {ContainerID: b}},
		"/kubepods/pod" + outer + "/" + a + "/kubelet/kubepods/pod" + inner + "/" + b: {
			{ContainerID: a, PodUID: outer}, {ContainerID: b, PodUID: inner}},
		"/kubepods/pod" + outer + "/pod" + inner + "/" + b: {{PodUID: outer}, {ContainerID: b, PodUID: inner}},
		"/docker/" + a + "/pod" + inner:                    {{ContainerID: a}, {PodUID: inner}},
	} {
		if diff := cmp.Diff(Containers(path), want); diff != "" {
			t.Errorf("%s (-got +want):\n%s", path, diff)
		}
	}
}

func FuzzContainers(f *testing.F) {
	f.Add("/kubepods/pod5cd8b7a1-0c2d-4e5f-8a9b-1c2d3e4f5a6b/" + strings.Repeat("0", 64))
	f.Fuzz(func(t *testing.T, path string) {
		for _, id := range Containers(path) {
			if id.ContainerID == "" && id.PodUID == "" || !strings.Contains(path, id.ContainerID) {
				t.Errorf("%+v in %q", id, path)
			}
		}
		Identify(path)
	})
}
