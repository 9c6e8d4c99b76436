package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority signs certificates, all of one key, and writes them to files.
type authority struct {
	t    *testing.T
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate // its own
	file string            // with its own certificate
}

// pair holds the files of a certificate, for a server at 127.0.0.1 or a client, and of
// its key.
type pair struct{ cert, key string }

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	a := &authority{t: t, dir: t.TempDir(), key: key, cert: &x509.Certificate{
		Subject: pkix.Name{CommonName: "a private authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, SerialNumber: big.NewInt(1),
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}}
	a.file = a.sign("ca", a.cert).cert
	return a
}

// issue makes a certificate that is valid until then.
func (a *authority) issue(name string, until time.Time) pair {
	a.t.Helper()
	return a.sign(name, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, SerialNumber: big.NewInt(time.Now().UnixNano()),
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: until,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
}

// sign overwrites the files of an earlier certificate with that name.
func (a *authority) sign(name string, template *x509.Certificate) pair {
	a.t.Helper()
	cert, err := x509.CreateCertificate(rand.Reader, template, a.cert, a.key.Public(), a.key)
	must(a.t, err)
	key, err := x509.MarshalPKCS8PrivateKey(a.key)
	must(a.t, err)
	p := pair{filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+"-key.pem")}
	must(a.t, os.WriteFile(p.cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600))
	must(a.t, os.WriteFile(p.key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600))
	return p
}

// secret returns a line of the key's file.
func (p pair) secret(t *testing.T) string {
	t.Helper()
	return strings.Split(readFile(t, p.key), "\n")[1]
}
