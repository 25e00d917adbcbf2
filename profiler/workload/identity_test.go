package workload

import (
	"strings"
	"testing"
)

func TestIdentify(t *testing.T) {
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
		{"containerd, systemd driver", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod5cd.slice/cri-containerd-" + a + ".scope", Identity{ContainerID: a}, "container-0123456789ab"},
		{"containerd, cgroupfs driver", "/kubepods/besteffort/pod5cd8-11/" + a, Identity{ContainerID: a}, "container-0123456789ab"},
		{"containerd as K3s has it", "/system.slice/k3s.service/kubepods/podab/cri-containerd:" + a, Identity{ContainerID: a}, "container-0123456789ab"},
		{"CRI-O", "/kubepods.slice/kubepods-pod1.slice/crio-" + a + ".scope/container", Identity{ContainerID: a}, "container-0123456789ab"},
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
