package kube

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/kalypso-dev/kalypso/profiler"
)

const (
	inCluster     = "in-cluster" // the context of a pod, which has no kubeconfig
	listContexts  = "kubectl config get-contexts"
	makeOne       = "kalypsoctl cluster create     makes a cluster on this machine; --kubeconfig FILE names one that there is"
	whichFileHelp = "kubectl config view     prints what is read; --kubeconfig FILE names another"
)

// kubeconfig is what a kubeconfig says of one context.
type kubeconfig struct {
	context string
	loader  clientcmd.ClientConfig
	rest    *rest.Config
}

// rules are those of kubectl: the flag, $KUBECONFIG, ~/.kube/config.
func rules(c Config) *clientcmd.ClientConfigLoadingRules {
	r := clientcmd.NewDefaultClientConfigLoadingRules()
	r.WarnIfAllMissing = false
	r.ExplicitPath = c.Kubeconfig
	return r
}

// Contexts are the names of the contexts that there are, sorted.
func Contexts(c Config) []string {
	raw, err := rules(c).Load()
	if err != nil {
		return nil
	}
	return slices.Sorted(maps.Keys(raw.Contexts))
}

// readKubeconfig finds the context that is meant, and what it needs.
func readKubeconfig(c Config) (*kubeconfig, error) {
	r := rules(c)
	raw, err := r.Load()
	if err != nil {
		return nil, loadFault(c, r, err)
	}
	k := &kubeconfig{context: c.Context}
	if k.context == "" {
		k.context = raw.CurrentContext
	}
	if err := k.check(r, raw); err != nil {
		return nil, err
	}
	k.loader = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(r, &clientcmd.ConfigOverrides{CurrentContext: c.Context})
	if k.context == "" {
		k.context = inCluster
	}
	if k.rest, err = k.loader.ClientConfig(); err != nil {
		return nil, &profiler.Fault{What: fmt.Sprintf("context %q of the kubeconfig cannot be used", k.context), Why: oneLine(err), Fix: whichFileHelp, Kind: ErrKubeconfig}
	}
	return k, nil
}

func loadFault(c Config, r *clientcmd.ClientConfigLoadingRules, err error) error {
	if errors.Is(err, fs.ErrNotExist) && c.Kubeconfig != "" {
		return &profiler.Fault{What: "there is no file " + c.Kubeconfig, Fix: makeOne, Kind: ErrKubeconfig}
	}
	return &profiler.Fault{
		What: "cannot read the kubeconfig " + strings.Join(r.GetLoadingPrecedence(), string(os.PathListSeparator)),
		Why:  oneLine(err), Fix: whichFileHelp, Kind: ErrKubeconfig,
	}
}

// check says what is wrong with the choice of a context before client-go does,
// in its own words, or falls back to localhost:8080.
func (k *kubeconfig) check(r *clientcmd.ClientConfigLoadingRules, raw *clientcmdapi.Config) error {
	contexts := slices.Sorted(maps.Keys(raw.Contexts))
	ctx := raw.Contexts[k.context]
	switch {
	case len(contexts) == 0 && k.context == "":
		if os.Getenv("KUBERNETES_SERVICE_HOST") != "" && r.ExplicitPath == "" {
			return nil // in a pod
		}
		return &profiler.Fault{
			What: "there is no cluster to talk to",
			Why:  fmt.Errorf("no context is in the kubeconfig %s", strings.Join(r.GetLoadingPrecedence(), string(os.PathListSeparator))),
			Fix:  makeOne,
			Kind: ErrKubeconfig,
		}
	case k.context == "":
		return &profiler.Fault{
			What: "no context is chosen", Why: fmt.Errorf("the kubeconfig has no current-context, and these contexts: %s", listed(contexts)),
			Fix: "kubectl config use-context " + contexts[0] + "     or --context " + contexts[0], Kind: ErrKubeconfig,
		}
	case ctx == nil:
		f := &profiler.Fault{What: fmt.Sprintf("there is no context %q", k.context), Why: errors.New("the kubeconfig has no context"), Fix: makeOne, Kind: ErrContext}
		if len(contexts) > 0 {
			f.Why, f.Fix = fmt.Errorf("the kubeconfig has %s", listed(contexts)), listContexts
		}
		return &ContextError{Name: k.context, Contexts: contexts, fault: f}
	case raw.Clusters[ctx.Cluster] == nil:
		return &profiler.Fault{What: fmt.Sprintf("context %q of the kubeconfig cannot be used", k.context), Why: fmt.Errorf("it names cluster %q, which is not in the kubeconfig", ctx.Cluster), Fix: whichFileHelp, Kind: ErrKubeconfig}
	case ctx.AuthInfo != "" && raw.AuthInfos[ctx.AuthInfo] == nil:
		return &profiler.Fault{What: fmt.Sprintf("context %q of the kubeconfig cannot be used", k.context), Why: fmt.Errorf("it names user %q, who is not in the kubeconfig", ctx.AuthInfo), Fix: whichFileHelp, Kind: ErrKubeconfig}
	}
	user := raw.AuthInfos[ctx.AuthInfo]
	if user == nil {
		user = &clientcmdapi.AuthInfo{}
	}
	for _, file := range []string{raw.Clusters[ctx.Cluster].CertificateAuthority, user.ClientCertificate, user.ClientKey, user.TokenFile} {
		if _, err := os.Stat(file); file != "" && err != nil {
			return &profiler.Fault{What: fmt.Sprintf("context %q of the kubeconfig cannot be used", k.context), Why: fmt.Errorf("it names a file: %w", err), Fix: whichFileHelp, Kind: ErrKubeconfig}
		}
	}
	return nil
}

