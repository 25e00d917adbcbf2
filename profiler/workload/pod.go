package workload

import (
	"cmp"
	"strconv"
	"strings"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
)

// Pod is what is kept of a Kubernetes pod. It is not changed once Pods has it.
type Pod struct {
	UID         string // as cgroups have it
	Namespace   string
	Name        string
	Created     time.Time
	Owner       Owner             // its controller
	Labels      map[string]string // all, for selectors
	Annotations map[string]string // those that KeepAnnotation keeps
	Containers  []PodContainer    // that have been made so far
	Told        bool              // each of its containers has been made, and is there
}

// Owner is an object that made another one.
type Owner struct{ Kind, Name string }

// PodContainer is one container of a pod, the latest of its name or one before.
type PodContainer struct {
	ID    string // without the runtime's name
	Name  string
	Image string
}

// Container is a container and the pod that it is in.
type Container struct {
	PodContainer // its ID alone, until the pod's status has the container
	Pod          *Pod
}

// Annotations and labels that say how a pod is called:
// https://opentelemetry.io/docs/specs/semconv/non-normative/k8s-attributes/
const (
	resourcePrefix = "resource.opentelemetry.io/"
	nameLabel      = "app.kubernetes.io/name"
	instanceLabel  = "app.kubernetes.io/instance"
	versionLabel   = "app.kubernetes.io/version"
)

// annotationPrefix begins the annotations that are meant for the agent.
const annotationPrefix = "profiles.kalypso.io/"

// EnabledAnnotation says whether a pod is to be profiled: "true" or "false".
const EnabledAnnotation = annotationPrefix + "enabled"

// FrequencyAnnotation lowers the rate at which a pod is sampled: samples a second
// and CPU.
const FrequencyAnnotation = annotationPrefix + "frequency"

// KeepAnnotation says whether an annotation is one that is read here. An
// annotation may be 256 KiB long; one that is longer than a label of a profile
// may be is not kept.
func KeepAnnotation(key, value string) bool {
	return len(value) <= 1024 && (strings.HasPrefix(key, resourcePrefix) || strings.HasPrefix(key, annotationPrefix))
}

// Enabled says what the pod's annotation says, and whether it says anything.
func (p *Pod) Enabled() (enabled, said bool) {
	enabled, err := strconv.ParseBool(p.Annotations[EnabledAnnotation])
	return enabled, err == nil
}

// Frequency is the rate that the pod's annotation asks for; 0: none that can be
// understood.
func (p *Pod) Frequency() int {
	hz, err := strconv.ParseUint(p.Annotations[FrequencyAnnotation], 10, 31)
	if err != nil {
		return 0
	}
	return int(hz)
}

// workload is the object that a person made, by its attribute and name: a
// Deployment rather than its ReplicaSet, a CronJob rather than its Job. It is
// read off the names that Kubernetes's controllers give: no other object is
// asked for. What does not have such a name is what it seems to be.
func (p *Pod) workload() (key, name string) {
	switch p.Owner.Kind {
	case "ReplicaSet":
		// DEPLOYMENT-HASH, the hash being a label that the ReplicaSet of a
		// Deployment gives its pods.
		if hash := p.Labels["pod-template-hash"]; hash != "" {
			if name, ok := strings.CutSuffix(p.Owner.Name, "-"+hash); ok {
				return "k8s.deployment.name", name
			}
		}
		return "k8s.replicaset.name", p.Owner.Name
	case "Job":
		if name, ok := cronJob(p.Owner.Name, p.Created); ok {
			return "k8s.cronjob.name", name
		}
		return "k8s.job.name", p.Owner.Name
	case "StatefulSet":
		return "k8s.statefulset.name", p.Owner.Name
	case "DaemonSet":
		return "k8s.daemonset.name", p.Owner.Name
	}
	return "", "" // its own, a static pod, or of a controller that has no attribute
}

// cronJob takes CRONJOB-MINUTES apart, the name of a Job that a CronJob made:
// the minutes of Unix time at which it was due. A number that is no such time
// was given by somebody else. A pod may come a day after its Job was due, where
// it failed before.
func cronJob(job string, created time.Time) (string, bool) {
	i := strings.LastIndexByte(job, '-')
	if i <= 0 {
		return "", false
	}
	minutes, err := strconv.ParseInt(job[i+1:], 10, 64)
	if err != nil {
		return "", false
	}
	late := created.Sub(time.Unix(minutes*60, 0))
	return job[:i], late > -time.Minute && late < 24*time.Hour
}

// Attributes of the container by OpenTelemetry's names, service.name among them.
// The UID of the pod is not there: container.id tells apart what it does, and
// backends bound how many names a series has.
func (c Container) Attributes() []profiler.Attribute {
	p := c.Pod
	a := attributes{}
	a.add("service.name", c.service())
	a.add("service.namespace", cmp.Or(p.Annotations[resourcePrefix+"service.namespace"], p.Namespace))
	a.add("service.version", cmp.Or(p.Annotations[resourcePrefix+"service.version"], p.Labels[versionLabel], tag(c.Image)))
	a.add("k8s.namespace.name", p.Namespace)
	a.add("k8s.pod.name", p.Name)
	a.add("k8s.container.name", c.Name)
	a.add("container.id", c.ID)
	if key, name := p.workload(); key != "" {
		a.add(key, name)
	}
	return a
}

// service is the name under which the container's traces and logs are known:
// what the pod's annotation says, else its labels, else what it is of.
func (c Container) service() string {
	p := c.Pod
	_, workload := p.workload()
	return cmp.Or(p.Annotations[resourcePrefix+"service.name"], p.Labels[instanceLabel], p.Labels[nameLabel], workload, p.Owner.nameOfOwn(), p.Name)
}

// nameOfOwn is the name of a controller that is none of Kubernetes's. A node
// "owns" its static pods, which then all would have one name.
func (o Owner) nameOfOwn() string {
	if o.Kind == "Node" {
		return ""
	}
	return o.Name
}

// tag is the tag of an image, empty where it has none or only a digest, which
// the status has of an image without a name.
func tag(image string) string {
	image, _, _ = strings.Cut(image, "@")
	if strings.HasPrefix(image, "sha256:") {
		return ""
	}
	if i := strings.LastIndexByte(image, ':'); i > strings.LastIndexByte(image, '/') {
		return image[i+1:]
	}
	return ""
}

type attributes []profiler.Attribute

// add adds an attribute that has a value. What a pod says is foreign.
func (a *attributes) add(key, value string) {
	if value != "" {
		*a = append(*a, profiler.Attribute{Key: key, Value: profiler.Printable(value)})
	}
}
