package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"sync/atomic"
)

// tlsConfig loads the named PEM files. It returns nil when none is named. The fields that
// it reports begin with prefix.
func tlsConfig(report func(field string, err error), prefix, ca, cert, key string) *tls.Config {
	if ca == "" && cert == "" && key == "" {
		return nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		cfg.RootCAs = x509.NewCertPool()
		if err == nil && !cfg.RootCAs.AppendCertsFromPEM(pem) {
			err = errors.New("there is no certificate in it")
		}
		report(prefix+"CACert", err)
	}
	report(prefix+"Cert", must(cert != "" || key == ""))
	report(prefix+"Key", must(key != "" || cert == ""))
	if cert != "" && key != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		report(prefix+"Cert", err)
		cfg.GetClientCertificate = renewable(&pair, cert, key)
	}
	return cfg
}

// renewable returns a function that reads the certificate again for each
// handshake, because it may have been renewed. While the files cannot be read, or
// only one of the two is new, it returns the last certificate that could be read.
func renewable(first *tls.Certificate, cert, key string) func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	var last atomic.Pointer[tls.Certificate]
	last.Store(first)
	return func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if pair, err := tls.LoadX509KeyPair(cert, key); err == nil {
			last.Store(&pair)
		}
		return last.Load(), nil
	}
}
