package kube

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/kalypso-dev/kalypso/profiler"
)

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// sign makes a certificate for 127.0.0.1 and for a client, and its key.
func (a *authority) sign(t *testing.T, from, to time.Time) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "someone"}, NotBefore: from, NotAfter: to,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &private.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw})
}

// server answers for the version of a cluster, over TLS.
func (a *authority) server(t *testing.T, until time.Time, auth tls.ClientAuthType, answer http.HandlerFunc) string {
	t.Helper()
	cert, key := a.sign(t, time.Now().Add(-48*time.Hour), until)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	s := httptest.NewUnstartedServer(answer)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: auth, ClientCAs: pool}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL
}

func says(version string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/version" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprintf(w, `{"major":"1","minor":"33","gitVersion":%q}`, version)
	}
}

func refuses(code int, reason string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"message":%q,"code":%d}`, reason, reason, code)
	}
}

// kubeconfigFile writes a kubeconfig whose current context is "home".
func kubeconfigFile(t *testing.T, change func(*clientcmdapi.Config)) string {
	t.Helper()
	c := clientcmdapi.NewConfig()
	c.Clusters["home"] = &clientcmdapi.Cluster{Server: "https://127.0.0.1:1"}
	c.AuthInfos["me"] = &clientcmdapi.AuthInfo{}
	c.Contexts["home"] = &clientcmdapi.Context{Cluster: "home", AuthInfo: "me"}
	c.Contexts["colima-kalypso"] = &clientcmdapi.Context{Cluster: "home", AuthInfo: "me"}
	c.CurrentContext = "home"
	change(c)
	file := filepath.Join(t.TempDir(), "config")
	if err := clientcmd.WriteToFile(*c, file); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestConnectSaysWhatIsWrong(t *testing.T) {
	ca := newAuthority(t)
	day := 24 * time.Hour
	fresh, old := time.Now().Add(day), time.Now().Add(-day)
	current := func(url string) func(*clientcmdapi.Config) {
		return func(c *clientcmdapi.Config) {
			c.Clusters["home"].Server, c.Clusters["home"].CertificateAuthorityData = url, ca.pem()
		}
	}
	client := func(url string, from, to time.Time) func(*clientcmdapi.Config) {
		return func(c *clientcmdapi.Config) {
			current(url)(c)
			c.AuthInfos["me"].ClientCertificateData, c.AuthInfos["me"].ClientKeyData = ca.sign(t, from, to)
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := listener.Addr().String()
	_ = listener.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	// As an API server does it: anybody may begin, and who is unknown is refused.
	unknown := ca.server(t, fresh, tls.RequestClientCert, refuses(401, "Unauthorized"))

	tests := []struct {
		name             string
		config           Config
		file             func(*clientcmdapi.Config)
		what, cause, fix string // parts of them
		kind             error
	}{
		{"no kubeconfig anywhere", Config{}, nil, "there is no cluster to talk to", "no context is in the kubeconfig", "kalypsoctl cluster create", ErrKubeconfig},
		{"the file that --kubeconfig names is not there", Config{Kubeconfig: "/nowhere/config"}, nil, "there is no file /nowhere/config", "", "--kubeconfig FILE", ErrKubeconfig},
		{"a context that is not in it", Config{Context: "colima-kalipso"}, func(*clientcmdapi.Config) {},
			`there is no context "colima-kalipso"`, "the kubeconfig has colima-kalypso, home", "kubectl config get-contexts", ErrContext},
		{"no context is chosen", Config{}, func(c *clientcmdapi.Config) { c.CurrentContext = "" }, "no context is chosen", "colima-kalypso, home", "kubectl config use-context colima-kalypso", ErrKubeconfig},
		{"a context that names no cluster", Config{}, func(c *clientcmdapi.Config) { delete(c.Clusters, "home") }, `context "home" of the kubeconfig cannot be used`, `cluster "home", which is not in`, "kubectl config view", ErrKubeconfig},
		{"a certificate file that is not there", Config{}, func(c *clientcmdapi.Config) { c.AuthInfos["me"].ClientCertificate = "/nowhere/cert" }, `context "home" of the kubeconfig cannot be used`, "/nowhere/cert", "kubectl config view", ErrKubeconfig},
		{"nothing listens", Config{}, current("https://" + closed), `cannot reach the cluster of context "home"`, "nothing listens on " + closed + " (connection refused)", "kubectl config get-contexts", ErrUnreachable},
		{"nothing listens, and it is Colima's", Config{Context: "colima-kalypso"}, current("https://" + closed), `context "colima-kalypso"`, "connection refused", "colima start --profile kalypso", ErrUnreachable},
		{"no answer", Config{}, current("https://" + silent.Addr().String()), "cannot reach the cluster", silent.Addr().String() + ": no answer", "start the cluster", ErrUnreachable},
		{"a name without an address", Config{}, current("https://no-such-host.invalid:6443"), "cannot reach the cluster", "there is no address for the name no-such-host.invalid", "VPN", ErrUnreachable},
		{"a server that somebody else signed", Config{}, func(c *clientcmdapi.Config) {
			current(ca.server(t, fresh, tls.NoClientCert, says("v1.33.4")))(c)
			c.Clusters["home"].CertificateAuthorityData = newAuthority(t).pem()
		}, "cannot reach the cluster", "was the cluster made anew?", "get a new kubeconfig", ErrCertificate},
		{"the server's certificate expired", Config{}, current(ca.server(t, old, tls.NoClientCert, says("v1.33.4"))), "cannot reach the cluster", "until " + date(old), "renew it on the server", ErrCertificate},
		{"the client's certificate expired, and the server breaks off", Config{}, client(ca.server(t, fresh, tls.RequireAndVerifyClientCert, says("v1.33.4")), old.Add(-day), old),
			`the certificate of context "home" does not serve any more`, "it was valid until " + date(old), "get a new kubeconfig", ErrCertificate},
		{"the client's certificate expired, and the server does not know who it is", Config{}, client(unknown, old.Add(-day), old),
			`the certificate of context "home" does not serve any more`, "it was valid until " + date(old), "get a new kubeconfig", ErrCertificate},
		{"the clock here is behind", Config{}, client(unknown, fresh, fresh.Add(day)), "does not serve any more", "the clock here says", "", ErrCertificate},
		{"a token that nobody knows", Config{}, func(c *clientcmdapi.Config) { current(unknown)(c); c.AuthInfos["me"].Token = "x" }, `does not know you`, "401 Unauthorized", "get a new kubeconfig", ErrCredentials},
		{"a program for credentials that is not installed", Config{}, func(c *clientcmdapi.Config) {
			current(unknown)(c)
			c.AuthInfos["me"].Exec = &clientcmdapi.ExecConfig{APIVersion: "client.authentication.k8s.io/v1", Command: "no-such-program", InteractiveMode: clientcmdapi.NeverExecInteractiveMode}
		}, "cannot reach the cluster", "no-such-program ask for credentials, which is not installed", "install no-such-program", ErrCredentials},
		{"no API server", Config{}, current(ca.server(t, fresh, tls.NoClientCert, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") })), "cannot reach the cluster", "not a Kubernetes API server", "", ErrUnreachable},
		{"too old", Config{}, current(ca.server(t, fresh, tls.NoClientCert, says("v1.28.15+k3s1"))), "is too old", "v1.28.15+k3s1, and the charts need v1.29 or newer", "upgrade the cluster", ErrTooOld},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("HOME", t.TempDir())
			t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
			if tt.file != nil {
				tt.config.Kubeconfig = kubeconfigFile(t, tt.file)
			}
			limit := 20 * time.Second // a name server may be slow
			if tt.name == "no answer" {
				limit = 2 * time.Second
			}
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			_, err := Connect(ctx, tt.config)
			var fault *profiler.Fault
			if !errors.As(err, &fault) {
				t.Fatalf("no fault: %v", err)
			}
			cause := ""
			if fault.Why != nil {
				cause = fault.Why.Error()
			}
			t.Logf("error: %s\ncause: %s\nfix:   %s", fault.What, cause, fault.Fix)
			for _, part := range [][2]string{{fault.What, tt.what}, {cause, tt.cause}, {fault.Fix, tt.fix}} {
				if !strings.Contains(part[0], part[1]) {
					t.Errorf("%q does not say %q", part[0], part[1])
				}
			}
			if fault.Fix == "" {
				t.Error("no fix")
			}
			if !errors.Is(err, tt.kind) {
				t.Errorf("it is not of the kind %q", tt.kind)
			}
		})
	}
}

func TestConnect(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	ca := newAuthority(t)
	url := ca.server(t, time.Now().Add(time.Hour), tls.NoClientCert, says("v1.33.4+k3s1"))
	file := kubeconfigFile(t, func(c *clientcmdapi.Config) {
		c.Clusters["home"].Server, c.Clusters["home"].CertificateAuthorityData = url, ca.pem()
	})
	c, err := Connect(context.Background(), Config{Kubeconfig: file})
	if err != nil {
		t.Fatal(err)
	}
	if c.Context != "home" || c.Server != url || c.Version != "v1.33.4+k3s1" {
		t.Errorf("context %q, server %q, version %q", c.Context, c.Server, c.Version)
	}
	if namespace, given, err := c.Getter("mimir").ToRawKubeConfigLoader().Namespace(); namespace != "mimir" || !given || err != nil {
		t.Errorf("namespace of the getter: %q, %v, %v", namespace, given, err)
	}
}

func TestRequestsAreTold(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	ca := newAuthority(t)
	url := ca.server(t, time.Now().Add(time.Hour), tls.NoClientCert, says("v1.33.4"))
	file := kubeconfigFile(t, func(c *clientcmdapi.Config) {
		c.Clusters["home"].Server, c.Clusters["home"].CertificateAuthorityData = url, ca.pem()
	})
	var said []string
	_, err := Connect(context.Background(), Config{Kubeconfig: file, Said: func(method, path, answer string, _ time.Duration) {
		said = append(said, method+" "+path+" "+answer)
	}})
	if err != nil || strings.Join(said, "; ") != "GET /version 200 OK" {
		t.Errorf("said %q, %v", said, err)
	}
}

func TestInterruptedIsNoFault(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	file := kubeconfigFile(t, func(*clientcmdapi.Config) {})
	if _, err := Connect(ctx, Config{Kubeconfig: file}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestContextsAreListed(t *testing.T) {
	got := Contexts(Config{Kubeconfig: kubeconfigFile(t, func(*clientcmdapi.Config) {})})
	if strings.Join(got, " ") != "colima-kalypso home" {
		t.Errorf("got %v", got)
	}
	if got := Contexts(Config{Kubeconfig: filepath.Join(os.TempDir(), "no", "such")}); got != nil {
		t.Errorf("of no file: %v", got)
	}
}
