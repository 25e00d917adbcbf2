package cluster

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// colima makes a virtual machine with K3s in it. Flags are those of Colima
// 0.10; --data came with 0.9 and --cpus with 0.8.2.
func colima() Driver {
	inside := func(name string) []string { return []string{"colima", "ssh", "--profile", name, "--"} }
	const onLinux = "brew install colima kubectl     other ways: https://github.com/abiosoft/colima/blob/main/docs/INSTALL.md"
	return Driver{
		Name:    "colima",
		Title:   "K3s in a virtual machine of Colima",
		Node:    "virtual machine",
		Systems: []string{"darwin", "linux"},
		Tools: []Tool{
			{"colima", map[string]string{"darwin": "brew install colima", "linux": onLinux}},
			{"limactl", map[string]string{"darwin": "brew install lima", "linux": onLinux}},
			// Colima merges the kubeconfig with it.
			{"kubectl", map[string]string{"darwin": "brew install kubectl", "linux": onLinux}},
		},
		Sized:   true,
		Unwell:  "colima list",
		Context: func(name string) string { return "colima-" + name },
		Create: func(h Host, s Spec) []Step {
			start := []string{
				"colima", "start", s.Name,
				"--cpus", strconv.Itoa(s.CPUs), "--memory", strconv.Itoa(s.MemoryGiB), "--disk", strconv.Itoa(s.DiskGiB),
			}
			// The flag is there on macOS 13 and newer only.
			if h.OS == "darwin" && h.Arch == "arm64" {
				start = append(start, "--vm-type", "vz")
			}
			start = append(start, "--runtime", "containerd", "--kubernetes", "--k3s-arg", "--disable=traefik", "--activate")
			return []Step{
				{
					Reason: "a virtual machine with K3s: without Traefik, whose ports Istio's gateway takes; containerd, whose logs are files in /var/log/pods",
					Argv:   start,
					Undo:   []Step{{Reason: "delete the virtual machine, its disk and its context", Argv: []string{"colima", "delete", s.Name, "--data", "--force"}}},
				},
				{
					Reason: "more inotify instances, now and at every start",
					Argv:   append(inside(s.Name), "sudo", "sh", "-c", inotifyScript),
				},
			}
		},
		Start: func(_ Host, name string) []Step {
			return []Step{{Reason: "start the virtual machine and K3s", Argv: []string{"colima", "start", name}}}
		},
		Stop: func(_ Host, name string) []Step {
			return []Step{{Reason: "stop K3s and the virtual machine", Argv: []string{"colima", "stop", name}}}
		},
		Inside: inside,
		State: Query{
			// All of them: asked for one that is not there, it fails.
			Argv:  func(string) []string { return []string{"colima", "list", "--json"} },
			Parse: parseColima,
		},
	}
}

// parseColima reads a JSON object a line. Status is that of Lima: Running,
// Stopped, Broken.
func parseColima(output []byte, name string) (State, error) {
	for line := range strings.Lines(string(output)) {
		var vm struct{ Name, Status string }
		if err := json.Unmarshal([]byte(line), &vm); err != nil {
			return State{}, fmt.Errorf("read what colima list printed: %w", err)
		}
		if vm.Name == name {
			return State{Found: true, Running: vm.Status == "Running", Detail: strings.ToLower(vm.Status)}, nil
		}
	}
	return State{}, nil
}
