package kubernetes

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/kalypso-dev/kalypso/profiler/workload"
)

// object is what is read of a Pod as the API has it (core/v1). All else, its
// containers' environment among it, is skipped where it is decoded.
type object struct {
	Metadata struct {
		UID, Name, Namespace string
		ResourceVersion      string
		CreationTimestamp    time.Time
		Labels, Annotations  map[string]string
		OwnerReferences      []struct {
			Kind, Name string
			Controller bool
		}
	}
	Status struct {
		ContainerStatuses          []containerStatus
		InitContainerStatuses      []containerStatus
		EphemeralContainerStatuses []containerStatus
	}
}

type containerStatus struct {
	Name, Image      string
	ContainerID      string
	State, LastState struct {
		Terminated struct{ ContainerID string }
	}
}

// Annotations of the mirror that a static pod has in the API server. The first is
// the UID that the kubelet knows the pod by, the second repeats it. Only mirrors
// have both and a node as their owner: with the first alone any pod could take the
// place of another.
const (
	configHash   = "kubernetes.io/config.hash"
	configMirror = "kubernetes.io/config.mirror"
)

// pod is what is kept of it.
func (o *object) pod() *workload.Pod {
	m := &o.Metadata
	p := &workload.Pod{
		UID: m.UID, Namespace: m.Namespace, Name: m.Name, Created: m.CreationTimestamp, Labels: m.Labels,
	}
	for _, r := range m.OwnerReferences {
		if r.Controller {
			p.Owner = workload.Owner{Kind: r.Kind, Name: r.Name}
		}
	}
	if hash := m.Annotations[configHash]; hash != "" && hash == m.Annotations[configMirror] && p.Owner.Kind == "Node" {
		p.UID = hash
	}
	for key, value := range m.Annotations {
		if workload.KeepAnnotation(key, value) {
			if p.Annotations == nil {
				p.Annotations = map[string]string{}
			}
			p.Annotations[key] = value
		}
	}
	p.Told = len(o.Status.ContainerStatuses) > 0 &&
		!slices.ContainsFunc(o.Status.ContainerStatuses, func(s containerStatus) bool { return s.ContainerID == "" })
	for _, list := range [][]containerStatus{o.Status.ContainerStatuses, o.Status.InitContainerStatuses, o.Status.EphemeralContainerStatuses} {
		for i := range list {
			p.Containers = list[i].add(p.Containers)
		}
	}
	return p
}

// add adds the container that there is, and the one before it. The image is that
// of the one that there is.
func (s *containerStatus) add(to []workload.PodContainer) []workload.PodContainer {
	for _, full := range []string{s.ContainerID, s.State.Terminated.ContainerID, s.LastState.Terminated.ContainerID} {
		_, id, ok := strings.Cut(full, "://") // containerd://ID
		if !ok || id == "" {
			continue
		}
		known := false
		for _, c := range to {
			known = known || c.ID == id
		}
		if !known {
			to = append(to, workload.PodContainer{ID: id, Name: s.Name, Image: s.Image})
		}
	}
	return to
}

// maxList bounds the answer to a question for all pods of a node. 110 pods take
// 1 MiB.
const maxList = 256 << 20

// readList reads a PodList, one pod at a time: the whole is never in memory.
func readList(r io.Reader) (pods []*workload.Pod, version string, err error) {
	limited := &io.LimitedReader{R: r, N: maxList}
	d := json.NewDecoder(limited)
	if err := expect(d, json.Delim('{')); err != nil {
		return nil, "", err
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, "", err
		}
		switch key {
		case "metadata":
			var m struct{ ResourceVersion string }
			if err := d.Decode(&m); err != nil {
				return nil, "", err
			}
			version = m.ResourceVersion
		case "items":
			if pods, err = readItems(d); err != nil {
				return nil, "", err
			}
		default:
			var skip json.RawMessage
			if err := d.Decode(&skip); err != nil {
				return nil, "", err
			}
		}
	}
	if limited.N <= 0 {
		return nil, "", errors.New("the list of pods has no end")
	}
	return pods, version, expect(d, json.Delim('}'))
}

// readItems reads the list itself, which is null in the kubelet's answer when
// there are no pods.
func readItems(d *json.Decoder) ([]*workload.Pod, error) {
	token, err := d.Token()
	if err != nil || token == nil {
		return nil, err
	}
	if token != json.Delim('[') {
		return nil, fmt.Errorf("%v in the place of a list of pods", token)
	}
	var pods []*workload.Pod
	for d.More() {
		var o object
		if err := d.Decode(&o); err != nil {
			return nil, err
		}
		if p := o.pod(); p.UID != "" {
			pods = append(pods, p)
		}
	}
	return pods, expect(d, json.Delim(']'))
}

func expect(d *json.Decoder, want json.Delim) error {
	token, err := d.Token()
	if err == nil && token != want {
		err = fmt.Errorf("%v in the place of %v", token, want)
	}
	return err
}
