package argocd

// What we write of Argo CD's API, argoproj.io/v1alpha1. Argo CD's own module
// would bring all of it, and its clients with it; a test holds what is written
// here against a schema.

type object struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Metadata   metadata `json:"metadata"`
	Spec       any      `json:"spec"`
}

type metadata struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Finalizers  []string          `json:"finalizers,omitempty"`
}

type projectSpec struct {
	Description              string        `json:"description"`
	SourceRepos              []string      `json:"sourceRepos"`
	Destinations             []destination `json:"destinations"`
	ClusterResourceWhitelist []groupKind   `json:"clusterResourceWhitelist"`
}

type destination struct {
	Server    string `json:"server"`
	Namespace string `json:"namespace"`
}

type groupKind struct {
	Group string `json:"group"`
	Kind  string `json:"kind"`
}

type applicationSetSpec struct {
	GoTemplate        bool        `json:"goTemplate"`
	GoTemplateOptions []string    `json:"goTemplateOptions"`
	Generators        []generator `json:"generators"`
	Strategy          strategy    `json:"strategy"`
	Template          application `json:"template"`
}

type generator struct {
	List listGenerator `json:"list"`
}

type listGenerator struct {
	Elements []element `json:"elements"`
}

// element is what the template of an ApplicationSet is filled from.
type element struct {
	Name      string `json:"name"`
	Wave      string `json:"wave"`
	Chart     string `json:"chart"`
	Release   string `json:"release"`
	Namespace string `json:"namespace"`
}

type strategy struct {
	Type          string      `json:"type"`
	DeletionOrder string      `json:"deletionOrder"`
	RollingSync   rollingSync `json:"rollingSync"`
}

type rollingSync struct {
	Steps []step `json:"steps"`
}

type step struct {
	MatchExpressions []matchExpression `json:"matchExpressions"`
}

type matchExpression struct {
	Key      string   `json:"key"`
	Operator string   `json:"operator"`
	Values   []string `json:"values"`
}

type application struct {
	Metadata metadata        `json:"metadata"`
	Spec     applicationSpec `json:"spec"`
}

type applicationSpec struct {
	Project           string             `json:"project"`
	Destination       destination        `json:"destination"`
	Source            *source            `json:"source,omitempty"`
	Sources           []source           `json:"sources,omitempty"`
	SyncPolicy        syncPolicy         `json:"syncPolicy"`
	IgnoreDifferences []ignoreDifference `json:"ignoreDifferences,omitempty"`
}

type source struct {
	RepoURL        string `json:"repoURL"`
	TargetRevision string `json:"targetRevision"`
	Path           string `json:"path,omitempty"`
	Ref            string `json:"ref,omitempty"`
	Helm           *helm  `json:"helm,omitempty"`
}

type helm struct {
	ReleaseName string   `json:"releaseName"`
	ValueFiles  []string `json:"valueFiles"`
}

type syncPolicy struct {
	Automated   *automated `json:"automated,omitempty"`
	SyncOptions []string   `json:"syncOptions,omitempty"`
	Retry       *retry     `json:"retry,omitempty"`
}

type automated struct {
	Prune    bool `json:"prune"`
	SelfHeal bool `json:"selfHeal"`
}

type retry struct {
	Limit   int     `json:"limit"`
	Backoff backoff `json:"backoff"`
}

type backoff struct {
	Duration    string `json:"duration"`
	Factor      int    `json:"factor"`
	MaxDuration string `json:"maxDuration"`
}

type ignoreDifference struct {
	Group             string   `json:"group"`
	Kind              string   `json:"kind"`
	JQPathExpressions []string `json:"jqPathExpressions"`
}
