// Package argocd writes the stack down for Argo CD: one Application for each
// component, in the order of the plan.
//
// Argo CD does not order Applications by the sync-wave annotation where an
// ApplicationSet made them; RollingSync by a label does. Servers that have it
// switched off need a parent Application, whose own waves do heed the
// annotation. Both are here.
//
// A chart comes from the repository of the charts, its values from the user's:
// Argo CD calls that multiple sources. The package makes texts; it knows no
// cluster and applies nothing.
package argocd

import (
	"fmt"
	"path"
	"slices"
	"strconv"

	"sigs.k8s.io/yaml"

	"github.com/kalypso-dev/kalypso/deploy/plan"
)

// Options say where Argo CD finds things.
type Options struct {
	Repo     string // URL of the Git repository that the files are committed to
	Revision string // its branch or tag
	Path     string // the folder in it that has the files

	ChartRepo     string // URL of the Git repository that has the charts
	ChartRevision string

	Namespace string // Argo CD's own
}

// The names of what is written.
const (
	project    = "kalypso"
	set        = "kalypso"
	waveLabel  = "kalypso.io/wave"
	waveOfApp  = "argocd.argoproj.io/sync-wave"
	finalizer  = "resources-finalizer.argocd.argoproj.io"
	inCluster  = "https://kubernetes.default.svc"
	valuesRef  = "values"
	apiVersion = "argoproj.io/v1alpha1"
)

// Files are texts by their paths.
type Files map[string]string

// ApplicationSet writes the stack as an AppProject and an ApplicationSet that
// syncs wave by wave (RollingSync: switched on in Argo CD by
// applicationsetcontroller.enable.progressive.syncs).
func ApplicationSet(o Options, waves []plan.Wave) (Files, error) {
	spec := applicationSetSpec{
		GoTemplate:        true,
		GoTemplateOptions: []string{"missingkey=error"},
		Generators:        []generator{{listGenerator{elements(waves)}}},
		Strategy:          strategy{Type: "RollingSync", DeletionOrder: "Reverse"},
		Template: o.application(element{Name: "{{.name}}", Wave: "{{.wave}}", Chart: "{{.chart}}", Release: "{{.release}}", Namespace: "{{.namespace}}"},
			nil), // RollingSync syncs by itself
	}
	for i := range waves {
		spec.Strategy.RollingSync.Steps = append(spec.Strategy.RollingSync.Steps,
			step{[]matchExpression{{Key: waveLabel, Operator: "In", Values: []string{strconv.Itoa(i + 1)}}}})
	}
	files := Files{}
	err := files.add("appproject.yaml", o.project(waves))
	if err == nil {
		err = files.add("applicationset.yaml", object{apiVersion, "ApplicationSet", metadata{Name: set, Namespace: o.Namespace}, spec})
	}
	return files, err
}

// AppOfApps writes the stack as an AppProject, an Application for each
// component below apps/, and a parent Application of these. The parent waits for
// a wave only if Argo CD is told what the health of an Application is
// (resource.customizations.health.argoproj.io_Application).
func AppOfApps(o Options, waves []plan.Wave) (Files, error) {
	files := Files{}
	if err := files.add("appproject.yaml", o.project(waves)); err != nil {
		return nil, err
	}
	self := &automated{Prune: true, SelfHeal: true}
	for _, e := range elements(waves) {
		app := o.application(e, self)
		app.Metadata.Namespace = o.Namespace
		if err := files.add("apps/"+e.Name+".yaml", object{apiVersion, "Application", app.Metadata, app.Spec}); err != nil {
			return nil, err
		}
	}
	parent := applicationSpec{
		Project:     project,
		Destination: destination{inCluster, o.Namespace},
		Source:      &source{RepoURL: o.Repo, TargetRevision: o.Revision, Path: path.Join(o.Path, "apps")},
		SyncPolicy:  syncPolicy{Automated: self},
	}
	err := files.add("application.yaml", object{apiVersion, "Application", metadata{Name: "kalypso", Namespace: o.Namespace, Finalizers: []string{finalizer}}, parent})
	return files, err
}

func (f Files) add(name string, o object) error {
	data, err := yaml.Marshal(o)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	f[name] = string(data)
	return nil
}

// elements count waves from 1, as all that tells of waves does.
func elements(waves []plan.Wave) []element {
	var out []element
	for i, w := range waves {
		for _, c := range w {
			out = append(out, element{Name: c.Name, Wave: strconv.Itoa(i + 1), Chart: c.Chart, Release: c.Release, Namespace: c.Namespace})
		}
	}
	return out
}

// project allows the two repositories, and the namespaces of the stack.
func (o Options) project(waves []plan.Wave) object {
	repos := []string{o.ChartRepo, o.Repo}
	slices.Sort(repos)
	namespaces := []string{o.Namespace} // of the parent's Applications
	for _, e := range elements(waves) {
		namespaces = append(namespaces, e.Namespace)
	}
	slices.Sort(namespaces)
	spec := projectSpec{
		Description: "The Kalypso observability stack",
		SourceRepos: slices.Compact(repos),
		// Custom resources, roles and webhooks belong to no namespace.
		ClusterResourceWhitelist: []groupKind{{"*", "*"}},
	}
	for _, ns := range slices.Compact(namespaces) {
		spec.Destinations = append(spec.Destinations, destination{inCluster, ns})
	}
	return object{apiVersion, "AppProject", metadata{Name: project, Namespace: o.Namespace, Finalizers: []string{finalizer}}, spec}
}

// application is that of a component, or the template of all.
func (o Options) application(e element, self *automated) application {
	return application{
		Metadata: metadata{
			Name:        "kalypso-" + e.Name,
			Labels:      map[string]string{waveLabel: e.Wave},
			Annotations: map[string]string{waveOfApp: e.Wave}, // heeded where a parent syncs it
			Finalizers:  []string{finalizer},
		},
		Spec: applicationSpec{
			Project:     project,
			Destination: destination{inCluster, e.Namespace},
			Sources: []source{
				{RepoURL: o.ChartRepo, TargetRevision: o.ChartRevision, Path: "charts/" + e.Chart,
					Helm: &helm{ReleaseName: e.Release, ValueFiles: []string{"$" + path.Join(valuesRef, o.Path, ValuesFile(e.Name))}}},
				{RepoURL: o.Repo, TargetRevision: o.Revision, Ref: valuesRef},
			},
			SyncPolicy: syncPolicy{
				Automated:   self,
				SyncOptions: []string{"CreateNamespace=true", "ServerSideApply=true", "SkipDryRunOnMissingResource=true"},
				Retry:       &retry{Limit: 10, Backoff: backoff{Duration: "10s", Factor: 2, MaxDuration: "3m"}},
			},
			IgnoreDifferences: setByControllers(),
		},
	}
}

// ValuesFile is where the values of a component are, below Options.Path.
func ValuesFile(component string) string { return "values/" + component + ".yaml" }

// setByControllers is what charts render empty and controllers fill: Argo CD
// would take it out again, for ever.
func setByControllers() []ignoreDifference {
	const webhooks = "admissionregistration.k8s.io"
	return []ignoreDifference{
		{webhooks, "ValidatingWebhookConfiguration", []string{".webhooks[].clientConfig.caBundle", ".webhooks[].failurePolicy"}},
		{webhooks, "MutatingWebhookConfiguration", []string{".webhooks[].clientConfig.caBundle"}},
	}
}
