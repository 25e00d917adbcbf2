package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/kalypso-dev/kalypso/profiler"
)

// Forward opens a port of this machine, on 127.0.0.1, that leads to a ready pod
// behind a Service. It lasts as long as the pod, and until close is called.
func (c *Cluster) Forward(ctx context.Context, namespace, service string, port int) (addr string, closeIt func(), err error) {
	f, err := c.ForwardTo(ctx, namespace, service, port, 0)
	if err != nil {
		return "", nil, err
	}
	return f.Addr, f.Close, nil
}

// Forwarding is an open way to a pod.
type Forwarding struct {
	Addr string // 127.0.0.1:N
	Pod  string

	// Ended is closed when the way is: the pod went away, or Close was called.
	Ended  <-chan struct{}
	cancel context.CancelFunc
}

// Close ends it and waits.
func (f *Forwarding) Close() {
	f.cancel()
	<-f.Ended
}

// ForwardTo is Forward from a port of choice; 0 takes any.
func (c *Cluster) ForwardTo(ctx context.Context, namespace, service string, port, local int) (*Forwarding, error) {
	name, target, err := c.behind(ctx, namespace, service, port)
	if err != nil {
		return nil, err
	}
	return c.ForwardPod(ctx, namespace, name, target, local)
}

// ForwardPod is ForwardTo a pod, by the number of its port.
func (c *Cluster) ForwardPod(ctx context.Context, namespace, name string, target, local int) (*Forwarding, error) {
	dialer, err := c.dialer(namespace, name)
	if err != nil {
		return nil, fmt.Errorf("forward to pod %s/%s: %w", namespace, name, err)
	}
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ready, over := make(chan struct{}), make(chan struct{})
	forwarder, err := portforward.NewOnAddressesForStreamingWithContext(inner, dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("%d:%d", local, target)}, ready, io.Discard, io.Discard)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("forward to pod %s/%s: %w", namespace, name, err)
	}
	var failed error
	go func() {
		defer close(over)
		failed = forwarder.ForwardPorts()
	}()
	f := &Forwarding{Pod: name, Ended: over, cancel: cancel}
	select {
	case <-ready:
	case <-over:
		cancel()
		return nil, forwardFault(namespace, name, local, failed)
	case <-ctx.Done():
		f.Close()
		return nil, forwardFault(namespace, name, local, ended(ctx))
	}
	ports, err := forwarder.GetPorts()
	if err != nil || len(ports) == 0 {
		f.Close()
		return nil, fmt.Errorf("forward to pod %s/%s: %w", namespace, name, err)
	}
	f.Addr = fmt.Sprintf("127.0.0.1:%d", ports[0].Local)
	return f, nil
}

func forwardFault(namespace, pod string, local int, err error) error {
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case apierrors.IsForbidden(err):
		return forbidden(fmt.Sprintf("forward a port to pod %s/%s", namespace, pod), err)
	}
	f := &profiler.Fault{What: fmt.Sprintf("cannot forward a port to pod %s/%s", namespace, pod), Why: oneLine(err), Fix: fmt.Sprintf("kubectl -n %s describe pod %s", namespace, pod)}
	if local != 0 {
		f.Fix += fmt.Sprintf("; --port names another port than %d", local)
	}
	return f
}

// dialer opens streams to a pod: through a WebSocket, or SPDY where the server
// is older than that (Kubernetes 1.31).
func (c *Cluster) dialer(namespace, pod string) (httpstream.Dialer, error) {
	url := c.Client.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("portforward").URL()
	transport, upgrader, err := spdy.RoundTripperFor(c.REST)
	if err != nil {
		return nil, err
	}
	old := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	tunnel, err := portforward.NewSPDYOverWebsocketDialerForStreaming(url, c.REST)
	if err != nil {
		return nil, err
	}
	return portforward.NewFallbackDialerForStreaming(tunnel, old, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	}), nil
}

// behind gives a ready pod behind a Service, and its port.
func (c *Cluster) behind(ctx context.Context, namespace, service string, port int) (pod string, target int, err error) {
	s, err := c.Client.CoreV1().Services(namespace).Get(ctx, service, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return "", 0, &profiler.Fault{What: fmt.Sprintf("there is no Service %s in namespace %s", service, namespace), Fix: "kalypsoctl status     tells what is installed"}
	case err != nil:
		return "", 0, readFault("see Service "+namespace+"/"+service, err)
	}
	e, err := c.endpoint(ctx, namespace, service)
	var none *noEndpoint
	switch {
	case errors.As(err, &none):
		return "", 0, &profiler.Fault{What: none.Error(), Fix: "kalypsoctl status     tells why"}
	case err != nil:
		return "", 0, err
	case e.TargetRef == nil || e.TargetRef.Kind != "Pod":
		return "", 0, fmt.Errorf("forward to Service %s/%s: what is behind it is no pod", namespace, service)
	}
	for _, p := range s.Spec.Ports {
		if int(p.Port) == port {
			target, err = c.targetPort(ctx, namespace, e.TargetRef.Name, p)
			return e.TargetRef.Name, target, err
		}
	}
	return "", 0, fmt.Errorf("forward to Service %s/%s: it has no port %d", namespace, service, port)
}

// targetPort is the number of a pod's port; a Service may name it.
func (c *Cluster) targetPort(ctx context.Context, namespace, pod string, p corev1.ServicePort) (int, error) {
	if p.TargetPort.Type == intstr.Int {
		if n := p.TargetPort.IntValue(); n != 0 {
			return n, nil
		}
		return int(p.Port), nil
	}
	o, err := c.Client.CoreV1().Pods(namespace).Get(ctx, pod, metav1.GetOptions{})
	if err != nil {
		return 0, readFault("see pod "+namespace+"/"+pod, err)
	}
	for _, container := range o.Spec.Containers {
		for _, port := range container.Ports {
			if port.Name == p.TargetPort.StrVal {
				return int(port.ContainerPort), nil
			}
		}
	}
	return 0, fmt.Errorf("find the port of pod %s/%s: none is named %s", namespace, pod, p.TargetPort.StrVal)
}
