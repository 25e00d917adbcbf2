// Package kubernetes learns which pods run on a node, from the API server or from
// the node's kubelet, and tells workload.Pods. It owns how these are asked, how
// long is waited after a failure, and what of a pod is read: a few fields. It does
// not know what pods are called in profiles, nor which are wanted.
//
// The API server is asked for a list, then tells of changes (a watch); the kubelet
// can only be asked again. What was learnt stays while neither answers.
package kubernetes

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kalypso-dev/kalypso/profiler"
	"github.com/kalypso-dev/kalypso/profiler/workload"
)

// Source says who is asked.
type Source string

// The sources. Auto is the API server where the agent runs in a pod, and the
// kubelet where that refuses; without a pod's credentials, nobody.
const (
	Auto    Source = "auto"
	API     Source = "api"
	Kubelet Source = "kubelet"
	Off     Source = "off"
)

// Config says how a node's pods are learnt.
type Config struct {
	Source Source
	Node   string // name of the node
	// API is the server's URL, KubeletAddress the kubelet's HOST:PORT or URL. Empty:
	// as the kubelet tells every pod, and port 10250 of this node.
	API            string
	KubeletAddress string
	KubeletCA      string // certificates that the kubelet's must be signed by; empty: the cluster's
	// KubeletSkipVerify takes any certificate of the kubelet's. Most clusters need
	// it, since kubelets sign their own; it is the node's own kubelet that is asked.
	KubeletSkipVerify bool
	Credentials       string // folder with token and ca.crt; empty: where pods have it
	Pods              *workload.Pods
	Log               *slog.Logger
}

// credentials is where a pod finds those of its service account.
const credentials = "/var/run/secrets/kubernetes.io/serviceaccount"

// Times. A watch is ended by the server after a while, so that load spreads over
// servers, and tokens are renewed.
const (
	watchTime     = 8 * time.Minute
	shortWatch    = 5 * time.Second // one that ends earlier is not begun anew at once
	answerTimeout = 30 * time.Second
	pollTime      = 15 * time.Second
	pollAgain     = time.Second // at the earliest, when a container is met that is not known
	firstPause    = time.Second
	longestPause  = 30 * time.Second
)

// Watcher keeps workload.Pods true.
type Watcher struct {
	cfg     Config
	client  *http.Client // of the API server
	kubelet *http.Client
	said    bool // that it does not work
	exact   bool // the server's cache is behind what was heard of
}

// New says what is wrong with a configuration. It asks nobody yet, and gives nil
// when nobody is to be asked, or with Auto nobody can be.
func New(cfg Config) (*Watcher, error) {
	if cfg.Credentials == "" {
		cfg.Credentials = credentials
	}
	_, err := os.Stat(filepath.Join(cfg.Credentials, "token"))
	inPod := err == nil
	if cfg.Source == Off || cfg.Source == Auto && !inPod {
		return nil, nil
	}
	if !inPod {
		return nil, &profiler.Fault{
			What: fmt.Sprintf("cannot ask for pods (kubernetes.source: %s)", cfg.Source), Why: err,
			Fix: "mount the token of the pod's service account (automountServiceAccountToken)     or --kubernetes.source off",
		}
	}
	if cfg.Node == "" && cfg.Source == Auto {
		cfg.Log.Warn("containers are known by their IDs only: kubernetes.node does not say which node this is (fieldRef spec.nodeName)")
		return nil, nil
	}
	if cfg.Node == "" {
		return nil, &profiler.Fault{
			What: "cannot ask for the pods of this node", Why: errors.New("kubernetes.node is not set"),
			Fix: "set KALYPSO_AGENT_KUBERNETES_NODE from spec.nodeName (fieldRef)     or --kubernetes.source off",
		}
	}
	if host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"); cfg.API == "" && host != "" {
		cfg.API = "https://" + net.JoinHostPort(host, port)
	}
	if cfg.API == "" && cfg.Source != Kubelet {
		return nil, &profiler.Fault{
			What: "cannot ask the API server for pods", Why: errors.New("KUBERNETES_SERVICE_HOST is not set: this is no pod"),
			Fix: "--kubernetes.source off",
		}
	}
	w := &Watcher{cfg: cfg}
	if w.client, err = client(filepath.Join(cfg.Credentials, "ca.crt"), false); err != nil {
		return nil, err
	}
	ca := cfg.KubeletCA
	if ca == "" {
		ca = filepath.Join(cfg.Credentials, "ca.crt")
	}
	if w.kubelet, err = client(ca, cfg.KubeletSkipVerify); err != nil {
		return nil, err
	}
	return w, nil
}

