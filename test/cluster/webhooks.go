package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"
)

// A simulated pod answers nothing, so this package answers for it. The API server
// calls webhooks at the pods themselves, and what it sends to an address of a
// simulated pod stays in its own network (a local route). There a server listens
// on the ports below, allows every admission review, and converts an object by
// writing the wanted version into it. It shows a certificate for whatever name it
// is called by; the authority of that certificate is written into each webhook
// and each converted CRD whose caBundle is still empty, as cert-manager's
// cainjector and istiod would.

// webhookPorts are those that the webhooks of the stack are served at by their
// pods: cert-manager, the OpenTelemetry operator, istiod.
var webhookPorts = []string{"10250", "9443", "15017"}

// webhooks answers for simulated pods.
type webhooks struct {
	control   *place
	authority *authority
	dynamic   dynamic.Interface
	factory   dynamicinformer.DynamicSharedInformerFactory
	stop      context.CancelFunc
	fail      func(error)

	mu           sync.Mutex
	certificates map[string]*tls.Certificate
	server       *http.Server // nil while nothing answers
	serving      sync.WaitGroup
}

func startWebhooks(c *Cluster) (*webhooks, error) {
	authority, err := newAuthority("webhooks")
	if err != nil {
		return nil, err
	}
	client, err := dynamic.NewForConfig(c.REST)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	w := &webhooks{
		control: c.control, authority: authority, dynamic: client, stop: stop, fail: c.fail,
		factory:      dynamicinformer.NewDynamicSharedInformerFactory(client, 0),
		certificates: map[string]*tls.Certificate{},
	}
	for resource, configs := range injected() {
		inject := func(o any) { w.inject(ctx, resource, o.(*unstructured.Unstructured), configs) }
		_, err := w.factory.ForResource(resource).Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: inject, UpdateFunc: func(_, o any) { inject(o) },
		})
		if err != nil {
			stop()
			return nil, err
		}
	}
	w.factory.Start(ctx.Done())
	return w, w.answer(true)
}

func (w *webhooks) close() {
	w.answer(false)
	w.stop()
	w.factory.Shutdown()
}

// AnswerWebhooks says whether the webhooks of simulated pods are answered; they
// are from the start. When they are not, connections to them are refused.
func (c *Cluster) AnswerWebhooks(yes bool) error { return c.webhook.answer(yes) }

func (w *webhooks) answer(yes bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if yes == (w.server != nil) {
		return nil
	}
	if !yes {
		err := w.server.Close()
		w.serving.Wait()
		w.server = nil
		return err
	}
	server := &http.Server{
		Handler:           http.HandlerFunc(review),
		TLSConfig:         &tls.Config{GetCertificate: w.certificate, MinVersion: tls.VersionTLS12},
		ReadHeaderTimeout: 5 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0), // handshakes that the API server broke off
	}
	w.server = server
	for _, port := range webhookPorts {
		var listener net.Listener
		err := inNetworkOf(w.control.pid, func() (err error) {
			listener, err = net.Listen("tcp", "0.0.0.0:"+port)
			return err
		})
		if err != nil {
			return fmt.Errorf("answer webhooks at port %s: %w", port, err)
		}
		w.serving.Go(func() { server.ServeTLS(listener, "", "") })
	}
	return nil
}

func (w *webhooks) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	name := hello.ServerName
	if cert := w.certificates[name]; cert != nil {
		return cert, nil
	}
	cert, err := w.authority.serverFor(name)
	if err == nil {
		w.certificates[name] = cert
	}
	return cert, err
}

// review answers an AdmissionReview or a ConversionReview.
func review(out http.ResponseWriter, in *http.Request) {
	var asked struct {
		metav1.TypeMeta
		Request struct {
			UID               string           `json:"uid"`
			DesiredAPIVersion string           `json:"desiredAPIVersion"`
			Objects           []map[string]any `json:"objects"`
		} `json:"request"`
	}
	if err := json.NewDecoder(in.Body).Decode(&asked); err != nil {
		http.Error(out, err.Error(), http.StatusBadRequest)
		return
	}
	response := map[string]any{"uid": asked.Request.UID, "allowed": true}
	if asked.Kind == "ConversionReview" {
		for _, o := range asked.Request.Objects {
			o["apiVersion"] = asked.Request.DesiredAPIVersion
		}
		response = map[string]any{
			"uid": asked.Request.UID, "result": map[string]any{"status": metav1.StatusSuccess}, "convertedObjects": asked.Request.Objects,
		}
	}
	out.Header().Set("Content-Type", "application/json")
	json.NewEncoder(out).Encode(map[string]any{"apiVersion": asked.APIVersion, "kind": asked.Kind, "response": response})
}

// injected says where in objects a clientConfig is: in each element of a list, or
// at one path.
func injected() map[schema.GroupVersionResource]func(o map[string]any) []map[string]any {
	each := func(o map[string]any) (configs []map[string]any) {
		list, _ := o["webhooks"].([]any)
		for _, w := range list {
			configs = append(configs, at(w, "clientConfig"))
		}
		return configs
	}
	conversion := func(o map[string]any) []map[string]any {
		return []map[string]any{at(o, "spec", "conversion", "webhook", "clientConfig")}
	}
	admission := schema.GroupVersion{Group: "admissionregistration.k8s.io", Version: "v1"}
	extensions := schema.GroupVersion{Group: "apiextensions.k8s.io", Version: "v1"}
	return map[schema.GroupVersionResource]func(map[string]any) []map[string]any{
		admission.WithResource("validatingwebhookconfigurations"): each,
		admission.WithResource("mutatingwebhookconfigurations"):   each,
		extensions.WithResource("customresourcedefinitions"):      conversion,
	}
}

// at is the map at a path, or nil.
func at(value any, path ...string) map[string]any {
	m, _ := value.(map[string]any)
	for _, key := range path {
		m, _ = m[key].(map[string]any)
	}
	return m
}

// inject writes the authority into what calls a Service and trusts nobody yet.
// What fails is tried again when the object changes, which is also why it failed.
func (w *webhooks) inject(ctx context.Context, resource schema.GroupVersionResource, o *unstructured.Unstructured, configs func(map[string]any) []map[string]any) {
	changed := false
	o = o.DeepCopy()
	for _, config := range configs(o.Object) {
		bundle, _ := config["caBundle"].(string)
		if config["service"] == nil || holdsCertificate(bundle) {
			continue
		}
		config["caBundle"] = base64.StdEncoding.EncodeToString(w.authority.pem)
		changed = true
	}
	if !changed {
		return
	}
	_, err := w.dynamic.Resource(resource).Update(ctx, o, metav1.UpdateOptions{FieldManager: "kalypso-test-cluster"})
	if err != nil && ctx.Err() == nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
		w.fail(fmt.Errorf("trust what answers webhooks in %s: %w", o.GetName(), err))
	}
}

// holdsCertificate tells a bundle from the placeholders that charts put there.
func holdsCertificate(bundle string) bool {
	data, err := base64.StdEncoding.DecodeString(bundle)
	if err != nil {
		return false
	}
	block, _ := pem.Decode(bytes.TrimSpace(data))
	return block != nil
}
