package config

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
)

// A certificate that is renewed in its files is used from the next handshake on. While the
// files do not fit each other or are gone, the last one is.
func TestCertificateIsRenewed(t *testing.T) {
	cert, key := filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	first, firstKey := issue(t)
	second, secondKey := issue(t)
	write(t, cert, "CERTIFICATE", first)
	write(t, key, "PRIVATE KEY", firstKey)
	cfg, err := read("ETCD_CACERT="+cert, "ETCD_CERT="+cert, "ETCD_KEY="+key)
	must(t, err)
	want := func(when string, der []byte) {
		t.Helper()
		got, err := cfg.EtcdTLS.GetClientCertificate(nil)
		if err != nil || !bytes.Equal(got.Certificate[0], der) {
			t.Errorf("%s: another certificate, or %v", when, err)
		}
	}
	want("at first", first)
	write(t, cert, "CERTIFICATE", second)
	want("the key is still the old one", first)
	write(t, key, "PRIVATE KEY", secondKey)
	want("renewed", second)
	must(t, os.Remove(cert))
	want("gone", second)
	if cfg.AMQPTLS != nil || cfg.EtcdTLS.RootCAs == nil {
		t.Errorf("AMQPTLS is %v, the roots of EtcdTLS are %v", cfg.AMQPTLS, cfg.EtcdTLS.RootCAs)
	}
}

// issue returns a certificate and its key.
func issue(t *testing.T) (cert, key []byte) {
	public, private, err := ed25519.GenerateKey(nil)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	cert, err = x509.CreateCertificate(rand.Reader, template, template, public, private)
	must(t, err)
	key, err = x509.MarshalPKCS8PrivateKey(private)
	must(t, err)
	return cert, key
}

func write(t *testing.T, path, kind string, der []byte) {
	must(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
