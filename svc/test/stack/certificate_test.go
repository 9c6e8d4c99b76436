package stack_test

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
	"testing"
	"time"
)

// certificates holds the files of an authority, and of a certificate from it that
// serves both the server at 127.0.0.1 and its clients.
type certificates struct {
	ca, cert, key string
	client        *tls.Config
}

func makeCertificates(t *testing.T) certificates {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	sign := func(template, parent *x509.Certificate) *x509.Certificate {
		template.Subject = pkix.Name{CommonName: fmt.Sprintf("svc/test/stack, authority: %t", template.IsCA)}
		template.SerialNumber = big.NewInt(time.Now().UnixNano())
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), key)
		check(t, err)
		cert, err := x509.ParseCertificate(der)
		check(t, err)
		return cert
	}
	template := &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	ca := sign(template, template)
	cert := sign(&x509.Certificate{
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, ca)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	check(t, err)

	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		check(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return path
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	return certificates{
		ca:   write("ca.pem", "CERTIFICATE", ca.Raw),
		cert: write("cert.pem", "CERTIFICATE", cert.Raw),
		key:  write("key.pem", "PRIVATE KEY", keyDER),
		client: &tls.Config{
			RootCAs:      roots,
			Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}},
		},
	}
}