// client speaks to one server, whose certificate is signed by one of those in a
// file. No proxy: the server is in the cluster.
func client(caFile string, skipVerify bool) (*http.Client, error) {
	text, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("read certificates: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("read certificates: %s holds none in PEM", caFile)
	}
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig:       &tls.Config{RootCAs: roots, InsecureSkipVerify: skipVerify, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:     true,
		ResponseHeaderTimeout: answerTimeout,
		IdleConnTimeout:       time.Minute,
		MaxIdleConns:          1,
		// A watch is silent where nothing changes: this finds out that its server is
		// gone.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second},
	}}, nil
}

// Run learns until ctx ends.
func (w *Watcher) Run(ctx context.Context) {
	if w.cfg.Source == Kubelet {
		w.keep(ctx, w.poll)
		return
	}
	w.keep(ctx, w.watch)
	if ctx.Err() == nil { // refused
		w.cfg.Log.Warn("the API server does not let the agent list pods; the kubelet is asked instead")
		w.keep(ctx, w.poll)
	}
}

// keep learns again and again, more slowly where it fails. It ends early when the
// API server refuses and the kubelet may be asked.
func (w *Watcher) keep(ctx context.Context, learn func(ctx context.Context, learnt func()) error) {
	pause := firstPause
	for ctx.Err() == nil {
		err := learn(ctx, func() {
			pause = firstPause
			w.cfg.Pods.SetLearning(true)
			if w.said {
				w.said = false
				w.cfg.Log.Info("pods are learnt again")
			}
		})
		if ctx.Err() != nil {
			return
		}
		var no *refusal
		if w.cfg.Source == Auto && errors.As(err, &no) && no.status == http.StatusForbidden && no.from == "API server" {
			return
		}
		if err != nil && !w.said {
			w.said = true
			w.cfg.Log.Warn("pods of this node are not learnt for now: containers that are new have no pod's name", "reason", err)
		}
		if err == nil {
			continue
		}
		w.cfg.Pods.SetLearning(false)
		select {
		case <-ctx.Done():
		case <-time.After(pause/2 + rand.N(pause)): // agents of many nodes lost the same server
		}
		pause = min(2*pause, longestPause)
	}
}

// watch asks the API server for the pods of this node, then hears of changes until
// the server ends it.
func (w *Watcher) watch(ctx context.Context, learnt func()) error {
	query := url.Values{"fieldSelector": {"spec.nodeName=" + w.cfg.Node}}
	if !w.exact {
		query.Set("resourceVersion", "0") // from the server's cache
	}
	ask, cancel := context.WithTimeout(ctx, 2*answerTimeout)
	defer cancel()
	body, err := w.get(ask, w.client, "API server", w.cfg.API+"/api/v1/pods?"+query.Encode())
	if err != nil {
		return err
	}
	pods, version, err := readList(body)
	_ = body.Close()
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	w.cfg.Pods.Replace(pods, time.Now())
	learnt()
	for ctx.Err() == nil {
		began := time.Now()
		version, err = w.follow(ctx, version)
		if w.exact = errors.Is(err, errExpired); w.exact {
			return nil
		}
		if err != nil {
			return err
		}
		if time.Since(began) < shortWatch {
			wait(ctx, firstPause)
		}
	}
	return nil
}

// event is one line of a watch.
type event struct {
	Type   string
	Object json.RawMessage
}

// errExpired says that a watch cannot go on from where it was.
var errExpired = errors.New("the server has forgotten the changes since the last one heard of")

