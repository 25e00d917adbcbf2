package cluster

import (
	"encoding/json"
	"fmt"
)

// dockerTool is what nodes that are containers need.
func dockerTool() Tool {
	return Tool{"docker", map[string]string{"darwin": "brew install --cask docker-desktop", "linux": "curl -fsSL https://get.docker.com | sh"}}
}

// k3d makes K3s in a container. Flags are those of k3d 5.9; the kubeconfig is
// merged and its context chosen unless told otherwise.
func k3d() Driver {
	return Driver{
		Name:    "k3d",
		Title:   "K3s in a container of Docker",
		Node:    "machine that Docker runs on",
		Systems: []string{"linux", "darwin"},
		Tools: []Tool{
			{"k3d", map[string]string{"darwin": "brew install k3d", "linux": "curl -fsSL https://raw.githubusercontent.com/k3d-io/k3d/main/install.sh | bash"}},
			dockerTool(),
		},
		Unwell:  "docker info     shows whether Docker runs",
		Context: func(name string) string { return "k3d-" + name },
		Create: func(_ Host, s Spec) []Step {
			return []Step{{
				Reason: "K3s in a container: without Traefik, whose ports Istio's gateway takes; with the machine's process IDs, which eBPF reports",
				Argv:   []string{"k3d", "cluster", "create", s.Name, "--host-pid-mode", "--k3s-arg", "--disable=traefik@server:*"},
				Undo:   []Step{{Reason: "delete the containers, their volumes and the context", Argv: []string{"k3d", "cluster", "delete", s.Name}}},
			}}
		},
		Start: func(_ Host, name string) []Step {
			return []Step{{Reason: "start the containers", Argv: []string{"k3d", "cluster", "start", name}}}
		},
		Stop: func(_ Host, name string) []Step {
			return []Step{{Reason: "stop the containers", Argv: []string{"k3d", "cluster", "stop", name}}}
		},
		Inside: func(name string) []string { return []string{"docker", "exec", "k3d-" + name + "-server-0"} },
		State: Query{
			Argv:  func(string) []string { return []string{"k3d", "cluster", "list", "--output", "json"} },
			Parse: parseK3d,
		},
	}
}

func parseK3d(output []byte, name string) (State, error) {
	var all []struct {
		Name           string
		ServersRunning int
		ServersCount   int
	}
	if err := json.Unmarshal(output, &all); err != nil {
		return State{}, fmt.Errorf("read what k3d cluster list printed: %w", err)
	}
	for _, c := range all {
		if c.Name == name {
			s := State{Found: true, Running: c.ServersCount > 0 && c.ServersRunning == c.ServersCount}
			s.Detail = fmt.Sprintf("%d/%d servers", c.ServersRunning, c.ServersCount)
			return s, nil
		}
	}
	return State{}, nil
}
