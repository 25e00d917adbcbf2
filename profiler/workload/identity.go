package workload

import (
	"path"
	"regexp"
	"strings"
)

// Identity is what a cgroup path says about who its processes belong to. At
// most one of the fields is set: a container inside a unit is the container,
// because the unit is then its runtime's affair.
type Identity struct {
	ContainerID string // 64 hex digits, or the name of an LXC or nspawn container
	Unit        string // systemd unit: "nginx.service", "user-1000.slice"
}

// containerID finds what container runtimes put into paths: docker-ID.scope,
// cri-containerd-ID.scope, crio-ID.scope, libpod-ID.scope, or the bare ID
// (cgroupfs driver, nested runtimes). The IDs are SHA-256 sized.
var containerID = regexp.MustCompile(`(?:^|[-:/])([0-9a-f]{64})(?:\.scope)?(?:$|/)`)

// Identify reads a cgroup path, as CgroupOf gives it.
func Identify(cgroup string) Identity {
	// The innermost container is the one that the process is in.
	if all := containerID.FindAllStringSubmatchIndex(overlap(cgroup), -1); len(all) > 0 {
		last := all[len(all)-1]
		return Identity{ContainerID: overlap(cgroup)[last[2]:last[3]]}
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
	return Identity{Unit: unit(elements)}
}

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

// Service is the name that a workload goes by: of a unit its name without the
// kind, of a container its ID as container runtimes shorten it. It is empty
// when the cgroup says nothing.
func (id Identity) Service() string {
	switch {
	case len(id.ContainerID) == 64 && containerID.MatchString(id.ContainerID):
		return "container-" + id.ContainerID[:12]
	case id.ContainerID != "":
		return "container-" + id.ContainerID
	case id.Unit != "":
		return strings.TrimSuffix(id.Unit, path.Ext(id.Unit))
	}
	return ""
}
