package pyroscope

import (
	"errors"
	"regexp"
	"strconv"
	"strings"

	"github.com/kalypso-dev/kalypso/deploy/agents"
	"github.com/kalypso-dev/kalypso/profiler"
)

// errDots says that a server cannot read a name with dots: it is older than 2.0, and
// has none.
var errDots = errors.New("names with dots are not known")

// selectors are those that together find a target. The owner of a pod is under a
// name with dots, or with underscores where the native push or a server before 2.0
// wrote it, and which of them no server tells on every storage: both are asked for.
func selectors(t agents.Target) ([]string, error) {
	names := []string{ownerLabel(t.Kind)}
	if names[0] != "" {
		names = append(names, strings.ReplaceAll(names[0], ".", "_"))
	}
	var out []string
	for _, name := range names {
		s, err := selector(t, name)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// ownerLabel is the attribute that agents know the pods of an object by; empty for
// what has none, and for what has a short name.
func ownerLabel(k agents.Kind) string {
	switch k {
	case agents.Deployment:
		return "k8s.deployment.name"
	case agents.StatefulSet:
		return "k8s.statefulset.name"
	case agents.DaemonSet:
		return "k8s.daemonset.name"
	}
	return ""
}

// selector finds a target; owner is the name of the label that has its name, where
// it is the owner of pods.
//
// A Job is found by the names of its pods: those of a CronJob are known as the
// CronJob's. Of a cluster everything is found that has a node, which is what its
// agents sent: others may push the same processes themselves.
func selector(t agents.Target, owner string) (string, error) {
	switch t.Kind {
	case agents.Cluster:
		return `{node!=""}`, nil
	case agents.Namespace:
		return `{namespace=` + quote(t.Name) + `}`, nil
	case agents.Node:
		return `{node=` + quote(t.Name) + `}`, nil
	case agents.Pod:
		return `{namespace=` + quote(t.Namespace) + `,pod=` + quote(t.Name) + `}`, nil
	case agents.Job:
		return `{namespace=` + quote(t.Namespace) + `,pod=~` + quote(regexp.QuoteMeta(t.Name)+"-([0-9]+-)?[a-z0-9]{5}") + `}`, nil
	case agents.Deployment, agents.StatefulSet, agents.DaemonSet:
		if strings.Contains(owner, ".") {
			owner = quote(owner)
		}
		return `{namespace=` + quote(t.Namespace) + `,` + owner + `=` + quote(t.Name) + `}`, nil
	}
	return "", &profiler.Fault{
		What: "Pyroscope knows nothing of " + t.String(), Why: errors.New("profiles are stored by pod and node, not by process"),
		Fix: "--from -15m reads what the agents remember; pod/NAME and node/NAME are stored",
	}
}

// quote writes a value of a selector as Go does, which is what the server reads.
func quote(s string) string { return strconv.Quote(s) }
