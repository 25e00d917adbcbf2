package cluster

import "strings"

// kind makes Kubernetes in a container. Flags are those of kind 0.32; the
// kubeconfig is merged and its context chosen unless told otherwise. It has no
// verbs to stop and start: Docker's are used on its one node.
func kind() Driver {
	node := func(name string) string { return name + "-control-plane" }
	return Driver{
		Name:    "kind",
		Title:   "Kubernetes in a container of Docker",
		Node:    "machine that Docker runs on",
		Systems: []string{"linux", "darwin"},
		Tools: []Tool{
			{"kind", map[string]string{"darwin": "brew install kind", "linux": "curl -fsSLo kind https://kind.sigs.k8s.io/dl/v0.32.0/kind-linux-ARCH && sudo install kind /usr/local/bin/kind"}},
			dockerTool(),
		},
		Lost: "nodes of kind have process IDs of their own and share the kernel of the machine that Docker runs on: the agent does not find the processes " +
			"that eBPF tells it of, and profiles stay empty. Metrics, logs and traces work.",
		Unwell:  "docker info     shows whether Docker runs",
		Context: func(name string) string { return "kind-" + name },
		Create: func(_ Host, s Spec) []Step {
			return []Step{{
				Reason: "Kubernetes in a container",
				Argv:   []string{"kind", "create", "cluster", "--name", s.Name, "--wait", "5m"},
				Undo:   []Step{{Reason: "delete the container, its volumes and the context", Argv: []string{"kind", "delete", "cluster", "--name", s.Name}}},
			}}
		},
		Start: func(_ Host, name string) []Step {
			return []Step{{Reason: "start the container", Argv: []string{"docker", "start", node(name)}}}
		},
		Stop: func(_ Host, name string) []Step {
			return []Step{{Reason: "stop the container", Argv: []string{"docker", "stop", node(name)}}}
		},
		Inside: func(name string) []string { return []string{"docker", "exec", node(name)} },
		State: Query{
			Argv: func(name string) []string {
				// Anchored: the filter takes a part of a name.
				return []string{"docker", "container", "ls", "--all", "--filter", "name=^" + node(name) + "$", "--format", "{{.State}}"}
			},
			Parse: func(output []byte, _ string) (State, error) {
				word := strings.TrimSpace(string(output))
				return State{Found: word != "", Running: word == "running", Detail: word}, nil
			},
		},
	}
}
