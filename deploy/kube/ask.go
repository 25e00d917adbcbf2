package kube

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// ask looks at an object of a kind that is not watched.
func (c *Cluster) ask(ctx context.Context, o Ref) (State, error) {
	object, err := c.get(ctx, o)
	switch {
	case apierrors.IsNotFound(err), meta.IsNoMatchError(err):
		return missing(o), nil
	case apierrors.IsForbidden(err):
		return State{}, forbidden("see "+o.String(), err)
	case err != nil && ctx.Err() == nil:
		// The server may be away for a moment: that is a reason, no end.
		return State{Ref: o, Reason: fmt.Sprintf("%s: the API server does not answer: %v", o.Name, oneLine(err))}, nil
	case err != nil:
		return State{}, err
	}
	s := State{Ref: o, Ready: true, Since: object.GetCreationTimestamp().Time}
	switch {
	case o.Kind == "CustomResourceDefinition":
		return established(s, object), nil
	case o.Kind == "APIService":
		return conditionTrue(s, object, "Available"), nil
	case o.Kind == "Namespace":
		return namespaceState(s, object), nil
	case strings.HasSuffix(o.Kind, "WebhookConfiguration"):
		return c.webhooks(ctx, s, object)
	}
	return s, nil
}

func (c *Cluster) get(ctx context.Context, o Ref) (*unstructured.Unstructured, error) {
	gv, err := schema.ParseGroupVersion(o.APIVersion)
	if err != nil {
		return nil, fmt.Errorf("read the version of %s: %w", o, err)
	}
	mapping, err := c.mapper().RESTMapping(gv.WithKind(o.Kind).GroupKind(), gv.Version)
	if err != nil {
		return nil, err
	}
	resource := c.Dynamic.Resource(mapping.Resource)
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		return resource.Namespace(o.Namespace).Get(ctx, o.Name, metav1.GetOptions{})
	}
	return resource.Get(ctx, o.Name, metav1.GetOptions{})
}

// objectCondition is one of status.conditions.
type objectCondition struct {
	Type               string      `json:"type"`
	Status             string      `json:"status"`
	Reason             string      `json:"reason"`
	Message            string      `json:"message"`
	LastTransitionTime metav1.Time `json:"lastTransitionTime"`
}

func conditions(o *unstructured.Unstructured) []objectCondition {
	var status struct {
		Status struct {
			Conditions []objectCondition `json:"conditions"`
		} `json:"status"`
	}
	into(o, &status)
	return status.Status.Conditions
}

// into reads an object as a struct that has some of its fields. Fields of
// another type than expected stay empty.
func into(o *unstructured.Unstructured, to any) {
	if data, err := o.MarshalJSON(); err == nil {
		_ = json.Unmarshal(data, to)
	}
}

// conditionTrue is the state of what tells it by one condition.
func conditionTrue(s State, o *unstructured.Unstructured, kind string) State {
	s.Ready = false
	s.Reason = fmt.Sprintf("%s: not %s yet", s.Name, strings.ToLower(kind))
	for _, c := range conditions(o) {
		if c.Type != kind {
			continue
		}
		s.Since = c.LastTransitionTime.Time
		if s.Ready = c.Status == string(metav1.ConditionTrue); s.Ready {
			s.Reason = ""
		} else if c.Message != "" {
			s.Reason = s.Name + ": " + short(c.Message)
		}
	}
	return s
}

// established is the state of a CRD.
func established(s State, o *unstructured.Unstructured) State {
	s = conditionTrue(s, o, "Established")
	for _, c := range conditions(o) {
		if c.Type == "NamesAccepted" && c.Status == string(metav1.ConditionFalse) {
			s.Ready, s.Reason = false, s.Name+": "+short(c.Message)
			s.Hurdle = Hurdle{Cause: "another CRD has its names: " + short(c.Message), Fix: "kubectl get crd     lists those that there are"}
		}
	}
	return s
}

// namespaceState: one that is being deleted takes no new objects.
func namespaceState(s State, o *unstructured.Unstructured) State {
	var n corev1.Namespace
	into(o, &n)
	if n.Status.Phase != corev1.NamespaceTerminating {
		return s
	}
	s.Ready = false
	s.Reason = fmt.Sprintf("namespace %s is being deleted: %s", n.Name, Remains(&n))
	if n.DeletionTimestamp != nil {
		s.Since = n.DeletionTimestamp.Time
	}
	return s
}