// follow hears of changes since a version, until the server ends the watch; it
// gives the last version heard of.
func (w *Watcher) follow(ctx context.Context, version string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, watchTime+answerTimeout)
	defer cancel()
	query := url.Values{
		"watch": {"true"}, "fieldSelector": {"spec.nodeName=" + w.cfg.Node}, "resourceVersion": {version},
		"allowWatchBookmarks": {"true"}, "timeoutSeconds": {fmt.Sprintf("%.0f", watchTime.Seconds())},
	}
	body, err := w.get(ctx, w.client, "API server", w.cfg.API+"/api/v1/pods?"+query.Encode())
	if err != nil {
		return version, err
	}
	defer body.Close()
	for d := json.NewDecoder(body); ; {
		var e event
		if err := d.Decode(&e); errors.Is(err, io.EOF) {
			return version, nil
		} else if err != nil {
			return version, fmt.Errorf("watch pods: %w", err)
		}
		next, err := w.take(&e)
		if err != nil {
			return version, err
		}
		if next != "" {
			version = next
		}
	}
}

// take takes in one event.
func (w *Watcher) take(e *event) (version string, err error) {
	if e.Type == "ERROR" {
		var status struct {
			Code    int
			Message string
		}
		_ = json.Unmarshal(e.Object, &status) // what it says is for people
		if status.Code == http.StatusGone {
			return "", errExpired
		}
		return "", fmt.Errorf("watch pods: %s", status.Message)
	}
	var o object
	if err := json.Unmarshal(e.Object, &o); err != nil {
		return "", fmt.Errorf("watch pods: %w", err)
	}
	p := o.pod()
	switch {
	case e.Type == "BOOKMARK" || p.UID == "":
	case e.Type == "DELETED":
		w.cfg.Pods.Set(p, time.Now()) // its last containers
		w.cfg.Pods.Remove(p.UID, time.Now())
	default:
		w.cfg.Pods.Set(p, time.Now())
	}
	return o.Metadata.ResourceVersion, nil
}

// poll asks the kubelet, now and then, and when a container is met that is not
// known.
func (w *Watcher) poll(ctx context.Context, learnt func()) error {
	address := w.cfg.KubeletAddress
	if address == "" {
		address = net.JoinHostPort(w.cfg.Node, "10250")
	}
	if !strings.Contains(address, "://") {
		if host, port, err := net.SplitHostPort(address); err == nil { // [10.0.0.7]:10250 is none in a URL
			address = net.JoinHostPort(host, port)
		}
		address = "https://" + address
	}
	for {
		ask, cancel := context.WithTimeout(ctx, answerTimeout)
		err := w.askKubelet(ask, address)
		cancel()
		if err != nil {
			return err
		}
		learnt()
		if !wait(ctx, pollAgain) {
			return nil
		}
		timer := time.NewTimer(pollTime - pollAgain)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-w.cfg.Pods.Wanted():
			timer.Stop()
		}
	}
}

func (w *Watcher) askKubelet(ctx context.Context, url string) error {
	body, err := w.get(ctx, w.kubelet, "kubelet", strings.TrimSuffix(url, "/")+"/pods")
	if err != nil {
		return err
	}
	defer body.Close()
	pods, _, err := readList(body)
	if err != nil {
		return fmt.Errorf("list pods of the kubelet: %w", err)
	}
	w.cfg.Pods.Replace(pods, time.Now())
	return nil
}

func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// refusal is an answer that is none.
type refusal struct {
	from   string
	status int
	text   string
}

func (r *refusal) Error() string {
	text := fmt.Sprintf("the %s answers %d %s", r.from, r.status, http.StatusText(r.status))
	if r.text != "" {
		text += ": " + r.text
	}
	return text
}

// get asks. The token is read each time: the kubelet renews it.
func (w *Watcher) get(ctx context.Context, client *http.Client, from, url string) (io.ReadCloser, error) {
	token, err := os.ReadFile(filepath.Join(w.cfg.Credentials, "token"))
	if err != nil {
		return nil, fmt.Errorf("read the token of the service account: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	request.Header.Set("Accept", "application/json")
	request.Header.Set("User-Agent", "kalypso-agent")
	answer, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask the %s: %w", from, err)
	}
	if answer.StatusCode == http.StatusOK {
		return answer.Body, nil
	}
	defer answer.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
	var status struct{ Message string }
	if json.Unmarshal(text, &status) != nil || status.Message == "" {
		status.Message = strings.TrimSpace(string(text[:min(len(text), 200)]))
	}
	return nil, &refusal{from, answer.StatusCode, profiler.Printable(status.Message)}
}