// ContextError says that a context is not in the kubeconfig. It wraps a
// profiler.Fault; who knows what is near to a word can tell better.
type ContextError struct {
	Name     string
	Contexts []string
	fault    *profiler.Fault
}

// Error is that of the fault.
func (e *ContextError) Error() string { return e.fault.Error() }

// Unwrap gives the fault.
func (e *ContextError) Unwrap() error { return e.fault }

// listLimit is what fits a line or two.
const listLimit = 8

func listed(names []string) string {
	if len(names) > listLimit {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:listLimit], ", "), len(names)-listLimit)
	}
	return strings.Join(names, ", ")
}

// fault says why the server of a context cannot be talked to.
func (k *kubeconfig) fault(err error) error {
	f := &profiler.Fault{What: fmt.Sprintf("cannot reach the cluster of context %q", k.context), Why: oneLine(err), Kind: ErrUnreachable}
	host := k.rest.Host
	if u, parseErr := url.Parse(host); parseErr == nil && u.Host != "" {
		host = u.Host
	}
	var (
		authority x509.UnknownAuthorityError
		invalid   x509.CertificateInvalidError
		hostname  x509.HostnameError
		dns       *net.DNSError
	)
	switch {
	case k.certificate() != nil:
		f.What = fmt.Sprintf("the certificate of context %q does not serve any more", k.context)
		f.Why, f.Fix, f.Kind = k.certificate(), k.renew(), ErrCertificate
	case noExecutable.MatchString(err.Error()):
		name := noExecutable.FindStringSubmatch(err.Error())[1]
		f.Why, f.Fix, f.Kind = fmt.Errorf("the kubeconfig has %s ask for credentials, which is not installed", name), "install "+name+", or choose another context: "+listContexts, ErrCredentials
	case strings.Contains(err.Error(), "getting credentials: exec"):
		f.Fix, f.Kind = "log in again with the tool that the message names, or choose another context: "+listContexts, ErrCredentials
	case apierrors.IsUnauthorized(err):
		f.What = fmt.Sprintf("the cluster of context %q does not know you", k.context)
		f.Why, f.Fix, f.Kind = errors.New("it refuses the credentials of the kubeconfig (401 Unauthorized)"), k.renew(), ErrCredentials
	case apierrors.IsForbidden(err):
		f.What = fmt.Sprintf("the cluster of context %q does not tell you its version", k.context)
		f.Fix, f.Kind = "ask whoever runs the cluster for the ClusterRole system:public-info-viewer", ErrForbidden
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		f.Why = fmt.Errorf("the certificate of the server %s was valid from %s until %s", host, date(invalid.Cert.NotBefore), date(invalid.Cert.NotAfter))
		f.Fix, f.Kind = "renew it on the server (kubeadm certs renew all; k3s: restart it), and look whether the clock here is right: date", ErrCertificate
	case errors.As(err, &authority):
		f.Why = fmt.Errorf("the certificate of %s is signed by somebody whom the kubeconfig does not know: was the cluster made anew?", host)
		f.Fix, f.Kind = k.renew(), ErrCertificate
	case errors.As(err, &hostname):
		f.Fix, f.Kind = "name the server in the kubeconfig as its certificate does: kubectl config set-cluster NAME --server https://…", ErrCertificate
	case errors.Is(err, syscall.ECONNREFUSED):
		f.Why, f.Fix = fmt.Errorf("nothing listens on %s (connection refused)", host), k.start()
	case errors.As(err, &dns):
		f.Why, f.Fix = fmt.Errorf("there is no address for the name %s", dns.Name), "look at the server of the kubeconfig (kubectl config view --minify), at DNS and the VPN"
	case errors.Is(err, errNoAnswer), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), isTimeout(err):
		f.Why, f.Fix = fmt.Errorf("%s: %w", host, noAnswer(err)), k.start()
	default:
		f.Fix = "kubectl --context " + k.context + " version     shows whether kubectl can; " + listContexts
	}
	return f
}

