package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// pki is what kubeadm would make: authorities, certificates of each component and
// kubeconfigs that hold them.
type pki struct {
	dir   string
	ca    *authority // of everything
	front *authority // of the API server as a proxy
}

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	pem  []byte
	key  *ecdsa.PrivateKey
}

// subject is who a certificate is for.
type subject struct {
	name    string
	groups  []string
	dns     []string
	ips     []string
	expired bool
}

// pair is a certificate and its key, in PEM.
type pair struct{ cert, key []byte }

func newPKI(dir string) (*pki, error) {
	p := &pki{dir: dir}
	var err error
	if p.ca, err = newAuthority("kubernetes"); err != nil {
		return nil, err
	}
	if p.front, err = newAuthority("front-proxy-ca"); err != nil {
		return nil, err
	}
	if err := p.write("ca.crt", p.ca.pem); err != nil {
		return nil, err
	}
	key, err := encodeKey(p.ca.key)
	if err != nil {
		return nil, err
	}
	if err := p.write("ca.key", key); err != nil {
		return nil, err
	}
	return p, p.write("front-proxy-ca.crt", p.front.pem)
}

// file is the path of a file that is in the folder, or will be.
func (p *pki) file(name string) string { return filepath.Join(p.dir, name) }

func (p *pki) write(name string, data []byte) error {
	return os.WriteFile(p.file(name), data, 0o600)
}

// issue writes NAME.crt and NAME.key.
func (p *pki) issue(by *authority, name string, s subject) error {
	issued, err := by.issue(s)
	if err != nil {
		return fmt.Errorf("issue the certificate of %s: %w", s.name, err)
	}
	if err := p.write(name+".crt", issued.cert); err != nil {
		return err
	}
	return p.write(name+".key", issued.key)
}

// serviceAccounts writes the keys that sign and check tokens.
func (p *pki) serviceAccounts() error {
	key, err := newKey()
	if err != nil {
		return err
	}
	private, err := encodeKey(key)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	if err := p.write("sa.key", private); err != nil {
		return err
	}
	return p.write("sa.pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))
}

// kubeconfig writes NAME.conf, which leads to a server as somebody. Everything is
// in it, so that it can be copied about.
func (p *pki) kubeconfig(name, context, server string, s subject) (string, error) {
	issued, err := p.ca.issue(s)
	if err != nil {
		return "", fmt.Errorf("issue the certificate of %s: %w", s.name, err)
	}
	config := api.NewConfig()
	config.Clusters[context] = &api.Cluster{Server: server, CertificateAuthorityData: p.ca.pem}
	// Names of users are the file's too: kubeconfigs are joined by their names.
	user := s.name + "@" + context
	config.AuthInfos[user] = &api.AuthInfo{ClientCertificateData: issued.cert, ClientKeyData: issued.key}
	config.Contexts[context] = &api.Context{Cluster: context, AuthInfo: user}
	config.CurrentContext = context
	path := p.file(name + ".conf")
	return path, clientcmd.WriteToFile(*config, path)
}

func newAuthority(name string) (*authority, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	cert := template(subject{name: name})
	cert.IsCA, cert.BasicConstraintsValid = true, true
	cert.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(der)
	return &authority{parsed, encodeCert(der), key}, err
}

func (a *authority) issue(s subject) (*pair, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	cert := template(s)
	cert.KeyUsage = x509.KeyUsageDigitalSignature
	cert.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, cert, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	private, err := encodeKey(key)
	return &pair{encodeCert(der), private}, err
}

// serverFor is a certificate that whoever listens as a name can show.
func (a *authority) serverFor(name string) (*tls.Certificate, error) {
	issued, err := a.issue(subject{name: name, dns: []string{name}})
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(issued.cert, issued.key)
	return &cert, err
}

func template(s subject) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // the system has no random numbers
	}
	cert := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: s.name, Organization: s.groups},
		DNSNames:     s.dns,
		NotBefore:    time.Now().Add(-24 * time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
	}
	if s.expired {
		cert.NotAfter = time.Now().Add(-time.Hour)
	}
	for _, ip := range s.ips {
		cert.IPAddresses = append(cert.IPAddresses, net.ParseIP(ip))
	}
	return cert
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), err
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
