// Package kube is the way to a cluster: it connects as kubectl would, tells
// whether objects are ready and why they are not, and reaches Services from
// this machine.
//
// Every error that a person can mend is a profiler.Fault. The package reads
// objects and changes none. It does not know what the stack consists of: who
// asks names the objects. What it knows of them comes from the API server:
// conditions, container states and events, never from the nodes themselves.
package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/kalypso-dev/kalypso/profiler"
)

// OldestMinor is the oldest Kubernetes 1.x that the charts run on: Mimir's chart
// asks for no less (kubeVersion: ^1.29.0-0).
const OldestMinor = 29

// answerLimit bounds the first question to a server. A server that answers at
// all does so in milliseconds; one behind a dropped route never does.
const answerLimit = 10 * time.Second

// Config says which cluster. Empty is what kubectl would take.
type Config struct {
	Kubeconfig string
	Context    string
	// Said, if not nil, is told of each request to the API server. It is called
	// from several goroutines.
	Said func(method, path, answer string, took time.Duration)
}

// Cluster is a cluster that has answered.
type Cluster struct {
	Context string // of the kubeconfig; "in-cluster" in a pod
	Server  string // URL
	Version string // as the server says it: v1.33.4+k3s1
	Answer  time.Duration

	REST    *rest.Config
	Client  kubernetes.Interface
	Dynamic dynamic.Interface

	loader    clientcmd.ClientConfig
	discovery discovery.CachedDiscoveryInterface
}

// Connect opens a cluster and refuses one that is too old for the stack.
func Connect(ctx context.Context, c Config) (*Cluster, error) {
	cluster, err := Open(ctx, c)
	if err != nil {
		return nil, err
	}
	if cluster.TooOld() {
		return nil, &profiler.Fault{
			What: fmt.Sprintf("the cluster of context %q is too old", cluster.Context),
			Why:  fmt.Errorf("it runs Kubernetes %s, and the charts need v1.%d or newer", cluster.Version, OldestMinor),
			Fix:  "upgrade the cluster, or choose another: kubectl config get-contexts",
			Kind: ErrTooOld,
		}
	}
	return cluster, nil
}

// Open reads the kubeconfig and asks the server for its version.
func Open(ctx context.Context, c Config) (*Cluster, error) {
	k, err := readKubeconfig(c)
	if err != nil {
		return nil, err
	}
	cluster := &Cluster{Context: k.context, Server: k.rest.Host, REST: k.rest, loader: k.loader}
	// The server has a queue for each user; a second one here only adds waits.
	k.rest.QPS = -1
	k.rest.UserAgent = "kalypsoctl"
	k.rest.WarningHandlerWithContext = rest.NoWarnings{}
	if c.Said != nil {
		k.rest.Wrap(func(next http.RoundTripper) http.RoundTripper { return &logged{next, c.Said} })
	}
	if err := cluster.clients(); err != nil {
		return nil, k.fault(err)
	}
	limited, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	started := time.Now()
	body, err := cluster.Client.Discovery().RESTClient().Get().AbsPath("/version").DoRaw(limited)
	if err != nil {
		if errors.Is(ctx.Err(), context.Canceled) {
			return nil, context.Cause(ctx)
		}
		if limited.Err() != nil {
			err = errNoAnswer
		}
		return nil, k.fault(err)
	}
	cluster.Answer = time.Since(started)
	var says version.Info
	if err := json.Unmarshal(body, &says); err != nil || says.GitVersion == "" {
		return nil, k.fault(errNoKubernetes)
	}
	cluster.Version = says.GitVersion
	return cluster, nil
}

// Kinds of faults, for those who decide on them.
var (
	ErrKubeconfig  = errors.New("no kubeconfig that can be used")
	ErrContext     = errors.New("no such context")
	ErrUnreachable = errors.New("the cluster does not answer")
	ErrCertificate = errors.New("a certificate does not serve")
	ErrCredentials = errors.New("the cluster refuses the credentials")
	ErrForbidden   = errors.New("rights are missing")
	ErrTooOld      = errors.New("too old a Kubernetes")
	ErrNoNode      = errors.New("no node takes a pod")
	ErrNoVolume    = errors.New("volumes cannot be made")
)

var (
	errNoKubernetes = errors.New("what answers is not a Kubernetes API server")
	errNoAnswer     = errors.New("no answer")
)

// clients makes the clients, which share one pool of connections.
func (c *Cluster) clients() error {
	httpClient, err := rest.HTTPClientFor(c.REST)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfigAndClient(c.REST, httpClient)
	if err != nil {
		return err
	}
	c.Client = client
	if c.Dynamic, err = dynamic.NewForConfigAndClient(c.REST, httpClient); err != nil {
		return err
	}
	c.discovery = memory.NewMemCacheClient(client.Discovery())
	return nil
}

var minorVersion = regexp.MustCompile(`^v?1\.(\d+)`)

// TooOld says whether the server is older than the charts allow. A version that
// cannot be read is taken to be new.
func (c *Cluster) TooOld() bool {
	m := minorVersion.FindStringSubmatch(c.Version)
	if m == nil {
		return false
	}
	minor, err := strconv.Atoi(m[1])
	return err == nil && minor < OldestMinor
}

// ended is the reason why ctx is over, in words; never "context deadline
// exceeded" alone.
func ended(ctx context.Context) error {
	cause := context.Cause(ctx)
	if errors.Is(cause, context.DeadlineExceeded) {
		return errors.New("the time is over")
	}
	return cause
}
