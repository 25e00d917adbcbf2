package workload

import (
	"path"
	"regexp"
	"strings"
)

// Identity is what a cgroup path says about who its processes belong to. A
// container inside a unit is the container, because the unit is then its
// runtime's affair.
type Identity struct {
	ContainerID string // 64 hex digits, or the name of an LXC or nspawn container
	PodUID      string // of the pod that the container, or the process itself, is in
	Unit        string // systemd unit: "nginx.service", "user-1000.slice"
}

// containerID finds what container runtimes put into paths: docker-ID.scope,
// cri-containerd-ID.scope, crio-ID.scope, libpod-ID.scope, or the bare ID
// (cgroupfs driver, nested runtimes). The IDs are SHA-256 sized.
var containerID = regexp.MustCompile(`(?:^|[-:/])([0-9a-f]{64})(?:\.scope)?(?:$|/)`)

// podUID finds what the kubelet calls the cgroup of a pod: podUID with the
// cgroupfs driver; NAME-podUID.slice with that of systemd, where underscores
// stand for the UID's hyphens. A static pod's UID is 32 digits without hyphens.
var podUID = regexp.MustCompile(`(?:^|[-/])pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?(?:$|[/:])`)

// monitor is the cgroup of a container's monitor, which CRI-O and podman have
// outside the container.
var monitor = regexp.MustCompile(`(crio|libpod)-conmon-[0-9a-f]{64}`)

// Identify reads a cgroup path, as CgroupOf gives it.
func Identify(cgroup string) Identity {
	// The innermost container is the one that the process is in.
	all := Containers(cgroup)
	if len(all) > 0 {
		return all[len(all)-1]
	}
	elements := strings.Split(strings.Trim(cgroup, "/"), "/")
	for i, e := range elements {
		switch {
		case (e == "lxc" || e == "lxc.payload") && i+1 < len(elements):
			return Identity{ContainerID: elements[i+1]}
		case strings.HasPrefix(e, "lxc.payload."):
			return Identity{ContainerID: strings.TrimPrefix(e, "lxc.payload.")}
		case elements[0] == "machine.slice" && strings.HasPrefix(e, "machine-") && strings.HasSuffix(e, ".scope"):
			return Identity{ContainerID: unescape(strings.TrimSuffix(strings.TrimPrefix(e, "machine-"), ".scope"))}
		}
	}
	for i, e := range elements {
		elements[i] = monitor.ReplaceAllString(e, "${1}-conmon")
	}
	return Identity{Unit: unit(elements)}
}

// Containers are the containers and pods that a cgroup path lies in, from the
// outermost to the innermost. There is more than one where a container runs
// containers of its own. A pod without a container is that of a process which
// is in the pod's cgroup only.
func Containers(cgroup string) []Identity {
	path := monitor.ReplaceAllString(overlap(cgroup), "${1}-conmon")
	containers := containerID.FindAllStringSubmatchIndex(path, -1)
	pods := podUID.FindAllStringSubmatchIndex(path, -1)
	var all []Identity
	for len(containers) > 0 || len(pods) > 0 {
		var id Identity
		if len(pods) > 0 && (len(containers) == 0 || pods[0][2] < containers[0][2]) {
			id.PodUID = podName(path[pods[0][2]:pods[0][3]])
			pods = pods[1:]
		}
		if len(containers) > 0 && (len(pods) == 0 || containers[0][2] < pods[0][2]) {
			id.ContainerID = path[containers[0][2]:containers[0][3]]
			containers = containers[1:]
		}
		all = append(all, id)
	}
	return all
}

// podName is a pod's UID as Kubernetes has it.
func podName(uid string) string { return strings.ReplaceAll(uid, "_", "-") }

// InPod says whether a cgroup path lies in a pod's.
func InPod(cgroup string) bool { return podUID.MatchString(cgroup) }

// overlap doubles the slashes, so that neighbouring elements can both match:
// a match takes the slash behind it.
func overlap(cgroup string) string { return strings.ReplaceAll(cgroup, "/", "//") }

// unit is the systemd unit that a path lies in: the outermost service, because
// what is below it is how the service sorts its own processes; of a user the
// slice, because its sessions and applications come and go with names of their
// own; else the outermost scope.
func unit(elements []string) string {
	scope := ""
	for _, e := range elements {
		switch path.Ext(e) {
		case ".service":
			return unescape(e)
		case ".slice":
			if strings.HasPrefix(e, "user-") {
				return e
			}
		case ".scope":
			if scope == "" {
				scope = unescape(e)
			}
		}
	}
	return scope
}

// unescape reads systemd's \xNN: systemd-escape(1).
func unescape(name string) string {
	if !strings.Contains(name, `\x`) {
		return name
	}
	var b strings.Builder
	for i := 0; i < len(name); i++ {
		if i+4 <= len(name) && name[i] == '\\' && name[i+1] == 'x' {
			high, low := hex(name[i+2]), hex(name[i+3])
			if high >= 0 && low >= 0 {
				b.WriteByte(byte(high<<4 | low))
				i += 3
				continue
			}
		}
		b.WriteByte(name[i])
	}
	return b.String()
}

func hex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	}
	return -1
}

// Service is the name that a workload goes by of which nothing else is known: of
// a unit its name without the kind, of a container its ID as container runtimes
// shorten it, of a pod likewise. It is empty when the cgroup says nothing.
func (id Identity) Service() string {
	switch {
	case len(id.ContainerID) == 64 && containerID.MatchString(id.ContainerID):
		return "container-" + id.ContainerID[:12]
	case id.ContainerID != "":
		return "container-" + id.ContainerID
	case id.PodUID != "":
		return "pod-" + id.PodUID
	case id.Unit != "":
		return strings.TrimSuffix(id.Unit, path.Ext(id.Unit))
	}
	return ""
}