// noExecutable is how client-go says that a credential plugin is missing.
var noExecutable = regexp.MustCompile(`executable (\S+) not found`)

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func noAnswer(err error) error {
	for _, errno := range []syscall.Errno{syscall.EHOSTUNREACH, syscall.ENETUNREACH} {
		if errors.Is(err, errno) {
			return errno
		}
	}
	return errNoAnswer
}

// tool makes local clusters, whose contexts it names with a prefix.
type tool struct{ prefix, start, renew string }

func tools() []tool {
	return []tool{
		{"colima", "colima start", "colima kubernetes reset     makes the cluster anew, and its credentials"},
		{"k3d-", "k3d cluster start", "k3d kubeconfig merge --all --overwrite"},
		{"kind-", "docker start", "kind export kubeconfig --name"},
		{"minikube", "minikube start", "minikube update-context"},
	}
}

// start tells how to start the server.
func (k *kubeconfig) start() string {
	for _, t := range tools() {
		if !strings.HasPrefix(k.context, t.prefix) {
			continue
		}
		name := strings.TrimPrefix(k.context, t.prefix)
		switch t.prefix {
		case "colima":
			if name = strings.TrimPrefix(name, "-"); name != "" {
				return t.start + " --profile " + name
			}
			return t.start
		case "k3d-":
			return t.start + " " + name
		case "kind-":
			return t.start + " " + name + "-control-plane"
		}
		return t.start
	}
	return "start the cluster, look at the network and the VPN, or choose another context: " + listContexts
}

// renew tells how to get credentials that serve.
func (k *kubeconfig) renew() string {
	for _, t := range tools() {
		if strings.HasPrefix(k.context, t.prefix) {
			if t.prefix == "kind-" {
				return t.renew + " " + strings.TrimPrefix(k.context, t.prefix)
			}
			return t.renew
		}
	}
	return "get a new kubeconfig from whoever runs the cluster (k3s: /etc/rancher/k3s/k3s.yaml; kubeadm: kubeadm kubeconfig user)"
}

// certificate says what is wrong with the client's certificate, if it has one.
// A server tells only that it does not know who asks.
func (k *kubeconfig) certificate() error {
	data := k.rest.CertData
	if len(data) == 0 && k.rest.CertFile != "" {
		var err error
		if data, err = os.ReadFile(k.rest.CertFile); err != nil {
			return nil // client-go has said so
		}
	}
	key := k.rest.KeyData
	if len(key) == 0 && k.rest.KeyFile != "" {
		key, _ = os.ReadFile(k.rest.KeyFile)
	}
	pair, err := tls.X509KeyPair(data, key)
	if err != nil {
		return nil
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return nil
	}
	now := time.Now()
	switch {
	case now.After(leaf.NotAfter):
		return fmt.Errorf("it was valid until %s", date(leaf.NotAfter))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("it is valid from %s on, and the clock here says %s", date(leaf.NotBefore), date(now))
	}
	return nil
}

func date(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

// oneLine takes the address out of an error of net/http, and line breaks.
func oneLine(err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	if text := err.Error(); strings.Contains(text, "\n") {
		return errors.New(strings.Join(strings.Fields(text), " "))
	}
	return err
}
