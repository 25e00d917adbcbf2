package otlptest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"
)

// pki is a certificate authority with a server and a client.
type pki struct {
	t      testing.TB
	dir    string
	ca     *x509.Certificate
	key    *ecdsa.PrivateKey
	server atomic.Pointer[tls.Certificate]
}

func newPKI(t testing.TB, expired bool) *pki {
	t.Helper()
	p := &pki{t: t, dir: t.TempDir(), key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kalypso test authority"},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &p.key.PublicKey, p.key)
	if err != nil {
		t.Fatalf("make an authority: %v", err)
	}
	if p.ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatalf("make an authority: %v", err)
	}
	p.write("ca.pem", "CERTIFICATE", der)
	p.renew(expired)
	p.client("client")
	return p
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatalf("make a key: %v", err)
	}
	return key
}

func (p *pki) write(name, kind string, der []byte) {
	p.t.Helper()
	data := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := os.WriteFile(filepath.Join(p.dir, name), data, 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// sign makes a key and a certificate for it.
func (p *pki) sign(name string, until time.Time, usage x509.ExtKeyUsage) ([]byte, *ecdsa.PrivateKey) {
	p.t.Helper()
	key := newKey(p.t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: until,
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, p.ca, &key.PublicKey, p.key)
	if err != nil {
		p.t.Fatalf("make a certificate: %v", err)
	}
	return der, key
}

func (p *pki) renew(expired bool) {
	p.t.Helper()
	until := time.Now().Add(time.Hour)
	if expired {
		until = time.Now().Add(-time.Hour)
	}
	der, key := p.sign("server", until, x509.ExtKeyUsageServerAuth)
	p.server.Store(&tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key})
}

// client writes a client's certificate and key.
func (p *pki) client(name string) {
	p.t.Helper()
	der, key := p.sign(name, time.Now().Add(time.Hour), x509.ExtKeyUsageClientAuth)
	p.write("client.pem", "CERTIFICATE", der)
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		p.t.Fatal(err)
	}
	p.write("client.key", "EC PRIVATE KEY", private)
}

func (p *pki) serverConfig(clientCert bool) *tls.Config {
	c := &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return p.server.Load(), nil },
	}
	if clientCert {
		c.ClientAuth = tls.RequireAndVerifyClientCert
		c.ClientCAs = x509.NewCertPool()
		c.ClientCAs.AddCert(p.ca)
	}
	return c
}

// CAFile is the file of the authority's certificate.
func (r *Receiver) CAFile() string { return filepath.Join(r.pki.dir, "ca.pem") }

// ClientFiles are the files of a client's certificate and its key.
func (r *Receiver) ClientFiles() (certificate, key string) {
	return filepath.Join(r.pki.dir, "client.pem"), filepath.Join(r.pki.dir, "client.key")
}

// Renew gives the receiver a new certificate, which the next connection sees.
func (r *Receiver) Renew(expired bool) {
	r.t.Helper()
	r.pki.renew(expired)
}

// RenewClient writes a new client certificate into the same files.
func (r *Receiver) RenewClient(name string) {
	r.t.Helper()
	r.pki.client(name)
}

func discardLog() *log.Logger { return log.New(io.Discard, "", 0) }

func fromMetadata(ctx context.Context) http.Header {
	out := http.Header{}
	md, _ := metadata.FromIncomingContext(ctx)
	for name, values := range md {
		for _, v := range values {
			out.Add(name, v)
		}
	}
	return out
}