// Remains tells what keeps a namespace that is being deleted.
func Remains(n *corev1.Namespace) string {
	for _, kind := range []corev1.NamespaceConditionType{
		corev1.NamespaceFinalizersRemaining, corev1.NamespaceContentRemaining, corev1.NamespaceDeletionDiscoveryFailure, corev1.NamespaceDeletionGVParsingFailure, corev1.NamespaceDeletionContentFailure,
	} {
		for _, c := range n.Status.Conditions {
			if c.Type == kind && c.Status == corev1.ConditionTrue {
				return short(c.Message)
			}
		}
	}
	return "its objects are going"
}

// webhooks: one that fails requests when it is not answered has to be there.
// The others are in nobody's way.
func (c *Cluster) webhooks(ctx context.Context, s State, o *unstructured.Unstructured) (State, error) {
	var config struct {
		Webhooks []struct {
			Name          string `json:"name"`
			FailurePolicy string `json:"failurePolicy"`
			ClientConfig  struct {
				CABundle []byte `json:"caBundle"`
				Service  *struct{ Namespace, Name string }
			} `json:"clientConfig"`
		} `json:"webhooks"`
	}
	into(o, &config)
	for _, w := range config.Webhooks {
		service := w.ClientConfig.Service
		if service == nil || w.FailurePolicy == "Ignore" {
			continue
		}
		if len(w.ClientConfig.CABundle) == 0 {
			s.Ready, s.Reason = false, fmt.Sprintf("webhook %s: no certificate has been given to it", w.Name)
			return s, nil
		}
		_, err := c.endpoint(ctx, service.Namespace, service.Name)
		var none *noEndpoint
		switch {
		case errors.As(err, &none):
			s.Ready, s.Reason = false, fmt.Sprintf("webhook %s: %s", w.Name, none)
			return s, nil
		case err != nil:
			return s, err
		}
	}
	return s, nil
}

// noEndpoint is that no ready pod is behind a Service.
type noEndpoint struct{ namespace, service string }

// Error names the Service.
func (e *noEndpoint) Error() string {
	return fmt.Sprintf("no ready pod is behind Service %s/%s", e.namespace, e.service)
}

// endpoint gives a ready pod behind a Service.
func (c *Cluster) endpoint(ctx context.Context, namespace, service string) (*discoveryv1.Endpoint, error) {
	slices, err := c.Client.DiscoveryV1().EndpointSlices(namespace).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + service})
	if err != nil {
		return nil, fmt.Errorf("look who is behind Service %s/%s: %w", namespace, service, oneLine(err))
	}
	for i := range slices.Items {
		for j := range slices.Items[i].Endpoints {
			e := &slices.Items[i].Endpoints[j]
			if ready := e.Conditions.Ready; (ready == nil || *ready) && len(e.Addresses) > 0 {
				return e, nil
			}
		}
	}
	return nil, &noEndpoint{namespace, service}
}

// complete adds to the cause of a hurdle what only another question tells: how
// much room is missing, the last words of a container.
func (c *Cluster) complete(ctx context.Context, s State) string {
	h := s.Hurdle
	if h.pod == "" {
		return h.Cause
	}
	if h.After == roomLimit {
		if gap := c.gap(ctx, s.Namespace, h.pod); gap != "" {
			return h.Cause + "; " + gap
		}
		return h.Cause
	}
	if line := c.lastWords(ctx, s.Namespace, h.pod, h.from); line != "" {
		return h.Cause + `; its last words: "` + line + `"`
	}
	return h.Cause
}

const (
	wordsLimit = 2 * time.Second // for a log that nobody is waiting for
	logTail    = 20
)

var complaint = regexp.MustCompile(`(?i)\b(error|err|fatal|panic|failed|cannot|refused)\b`)

// lastWords is the last line of a container's log that complains, or the last.
func (c *Cluster) lastWords(ctx context.Context, namespace, pod, container string) string {
	ctx, cancel := context.WithTimeout(ctx, wordsLimit)
	defer cancel()
	tail := int64(logTail)
	for _, previous := range []bool{true, false} {
		o := &corev1.PodLogOptions{Container: container, Previous: previous, TailLines: &tail}
		body, err := c.Client.CoreV1().Pods(namespace).GetLogs(pod, o).Stream(ctx)
		if err != nil {
			continue
		}
		line := lastComplaint(body)
		_ = body.Close()
		if line != "" {
			return short(line)
		}
	}
	return ""
}

func lastComplaint(log io.Reader) string {
	var last, complains string
	for lines := bufio.NewScanner(log); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		if line == "" {
			continue
		}
		last = line
		if complaint.MatchString(line) {
			complains = line
		}
	}
	if complains != "" {
		return complains
	}
	return last
}
