package cluster

import (
	"path/filepath"
	"strings"
)

const (
	k3sInstaller = "https://get.k3s.io"
	k3sFile      = "/etc/rancher/k3s/k3s.yaml"
)

// k3s installs K3s as a service of this machine, with its own installer, which
// calls sudo itself, as its scripts to stop and to uninstall do.
func k3s() Driver {
	return Driver{
		Name:    "k3s",
		Title:   "K3s as a service of this machine",
		Node:    "machine",
		Systems: []string{"linux"},
		Tools: []Tool{
			{"curl", map[string]string{"linux": "sudo apt-get install curl     or what your distribution has in its place"}},
			{"systemctl", map[string]string{"linux": "kalypsoctl cluster create --driver k3d     K3s in a container; as a service it is started by systemd"}},
		},
		Asks:   "K3s becomes a service of this machine: it runs as root, starts with the machine, and changes its network (CNI, iptables).",
		Unwell: "systemctl status k3s; where systemd does not run: kalypsoctl cluster create --driver k3d",
		// What k3s-uninstall.sh removes, whoever made it.
		Owned:   []string{"/usr/local/bin/k3s", "/etc/rancher/k3s", "/var/lib/rancher/k3s", "/var/lib/kubelet"},
		Context: func(name string) string { return "k3s-" + name },
		Create: func(h Host, s Spec) []Step {
			script := filepath.Join(h.CacheDir, "k3s-install.sh")
			context := "k3s-" + s.Name
			return []Step{
				{
					Reason: "the installer of K3s",
					Argv:   []string{"curl", "-fsSL", "--create-dirs", "-o", script, k3sInstaller},
				},
				{
					Reason: "install and start K3s: without Traefik, whose ports Istio's gateway takes",
					Argv:   []string{"sh", script, "server", "--disable=traefik"},
					Undo:   []Step{{Reason: "stop K3s and delete all of it, volumes too", Argv: []string{"/usr/local/bin/k3s-uninstall.sh"}}},
				},
				{
					Reason: "more inotify instances, now and at every start",
					Argv:   h.asRoot("sh", "-c", inotifyScript),
					Undo:   []Step{{Reason: "the limits of inotify, from the next start on", Argv: h.asRoot("rm", "-f", inotifyFile)}},
				},
				{
					Reason: "the kubeconfig, which kalypsoctl merges into yours as context " + context,
					Argv:   h.asRoot("cat", k3sFile),
					Read:   func(output []byte) error { return mergeKubeconfig(output, context) },
					Undo:   []Step{{Reason: "take context " + context + " out of the kubeconfig", Do: dropContext(context)}},
				},
			}
		},
		Start: func(h Host, _ string) []Step {
			return []Step{{Reason: "start the service", Argv: h.asRoot("systemctl", "start", "k3s")}}
		},
		Stop: func(Host, string) []Step {
			// Stopping the service alone leaves all pods running.
			return []Step{{Reason: "stop K3s and its pods", Argv: []string{"/usr/local/bin/k3s-killall.sh"}}}
		},
		Inside: func(string) []string { return nil },
		State: Query{
			Argv:  func(string) []string { return []string{"systemctl", "show", "k3s", "--property=LoadState,ActiveState"} },
			Parse: parseK3s,
		},
	}
}

// parseK3s reads NAME=VALUE, a line each.
func parseK3s(output []byte, _ string) (State, error) {
	var s State
	for line := range strings.Lines(string(output)) {
		switch name, value, _ := strings.Cut(strings.TrimSpace(line), "="); name {
		case "LoadState":
			s.Found = value != "not-found"
		case "ActiveState":
			s.Running, s.Detail = value == "active", value
		}
	}
	if !s.Found {
		return State{}, nil
	}
	return s, nil
}
