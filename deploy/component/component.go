// Package component is the catalogue: which parts the stack has, one file each.
//
// A component says which chart it is, where it goes, what has to be there
// before it, what others reach it by, which Secrets it reads and which custom
// resources it brings. Whatever installs, renders, checks or tells of the stack
// reads this list, so that no two of them disagree.
//
// It is data. It knows no Helm and no cluster, and imports only the standard
// library.
package component

import "fmt"

// Component is one part of the stack: one release of one chart.
type Component struct {
	Name      string // what people type
	Title     string // what it is, in a few words
	Chart     string // of the package charts
	Release   string
	Namespace string
	Needs     []string // names of components that have to work before this is installed
	Serves    []Service
	Secrets   []Secret
	Groups    []string // API groups of the custom resources that it brings

	// Privileged says that its pods need more than Pod Security's "baseline"
	// lets through: folders of the node, its processes, capabilities.
	Privileged bool

	// Trial is an object that its webhook lets in once it works, as YAML; empty
	// where nobody waits for a webhook. It is only ever created in a dry run.
	Trial string
}

// Service is what others reach a component by.
type Service struct {
	Name  string
	Ports []int
}

// Secret is what a component reads and no chart makes, because a chart would
// have to make up its values, or to hold them.
type Secret struct {
	Name string
	Keys []string
}

// All components, in the order in which they are told of.
func All() []Component {
	return []Component{
		certManager(),
		otelOperator(),
		istioBase(),
		istiod(),
		istioGateway(),
		minio(),
		mimir(),
		tempo(),
		loki(),
		pyroscope(),
		grafana(),
		collector(),
		clusterCollector(),
		agent(),
	}
}

// Names of components, in their order.
func Names(components []Component) []string {
	names := make([]string, len(components))
	for i, c := range components {
		names[i] = c.Name
	}
	return names
}

// Host is the name by which a Service is reached from any namespace.
func (c Component) Host(s Service) string {
	return fmt.Sprintf("%s.%s.svc.cluster.local", s.Name, c.Namespace)
}

// objectStoreSecret is what a component reads that stores in S3: its own copy,
// as no pod can read a Secret of another namespace.
func objectStoreSecret() Secret {
	return Secret{Name: "kalypso-s3", Keys: []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}}
}
